"""Functional models: a graph of symbolic tensors, compiled once into a flat list of steps."""

from functools import partial

from khub import activations, layers, tree
from khub.backend import active
from khub.layers.core import InputLayer
from khub.layers.layer import Layer
from khub.layers.masks import MASKS, get_mask, set_mask
from khub.models.configuration import functional_config, functional_from_config
from khub.models.model import Model
from khub.ops.symbolic import KerasTensor, Node, is_symbolic


def _sorted_nodes(outputs, starts):
    """Return the nodes between inputs and outputs, the deepest first: each after those it needs.

    A call is as deep as the longest way from it to an output, those of a shared layer as deep as
    its deepest; of one depth, the one that a walk from the outputs meets first is the first. Keras
    orders its layers so, and its files hold the weights in this order.

    starts: id of each input -> its node
    """

    def sources(node):
        found = (starts.get(id(x), x.node) for x in node.parents)
        return [source for source in found if source is not None]

    ends = [starts.get(id(x), x.node) for x in reversed(outputs)]
    order, done, met, stack = [], set(), {}, [node for node in ends if node is not None]
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
            continue
        met.setdefault(_owner(node), len(met))
        waiting = [n for n in sources(node) if id(n) not in done]
        if waiting:
            stack.extend(reversed(waiting))
            continue
        stack.pop()
        done.add(id(node))
        order.append(node)
    depths, layers = {}, {}
    for node in reversed(order):
        depth = max(depths.get(id(node), 0), layers.get(_owner(node), 0))
        depths[id(node)] = layers[_owner(node)] = depth
        for source in sources(node):
            depths[id(source)] = max(depths.get(id(source), 0), depth + 1)
    unused = [node for node in starts.values() if id(node) not in done]
    first = sorted(order, key=lambda node: (-depths[id(node)], met[_owner(node)]))
    place = next((i for i, node in enumerate(first) if depths[id(node)] == 0), len(first))
    return first[:place] + unused + first[place:]


def _owner(node):
    return id(node.function if isinstance(node.function, Layer) else node)


def _fill(structure, leaves, places, values):
    """Return the arguments of a step, with values in the places of symbols."""
    filled = list(leaves)
    for i, slot in places:
        filled[i] = values[slot]
    return tree.pack_sequence_as(structure, filled)


def _listed(slots, values):
    """Return the arguments of a step that takes one list of tensors."""
    return ([values[slot] for slot in slots],), {}


_FRESH = (layers.Conv2D, layers.DepthwiseConv2D, layers.BatchNormalization)
_IN_PLACE = {getattr(activations, k): v for k, v in getattr(active, "OVERWRITING", {}).items()}


def _is_fresh(symbol):
    """Whether the tensor that a step makes for a symbol has memory of its own."""
    return symbol.node is not None and type(symbol.node.function) in _FRESH


def _overwriting(layer, source):
    """The step of an activation whose input nobody needs after it: its place is the result's.

    source: the layer that makes the input; a hook may have kept it
    """
    in_place = _IN_PLACE.get(layer.activation)

    def step(x):
        plain = layer._quick and not source._hooked and not MASKS
        return in_place(x) if plain and x.dtype is layer._native_dtype else layer(x)

    return layer if in_place is None else step


def _shapes(tensors):
    shapes = [x.shape for x in tensors]
    return shapes[0] if len(shapes) == 1 else shapes


def _of_rank(x, symbol):
    """A value with or without a last axis of one, as the symbol has it."""
    shape, wanted = getattr(x, "shape", symbol.shape), symbol.shape
    if len(shape) + 1 == len(wanted) and wanted[-1] == 1:
        return x[..., None]
    return x[..., 0] if len(shape) == len(wanted) + 1 and shape[-1] == 1 else x


