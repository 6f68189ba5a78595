"""Numbers of few bits: how they are rounded and packed, and what `Model.quantize` is told."""

from typing import Annotated, ClassVar

import numpy as np

from khub import ops
from khub.fields import Choice, Configurable, FieldsOf, Integers, PositiveInt, Rate
from khub.saving import registry


# --- rounding ------------------------------------------------------------------------------------
def abs_max_quantize(
    inputs, axis, value_range=(-127, 127), dtype="int8", epsilon=1e-7, to_numpy=False
):
    """Return (whole numbers, scale): x * scale rounded, scale = the range's end / max|x| of `axis`.

    to_numpy: whether to compute on the host, where the device's memory is short
    """
    xp, x = _place(inputs, to_numpy)
    largest = xp.max(xp.abs(x), axis=axis, keepdims=True)
    scale = xp.divide(value_range[1], xp.add(largest, epsilon))
    whole = xp.clip(xp.round(xp.multiply(x, scale)), *value_range)
    return ops.cast(ops.convert_to_tensor(whole), dtype), ops.convert_to_tensor(scale)


def abs_max_quantize_grouped_with_zero_point(
    inputs, block_size, value_range=(-8, 7), dtype="int8", epsilon=1e-7, to_numpy=False
):
    """Return (whole, scale, zero): x is (whole - zero) * scale where a block's range reaches 0.

    inputs: (n, units)  ->  whole (n, units), scale and zero (n / block_size rounded up, units)
    """
    xp, x = _place(inputs, to_numpy)
    n, units = x.shape
    block_size = n if block_size in (None, -1) else block_size
    blocks = xp.reshape(xp.pad(x, [(0, -n % block_size), (0, 0)]), (-1, block_size, units))
    low, high = xp.min(blocks, axis=1), xp.max(blocks, axis=1)
    empty = high - low < epsilon
    low, high = xp.where(empty, low - 1, low), xp.where(empty, high + 1, high)
    scale = (high - low) / (value_range[1] - value_range[0])
    zero = xp.clip(xp.round(value_range[0] - low / scale), *value_range)
    whole = xp.round(blocks / scale[:, None]) + zero[:, None]
    whole = xp.reshape(xp.clip(whole, *value_range), (-1, units))[:n]
    whole, scale, zero = map(ops.convert_to_tensor, (whole, scale, zero))
    return ops.cast(whole, dtype), scale, ops.cast(zero, "int8")


def _place(inputs, to_numpy):
    x = ops.convert_to_tensor(inputs)
    return (np, ops.convert_to_numpy(x)) if to_numpy else (ops, x)


def fake_quant_with_min_max_vars(
    inputs, min_vals, max_vals, num_bits=8, narrow_range=False, axis=None
):
    """Round to the 2**num_bits numbers from `min_vals` to `max_vals`, moved so that 0 is one.

    axis: of channels that have a minimum and a maximum each   Inside of the range the gradient is
    as of x, what lies beyond it belongs to its end.  Jacob et al. 2017, arXiv:1712.05877
    """
    x = ops.convert_to_tensor(inputs)
    shape = [-1 if axis is not None and i == axis % x.ndim else 1 for i in range(x.ndim)]
    low, high = (ops.cast(end, x.dtype) for end in (min_vals, max_vals))
    low, high = (ops.reshape(end, shape) if axis is not None else end for end in (low, high))
    first, last = int(narrow_range), 2**num_bits - 1
    step = (high - low) / (last - first)
    zero = ops.clip(ops.round(first - low / step), first, last)
    lowest, highest = (first - zero) * step, (last - zero) * step
    limited = ops.minimum(ops.maximum(x, lowest), highest)
    rounded = ops.floor((limited - lowest) / step + 0.5) * step + lowest
    parts = (x >= lowest) & (x <= highest), x < lowest, x > highest
    exact = sum(v * ops.cast(part, x.dtype) for v, part in zip((x, low, high), parts))
    return exact + ops.stop_gradient(rounded - exact)


