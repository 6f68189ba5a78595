"""Image networks of the hub: what the backbones of all families share, and the task on them.

A family has one file: a table of timm's variants, a backbone that draws its graph with layers named
as timm names its modules, and for each other library a table of other names.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from khub import dtype_policies, layers, losses, models, optimizers, tree
from khub.backend.windows import channels_first
from khub.fields import PositiveInt, Rate
from khub.models.functional import Functional
from khub.ops.symbolic import KerasTensor

from ..presets import Family, Presettable, register, weights
from ..presets.images import ImagePreprocessor, image_files
from .imagenet import class_names


@dataclass(frozen=True)
class Reference:
    """How another library names what a family draws.

    names: (reference module, khub module), those of a classifier's head as "head.<layer>"; what is
    not listed has khub's name   prefix: of the backbone in a classifier's checkpoint
    ignored: tensors that no variable needs
    """

    names: tuple = ()
    prefix: str = ""
    ignored: tuple = ()


def image_family(name, backbone, classifier, model_types=(), architectures=()):
    """Make a family known: its backbone, its `ImageClassifier`, and transformers' names of both."""
    return register(
        Family(
            name=name,
            model_types=(f"khub_{name}", *model_types),
            backbone=backbone,
            tasks={"ImageClassifier": classifier},
            architectures={"ImageClassifier": tuple(architectures)},
            variants=tuple(backbone.VARIANTS),
        )
    )


@contextmanager
def _policy(policy):
    """Layers made inside have this dtype policy."""
    before = dtype_policies.dtype_policy()
    dtype_policies.set_dtype_policy(policy)
    try:
        yield
    finally:
        dtype_policies.set_dtype_policy(before)


def check(config, expected):
    """Raise ValueError where a config.json differs from what a family's network has built in."""
    wrong = [
        f"{key} {config[key]!r} (expected {value!r})"
        for key, value in expected.items()
        if key in config and config[key] != value
    ]
    if wrong:
        raise ValueError(f"This version does not read {', '.join(wrong)}.")


def pooled(x):
    """The mean over height and width, or over tokens."""
    pool = layers.GlobalAveragePooling2D if len(x.shape) == 4 else layers.GlobalAveragePooling1D
    return pool(name="pool")(x)


class ImageBackbone(Presettable, Functional):
    """A network without a head: prepared images in, features out. Drawn when constructed.

    images (batch, *image_shape) -> features (batch, height, width, channels), or (batch, tokens,
    channels) of a transformer; channels first where `config.image_data_format()` says so
    image_shape: height, width (None: any) and 3   reference: whose names and layouts weights have
    in files: "timm", "transformers" or "torchvision"   architecture: the reference's name of it
    """

    image_shape: tuple = (None, None, 3)
    reference: str = "timm"
    architecture: str = None

    VARIANTS = {}  # timm's name -> constructor arguments
    REFERENCES = {"timm": Reference()}
    optional = ()

    def __init__(self, **kwargs):
        models.Model.__init__(self, **kwargs)

    def setup(self):
        self.image_shape = tuple(self.image_shape)
        if self.reference not in self.REFERENCES:
            raise ValueError(
                f"reference must be one of {', '.join(self.REFERENCES)}, got {self.reference!r}."
            )
        height, width, channels = self.image_shape
        first = channels_first(None)
        with _policy(self.dtype_policy):
            shape = (channels, height, width) if first else self.image_shape
            image = layers.Input(shape, name="image")
            self._connect(image, self.draw(image))

    def draw(self, image):
        """Return the symbolic features of a symbolic batch of images."""
        raise NotImplementedError(f"{type(self).__name__} does not define draw().")

    def draw_head(self, features, num_classes, dropout):
        """Return the logits of symbolic features; names of layers are those of the head."""
        x = layers.Dropout(dropout, name="dropout")(pooled(features))
        return layers.Dense(num_classes, name="head")(x)

    @classmethod
    def variant(cls, name, **overrides):
        """Return the backbone that timm has under this name, its weights random."""
        if name not in cls.VARIANTS:
            raise ValueError(f"{cls.__name__} has no variant {name!r}; {', '.join(cls.VARIANTS)}.")
        return cls(**{**cls.VARIANTS[name], "architecture": name, **overrides})

    # --- levels ----------------------------------------------------------------------------------
    def feature_pyramid(self):
        """Return the model images -> {"P2": features of stride 4, "P3": of stride 8, ...}.

        A level is the last tensor of its stride that everything after it goes through.
        """
        size = [n or 256 for n in self.image_shape[:2]]
        cuts = _cuts(self)
        probe = Functional(self.inputs, cuts)
        axes = slice(2, 4) if channels_first(None) else slice(1, 3)
        shape = (1, 3, *size) if channels_first(None) else (1, *size, 3)
        shapes = [tuple(s) for s in probe.compute_output_shape(shape)] if len(cuts) > 1 else []
        levels = {}
        for x, found in zip(cuts, shapes):
            if len(found) == 4 and 0 not in found[axes]:
                stride = size[0] / found[axes][0]
                level = round(np.log2(stride))
                if level > 0 and 2**level * found[axes][0] == size[0]:
                    levels[f"P{level}"] = x
        return Functional(self.input, levels, name=f"{self.name}_pyramid")

    # --- weights ---------------------------------------------------------------------------------
    @property
    def naming(self):
        """The `Reference` whose names the weights have in files."""
        return self.REFERENCES[self.reference]

    @property
    def weight_map(self):
        names = self.naming.names
        return (("", ""), *((a, b) for a, b in names if not b.startswith("head.")))

    @property
    def head_map(self):
        """The weight map of a classifier's head."""
        names = self.naming.names
        return (("", "head"), *((a, b) for a, b in names if b.startswith("head.")))

    @property
    def reference_prefix(self):
        return self.naming.prefix

    @property
    def ignored(self):
        return self.naming.ignored

    # --- presets ---------------------------------------------------------------------------------
    @classmethod
    def config_from_reference(cls, config):
        if isinstance(config.get("model_type"), str):
            return cls.config_from_transformers(config) | {"reference": "transformers"}
        return cls.config_from_timm(config) | {"reference": "timm"}

    @classmethod
    def config_from_timm(cls, config):
        """Constructor arguments for a config.json of timm."""
        name = config["architecture"].partition(".")[0]
        size = (config.get("pretrained_cfg") or {}).get("input_size")
        found = {**cls.VARIANTS[name], "architecture": name}
        if size and None not in found.get("image_shape", (None,)):
            found["image_shape"] = (*size[1:], 3)
        return found

    @classmethod
    def config_from_transformers(cls, config):
        """Constructor arguments for a config.json of transformers."""
        raise ValueError(f"{cls.__name__} does not read transformers' models.")

    def transformers_config(self):
        """Content of config.json that transformers reads."""
        raise ValueError(f"{type(self).__name__} has no model in transformers.")

    def reference_config(self):
        if self.reference == "transformers":
            return self.transformers_config()
        if self.architecture is None:
            return {"model_type": f"khub_{type(self).__name__}"}
        return {"architecture": self.architecture, "num_features": self.num_features}

    @property
    def num_features(self):
        """Channels of the features."""
        shape = self.output_shape
        return shape[1] if channels_first(None) and len(shape) == 4 else shape[-1]

    def own_config(self):
        """The constructor's arguments, which khub keeps in config.json."""
        return {name: getattr(self, name) for name, *_ in self._fields}


