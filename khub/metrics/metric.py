"""Metric: Variables that add up over batches. Sum, Mean, and means of a function's values."""

from typing import ClassVar

import numpy as np

from khub import losses, ops
from khub.backend import active
from khub.backend.scope import Scope
from khub.backend.variable import Variable, name_scope, unique_name
from khub.fields import Configurable
from khub.layers.masks import MASKS, get_mask
from khub.losses import Dtype, OfFunction, divide_no_nan, masked_weight, match_ranks
from khub.saving import registry

_TENSORS = active.TENSORS
_NUMBERS = (int, float)


class Metric(Configurable):
    """Base of metrics; a subclass makes Variables (`add_variable`), updates them, gives a result.

    dtype: of the computation and of the Variables
    """

    _kind: ClassVar = "metrics"
    _direction: ClassVar = None  # "up" or "down": which way is better
    dtype: Dtype = None
    name: str | None = None

    def setup(self):
        """Find a name."""
        self._variables = []
        if self.name is None:
            self.name = unique_name(registry.snake_case(type(self).__name__))

    def add_variable(self, shape, initializer, dtype=None, aggregation="sum", name=None):
        """Make a Variable that belongs to this metric."""
        with name_scope(self.name.replace("/", ">")):
            variable = Variable(
                "zeros" if initializer is None else initializer,
                tuple(shape),
                dtype,
                trainable=False,
                autocast=False,
                aggregation=aggregation,
                synchronization="on_read",
                name=name,
            )
        self._variables.append(variable)
        return variable

    def add_weight(self, shape=(), initializer=None, dtype=None, name=None):
        """Make a Variable that belongs to this metric."""
        return self.add_variable(shape, initializer, dtype, name=name)

    @property
    def variables(self):
        """The Variables of this metric, then those of metrics it holds."""
        variables = list(self._variables)
        for value in vars(self).values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Metric):
                    variables += item.variables
        return variables

    def update_state(self, *args, **kwargs):
        """Add a batch; override."""
        raise NotImplementedError(f"{type(self).__name__} must define update_state().")

    def result(self):
        """Return the value so far; override."""
        raise NotImplementedError(f"{type(self).__name__} must define result().")

    def reset_state(self):
        """Forget all batches."""
        for variable in self.variables:
            variable.assign(np.zeros(variable.shape, "float32"))

    def __call__(self, *args, **kwargs):
        self.update_state(*args, **kwargs)
        return self.result()

    def _within(self, metric_variables, function, *args, **kwargs):
        variables = self.variables
        if len(metric_variables) != len(variables):
            raise ValueError(
                f"{self.name} has {len(variables)} variables, got {len(metric_variables)} values."
            )
        with Scope(zip(variables, metric_variables, strict=True)) as scope:
            result = function(*args, **kwargs)
            return result, [scope.get(variable) for variable in variables]

    def stateless_update_state(self, metric_variables, *args, **kwargs):
        """Return the values that `update_state` would give the `variables`, starting from these."""
        return self._within(metric_variables, self.update_state, *args, **kwargs)[1]

    def stateless_result(self, metric_variables):
        """Return the result for these values of the `variables`."""
        return self._within(metric_variables, self.result)[0]

    def stateless_reset_state(self):
        """Return the values that `reset_state` would give the `variables`."""
        with Scope() as scope:
            self.reset_state()
            return [scope.get(variable) for variable in self.variables]

    def __repr__(self):
        return f"<{type(self).__name__} name={self.name}>"


class _Named(Metric):
    """What takes its name before its dtype."""

    name: str | None = None
    dtype: Dtype = None


class Sum(_Named):
    """The sum of all values.  values: any shape, sample_weight: of their leading axes"""

    name = "sum"

    def setup(self):
        """Make the total."""
        super().setup()
        self.total = self.add_variable((), "zeros", self.dtype, name="total")

    def update_state(self, values, sample_weight=None):
        """Add values."""
        values = ops.convert_to_tensor(values, self.dtype)
        if sample_weight is not None:
            values = losses.weighted(values, ops.convert_to_tensor(sample_weight, self.dtype))[0]
        self.total.assign_add(ops.sum(values))

    def result(self):
        """Return the sum."""
        return self.total.value


class Mean(_Named):
    """The mean over samples of the mean of each one's values.

    values: (batch, ...) or a scalar (one sample), sample_weight: of their leading axes
    """

    name = "mean"

    def setup(self):
        """Make the total and the count."""
        super().setup()
        self.total = self.add_variable((), "zeros", self.dtype, name="total")
        self.count = self.add_variable((), "zeros", self.dtype, name="count")

    def update_state(self, values, sample_weight=None):
        """Add values."""
        if type(values) in _TENSORS:
            values = active.cast(values, self.dtype)
        else:
            values = ops.convert_to_tensor(values, self.dtype)
        count = 1
        if sample_weight is None:
            rank = len(values.shape)
            if rank:
                count = self._number(active.shape(values)[0])
                values = ops.sum(values) if rank == 1 else ops.mean(values) * count
        elif type(sample_weight) in _NUMBERS:
            count = sample_weight
            values = (ops.mean(values) if len(values.shape) else values) * count
        else:
            values, count = self._weighted(values, sample_weight)
        total, number = self.total, self.count
        total.assign(total.value + values)
        number.assign(number.value + count)

    def _number(self, size):
        return size if type(size) is int else active.cast(size, self.dtype)

    def _weighted(self, values, weight):
        values, weight = match_ranks(values, ops.convert_to_tensor(weight, self.dtype))
        rank = len(weight.shape)
        if len(values.shape) > rank:
            values = ops.mean(values, axis=tuple(range(rank, len(values.shape))))
        values, weight = values * weight, ops.broadcast_to(weight, ops.shape(values))
        if len(values.shape) < 2:
            return ops.sum(values), ops.sum(weight)
        batch = self._number(active.shape(values)[0])
        return ops.mean(values) * batch, ops.mean(weight) * batch

    def result(self):
        """Return the mean, 0 before the first update."""
        return divide_no_nan(self.total.value, self.count.value)


class _FunctionMean(OfFunction, Mean):
    """The mean of `function(y_true, y_pred)`; the fields a class adds are its options."""

    _says: ClassVar = "Mean over samples"
    _leading: ClassVar = ("name", "dtype")  # Keras' order: the options come last
    name: str | None = None
    dtype: Dtype = None

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        if MASKS and (mask := get_mask(y_pred)) is not None:
            sample_weight = masked_weight(sample_weight, mask, self.dtype)
        values = self._call(y_true, y_pred, **self._options)
        Mean.update_state(self, values, sample_weight)


class MeanMetricWrapper(_FunctionMean):
    """The mean of what `fn(y_true, y_pred, **kwargs)` gives for each sample."""

    def __init__(self, fn, name=None, dtype=None, **kwargs):
        super().__init__(name=name or unique_name("mean_metric_wrapper"), dtype=dtype)
        self._call, self._options = fn, kwargs
