"""What `compile` was given: the losses and metrics, matched with the model's outputs."""

import itertools
import weakref
from contextlib import contextmanager

from khub import losses as losses_module
from khub import metrics as metrics_module
from khub import ops, tree
from khub.saving import registry
from khub.training import targets


def as_loss(loss):
    """Return a `Loss` for a user's argument: name, function or object."""
    loss = registry.get("losses", loss)
    if loss is None or isinstance(loss, losses_module.Loss):
        return loss
    return losses_module.LossFunctionWrapper(loss, name=getattr(loss, "__name__", "loss"))


_NESTED = (list, tuple, dict)
_KINDS = ("Binary", "Categorical", "SparseCategorical")
_BY_TARGET = {  # "accuracy" and friends mean another metric for each kind of target
    name: [f"{kind}{ending}" for kind in _KINDS]
    for ending in ("Accuracy", "Crossentropy")
    for name in (ending.lower(), {"Accuracy": "acc", "Crossentropy": "ce"}[ending])
}


def as_metric(metric, y, y_pred):
    """Return a `Metric` for a user's argument, given one target and one prediction."""
    if isinstance(metric, str) and metric.lower() in _BY_TARGET:
        binary, categorical, sparse = _BY_TARGET[metric.lower()]
        rank, wide = len(y_pred.shape), y_pred.shape[-1] != 1
        if len(y.shape) == rank and y.shape[-1] == y_pred.shape[-1]:
            name = categorical if wide else binary
        else:
            name = sparse if wide else binary
        return registry.get("metrics", name).__class__(name=metric)
    found = registry.get("metrics", metric)
    if isinstance(found, metrics_module.Metric):
        return type(found)(name=metric) if isinstance(metric, str) else found
    name = metric if isinstance(metric, str) else getattr(found, "__name__", "metric")
    return metrics_module.MeanMetricWrapper(found, name=name)


def _by_output(given, names, outputs, what):
    """Spread a user's loss or metrics over outputs: by name, by position or all alike."""
    if _is_deep(outputs) and isinstance(given, _NESTED):
        found = []
        tree.map_structure_up_to(outputs, lambda _, one: found.append(one), outputs, given)
        return found
    if isinstance(given, dict):
        if unknown := sorted(set(given) - set(names)):
            raise ValueError(f"{what} names the outputs {unknown}; the model has {names}.")
        return [given.get(name) for name in names]
    if isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise ValueError(f"{what} has {len(given)} entries for {len(names)} outputs {names}.")
        return list(given)
    return [given] * len(names)


def _label(path, name):
    """Return what the loss of an output is called, by its keys in the structure of outputs."""
    last = path[-1] if isinstance(path[-1], str) else name
    return "/".join(map(str, (*path[:-1], last)))


def _is_deep(structure):
    """Whether a structure holds others."""
    values = structure.values() if isinstance(structure, dict) else structure
    return isinstance(structure, _NESTED) and any(isinstance(x, _NESTED) for x in values)


def _makers(model):
    """Return the layers that give the outputs of a model that is drawn, else nothing."""
    outputs = getattr(model, "outputs", None) or []
    return [getattr(getattr(output, "node", None), "function", None) for output in outputs]


class CompiledMetrics(metrics_module.Metric):
    """All that `compile` was given as one metric, which a user's own step updates as such."""

    _kind = None

    def __init__(self, compiled, model):
        super().__init__(name="compile_metrics")
        self._compiled, self._model = compiled, weakref.ref(model)

    @property
    def variables(self):
        """The Variables of all."""
        return [v for _, metric, _ in self._compiled.built or () for v in metric.variables]

    def update_state(self, y_true, y_pred, sample_weight=None):
        self._compiled.update_metrics(self._model(), y_true, y_pred, sample_weight)

    def reset_state(self):
        for _, metric, _ in self._compiled.built or ():
            metric.reset_state()

    def result(self):
        logs = {}
        for _, metric, _ in self._compiled.built or ():
            value = metric.result()
            logs.update(value if isinstance(value, dict) else {metric._logged_as: value})
        return logs


