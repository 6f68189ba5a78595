"""Dense, Embedding and the small layers every model uses."""

from khub import fields, ops
from khub.fields import PositiveInt, Weights
from khub.layers.layer import InputSpec, Layer
from khub.ops.symbolic import KerasTensor
from khub.saving import registry


class Dense(Layer):
    """y = activation(x @ kernel + bias)

    x: (..., n)  ->  y: (..., units)
    Weights: kernel (n, units), bias (units,)
    """

    _keras_keys = {"quantization_config": None}

    units: PositiveInt
    activation: fields.Activation = None
    use_bias: bool = True
    options: Weights(activity=True, kernel="glorot_uniform", bias="zeros")
    supports_masking = True

    def setup(self):
        self.input_spec = InputSpec(min_ndim=2)
        self._linear = getattr(self.activation, "__name__", "") == "linear"

    def build(self, input_shape):
        width = input_shape[-1]
        if width is None:
            raise ValueError(f"Dense {self.name!r} needs a known last axis, got {input_shape}.")
        self.kernel = self.add_weight((width, self.units), name="kernel")
        self.bias = self.add_weight((self.units,), name="bias") if self.use_bias else None
        self.input_spec = InputSpec(min_ndim=2, axes={-1: width})

    def call(self, inputs):
        y = ops.linear(inputs, self.kernel, self.bias)
        return y if self._linear else self.activation(y)


class EinsumDense(Layer):
    """y = activation(einsum(equation, x, kernel) + bias)

    equation: "abc,cde->abde"; `...` is allowed.  output_shape: the output's axes after the batch,
    None where the input's stays.  bias_axes: the output's letters that the bias spans.
    Weights: kernel (the letters of the second operand), bias
    """

    _keras_keys = {"quantization_config": None, "activity_regularizer": None}

    equation: str
    output_shape: fields.Integers
    activation: fields.Activation = None
    bias_axes: str = None
    options: Weights(kernel="glorot_uniform", bias="zeros")
    supports_masking = True

    def setup(self):
        left, self._output = self.equation.replace(" ", "").split("->")
        self._input, self._kernel = left.split(",")

    def build(self, input_shape):
        letters, output = self._input, self._output
        batch = 0 if letters.startswith("...") else 1
        if not batch:  # the axes under the dots are at the front of both
            dots = len(input_shape) - (len(letters) - 3)
            sizes = dict(zip(letters[3:], input_shape[dots:], strict=True))
            sizes |= dict(zip(output[3:], self.output_shape[3 - len(output) :], strict=True))
        else:
            sizes = dict(zip(letters, input_shape, strict=True))
            for letter, size in zip(output[1:], self.output_shape, strict=True):
                if size is not None:
                    if sizes.get(letter, size) not in (None, size):
                        raise ValueError(
                            f"EinsumDense {self.equation!r}: axis {letter!r} is {sizes[letter]} "
                            f"in the input {tuple(input_shape)} and {size} in output_shape."
                        )
                    sizes[letter] = size
        shape = [sizes[letter] for letter in self._kernel]
        self.kernel = self.add_weight(shape, name="kernel")
        self.bias = None
        if self.bias_axes:
            first = min(output.index(a) for a in self.bias_axes)
            span = [sizes[a] if a in self.bias_axes else 1 for a in output[first:] if a != "."]
            self.bias = self.add_weight(span, name="bias")

    def call(self, inputs):
        y = ops.einsum(self.equation, inputs, self.kernel)
        return self.activation(y if self.bias is None else y + self.bias)


class Embedding(Layer):
    """The row of a table for each integer.

    inputs: int (...)  ->  (..., output_dim); with `mask_zero`, 0 is padding and makes a mask
    Weights: embeddings (input_dim, output_dim)
    """

    _keras_keys = {"quantization_config": None, "activity_regularizer": None}

    input_dim: PositiveInt
    output_dim: PositiveInt
    options: Weights(embeddings="uniform")
    mask_zero: bool = False

    def setup(self):
        self.supports_masking = self.mask_zero
        self.autocast = False

    def build(self, input_shape=None):
        self.embeddings = self.add_weight((self.input_dim, self.output_dim), name="embeddings")

    def call(self, inputs):
        table = self.embeddings.value
        return ops.cast(ops.take(table, ops.cast(inputs, "int32"), axis=0), self.compute_dtype)

    def compute_mask(self, inputs, mask=None):
        return ops.not_equal(inputs, 0) if self.mask_zero else None


