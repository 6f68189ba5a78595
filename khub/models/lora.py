"""LoRA: frozen kernels learn through the product of two thin matrices.

Hu et al. 2021, arXiv:2106.09685.
"""

import re

from khub import ops
from khub.layers import Dense


class LowRank:
    """A Dense whose kernel (n, units) has lora_a (n, rank) @ lora_b (rank, units) added to it."""

    def adapt(self, rank, alpha):
        """Make the two matrices; lora_b begins with zeros, so that nothing has changed yet."""
        n, units = self.kernel.shape
        self.lora_scale = alpha / rank
        self.lora_a = self.add_weight((n, rank), "he_uniform", name="lora_a")
        self.lora_b = self.add_weight((rank, units), "zeros", name="lora_b")

    def call(self, inputs):
        y = ops.linear(inputs, self.kernel, self.bias)
        low = ops.matmul(ops.matmul(inputs, self.lora_a), self.lora_b)
        y = y + low * self.lora_scale
        return y if self._linear else self.activation(y)

    def merged(self):
        """The kernel with what was learned, float32."""
        learned = ops.matmul(ops.cast(self.lora_a, "float32"), ops.cast(self.lora_b, "float32"))
        return ops.cast(self.kernel, "float32") + learned * self.lora_scale


def adapted(model):
    """The layers of a model that have LoRA's matrices, by path."""
    return {p: layer for p, layer in model.named_layers().items() if isinstance(layer, LowRank)}


def enable(model, rank, targets=None, alpha=None):
    """Freeze a built model, and give layers two trainable matrices each.

    targets: a regular expression that is searched in the paths of layers, None: all Dense layers
    alpha: the product counts alpha / rank, None: 1   Raises ValueError when no layer is meant.
    """
    if adapted(model):
        raise ValueError(f"{model.name} has LoRA already; merge_lora() first.")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a positive integer, got {rank!r}.")
    layers = model.named_layers().items()
    able = {path: layer for path, layer in layers if type(layer).call is Dense.call}
    chosen = {p: layer for p, layer in able.items() if targets is None or re.search(targets, p)}
    if not chosen:
        raise ValueError(
            f"targets={targets!r} is found in no path of a Dense layer of {model.name}; there are "
            f"{', '.join(list(able)[:20]) or 'none'}."
        )
    variables = model.named_variables()
    model._trained_before_lora = [path for path, v in variables.items() if v.trainable]
    for variable in variables.values():
        variable.trainable = False
    for layer in chosen.values():
        name = f"LowRank{type(layer).__name__}"
        layer.__class__ = type(name, (LowRank, type(layer)), {"__module__": __name__})
        layer.adapt(rank, rank if alpha is None else alpha)
        layer._prepare()
    model.forget_functions()


def merge(model):
    """Put into the kernels what was learned; the model is as before `enable`, with new weights."""
    layers = adapted(model)
    if not layers:
        raise ValueError(f"{model.name} has no LoRA; call enable_lora(rank) first.")
    for layer in layers.values():
        layer.kernel.assign(layer.merged())
        learned = {id(layer.lora_a), id(layer.lora_b)}
        layer._added = [v for v in layer._added if id(v) not in learned]
        del layer.lora_a, layer.lora_b, layer.lora_scale
        layer.__class__ = type(layer).__bases__[1]
        layer._prepare()
    variables = model.named_variables()
    for path in model.__dict__.pop("_trained_before_lora"):
        variables[path].trainable = True
    model.forget_functions()
