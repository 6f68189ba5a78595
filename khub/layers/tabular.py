"""Numbers and categories of tables: normalized, put into bins, hashed, encoded."""

from typing import Annotated

import numpy as np

from khub import config, ops
from khub.backend.scope import local
from khub.fields import Choice, PositiveInt
from khub.layers.encoding import Salt, _Adaptive, _Encoder, _ListLayer, array, host_array
from khub.utils import hashing


class Normalization(_Adaptive, _ListLayer):
    """(x - mean) / sqrt(variance), statistics given or found by `adapt`; `invert` undoes it.

    x: any shape -> same.  axis: the axes whose every index has statistics of its own (None: one
    mean and variance in all).  Weights: mean, variance (sizes of the axes), count ()
    """

    axis: object = -1
    mean: object = None
    variance: object = None
    invert: bool = False

    def setup(self):
        axis = () if self.axis is None else self.axis
        self.axis = tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
        self.input_mean, self.input_variance = given = self.mean, self.variance
        if (self.mean is None) != (self.variance is None):
            raise ValueError(f"mean and variance must be given together, got {given}.")
        self.mean = self.variance = None
        self._seen = (0, 0.0, 0.0)  # how many rows, their mean, their variance

    def build(self, input_shape):
        rank = len(input_shape)
        if not all(-rank <= axis < rank for axis in self.axis):
            raise ValueError(f"{self.name}: axis must lie in [-{rank}, {rank}), got {self.axis}.")
        kept = sorted(axis % rank for axis in self.axis)
        sizes = tuple(input_shape[axis] for axis in kept)
        if None in sizes:
            raise ValueError(
                f"{self.name}: axes {kept} must have known sizes, got the shape "
                f"{tuple(input_shape)}; give axis=None for one mean of everything."
            )
        self._others = tuple(axis for axis in range(rank) if axis not in kept)
        self._shape = tuple(n if i in kept else 1 for i, n in enumerate(input_shape))
        if self.input_mean is None:
            self.adapt_mean = self.add_weight(sizes, "zeros", trainable=False, name="mean")
            self.adapt_variance = self.add_weight(sizes, "ones", trainable=False, name="variance")
            self.count = self.add_weight((), "zeros", "int32", trainable=False, name="count")
        self.finalize_state()

    def reset_state(self):
        """Forget the data seen so far."""
        if self.input_mean is not None:
            raise ValueError(f"{self.name} has a mean and variance; leave them out to adapt it.")
        self._seen = (0, 0.0, 0.0)

    def update_state(self, data):
        """Take one batch into the statistics.  Chan et al. 1979"""
        x = host_array(data)
        if not self.built:
            self.build(x.shape)
        sizes = tuple(1 if i in self._others else n for i, n in enumerate(x.shape))
        if sizes != self._shape:
            raise ValueError(
                f"{self.name} was built for an input of shape {self._shape}, got data of "
                f"shape {x.shape}; make a new layer or reshape the data."
            )
        count, (total, mean, variance) = x.size // max(1, int(np.prod(sizes))), self._seen
        share = count / max(1, total + count)
        change = x.mean(self._others, dtype="float64") - mean
        spread = x.var(self._others, dtype="float64") - variance
        variance = variance + share * (spread + (1 - share) * change**2)
        self._seen = (total + count, mean + share * change, variance)

    def finalize_state(self):
        """Bring the statistics into the form that calls use."""
        if not hasattr(self, "_shape"):
            return
        mean, variance = self.input_mean, self.input_variance
        if mean is None:
            if self._seen[0]:
                self.adapt_mean.assign(self._seen[1])
                self.adapt_variance.assign(self._seen[2])
            mean, variance = self.adapt_mean.numpy(), self.adapt_variance.numpy()
        self._seen = (0, 0.0, 0.0)
        self.mean, self.variance = self._spread("mean", mean), self._spread("variance", variance)

    def _spread(self, name, value):
        value, size = np.asarray(value, "float32"), int(np.prod(self._shape))
        if value.size not in (1, size):
            raise ValueError(
                f"{self.name}: {name} must be a number or {size} of them, for an input of shape "
                f"{self._shape}, got an array of shape {value.shape}."
            )
        return np.resize(value, self._shape)

    def call(self, inputs):
        x = ops.cast(inputs, self.compute_dtype)
        if not self.built:  # the first call is one of a data pipeline
            self.build(tuple(x.shape))
        mean, variance = self.mean, self.variance
        if self.input_mean is None and not local.host:  # Variables are on the device already
            mean, variance = self.adapt_mean, self.adapt_variance
        shape = self._shape[max(0, len(self._shape) - len(x.shape)) :]  # a row has no batch axis
        mean, variance = (
            ops.reshape(ops.cast(v, self.compute_dtype), shape) for v in (mean, variance)
        )
        deviation = ops.maximum(ops.sqrt(variance), config.epsilon())
        return x * deviation + mean if self.invert else (x - mean) / deviation

    def save_own_variables(self, store):
        """Write mean, variance and count as "0", "1", "2"."""
        for i, value in enumerate(self.get_weights()):
            store[str(i)] = value

    def load_own_variables(self, store):
        """Read what `save_own_variables` wrote."""
        self.set_weights([np.asarray(store[str(i)]) for i in range(len(self.weights))])

    def set_weights(self, weights):
        """Assign mean, variance and count."""
        super().set_weights(weights)
        self.finalize_state()

    def _constructor_values(self):
        given = {"mean": self.input_mean, "variance": self.input_variance}
        given = {k: v if v is None else host_array(v).tolist() for k, v in given.items()}
        return super()._constructor_values() | given

    def get_config(self):
        return super().get_config() | {"axis": self.axis}


