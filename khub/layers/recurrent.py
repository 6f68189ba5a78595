"""Recurrent layers: cells that make one step, and layers that run a cell over time.

What does not depend on the state (the product of inputs and kernel) is computed for all steps at
once; only the rest runs step by step, in `ops.scan`.
"""

import inspect

import numpy as np

from khub import fields, initializers, ops, random, tree
from khub.backend import windows
from khub.backend.variable import Variable
from khub.fields import Constraint, Initializer, PositiveInt, Rate, Regularizer
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


class _Cell(Layer):
    """One step: (inputs, states) -> (output, states).

    `project` is the part that needs no state, `step` the rest; `prepare` does the first for a
    whole sequence. Dropout draws one mask a sequence, the same for all steps.  arXiv:1512.05287
    """

    _gates = 1
    _states = 1

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
        self._width = inputs[-1]
        self.kernel = self.add_weight((*inputs, wide), name="kernel")
        self.recurrent_kernel = self.add_weight(
            (*states, wide),
            self.recurrent_initializer,
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
            name="recurrent_kernel",
        )
        self.bias = None
        if self.use_bias:
            initializer = self.bias_initializer
            if getattr(self, "unit_forget_bias", False):
                initializer = _ForgetBias(initializer)
            self.bias = self.add_weight(bias_shape or (wide,), initializer, name="bias")

    def get_initial_state(self, batch_size=None):
        """Return the states before the first step: zeros (batch, units)."""
        return [
            ops.zeros((batch_size, self.units), self.compute_dtype) for _ in range(self._states)
        ]

    def zero_states(self, projected):
        """Return the states before the first of `projected` (batch, time, ...)."""
        return self.get_initial_state(ops.shape(projected)[0])

    def project(self, inputs):
        return ops.linear(inputs, self.kernel, self.bias)

    def _masks(self, inputs, training):
        """Dropout's masks for inputs like these (no time axis) and for the state, or None."""
        if not training:
            return None, None

        def draw(like, rate):
            return random.dropout(ops.ones_like(like), rate, seed=self.seed_generator)

        inputs_mask = draw(inputs, self.dropout) if self.dropout else None
        if not self.recurrent_dropout:
            return inputs_mask, None
        state = self.zero_states(ops.expand_dims(self.project(inputs), 1))[0]
        return inputs_mask, draw(state, self.recurrent_dropout)

    def prepare(self, sequence, training):
        """Return what a step needs of each time of (batch, time, ...), and the step."""
        mask, recurrent = self._masks(sequence[:, 0], training)
        if mask is not None:
            sequence = sequence * ops.expand_dims(mask, 1)
        return self.project(sequence), lambda x, states: self.step(x, states, recurrent)

    def stepper(self, inputs, training):
        """Return a function (inputs, states) -> (output, states) whose masks stay the same."""
        mask, recurrent = self._masks(inputs, training)

        def step(x, states):
            return self.step(self.project(x if mask is None else x * mask), states, recurrent)

        return step

    def call(self, inputs, states, training=False):
        alone = not isinstance(states, (list, tuple))
        output, new = self.stepper(inputs, training)(inputs, [states] if alone else states)
        return output, new[0] if alone else new


class SimpleRNNCell(_Cell):
    """h' = activation(x @ kernel + h @ recurrent_kernel + bias)

    inputs (batch, n), [h (batch, units)]  ->  h', [h']
    Weights: kernel (n, units), recurrent_kernel (units, units), bias (units,)
    """

    units: PositiveInt
    activation: fields.Activation = "tanh"
    use_bias: bool = True
    kernel_initializer: Initializer = "glorot_uniform"
    recurrent_initializer: Initializer = "orthogonal"
    bias_initializer: Initializer = "zeros"
    kernel_regularizer: Regularizer = None
    recurrent_regularizer: Regularizer = None
    bias_regularizer: Regularizer = None
    kernel_constraint: Constraint = None
    recurrent_constraint: Constraint = None
    bias_constraint: Constraint = None
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    seed: int = None

    def step(self, projected, states, mask):
        h = states[0] if mask is None else states[0] * mask
        h = self.activation(projected + ops.matmul(h, self.recurrent_kernel))
        return h, [h]


