"""YOLOv8: sizes as published, a forward pass as NumPy computes it, public names of weights."""

import logging

import numpy as np
import pytest
from detectors import small

import khub
from khub import cv, ops
from khub.cv import yolo_v8
from khub.presets import weights
from khub.presets.tensors import WeightsError, write_file

PUBLISHED = {  # with 80 classes; 16 of them are constants, the distances that the head tells apart
    "n": 3_157_200,
    "s": 11_166_560,
    "m": 25_902_640,
    "l": 43_691_520,
    "x": 68_229_648,
}


@pytest.mark.skipif(khub.backend.name == "numpy", reason="its shapes cost as much as the network")
@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size):
    model = cv.YOLOV8Detector.from_variant(f"yolo_v8_{size}", 80)
    count = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert count + model.bins == PUBLISHED[size]


# --- in NumPy, channels first, by the public names of the weights --------------------------------
def conv(x, weight, bias=0.0, stride=1):
    out, _, size, _ = weight.shape
    x = np.pad(x, [(0, 0), (0, 0), *[(size // 2, size // 2)] * 2])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    y = np.einsum("bcyxij,ocij->boyx", windows[:, :, ::stride, ::stride], weight, optimize=True)
    return y + np.reshape(bias, (-1, 1, 1))


class Reference:
    """The network, read off the state dict alone: how many blocks there are, how wide they are."""

    def __init__(self, state):
        self.state = {name: tensor.read().astype("float64") for name, tensor in state.items()}

    def has(self, name):
        return any(key.startswith(f"{name}.") for key in self.state)

    def unit(self, x, name, stride=1):
        def of(part):
            return self.state[f"{name}.bn.{part}"].reshape(-1, 1, 1)

        y = conv(x, self.state[f"{name}.conv.weight"], stride=stride)
        y = (y - of("running_mean")) / np.sqrt(of("running_var") + 1e-3)
        y = y * of("weight") + of("bias")
        return y / (1 + np.exp(-y))

    def c2f(self, x, name, shortcut):
        kept = np.split(self.unit(x, f"{name}.cv1"), 2, axis=1)
        block = 0
        while self.has(f"{name}.m.{block}"):
            y = self.unit(kept[-1], f"{name}.m.{block}.cv1")
            y = self.unit(y, f"{name}.m.{block}.cv2")
            kept.append(kept[-1] + y if shortcut else y)
            block += 1
        return self.unit(np.concatenate(kept, 1), f"{name}.cv2")

    def pooled(self, x, name):
        x = self.unit(x, f"{name}.cv1")
        kept = [x]
        for reach in (2, 4, 6):
            wide = np.pad(x, [(0, 0), (0, 0), *[(reach, reach)] * 2], constant_values=-np.inf)
            size = 2 * reach + 1
            windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size), (2, 3))
            kept.append(windows.max((-1, -2)))
        return self.unit(np.concatenate(kept, 1), f"{name}.cv2")

    def __call__(self, images):
        x, kept = images.transpose(0, 3, 1, 2).astype("float64"), {}
        for i in (0, 1, 3, 5, 7):
            x = self.unit(x, f"model.{i}", stride=2)
            x = kept[i] = self.c2f(x, f"model.{i + 1}", True) if i else x
        top = self.pooled(x, "model.9")

        def twice(x):
            return x.repeat(2, 2).repeat(2, 3)

        def merged(a, b, i):
            return self.c2f(np.concatenate([a, b], 1), f"model.{i}", False)

        middle = merged(twice(top), kept[5], 12)
        small = merged(twice(middle), kept[3], 15)
        medium = merged(self.unit(small, "model.16", 2), middle, 18)
        large = merged(self.unit(medium, "model.19", 2), top, 21)
        found = {"boxes": [], "classes": []}
        for level, x in enumerate((small, medium, large)):
            for name, branch in (("boxes", "cv2"), ("classes", "cv3")):
                head = f"model.22.{branch}.{level}"
                y = self.unit(self.unit(x, f"{head}.0"), f"{head}.1")
                y = conv(y, self.state[f"{head}.2.weight"], self.state[f"{head}.2.bias"])
                found[name].append(y.reshape(*y.shape[:2], -1).swapaxes(1, 2))
        return {name: np.concatenate(parts, 1) for name, parts in found.items()}

    def decoded(self, raw, size):
        """(batch, n, 4), each box from its row and column."""
        logits = raw["boxes"].reshape(len(raw["boxes"]), -1, 4, 16)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        sides, boxes, i = shares @ np.arange(16), [], 0
        for stride in (8, 16, 32):
            for row in range(size[0] // stride):
                for column in range(size[1] // stride):
                    left, top, right, bottom = np.moveaxis(sides[:, i] * stride, 1, 0)
                    x, y, i = (column + 0.5) * stride, (row + 0.5) * stride, i + 1
                    boxes.append(np.stack([x - left, y - top, x + right, y + bottom], -1))
        return np.stack(boxes, 1)


def spread(model, seed=3):
    """Give all weights values that make a difference."""
    random = np.random.default_rng(seed)
    for name, v in model.named_variables().items():
        scale = 2.4 / np.sqrt(np.prod(v.shape[:-1])) if name.endswith("kernel") else 0.2
        start = 1.0 if name.endswith(("gamma", "variance")) else 0.0
        v.assign(start + scale * random.uniform(-1, 1, v.shape))
    return model


def images(size=(64, 96), count=2):
    return np.random.default_rng(1).random((count, *size, 3), "float32")


def forward(model, x):
    """What a compiled call gives, as NumPy arrays."""
    raw = khub.jit(lambda x: model(x, training=False))(ops.convert_to_tensor(x))
    return {name: ops.convert_to_numpy(value) for name, value in raw.items()}


@pytest.fixture(scope="module")
def model():
    backbone = cv.YOLOV8Backbone((8, 8, 16, 24, 32), (1, 2, 1, 1))
    return spread(cv.YOLOV8Detector(backbone, 3, neck=(16, 24, 24, 2)))


def test_forward_pass(model):
    x, reference = images(), Reference(weights.tensors(model))
    want = reference(x)
    found = forward(model, x)
    assert found["boxes"].shape == (2, 126, 64) and found["classes"].shape == (2, 126, 3)
    for name, value in want.items():
        assert np.ptp(value, axis=1).max() > 0.3  # from point to point
        np.testing.assert_allclose(found[name], value, atol=1e-4)
    decoded = khub.jit(lambda raw: model.decode(raw, x.shape[1:3]))(found)
    boxes, scores = map(ops.convert_to_numpy, decoded)
    np.testing.assert_allclose(boxes, reference.decoded(want, x.shape[1:3]), atol=2e-3)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-want["classes"])), atol=1e-4)


def test_channels_first(model):
    x = images()
    want = forward(model, x)
    khub.config.set_image_data_format("channels_first")
    try:
        backbone = cv.YOLOV8Backbone((8, 8, 16, 24, 32), (1, 2, 1, 1))
        other = spread(cv.YOLOV8Detector(backbone, 3, neck=(16, 24, 24, 2)))
        found = forward(other, x.transpose(0, 3, 1, 2))
    finally:
        khub.config.set_image_data_format("channels_last")
    for name in want:
        np.testing.assert_allclose(found[name], want[name], atol=1e-4)


def test_pyramid_of_the_backbone(model):
    shapes = {k: v.shape[-1] for k, v in model.backbone.feature_pyramid().output.items()}
    assert shapes == {"P1": 8, "P2": 8, "P3": 16, "P4": 24, "P5": 32}


def test_weights_by_their_public_names(model, tmp_path, caplog):
    state = {name: tensor.read() for name, tensor in weights.tensors(model).items()}
    for name in ("model.0.conv.weight", "model.2.cv1.conv.weight", "model.2.m.0.cv2.bn.bias"):
        assert name in state
    assert state["model.22.cv2.0.0.conv.weight"].shape == (64, 16, 3, 3)
    state["model.22.dfl.conv.weight"] = np.arange(16, dtype="float32").reshape(1, 16, 1, 1)
    write_file(tmp_path / "yolo.safetensors", state)
    backbone = cv.YOLOV8Backbone((8, 8, 16, 24, 32), (1, 2, 1, 1))
    other = cv.YOLOV8Detector(backbone, 3, neck=(16, 24, 24, 2))
    with caplog.at_level(logging.WARNING, "khub"):
        other.load_weights(tmp_path / "yolo.safetensors")
    assert "AGPL" not in caplog.text
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    del state["model.9.cv1.conv.weight"]
    write_file(tmp_path / "yolo.safetensors", state)
    with pytest.raises(WeightsError, match=r"missing     model.9.cv1.conv.weight \(16, 32, 1, 1\)"):
        other.load_weights(tmp_path / "yolo.safetensors")
    state["model.9.cv1.conv.weight"] = weights.tensors(model)["model.9.cv1.conv.weight"].read()
    state["model.12.m.2.cv1.conv.weight"] = state["model.12.m.1.cv1.conv.weight"]
    write_file(tmp_path / "yolo.safetensors", state)
    with pytest.raises(WeightsError, match="unexpected  model.12.m.2.cv1.conv.weight"):
        other.load_weights(tmp_path / "yolo.safetensors")


BAD = {
    "yolo_v8_q": (lambda: cv.YOLOV8Detector.from_variant("yolo_v8_q", 2), "yolo_v8_q"),
    "neck": (lambda: small(neck=(8, 8)), r"neck must be three widths and the blocks.*\(8, 8\)"),
    "labels": (lambda: small(3, labels=("a", "b")), "2 labels were given for 3 classes"),
    "format": (lambda: small(bounding_box_format="xxyy"), "bounding_box_format must be"),
    "size": (lambda: small().predict_step(np.zeros((1, 40, 64, 3), "float32")), "multiples of 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_published_weights_are_not_apache(tmp_path, caplog):
    (tmp_path / "yolov8n.pt").write_bytes(b"no checkpoint")
    with caplog.at_level(logging.WARNING, "khub"), pytest.raises(WeightsError):
        small().load_weights(tmp_path / "yolov8n.pt")
    assert "AGPL-3.0" in caplog.text and "yolov8n.pt" in caplog.text


def test_variants_are_a_table():
    assert yolo_v8.VARIANTS["yolo_v8_m"] == dict(
        widths=(48, 96, 192, 384, 576), repeats=(2, 4, 4, 2)
    )
