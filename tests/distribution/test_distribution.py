"""Several processes and devices compute what one does: launched as a user launches them."""

import json
import os
import socket
import subprocess
import sys
import time

import distribution_worker as worker
import numpy as np
import pytest
from sources import ROOT

import khub
from khub import distribution

BACKEND = khub.backend.name
slow = pytest.mark.slow
LAUNCHES = {  # backend -> (processes, devices of each, jobs); JAX compiles each of them for seconds
    "torch": [(2, 1, "data:plain data:own model2:plain model2:resumed")],
    "jax": [
        (2, 1, "data:plain model2:plain"),
        pytest.param((2, 1, "data:own model2:resumed"), marks=slow),
        pytest.param((1, 8, "data:plain model2:own model8:plain data:resumed"), marks=slow),
    ],
    "tensorflow": [
        (1, 2, "data:plain"),
        pytest.param((1, 2, "data:own data:resumed"), marks=slow),
    ],
    "numpy": [],
}[BACKEND]
SEVERAL = pytest.mark.skipif(BACKEND not in ("torch", "jax"), reason="one process only")


def launch(count, devices, jobs, folder, **environment):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = os.environ | {
        "COUNT": str(count),
        "DEVICES": str(devices),
        "ADDRESS": address,
        "FOLDER": str(folder),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, ROOT / "tests" / "distribution_worker.py", *jobs.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(command, env=shared | {"RANK": str(i)} | environment, **pipes)
        for i in range(count)
    ]


@pytest.fixture(scope="module", params=LAUNCHES)
def launched(request, tmp_path_factory):
    """Return (what each process found, the folder of their files)."""
    folder = tmp_path_factory.mktemp("files")
    processes = launch(*request.param, folder)
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-4000:]
        found.append(json.loads(output.rpartition("RESULT")[2]))
    return found, folder


@pytest.fixture(scope="module")
def alone():
    found = {what: worker.results(getattr(worker, what)) for what in ("plain", "own")}
    assert [found[what].pop("split") for what in found] == [0, 0]
    return found


def differences(one, other, path=""):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            yield from differences(one[key], other[key], f"{path}/{key}")
    else:
        assert np.shape(one) == np.shape(other), path
        yield path, float(np.abs(np.subtract(one, other)).max())


@pytest.mark.skipif(not LAUNCHES, reason="NumPy has no distribution")
def test_losses_metrics_predictions_and_weights_are_those_of_one_process(launched, alone):
    for found in launched[0]:
        for job, result in found.items():
            how, what = job.split(":")
            if what in alone:
                # the Variables with a layout and Adam's two for each of them, still after training
                assert result.pop("split") == {"data": 0, "model2": 24, "model8": 12}[how]
                wrong = [x for x in differences(alone[what], result, job) if x[1] > 1e-5]
                assert not wrong


@pytest.mark.skipif(not LAUNCHES, reason="NumPy has no distribution")
def test_a_training_goes_on_exactly_from_a_file_that_one_process_wrote(launched):
    jobs = [(f, job) for f in launched[0] for job in f if job.endswith("resumed")]
    if not jobs:
        pytest.skip("the slow launches of this backend have it")
    for found, job in jobs:
        assert found[job]["whole"] == found[job]["again"]
        assert found[job] == launched[0][0][job]
        names = {path.name for path in launched[1].iterdir()}
        assert names == {"part.keras", "again.weights.h5"}
        model = worker.plain()  # here without any distribution
        model.load_weights(launched[1] / "again.weights.h5")
        for variable in model.variables:
            np.testing.assert_array_equal(variable.numpy(), found[job]["again"][variable.path])


@SEVERAL
@pytest.mark.timeout(120)
def test_a_process_that_dies_is_an_error_in_the_others(tmp_path):
    start = time.monotonic()
    processes = launch(2, 1, "data:dies", tmp_path, KHUB_DISTRIBUTION_TIMEOUT="10")
    output, errors = processes[0].communicate(timeout=90)
    assert processes[1].wait(10) == 1
    assert processes[0].returncode != 0 and "RESULT" not in output
    assert "rror" in errors and time.monotonic() - start < 80


needs_engine = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy has no distribution")


@pytest.mark.skipif(BACKEND != "numpy", reason="the others have one")
def test_numpy_says_who_has_a_distribution():
    with pytest.raises(NotImplementedError, match="jax, torch or tensorflow"):
        distribution.list_devices()


def mesh(shape=(1, 2), names=("batch", "model")):
    return distribution.DeviceMesh(shape, list(names), [f"cpu:{i}" for i in range(np.prod(shape))])