class Compiled:
    """Losses, metrics and options of one `compile`."""

    def __init__(self, optimizer, loss, loss_weights, metrics, weighted_metrics, options):
        self.optimizer, self.loss, self.loss_weights = optimizer, loss, loss_weights
        self.given_metrics, self.given_weighted = metrics, weighted_metrics
        self.options = options
        self.loss_tracker = metrics_module.Mean(name="loss")
        self.output_names = self.built = None  # (output, metric, whether it is weighted)
        self._losses = self._weights = None
        self._trackers = []
        self.running = self.resume = None  # what `fit` goes through; what it shall go on from
        self.batch = self.labels = self._classes = None  # of this moment; all of `fit`'s targets

    def _flatten(self, model, y_pred):
        """Return (names, flat outputs)."""
        if isinstance(y_pred, dict) and not _is_deep(y_pred):
            return sorted(y_pred), [y_pred[key] for key in sorted(y_pred)]
        flat = tree.flatten(y_pred)
        names = [getattr(f, "name", f"output_{i}") for i, f in enumerate(_makers(model))]
        if len(names) != len(flat):
            names = [f"output_{i}" for i in range(len(flat))] if len(flat) > 1 else ["output"]
        return names, flat

    @staticmethod
    def _targets(y, names, count):
        if isinstance(y, dict) and not _is_deep(y):
            return [y.get(name) for name in names]
        flat = tree.flatten(y)
        if len(flat) != count:
            raise ValueError(f"The model has {count} outputs {names}, got {len(flat)} targets.")
        return flat

    @staticmethod
    def _sample_weights(weights, names, count):
        if isinstance(weights, dict) and not _is_deep(weights):
            return [weights.get(name) for name in names]
        return tree.flatten(weights) if isinstance(weights, _NESTED) else [weights] * count

    def compute_loss(self, model, y, y_pred, sample_weight):
        """Return the compiled losses' weighted sum, None when there is no loss."""
        if self.loss is None:
            return None
        if self._losses is None:
            names, flat = self._flatten(model, y_pred)
            self._losses = [as_loss(x) for x in _by_output(self.loss, names, y_pred, "loss")]
            self._weights = _by_output(self.loss_weights, names, y_pred, "loss_weights")
            self.output_names = names
            self._check(model, names, flat, y)
            if sum(loss is not None for loss in self._losses) > 1:
                paths, _ = zip(*tree.flatten_with_path(y_pred))
                self._trackers = [
                    metrics_module.Mean(name=f"{_label(path, name)}_loss")
                    for path, name, loss in zip(paths, names, self._losses)
                    if loss is not None
                ]
                model._metrics = None  # there are more of them now
        if len(self._losses) == 1 and self._weights[0] is None and y is not None:
            parts = (y, y_pred)
            y, y_pred = (tree.flatten(p)[0] if isinstance(p, _NESTED) else p for p in parts)
            return self._losses[0](y, y_pred, sample_weight)
        names, flat = self._flatten(model, y_pred)
        targets = self._targets(y, names, len(flat))
        weights = self._sample_weights(sample_weight, names, len(flat))
        total, trackers = None, iter(self._trackers)
        rows = zip(names, self._losses, self._weights, targets, flat, weights, strict=True)
        for name, loss, factor, target, output, weight in rows:
            if loss is None:
                continue
            if target is None:
                raise ValueError(f"The output {name!r} has a loss and no target: give y.")
            value = loss(target, output, weight)
            if self._trackers:
                rows = ops.shape(output)[0]  # a mean over rows, as that of the whole loss
                next(trackers).update_state(ops.stop_gradient(value), sample_weight=rows)
            value = value if factor is None else value * factor
            total = value if total is None else total + value
        return total

    @contextmanager
    def letting_go(self):
        """Forget the data after a `with` block, however it ends."""
        try:
            yield
        finally:
            self.running = self.resume = self.batch = self.labels = None

    def _check(self, model, names, flat, y):
        """Raise ValueError for targets that do not fit the losses: at the first trace."""
        makers = _makers(model) if not isinstance(y, dict) else ()
        makers = makers if len(makers) == len(flat) else [None] * len(flat)
        wanted = self._targets(y, names, len(flat))
        for name, loss, target, output, maker in zip(names, self._losses, wanted, flat, makers):
            if loss is not None:
                targets.check_shapes(name, loss, target, output, maker)
        axes = [getattr(loss, "axis", -1) for loss in self._losses]
        self._classes = [y.shape[axis] if len(y.shape) else None for y, axis in zip(flat, axes)]
        self.check_labels()

    def check_labels(self):
        """Raise ValueError for labels no loss can take: in all rows, or in this batch."""
        if self._classes is None or self.batch is None or self.batch[1] is None:
            return
        y, self.labels = self.batch[1] if self.labels is None else self.labels, None
        wanted = self._targets(y, self.output_names, len(self._classes))
        rows = zip(self.output_names, self._losses, wanted, self._classes, strict=True)
        for name, loss, target, classes in rows:
            targets.check_labels(name, loss, target, classes)

    def update_metrics(self, model, y, y_pred, sample_weight):
        """Feed the compiled metrics with one batch."""
        if self.built is None:
            self.build_metrics(model, y, y_pred)
        if not self.built:
            return
        if not isinstance(y_pred, _NESTED) and all(i == 0 for i, *_ in self.built):
            flat, targets, weights = [y_pred], [y], [sample_weight]
        else:
            names, flat = self._flatten(model, y_pred)
            targets = self._targets(y, names, len(flat))
            weights = self._sample_weights(sample_weight, names, len(flat))
        for i, metric, weighted in self.built:
            metric.update_state(targets[i], flat[i], *([weights[i]] if weighted else []))

    def build_metrics(self, model, y, y_pred):
        """Make the metrics, given what the targets and predictions look like."""
        names, flat = self._flatten(model, y_pred)
        self.built, taken = [], set()
        if y is None:
            return
        wanted = self._targets(y, names, len(flat))
        for given, weighted in ((self.given_metrics, False), (self.given_weighted, True)):
            if given is None:
                continue
            if len(flat) == 1 and isinstance(given, (list, tuple)):
                given = [given[0] if len(given) == 1 and isinstance(given[0], list) else given]
            for i, one in enumerate(_by_output(given, names, y_pred, "metrics")):
                one = [] if one is None else one if isinstance(one, (list, tuple)) else [one]
                for metric in one:
                    made = as_metric(metric, wanted[i], flat[i])
                    start, again = f"{names[i]}_" if len(flat) > 1 else "", itertools.count(1)
                    label = name = start + made.name
                    if weighted and label in taken:
                        label = name = f"{start}weighted_{made.name}"
                    while label in taken:
                        label = f"{name}_{next(again)}"
                    taken.add(label)
                    made._logged_as = label
                    self.built.append((i, made, weighted))

    def metrics(self, model):
        """Return the means of the losses, and the metrics as one if there are any."""
        given = self.given_metrics or self.given_weighted
        together = [CompiledMetrics(self, model)] if given else []
        return [self.loss_tracker, *self._trackers, *together]
