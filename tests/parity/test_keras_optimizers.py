"""Optimizers and schedules give Keras' numbers: 20 steps of each, with every kind of option."""

from types import SimpleNamespace

import numpy as np
import pytest

# Keras' own NumPy backend imports JAX anyway.
keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub import ops  # noqa: E402
from khub.optimizers import schedules  # noqa: E402

STEPS = 20
SHAPES = {
    "kernel": (3, 4),
    "bias": (4,),
    "token_embeddings": (5, 2),
    "tall": (4, 2),
    "cube": (2, 3, 4),
}
OPTIONS = {  # every optimizer by itself, and what is special about it
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "RMSprop": [
        {},
        {"momentum": 0.5},
        {"centered": True},
        {"momentum": 0.5, "centered": True, "rho": 0.8},
    ],
    "Adam": [{}, {"amsgrad": True}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}],
    "AdamW": [{}, {"weight_decay": 0.1}, {"amsgrad": True}],
    "Adadelta": [{}, {"learning_rate": 1.0, "rho": 0.5, "epsilon": 1e-3}],
    "Adagrad": [{}, {"initial_accumulator_value": 1.0, "epsilon": 0.1}],
    "Adamax": [{}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}],
    "Adafactor": [
        {},
        {"relative_step": False, "clip_threshold": 0.5},
        {"beta_2_decay": -0.5, "epsilon_1": 1e-3, "epsilon_2": 0.5},
        {"learning_rate": 0.9},
    ],
    "Ftrl": [
        {},
        {"l1_regularization_strength": 0.1, "l2_regularization_strength": 0.2},
        {"learning_rate_power": -0.3, "beta": 0.5},
        {"l2_shrinkage_regularization_strength": 0.1, "initial_accumulator_value": 1.0},
    ],
    "Lamb": [{}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}],
    "Lion": [{}, {"beta_1": 0.5, "beta_2": 0.8}],
    "Muon": [
        {},
        {"nesterov": False, "ns_steps": 2, "rms_rate": None},
        {"adam_lr_ratio": 0.5, "weight_decay": 0.5, "adam_weight_decay": 0.1},
        {"exclude_layers": ["kern"], "exclude_embeddings": False, "weight_decay": 0.1},
        {"adam_beta_1": 0.5, "adam_beta_2": 0.9, "epsilon": 0.01, "momentum": 0.5},
    ],
    "Nadam": [{}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}],
    "ScheduleFreeAdamW": [{}, {"warmup_steps": 4}, {"beta_1": 0.5, "weight_decay": 0.1}],
}
SHARED = [  # what every optimizer takes
    {"weight_decay": 0.1},
    {"clipnorm": 0.5},
    {"clipvalue": 0.3},
    {"global_clipnorm": 0.5},
    {"use_ema": True, "ema_momentum": 0.8},
    {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3},
    {"gradient_accumulation_steps": 3},
    {"gradient_accumulation_steps": 2, "clipnorm": 0.5, "weight_decay": 0.1},
    {"loss_scale_factor": 8.0},
    {"learning_rate": "schedule"},
]
SPREAD = ["SGD", "Adam", "Nadam"]  # no slots, a fused kernel, state of its own
EVERY = {  # several at once, which every optimizer takes
    "clipnorm": 0.8,
    "weight_decay": 0.05,
    "use_ema": True,
    "ema_overwrite_frequency": 4,
    "loss_scale_factor": 2.0,
    "learning_rate": "schedule",
}
CASES = [(name, options) for name in OPTIONS for options in OPTIONS[name]]
CASES += [(name, options) for name in SPREAD for options in SHARED]
MEANS = {"gradient_accumulation_steps": 2, "global_clipnorm": 0.9, "weight_decay": 0.05}
CASES += [(name, options) for name in OPTIONS for options in (EVERY, MEANS)]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{o}" for n, o in CASES])


