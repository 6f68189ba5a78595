"""Model: a layer that can be compiled, fitted, evaluated and summarized."""

from khub import tree
from khub.layers.layer import Layer
from khub.ops.symbolic import KerasTensor
from khub.saving import registry
from khub.saving.layer_files import ModelFiles
from khub.training.trainer import Trainer


def _is_functional(args, kwargs):
    given = [*args[:2], kwargs.get("inputs"), kwargs.get("outputs")]
    return any(isinstance(x, KerasTensor) for x in tree.flatten(given)) or "outputs" in kwargs


class Model(ModelFiles, Trainer, Layer):
    """Groups layers: `Model(inputs, outputs)` of symbolic tensors, or a subclass with a `call`."""

    _kind = "models"
    _nests_configs = True  # `from_config` builds the layers inside by itself

    def __new__(cls, *args, **kwargs):
        if cls is Model and _is_functional(args, kwargs):
            from khub.models.functional import Functional

            cls = Functional
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args, **kwargs):
        from khub.models.functional import Functional

        if _is_functional(args, kwargs):  # super().__init__(inputs, outputs) in a subclass
            own = type(self)
            kept = {name: vars(own).get(name) for name in ("__module__", "_registered_name")}
            self.__class__ = type(own.__name__, (own, Functional), kept)
            Functional.__init__(self, *args, **kwargs)
            return
        if args:
            raise TypeError(f"{type(self).__name__} takes keyword arguments, got {args!r}.")
        super().__init__(**kwargs)

    @property
    def layers(self):
        """The direct sub-layers."""
        return [layer for _, layer in self._children()]

    def get_layer(self, name=None, index=None):
        """Return a direct sub-layer by name or index.  Raises ValueError when there is none."""
        if index is not None:
            return self.layers[index]
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(
            f"{self.name} has no layer {name!r}; it has {[x.name for x in self.layers]}."
        )

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a model from `get_config()`'s result."""
        if cls is Model and "input_layers" in config:
            from khub.models.functional import Functional

            return Functional.from_config(config, custom_objects)
        return cls(**config)

    def to_json(self, **kwargs):
        """Return the config as JSON text, for `model_from_json`; kwargs: for `json.dumps`"""
        import json

        return json.dumps(registry.serialize(self), **kwargs)

    def enable_lora(self, rank, targets=None, alpha=None):
        """Train two thin matrices beside each kernel instead of the weights; then `compile`.

        targets: a regular expression of layers' paths, tables (Embedding) too; None: all kernels
        alpha: None: rank   Raises ValueError when no layer is meant.  arXiv:2106.09685
        """
        from khub.models import lora

        lora.enable(self, rank, targets, alpha)

    def merge_lora(self):
        """Add what LoRA learned to the kernels; all is trainable again that was.

        Returns bytes and errors of those in few bits, which are rounded anew; it prints as a table.
        """
        from khub.models import lora

        return lora.merge(self)

    def quantize(self, mode=None, config=None, filters=None, targets=None, **kwargs):
        """Keep kernels and tables of Dense, EinsumDense and Embedding layers in few bits.

        mode: "int8", "int4", "float8", or of a config of `khub.quantizers`   filters: regular
        expressions of layers' names, or a function of a layer   targets: one of layers' paths
        Returns bytes and errors, which print as a table. Raises ValueError when no layer is meant.
        """
        from khub.models import quantization

        if unknown := kwargs.keys() - {"type_check"}:
            raise TypeError(f"quantize does not know {', '.join(unknown)}.")
        return quantization.quantize_model(self, mode, config, filters, targets)

    def export(
        self,
        filepath,
        format="tf_saved_model",  # noqa: A002  (Keras' name)
        verbose=None,
        input_signature=None,
        **kwargs,
    ):
        """Write the call (`training=False`) for other programs; what was at `filepath` is replaced.

        format: "tf_saved_model", "onnx", "torch" (.pt2), "stablehlo" or "litert", made on the
        backend that can, in a process of its own if need be   input_signature: an InputSpec, or
        a structure of them like the input   kwargs: options of the format (docs/export.md)

        Raises ImportError where the framework that makes the format is not installed.
        """
        from khub.export.formats import export_model

        export_model(self, filepath, format, verbose, input_signature, kwargs)

    def summary(
        self,
        line_length=None,
        positions=None,
        print_fn=None,
        expand_nested=False,
        show_trainable=False,
        layer_range=None,
    ):
        """Print a table of the layers with their output shapes and parameter counts."""
        from khub.models.summary import summary_text

        text = summary_text(self, line_length, expand_nested, show_trainable, layer_range)
        (print_fn or print)(text)


def model_from_json(json_string, custom_objects=None):
    """Build the model that `to_json` described."""
    import json

    return registry.deserialize(json.loads(json_string), custom_objects, "models")
