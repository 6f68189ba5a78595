"""Shapes of structures of tensors, and the shape that a layer's call would give."""

import re

from khub import tree
from khub.backend import active
from khub.backend.variable import Variable
from khub.layers.masks import get_mask, set_mask
from khub.ops.symbolic import KerasTensor, output_spec

_SPECS = {}  # what `traced_spec` found before
_MOST = 2000  # of them
_SHAPELESS = re.compile(r"_(initializer|regularizer|constraint)$|^seed$").search


def traced_spec(layer, args, kwargs):
    """Return KerasTensors like what the layer's call would return, masks too.

    Networks repeat their blocks: most layers of a large one need not be traced again.
    """
    key = _spec_key(layer, args, kwargs)
    if key in _SPECS:
        return tree.map_structure(_copied, _SPECS[key])

    def call(args, kwargs, masks):
        for x, mask in zip(tree.flatten(args), masks, strict=True):
            if mask is not None:
                set_mask(x, mask)
        outputs = layer(*args, **kwargs)
        return outputs, [get_mask(y) for y in tree.flatten(outputs)]

    masks = [x.mask if isinstance(x, KerasTensor) else None for x in tree.flatten(args)]
    outputs, masks = output_spec(call, (args, kwargs, masks), {})
    for y, mask in zip(tree.flatten(outputs), masks, strict=True):
        if mask is not None:
            y.mask = mask
    if key is not None:
        if len(_SPECS) >= _MOST:
            _SPECS.clear()
        _SPECS[key] = tree.map_structure(_copied, outputs)
    return outputs


def _spec_key(layer, args, kwargs):
    """Return all that the output's shape and dtype depend on, None where that is not known."""
    cls, leaves = type(layer), tree.flatten((args, kwargs))
    known = layer._shape_by_config and hasattr(cls.__init__, "made")
    if not known or not cls.__module__.startswith("khub.layers."):
        return None
    fields = [getattr(layer, name) for name, _, _ in layer._fields if not _SHAPELESS(name)]
    shapes = [
        (x.shape, x.dtype, x.sparse, x.mask is None) if isinstance(x, KerasTensor) else x
        for x in leaves
    ]
    for x in (*fields, *shapes):
        if isinstance(x, Variable) or hasattr(x, "named_layers") or type(x) in active.TENSORS:
            return None
    nested = [(type(x), len(x)) if isinstance(x, (list, tuple)) else None for x in args]
    parts = (cls, layer.dtype_policy.name, layer.built, *fields, *shapes, *nested, *kwargs)
    try:
        hash(parts)
    except TypeError:  # a field that may change, or a dictionary of inputs
        return None
    return parts


def _copied(x):
    """A symbolic tensor of its own with the same shape, dtype and mask."""
    if not isinstance(x, KerasTensor):
        return x
    copy = KerasTensor(x.shape, x.dtype, x.sparse)
    copy.mask = x.mask
    return copy


def shapes_of(x):
    """The shape of a tensor, or the structure of shapes of several."""
    if isinstance(x, (list, tuple, dict)):
        return tree.map_structure(lambda t: tuple(t.shape) if hasattr(t, "shape") else None, x)
    return tuple(x.shape) if hasattr(x, "shape") else None
