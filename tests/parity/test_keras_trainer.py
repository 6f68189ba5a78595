"""fit, evaluate, predict and the steps of one batch give Keras' histories, results and weights."""

import numpy as np
import pytest

# Keras' own NumPy backend imports JAX anyway.
keras = pytest.importorskip("keras")

import khub  # noqa: E402

trains = pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients")
RANDOM = np.random.RandomState(0)
X = RANDOM.randn(22, 3).astype("float32")
Y = RANDOM.randn(22, 2).astype("float32")
CLASSES = RANDOM.randint(0, 3, 22)
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
BINARY = (X[:, :1] > 0).astype("float32")
WEIGHTS = RANDOM.rand(22).astype("float32")


# --- models --------------------------------------------------------------------------------------
def dense(package, units=2, activation=None, **options):
    layers = package.layers
    hidden = layers.Dense(4, activation="tanh", **options)
    return package.Sequential(
        [package.Input((3,)), hidden, layers.Dense(units, activation=activation)]
    )


def two_outputs(package):
    inputs = package.Input((3,), name="x")
    hidden = package.layers.Dense(4, activation="tanh")(inputs)
    outputs = {
        "a": package.layers.Dense(2, name="a")(hidden),
        "b": package.layers.Dense(3, activation="softmax", name="b")(hidden),
    }
    return package.Model(inputs, outputs)


def listed_outputs(package):
    model = two_outputs(package)
    return package.Model(model.inputs, [model.outputs[0], model.outputs[1]])


def two_inputs(package, kind):
    first, second = package.Input((3,), name="first"), package.Input((2,), name="second")
    joined = package.layers.Concatenate()([first, second])
    inputs = {"first": first, "second": second} if kind is dict else [first, second]
    return package.Model(inputs, package.layers.Dense(2)(joined))


def regularized(package):
    l2 = package.regularizers.L2(0.1)
    options = {"kernel_regularizer": l2, "activity_regularizer": package.regularizers.L1(0.01)}
    return dense(package, **options)


def normalized(package):
    layers = package.layers
    parts = [layers.Dense(4), layers.BatchNormalization(momentum=0.8), layers.Dropout(0.0)]
    return package.Sequential([package.Input((3,)), *parts, layers.Dense(2)])


def frozen(package):
    model = dense(package)
    model.layers[0].trainable = False
    return model


def scheduled(package):
    rate = package.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
    return package.optimizers.SGD(rate)


class Batches:
    """The same batches for both libraries, without an end or once through."""

    def __init__(self, endless):
        self.endless = endless

    def __iter__(self):
        while True:
            for start in range(0, 20, 5):
                yield X[start : start + 5], Y[start : start + 5]
            if not self.endless:
                return


def generator(endless):
    return iter(Batches(endless))


