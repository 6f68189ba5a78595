"""What `compile` was given: the losses and metrics, matched with the model's outputs."""

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


def _by_output(given, names, count, what):
    """Spread a user's loss or metrics over `count` outputs: by name, by position or all alike."""
    if isinstance(given, dict):
        unknown = set(given) - set(names)
        if unknown:
            raise ValueError(
                f"{what} names the outputs {sorted(unknown)}; the model has {list(names)}."
            )
        return [given.get(name) for name in names]
    if isinstance(given, (list, tuple)):
        if len(given) != count:
            raise ValueError(f"{what} has {len(given)} entries for {count} outputs {list(names)}.")
        return list(given)
    return [given] * count


def _makers(model):
    """Return the layers that give the outputs of a model that is drawn, else nothing."""
    outputs = getattr(model, "outputs", None) or []
    return [getattr(getattr(output, "node", None), "function", None) for output in outputs]


class Compiled:
    """Losses, metrics and options of one `compile`."""

    def __init__(self, optimizer, loss, loss_weights, metrics, weighted_metrics, options):
        self.optimizer, self.loss, self.loss_weights = optimizer, loss, loss_weights
        self.given_metrics, self.given_weighted = metrics, weighted_metrics
        self.options = options
        self.loss_tracker = metrics_module.Mean(name="loss")
        self.output_names = None
        self._losses = self._weights = self._trackers = self._metrics = None
        self.running = self.resume = None  # what `fit` goes through; what it shall go on from
        self.batch = self.labels = self._classes = None  # of this moment; all of `fit`'s targets

    def _flatten(self, model, y_pred):
        """Return (names, flat outputs)."""
        if isinstance(y_pred, dict):
            return sorted(y_pred), [y_pred[key] for key in sorted(y_pred)]
        flat = tree.flatten(y_pred)
        names = [getattr(f, "name", f"output_{i}") for i, f in enumerate(_makers(model))]
        if len(names) != len(flat):
            names = [f"output_{i}" for i in range(len(flat))] if len(flat) > 1 else ["output"]
        return names, flat

    @staticmethod
    def _targets(y, names, count):
        if isinstance(y, dict):
            return [y.get(name) for name in names]
        if count == 1 and not isinstance(y, (list, tuple)):
            return [y]
        flat = list(y) if isinstance(y, (list, tuple)) else [y]
        if len(flat) != count:
            raise ValueError(f"The model has {count} outputs {names}, got {len(flat)} targets.")
        return flat

    @staticmethod
    def _sample_weights(weights, names, count):
        if isinstance(weights, dict):
            return [weights.get(name) for name in names]
        if isinstance(weights, (list, tuple)):
            return list(weights)
        return [weights] * count

    def compute_loss(self, model, y, y_pred, sample_weight):
        """Return the compiled losses' weighted sum, None when there is no loss."""
        if self.loss is None:
            return None
        if self._losses is None:
            names, flat = self._flatten(model, y_pred)
            self._losses = [as_loss(x) for x in _by_output(self.loss, names, len(flat), "loss")]
            self._weights = _by_output(self.loss_weights, names, len(flat), "loss_weights")
            self.output_names = names
            self._check(model, names, flat, y)
            if len(flat) > 1:
                self._trackers = [
                    metrics_module.Mean(name=f"{n}_loss") if x is not None else None
                    for n, x in zip(names, self._losses, strict=True)
                ]
        if len(self._losses) == 1 and self._weights[0] is None:
            parts = (y, y_pred)
            y, y_pred = (tree.flatten(p)[0] if isinstance(p, _NESTED) else p for p in parts)
            return self._losses[0](y, y_pred, sample_weight)
        names, flat = self._flatten(model, y_pred)
        targets = self._targets(y, names, len(flat))
        weights = self._sample_weights(sample_weight, names, len(flat))
        total = None
        rows = zip(self._losses, self._weights, targets, flat, weights, strict=True)
        for i, (loss, factor, target, output, weight) in enumerate(rows):
            if loss is None:
                continue
            value = loss(target, output, weight)
            if self._trackers is not None:
                rows = ops.shape(output)[0]  # a mean over rows, as that of the whole loss
                self._trackers[i].update_state(ops.stop_gradient(value), sample_weight=rows)
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
        if self._metrics is None:
            self._metrics = self._build_metrics(model, y, y_pred)
        if not self._metrics:
            return
        if not isinstance(y_pred, _NESTED) and all(i == 0 for i, *_ in self._metrics):
            flat, targets, weights = [y_pred], [y], [sample_weight]
        else:
            names, flat = self._flatten(model, y_pred)
            targets = self._targets(y, names, len(flat))
            weights = self._sample_weights(sample_weight, names, len(flat))
        for i, metric, weighted in self._metrics:
            metric.update_state(targets[i], flat[i], *([weights[i]] if weighted else []))

    def _build_metrics(self, model, y, y_pred):
        names, flat = self._flatten(model, y_pred)
        if y is None:
            return []
        targets = self._targets(y, names, len(flat))
        result, taken = [], set()
        for given, weighted in ((self.given_metrics, False), (self.given_weighted, True)):
            if given is None:
                continue
            if len(flat) == 1 and isinstance(given, (list, tuple)):
                given = [given[0] if len(given) == 1 and isinstance(given[0], list) else given]
            for i, one in enumerate(_by_output(given, names, len(flat), "metrics")):
                one = [] if one is None else one if isinstance(one, (list, tuple)) else [one]
                for metric in one:
                    made = as_metric(metric, targets[i], flat[i])
                    label = f"weighted_{made.name}" if (i, made.name) in taken else made.name
                    taken.add((i, made.name))
                    made._logged_as = f"{names[i]}_{label}" if len(flat) > 1 else label
                    result.append((i, made, weighted))
        return result

    @property
    def metrics(self):
        """The metric objects, the loss first."""
        built = [m for _, m, _ in self._metrics or ()]
        return [self.loss_tracker, *(t for t in self._trackers or () if t is not None), *built]

    def results(self):
        """Return name -> value of the losses and metrics."""
        logs = {}
        for metric in self.metrics:
            value = metric.result()
            if isinstance(value, dict):
                logs.update(value)
            else:
                logs[getattr(metric, "_logged_as", metric.name)] = value
        return logs
