"""A user's own `nn.Module` inside a khub layer."""

import torch

from khub.backend.scope import local
from khub.backend.torch.arrays import place


def module_tensors(module):
    """Return name -> (tensor, whether it is a parameter) of all that a module holds.

    The module is brought to the device that new tensors have.
    """
    module.to(place())
    found = {name: (tensor, True) for name, tensor in module.named_parameters()}
    return found | {name: (tensor, False) for name, tensor in module.named_buffers()}


def call_module(module, variables, training, args, kwargs):
    """Call `module` with the values of `variables` (name -> Variable), and keep what it changes."""
    module.train(bool(training))
    buffers = dict(module.named_buffers())
    if local.scope is None:
        for name in buffers:  # an assignment gave the Variable a tensor of its own
            owner, _, last = name.rpartition(".")
            module.get_submodule(owner)._buffers[last] = variables[name].value
        return module(*args, **kwargs)
    values = {name: variable.value for name, variable in variables.items()}
    values |= {name: values[name].clone() for name in buffers}  # modules write in place
    outputs = torch.func.functional_call(module, values, args, kwargs)
    for name in buffers:
        variables[name].assign(values[name])
    return outputs
