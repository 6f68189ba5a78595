"""Weights in Keras' HDF5 files, legacy `.h5` and `.weights.h5`, for models of plain layers.

A legacy file has a group for each layer, named in the attribute `layer_names`, whose attribute
`weight_names` names its arrays; layers are matched by their order, as Keras does. A `.weights.h5`
has `layers/<class in snake case>[_n]/vars/<i>`. Links and arrays outside the file are refused.
"""

from contextlib import contextmanager
from pathlib import Path

from .tensors import WeightsError


def load(model, path):
    """Assign the weights in a file to the variables of a built model.

    Raises WeightsError with every layer that does not fit, before anything is assigned;
    FileNotFoundError when there is no such file.
    """
    with _opened(path) as file:
        stored = _modern(file) if "layers" in file else _legacy(file, path)
        wanted = [
            (layer, variables)
            for layer in model.layers
            if (variables := [v for v in layer.weights if "seed_generator" not in v.name])
        ]
        names = _modern_names(model) if "layers" in file else None
        pairs, problems = _matched(wanted, stored, names)
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            lines = "\n  ".join(problems)
            raise WeightsError(f"{path} does not fit {model.name}, {count}:\n  {lines}")
        for variable, array in pairs:
            variable.assign(array[()])


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
        yield file


def _inside(group, name):
    """Return a member of a group that lies in the file itself."""
    import h5py

    for part in str(name).strip("/").split("/"):
        if part not in group:
            raise WeightsError(f"{group.file.filename} lacks {group.name.rstrip('/')}/{part}.")
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise WeightsError(f"{group.file.filename}: {group.name}/{part} is a link, refused.")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise WeightsError(f"{group.file.filename}: {group.name} lies outside the file, refused.")
    return group


def _names(group, key):
    """Return the strings of an attribute, which large models split: key0, key1, ..."""
    if key in group.attrs:
        found = list(group.attrs[key])
    else:
        found, part = [], 0
        while f"{key}{part}" in group.attrs:
            found += list(group.attrs[f"{key}{part}"])
            part += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for name in found]


def _legacy(file, path):
    """Return (layer's name, arrays) of each layer with weights, in their order."""
    top = _inside(file, "model_weights") if "model_weights" in file else file
    layers = _names(top, "layer_names")
    if not layers:
        raise WeightsError(f"{path} names no layers: it is no weights file of Keras.")
    found = []
    for layer in layers:
        group = _inside(top, layer)
        arrays = [_inside(group, name) for name in _names(group, "weight_names")]
        if arrays:
            found.append((layer, arrays))
    return found


def _modern(file):
    layers, found = _inside(file, "layers"), []
    for name in layers:
        group = _inside(layers, name)
        own = _inside(group, "vars") if "vars" in group else ()
        if len(own):
            found.append((name, [_inside(own, str(i)) for i in range(len(own))]))
    return found


def _modern_names(model):
    """Return layer -> its name in a `.weights.h5`."""
    from khub.saving.registry import snake_case

    counts, names = {}, {}
    for layer in model.layers:
        base = snake_case(type(layer).__name__)
        number = counts[base] = counts.get(base, -1) + 1
        names[id(layer)] = f"{base}_{number}" if number else base
    return names


def _matched(wanted, stored, names):
    """Return the (variable, array) pairs, and what does not fit.

    names: layer -> the name of its arrays; without it they are matched by their order
    """
    problems, pairs = [], []
    if names is None:
        sides = [*zip(wanted, stored, strict=False)]
        problems += [
            f"missing     {layer.name}: the file has {len(stored)} layers with weights"
            for layer, _ in wanted[len(stored) :]
        ]
        problems += [f"unexpected  {name}" for name, _ in stored[len(wanted) :]]
    else:
        arrays = dict(stored)
        own = {names[id(layer)] for layer, _ in wanted}
        problems += [f"unexpected  {name}" for name in arrays if name not in own]
        problems += [
            f"missing     {names[id(layer)]} for {layer.name}"
            for layer, _ in wanted
            if names[id(layer)] not in arrays
        ]
        sides = [
            (pair, (names[id(pair[0])], arrays[names[id(pair[0])]]))
            for pair in wanted
            if names[id(pair[0])] in arrays
        ]
    for (layer, variables), (name, arrays) in sides:
        shapes = [tuple(a.shape) for a in arrays], [tuple(v.shape) for v in variables]
        if shapes[0] != shapes[1]:
            problems.append(f"misshaped   {name} is {shapes[0]}, {layer.name} is {shapes[1]}")
        pairs += zip(variables, arrays, strict=False)
    return pairs, problems
