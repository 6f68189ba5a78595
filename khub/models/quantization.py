"""Weights of few bits: kernels and tables are kept as integers and scales, and computed with as
floats. Layers do not know: what they read as their kernel is the floats.

int8 and float8: a scale for each output. int4: a scale and a zero for each output and block of
inputs. GPTQ and AWQ look at the inputs first: khub/models/calibration.py.
"""

import re
from functools import cache, partial

import numpy as np

from khub import dtype_policies, dtypes, ops, quantizers
from khub.backend.scope import local
from khub.backend.variable import Variable
from khub.layers import Dense, EinsumDense, Embedding, ReversibleEmbedding
from khub.models import calibration
from khub.saving import registry

CONFIGS = {  # of modes that need no data; inputs stay floats
    "int8": quantizers.Int8QuantizationConfig(None, None),
    "int4": quantizers.Int4QuantizationConfig(),
    "float8": quantizers.Float8QuantizationConfig(),
}
WEIGHTS = {Dense.call: "kernel", EinsumDense.call: "kernel"}
WEIGHTS |= {Embedding.call: "embeddings", ReversibleEmbedding.call: "embeddings"}


class Bits(Variable):
    """A weight in few bits, whose value is the floats that they stand for; it does not learn.

    parts: "scale", in blocks "zero", of AWQ "inverse" -> Variable   block: how many inputs along
    `axis`, counted from the last, share a scale, None: all   size, padded: of that axis, as floats
    and as integers   packed: whether two share a byte   kept: the scale's shape, of a kernel
    """

    trainable = property(lambda self: False, lambda self, value: None)
    value = property(lambda self: self._floats(lambda bits: bits), doc="The floats.")

    def assign(self, value):
        """Set the integers.  Raises ValueError for floats."""
        if ops.dtype(value) != self.dtype:
            raise ValueError(f"{self.path} keeps {self.dtype}, got {ops.dtype(value)}.")
        return super().assign(value)

    def rows(self, ids):
        """Return the floats of some rows of a table."""
        return self._floats(lambda bits: ops.take(bits, ids, axis=0))

    def numpy(self):
        """Return the integers as a NumPy array."""
        return ops.convert_to_numpy(super().value)

    def _floats(self, part_of):
        dtype, axis, block = local.autocast or self.float_dtype, self.axis, self.block
        parts = {n: ops.cast(part_of(v.value), dtype) for n, v in self.parts.items()}
        x = part_of(super().value)
        if block is None:
            scale = parts["scale"]
            scale = ops.reshape(scale, self.kept) if self.kept else ops.expand_dims(scale, -1)
            return ops.cast(x, dtype) / scale
        x = quantizers.unpack_int4(x, self.padded, axis=axis) if self.packed else x
        sizes = ops.shape(x)
        head, tail = sizes[:axis], sizes[axis:][1:]
        x = ops.reshape(ops.cast(x, dtype), (*head, -1, block, *tail))
        x = (x - parts["zero"]) * parts["scale"]
        x = ops.reshape(x, (*head, -1, *tail))[(..., slice(self.size), *[slice(None)] * len(tail))]
        return x * parts["inverse"] if "inverse" in parts else x


class RowsOfBits:
    """A table of which only the rows that are asked for become floats."""

    def call(self, inputs, reverse=False):
        if reverse:
            return super().call(inputs, reverse=True)
        return ops.cast(self.embeddings.rows(ops.cast(inputs, "int32")), self.compute_dtype)


class RoundedInputs:
    """A layer whose inputs are rounded first."""

    def call(self, inputs):
        whole, scale = self._round(inputs)
        return super().call(ops.cast(whole, ops.dtype(scale)) / scale)


@cache
def _mixed(mixins, cls):
    names = {name: vars(cls)[name] for name in ("_registered_name",) if name in vars(cls)}
    names |= {"__module__": cls.__module__, "_mixins": mixins, "_unmixed": cls}
    return type(cls.__name__, (*mixins, cls), names)


def mixins_of(layer):
    """The mixins in front of a layer's own class."""
    return getattr(layer, "_mixins", ())


def become(layer, mixins):
    """Put mixins in front of a layer's class, which keeps its name: files show no difference."""
    plain = getattr(layer, "_unmixed", type(layer))
    layer.__class__ = _mixed(mixins, plain) if mixins else plain
    layer._prepare()


def own_call(layer):
    """The `call` of a layer below all mixins."""
    calls = (vars(cls)["call"] for cls in type(layer).__mro__ if "call" in vars(cls))
    return next(call for call in calls if not call.__module__.startswith("khub.models."))


