"""Recurrent layers: cells that make one step, and layers that run a cell over time.

Three ways, the fastest that the arguments allow: the framework's fused kernel (`recurrent` of the
torch backend); the steps compiled as one program (`compiled` of JAX); step by step.
What does not depend on the state (the product of inputs and kernel) is computed for all steps at
once in the latter two, but on JAX's CPUs; only the rest runs in `ops.scan`.
"""

import inspect
import warnings

import numpy as np

from khub import activations, fields, initializers, ops, random, tree
from khub.backend import name as backend_name
from khub.backend import windows
from khub.backend.host import here
from khub.backend.scope import Scope, local
from khub.backend.variable import Variable
from khub.fields import Initializer, Initializers, Penalties, PositiveInt, Rate
from khub.layers.layer import InputSpec, Layer
from khub.saving import registry


class _ForgetBias(initializers.Host):
    """The biases of four gates, those of the forget gate 1.  Jozefowicz et al., ICML 2015"""

    initializer: Initializer

    def draw_seed(self):
        drawn = getattr(self.initializer, "draw_seed", None)
        return 0 if drawn is None else drawn()

    def sample(self, shape, dtype, seed):
        if isinstance(self.initializer, initializers.Host):
            values = np.array(self.initializer.sample(shape, dtype, seed))
        else:
            values = np.array(ops.convert_to_numpy(self.initializer(shape, dtype)))
        quarter = shape[-1] // 4
        values[quarter : 2 * quarter] = 1
        return values


_STARTS = Initializers(kernel="glorot_uniform", recurrent="orthogonal", bias="zeros")


class _Cell(Layer):
    """One step: (inputs, states) -> (output, states).

    `project` is the part that needs no state, `step` the rest. Dropout draws one mask a sequence,
    the same for all steps.  arXiv:1512.05287
    """

    _gates = 1
    _states = 1
    _fused = None  # the name of the fused kernel
    _usual = {"activation": "tanh", "recurrent_activation": "sigmoid", "reset_after": True}

    penalties: Penalties("kernel", "recurrent", "bias")
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    seed: int = None

    def setup(self):
        if self.dropout > 0 or self.recurrent_dropout > 0:
            self.seed_generator = random.SeedGenerator(self.seed)

    @property
    def state_size(self):
        """The width of each state."""
        return self.units if self._states == 1 else [self.units] * self._states

    @property
    def output_size(self):
        """The width of the output."""
        return self.units

    def build(self, input_shape):
        self._add_weights((input_shape[-1],), (self.units,), self.units)

    def _add_weights(self, inputs, states, units, bias_shape=None):
        """Make kernel, recurrent_kernel and bias; the shapes are without the gates."""
        wide = self._gates * units
        self.kernel = self.add_weight((*inputs, wide), name="kernel")
        self.recurrent_kernel = self.add_weight((*states, wide), name="recurrent_kernel")
        self.bias = None
        if self.use_bias:
            initializer = self.bias_initializer
            if getattr(self, "unit_forget_bias", False):
                initializer = _ForgetBias(initializer)
            self.bias = self.add_weight(bias_shape or (wide,), initializer, name="bias")

    def get_initial_state(self, batch_size=None):
        """Return the states before the first step: zeros (batch, units)."""
        shape = batch_size, self.units
        return [ops.zeros(shape, self.compute_dtype) for _ in range(self._states)]

    def zero_states(self, inputs):
        """Return the states before a step with `inputs` (batch, ...)."""
        return self.get_initial_state(ops.shape(inputs)[0])

    def project(self, inputs):
        return ops.linear(inputs, self.kernel, self.bias)

    def _masks(self, inputs, training):
        """Dropout's masks for inputs like these (no time axis) and for the state, or None."""

        def draw(like, rate):
            return random.dropout(ops.ones_like(like), rate, seed=self.seed_generator)

        inputs_mask = draw(inputs, self.dropout) if training and self.dropout else None
        if not (training and self.recurrent_dropout):
            return inputs_mask, None
        return inputs_mask, draw(self.zero_states(inputs)[0], self.recurrent_dropout)

    def drop(self, sequence, training):
        """Return (batch, time, ...) after dropout, and the mask for the state."""
        mask, recurrent = self._masks(sequence[:, 0], training)
        return sequence if mask is None else sequence * ops.expand_dims(mask, 1), recurrent

    def unusual(self):
        """Return what fused kernels, made for the defaults, cannot compute; None: nothing."""
        for field, usual in self._usual.items():
            value = getattr(self, field, None)
            known = activations.get(usual) if isinstance(usual, str) else usual
            if value is not None and value is not known:
                return f"{field}={getattr(value, '__name__', value)}"
        return None

    def stepper(self, inputs, training):
        """Return a function (inputs, states) -> (output, states) whose masks stay the same."""
        mask, recurrent = self._masks(inputs, training)

        def step(x, states):
            return self.step(self.project(x if mask is None else x * mask), states, recurrent)

        return step

    def call(self, inputs, states, training=False):
        output, new = self.stepper(inputs, training)(inputs, _as_states(states))
        return output, new if isinstance(states, (list, tuple)) else new[0]


