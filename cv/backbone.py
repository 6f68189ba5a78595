"""Image networks of the hub: what the backbones of all families share.

A family has one file, in `applications/`: a table of timm's variants, a backbone that draws its
graph with layers named as timm names its modules, for each other library a table of other names.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from khub import dtype_policies, layers, models, tree
from khub.backend.windows import channels_first
from khub.models.functional import Functional
from khub.ops.symbolic import KerasTensor

from ..presets import Presettable
from ..presets.family import of_class
from ..presets.weights import load_file


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


def unit_names(theirs, *ours):
    """Names of a convolution and of its normalization, as transformers has them, and khub's."""
    return zip((f"{theirs}.convolution", f"{theirs}.normalization"), ours)


@contextmanager
def dtype_policy(policy):
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


def _row(key):
    return (key,) if isinstance(key, str) else key


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
    KEYS = {}  # field -> its key in config.json of transformers, or (key, the default there)
    STEMS = {}  # model_type of transformers -> the stem of its classes' names
    HEAD = "head"  # the layer that gives the scores
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
        shape = (channels, height, width) if channels_first(None) else self.image_shape
        with dtype_policy(self.dtype_policy):
            image = layers.Input(shape, name="image")
            self._connect(image, self.draw(image))

    def draw(self, image):
        """Return the symbolic features of a symbolic batch of images."""
        raise NotImplementedError(f"{type(self).__name__} does not define draw().")

    def draw_head(self, features, num_classes, dropout):
        """Return the logits of symbolic features; names of layers are those of the head."""
        x = layers.Dropout(dropout, name="dropout")(pooled(features))
        return layers.Dense(num_classes, name=self.HEAD)(x)

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
        """The `Reference` that names the weights of this very network."""
        return self.REFERENCES[self.reference]

    @property
    def weight_map(self):
        names = self.naming.names
        return (("", ""), *((a, b) for a, b in names if not b.startswith("head.")))

    @property
    def head_map(self):
        """The weight map of a classifier's head."""
        names = self.naming.names
        heads = ((a, b.removeprefix("head.")) for a, b in names if b.startswith("head."))
        return (("", "network"), *((a, f"network.{b}") for a, b in heads))

    @property
    def reference_prefix(self):
        return self.naming.prefix

    @property
    def ignored(self):
        return self.naming.ignored

    def load_weights(self, filepath):
        """Load a file of the reference (.safetensors, .bin, .pt, .pth), strictly."""
        load_file(self, filepath)

    # --- presets ---------------------------------------------------------------------------------
    @classmethod
    def config_from_reference(cls, config):
        if isinstance(config.get("model_type"), str):
            return cls.config_from_transformers(config) | {"reference": "transformers"}
        return cls.config_from_timm(config) | {"reference": "timm"}

    @classmethod
    def config_from_timm(cls, config):
        """Constructor arguments for a config.json of timm."""
        if config.get("model_args"):
            raise ValueError(
                f"timm's model_args are not read, got {config['model_args']!r}; make the "
                f"{cls.__name__} with arguments of its own."
            )
        name = config["architecture"].partition(".")[0]
        size = (config.get("pretrained_cfg") or {}).get("input_size")
        found = {**cls.VARIANTS[name], "architecture": name}
        if size and None not in found.get("image_shape", (None,)):
            found["image_shape"] = (*size[1:], 3)
        return found

    @classmethod
    def config_from_transformers(cls, config):
        """Constructor arguments for a config.json of transformers."""
        check(config, {"num_channels": 3})
        rows = {field: _row(key) for field, key in cls.KEYS.items()}
        found = {f: config.get(k, *rest) for f, (k, *rest) in rows.items() if k in config or rest}
        if None not in cls.image_shape:
            size = config.get("image_size", cls.image_shape[0])
            found["image_shape"] = (*((size, size) if isinstance(size, int) else size), 3)
        return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}

    @property
    def model_type(self):
        """What transformers calls the network."""
        return next(iter(self.STEMS))

    def transformers_config(self):
        """Content of config.json that transformers reads."""
        if not self.STEMS:
            raise ValueError(f"transformers has no {type(self).__name__}.")
        kind = self.model_type
        found = {_row(key)[0]: getattr(self, field) for field, key in self.KEYS.items()}
        if None not in type(self).image_shape:
            found["image_size"] = self.image_shape[:2]
        return {
            "model_type": kind,
            "architectures": [f"{self.STEMS[kind]}ForImageClassification"],
            **{k: list(v) if isinstance(v, tuple) else v for k, v in found.items()},
        }

    def reference_config(self):
        if self.reference == "transformers":
            return self.transformers_config()
        if self.reference != "timm" or self.architecture is None:  # which no other library reads
            return {"model_type": f"khub_{of_class(type(self)).name}"}
        return {"architecture": self.architecture, "num_features": self.num_features}

    @property
    def num_features(self):
        """Channels of the features."""
        shape = self.output_shape
        return shape[1] if channels_first(None) and len(shape) == 4 else shape[-1]

    def own_config(self):
        """The constructor's arguments, which khub keeps in config.json."""
        return {name: getattr(self, name) for name, *_ in self._fields}


class AnyBackbone(ImageBackbone):
    """Stands for the backbone of families that are heads on the one of any other family."""


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
