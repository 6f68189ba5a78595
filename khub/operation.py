"""Operation: a computation with a configuration, which functional models can hold and save."""

from functools import partial

from khub import tree
from khub.backend.variable import unique_name
from khub.fields import Configurable
from khub.ops.symbolic import KerasTensor, any_symbolic, map_shapes, output_spec, record
from khub.saving import registry


class Operation(Configurable):
    """Base of layers, and of computations without Variables: a subclass has `call`, on tensors.

    On symbolic tensors the result is what `compute_output_spec` says, which is found by tracing the
    call where a subclass does not know better.
    """

    compute_dtype = None  # dtype of the symbols that stand for shapes; None is `floatx()`

    def __init__(self, name=None):
        if name is not None and (not isinstance(name, str) or "/" in name):
            kind = type(self).__name__
            raise ValueError(f"The name of {kind} must be a string without '/', got {name!r}.")
        super().__init__()
        self.name = name or unique_name(registry.snake_case(type(self).__name__))
        self._first_call = None

    def call(self, *args, **kwargs):
        """Compute the output; every operation defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define call().")

    def __call__(self, *args, **kwargs):
        if any_symbolic((args, kwargs)):
            return self.symbolic_call(*args, **kwargs)
        return self.call(*args, **kwargs)

    def symbolic_call(self, *args, **kwargs):
        """Return symbols for the output that remember this call."""
        outputs = record(self, args, kwargs, self.compute_output_spec(*args, **kwargs))
        if self._first_call is None:
            self._first_call = (args[0] if len(args) == 1 else args or kwargs), outputs
        return outputs

    def compute_output_spec(self, *args, **kwargs):
        """Return KerasTensors like what the call would return, computing nothing."""
        return output_spec(self.call, args, kwargs)

    def compute_output_shape(self, *args, **kwargs):
        """Return the output's shape for inputs of these shapes."""
        symbol = partial(KerasTensor, dtype=self.compute_dtype)
        args = tuple(map_shapes(symbol, shape) for shape in args)
        kwargs = {k.removesuffix("_shape"): map_shapes(symbol, v) for k, v in kwargs.items()}
        return tree.map_structure(lambda y: y.shape, self.compute_output_spec(*args, **kwargs))

    @property
    def input(self):
        """The symbolic input of the first call."""
        return self._of_first_call(0)

    @property
    def output(self):
        """The symbolic output of the first call."""
        return self._of_first_call(1)

    def _of_first_call(self, which):
        if self._first_call is None:
            raise AttributeError(f"{self.name} has no symbolic input yet: call it on an Input.")
        return self._first_call[which]

    def get_config(self):
        """Return the constructor's arguments as plain data."""
        return super().get_config() | {"name": self.name}
