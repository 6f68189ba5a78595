"""The whole state of a training in one file of tensors, from which it goes on exactly.

Kept are the Variables of model, optimizer and metrics, every random generator, the place in the
data and what callbacks know (`Callback.resumed`). The file is the same on every backend.
"""

import itertools
import json
import os
import warnings
import zlib

import numpy as np

from khub import backend, dtypes, random, tree
from khub.backend import active
from khub.saving.files import replacing

FORMAT = "khub-training-state-1"


def _generators(model):
    """Return path -> random generator of all layers, and of what draws without a seed."""
    found = {"global": random.global_seed_generator()}
    for path, layer in model.named_layers().items():
        held = tree.flatten({n: v for n, v in vars(layer).items() if n != "_compiled"})
        own = [x for x in held if isinstance(x, random.SeedGenerator)]
        found |= {f"{path}.{i}": generator for i, generator in enumerate(own)}
    return found


def _variables(model):
    """Return name -> Variable of all that training changes but the generators."""
    seeds = {id(g.state) for g in _generators(model).values()}
    found = {f"model.{k}": v for k, v in model.named_variables().items() if id(v) not in seeds}
    for kind, variables in (
        ("optimizer", model.optimizer.variables),
        ("metrics", [v for metric in model.metrics for v in metric.variables]),
    ):
        found |= {f"{kind}.{i}": v for i, v in enumerate(variables)}
    return found


def _callbacks(model):
    """Return class and number among its like -> callback that has something to go on with."""
    found = {}
    for callback in model._compiled.running.callbacks.callbacks:
        kind = type(callback).__name__
        number = sum(name.startswith(f"{kind}.") for name in found)
        found |= {f"{kind}.{number}": callback} if callback.resumed else {}
    return found


def _place(running, epoch, batch):
    """Return the place in the data; of data that go on from epoch to epoch since the first one."""
    source, passed = running.source, batch + (epoch - running.origin) * running.steps
    place = source.state(passed) if passed else source.state() | {"epoch": source.epoch}
    try:
        json.dumps(place)
    except TypeError:  # a state that is no plain data: the batches are drawn again
        place.pop("data")
    return {"batches": source.num_batches, "origin": running.origin, "place": place}


# --- writing -------------------------------------------------------------------------------------
def write(path, before, model, epoch, batch):
    """Write the state of the training of `model`, which stands before a batch of an epoch.

    before: where the file that is there already goes, None: it is replaced
    """
    from safetensors.numpy import save_file

    tensors = {name: variable.numpy() for name, variable in _variables(model).items()}
    seeds, known = {}, {}
    for name, generator in _generators(model).items():
        bits = generator.state.numpy().astype("int64") & 0xFFFFFFFF
        seeds[name] = bits.tolist(), _native_state(generator.native)
    for name, callback in _callbacks(model).items():
        known[name] = {key: getattr(callback, key, None) for key in callback.resumed}
        for key, value in known[name].items():
            if isinstance(value, list) and value and hasattr(value[0], "shape"):
                tensors |= {f"callbacks.{name}.{key}.{i}": v for i, v in enumerate(value)}
                known[name][key] = {"arrays": len(value)}
    # bfloat16 and its kin go as integers of their size
    plain = {n: v.view(f"u{v.itemsize}") if v.dtype.kind == "V" else v for n, v in tensors.items()}
    plain = {n: np.asarray(v, order="C") for n, v in plain.items()}
    state = {"format": FORMAT, "backend": backend.name, "epoch": epoch, "batch": batch}
    state |= {"stop": bool(model.stop_training) and not batch, "crc32": _checksum(plain)}
    state |= {"data": _place(model._compiled.running, epoch, batch), "callbacks": known}
    initial = {name: random._global[name] for name in ("seed", "drawn")}
    state |= {"optimizer": type(model.optimizer).__name__, "seeds": seeds, "initial": initial}
    if before is not None and path.exists():
        os.replace(path, before)
    with replacing(path) as temporary:
        save_file(plain, temporary, {"khub": json.dumps(state)})


def _checksum(tensors):
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].reshape(-1).view("uint8"), checksum)
    return checksum


def _native_state(native):
    """Return the state of a framework's own generator as numbers, None where it has none."""
    if native is None:
        return None
    if hasattr(native, "get_state"):
        return active.convert_to_numpy(native.get_state()).tolist()
    return json.loads(json.dumps(native.bit_generator.state, default=lambda x: x.tolist()))


