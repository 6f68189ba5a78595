"""Image layers that change colours and leave every pixel, box, mask and label where it is."""

import itertools
import math
import operator
import weakref

from khub import ops, random
from khub.backend.host import here
from khub.fields import PositiveInt, Rate
from khub.layers.image_layer import Factor, ImageLayer, Pair, Shared
from khub.ops.symbolic import KerasTensor

__all__ = ["AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization"]
__all__ += ["RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast"]
__all__ += ["RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert"]
__all__ += ["RandomPosterization", "RandomSaturation", "RandomSharpness", "Solarization"]

_PART = 1 << 20  # numbers of a batch that eager work takes at a time: what is between fits caches
_PROGRAMS = weakref.WeakKeyDictionary()  # layer -> what `_program` compiled
_EVEN = 1e-4  # added before cutting to whole levels: 127.99999 is the level 128


def per_image(values):
    """Numbers of images, or one for all, in a shape that fits images (batch, ...)."""
    return ops.reshape(values, (-1, 1, 1, 1))


def extremes(x, axis):
    """The largest and the smallest of three channels; a reduction of so few is slow."""
    red, green, blue = ops.split(x, 3, axis)
    value = ops.maximum(ops.maximum(red, green), blue)
    return value, ops.minimum(ops.minimum(red, green), blue)


class ColourLayer(ImageLayer):
    """Base of layers that give images new values: `change` them, in floats of `value_range`."""

    value_range = (0, 255)

    def setup(self):
        super().setup()
        self.low, self.high = self.value_range
        self.span = self.high - self.low

    def compute_output_spec(self, data, training=True):
        def image(x):
            return KerasTensor(x.shape, self.compute_dtype)

        return {**data, "images": image(data["images"])} if isinstance(data, dict) else image(data)

    def on_images(self, images, transformation):
        return ops.image.in_parts(self._program(), _PART, images, transformation)

    def _program(self):
        """Return the function of (images, transformation): one program, where that pays (JAX)."""

        def run(images, transformation):
            layer = own()
            return layer.fit_dtype(layer.adjust(layer.in_float(images), transformation))

        own, compiled = weakref.ref(self), getattr(here(), "compiled", None)
        if compiled is None:
            return run
        if self not in _PROGRAMS:
            _PROGRAMS[self] = compiled(run)
        return _PROGRAMS[self]

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

    options: Shared("value_range", "seed")


class _RangeFormatSeed(ColourLayer):
    options: Shared("value_range", "data_format", "seed")


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

    factor: Factor(0, 1, first=operator.pos)

    def drawn(self, data, seed):
        lower, upper = self.factor
        return {"contrast_factor": self.factors(data, seed, (1 - lower, 1 + upper), 4)}

    def change(self, x, contrast_factor):
        mean = ops.mean(x, self.axes, keepdims=True)
        return self.clipped(x * contrast_factor + mean * (1 - contrast_factor))


class RandomHue(_RangeFormatSeed):
    """Turns the hue of each RGB image by a random angle in training.

    factor: (lower, upper) of the angle, in parts of half a turn; f means (0, f)
    """

    factor: Factor(0, 1, first=0)

    def drawn(self, data, seed):
        sign = ops.sign(self.factors(data, seed, (-1.0, 1.0)))
        return {"factor": self.factors(data, seed, self.factor) * sign * 0.5}

    def change(self, x, factor):
        axis = self.channel_axis
        value, least = extremes(x, axis)
        spread = value - least
        unit = 1 / ops.maximum(spread, 1e-6 * self.span)  # grey stays grey, whatever the hue
        sixths = ops.image.hue_sixths(*ops.split(x, 3, axis), value, unit) + 6 * factor
        return ops.concatenate(ops.image.from_hue(sixths, value, spread), axis)


class RandomSaturation(_RangeFormatSeed):
    """Makes the colours of each RGB image stronger or weaker by a random factor in training.

    factor: (lower, upper) from 0 (grey) over 0.5 (nothing happens) to 1; f means (0, f)
    """

    factor: Factor(-1, 1, first=0)

    def drawn(self, data, seed):
        factor = self.factors(data, seed, self.factor)
        return {"factor": factor / ops.maximum(1 - factor, 1e-7)}

    def change(self, x, factor):
        axis = self.channel_axis
        value, least = extremes(x, axis)
        most = (value - self.low) / ops.maximum(value - least, 1e-6 * self.span)
        factor = ops.maximum(ops.minimum(factor, most), 0.0)
        return x * factor + value * (1 - factor)


class RandomColorDegeneration(_RangeFormatSeed):
    """Mixes each RGB image with its greys in training.

    factor: (lower, upper) of the share of grey; f means (0, f)
    """

    factor: Factor(-1, 1, first=0)

    def drawn(self, data, seed):
        return {"factor": self.factors(data, seed, self.factor, 4)}

    def change(self, x, factor):
        grey = ops.image.rgb_to_grayscale(x, data_format=self.data_format)
        return x * (1 - factor) + grey * factor


