"""Function: the computation between symbolic tensors, as an operation."""

from khub import tree
from khub.backend import active
from khub.layers.input_spec import InputSpec
from khub.models.functional import Functional
from khub.operation import Operation


class Function(Operation):
    """What computes the symbolic tensors `outputs` from `inputs`, each one or a structure of them.

    Unlike a functional model it has no Variables of its own and leaves dtypes as they are.
    Raises ValueError for outputs that need other inputs.
    """

    def __init__(self, inputs, outputs, name=None):
        super().__init__(name=name)
        self._graph = Functional(inputs, outputs, autocast=False)
        self.inputs, self.outputs = self._graph.inputs, self._graph.outputs

    @property
    def operations(self):
        """The layers and operations, in the order they are computed."""
        return [*self._graph._input_layers, *(node.function for node in self._graph._nodes)]

    def call(self, inputs):
        """Return the outputs for these values.  Raises ValueError for other shapes."""
        for x, symbol in zip(self._graph._arrange(inputs), self.inputs, strict=True):
            if problem := InputSpec(shape=symbol.shape).problem(tuple(x.shape)):
                raise ValueError(
                    f"{self.name}: {symbol.name} must have {problem}, got the shape {x.shape}."
                )
        return self._graph(tree.map_structure(active.convert_to_tensor, inputs))