def _boundaries(name, value):
    if value is None:
        return None
    found = host_array(value).astype("float64")
    if found.ndim != 1 or (np.diff(found) < 0).any():
        raise ValueError(f"{name} must be one list of increasing numbers, got {value!r}.")
    return found.tolist()


class Discretization(_Adaptive, _Encoder):
    """The number of the bin of each element: 0 below the first boundary, and so on.

    (...) float -> (...) int32, or vectors.  bin_boundaries, or num_bins for `adapt` to find
    boundaries that hold equally many, up to a share of `epsilon`
    """

    _unsaved = ("trainable",)

    bin_boundaries: Annotated[list, _boundaries] = None
    num_bins: int = None
    epsilon: float = 0.01
    output_mode: Choice("int", "one_hot", "multi_hot", "count") = "int"
    sparse: bool = False

    def setup(self):
        super().setup()
        given = self.bin_boundaries, self.num_bins
        if given.count(None) != 1:
            raise ValueError(f"give either bin_boundaries or num_bins, got {given}.")
        if self.num_bins is not None and self.num_bins < 1:
            raise ValueError(f"num_bins must be a positive integer, got {self.num_bins!r}.")
        self.summary = np.zeros((2, 0), "float32")

    def reset_state(self):
        """Forget the data seen so far."""
        if self.num_bins is None:
            raise ValueError(f"{self.name} has bin_boundaries; give num_bins instead to adapt it.")
        self.summary = np.zeros((2, 0), "float32")

    def update_state(self, data):
        """Take one batch into the summary: rows of values and of how many each stands for."""
        values = np.sort(host_array(data).astype("float32"), axis=None)
        every = values.size * self.epsilon
        values = values[max(int(every) - 1, 0) :: int(max(every, 1))]
        found = np.stack([values, np.full_like(values, max(every, 1))])
        found = np.concatenate([self.summary, found], 1)
        self.summary = _thinned(found[:, np.argsort(found[0], kind="stable")], self.epsilon)

    def finalize_state(self):
        """Set the boundaries from the summary."""
        if self.num_bins is not None and self.summary.shape[1]:
            self.bin_boundaries = _thinned(self.summary, 1 / self.num_bins)[0, :-1].tolist()

    def call(self, inputs):
        if self.bin_boundaries is None:
            raise ValueError(f"{self.name}: call adapt(data) first, or give bin_boundaries.")
        x = ops.cast(inputs, "float32")
        bounds = ops.convert_to_tensor(self.bin_boundaries, "float32")
        return self._encoded(ops.digitize(x, bounds))

    def _count(self):
        return self.num_bins if self.bin_boundaries is None else len(self.bin_boundaries) + 1

    def _result_dtype(self):
        return "int32" if self.output_mode == "int" else self.compute_dtype

    def get_config(self):
        return super().get_config() | {"dtype": self.dtype}

    @classmethod
    def from_config(cls, config):
        """Build the layer from `get_config()`'s result, which may hold what `adapt` found."""
        if config.get("num_bins") is None:
            return cls(**config)
        layer = cls(**config | {"bin_boundaries": None})
        layer.bin_boundaries = _boundaries("bin_boundaries", config.get("bin_boundaries"))
        return layer


