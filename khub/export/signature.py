"""What goes into an exported function and what comes out: shapes, dtypes and names."""

import re
from importlib.util import find_spec

from khub import dtypes, tree
from khub.layers.input_spec import InputSpec
from khub.ops.symbolic import KerasTensor, map_shapes


def need(framework, what):
    """Raise ImportError unless a framework is installed."""
    if find_spec(framework) is None:
        raise ImportError(f"{what} is made by {framework}: pip install khub[{framework}]")


def _spec(path, x):
    """A KerasTensor like an InputSpec, TensorSpec, tensor or KerasTensor; its name is a word."""
    if not hasattr(x, "shape") or x.shape is None:
        raise ValueError(f"input_signature needs specs with shapes (InputSpec, ...), got {x!r}.")
    keys = [key for key in path if isinstance(key, str)]
    name = getattr(x, "name", None) or "_".join(keys) or "inputs"
    return KerasTensor(x.shape, dtypes.standardize(x.dtype), name=re.sub(r"\W", "_", name))


def specs_of(structure):
    """Return the structure with a KerasTensor for everything that has a shape; names differ."""
    found, names = [_spec(*each) for each in tree.flatten_with_path(structure)], {}
    for x in found:
        names[x.name] = count = names.get(x.name, 0) + 1
        x.name += f"_{count - 1}" if count > 1 else ""
    return tree.pack_sequence_as(structure, found)


def signature_of(model, given=None):
    """Return the specs of a model's input: `given`, its symbolic input, or what it was built for.

    Raises ValueError where none of these tells.
    """
    if given is not None:
        single = isinstance(given, (list, tuple)) and len(given) == 1
        return specs_of(given[0] if single else given)
    if getattr(model, "inputs", None):
        return specs_of(model.input)
    shapes = list((model._build_shapes or {}).values())
    if len(shapes) != 1 or shapes[0] is None:
        raise ValueError(
            f"{model.name} does not know its inputs: build it for a shape, or give "
            "input_signature=[khub.InputSpec(shape=(None, ...), dtype=...)]."
        )
    return specs_of(map_shapes(lambda shape: InputSpec(shape=(None, *shape[1:])), shapes[0]))


def names_of(outputs):
    """Return name -> output: the keys of a dict, else "output_0", "output_1", ..."""
    found = tree.flatten_with_path(outputs)
    keyed = all(path and all(isinstance(key, str) for key in path) for path, _ in found)
    return {"_".join(p) if keyed else f"output_{i}": y for i, (p, y) in enumerate(found)}
