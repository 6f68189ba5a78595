"""Data sets read batch by batch from a folder, an array or another data set.  No framework needed.

`format`, which Keras has for TensorFlow's and grain's data sets, is taken and not needed: what
comes back is one object for all backends.
"""

import copy
import os
import wave
from pathlib import Path

import numpy as np

from khub import config, ops, tree
from khub.backend.host import on_host
from khub.choices import choose
from khub.training import data as data_module
from khub.utils.arrays import to_categorical
from khub.utils.extras import optional
from khub.utils.images import img_to_array, load_img

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")


class BatchedDataset(data_module.PyDataset):
    """Batches of rows, again and again; `fit`, `evaluate` and `predict` of every backend take it.

    read: row numbers -> (x, y) or x of these rows; shuffle: in another order each time, which
    follows from seed and epoch; batch_size: None gives single rows
    """

    def __init__(self, read, size, batch_size, shuffle=False, seed=None, **attributes):
        super().__init__(workers=min(4, os.cpu_count()))
        self.read, self.size, self.batch_size, self.shuffle = read, size, batch_size, shuffle
        self.seed, self.epoch = np.random.randint(2**31) if seed is None else seed, 0
        self.order = np.arange(size)
        vars(self).update(attributes)

    def __len__(self):
        return -(-self.size // (self.batch_size or 1))

    def set_epoch(self, epoch):
        """Let the next iteration go in the order of this epoch."""
        self.epoch = epoch

    def on_epoch_begin(self):
        if self.shuffle:
            random = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
            self.order = random.permutation(self.size)
        self.epoch += 1

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}.")
        count = self.batch_size or 1
        rows = self.read(self.order[index * count : (index + 1) * count])
        return rows if self.batch_size else tree.map_structure(lambda part: part[0], rows)

    def __iter__(self):
        return data_module.from_workers(self, range(len(self)))

    def batch(self, batch_size):
        """Return the same rows in batches of another size."""
        other = copy.copy(self)
        other.batch_size = batch_size
        return other


# --- folders -------------------------------------------------------------------------------------
def _from_folder(
    read, suffixes, directory, labels, label_mode, class_names, batch_size, shuffle, seed,
    validation_split, subset, follow_links, verbose, format="tf", **reading,
):  # fmt: skip
    """Return a data set of the files of a folder.

    read: (paths, **reading) -> what they hold; labels: "inferred", a folder a class, or one for
    each file in the order of their paths
    """
    choose("subset", subset, ("training", "validation", "both", None))
    choose("label_mode", label_mode, ("int", "binary", "categorical", None))
    if (subset is None) != (validation_split is None) or not 0 < (validation_split or 0.5) < 1:
        raise ValueError(
            "validation_split, between 0 and 1, and subset belong together; got "
            f"{validation_split!r} and {subset!r}."
        )
    if subset and shuffle and seed is None:
        raise ValueError("With shuffle and validation_split a seed must say who goes where.")
    if not os.path.isdir(directory):
        raise ValueError(f"directory={str(directory)!r} is no folder.")
    inferred, names = isinstance(labels, str) and labels == "inferred", class_names
    if inferred:
        inside = sorted(each.name for each in Path(directory).iterdir() if each.is_dir())
        names = inside if names is None else list(names)
        if sorted(names) != inside:
            raise ValueError(f"class_names {names} are not the folders in {directory}: {inside}.")
    paths, classes = [], []
    for number, folder in enumerate(names if inferred else [""]):
        for here, _, files in sorted(os.walk(Path(directory, folder), followlinks=follow_links)):
            found = [os.path.join(here, f) for f in sorted(files) if f.lower().endswith(suffixes)]
            paths, classes = paths + found, classes + [number] * len(found)
    if not (inferred or labels is None):
        classes = list(labels)
        names = [str(n) for n in sorted(set(classes))] if names is None else names
    if not paths or len(classes) != len(paths):
        raise ValueError(
            f"{directory} holds {len(paths)} files of {', '.join(suffixes)}; there are "
            f"{len(classes)} labels."
        )
    if label_mode == "binary" and len(names or ()) != 2:
        raise ValueError(f"label_mode='binary' needs two classes, got {names}.")
    if verbose:
        print(f"Found {len(paths)} files" + (f" of {len(names)} classes." if names else "."))
    seed = np.random.randint(1_000_000) if seed is None else seed
    for part in (paths, classes) if shuffle else ():
        np.random.RandomState(seed).shuffle(part)
    classes = np.asarray(classes, "int32")
    if label_mode == "categorical":
        classes = to_categorical(classes, len(names or ())).astype("float32")
    elif label_mode == "binary":
        classes = classes.astype("float32")[:, None]

    def made(first, last):
        files, targets = paths[first:last], classes[first:last]

        def rows(numbers):
            x = read([files[i] for i in numbers], **reading)
            return x if labels is None or label_mode is None else (x, targets[numbers])

        about = {"class_names": names, "file_paths": files, "labels": targets}
        return BatchedDataset(rows, len(files), batch_size, shuffle, seed, **about)

    cut = len(paths) - int((validation_split or 0) * len(paths))
    if validation_split and cut == len(paths):
        raise ValueError(f"validation_split={validation_split} of {len(paths)} files is none.")
    found = made(0, cut), made(cut, len(paths))
    return found if subset == "both" else found[subset == "validation"]