class ReversibleEmbedding(Embedding):
    """An embedding that also turns vectors into scores for every integer (`reverse=True`).

    tie_weights: whether both use one table (arXiv:1608.05859); logit_soft_cap: scores become
    cap * tanh(scores / cap); reverse_dtype: the dtype of the product.
    (..., output_dim)  ->  (..., input_dim)
    Weights: embeddings (input_dim, output_dim), reverse_embeddings (output_dim, input_dim)
    """

    input_dim: PositiveInt
    output_dim: PositiveInt
    tie_weights: bool = True
    options: Weights(embeddings="uniform")
    mask_zero: bool = False
    reverse_dtype: str = None
    logit_soft_cap: float = None

    def build(self, input_shape=None):
        super().build(input_shape)
        if not self.tie_weights:
            self.reverse_embeddings = self.add_weight(
                (self.output_dim, self.input_dim),
                self.embeddings_initializer,
                name="reverse_embeddings",
            )

    def call(self, inputs, reverse=False):
        if not reverse:
            return super().call(inputs)
        table = ops.transpose(self.embeddings) if self.tie_weights else self.reverse_embeddings
        dtype = self.reverse_dtype or self.compute_dtype
        scores = ops.matmul(ops.cast(inputs, dtype), ops.cast(table, dtype))
        cap = self.logit_soft_cap
        return scores if cap is None else ops.tanh(scores / cap) * cap

    def compute_mask(self, inputs, mask=None):
        whole = ops.dtype(inputs).startswith(("int", "uint"))
        return super().compute_mask(inputs, mask) if whole else mask


class Masking(Layer):
    """Hides timesteps whose features all equal `mask_value`.  (batch, time, n) -> same"""

    mask_value: float = 0.0
    supports_masking = True

    def compute_mask(self, inputs, mask=None):
        return ops.any(ops.not_equal(inputs, self.mask_value), axis=-1)

    def call(self, inputs):
        kept = ops.any(ops.not_equal(inputs, self.mask_value), axis=-1, keepdims=True)
        return inputs * ops.cast(kept, inputs.dtype)


class Identity(Layer):
    """Returns its input."""

    supports_masking = True

    def call(self, inputs):
        return inputs


class Activation(Layer):
    """Applies an activation function, given by name or as a function."""

    activation: fields.Activation
    supports_masking = True

    def call(self, inputs):
        return self.activation(inputs)


class Lambda(Layer):
    """Applies a function; it is saved only if the function is registered.

    function: of the input (and `mask` or `training` if it names them)
    arguments: keyword arguments for it
    """

    _shape_by_config = False

    function: fields.Activation
    output_shape: tuple = None
    mask: object = None
    arguments: dict = None

    def setup(self):
        self.arguments = dict(self.arguments or {})
        code = getattr(self.function, "__code__", None)
        names = (
            () if code is None else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        )
        self._passed_on = [name for name in ("mask", "training") if name in names]
        self.supports_masking = self.mask is not None

    def call(self, inputs, mask=None, training=None):
        context = {"mask": mask, "training": training}
        context = {name: context[name] for name in self._passed_on}
        return self.function(inputs, **self.arguments, **context)

    def compute_mask(self, inputs, mask=None):
        return self.mask(inputs, mask) if callable(self.mask) else self.mask

    def get_config(self):
        config = super().get_config() | {"function": registry.function_config(self.function)}
        return {k: v for k, v in config.items() if k not in ("output_shape", "mask") or v}


class InputLayer(Layer):
    """Holds the symbolic tensor that a model starts from."""

    def __init__(
        self,
        shape=None,
        batch_size=None,
        dtype=None,
        sparse=None,
        ragged=None,
        batch_shape=None,
        input_tensor=None,
        optional=False,
        name=None,
        **kwargs,
    ):
        super().__init__(name=name)
        if input_tensor is not None:
            batch_shape, dtype = input_tensor.shape, dtype or input_tensor.dtype
        if batch_shape is None:
            if shape is None:
                raise ValueError("Input needs shape (without the batch axis) or batch_shape.")
            batch_shape = (batch_size, *((shape,) if isinstance(shape, int) else shape))
        self.batch_shape, self.optional = tuple(batch_shape), optional
        self._input_dtype, self.sparse = dtype or "float32", bool(sparse)
        self.built = True
        if input_tensor is None:
            spec = self.batch_shape, self._input_dtype, self.sparse
            input_tensor = KerasTensor(*spec, name=self.name)
            input_tensor.input_layer = self
        self._first_call = (), input_tensor

    def get_config(self):
        return {
            "batch_shape": self.batch_shape,
            "dtype": self._input_dtype,
            "sparse": self.sparse,
            "ragged": False,
            "name": self.name,
            "optional": self.optional,
        }

    def call(self):
        return self._first_call[1]


def Input(
    shape=None,
    batch_size=None,
    dtype=None,
    sparse=None,
    ragged=None,
    batch_shape=None,
    name=None,
    tensor=None,
    optional=False,
):
    """Return a symbolic tensor to build a model on.

    shape: without the batch axis, None where unknown; or batch_shape with it
    dtype: "float32" by default
    """
    layer = InputLayer(
        shape, batch_size, dtype, sparse, ragged, batch_shape, tensor, optional=optional, name=name
    )
    layer.output.input_layer = layer
    return layer.output
