"""Data sets from folders, arrays and the published files, as Keras reads them."""

import wave

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import khub  # noqa: E402

pytestmark = pytest.mark.once
RANDOM = np.random.default_rng(0)
FILES = {
    "cats": ["b.png", "a.png", "sub/c.png"],
    "dogs": ["a.png", "z.png", "no.md"],
    "emus": ["a.png"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    for folder, names in FILES.items():
        for i, name in enumerate(names):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (11 + 3 * i, 17 - 2 * i, 3)
            if name.endswith("png"):
                Image.fromarray(RANDOM.integers(0, 256, shape, "uint8")).save(path)
            else:
                path.write_text("none")
    return str(root)


def batches(dataset):
    return [[np.asarray(part) for part in (b if isinstance(b, tuple) else (b,))] for b in dataset]


def same(found, wanted, atol=0.0):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted):
        assert [x.shape for x in ours] == [x.shape for x in theirs]
        for x, y in zip(ours, theirs):
            assert x.dtype == y.dtype or y.dtype == "uint8"
            np.testing.assert_allclose(x, y, atol=atol, rtol=1e-6)


IMAGES = {
    "plain": {"shuffle": False, "batch_size": 4},
    "one-hot": {"label_mode": "categorical", "shuffle": False},
    "no labels": {"labels": None, "shuffle": False},
    "own labels": {"labels": [1, 0, 1, 0, 0, 0], "label_mode": "binary", "shuffle": False},
    "names": {"class_names": ["emus", "dogs", "cats"], "shuffle": False},
    "gray": {"color_mode": "grayscale", "shuffle": False},
    "with alpha": {"color_mode": "rgba", "shuffle": False},
    "cut": {"crop_to_aspect_ratio": True, "shuffle": False, "image_size": (8, 20)},
    "nearest": {"interpolation": "nearest", "shuffle": False},
    "channels first": {"data_format": "channels_first", "shuffle": False},
    "training": {"validation_split": 0.4, "subset": "training", "seed": 3, "shuffle": False},
    "validation": {"validation_split": 0.4, "subset": "validation", "shuffle": False},
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(images, name):
    options = {"image_size": (20, 24), "verbose": False} | IMAGES[name]
    ours = khub.utils.image_dataset_from_directory(images, **options)
    theirs = keras.utils.image_dataset_from_directory(images, **options)
    # 1 level of 255: rounding before it is stretched, nothing more
    same(batches(ours), batches(theirs), atol=1e-2 if name != "gray" else 1.01)
    if hasattr(theirs, "file_paths"):
        assert ours.file_paths == theirs.file_paths
        assert ours.class_names == theirs.class_names


def test_a_seed_splits_as_in_keras(images):
    options = {"validation_split": 0.4, "seed": 7, "subset": "both", "image_size": (4, 4)}
    ours = khub.utils.image_dataset_from_directory(images, verbose=False, **options)
    theirs = keras.utils.image_dataset_from_directory(images, verbose=False, **options)
    for mine, other in zip(ours, theirs):
        assert mine.file_paths == other.file_paths


def test_texts(tmp_path):
    for folder in ("bad", "good"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.txt").write_text(f"{folder} text {i}")
    options = {"shuffle": False, "batch_size": 4, "max_length": 8, "verbose": False}
    ours = batches(khub.utils.text_dataset_from_directory(tmp_path, **options))
    theirs = batches(keras.utils.text_dataset_from_directory(str(tmp_path), **options))
    for (x, y), (x2, y2) in zip(ours, theirs, strict=True):
        assert [t.encode() for t in x] == list(x2)
        np.testing.assert_array_equal(y, y2)


@pytest.mark.parametrize("length", [None, 15])
def test_sounds(tmp_path, length):
    for i in range(4):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        with wave.open(str(tmp_path / "ab"[i % 2] / f"{i}.wav"), "wb") as file:
            file.setparams((2, 2, 8000, 0, "NONE", ""))
            file.writeframes(RANDOM.integers(-9999, 9999, (10 + 3 * i, 2), "int16").tobytes())
    options = {"shuffle": False, "output_sequence_length": length, "verbose": False}
    ours = khub.utils.audio_dataset_from_directory(tmp_path, **options)
    theirs = keras.utils.audio_dataset_from_directory(str(tmp_path), **options)
    same(batches(ours), batches(theirs))


WINDOWS = {
    "plain": {},
    "stride": {"sequence_stride": 3},
    "rate": {"sampling_rate": 2, "sequence_stride": 2},
    "part": {"start_index": 3, "end_index": 25},
    "part, no targets": {"start_index": 3, "end_index": 25, "targets": None, "sampling_rate": 3},
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name):
    data = np.arange(30, dtype="float32")[:, None] * [1, 2]
    options = {"targets": np.arange(30), "sequence_length": 4, "batch_size": 5} | WINDOWS[name]
    ours = khub.utils.timeseries_dataset_from_array(data, **options)
    theirs = keras.utils.timeseries_dataset_from_array(data, **options)
    same(batches(ours), batches(theirs))


SIZES = [(0.75, None), (None, 3), (4, 0.5), (0.3, 0.3)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("shuffle", [False, True])
def test_splits(sizes, shuffle):
    rows = np.arange(10), np.arange(10) * 2.0
    ours = khub.utils.split_dataset(rows, *sizes, shuffle=shuffle, seed=1)
    theirs = keras.utils.split_dataset(rows, *sizes, shuffle=shuffle, seed=1)
    found, wanted = ([len(part) for part in parts] for parts in (ours, theirs))
    assert found == wanted
    if not shuffle:
        for mine, other in zip(ours, theirs):
            same(batches(mine), batches(other))
