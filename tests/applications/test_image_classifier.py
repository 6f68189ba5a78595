"""cv.ImageClassifier on the preset that ships: real photographs, training, saving, levels."""

import csv

import numpy as np
import pytest
from PIL import Image
from sources import ROOT

import khub
from khub import applications, cv
from khub.applications.keras_backbone import KerasBackbone

IMAGES = ROOT.parent / "shared" / "data" / "images"
NAME = "mobilenet_0.25_224_imagenet"
BACKEND = khub.backend.name
trained = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy computes no gradients")


@pytest.fixture(scope="module")
def model():
    return cv.ImageClassifier.from_preset(NAME)


@pytest.fixture(scope="module")
def photographs():
    with open(IMAGES / "imagenet20" / "labels.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    paths = [str(IMAGES / "imagenet20" / row["file"]) for row in rows]
    return paths, [row["name"].replace("_", " ") for row in rows]


def small(classes=3, **options):
    """A quarter of MobileNet for small images, its weights random."""
    backbone = KerasBackbone("MobileNet", {"alpha": 0.25})
    made = cv.ImagePreprocessor((32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    return applications.KerasImageClassifier(backbone, classes, made, **options)


def coloured(folder, count=4):
    """Folders of images that their colour tells apart."""
    random = np.random.default_rng(0)
    for i, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            pixels = random.integers(0, 100, (20 + j, 24, 3)).astype("uint8")
            pixels[..., 2 - i] += 150
            Image.fromarray(pixels).save(folder / name / f"{j}.png")
    return folder


BEST = [  # the best labels of the first photographs, the same on every backend
    "European fire salamander",
    "black widow",
    "ringneck snake",
    "soft-coated wheaten terrier",
    "malinois",
    "African hunting dog",
    "sulphur butterfly",
    "langur",
    "barn",
    "car mirror",
]


def test_photographs_are_recognized(model, photographs):
    paths, names = photographs
    found = model.predict(paths, verbose=0)
    assert sum(name in [label for label, _ in best] for name, best in zip(names, found)) >= 17
    assert [found[i][0][0] for i in range(10)] == BEST
    assert len(found) == 20 and found.shape == (20, 1000) and len(found[0]) == 5
    np.testing.assert_allclose(np.asarray(found).sum(-1), 1, atol=1e-5)
    assert found[3][0][1] == pytest.approx(0.2912, abs=2e-3)


def test_paths_images_arrays_and_batches_are_the_same(model, photographs):
    path = photographs[0][0]
    image = Image.open(path).convert("RGB")
    whole = np.asarray(model.predict([path, path], verbose=0))[:1]
    prepared = model.preprocessor([image])
    for x in (path, image, [image], [np.asarray(image)], np.asarray(image)[None]):
        np.testing.assert_allclose(np.asarray(model.predict(x, verbose=0)), whole, atol=1e-5)
    logits = khub.ops.convert_to_numpy(model(prepared, training=False))
    assert logits.shape == (1, 1000)
    assert str(model.predict(path, verbose=0, top=1)).startswith("European fire salamander 0.9")


def test_decode_predictions_knows_the_names(model, photographs):
    scores = np.asarray(model.predict(photographs[0][:2], verbose=0))
    best = applications.mobilenet.decode_predictions(scores, top=2)
    assert best[0][0][:2] == ("n01629819", "European_fire_salamander")
    assert [len(row) for row in best] == [2, 2] and best[1][0][1] == "black_widow"


@trained
def test_learns_from_a_folder_with_augmentation(tmp_path):
    khub.utils.set_random_seed(0)
    model = small()
    model.compile(khub.optimizers.Adam(3e-3))
    folder = coloured(tmp_path / "images")
    seen = []
    given = model.preprocessor.augmented
    model.preprocessor.augmented = lambda *args: seen.append(len(args[0])) or given(*args)
    history = model.fit(folder, augment=True, batch_size=6, epochs=2, verbose=0)
    assert sum(seen) == 24 and len(history.history["loss"]) == 2
    assert model.labels == ("blue", "green", "red")
    model.fit(folder, validation_data=folder, batch_size=6, epochs=8, verbose=0)
    assert sum(seen) == 24  # neither validation nor a plain fit cuts parts out
    results = model.evaluate(folder, batch_size=6, verbose=0, return_dict=True)
    assert set(results) == {"loss", "accuracy"}
    x, y, _ = cv.image_files(folder)
    same = model.evaluate(x, y, batch_size=6, verbose=0, return_dict=True)
    assert same["loss"] == pytest.approx(results["loss"], rel=1e-4)


@trained
def test_a_new_head_on_a_frozen_backbone():
    model = cv.ImageClassifier.from_preset(NAME, num_classes=4, labels=list("abcd"))
    before = {k: np.array(v.numpy()) for k, v in model.backbone.named_variables().items()}
    model.backbone.trainable = False
    assert len(model.trainable_variables) == 2
    model.compile(khub.optimizers.SGD(0.1))
    x = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3)).astype("uint8")
    model.preprocessor.image_size, model.preprocessor.resize = (32, 32), None
    y = np.arange(8, dtype="int32") % 4
    first = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    model.fit(x, y, batch_size=8, epochs=5, verbose=0)
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] < first
    for name, value in model.backbone.named_variables().items():
        assert np.array_equal(before[name], value.numpy()), name
    assert model.predict(x[:1], verbose=0)[0][0][0] in "abcd"


