"""What the constructors of all families share: arguments, the image, the head, weights."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from khub import config, layers, models
from khub.backend.windows import channels_first
from khub.ops.symbolic import KerasTensor

from ..cv.parts import channel_axis
from .imagenet import load, weights_file

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


def space(shape):
    """Height and width in the shape of an image or a batch of images or features."""
    return tuple(shape[-2:] if channels_first(None) else shape[-3:-1])


def padded(x, size, name):
    """x in zeros, so that a window of `size` with stride 2 halves it, rounding up.

    A length that is not known counts as even.
    """
    zeros = [(size // 2 - 1 + (length or 0) % 2, size // 2) for length in space(x.shape)]
    return layers.ZeroPadding2D(tuple(zeros), name=name)(x)


def scores(x, classes, activation, pool="avg_pool", **options):
    """The mean over space, by a layer called `pool`, then a Dense."""
    x = layers.GlobalAveragePooling2D(name=pool)(x)
    return layers.Dense(classes, activation=activation, name="predictions")(x)


@dataclass(frozen=True)
class Architecture:
    """An architecture of image classifiers or, with a name, one of its variants.

    body: (image, **options) -> features, drawn on a symbolic batch of images
    preprocessing: what its `preprocess_input` does: "caffe", "tf", "torch" or None
    top: (features, classes, activation, **options) -> scores
    end: features, pooled or not -> the result without a top
    arguments: the constructor's, in order, with defaults; those not in ARGUMENTS are options
    least: smallest height and width
    sizes: of images, besides the default, for which there are ImageNet weights with a top
    sized: whether the size must be known, without a top too
    named_pooling: whether the pooling without a top is called after its kind
    name, size, given: of a variant: its constructor, the default height and width (None: any), what
    body and top get at the constructor's defaults
    """

    body: Callable
    preprocessing: str | None = None
    top: Callable = scores
    end: Callable | None = None
    arguments: dict = field(default_factory=lambda: ARGUMENTS)
    least: int = 32
    sizes: tuple = ()
    sized: bool = False
    named_pooling: bool = False
    name: str | None = None
    size: int | None = None
    given: dict = field(default_factory=dict)

    def constructor(self, name, title, size, **options):
        """Make the function `name` that builds a variant, which is its attribute `variant`.

        title: the model's default name   size: the default height and width, None: any
        options: of body and top; they also get the arguments that are not in ARGUMENTS, `weights`
        and `name`
        """
        arguments = self.arguments | {"name": title}
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature(
            inspect.Parameter(key, kind, default=value) for key, value in arguments.items()
        )

        def construct(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return construct.variant.build(**bound.arguments)

        own = {key: value for key, value in arguments.items() if key not in ARGUMENTS}
        given = options | own | {"weights": None}
        construct.variant = replace(self, name=name, size=size, given=given)
        construct.__name__ = construct.__qualname__ = name
        construct.__module__, construct.__signature__ = self.body.__module__, signature
        construct.__doc__ = f"""{name}, a functional model of images (batch, height, width, 3).

        include_top: whether it ends in scores of `classes`, else in features, pooled by "avg" or
        "max" or not   weights: "imagenet", None (random) or the path of a file
        """
        return construct

    def check(self, options):
        """Raise ValueError for options without meaning, or without the ImageNet weights asked."""

    def title(self, options, lengths):
        """Return the model's name.  lengths: height and width"""
        return options["name"]

    @property
    def options(self):
        """What body and top take, at the constructor's defaults."""
        return self.titled(self.given, (self.size, self.size))

    def titled(self, options, lengths):
        """Return options with the name of a model for images of this height and width."""
        return options | {"name": self.title(options, lengths)}

    def build(self, include_top, weights, input_tensor, input_shape, pooling, classes, **options):
        """Return the model that a call of the constructor asks for."""
        if include_top and weights == "imagenet" and classes != 1000:
            raise ValueError(
                f"{self.name}: the weights 'imagenet' have 1000 classes, got classes={classes}; "
                "give weights=None, or include_top=False and a head of your own."
            )
        if pooling not in (None, *POOLINGS):
            raise ValueError(f"{self.name}: pooling must be None, 'avg' or 'max', got {pooling!r}.")
        activation = options.pop("classifier_activation")
        options = self.given | options | {"weights": weights}
        self.check(options)
        shape = self._shape(include_top, weights == "imagenet", input_shape, input_tensor)
        options = self.titled(options, space(shape))
        path = weights_file(self, weights, include_top, options, space(shape))
        image = _image(input_tensor, shape)
        x = self.body(image, **options)
        if include_top:
            x = self.top(x, classes, activation, **options)
        else:
            if pooling is not None:
                x = POOLINGS[pooling](name=f"{pooling}_pool" if self.named_pooling else None)(x)
            x = self.end(x) if self.end else x
        model = models.Model(_source(input_tensor, image), x, name=options["name"])
        if path is not None:
            load(model, path, include_top)
        return model

    def _shape(self, include_top, imagenet, given, tensor):
        """Return the shape of an image, checked."""
        known = include_top or self.sized

        def whole(height, width, channels=3):
            return (channels, height, width) if channels_first(None) else (height, width, channels)

        def check(holds, expected, advice=""):
            if not holds:
                source = f"{given!r} ({config.image_data_format()})"
                raise ValueError(f"{self.name}: {expected}, got input_shape={source}{advice}.")

        if given is None and tensor is None:
            return whole(*2 * [self.size if known else None])
        if given is not None:
            example = whole(*2 * [self.size or 224])
            three = isinstance(given, (tuple, list)) and len(given) == 3
            check(three, f"input_shape must have three sizes, such as {example}")
            small = [n for n in space(given) if n is not None and n < self.least]
            check(not small, f"images must be at least {self.least} x {self.least}")
        if tensor is None:
            missing = known and self.size and None in space(given)
            check(not missing, f"the size of the image must be known, such as {example}")
            sizes = (self.size, *self.sizes)
            fits = not imagenet or not include_top or space(given) in [(n, n) for n in sizes]
            words = " or ".join(f"{n} x {n}" for n in sorted({*sizes} - {None}))
            check(
                fits or not self.size,
                f"the weights 'imagenet' with include_top=True are for images of {words}",
                "; give include_top=False and a head of your own",
            )
        else:
            pairs = zip(given or (), tensor.shape[1:], strict=False)
            same = all(a == b or None in (a, b) for a, b in pairs)
            check(same, f"input_shape must be that of input_tensor, {tuple(tensor.shape[1:])}")
            given = tensor.shape[1:]
        channels = given[channel_axis() - (channel_axis() > 0)]
        check(not imagenet or channels == 3, "the weights 'imagenet' are for 3 channels")
        return tuple(given)


def _image(given, shape):
    if given is None:
        return layers.Input(shape)
    return given if isinstance(given, KerasTensor) else layers.Input(tensor=given)


def _source(given, image):
    """The inputs from which a given symbolic tensor comes."""
    if given is None or image.node is None:
        return image
    walked, waiting = {}, [image]
    while waiting:
        x = waiting.pop()
        if id(x) not in walked:  # blocks with a shortcut lead to a tensor by many ways
            walked[id(x)] = x
            waiting.extend(reversed(x.node.parents) if x.node else ())
    sources = [x for x in walked.values() if x.node is None]
    return sources[0] if len(sources) == 1 else sources