class _Program:
    """Steps (function, slots of arguments, slot of result) over a flat list of values.

    A step puts its result where a value lay that no later step needs, so that memory is free again
    as soon as in a hand-written loop.
    """

    def __init__(self, inputs, outputs, nodes):
        slots = {id(x): i for i, x in enumerate(inputs)}
        needed = {}  # id of a symbol -> the last step that takes it
        for i, node in enumerate(nodes):
            needed |= dict.fromkeys(map(id, node.parents), i)
        needed |= dict.fromkeys(map(id, outputs), len(nodes))
        self.steps, self.size, free = [], len(inputs), []
        for i, node in enumerate(nodes):
            flat = [x for x in tree.flatten(node.outputs) if is_symbolic(x)]
            plain = (
                len(node.args) == 1
                and is_symbolic(node.args[0])
                and not node.kwargs
                and is_symbolic(node.outputs)
            )
            if plain:
                self._check(node.args[0], slots, inputs)
                source, fill = slots[id(node.args[0])], None
            else:
                source, fill = None, self._filler(node, slots, inputs)
            free += dict.fromkeys(slots[id(x)] for x in node.parents if needed[id(x)] == i)
            function = node.function
            if plain and type(function) is layers.Activation:
                (given,) = node.parents
                if _is_fresh(given) and needed[id(given)] == i:
                    function = _overwriting(function, given.node.function)
            targets = []
            for x in flat:
                if not free:
                    free.append(self.size)
                    self.size += 1
                slots[id(x)] = free.pop()
                targets.append(slots[id(x)])
            free += [slots[id(x)] for x in flat if id(x) not in needed]
            target = targets[0] if is_symbolic(node.outputs) else targets
            self.steps.append((function, source, fill, target))
        for x in outputs:
            self._check(x, slots, inputs)
        self.results = [slots[id(x)] for x in outputs]

    @staticmethod
    def _check(x, slots, inputs):
        if id(x) not in slots:
            raise ValueError(
                f"{x!r} is not connected to the model's inputs "
                f"{[i.name for i in inputs]}; add the Input "
                "it comes from to `inputs`."
            )

    def _filler(self, node, slots, inputs):
        leaves = tree.flatten((node.args, node.kwargs))
        for x in leaves:
            if is_symbolic(x):
                self._check(x, slots, inputs)
        places = [(i, slots[id(x)]) for i, x in enumerate(leaves) if is_symbolic(x)]
        listed = len(node.args) == 1 and type(node.args[0]) is list and not node.kwargs
        if listed and all(map(is_symbolic, node.args[0])):  # as what joins tensors takes them
            return partial(_listed, [slot for _, slot in places])
        return partial(_fill, (node.args, node.kwargs), leaves, places)

    def run(self, inputs):
        """Return the values of the outputs for these values of the inputs."""
        values = [*inputs, *[None] * (self.size - len(inputs))]
        for function, source, fill, target in self.steps:
            if source is not None:
                values[target] = function(values[source])
                continue
            args, kwargs = fill(values)
            result = function(*args, **kwargs)
            if type(target) is int:
                values[target] = result
            else:
                for slot, value in zip(target, tree.flatten(result), strict=True):
                    values[slot] = value
        return [values[i] for i in self.results]