def make(package, name, options):
    options = {"learning_rate": 0.05, "name": "given", **options}
    if options["learning_rate"] == "schedule":
        options["learning_rate"] = package.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    return getattr(package.optimizers, name)(**options)


def start():
    random = np.random.RandomState(0)
    return {name: random.randn(*shape).astype("float32") for name, shape in SHAPES.items()}


def gradients(step):
    random = np.random.RandomState(step + 1)
    scale = 0.0 if step == 4 else 1.0
    return [scale * random.randn(*shape).astype("float32") for shape in SHAPES.values()]


def unchanged(step, gradients):
    return gradients


def made(package, prepare):
    variables = [package.Variable(value, name=name) for name, value in start().items()]
    prepare(package, dict(zip(SHAPES, variables, strict=True)))
    return variables


def run_khub(optimizer, steps=STEPS, change=unchanged, prepare=unchanged):
    variables = made(khub, prepare)
    optimizer.build(variables)
    for step in range(steps):
        grads = [
            g if g is None else ops.convert_to_tensor(g) for g in change(step, gradients(step))
        ]
        optimizer.apply(grads, variables)
    return variables


def run_keras(optimizer, steps=STEPS, change=unchanged, prepare=unchanged):
    variables = made(keras, prepare)
    optimizer.build(variables)
    for step in range(steps):
        grads = change(step, gradients(step))
        grads = [g if g is None else keras.ops.convert_to_tensor(g) for g in grads]
        if keras.backend.backend() != "jax" or any(g is None for g in grads):
            optimizer.apply(grads, variables)
            continue
        state, values = ([v.value for v in x] for x in (optimizer.variables, variables))
        values, state = optimizer.stateless_apply(state, grads, values)
        for variable, value in zip([*variables, *optimizer.variables], [*values, *state]):
            variable.assign(value)
    return variables


def agree(ours, theirs, tolerance=1e-5):
    for mine, other in zip(ours, theirs, strict=True):
        dtype = "int32" if other.dtype == "int64" else other.dtype  # Keras counts so on TensorFlow
        assert tuple(mine.shape) == tuple(other.shape) and mine.dtype == dtype
        np.testing.assert_allclose(
            mine.numpy(),
            keras.ops.convert_to_numpy(other.value),
            rtol=tolerance,
            atol=tolerance,
            err_msg=mine.path,
        )


@cases
def test_twenty_steps(name, options):
    if name == "ScheduleFreeAdamW" and keras.backend.backend() != "jax":
        pytest.skip("Keras' numbers differ from JAX's; tests/test_optimizers.py has those")
    ours, theirs = make(khub, name, options), make(keras, name, options)
    mine = run_khub(ours)
    agree(mine, run_keras(theirs))
    agree(ours.variables, theirs.variables)
    if options.get("use_ema"):
        ours.finalize_variable_values(mine)
        for variable, average in zip(mine, ours._averages.values(), strict=True):
            np.testing.assert_array_equal(variable.numpy(), average.numpy())


@cases
def test_names_and_configs(name, options):
    ours, theirs = make(khub, name, options), make(keras, name, options)
    run_khub(ours, 0), run_keras(theirs, 0)
    if name not in ("Adafactor", "Nadam"):  # Keras gives these names of their Variables alone
        assert [v.path for v in ours.variables] == [v.path for v in theirs.variables]
    found, wanted = ours.get_config(), theirs.get_config()
    assert found.keys() == wanted.keys()
    for key in found.keys() - {"learning_rate"}:
        assert found[key] == wanted[key], key
    if options.get("learning_rate") == "schedule":
        assert found["learning_rate"] == wanted["learning_rate"]
    again = khub.optimizers.deserialize(keras.optimizers.serialize(theirs))
    assert type(again) is type(ours) and again.get_config() == found


# --- Variables of their own kind -----------------------------------------------------------------
def constrained(package, variables):
    for name in ("kernel", "bias"):
        variables[name].constraint = package.constraints.MinMaxNorm(0.5, 0.6, rate=0.5)