def _lstm(cell, gates, c, axis=-1):
    """Return an LSTM's output and states from the sums that go into its gates."""
    i, f, g, o = ops.split(gates, 4, axis=axis)
    c = cell.recurrent_activation(f) * c + cell.recurrent_activation(i) * cell.activation(g)
    h = cell.recurrent_activation(o) * cell.activation(c)
    return h, [h, c]


class LSTMCell(_Cell):
    """i, f, g, o = x @ kernel + h @ recurrent_kernel + bias;  c' = f c + i g;  h' = o act(c')

    inputs (batch, n), [h, c] (batch, units)  ->  h', [h', c'].  Neural Computation 9, 1735 (1997)
    Weights: kernel (n, 4 units), recurrent_kernel (units, 4 units), bias (4 units,)
    """

    _gates = 4
    _states = 2

    units: PositiveInt
    activation: fields.Activation = "tanh"
    recurrent_activation: fields.Activation = "sigmoid"
    use_bias: bool = True
    kernel_initializer: Initializer = "glorot_uniform"
    recurrent_initializer: Initializer = "orthogonal"
    bias_initializer: Initializer = "zeros"
    unit_forget_bias: bool = True
    kernel_regularizer: Regularizer = None
    recurrent_regularizer: Regularizer = None
    bias_regularizer: Regularizer = None
    kernel_constraint: Constraint = None
    recurrent_constraint: Constraint = None
    bias_constraint: Constraint = None
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    seed: int = None

    def step(self, projected, states, mask):
        h = states[0] if mask is None else states[0] * mask
        return _lstm(self, projected + ops.matmul(h, self.recurrent_kernel), states[1])


class GRUCell(_Cell):
    """h' = z h + (1 - z) act(candidate), gates z (update) and r (reset).  arXiv:1406.1078

    reset_after: whether r scales the product of state and kernel (arXiv:1412.3555's variant that
    cuDNN has) or the state before it.  inputs (batch, n), [h (batch, units)]  ->  h', [h']
    Weights: kernel (n, 3 units), recurrent_kernel (units, 3 units), bias (2, 3 units) or (3 units,)
    """

    _gates = 3

    units: PositiveInt
    activation: fields.Activation = "tanh"
    recurrent_activation: fields.Activation = "sigmoid"
    use_bias: bool = True
    kernel_initializer: Initializer = "glorot_uniform"
    recurrent_initializer: Initializer = "orthogonal"
    bias_initializer: Initializer = "zeros"
    kernel_regularizer: Regularizer = None
    recurrent_regularizer: Regularizer = None
    bias_regularizer: Regularizer = None
    kernel_constraint: Constraint = None
    recurrent_constraint: Constraint = None
    bias_constraint: Constraint = None
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
        if self.reset_after:
            inner = ops.linear(seen, kernel, None if self.bias is None else self.bias[1])
        else:
            inner = ops.matmul(seen, kernel[:, : 2 * n])
        z = self.recurrent_activation(projected[..., :n] + inner[..., :n])
        r = self.recurrent_activation(projected[..., n : 2 * n] + inner[..., n : 2 * n])
        if self.reset_after:
            candidate = r * inner[..., 2 * n :]
        else:
            candidate = ops.matmul(r * seen, kernel[:, 2 * n :])
        h = z * h + (1 - z) * self.activation(projected[..., 2 * n :] + candidate)
        return h, [h]


