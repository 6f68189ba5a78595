"""Images (batch, height, width, channels), or without the batch; channels first if told so."""

import itertools
import math as numbers
from functools import cache

import numpy as np

from khub import dtypes, tree
from khub.backend import active, windows
from khub.backend.host import here
from khub.backend.scope import local
from khub.choices import choose
from khub.ops import linalg, math, nn
from khub.ops.array import *  # noqa: F403
from khub.ops.core import cast, convert_to_tensor, saturate_cast, where
from khub.ops.core import shape as shape_of
from khub.ops.op import op, promote_float

# ruff: noqa: F405

__all__ = ["affine_transform", "crop_images", "elastic_transform", "extract_patches"]
__all__ += ["extract_patches_3d", "gaussian_blur", "hsv_to_rgb", "map_coordinates", "pad_images"]
__all__ += ["perspective_transform", "project_images", "resize", "rgb_to_grayscale", "rgb_to_hsv"]
__all__ += ["resize_pixels", "sample_images", "scale_and_translate", "sobel_edges", "ssim"]


def _last(images, data_format, space=2):
    """Return the images with channels last, and what turns results back."""
    first = windows.channels_first(data_format)
    rank = len(images.shape)
    if rank not in (space + 1, space + 2):
        raise ValueError(
            f"Expected {space + 1} axes, or {space + 2} with a batch, got the shape "
            f"{tuple(images.shape)}."
        )
    if not first:
        return images, lambda x: x
    return moveaxis(images, -space - 1, -1), lambda x: moveaxis(x, -1, -space - 1)


def _batch(images, data_format, space=2):
    """Return a batch with channels last, and what turns results back: as `_last` for one image."""
    x, back = _last(images, data_format, space)
    if len(x.shape) == space + 2:
        return x, back
    return expand_dims(x, 0), lambda x: back(x[0])


# --- colours -------------------------------------------------------------------------------------
@op(dtype=promote_float)
def rgb_to_grayscale(images, data_format=None):
    """The brightness, 0.2989 red + 0.587 green + 0.114 blue.  (..., 3) -> (..., 1)"""
    x, back = _last(images, data_format)
    red, green, blue = split(x, 3, -1)  # faster everywhere than a sum over an axis of three
    return back(red * 0.2989 + green * 0.587 + blue * 0.114)


@op(dtype=promote_float)
def rgb_to_hsv(images, data_format=None):
    """Hue, saturation and value, all from 0 to 1, of colours from 0 to 1."""
    x, back = _last(images, data_format)
    value, least = math.max(x, -1), math.min(x, -1)
    spread = value - least
    unit = 1 / where(math.equal(spread, 0), ones_like(spread), spread)
    sixths = hue_sixths(*unstack(x, axis=-1), value, unit)
    hue = where(math.equal(spread, 0), zeros_like(spread), math.mod(sixths / 6, 1.0))
    bright = where(math.greater(value, 0), value, ones_like(value))
    saturation = where(math.greater(value, 0), spread / bright, zeros_like(value))
    return back(stack([hue, saturation, value], -1))


@op(dtype=promote_float)
def hsv_to_rgb(images, data_format=None):
    """Colours from 0 to 1 of hue, saturation and value."""
    x, back = _last(images, data_format)
    hue, saturation, value = unstack(x, axis=-1)
    return back(stack(from_hue(hue * 6, value, value * saturation), -1))


def hue_sixths(red, green, blue, value, unit):
    """The hue in sixths of a turn; value: the largest of the three, unit: 1 / (largest - least)"""
    return where(
        math.equal(value, red),
        (green - blue) * unit,
        where(math.equal(value, green), 2 + (blue - red) * unit, 4 + (red - green) * unit),
    )


def from_hue(sixths, value, spread):
    """[red, green, blue] of a hue in sixths of a turn; spread: between the largest and the least"""

    def channel(offset):
        place = math.mod(sixths + offset, 6.0)
        return value - spread * math.clip(math.minimum(place, 4 - place), 0.0, 1.0)

    return [channel(5), channel(3), channel(1)]


