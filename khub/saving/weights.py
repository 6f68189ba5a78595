"""Weights in files: `.weights.h5`, shards of it with an index, safetensors, legacy `.h5`.

Loading is strict: nothing is assigned before all names and shapes were found to fit.
"""

import json
import re
import warnings
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import SimpleNamespace

from khub.saving import files, h5
from khub.saving.files import WeightsError, parse_json, replacing
from khub.saving.registry import snake_case

_CONTAINERS = (list, tuple, dict, set)
_INDEX = ".weights.json"
_ENDINGS = (".weights.h5", _INDEX, ".safetensors")


# --- what is in a file ---------------------------------------------------------------------------
def places(root):
    """Return path in a file -> layer or optimizer: `root` at "", all below it where Keras has it.

    Children are found through attributes in sorted order, those of a functional or Sequential model
    as `layers/<class>`; those in containers are named by their class. An object has one path.
    """
    from khub.layers import Layer
    from khub.models import Functional, Sequential
    from khub.optimizers import Optimizer

    found, seen = {}, set()

    def visit(path, item):
        if isinstance(item, (Layer, Optimizer)) and id(item) not in seen:
            seen.add(id(item))
            found[path] = item
            for name in getattr(item, "_also_at", ()):
                found[f"{path}/{name}".lstrip("/")] = item
            parts = _attributes(item)
            if isinstance(item, (Functional, Sequential)):
                parts.insert(0, ("layers", item.layers))
        elif isinstance(item, _CONTAINERS):
            parts, counts = [], {}
            for value in item.values() if isinstance(item, dict) else item:
                nested = isinstance(value, _CONTAINERS)
                kind = getattr(value, "_file_class", type(value).__name__)
                name = "container" if nested else snake_case(kind)
                number = counts[name] = counts.get(name, -1) + 1
                parts.append((f"{name}_{number}" if number else name, value))
        else:
            return
        for name, value in parts:
            visit(f"{path}/{name}".lstrip("/"), value)

    visit("", root)
    return found


def _attributes(item):
    """Return (name, value) of what may hold parts of an object, sorted, private ones last."""
    from khub.layers.layer import INTERNAL

    values = {name: value for name, value in vars(item).items() if name not in INTERNAL}
    for cls in type(item).__mro__:  # a user's property comes before the attribute behind it
        if not cls.__module__.startswith(("khub.", "builtins", "torch.", "tensorflow.")):
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


def _named(model):
    """Return attribute path -> Variable of all weights."""
    found = model.named_variables().items()
    return {name: v for name, v in found if "seed_generator" not in v.name}


# --- saving --------------------------------------------------------------------------------------
def save_weights(model, filepath, overwrite=True, max_shard_size=None, **kwargs):
    """Write the weights, and the optimizer's state where the format has a place for it.

    filepath: ends in .weights.h5, .weights.json (files beside it hold the shards) or .safetensors
    max_shard_size: of a shard, in gigabytes
    Raises FileExistsError when there is one and not `overwrite`.
    """
    path = Path(filepath)
    if max_shard_size is not None and path.name.endswith(".weights.h5"):
        path = path.with_suffix(".json")
        warnings.warn(f"Shards have an index: {path} is written.", stacklevel=3)
    if kwargs or not path.name.endswith(_ENDINGS):
        raise ValueError(f"filepath must end in one of {_ENDINGS}; got {path.name!r}, {kwargs}.")
    if max_shard_size is not None and path.suffix != ".json":
        raise ValueError(f"{path.name!r} is one file: only a {_INDEX} has shards.")
    if path.suffix == ".json":
        return _save_shards(model, path, overwrite, (max_shard_size or 5) * 1e9)
    with replacing(path, overwrite) as temporary:
        if path.suffix == ".h5":
            h5.write(temporary, entries(model))
        else:
            from safetensors.numpy import save_file

            save_file({name: v.numpy().copy("C") for name, v in _named(model).items()}, temporary)


def _save_shards(model, path, overwrite, limit):
    """Write a set of shards under names that the old set has not: it is whole until the end."""
    old, index, total = _own_shards(path), {}, 0
    names = (f"{path.name.removesuffix(_INDEX)}_{i:05}.weights.h5" for i in count())
    names = (name for name in names if name not in old)

    def write(shard):
        name = next(names)
        h5.write(stack.enter_context(replacing(path.with_name(name))), shard)
        for owner, *_ in shard:
            index.setdefault(f"/{owner}/vars".replace("//", "/"), []).append(name)

    with ExitStack() as stack:  # what is entered first, is replaced last: the index
        temporary = stack.enter_context(replacing(path, overwrite))
        shard, room = [], limit
        for owner, name, arrays in entries(model):
            shard.append((owner, name, {}))
            for key, value in arrays.items():
                if value.nbytes > room and room < limit:
                    write(shard)
                    shard, room = [(owner, name, {})], limit
                shard[-1][-1][key] = value
                room, total = room - value.nbytes, total + value.nbytes
        write(shard)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        temporary.write_text(json.dumps(content, indent=4))
    files.commit(lambda: [path.with_name(name).unlink(missing_ok=True) for name in old])


def _own_shards(path):
    """Return the names in an index, if there is one, that `_save_shards` would give."""
    pattern = re.escape(path.name.removesuffix(_INDEX)) + r"_\d{5}\.weights\.h5"
    try:
        names = {shard.name for shard in _shards(path)} if path.is_file() else ()
    except WeightsError:  # nobody can read this set: it may be overwritten
        return set()
    return {name for name in names if re.fullmatch(pattern, name)}


