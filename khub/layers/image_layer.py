"""Base of the image layers: one transformation is drawn and given to images, boxes, masks, labels.

A layer says how it draws (`get_random_transformation`) and what the transformation does to a batch
of each kind (`transform_images`, `transform_bounding_boxes`, ...); single images are batches of 1.
"""

from typing import Annotated

from khub import dtypes, fields, ops, tree
from khub.backend import windows
from khub.layers.data_layer import DataLayer
from khub.random import SeedGenerator
from khub.saving import registry

_PARTS = {  # of a dict of data -> what one of them is called
    "images": "image",
    "labels": "label",
    "bounding_boxes": "bounding_box",
    "segmentation_masks": "segmentation_mask",
}


def bounds(name, value, low, high, symmetric=True):
    """Return (lower, upper): the pair `value`, or of a number f (-f, f), else (0, f)."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    numbers = len(pair) == 2 and all(hasattr(v, "__float__") for v in pair)
    if numbers and pair is not value:
        pair = (-value if symmetric else 0, value)
    if not numbers or min(pair) < low or max(pair) > high:
        raise ValueError(
            f"{name} must be a number or a pair (lower, upper) between {low} and {high}, "
            f"got {value!r}."
        )
    return tuple(sorted(pair))


def Factor(low, high, symmetric=True):
    """The type of a field that holds (lower, upper), see `bounds`."""
    return Annotated[object, lambda name, value: bounds(name, value, low, high, symmetric)]


def one_of(*names):
    """Return the type of a field that takes one of these names."""

    def check(name, value):
        if value not in names:
            raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}.")
        return value

    return Annotated[str, check]


def _box_format(name, value):
    from khub.utils import bounding_boxes

    return None if value is None else bounding_boxes.check_format(name, value)


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

    bounding_box_format: Annotated[str, _box_format] = None
    data_format: fields.DataFormat = None

    def setup(self):
        first = windows.channels_first(self.data_format)
        self.height_axis, self.width_axis, self.channel_axis = (
            (-2, -1, -3) if first else (-3, -2, -1)
        )
        if hasattr(self, "seed"):
            self.generator = SeedGenerator(self.seed)
        self.autocast = False
        self.built = True

    def get_config(self):
        config = super().get_config()
        if self.bounding_box_format is None:
            del config["bounding_box_format"]
        return config

    # --- what a layer defines; the batch axis is always there ------------------------------------
    def get_random_transformation(self, data, training=True, seed=None):
        """Return what is drawn for this batch (or image); None changes nothing."""
        return None

    def transform_images(self, images, transformation=None, training=True):
        """Return the images (batch, ...) as the transformation makes them."""
        return images

    def transform_labels(self, labels, transformation=None, training=True):
        """Return the labels (batch, ...) as the transformation makes them."""
        return labels

    def transform_bounding_boxes(self, bounding_boxes, transformation, training=True):
        """Return {"boxes": (batch, count, 4), "labels": (batch, count)} of the new images."""
        return bounding_boxes

    def transform_segmentation_masks(self, segmentation_masks, transformation=None, training=True):
        """Return the masks (batch, ...) as the transformation makes them."""
        return segmentation_masks

    def transform_single_image(self, image, transformation, training=True):
        """`transform_images` of an image without a batch axis."""
        return self._single(self.transform_images, image, transformation, training)

    def transform_single_label(self, label, transformation, training=True):
        """`transform_labels` of a label without a batch axis."""
        return self._single(self.transform_labels, label, transformation, training)

    def transform_single_bounding_box(self, bounding_box, transformation, training=True):
        """`transform_bounding_boxes` of the boxes of an image without a batch axis."""
        return self._single(self.transform_bounding_boxes, bounding_box, transformation, training)

    def transform_single_segmentation_mask(self, segmentation_mask, transformation, training=True):
        """`transform_segmentation_masks` of a mask without a batch axis."""
        transform = self.transform_segmentation_masks
        return self._single(transform, segmentation_mask, transformation, training)

    @staticmethod
    def _single(transform, part, transformation, training):
        batch = tree.map_structure(lambda x: ops.expand_dims(x, 0), part)
        found = transform(batch, transformation, training=training)
        return tree.map_structure(lambda x: ops.squeeze(x, 0), found)

    # --- the call --------------------------------------------------------------------------------
    def call(self, data, training=True):
        parts = dict(data) if isinstance(data, dict) else {"images": data}
        self._check(parts)
        own = {name: parts[name] for name in _PARTS if parts.get(name) is not None}
        own = {name: _tensors(part) for name, part in own.items()}
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
        if boxes is None:
            return
        if self.bounding_box_format is None:
            raise ValueError(
                f"{self.name} got bounding boxes but does not know their form: give the layer "
                'bounding_box_format, for example "xyxy".'
            )
        if not isinstance(boxes, dict) or not {"boxes", "labels"} <= boxes.keys():
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
        return shape[self.height_axis], shape[self.width_axis]


class Rescaling(DataLayer):
    """inputs * scale + offset, numbers or one for each channel.  Any shape -> same"""

    scale: object
    offset: object = 0.0

    def call(self, inputs):
        name = self.compute_dtype
        scale, offset = (ops.convert_to_tensor(v, name) for v in (self.scale, self.offset))
        return ops.cast(inputs, name) * scale + offset


class Pipeline(DataLayer):
    """Applies layers one after another, to tensors or dicts of them."""

    layers: list

    def setup(self):
        self.layers = [registry.get("layers", layer) for layer in self.layers]

    def get_config(self):
        return {key: super(Pipeline, self).get_config()[key] for key in ("name", "layers")}

    def call(self, inputs, training=True, mask=None):
        for layer in self.layers:
            options = {"training": training, "mask": mask}
            inputs = layer(
                inputs, **{k: options[k] for k in options if k in layer._call_spec.names}
            )
        return inputs
