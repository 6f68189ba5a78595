"""Base of the image layers: one transformation is drawn and given to images, boxes, masks, labels.

A layer says what it draws (`drawn`) and what that does to a batch of each kind (`on_images`,
`on_bounding_boxes`, ...; what has no method stays); single images are batches of 1.
"""

import operator
from functools import partial
from typing import Annotated

import numpy as np

from khub import dtypes, ops, random, tree
from khub.backend import windows
from khub.fields import Choice, Configurable, DataFormat, FieldsOf, PositiveInt
from khub.layers.data_layer import DataLayer
from khub.random import SeedGenerator
from khub.saving import registry
from khub.utils import bounding_boxes as boxes_of

_PARTS = {  # of a dict of data -> what one of them is called
    "images": "image",
    "labels": "label",
    "bounding_boxes": "bounding_box",
    "segmentation_masks": "segmentation_mask",
}


def bounds(name, value, low, high, first=operator.neg):
    """Return (lower, upper): the pair `value`, or of a number f (first, f) or (first(f), f)."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    numbers = len(pair) == 2 and all(hasattr(v, "__float__") for v in pair)
    if numbers and pair is not value:
        pair = (first(value) if callable(first) else first, value)
    if not numbers or min(pair) < low or max(pair) > high:
        raise ValueError(
            f"{name} must be a number or a pair (lower, upper) between {low} and {high}, "
            f"got {value!r}."
        )
    return tuple(sorted(pair))


def Factor(low, high, first=operator.neg):
    """The type of a field that holds (lower, upper), see `bounds`."""
    return Annotated[object, lambda name, value: bounds(name, value, low, high, first)]


def Pair(text, hold, single=False):
    """The type of a field that takes two numbers that `hold`, or one of them for both."""

    def check(name, value):
        pair = (value, value) if single and isinstance(value, int) else value
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not hold(*pair):
            raise ValueError(f"{name} must be {text}, got {value!r}.")
        return tuple(pair)

    return Annotated[object, check]


class _Options(Configurable):
    """Fields that many of the layers share, each at its own place: `Shared` declares them."""

    height: PositiveInt
    width: PositiveInt
    value_range: Pair("a pair (low, high) with low < high", operator.lt) = (0, 255)
    interpolation: Choice("nearest", "bilinear") = "bilinear"
    fill_mode: Choice("constant", "nearest", "wrap", "reflect") = "reflect"
    fill_value: float = 0.0
    seed: int = None
    data_format: DataFormat = None


Shared = partial(FieldsOf, _Options)


def _box_format(name, value):
    return None if value is None else boxes_of.check_format(name, value)


def _tensors(part):
    if isinstance(part, dict):
        return {name: ops.convert_to_tensor(x) for name, x in part.items()}
    return ops.convert_to_tensor(part)


class ImageLayer(DataLayer):
    """Base of layers for images, which may come with labels, boxes and segmentation masks.

    data: images (batch, height, width, channels) or one image, channels first if `data_format`
    says so, or a dict of "images" and any of "labels", "bounding_boxes" ({"boxes", "labels"}) and
    "segmentation_masks"  ->  the same structure
    bounding_box_format: xyxy, yxyx, xywh, center_xywh, center_yxhw, rel_xyxy, rel_yxyx, rel_xywh or
    rel_center_xywh
    """

    data_format: DataFormat = None
    bounding_box_format: Annotated[str, _box_format] = None
    _always = False  # whether it acts outside of training, too
    _unsaid = {"bounding_box_format": None}  # what a config leaves out, as Keras' do

    def setup(self):
        first = windows.channels_first(self.data_format)
        self.channel_axis = -3 if first else -1
        self.axes = self.height_axis, self.width_axis = (-2, -1) if first else (-3, -2)
        if hasattr(self, "seed"):
            self.generator = SeedGenerator(self.seed)
        self.autocast = False
        self.built = True

    def get_config(self):
        config = super().get_config()
        return {n: value for n, value in config.items() if (n, value) not in self._unsaid.items()}

    # --- what a layer does to each part; the batch axis is always there -------------------------
    def get_random_transformation(self, data, training=True, seed=None):
        """Return what is drawn for this batch (or image); None changes nothing."""
        if training and not self._always:
            return self.drawn(data, self.generator if seed is None else seed)

    def factors(self, data, seed, limits, rank=1):
        """One random number for each image between two limits.  -> (batch, 1, ...)"""
        shape = (self.images_shape(data)[0], *[1] * (rank - 1))
        return random.uniform(shape, *limits, dtype="float32", seed=seed)

    def chances(self, data, seed):
        """Whether each image is meant, with a probability drawn between the limits `factor`."""
        probability = self.factors(data, seed, self.factor)
        return self.factors(data, seed, (0.0, 1.0)) < probability

    def transform_images(self, images, transformation=None, training=True):
        """Return the images (batch, ...) as the transformation makes them."""
        return self._changed("images", images, transformation, training)

    def transform_labels(self, labels, transformation=None, training=True):
        """Return the labels (batch, ...) as the transformation makes them."""
        return self._changed("labels", labels, transformation, training)

    def transform_bounding_boxes(self, bounding_boxes, transformation, training=True):
        """Return {"boxes": (batch, count, 4), "labels": (batch, count)} of the new images."""
        return self._changed("bounding_boxes", bounding_boxes, transformation, training)

    def transform_segmentation_masks(self, segmentation_masks, transformation=None, training=True):
        """Return the masks (batch, ...) as the transformation makes them."""
        return self._changed("segmentation_masks", segmentation_masks, transformation, training)

    def _changed(self, name, part, transformation, training):
        """What the layer's method `on_{name}` makes of a part; without one the part stays."""
        if not self._always and (transformation is None or not training):
            return self.cast_images(part) if name == "images" else part
        change = getattr(self, f"on_{name}", None)
        return part if change is None else change(part, transformation)

    def transform_single_image(self, image, transformation, training=True):
        """`transform_images` of an image without a batch axis."""
        return self._single("images", image, transformation, training)

    def transform_single_label(self, label, transformation, training=True):
        """`transform_labels` of a label without a batch axis."""
        return self._single("labels", label, transformation, training)

    def transform_single_bounding_box(self, bounding_box, transformation, training=True):
        """`transform_bounding_boxes` of the boxes of an image without a batch axis."""
        return self._single("bounding_boxes", bounding_box, transformation, training)

    def transform_single_segmentation_mask(self, segmentation_mask, transformation, training=True):
        """`transform_segmentation_masks` of a mask without a batch axis."""
        return self._single("segmentation_masks", segmentation_mask, transformation, training)

    def _single(self, name, part, transformation, training):
        batch = tree.map_structure(lambda x: ops.expand_dims(x, 0), part)
        found = getattr(self, f"transform_{name}")(batch, transformation, training=training)
        return tree.map_structure(lambda x: ops.squeeze(x, 0), found)

    # --- the call --------------------------------------------------------------------------------
    def call(self, data, training=True):
        parts = dict(data) if isinstance(data, dict) else {"images": data}
        self._check(parts)
        own = {name: _tensors(parts[name]) for name in _PARTS if parts.get(name) is not None}
        transformation = self.get_random_transformation(parts | own, training=training)
        single = len(own["images"].shape) == 3
        for name, part in own.items():
            method = f"transform_single_{_PARTS[name]}" if single else f"transform_{name}"
            parts[name] = getattr(self, method)(part, transformation, training=training)
        return parts if isinstance(data, dict) else parts["images"]

    def _check(self, parts):
        images = parts.get("images")
        if images is None:
            raise ValueError(
                f'{self.name} needs images, or a dict with the key "images", got the keys '
                f"{', '.join(map(repr, parts))}."
            )
        if len(images.shape) not in (3, 4):
            raise ValueError(
                f"{self.name} needs images of 4 axes, or 3 without the batch, got the shape "
                f"{tuple(images.shape)}."
            )
        boxes = parts.get("bounding_boxes")
        if boxes is not None and self.bounding_box_format is None:
            raise ValueError(
                f"{self.name} got bounding boxes but does not know their form: give the layer "
                'bounding_box_format, for example "xyxy".'
            )
        complete = isinstance(boxes, dict) and {"boxes", "labels"} <= boxes.keys()
        if boxes is not None and not complete:
            raise ValueError(
                f'bounding_boxes must be a dict of "boxes" and "labels", got {boxes!r}.'
            )

    def cast_images(self, images):
        """The images in the dtype that the layer computes in."""
        return ops.cast(images, self.compute_dtype)

    def in_float(self, images):
        """The images in floating point, to compute with; `fit_dtype` brings results back."""
        name = self.compute_dtype
        return ops.cast(images, name if dtypes.is_float(name) else "float32")

    def fit_dtype(self, images):
        """Results in the layer's dtype: whole numbers, where this is one of integers."""
        if dtypes.is_float(self.compute_dtype):
            return ops.cast(images, self.compute_dtype)
        return ops.saturate_cast(ops.round(images), self.compute_dtype)

    def images_shape(self, data):
        """(batch, height, width, channels) of the images, in the order of `data_format`."""
        images = data["images"] if isinstance(data, dict) else data
        shape = tuple(ops.shape(images))
        return shape if len(shape) == 4 else (1, *shape)

    def images_size(self, data):
        """(height, width) of the images."""
        shape = self.images_shape(data)
        return tuple(shape[axis] for axis in self.axes)


class Rescaling(DataLayer):
    """inputs * scale + offset, numbers or one for each channel.  Any shape -> same

    With channels first, what is for each channel is along the third axis from the end.
    """

    scale: object
    offset: object = 0.0

    def call(self, inputs):
        name, values = self.compute_dtype, (self.scale, self.offset)
        if windows.channels_first(None) and len(inputs.shape) > 2:
            values = (np.reshape(v, (-1, 1, 1)) if np.ndim(v) == 1 else v for v in values)
        scale, offset = (ops.convert_to_tensor(v, name) for v in values)
        return ops.cast(inputs, name) * scale + offset


class Pipeline(DataLayer):
    """Applies layers one after another, to tensors or dicts of them."""

    layers: list

    def setup(self):
        self.layers = [registry.get("layers", layer) for layer in self.layers]

    def get_config(self):
        return {key: super(Pipeline, self).get_config()[key] for key in ("name", "layers")}

    def call(self, inputs, training=True, mask=None):
        options = {"training": training, "mask": mask}
        for layer in self.layers:
            known = {k: v for k, v in options.items() if k in layer._call_spec.names}
            inputs = layer(inputs, **known)
        return inputs