def sequence(package):
    class Rows(package.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            rows = slice(5 * index, 5 * index + 5)
            return X[rows], Y[rows], WEIGHTS[rows]

    return Rows()


# name -> model, compile options, x, y, fit options
MSE = {"loss": "mse"}
SPARSE = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
THREE = (lambda package: dense(package, 3, "softmax"),)
ONE = (lambda package: dense(package, 1, "sigmoid"),)
BOTH = {"loss": {"a": "mse", "b": "sparse_categorical_crossentropy"}}
TARGETS = {"a": Y, "b": CLASSES}
CASES = {
    "plain": (dense, MSE, X, Y, {}),
    "metrics": (dense, {**MSE, "metrics": ["mae", "mse"]}, X, Y, {}),
    "sparse accuracy": (*THREE, SPARSE, X, CLASSES, {}),
    "sparse accuracy of a column": (*THREE, SPARSE, X, CLASSES[:, None], {}),
    "one-hot accuracy": (
        *THREE,
        {"loss": "categorical_crossentropy", "metrics": ["acc"]},
        X,
        ONE_HOT,
        {},
    ),
    "binary accuracy": (
        *ONE,
        {"loss": "binary_crossentropy", "metrics": ["accuracy", "AUC"]},
        X,
        BINARY,
        {},
    ),
    "weights": (
        dense,
        {**MSE, "metrics": ["mae"], "weighted_metrics": ["mse"]},
        X,
        Y,
        {"sample_weight": WEIGHTS},
    ),
    "class weights": (*THREE, SPARSE, X, CLASSES, {"class_weight": {0: 2.0, 1: 0.5, 2: 1.0}}),
    "validation split": (*THREE, SPARSE, X, CLASSES, {"validation_split": 0.3}),
    "validation data": (dense, MSE, X, Y, {"validation_data": (X[:7], Y[:7], WEIGHTS[:7])}),
    "validation now and then": (
        dense,
        MSE,
        X,
        Y,
        {"validation_data": (X, Y), "validation_freq": 2, "validation_batch_size": 5, "epochs": 4},
    ),
    "initial epoch": (dense, MSE, X, Y, {"initial_epoch": 1, "epochs": 3}),
    "one batch": (dense, MSE, X, Y, {"batch_size": 64}),
    # equal batches: only on TensorFlow does Keras weigh the losses of outputs by rows, as khub does
    "two outputs": (two_outputs, BOTH, X, TARGETS, {"batch_size": 11}),
    "two outputs, weighed": (
        two_outputs,
        {
            **BOTH,
            "loss_weights": {"a": 0.3, "b": 2.0},
            "metrics": {"a": ["mae"], "b": ["accuracy"]},
        },
        X,
        TARGETS,
        {"batch_size": 11},
    ),
    "outputs as lists": (
        listed_outputs,
        {
            "loss": ["mse", "sparse_categorical_crossentropy"],
            "loss_weights": [0.5, 1.0],
            "metrics": [["mae"], ["accuracy"]],
        },
        X,
        [Y, CLASSES],
        {"batch_size": 11},
    ),
    "inputs as dict": (
        lambda package: two_inputs(package, dict),
        MSE,
        {"first": X, "second": Y},
        Y,
        {},
    ),
    "inputs as list": (lambda package: two_inputs(package, list), MSE, [X, Y], Y, {}),
    "regularized": (regularized, MSE, X, Y, {}),
    "normalized": (normalized, MSE, X, Y, {}),
    "frozen": (frozen, MSE, X, Y, {}),
    "steps per execution": (dense, {**MSE, "steps_per_execution": 3}, X, Y, {}),
    "eager": (dense, {**MSE, "run_eagerly": True}, X, Y, {}),
    "schedule": (dense, {**MSE, "optimizer": scheduled}, X, Y, {}),
    "accumulation": (
        dense,
        {
            **MSE,
            "optimizer": lambda package: package.optimizers.SGD(0.1, gradient_accumulation_steps=2),
        },
        X,
        Y,
        {},
    ),
    "endless generator": (
        dense,
        MSE,
        lambda package: generator(True),
        None,
        {"steps_per_epoch": 3, "batch_size": None},
    ),
    "data set": (dense, MSE, sequence, None, {"batch_size": None}),
}


def run(package, name, weights=None):
    """Return the weights at the start, and everything that training gives."""
    make, compiled, x, y, options = CASES[name]
    model = make(package)
    start = model.get_weights()
    if weights is not None:
        model.set_weights(weights)
    optimizer = compiled.get("optimizer", lambda package: package.optimizers.SGD(0.1))(package)
    if keras.backend.backend() == "torch" and package is keras:
        compiled = {**compiled, "steps_per_execution": 1}  # it takes no more
    model.compile(**{**compiled, "optimizer": optimizer})
    x = x(package) if callable(x) else x
    options = {"epochs": 2, "batch_size": 5, "shuffle": False, "verbose": 0, **options}
    history = model.fit(x, y, **options)
    return start, {
        "history": history.history,
        "epoch": history.epoch,
        "params": {k: history.params[k] for k in ("epochs", "steps")},
        "weights": model.get_weights(),
    }


def agree(found, wanted, where=""):
    """Compare nested results: the same keys (Keras sorts them), numbers to 1e-5."""
    if isinstance(wanted, dict):
        assert sorted(found) == sorted(wanted), where
        for key in wanted:
            agree(found[key], wanted[key], f"{where} {key}")
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted), where
        for i, (one, other) in enumerate(zip(found, wanted)):
            agree(one, other, f"{where}[{i}]")
    elif wanted is None:
        assert found is None, where
    else:
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5, err_msg=where)


@trains
@pytest.mark.parametrize("name", CASES)
def test_fit(name):
    weights, wanted = run(keras, name)
    _, found = run(khub, name, weights)
    agree(found, wanted, name)


