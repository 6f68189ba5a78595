"""Image layers that change colours and leave every pixel, box, mask and label where it is."""

import math
from typing import Annotated

from khub import ops, random, tree
from khub.backend import active
from khub.backend.scope import local
from khub.fields import DataFormat, PositiveInt, Rate
from khub.layers.image_layer import Factor, ImageLayer, bounds
from khub.ops.symbolic import KerasTensor

_PART = 1 << 21  # numbers of a batch that eager work takes at a time: what is between fits caches
_EVEN = 1e-4  # added before cutting to whole levels: 127.99999 is the level 128


def _pair(low, high, first=None):
    """The type of a field (lower, upper); one number is both, or comes after `first`."""

    def convert(name, value):
        both = isinstance(value, (tuple, list))
        return bounds(
            name, value if both else (value if first is None else first, value), low, high
        )

    return Annotated[object, convert]


def _two(text, hold, single=False):
    """The type of a field that takes two numbers that `hold`, or one of them for both."""

    def check(name, value):
        pair = (value, value) if single and isinstance(value, int) else value
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not hold(*pair):
            raise ValueError(f"{name} must be {text}, got {value!r}.")
        return tuple(pair)

    return Annotated[object, check]


def _counts(*numbers):
    return all(isinstance(n, int) and n > 0 for n in numbers)


ValueRange = _two("a pair (low, high) with low < high", lambda low, high: low < high)


def per_image(values):
    """Numbers of images, or one for all, in a shape that fits images (batch, ...)."""
    return ops.reshape(values, (-1, 1, 1, 1))


