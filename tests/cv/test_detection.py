"""The task of detectors: it learns eight images, and says where things are in images as given."""

import json
import re

import numpy as np
import pytest
from detectors import rectangles, small

import khub
from khub import applications, cv
from khub.cv.detection_data import DetectionPreprocessor

STEPS, TRAINS = 250, khub.backend.name != "numpy"
# a second training step takes their compilers half a minute
COMPILES_LONG = [pytest.mark.slow] if khub.backend.name in ("jax", "tensorflow") else []
needs_gradients = pytest.mark.skipif(not TRAINS, reason="NumPy has no gradients")


class Cosine(khub.callbacks.Callback):
    """The learning rate falls from 3e-3 along a cosine."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 1.5e-3 * (1 + np.cos(np.pi * epoch / STEPS))


@pytest.fixture(scope="module")
def learned():
    model, (images, labels) = small(), rectangles(8)
    if TRAINS:
        before = model.evaluate(images, labels, verbose=0)
        options = dict(batch_size=8, epochs=STEPS, verbose=0, augment=False, callbacks=Cosine())
        model.history = model.fit(images, labels, **options).history
        assert before["mAP50"] < 0.1
    return model, images, labels


@needs_gradients
def test_it_learns_eight_images(learned):
    model, images, labels = learned
    losses = model.history["loss"]
    assert losses[-1] < losses[0] / 8 and list(model.history) == ["loss", *model.LOSSES]
    found = model.evaluate(images, labels, verbose=0)
    assert found["mAP50"] > 0.95 and found["AR_100"] > 0.8
    assert found["loss"] == pytest.approx(sum(found[name] for name in model.LOSSES), rel=1e-4)


@needs_gradients
def test_boxes_lie_on_the_images_as_given(learned):
    model, images, labels = learned
    found = model.predict(images, batch_size=8, verbose=0)
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == {
        "boxes": (8, 100, 4),
        "confidence": (8, 100),
        "classes": (8, 100),
        "num_detections": (8,),
    }
    for i, (image, boxes, classes) in enumerate(zip(images, labels["boxes"], labels["classes"])):
        count = found["num_detections"][i]
        for name in ("boxes", "confidence", "classes"):
            assert (found[name][i, count:] == -1).all()
        own = found["boxes"][i, :count]
        assert (own >= 0).all() and (own <= [*image.shape[1::-1]] * 2).all()
        for box, kind in zip(boxes, classes):
            near = np.abs(own - box).max(-1) < 5
            assert kind in found["classes"][i, :count][near]
    assert found["num_detections"][-1] == 0
    one = model.predict(images[0], verbose=0)
    np.testing.assert_allclose(one["boxes"][0], found["boxes"][0], atol=0.05)


@pytest.fixture
def model(learned):
    """The learned detector, which a test may change: what it compiled serves all tests."""
    model, *_ = learned
    kept = model.get_weights(), model.preprocessor, model.bounding_box_format
    yield model
    model.set_weights(kept[0])
    model.preprocessor, model.bounding_box_format = kept[1:]
    model.preprocessor.bounding_box_format = model.bounding_box_format


@needs_gradients
def test_every_format_of_boxes_is_the_same(model):
    images, labels = rectangles(8, sides=(60, 61))
    want = model.evaluate(images, labels, verbose=0)
    form = "rel_center_xywh"
    model.bounding_box_format = model.preprocessor.bounding_box_format = form
    corners = [np.split(boxes / 60, 2, axis=1) for boxes in labels["boxes"]]
    boxes = [np.concatenate([(a + b) / 2, b - a], 1) for a, b in corners]
    found = model.evaluate(images, labels | {"boxes": boxes}, verbose=0)
    assert found == pytest.approx(want, rel=1e-4)
    assert (model.predict(images, verbose=0)["boxes"] <= 1).all()


@needs_gradients
def test_prepared_images_need_no_preprocessor(model):
    images, labels = rectangles(8)
    want = model.evaluate(images, labels, verbose=0)
    x, y = model.preprocessor(images, labels)
    boxes = y["boxes"] - np.pad(y["boxes"][..., :2], [(0, 0), (0, 0), (2, 0)])
    boxes = np.where(y["classes"][..., None] < 0, -1, boxes)
    model.preprocessor, model.bounding_box_format = None, "xywh"
    found = model.evaluate(x, {"boxes": boxes, "classes": y["classes"]}, verbose=0)
    for name in ("loss", "mAP50"):  # areas, and so mAP_small, are of the prepared images
        assert found[name] == pytest.approx(want[name], rel=1e-4)
    if not COMPILES_LONG:
        own = {"boxes": boxes, "classes": y["classes"]}
        options = dict(validation_data=(x, own), epochs=1, batch_size=8, average=0.999, verbose=0)
        model.optimizer.learning_rate = 0.0
        again = model.fit(x, own, **options).history["val_mAP50"][0]
        assert again > 0.9
    assert model.predict(x, verbose=0)["boxes"].shape == (8, 100, 4)
    with pytest.raises(ValueError, match="has no preprocessor, so it takes an array of prepared"):
        model.predict(images)


@needs_gradients
def test_average_of_weights(model):
    images, labels = rectangles(8)
    kernel = model.backbone.get_layer("model.0.conv").kernel
    start, seen, tested = kernel.numpy(), [], []

    class Watch(khub.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(kernel.numpy())

        def on_test_begin(self, logs=None):
            tested.append(kernel.numpy())

    model.optimizer.learning_rate = 1e-3
    callbacks = [cv.WeightAverage(0.5, warmup=2), Watch()]
    options = dict(batch_size=8, epochs=3, verbose=0, callbacks=callbacks, augment=False)
    model.fit(images, labels, average=0, validation_data=(images, labels), **options)
    mean = start
    for step, value in enumerate(seen, 1):
        momentum = 0.5 * (1 - np.exp(-step / 2))
        mean = momentum * mean + (1 - momentum) * value
        np.testing.assert_allclose(tested[step - 1], mean, atol=1e-6)
    np.testing.assert_allclose(kernel.numpy(), mean, atol=1e-6)
    assert np.abs(mean - seen[-1]).max() > 1e-5


@needs_gradients
def test_only_images_without_objects(model):
    images, _ = rectangles(8)
    labels = {"boxes": [np.zeros((0, 4))] * 8, "classes": [np.zeros(0, "int32")] * 8}
    history = model.fit(images, labels, verbose=0, augment=False).history
    assert history["box_loss"] == [0] and np.isfinite(history["loss"]).all()
    found = model.evaluate(images, labels, verbose=0)
    assert found["mAP"] == -1 and np.isfinite(found["loss"])


@needs_gradients
@pytest.mark.parametrize("policy", [pytest.param("mixed_bfloat16", marks=COMPILES_LONG)])
def test_mixed_precision(policy):
    model, (images, labels) = small(dtype=policy), rectangles(8)
    history = model.fit(images, labels, epochs=20, augment=False, verbose=0).history
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < 0.8 * history["loss"][0]
    kernel = model.backbone.get_layer("model.0.conv").kernel
    assert kernel.dtype == "float32" and model.network.output["boxes"].dtype == "bfloat16"
    found = model.predict(images, verbose=0)
    assert found["boxes"].dtype == np.float32 and np.isfinite(found["boxes"]).all()


def labels_with(box, kind=0):
    return {"boxes": [np.asarray([box])], "classes": [np.asarray([kind])]}


BAD = {
    "nan": (labels_with([0, 0, np.nan, 9]), "image 0 of the batch: box 0 is not finite"),
    "inverted": (labels_with([9, 9, 3, 3]), "box 0 has no area"),
    "outside": (labels_with([70, 0, 90, 9]), "box 0 lies outside of height 60, width 64"),
    "class": (labels_with([0, 0, 9, 9], 2), r"Classes must lie in 0 \.\. 1 .*got 2"),
    "counts": ({"boxes": [np.zeros((2, 4))], "classes": [np.zeros(1)]}, "2 boxes but .* 1"),
    "no classes": ({"boxes": [np.zeros((0, 4))]}, "Labels must be"),
}


@pytest.mark.parametrize("preprocessor", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_bad_labels(case, preprocessor):
    labels, message = BAD[case]
    model = small(preprocessor=preprocessor)
    images = [np.zeros((60, 64, 3), "uint8")]
    if not preprocessor:
        images, message = np.zeros((1, 64, 64, 3), "float32"), message.replace("60", "64")
    with pytest.raises(ValueError, match=message):
        model.fit(images, labels, verbose=0)


def test_what_it_does_not_take():
    model = small()
    with pytest.raises(ValueError, match="has its own; leave out loss"):
        model.compile("adam", loss="mse")
    if TRAINS:
        images, labels = rectangles(2)
        with pytest.raises(ValueError, match="takes no sample_weight"):
            model.fit(images, labels, sample_weight=np.ones(2), verbose=0)


def test_presets(tmp_path):
    host = DetectionPreprocessor((64, 96), bounding_box_format="xywh", mean=(0.5,) * 3)
    model = small(preprocessor=False, labels=("red", "green"), confidence_threshold=0.01)
    model = cv.YOLOV8Detector(model.backbone, 2, host, labels=("red", "green"))
    model.save_to_preset(tmp_path / "saved")
    for cls in (cv.ObjectDetector, cv.YOLOV8Detector):
        again = cls.from_preset(tmp_path / "saved", num_classes=None)
        assert type(again) is cv.YOLOV8Detector and again.labels == ("red", "green")
        assert again.bounding_box_format == again.preprocessor.bounding_box_format == "xywh"
        assert again.preprocessor.image_size == (64, 96)
        for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    own = dict(num_classes=5, bounding_box_format="rel_xyxy", iou_threshold=0.5)
    other = cv.YOLOV8Detector.from_preset(tmp_path / "saved", **own)
    assert other.labels is None and other.preprocessor.bounding_box_format == "rel_xyxy"
    for path, v in model.named_variables().items():  # what fits is kept: all but the last scores
        kept = not re.search(r"cv3\.\d\.2\.", path)
        again = other.named_variables()[path]
        assert (again.shape == v.shape) == kept
        assert not kept or (again.numpy() == v.numpy()).all()
    body = cv.YOLOV8Backbone.from_preset(tmp_path / "saved")
    kernel = "model.9.cv2.conv"
    np.testing.assert_array_equal(
        body.get_layer(kernel).kernel.numpy(), model.backbone.get_layer(kernel).kernel.numpy()
    )


def test_backbones_of_applications(tmp_path):
    body = applications.resnet.ResNetBackbone(
        (1, 1, 1, 1), "basic", widths=(8, 8, 16, 16), stem_width=8
    )
    model = cv.YOLOV8Detector(body, 2, neck=(16, 16, 24, 1))
    x = np.random.default_rng(0).random((1, 64, 64, 3), "float32")
    assert model.predict(x, verbose=0)["boxes"].shape == (1, 100, 4)
    model.save_to_preset(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == "yolo_v8" and config["khub"]["backbone_family"] == "resnet"
    again = cv.ObjectDetector.from_preset(tmp_path / "saved")
    assert type(again.backbone) is type(body)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    config["khub"]["backbone_family"] = "nobody"
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has the unknown backbone_family 'nobody'"):
        cv.ObjectDetector.from_preset(tmp_path / "saved")
    with pytest.raises(ValueError, match="ViTBackbone has no features of level P3, P4"):
        sizes = dict(patch_size=32, image_shape=(64, 64, 3))
        cv.YOLOV8Detector(applications.vit.ViTBackbone(1, 1, 8, 8, **sizes), 2)
