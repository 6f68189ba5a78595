"""The optimizers: each is its paper's update of one tensor."""

from khub import ops
from khub.optimizers.optimizer import Optimizer


class SGD(Optimizer):
    """Gradient descent with momentum, plain or Nesterov's."""

    slots = ("momentum",)

    learning_rate: object = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def setup(self):
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must lie between 0 and 1, got {self.momentum!r}.")
        self.slots = ("momentum",) if self.momentum else ()
        super().setup()

    def rule(self, gradient, value, rate, velocity=None):
        step = rate * gradient
        if velocity is None:
            return (value - step,)
        velocity = self.momentum * velocity - step
        if self.nesterov:
            return value + self.momentum * velocity - step, velocity
        return value + velocity, velocity


class Adam(Optimizer):
    """Adam, or AMSGrad.  arXiv:1412.6980 (with epsilon-hat of section 2.1), arXiv:1904.09237"""

    slots = ("momentum", "velocity")

    learning_rate: object = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False

    def setup(self):
        self.slots = ("momentum", "velocity") + (("velocity_hat",) if self.amsgrad else ())
        super().setup()

    def rule(self, gradient, value, rate, m, v, largest=None):
        step = ops.cast(self.iterations.value + 1, ops.dtype(value))
        rate = (
            rate * ops.sqrt(1 - ops.power(self.beta_2, step)) / (1 - ops.power(self.beta_1, step))
        )
        m = m + (gradient - m) * (1 - self.beta_1)
        v = v + (ops.square(gradient) - v) * (1 - self.beta_2)
        if largest is None:
            return value - m * rate / (ops.sqrt(v) + self.epsilon), m, v
        largest = ops.maximum(largest, v)
        return value - m * rate / (ops.sqrt(largest) + self.epsilon), m, v, largest


class AdamW(Adam):
    """Adam with decoupled weight decay.  arXiv:1711.05101"""

    learning_rate: object = 0.001
    weight_decay: float = 0.004
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False


class RMSprop(Optimizer):
    """Gradients divided by the root of their mean square (Hinton's lecture 6e), with momentum if wanted."""

    learning_rate: object = 0.001
    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    centered: bool = False

    def setup(self):
        self.slots = ("velocity",)
        self.slots += ("momentum",) if self.momentum > 0 else ()
        self.slots += ("average_gradient",) if self.centered else ()
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

    learning_rate: object = 0.001
    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    def slot_initializer(self, name):
        return lambda shape, dtype: ops.convert_to_numpy(
            ops.full(shape, self.initial_accumulator_value, dtype)
        )

    def rule(self, gradient, value, rate, accumulator):
        accumulator = accumulator + ops.square(gradient)
        return value - rate * gradient / ops.sqrt(accumulator + self.epsilon), accumulator


class Lion(Optimizer):
    """The sign of an interpolated momentum.  arXiv:2302.06675"""

    slots = ("momentum",)

    learning_rate: object = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.99

    def rule(self, gradient, value, rate, m):
        step = ops.sign(m * self.beta_1 + gradient * (1 - self.beta_1))
        return value - rate * step, m * self.beta_2 + gradient * (1 - self.beta_2)