def image_dataset_from_directory(
    directory, labels="inferred", label_mode="int", class_names=None, color_mode="rgb",
    batch_size=32, image_size=(256, 256), shuffle=True, seed=None, validation_split=None,
    subset=None, interpolation="bilinear", follow_links=False, crop_to_aspect_ratio=False,
    pad_to_aspect_ratio=False, data_format=None, format="tf", verbose=True,
):  # fmt: skip
    """Return batches (float images (batch, height, width, channels), labels) of a folder's files.

    labels: "inferred" takes the folders in `directory` as classes; a list has one for each file,
    in the order of their paths; None gives images alone.  label_mode: "int", "binary",
    "categorical" (one-hot) or None.  validation_split: share of the files that subset "validation"
    gives; "training" gives the others, "both" a pair of data sets
    """
    return _from_folder(_images, _IMAGES, **locals())


def _images(
    paths, color_mode, image_size, interpolation, crop_to_aspect_ratio, pad_to_aspect_ratio,
    data_format,
):  # fmt: skip
    options = {"crop_to_aspect_ratio": crop_to_aspect_ratio, "data_format": "channels_last"}
    options["pad_to_aspect_ratio"] = pad_to_aspect_ratio
    x = [img_to_array(load_img(path, color_mode), "channels_last") for path in paths]
    with on_host():
        x = np.stack([ops.image.resize(each, image_size, interpolation, **options) for each in x])
    first = (data_format or config.image_data_format()) == "channels_first"
    return x.transpose(0, 3, 1, 2) if first else x


def text_dataset_from_directory(
    directory, labels="inferred", label_mode="int", class_names=None, batch_size=32,
    max_length=None, shuffle=True, seed=None, validation_split=None, subset=None,
    follow_links=False, format="tf", verbose=True,
):  # fmt: skip
    """Return batches (texts, labels) of the .txt files of a folder, as for images.

    max_length: characters that are kept of a text
    """
    return _from_folder(_texts, (".txt",), **locals())


def _texts(paths, max_length):
    return np.array([Path(path).read_text("utf-8")[:max_length] for path in paths], object)


def audio_dataset_from_directory(
    directory, labels="inferred", label_mode="int", class_names=None, batch_size=32,
    sampling_rate=None, output_sequence_length=None, ragged=False, shuffle=True, seed=None,
    validation_split=None, subset=None, follow_links=False, verbose=True,
):  # fmt: skip
    """Return batches (float sound (batch, samples, channels), labels) of a folder's .wav files.

    The sound, of 16 bits in the files, lies between -1 and 1; short ones are padded with zeros.
    sampling_rate: Hz, to which others are resampled (which needs scipy); output_sequence_length:
    samples, by default as many as the longest of a batch has
    """
    if ragged:
        raise NotImplementedError("ragged: give output_sequence_length, or take padded batches.")
    return _from_folder(_sounds, (".wav",), **{k: v for k, v in locals().items() if k != "ragged"})


