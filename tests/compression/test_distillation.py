"""Distillation: what the student learns, what fits together, what comes back from a file."""

import numpy as np
import pytest

import khub
from khub import distillation, layers, models

X = np.random.default_rng(0).standard_normal((64, 6)).astype("float32")
Y = X[:, :3].argmax(1)


def network(units, outputs=3, inputs=6):
    made = layers.Dense(units, activation="tanh", name="hidden"), layers.Dense(outputs)
    return models.Sequential([layers.Input((inputs,)), *made])


def distiller(teacher, student, losses, **options):
    model = distillation.Distiller(teacher, student, losses, **options)
    loss = khub.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(khub.optimizers.Adam(0.02), loss)
    return model


@pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients on NumPy")
def test_the_student_learns_from_the_teacher_alone():
    teacher, student = network(8), network(4)
    before = [v.numpy() for v in teacher.variables]
    losses = [distillation.LogitsDistillation(1.0, "mse")]
    model = distiller(teacher, student, losses, student_loss_weight=0.0)
    history = model.fit(X, Y, epochs=40, batch_size=32, verbose=0).history
    assert history["distillation_loss"][-1] < 0.2 * history["distillation_loss"][0]
    assert len(model.trainable_variables) == 4 and not teacher.trainable
    for variable, value in zip(teacher.variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_array_equal(model.predict(X, verbose=0), student.predict(X, verbose=0))


@pytest.mark.once
def test_configuration_and_several_outputs(tmp_path):
    losses = [distillation.FeatureDistillation("mae", "hidden", "hidden")]
    model = distiller(network(4), network(4), losses, distillation_loss_weights=[2.0])
    model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    again = khub.saving.load_model(tmp_path / "model.keras")
    results = [m.evaluate(X, Y, verbose=0, return_dict=True) for m in (model, again)]
    assert results[0]["distillation_loss"] > 0
    np.testing.assert_allclose(list(results[1].values()), list(results[0].values()), rtol=1e-6)
    pairs = [X, 2 * X], [X + 1, X]
    for losses, expected in ((["mse", None], 1), (["mse", "mae"], 1 + np.abs(X).mean())):
        found = distillation.FeatureDistillation(losses).compute_loss(*pairs)
        np.testing.assert_allclose(khub.ops.convert_to_numpy(found), expected, rtol=1e-5)


LOGITS = distillation.LogitsDistillation()
ERRORS = [
    (lambda: distillation.LogitsDistillation(0), "temperature"),
    (lambda: distillation.LogitsDistillation(loss=[None]), "not None"),
    (lambda: distillation.LogitsDistillation(loss="foo"), "foo"),
    (lambda: LOGITS.compute_loss([X], [X, X]), "structures differ"),
    (lambda: LOGITS.compute_loss([X, X], [X, X]), "2 outputs and 1 losses"),
    (lambda: distiller(network(4), network(4), []), "needs a distillation loss"),
    (lambda: distiller(network(4), network(4), LOGITS, student_loss_weight=2), "from 0 to 1"),
    (lambda: distiller(network(4), network(4), [LOGITS], distillation_loss_weights=[]), "as many"),
    (lambda: distiller(network(4), 3, LOGITS), "student must be a khub.Model, got int"),
    (lambda: distiller(network(4), network(4, 5), LOGITS), "output_shape"),
    (lambda: distiller(network(4), network(4, 3, 5), LOGITS), "input_shape"),
    (
        lambda: distiller(network(4), network(4), distillation.FeatureDistillation("mse", "zz")),
        "no layer 'zz'",
    ),
    (lambda: distillation.Distiller(network(4), network(4), LOGITS).compile("sgd"), "loss"),
]


@pytest.mark.once
@pytest.mark.parametrize(("make", "match"), ERRORS)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