# --- borders -------------------------------------------------------------------------------------
def _axis_borders(size, before, after, target, names, grows):
    """Return (before, after) of an axis from two of border, border and target size."""
    change = None if target is None else (target - size if grows else size - target)
    if before is after is None and change is not None:
        before = change // 2
    if [before, after, change].count(None) > 1:
        raise ValueError(f"Give two of {names[0]}, {names[1]} and {names[2]}.")
    before = change - after if before is None else before
    after = change - before if after is None else after
    if change not in (None, before + after):
        raise ValueError(
            f"{names[0]}={before} and {names[1]}={after} make {size} no {names[2]}={target}."
        )
    if before < 0 or after < 0:
        raise ValueError(
            f"{names[0]} and {names[1]} must not be negative, got {before} and {after} for a size "
            f"of {size} and {names[2]}={target}."
        )
    return before, after


def _borders(x, borders, targets, kind):
    height, width = x.shape[-3:-1]
    names = [(f"top_{kind}", f"bottom_{kind}", "target_height")]
    names += [(f"left_{kind}", f"right_{kind}", "target_width")]
    grows = kind == "padding"
    return [
        _axis_borders(size, *pair, target, name, grows)
        for size, pair, target, name in zip((height, width), borders, targets, names, strict=True)
    ]


@op()
def crop_images(
    images,
    top_cropping=None,
    left_cropping=None,
    bottom_cropping=None,
    right_cropping=None,
    target_height=None,
    target_width=None,
    data_format=None,
):
    """The images without their borders; of each axis two of borders and target size are given."""
    x, back = _last(images, data_format)
    borders = (top_cropping, bottom_cropping), (left_cropping, right_cropping)
    (top, bottom), (left, right) = _borders(x, borders, (target_height, target_width), "cropping")
    height, width = shape_of(x)[-3:-1]
    return back(x[..., top : height - bottom, left : width - right, :])


@op()
def pad_images(
    images,
    top_padding=None,
    left_padding=None,
    bottom_padding=None,
    right_padding=None,
    target_height=None,
    target_width=None,
    data_format=None,
):
    """The images with borders of 0; of each axis two of borders and target size are given."""
    x, back = _last(images, data_format)
    borders = (top_padding, bottom_padding), (left_padding, right_padding)
    borders = _borders(x, borders, (target_height, target_width), "padding")
    return back(pad(x, [(0, 0)] * (len(x.shape) - 3) + [*borders, (0, 0)]))


# --- sizes ---------------------------------------------------------------------------------------
def _cubic(x):
    """Keys 1981, with a = -0.5"""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return where(math.less(x, 1), near, where(math.less(x, 2), far, zeros_like(x)))


def _lanczos(radius):
    def kernel(x):
        return where(math.less(x, radius), math.sinc(x) * math.sinc(x / radius), zeros_like(x))

    return kernel


KERNELS = {  # of the distance in pixels
    "linear": lambda x: math.maximum(1 - x, 0.0),
    "cubic": _cubic,
    "lanczos3": _lanczos(3),
    "lanczos5": _lanczos(5),
}
ALIASES = {"bilinear": "linear", "trilinear": "linear", "triangle": "linear"}
ALIASES |= {"bicubic": "cubic", "tricubic": "cubic"}


def _kernel(method):
    name = choose("interpolation", method, [*ALIASES, *KERNELS])
    return KERNELS[ALIASES.get(name, name)]


def _resample(x, axis, count, scale, translation, method, antialias):
    """Sample an axis at `count` places; input place p lies at p * scale + translation."""
    size = shape_of(x)[axis]
    inverse = math.divide(1.0, scale)
    places = (cast(arange(count), "float32") + 0.5 - translation) * inverse - 0.5
    widened = math.maximum(inverse, 1.0) if antialias else 1.0
    distance = math.absolute(expand_dims(places, 1) - cast(arange(size), "float32")) / widened
    weights = _kernel(method)(distance)
    total = math.sum(weights, 1, True)
    seen = math.greater(math.absolute(total), 1000 * float(np.finfo("float32").eps))
    weights = where(seen, weights / where(seen, total, ones_like(total)), zeros_like(weights))
    inside = math.logical_and(
        math.greater_equal(places, -0.5), math.less_equal(places, cast(size, "float32") - 0.5)
    )
    weights = where(expand_dims(inside, 1), weights, zeros_like(weights))
    weights = cast(weights, dtypes.standardize(x.dtype))
    return moveaxis(math.tensordot(moveaxis(x, axis, -1), weights, [[-1], [1]]), -1, axis)