def _sounds(paths, sampling_rate, output_sequence_length):
    found = [_sound(path, sampling_rate) for path in paths]
    count = output_sequence_length or max(map(len, found))
    return np.stack([np.pad(x[:count], [(0, max(count - len(x), 0)), (0, 0)]) for x in found])


def _sound(path, sampling_rate):
    with wave.open(path) as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{path} has {8 * file.getsampwidth()} bits a sample, expected 16.")
        samples, rate = file.readframes(file.getnframes()), file.getframerate()
        x = np.frombuffer(samples, "<i2").reshape(-1, file.getnchannels()).astype("float32") / 32768
    if sampling_rate in (None, rate):
        return x
    resample = optional("scipy.signal", "audio").resample_poly
    return resample(x, sampling_rate, rate).astype("float32")


# --- arrays --------------------------------------------------------------------------------------
def timeseries_dataset_from_array(
    data, targets, sequence_length, sequence_stride=1, sampling_rate=1, batch_size=128,
    shuffle=False, seed=None, start_index=None, end_index=None, format="tf",
):  # fmt: skip
    """Return batches of windows (batch, sequence_length, ...) of `data`, and their targets.

    Windows begin every `sequence_stride` rows and take every `sampling_rate`th row; the target of
    the window that begins at row i is targets[i], None gives windows alone.  start_index,
    end_index: the rows of `data` that are used
    """
    first, last = start_index or 0, len(data) if end_index is None else end_index
    if min(sequence_length, sequence_stride, sampling_rate) < 1 or first < 0:
        raise ValueError(
            "sequence_length, sequence_stride and sampling_rate must be positive and start_index "
            f"not negative, got {sequence_length}, {sequence_stride}, {sampling_rate}, {first}."
        )
    offsets = np.arange(sequence_length) * sampling_rate
    end = min(last - offsets[-1], last if targets is None else len(targets))
    starts = np.arange(first, end, sequence_stride)
    if not len(starts):
        raise ValueError(f"Rows {first} to {last} are too few for {sequence_length} in a window.")

    def read(rows):
        x = data[starts[rows][:, None] + offsets]
        return x if targets is None else (x, targets[starts[rows]])

    data, targets = np.asarray(data), None if targets is None else np.asarray(targets)
    return BatchedDataset(read, len(starts), batch_size, shuffle, seed)


def split_dataset(
    dataset, left_size=None, right_size=None, shuffle=False, seed=None, preferred_backend=None
):
    """Return two data sets of the rows of another: arrays, or an iterable of rows.

    left_size, right_size: a share of the rows, or their number; one of them is enough.  The results
    give single rows; `.batch(32)` of one gives batches
    """
    leaves = tree.flatten(dataset) if isinstance(dataset, (list, tuple, dict, np.ndarray)) else []
    if leaves and all(np.ndim(leaf) for leaf in leaves):
        size = len(leaves[0])

        def read(rows):
            return tree.map_structure(lambda leaf: np.asarray(leaf)[rows], dataset)
    else:
        elements = list(dataset)
        size = len(elements)

        def read(rows):
            return tree.map_structure(lambda *each: np.stack(each), *[elements[i] for i in rows])

    given = [
        n if n is None or isinstance(n, int) else round(n * size) for n in (left_size, right_size)
    ]
    left = given[0] if given[0] is not None else size - given[1] if given[1] is not None else 0
    right = given[1] if given[1] is not None else size - left
    if min(left, right) < 1 or left + right > size:
        raise ValueError(
            f"left_size={left_size} and right_size={right_size} leave no two parts of {size} rows."
        )
    order = np.arange(size)
    if shuffle:
        np.random.RandomState(seed).shuffle(order)
    parts = order[:left], order[size - right :]
    return tuple(BatchedDataset(lambda rows, part=p: read(part[rows]), len(p), None) for p in parts)
