"""Trees of JAX's own kind, whose nodes may be classes that only JAX knows."""

from jax.tree_util import keystr, tree_flatten_with_path, tree_unflatten


def flatten_tree(structure):
    """Return the leaves by their path ("Dense_0.kernel") and a function that puts leaves back."""
    leaves, specification = tree_flatten_with_path(structure)
    named = {keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return named, lambda values: tree_unflatten(specification, values)
