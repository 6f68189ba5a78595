"""TensorFlow's formats: SavedModel, of functions of JAX as well, and LiteRT."""

from functools import partial
from unittest.mock import patch

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
                own, value = v.materialize(), v.storage_value()
                own = own if backend.name == "tensorflow" else tf.Variable(value, name=v.name)
                self.storages[v] = own
        return [self.storages[v] for v in variables]

    def add(self, name, function, variables, signature, **options):
        """Add a function of arguments like `signature` and return it as a tf.function."""
        if backend.name == "jax":
            from khub.export.jax import as_tensorflow

            run = as_tensorflow(function, variables, signature, **options)
            storages = self.saved(variables)

            def function(*inputs):
                return run(storages, list(inputs))

        signed = function
        if signature is not None:
            graph = partial(tf.function, input_signature=_specs(signature), autograph=False)
            function = graph(function)
            signed = graph(lambda *inputs: names_of(function(*inputs)))  # signatures have no nests
        setattr(self.root, name, function)
        self.signatures[name] = signed.get_concrete_function()
        self.signatures.setdefault("serving_default", self.signatures[name])
        return function

    def write(self, path, collections, options):
        """Save it all as a folder."""
        for name, variables in collections.items():
            setattr(self.root, name, self.saved(variables))
        tf.saved_model.save(self.root, str(path), self.signatures, options)


def _with_new_axes(x, key, plain=tf.Tensor.__getitem__):
    """x[key] with axes of their own for None, which LiteRT's slices do not make."""
    key = key if isinstance(key, tuple) else (key,)
    given = tuple(part for part in key if part is not None)
    y, place = plain(x, given) if given else x, 0
    for part in key:
        if part is None:
            y = tf.expand_dims(y, place)
        if part is ...:
            place += x.shape.rank - len(given) + 1
        elif part is None or isinstance(part, slice):
            place += 1
    return y


def to_litert(model, signature, path, **options):
    """A `.tflite` file; options: attributes of `tf.lite.TFLiteConverter`, as `optimizations`."""
    leaves = tree.flatten(_specs(signature))

    @tf.function(autograph=False)
    def run(**given):
        inputs = tree.pack_sequence_as(signature, [given[spec.name] for spec in leaves])
        return names_of(model(inputs, training=False))

    with patch.object(tf.Tensor, "__getitem__", _with_new_axes):
        concrete = run.get_concrete_function(**{spec.name: spec for spec in leaves})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    for name, value in options.items():
        setattr(converter, name, value)
    path.write_bytes(converter.convert())