class SimpleRNNCell(_Cell):
    """h' = activation(x @ kernel + h @ recurrent_kernel + bias)

    inputs (batch, n), [h (batch, units)]  ->  h', [h']
    Weights: kernel (n, units), recurrent_kernel (units, units), bias (units,)
    """

    _fused = "rnn_tanh"

    units: PositiveInt
    activation: fields.Activation = "tanh"
    use_bias: bool = True
    starts: _STARTS

    def step(self, projected, states, mask):
        h = states[0] if mask is None else states[0] * mask
        h = self.activation(projected + ops.matmul(h, self.recurrent_kernel))
        return h, [h]


class _LSTMCell(_Cell):
    """The step of an LSTM; `recur` is the product of its state and recurrent_kernel."""

    _gates = 4
    _states = 2
    _axis = -1

    activation: fields.Activation = "tanh"
    recurrent_activation: fields.Activation = "sigmoid"
    use_bias: bool = True
    starts: _STARTS
    unit_forget_bias: bool = True

    def step(self, projected, states, mask):
        h, c = states
        gates = projected + self.recur(h if mask is None else h * mask)
        i, f, g, o = ops.split(gates, 4, axis=self._axis)
        c = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]


class LSTMCell(_LSTMCell):
    """i, f, g, o = x @ kernel + h @ recurrent_kernel + bias;  c' = f c + i g;  h' = o act(c')

    inputs (batch, n), [h, c] (batch, units)  ->  h', [h', c'].  Neural Computation 9, 1735 (1997)
    Weights: kernel (n, 4 units), recurrent_kernel (units, 4 units), bias (4 units,)
    """

    _fused = "lstm"

    units: PositiveInt

    def recur(self, h):
        return ops.matmul(h, self.recurrent_kernel)


class GRUCell(_Cell):
    """h' = z h + (1 - z) act(candidate), gates z (update) and r (reset).  arXiv:1406.1078

    reset_after: whether r scales the product of state and kernel (arXiv:1412.3555's variant that
    cuDNN has) or the state before it.  inputs (batch, n), [h (batch, units)]  ->  h', [h']
    Weights: kernel (n, 3 units), recurrent_kernel (units, 3 units), bias (2, 3 units) or (3 units,)
    """

    _gates = 3
    _fused = "gru"

    units: PositiveInt
    activation: fields.Activation = "tanh"
    recurrent_activation: fields.Activation = "sigmoid"
    use_bias: bool = True
    starts: _STARTS
    penalties: Penalties("kernel", "recurrent", "bias")
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    reset_after: bool = True
    seed: int = None

    def build(self, input_shape):
        bias = (2, 3 * self.units) if self.reset_after else None
        self._add_weights((input_shape[-1],), (self.units,), self.units, bias)

    def project(self, inputs):
        bias = self.bias
        if bias is not None and self.reset_after:
            bias = bias[0]
        return ops.linear(inputs, self.kernel, bias)

    def step(self, projected, states, mask):
        h = states[0]
        seen = h if mask is None else h * mask
        n, kernel = self.units, self.recurrent_kernel
        bias = self.bias[1] if self.reset_after and self.bias is not None else None
        inner = ops.linear(seen, kernel if self.reset_after else kernel[:, : 2 * n], bias)
        parts = ops.split(projected, 3, axis=-1)
        inner = ops.split(inner, 3 if self.reset_after else 2, axis=-1)
        z, r = (self.recurrent_activation(x + y) for x, y in zip(parts[:2], inner))
        candidate = r * inner[2] if self.reset_after else ops.matmul(r * seen, kernel[:, 2 * n :])
        h = z * h + (1 - z) * self.activation(parts[2] + candidate)
        return h, [h]


