"""The weight map: the reference implementation's names and layouts <-> khub's, for load and save.

A family declares module renames, reference name first. `{i}` stands for an index; a rename covers
what lies below the module too; the longest one wins:

    WEIGHTS = [("encoder.layer.{i}.output.dense", "layers.{i}.down"), ("cls.bias", "head_bias")]

In a reference name `{i-1}` stands for an index that khub counts from 1 and the reference from 0.

A tuple of reference names are modules whose tensors khub keeps as one, joined along their first
axis: (("query", "key", "value"), "attention.qkv"). Where khub stacks the kernels of several layers,
`{e}` stands for each of them: ("experts.{e}.down", "experts.down").

The rename ("", "") keeps the name of everything that no other covers, ("", "head") that of
everything below `head`.

The last name and the layout of a tensor are a rule of the layer class (`LAYOUTS`). A variable
without a rule is named in full on both sides.
"""

import difflib
import logging
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial

import numpy as np

from . import keras_h5
from .tensors import Checkpoint, Tensor, WeightsError, as_tensor, is_float

log = logging.getLogger("khub")

# layer class -> variable -> (the reference's last name, axes that take its tensor to khub's layout)
NORM = {"gamma": ("weight", None), "beta": ("bias", None)}
BIAS = {"bias": ("bias", None)}
LAYOUTS = {
    "Dense": {"kernel": ("weight", (1, 0)), **BIAS},
    "ExpertDense": {"kernel": ("weight", (0, 2, 1))},
    "Embedding": {"embeddings": ("weight", None)},
    "LayerNormalization": NORM,
    "GroupNormalization": NORM,
    "RMSNormalization": {"scale": ("weight", None)},
    "BatchNormalization": {
        **NORM,
        "moving_mean": ("running_mean", None),
        "moving_variance": ("running_var", None),
    },
    "DepthwiseConv2D": {"kernel": ("weight", (2, 3, 0, 1)), **BIAS},
    "Conv1D": {"kernel": ("weight", (2, 1, 0)), **BIAS},
    "Conv2D": {"kernel": ("weight", (2, 3, 1, 0)), **BIAS},
    "Conv3D": {"kernel": ("weight", (2, 3, 4, 1, 0)), **BIAS},
}
JOIN = "+"  # between the names of tensors that are one here
MEAN, COUNT = ".running_mean", ".num_batches_tracked"
IGNORED = (f"*{COUNT}",)  # PyTorch's batch normalization counts; nothing reads it