def weight_of(layer):
    """The name of the weight that can be kept in few bits or learn by LoRA; None without one."""
    return WEIGHTS.get(own_call(layer))


def chosen(model, targets=None, filters=None, names=("kernel", "embeddings")):
    """Path -> layer for those of a model that have a weight of these names.

    targets: a regular expression of paths   filters: one of layers' names, several, or a function
    of the layer   Raises ValueError when no layer is meant.
    """
    able = {p: layer for p, layer in model.named_layers().items() if weight_of(layer) in names}
    patterns = [filters] if isinstance(filters, str) else filters or [""]

    def meant(path, layer):
        own = callable(filters)
        named = filters(layer) if own else any(re.search(p, layer.path) for p in patterns)
        return named and re.search(targets or "", path)

    found = {path: layer for path, layer in able.items() if meant(path, layer)}
    if not found:
        raise ValueError(
            f"targets={targets!r} is found in no path, or filters={filters!r} in no name, of the "
            f"layers of {model.name} with a kernel: {', '.join(list(able)[:20]) or 'none'}."
        )
    return found


def configuration(mode, config=None):
    """The configuration of a mode, or the one given.  Raises ValueError for what does not fit."""
    if config is None and mode not in CONFIGS:
        raise ValueError(
            f"mode must be one of {', '.join(CONFIGS)}; got {mode!r}. gptq and awq need their "
            "config: GPTQConfig(dataset, tokenizer) or AWQConfig(...) of khub.quantizers."
        )
    if config is not None and mode not in (None, config.mode):
        raise ValueError(f"mode={mode!r}, but the config is of mode {config.mode!r}.")
    return config or CONFIGS[mode]


def quantize_model(model, mode=None, config=None, filters=None, targets=None):
    """Keep the weights of a model's layers in few bits; return the `Report`."""
    config, walk = configuration(mode, config), dict.items
    names = ("kernel", "embeddings")
    if config.mode in calibration.ROUND:
        walk, names = partial(calibration.walk, model=model, config=config), ("kernel",)
    report, layers = Report(), chosen(model, targets, filters, names)
    report.kept = {
        path: type(layer).__name__
        for path, layer in model.named_layers().items()
        if path not in layers and any(len(v.shape) > 1 for v in layer._own_variables().values())
    }
    for path, layer, *inputs in walk(layers):
        row = quantize(layer, None, config, *inputs)
        report.append(row | {"weight": f"{path}.{row['weight']}"})
    model.forget_functions()
    return report


def quantize(layer, mode=None, config=None, inputs=None, blank=False):
    """Keep the weight of one layer in few bits; return the row of a `Report`.

    inputs: what `calibration` saw of them   blank: whether the values come later, from a file
    Raises TypeError for a layer without such a weight, ValueError where it is in few bits.
    """
    config, name = configuration(mode, config), weight_of(layer)
    if name is None:
        raise TypeError(f"{type(layer).__name__} {layer.name!r} has no weight for few bits.")
    if not layer.built:
        raise ValueError(f"{layer.name!r} has no weights yet: call it on data or build it first.")
    if isinstance(getattr(layer, name), Bits):
        raise ValueError(f"{layer.name!r} is in few bits already: {layer.dtype_policy.name}.")
    row = _replace(layer, name, config, inputs, blank)
    if layer.dtype_policy.quantization_mode is None:
        source = layer.dtype_policy.name
        layer._policy = dtype_policies.get(f"{config.dtype_policy_string()}_from_{source}")
    layer._keras_keys = layer._keras_keys | {"quantization_config": registry.serialize(config)}
    if name == "embeddings":
        become(layer, (*mixins_of(layer), RowsOfBits))
    elif config.activation_quantizer is not None:
        layer._round = partial(config.activation_quantizer, axis=calibration.summed(layer)[1])
        become(layer, (*mixins_of(layer), RoundedInputs))
    return row


def _axes(layer, name):
    """The axes of a weight that outputs, or rows of a table, are summed or looked up over."""
    return (1,) if name == "embeddings" else calibration.summed(layer)[0]