class _ConvLSTMCell(_LSTMCell):
    """An LSTM cell whose products are convolutions.  arXiv:1506.04214

    inputs (batch, *space, n), [h, c] (batch, *space', filters)  ->  h', [h', c']
    Weights: kernel (*kernel_size, n, 4 filters), recurrent_kernel (*kernel_size, filters,
    4 filters), bias (4 filters,)
    """

    _space = 2

    filters: PositiveInt
    kernel_size: object
    strides: object = 1
    padding: fields.Choice("valid", "same") = "valid"
    data_format: fields.DataFormat = None
    dilation_rate: object = 1

    def setup(self):
        super().setup()
        for name in ("kernel_size", "strides", "dilation_rate"):
            setattr(self, name, windows.per_axis(getattr(self, name), self._space, name, 1))
        self._axis = 1 if windows.channels_first(self.data_format) else -1

    state_size = property(lambda self: [self.filters, self.filters])
    output_size = property(lambda self: self.filters)

    def build(self, input_shape):
        channels = input_shape[self._axis]
        states = (*self.kernel_size, self.filters)
        self._add_weights((*self.kernel_size, channels), states, self.filters)

    def project(self, inputs):
        shape = ops.shape(inputs)
        steps = len(shape) > self._space + 2
        if steps:
            inputs = ops.reshape(inputs, (-1, *shape[2:]))
        y = ops.conv(
            inputs, self.kernel, self.strides, self.padding, self.data_format, self.dilation_rate
        )
        if self.bias is not None:
            wide = [1] * (self._space + 2)
            wide[self._axis] = -1
            y = y + ops.reshape(self.bias, wide)
        return ops.reshape(y, (*shape[:2], *ops.shape(y)[1:])) if steps else y

    def zero_states(self, inputs):
        shape = list(ops.shape(self.project(inputs)))
        shape[self._axis] = self.filters
        return [ops.zeros(shape, self.compute_dtype) for _ in range(2)]

    def recur(self, h):
        return ops.conv(h, self.recurrent_kernel, 1, "same", self.data_format)


class StackedRNNCells(Layer):
    """Cells one above the other; the states of all are the state of the stack."""

    cells: list

    def setup(self):
        self.cells = [registry.get("layers", cell) for cell in self.cells]
        for cell in self.cells:
            if not hasattr(cell, "state_size"):
                raise ValueError(f"StackedRNNCells takes cells with a state_size, got {cell!r}.")

    @property
    def state_size(self):
        """The widths of the states, a list for each cell that has several."""
        return [cell.state_size for cell in self.cells]

    @property
    def output_size(self):
        """The width of the last cell's output."""
        return getattr(self.cells[-1], "output_size", self.cells[-1].state_size)

    def build(self, input_shape):
        for cell in self.cells:
            if not cell.built:
                cell.build(input_shape)
            width = getattr(cell, "output_size", None) or tree.flatten(cell.state_size)[0]
            input_shape = (*input_shape[:-1], width)

    def get_initial_state(self, batch_size=None):
        """Return the states of all cells."""
        return [_initial_states(cell, batch_size) for cell in self.cells]

    def stepper(self, inputs, training):
        """Return a function (inputs, states) -> (output, states): the step of each cell."""
        steps = []
        for cell in self.cells:
            steps.append(_step(cell, inputs, training))
            width = getattr(cell, "output_size", 1)
            inputs = ops.zeros((ops.shape(inputs)[0], width), self.compute_dtype)

        def step(x, states):
            new = []
            for one, state in zip(steps, states, strict=True):
                x, state = one(x, _as_states(state))
                new.append(state)
            return x, new

        return step

    def call(self, inputs, states, training=False):
        return self.stepper(inputs, training)(inputs, states)


