"""Weights of few bits: kernels are kept as integers and scales, and computed with as floats.

int8: a scale for each output. int4: two numbers a byte, a scale for each output and GROUP inputs,
as Dettmers et al. 2023, arXiv:2305.14314, keep theirs.
"""

import re

import numpy as np

from khub import ops
from khub.layers import Dense

GROUP = 32  # inputs that share a scale where there are four bits


class IntegerDense:
    """A Dense whose kernel is integers times scales; it does not learn."""

    def call(self, inputs):
        y = ops.linear(inputs, self.kernel_values(), self.bias)
        return y if self._linear else self.activation(y)


class Int8Dense(IntegerDense):
    """kernel int8 (n, units), kernel_scale (units,)"""

    @staticmethod
    def pack(kernel):
        scale = np.abs(kernel).max(0) / 127
        return np.rint(kernel / np.where(scale, scale, 1)).astype("int8"), scale

    def kernel_values(self):
        return ops.cast(self.kernel, self.compute_dtype) * self.kernel_scale


class Int4Dense(IntegerDense):
    """kernel uint8 (n / 2, units), two inputs a byte; kernel_scale (groups, units)"""

    @staticmethod
    def pack(kernel):
        n, units = kernel.shape
        kernel = np.pad(kernel, [(0, -n % GROUP), (0, 0)]).reshape(-1, GROUP, units)
        scale = np.abs(kernel).max(1) / 7
        whole = np.rint(kernel / np.where(scale, scale, 1)[:, None]).astype("int8") + 8
        low, high = whole.astype("uint8").reshape(-1, 2, units).swapaxes(0, 1)
        return low | high << 4, scale

    def kernel_values(self):
        packed = ops.cast(self.kernel, "int32")
        both = ops.stack([packed % 16, packed // 16], 1)  # (n / 2, 2, units)
        groups = ops.reshape(both, (-1, GROUP, self.units)) - 8
        values = ops.cast(groups, self.compute_dtype) * self.kernel_scale[:, None]
        return ops.reshape(values, (-1, self.units))[: self.input_spec.axes[-1]]


MODES = {"int8": Int8Dense, "int4": Int4Dense}


def quantize(layer, mode):
    """Keep the kernel of one Dense layer in few bits."""
    kind = MODES[mode]
    kernel, scale = kind.pack(np.asarray(layer.kernel.numpy(), "float32"))
    layer._added = [v for v in layer._added if v is not layer.kernel]
    name = f"{kind.__name__}{type(layer).__name__}"
    layer.__class__ = type(name, (kind, type(layer)), {"__module__": __name__})
    options = dict(trainable=False, initializer="zeros")
    layer.kernel = layer.add_weight(kernel.shape, dtype=kernel.dtype.name, name="bits", **options)
    layer.kernel_scale = layer.add_weight(scale.shape, name="kernel_scale", **options)
    layer.kernel.assign(kernel), layer.kernel_scale.assign(scale)
    if layer.bias is not None:
        layer.bias.trainable = False
    layer._prepare()


def quantizable(model, mode, targets=None):
    """The Dense layers of a model, by path, that `quantize` can take.

    targets: a regular expression of paths   Raises ValueError for an unknown mode and no layer.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
    found = {
        path: layer
        for path, layer in model.named_layers().items()
        if type(layer).call is Dense.call and (targets is None or re.search(targets, path))
    }
    if not found:
        raise ValueError(f"{model.name} has no Dense layer whose path has targets={targets!r}.")
    return found