class _ConvLSTMCell(_Cell):
    """An LSTM cell whose products are convolutions.  arXiv:1506.04214

    inputs (batch, *space, n), [h, c] (batch, *space', filters)  ->  h', [h', c']
    Weights: kernel (*kernel_size, n, 4 filters), recurrent_kernel (*kernel_size, filters,
    4 filters), bias (4 filters,)
    """

    _gates = 4
    _states = 2
    _space = 2

    filters: PositiveInt
    kernel_size: object
    strides: object = 1
    padding: str = "valid"
    data_format: fields.DataFormat = None
    dilation_rate: object = 1
    activation: fields.Activation = "tanh"
    recurrent_activation: fields.Activation = "sigmoid"
    use_bias: bool = True
    kernel_initializer: Initializer = "glorot_uniform"
    recurrent_initializer: Initializer = "orthogonal"
    bias_initializer: Initializer = "zeros"
    unit_forget_bias: bool = True
    kernel_regularizer: Regularizer = None
    recurrent_regularizer: Regularizer = None
    bias_regularizer: Regularizer = None
    kernel_constraint: Constraint = None
    recurrent_constraint: Constraint = None
    bias_constraint: Constraint = None
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    seed: int = None

    def setup(self):
        super().setup()
        for name in ("kernel_size", "strides", "dilation_rate"):
            setattr(self, name, windows.per_axis(getattr(self, name), self._space, name))
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
            inputs,
            self.kernel,
            self.strides,
            self.padding,
            self.data_format,
            self.dilation_rate,
        )
        if self.bias is not None:
            wide = [1] * (self._space + 2)
            wide[self._axis] = -1
            y = y + ops.reshape(self.bias, wide)
        return ops.reshape(y, (-1, shape[1], *ops.shape(y)[1:])) if steps else y

    def zero_states(self, projected):
        shape = list(ops.shape(projected))
        del shape[1]
        shape[self._axis] = self.filters
        return [ops.zeros(shape, self.compute_dtype) for _ in range(2)]

    def step(self, projected, states, mask):
        h = states[0] if mask is None else states[0] * mask
        gates = ops.conv(h, self.recurrent_kernel, 1, "same", self.data_format)
        return _lstm(self, projected + gates, states[1], self._axis)


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
        return [_as_states(cell.get_initial_state(batch_size=batch_size)) for cell in self.cells]

    def call(self, inputs, states, training=False):
        new = []
        for cell, state in zip(self.cells, states, strict=True):
            inputs, state = _step(cell, training)(inputs, _as_states(state))
            new.append(state)
        return inputs, new


def _as_states(states):
    return list(states) if isinstance(states, (list, tuple)) else [states]


def _step(cell, training):
    """Return a cell's step; a cell of the user's may take no `training`."""
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
        self._state_variables = None

    def build(self, sequences_shape, initial_state_shape=None):
        if isinstance(sequences_shape, list):
            sequences_shape = sequences_shape[0]
        step_shape = (sequences_shape[0], *sequences_shape[2:])
        if not self.cell.built:
            self.cell.build(step_shape)
        if self.stateful:
            if sequences_shape[0] is None:
                raise ValueError(
                    f"{self.name} is stateful: its input needs a known batch size "
                    "(Input(batch_shape=...))."
                )
            self._state_variables = [
                Variable("zeros", shape=shape, dtype=self.compute_dtype, trainable=False)
                for shape in self._state_shapes(sequences_shape)
            ]

    def _state_shapes(self, sequences_shape):
        if isinstance(self.cell, _Cell):
            batch, _, *rest = sequences_shape
            states = self.cell.zero_states(
                self.cell.project(ops.zeros((batch, 1, *rest), self.compute_dtype))
            )
        else:
            states = self.cell.get_initial_state(batch_size=sequences_shape[0])
        return [tuple(s.shape) for s in tree.flatten(states)]

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
        return _as_states(self.cell.get_initial_state(batch_size=batch_size))

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if isinstance(sequences, (list, tuple)):
            sequences, *initial_state = sequences
        if isinstance(mask, (list, tuple)):
            mask = mask[0]
        cell = self.cell
        builtin = isinstance(cell, _Cell)
        if builtin:
            xs, step = cell.prepare(sequences, training)
            zeros = cell.zero_states
        else:
            xs, step = sequences, self._stepper(sequences, training)

            def zeros(xs):
                return self.get_initial_state(ops.shape(xs)[0])

        states = initial_state
        if states is None or (isinstance(states, (list, tuple)) and not states):
            states = zeros(xs)
            if self.stateful:
                states = tree.pack_sequence_as(states, [v.value for v in self._state_variables])
        else:
            states = _as_states(states)
        outputs, last, states = self._run(step, xs, states, mask)
        if self.stateful:
            for variable, state in zip(self._state_variables, tree.flatten(states), strict=True):
                variable.assign(state)
        result = outputs if self.return_sequences else last
        return (result, *states) if self.return_state else result

    def _stepper(self, sequences, training):
        cell = self.cell
        if not isinstance(cell, StackedRNNCells):
            return _step(cell, training)
        steps, x = [], sequences[:, 0]
        for one in cell.cells:
            own = isinstance(one, _Cell)
            steps.append(one.stepper(x, training) if own else _step(one, training))
            x = ops.zeros((ops.shape(x)[0], getattr(one, "output_size", 1)), self.compute_dtype)

        def step(x, states):
            new = []
            for one, state in zip(steps, states, strict=True):
                x, state = one(x, _as_states(state))
                new.append(state)
            return x, new

        return step

    def _run(self, step, xs, states, mask):
        """Return all outputs (batch, time, ...), the last one, and the last states."""
        xs = ops.swapaxes(xs, 0, 1)
        mask = None if mask is None else ops.swapaxes(ops.cast(mask, "bool"), 0, 1)
        if self.go_backwards:
            xs = ops.flip(xs, 0)
            mask = None if mask is None else ops.flip(mask, 0)

        def advance(carry, now):
            if mask is None:
                output, new = step(now, carry)
                return new, output
            states, *before = carry
            x, kept = now
            output, new = step(x, states)

            def choose(a, b):
                shape = (*ops.shape(kept), *[1] * (len(a.shape) - 1))
                return ops.where(ops.reshape(kept, shape), a, b)

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
        last = outputs[-1]
        return ops.swapaxes(outputs, 0, 1), last, states

    def compute_mask(self, inputs, previous_mask):
        mask = tree.flatten(previous_mask)[0] if previous_mask is not None else None
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


