"""TensorFlow's formats: SavedModel, of functions of JAX as well, and LiteRT."""

import tensorflow as tf

from khub import backend, tree
from khub.export.signature import names_of


def _specs(signature):
    return tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype, x.name), signature)


class Archive:
    """What an ExportArchive gathers, as an object that TensorFlow saves."""

    def __init__(self):
        self.root = tf.__internal__.tracking.AutoTrackable()
        self.root.resources, self.signatures, self.storages = [], {}, {}

    def saved(self, variables):
        """Return Variables as tf.Variables: their own, or copies of those of JAX."""
        for v in variables:
            if v not in self.storages:
                own = backend.name == "tensorflow"
                self.storages[v] = v.materialize() if own else tf.Variable(v.storage_value(), name=v.name)
        return [self.storages[v] for v in variables]

    def add(self, name, function, variables, signature, **options):
        """Add a function of arguments like `signature` and return it as a tf.function."""
        if backend.name == "jax":
            from khub.export.jax import as_tensorflow

            run = as_tensorflow(function, variables, signature, **options)
            storages = self.saved(variables)

            def function(*inputs):
                return run(storages, list(inputs))

        if signature is not None:
            function = tf.function(function, input_signature=_specs(signature), autograph=False)
        setattr(self.root, name, function)
        self.signatures[name] = function.get_concrete_function()
        self.signatures.setdefault("serving_default", self.signatures[name])
        return function

    def write(self, path, collections, options):
        """Save it all as a folder."""
        for name, variables in collections.items():
            setattr(self.root, name, self.saved(variables))
        tf.saved_model.save(self.root, str(path), self.signatures, options)


def to_litert(model, signature, path, **options):
    """A `.tflite` file; options: attributes of `tf.lite.TFLiteConverter`, as `optimizations`."""
    leaves = tree.flatten(_specs(signature))

    @tf.function(autograph=False)
    def run(**given):
        inputs = tree.pack_sequence_as(signature, [given[spec.name] for spec in leaves])
        return names_of(model(inputs, training=False))

    concrete = run.get_concrete_function(**{spec.name: spec for spec in leaves})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    for name, value in options.items():
        setattr(converter, name, value)
    path.write_bytes(converter.convert())