# --- float8, Micikevicius et al. 2022, arXiv:2209.05433 ------------------------------------------
def compute_float8_amax_history(x, amax_history):
    """Return the history of largest values with max|x| in front."""
    latest = ops.cast(ops.max(ops.abs(x)), ops.dtype(amax_history))
    return ops.concatenate([ops.reshape(latest, (1,)), ops.roll(amax_history, -1)[1:]], axis=0)


def compute_float8_scale(amax, scale, dtype_max, margin=0):
    """Return amax * 2**margin / dtype_max; `scale` where amax is 0 or not finite."""
    usable = ops.logical_and(ops.isfinite(amax), ops.greater(amax, 0))
    new = 1.0 / ops.where(usable, dtype_max / ops.where(usable, amax, 1.0) / 2**margin, 1.0)
    return ops.where(usable, new, scale)


def quantize_and_dequantize(inputs, scale, quantized_dtype, compute_dtype):
    """Return what is left of x when x / scale is kept in a float8 dtype."""
    largest = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}[quantized_dtype]
    scale = ops.cast(scale, compute_dtype)
    kept = ops.clip(ops.cast(inputs, compute_dtype) / scale, -largest, largest)
    return ops.cast(ops.cast(kept, quantized_dtype), compute_dtype) * scale


# --- two numbers a byte --------------------------------------------------------------------------
def pack_int4(arr, axis=0, dtype="int8"):
    """Return (packed, its shape, the axis' length): the first of two neighbours in the low bits."""
    _check(ops.dtype(arr), dtype, (dtype,))
    x = ops.mod(ops.cast(ops.moveaxis(arr, axis, 0), "int32"), 16)
    length = x.shape[0]
    x = ops.pad(x, [(0, length % 2)] + [(0, 0)] * (x.ndim - 1))
    byte = x[0::2] + 16 * x[1::2]
    byte = ops.mod(byte + 128, 256) - 128 if dtype == "int8" else byte
    packed = ops.moveaxis(ops.cast(byte, dtype), 0, axis)
    return packed, tuple(packed.shape), length


def unpack_int4(packed, orig_len, axis=0, dtype="int8"):
    """Return the numbers that `pack_int4` packed along `axis`, `orig_len` of them."""
    _check(ops.dtype(packed), dtype, ("int8", "uint8"))
    x = ops.moveaxis(packed, axis, 0)
    low, high = ops.bitwise_and(x, 15), ops.bitwise_and(ops.right_shift(x, 4), 15)
    x = ops.reshape(ops.stack([low, high], 1), (-1, *ops.shape(x)[1:]))[:orig_len]
    x = ops.bitwise_and(x + 8, 15) - 8 if dtype == "int8" else x
    return ops.moveaxis(x, 0, axis)


def _check(found, dtype, expected):
    if dtype not in ("int8", "uint8"):
        raise ValueError(f"dtype must be 'int8' or 'uint8', got {dtype!r}.")
    if found not in expected:
        raise TypeError(f"Four bits are packed from and into {expected}, got {found}.")


# --- objects -------------------------------------------------------------------------------------
class Quantizer(Configurable):
    """Base of quantizers; a subclass makes of x (whole numbers, scale)."""

    _kind: ClassVar = "quantizers"
    output_dtype: str = "int8"

    def __call__(self, x):
        return x


class AbsMaxQuantizer(Quantizer):
    """`abs_max_quantize` with these arguments; axis: None means the last one."""

    axis: Integers = None
    value_range: tuple = (-127, 127)
    epsilon: float = 1e-7
    output_dtype: str = "int8"

    def __call__(self, x, axis=None, to_numpy=False):
        axis = (self.axis or -1) if axis is None else axis
        options = self.value_range, self.output_dtype, self.epsilon, to_numpy
        return abs_max_quantize(x, axis, *options)


def get(identifier, **kwargs):
    """Return the quantizer of a name (with its arguments), a config, class, object or function."""
    identifier = {"class_name": identifier, "config": kwargs} if kwargs else identifier
    return registry.get("quantizers", identifier)


def serialize(initializer):
    """Return the quantizer as plain data."""
    return registry.serialize(initializer)


def deserialize(config, custom_objects=None):
    """Return the quantizer that `serialize` described."""
    return registry.deserialize(config, custom_objects, "quantizers")


