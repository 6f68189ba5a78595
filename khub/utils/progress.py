"""A bar in the terminal, and a record of settings."""

import json
import time
from collections import UserDict

from khub import config


def values_text(values):
    """Return " - name: value" of each pair whose value is a number."""
    return "".join(
        f" - {name}: {value:{'.4f' if abs(value) > 1e-3 or value == 0 else '.3e'}}"
        for name, value in values
        if isinstance(value, (int, float))
    )


class Progbar:
    """A line that shows how much of `target` steps is done, and the means of values so far.

    target: None where it is unknown; verbose: 0 says nothing, 2 says one line at the end;
    interval: seconds between two redraws; stateful_metrics: names of values shown as they are
    """

    def __init__(
        self, target, width=20, verbose=1, interval=0.05, stateful_metrics=None,
        stateless_metrics=None, unit_name="step",
    ):  # fmt: skip
        self.target, self.width, self.verbose, self.interval = target, width, verbose, interval
        self.stateful_metrics, self.unit_name = set(stateful_metrics or ()), unit_name
        self._sums, self._seen, self._begun, self._drawn = {}, 0, time.perf_counter(), 0.0

    def is_due(self):
        """Whether the line was drawn long enough ago to be drawn anew."""
        return self.verbose == 1 and time.perf_counter() - self._drawn >= self.interval

    def update(self, current, values=None, finalize=None):
        """Show that `current` steps are done; values: (name, value) pairs of the latest ones."""
        for name, value in values or ():
            steps, before = max(current - self._seen, 1), self._sums.get(name, (0.0, 0))
            together = before[0] + value * steps, before[1] + steps
            self._sums[name] = (value, 1) if name in self.stateful_metrics else together
        self._seen, now = current, time.perf_counter()
        finalize = current == self.target if finalize is None else finalize
        if not (self.is_due() or self.verbose and finalize):
            return
        done = round(self.width * min(current / self.target, 1)) if self.target else 0
        bar = f" {'━' * done}{' ' * (self.width - done)}" if self.target else ""
        seconds = now - self._begun
        spent = f"{seconds:.0f}s {1000 * seconds / max(current, 1):.0f}ms/{self.unit_name}"
        if self.target and current < self.target:
            spent += f" ETA {seconds / max(current, 1) * (self.target - current):.0f}s"
        values = values_text((name, total / n) for name, (total, n) in self._sums.items())
        start = "\r" if self.verbose == 1 and config.is_interactive_logging_enabled() else ""
        line = f"{start}{current}/{self.target or '?'}{bar} {spent}{values}"
        print(line, end="\n" if finalize or not start else "", flush=True)
        self._drawn = now

    def add(self, n, values=None):
        """Show that `n` more steps are done."""
        self.update(self._seen + n, values)


class Config(UserDict):
    """Settings as attributes and items: `Config(rate=0.1).rate`; `freeze` makes them constant."""

    frozen = False

    def __init__(self, **kwargs):
        vars(self)["data"] = kwargs

    def __getattr__(self, name):
        if name in vars(self).get("data", ()):
            return self.data[name]
        raise AttributeError(f"Config has no setting {name!r}.")

    def _thawed(self):
        if self.frozen:
            raise ValueError("This Config is frozen; call unfreeze() to change it.")
        return self.data

    def __setitem__(self, name, value):
        self._thawed()[name] = value

    def __delitem__(self, name):
        del self._thawed()[name]

    __setattr__, __delattr__ = __setitem__, __delitem__

    def update(self, *args, **kwargs):
        """Set several settings, as a dict's `update`."""
        super().update(*args, **kwargs)

    def pop(self, *args):
        """Remove a setting and return its value, as a dict's `pop`."""
        return super().pop(*args)

    def get(self, keyname, value=None):
        """Return a setting, or `value` where there is none of this name."""
        return super().get(keyname, value)

    def as_dict(self):
        """Return the settings as a dict."""
        return dict(self.data)

    def to_json(self):
        """Return the settings as JSON."""
        return json.dumps(self.data)

    def freeze(self):
        """Make the settings constant."""
        vars(self)["frozen"] = True

    def unfreeze(self):
        """Let the settings change again."""
        vars(self)["frozen"] = False
