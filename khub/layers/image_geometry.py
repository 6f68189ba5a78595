"""Image layers that move pixels: sizes, crops, flips and warps, with the boxes and masks alike."""

import math

from khub import dtypes, ops, random
from khub.fields import Choice, Rate
from khub.layers.image_layer import Factor, ImageLayer, Shared, bounds
from khub.utils import bounding_boxes as boxes_of

__all__ = ["CenterCrop", "RandomCrop", "RandomElasticTransform", "RandomFlip", "RandomPerspective"]
__all__ += ["RandomRotation", "RandomShear", "RandomTranslation", "RandomZoom", "Resizing"]


class _Geometry(ImageLayer):
    """What moves pixels: `move` images or masks, `move_boxes` boxes (batch, count, 4) in xyxy."""

    interpolation = "bilinear"

    def size_before(self, transformation):
        """(height, width) of the images that the transformation was drawn for."""
        return tuple(transformation["input_shape"][axis] for axis in self.axes)

    def size_after(self, size):
        """(height, width) of the results."""
        return size

    def get_random_transformation(self, data, training=True, seed=None):
        drawn = super().get_random_transformation(data, training, seed)
        return drawn and {**drawn, "input_shape": self.images_shape(data)}

    def on_images(self, images, transformation):
        return self.fit_dtype(self.move(images, transformation, self.interpolation))

    def on_segmentation_masks(self, masks, transformation):
        flat = len(masks.shape) == 3  # without channels
        masks = ops.expand_dims(masks, self.channel_axis) if flat else masks
        found = ops.cast(self.move(masks, transformation, "nearest"), masks.dtype)
        return ops.squeeze(found, self.channel_axis) if flat else found

    def on_bounding_boxes(self, bounding_boxes, transformation):
        size, form = self.size_before(transformation), self.bounding_box_format
        corners = boxes_of.convert_format(bounding_boxes["boxes"], form, "xyxy", *size)
        corners = self.move_boxes(corners, transformation)
        size = self.size_after(size)
        found = boxes_of.clip_to_image_size({**bounding_boxes, "boxes": corners}, *size)
        return boxes_of.convert_format(found, "xyxy", form, *size)


# --- a part of the image becomes the whole -------------------------------------------------------
class _Window(_Geometry):
    """What shows a window of the image: (top, left, height, width), which may exceed the image."""

    _always = True

    def size_after(self, size):
        return self.height, self.width

    def move_boxes(self, boxes, transformation):
        top, left, high, wide = self.window(self.size_before(transformation), transformation)
        x1, y1, x2, y2 = ops.unstack(boxes, 4, axis=-1)
        x1, x2 = ((x - ops.cast(left, "float32")) * (self.width / wide) for x in (x1, x2))
        y1, y2 = ((y - ops.cast(top, "float32")) * (self.height / high) for y in (y1, y2))
        return ops.stack([x1, y1, x2, y2], axis=-1)


class Resizing(_Window):
    """Images in another size; whole numbers stay such, in their dtype.

    crop_to_aspect_ratio: cut off what does not fit instead of stretching; pad_to_aspect_ratio: add
    borders of `fill_value` instead; antialias: smooth before making smaller
    """

    size: Shared("height", "width")
    interpolation: Choice("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5") = "bilinear"
    crop_to_aspect_ratio: bool = False
    pad_to_aspect_ratio: bool = False
    fill_mode: Choice("constant") = "constant"
    fill_value: float = 0.0
    antialias: bool = False

    def setup(self):
        super().setup()
        if self.crop_to_aspect_ratio and self.pad_to_aspect_ratio:
            raise ValueError("Only one of crop_to_aspect_ratio and pad_to_aspect_ratio may be set.")

    def get_random_transformation(self, data, training=True, seed=None):
        return self.images_size(data)

    def size_before(self, transformation):
        return transformation

    def window(self, size, transformation):
        if not (self.crop_to_aspect_ratio or self.pad_to_aspect_ratio):
            return 0, 0, *size
        return ops.image.window(*size, (self.height, self.width), self.crop_to_aspect_ratio)

    def on_images(self, images, transformation):
        moved = self.move(images, transformation, self.interpolation)
        return self.fit_dtype(moved) if dtypes.is_float_dtype(moved.dtype) else moved

    def move(self, x, transformation, interpolation):
        size, filled = (self.height, self.width), (self.fill_mode, self.fill_value)
        kept = self.crop_to_aspect_ratio, self.pad_to_aspect_ratio
        options = self.antialias, *kept, *filled, self.data_format
        return ops.image.resize(x, size, interpolation, *options)


