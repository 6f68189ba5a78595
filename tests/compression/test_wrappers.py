"""scikit-learn's own checks, pipelines, searches."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import khub  # noqa: E402
from khub import layers, models, wrappers  # noqa: E402

# They cost no compilation; on the others the same runs.
pytestmark = pytest.mark.skipif(khub.backend.name != "torch", reason="hundreds of small fits")
KNOWN = {"check_classifiers_one_label_sample_weights"}  # in Keras too: 10 rows teach no weights
QUIET = {"verbose": 0, "epochs": 2}


def network(X, y, units=(5,), activation="softmax", loss="categorical_crossentropy"):
    khub.utils.set_random_seed(1)
    made = [layers.Dense(n, activation="relu") for n in units]
    last = layers.Dense(y.shape[1], activation=activation)
    model = models.Sequential([layers.Input(X.shape[1:]), *made, last])
    model.compile(khub.optimizers.Adam(0.05), loss)
    return model


REGRESSION = dict(activation=None, loss="mse")
ESTIMATORS = [
    wrappers.SKLearnClassifier(network, fit_kwargs=QUIET),
    wrappers.SKLearnRegressor(network, model_kwargs=REGRESSION, fit_kwargs=QUIET),
    wrappers.SKLearnTransformer(network, model_kwargs=REGRESSION, fit_kwargs=QUIET),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_the_checks_of_scikit_learn(estimator):
    results = check_estimator(estimator, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert failed.keys() <= KNOWN, failed
    assert sum(r["status"] == "passed" for r in results) > 30


def test_pipelines_searches_and_models_that_are_given():
    random = np.random.default_rng(0)
    x = random.standard_normal((90, 4))
    y = np.array(["a", "b", "c"])[x[:, :3].argmax(1)]
    options = {"epochs": 30, "verbose": 0}
    net = wrappers.SKLearnClassifier(network, model_kwargs={"units": (16,)}, fit_kwargs=options)
    pipeline = make_pipeline(StandardScaler(), net)
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.6
    grid = {"model_kwargs": [{"units": ()}, {"units": (16,)}], "fit_kwargs": [options]}
    search = GridSearchCV(net, grid, cv=2).fit(x, y)
    assert search.best_params_["model_kwargs"] in grid["model_kwargs"]
    assert set(search.predict(x)) <= {"a", "b", "c"} and search.best_estimator_.epoch_ == 30
    assert search.best_estimator_.decision_function(x).shape == (90, 3)

    given = network(x, np.eye(3)[[0] * 90])
    fresh = wrappers.SKLearnClassifier(given, fit_kwargs=options)
    before = given.get_weights()
    assert clone(fresh).fit(x, y).model_ is not given
    np.testing.assert_array_equal(given.get_weights()[0], before[0])
    warm = wrappers.SKLearnClassifier(given, warm_start=True, fit_kwargs=options).fit(x, y)
    assert warm.model_ is given and np.abs(given.get_weights()[0] - before[0]).max() > 0
    thawed = pickle.loads(pickle.dumps(warm))
    np.testing.assert_array_equal(thawed.predict(x), warm.predict(x))
    assert thawed.fit(x, y).model_ is thawed.model_ is not given
    with pytest.raises(ValueError, match="compiled"):
        wrappers.SKLearnClassifier(models.Sequential([layers.Dense(3)])).fit(x, y)
    assert warm.set_fit_request(sample_weight=True) is warm
