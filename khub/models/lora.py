"""LoRA: frozen weights learn through the product of two thin matrices.

Hu et al. 2021, arXiv:2106.09685. The weights may be in few bits: Dettmers et al. 2023,
arXiv:2305.14314.
"""

from khub import ops
from khub.layers import Dense, EinsumDense, Embedding
from khub.models import quantization
from khub.models.quantization import become, chosen, config_of, mixins_of, own_call, weight_of
from khub.saving import registry


class LowRank:
    """A layer whose weight (..., units) has a (..., rank) @ b (rank, units) added to it."""

    def merged(self):
        """The weight with what was learned, float32."""
        weight, a, b = getattr(self, weight_of(self)), *self.matrices()
        weight, a, b = (ops.cast(v.value, "float32") for v in (weight, a, b))
        return weight + ops.matmul(a, b) * self._lora_scale

    def matrices(self):
        """The variables a and b."""
        return [getattr(self, f"lora_{weight_of(self)}_{which}") for which in "ab"]


class LowRankDense(LowRank):
    def call(self, inputs):
        y = ops.linear(inputs, self.kernel, self.bias)
        low = ops.matmul(ops.matmul(inputs, self.lora_kernel_a), self.lora_kernel_b)
        y = y + low * self._lora_scale
        return y if self._linear else self.activation(y)


class LowRankEinsum(LowRank):
    def call(self, inputs):
        kernel, rank = self._kernel, next(a for a in "zyxwvut" if a not in self.equation)
        low = f"{self._input},{kernel[:-1]}{rank},{rank}{kernel[-1]}->{self._output}"
        y = ops.einsum(low, inputs, self.lora_kernel_a, self.lora_kernel_b) * self._lora_scale
        y = y + ops.einsum(self.equation, inputs, self.kernel)
        return self.activation(y if self.bias is None else y + self.bias)


class LowRankTable(LowRank):
    def call(self, inputs):
        rows = ops.take(self.lora_embeddings_a, ops.cast(inputs, "int32"), axis=0)
        low = ops.matmul(rows, self.lora_embeddings_b) * self._lora_scale
        return super().call(inputs) + ops.cast(low, self.compute_dtype)


LOW_RANK = {Dense: LowRankDense, EinsumDense: LowRankEinsum, Embedding: LowRankTable}


def _kind(layer):
    return next((kind for cls, kind in LOW_RANK.items() if own_call(layer) is cls.call), None)


def enable_lora(self, rank, lora_alpha=None, a_initializer="he_uniform", b_initializer="zeros"):
    """Freeze the layer's weight and give it two trainable matrices; nothing has changed yet.

    lora_alpha: the product counts lora_alpha / rank, None: 1
    Raises ValueError when there is LoRA already or the layer's call is none that is known.
    """
    kind = _kind(self)
    if self.lora_enabled or kind is None:
        why = "has LoRA already; merge_lora() first" if kind else "has a call of its own"
        raise ValueError(f"{type(self).__name__} {self.name!r} {why}.")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a positive integer, got {rank!r}.")
    name = weight_of(self)
    weight = getattr(self, name)
    weight.trainable = False
    *inputs, units = weight.value.shape
    made = ("a", (*inputs, rank), a_initializer), ("b", (rank, units), b_initializer)
    for which, shape, initializer in made:
        attribute = f"lora_{name}_{which}"
        options = dict(dtype=getattr(weight, "float_dtype", weight.dtype), name=attribute)
        setattr(self, attribute, self.add_weight(shape, initializer, **options))
    self.lora_rank, self.lora_alpha = rank, rank if lora_alpha is None else lora_alpha
    self._lora_scale = self.lora_alpha / rank
    become(self, (kind, *mixins_of(self)))


for _class in LOW_RANK:
    _class.enable_lora, _class.lora_rank, _class.lora_alpha = enable_lora, None, None
    _class.lora_enabled = property(lambda self: isinstance(self, LowRank))


def adapted(model):
    """The layers of a model that have LoRA's matrices, by path."""
    return {p: layer for p, layer in model.named_layers().items() if isinstance(layer, LowRank)}


def enable(model, rank, targets=None, alpha=None):
    """Freeze a built model, and give layers two trainable matrices each.

    targets: a regular expression that is searched in the paths of layers, None: all kernels
    alpha: the product counts alpha / rank, None: 1   Raises ValueError when no layer is meant.
    """
    names = ("kernel",) if targets is None else ("kernel", "embeddings")
    layers = chosen(model, targets, None, names).items()
    begin(model, {path: (rank, alpha) for path, layer in layers if _kind(layer)})


def begin(model, ranks):
    """Freeze a built model, and give layers LoRA.  ranks: path -> (rank, alpha)"""
    if adapted(model):
        raise ValueError(f"{model.name} has LoRA already; merge_lora() first.")
    variables, layers = model.named_variables(), model.named_layers()
    before = [path for path, v in variables.items() if v.trainable]
    for path, (rank, alpha) in ranks.items():
        layers[path].enable_lora(rank, alpha)
    for variable in variables.values():
        variable.trainable = False
    model._trained_before_lora = before
    model.forget_functions()


def merge(model):
    """Put into the weights what was learned; the model is as before `enable`, with new weights.

    Returns the `Report` of those in few bits, which are rounded anew.
    """
    layers = adapted(model)
    if not layers:
        raise ValueError(f"{model.name} has no LoRA; call enable_lora(rank) first.")
    report = quantization.Report()
    for path, layer in layers.items():
        name = weight_of(layer)
        weight, merged = getattr(layer, name), layer.merged()
        if config_of(layer):
            row = quantization.renew(layer, ops.convert_to_numpy(merged))
            report.append(row | {"weight": f"{path}.{name}"})
        else:
            weight.assign(merged)
            weight.trainable = True
        learned = set(map(id, layer.matrices()))
        layer._added = [v for v in layer._added if id(v) not in learned]
        for attribute in (f"lora_{name}_a", f"lora_{name}_b", "lora_rank", "lora_alpha"):
            delattr(layer, attribute)
        become(layer, mixins_of(layer)[1:])
    variables = model.named_variables()
    for path in model.__dict__.pop("_trained_before_lora", ()):
        variables[path].trainable = True
    model.forget_functions()
    return report


# --- files: what no config of a layer says -------------------------------------------------------
def described(model):
    """{"bits": path -> a configuration, "lora": path -> [rank, alpha], "frozen": by `enable`}"""
    configs = {path: config_of(layer) for path, layer in model.named_layers().items()}
    bits = {path: config for path, config in configs.items() if config}
    ranks = {path: [x.lora_rank, x.lora_alpha] for path, x in adapted(model).items()}
    found = dict(bits=bits, lora=ranks, frozen=hasattr(model, "_trained_before_lora"))
    return {"adapted": found} if bits or ranks else {}


def restore(model, bits, lora, frozen):
    """Make of a model's layers what `described` said, for weights that come from a file."""
    layers = model.named_layers()
    for path, config in bits.items():
        if config_of(layers[path]) is None:
            config = registry.deserialize(config, kind="quantizers")
            quantization.quantize(layers[path], None, config, blank=True)
    if frozen:
        return begin(model, lora)
    for path, (rank, alpha) in lora.items():
        layers[path].enable_lora(rank, alpha)