def _initial_states(cell, batch_size):
    """The states a cell begins with: its own, or zeros where it does not say."""
    if hasattr(cell, "get_initial_state"):
        return _as_states(cell.get_initial_state(batch_size=batch_size))
    sizes = _as_states(cell.state_size)
    return [ops.zeros((batch_size, size), cell.compute_dtype) for size in sizes]


def _as_states(states):
    return list(states) if isinstance(states, (list, tuple)) else [states]


def _step(cell, inputs, training):
    """Return a cell's step for inputs like these; a cell of the user's may take no `training`."""
    if isinstance(cell, (_Cell, StackedRNNCells)):
        return cell.stepper(inputs, training)
    takes = "training" in inspect.signature(cell.call).parameters
    options = {"training": training} if takes else {}

    def step(x, states):
        output, states = cell(x, states, **options)
        return output, _as_states(states)

    return step


class _Recurrent(Layer):
    """What runs a cell over time."""

    _rank = 3
    supports_masking = True
    _keras_keys = {"activity_regularizer": None}

    def setup(self):
        if not hasattr(self.cell, "state_size"):
            raise ValueError(
                f"{type(self).__name__} needs a cell with state_size and call(inputs, states), got "
                f"{self.cell!r}."
            )
        self.input_spec = InputSpec(ndim=self._rank) if isinstance(self.cell, _Cell) else None
        self._state_variables = self._program = None
        self._warned = False

    def build(self, sequences_shape, initial_state_shape=None):
        if isinstance(sequences_shape, list):
            sequences_shape = sequences_shape[0]
        step_shape = (sequences_shape[0], *sequences_shape[2:])
        if not self.cell.built:
            self.cell.build(step_shape)
        if self.input_spec is not None:
            axis = 2 if getattr(self.cell, "_axis", -1) == 1 else -1
            self.input_spec = InputSpec(ndim=self._rank, axes={axis: sequences_shape[axis]})
        if self.stateful:
            if sequences_shape[0] is None:
                raise ValueError(
                    f"{self.name} is stateful: its input needs a known batch size "
                    "(Input(batch_shape=...))."
                )
            states = self._first_states(ops.zeros(step_shape, self.compute_dtype))
            self._state_variables = [
                Variable("zeros", shape=state.shape, dtype=self.compute_dtype, trainable=False)
                for state in tree.flatten(states)
            ]

    def _first_states(self, inputs):
        """The states before a step with `inputs` (batch, ...)."""
        if isinstance(self.cell, _Cell):
            return self.cell.zero_states(inputs)
        return self.get_initial_state(ops.shape(inputs)[0])

    @property
    def states(self):
        """The states that a stateful layer keeps, as Variables."""
        return self._state_variables

    def reset_state(self):
        """Set the states that a stateful layer keeps to zero."""
        for variable in self._state_variables or ():
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    reset_states = reset_state

    def get_initial_state(self, batch_size):
        """Return the states before the first step."""
        return _initial_states(self.cell, batch_size)

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if isinstance(sequences, (list, tuple)):
            sequences, *initial_state = sequences
        if isinstance(mask, (list, tuple)):
            mask = mask[0]
        mask = None if mask is None else ops.cast(mask, "bool")
        if self.go_backwards:
            sequences = ops.flip(sequences, 1)
            mask = None if mask is None else ops.flip(mask, 1)
        cell, dropped = self.cell, None
        builtin = isinstance(cell, _Cell)
        if builtin:
            if problem := self._spec_problem([sequences]):  # fused kernels would read beyond
                raise ValueError(problem)
            sequences, dropped = cell.drop(sequences, training)
        states = initial_state
        if states is None or (isinstance(states, (list, tuple)) and not states):
            states = self._first_states(sequences[:, 0])
            if self.stateful:
                states = tree.pack_sequence_as(states, [v.value for v in self._state_variables])
        else:
            states = tree.map_structure(ops.convert_to_tensor, _as_states(states))
        if builtin:
            outputs, last, states = self._sweep(sequences, states, mask, dropped)
        else:
            step = _step(cell, sequences[:, 0], training)
            xs = ops.swapaxes(sequences, 0, 1)
            outputs, last, states = self._run(step, xs, states, mask)
        if self.stateful:
            for variable, state in zip(self._state_variables, tree.flatten(states), strict=True):
                variable.assign(state)
        result = outputs if self.return_sequences else last
        return (result, *states) if self.return_state else result

    def _sweep(self, sequences, states, mask, dropped):
        """Run a cell of ours in the fastest way; return what `_run` does."""
        cell, use = self.cell, getattr(self, "use_cudnn", "auto")
        native, compiled = (getattr(here(), each, None) for each in ("recurrent", "compiled"))
        obstacle = None
        if self.unroll or use is False:
            obstacle = f"unroll={self.unroll}"
        elif native is not None:
            obstacle = cell.unusual() if dropped is None else "recurrent_dropout"
            obstacle = obstacle or self._native(native, sequences, states, mask)
            if not isinstance(obstacle, str):
                return obstacle
        elif compiled is None:
            obstacle = f"the {backend_name} backend has none"
        if obstacle and use is True and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name} has use_cudnn=True, but the fused kernel cannot run ({obstacle}); "
                "the layer runs step by step, which is slower.",
                stacklevel=3,
            )
        values = [v.value for v in cell._added]
        if obstacle or compiled is None or local.host:
            return self._steps(values, sequences, states, mask, dropped)
        if self._program is None or self._program[0] != id(self):  # a copy has weights of its own
            self._program = id(self), compiled(self._steps)
        return self._program[1](values, sequences, states, mask, dropped)

    def _native(self, kernel, sequences, states, mask):
        """Return what `_run` does, or a text that says why the fused kernel cannot."""
        cell = self.cell
        if cell._fused is None:
            return f"there is none for {type(cell).__name__}"
        values = [v.value for v in cell._added]
        found = kernel(cell._fused, sequences, states, values, mask, self.zero_output_for_mask)
        return found if isinstance(found, str) else (found[0], found[1][0], found[1])

    def _steps(self, values, sequences, states, mask, dropped):
        """Run a cell of ours step by step, with `values` as its weights."""
        cell, xs = self.cell, ops.swapaxes(sequences, 0, 1)
        inside = getattr(here(), "projects_in_steps", bool)()

        def step(x, states):
            return cell.step(cell.project(x) if inside else x, states, dropped)

        with Scope(zip(cell._added, values, strict=True)):
            return self._run(step, xs if inside else cell.project(xs), states, mask)

    def _run(self, step, xs, states, mask):
        """Return all outputs (batch, time, ...), the last one, and the last states.

        xs: (time, batch, ...)
        """
        mask = None if mask is None else ops.swapaxes(mask, 0, 1)

        def advance(carry, now):
            if mask is None:
                output, new = step(now, carry)
                return new, output
            states, *before = carry
            x, kept = now
            output, new = step(x, states)

            def choose(a, b):
                return ops.where(ops.expand_dims(kept, tuple(range(1, len(a.shape)))), a, b)

            new = tree.map_structure(choose, new, states)
            output = choose(output, before[0] if before else ops.zeros_like(output))
            return (new, *([output] if before else [])), output

        if mask is None:
            carry = states
        elif self.zero_output_for_mask:
            carry = (states,)
        else:
            first, _ = step(xs[0], states)
            carry = states, ops.zeros_like(first)
        if self.unroll:
            found = []
            for i in range(xs.shape[0]):
                carry, y = advance(carry, xs[i] if mask is None else (xs[i], mask[i]))
                found.append(y)
            outputs = ops.stack(found)
        else:
            carry, outputs = ops.scan(advance, carry, xs if mask is None else (xs, mask))
        states = carry if mask is None else carry[0]
        return ops.swapaxes(outputs, 0, 1), outputs[-1], states

    def compute_mask(self, _, mask):
        mask = tree.flatten(mask)[0] if mask is not None else None
        mask = mask if self.return_sequences else None
        if self.return_state:
            return [mask, *[None] * len(tree.flatten(self.cell.state_size))]
        return mask