def test_saves_and_opens(tmp_path):
    model = small(labels=["a", "b", "c"], dropout=0.1)
    model.save_to_preset(tmp_path / "saved")
    again = khub.presets.load(tmp_path / "saved")
    assert type(again) is type(model) and again.labels == ("a", "b", "c")
    assert again.dropout == 0.1 and again.backbone.options == {"alpha": 0.25}
    assert again.preprocessor.preset_config() == model.preprocessor.preset_config()
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    one, two = (np.asarray(m.predict(x, verbose=0)) for m in (model, again))
    np.testing.assert_allclose(one, two, atol=1e-6)
    backbone = cv.ImageBackbone.from_preset(tmp_path / "saved")
    assert type(backbone) is KerasBackbone
    other = cv.ImageClassifier.from_preset(tmp_path / "saved", num_classes=7)
    assert other.labels is None and other.num_classes == 7


OWN = {  # networks that no variant describes
    "ResNetBackbone": dict(num_blocks=(1, 1), widths=(4, 8), stem_width=8),
    "ViTBackbone": dict(
        num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, patch_size=8, image_shape=(16, 16, 3)
    ),
    "RegNetBackbone": dict(num_blocks=(1, 1), widths=(8, 16), group_width=8, stem_width=8),
}


@pytest.mark.parametrize("name", OWN)
def test_networks_of_ones_own_save_and_open(tmp_path, name):
    backbone = getattr(applications, name)(**OWN[name])
    classifier = getattr(applications, name.replace("Backbone", "ImageClassifier"))
    model = classifier(backbone, 3, labels=("a", "b", "c"))
    model.save_to_preset(tmp_path / "saved")
    again = cv.ImageClassifier.from_preset(tmp_path / "saved")
    assert type(again) is classifier and again.labels == ("a", "b", "c")
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype("float32")
    one, two = (khub.ops.convert_to_numpy(m(x, training=False)) for m in (model, again))
    np.testing.assert_allclose(one, two, atol=1e-6)


LEVELS = {  # options of KerasBackbone -> channels of its levels
    ("MobileNet", 64): (64, 128, 256, 512, 1024),
    ("ResNet50V2", 64): (64, 256, 512, 1024, 2048),
    ("EfficientNetB0", 64): (96, 144, 240, 672, 1280),
    ("DenseNet121", 64): (64, 128, 256, 512, 1024),
}


@pytest.mark.parametrize("name, size", LEVELS)
def test_feature_pyramid(name, size):
    backbone = KerasBackbone(name, image_shape=(size, size, 3))
    levels = backbone.feature_pyramid()
    shapes = {level: tuple(x.shape) for level, x in levels.output.items()}
    assert shapes == {
        f"P{i}": (None, size >> i, size >> i, width)
        for i, width in enumerate(LEVELS[name, size], 1)
    }


def test_feature_pyramid_of_any_size():
    model = small()
    levels = model.feature_pyramid()
    x = np.zeros((1, 64, 96, 3), "float32")
    shapes = {level: tuple(y.shape) for level, y in levels(x).items()}
    assert shapes["P5"] == (1, 2, 3, 256) and shapes["P2"] == (1, 16, 24, 32)


BAD = {
    "labels of another number": (lambda: small(labels=["a"]), "1 labels were given for 3 classes"),
    "no preprocessor": (
        lambda: applications.KerasImageClassifier(small().backbone, 3).predict(["a.jpg"]),
        "has no preprocessor, so it takes an array of prepared images",
    ),
    "augment without one": (
        lambda: applications.KerasImageClassifier(small().backbone, 3).fit(
            np.zeros((2, 32, 32, 3)), np.zeros(2, "int32"), augment=True
        ),
        "augment=True needs the preprocessor",
    ),
    "a class too many": (
        lambda: small().fit(np.zeros((2, 32, 32, 3), "uint8"), np.array([0, 3])),
        r"Labels must lie in 0 .. 2 for num_classes=3; got 0 .. 3",
    ),
    "a missing file": (lambda: small().predict(["none.jpg"], verbose=0), "none.jpg does not exist"),
    "an unknown architecture": (
        lambda: cv.ImageClassifier.from_variant("resnet51"),
        "has architecture 'resnet51', which no family of this version reads; .*resnet50",
    ),
    "an unknown constructor": (lambda: KerasBackbone("ResNet51"), "no constructor 'ResNet51'"),
    "an unknown option": (lambda: KerasBackbone("ResNet50", {"alpha": 2}), "no options alpha"),
    "too small an image": (
        lambda: KerasBackbone("Xception", image_shape=(64, 64, 3)),
        "images must be at least 71 x 71",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()


def test_a_folder_with_more_classes_than_the_model(tmp_path):
    folder = coloured(tmp_path, 1)
    with pytest.raises(
        ValueError, match="has 3 classes .* the model 2; make it with num_classes=3"
    ):
        small(2).evaluate(folder)


def test_keras_constructor_takes_a_preset(model):
    """weights= of a constructor may be the handle of a preset of the same architecture."""
    whole = applications.MobileNet(alpha=0.25, weights=NAME, classifier_activation=None)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype("float32")
    one, two = (khub.ops.convert_to_numpy(m(x, training=False)) for m in (whole, model))
    np.testing.assert_allclose(one, two, atol=1e-4)
    bare = applications.MobileNet(alpha=0.25, weights=NAME, include_top=False, pooling="avg")
    assert bare.output_shape == (None, 256)
    with pytest.raises(ValueError, match="does not fit mobilenet_0.50_224:\n  misshaped"):
        applications.MobileNet(alpha=0.5, weights=NAME)
    with pytest.raises(ValueError, match="weights must be .* got 'nothing', and there is no such"):
        applications.ResNet50(weights="nothing")
