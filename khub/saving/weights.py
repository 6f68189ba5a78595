"""Weights in files: `.weights.h5`, shards of it with an index, safetensors, legacy `.h5`.

Loading is strict: nothing is assigned before all names and shapes were found to fit.
"""

import json
import warnings
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path

import numpy as np

from khub.saving import h5
from khub.saving.files import WeightsError, parse_json, replacing
from khub.saving.registry import snake_case

_NAMES = ".weights.h5, .weights.json (shards of it) or .safetensors"


# --- where Keras keeps what ----------------------------------------------------------------------
def places(root):
    """Return path in a file -> layer or optimizer, `root` itself (at "") and all below it.

    Children are found through attributes in sorted order, those of a functional or Sequential model
    as `layers/<class>`; those in containers are named by their class. An object has one path.
    """
    from khub.layers import Layer
    from khub.models import Functional, Sequential
    from khub.optimizers import Optimizer

    found, seen = {}, set()

    def visit(path, item):
        if isinstance(item, (Layer, Optimizer)):
            if id(item) in seen:
                return
            seen.add(id(item))
            found[path] = item
            if isinstance(item, (Functional, Sequential)):
                visit(_join(path, "layers"), item.layers)
            for name, value in _attributes(item):
                visit(_join(path, name), value)
        elif isinstance(item, (list, tuple, dict, set)):
            counts = {}
            for value in item.values() if isinstance(item, dict) else item:
                inner = isinstance(value, (list, tuple, dict, set))
                name = "container" if inner else snake_case(type(value).__name__)
                number = counts[name] = counts.get(name, -1) + 1
                visit(_join(path, f"{name}_{number}" if number else name), value)

    visit("", root)
    return found


def _join(path, name):
    return f"{path}/{name}".lstrip("/")


def _attributes(item):
    """Return (name, value) of what may hold parts of an object, sorted, private ones last."""
    hidden = getattr(item, "_not_in_files", ())
    values = {name: value for name, value in vars(item).items() if name not in hidden}
    for cls in type(item).__mro__:  # a user's property beats the private attribute behind it
        if not cls.__module__.startswith("khub.") and cls.__module__ != "builtins":
            own = [n for n, v in vars(cls).items() if isinstance(v, property)]
            values |= {name: getattr(item, name, None) for name in own}
    if getattr(item, "compiled", False):
        values["optimizer"] = item.optimizer
    return sorted(values.items(), key=lambda pair: (pair[0].startswith("_"), pair[0]))


def entries(root):
    """Return an iterator over (path, name, key -> array) of all there is to save."""
    for path, item in places(root).items():
        store = {}
        item.save_own_variables(store)
        yield path, item.name, store


# --- assignment ----------------------------------------------------------------------------------
def assign(model, found, source, skip_mismatch=False, objects_to_skip=()):
    """Give path -> {key: array} to the objects of a model, and empty `found`."""
    from khub.layers import Layer
    from khub.optimizers import Optimizer

    optimizer = model.optimizer if getattr(model, "compiled", False) else None
    mine = [path for path in found if path.split("/")[0] == "optimizer"]
    if optimizer is None:
        for path in mine:
            del found[path]
    elif mine:
        optimizer.build(model.trainable_variables)
    else:
        warnings.warn(f"{source} has no state of the optimizer, which begins anew.", stacklevel=3)
        objects_to_skip = [*(objects_to_skip or ()), optimizer]
    skipped = set(map(id, objects_to_skip or ()))
    pairs, own_way = [], []
    plain = Layer.load_own_variables, Optimizer.load_own_variables
    for path, item in places(model).items():
        arrays = found.pop(path, {})
        if id(item) in skipped:
            continue
        if type(item).load_own_variables not in plain:
            own_way.append((item, arrays))
            continue
        keys = sorted(arrays, key=lambda key: (len(key), key))
        pairs.append((path or item.name, item._all_state(), [arrays[key] for key in keys]))
    _assign(model, source, pairs, found, skip_mismatch)
    for item, arrays in own_way:
        if arrays:
            item.load_own_variables({key: array.read() for key, array in arrays.items()})


def _assign(model, source, pairs, unexpected, skip_mismatch):
    """Assign (name, Variables, arrays) triples where all fit.  Raises WeightsError."""
    problems, fitting = [f"unexpected  {name or 'weights'}" for name in unexpected], []
    for name, variables, arrays in pairs:
        given, wanted = [tuple(a.shape) for a in arrays], [v.shape for v in variables]
        if given == wanted:
            fitting += zip(variables, arrays, strict=True)
        elif not given:
            problems.append(f"missing     {name} {wanted}")
        else:
            problems.append(f"misshaped   {name} is {given} in the file, {wanted} in the model")
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        hint = "" if getattr(model, "built", True) else "; it is not built: call it on data first"
        text = f"{source} does not fit {model.name}, {count}{hint}:\n  " + "\n  ".join(problems)
        if not skip_mismatch:
            raise WeightsError(text)
        warnings.warn(text, stacklevel=4)
    for variable, array in fitting:
        variable.assign(array.read())


# --- formats -------------------------------------------------------------------------------------
def save_weights(model, filepath, overwrite=True, max_shard_size=None):
    """Write the weights, and the optimizer's state where the format has a place for it.

    filepath: ends in .weights.h5, .weights.json or .safetensors
    max_shard_size: of a file beside a .weights.json, in gigabytes
    Raises FileExistsError when there is one and not `overwrite`.
    """
    path = Path(filepath)
    if max_shard_size is not None and path.name.endswith(".weights.h5"):
        path = path.with_suffix(".json")
        warnings.warn(f"Shards have an index: {path} is written.", stacklevel=3)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists, and overwrite=False.")
    if path.name.endswith(".weights.json"):
        _write_shards(model, path, (max_shard_size or 5.0) * 1e9)
        return
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            arrays = {name: v.numpy() for name, v in _named(model).items()}
            save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, temporary)
        elif path.name.endswith(".weights.h5"):
            h5.write(temporary, entries(model))
        else:
            raise ValueError(f"A file of weights must end in {_NAMES}; got {path.name!r}.")


