"""Optimizers give one number on every backend, train under jit, keep state, say what is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest

import khub
from khub import ops, optimizers
from khub.backend import active
from khub.optimizers import schedules

MEANS = {"gradient_accumulation_steps": 2, "use_ema": True}
SHAPES = {"kernel": (3, 4), "bias": (4,), "embeddings": (5, 2)}
# Sum of all weights after ten steps; tests/parity/test_keras_optimizers.py holds these to Keras.
SUMS = {
    "Adadelta": 10.425127,
    "Adafactor": 10.423307,
    "Adagrad": 10.717056,
    "Adam": 11.308475,
    "AdamW": 11.286338,
    "Adamax": 11.139497,
    "Ftrl": 6.471771,
    "Lamb": 11.737023,
    "Lion": 10.824980,
    "Muon": 10.950200,
    "Nadam": 10.800663,
    "RMSprop": 11.385831,
    "SGD": 10.285675,
    "ScheduleFreeAdamW": 10.921558,
}


def variables():
    random = np.random.RandomState(0)
    return [
        khub.Variable(random.randn(*shape).astype("float32"), name=name)
        for name, shape in SHAPES.items()
    ]


def gradients(step):
    random = np.random.RandomState(step + 1)
    return [random.randn(*shape).astype("float32") for shape in SHAPES.values()]


def run(optimizer, steps, values=None):
    values = variables() if values is None else values
    for step in range(steps):
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients(step)], values)
    return values


def total(values):
    return float(sum(v.numpy().astype("float64").sum() for v in values))


@pytest.mark.parametrize("name", SUMS)
def test_one_number_for_all_backends(name):
    values = run(getattr(optimizers, name)(0.05), 10)
    assert total(values) == pytest.approx(SUMS[name], rel=1e-5)


def test_every_optimizer_is_here():
    public = {n for n, x in vars(optimizers).items() if isinstance(x, type)}
    frames = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
    assert public - frames == SUMS.keys()


FUSED = [
    (name, options)
    for name, variants in {
        "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
        "Adam": [{}, {"weight_decay": 0.1}, {"amsgrad": True, "clipnorm": 0.5}],
        "AdamW": [{}, {"amsgrad": True}],
    }.items()
    for options in variants
    if name in active.fused
]


@pytest.mark.parametrize(("name", "options"), FUSED)
def test_fused_updates_equal_the_rule(name, options):
    results = []
    for fused in (True, False):
        optimizer = getattr(optimizers, name)(0.05, **options)
        optimizer._fused = counted = Counted(optimizer._fused if fused else lambda *_: False)
        results.append(run(optimizer, 6))
        assert counted.done == (6 if fused and native(options) else 0)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)


class Counted:
    """A function that counts how often it returned True."""

    def __init__(self, function):
        self.function, self.done = function, 0

    def __call__(self, *args):
        found = self.function(*args)
        self.done += found
        return found


def native(options):
    """TensorFlow's kernel knows no AMSGrad."""
    return khub.backend.name == "torch" or not options.get("amsgrad")