# --- what needs no gradients ---------------------------------------------------------------------
EVALUATED = ["metrics", "one-hot accuracy", "two outputs, weighed", "outputs as lists", "weights"]
EVALUATED += ["inputs as dict", "regularized", "data set"]


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluate_and_predict(name):
    make, compiled, x, y, options = CASES[name]
    theirs, ours = make(keras), make(khub)
    ours.set_weights(theirs.get_weights())
    results = []
    for package, model in ((khub, ours), (keras, theirs)):
        model.compile(**{**compiled, "optimizer": "sgd"})
        data = x(package) if callable(x) else x
        given = {"batch_size": None if callable(x) else 11, "verbose": 0}
        weight = options.get("sample_weight")
        results.append(
            [
                model.evaluate(data, y, sample_weight=weight, return_dict=True, **given),
                model.evaluate(data, y, sample_weight=weight, **given),
                model.predict(data, **given),
            ]
        )
    agree(*results, name)


def _four(leaf):
    return leaf[:4]


ON_BATCH = ["metrics", "weights", "one-hot accuracy", "two outputs, weighed", "class weights"]


@trains
@pytest.mark.parametrize("name", ON_BATCH)
def test_one_batch_at_a_time(name):
    make, compiled, x, y, options = CASES[name]
    theirs, ours = make(keras), make(khub)
    ours.set_weights(theirs.get_weights())
    results = []
    for package, model in ((khub, ours), (keras, theirs)):
        model.compile(**{**compiled, "optimizer": package.optimizers.Adam(0.01)})
        rows, targets = X[:6], khub.tree.map_structure(lambda leaf: leaf[:6], y)
        given = {k: v for k, v in options.items() if k in ("sample_weight", "class_weight")}
        if "sample_weight" in given:
            given["sample_weight"] = given["sample_weight"][:6]
        found = [model.train_on_batch(rows, targets, return_dict=True, **given)]
        found.append(model.train_on_batch(rows, targets, **given))
        given.pop("class_weight", None)
        found.append(model.test_on_batch(rows, targets, **given))
        found.append(model.test_on_batch(rows[:4], khub.tree.map_structure(_four, targets)))
        found.append(model.predict_on_batch(rows))
        results.append([*found, model.get_weights()])
    agree(*results, name)


# --- the user's own steps and the order of calls -------------------------------------------------
def recorder(package):
    class Recorder(package.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.calls = []

        def set_params(self, params):
            super().set_params(params)
            self.calls.append(("set_params", sorted(params)))

    for kind in ("train", "test", "predict"):
        for moment in ("begin", "end"):
            names = (f"on_{kind}_{moment}", f"on_{kind}_batch_{moment}")
            for name in (*names, f"on_epoch_{moment}"):
                setattr(Recorder, name, _record(name))
    return Recorder()


def _record(name):
    def record(self, *where, logs=None):
        if where and not isinstance(where[-1], int):
            *where, logs = where
        self.calls.append((name, *where, sorted(logs or ())))

    return record


@trains
def test_callbacks_are_called_in_order():
    calls = []
    for package in (khub, keras):
        model, callback = dense(package), recorder(package)
        model.compile(optimizer="sgd", loss="mse", metrics=["mae"])
        options = {"verbose": 0, "callbacks": [callback]}
        model.fit(X, Y, epochs=2, batch_size=11, validation_data=(X, Y), **options)
        model.evaluate(X, Y, batch_size=11, **options)
        model.predict(X, batch_size=11, **options)
        calls.append([c for c in callback.calls if c[0] != "set_params"])
    found, wanted = calls
    assert [c[:-1] for c in found] == [c[:-1] for c in wanted]
    epochs = [[c for c in each if c[0] == "on_epoch_end"] for each in calls]
    assert epochs[0] == epochs[1]


STOPPING = [
    {"monitor": "val_loss", "patience": 1, "restore_best_weights": True},
    {"monitor": "loss", "patience": 0, "min_delta": 0.5},
    {"monitor": "val_loss", "patience": 2, "baseline": 0.1, "start_from_epoch": 1},
    {"monitor": "loss", "patience": 2, "baseline": 0.8},
    {"monitor": "val_mae", "mode": "max", "patience": 1, "restore_best_weights": True},
]


@trains
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", STOPPING, ids=str)
def test_early_stopping(options, seed):
    random = np.random.RandomState(seed)
    weights = [random.randn(*w.shape) * 0.5 for w in dense(keras).get_weights()]
    results = []
    for package in (khub, keras):
        model = dense(package)
        model.set_weights(weights)
        model.compile(package.optimizers.SGD(0.3), loss="mse", metrics=["mae"])
        stop = package.callbacks.EarlyStopping(**options)
        data = {"validation_data": (X[11:], -Y[11:]), "shuffle": False, "verbose": 0}
        history = model.fit(X[:11], Y[:11], epochs=8, batch_size=4, callbacks=[stop], **data)
        results.append([history.history, stop.stopped_epoch, model.get_weights()])
    agree(*results)
