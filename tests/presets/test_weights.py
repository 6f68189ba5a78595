"""The weight map, and loading that is strict, lazy and says everything that does not fit."""

import subprocess
import sys
from textwrap import dedent

import numpy as np
import pytest

from khub.presets import WeightsError, weights
from khub.presets.tensors import Checkpoint, write_checkpoint


def values(model):
    return {path: np.asarray(v.numpy()) for path, v in model.named_variables().items()}


def equal(one, two):
    assert one.keys() == two.keys()
    return all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture
def arrays(toy):
    return {name: tensor.read() for name, tensor in weights.tensors(toy).items()}


@pytest.fixture
def write(tmp_path):
    def write(arrays, **metadata):
        write_checkpoint(tmp_path, arrays)
        return Checkpoint(tmp_path)

    return write


def test_rename():
    table = [("a.{i}.x.{i}", "b.{i}.{i}"), ("long", "b.{i}"), ("c", "c")]
    assert weights.rename("b.3.14", table) == ["a.3.x.14"]
    assert weights.rename("b.3.14.rest", table) == ["a.3.x.14.rest"]
    assert weights.rename("b.3", table) == ["long"]
    assert weights.rename("c.rest", table) == ["c.rest"]
    assert weights.rename("cc", table) is None and weights.rename("b.x", table) is None
    same = [("", ""), ("", "head"), (("q.{i}", "k.{i}"), "qk.{i}")]
    assert weights.rename("cc.x", same) == ["cc.x"] and weights.rename("head.fc", same) == ["fc"]
    assert weights.rename("qk.2.kernel", same) == ["q.2.kernel", "k.2.kernel"]


def test_names_and_layouts_of_the_reference(toy, arrays):
    assert {name: array.shape for name, array in arrays.items()} == {
        "embeddings.words.weight": (5, 4),
        "encoder.layer.0.dense.weight": (8, 4),
        "encoder.layer.0.dense.bias": (8,),
        "encoder.layer.0.LayerNorm.weight": (8,),
        "encoder.layer.0.LayerNorm.bias": (8,),
        "encoder.layer.1.dense.weight": (8, 4),
        "encoder.layer.1.dense.bias": (8,),
        "encoder.layer.1.LayerNorm.weight": (8,),
        "encoder.layer.1.LayerNorm.bias": (8,),
        "encoder.scale": (4,),
        "pooler.weight": (4, 4),
        "pooler.bias": (4,),
    }
    kernel = np.asarray(toy.layers[0].up.kernel.numpy())
    assert np.array_equal(arrays["encoder.layer.0.dense.weight"], kernel.T)


@pytest.mark.parametrize("prefix", ["", "toy."])
def test_load_with_and_without_the_base_prefix(toys, toy, arrays, write, prefix):
    checkpoint = write({prefix + name: array for name, array in arrays.items()})
    model = toys.ToyBackbone(words=5)
    assert weights.load(model, checkpoint) == []
    assert equal(values(model), values(toy))


def test_loading_runs_no_initializer(toys, arrays, write):
    model = toys.ToyBackbone(words=5)

    def never(*args, **kwargs):
        raise AssertionError("an initializer ran")

    for variable in model.named_variables().values():
        variable.initializer, variable._seed = never, None
    weights.load(model, write(arrays))
    assert values(model)["scale"].shape == (4,)