# --- under jit -----------------------------------------------------------------------------------
@pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients")
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Muon"])
@pytest.mark.parametrize("options", [{}, MEANS], ids=["plain", "means"])
def test_compiled_steps_equal_eager_ones(name, options):
    compiled, eager = (train(name, options, wrap) for wrap in (khub.jit, lambda step: step))
    for one, other in zip(compiled, eager, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def train(name, options, wrap):
    """Take six steps towards a kernel of zeros; return it and the optimizer's state."""
    kernel = khub.Variable(np.ones((4, 3), "float32"), name="kernel")
    optimizer = getattr(optimizers, name)(0.05, **options)
    optimizer.build([kernel])
    x = ops.convert_to_tensor(np.random.RandomState(0).randn(6, 4).astype("float32"))

    def loss():
        return ops.mean(ops.square(ops.matmul(x, kernel)))

    @wrap
    def step():
        value, gradients = khub.value_and_grad(loss, [kernel])()
        optimizer.apply(gradients, [kernel])
        return value

    found = [float(step()) for _ in range(6)]
    assert found[-1] < found[0] and int(optimizer.iterations) == (3 if options else 6)
    return [kernel.numpy(), *(v.numpy() for v in optimizer.variables)]


# --- state ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["SGD", "Adam", "Nadam", "Muon", "Adafactor"])
def test_state_is_carried_on(name):
    whole = total(run(getattr(optimizers, name)(0.05), 4))
    first, values, stored = getattr(optimizers, name)(0.05), variables(), {}
    run(first, 2, values)
    first.save_own_variables(stored)
    second = optimizers.deserialize(optimizers.serialize(first))
    second.build(values)
    second.load_own_variables(stored)
    for step in (2, 3):
        second.apply([ops.convert_to_tensor(g) for g in gradients(step)], values)
    assert total(values) == pytest.approx(whole, rel=1e-6)


def test_stateless_apply_leaves_the_variables():
    optimizer, values = optimizers.Adam(0.05), variables()
    optimizer.build(values)
    before = total(values)
    state, given = [v.value for v in optimizer.variables], [v.value for v in values]
    grads = [ops.convert_to_tensor(g) for g in gradients(0)]
    new, state = optimizer.stateless_apply(state, grads, given)
    assert total(values) == before and int(optimizer.iterations) == 0 and int(state[0]) == 1
    run(optimizer, 1, values)
    for value, variable in zip(new, values, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(value), variable.numpy(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_learn(dtype):
    kernel = khub.Variable(np.ones(3, "float32"), dtype=dtype, name="kernel")
    optimizer = optimizers.Adam(0.05)
    for _ in range(20):
        optimizer.apply([ops.ones_like(kernel.value)], [kernel])
    np.testing.assert_allclose(kernel.numpy().astype("float32"), 0.0, atol=0.05)


def test_learning_rate():
    optimizer = optimizers.SGD(0.5)
    optimizer.learning_rate = 0.25
    assert (
        float(optimizer.learning_rate) == 0.25 and optimizer.get_config()["learning_rate"] == 0.25
    )
    optimizer = optimizers.SGD(optimizers.schedules.ExponentialDecay(1.0, 1, 0.5))
    run(optimizer, 2)
    assert float(optimizer.learning_rate) == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_all_may_be_exempt_from_decay(name):
    exempt, plain = (getattr(optimizers, name)(0.05, weight_decay=w) for w in (0.1, None))
    exempt.exclude_from_weight_decay(var_names=list(SHAPES))
    assert total(run(exempt, 3)) == pytest.approx(total(run(plain, 3)), rel=1e-6)


# --- errors --------------------------------------------------------------------------------------
def lacking_rule():
    class Empty(optimizers.Optimizer):
        pass

    run(Empty(0.1), 1)


def foreign():
    optimizer = optimizers.SGD()
    optimizer.build(variables())
    optimizer.apply([ops.zeros((2,))], [khub.Variable(np.zeros(2, "float32"), name="other")])


def scheduled():
    optimizers.SGD(optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)).learning_rate = 0.1


ERRORS = {
    "count": (lambda: optimizers.SGD().apply([1.0], variables()), ValueError, "1 gradients for 3"),
    "none": (
        lambda: optimizers.SGD().apply([None] * 3, variables()),
        ValueError,
        "No variable has",
    ),
    "foreign": (foreign, ValueError, "does not know .*other"),
    "scheduled": (scheduled, TypeError, "follows a schedule"),
    "rate": (lambda: optimizers.SGD("fast"), ValueError, "learning_rate must be a number"),
    "argument": (lambda: optimizers.SGD(lr=0.1), (TypeError, ValueError), "lr"),
    "two limits": (lambda: optimizers.SGD(clipnorm=1.0, clipvalue=1.0), ValueError, "Only one of"),
    "accumulation": (
        lambda: optimizers.SGD(gradient_accumulation_steps=1),
        ValueError,
        "at least 2, got 1",
    ),
    "state": (lambda: optimizers.SGD().set_weights([1]), ValueError, "2 variables, got 1 arrays"),
    "steps": (lambda: schedules.CosineDecay(0.1, 0), ValueError, "decay_steps must be a positive"),
    "strength": (
        lambda: optimizers.Ftrl(l1_regularization_strength=-1.0),
        ValueError,
        "l1_regularization_strength must be",
    ),
    "degenerate": (lambda: optimizers.Lion(beta_1=0.0), ValueError, "beta_1 must be above 0"),
    "rule": (lacking_rule, NotImplementedError, "neither rule.. nor update_step"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    act, kind, words = ERRORS[name]
    with pytest.raises(kind, match=words):
        act()


def test_a_dict_of_patterns_is_searched_in_paths():
    embed, head = optimizers.SGD(1.0), optimizers.SGD(2.0)
    groups = optimizers.get({"words": embed, "head.*": head})
    paths = ["model/words/embeddings", "head/kernel"]
    assert [groups.optimizer_map(SimpleNamespace(path=path)) for path in paths] == [embed, head]
    with pytest.raises(ValueError, match="body/kernel fits no optimizer's pattern"):
        groups.optimizer_map(SimpleNamespace(path="body/kernel"))