class Functional(Model):
    """A model between symbolic tensors, each a tensor or a list, tuple or dict of them."""

    _module = "keras.src.models.functional"

    def __init__(self, inputs=None, outputs=None, name=None, **kwargs):
        if inputs is None or outputs is None:
            raise TypeError("Model(inputs, outputs) needs both.")
        Model.__init__(self, name=name, **kwargs)
        self._connect(inputs, outputs)

    def _connect(self, inputs, outputs):
        """Become the model between these symbolic tensors."""
        for what, structure in (("inputs", inputs), ("outputs", outputs)):
            for x in tree.flatten(structure):
                if not isinstance(x, KerasTensor):
                    raise ValueError(
                        f"{what} must be symbolic tensors made from Input(), got {x!r}."
                    )
        self._inputs_structure, self._outputs_structure = inputs, outputs
        self.inputs, self.outputs = tree.flatten(inputs), tree.flatten(outputs)
        self._input_layers = []
        for x in self.inputs:
            layer = getattr(x, "input_layer", None)
            self._input_layers.append(layer or InputLayer(input_tensor=x, name=x.name))
        starts = {
            id(x): Node(layer, (), {}, x)
            for x, layer in zip(self.inputs, self._input_layers, strict=True)
        }
        nodes = _sorted_nodes(self.outputs, starts)
        found = [node.function for node in nodes if isinstance(node.function, Layer)]
        self._ordered = list({id(layer): layer for layer in found}.values())
        self._nodes = [node for node in nodes if not isinstance(node.function, InputLayer)]
        self._program = _Program(self.inputs, self.outputs, self._nodes)
        alone = isinstance(outputs, (list, tuple)) and len(outputs) == 1
        self._bare = is_symbolic(outputs[0] if alone else outputs)  # as it comes, in no list
        self._single = self._bare and len(self.inputs) == 1 and is_symbolic(inputs)
        self._rank = len(self.inputs[0].shape)
        self.built = True
        if not self._trainable:
            self.trainable = False  # reaches the layers
        self._prepare()
        # nothing below needs masks, training or hooks here: the steps' own calls look after them
        self._quick = self._single and not self._hooked and not self._reports()

    @property
    def input(self):
        """The symbolic input or inputs."""
        return self._inputs_structure

    @property
    def output(self):
        """The symbolic output or outputs."""
        return self._outputs_structure

    @property
    def input_shape(self):
        """The shape of the input, or the list of shapes of several."""
        return _shapes(self.inputs)

    @property
    def output_shape(self):
        """The shape of the output, or the list of shapes of several."""
        return _shapes(self.outputs)

    @property
    def layers(self):
        """The layers in the order of the graph, the deepest first: as Keras has them."""
        return list(self._ordered)

    def _members(self):
        for layer in self.layers:
            if not isinstance(layer, InputLayer):
                yield layer.name, layer
        known = {id(layer) for layer in self.layers}
        for path, value in super()._members():
            if id(value) not in known and not path.startswith("_input_layers"):
                yield path, value

    def call(self, inputs, training=None, mask=None):
        """Run the graph; layers take `training` from the call around them."""
        if mask is not None:
            return self._call_with_masks(inputs, mask)
        if self._single and type(inputs) not in (list, tuple, dict):
            if getattr(inputs, "ndim", self._rank) != self._rank:
                inputs = _of_rank(inputs, self.inputs[0])
            return self._program.run((inputs,))[0]
        results = self._program.run(self._arrange(inputs))
        return results[0] if self._bare else tree.pack_sequence_as(self._outputs_structure, results)

    def _call_with_masks(self, inputs, mask):
        marked = [
            (x, given)
            for x, given in zip(tree.flatten(inputs), tree.flatten(mask), strict=False)
            if given is not None and get_mask(x) is None
        ]
        try:
            for x, given in marked:
                set_mask(x, given)
            return self.call(inputs)
        finally:
            for x, _ in marked:  # the caller's tensors are as they were
                set_mask(x, None)

    def _arrange(self, inputs):
        """Put the given inputs in the order of the model's; dicts go by name."""
        structure = self._inputs_structure
        if isinstance(inputs, dict):
            names = structure if isinstance(structure, dict) else [x.name for x in self.inputs]
            if missing := [name for name in names if name not in inputs]:
                raise ValueError(f"{self.name} lacks the inputs {missing}, got {sorted(inputs)}.")
            found = {name: inputs[name] for name in names}
            inputs = found if isinstance(structure, dict) else list(found.values())
        flat = tree.flatten(inputs)
        if len(flat) != len(self.inputs):
            raise ValueError(f"{self.name} takes {len(self.inputs)} inputs, got {len(flat)}.")
        return list(map(_of_rank, flat, self.inputs))

    def get_config(self):
        if (
            type(self) is not Functional
        ):  # a subclass is described by its own constructor's arguments
            return super().get_config()
        return functional_config(self)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a model from `get_config()`'s result."""
        if "input_layers" not in config:
            return cls(**config)
        return functional_from_config(cls, config, custom_objects)
