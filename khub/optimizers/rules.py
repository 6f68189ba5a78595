"""The optimizers: each is its paper's update of one tensor."""

import re

from khub import ops
from khub.fields import FieldsOf, NotNegative
from khub.initializers import Constant
from khub.optimizers.optimizer import Optimizer, demand


class SGD(Optimizer):
    """Gradient descent with momentum, plain or Nesterov's."""

    learning_rate: object = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def setup(self):
        demand(0 <= self.momentum <= 1, "momentum", "between 0 and 1", self.momentum)
        self.slots = ("momentum",) if self.momentum else ()
        self.by_rows = not self.momentum
        super().setup()

    def rule(self, gradient, value, rate, velocity=None):
        step = rate * gradient
        if velocity is None:
            return (value - step,)
        velocity = self.momentum * velocity - step
        if self.nesterov:
            return value + self.momentum * velocity - step, velocity
        return value + velocity, velocity


class _Moments(Optimizer):
    """What keeps running means of the gradients (m) and of their squares (v)."""

    slots = ("momentum", "velocity")

    learning_rate: object = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def rests(self, like):
        """Return 1 - beta_1**step and 1 - beta_2**step, by which m and v are too small."""
        return tuple(1 - b ** self.step(like) for b in (self.beta_1, self.beta_2))

    def moments(self, gradient, m, v):
        """Return m and v moved towards the gradient."""
        return (
            m + (gradient - m) * (1 - self.beta_1),
            v + (ops.square(gradient) - v) * (1 - self.beta_2),
        )


class Adam(_Moments):
    """Adam, or AMSGrad.  arXiv:1412.6980 (with epsilon-hat of section 2.1), arXiv:1904.09237"""

    shared: list(_Moments._fields[:4])  # the order in which they may be given without names
    amsgrad: bool = False

    def setup(self):
        self.slots = ("momentum", "velocity") + (("velocity_hat",) if self.amsgrad else ())
        self.apart = self.slots[2:]
        super().setup()

    def rule(self, gradient, value, rate, m, v, *largest):
        rest_1, rest_2 = self.rests(value)
        m, v = self.moments(gradient, m, v)
        largest = [ops.maximum(x, v) for x in largest]
        scale = ops.sqrt(largest[0] if largest else v) + self.epsilon
        return (value - m * (rate * rest_2**0.5 / rest_1) / scale, m, v, *largest)


class AdamW(Adam):
    """Adam with decoupled weight decay.  arXiv:1711.05101"""

    shared: FieldsOf(Adam, "learning_rate")
    weight_decay: float = 0.004


class Nadam(_Moments):
    """Adam with Nesterov's momentum.  Dozat 2016 (ICLR workshop), algorithm 2"""

    def make_state(self, variables):
        super().make_state(variables)
        self._product = self.add_variable((), 1.0, "float32", name="u_product")

    def mu(self, step):
        """Return the momentum of a step (0.96 ** (step / 250) in the paper)."""
        return self.beta_1 * (1 - 0.5 * 0.96**step)

    def _update(self, pairs):
        self._product.assign(self._product.value * self.mu(self.step(self._product.value)))
        super()._update(pairs)

    def rule(self, gradient, value, rate, m, v):
        step = self.step(value)
        mu, following = self.mu(step), self.mu(step + 1)
        product = ops.cast(self._product.value, ops.dtype(value))
        m, v = self.moments(gradient, m, v)
        m_hat = following * m / (1 - product * following) + (1 - mu) * gradient / (1 - product)
        v_hat = v / self.rests(value)[1]
        return value - rate * m_hat / (ops.sqrt(v_hat) + self.epsilon), m, v


class Adamax(_Moments):
    """Adam with the infinity norm.  arXiv:1412.6980, section 7.1"""

    slots = ("momentum", "norm")

    def rule(self, gradient, value, rate, m, norm):
        m = m + (gradient - m) * (1 - self.beta_1)
        norm = ops.maximum(self.beta_2 * norm, ops.abs(gradient))
        rate = rate / self.rests(value)[0]
        return value - rate * m / (norm + self.epsilon), m, norm