def overwritten(package, variables):
    variables["bias"].overwrite_with_gradient = variables["cube"].overwrite_with_gradient = True


def sometimes_none(step, gradients):
    return [None if i == step % 7 else g for i, g in enumerate(gradients)]


AVERAGES = {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3}
KINDS = [  # options, what happens to gradients, to Variables
    (AVERAGES, unchanged, constrained),
    (
        {"weight_decay": 0.1, "clipnorm": 0.5},
        unchanged,
        overwritten,
    ),  # averages: not in Keras on TF
    ({"gradient_accumulation_steps": 3, "loss_scale_factor": 4.0}, unchanged, overwritten),
    ({"gradient_accumulation_steps": 3}, sometimes_none, unchanged),
    ({"weight_decay": 0.1, "global_clipnorm": 0.5}, sometimes_none, unchanged),
]


@pytest.mark.parametrize(("options", "change", "prepare"), KINDS)
@pytest.mark.parametrize("name", SPREAD)
def test_constraints_direct_values_and_missing_gradients(name, options, change, prepare):
    if change is sometimes_none and keras.backend.backend() == "jax" and len(options) == 1:
        pytest.skip("Keras on JAX keeps sums whose last gradient is missing, on the others not")
    ours, theirs = make(khub, name, options), make(keras, name, options)
    mine, other = (
        run(optimizer, change=change, prepare=prepare)
        for run, optimizer in ((run_khub, ours), (run_keras, theirs))
    )
    agree(mine, other)
    agree(ours.variables, theirs.variables)
    if options.get("use_ema"):
        ours.finalize_variable_values(mine), theirs.finalize_variable_values(other)
        agree(mine, other)


def overflow(step, gradients):
    return [g * (np.inf if step in (2, 3, 7) else 1) for g in gradients]


@pytest.mark.parametrize("inner", ["SGD", "Adam", "Muon"])
def test_loss_scaling(inner):
    options = {"initial_scale": 16.0, "dynamic_growth_steps": 2, "name": "scaled"}
    ours = khub.optimizers.LossScaleOptimizer(make(khub, inner, {}), **options)
    theirs = keras.optimizers.LossScaleOptimizer(make(keras, inner, {}), **options)
    agree(run_khub(ours, change=overflow), run_keras(theirs, change=overflow))
    agree(ours.variables, theirs.variables)
    assert [v.path for v in ours.variables] == [v.path for v in theirs.variables]
    assert ours.get_config().keys() == theirs.get_config().keys()


def mapped(package):
    parts = {"bias|cube": package.optimizers.Adam(0.01, name="second")}
    first = package.optimizers.SGD(0.1, momentum=0.5, name="first")
    which = package.optimizers.OptimizerMap(first, parts)
    return package.optimizers.MultiOptimizer(which, name="several")


def grouped(package):
    parts = {
        "kernel|tall": package.optimizers.Muon(0.02, name="second"),
        "cube": package.optimizers.AdamW(
            package.optimizers.schedules.CosineDecay(0.05, 15), use_ema=True, name="fourth"
        ),
    }
    which = package.optimizers.OptimizerMap(package.optimizers.RMSprop(0.01, name="first"), parts)
    return package.optimizers.MultiOptimizer(which, name="several")


def partly_used(package):
    adam, sgd = package.optimizers.Adam(0.01, name="all"), package.optimizers.SGD(name="none")
    which = package.optimizers.OptimizerMap(sgd, {".*": adam, "no such path": sgd})
    return package.optimizers.MultiOptimizer(which, name="several")


@pytest.mark.parametrize("make", [mapped, grouped, partly_used])
def test_several_optimizers(make):
    ours, theirs = make(khub), make(keras)
    agree(run_khub(ours), run_keras(theirs))
    assert sorted(v.path for v in ours.variables) == sorted(v.path for v in theirs.variables)
    assert [v.path for v in ours.variables] == [v.path for v in theirs.variables]
    assert ours.get_config().keys() == theirs.get_config().keys()