class RNN(_Recurrent):
    """Runs a cell, or a list of cells, over time.

    cell: a layer with `state_size` and `call(inputs, states) -> (output, states)`
    (batch, time, n)  ->  (batch, width), with return_sequences (batch, time, width), with
    return_state also the last states. stateful: a batch begins where the last one ended.
    Masked steps leave the state as it is and repeat the output, or give zeros if told so.
    """

    cell: object
    return_sequences: bool = False
    return_state: bool = False
    go_backwards: bool = False
    stateful: bool = False
    unroll: bool = False
    zero_output_for_mask: bool = False

    def setup(self):
        if isinstance(self.cell, (list, tuple)):
            self.cell = StackedRNNCells(list(self.cell))
        self.cell = registry.get("layers", self.cell)
        super().setup()


class _OfOneCell(_Recurrent):
    """Base of layers that make their cell themselves, of the fields of the same names."""

    _cell = None  # the cell's class

    def setup(self):
        own = [name for name, *_ in self._cell._fields]
        options = {name: getattr(self, name) for name in own}
        options |= {"dtype": self.dtype_policy, "trainable": self._trainable}
        name = registry.snake_case(self._cell.__name__.lstrip("_"))
        self.cell = self._cell(**options, name=name)
        for name in own:  # as the cell has them: kernel_size=3 is (3, 3)
            setattr(self, name, getattr(self.cell, name))
        super().setup()