def test_everything_that_does_not_fit_is_in_one_error_and_nothing_is_assigned(toys, arrays, write):
    arrays["embeddings.wordz.weight"] = arrays.pop("embeddings.words.weight")
    arrays["encoder.layer.1.dense.weight"] = arrays["encoder.layer.1.dense.weight"].T
    del arrays["encoder.layer.0.LayerNorm.bias"]
    arrays["encoder.layer.2.dense.bias"] = np.zeros(8, "float32")
    arrays["embeddings.position_ids"] = np.zeros(8, "int64")  # ignored
    model = toys.ToyBackbone(words=5)
    with pytest.raises(WeightsError) as caught:
        weights.load(model, write(arrays))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("model.safetensors does not fit ToyBackbone, 5 problems:")
    assert [line.strip() for line in lines[1:]] == [
        "missing     embeddings.words.weight (5, 4) for table.embeddings; did it become "
        "embeddings.wordz.weight?",
        "missing     encoder.layer.0.LayerNorm.bias (8,) for layers.0.norm.beta; did it become "
        "encoder.layer.2.dense.bias?",
        "misshaped   encoder.layer.1.dense.weight is (4, 8) in the file, (8, 4) in the model "
        "(layers.1.up.kernel)",
        "unexpected  embeddings.wordz.weight (5, 4); nearest name of the model: "
        "embeddings.words.weight",
        "unexpected  encoder.layer.2.dense.bias (8,); nearest name of the model: "
        "encoder.layer.0.LayerNorm.bias",
    ]
    assert not any(v.is_materialized for v in model.named_variables().values())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("pooler.bias"), "1 problem:\n  missing     pooler.bias"),
        (lambda a: a.update(extra=np.ones(3)), r"1 problem:\n  unexpected  extra \(3,\)"),
        (lambda a: a.update({"encoder.scale": np.ones(3)}), "misshaped   encoder.scale is .3,. in"),
    ],
)
def test_one_problem(toys, arrays, write, change, message):
    change(arrays)
    with pytest.raises(WeightsError, match=message):
        weights.load(toys.ToyBackbone(words=5), write(arrays))


def test_not_strict_loads_what_fits_and_logs_the_rest(toys, toy, arrays, write, caplog):
    del arrays["encoder.scale"]
    arrays["pooler.bias"] = np.ones(3, "float32")
    model = toys.ToyBackbone(words=5)
    assert weights.load(model, write(arrays), strict=False) == ["scale"]
    assert "2 problems" in caplog.text
    assert np.array_equal(values(model)["table.embeddings"], values(toy)["table.embeddings"])


def test_an_optional_module_may_be_absent_as_a_whole(toys, arrays, write, caplog):
    del arrays["pooler.bias"], arrays["pooler.weight"]
    fresh = weights.load(toys.ToyBackbone(words=5), write(arrays))
    assert sorted(fresh) == ["pooler.bias", "pooler.kernel"]
    assert "pooler.kernel, pooler.bias start from their initializers" in caplog.text


def test_a_variable_that_the_map_does_not_name(toys, toy):
    class Incomplete(toys.ToyBackbone):
        weight_map = toys.ToyBackbone.weight_map[1:]

    with pytest.raises(ValueError, match="Incomplete does not name: table.embeddings. Add a"):
        weights.slots(Incomplete(words=5))


def test_two_variables_of_one_name(toys):
    class Twice(toys.ToyBackbone):
        weight_map = [("w", "table"), ("same", "layers.{i}.up"), ("norm", "layers")]
        weight_map += toys.ToyBackbone.weight_map[3:]

    with pytest.raises(ValueError, match="two variables are named .*same.weight"):
        weights.slots(Twice(words=5))


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_the_files_dtype_is_cast_to_the_variables(toys, toy, arrays, write, stored):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if stored == "bfloat16" else stored
    checkpoint = write({name: array.astype(kind) for name, array in arrays.items()})
    model = toys.ToyBackbone(words=5)
    weights.load(model, checkpoint)
    for path, value in values(model).items():
        assert value.dtype == "float32"
        assert np.abs(value - values(toy)[path]).max() <= (4e-3 if stored == "bfloat16" else 5e-4)