@op(dtype=promote_float)
def scale_and_translate(
    images, output_shape, scale, translation, spatial_dims, method, antialias=True
):
    """The images scaled and moved along some axes, onto an array of another shape.

    scale, translation: a number for each of spatial_dims
    """
    scale, translation = (convert_to_tensor(v, "float32") for v in (scale, translation))
    x = images
    for i, axis in enumerate(spatial_dims):
        x = _resample(x, axis, output_shape[axis], scale[i], translation[i], method, antialias)
    return x


def _nearest(x, axis, count):
    size = shape_of(x)[axis]
    places = (cast(arange(count), "float32") + 0.5) * cast(size, "float32") / count
    return take(x, cast(math.floor(places), "int32"), axis)


@op()
def resize_pixels(images, size, method, antialias):
    """Images (..., height, width, channels) stretched to `size` by a kernel of `KERNELS`."""
    x = images
    for axis, count in zip((-3, -2), size, strict=True):
        if x.shape[axis] == count:
            continue
        if method == "nearest":
            x = _nearest(x, axis, count)
            continue
        scale = math.divide(*(cast(n, "float32") for n in (count, shape_of(x)[axis])))
        x = _resample(x, axis, count, scale, 0.0, method, antialias)
    return x


def window(height, width, size, crop):
    """Return (top, left, height, width) of the part, or surroundings, of an image like `size`.

    crop: the largest part of the ratio of `size`; False: the least surroundings
    """
    if None in (height, width):
        raise ValueError("Keeping the aspect ratio needs images of a known height and width.")
    high, wide = width * size[0] // size[1], height * size[1] // size[0]
    limit = min if crop else max
    high, wide = limit(height, high), limit(width, wide)
    top, left = abs(height - high) // 2, abs(width - wide) // 2
    return (top, left, high, wide) if crop else (-top, -left, high, wide)


@op()
def resize(
    images,
    size,
    interpolation="bilinear",
    antialias=False,
    crop_to_aspect_ratio=False,
    pad_to_aspect_ratio=False,
    fill_mode="constant",
    fill_value=0.0,
    data_format=None,
):
    """The images in another size (height, width), in their dtype.

    interpolation: nearest, bilinear, bicubic, lanczos3, lanczos5; antialias: smooth before making
    smaller; the aspect ratio is kept by cutting or by borders of `fill_value`
    """
    if crop_to_aspect_ratio and pad_to_aspect_ratio:
        raise ValueError("Only one of crop_to_aspect_ratio and pad_to_aspect_ratio may be set.")
    if len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}.")
    x, back = _last(images, data_format)
    name = dtypes.standardize(x.dtype)
    interpolation = choose("interpolation", interpolation, ["nearest", *ALIASES, *KERNELS])
    if interpolation != "nearest":
        x = x if dtypes.is_float(name) else cast(x, "float32")
    height, width = x.shape[-3:-1]
    if crop_to_aspect_ratio:
        top, left, high, wide = window(height, width, size, True)
        x = x[..., top : top + high, left : left + wide, :]
    elif pad_to_aspect_ratio:
        choose("fill_mode", fill_mode, ["constant"])
        top, left, high, wide = window(height, width, size, False)
        borders = [(-top, high - height + top), (-left, wide - width + left), (0, 0)]
        x = pad(x, [(0, 0)] * (len(x.shape) - 3) + borders, constant_values=fill_value)
    x = resize_pixels(x, tuple(size), ALIASES.get(interpolation, interpolation), antialias)
    if dtypes.standardize(x.dtype) != name:
        x = saturate_cast(math.round(x), name)
    return back(x)


# --- patches -------------------------------------------------------------------------------------
def _patches(images, size, strides, dilation_rate, padding, data_format, space):
    size = windows.per_axis(size, space, "size")
    strides = size if strides is None else strides
    x, back = _batch(images, data_format, space)
    channels = x.shape[-1]
    count = numbers.prod(size) * channels
    kernel = np.eye(count, dtype="float32").reshape((*size, channels, count))
    return back(_convolved(x, kernel, padding, strides, dilation_rate))


def _convolved(x, kernel, padding, strides=1, dilation_rate=1):
    kernel = convert_to_tensor(kernel, dtypes.standardize(x.dtype))
    return nn.conv(x, kernel, strides, padding, "channels_last", dilation_rate)


