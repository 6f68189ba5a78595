"""What makes a khub Layer an `nn.Module`: its parameters, buffers and children are views of khub's own.

Nothing is kept twice. A Layer finds its Variables and sub-layers by looking at its attributes; the three
dictionaries that nn.Module's methods walk through are made from that whenever they are asked for.
"""

import torch
from torch import nn


class _View(dict):
    """Variables as name -> tensor; an assignment (`.to()`, `.half()`) reaches the Variable."""

    def __init__(self, variables):
        super().__init__((name, v.materialize()) for name, v in variables.items())
        self.variables = variables

    def __setitem__(self, name, tensor):
        super().__setitem__(name, tensor)
        self.variables[name]._storage = tensor


class Base(nn.Module):
    """An nn.Module whose state is khub's."""

    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__
    call_super_init = False

    def __new__(cls):
        self = super().__new__(cls)
        nn.Module.__init__(self)
        self.training = False  # Keras' default; `.train()` and `.eval()` change it
        return self

    def __init__(self):
        pass  # done in __new__, before a subclass sets its first attribute

    def __getattr__(self, name):
        raise AttributeError(f"{type(self).__name__} object has no attribute {name!r}")

    def _split(self):
        parameters, buffers = {}, {}
        for name, variable in self._own_variables().items():
            kind = parameters if isinstance(variable.materialize(), nn.Parameter) else buffers
            kind[name] = variable
        return parameters, buffers

    @property
    def _parameters(self):
        native = {k: v for k, v in vars(self).items() if isinstance(v, nn.Parameter)}
        view = _View(self._split()[0])
        view.update(native)
        return view

    @property
    def _buffers(self):
        return _View(self._split()[1])

    @property
    def _modules(self):
        native = {k: v for k, v in vars(self).items() if isinstance(v, nn.Module)}
        return native | dict(self._children())

    @_parameters.setter
    def _parameters(self, value):
        pass  # nn.Module.__init__ puts empty dictionaries here

    @_buffers.setter
    def _buffers(self, value):
        pass

    @_modules.setter
    def _modules(self, value):
        pass

    def forward(self, *args, **kwargs):
        """What nn.Module's own call machinery runs: khub's call."""
        return self._khub_call(*args, **kwargs)

    def _native_call(self, *args, **kwargs):
        return nn.Module.__call__(self, *args, **kwargs)


def _marking_hooks(name):
    def register(self, *args, **kwargs):
        self._hooked, self._quick = True, False
        return getattr(nn.Module, name)(self, *args, **kwargs)

    return register


for _name in (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
):
    setattr(Base, _name, _marking_hooks(_name))