def _thinned(summary, share):
    """A summary with one value for each `share` of the weight, where it has more."""
    if summary.shape[1] * share < 1:
        return summary
    sums = np.cumsum(summary[1])
    wanted = share + np.arange(0.0, 1.0, share)
    values = np.interp(wanted, sums / sums[-1], summary[0])
    weights = np.diff(np.interp(wanted, sums / sums[-1], sums), prepend=0)
    return np.stack([values, weights]).astype("float32")


class CategoryEncoding(_Encoder):
    """Integers in [0, num_tokens) as vectors of `num_tokens` numbers; others add nothing.

    one_hot: (...) -> (..., num_tokens); multi_hot and count: (..., n) -> (..., num_tokens)
    """

    _unsaved = ("sparse",)

    num_tokens: PositiveInt = None
    output_mode: Choice("one_hot", "multi_hot", "count") = "multi_hot"
    sparse: bool = False

    def call(self, inputs, count_weights=None):
        if count_weights is not None:
            if self.output_mode != "count":
                raise ValueError(f"{self.name}: count_weights needs output_mode='count'.")
            count_weights = ops.convert_to_tensor(count_weights)
        return self._encoded(ops.convert_to_tensor(inputs), count_weights)

    def _count(self):
        return self.num_tokens


class _Hasher(_Encoder):
    """A layer that hashes strings and integers, on the host."""

    _host_only = True

    def setup(self):
        super().setup()
        dtype = self.compute_dtype
        if self.output_mode == "int" and not dtype.startswith("int"):
            if dtype != config.floatx():
                raise ValueError(f"dtype must be int32 or int64 for integers, got {dtype!r}.")
            self.dtype_policy = "int64"

    def _count(self):
        return self.num_bins


class Hashing(_Hasher):
    """Strings or integers as one of `num_bins` numbers, by FarmHash64 (SipHash with a salt).

    (...) -> (...) int64, or vectors.  mask_value: what gets bin 0, which nothing else gets then
    """

    num_bins: PositiveInt
    mask_value: object = None
    salt: Salt = None
    output_mode: Choice("int", "one_hot", "multi_hot", "count") = "int"
    sparse: bool = False

    def call(self, inputs):
        x = host_array(inputs)
        if x.dtype.kind not in "OUS":
            x = x.astype("int64")
        if self.mask_value is None:
            return self._encoded(hashing.buckets(x, self.num_bins, self.salt))
        masks = (self.mask_value, str(self.mask_value).encode())
        masked = np.reshape([value in masks for value in x.ravel().tolist()], x.shape)
        bins = hashing.buckets(x, max(self.num_bins - 1, 1), self.salt) + 1
        return self._encoded(np.where(masked, 0, bins))


class HashedCrossing(_Hasher):
    """Combinations of two or more features as one of `num_bins` numbers.

    a list of (batch,) or (batch, 1), strings or integers -> same shape int64, or one_hot vectors
    """

    _unsaved = ("trainable",)

    num_bins: PositiveInt
    output_mode: Choice("int", "one_hot") = "int"
    sparse: bool = False

    def __call__(self, inputs, **kwargs):
        if not isinstance(inputs, (list, tuple)) or len(inputs) < 2:
            raise ValueError(f"{self.name} takes a list of two or more features, got {inputs!r}.")
        return super().__call__(inputs, **kwargs)

    def _array(self, inputs):
        return tuple(map(array, inputs))

    def call(self, inputs):
        columns = [host_array(x) for x in inputs]
        shapes = [x.shape for x in columns]
        if len(set(shapes)) > 1 or len(shapes[0]) > 2 or shapes[0][1:] not in ((), (1,)):
            raise ValueError(
                f"{self.name} takes features of one shape, () or (batch,) or (batch, 1): {shapes}."
            )
        if any(x.dtype.kind not in "OUSiu" for x in columns):
            raise ValueError(f"{self.name} takes strings and integers; put floats into bins first.")
        return self._encoded(hashing.crossed_buckets(columns, self.num_bins))

    def compute_output_spec(self, inputs):
        return super().compute_output_spec(inputs[0])

    def get_config(self):
        return super().get_config() | {"dtype": self.dtype}