@needs_engine
def test_a_mesh_names_its_devices():
    made = mesh((2, 2))
    assert made.devices.tolist() == [["cpu:0", "cpu:1"], ["cpu:2", "cpu:3"]]
    assert made.axis_names == ["batch", "model"] and made.shape == (2, 2)
    assert distribution.get_device_count() == len(distribution.list_devices("cpu"))


WRONG = {
    "a name is missing": (lambda: distribution.DeviceMesh((1, 1), ["batch"], ["cpu:0"]), "a name"),
    "no shape": (lambda: distribution.DeviceMesh((), [], []), "a name"),
    "too few devices": (lambda: distribution.DeviceMesh((2,), ["a"], ["cpu:0"]), "1 devices"),
    "unknown axis": (lambda: distribution.TensorLayout(("depth",), mesh()), "depth"),
    "no layout": (lambda: distribution.LayoutMap(mesh()).update({"a": 3}), "TensorLayout"),
    "unknown axis in a map": (lambda: distribution.LayoutMap(mesh()).update(a=("z",)), "'z'"),
    "no map": (lambda: distribution.ModelParallel(), "layout_map"),
    "a size that cannot be divided": (
        lambda: distribution.TensorLayout(("model",), mesh()).check((3,), "dense/bias"),
        "dense/bias of shape",
    ),
    "an axis too few": (
        lambda: distribution.TensorLayout(("model",), mesh()).check((4, 4), "dense/kernel"),
        "an entry for each axis",
    ),
}


@needs_engine
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_an_error(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


@needs_engine
def test_a_layout_map_finds_layouts_by_regexes():
    layouts = distribution.LayoutMap(mesh())
    layouts["dense/kernel"] = (None, "model")
    layouts[".*dense.*/kernel"] = distribution.TensorLayout(("model", None))
    layouts["dense_[0-9]/bias"] = ("model",)
    assert layouts["dense/kernel"].axes == (None, "model")  # equal: before any match
    assert layouts["block/dense_1/kernel"].axes == ("model", None)
    assert layouts["block/dense_1/kernel"].device_mesh is layouts.device_mesh
    assert layouts["block/dense_1/bias"] is None  # a key begins where the path does
    assert layouts["dense_1/bias"].axes == ("model",)
    assert list(layouts) == ["dense/kernel", ".*dense.*/kernel", "dense_[0-9]/bias"]
    with pytest.raises(ValueError, match="already"):
        layouts["dense/kernel"] = ("model", None)
    layouts["dense_1/.*"] = ("model",)
    with pytest.raises(ValueError, match="matched by"):
        layouts["dense_1/bias"]
    del layouts["dense_1/.*"]
    assert len(layouts) == 3


@needs_engine
def test_the_layouts_of_a_distribution():
    layouts = distribution.LayoutMap(mesh())
    layouts["dense/kernel"] = (None, "model")
    chosen = distribution.ModelParallel(layout_map=layouts)
    dense = khub.layers.Dense(4, name="dense")
    dense.build((None, 3))
    optimizer = khub.optimizers.Adam()
    optimizer.build([dense.kernel, dense.bias])
    axes = {v.path: chosen.get_variable_layout(v).axes for v in optimizer.variables}
    kinds = {path.rpartition("/")[2]: found for path, found in axes.items()}
    assert kinds["dense_kernel_momentum"] == kinds["dense_kernel_velocity"] == (None, "model")
    assert kinds["dense_bias_momentum"] == (None,) and kinds["iteration"] == ()
    assert chosen.get_tensor_layout("dense/kernel").axes == (None, "model")
    assert chosen.get_data_layout((8, 3, 2)).axes == ("batch", None, None)
    assert (chosen.batch_dim_name, chosen.num_model_replicas) == ("batch", 1)
    assert distribution.distribution() is None


@pytest.mark.skipif(BACKEND != "jax", reason="jax donates buffers")
def test_an_assigned_value_is_not_shared():
    with distribution.DataParallel(devices=["cpu:0"]).scope():
        one, other = khub.Variable([1.0, 2.0]), khub.Variable([3.0, 4.0])
        one.assign(other.value)
        assert one.value is not other.value
        assert one.numpy().tolist() == [3.0, 4.0]


def test_a_step_without_a_distribution_is_as_it_was():
    from khub.training.trainer import Trainer

    assert Trainer._dispatch.__module__ == "khub.training.trainer"
    assert khub.Variable._store.__module__ == "khub.backend.variable"