# --- loading -------------------------------------------------------------------------------------
def assign(model, found, source, skip_mismatch=False, objects_to_skip=(), wanted=None):
    """Give path -> key -> array to the objects of a model that are at these places.

    wanted: other names -> Variables, whose arrays are in lists
    Raises WeightsError with every problem before anything is assigned; warns of them where
    `skip_mismatch`.
    """
    from khub.layers import Layer
    from khub.optimizers import Optimizer

    compiled, built = getattr(model, "compiled", False), getattr(model, "built", True)
    skipped = set(map(id, objects_to_skip or ()))
    if compiled and "optimizer" in found:
        model.optimizer.build(model.trainable_variables)
    wanted, problems, fitting, own_way = wanted or places(model), [], [], []
    state = [path for path in {*found, *wanted} if path.split("/")[0] == "optimizer"]
    if not compiled:
        found = {path: arrays for path, arrays in found.items() if path not in state}
    problems += [f"unexpected  {path or 'weights'}" for path in found if path not in wanted]
    for path, item in wanted.items():
        arrays = found.get(path, {})
        load = getattr(type(item), "load_own_variables", None)
        if id(item) in skipped:
            continue
        if load not in (None, Layer.load_own_variables, Optimizer.load_own_variables):
            own_way += [(item, arrays)] if arrays else []
            continue
        if isinstance(arrays, dict):
            arrays = [arrays[key] for key in sorted(arrays, key=lambda key: (len(key), key))]
        variables = item if isinstance(item, list) else item._all_state()
        given, own = [tuple(a.shape) for a in arrays], [v.shape for v in variables]
        if given == own:
            fitting += zip(variables, arrays, strict=True)
        elif path in state:
            if any(given) or any(own) and not given:  # counters alone: it had not begun
                warnings.warn(
                    f"{source} lacks the optimizer's state: it begins anew.", stacklevel=3
                )
        elif given:
            problems.append(f"misshaped   {path} is {given} in the file, {own} in the model")
        else:
            problems.append(f"missing     {path} {own}")
    if problems:
        hint = "" if built else "; it is not built: call it on data first"
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        text = f"{source} does not fit {model.name}, {count}{hint}:\n  " + "\n  ".join(problems)
        if not skip_mismatch:
            raise WeightsError(text)
        warnings.warn(text, stacklevel=3)
    for variable, array in fitting:
        variable.assign(array.read())
    for item, arrays in own_way:
        item.load_own_variables({key: array.read() for key, array in arrays.items()})


def _shards(path):
    """Return the paths of the files that an index names: beside it, nowhere else."""
    index = parse_json(path.read_bytes(), path).get("weight_map", {}).values()
    names = [n for value in index for n in (value if isinstance(value, list) else [value])]
    for name in dict.fromkeys(map(str, names)):
        if name != Path(name).name or not name.endswith(".h5"):
            raise WeightsError(f"{path} names the shard {name!r}; expected a file beside it.")
        yield path.with_name(name)


def load_weights(model, filepath, skip_mismatch=False, **kwargs):
    """Assign the weights in a file that `save_weights`, Keras or safetensors wrote.

    filepath: .weights.h5, .weights.json, .safetensors, .keras or a legacy .h5
    skip_mismatch: warn of what does not fit, and load the rest
    objects_to_skip: layers to leave as they are
    by_name: take from a legacy file the layers that have the same name
    Raises WeightsError with every problem before anything is assigned.
    """
    path, found = Path(filepath), {}
    options = skip_mismatch, kwargs.pop("objects_to_skip", ())
    by_name = kwargs.pop("by_name", False)
    if kwargs or not path.name.endswith((*_ENDINGS, ".h5", ".hdf5", ".keras")):
        raise ValueError(f"{path.name!r} is no file of weights, or unknown: {kwargs or ''}.")
    if path.suffix == ".safetensors":
        return _load_safetensors(model, path, *options)
    if path.suffix == ".keras":
        from khub.saving import archive

        return archive.load_state(model, path, *options)
    with ExitStack() as stack:
        for name in _shards(path) if path.suffix == ".json" else [path]:
            file = stack.enter_context(h5.opened(name, name))
            if path.suffix != ".json" and (stored := h5.legacy(file)):
                return load_legacy(model, stored, path, *options, by_name)
            for place, arrays in h5.groups(file).items():
                found.setdefault(place, {}).update(arrays)
        assign(model, found, path, *options)


def _load_safetensors(model, path, *options):
    from safetensors import SafetensorError, safe_open

    def tensor(name):
        shape = file.get_slice(name).get_shape()
        return SimpleNamespace(shape=shape, read=lambda: file.get_tensor(name))

    try:
        with safe_open(path, framework="np") as file:
            found = {name: [tensor(name)] for name in file.keys()}  # noqa: SIM118
            assign(model, found, path, *options, {n: [v] for n, v in _named(model).items()})
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file, or is damaged: {error}.") from error


def load_legacy(model, stored, source, skip_mismatch=False, objects_to_skip=(), by_name=False):
    """Assign layer's name -> arrays to the layers of a model, by their order or names."""
    layers = {}
    for layer in model.layers:
        own = [*layer.trainable_weights, *layer.non_trainable_weights]
        if own := [v for v in own if "seed_generator" not in v.name]:
            layers[layer.name] = own
    if by_name:
        layers = {name: own for name, own in layers.items() if name in stored}
        stored = {name: stored[name] for name in layers}
    else:
        more = [f"{name} (in the file)" for name in list(stored)[len(layers) :]]
        stored = dict(zip([*layers, *more], stored.values(), strict=False))
    assign(model, stored, source, skip_mismatch, objects_to_skip, layers)