class Lamb(_Moments):
    """Adam whose step is as long as the weights, layer by layer.  arXiv:1904.00962"""

    def rule(self, gradient, value, rate, m, v):
        rest_1, rest_2 = self.rests(value)
        m, v = self.moments(gradient, m, v)
        update = m / rest_1 / (ops.sqrt(v / rest_2) + self.epsilon)
        size, length = (ops.sqrt(ops.sum(ops.square(x))) for x in (value, update))
        known = ops.logical_and(size > 0, length > 0)
        trust = ops.where(known, size / ops.where(known, length, 1.0), 1.0)
        return value - trust * rate * update, m, v


class ScheduleFreeAdamW(_Moments):
    """AdamW that averages its iterates instead of lowering the rate.  arXiv:2405.15682, algorithm 1

    The Variables hold the point y where gradients are taken; "momentum" is z.
    """

    shared: list(_Moments._fields[:4])
    learning_rate = 0.0025
    epsilon = 1e-8
    warmup_steps: int = 0

    def setup(self):
        demand(0 < self.beta_1 <= 1, "beta_1", "above 0 and at most 1", self.beta_1)
        super().setup()

    def add_slot(self, variable, name):
        if name == "velocity":
            return super().add_slot(variable, name)
        return self.add_variable_from_reference(
            variable, name, lambda *_, **__: ops.convert_to_numpy(variable.storage_value())
        )

    def rule(self, gradient, value, rate, z, v):
        step = self.step(value)
        if self.warmup_steps:
            rate = rate * ops.minimum(1.0, step / self.warmup_steps)
        x = (value - (1 - self.beta_1) * z) / self.beta_1
        v = v + (ops.square(gradient) - v) * (1 - self.beta_2)
        z = z - rate * gradient / (ops.sqrt(v / self.rests(value)[1]) + self.epsilon)
        x = x + (z - x) / step
        return self.beta_1 * x + (1 - self.beta_1) * z, z, v


class Muon(Optimizer):
    """Momentum whose singular values are set to one; Adam for all but matrices.  arXiv:2502.16982

    exclude_layers: patterns of paths that Adam takes; muon_a, muon_b, muon_c: of the Newton-Schulz
    iteration; rms_rate: the update's root mean square, None: its singular values are 1
    """

    slots = ("momentum", "velocity")

    learning_rate: object = 0.001
    adam_beta_1: float = 0.9
    adam_beta_2: float = 0.999
    adam_weight_decay: float = 0.004
    epsilon: float = 1e-7
    weight_decay: float = 0.004
    shared: list(Optimizer._fields[2:])
    exclude_layers: list = None
    exclude_embeddings: bool = True
    muon_a: float = 3.4445
    muon_b: float = -4.775
    muon_c: float = 2.0315
    adam_lr_ratio: float = 1
    momentum: float = 0.95
    ns_steps: int = 5
    nesterov: bool = True
    rms_rate: float = 0.2

    def setup(self):
        self.exclude_layers = list(self.exclude_layers or ())
        super().setup()

    def is_adams(self, variable):
        """Say whether Adam updates a Variable."""
        excluded = self.exclude_embeddings and "embedding" in variable.path.lower()
        named = any(re.search(pattern, variable.path) for pattern in self.exclude_layers)
        return len(variable.shape) != 2 or excluded or named

    def add_slot(self, variable, name):
        if name == "velocity" and not self.is_adams(variable):
            return None
        return super().add_slot(variable, name)

    def decay_of(self, variable):
        decay = self.adam_weight_decay if self.is_adams(variable) else self.weight_decay
        return decay if decay and self.decays(variable) else None

    def rule(self, gradient, value, rate, m, v=None):
        if v is not None:
            return self.adam(gradient, value, rate * self.adam_lr_ratio, m, v)
        m = self.momentum * m + gradient
        step = gradient + self.momentum * m if self.nesterov else m
        return value - rate * self.lr_adjust(self.zeropower_via_newtonschulz5(step)), m

    def lr_adjust(self, x):
        """Scale an update whose singular values are 1 to the root mean square `rms_rate`."""
        return x if self.rms_rate is None else x * (self.rms_rate * max(x.shape) ** 0.5)

    def transpose_last_axis(self, X):  # noqa: N803  (Keras' name)
        """Swap the last two axes."""
        return ops.swapaxes(X, -1, -2)

    def adam(self, gradient, value, rate, m, v):
        """Return value, m and v after Adam's step."""
        m = m + (gradient - m) * (1 - self.adam_beta_1)
        v = v + (ops.square(gradient) - v) * (1 - self.adam_beta_2)
        step = self.step(value)
        rest_1, rest_2 = (1 - b**step for b in (self.adam_beta_1, self.adam_beta_2))
        return value - rate * rest_2**0.5 / rest_1 * m / (ops.sqrt(v) + self.epsilon), m, v

    def zeropower_via_newtonschulz5(self, x, steps=None):
        """Bring a matrix's singular values near 1 by Newton-Schulz `steps`.  (m, n) -> same"""
        tall = x.shape[0] > x.shape[1]
        x = self.transpose_last_axis(x) if tall else x
        x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)  # `epsilon` is Adam's
        for _ in range(self.ns_steps if steps is None else steps):
            a = ops.matmul(x, self.transpose_last_axis(x))
            b = self.muon_b * a + self.muon_c * ops.matmul(a, a)
            x = self.muon_a * x + ops.matmul(b, x)
        return self.transpose_last_axis(x) if tall else x


