"""Images (batch, height, width, channels), or without the batch; channels first if told so."""

import math as numbers

import numpy as np

from khub import dtypes
from khub.backend import windows
from khub.ops import linalg, math, nn
from khub.ops.array import *  # noqa: F403
from khub.ops.core import cast, convert_to_tensor, where
from khub.ops.core import shape as shape_of
from khub.ops.op import op, promote_float

# ruff: noqa: F405

__all__ = ["affine_transform", "crop_images", "elastic_transform", "extract_patches"]
__all__ += ["extract_patches_3d", "gaussian_blur", "hsv_to_rgb", "map_coordinates", "pad_images"]
__all__ += ["perspective_transform", "resize", "rgb_to_grayscale", "rgb_to_hsv"]
__all__ += ["scale_and_translate", "sobel_edges", "ssim"]


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


# --- colours -------------------------------------------------------------------------------------
@op(dtype=promote_float)
def rgb_to_grayscale(images, data_format=None):
    """The brightness, 0.2989 red + 0.587 green + 0.114 blue.  (..., 3) -> (..., 1)"""
    x, back = _last(images, data_format)
    shares = convert_to_tensor(np.array([0.2989, 0.587, 0.114]), dtypes.standardize(x.dtype))
    return back(math.sum(math.multiply(x, shares), -1, True))