class RandomColorJitter(ColourLayer):
    """Changes brightness, contrast, saturation and hue in training, one after the other.

    Each factor is that of the layer of its name; without one its step is left out.
    """

    value_range: Shared("value_range")
    brightness_factor: object = None
    contrast_factor: object = None
    saturation_factor: object = None
    hue_factor: object = None
    seed: int = None

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
    options: Shared("data_format", "seed")

    def drawn(self, data, seed):
        return self.factors(data, seed, (0.0, 1.0), 4) < self.factor

    def adjust(self, x, transformation):
        grey = ops.image.rgb_to_grayscale(x, data_format=self.data_format)
        return ops.where(per_image(transformation), grey, x)


class RandomInvert(RangeSeedFormat):
    """Turns some images into their negatives in training.

    factor: (lower, upper) of the probability, drawn for each image; f means (0, f)
    """

    factor: Factor(0, 1, first=0) = 1.0

    def drawn(self, data, seed):
        return {"apply_inversion": self.chances(data, seed)}

    def change(self, x, apply_inversion):
        return ops.where(apply_inversion, self.low + self.high - x, x)


class RandomPosterization(_RangeFormatSeed):
    """Keeps the upper bits only of images of 8 bits in training.  arXiv:1805.09501

    factor: (lower, upper) of the number of bits, 1 to 8; n means (1, n)
    """

    factor: Factor(1, 8, first=1)

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

    factor: Factor(0, 1, first=0)

    def drawn(self, data, seed):
        return {"factor": self.factors(data, seed, self.factor)}

    def change(self, x, factor):
        total = x  # of the pixel and its eight neighbours; the pixel counts five times in the blur
        for axis in self.axes:
            before, here, after = _neighbours(total, axis, 1)
            total = before + here + after
        blur = (1 - 2 * factor) / 13
        return self.clipped(total * blur + x * (2 * factor + 4 * blur))


def _counts(*numbers):
    return all(isinstance(n, int) and n > 0 for n in numbers)


def _odd(*sizes):
    return _counts(*sizes) and all(n % 2 for n in sizes)


class RandomGaussianBlur(_RangeFormatSeed):
    """Smooths some images by a normal distribution in training.

    factor: (lower, upper) of the probability, drawn for each image; f means (0, f)
    kernel_size: width and height of the window, odd
    sigma: (lower, upper) of the deviation in pixels, drawn for each image and axis; s means (0, s)
    """

    factor: Factor(0, 1, first=0) = 1.0
    kernel_size: Pair("an odd integer or two of them", _odd, single=True) = 3
    sigma: Factor(0, math.inf, first=0) = 1.0

    def drawn(self, data, seed):
        shape = (self.images_shape(data)[0], 2)
        sigma = random.uniform(shape, *self.sigma, dtype="float32", seed=seed)
        return {"should_apply_blur": self.chances(data, seed), "blur_factor": sigma}

    def change(self, x, should_apply_blur, blur_factor):
        sigmas = ops.unstack(ops.reshape(blur_factor, (-1, 2)), 2, axis=1)
        for axis, size, sigma in zip(self.axes[::-1], self.kernel_size, sigmas, strict=True):
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

    addition_factor: Factor(0, 1, first=0) = 0.0
    threshold_factor: Factor(0, 1, first=0) = 0.0

    def drawn(self, data, seed):
        limits = {"additions": self.addition_factor, "thresholds": self.threshold_factor}
        return {k: self.factors(data, seed, v, 4) * 255 for k, v in limits.items()}  # of 8 bits

    def change(self, x, additions, thresholds):
        x = self.clipped(x + additions * (self.span / 255))
        bright = x >= thresholds * (self.span / 255) + self.low
        return ops.where(bright, self.low + self.high - x, x)


# --- from the image itself, the same at inference ------------------------------------------------
class AutoContrast(ColourLayer):
    """Stretches each channel of an image over all of `value_range`."""

    value_range: Shared("value_range")
    _always = True

    def change(self, x):
        low, high = (f(x, self.axes, keepdims=True) for f in (ops.min, ops.max))
        flat = ops.equal(low, high)
        scale = ops.where(flat, ops.ones_like(low), self.span / ops.where(flat, 1.0, high - low))
        return x * scale + ops.where(flat, ops.zeros_like(low), self.low - low * scale)


class _ByLevels(ColourLayer):
    """What gives each of `bins` levels a new value, by how often each of them comes."""

    bins = 256
    _always = True

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

    value_range: Shared("value_range")
    bins: PositiveInt = 256

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

    value_range: Shared("value_range")
    clip_limit: float = 4.0
    tile_grid_size: Pair("two positive integers (rows, columns)", _counts) = (8, 8)

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
        for (column, share), (row, row_share) in itertools.product(*neighbours):
            total = total + ops.take(table, levels + (row + column)) * (row_share * share)
        return ops.cast(ops.moveaxis(total, -1, -3) if first else total, x.dtype)
