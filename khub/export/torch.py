"""PyTorch's formats, and what `torch.compile` makes of a layer: one graph without a break."""

import torch
from torch._dynamo import nonstrict_trace
from torch._higher_order_ops.scan import scan as loop
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from khub import tree
from khub.backend.scope import Scope
from khub.backend.torch import arrays
from khub.backend.torch.engine import _depth
from khub.backend.torch.module import LAYERS
from khub.export.signature import names_of


class _Module(torch.nn.Module):
    """A model as a plain module: torch.export finds tensors by attributes alone."""

    def __init__(self, model, finish):
        super().__init__()
        self.run, self.finish, self.variables = model.__call__, finish, {}
        for path, variable in model.named_variables().items():
            self.variables[path.replace(".", "/")] = variable
            self.register_buffer(path.replace(".", "/"), variable.value.detach())

    def forward(self, inputs):
        with Scope((v, self._buffers[name]) for name, v in self.variables.items()):
            return self.finish(self.run(inputs, training=False))


def _exported(model, signature, finish):
    def example(x):  # 0 and 1 are special to torch, and networks of images need some pixels
        sizes = [(96 if i else 3) if n is None else n for i, n in enumerate(x.shape)]
        return torch.zeros(sizes, dtype=getattr(torch, x.dtype), device=arrays.place())

    def open_axes(x):
        return {i: Dim.DYNAMIC for i, n in enumerate(x.shape) if n is None}

    examples, axes = (tree.map_structure(f, signature) for f in (example, open_axes))
    module = _Module(model, finish).eval()
    return torch.export.export(module, (examples,), dynamic_shapes=(axes,), strict=False)


@torch.no_grad()
def to_torch(model, signature, path):
    """A `.pt2` file for `torch.export.load(path).module()(inputs)`."""
    with open(path, "wb") as file:
        torch.export.save(_exported(model, signature, lambda outputs: outputs), file)


@torch.no_grad()  # a loop that may be learned from cannot leave its length open
def to_onnx(model, signature, path, **options):
    """A `.onnx` file; options: those of `torch.onnx.export`, as `opset_version`."""
    names = {}

    def finish(outputs):
        names.update(names_of(outputs))
        return tuple(names.values())

    program = _exported(model, signature, finish)
    inputs = [x.name for x in tree_leaves(signature)]  # torch's order, dicts as they were made
    options |= dict(input_names=inputs, output_names=[*names])
    torch.onnx.export(program, dynamo=True, verbose=False, **options).save(str(path))


def scan(function, init, xs, reverse):
    """`khub.scan` over any number of steps, which torch.export leaves open."""

    def step(carry, x):
        carry, y = function(tree.pack_sequence_as(init, carry), x)
        return tree.flatten(carry), tree.map_structure(torch.clone, y)  # no tensor leaves twice

    carry, ys = loop(step, tree.flatten(init), xs, reverse=reverse)
    return tree.pack_sequence_as(init, carry), ys


@nonstrict_trace
def _call(key, values, training, args, kwargs):
    """Return (a layer's outputs, place -> new value of a Variable) for the Variables' values."""
    layer = LAYERS[key]
    variables, before, layer.training = layer.weights, layer.training, training
    _depth.graphs += 1
    try:
        with Scope(zip(variables, values, strict=True)) as scope:
            outputs = layer(*args, **kwargs)
    finally:
        layer.training = before
        _depth.graphs -= 1
    return outputs, {i: scope.values[v] for i, v in enumerate(variables) if v in scope.written}


def compiled_call(layer, args, kwargs):
    """Call a layer where torch.compile reads the code: it is one piece of the graph."""
    variables = layer.weights
    values = [v._storage for v in variables]
    outputs, written = _call(id(layer), values, layer.training, args, kwargs)
    for place, value in written.items():
        variables[place]._storage = value
    return outputs