def _rounded(layer, name, values, config, inputs=None):
    """Return (numbers of few bits, their parts by name, inputs a block, length when unpacked)."""
    axes, block = _axes(layer, name), None
    if config.mode in ("int8", "float8"):
        whole, scale = _scaled(values, axes, config)
        outputs = [n for i, n in enumerate(values.shape) if i not in axes]
        # as in Keras' files, where the scale of an EinsumDense has the rank of its output
        ones = [1] * (len(getattr(layer, "_output", "")) - len(outputs))
        parts = {"scale": scale.reshape(ones + outputs)}
    else:
        whole, parts, block = calibration.in_blocks(values, axes, config, inputs)
    padded = whole.shape[axes[-1]]
    if block is not None and config.weight_bits < 8:
        whole = ops.convert_to_numpy(quantizers.pack_int4(whole, axes[-1] - values.ndim)[0])
    return whole, parts, block, padded


def renew(layer, values):
    """Let a weight of few bits stand for other floats; return the row of a `Report`."""
    name = weight_of(layer)
    bits, config = getattr(layer, name), registry.deserialize(config_of(layer))
    whole, parts, *_ = _rounded(layer, name, values, config)
    for variable, array in [(bits, whole), *((bits.parts[part], parts[part]) for part in parts)]:
        variable.assign(array)
    return _row(name, values, bits)


def config_of(layer):
    """The serialized configuration that a layer's weight is in few bits by, None: it is not."""
    few = isinstance(getattr(layer, weight_of(layer) or "", None), Bits)
    return layer._keras_keys["quantization_config"] if few else None


def _replace(layer, name, config, inputs, blank):
    """Put `Bits` in the place of a weight; return how large they are and how near."""
    old = getattr(layer, name)
    values = np.zeros(old.shape, "float32") if blank else np.asarray(old.numpy(), "float32")
    whole, parts, block, padded = _rounded(layer, name, values, config, inputs)
    axes = _axes(layer, name)
    axis, size = axes[-1] - values.ndim, old.shape[axes[-1]]
    place, count, made = [v is old for v in layer._added].index(True), len(layer._added), {}
    for part, array in {"": whole, **parts}.items():
        options = dict(dtype=array.dtype.name, trainable=False, name=f"{name}_{part}".rstrip("_"))
        made[part] = layer.add_weight(array.shape, lambda *_, a=array, **__: a, **options)
        setattr(layer, options["name"], made[part])
    layer._added[place] = layer._added.pop(count)
    bits = made.pop("")
    bits.__class__, bits.path, bits.made_trainable = Bits, old.path, True  # first, as in Keras
    bits.parts, bits.axis, bits.block, bits.size = made, axis, block, size
    bits.padded, bits.packed, bits.float_dtype = padded, whole.shape[axis] < padded, old.dtype
    kept = [1 if i in axes else n for i, n in enumerate(old.shape)]
    bits.kept = kept if name == "kernel" else None
    return None if blank else _row(name, values, bits)


def _row(name, values, bits):
    error = np.abs(values - ops.convert_to_numpy(bits.value))
    return {
        "weight": name,
        "shape": values.shape,
        "bytes_before": values.size * np.dtype(dtypes.numpy_dtype(bits.float_dtype)).itemsize,
        "bytes_after": sum(v.numpy().nbytes for v in (bits, *bits.parts.values())),
        "max_error": float(error.max()),
        "relative_error": float(np.linalg.norm(error) / (np.linalg.norm(values) or 1)),
    }


def _scaled(values, axes, config):
    """Numbers of few bits, and what they are divided by."""
    if config.mode == "int8":
        quantizer = config.weight_quantizer or quantizers.AbsMaxQuantizer(axes)
        return map(ops.convert_to_numpy, quantizer(values))
    scale = 448 / np.abs(values).max(axes, keepdims=True).clip(1e-7)
    return (values * scale).astype(dtypes.numpy_dtype("float8_e4m3fn")), scale


class Report(list):
    """What `quantize` did to each weight, a dict each; it prints as a table.

    kept: path -> class of the layers whose weights stay as they are
    """

    kept = {}

    def __str__(self):
        row = "{:44} {:>16} {:>13} {:>12} {:>10} {:>8}".format
        lines = [row("weight", "shape", "bytes before", "after", "max error", "relative")]
        before = after = 0
        for each in self:
            name, shape, old, new, error, relative = each.values()
            cells = f"{old:,}", f"{new:,}", f"{error:.2g}", f"{relative:.2%}"
            lines.append(row(name, str(shape), *cells))
            before, after = before + old, after + new
        lines.append(f"{before:,} bytes -> {after:,} ({after / before:.1%})")
        kept = [f"{path} ({name})" for path, name in self.kept.items()]
        return "\n".join(lines + ["kept as they are: " + ", ".join(kept)] * bool(kept))
