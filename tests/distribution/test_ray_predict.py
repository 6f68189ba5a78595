"""Predictions of a Ray data set are those of the model, computed by actors of a local Ray."""

import numpy as np
import pytest

import khub
from khub import distribution, layers


def test_what_is_no_ray_data_set_is_an_error():
    with pytest.raises(ImportError, match=r"khub\[ray\]"):
        distribution.ray_predict("some_preset", np.zeros((2, 3)), "x")


@pytest.mark.slow
@pytest.mark.once
def test_actors_predict_what_the_model_does(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    x = khub.Input((3,), name="a")
    y = layers.Dense(2, name="first")(x)
    model = khub.Model(x, {"sum": y, "rest": layers.Dense(1, name="second")(y)})
    rows = np.random.default_rng(0).normal(size=(10, 3)).astype("float32")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        data = ray.data.from_numpy(rows)
        found = distribution.ray_predict(model, data, "data", output="y", batch_size=4)
        columns = {name: np.stack(c) for name, c in found.to_pandas().items()}
    finally:
        ray.shutdown()
    expected = model.predict(rows, verbose=0)
    order = [np.abs(columns["data"] - row).sum(1).argmin() for row in rows]
    assert columns.keys() == {"data", "y_sum", "y_rest"}
    for name, values in expected.items():
        np.testing.assert_allclose(columns[f"y_{name}"][order], values, atol=1e-5)
