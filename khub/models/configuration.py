"""Functional graphs as plain data in Keras' form, and back."""

import functools
import inspect

from khub import ops, tree
from khub.backend.variable import Variable
from khub.layers.core import InputLayer
from khub.operation import Operation
from khub.ops.op import OPS
from khub.ops.symbolic import any_symbolic, is_symbolic
from khub.saving import registry

# Where Keras keeps the ops of our modules, its `ops.numpy` where nothing is said, ...
_HOMES = {"nn": "nn", "ctc": "nn", "image": "image", "linalg": "linalg", "signal": "math"}
_HOMES |= {
    name: module  # ... and single ones elsewhere
    for module, names in {
        "core": "cast saturate_cast scatter scatter_update slice slice_update stop_gradient "
        "unstack",
        "math": "erf erfinv in_top_k logdet logsumexp rsqrt top_k",
        "einops": "rearrange",
    }.items()
    for name in names.split()
}
# The classes of ops that are not named by the op's words, capitalized.
_CLASSES = """
_select=Where allclose=AllClose batch_normalization=BatchNorm cdist=CDist ctc_decode=CTCDecode
ctc_loss=CTCLoss fft=FFT fft2=FFT2 getitem=GetItem hsv_to_rgb=HSVToRGB ifft2=IFFT2 irfft=IRFFT
isin=IsIn istft=ISTFT layer_normalization=LayerNorm psnr=PSNR rfft=RFFT rgb_to_hsv=RGBToHSV
rgb_to_grayscale=RGBToGrayscale rms_normalization=RMSNorm searchsorted=SearchSorted ssim=SSIM
stft=STFT svd=SVD
"""
_CLASSES = dict(pair.split("=") for pair in _CLASSES.split())
# The arguments of an op's call, where they are not our tensors; the class is made with the others.
_CALLED = {
    "average": "x weights",
    "bincount": "x",
    "dot_product_attention": "query key value bias mask scale",
    "einsum": "operands",
    "full_like": "x fill_value",
    "getitem": "x key",
    "in_top_k": "targets predictions",
    "isclose": "x1 x2 rtol atol",
    "meshgrid": "x",
    "pad": "x constant_values",
    "rearrange": "tensor pattern axes_lengths",
    "scale_and_translate": "images output_shape scale translation",
    "select": "condlist choicelist default",
    "slice": "inputs start_indices",
    "trapezoid": "y",
    "where": "condition x1 x2",
} | dict.fromkeys(["quantile", "nanquantile", "percentile", "nanpercentile"], "x q")
_VARIADIC = ("einsum", "meshgrid")  # whose call takes any number of tensors


def _class_name(op):
    words = op.__name__.split("_")
    return _CLASSES.get(op.__name__) or "".join(map(str.capitalize, words))


@functools.cache
def _ops_by_class():
    """Return lower-case name of a class -> op: the public ops that only compute."""
    known = {name: op for name, op in OPS.items() if not name.startswith("_")}
    known |= {"where": ops.where, "einsum": ops.einsum}
    aliases = {
        n: op for n, op in vars(ops).items() if inspect.isfunction(op) and op in OPS.values()
    }
    named = {name.replace("_", ""): op for name, op in (aliases | known).items()}
    return named | {_class_name(op).lower(): op for op in known.values()}


def _called(op):
    first = list(inspect.signature(op).parameters)[: max(getattr(op, "operands", 1), 1)]
    return _CALLED.get(op.__name__, " ".join(first)).split()


def _split_arguments(op, node):
    """Return (arguments of the call, name -> value of the others) of a recorded op."""
    given = inspect.signature(op).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    rest = given.arguments
    rest.pop("kwargs", None)
    called = [rest.pop(name) for name in _called(op)]
    return list(called[0]) if op.__name__ in _VARIADIC else called, rest


def _with_arguments(op, config):
    """Return a function of the call's arguments of an op that has the others."""
    names, signature = _called(op), inspect.signature(op)
    config = {name: value for name, value in config.items() if name in signature.parameters}

    def call(*args, **kwargs):
        given = dict(zip(names, args, strict=False))
        if isinstance(given.get("key"), list):  # JSON has no tuples
            given["key"] = tuple(given["key"])
        bound = signature.bind_partial(**config, **kwargs)
        bound.arguments |= {names[0]: args} if op.__name__ in _VARIADIC else given
        return op(*bound.args, **bound.kwargs)

    return call


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
        if function is not ops.einsum and OPS.get(function.__name__) is not function:
            raise ValueError(
                f"{function.__name__} in a functional model cannot be saved; put it in a layer of "
                "its own."
            )
        base = name = registry.snake_case(_class_name(function))
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
        if isinstance(value, Variable):
            raise ValueError(
                f"{value!r} inside a functional model cannot be saved in its config; put it in a "
                "layer as a weight."
            )
        return registry.serialize(ops.convert_to_numpy(value) if ops.is_tensor(value) else value)

    def entry(self, name):
        function, calls = self.calls[name]
        if isinstance(function, Operation):
            entry = registry.serialize_built(function)
        else:
            config = {"name": name} | self.encode(dict(_split_arguments(function, calls[0])[1]))
            cls, home = _class_name(function), function.__module__.rpartition(".")[2]
            home = _HOMES.get(function.__name__) or _HOMES.get(home, "numpy")
            entry = dict(module=f"keras.src.ops.{home}", class_name=cls, registered_name=cls)
            entry["config"] = config
        return entry | {"name": name, "inbound_nodes": [self._call(n) for n in calls]}

    def _call(self, node):
        if isinstance(node.function, Operation):
            return {"args": self.encode(list(node.args)), "kwargs": self.encode(node.kwargs)}
        return {"args": self.encode(_split_arguments(node.function, node)[0]), "kwargs": {}}

    def places(self, structure):
        if is_symbolic(structure):
            name, call, index = self.histories[id(structure)]
            return [name, call + _makings(self.calls[name][0]), index]
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


def _makings(function):
    """Return how many calls Keras counts before the first one, where a model's outputs are named.

    Outputs of a functional model inside count as those of its call 0.
    """
    return int(hasattr(function, "_input_layers"))


class _NotYet(ValueError):
    """A tensor that has not been computed yet."""


class _Reader:
    def __init__(self, config, custom_objects):
        self.custom_objects, self.tensors, self.functions = custom_objects, {}, {}
        waiting = []
        for entry in config["layers"]:
            function = self.functions[entry["name"]] = self._function(entry)
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
        return _with_arguments(op, self.decode(entry["config"]))

    def _try(self, name, number, function, call):
        if number and (name, number - 1) not in self.tensors:
            return False
        try:
            args, kwargs = self.decode(call["args"]), self.decode(call["kwargs"])
        except _NotYet:
            return False
        if not any_symbolic((args, kwargs)):
            raise ValueError(f"The config calls {name!r} on no tensor of the model.")
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
            name, call, index = places
            makings = _makings(self.functions.get(name))
            return self.at([name, max(call - makings, 0), index])
        return [self.structure(item) for item in places]


def functional_from_config(cls, config, custom_objects=None):
    """Build the model that `functional_config` described."""
    reader = _Reader(config, custom_objects)
    inputs, outputs = (reader.structure(config[f"{what}_layers"]) for what in ("input", "output"))
    return cls(inputs, outputs, name=config.get("name"), trainable=config.get("trainable", True))
