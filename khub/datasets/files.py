"""How the data sets' files are fetched and read.  Nothing in them is run: they hold numbers."""

import json
import pickletools
import zipfile

import numpy as np

from khub.utils.files import get_file

SERVER = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"


def arrays(path, name, digest):
    """Return name -> array of an .npz file on the server; `path` is its name on this machine."""
    found = get_file(path, SERVER + name, file_hash=digest)
    with np.load(found, allow_pickle=False) as file, zipfile.ZipFile(found) as archive:
        return {key: _lists(archive, key, file) for key in file.files}


def _lists(archive, key, file):
    """Return an array of an .npz file, be it a pickled array of lists of integers.

    Of a pickle the opcodes are looked at, and none is followed.
    """
    with archive.open(f"{key}.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype.kind != "O":
            return file[key]
        content = member.read()
    rows = []  # of the lists in the order of their beginnings, the first holds all others
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "EMPTY_LIST":
            rows.append([])
        elif rows and opcode.name in ("BININT1", "BININT2", "BININT", "INT", "LONG", "LONG1"):
            rows[-1].append(argument)
    if len(rows) != shape[0] + 1:
        raise ValueError(f"{key} must hold {shape[0]} lists of integers, got {len(rows) - 1}.")
    result = np.empty(shape, object)
    result[:] = rows[1:]
    return result


def split(x, y, test_split, seed):
    """Return ((x, y), (x, y)) for training and testing, after a shuffle that `seed` decides."""
    if not 0 <= test_split < 1:
        raise ValueError(f"test_split must lie between 0 and 1, got {test_split!r}.")
    order = np.arange(len(x))
    np.random.RandomState(seed).shuffle(order)
    x, y, cut = x[order], y[order], int(len(x) * (1 - test_split))
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def word_index(path, name, digest):
    """Return word -> its rank by frequency."""
    with open(get_file(path, SERVER + name, file_hash=digest), encoding="utf-8") as file:
        return json.load(file)


def encode(rows, labels, num_words, skip_top, maxlen, start_char, oov_char, index_from):
    """Return (rows, labels) with the words' numbers moved up, rare and frequent ones replaced."""
    start, first = [] if start_char is None else [start_char], index_from or 0
    moved = [[*start, *(word + first for word in row)] for row in rows]
    kept = [i for i, row in enumerate(moved) if not maxlen or len(row) < maxlen]
    if not kept:
        raise ValueError(f"maxlen={maxlen} leaves no row.")
    inside = range(skip_top, num_words or 2**31)
    result = np.empty(len(kept), object)
    for place, i in enumerate(kept):
        row = [word if word in inside else oov_char for word in moved[i]]
        result[place] = row if oov_char is not None else [w for w in row if w is not None]
    return result, np.asarray(labels)[kept]
