"""JAX's formats: StableHLO, and functions that TensorFlow saves."""

import jax
from jax import export

from khub import tree
from khub.backend.scope import Scope


def _exported(function, signature, platforms=None):
    """Return (jax.export's form of a function of one structure, the shapes as text).

    Unknown axes of several inputs first count as different ones, then, where the function needs
    that (tokens and their mask), those of one number as equal ones.
    """
    for own in (True, False):
        scope, texts, specs = export.SymbolicScope(), [], []
        for k, x in enumerate(tree.flatten(signature)):
            names = [f"axis{i}_{k}" if own and i else f"axis{i}" for i in range(len(x.shape))]
            sizes = [name if n is None else str(n) for name, n in zip(names, x.shape)]
            texts.append(f"({','.join(sizes)})")
            specs.append(
                jax.ShapeDtypeStruct(export.symbolic_shape(texts[-1], scope=scope), x.dtype)
            )
        texts, specs = (tree.pack_sequence_as(signature, each) for each in (texts, specs))
        try:
            return export.export(jax.jit(function), platforms=platforms)(specs), texts
        except Exception:
            if not own:
                raise


def to_stablehlo(model, signature, path, platforms=("cpu", "cuda", "tpu")):
    """A file for `jax.export.deserialize(file.read()).call(inputs)`; platforms: where it may run"""
    exported, _ = _exported(lambda x: model(x, training=False), signature, platforms)
    path.write_bytes(exported.serialize())


def as_tensorflow(function, variables, signature, jax2tf_kwargs=None):
    """Return the function as one of (the Variables' values, inputs), of TensorFlow's tensors."""
    from jax.experimental import jax2tf

    def run(values, inputs):
        with Scope(zip(variables, values, strict=True)):
            return function(*inputs)

    values = [v.storage_value() for v in variables]
    _, shapes = _exported(lambda inputs: run(values, inputs), signature)
    options = {"with_gradient": False} | (jax2tf_kwargs or {})
    return jax2tf.convert(run, polymorphic_shapes=[None, shapes], **options)