class CenterCrop(_Window):
    """The middle of the images; of smaller ones, what has the ratio of `height` and `width`."""

    options: Shared("height", "width")

    def get_random_transformation(self, data, training=True, seed=None):
        return {"input_shape": self.images_shape(data)}

    def window(self, size, transformation):
        place = self.place(size, transformation)
        if place is None:
            return ops.image.window(*size, (self.height, self.width), True)
        return *place, self.height, self.width

    def place(self, size, transformation):
        """(top, left) of the crop; None for what fits."""
        if self._fits(size):
            return (size[0] - self.height) // 2, (size[1] - self.width) // 2

    def _fits(self, size):
        """Whether images are large enough; of a size that a graph does not know it is assumed."""
        pairs = zip(size, (self.height, self.width), strict=True)
        return not any(isinstance(n, int) and n < wanted for n, wanted in pairs)

    def move(self, x, transformation, interpolation):
        target, start, shape = (self.height, self.width), [0] * 4, list(ops.shape(x))
        place = self.place([shape[axis] for axis in self.axes], transformation)
        if place is None:
            options = dict(crop_to_aspect_ratio=True, data_format=self.data_format)
            return ops.image.resize(self.in_float(x), target, interpolation, **options)
        for axis, first, count in zip(self.axes, place, target, strict=True):
            start[axis], shape[axis] = first, count
        return ops.slice(x, start, shape)


class RandomCrop(CenterCrop):
    """A part of the images, at one random place for the batch in training; else as much as fits.

    Smaller images, and all outside of training, are resized and cut to `height` and `width`.
    """

    options: Shared("height", "width", "seed")

    def get_random_transformation(self, data, training=True, seed=None):
        shape, size = self.images_shape(data), self.images_size(data)
        if not training or not self._fits(size):
            return None, None, shape
        drawn = ops.unstack(random.uniform((2,), seed=self.generator if seed is None else seed))
        room = size[0] - self.height + 1, size[1] - self.width + 1
        top, left = (drawn[i] * ops.cast(room[i], "float32") for i in (0, 1))
        return ops.cast(top, "int32"), ops.cast(left, "int32"), shape

    def size_before(self, transformation):
        return super().size_before({"input_shape": transformation[2]})

    def place(self, size, transformation):
        return None if transformation[0] is None else transformation[:2]


class RandomFlip(_Geometry):
    """Images mirrored in training with probability 1/2: horizontal, vertical or both."""

    mode: Choice("horizontal", "vertical", "horizontal_and_vertical") = "horizontal_and_vertical"
    seed: int = None

    def drawn(self, data, seed):
        return {"flips": random.uniform((self.images_shape(data)[0], 1, 1, 1), seed=seed) < 0.5}

    def move(self, x, transformation, interpolation):
        axes = {"horizontal": self.width_axis, "vertical": self.height_axis}
        flipped = ops.flip(x, [axis for name, axis in axes.items() if name in self.mode])
        return ops.where(ops.reshape(transformation["flips"], (-1, 1, 1, 1)), flipped, x)

    def move_boxes(self, boxes, transformation):
        height, width = (ops.cast(n, "float32") for n in self.size_before(transformation))
        x1, y1, x2, y2 = ops.unstack(boxes, 4, axis=-1)
        if "horizontal" in self.mode:
            x1, x2 = width - x2, width - x1
        if "vertical" in self.mode:
            y1, y2 = height - y2, height - y1
        flipped = ops.stack([x1, y1, x2, y2], axis=-1)
        return ops.where(ops.reshape(transformation["flips"], (-1, 1, 1)), flipped, boxes)


# --- warps: each new pixel is taken from a place of the image ------------------------------------
class _Warp(_Geometry):
    """What takes each pixel from where `matrix` (batch, 8) says, see `ops.image.affine_transform`.

    fill_mode: constant (`fill_value`), nearest, wrap or reflect, for what lies outside
    """

    fill_mode = "constant"

    def draw(self, data, limits, seed):
        """Draw one number for each image from each of the ranges.  -> (batch, len(limits))"""
        low, high = (ops.convert_to_tensor(side, "float32") for side in zip(*limits, strict=True))
        shape = self.images_shape(data)[0], len(limits)
        return random.uniform(shape, seed=seed) * (high - low) + low

    def move(self, x, transformation, interpolation):
        matrix, options = self.matrix(transformation), self.sampling(interpolation)
        return ops.image.affine_transform(self.in_float(x), matrix, *options)

    def sampling(self, interpolation):
        return interpolation, self.fill_mode, self.fill_value, self.data_format

    def move_boxes(self, boxes, transformation):
        matrix = ops.unstack(ops.reshape(self.matrix(transformation), (-1, 8, 1, 1)), 8, axis=1)
        a, b, c, d, e, f, g, h = matrix

        def forward(x, y):  # by the inverse of the matrix, but for a factor
            scale = (d * h - e * g) * x + (b * g - a * h) * y + a * e - b * d
            new_x = (e - f * h) * x + (c * h - b) * y + b * f - c * e
            return new_x / scale, ((f * g - d) * x + (a - c * g) * y + c * d - a * f) / scale

        return boxes_of.transform(boxes, forward)