def _add_layer(name, cell, tail, **members):
    """Define the layer that runs a cell: the cell's fields, then those named in `tail`.

    Keras has them in another order in each of its layers, and code gives them by position.
    """
    known = {field[0]: field for field in (*RNN._fields, *cell._fields, *_LAYERS_OWN)}
    order = [field for field, *_ in cell._fields if field not in tail]
    order.insert(order.index("bias_regularizer") + 1, "activity_regularizer")
    order += [*tail, "zero_output_for_mask"]
    what = cell.__name__.lstrip("_")
    doc = f"Runs {what} over time; arguments of the cell and of `RNN`.\n\n    {cell.__doc__}"
    members |= {
        "__doc__": doc,
        "__annotations__": {"options": [known[field] for field in order]},
        "_cell": cell,
    }
    globals()[name] = type(name, (_OfOneCell,), members)
    __all__.append(name)


__all__ = ["GRUCell", "LSTMCell", "RNN", "SimpleRNNCell", "StackedRNNCells"]
_LAYERS_OWN = ("use_cudnn", None, "auto"), *Penalties("activity")
_switches = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll")
for _name, _cell, _tail, _unsaved in (
    ("SimpleRNN", SimpleRNNCell, ("dropout", "recurrent_dropout", *_switches, "seed"), "seed"),
    ("LSTM", LSTMCell, ("seed", *_switches, "use_cudnn"), "use_cudnn"),
    ("GRU", GRUCell, ("seed", *_switches, "reset_after", "use_cudnn"), "use_cudnn"),
):
    _add_layer(_name, _cell, _tail, _unsaved=(_unsaved,))
for _space in (1, 2, 3):
    _members = {"_space": _space, "__doc__": _ConvLSTMCell.__doc__}
    _add_layer(
        f"ConvLSTM{_space}D",
        type("_ConvLSTMCell", (_ConvLSTMCell,), _members),
        ("seed", *_switches[:-1]),
        _rank=_space + 3,
        unroll=False,
        _keras_keys={"activity_regularizer": None, "unroll": False},
    )