@pytest.mark.parametrize("pattern", ["embed", ".*embed.*", "kernel", ".*kernel", "dense/.*"])
def test_a_pattern_matches_a_whole_path(pattern):
    def chosen(package):
        optimizers = package.optimizers
        which = optimizers.OptimizerMap(optimizers.SGD(0.1), {pattern: optimizers.Adam(0.1)})
        paths = ["kernel", "dense/kernel", "block/dense/kernel", "my_embed/embeddings"]
        return [type(which(SimpleNamespace(path=path))).__name__ for path in paths]

    assert chosen(khub) == chosen(keras)


@pytest.mark.parametrize("name", OPTIONS)
def test_micro_steps_equal_one_large_batch(name):
    options = {"gradient_accumulation_steps": 3, "clipnorm": 0.7, "weight_decay": 0.1}
    parts = run_khub(make(khub, name, options), 12)

    def mean(step, _):
        return [sum(each) / 3 for each in zip(*(gradients(3 * step + i) for i in range(3)))]

    options.pop("gradient_accumulation_steps")
    whole = run_khub(make(khub, name, options), 4, mean)
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)


RATE = {"initial_learning_rate": 0.1}
DECAY = {**RATE, "decay_steps": 10}
RESTARTS = {**RATE, "first_decay_steps": 7}
SCHEDULES = [
    ("ExponentialDecay", {**DECAY, "decay_rate": 0.9}),
    ("ExponentialDecay", {**DECAY, "decay_rate": 0.9, "staircase": True}),
    ("InverseTimeDecay", {**DECAY, "decay_rate": 0.5}),
    ("InverseTimeDecay", {**DECAY, "decay_rate": 0.5, "staircase": True}),
    ("PiecewiseConstantDecay", {"boundaries": [5, 50], "values": [1.0, 0.5, 0.1]}),
    ("PolynomialDecay", {**RATE, "decay_steps": 50}),
    ("PolynomialDecay", {**DECAY, "end_learning_rate": 0.01, "power": 2.0, "cycle": True}),
    ("CosineDecay", {**RATE, "decay_steps": 100, "alpha": 0.1}),
    ("CosineDecay", {**RATE, "decay_steps": 100, "warmup_target": 0.2, "warmup_steps": 10}),
    ("CosineDecayRestarts", RESTARTS),
    ("CosineDecayRestarts", {**RESTARTS, "t_mul": 1.0, "m_mul": 0.9}),
    ("CosineDecayRestarts", {**RESTARTS, "t_mul": 1.5, "m_mul": 0.8, "alpha": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=[f"{n}-{o}" for n, o in SCHEDULES])
def test_schedules(name, options):
    ours = getattr(schedules, name)(**options)
    theirs = getattr(keras.optimizers.schedules, name)(**options)
    for step in (0, 1, 2, 5, 6, 9, 10, 11, 20, 33, 50, 51, 77, 99, 101, 250, 1000):
        found, wanted = float(ours(step)), float(keras.ops.convert_to_numpy(theirs(step)))
        assert found == pytest.approx(wanted, rel=2e-5, abs=1e-8), step
    assert ours.get_config() == theirs.get_config()
    assert schedules.serialize(ours) == keras.optimizers.schedules.serialize(theirs)
    again = schedules.deserialize(keras.optimizers.schedules.serialize(theirs))
    assert again.get_config() == ours.get_config()


def test_no_optimizer_is_left_out():
    own = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
    public = {n for n, x in vars(keras.optimizers).items() if isinstance(x, type)}
    assert public - own == OPTIONS.keys()
    public = {n for n, x in vars(keras.optimizers.schedules).items() if isinstance(x, type)}
    assert public - {"LearningRateSchedule"} == {name for name, _ in SCHEDULES}
