"""Dynamic loss scaling: gradients too small for float16 are scaled up, infinite ones skipped."""

from khub import ops
from khub.optimizers.multi import Wrapper
from khub.optimizers.optimizer import Optimizer


class LossScaleOptimizer(Wrapper):
    """Wraps an optimizer with a loss scale that halves on overflow and doubles after quiet steps.

    inner_optimizer: what applies the gradients; initial_scale; dynamic_growth_steps: finite steps
    before the scale doubles.  Micikevicius et al., arXiv:1710.03740
    """

    inner_optimizer: Optimizer
    initial_scale: float = 2.0**15
    dynamic_growth_steps: int = 2000
    name: str = None

    def setup(self):
        if not isinstance(self.inner_optimizer, Optimizer):
            raise TypeError(f"LossScaleOptimizer wraps an optimizer, got {self.inner_optimizer!r}.")
        self._begin()
        self.optimizers = [self.inner_optimizer]
        self.quiet = self.add_variable((), 0, "int32", name="step_counter")
        self.scale = self.add_variable((), self.initial_scale, "float32", name="dynamic_scale")

    @property
    def learning_rate(self):
        """The wrapped optimizer's."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self):
        """The wrapped optimizer's."""
        return self.inner_optimizer.iterations

    @property
    def dynamic_scale(self):
        """The Variable of the scale."""
        return self.scale

    def make_state(self, variables):
        self.inner_optimizer.build(variables)

    def scale_loss(self, loss):
        return loss * ops.cast(self.scale.value, ops.dtype(loss))

    def check_finite(self, grads):
        """Return whether all gradients are finite, as a boolean tensor."""
        finite = True
        for g in grads:
            finite = ops.logical_and(finite, ops.all(ops.isfinite(g)))
        return finite

    def apply(self, grads, trainable_variables=None):
        pairs = self._pairs(grads, trainable_variables)
        scale, variables = self.scale.value, [v for _, v in pairs]
        grads = [g for g, _ in self._unscaled([(ops.cast(g, v.dtype), v) for g, v in pairs], scale)]
        quiet = self.quiet.value + 1
        grown = ops.greater_equal(quiet, self.dynamic_growth_steps)

        def step():
            self.inner_optimizer.apply(grads, variables)
            self.scale.assign(ops.where(grown, scale * 2, scale))
            self.quiet.assign(ops.where(grown, 0, quiet))

        def skip():
            self.scale.assign(scale / 2)
            self.quiet.assign(ops.zeros_like(quiet))

        ops.cond(self.check_finite(grads), step, skip)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)
