"""Weights in Keras' HDF5 files, legacy `.h5` and `.weights.h5`, for models of plain layers.

A legacy file has a group for each layer, named in the attribute `layer_names`, whose attribute
`weight_names` names its arrays; layers are matched by their order, as Keras does. A `.weights.h5`
has `layers/<class in snake case>[_n]/vars/<i>`. Links and arrays outside the file are refused.
"""

import math
import mmap
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .tensors import WeightsError


def load(model, path):
    """Assign the weights in a file to the variables of a built model.

    Raises WeightsError with every layer that does not fit, before anything is assigned;
    FileNotFoundError when there is no such file.
    """
    with _opened(path) as file:
        if b"layers" in file.id:
            pairs, problems = _by_name(dict(_modern(file.id)), _named(model))
        else:
            pairs, problems = _by_order(_legacy(file), _with_weights(model.layers))
        found = []
        for (layer, variables), (name, arrays) in pairs:
            shapes = [tuple(a.shape) for a in arrays], [tuple(v.shape) for v in variables]
            if shapes[0] != shapes[1]:
                problems.append(f"misshaped   {name} is {shapes[0]}, {layer.name} is {shapes[1]}")
            found += zip(variables, arrays, strict=False)
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            lines = "\n  ".join(problems)
            raise WeightsError(f"{path} does not fit {model.name}, {count}:\n  {lines}")
        pages = b""  # a block of the user's before the file moves what lies in it
        if not file.userblock_size:
            with open(path, "rb") as raw:
                pages = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
        for variable, array in found:
            variable.assign(_read(array, pages))


def shapes(path):
    """Return the shapes of a file's arrays, in the order of a legacy file."""
    with _opened(path) as file:
        stored = _modern(file.id) if b"layers" in file.id else _legacy(file)
        return [tuple(array.shape) for _, arrays in stored for array in arrays]


@contextmanager
def _opened(path):
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a weights file of Keras.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise WeightsError(f"{path} is no HDF5 file, or is damaged: {error}.") from error
    with file:
        try:
            yield file
        except WeightsError:
            raise
        except Exception as error:  # h5py has no class of its own for what it cannot read
            raise WeightsError(f"{path} is damaged: {error}.") from error


def _inside(group, name):
    """Return the identifier of a member of a group that lies in the file itself.

    h5py's objects above its identifiers take longer than the whole file's arrays.
    """
    import h5py

    for part in name.strip("/").split("/"):
        try:
            link = group.links.get_info(part.encode())
        except KeyError:
            raise WeightsError(f"{_place(group).rstrip('/')}/{part} is missing.") from None
        if link.type != h5py.h5l.TYPE_HARD:
            raise WeightsError(f"{_place(group)}/{part} is a link, refused.")
        group = h5py.h5o.open(group, part.encode())
    if isinstance(group, h5py.h5d.DatasetID) and group.get_offset() is None:
        made = group.get_create_plist()
        if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
            raise WeightsError(f"{_place(group)} lies outside the file, refused.")
    return group


def _place(identifier):
    """Return "file: path in it" for a message."""
    import h5py

    file, path = h5py.h5f.get_name(identifier), h5py.h5i.get_name(identifier)
    return f"{file.decode()}: {path.decode()}"


def _read(array, pages):
    """The values of an array: a view of the file's pages where they lie there in one piece."""
    import h5py

    place, dtype, count = array.get_offset(), array.dtype, math.prod(array.shape)
    if place is None or not dtype.isnative or not 0 < count * dtype.itemsize <= len(pages) - place:
        return h5py.Dataset(array)[()]
    found = np.frombuffer(pages, dtype, count, place).reshape(array.shape)
    return found if found.flags.aligned else found.copy()


def _names(group, key):
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


def _legacy(file):
    """Return (layer's name, arrays) of each layer with weights, in their order."""
    top = _inside(file.id, "model_weights") if "model_weights" in file else file.id
    layers = _names(top, "layer_names")
    if not layers:
        raise WeightsError(f"{file.filename} names no layers: it is no weights file of Keras.")
    found = []
    for layer in layers:
        group = _inside(top, layer)
        arrays = [_inside(group, name) for name in _names(group, "weight_names")]
        if arrays:
            found.append((layer, arrays))
    return found


def _modern(group, prefix=""):
    """Return (name, arrays) of each layer with weights, those in models as "model/layer"."""
    layers, found = _inside(group, "layers"), []
    for name in map(bytes.decode, layers):
        inner = _inside(layers, name)
        own = _inside(inner, "vars") if b"vars" in inner else ()
        if len(own):
            found.append((prefix + name, [_inside(own, str(i)) for i in range(len(own))]))
        if b"layers" in inner:
            found += _modern(inner, f"{prefix}{name}/")
    return found


def _with_weights(layers):
    """Return (layer, weights) of each layer that has weights, but for states of generators."""
    own = [(x, [v for v in x.weights if "seed_generator" not in v.name]) for x in layers]
    return [(layer, variables) for layer, variables in own if variables]


def _named(model, prefix=""):
    """Return name in a `.weights.h5` -> (layer, weights)."""
    from khub.models import Model
    from khub.saving.registry import snake_case

    counts, found = {}, {}
    for layer in model.layers:
        base = snake_case(type(layer).__name__)
        number = counts[base] = counts.get(base, -1) + 1
        name = f"{prefix}{base}_{number}" if number else f"{prefix}{base}"
        if isinstance(layer, Model):
            found |= _named(layer, f"{name}/")
        elif pair := _with_weights([layer]):
            found[name] = pair[0]
    return found


def _by_order(stored, wanted):
    """Return pairs of what the model and what the file has, and what does not fit."""
    missing = [
        f"missing     {layer.name}: the file has {len(stored)} layers with weights"
        for layer, _ in wanted[len(stored) :]
    ]
    unexpected = [f"unexpected  {name}" for name, _ in stored[len(wanted) :]]
    return [*zip(wanted, stored, strict=False)], missing + unexpected


def _by_name(stored, wanted):
    """As `_by_order`, of layers by their names."""
    unexpected = [f"unexpected  {name}" for name in stored if name not in wanted]
    missing = [
        f"missing     {name} for {layer.name}"
        for name, (layer, _) in wanted.items()
        if name not in stored
    ]
    pairs = [(pair, (name, stored[name])) for name, pair in wanted.items() if name in stored]
    return pairs, unexpected + missing
