"""The task on image networks: labels for images, training on them."""

import os
import sys
from contextlib import contextmanager

import numpy as np

from khub import losses, models, optimizers
from khub.fields import PositiveInt, Rate
from khub.models.functional import Functional

from ..presets import Family, Presettable, register
from ..presets.family import of_class, of_config
from ..presets.images import ImagePreprocessor, image_files, object_rows
from ..presets.weights import LAYOUTS, load_file
from .backbone import ImageBackbone, dtype_policy
from .imagenet import class_names


class Predictions:
    """Scores of images: `predictions[i]` has the best labels of image i, as (label, score).

    scores: float32 (images, classes), from 0 to 1; `np.asarray` gives them   labels: of the classes
    """

    def __init__(self, scores, labels, top=5):
        self.scores, self.labels, self.top = scores, labels, top

    def __len__(self):
        return len(self.scores)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Predictions(self.scores[index], self.labels, self.top)
        row = self.scores[index]
        best = np.argsort(-row, kind="stable")[: self.top]
        return [(self.labels[i], float(row[i])) for i in best]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.scores, dtype=dtype, copy=copy)

    @property
    def shape(self):
        """(images, classes)"""
        return self.scores.shape

    def __repr__(self):
        shown = [
            ", ".join(f"{label} {score:.3f}" for label, score in row)
            for row in (self[i] for i in range(min(len(self), 10)))
        ]
        more = [f"... {len(self)} images"] if len(self) > 10 else []
        return "\n".join(shown + more)


class ImageTask(Presettable, models.Model):
    """What tasks on image networks share; `_data` brings x and y into rows for the trainer."""

    ignored = ()
    _augments = False

    def _check_labels(self):
        self.labels = None if self.labels is None else tuple(self.labels)
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(
                f"{len(self.labels)} labels were given for {self.num_classes} classes."
            )

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def fit(self, x=None, y=None, *args, augment=False, validation_data=None, **kwargs):
        """As `Model.fit`; augment: learn from random parts of the images, half of them mirrored."""
        if augment and self.preprocessor is None:
            raise ValueError("augment=True needs the preprocessor, which makes the random parts.")
        x, y = self._data(x, y, fitting=True)
        if isinstance(validation_data, (str, os.PathLike)):
            validation_data = self._data(validation_data)
        elif isinstance(validation_data, tuple):
            validation_data = (*self._data(*validation_data[:2]), *validation_data[2:])
        with self._augmenting(augment):
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `Model.evaluate`; x and y as `fit` takes them."""
        with self._augmenting(False):  # fit calls it between its epochs
            return super().evaluate(*self._data(x, y), *args, **kwargs)

    def _rows(self, x):
        """A list of raw images as the trainer takes it."""
        if not isinstance(x, (list, tuple)) or not len(x) or isinstance(x[0], (int, float)):
            return x
        if self.preprocessor is None:
            raise ValueError(
                f"This {type(self).__name__} has no preprocessor, so it takes an array of "
                "prepared images, not paths or a list. Make it with from_preset(...), or set "
                "its attribute preprocessor."
            )
        return object_rows(x)

    @contextmanager
    def _augmenting(self, augment):
        before, self._augments = self._augments, augment
        try:
            yield
        finally:
            self._augments = before

    def load_weights(self, filepath):
        """Load a file of the backbone's reference (.safetensors, .bin, .pt, .pth), strictly."""
        load_file(self, filepath)

    @property
    def layouts(self):
        return getattr(self.backbone, "layouts", LAYOUTS)

    @property
    def weight_map(self):
        return (("", "network"),)

    @classmethod
    def head_from_reference(cls, config):
        return {}

    def reference_config(self):
        return {"model_type": of_class(type(self)).model_types[0]}


