"""A small model learns from labels and from what a large one says."""

from typing import Annotated, ClassVar

from khub import losses, ops, tree
from khub.fields import Configurable, Positive
from khub.metrics import Mean
from khub.models import Model


def _losses(name, value):
    found = tree.map_structure(losses.get, value)
    if all(loss is None for loss in tree.flatten(found)):
        raise ValueError(f"{name} must have at least one that is not None, got {value!r}.")
    return found


class DistillationLoss(Configurable):
    """Base of what compares a teacher with a student; a subclass defines `compute_loss`."""

    _kind: ClassVar = "distillation"
    teacher_layer_name: ClassVar = None
    student_layer_name: ClassVar = None

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """Return the scalar loss of two tensors, or lists or dicts of them."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_loss().")

    def validate_outputs(self, teacher_outputs, student_outputs):
        """Raise ValueError unless both have the same structure."""
        tree.assert_same_structure(teacher_outputs, student_outputs)

    def validate_model_compatibility(self, teacher, student):
        """Raise ValueError for models that this loss cannot compare."""
        names = self.teacher_layer_name, self.student_layer_name
        for model, name in zip((teacher, student), names):
            if name is not None:
                model.get_layer(name)


class _Compared(DistillationLoss):
    """What losses of `khub.losses` compare, one for each output; None skips an output."""

    temperature: ClassVar = 1.0

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        """Return the sum of the losses of the outputs, each divided by the temperature."""
        self.validate_outputs(teacher_outputs, student_outputs)
        outputs = tree.flatten(teacher_outputs), tree.flatten(student_outputs)
        given = tree.flatten(self.loss)
        if len(given) != len(outputs[0]):
            raise ValueError(f"There are {len(outputs[0])} outputs and {len(given)} losses.")
        return sum(
            ops.mean(loss(*(ops.convert_to_tensor(x) / self.temperature for x in pair)))
            for loss, *pair in zip(given, *outputs)
            if loss is not None
        )


class LogitsDistillation(_Compared):
    """Compares what comes out, divided by a temperature.  Hinton et al. 2015, arXiv:1503.02531

    loss: one, or one for each output. As in Keras no softmax is taken: kl_divergence and
    crossentropy expect models that end in one.
    """

    temperature: Positive = 3.0
    loss: Annotated[object, _losses] = "kl_divergence"


class FeatureDistillation(_Compared):
    """Compares what two layers give, None: the models.  Romero et al. 2014, arXiv:1412.6550"""

    loss: Annotated[object, _losses] = "mse"
    teacher_layer_name: str = None
    student_layer_name: str = None


def _taps(model, names):
    """A function (x, training) -> {None: output of the model, name: output of this layer}."""
    names = sorted({name for name in names if name is not None})
    if not names:
        return lambda x, training: {None: model(x, training=training)}
    taps = Model(model.inputs, [model.output, *(model.get_layer(name).output for name in names)])
    return lambda x, training: dict(zip([None, *names], taps(x, training=training)))


class Distiller(Model):
    """Trains `student` on student_loss_weight * its loss + the rest * the weighted distillations.

    distillation_losses: one, or a list with as many weights, None: 1 each
    The losses of a batch are metrics. Raises ValueError for what does not fit together.
    """

    _module = "keras.distillation"

    def __init__(
        self,
        teacher,
        student,
        distillation_losses,
        distillation_loss_weights=None,
        student_loss_weight=0.5,
        name="distiller",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        for what, model in (("teacher", teacher), ("student", student)):
            if not isinstance(model, Model):
                raise ValueError(f"The {what} must be a khub.Model, got {type(model).__name__}.")
        for what in ("input_shape", "output_shape"):
            shapes = [getattr(model, what, None) for model in (teacher, student)]
            if None not in shapes and shapes[0] != shapes[1]:
                raise ValueError(f"The {what} of teacher and student differ: {shapes}.")
        single = isinstance(distillation_losses, DistillationLoss)
        given = [distillation_losses] if single else list(distillation_losses or ())
        weights = distillation_loss_weights
        weights = [1.0] * len(given) if weights is None else list(weights)
        if not given or len(weights) != len(given) or not 0 <= student_loss_weight <= 1:
            raise ValueError(
                "Distiller needs a distillation loss, as many distillation_loss_weights as losses, "
                f"and a student_loss_weight from 0 to 1; got {distillation_losses!r}, "
                f"{distillation_loss_weights!r}, {student_loss_weight!r}."
            )
        for loss in given:
            loss.validate_model_compatibility(teacher, student)
        teacher.trainable = False
        self.teacher, self.student, self.student_loss_weight = teacher, student, student_loss_weight
        self.distillation_losses, self.distillation_loss_weights = given, weights
        self._teach = _taps(teacher, [loss.teacher_layer_name for loss in given])
        self._tapped = [loss.student_layer_name for loss in given]
        self._learn = _taps(student, self._tapped)
        for name in ("student_loss", "distillation_loss", "total_loss"):
            setattr(self, f"{name}_tracker", Mean(name=name))

    def compile(self, optimizer="adam", loss=None, metrics=None, **kwargs):
        """Say how the student is trained; `loss`, which it needs, is that of labels."""
        if loss is None:
            raise ValueError("A Distiller needs the loss of the labels: compile(loss=...).")
        super().compile(optimizer, loss, metrics=metrics, **kwargs)

    def call(self, inputs, training=None, **kwargs):
        """Return the student's outputs."""
        return self.student(inputs, training=training, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the loss of the labels and of the distillations, weighted."""
        labels = super().compute_loss(x, y, y_pred, sample_weight, training)
        taught = tree.map_structure(ops.stop_gradient, self._teach(x, False))
        learned = self._learn(x, training) if any(self._tapped) else {None: y_pred}
        distilled = sum(
            weight
            * loss.compute_loss(taught[loss.teacher_layer_name], learned[loss.student_layer_name])
            for loss, weight in zip(self.distillation_losses, self.distillation_loss_weights)
        )
        total = self.student_loss_weight * labels + (1 - self.student_loss_weight) * distilled
        self.student_loss_tracker.update_state(labels)
        self.distillation_loss_tracker.update_state(distilled)
        self.total_loss_tracker.update_state(total)
        return total