class RMSprop(Optimizer):
    """Gradients divided by the root of their mean square, with momentum if wanted.

    Hinton's lecture 6e
    """

    learning_rate: object = 0.001
    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    def setup(self):
        self.slots = ("velocity",)
        self.slots += ("momentum",) if self.momentum > 0 else ()
        self.slots += ("average_gradient",) if self.centered else ()
        self.apart = self.slots[1:]
        super().setup()

    def rule(self, gradient, value, rate, velocity, *more):
        more = dict(zip(self.slots[1:], more, strict=True))
        velocity = self.rho * velocity + (1 - self.rho) * ops.square(gradient)
        scale = velocity
        if self.centered:
            average = self.rho * more["average_gradient"] + (1 - self.rho) * gradient
            more["average_gradient"] = average
            scale = velocity - ops.square(average)
        step = rate * gradient * ops.rsqrt(scale + self.epsilon)
        if self.momentum > 0:
            step = more["momentum"] = self.momentum * more["momentum"] + step
        return (value - step, velocity, *(more[name] for name in self.slots[1:]))


class Adagrad(Optimizer):
    """Gradients divided by the root of the sum of their squares.  Duchi et al. 2011"""

    slots = ("accumulator",)
    by_rows = True

    learning_rate: object = 0.001
    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    def add_slot(self, variable, name):
        start = Constant(self.initial_accumulator_value)
        return self.add_variable_from_reference(variable, name, start)

    def rule(self, gradient, value, rate, accumulator):
        accumulator = accumulator + ops.square(gradient)
        return value - rate * gradient / ops.sqrt(accumulator + self.epsilon), accumulator


class Adadelta(Optimizer):
    """Steps as large as the recent ones were, by their mean squares.  arXiv:1212.5701"""

    slots = ("accumulated_grad", "accumulated_delta_var")

    learning_rate: object = 0.001
    rho: float = 0.95
    epsilon: float = 1e-7

    def update_step(self, grad, variable, learning_rate):
        """Update one Variable by the rule."""
        super().update_step(grad, variable, learning_rate)

    update_step.by_rule = True

    def rule(self, gradient, value, rate, gradients, steps):
        gradients = self.rho * gradients + (1 - self.rho) * ops.square(gradient)
        step = gradient * ops.sqrt(steps + self.epsilon) / ops.sqrt(gradients + self.epsilon)
        steps = self.rho * steps + (1 - self.rho) * ops.square(step)
        return value - rate * step, gradients, steps