def _cuts(model):
    """The tensors of a functional model that every way to its output goes through."""
    last = {}  # of each tensor, the place of the last step that takes it
    for place, node in enumerate(model._nodes):
        last |= {id(x): place for x in node.parents}
    furthest, found = last.get(id(model.inputs[0]), 0), []
    for place, node in enumerate(model._nodes):
        if furthest <= place and isinstance(node.outputs, KerasTensor):
            found.append(node.outputs)
        ends = [last.get(id(x), place) for x in tree.flatten(node.outputs)]
        furthest = max(furthest, *ends)
    return found


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


class ImageClassifier(Presettable, models.Model):
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
    ignored = ()
    _augments = False

    def setup(self):
        if self.labels is None and self.num_classes == 1000:
            self.labels = class_names()
        if self.labels is not None:
            self._check_labels(self.labels)
        self.build(None)
        self.compile()

    def _check_labels(self, labels):
        if len(labels) != self.num_classes:
            raise ValueError(f"{len(labels)} labels were given for {self.num_classes} classes.")
        self.labels = tuple(labels)

    def build(self, shape=None):
        with _policy(self.dtype_policy):
            features = layers.Input(self.backbone.output_shape[1:], name="features")
            logits = self.backbone.draw_head(features, self.num_classes, self.dropout)
            self.head = Functional(features, logits, name="head")

    def call(self, inputs, training=None):
        return self.head(self.backbone(inputs, training=training), training=training)

    @classmethod
    def from_variant(cls, name, num_classes=1000, preprocessor=None, dropout=0.0, **overrides):
        """Return a classifier on timm's architecture of this name, its weights random.

        overrides: constructor arguments of the backbone   Raises ValueError for an unknown name.
        """
        from ..presets.family import of_config

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

    def fit(self, x=None, y=None, *args, augment=False, validation_data=None, **kwargs):
        """As `Model.fit`; x may be a folder with a folder of images for each class.

        augment: learn from random parts of the images, half of them mirrored
        """
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
        """As `Model.evaluate`; x may be a folder with a folder of images for each class."""
        with self._augmenting(False):  # fit calls it between its epochs
            return super().evaluate(*self._data(x, y), *args, **kwargs)

    @contextmanager
    def _augmenting(self, augment):
        before, self._augments = self._augments, augment
        try:
            yield
        finally:
            self._augments = before

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
        if isinstance(x, (list, tuple)) and len(x) and not isinstance(x[0], (int, float)):
            raw = np.empty(len(x), object)
            raw[:] = [str(item) if isinstance(item, os.PathLike) else item for item in x]
            x = raw
            if self.preprocessor is None:
                raise ValueError(
                    f"This {type(self).__name__} has no preprocessor, so it takes an array of "
                    "prepared images, not paths or a list. Make it with from_preset(...), or set "
                    "its attribute preprocessor."
                )
        return x, y

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

    @property
    def layouts(self):
        return getattr(self.backbone, "layouts", weights.LAYOUTS)

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
        if "model_type" in found:
            found["id2label"] = {str(i): label for i, label in enumerate(labels)}
            found["label2id"] = {label: i for i, label in enumerate(labels)}
            return found
        images = self.preprocessor.to_timm() if self.preprocessor is not None else {}
        images |= {"num_classes": self.num_classes, "label_names": list(labels)}
        return found | {"num_classes": self.num_classes, "pretrained_cfg": images}
