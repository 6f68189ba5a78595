"""Nested lists, tuples, dicts, named tuples (on optree); None is a leaf, dicts go by sorted key."""

import optree


class MAP_TO_NONE:
    """Returned by `traverse`'s function to put None in place of a subtree."""


def is_nested(structure):
    """Say whether `structure` is a container."""
    return not optree.tree_is_leaf(structure, none_is_leaf=True)


def flatten(structure):
    """Return the leaves in order."""
    return optree.tree_leaves(structure, none_is_leaf=True)


def flatten_with_path(structure):
    """Return (path, leaf) pairs."""
    paths, leaves, _ = optree.tree_flatten_with_path(structure, none_is_leaf=True)
    return list(zip(paths, leaves, strict=True))


def pack_sequence_as(structure, flat_sequence):
    """Return `flat_sequence` in the shape of `structure`.

    Raises ValueError when the number of leaves differs.
    """
    specification = optree.tree_structure(structure, none_is_leaf=True)
    flat_sequence = list(flat_sequence)
    if len(flat_sequence) != specification.num_leaves:
        raise ValueError(
            f"The structure has {specification.num_leaves} leaves, got {len(flat_sequence)} values."
        )
    return optree.tree_unflatten(specification, flat_sequence)


def map_structure(func, *structures, none_is_leaf=True):
    """Apply `func` to corresponding leaves and return the result in the first structure's shape."""
    if not callable(func):
        raise TypeError(f"func must be callable, got {func!r}.")
    if not structures:
        raise ValueError("map_structure needs at least one structure.")
    return optree.tree_map(func, *structures, none_is_leaf=none_is_leaf)


def map_structure_up_to(shallow_structure, func, *structures):
    """Like `map_structure`, but stop at the leaves of `shallow_structure`."""
    specification = optree.tree_structure(shallow_structure, none_is_leaf=True)
    columns = [specification.flatten_up_to(structure) for structure in structures]
    return optree.tree_unflatten(specification, [func(*row) for row in zip(*columns, strict=True)])


def assert_same_structure(a, b, check_types=None):
    """Raise ValueError unless `a` and `b` are nested alike in the same containers."""
    found = [optree.tree_structure(s, none_is_leaf=True) for s in (a, b)]
    if found[0] != found[1]:
        raise ValueError(f"The structures differ: {found[0]} and {found[1]}.")


def map_shape_structure(func, structure):
    """Apply `func` to every shape of a structure; a shape is a tuple or list of sizes or None."""

    def is_shape(node):
        return isinstance(node, (tuple, list)) and all(
            isinstance(n, (int, type(None))) for n in node
        )

    return optree.tree_map(func, structure, is_leaf=is_shape, none_is_leaf=True)


def lists_to_tuples(structure):
    """Return the structure with every list turned into a tuple."""
    return traverse(
        lambda node: tuple(map(lists_to_tuples, node)) if isinstance(node, list) else None,
        structure,
    )


def traverse(func, structure, top_down=True):
    """Visit every node; `func` returns None to keep (and enter) a node, or its replacement."""

    def children(node):
        leaves, specification = optree.tree_flatten(
            node, is_leaf=lambda n: n is not node, none_is_leaf=True
        )
        if len(leaves) == 1 and leaves[0] is node:
            return node
        return optree.tree_unflatten(specification, [visit(leaf) for leaf in leaves])

    def visit(node):
        if top_down:
            result = func(node)
            if result is None:
                return children(node)
        else:
            node = children(node)
            result = func(node)
            if result is None:
                return node
        return None if result is MAP_TO_NONE else result

    return visit(structure)


def assert_same_paths(a, b):
    """Raise ValueError unless `a` and `b` have leaves at the same paths, in whatever containers."""
    found = [{path for path, _ in flatten_with_path(s)} for s in (a, b)]
    if found[0] != found[1]:
        only = [sorted(map(str, found[i] - found[1 - i])) for i in (0, 1)]
        raise ValueError(f"Only in the first: {only[0]}; only in the second: {only[1]}.")
