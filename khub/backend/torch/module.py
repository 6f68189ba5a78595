"""What makes a Layer an `nn.Module`: its parameters, buffers and children are views of khub's.

Nothing is kept twice. A Layer finds its Variables and sub-layers in its attributes; the three
dictionaries that nn.Module's methods walk through are made from that whenever they are asked for.
"""

import weakref

from torch import nn


class _View(dict):
    """Variables as name -> tensor; an assignment (`.to()`, `.half()`) reaches the Variable."""

    def __init__(self, variables):
        super().__init__((name, v.materialize()) for name, v in variables.items())
        self.variables = variables

    def __setitem__(self, name, tensor):
        super().__setitem__(name, tensor)
        self.variables[name]._storage = tensor


def _group(modules, path):
    """The modules below `path`; what holds a list or dict of layers becomes a plain nn.Module."""
    for name in path:
        modules = modules.setdefault(name, nn.Module())._modules
    return modules


def _derived(get):
    """A property that nn.Module.__init__, which puts an empty dictionary there, does not change."""
    return property(get, lambda self, value: None)


LAYERS = weakref.WeakValueDictionary()  # by their id: what a graph of torch.compile can hold


class Base(nn.Module):
    """An nn.Module whose state is khub's."""

    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__
    call_super_init = False

    def __new__(cls):
        self = super().__new__(cls)
        nn.Module.__init__(self)
        self.training = False  # Keras' default; `.train()` and `.eval()` change it
        LAYERS[id(self)] = self
        return self

    def __init__(self):
        pass  # done in __new__, before a subclass sets its first attribute

    def __getattr__(self, name):
        described = getattr(type(self), name, None)
        if isinstance(described, property):  # it raised an AttributeError: say what it said
            return described.fget(self)
        raise AttributeError(f"{type(self).__name__} object has no attribute {name!r}")

    def _tensors(self, head, kind):
        """Return name -> tensor of own Variables below the attribute `head` ("": right here)."""
        found = {}
        for path, variable in self._own_variables().items():
            first, _, name = path.rpartition(".")
            if first == head and isinstance(variable.materialize(), nn.Parameter) is kind:
                found[name] = variable
        return _View(found)

    @_derived
    def _parameters(self):
        view = self._tensors("", True)
        view.update((k, v) for k, v in vars(self).items() if isinstance(v, nn.Parameter))
        return view

    @_derived
    def _buffers(self):
        return self._tensors("", False)

    @_derived
    def _modules(self):
        modules = {k: v for k, v in vars(self).items() if isinstance(v, nn.Module)}
        modules = {k: v for k, v in modules.items() if not isinstance(v, Base)}
        for path, layer in self._children():
            *groups, name = path.split(".")
            _group(modules, groups)[name] = layer
        for head in {path.rpartition(".")[0] for path in self._own_variables()} - {""}:
            *groups, name = head.split(".")
            inside = _group(modules, groups).setdefault(name, nn.Module())
            vars(inside)["_parameters"] = self._tensors(head, True)
            vars(inside)["_buffers"] = self._tensors(head, False)
        return modules

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


HOOKS = "forward_hook forward_pre_hook full_backward_hook full_backward_pre_hook"
for _name in HOOKS.split():
    setattr(Base, f"register_{_name}", _marking_hooks(f"register_{_name}"))
