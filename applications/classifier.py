"""What the constructors of all families share: arguments, the image, the head, weights."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

from khub import config, layers, models
from khub.backend.windows import channels_first
from khub.ops.symbolic import KerasTensor

from ..presets import keras_h5
from .imagenet import weights_file

ARGUMENTS = {
    "include_top": True,
    "weights": "imagenet",
    "input_tensor": None,
    "input_shape": None,
    "pooling": None,
    "classes": 1000,
    "classifier_activation": "softmax",
}
POOLINGS = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}


def channel_axis():
    """The axis of channels in a batch of images, as `config.image_data_format()` says."""
    return 1 if channels_first(None) else -1


def scores(x, classes, activation, **options):
    """The mean over space, then a Dense."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return layers.Dense(classes, activation=activation, name="predictions")(x)


def pooled(x, pooling, **options):
    """The features, or their mean or maximum over space."""
    return x if pooling is None else POOLINGS[pooling](name=f"{pooling}_pool")(x)


@dataclass(frozen=True)
class Architecture:
    """An architecture of image classifiers, of which each variant is a constructor.

    body: (image, **options) -> features, drawn on a symbolic batch of images
    top: (features, classes, activation, **options) -> scores
    bottom: (features, pooling, **options) -> the result without a top
    arguments: the constructor's, in order, with defaults; those not in ARGUMENTS are options
    least: smallest height and width
    """

    body: Callable
    top: Callable = scores
    bottom: Callable = pooled
    arguments: dict = field(default_factory=lambda: ARGUMENTS)
    least: int = 32

    def constructor(self, name, title, size, **variant):
        """Make the function `name` that builds a variant.

        title: the model's default name   size: the default height and width, None: any
        variant: options of body, top and bottom
        """
        parameters = [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value)
            for key, value in (self.arguments | {"name": title}).items()
        ]
        signature = inspect.Signature(parameters)

        def construct(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return self._build(name, size, variant, **bound.arguments)

        construct.__name__ = construct.__qualname__ = name
        construct.__module__, construct.__signature__ = self.body.__module__, signature
        construct.__doc__ = f"""{name}, a functional model of images (batch, height, width, 3).

        include_top: whether it ends in scores of `classes`, else in features, pooled by "avg" or
        "max" or not   weights: "imagenet", None (random) or the path of a file
        """
        return construct

    def _build(
        self,
        function,
        size,
        variant,
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        name,
        **options,
    ):
        if include_top and weights == "imagenet" and classes != 1000:
            raise ValueError(
                f"{function}: the weights 'imagenet' have 1000 classes, got classes={classes}; "
                "give weights=None, or include_top=False and a head of your own."
            )
        if pooling not in (None, *POOLINGS):
            raise ValueError(f"{function}: pooling must be None, 'avg' or 'max', got {pooling!r}.")
        options = variant | options
        shape = self._shape(function, size, include_top, weights, input_shape)
        image = _image(input_tensor, shape)
        x = self.body(image, **options)
        if include_top:
            x = self.top(x, classes, classifier_activation, **options)
        else:
            x = self.bottom(x, pooling, **options)
        name = name(options, shape) if callable(name) else name
        model = models.Model(_source(input_tensor, image), x, name=name)
        if weights is not None:
            keras_h5.load(model, weights_file(function, weights, include_top, options, shape))
        return model

    def _shape(self, function, size, include_top, weights, given):
        """Return the shape of an image, checked."""
        first = channels_first(None)

        def whole(height, width, channels):
            return (channels, height, width) if first else (height, width, channels)

        if given is None:
            size = size if include_top else None
            return whole(size, size, 3)
        if not isinstance(given, (tuple, list)) or len(given) != 3:
            raise ValueError(
                f"{function}: input_shape must have three sizes, such as {whole(224, 224, 3)} "
                f"({config.image_data_format()}), got {given!r}."
            )
        sizes, channels = (given[1:], given[0]) if first else (given[:2], given[2])
        if weights == "imagenet" and channels != 3:
            raise ValueError(
                f"{function}: the weights 'imagenet' are for 3 channels, got {channels} in "
                f"input_shape={tuple(given)} ({config.image_data_format()})."
            )
        if any(length is not None and length < self.least for length in sizes):
            raise ValueError(
                f"{function}: images must be at least {self.least} x {self.least}, got "
                f"input_shape={tuple(given)} ({config.image_data_format()})."
            )
        return tuple(given)


def _image(given, shape):
    if given is None:
        return layers.Input(shape)
    return given if isinstance(given, KerasTensor) else layers.Input(tensor=given)


def _source(given, image):
    """The inputs from which a given symbolic tensor comes."""
    if given is None or image.node is None:
        return image
    found, waiting = {}, [image]
    while waiting:
        x = waiting.pop()
        if x.node is None:
            found[id(x)] = x
        else:
            waiting.extend(x.node.parents)
    sources = list(found.values())
    return sources[0] if len(sources) == 1 else sources
