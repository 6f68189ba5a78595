"""Rematerialization: layers whose gradient computes again what would fill the memory."""

import math

from khub import tree
from khub.backend.scope import Setting, local
from khub.choices import choose
from khub.ops.core import checkpoint
from khub.ops.symbolic import KerasTensor


class RematScope(Setting):
    """Layers made inside a `with` block keep little for their gradient.  arXiv:1604.06174

    mode: "full": every layer; "activations": their activation functions alone; "larger_than":
    layers whose output has more than `output_size_threshold` elements; "list_of_layers": those
    named in `layer_names`; None: no layer
    """

    MODES = ("full", "activations", "larger_than", "list_of_layers")

    def __init__(self, mode="full", output_size_threshold=1024, layer_names=None):
        super().__init__("remat", self if mode else None)
        self.mode = mode and choose("mode", mode, self.MODES)
        self.output_size_threshold = output_size_threshold
        self.layer_names = layer_names or []

    def call(self, layer, *args, **kwargs):
        """Return what `layer.call` does."""
        if local.scope is not None and local.scope.is_abstract():
            return layer.call(*args, **kwargs)
        if self.mode == "activations" and vars(layer).get("activation") is not None:
            activation, layer.activation = layer.activation, checkpoint(layer.activation)
            try:
                return layer.call(*args, **kwargs)
            finally:
                layer.activation = activation
        again = checkpoint(layer.call) if self._wants(layer, args, kwargs) else layer.call
        return again(*args, **kwargs)

    def _wants(self, layer, args, kwargs):
        if self.mode == "larger_than":
            given = tree.map_structure(_symbol, (args, kwargs))
            outputs = tree.flatten(layer.compute_output_spec(*given[0], **given[1]))
            return any(math.prod(y.shape) > self.output_size_threshold for y in outputs)
        named = self.mode == "list_of_layers" and layer.name in self.layer_names
        return named or self.mode == "full"


def _symbol(x):
    return KerasTensor(x.shape, x.dtype) if hasattr(x, "shape") else x