class Adafactor(Optimizer):
    """Adam whose second moment of a matrix is kept as row and column means.  arXiv:1804.04235

    epsilon_1: added to squared gradients; epsilon_2: least scale of the weights; clip_threshold: of
    the update's root mean square; relative_step: the rate is at most 1 / sqrt(step)
    """

    slots = ("row", "column", "velocity")

    learning_rate: object = 0.001
    beta_2_decay: float = -0.8
    epsilon_1: float = 1e-30
    epsilon_2: float = 1e-3
    clip_threshold: float = 1.0
    relative_step: bool = True

    def add_slot(self, variable, name):
        if name == "velocity":
            return super().add_slot(variable, name)
        path, shape = f"{variable.path.replace('/', '_')}_{name}", tuple(variable.shape)
        if len(shape) < 2:  # no rows: Keras' files hold a number here
            return self.add_variable((), 0, "int32", name=path)
        shape = shape[:-1] if name == "row" else (*shape[:-2], shape[-1])
        return self.add_variable(shape, dtype=variable.dtype, name=path)

    def rule(self, gradient, value, rate, row, column, velocity):
        step = self.step(value)
        if self.relative_step:
            rate = ops.minimum(rate, step**-0.5)
        rate = rate * ops.maximum(self.epsilon_2, _root_mean_square(value))
        rest = step**self.beta_2_decay
        square = ops.square(gradient) + self.epsilon_1
        if len(value.shape) < 2:
            velocity = velocity + (square - velocity) * rest
        else:
            row = row + (ops.mean(square, axis=-1) - row) * rest
            column = column + (ops.mean(square, axis=-2) - column) * rest
            share = row / ops.mean(row, axis=-1, keepdims=True)
            velocity = ops.expand_dims(share, -1) * ops.expand_dims(column, -2)
        update = gradient * ops.rsqrt(velocity)
        update = update / ops.maximum(1.0, _root_mean_square(update) / self.clip_threshold)
        return value - rate * update, row, column, velocity


def _root_mean_square(x):
    return ops.sqrt(ops.mean(ops.square(x)))


class Ftrl(Optimizer):
    """Follow the regularized leader.  McMahan et al. 2013, "Ad Click Prediction", algorithm 1

    l1_, l2_regularization_strength: of the solution; l2_shrinkage_...: of the loss; beta: its
    initial value of the rate's divisor; learning_rate_power: -0.5 divides by the square root of the
    sums
    """

    slots = ("accumulator", "linear")

    learning_rate: object = 0.001
    learning_rate_power: float = -0.5
    initial_accumulator_value: NotNegative = 0.1
    l1_regularization_strength: NotNegative = 0.0
    l2_regularization_strength: NotNegative = 0.0
    l2_shrinkage_regularization_strength: NotNegative = 0.0
    beta: float = 0.0

    def setup(self):
        power = self.learning_rate_power
        demand(power <= 0, "learning_rate_power", "at most 0", power)
        super().setup()

    def add_slot(self, variable, name):
        start = Constant(self.initial_accumulator_value if name == "accumulator" else 0.0)
        return self.add_variable_from_reference(variable, name, start)

    def rule(self, gradient, value, rate, accumulator, linear):
        l1, power = self.l1_regularization_strength, -self.learning_rate_power
        l2 = self.l2_regularization_strength + self.beta / (2 * rate)
        shrunk = gradient + 2 * self.l2_shrinkage_regularization_strength * value
        total = accumulator + ops.square(gradient)
        width, before = ops.power(total, power) / rate, ops.power(accumulator, power) / rate
        linear = linear + shrunk - (width - before) * value
        return (ops.clip(linear, -l1, l1) - linear) / (width + 2 * l2), total, linear


class Lion(Optimizer):
    """The sign of an interpolated momentum.  arXiv:2302.06675"""

    slots = ("momentum",)

    learning_rate: object = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.99

    def setup(self):
        demand(0 < self.beta_1 <= 1, "beta_1", "above 0 and at most 1", self.beta_1)
        super().setup()

    def rule(self, gradient, value, rate, m):
        step = ops.sign(m * self.beta_1 + gradient * (1 - self.beta_1))
        return value - rate * step, m * self.beta_2 + gradient * (1 - self.beta_2)


_here = {name for name, x in globals().items() if getattr(x, "__module__", "") == __name__}
__all__ = sorted(name for name in _here if not name.startswith("_"))
