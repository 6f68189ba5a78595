"""HDF5 files of weights, as Keras writes them: `<path of an object>/vars/<number>`.

A legacy file has a group for each layer, named in the attribute `layer_names`, whose attribute
`weight_names` names its arrays. Links and arrays outside the file are refused, and no array is read
that claims to be larger than what lies there.
"""

import io
import math
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from khub import dtypes
from khub.saving.files import WeightsError, check_size


class _Sink(io.FileIO):
    """A file that keeps the error of a write for later: HDF5 crashes the process when one fails."""

    error = None

    def write(self, data):
        left = memoryview(data)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = self.error or error
        return len(data)


def write(path, groups):
    """Write (path of an object, its name, key -> array) triples.  Raises OSError: no room"""
    import h5py

    with _Sink(path, "w+") as sink:
        _write(h5py.File(sink, "w"), groups)
        if sink.error is not None:
            raise sink.error


def _write(file, groups):
    with file:
        for owner, name, arrays in groups:
            group = file.require_group(f"{owner}/vars")
            group.attrs["name"] = name
            for key, value in arrays.items():
                value = np.asarray(value)
                if value.dtype.kind != "V":
                    group[key] = value
                    continue
                group[key] = value.view(f"V{value.itemsize}")  # bfloat16: HDF5 does not know it
                group[key].attrs["dtype"] = value.dtype.name


class Array:
    """An array in a file, which `read()` reads.  Raises WeightsError where it is not all there."""

    def __init__(self, identifier):
        import h5py

        self._identifier, self.shape, self.dtype = identifier, identifier.shape, identifier.dtype
        what, made = h5py.h5i.get_name(identifier).decode(), identifier.get_create_plist()
        if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
            raise WeightsError(f"{what} lies outside the file, refused.")
        if self.dtype.kind == "V" and "dtype" in h5py.Dataset(identifier).attrs:
            self.dtype = np.dtype(dtypes.numpy_dtype(h5py.Dataset(identifier).attrs["dtype"]))
        if self.dtype.kind not in "biufVS" or self.dtype.names:
            raise WeightsError(f"{what} holds {self.dtype}, expected numbers.")
        size = math.prod(self.shape) * self.dtype.itemsize
        check_size(what, size, identifier.get_storage_size())

    def read(self):
        """Return the values."""
        import h5py

        values = np.empty(self.shape, self._identifier.dtype)
        self._identifier.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values.view(self.dtype)


@contextmanager
def opened(source, what):
    """Open a path or binary file to read.  Raises WeightsError when it is no HDF5 file or damaged.

    what: its name in errors
    """
    import h5py

    if isinstance(source, (str, Path)) and not Path(source).exists():
        raise FileNotFoundError(f"{what} does not exist.")
    try:
        with h5py.File(source, "r") as file:
            yield file
    except FileNotFoundError:  # this one, or another that was opened inside
        raise
    except (OSError, RuntimeError, LookupError, TypeError, UnicodeError) as error:  # h5py's own
        raise WeightsError(f"{what} is no HDF5 file, or is damaged: {error}.") from error


def inside(group, path):
    """Return the group or `Array` at a path below a group that lies in the file itself.

    h5py's objects above its identifiers take longer than the whole file's arrays.
    """
    import h5py

    for name in path.strip("/").encode().split(b"/"):
        if name not in group:
            raise WeightsError(f"{path} is missing.")
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise WeightsError(f"{path} is a link, refused.")
        group = h5py.h5o.open(group, name)
    return Array(group) if isinstance(group, h5py.h5d.DatasetID) else group


def names(group, key):
    """Return the strings of an attribute, which large models split: key0, key1, ..."""
    import h5py

    attributes = h5py.Group(group).attrs
    keys = [key, *(f"{key}{part}" for part in range(len(attributes)))]
    found = [name for key in keys if key in attributes for name in attributes[key]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in found]


def named_arrays(group):
    """Return the arrays that the attribute `weight_names` of a group names."""
    return [inside(group, name) for name in names(group, "weight_names")]


def legacy(file):
    """Return layer's name -> arrays of the layers with weights; none: the file is of Keras 3."""
    top = inside(file.id, "model_weights") if "model_weights" in file else file.id
    found = {name: named_arrays(inside(top, name)) for name in names(top, "layer_names")}
    return {name: arrays for name, arrays in found.items() if arrays}


def groups(file):
    """Return path of an object -> key -> `Array`."""
    import h5py

    found, seen, waiting = {}, set(), [("", file.id)]
    while waiting:
        path, group = waiting.pop()
        if (address := h5py.h5o.get_info(group).addr) in seen:
            raise WeightsError(f"{path} is in the file under another name too, refused.")
        seen.add(address)
        for name in map(bytes.decode, group):
            value = inside(group, name)
            if isinstance(value, Array):
                found.setdefault(re.sub("(^|/)vars$", "", path), {})[name] = value
            else:
                waiting.append((f"{path}/{name}".lstrip("/"), value))
    return found