def _affine(a, b, c, d, e, f):
    """The matrices (batch, 8) of six columns, numbers or (batch,)."""
    zero = 0 * (a + b + c + d + e + f)
    return ops.stack([x + zero for x in (a, b, c, d, e, f, 0.0, 0.0)], axis=-1)


class _Filled(_Warp):
    """What the signatures of some warps end with."""

    options: Shared("fill_mode", "interpolation", "seed", "fill_value")


class RandomRotation(_Filled):
    """Images turned around their middle in training, by a random angle.

    factor: (lower, upper) in full turns, counterclockwise; f means (-f, f)
    """

    factor: Factor(-1, 1)

    def drawn(self, data, seed):
        angle = self.draw(data, [[360 * turn for turn in self.factor]], seed)[:, 0]
        height, width = self.images_size(data)
        right, bottom = (ops.cast(n, "float32") - 1 for n in (width, height))
        cos, sin = (f(angle * (math.pi / 180)) for f in (ops.cos, ops.sin))
        x0 = (right - (cos * right - sin * bottom)) / 2
        y0 = (bottom - (sin * right + cos * bottom)) / 2
        return {
            "angle": angle,
            "rotation_matrix": _affine(cos, -sin, x0, sin, cos, y0),
            "image_height": height,
            "image_width": width,
            "batch_size": self.images_shape(data)[0],
        }

    def size_before(self, transformation):
        return transformation["image_height"], transformation["image_width"]

    def matrix(self, transformation):
        return ops.reshape(transformation["rotation_matrix"], (-1, 8))


class _TwoFactors(_Filled):
    """What draws a number for the height and one for the width."""

    def setup(self):
        super().setup()
        wide = self.height_factor if self.width_factor is None else self.width_factor
        self.height_lower, self.height_upper = bounds("height_factor", self.height_factor, -1, 1)
        self.width_lower, self.width_upper = bounds("width_factor", wide, -1, 1)

    def _drawn(self, data, seed):
        limits = (self.height_lower, self.height_upper), (self.width_lower, self.width_upper)
        return self.draw(data, limits, seed)


class RandomZoom(_TwoFactors):
    """Images made smaller (positive factors) or larger around their middle in training.

    height_factor, width_factor: (lower, upper) in parts of the size, f means (-f, f); without
    width_factor the ratio is kept
    """

    height_factor: object
    width_factor: object = None

    def drawn(self, data, seed):
        zoom = 1 + self._drawn(data, seed)
        wide = zoom[:, :1] if self.width_factor is None else zoom[:, 1:]
        return {"height_zoom": zoom[:, :1], "width_zoom": wide}

    def matrix(self, transformation):
        high, wide = (ops.reshape(transformation[n], (-1,)) for n in ("height_zoom", "width_zoom"))
        bottom, right = (ops.cast(n, "float32") - 1 for n in self.size_before(transformation))
        return _affine(wide, 0.0, (1 - wide) * right / 2, 0.0, high, (1 - high) * bottom / 2)


class RandomTranslation(_TwoFactors):
    """Images moved in training.

    height_factor (down), width_factor (right): (lower, upper) in parts of the size; f means (-f, f)
    """

    height_factor: object
    width_factor: object

    def drawn(self, data, seed):
        height, width = (ops.cast(n, "float32") for n in self.images_size(data))
        down, right = ops.unstack(self._drawn(data, seed), 2, axis=1)
        return {"translations": ops.stack([right * width, down * height], axis=1)}

    def matrix(self, transformation):
        right, down = ops.unstack(transformation["translations"], 2, axis=1)
        return _affine(1.0, 0.0, -right, 0.0, 1.0, -down)


