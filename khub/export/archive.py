"""ExportArchive: functions with their Variables in one SavedModel."""

from importlib import import_module

from khub import backend
from khub.backend.variable import Variable
from khub.choices import choose
from khub.export.signature import need, specs_of
from khub.layers.layer import Layer
from khub.saving.files import replacing


class ExportArchive:
    """Gathers functions, the endpoints, and writes them as a SavedModel, on TensorFlow and JAX.

    `tf.saved_model.load(path)` has a function by each endpoint's name, and lists of variables.
    Raises NotImplementedError on other backends, ImportError where TensorFlow is not installed.
    """

    def __init__(self, format="saved_model", **kwargs):  # noqa: A002
        choose("format", format, ("saved_model", "tf_saved_model"))
        if backend.name not in ("tensorflow", "jax"):
            raise NotImplementedError(
                f"ExportArchive takes functions of TensorFlow and JAX, not of {backend.name}; "
                "model.export(path) exports a model from any backend."
            )
        need("tensorflow", "A SavedModel")
        self._native = import_module("khub.export.tensorflow").Archive(**kwargs)
        self._variables, self._collections = {}, {}

    def track(self, resource):
        """Save the Variables of a layer, a Variable, or what TensorFlow itself can save."""
        if isinstance(resource, (Layer, Variable)):
            found = resource.variables if isinstance(resource, Layer) else [resource]
            self._variables |= dict.fromkeys(found)
        else:
            self._native.root.resources.append(resource)

    def add_endpoint(self, name, fn, input_signature=None, **kwargs):
        """Add a function under a name, and return it as it is saved.

        input_signature: list of InputSpecs or structures of them, one an argument; a tf.function
        that has been called needs none   kwargs: `jax2tf_kwargs`, a dict for `jax2tf.convert`
        """
        if input_signature is None and not hasattr(fn, "get_concrete_function"):
            raise ValueError(f"The endpoint {name!r} needs input_signature=[InputSpec(...), ...].")
        if hasattr(self._native.root, name):
            raise ValueError(f"The archive has {name!r} already; give the endpoint another name.")
        if isinstance(fn, Layer):
            self.track(fn)
        signature = None if input_signature is None else specs_of(list(input_signature))
        return self._native.add(name, fn, list(self._variables), signature, **kwargs)

    def track_and_add_endpoint(self, name, resource, input_signature, **kwargs):
        """`track` a layer and add its call as an endpoint."""
        self.track(resource)
        return self.add_endpoint(name, resource, input_signature, **kwargs)

    def add_variable_collection(self, name, variables):
        """Let the saved object have a list of tracked Variables under a name."""
        self._collections[name] = list(variables)

    def write_out(self, filepath, options=None, verbose=True):
        """Write the SavedModel; what was at `filepath` is replaced when all is written."""
        if not self._native.signatures:
            raise ValueError("The archive has no endpoints: call add_endpoint() first.")
        trained = [v for v in self._variables if v.trainable]
        others = [v for v in self._variables if not v.trainable]
        lists = dict(variables=trained + others, trainable_variables=trained)
        lists |= dict(non_trainable_variables=others) | self._collections
        with replacing(filepath) as path:
            self._native.write(path, lists, options)
        if verbose:
            print(f"Saved the endpoints {', '.join(self._native.signatures)} in {filepath}.")


def to_tf_saved_model(model, signature, path, **options):
    """Write a model as a SavedModel whose function "serve" is its call."""
    archive = ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x, training=False), [signature], **options)
    archive.write_out(path, verbose=False)
