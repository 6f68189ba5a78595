"""What parity with Keras does not cover of metrics: state, compilation, a user's metrics."""

import numpy as np
import pytest

import khub
from khub import metrics, ops

R = np.random.RandomState(0)


def close(ours, expected):
    np.testing.assert_allclose(ops.convert_to_numpy(ours), expected, rtol=1e-5, atol=1e-6)


def test_mean_counts_samples():
    mean = metrics.Mean()
    close(mean.result(), 0)
    mean.update_state([1.0, 3.0])
    mean.update_state(8.0)
    close(mean.result(), 4)
    mean.update_state(2.0, sample_weight=3)
    close(mean.result(), 3)
    assert [v.name for v in mean.variables] == ["total", "count"]
    assert all(not v.trainable and v.dtype == "float32" for v in mean.variables)
    mean.reset_state()
    close(mean(5.0), 5)


def test_stateless_calls_leave_the_state_alone():
    mean = metrics.Mean()
    mean.update_state(4.0)
    start = mean.stateless_reset_state()
    close(start[0], 0)
    state = mean.stateless_update_state(start, [1.0, 2.0])
    state = mean.stateless_update_state(state, 6.0)
    close(mean.stateless_result(state), 3)
    close(mean.result(), 4)
    with pytest.raises(ValueError, match="2 variables, got 1 values"):
        mean.stateless_result(state[:1])


def test_update_in_a_compiled_function():
    accuracy, auc = metrics.SparseCategoricalAccuracy(), metrics.AUC(num_thresholds=20)
    score = metrics.F1Score()
    classes = ops.convert_to_tensor(R.randint(0, 3, 8).astype("int32"))
    logits = ops.convert_to_tensor(R.rand(8, 3).astype("float32"))
    hot = ops.one_hot(classes, 3)
    score.update_state(hot, logits)  # makes its variables
    score.reset_state()

    @khub.jit
    def step(classes, hot, logits):
        accuracy.update_state(classes, logits)
        auc.update_state(hot, logits)
        score.update_state(hot, logits)

    for _ in range(2):
        step(classes, hot, logits)
    plain = metrics.SparseCategoricalAccuracy(), metrics.AUC(num_thresholds=20), metrics.F1Score()
    for metric, labels in zip(plain, (classes, hot, hot), strict=True):
        metric.update_state(labels, logits)
        metric.update_state(labels, logits)
    for metric, expected in zip((accuracy, auc, score), plain, strict=True):
        close(metric.result(), ops.convert_to_numpy(expected.result()))


def test_a_users_metric_with_its_own_constructor():
    class Largest(metrics.Metric):
        def __init__(self, scale=1.0, **kwargs):
            super().__init__(**kwargs)
            self.scale = scale
            self.largest = self.add_weight(name="largest", initializer="zeros")
            self.inner = metrics.Mean()

        def update_state(self, values, sample_weight=None):
            self.largest.assign(ops.maximum(self.largest, ops.max(values)))
            self.inner.update_state(values)

        def result(self):
            return self.largest * self.scale

    metric = Largest(2.0, name="top")
    close(metric(ops.convert_to_tensor([1.0, 3.0])), 6)
    assert metric.name == "top" and len(metric.variables) == 3
    assert metric.get_config() == {"scale": 2.0, "name": "top"}
    metric.reset_state()
    close(metric.result(), 0)
    close(metric.inner.result(), 0)


def test_wrapper_averages_a_function():
    wrapped = metrics.MeanMetricWrapper(lambda a, b, power: ops.absolute(a - b) ** power, power=2)
    a, b = R.rand(4, 3).astype("float32"), R.rand(4, 3).astype("float32")
    close(wrapped(ops.convert_to_tensor(a), ops.convert_to_tensor(b)), ((a - b) ** 2).mean())


@pytest.mark.parametrize("name", ["Precision", "AUC", "R2Score"])
def test_counts_are_exact_in_half_precision(name):
    metric = getattr(metrics, name)(dtype="float16")
    metric.update_state(np.ones((5, 1)), np.ones((5, 1)))
    assert {v.dtype for v in metric.variables} == {"float32"} and metric.dtype == "float16"


def test_names():
    assert isinstance(metrics.get("mse"), metrics.MeanSquaredError)
    assert isinstance(metrics.get("accuracy"), metrics.Accuracy)
    assert isinstance(metrics.get("AUC"), metrics.AUC)
    assert metrics.Precision().name != metrics.Precision().name
    with pytest.raises(ValueError, match="khub.metrics has no"):
        metrics.get("precission")


def test_a_ragged_batch_weighs_as_many_samples_as_it_has():
    mean = metrics.MeanSquaredError()
    x, y = R.rand(10, 3), R.rand(10, 3)
    for rows in (slice(0, 7), slice(7, 10)):
        mean.update_state(x[rows], y[rows])
    close(mean.result(), ((x - y) ** 2).mean())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: metrics.Precision(thresholds=[0.5, 1.5]), "between 0 and 1"),
        (lambda: metrics.AUC(curve="XY"), "roc, pr, prgain"),
        (lambda: metrics.AUC(num_thresholds=1), "at least 2"),
        (lambda: metrics.AUC(num_labels=3), "multi_label"),
        (lambda: metrics.FBetaScore(beta=1), "float"),
        (lambda: metrics.FBetaScore(average="all"), "micro"),
        (lambda: metrics.PrecisionAtRecall(1.5), "recall"),
        (lambda: metrics.R2Score("x"), "class_aggregation"),
        (lambda: metrics.IoU(2, [2]), "target_class_ids"),
        (lambda: metrics.Precision(class_id=1)([1.0, 0.0], [0.3, 0.4]), "class axis"),
        (lambda: metrics.R2Score()([1.0, 0.0], [0.3, 0.4]), "batch, outputs"),
    ],
)
def test_errors_say_what_is_wrong(make, match):
    with pytest.raises(ValueError, match=match):
        make()
