"""Keras' 40 architectures as backbones of the hub, their weights those of Keras."""

import importlib

from khub.models.functional import Functional

from ..cv.backbone import ImageBackbone, Reference
from ..cv.image_classifier import image_family
from . import CONSTRUCTORS
from .classifier import space
from .imagenet import weights_file

FLAT = ("VGG16", "VGG19")  # whose top takes all positions at once


def variant_of(name):
    """Return the variant of a constructor. Raises ValueError for an unknown name."""
    if name not in CONSTRUCTORS:
        raise ValueError(f"There is no constructor {name!r}; one of {', '.join(CONSTRUCTORS)}.")
    module = importlib.import_module(f"{__package__}.{CONSTRUCTORS[name]}")
    return getattr(module, name).variant


def published(config, with_head):
    """Return the file of Keras' ImageNet weights for a preset of the catalogue, downloaded once."""
    variant = variant_of(config["architecture"])
    options = variant.given | (config["khub"]["backbone"].get("options") or {})
    return weights_file(variant, "imagenet", with_head, options, (variant.size,) * 2)


@image_family("keras_applications", published)
class KerasBackbone(ImageBackbone):
    """What a constructor of Keras draws below its top.

    images as the module's `preprocess_input` makes them -> features
    architecture: the constructor, such as "ResNet50"   options: of the constructor alone, such as
    {"alpha": 0.25}; a network that must know the size of its images has the default one
    """

    architecture: str
    options: dict = None
    image_shape: tuple = None
    reference: str = "keras"

    VARIANTS = {name: {} for name in CONSTRUCTORS}
    REFERENCES = {"keras": Reference()}
    layouts = {}  # files are named and laid out as khub's own variables

    def setup(self):
        self._variant = variant_of(self.architecture)
        self.options = dict(self.options or {})
        unknown = [name for name in self.options if name not in self._variant.options]
        if unknown:
            raise ValueError(f"{self.architecture} has no options {', '.join(unknown)}.")
        if self.image_shape is None:
            sized = self._variant.sized or self.architecture in FLAT
            size = self._variant.size if sized else None
            self.image_shape = (size, size, 3)
        super().setup()

    def _options(self):
        size = self.image_shape[:2]
        size = (self._variant.size,) * 2 if None in size else size
        return self._variant.titled(self._variant.given | self.options, size)

    def draw(self, image):
        lengths = [n for n in space(image.shape) if n is not None]
        if lengths and min(lengths) < self._variant.least:
            least = self._variant.least
            raise ValueError(
                f"images must be at least {least} x {least}, got image_shape={self.image_shape}."
            )
        return self._variant.body(image, **self._options())

    def draw_head(self, features, num_classes, dropout):
        options = self._options()
        if dropout is not None and "dropout" in options:
            options["dropout"] = dropout
        return self._variant.top(features, num_classes, None, **options)

    @property
    def ignored(self):
        whole = Functional(self.input, self.draw_head(self.output, 1000, None))
        own = {id(layer) for layer in self.layers}
        return [f"{layer.name}.*" for layer in whole.layers if id(layer) not in own]

    def reference_config(self):
        return super().reference_config() | {"architecture": self.architecture}

    @classmethod
    def config_from_reference(cls, config):
        return {"architecture": config["architecture"]}
