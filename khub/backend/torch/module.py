"""What makes a Layer an `nn.Module`: its parameters, buffers and children are views of khub's.

Nothing is kept twice. A Layer finds its Variables and sub-layers in its attributes; the three
dictionaries that nn.Module's methods walk through are made from that whenever they are asked for.
"""

import weakref

from torch import Tensor, nn


class _View(dict):
    """Name -> tensor; an assignment (`.to()`, `functional_call`) reaches the Variable."""

    def __init__(self, layer, tensors):
        super().__init__(tensors)
        self.layer = layer

    def __setitem__(self, name, tensor):
        super().__setitem__(name, tensor)
        setattr(self.layer, name, tensor)


def _derived(get):
    """A property that nn.Module.__init__, which puts an empty dictionary there, does not change."""
    return property(get, lambda self, value: None)


LAYERS = weakref.WeakValueDictionary()  # by their id: what a graph of torch.compile can hold


class Base(nn.Module):
    """An nn.Module whose state is khub's."""

    __delattr__ = object.__delattr__
    call_super_init = False
    _torch_buffers = frozenset()  # what `register_buffer` was called for

    def __new__(cls):
        self = super().__new__(cls)
        nn.Module.__init__(self)
        self.training = False  # Keras' default; `.train()` and `.eval()` change it
        LAYERS[id(self)] = self
        return self

    def __init__(self):
        pass  # done in __new__, before a subclass sets its first attribute

    def __setattr__(self, name, value):
        held = None
        if isinstance(value, Tensor):
            held = vars(self)[name] if name in vars(self) else self._torch_items().get(name)
        if hasattr(held, "materialize"):
            held._storage = value  # as torch's functions put it there
        else:
            object.__setattr__(self, name, value)

    def __getattr__(self, name):
        described = getattr(type(self), name, None)
        if isinstance(described, property):  # it raised an AttributeError: say what it said
            return described.fget(self)
        if not name.startswith("_") and name in (held := self._torch_items()):
            return held[name]
        raise AttributeError(f"{type(self).__name__} object has no attribute {name!r}")

    def _torch_items(self):
        """Name -> Variable, tensor or module, as `getattr` finds it: "layers_0" for layers[0]."""
        own, kinds = vars(self), (nn.Module, nn.Parameter)
        held = {k: v for k, v in own.items() if isinstance(v, kinds) or k in self._torch_buffers}
        held = {k: v for k, v in held.items() if not isinstance(v, Base)}
        for path, value in [*self._own_variables().items(), *self._children()]:
            name = path.replace(".", "_")
            other = path not in own  # the name of an attribute would lead elsewhere
            while other and (name in held or name in own or hasattr(type(self), name)):
                name += "_"
            held[name] = value
        return held

    def _torch_tensors(self, kind):
        held = {k: v for k, v in self._torch_items().items() if not isinstance(v, nn.Module)}
        found = {k: v.materialize() if hasattr(v, "materialize") else v for k, v in held.items()}
        found = {k: v for k, v in found.items() if isinstance(v, nn.Parameter) is kind}
        return _View(self, found)

    @_derived
    def _parameters(self):
        return self._torch_tensors(True)

    @_derived
    def _buffers(self):
        return self._torch_tensors(False)

    @_derived
    def _modules(self):
        return {name: x for name, x in self._torch_items().items() if isinstance(x, nn.Module)}

    def register_parameter(self, name, param):
        """Keep an nn.Parameter as an attribute."""
        setattr(self, name, param)

    def register_buffer(self, name, tensor, persistent=True):
        """Keep a tensor as an attribute that is a part of the state."""
        self._torch_buffers = {*self._torch_buffers, name}
        setattr(self, name, tensor)

    def _replicate_for_data_parallel(self):
        raise NotImplementedError(
            f"{self.name}: torch.nn.DataParallel copies modules into threads that would share "
            "khub's Variables; use DistributedDataParallel or khub.distribution.DataParallel."
        )

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