class RandomShear(_Warp):
    """Images slanted along x and y in training, to either side.

    x_factor, y_factor: (lower, upper) of how many pixels a row (column) moves beside the last one
    """

    x_factor: Factor(-1, 1) = 0.0
    y_factor: Factor(-1, 1) = 0.0
    options: Shared("interpolation", "fill_mode", "fill_value", "data_format", "seed")

    def drawn(self, data, seed):
        drawn = self.draw(data, [self.x_factor, self.y_factor, (-1, 1), (-1, 1)], seed)
        return {"shear_factor": drawn[:, :2] * ops.sign(drawn[:, 2:])}

    def matrix(self, transformation):
        x, y = ops.unstack(transformation["shear_factor"], 2, axis=1)
        return _affine(1.0, x, 0.0, y, 1.0, 0.0)


class RandomPerspective(_Warp):
    """Images seen from another side in training: their corners move inwards.

    factor: (lower, upper) of the probability that an image is changed; f means (0, f)
    scale: how far corners move at most, in parts of half the size
    """

    factor: Factor(0, 1, first=0) = 1.0
    scale: Rate = 1.0
    options: Shared("interpolation", "fill_value", "seed")

    def drawn(self, data, seed):
        inwards = [(0, self.scale / 2)] * 8
        drawn = self.draw(data, [self.factor, (0, 1), *inwards], seed)
        signs = ops.convert_to_tensor([[1, 1], [-1, 1], [1, -1], [-1, -1]], "float32")
        height, width = (ops.cast(n, "float32") - 1 for n in self.images_size(data))
        size = ops.stack([width, height])
        start = (1 - signs) / 2 * size
        moves = ops.reshape(drawn[:, 2:], (-1, 4, 2)) * signs * size
        return {
            "apply_perspective": drawn[:, 1] < drawn[:, 0],
            "start_points": start + 0 * moves,
            "end_points": start + moves,
        }

    def matrix(self, transformation):
        start, end = (transformation[n] for n in ("start_points", "end_points"))
        chosen = ops.reshape(transformation["apply_perspective"], (-1, 1, 1))
        return ops.image.homography(start, ops.where(chosen, end, start))


class RandomElasticTransform(_Warp):
    """Images with every pixel moved by a smooth random field in training.  Simard et al. 2003

    factor: (lower, upper) of the probability that an image is changed; scale: (lower, upper) of how
    strong the field is; f means (0, f)
    """

    factor: Factor(0, 1, first=0) = 1.0
    scale: Factor(0, 1, first=0) = 1.0
    options: Shared("interpolation", "fill_mode", "fill_value", "value_range", "seed")

    def drawn(self, data, seed):
        drawn = self.draw(data, [self.factor, (0, 1), self.scale], seed)
        batch, (height, width) = self.images_shape(data)[0], self.images_size(data)
        strength = drawn[:1, 2:]  # one for the batch
        reach = ops.cast(ops.maximum(height, width), "float32") * strength * 0.1
        smooth = ops.cast(ops.minimum(height, width), "float32") * strength * 0.05
        field = random.normal((2 * batch, height, width), seed=seed)
        field = ops.matmul(ops.matmul(_blur(height, smooth), field), _blur(width, smooth))
        chosen = drawn[:, 1] < drawn[:, 0]
        field = ops.reshape(field * reach, (2, batch, height, width))
        return {
            "apply_transform": chosen,
            "distortion_factor": strength[0, 0],
            "field": field * ops.cast(ops.reshape(chosen, (1, -1, 1, 1)), "float32"),
        }

    def move(self, x, transformation, interpolation):
        down, right = ops.unstack(transformation["field"], 2, axis=0)
        options = self.sampling(interpolation)
        return ops.image.displaced(self.in_float(x), down, right, *options)

    def move_boxes(self, boxes, transformation):
        field = ops.moveaxis(transformation["field"], 0, -1)

        def forward(x, y):  # what came from beside goes back there
            options = "nearest", "nearest", 0.0
            moves = ops.image.sample_images(field, y - 0.5, x - 0.5, *options)
            return x - moves[..., 1], y - moves[..., 0]

        return boxes_of.transform(boxes, forward)


def _blur(size, deviation):
    """The matrix (size, size) that smooths along an axis by a normal distribution."""
    places = ops.cast(ops.arange(size), "float32")
    distance = ops.expand_dims(places, 1) - places
    deviation = ops.maximum(deviation, 1e-3)
    weights = ops.exp(-0.5 * ops.square(distance / deviation))
    return weights / ops.max(ops.sum(weights, 1))
