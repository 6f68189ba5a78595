"""Where Keras' backends are known to disagree: averages at borders, layouts, unsigned integers."""

import subprocess
import sys

import numpy as np
import pytest

from khub import backend, layers, ops, tree

UNSIGNED = ["uint8", "uint16", "uint32"] + (["uint64"] if backend.name != "jax" else [])


@pytest.mark.parametrize(
    "size, window, stride", [(5, 2, 2), (7, 3, 2), (6, 5, 3), (4, 3, 1), (3, 5, 5)]
)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_averages_at_the_border_do_not_count_the_border(size, window, stride, data_format):
    """The mean of ones is one up to the last row and column, that of a ramp is the ramp's."""
    ramp = np.arange(size * size, dtype="float32").reshape(size, size)
    image = np.stack([np.ones_like(ramp), ramp], -1)[None]
    x = image if data_format == "channels_last" else image.transpose(0, 3, 1, 2)
    found = layers.AveragePooling2D(window, stride, "same", data_format)(x)
    found = ops.convert_to_numpy(found)
    found = found if data_format == "channels_last" else found.transpose(0, 2, 3, 1)
    count = -(-size // stride)
    before = max((count - 1) * stride + window - size, 0) // 2
    places = [
        slice(max(i * stride - before, 0), i * stride - before + window) for i in range(count)
    ]
    wanted = [[ramp[a, b].mean() for b in places] for a in places]
    assert found.shape == (1, count, count, 2)
    np.testing.assert_allclose(found[0, ..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(found[0, ..., 1], wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", UNSIGNED)
def test_unsigned_integers_wrap_and_compare(kind):
    a, b = (ops.convert_to_tensor(np.array(v, kind)) for v in ([3, 250, 0], [5, 4, 1]))
    top = 2 ** int(kind[4:])
    for name, wanted in {
        "add": [8, 254, 1],
        "subtract": [top - 2, 246, top - 1],
        "multiply": [15, 1000 % top, 0],
        "floor_divide": [0, 62, 0],
        "mod": [3, 2, 0],
        "maximum": [5, 250, 1],
        "minimum": [3, 4, 0],
        "bitwise_xor": [6, 254, 1],
    }.items():
        found = ops.convert_to_numpy(getattr(ops, name)(a, b))
        np.testing.assert_array_equal(found, np.array(wanted, "uint64").astype(kind), name)
        assert found.dtype == kind
    for name, wanted in {
        "greater": [0, 1, 0],
        "less_equal": [1, 0, 1],
        "equal": [0, 0, 0],
    }.items():
        assert ops.convert_to_numpy(getattr(ops, name)(a, b)).tolist() == list(map(bool, wanted))
    assert ops.convert_to_numpy(ops.argsort(a)).tolist() == [2, 0, 1]
    assert int(ops.max(a)) == 250 and int(ops.sum(ops.cast(a, "uint8"))) == 253


@pytest.mark.skipif(backend.name != "torch", reason="about torch's memory formats")
@pytest.mark.parametrize(
    "run",
    [
        lambda x, k: ops.conv(x, k),
        lambda x, k: ops.conv(x, k, 2, "same"),
        lambda x, k: ops.depthwise_conv(x, k[..., :1]),
        lambda x, k: ops.conv_transpose(x, k.transpose(2, 3), 2),
        lambda x, k: ops.max_pool(x, 2),
        lambda x, k: ops.max_pool(x, 3, 2, "same"),
        lambda x, k: ops.average_pool(x, 2),
        lambda x, k: ops.average_pool(x, 3, 2, "same"),
        lambda x, k: ops.relu(x),
    ],
)
def test_torch_keeps_channels_last(run, monkeypatch):
    """Contiguous NHWC images come out contiguous in NHWC: their view is torch's channels_last."""
    import torch

    x = torch.randn(2, 9, 8, 16)
    kernel = torch.randn(3, 3, 16, 16)
    copies = []
    whole = torch.Tensor.contiguous

    def contiguous(self, *args, **kwargs):
        copies.append(self.shape)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "contiguous", contiguous)
    y = run(x, kernel)
    monkeypatch.undo()
    assert y.is_contiguous() and copies == []


FACTORS = [[0.9, 0.2, 1.3, -0.3, 1.1, 0.7, 0.01, 0.02], [1.2, 0, -2.1, 0.1, 0.8, 1.4, 0, 0.01]]


@pytest.mark.skipif(backend.name != "tensorflow", reason="about TensorFlow's kernels")
@pytest.mark.parametrize(
    "name, options, kernel",
    [
        ("project_images", ("bilinear", "constant", 0.5), "ImageProjectiveTransformV3"),
        ("project_images", ("bilinear", "reflect", 0.5), "ImageProjectiveTransformV3"),
        ("resize_pixels", ((5, 9), "linear", False), "ResizeBilinear"),
        ("resize_pixels", ((5, 9), "cubic", True), "ScaleAndTranslate"),
    ],
)
def test_tensorflow_image_kernels_go_wherever_their_bodies_go(name, options, kernel):
    """Second gradients, forward mode, sizes that a graph does not know, and XLA."""
    import tensorflow as tf

    op, rng = getattr(ops.image, name), np.random.default_rng(3)
    given = [ops.convert_to_tensor(rng.normal(size=(2, 7, 6, 2)).astype("float32"))]
    if name == "project_images":
        given.append(ops.convert_to_tensor(FACTORS, "float32"))
    directions = [ops.convert_to_tensor(np.ones(x.shape, "float32")) for x in given]

    def everything(function):
        def run(*given):
            return function(*given, *options)

        def slopes(given):
            return ops.grad(lambda given: ops.sum(ops.sin(run(*given))))(given)

        def bend(given):
            return sum(ops.sum(ops.square(slope)) for slope in slopes(given))

        unknown = [tf.TensorSpec([None] * (x.shape.rank - 1) + [x.shape[-1]]) for x in given]
        graph = tf.function(run, autograph=False).get_concrete_function(*unknown)
        compiled = tf.function(lambda *x: (run(*x), slopes(x)), jit_compile=True, autograph=False)
        found = {
            "value": run(*given),
            "slopes": slopes(given),
            "second": ops.grad(bend)(given),
            "forward": ops.jvp(run, given, directions)[1],
            "unknown sizes": graph(*given),
            "xla": compiled(*given),
        }
        return found, {node.type for node in graph.graph.get_operations()}

    found, kernels = everything(op)
    wanted, others = everything(op.reference)
    assert kernel in kernels - others
    for key, values in wanted.items():
        for a, w in zip(tree.flatten(found[key]), tree.flatten(values), strict=True):
            scale = float(ops.max(ops.abs(w)))
            assert scale > 0
            np.testing.assert_allclose(a, w, rtol=1e-5, atol=1e-5 * scale, err_msg=key)


@pytest.mark.parametrize("first", ["torch", "tensorflow", "jax"])
def test_importing_another_framework_first_changes_nothing(first):
    program = (
        f"import importlib.util as u, sys\n"
        f"if u.find_spec({first!r}) is None: sys.exit(7)\n"
        f"import {first}, khub, numpy as np\n"
        "x = khub.layers.Dense(2, kernel_initializer='ones')(np.ones((1, 3), 'float32'))\n"
        "print(khub.ops.convert_to_numpy(x).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode == 7:
        pytest.skip(f"{first} is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[[3.0, 3.0]]")