@op(dtype=promote_float)
def extract_patches(images, size, strides=None, dilation_rate=1, padding="valid", data_format=None):
    """The patches of images, each flat.  -> (batch, rows, columns, height * width * channels)"""
    return _patches(images, size, strides, dilation_rate, padding, data_format, 2)


@op(dtype=promote_float)
def extract_patches_3d(
    volumes, size, strides=None, dilation_rate=1, padding="valid", data_format=None
):
    """The patches of volumes (batch, depth, height, width, channels), each flat."""
    return _patches(volumes, size, strides, dilation_rate, padding, data_format, 3)


# --- transformations -----------------------------------------------------------------------------
def _folded(place, size, mode):
    """Bring integer places of an axis into it, and say which were inside."""
    inside = math.logical_and(math.greater_equal(place, 0), math.less(place, size))
    if mode == "wrap":
        return math.mod(place, size), None
    if mode == "mirror":  # the end is not repeated
        round_trip = math.maximum(2 * size - 2, 1)
        place = math.mod(place, round_trip)
        return math.minimum(place, round_trip - place), None
    if mode == "reflect":
        place = math.mod(place, 2 * size)
        return math.minimum(place, 2 * size - 1 - place), None
    limited = math.clip(place, 0, size - 1)
    return limited, inside if mode == "constant" else None


def _choices(place, size, nearest, fill_mode):
    """The pixels of an axis around fractional places: [(index, whether inside, share)]."""
    if "int" in dtypes.standardize(place.dtype):
        return [(*_folded(cast(place, "int32"), size, fill_mode), None)]
    if nearest:  # halves are rounded up
        return [(*_folded(cast(math.floor(place + 0.5), "int32"), size, fill_mode), None)]
    low = math.floor(place)
    share, low = place - low, cast(low, "int32")
    return [
        (*_folded(low, size, fill_mode), 1 - share),
        (*_folded(low + 1, size, fill_mode), share),
    ]


def _mixture(pixels, first, axes, sizes, fill_value):
    """The sum of `pixels` (count, ...) around places, each by its share.

    axes: `_choices` of each axis, whose sizes make up the index; first: where an image begins
    """
    name, total = dtypes.standardize(pixels.dtype), None
    wide = name if dtypes.is_float(name) else "float32"

    def each_pixel(x):  # fits the channels
        return expand_dims(x, -1) if len(pixels.shape) == 2 else x

    for corner in itertools.product(*axes):
        index, inside, weight = first, None, None
        for (place, seen, share), size in zip(corner, sizes, strict=True):
            index = place if index is None else index * size + place
            inside = seen if inside is None else math.logical_and(inside, seen)
            weight = share if weight is None else weight * share
        value = take(pixels, index, 0)
        if inside is not None:
            value = where(each_pixel(inside), value, full_like(value, fill_value))
        if weight is not None:
            value = math.multiply(cast(value, wide), each_pixel(weight))
        total = value if total is None else total + value
    if dtypes.standardize(total.dtype) != name:
        total = cast(total if dtypes.is_float(name) else math.round(total), name)
    return total


_PART = 1 << 21  # numbers of a batch of images that eager work takes at a time
FILL_MODES = ("constant", "nearest", "wrap", "mirror", "reflect")


@op(operands=2, dtype=None)
def map_coordinates(inputs, coordinates, order, fill_mode="constant", fill_value=0):
    """`inputs` at fractional places.  (*sizes), (rank, ...) -> (...)

    order: 0 (nearest) or 1 (linear); fill_mode: what lies outside
    """
    if order not in (0, 1):
        raise ValueError(f"order must be 0 or 1, got {order!r}.")
    fill_mode = choose("fill_mode", fill_mode, FILL_MODES)
    if coordinates.shape[0] != len(inputs.shape):
        raise ValueError(
            f"coordinates need a row for each axis of {tuple(inputs.shape)}, got the shape "
            f"{tuple(coordinates.shape)}."
        )
    sizes = shape_of(inputs)
    axes = [
        _choices(coordinates[axis], size, order == 0, fill_mode) for axis, size in enumerate(sizes)
    ]
    return _mixture(ravel(inputs), None, axes, sizes, fill_value)


@op(operands=3, dtype=None)
def sample_images(images, rows, columns, interpolation, fill_mode, fill_value):
    """Images at fractional places.  (batch, h, w, n), two of (batch, H, W) -> (batch, H, W, n)"""
    batch, *sizes, channels = shape_of(images)
    first = reshape(arange(batch), (-1, 1, 1))
    axes = [
        _choices(place, size, interpolation == "nearest", fill_mode)
        for place, size in zip((rows, columns), sizes, strict=True)
    ]
    return _mixture(reshape(images, (-1, channels)), first, axes, sizes, fill_value)