def _add_layer(name, cell, tail, switches, **members):
    """Define the layer that runs a cell: the cell's fields, then those of the layer in `tail`.

    Keras has them in another order in each of its layers, and code gives them by position.
    """
    annotations, defaults = {}, {}
    for field, annotation in inspect.get_annotations(cell).items():
        if field not in tail:
            annotations[field] = annotation
            if hasattr(cell, field):
                defaults[field] = getattr(cell, field)
        if field == "bias_regularizer":
            annotations["activity_regularizer"], defaults["activity_regularizer"] = (
                Regularizer,
                None,
            )
    for field in tail:
        if field == "switches":
            annotations |= dict.fromkeys(switches, bool)
            defaults |= dict.fromkeys(switches, False)
        else:
            annotations[field] = inspect.get_annotations(cell).get(field, str)
            defaults[field] = getattr(cell, field, "auto")
    annotations["zero_output_for_mask"], defaults["zero_output_for_mask"] = bool, False
    own = list(inspect.get_annotations(cell))
    inner = registry.snake_case(cell.__name__.lstrip("_"))

    def setup(self):
        options = {field: getattr(self, field) for field in own}
        options |= {"dtype": self.dtype_policy, "trainable": self._trainable}
        self.cell = cell(**options, name=inner)
        for field in ("kernel_size", "strides", "dilation_rate"):
            if field in own:
                setattr(self, field, getattr(self.cell, field))
        _Recurrent.setup(self)

    doc = f"Runs {cell.__name__.lstrip('_')} over time; arguments of the cell and of `RNN`.\n\n"
    members = {
        "__doc__": doc + "    " + (cell.__doc__ or ""),
        "__module__": __name__,
        "__annotations__": annotations,
        "setup": setup,
        **defaults,
        **members,
    }
    globals()[name] = type(name, (_Recurrent,), members)
    __all__.append(name)


__all__ = ["GRUCell", "LSTMCell", "RNN", "SimpleRNNCell", "StackedRNNCells"]
_switches = ("return_sequences", "return_state", "go_backwards", "stateful")
for _name, _cell, _tail, _unsaved in (
    ("SimpleRNN", SimpleRNNCell, ("dropout", "recurrent_dropout", "switches", "seed"), ("seed",)),
    ("LSTM", LSTMCell, ("seed", "switches", "use_cudnn"), ("use_cudnn",)),
    ("GRU", GRUCell, ("seed", "switches", "reset_after", "use_cudnn"), ("use_cudnn",)),
):
    _add_layer(_name, _cell, _tail, (*_switches, "unroll"), _unsaved=_unsaved)
for _space in (1, 2, 3):
    _cell = type("_ConvLSTMCell", (_ConvLSTMCell,), {"_space": _space, "__module__": __name__})
    _cell.__annotations__ = _ConvLSTMCell.__annotations__
    _add_layer(
        f"ConvLSTM{_space}D",
        _cell,
        ("seed", "switches"),
        _switches,
        _rank=_space + 3,
        unroll=False,
        _keras_keys={"activity_regularizer": None, "unroll": False},
    )