def test_heads(toys, classifier, toy, write):
    arrays = {name: tensor.read() for name, tensor in weights.tensors(classifier).items()}
    assert {n for n in arrays if not n.startswith("toy.")} == {
        "classifier.weight",
        "classifier.bias",
    }
    checkpoint = write(arrays)

    backbone = toys.ToyBackbone(words=5)
    assert weights.load(backbone, checkpoint, [toys.ToyClassifier]) == []
    assert equal(values(backbone), values(toy))
    with pytest.raises(WeightsError, match="unexpected  classifier.bias"):
        weights.load(toys.ToyBackbone(words=5), checkpoint)

    masked = toys.ToyMaskedLM(toys.ToyBackbone(words=5))
    assert weights.load(masked, checkpoint, [toys.ToyClassifier, toys.ToyMaskedLM]) == ["bias"]

    wide = toys.ToyClassifier(toys.ToyBackbone(words=5), num_classes=7)
    with pytest.raises(WeightsError, match=r"classifier.bias is \(3,\) in the file, \(7,\) in"):
        weights.load(wide, checkpoint)
    assert weights.load(wide, checkpoint, fresh_shapes=True) == ["head.kernel", "head.bias"]

    half = {name: array for name, array in arrays.items() if name != "classifier.bias"}
    same = toys.ToyClassifier(toys.ToyBackbone(words=5), num_classes=3)
    with pytest.raises(WeightsError, match="missing     classifier.bias"):
        weights.load(same, write(half))


def test_host_memory_while_loading_is_at_most_a_fifth_more_than_the_file(tmp_path, note):
    """Sixty-four tables of 2 MB; measured in a process of its own, above what it had before."""
    script = dedent(
        """
        import resource, sys
        import numpy as np
        from khub import ops
        from khub.layers import Embedding, Layer
        from khub.presets import weights
        from khub.presets.tensors import Checkpoint

        class Tables(Layer):
            weight_map, ignored, reference_prefix = [("t", "tables")], (), "x"
            def build(self, shape):
                self.tables = [Embedding(4096, 128) for _ in range(64)]
                for table in self.tables:
                    table.build(None)

        def peak():  # not getrusage: there a process starts with its parent's peak
            with open("/proc/self/status") as file:
                return int(next(x for x in file if x.startswith("VmHWM:")).split()[1]) * 1024

        first = Embedding(4096, 128)
        first.build(None)
        first.embeddings.assign(np.ones((4096, 128), "float32"))
        assert ops.sum(first.embeddings.value) == 4096 * 128  # the backend is warm
        model = Tables()
        model.build(None)
        checkpoint = Checkpoint(sys.argv[1])
        with open("/proc/self/statm") as file:
            before = int(file.read().split()[1]) * resource.getpagesize()
        weights.load(model, checkpoint)
        for table in model.tables:
            assert ops.sum(table.embeddings.value) == 4096 * 128  # values come at the first use
        print((peak() - before) / checkpoint.bytes)
        """
    )
    table = np.ones((4096, 128), "float32")
    write_checkpoint(tmp_path, {f"t.{i}.weight": table for i in range(64)})
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ratio = float(done.stdout)
    note(f"host memory while loading: {ratio:.2f} times the file")
    assert ratio <= 1.2
    assert ratio > 0.9, "the measure counts what is loaded"


def test_kernels_that_are_stacked():
    """Each expert has tensors of its own in the file."""
    from khub import nlp

    sizes = dict(vocabulary_size=9, num_layers=1, num_query_heads=2, hidden_dim=8)
    sizes |= dict(intermediate_dim=6, num_experts=3)
    model = nlp.MixtralBackbone(**sizes)
    arrays = {name: tensor.read() for name, tensor in weights.tensors(model).items()}
    kernel = np.asarray(model.blocks[0].feed_forward.experts_gate_up.kernel.numpy())
    at = "layers.0.block_sparse_moe.experts"
    for expert in range(3):
        both = [arrays[f"{at}.{expert}.{name}.weight"] for name in ("w1", "w3")]
        assert np.array_equal(np.concatenate(both).T, kernel[expert])
        assert arrays[f"{at}.{expert}.w2.weight"].shape == (8, 6)
