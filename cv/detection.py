"""The task on image networks that finds objects: training, mean average precision, boxes."""

import os
from types import SimpleNamespace

import numpy as np

from khub import metrics, ops, optimizers, tree
from khub.backend.windows import channels_first
from khub.fields import PositiveInt, Rate
from khub.models.functional import Functional
from khub.training.callbacks import Callback
from khub.training.data import pack_x_y_sample_weight, unpack_x_y_sample_weight
from khub.utils.bounding_boxes import check_format, convert_format

from ..presets.family import of_config
from ..presets.images import object_rows
from .backbone import ImageBackbone, dtype_policy
from .box_metrics import MeanAveragePrecision
from .detection_data import DetectionPreprocessor
from .image_classifier import ImageTask
from .suppression import non_max_suppression
from .weight_average import WeightAverage

FOUND = ("boxes", "classes", "confidence", "num_detections")  # what a test step finds


def image_size(images):
    """Height and width of a batch of prepared images."""
    return tuple(images.shape[2:] if channels_first(None) else images.shape[1:3])


class ObjectDetector(ImageTask):
    """Boxes, classes and confidences of the objects in images.

    fit(x, {"boxes": [...], "classes": [...]}), evaluate(x, y) -> losses and COCO's averages of
    precision, predict(x) -> {"boxes" (n, k, 4), "confidence" (n, k), "classes" (n, k),
    "num_detections" (n,)}, padded with -1, k = max_detections
    x: paths, PIL images or arrays of 0..255 of any sizes, boxes in their pixels; with
    preprocessor=None prepared images (n, height, width, 3), labels padded with -1 to (n, m, 4) and
    (n, m)   bounding_box_format: of labels and predictions, one of `khub.utils.bounding_boxes`, set
    on the preprocessor too; None: the preprocessor's, or xyxy
    labels: names of the classes   confidence_threshold: of what `predict` reports
    iou_threshold: above it, of two boxes of one class the less confident one goes
    """

    backbone: ImageBackbone
    num_classes: PositiveInt
    preprocessor: object = None
    bounding_box_format: str = None
    labels: tuple = None
    confidence_threshold: Rate = 0.25
    iou_threshold: Rate = 0.7
    max_detections: PositiveInt = 100

    LEVELS = ("P3", "P4", "P5")  # of the feature pyramid, what the heads stand on
    LOSSES = ()  # names of what `part_losses` gives
    EVALUATED = 0.001  # least confidence of what counts for the mean average precision
    preprocessor_class = DetectionPreprocessor
    large_head = True  # a checkpoint of another number of classes gives all but the last layers

    def setup(self):
        host = self.preprocessor
        form = self.bounding_box_format or getattr(host, "bounding_box_format", "xyxy")
        self.bounding_box_format = check_format("bounding_box_format", form)
        if host is not None:
            host.bounding_box_format = self.bounding_box_format
        self._check_labels()
        for name in self.LOSSES:
            setattr(self, name, metrics.Mean(name=name))
        # apart from what is tracked: the metric is none of training
        precision = MeanAveragePrecision(self.num_classes)
        self._host = SimpleNamespace(precision=precision)
        self.build(None)
        self.compile()

    def build(self, shape=None):
        with dtype_policy(self.dtype_policy):
            levels = self.backbone.feature_pyramid().output
            if missing := [level for level in self.LEVELS if level not in levels]:
                raise ValueError(
                    f"{type(self.backbone).__name__} has no features of level "
                    f"{', '.join(missing)}; it has {', '.join(levels)}."
                )
            heads = self.draw_heads({level: levels[level] for level in self.LEVELS})
        self.network = Functional(self.backbone.input, heads, name="network")

    # --- what a family says ----------------------------------------------------------------------
    def draw_heads(self, levels):
        """Return name -> symbolic output, from {"P3": symbolic features, ...}."""
        raise NotImplementedError(f"{type(self).__name__} does not define draw_heads().")

    def part_losses(self, raw, boxes, classes, size):
        """Return name -> scalar, to be added up.

        raw: what `draw_heads` gives   boxes: float32 (b, m, 4) in xyxy, classes: int32 (b, m),
        padded with -1   size: height and width of the images
        """
        raise NotImplementedError(f"{type(self).__name__} does not define part_losses().")

    def decode(self, raw, size):
        """Return boxes (b, n, 4) in xyxy and scores (b, n, classes) of 0..1."""
        raise NotImplementedError(f"{type(self).__name__} does not define decode().")

    @classmethod
    def from_variant(cls, name, num_classes, preprocessor=None, **overrides):
        """Return a detector on the family's backbone of this name, its weights random.

        overrides: arguments of the detector   Raises ValueError for an unknown name.
        """
        backbone = of_config({"architecture": name}, "from_variant").backbone
        both = {"dtype": overrides["dtype"]} if "dtype" in overrides else {}
        backbone = backbone.variant(name, **both)
        return cls(backbone, num_classes, preprocessor=preprocessor, **overrides)

    # --- training --------------------------------------------------------------------------------
    def compile(self, optimizer="auto", **options):
        """As `Model.compile`, without losses and metrics, which are the detector's own.

        "auto" is AdamW at 1e-3
        """
        if given := options.keys() & {"loss", "loss_weights", "metrics", "weighted_metrics"}:
            raise ValueError(f"{type(self).__name__} has its own; leave out {', '.join(given)}.")
        if optimizer == "auto":
            optimizer = optimizers.AdamW(1e-3, weight_decay=5e-4, global_clipnorm=10.0)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        super().compile(optimizer=optimizer, **options)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if sample_weight is not None:
            raise ValueError(f"{type(self).__name__} takes no sample_weight.")
        classes = ops.cast(y["classes"], "int32")
        parts = self.part_losses(y_pred, ops.cast(y["boxes"], "float32"), classes, image_size(x))
        for name, value in parts.items():
            getattr(self, name).update_state(value)
        return sum([*parts.values(), *self._extra_losses()])

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return self.get_metrics_result()

    def detect(self, raw, size, confidence_threshold):
        """Return the detections in what `call` gave, in pixels of the prepared images."""
        boxes, scores = self.decode(raw, size)
        ends = ops.convert_to_tensor(size[::-1] * 2, "float32")
        boxes = ops.minimum(ops.maximum(boxes, 0.0), ends)
        limits = self.iou_threshold, confidence_threshold, self.max_detections
        return non_max_suppression(boxes, scores, *limits)

    def test_step(self, data):
        x, y, sample_weight = unpack_x_y_sample_weight(data)
        raw = self(x, training=False)
        loss = self.compute_loss(x, y, raw, sample_weight, training=False)
        self._compiled.loss_tracker.update_state(loss)
        return self.get_metrics_result() | self.detect(raw, image_size(x), self.EVALUATED)

    def make_test_function(self, force=False):
        step = super().make_test_function(force)

        def measured(group):
            for batch in group:
                logs = dict(step([batch]))
                found = {name: logs.pop(name) for name in FOUND}
                both = tree.map_structure(ops.convert_to_numpy, (batch[1], found))
                self._host.precision.update_state(*map(self._measured(both[0]), both))
            return logs

        return measured

    def _measured(self, y):
        """Return what brings the objects of a batch back to where areas are counted in pixels."""
        if "frames" not in y:
            return lambda objects: objects
        frames, form = y["frames"], self.bounding_box_format

        def original(objects):
            found = self.preprocessor.restored(objects, frames)
            return found | {"boxes": self._formed(found, form, "xyxy", *frames.T[3:])}

        return original

    def fit(
        self,
        x=None,
        y=None,
        *args,
        augment=True,
        average=0.9999,
        validation_data=None,
        callbacks=None,
        **kwargs,
    ):
        """As `Model.fit`.  y: {"boxes", "classes"}, or x gives batches (images, y) of them.

        augment: draw each image anew, where there is a preprocessor   average: momentum of the
        `WeightAverage` that is evaluated and kept; 0: none
        """
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        if average:
            callbacks.insert(0, WeightAverage(average))
        if isinstance(validation_data, tuple):
            validation_data = [*validation_data]  # as it is: `evaluate` reads the boxes' format
        kwargs |= {"callbacks": callbacks, "validation_data": validation_data}
        augment = augment and self.preprocessor is not None
        return super().fit(x, y, *args, augment=augment, **kwargs)

    def evaluate(self, x=None, y=None, *args, return_dict=True, **kwargs):
        """As `Model.evaluate`, with COCO's numbers: mAP, mAP50, mAP75, AR_100, ..."""
        self._host.precision.reset_state()
        logs = super().evaluate(x, y, *args, return_dict=True, **kwargs)
        return self._results(logs | self._host.precision.result(), return_dict)

    # --- data ------------------------------------------------------------------------------------
    def _data(self, x, y=None, fitting=False):
        if isinstance(x, (str, os.PathLike)) or hasattr(x, "getexif"):
            x = [x]
        x = self._rows(x[None] if len(getattr(x, "shape", ())) == 3 else x)
        if self.preprocessor is not None and isinstance(y, dict):
            y = {name: object_rows(rows) for name, rows in y.items()}
        elif isinstance(y, dict):
            size = image_size(x)
            own = DetectionPreprocessor(size, bounding_box_format=self.bounding_box_format)
            y = self._checked(own.labels(y, np.asarray([(1, 0, 0, *size)] * len(x)), x))
        return x, y

    def _checked(self, y):
        if isinstance(y, dict) and y["classes"].max(initial=-1) >= self.num_classes:
            raise ValueError(
                f"Classes must lie in 0 .. {self.num_classes - 1} for num_classes="
                f"{self.num_classes}, got {y['classes'].max()}."
            )
        return y

    def _batches(self, source):
        prepare = self._augments or self.preprocessor  # within `predict` a function
        prepare = self.preprocessor.augmented if prepare is True else prepare

        def checked(*batch):
            x, y, weight = unpack_x_y_sample_weight(prepare(*batch))
            return pack_x_y_sample_weight(x, self._checked(y), weight)

        return super()._batches(source, checked)

    # --- prediction ------------------------------------------------------------------------------
    def predict_step(self, data):
        x, _, _ = unpack_x_y_sample_weight(data)
        return self.detect(self(x, training=False), image_size(x), self.confidence_threshold)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """Return the detections in images: boxes in their own pixels, the most confident first."""
        frames = []

        def framed(x, *_):
            images, own = self.preprocessor.prepare(x)
            frames.append(own)
            return images

        with self._augmenting(framed):
            x, _ = self._data(x)
            found = super().predict(x, batch_size, verbose, steps, callbacks)
        if self.preprocessor is not None:
            frames = np.concatenate(frames)[: len(found["boxes"])]
            return self.preprocessor.restored(found, frames)
        forms, size = ("xyxy", self.bounding_box_format), (None, None)
        size = image_size(x) if hasattr(x, "shape") else size
        return found | {"boxes": self._formed(found, *forms, *size)}

    @staticmethod
    def _formed(objects, source, target, height, width):
        boxes = convert_format(objects["boxes"], source, target, height, width)
        absent = np.asarray(objects["classes"])[..., None] < 0
        return np.where(absent, -1, ops.convert_to_numpy(boxes)).astype("float32")

    # --- weights and presets ---------------------------------------------------------------------
    @classmethod
    def from_preset(cls, handle, *args, **overrides):
        """As of every model of the hub; num_classes=None and the like: as they were saved."""
        given = {name: value for name, value in overrides.items() if value is not None}
        return super().from_preset(handle, *args, **given)