# --- reading -------------------------------------------------------------------------------------
def read(path, before):
    """Return the `Resume` of a file, None where there is no file.

    before: the file to take where that is damaged.  Raises ValueError for damaged files.
    """
    try:
        return Resume(path) if path.exists() else Resume(before) if before.exists() else None
    except _Damaged as error:
        if not before.exists():
            raise
        warnings.warn(f"{error} {before} is taken.", stacklevel=4)
        return Resume(before)


class _Damaged(ValueError):
    """A backup that cannot be read."""


class Resume:
    """A training's state, read from a file.  Raises ValueError for one that is damaged."""

    def __init__(self, path):
        from safetensors import SafetensorError, safe_open
        from safetensors.numpy import load_file

        self.path = path
        try:
            with safe_open(path, "numpy") as file:
                state = json.loads((file.metadata() or {}).get("khub", "{}"))
            self.tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise self._damaged(error) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(
                f"{path} is no backup of a training; give BackupAndRestore a folder of its own."
            )
        if state["crc32"] != _checksum(self.tensors):
            raise self._damaged("its checksum is another")
        self.state, self.epoch, self.batch = state, state["epoch"], state["batch"]
        named = self.tensors.items()
        self.variables = {n: v for n, v in named if not n.startswith("callbacks.")}

    def _damaged(self, why):
        return _Damaged(
            f"The backup {self.path} is damaged ({why}): delete it to train from the beginning."
        )

    def begin(self, model, step):
        """Go to the place in the data, restore all and return the batches that are left."""
        running, data = model._compiled.running, self.state["data"]
        source, running.origin = running.source, data["origin"]
        if data["batches"] != source.num_batches:
            raise self._foreign(f"{data['batches']} batches an epoch", source.num_batches)
        source.restore(data["place"])
        batches = model._batches(source)
        first = next(batches, None)
        if first is not None:
            model._prepare_training(first)
            unlike = self.variables.keys() ^ _variables(model).keys()
            if unlike and all(name.startswith("metrics.") for name in unlike):
                step([first])  # which makes the metrics; all that it changed is restored
            batches = itertools.chain([first], batches)
        self.restore(model)
        return batches

    def restore(self, model):
        """Set all to what the file says.  Raises ValueError where it is of another model."""
        state, own, given = self.state, _variables(model), self.variables
        if state["optimizer"] != type(model.optimizer).__name__:
            raise self._foreign(state["optimizer"], type(model.optimizer).__name__)
        wrong = sorted(given.keys() ^ own.keys())
        wrong += [n for n in given.keys() & own.keys() if given[n].shape != own[n].shape]
        if wrong:
            raise self._foreign(
                ", ".join(f"{n} {given[n].shape if n in given else 'missing'}" for n in wrong[:5]),
                ", ".join(f"{n} {own[n].shape if n in own else 'missing'}" for n in wrong[:5]),
            )
        for name, variable in own.items():
            dtype = dtypes.numpy_dtype(variable.dtype)
            value = given[name]
            variable.assign(value.view(dtype) if dtype.kind == "V" else value)
        random._global.update(state["initial"])
        for name, generator in _generators(model).items():
            self._restore_generator(generator, *state["seeds"][name])
        for name, callback in _callbacks(model).items():
            for key, value in state["callbacks"].get(name, {}).items():
                if isinstance(value, dict) and "arrays" in value:
                    names = (f"callbacks.{name}.{key}.{i}" for i in range(value["arrays"]))
                    value = [self.tensors[n] for n in names]
                setattr(callback, key, value)

    def _restore_generator(self, generator, bits, native):
        state = np.array(bits, "uint32")
        narrow = active.SEED_DTYPE == "int32"
        generator.state.assign(state.view("int32") if narrow else state.astype(active.SEED_DTYPE))
        if not active.EAGER:  # the Variable is all
            return
        generator.native = active.make_generator(bits[0] << 32 | bits[1])
        if native is None or backend.name != self.state["backend"]:  # whose streams are others
            return
        if isinstance(native, dict):
            generator.native.bit_generator.state = native
        else:
            with active.device_scope("cpu"):
                generator.native.set_state(active.convert_to_tensor(native, "uint8"))

    def _foreign(self, saved, here):
        return ValueError(
            f"The backup {self.path} is of another training: it has {saved}, here is {here}. Start "
            "with the same model, compile() and fit() arguments, or delete it."
        )
