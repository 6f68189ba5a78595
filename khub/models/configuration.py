"""Functional graphs as plain data in Keras' form, and back."""

import functools
import inspect

from khub import tree
from khub.layers.core import InputLayer
from khub.operation import Operation
from khub.ops.op import OPS
from khub.ops.symbolic import is_symbolic
from khub.saving import registry

# Where Keras keeps the ops that are not in its `ops.numpy`; their arguments are no tensors.
_MODULES = {
    "core": "cast saturate_cast scatter scatter_update slice slice_update stop_gradient unstack",
    "math": "erf erfinv in_top_k logsumexp rsqrt top_k",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


@functools.cache
def _ops_by_class():
    known = {name.replace("_", "").lower(): op for name, op in OPS.items()}
    return known | {"truedivide": OPS["divide"]}


def _class_name(name):
    return "GetItem" if name == "getitem" else "".join(map(str.capitalize, name.split("_")))


def _keras_module(op):
    own = op.__module__.rpartition(".")[2]
    return f"keras.src.ops.{_MODULE_OF.get(op.__name__, own if own == 'nn' else 'numpy')}"


def _split_arguments(op, args):
    """Return (arguments of the call, name -> value of the others) of a recorded op."""
    count = 2 if op.__name__ == "getitem" else max(getattr(op, "operands", 1), 1)
    names = list(inspect.signature(op).parameters)
    return args[:count], dict(zip(names[count:], args[count:], strict=False))


class _Writer:
    """Gives every operation of a graph its name and its calls their numbers."""

    def __init__(self, model):
        self.histories, self.calls, taken = {}, {}, {layer.name for layer in model.layers}
        for layer in model._input_layers:
            self.calls[layer.name] = (layer, [])
            self.histories[id(layer.output)] = [layer.name, 0, 0]
        for x, layer in zip(model.inputs, model._input_layers, strict=True):
            self.histories[id(x)] = [layer.name, 0, 0]
        for node in model._nodes:
            name = self._name(node.function, taken)
            self.calls.setdefault(name, (node.function, []))[1].append(node)
        for name, (_, calls) in self.calls.items():
            calls.sort(key=lambda node: node.number)
            for place, node in enumerate(calls):
                for i, x in enumerate(filter(is_symbolic, tree.flatten(node.outputs))):
                    self.histories[id(x)] = [name, place, i]

    def _name(self, function, taken):
        if isinstance(function, Operation):
            return function.name
        if OPS.get(getattr(function, "__name__", None)) is not function:
            raise ValueError(
                f"{getattr(function, '__name__', function)} in a functional model cannot be "
                "saved; put it in "
                "a layer of its own."
            )
        base = name = registry.snake_case(_class_name(function.__name__))
        number = 0
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        return name

    def encode(self, value):
        if is_symbolic(value):
            config = {"shape": list(value.shape), "dtype": value.dtype}
            config["keras_history"] = self.histories[id(value)]
            return {"class_name": "__keras_tensor__", "config": config}
        if isinstance(value, slice):
            parts = {"start": value.start, "stop": value.stop, "step": value.step}
            return {"class_name": "__slice__", "config": parts}
        if value is Ellipsis:
            return {"class_name": "__ellipsis__", "config": {}}
        if isinstance(value, (list, tuple)):
            return [self.encode(item) for item in value]
        if isinstance(value, dict):
            return {key: self.encode(item) for key, item in value.items()}
        if hasattr(value, "__array__") and getattr(value, "shape", None) is not None:
            raise ValueError(
                f"A tensor of shape {tuple(value.shape)} inside a functional model cannot "
                "be saved in its "
                "config; put it in a layer as a weight."
            )
        return registry.serialize(value)

    def entry(self, name):
        function, calls = self.calls[name]
        if isinstance(function, Operation):
            entry = registry.serialize_built(function)
        else:
            config = {"name": name} | self.encode(_split_arguments(function, calls[0].args)[1])
            cls = _class_name(function.__name__)
            module = _keras_module(function)
            entry = {"module": module, "class_name": cls, "config": config, "registered_name": cls}
        return entry | {"name": name, "inbound_nodes": [self._call(function, n) for n in calls]}

    def _call(self, function, node):
        args = node.args
        if not isinstance(function, Operation):
            args = _split_arguments(function, args)[0]
        return {"args": self.encode(list(args)), "kwargs": self.encode(node.kwargs)}

    def places(self, structure):
        if is_symbolic(structure):
            return list(self.histories[id(structure)])
        if isinstance(structure, dict):
            return {key: self.places(item) for key, item in structure.items()}
        return [self.places(item) for item in structure]


def functional_config(model):
    """Return the layers, their calls and the places of inputs and outputs."""
    writer = _Writer(model)
    return {
        "name": model.name,
        "trainable": model.trainable,
        "layers": [writer.entry(name) for name in writer.calls],
        "input_layers": writer.places(model.input),
        "output_layers": writer.places(model.output),
    }


class _NotYet(ValueError):
    """A tensor that has not been computed yet."""


class _Reader:
    def __init__(self, config, custom_objects):
        self.custom_objects, self.tensors = custom_objects, {}
        waiting = []
        for entry in config["layers"]:
            function = self._function(entry)
            if isinstance(function, InputLayer):
                self.tensors[entry["name"], 0] = [function.output]
            calls = enumerate(entry["inbound_nodes"])
            waiting += [(entry["name"], i, function, call) for i, call in calls]
        while waiting:
            later = [call for call in waiting if not self._try(*call)]
            if len(later) == len(waiting):
                names = sorted({name for name, *_ in later})
                raise ValueError(f"The config's layers {names} wait for inputs that nothing makes.")
            waiting = later

    def _function(self, entry):
        if not (entry.get("module") or "").startswith("keras.src.ops."):
            return registry.deserialize(entry, self.custom_objects, "layers")
        op = _ops_by_class().get(entry["class_name"].lower())
        if op is None:
            raise ValueError(f"The config names an op that khub has not: {entry['class_name']!r}.")
        known = {*inspect.signature(op).parameters} - {"name"}
        config = {k: self.decode(v) for k, v in entry["config"].items() if k in known}
        return functools.partial(op, **config)

    def _try(self, name, number, function, call):
        if number and (name, number - 1) not in self.tensors:
            return False
        try:
            args, kwargs = self.decode(call["args"]), self.decode(call["kwargs"])
        except _NotYet:
            return False
        if getattr(getattr(function, "func", None), "__name__", "") == "getitem":
            args[1] = tuple(args[1]) if isinstance(args[1], list) else args[1]
        outputs = function(*args, **kwargs)
        self.tensors[name, number] = [x for x in tree.flatten(outputs) if is_symbolic(x)]
        return True

    def decode(self, value):
        if isinstance(value, (list, tuple)):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind, config = value.get("class_name"), value.get("config")
        if kind == "__keras_tensor__":
            return self.at(config["keras_history"])
        if kind == "__slice__":
            return slice(config["start"], config["stop"], config["step"])
        if kind == "__ellipsis__":
            return Ellipsis
        if kind is not None:
            return registry.deserialize(value, self.custom_objects)
        return {key: self.decode(item) for key, item in value.items()}

    def at(self, place):
        name, call, index = place
        if (name, call) not in self.tensors:
            raise _NotYet(
                f"The config uses output {index} of call {call} of {name!r}, which it lacks."
            )
        return self.tensors[name, call][index]

    def structure(self, places):
        if isinstance(places, dict):
            return {key: self.structure(item) for key, item in places.items()}
        if len(places) == 3 and isinstance(places[0], str):
            return self.at(places)
        return [self.structure(item) for item in places]


def functional_from_config(cls, config, custom_objects=None):
    """Build the model that `functional_config` described."""
    reader = _Reader(config, custom_objects)
    inputs, outputs = (reader.structure(config[f"{what}_layers"]) for what in ("input", "output"))
    return cls(inputs, outputs, name=config.get("name"), trainable=config.get("trainable", True))
