"""Dynamic loss scaling for float16: gradients too small for it are scaled up, steps with infinities skipped."""

from khub import ops
from khub.backend.variable import Variable, unique_name
from khub.optimizers.optimizer import Optimizer


class LossScaleOptimizer(Optimizer):
    """Wraps an optimizer with a loss scale that halves on overflow and doubles after quiet steps.

    inner_optimizer: what applies the gradients; initial_scale; dynamic_growth_steps: finite steps before
    the scale doubles.  Micikevicius et al., arXiv:1710.03740
    """

    inner_optimizer: Optimizer
    initial_scale: float = 2.0**15
    dynamic_growth_steps: int = 2000

    def setup(self):
        if not isinstance(self.inner_optimizer, Optimizer):
            raise TypeError(f"LossScaleOptimizer wraps an optimizer, got {self.inner_optimizer!r}.")
        self.name = self.name or unique_name("loss_scale_optimizer")
        self.built, self._variables = False, []
        self.iterations = self.inner_optimizer.iterations
        self.scale = Variable(
            self.initial_scale, dtype="float32", trainable=False, name="dynamic_scale"
        )
        self.quiet = Variable(0, dtype="int32", trainable=False, name="step_counter")

    @property
    def learning_rate(self):
        """The wrapped optimizer's."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner_optimizer.learning_rate = value

    @property
    def variables(self):
        """The scale's state, then the wrapped optimizer's."""
        return [self.quiet, self.scale, *self.inner_optimizer.variables]

    def build(self, variables):
        self._variables = list(variables)
        self.inner_optimizer.build(variables)
        self.built = True

    def scale_loss(self, loss):
        return loss * ops.cast(self.scale.value, ops.dtype(loss))

    def apply(self, grads, trainable_variables=None):
        variables = (
            list(trainable_variables) if trainable_variables is not None else self._variables
        )
        if not self.built:
            self.build(variables)
        scale = self.scale.value
        grads = [ops.cast(g, v.dtype) / scale for g, v in zip(grads, variables, strict=True)]
        finite = True
        for g in grads:
            finite = ops.logical_and(finite, ops.all(ops.isfinite(g)))
        quiet = self.quiet.value + 1
        grown = ops.greater_equal(quiet, self.dynamic_growth_steps)

        def step():
            self.inner_optimizer.apply(grads, variables)
            self.scale.assign(ops.where(grown, scale * 2, scale))
            self.quiet.assign(ops.where(grown, 0, quiet))

        def skip():
            self.scale.assign(ops.maximum(scale / 2, 1.0))
            self.quiet.assign(ops.zeros_like(quiet))

        ops.cond(finite, step, skip)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self):
        from khub.saving import registry

        return {
            "inner_optimizer": registry.serialize(self.inner_optimizer),
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
            "name": self.name,
        }