@dataclass(frozen=True)
class Slot:
    """A variable of a model and the reference tensor that belongs to it.

    name: the reference's, without the base model's prefix; several, joined by JOIN, for a tensor
    that the reference keeps in equal parts   axes: reference layout -> khub's
    """

    path: str
    variable: object
    name: str
    axes: tuple[int, ...] | None
    in_backbone: bool
    sizes: tuple[int, ...] | None = None  # of the parts of a joined tensor; None: they are equal
    stack: int | None = None  # how many layers' tensors are stacked along a first axis

    def is_below(self, module):
        """Whether the variable belongs to a module of the backbone, given by its khub path."""
        return self.path.removeprefix("backbone.").startswith(f"{module}.")

    @property
    def shape(self):
        """The shape that the reference's tensor has."""
        if self.axes is None:
            return self.variable.shape
        return tuple(self.variable.shape[i] for i in np.argsort(self.axes))

    def layer(self, number):
        """One of the layers whose tensors are stacked."""
        axes = None if self.axes is None else tuple(axis - 1 for axis in self.axes[1:])
        sizes = self.sizes and self.sizes[: len(self.sizes) // self.stack]
        row = _Row(self.variable, number)
        return replace(self, variable=row, axes=axes, sizes=sizes, stack=None)

    def tensor(self, dtype=None):
        """Return the value as a `Tensor` in the reference's layout, in `dtype` if it is a float."""
        own = numpy_dtype(self.variable.dtype)
        dtype = numpy_dtype(dtype) if dtype and is_float(own) else own

        def read():
            value = np.asarray(self.variable.numpy())
            value = value if self.axes is None else value.transpose(np.argsort(self.axes))
            return value.astype(dtype, copy=False)

        return Tensor(self.shape, dtype, read)


@dataclass(frozen=True)
class _Row:
    """A row of a variable, as a variable that is read."""

    variable: object
    number: int

    @property
    def shape(self):
        return self.variable.shape[1:]

    @property
    def dtype(self):
        return self.variable.dtype

    def numpy(self):
        from khub import ops

        return ops.convert_to_numpy(self.variable.value[self.number])


def numpy_dtype(name):
    """Return the NumPy dtype of a name, "bfloat16" included."""
    from khub import dtypes

    return np.dtype(dtypes.numpy_dtype(name))


@cache
def _pattern(side):
    end = r"(?=\.|$)" if side else ""
    return re.compile(re.escape(side).replace(r"\{i\}", r"(\d+)") + end)


def _index(digits, minus):
    return str(int(digits) - 1) if minus else digits


def rename(path, table):
    """Return the reference's names of a khub path by the longest rename that fits, else None."""
    best, found = -1, None
    for reference, ours in table:
        match = _pattern(ours).match(path)
        if match and match.end() > best:
            best, found = match.end(), []
            for name in (reference,) if isinstance(reference, str) else reference:
                indices = iter(match.groups())
                name = re.sub(r"\{i(-1)?\}", lambda m, n=indices: _index(next(n), m[1]), name)
                found.append((name + path[match.end() :]).lstrip("."))
    return found


def _slot(path, variable, layer, owner, inner, in_backbone):
    """Return the Slot of a variable, None when the owner's table does not name it (by `inner`)."""
    module, _, last = inner.rpartition(".")
    layouts = getattr(owner, "layouts", LAYOUTS)  # a file of khub's own has khub's
    for cls in type(layer).__mro__:
        if last in layouts.get(cls.__name__, {}):
            leaf, axes = layouts[cls.__name__][last]
            sizes, stack = (layer.__dict__.get(name) for name in ("parts", "stack"))
            names = rename(module, owner.weight_map)
            if names and stack:
                names = [name.replace("{e}", str(e)) for e in range(stack) for name in names]
                sizes = sizes and tuple(sizes) * stack
            name = names and JOIN.join(f"{name}.{leaf}" for name in names)
            return name and Slot(path, variable, name, axes, in_backbone, sizes, stack)
    names = rename(inner, owner.weight_map)
    return names and Slot(path, variable, JOIN.join(names), None, in_backbone)


def slots(model):
    """Return one `Slot` for each weight of a backbone or task; random state is no weight.

    Raises ValueError when the weight map does not name a variable, or names two alike.
    """
    layers, base, found, unnamed = model.named_layers(), _base(model), [], []
    for path, variable in model.named_variables().items():
        if variable.name.endswith("seed_generator_state"):
            continue
        layer = layers.get(path.rpartition(".")[0])
        in_backbone = base is model or path.startswith("backbone.")
        owner = base if in_backbone else model
        inner = path if owner is model else path.removeprefix("backbone.")
        slot = _slot(path, variable, layer, owner, inner, in_backbone)
        found.append(slot) if slot else unnamed.append(path)
    if unnamed:
        raise ValueError(
            f"The weight map of {type(model).__name__} does not name: {', '.join(unnamed)}. Add a "
            "(reference, khub) pair for each to its weight_map."
        )
    names = [(slot.name, slot.in_backbone) for slot in found]
    if twice := {name for name, part in names if names.count((name, part)) > 1}:
        raise ValueError(f"{type(model).__name__}: two variables are named {', '.join(twice)}.")
    return found


def _base(model):
    return getattr(model, "backbone", model)


def tensors(model, dtype=None):
    """Return name -> `Tensor` of all weights, named as the reference names them."""
    named = {reference_name(model, slot): slot for slot in slots(model)}
    found = {n: tensor for joined, s in named.items() for n, tensor in _parts(joined, s, dtype)}
    counts = [name for name in found if name.endswith(MEAN)]
    return found | {f"{n.removesuffix(MEAN)}{COUNT}": as_tensor(np.int64(0)) for n in counts}


def reference_name(model, slot):
    """Return the reference's whole name of a tensor, a task's prefix included."""
    inside = slot.in_backbone and _base(model) is not model
    return _prefixed(_prefix(model) if inside else "", slot.name)


def _prefix(model):
    prefix = getattr(model, "backbone_prefix", _base(model).reference_prefix)
    return f"{prefix}." if prefix else ""


def _prefixed(prefix, name):
    return JOIN.join(prefix + part for part in name.split(JOIN))


def _parts(joined, slot, dtype):
    """Yield (name, `Tensor`) of each of the parts that a joined tensor is kept in."""
    names = joined.split(JOIN)
    if slot.stack:
        count = len(names) // slot.stack
        for number in range(slot.stack):
            own = JOIN.join(names[number * count : (number + 1) * count])
            yield from _parts(own, slot.layer(number), dtype)
        return
    whole = slot.tensor(dtype)
    if len(names) == 1:
        yield joined, whole
        return
    start = 0
    for name, size in zip(names, slot.sizes or [whole.shape[0] // len(names)] * len(names)):
        rows = slice(start, start := start + size)
        yield name, Tensor((size, *whole.shape[1:]), whole.dtype, lambda r=rows: whole.read()[r])


class _Joined:
    """A checkpoint in which the parts of each of `joined` names are one tensor of that name.

    joined: name -> `Slot`   fit: (slot, tensor) -> the tensor in the slot's shape, where a family
    can make it so of another one
    """

    def __init__(self, checkpoint, joined, fit=None):
        self.path, self._checkpoint = checkpoint.path, checkpoint
        self._slots, self._fit = joined, fit
        self._parts = {
            name: parts
            for name in joined
            if JOIN in name and checkpoint.names >= set(parts := name.split(JOIN))
        }
        used = {part for parts in self._parts.values() for part in parts}
        whole = [name for name in checkpoint.names if name not in used]
        self.names = dict.fromkeys([*whole, *self._parts]).keys()  # in the file's order

    def tensor(self, name):
        slot, found = self._slots.get(name), self._whole(name)
        if slot is not None and slot.stack and not sum(found.shape[:1]) % slot.stack:
            shape = slot.stack, found.shape[0] // slot.stack, *found.shape[1:]
            return Tensor(shape, found.dtype, lambda: found.read().reshape(shape))
        if self._fit is None or slot is None or found.shape == slot.shape:
            return found
        return self._fit(slot, found)

    def _whole(self, name):
        if name not in self._parts:
            return self._checkpoint.tensor(name)
        parts = [self._checkpoint.tensor(part) for part in self._parts[name]]
        first = parts[0]
        if any(part.shape[1:] != first.shape[1:] for part in parts):
            shapes = ", ".join(str(part.shape) for part in parts)
            raise WeightsError(f"{self.path}: {name} do not belong together, they are {shapes}.")
        shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
        return Tensor(shape, first.dtype, lambda: np.concatenate([p.read() for p in parts]))


def load(model, checkpoint, heads=(), new_head=False, fresh_shapes=False, strict=True, after=None):
    """Assign a checkpoint's tensors to the variables of a built model, tensor by tensor.

    heads: other task classes of the family, whose tensors the file may hold   new_head: leave this
    model's own head to its initializers   fresh_shapes: do so where the head's shape differs
    after: called with the path of each variable that has its value

    Returns the paths left to their initializers. Raises WeightsError with every missing, unexpected
    and misshaped tensor, before anything is assigned; only logs them when not `strict`.
    """
    base, own = _base(model), slots(model)
    prefix = _prefix(model)
    prefixed = any(name.startswith(prefix) for name in checkpoint.names)
    wanted = {_prefixed(prefix if prefixed and s.in_backbone else "", s.name): s for s in own}
    checkpoint = _Joined(checkpoint, wanted, getattr(base, "fit_tensor", None))
    head = {name: slot for name, slot in wanted.items() if not slot.in_backbone}
    large = base is not model and getattr(model, "large_head", False)
    misshaped = [n for n in head if n in checkpoint.names and _misshape(n, head[n], checkpoint)]
    fresh = {}
    if new_head or not head.keys() & checkpoint.names:
        fresh |= head
    elif fresh_shapes and misshaped:
        fresh |= {n: head[n] for n in misshaped} if large else head
    for module in getattr(base, "optional", ()):  # checkpoints of some heads lack it as a whole
        part = {n: s for n, s in wanted.items() if s.in_backbone and s.is_below(module)}
        if not part.keys() & checkpoint.names:
            fresh |= part
    missing = [n for n in wanted if n not in checkpoint.names and n not in fresh]
    wrong = [
        problem
        for name, slot in wanted.items()
        if name in checkpoint.names and name not in fresh
        for problem in filter(None, [_misshape(name, slot, checkpoint)])
    ]
    ignored = [*IGNORED, *model.ignored, *(() if large else base.ignored)]
    tables = [cls.weight_map for cls in heads if isinstance(cls.weight_map, (list, tuple))]
    others = [_pattern(reference) for table in tables for reference, _ in table]
    unexpected = [
        name
        for name in checkpoint.names
        if name not in wanted
        and not any(fnmatchcase(name.removeprefix(prefix), pattern) for pattern in ignored)
        and not any(pattern.match(name) for pattern in others)
    ]
    if missing or wrong or unexpected:
        text = _report(model, checkpoint, wanted, missing, wrong, unexpected)
        if strict:
            raise WeightsError(text)
        log.warning(text)
    _assign(wanted, checkpoint, fresh, after)
    if fresh:
        names = ", ".join(slot.path for slot in fresh.values())
        log.warning("%s: %s start from their initializers.", checkpoint.path, names)
    return [s.path for n, s in wanted.items() if n in fresh or n in missing]


def load_file(model, path):
    """Load the file of a model's reference (safetensors or PyTorch's, Keras' `.h5`), strictly."""
    if str(path).endswith((".h5", ".hdf5")):
        return keras_h5.load(getattr(model, "network", model), path)
    load(model, Checkpoint(path))


def load_own(model, checkpoint, partly=False):
    """Assign tensors that are named and laid out as the variables of a built model, strictly.

    partly: the file may have tensors that the model has not
    """
    own = {n: v for n, v in model.named_variables().items() if "seed_generator" not in v.name}
    problems = [f"missing     {name}" for name in own if name not in checkpoint.names]
    problems += [
        f"misshaped   {name} is {checkpoint.tensor(name).shape} in the file, {v.shape} in the model"
        for name, v in own.items()
        if name in checkpoint.names and checkpoint.tensor(name).shape != v.shape
    ]
    if not partly:
        problems += [f"unexpected  {name}" for name in checkpoint.names if name not in own]
    if problems:
        text = "\n  ".join(problems)
        raise WeightsError(f"{checkpoint.path} does not fit {model.name}:\n  {text}")
    for name, variable in own.items():
        variable.assign_later(checkpoint.tensor(name).read)


def _misshape(name, slot, checkpoint):
    shape = checkpoint.tensor(name).shape
    if shape == slot.shape:
        return None
    return f"misshaped   {name} is {shape} in the file, {slot.shape} in the model ({slot.path})"


def _report(model, checkpoint, wanted, missing, wrong, unexpected):
    lines = []
    for number, name in enumerate(missing):
        near = number < 20 and difflib.get_close_matches(name, unexpected, 1)
        hint = f"; did it become {near[0]}?" if near else ""
        lines.append(f"missing     {name} {wanted[name].shape} for {wanted[name].path}{hint}")
    lines += wrong
    for number, name in enumerate(unexpected):
        near = number < 20 and difflib.get_close_matches(name, missing or wanted, 1)
        hint = f"; nearest name of the model: {near[0]}" if near else ""
        lines.append(f"unexpected  {name} {checkpoint.tensor(name).shape}{hint}")
    problems = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return f"{checkpoint.path} does not fit {type(model).__name__}, {problems}:\n  " + "\n  ".join(
        lines
    )


def _assign(wanted, checkpoint, fresh, after):
    fitting = {
        name: (slot, checkpoint.tensor(name))
        for name, slot in wanted.items()
        if name in checkpoint.names and name not in fresh
    }
    waiting = []
    # the largest first: what a backend copies on the way is then gone before memory is full
    for _, (slot, tensor) in sorted(fitting.items(), key=lambda item: -item[1][1].nbytes):
        if tensor.shape != slot.shape:
            continue  # reported; only reached when not strict
        waiting.append(slot.variable)
        slot.variable.assign_later(partial(_read_with_others, waiting, tensor, slot))
        if after is not None:
            after(slot.path)


def _read_with_others(waiting, tensor, slot):
    """Return a file's tensor for its variable; the first use of one of them reads them all.

    They then lie beside each other in memory, not between what a first call needs for a moment.
    The largest is read alone: its copy comes last here, when the others would be there already.
    """
    largest = bool(waiting) and waiting[0] is slot.variable
    others = [] if largest else [v for v in waiting if v is not slot.variable]
    waiting[:] = waiting[1:] if largest else []
    for variable in others:
        variable.materialize()
    return _in_layout(tensor, slot)


def _in_layout(tensor, slot):
    """Return a file's tensor as the variable has it: a view, where no dtype is in the way."""
    value = tensor.read()
    value = value if slot.axes is None else value.transpose(slot.axes)
    return value.astype(numpy_dtype(slot.variable.dtype), copy=False)