class ImageClassifier(ImageTask):
    """One of `num_classes` for an image.

    fit(x, y), or fit(folder) that holds a folder of images for each class; predict(x)
    -> `Predictions`; calling it gives the logits (batch, num_classes) of prepared images
    x: paths, PIL images or arrays of 0..255, which the preprocessor prepares; with
    preprocessor=None images as the backbone takes them
    """

    backbone: ImageBackbone
    num_classes: PositiveInt = 1000
    preprocessor: object = None
    dropout: Rate = 0.0
    labels: tuple = None

    preprocessor_class = ImagePreprocessor

    def setup(self):
        if self.labels is None and self.num_classes == 1000:
            self.labels = class_names()
        self._check_labels()
        self.build(None)
        self.compile()

    def build(self, shape=None):
        # one flat graph: its layers are the backbone's and, below "network.", those of the head
        with dtype_policy(self.dtype_policy):
            logits = self.backbone.draw_head(self.backbone.output, self.num_classes, self.dropout)
        self.network = Functional(self.backbone.input, logits, name="network")

    @classmethod
    def from_variant(cls, name, num_classes=1000, preprocessor=None, dropout=0.0, **overrides):
        """Return a classifier on timm's architecture of this name, its weights random.

        overrides: constructor arguments of the backbone   Raises ValueError for an unknown name.
        """
        family = of_config({"architecture": name}, "from_variant")
        made = family.tasks["ImageClassifier"]
        backbone = family.backbone.variant(name, **overrides)
        return made(backbone, num_classes, preprocessor, dropout)

    def feature_pyramid(self):
        """Return the model images -> {"P2": features of stride 4, ...} for detectors."""
        return self.backbone.feature_pyramid()

    # --- training --------------------------------------------------------------------------------
    def compile(self, optimizer="auto", loss="auto", *, metrics="auto", **options):
        """As `Model.compile`; "auto" is AdamW at 1e-4, cross-entropy of logits, accuracy."""
        if optimizer == "auto":
            optimizer = optimizers.AdamW(1e-4, weight_decay=0.05)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        super().compile(
            optimizer=optimizer,
            loss=losses.SparseCategoricalCrossentropy(from_logits=True) if loss == "auto" else loss,
            metrics=["accuracy"] if metrics == "auto" else metrics,
            **options,
        )

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None, top=5):
        """Return the `Predictions` for images; top: how many labels each of them has."""
        one = isinstance(x, (str, os.PathLike)) or hasattr(x, "getexif")
        x, _ = self._data([x] if one else x)
        logits = super().predict(x, batch_size, verbose, steps, callbacks)
        scores = np.exp(logits - logits.max(-1, keepdims=True), dtype="float32")
        scores /= scores.sum(-1, keepdims=True)
        labels = self.labels or tuple(map(str, range(self.num_classes)))
        return Predictions(scores, labels, top)

    def _data(self, x, y=None, fitting=False):
        """Return x and y as the trainer takes them: raw images as a 1-D array of objects."""
        if isinstance(x, (str, os.PathLike)):
            x, y, names = image_files(x)
            if self.labels is not None and set(self.labels) >= set(names):
                y = np.asarray([self.labels.index(name) for name in names], "int32")[y]
            elif len(names) > self.num_classes:
                raise ValueError(
                    f"The folder has {len(names)} classes ({', '.join(names[:5])}, ...), the model "
                    f"{self.num_classes}; make it with num_classes={len(names)}."
                )
            elif fitting and len(names) == self.num_classes:
                self.labels = tuple(names)
        return self._rows(x), y

    def _batches(self, source):
        y = getattr(source, "y", None)
        by_index = isinstance(self.loss, losses.SparseCategoricalCrossentropy)
        integers = isinstance(y, np.ndarray) and y.dtype.kind in "iu" and y.size
        if integers and by_index and not (y.min() >= 0 and y.max() < self.num_classes):
            raise ValueError(
                f"Labels must lie in 0 .. {self.num_classes - 1} for num_classes="
                f"{self.num_classes}; got {y.min()} .. {y.max()}."
            )
        return super()._batches(source, self.preprocessor.augmented if self._augments else None)

    # --- weights and presets ---------------------------------------------------------------------
    @property
    def weight_map(self):
        return self.backbone.head_map

    @classmethod
    def head_from_reference(cls, config):
        names = config.get("id2label") or {}
        names = {int(i): name for i, name in names.items()}
        labels = tuple(names[i] for i in sorted(names))
        plain = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
        count = len(labels) or config.get("num_classes") or config.get("num_labels") or 2
        return {"num_classes": count, "labels": None if plain else labels}

    def reference_config(self):
        found = self.backbone.reference_config()
        labels = self.labels or [f"LABEL_{i}" for i in range(self.num_classes)]
        if found.get("model_type", "").startswith("khub_") and self.labels == class_names():
            return found | {"num_labels": self.num_classes}  # the constructor knows their names
        if "model_type" in found:
            found["id2label"] = {str(i): label for i, label in enumerate(labels)}
            found["label2id"] = {label: i for i, label in enumerate(labels)}
            return found
        images = self.preprocessor.to_timm() if self.preprocessor is not None else {}
        images |= {"num_classes": self.num_classes, "label_names": list(labels)}
        sized = "image_shape" in self.backbone.VARIANTS.get(self.backbone.architecture, {})
        images["fixed_input_size"] = sized  # timm then passes the size to the network
        return found | {"num_classes": self.num_classes, "pretrained_cfg": images}


def image_family(name, published=None):
    """Make a family known: its backbone, which it decorates, and an `ImageClassifier` of its own.

    published: see `Family`
    """

    def decorate(backbone):
        own = backbone.__name__.replace("Backbone", "ImageClassifier")
        text = f"A class of an image, by a {backbone.__name__}."
        options = {"__doc__": text, "__module__": backbone.__module__}
        classifier = type(own, (ImageClassifier,), options)
        setattr(sys.modules[backbone.__module__], own, classifier)
        architectures = [
            f"{stem}ForImageClassification{end}"
            for stem in backbone.STEMS.values()
            for end in ("", "WithTeacher")
        ]
        family = Family(
            name=name,
            model_types=(f"khub_{name}", *backbone.STEMS),
            backbone=backbone,
            tasks={"ImageClassifier": classifier},
            architectures={"ImageClassifier": tuple(architectures)},
            variants=tuple(backbone.VARIANTS),
            published=published,
        )
        register(family)
        return backbone

    return decorate