def _taken(x, given, places, interpolation, fill_mode, fill_value):
    """Take each pixel of (batch, h, w, n) from `places(row, column, given)`, two of (batch, h, w).

    given: a structure, see `in_parts`
    """
    if interpolation not in ("nearest", "bilinear"):
        raise ValueError(f"interpolation must be nearest or bilinear, got {interpolation!r}.")
    fill_mode = choose("fill_mode", fill_mode, FILL_MODES)
    compiled = getattr(here(), "compiled", None)
    sample = _sampler(compiled, places, interpolation, fill_mode)
    return in_parts(sample, _PART, x, (given, fill_value))


@cache
def _sampler(compiled, places, interpolation, fill_mode):
    def sample(x, given):
        given, fill_value = given
        height, width = shape_of(x)[1:3]
        rows = reshape(cast(arange(height), "float32"), (1, -1, 1))
        columns = reshape(cast(arange(width), "float32"), (1, 1, -1))
        found = (broadcast_to(place, shape_of(x)[:3]) for place in places(rows, columns, given))
        return sample_images(x, *found, interpolation, fill_mode, fill_value)

    return sample if compiled is None else compiled(sample)  # eager JAX gains 4x of one program


def in_parts(function, limit, images, others):
    """`function(images, others)`, eagerly on one part of a large batch after another.

    limit: numbers of a part: what is between fits caches; others: a structure, in which what has an
    entry for each image is cut along
    """
    count, size = images.shape[0], numbers.prod(n or 0 for n in images.shape[1:])
    traced = local.scope is not None or active.is_traced(images)
    if traced or not isinstance(count, int) or count * size < 2 * limit:
        return function(images, others)

    def part(start, stop):
        def cut(x):
            return x[start:stop] if getattr(x, "shape", ())[:1] == (count,) else x

        return function(cut(images), tree.map_structure(cut, others))

    step = max(1, limit // size)
    parts = (part(start, start + step) for start in range(0, count, step))
    join = getattr(here(), "joined", None)
    return concatenate([*parts]) if join is None else join(parts, count)


def displaced(images, down, right, interpolation, fill_mode, fill_value, data_format):
    """Take each pixel of (batch, ...) from as far down and right of it as two (batch, h, w) say."""
    x, back = _last(images, data_format)
    return back(_taken(x, (down, right), _moved, interpolation, fill_mode, fill_value))


def _moved(rows, columns, moves):
    return rows + moves[0], columns + moves[1]


def _projected(rows, columns, factors):
    a, b, c, d, e, f, g, h = (reshape(p, (-1, 1, 1)) for p in unstack(factors, 8, axis=1))
    scale = g * columns + h * rows + 1
    return (d * columns + e * rows + f) / scale, (a * columns + b * rows + c) / scale


@op(operands=2, dtype=None)
def project_images(images, factors, interpolation, fill_mode, fill_value):
    """Images (batch, h, w, n), each pixel from where its image's factors (batch, 8) say."""
    factors = cast(factors, "float32")
    return _taken(images, factors, _projected, interpolation, fill_mode, fill_value)


def _transformed(images, factors, interpolation, fill_mode, fill_value, data_format):
    x, back = _batch(images, data_format)
    return back(project_images(x, reshape(factors, (-1, 8)), interpolation, fill_mode, fill_value))


@op(operands=2, dtype=None)
def affine_transform(
    images,
    transform,
    interpolation="bilinear",
    fill_mode="constant",
    fill_value=0,
    data_format=None,
):
    """Take pixel (x, y) from ((a x + b y + c) / k, (d x + e y + f) / k), k = g x + h y + 1.

    transform: a to h, (8,) or (batch, 8)
    """
    return _transformed(images, transform, interpolation, fill_mode, fill_value, data_format)


def homography(start_points, end_points):
    """The factors (batch, 8) that take corners (batch, 4, 2) from where they were, x before y."""
    start, end = (reshape(cast(p, "float32"), (-1, 4, 2)) for p in (start_points, end_points))
    x, y = unstack(end, 2, axis=2)
    u, v = unstack(start, 2, axis=2)
    zero, one = zeros_like(x), ones_like(x)
    first = stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    equations = concatenate([first, second], 1)
    return linalg.solve(equations, concatenate([u, v], 1))


@op(operands=3, dtype=None)
def perspective_transform(
    images, start_points, end_points, interpolation="bilinear", fill_value=0, data_format=None
):
    """Move four corners (x, y) of each image to other places.

    start_points, end_points: (4, 2) or (batch, 4, 2)
    """
    factors = homography(start_points, end_points)
    return _transformed(images, factors, interpolation, "constant", fill_value, data_format)


def _gaussian(size, sigma):
    places = np.arange(size) - (size - 1) / 2
    weights = np.exp(-0.5 * (places / max(sigma, 1e-6)) ** 2)
    return weights / weights.sum()


def _blurred(x, kernel_size, sigma, padding):
    """(batch, height, width, channels)"""
    for axis, shape in enumerate([(-1, 1, 1, 1), (1, -1, 1, 1)]):
        weights = _gaussian(kernel_size[axis], sigma[axis]).reshape(shape)
        x = _convolved(x, np.tile(weights, (1, 1, 1, x.shape[-1])), padding)
    return x


@op(dtype=promote_float)
def gaussian_blur(images, kernel_size=(3, 3), sigma=(1.0, 1.0), data_format=None):
    """The images smoothed by a normal distribution.

    kernel_size, sigma: (height, width) of the window, and the deviations
    """
    x, back = _batch(images, data_format)
    return back(_blurred(x, kernel_size, sigma, "same"))


def elastic_transform(
    images,
    alpha=20.0,
    sigma=5.0,
    interpolation="bilinear",
    fill_mode="reflect",
    fill_value=0.0,
    seed=None,
    data_format=None,
):
    """The images with every pixel moved by a smooth random field.  Simard et al. 2003

    alpha: how far pixels move; sigma: how smooth the field is
    """
    from khub.random import normal

    x, back = _batch(convert_to_tensor(images), data_format)
    field = normal((2 * shape_of(x)[0], *shape_of(x)[1:3], 1), seed=seed)
    size = 2 * numbers.ceil(3 * sigma) + 1
    moves = _blurred(field, (size, size), (sigma, sigma), "same")[..., 0] * alpha
    down, right = moves[: shape_of(x)[0]], moves[shape_of(x)[0] :]
    options = interpolation, fill_mode, fill_value, "channels_last"
    return back(displaced(x, down, right, *options))


# --- measures ------------------------------------------------------------------------------------
@op(dtype=promote_float)
def sobel_edges(images, data_format=None):
    """The slopes down and to the right by Sobel's filter.  (..., n) -> (..., n, 2)"""
    x = _batch(images, data_format)[0]
    channels = x.shape[-1]
    down = np.outer([-1, 0, 1], [1, 2, 1]).astype("float32")
    kernel = np.stack([down, down.T], -1)[:, :, None, :]
    found = _convolved(x, np.tile(kernel, (1, 1, 1, channels)), "same")
    found = reshape(found, (*shape_of(found)[:-1], channels, 2))
    found = found[0] if len(images.shape) == 3 else found
    return found if not windows.channels_first(data_format) else moveaxis(found, -2, -4)


@op(operands=2, dtype=promote_float)
def ssim(
    image1,
    image2,
    max_val=1.0,
    filter_size=11,
    filter_sigma=1.5,
    k1=0.01,
    k2=0.03,
    data_format=None,
):
    """The structural similarity of images, 1 for equal ones.  -> (batch,)  Wang et al. 2004"""
    one, two = (_batch(x, data_format)[0] for x in (image1, image2))
    c1, c2 = (k1 * max_val) ** 2, (k2 * max_val) ** 2

    def smooth(x):
        return _blurred(x, (filter_size,) * 2, (filter_sigma,) * 2, "valid")

    mean_1, mean_2 = smooth(one), smooth(two)
    spread = smooth(one * one + two * two) - mean_1 * mean_1 - mean_2 * mean_2
    shared = smooth(one * two) - mean_1 * mean_2
    brightness = (2 * mean_1 * mean_2 + c1) / (mean_1 * mean_1 + mean_2 * mean_2 + c1)
    found = math.mean(brightness * (2 * shared + c2) / (spread + c2), (1, 2, 3))
    return found[0] if len(image1.shape) == 3 else found