def _named(model):
    """Return attribute path -> Variable of all weights."""
    found = model.named_variables().items()
    return {name: v for name, v in found if "seed_generator" not in v.name}


def _write_shards(model, path, limit):
    stem = path.name.removesuffix(".weights.json")
    before = sorted(path.parent.glob(f"{stem}_[0-9]*.weights.h5"))
    number = int(before[-1].name[len(stem) + 1 :].partition(".")[0]) + 1 if before else 0
    shard, room, total, index = [], limit, 0, {}

    def close():
        nonlocal shard, room, number
        file = path.with_name(f"{stem}_{number:05}.weights.h5")
        with replacing(file) as temporary:
            h5.write(temporary, shard)
        for owner, _, _ in shard:
            index.setdefault(f"/{owner}/vars".replace("//", "/"), []).append(file.name)
        shard, room, number = [], limit, number + 1

    for owner, name, arrays in entries(model):
        part = {}
        for key, value in arrays.items():
            size, total = value.nbytes, total + value.nbytes
            if size > room and (shard or part):
                shard += [(owner, name, part)] if part else []
                part = {}
                close()
            part[key], room = value, room - size
        shard.append((owner, name, part))
    close()
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=4)
    with replacing(path) as temporary:
        temporary.write_text(text)
    for file in before:  # the shards of the index that was here: until now it was whole
        file.unlink()


class _Tensor:
    """A tensor of an open safetensors file."""

    def __init__(self, file, name):
        self.shape, self.read = (
            tuple(file.get_slice(name).get_shape()),
            lambda: file.get_tensor(name),
        )


def _shards(path):
    """Return the paths of the files that an index names: beside it, nowhere else."""
    index = parse_json(path.read_bytes(), str(path)).get("weight_map")
    if not isinstance(index, dict):
        raise WeightsError(f"{path} has no weight_map: it is no index of weights.")
    names = [n for value in index.values() for n in (value if isinstance(value, list) else [value])]
    for name in dict.fromkeys(map(str, names)):
        if name != Path(name).name or not name.endswith(".h5"):
            raise WeightsError(f"{path} names the shard {name!r}; expected a file beside it.")
        yield path.with_name(name)


@contextmanager
def _arrays(path):
    """Give path -> {key: array} of the objects in a file, or in the files of an index."""
    with ExitStack() as stack:
        found = {}
        for file in _shards(path) if path.suffix == ".json" else [path]:
            for name, arrays in h5.groups(*stack.enter_context(h5.opened(file))).items():
                found.setdefault(name, {}).update(arrays)
        yield found


def load_weights(model, filepath, skip_mismatch=False, by_name=False, objects_to_skip=None):
    """Assign the weights in a file that `save_weights`, Keras or safetensors wrote.

    filepath: .weights.h5, .weights.json, .safetensors, .keras or a legacy .h5
    skip_mismatch: warn of what does not fit, and load the rest
    by_name: take from a legacy file the layers that have the same name
    objects_to_skip: layers to leave as they are
    Raises WeightsError with every problem before anything is assigned.
    """
    path = Path(filepath)
    if path.suffix == ".keras" or path.is_dir():
        from khub.saving.archive import load_weights_of

        return load_weights_of(model, path, skip_mismatch, objects_to_skip)
    if path.suffix == ".safetensors":
        return _load_safetensors(model, path, skip_mismatch)
    if path.suffix not in (".h5", ".hdf5", ".json"):
        raise ValueError(f"A file of weights ends in {_NAMES}, or .h5; got {path.name!r}.")
    if path.suffix != ".json":
        with h5.opened(path) as (file, content):
            if h5.is_legacy(file):
                return load_legacy(model, h5.legacy(file, content), path, skip_mismatch, by_name)
    if by_name:
        raise ValueError(f"by_name is for legacy .h5 files; {path.name} is none.")
    with _arrays(path) as found:
        assign(model, found, path, skip_mismatch, objects_to_skip)


def _load_safetensors(model, path, skip_mismatch):
    from safetensors import SafetensorError, safe_open

    own = _named(model)
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
            pairs = [(n, [v], [_Tensor(file, n)] if n in names else []) for n, v in own.items()]
            _assign(model, path, pairs, sorted(names - own.keys()), skip_mismatch)
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file, or is damaged: {error}.") from error


def load_legacy(model, stored, source, skip_mismatch=False, by_name=False):
    """Assign (layer's name, arrays) pairs to the layers of a model, by their order."""
    layers = [(layer, _legacy_order(layer)) for layer in model.layers]
    layers = [(layer, variables) for layer, variables in layers if variables]
    if by_name:
        named = dict(stored)
        both = [(layer, v) for layer, v in layers if layer.name in named]
        pairs = [(layer.name, v, named[layer.name]) for layer, v in both]
        return _assign(model, source, pairs, (), skip_mismatch)
    unexpected = [name for name, _ in stored[len(layers) :]]
    pairs = [
        (arrays[0] if arrays else layer.name, variables, arrays[1] if arrays else [])
        for (layer, variables), arrays in zip_longest(layers, stored[: len(layers)])
    ]
    _assign(model, source, pairs, unexpected, skip_mismatch)


def _legacy_order(layer):
    own = [*layer.trainable_weights, *layer.non_trainable_weights]
    return [v for v in own if "seed_generator" not in v.name]
