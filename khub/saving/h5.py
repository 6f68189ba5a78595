"""HDF5 files of weights, as Keras writes them: `<path of an object>/vars/<number>`.

A legacy file has a group for each layer, named in the attribute `layer_names`, whose attribute
`weight_names` names its arrays. Links and arrays outside the file are refused, and no array is read
that claims to be larger than what lies there.
"""

import io
import math
import mmap
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from khub import dtypes
from khub.saving.files import WeightsError

EXPANDED = 1000  # so many times may be packed what is read


def write(file, groups):
    """Write (path, name, key -> array) triples.  file: a path or a binary file"""
    import h5py

    with h5py.File(file, "w") as h5:
        for path, name, arrays in groups:
            group = h5.require_group(f"{path}/vars".lstrip("/"))
            group.attrs["name"] = name
            for key, value in arrays.items():
                value = np.asarray(value)
                custom = value.dtype.kind == "V"  # bfloat16 and others that HDF5 does not know
                raw = value.view(f"V{value.itemsize}") if custom else value
                data = group.create_dataset(key, data=raw)
                if custom:
                    data.attrs["dtype"] = value.dtype.name


class _Bytes(io.RawIOBase):
    """Bytes as a file that is read without a copy of them all."""

    def __init__(self, content):
        self._content, self._position = memoryview(content), 0

    def readinto(self, buffer):
        part = self._content[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def seek(self, offset, whence=0):
        self._position = offset + (0, self._position, len(self._content))[whence]
        return self._position

    def readable(self):
        return True

    def tell(self):
        return self._position


class Array:
    """An array in a file; `read()` gives its values: a view of the file's bytes where it can."""

    def __init__(self, identifier, content):
        import h5py

        self._identifier, self._content, self.shape = identifier, content, identifier.shape
        named = (
            h5py.Dataset(identifier).attrs.get("dtype") if identifier.dtype.kind == "V" else None
        )
        self.dtype = identifier.dtype if named is None else np.dtype(dtypes.numpy_dtype(named))
        stored, size = identifier.get_storage_size(), math.prod(self.shape) * self.dtype.itemsize
        if self.dtype.kind not in "biufVS" or self.dtype.itemsize != identifier.dtype.itemsize:
            raise WeightsError(f"{place(identifier)} holds {identifier.dtype}, no numbers.")
        if size > stored * EXPANDED:
            raise WeightsError(
                f"{place(identifier)} claims {self.shape} of {self.dtype}, {size:,} bytes, but "
                f"{stored:,} are there; refused."
            )

    def read(self):
        """Return the values."""
        import h5py

        start, count = self._identifier.get_offset(), math.prod(self.shape)
        plain = start is not None and self.dtype.isnative and count
        if not plain or count * self.dtype.itemsize > len(self._content) - start:
            return np.asarray(h5py.Dataset(self._identifier)[()]).view(self.dtype)
        found = np.frombuffer(self._content, self.dtype, count, start).reshape(self.shape)
        return found if found.flags.aligned else found.copy()


@contextmanager
def opened(source, what=None):
    """Open a path, or a file's bytes, and give (h5py's file, bytes).

    Raises WeightsError when it is no HDF5 file or is damaged.
    """
    import h5py

    what = what or source
    if not isinstance(source, (bytes, memoryview)):
        if not Path(source).is_file():
            raise FileNotFoundError(f"{source} does not exist; expected a weights file of Keras.")
        with open(source, "rb") as raw:
            if not raw.read(1):
                raise WeightsError(f"{what} is empty: it is no HDF5 file.")
            source = memoryview(mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        file = h5py.File(_Bytes(source), "r")
    except OSError as error:
        raise WeightsError(f"{what} is no HDF5 file, or is damaged: {error}.") from error
    with file:
        try:
            # a block of the user's before the file moves what lies in it
            yield file, b"" if file.userblock_size else source
        except (WeightsError, MemoryError):
            raise
        except Exception as error:  # h5py has no class of its own for what it cannot read
            raise WeightsError(f"{what} is damaged: {error}.") from error


def inside(group, name):
    """Return the identifier of a member of a group that lies in the file itself.

    h5py's objects above its identifiers take longer than the whole file's arrays.
    """
    import h5py

    for part in name.strip("/").split("/"):
        try:
            link = group.links.get_info(part.encode())
        except KeyError:
            raise WeightsError(f"{place(group).rstrip('/')}/{part} is missing.") from None
        if link.type != h5py.h5l.TYPE_HARD:
            raise WeightsError(f"{place(group)}/{part} is a link, refused.")
        group = h5py.h5o.open(group, part.encode())
    if isinstance(group, h5py.h5d.DatasetID) and group.get_offset() is None:
        made = group.get_create_plist()
        if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
            raise WeightsError(f"{place(group)} lies outside the file, refused.")
    return group


def place(identifier):
    """Return "file: path in it" for a message."""
    import h5py

    return f"{h5py.h5i.get_name(identifier).decode()}"


def names(group, key):
    """Return the strings of an attribute, which large models split: key0, key1, ..."""
    import h5py

    attributes = h5py.Group(group).attrs
    if key in attributes:
        found = list(attributes[key])
    else:
        found, part = [], 0
        while f"{key}{part}" in attributes:
            found += list(attributes[f"{key}{part}"])
            part += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for name in found]


def is_legacy(file):
    """Whether a file is of the format before Keras 3."""
    return "model_weights" in file or bool(names(file.id, "layer_names"))


def legacy(file, content):
    """Return (layer's name, arrays) of each layer with weights, in their order."""
    top = inside(file.id, "model_weights") if "model_weights" in file else file.id
    found = [(n, named_arrays(inside(top, n), content)) for n in names(top, "layer_names")]
    return [(name, arrays) for name, arrays in found if arrays]


def named_arrays(group, content):
    """Return the arrays that the attribute `weight_names` of a group names."""
    return [Array(inside(group, name), content) for name in names(group, "weight_names")]


def groups(file, content):
    """Return path -> {key: Array} of all objects with arrays."""
    import h5py

    found, seen, waiting = {}, set(), [("", file.id)]
    while waiting:
        path, group = waiting.pop()
        address = h5py.h5o.get_info(group).addr
        if address in seen:
            raise WeightsError(f"{path} is in the file under another name too, refused.")
        seen.add(address)
        for name in map(bytes.decode, group):
            member = inside(group, name)
            if isinstance(member, h5py.h5d.DatasetID):
                owner, _, last = path.rpartition("/")
                arrays = found.setdefault(owner if last == "vars" else path, {})
                arrays[name] = Array(member, content)
            elif isinstance(member, h5py.h5g.GroupID):
                waiting.append((f"{path}/{name}".lstrip("/"), member))
    return found