def in_parts(function, images, transformation):
    """`function(images, transformation)`, eagerly on one part of a large batch after another.

    What the transformation holds for each image is cut along.
    """
    count = images.shape[0]
    traced = local.scope is not None or active.is_traced(images)
    if traced or not isinstance(count, int) or math.prod(images.shape) < 2 * _PART:
        return function(images, transformation)
    step = max(1, _PART // math.prod(images.shape[1:]))

    def cut(x, start):
        own = getattr(x, "shape", ())[:1] == (count,)
        return x[start : start + step] if own else x

    return ops.concatenate(
        [
            function(images[i : i + step], tree.map_structure(lambda x: cut(x, i), transformation))  # noqa: B023
            for i in range(0, count, step)
        ]
    )


class ColourLayer(ImageLayer):
    """Base of layers that give images new values: `change` them, in floats of `value_range`."""

    value_range = (0, 255)
    _always = False  # whether it acts at inference, too

    def setup(self):
        super().setup()
        self.low, self.high = self.value_range
        self.span = self.high - self.low

    def compute_output_spec(self, data, training=True):
        def image(x):
            return KerasTensor(x.shape, self.compute_dtype)

        return {**data, "images": image(data["images"])} if isinstance(data, dict) else image(data)

    def get_random_transformation(self, data, training=True, seed=None):
        if not training:
            return None
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
        if not self._always and (transformation is None or not training):
            return self.cast_images(images)

        def run(images, transformation):
            return self.fit_dtype(self.adjust(self.in_float(images), transformation))

        return in_parts(run, images, transformation)

    def adjust(self, x, transformation):
        """`change` float images by what was drawn, which is made to fit them."""
        fitted = {}
        for name, drawn in (transformation or {}).items():
            drawn = per_image(drawn) if len(drawn.shape) == 1 else drawn
            fitted[name] = drawn if ops.dtype(drawn) == "bool" else ops.cast(drawn, x.dtype)
        return self.change(x, **fitted)

    def clipped(self, images):
        """The images without what lies outside of `value_range`."""
        return ops.clip(images, self.low, self.high)


class RangeSeedFormat(ColourLayer):
    """What has these fields at the end, in this order."""

    value_range: ValueRange = (0, 255)
    seed: int = None
    data_format: DataFormat = None


class _RangeFormatSeed(ColourLayer):
    value_range: ValueRange = (0, 255)
    data_format: DataFormat = None
    seed: int = None


class RandomBrightness(RangeSeedFormat):
    """Adds a random number to each image in training.

    factor: (lower, upper) of what is added, in parts of the width of value_range; f means (-f, f)
    """

    factor: Factor(-1, 1)

    def drawn(self, data, seed):
        return {"rgb_delta": self.factors(data, seed, self.factor, 4) * self.span}

    def change(self, x, rgb_delta):
        return self.clipped(x + rgb_delta)


class RandomContrast(RangeSeedFormat):
    """Moves each channel away from its mean, or towards it, by a random factor in training.

    factor: (lower, upper), the factor lies in [1 - lower, 1 + upper]; f means (f, f)
    """

    factor: _pair(0, 1)

    def drawn(self, data, seed):
        lower, upper = self.factor
        return {"contrast_factor": self.factors(data, seed, (1 - lower, 1 + upper), 4)}

    def change(self, x, contrast_factor):
        mean = ops.mean(x, (self.height_axis, self.width_axis), keepdims=True)
        return self.clipped(x * contrast_factor + mean * (1 - contrast_factor))


class RandomHue(_RangeFormatSeed):
    """Turns the hue of each RGB image by a random angle in training.

    factor: (lower, upper) of the angle, in parts of half a turn; f means (0, f)
    """

    factor: Factor(0, 1, symmetric=False)

    def drawn(self, data, seed):
        sign = ops.sign(self.factors(data, seed, (-1.0, 1.0)))
        return {"factor": self.factors(data, seed, self.factor) * sign * 0.5}

    def change(self, x, factor):
        axis = self.channel_axis
        red, green, blue = ops.split(x, 3, axis)
        value, least = ops.max(x, axis, keepdims=True), ops.min(x, axis, keepdims=True)
        spread = value - least
        unit = 1 / ops.maximum(spread, 1e-6 * self.span)  # grey stays grey, whatever the hue
        sixths = ops.where(
            ops.equal(value, red),
            (green - blue) * unit,
            ops.where(ops.equal(value, green), 2 + (blue - red) * unit, 4 + (red - green) * unit),
        )
        sixths = sixths + 6 * factor

        def channel(offset):
            place = ops.mod(sixths + offset, 6.0)
            return value - spread * ops.clip(ops.minimum(place, 4 - place), 0.0, 1.0)

        return ops.concatenate([channel(5), channel(3), channel(1)], axis)


class RandomSaturation(_RangeFormatSeed):
    """Makes the colours of each RGB image stronger or weaker by a random factor in training.

    factor: (lower, upper) from 0 (grey) over 0.5 (nothing happens) to 1; f means (0, f)
    """

    factor: Factor(-1, 1, symmetric=False)

    def drawn(self, data, seed):
        factor = self.factors(data, seed, self.factor)
        return {"factor": factor / ops.maximum(1 - factor, 1e-7)}

    def change(self, x, factor):
        axis = self.channel_axis
        value, least = ops.max(x, axis, keepdims=True), ops.min(x, axis, keepdims=True)
        most = (value - self.low) / ops.maximum(value - least, 1e-6 * self.span)
        factor = ops.maximum(ops.minimum(factor, most), 0.0)
        return x * factor + value * (1 - factor)


class RandomColorDegeneration(_RangeFormatSeed):
    """Mixes each RGB image with its greys in training.

    factor: (lower, upper) of the share of grey; f means (0, f)
    """

    factor: Factor(-1, 1, symmetric=False)

    def drawn(self, data, seed):
        return {"factor": self.factors(data, seed, self.factor, 4)}

    def change(self, x, factor):
        grey = ops.image.rgb_to_grayscale(x, data_format=self.data_format)
        return x * (1 - factor) + grey * factor


class RandomColorJitter(ColourLayer):
    """Changes brightness, contrast, saturation and hue in training, one after the other.

    Each factor is that of the layer of its name; without one its step is left out.
    """

    value_range: ValueRange = (0, 255)
    brightness_factor: object = None
    contrast_factor: object = None
    saturation_factor: object = None
    hue_factor: object = None
    seed: int = None
    data_format: DataFormat = None

    def setup(self):
        super().setup()
        self._steps = {}
        for kind in (RandomBrightness, RandomContrast, RandomSaturation, RandomHue):
            name = kind.__name__.removeprefix("Random").lower()
            factor = getattr(self, f"{name}_factor")
            if factor is not None:
                step = kind(factor, self.value_range, data_format=self.data_format, seed=self.seed)
                setattr(self, f"random_{name}", step)
                self._steps[f"random_{name}"] = step

    def drawn(self, data, seed):
        return {name: step.drawn(data, seed) for name, step in self._steps.items()}

    def adjust(self, x, transformation):
        for name, step in self._steps.items():
            x = step.adjust(x, transformation[name])
        return x


class RandomGrayscale(ColourLayer):
    """Makes some RGB images grey in training; they keep their three channels.

    factor: the probability
    """

    factor: Rate = 0.5
    data_format: DataFormat = None
    seed: int = None

    def drawn(self, data, seed):
        return self.factors(data, seed, (0.0, 1.0), 4) < self.factor

    def adjust(self, x, transformation):
        grey = ops.image.rgb_to_grayscale(x, data_format=self.data_format)
        return ops.where(per_image(transformation), grey, x)


class RandomInvert(RangeSeedFormat):
    """Turns some images into their negatives in training.

    factor: (lower, upper) of the probability, drawn for each image; f means (0, f)
    """

    factor: Factor(0, 1, symmetric=False) = 1.0

    def drawn(self, data, seed):
        return {"apply_inversion": self.chances(data, seed)}

    def change(self, x, apply_inversion):
        return ops.where(apply_inversion, self.low + self.high - x, x)


class RandomPosterization(_RangeFormatSeed):
    """Keeps the upper bits only of images of 8 bits in training.  arXiv:1805.09501

    factor: (lower, upper) of the number of bits, 1 to 8; n means (1, n)
    """

    factor: _pair(1, 8, first=1)

    def drawn(self, data, seed):
        lower, upper = (int(bits) for bits in self.factor)
        shape = (self.images_shape(data)[0],)
        bits = random.randint(shape, lower, upper + 1, "int32", seed)
        return {"shift_factor": ops.cast(8 - bits, "uint8")}

    def change(self, x, shift_factor):
        scale = 255 / self.span * ops.power(2.0, -shift_factor)
        return ops.floor(x * scale + (_EVEN - self.low * scale)) / scale + self.low


def _neighbours(x, axis, radius):
    """The images moved by -radius to radius along an axis, with 0 where nothing comes from."""
    rank, size = len(x.shape), ops.shape(x)[axis]
    borders = [(0, 0)] * rank
    borders[axis] = (radius, radius)
    padded = ops.pad(x, borders)
    after = (slice(None),) * (-axis - 1)
    return [padded[(..., slice(i, i + size), *after)] for i in range(2 * radius + 1)]


class RandomSharpness(_RangeFormatSeed):
    """Mixes each image with a blurred one in training, to sharpen or soften it.

    factor: (lower, upper) from 0 (blurred) over 0.5 (nothing happens) to 1 (sharp); f means (0, f)
    """

    factor: Factor(0, 1, symmetric=False)

    def drawn(self, data, seed):
        return {"factor": self.factors(data, seed, self.factor)}

    def change(self, x, factor):
        total = x  # of the pixel and its eight neighbours; the pixel counts five times in the blur
        for axis in (self.height_axis, self.width_axis):
            before, here, after = _neighbours(total, axis, 1)
            total = before + here + after
        blur = (1 - 2 * factor) / 13
        return self.clipped(total * blur + x * (2 * factor + 4 * blur))


def _odd(*sizes):
    return _counts(*sizes) and all(n % 2 for n in sizes)


class RandomGaussianBlur(_RangeFormatSeed):
    """Smooths some images by a normal distribution in training.

    factor: (lower, upper) of the probability, drawn for each image; f means (0, f)
    kernel_size: width and height of the window, odd
    sigma: (lower, upper) of the deviation in pixels, drawn for each image and axis; s means (0, s)
    """

    factor: Factor(0, 1, symmetric=False) = 1.0
    kernel_size: _two("an odd integer or two of them", _odd, single=True) = 3
    sigma: Factor(0, math.inf, symmetric=False) = 1.0

    def drawn(self, data, seed):
        shape = (self.images_shape(data)[0], 2)
        sigma = random.uniform(shape, *self.sigma, dtype="float32", seed=seed)
        return {"should_apply_blur": self.chances(data, seed), "blur_factor": sigma}

    def change(self, x, should_apply_blur, blur_factor):
        sigmas = ops.unstack(ops.reshape(blur_factor, (-1, 2)), 2, axis=1)
        axes = self.width_axis, self.height_axis
        for axis, size, sigma in zip(axes, self.kernel_size, sigmas, strict=True):
            sigma = ops.where(should_apply_blur, per_image(sigma), 0.0)  # 0 changes nothing
            narrow = -0.5 / ops.maximum(ops.square(sigma), 1e-5)
            weights = [ops.exp(narrow * distance**2) for distance in range(1, size // 2 + 1)]
            moved, total = _neighbours(x, axis, size // 2), 1 + 2 * sum(weights)
            x = x / total
            for weight, before, after in zip(weights[::-1], moved, moved[::-1], strict=False):
                x = x + (before + after) * (weight / total)
        return x


class Solarization(RangeSeedFormat):
    """Turns what is brighter than a threshold into its negative in training.

    addition_factor, threshold_factor: (lower, upper) of what is added before, and of the threshold,
    in parts of the width of value_range; f means (0, f)
    """

    addition_factor: Factor(0, 1, symmetric=False) = 0.0
    threshold_factor: Factor(0, 1, symmetric=False) = 0.0

    def drawn(self, data, seed):
        limits = {"additions": self.addition_factor, "thresholds": self.threshold_factor}
        return {k: self.factors(data, seed, v, 4) * 255 for k, v in limits.items()}  # of 8 bits

    def change(self, x, additions, thresholds):
        x = self.clipped(x + additions * (self.span / 255))
        bright = x >= thresholds * (self.span / 255) + self.low
        return ops.where(bright, self.low + self.high - x, x)


# --- from the image itself, the same at inference ------------------------------------------------
class _Always(ColourLayer):
    """What draws nothing and acts at inference, too."""

    _always = True

    def get_random_transformation(self, data, training=True, seed=None):
        return None


class AutoContrast(_Always):
    """Stretches each channel of an image over all of `value_range`."""

    value_range: ValueRange = (0, 255)

    def change(self, x):
        axes = self.height_axis, self.width_axis
        low, high = ops.min(x, axes, keepdims=True), ops.max(x, axes, keepdims=True)
        flat = ops.equal(low, high)
        scale = ops.where(flat, ops.ones_like(low), self.span / ops.where(flat, 1.0, high - low))
        return x * scale + ops.where(flat, ops.zeros_like(low), self.low - low * scale)


class _ByLevels(_Always):
    """What gives each of `bins` levels a new value, by how often each of them comes."""

    bins = 256

    def levels(self, x):
        """The level of each number, int32."""
        scale = (self.bins - 1) / self.span
        x = ops.clip(x * scale + (_EVEN - self.low * scale), 0, self.bins - 1)
        return ops.cast(x, "int32")

    def counts(self, places, groups):
        """How often each level comes: group * bins + level  ->  float (groups, bins)"""
        found = ops.bincount(ops.ravel(places), minlength=groups * self.bins)
        return ops.cast(ops.reshape(found, (-1, self.bins)), "float32")

    def evened(self, counts):
        """New values of the levels, from 0 to 1, by which all come about equally often."""
        rank = ops.cumsum(counts, axis=1)
        total = rank[:, -1:]
        least = ops.min(ops.where(rank > 0, rank, total), 1, keepdims=True)
        same = ops.cast(ops.arange(self.bins), "float32") / max(self.bins - 1, 1)
        one = ops.equal(least, total)  # level only: it stays
        return ops.where(
            one, same, ops.maximum(rank - least, 0.0) / ops.where(one, 1.0, total - least)
        )


class Equalization(_ByLevels):
    """Gives each channel of an image a histogram that is as even as possible.

    bins: how many levels are told apart
    """

    value_range: ValueRange = (0, 255)
    bins: PositiveInt = 256
    data_format: DataFormat = None

    def change(self, x):
        shape = list(ops.shape(x))
        shape[self.height_axis] = shape[self.width_axis] = 1
        groups = shape[0] * shape[self.channel_axis]
        places = self.levels(x) + ops.reshape(ops.arange(groups) * self.bins, shape)
        table = self.evened(self.counts(places, groups))
        table = ops.floor(table * 255 + 0.501) * (self.span / 255) + self.low
        return ops.cast(ops.take(ops.ravel(table), places), x.dtype)


class ContrastLimitedAdaptiveHistogramEqualization(_ByLevels):
    """Equalizes the tiles of an image, and blends between them.  Pizer et al. 1987

    clip_limit: how often a level may come, in multiples of the mean; what is more is given to all
    levels alike (0: no limit)
    """

    value_range: ValueRange = (0, 255)
    clip_limit: float = 4.0
    tile_grid_size: _two("two positive integers (rows, columns)", _counts) = (8, 8)
    data_format: DataFormat = None

    def change(self, x):
        first = self.channel_axis == -3
        levels = self.levels(ops.moveaxis(x, -3, -1) if first else x)
        batch, *size, channels = ops.shape(levels)
        groups, padded, tile_area, neighbours = batch * channels, levels, 1, []
        stride, offset = channels * self.bins, ops.arange(channels) * self.bins
        for axis, count in ((2, self.tile_grid_size[1]), (1, self.tile_grid_size[0])):
            length, shape = size[axis - 1], (-1, *[1] * (3 - axis))
            tile = -(-length // count)
            place = ops.arange(tile * count)
            folded = ops.mod(place, 2 * length)  # mirrored at the end, to have whole tiles
            padded = ops.take(padded, ops.minimum(folded, 2 * length - 1 - folded), axis)
            offset = offset + ops.reshape(place // tile * stride, shape)
            middle = ops.cast(ops.arange(length), "float32") / ops.cast(tile, "float32") - 0.5
            before = ops.floor(middle)
            share = ops.reshape(middle - before, shape)
            before, after = (
                ops.reshape(ops.cast(ops.clip(t, 0, count - 1), "int32") * stride, shape)
                for t in (before, before + 1)
            )
            neighbours.append(((before, 1 - share), (after, share)))
            groups, stride, tile_area = groups * count, stride * count, tile_area * tile
        image = per_image(ops.arange(batch) * stride)
        counts = self.counts(padded + offset + image, groups)
        if self.clip_limit > 0:
            most = ops.cast(tile_area, "float32") * (self.clip_limit / self.bins)
            limited = ops.minimum(counts, most)
            counts = limited + ops.mean(counts - limited, 1, keepdims=True)
        table = ops.ravel(self.evened(counts) * self.span + self.low)
        levels, total = levels + image + ops.arange(channels) * self.bins, 0.0
        for column, column_share in neighbours[0]:
            for row, row_share in neighbours[1]:
                total = total + ops.take(table, levels + (row + column)) * (
                    row_share * column_share
                )
        return ops.cast(ops.moveaxis(total, -1, -3) if first else total, x.dtype)
