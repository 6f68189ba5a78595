"""A model once more, with weights of its own."""

from functools import partial

from khub import tree
from khub.layers.layer import Layer
from khub.models.functional import Functional
from khub.models.sequential import Sequential


def _again(layer):
    return type(layer).from_config(layer.get_config())


def clone_model(
    model,
    input_tensors=None,
    clone_function=None,
    call_function=None,
    recursive=False,
    **kwargs,
):
    """Return a model of the same layers with new weights.

    input_tensors: symbolic inputs of a functional or Sequential clone; clone_function: layer ->
    its clone; call_function: (clone, *args, **kwargs) -> output; recursive: models inside are
    cloned layer by layer too
    """
    if kwargs:
        raise TypeError(f"clone_model does not know {sorted(kwargs)}.")
    if not isinstance(model, (Functional, Sequential)):
        if input_tensors is not None or clone_function is not None or call_function is not None:
            raise ValueError(
                f"{model.name} is a subclass of Model: clone_model(model) alone can copy it."
            )
        return _again(model)
    clones, copy = {}, clone_function or _again

    def clone(layer):
        if id(layer) not in clones:
            nested = recursive and isinstance(layer, (Functional, Sequential))
            options = (None, clone_function, call_function, True)
            clones[id(layer)] = clone_model(layer, *options) if nested else copy(layer)
        return clones[id(layer)]

    if isinstance(model, Sequential):
        layers = [clone(layer) for layer in model.layers]
        if input_tensors is None and model._input is not None:
            input_tensors = _again(model._input.input_layer).output
        first = [] if input_tensors is None else tree.flatten(input_tensors)
        return Sequential([*first, *layers], model.trainable, model.name)
    if input_tensors is None:
        made = [_again(layer).output for layer in model._input_layers]
    else:
        made = tree.flatten(input_tensors)
    values = dict(zip(map(id, model.inputs), made, strict=True))
    for node in model._nodes:
        leaves = tree.flatten((node.args, node.kwargs))
        leaves = [values.get(id(leaf), leaf) for leaf in leaves]
        args, kwargs = tree.pack_sequence_as((node.args, node.kwargs), leaves)
        function = node.function
        if isinstance(function, Layer):
            function = clone(function)
            function = partial(call_function, function) if call_function else function
        result = function(*args, **kwargs)
        values |= zip(map(id, tree.flatten(node.outputs)), tree.flatten(result))
    inputs, outputs = (
        tree.map_structure(lambda x: values[id(x)], structure)
        for structure in (model.input, model.output)
    )
    return type(model)(inputs, outputs, name=model.name)