@op(dtype=promote_float)
def rgb_to_hsv(images, data_format=None):
    """Hue, saturation and value, all from 0 to 1, of colours from 0 to 1."""
    x, back = _last(images, data_format)
    red, green, blue = unstack(x, axis=-1)
    value, least = math.max(x, -1), math.min(x, -1)
    spread = value - least
    safe = where(math.equal(spread, 0), ones_like(spread), spread)
    sixths = where(
        math.equal(value, red),
        (green - blue) / safe,
        where(math.equal(value, green), 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = where(math.equal(spread, 0), zeros_like(spread), math.mod(sixths / 6, 1.0))
    bright = where(math.greater(value, 0), value, ones_like(value))
    saturation = where(math.greater(value, 0), spread / bright, zeros_like(value))
    return back(stack([hue, saturation, value], -1))


@op(dtype=promote_float)
def hsv_to_rgb(images, data_format=None):
    """Colours from 0 to 1 of hue, saturation and value."""
    x, back = _last(images, data_format)
    hue, saturation, value = unstack(x, axis=-1)

    def channel(offset):
        place = math.mod(hue * 6 + offset, 6.0)
        share = math.clip(math.minimum(place, 4 - place), 0.0, 1.0)
        return value - value * saturation * share

    return back(stack([channel(5), channel(3), channel(1)], -1))


# --- borders -------------------------------------------------------------------------------------
def _axis_borders(size, before, after, target, names, grows):
    """Return (before, after) of an axis from two of border, border and target size."""
    change = None if target is None else (target - size if grows else size - target)
    if before is None and after is None:
        before = None if change is None else change // 2
    if sum(v is None for v in (before, after, change)) > 1:
        raise ValueError(f"Give two of {names[0]}, {names[1]} and {names[2]}.")
    if before is None:
        before = change - after
    if after is None:
        after = change - before
    if change is not None and before + after != change:
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
    name = ALIASES.get(method, method)
    if name not in KERNELS:
        known = ", ".join(["nearest", *ALIASES, *KERNELS])
        raise ValueError(f"The interpolation must be one of {known}, got {method!r}.")
    return KERNELS[name]


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


def _resize_axis(x, axis, count, method, antialias):
    if x.shape[axis] == count:
        return x
    if method == "nearest":
        return _nearest(x, axis, count)
    scale = math.divide(float(count), cast(shape_of(x)[axis], "float32"))
    return _resample(x, axis, count, scale, 0.0, method, antialias)


def _fitted(x, size, crop):
    """Cut images to the ratio of `size`, or return the borders that give them this ratio."""
    (height, width), (target_height, target_width) = x.shape[-3:-1], size
    if None in (height, width):
        raise ValueError("Keeping the aspect ratio needs images of a known height and width.")
    wide, high = height * target_width // target_height, width * target_height // target_width
    if crop:
        high, wide = min(height, high), min(width, wide)
        top, left = (height - high) // 2, (width - wide) // 2
        return x[..., top : top + high, left : left + wide, :]
    high, wide = max(height, high), max(width, wide)
    top, left = (high - height) // 2, (wide - width) // 2
    return [(top, high - height - top), (left, wide - width - left)]


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
    if interpolation != "nearest":
        _kernel(interpolation)
        x = x if dtypes.is_float(name) else cast(x, "float32")
    if crop_to_aspect_ratio:
        x = _fitted(x, size, True)
    elif pad_to_aspect_ratio:
        if fill_mode != "constant":
            raise ValueError(f'fill_mode must be "constant", got {fill_mode!r}.')
        borders = [(0, 0)] * (len(x.shape) - 3) + [*_fitted(x, size, False), (0, 0)]
        x = pad(x, borders, constant_values=fill_value)
    for axis, count in zip((-3, -2), size, strict=True):
        x = _resize_axis(x, axis, count, interpolation, antialias)
    if dtypes.standardize(x.dtype) != name:
        information = np.iinfo(dtypes.numpy_dtype(name))
        x = cast(math.clip(math.round(x), information.min, information.max), name)
    return back(x)


# --- patches -------------------------------------------------------------------------------------
def _patches(images, size, strides, dilation_rate, padding, data_format, space):
    size = windows.per_axis(size, space, "size")
    x, back = _last(images, data_format, space)
    single = len(x.shape) == space + 1
    x = expand_dims(x, 0) if single else x
    channels = x.shape[-1]
    count = numbers.prod(size) * channels
    name = dtypes.standardize(x.dtype)
    kernel = np.eye(count, dtype="float32").reshape((*size, channels, count))
    found = nn.conv(
        x,
        convert_to_tensor(kernel, name),
        size if strides is None else strides,
        padding,
        "channels_last",
        dilation_rate,
    )
    return back(found[0] if single else found)


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


FILL_MODES = ("constant", "nearest", "wrap", "mirror", "reflect")


@op(operands=2, dtype=None)
def map_coordinates(inputs, coordinates, order, fill_mode="constant", fill_value=0):
    """`inputs` at fractional places.  (*sizes), (rank, ...) -> (...)

    order: 0 (nearest) or 1 (linear); fill_mode: what lies outside
    """
    if order not in (0, 1):
        raise ValueError(f"order must be 0 or 1, got {order!r}.")
    if fill_mode not in FILL_MODES:
        raise ValueError(f"fill_mode must be one of {', '.join(FILL_MODES)}, got {fill_mode!r}.")
    if coordinates.shape[0] != len(inputs.shape):
        raise ValueError(
            f"coordinates need a row for each axis of {tuple(inputs.shape)}, got the shape "
            f"{tuple(coordinates.shape)}."
        )
    sizes, corners = shape_of(inputs), [(None, [], [])]
    for axis, size in enumerate(sizes):
        where_to = coordinates[axis]
        choices = []
        if order == 0 or "int" in dtypes.standardize(coordinates.dtype):
            choices = [(cast(_half_up(where_to), "int32"), None)]
        else:
            low = math.floor(where_to)
            share = where_to - low
            low = cast(low, "int32")
            choices = [(low, 1 - share), (low + 1, share)]
        corners = [
            (
                weight if share is None else share if weight is None else weight * share,
                [*places, place],
                [*seen, inside],
            )
            for weight, places, seen in corners
            for raw, share in choices
            for place, inside in [_folded(raw, size, fill_mode)]
        ]
    name, total = dtypes.standardize(inputs.dtype), None
    for weight, places, seen in corners:
        index = places[0]
        for place, size in zip(places[1:], sizes[1:], strict=True):
            index = index * size + place
        value = take(ravel(inputs), index)
        for inside in seen:
            if inside is not None:
                value = where(inside, value, full_like(value, fill_value))
        value = value if weight is None else math.multiply(cast(value, _wide(name)), weight)
        total = value if total is None else total + value
    if dtypes.standardize(total.dtype) != name:
        total = cast(total if dtypes.is_float(name) else math.round(total), name)
    return total


def _wide(name):
    return name if dtypes.is_float(name) else "float32"


def _half_up(x):
    return x if "int" in dtypes.standardize(x.dtype) else math.floor(x + 0.5)


def _sampled(x, rows, columns, interpolation, fill_mode, fill_value):
    """Images at places.  (batch, h, w, n), two of (batch, H, W) -> (batch, H, W, n)"""
    orders = {"nearest": 0, "bilinear": 1}
    if interpolation not in orders:
        raise ValueError(f"interpolation must be nearest or bilinear, got {interpolation!r}.")
    batch, channels = shape_of(x)[0], shape_of(x)[-1]
    one = zeros_like(expand_dims(rows, -1))
    image = reshape(cast(arange(batch), "float32"), (-1, 1, 1, 1)) + one
    channel = cast(arange(channels), "float32")
    rows, columns, image = (
        broadcast_to(c, (*shape_of(one)[:-1], channels))
        for c in (expand_dims(rows, -1), expand_dims(columns, -1), image)
    )
    places = stack([image, rows, columns, rows * 0 + channel])
    return map_coordinates(x, places, orders[interpolation], fill_mode, fill_value)


def _grid(x):
    """The row and the column of every pixel."""
    height, width = shape_of(x)[-3:-1]
    rows = reshape(cast(arange(height), "float32"), (1, -1, 1))
    columns = reshape(cast(arange(width), "float32"), (1, 1, -1))
    return rows + columns * 0, columns + rows * 0


def _transformed(images, factors, interpolation, fill_mode, fill_value, data_format):
    """Take pixel (x, y) from ((a x + b y + c) / k, (d x + e y + f) / k), k = g x + h y + 1."""
    x, back = _last(images, data_format)
    single = len(x.shape) == 3
    x = expand_dims(x, 0) if single else x
    rows, columns = _grid(x)
    factors = reshape(factors, (-1, 8)) if len(factors.shape) == 1 else factors
    a, b, c, d, e, f, g, h = (reshape(p, (-1, 1, 1)) for p in unstack(factors, 8, axis=1))
    scale = g * columns + h * rows + 1
    new_columns, new_rows = (
        (a * columns + b * rows + c) / scale,
        (d * columns + e * rows + f) / scale,
    )
    full_shape = (shape_of(x)[0], *shape_of(rows)[1:])
    places = (broadcast_to(p, full_shape) for p in (new_rows, new_columns))
    result = _sampled(x, *places, interpolation, fill_mode, fill_value)
    return back(result[0] if single else result)


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
    transform = cast(transform, "float32")
    return _transformed(images, transform, interpolation, fill_mode, fill_value, data_format)


@op(operands=3, dtype=None)
def perspective_transform(
    images, start_points, end_points, interpolation="bilinear", fill_value=0, data_format=None
):
    """Move four corners (x, y) of each image to other places.

    start_points, end_points: (4, 2) or (batch, 4, 2)
    """
    start, end = (reshape(cast(p, "float32"), (-1, 4, 2)) for p in (start_points, end_points))
    x, y = unstack(end, 2, axis=2)
    u, v = unstack(start, 2, axis=2)
    zero, one = zeros_like(x), ones_like(x)
    first = stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    equations = concatenate([first, second], 1)
    factors = linalg.solve(equations, concatenate([u, v], 1))
    return _transformed(images, factors, interpolation, "constant", fill_value, data_format)


def _gaussian(size, sigma):
    places = np.arange(size) - (size - 1) / 2
    weights = np.exp(-0.5 * (places / max(sigma, 1e-6)) ** 2)
    return weights / weights.sum()


def _blurred(x, kernel_size, sigma, padding):
    """(batch, height, width, channels)"""
    channels, name = x.shape[-1], dtypes.standardize(x.dtype)
    for axis in (0, 1):
        shape = (-1, 1) if axis == 0 else (1, -1)
        weights = _gaussian(kernel_size[axis], sigma[axis]).reshape(*shape, 1, 1)
        kernel = convert_to_tensor(np.tile(weights, (1, 1, 1, channels)), name)
        x = nn.conv(x, kernel, 1, padding, "channels_last")
    return x


@op(dtype=promote_float)
def gaussian_blur(images, kernel_size=(3, 3), sigma=(1.0, 1.0), data_format=None):
    """The images smoothed by a normal distribution.

    kernel_size, sigma: (height, width) of the window, and the deviations
    """
    x, back = _last(images, data_format)
    single = len(x.shape) == 3
    result = _blurred(expand_dims(x, 0) if single else x, kernel_size, sigma, "same")
    return back(result[0] if single else result)


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

    images = convert_to_tensor(images)
    x, back = _last(images, data_format)
    single = len(x.shape) == 3
    x = expand_dims(x, 0) if single else x
    field = normal((2 * shape_of(x)[0], *shape_of(x)[1:3], 1), seed=seed)
    size = 2 * numbers.ceil(3 * sigma) + 1
    moves = _blurred(field, (size, size), (sigma, sigma), "same")[..., 0] * alpha
    down, right = moves[: shape_of(x)[0]], moves[shape_of(x)[0] :]
    rows, columns = _grid(x)
    result = _sampled(x, rows + down, columns + right, interpolation, fill_mode, fill_value)
    return back(result[0] if single else result)


# --- measures ------------------------------------------------------------------------------------
@op(dtype=promote_float)
def sobel_edges(images, data_format=None):
    """The slopes down and to the right by Sobel's filter.  (..., n) -> (..., n, 2)"""
    x, back = _last(images, data_format)
    single = len(x.shape) == 3
    x = expand_dims(x, 0) if single else x
    channels, name = x.shape[-1], dtypes.standardize(x.dtype)
    down = np.outer([-1, 0, 1], [1, 2, 1]).astype("float32")
    kernel = np.stack([down, down.T], -1)[:, :, None, :]
    kernel = convert_to_tensor(np.tile(kernel, (1, 1, 1, channels)), name)
    found = nn.conv(x, kernel, 1, "same", "channels_last")
    found = reshape(found, (*shape_of(found)[:-1], channels, 2))
    found = found[0] if single else found
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
    one, two = (_last(x, data_format)[0] for x in (image1, image2))
    single = len(one.shape) == 3
    if single:
        one, two = expand_dims(one, 0), expand_dims(two, 0)
    c1, c2 = (k1 * max_val) ** 2, (k2 * max_val) ** 2

    def smooth(x):
        return _blurred(x, (filter_size,) * 2, (filter_sigma,) * 2, "valid")

    mean_1, mean_2 = smooth(one), smooth(two)
    spread = smooth(one * one + two * two) - mean_1 * mean_1 - mean_2 * mean_2
    shared = smooth(one * two) - mean_1 * mean_2
    brightness = (2 * mean_1 * mean_2 + c1) / (mean_1 * mean_1 + mean_2 * mean_2 + c1)
    found = math.mean(brightness * (2 * shared + c2) / (spread + c2), (1, 2, 3))
    return found[0] if single else found
