"""Keras' scopes in which Variables take no harm."""

from khub import tree
from khub.backend import active
from khub.backend.scope import Scope
from khub.backend.variable import Variable


class StatelessScope(Scope):
    """Inside a `with` block Variables have the values given here, and no assignment reaches them.

    state_mapping: pairs (Variable, its value inside); collect_losses: whether `losses` keeps what
    layers add to the loss, which stays with no layer; initialize_variables: without effect, for
    khub's Variables take their first value when they are read.
    Raises ValueError for a key that is no Variable and for a value of another shape.
    """

    def __init__(self, state_mapping=None, collect_losses=False, initialize_variables=True):
        super().__init__()
        self.collect_losses, self.initialize_variables = collect_losses, initialize_variables
        self.state_mapping, self.losses = {}, []
        for variable, value in state_mapping or ():
            if not isinstance(variable, Variable):
                raise ValueError(f"StatelessScope: expected a Variable as a key, got {variable!r}.")
            value = active.convert_to_tensor(value, variable.dtype)
            if tuple(value.shape) != variable.shape:
                raise ValueError(
                    f"StatelessScope: {variable.path} has shape {variable.shape}, got a value of "
                    f"{tuple(value.shape)}."
                )
            self.values[variable] = self.state_mapping[variable] = value

    def get_current_value(self, variable):
        """Return the value given or assigned here, None where there is none."""
        known = variable in self.state_mapping or variable in self.written
        return self.values[variable] if known else None

    def add_update(self, update):
        """Take the pair (Variable, new value)."""
        variable, value = update
        self.set(variable, active.convert_to_tensor(value, variable.dtype))

    def add_loss(self, loss):
        """Keep a loss, or several, in `losses`."""
        self.losses.extend(tree.flatten(loss))


class SymbolicScope(Scope):
    """Marks a `with` block as one where shapes are worked out: no assignment leaves it."""