# --- configurations of Model.quantize ------------------------------------------------------------
def _quantizer(name, value):
    return AbsMaxQuantizer() if value == "default" else get(value)


def _group(name, value):
    if value not in (None, -1) and value < 1:
        raise ValueError(f"{name} must be positive, or -1 for one group, got {value!r}.")
    return value


AnyQuantizer = Annotated[Quantizer, _quantizer]
Group = Annotated[int, _group]


class QuantizationConfig(Configurable):
    """Base of what `Model.quantize` is told: how weights, and how a layer's inputs, are rounded."""

    _kind: ClassVar = "quantizers"
    weight_quantizer: AnyQuantizer = None
    activation_quantizer: AnyQuantizer = None

    @property
    def mode(self):
        """The name of the way."""
        raise NotImplementedError(f"{type(self).__name__} has no mode: use one of its subclasses.")

    def dtype_policy_string(self):
        """Return the mode as dtype policies write it."""
        return self.mode

    @staticmethod
    def weight_quantizer_or_default(config, default):
        """Return the config's quantizer of weights, or `default` where there is none."""
        return getattr(config, "weight_quantizer", None) or default

    @staticmethod
    def activation_quantizer_or_default(config, default):
        """Return the config's quantizer of inputs, which may be None; `default` without config."""
        return default if config is None else config.activation_quantizer


class Int8QuantizationConfig(QuantizationConfig):
    """8 bits and a scale for each output; inputs are rounded too unless told otherwise."""

    mode = "int8"
    activation_quantizer = "default"


class Int4QuantizationConfig(QuantizationConfig):
    """4 bits, and a scale and a zero for each output and `block_size` inputs, -1: all of them."""

    mode = "int4"
    weight_bits = 4
    options: FieldsOf(QuantizationConfig, "weight_quantizer", "activation_quantizer")
    block_size: Group = 128
    group_size = property(lambda self: self.block_size)

    def dtype_policy_string(self):
        """Return the mode as dtype policies write it."""
        return f"int4/{self.block_size or -1}"


class Float8QuantizationConfig(QuantizationConfig):
    """float8_e4m3fn and a scale for each output.  arXiv:2209.05433"""

    mode = "float8"

    def __init__(self):
        super().__init__()


class _Calibrated(QuantizationConfig):
    """Base of configurations that need inputs.

    dataset: an iterable of texts (with a tokenizer), of samples or of batches, of which num_samples
    are used   sequence_length: of tokens   group_size: inputs that share a scale, -1: all
    quantization_layer_structure: {"pre_block_layers": [...], "sequential_blocks": [...]}, blocks
    that are quantized one after the other, each on what those before it give; None: all at once
    """

    dataset: object
    tokenizer: object
    num_samples: PositiveInt = 128
    sequence_length: PositiveInt = 512
    group_size: Group = 128
    quantization_layer_structure: dict = None

    def dtype_policy_string(self):
        """Return the mode as dtype policies write it."""
        return f"{self.mode}/{self.weight_bits}/{self.group_size}"

    def get_config(self):
        """Return the constructor's arguments, without the data."""
        hidden = dict.fromkeys(("dataset", "tokenizer", "quantization_layer_structure"))
        own = {k: v for k, v in vars(self).items() if not k.endswith("_quantizer")}
        return own | hidden


class GPTQConfig(_Calibrated):
    """Weights rounded one by one, the others making up for it.  arXiv:2210.17323

    hessian_damping: share of the mean that is added to the Hessian's diagonal   symmetric: no zero
    activation_order: the inputs that matter most come first   Others: see `_Calibrated`
    """

    mode = "gptq"
    weight_bits: Choice(2, 3, 4, 8) = 4
    per_channel: Choice(True) = True
    hessian_damping: Rate = 0.01
    symmetric: bool = False
    activation_order: bool = False


class AWQConfig(_Calibrated):
    """Inputs that matter are scaled before weights are rounded.  arXiv:2306.00978

    num_grid_points: strengths of the scaling that are tried   Others: see `_Calibrated`
    """

    mode = "awq"
    weight_bits: Choice(4) = 4
    num_grid_points: PositiveInt = 20
