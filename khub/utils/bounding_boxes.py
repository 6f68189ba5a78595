"""Boxes (..., 4) of objects in images: their forms, where they lie, how much they overlap.

Forms: xyxy (left, top, right, bottom), yxyx, xywh (left, top, width, height), center_xywh,
center_yxhw; the same after rel_ in parts of the image's width and height. In upper or lower case.
"""

import math

from khub import ops
from khub.choices import choose

FORMATS = ("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw")
FORMATS += ("rel_xyxy", "rel_yxyx", "rel_xywh", "rel_center_xywh")


def check_format(name, form):
    """Return a form in lower case.  Raises ValueError for an unknown one."""
    return choose(name, form, FORMATS)


def _check_size(height, width):
    if height is None or width is None:
        raise ValueError(
            "height and width are needed, to clip boxes in pixels and to convert between pixels "
            f"and parts of the image, got height={height!r} and width={width!r}."
        )


def _sizes(boxes, *sizes):
    """The sizes as tensors that fit one coordinate of the boxes: one for all or one an image."""
    sizes = (ops.convert_to_tensor(size, boxes.dtype) for size in sizes)
    return (ops.expand_dims(size, -1) if len(size.shape) else size for size in sizes)


def convert_format(boxes, source, target, height=None, width=None, dtype="float32"):
    """Write boxes in another form.

    boxes: (..., 4), or a dict that holds them under "boxes"; height, width: of the image, or of
    each (batch,); needed where only one of the forms is in parts of the image
    """
    source, target = check_format("source", source), check_format("target", target)
    if isinstance(boxes, dict):
        found = convert_format(boxes["boxes"], source, target, height, width, dtype)
        return {**boxes, "boxes": found}
    boxes = ops.convert_to_tensor(boxes, dtype)
    if not boxes.shape or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have the shape (..., 4), got {tuple(boxes.shape)}.")
    relative = source.startswith("rel_"), target.startswith("rel_")
    source, target = source.removeprefix("rel_"), target.removeprefix("rel_")
    if source == target and relative[0] == relative[1]:
        return boxes
    left, top, right, bottom = to_corners(ops.unstack(boxes, 4, axis=-1), source)
    if relative[0] != relative[1]:
        _check_size(height, width)
        high, wide = _sizes(boxes, height, width)
        high, wide = (high, wide) if relative[0] else (1 / high, 1 / wide)
        left, top, right, bottom = left * wide, top * high, right * wide, bottom * high
    found = from_corners(left, top, right, bottom, target)
    return ops.cast(ops.stack(found, axis=-1), dtype)


def to_corners(parts, form):
    """Left, top, right, bottom of four coordinates, of any kind that can be added."""
    x, y, right, bottom = [parts[i] for i in (1, 0, 3, 2)] if form[-4:-2] == "yx" else parts
    if form.startswith("center"):
        x, y = x - right / 2, y - bottom / 2
    return (x, y, right, bottom) if "h" not in form else (x, y, x + right, y + bottom)


def from_corners(left, top, right, bottom, form):
    """The four coordinates of a form in one unit from the corners."""
    parts = left, top, right, bottom
    if "h" in form:
        width, height = right - left, bottom - top
        x, y = (left + width / 2, top + height / 2) if "center" in form else (left, top)
        parts = x, y, width, height
    return [parts[i] for i in (1, 0, 3, 2)] if form[-4:-2] == "yx" else parts


def clip_to_image_size(bounding_boxes, height=None, width=None, bounding_box_format="xyxy"):
    """Cut boxes off at the image's borders; the label of a box with nothing left becomes -1.

    bounding_boxes: {"boxes": (..., count, 4), "labels": (..., count)}
    """
    form = check_format("bounding_box_format", bounding_box_format)
    if form.startswith("rel_"):  # in this unit the image has the size 1
        form, height, width = form.removeprefix("rel_"), 1.0, 1.0
    _check_size(height, width)
    boxes = crop(bounding_boxes["boxes"], 0, 0, height, width, form)
    left, top, right, bottom = ops.unstack(convert_format(boxes, form, "xyxy"), 4, axis=-1)
    labels = ops.convert_to_tensor(bounding_boxes["labels"])
    seen = ops.greater((right - left) * (bottom - top), 0)
    labels = ops.where(seen, labels, -ops.ones_like(labels))
    return {**bounding_boxes, "boxes": boxes, "labels": labels}


def crop(boxes, top, left, height, width, bounding_box_format="xyxy"):
    """Return boxes, cut off, as they lie in the part of the image that is kept."""

    def change(x1, y1, x2, y2):
        high, wide = _sizes(x1, height, width)
        x1, x2 = (ops.minimum(ops.maximum(x - left, 0.0), wide) for x in (x1, x2))
        y1, y2 = (ops.minimum(ops.maximum(y - top, 0.0), high) for y in (y1, y2))
        return x1, y1, x2, y2

    return _moved(boxes, bounding_box_format, change)


def pad(boxes, top, left, height=None, width=None, bounding_box_format="xyxy"):
    """Return boxes as they lie in an image with borders at the top and at the left."""

    def change(x1, y1, x2, y2):
        return x1 + left, y1 + top, x2 + left, y2 + top

    return _moved(boxes, bounding_box_format, change)


def _moved(boxes, form, change):
    """Change the sides of boxes in pixels."""
    form = check_format("bounding_box_format", form)
    if form.startswith("rel_"):
        raise ValueError(
            f"bounding_box_format must be a form in pixels, got {form!r}; see convert_format."
        )
    sides = ops.unstack(convert_format(boxes, form, "xyxy"), 4, axis=-1)
    return convert_format(ops.stack(change(*sides), axis=-1), "xyxy", form)


def transform(boxes, move):
    """Return the upright boxes around boxes (..., 4) in xyxy whose corners are moved.

    move: function of x and y (..., 4), the corners of each box, to the new x and y
    """
    left, top, right, bottom = ops.unstack(ops.convert_to_tensor(boxes, "float32"), 4, axis=-1)
    x = ops.stack([left, right, right, left], axis=-1)
    y = ops.stack([top, top, bottom, bottom], axis=-1)
    x, y = move(x, y)
    return ops.stack([ops.min(x, -1), ops.min(y, -1), ops.max(x, -1), ops.max(y, -1)], axis=-1)


def affine_transform(
    boxes, angle, translate_x, translate_y, scale, shear_x, shear_y, height, width, center_x=None,
    center_y=None, bounding_box_format="xyxy",
):  # fmt: skip
    """Return the upright boxes around boxes that are turned, moved, scaled and sheared.

    boxes: (count, 4) or (batch, count, 4); angle (counterclockwise), shear_x, shear_y: degrees;
    translate_x, translate_y, center_x, center_y: parts of width - 1 and height - 1
    Each is a number or has one for each image (batch,).
    """
    form = check_format("bounding_box_format", bounding_box_format)

    def number(value):
        value = ops.convert_to_tensor(value, "float32")
        return ops.reshape(value, (-1, 1, 1)) if len(value.shape) else value

    high, wide = number(height) - 1, number(width) - 1
    x0 = wide * (0.5 if center_x is None else number(center_x))
    y0 = high * (0.5 if center_y is None else number(center_y))
    turn, lean_x, lean_y = (number(v) * (math.pi / 180) for v in (angle, shear_x, shear_y))
    cos, sin = ops.cos(turn), ops.sin(turn)
    tan_x, tan_y, scale = ops.tan(lean_x), ops.tan(lean_y), number(scale)

    def move(x, y):
        x, y = x - x0 + number(translate_x) * wide, y - y0 + number(translate_y) * high
        x, y = cos * x + sin * y, cos * y - sin * x
        y = y + tan_y * x
        x = x + tan_x * y
        return x * scale + x0, y * scale + y0

    corners = transform(convert_format(boxes, form, "xyxy", height, width), move)
    return convert_format(corners, "xyxy", form, height, width)


# --- overlap -------------------------------------------------------------------------------------
def _corner_sides(boxes, form, image_shape):
    parts = form.lower().startswith("rel_") and image_shape is None
    return convert_format(boxes, form, "rel_xyxy" if parts else "xyxy", *_size(image_shape))


def _size(image_shape):
    return (None, None) if image_shape is None else image_shape[:2]


def _overlap(one, two):
    """Return the shared area, the area of both together, and the sides of boxes in xyxy."""
    one, two = (ops.unstack(boxes, 4, axis=-1) for boxes in (one, two))
    wide = ops.minimum(one[2], two[2]) - ops.maximum(one[0], two[0])
    high = ops.minimum(one[3], two[3]) - ops.maximum(one[1], two[1])
    shared = ops.maximum(wide, 0.0) * ops.maximum(high, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return shared, areas[0] + areas[1] - shared, one, two


def compute_iou(
    boxes1, boxes2, bounding_box_format, use_masking=False, mask_val=-1, image_shape=None
):
    """Return the shared part of every pair: area of the intersection / area of the union.

    boxes1: (..., m, 4), boxes2: (..., n, 4)  ->  (..., m, n)
    use_masking: pairs with a box of negative numbers get `mask_val`
    """
    one, two = (_corner_sides(b, bounding_box_format, image_shape) for b in (boxes1, boxes2))
    shared, union, *_ = _overlap(ops.expand_dims(one, -2), ops.expand_dims(two, -3))
    found = ops.where(ops.equal(union, 0), 0.0, shared / ops.where(ops.equal(union, 0), 1.0, union))
    if not use_masking:
        return found
    absent = [ops.all(ops.less(ops.convert_to_tensor(b), 0), -1) for b in (boxes1, boxes2)]
    absent = ops.logical_or(ops.expand_dims(absent[0], -1), ops.expand_dims(absent[1], -2))
    return ops.where(absent, ops.convert_to_tensor(mask_val, found.dtype), found)


def compute_ciou(boxes1, boxes2, bounding_box_format, image_shape=None):
    """Return the complete IoU of pairs of boxes: less for distant centres and other ratios.

    boxes1, boxes2: (..., 4)  ->  (...)  arXiv:1911.08287
    """
    one, two = (_corner_sides(b, bounding_box_format, image_shape) for b in (boxes1, boxes2))
    tiny = 1e-7
    shared, union, one, two = _overlap(one, two)
    iou = shared / (union + tiny)
    wide = ops.maximum(one[2], two[2]) - ops.minimum(one[0], two[0])
    high = ops.maximum(one[3], two[3]) - ops.minimum(one[1], two[1])
    across = one[0] + one[2] - two[0] - two[2]
    down = one[1] + one[3] - two[1] - two[3]
    distance = (across * across + down * down) / 4 / (wide * wide + high * high + tiny)
    angles = [ops.arctan((b[2] - b[0]) / (b[3] - b[1] + tiny)) for b in (one, two)]
    ratio = ops.square(angles[0] - angles[1]) * (4 / math.pi**2)
    return iou - distance - ratio * ratio / (1 - iou + ratio + tiny)


# --- boxes relative to anchors -------------------------------------------------------------------
def _check_deltas(name, form, variance):
    choose(name, form, ("center_xywh", "center_yxhw"))
    if variance is not None and len(variance) != 4:
        raise ValueError(f"variance must have 4 numbers, got {variance!r}.")
    return ops.convert_to_tensor([1.0] * 4 if variance is None else variance, "float32")


def encode_box_to_deltas(
    anchors, boxes, anchor_format, box_format, encoding_format="center_yxhw", variance=None,
    image_shape=None,
):  # fmt: skip
    """Return how far boxes are from anchors: centres in sizes of the anchor, logarithms of sizes.

    anchors: (n, 4), boxes: (..., n, 4)  ->  (..., n, 4); variance: 4 numbers that divide the result
    """
    variance = _check_deltas("encoding_format", encoding_format, variance)
    size = _size(image_shape)
    anchors = convert_format(anchors, anchor_format, encoding_format, *size)
    boxes = convert_format(boxes, box_format, encoding_format, *size)
    sizes = ops.maximum(anchors[..., 2:], 1e-7)
    places = (boxes[..., :2] - anchors[..., :2]) / sizes
    growth = ops.log(ops.maximum(boxes[..., 2:], 1e-7) / sizes)
    return ops.concatenate([places, growth + 0 * places], axis=-1) / variance


def decode_deltas_to_boxes(
    anchors, boxes_delta, anchor_format, box_format, encoded_format="center_yxhw", variance=None,
    image_shape=None,
):  # fmt: skip
    """Return the boxes that `encode_box_to_deltas` described.

    anchors: (n, 4), boxes_delta: (..., n, 4)  ->  (..., n, 4); or dicts of them by level
    """
    if isinstance(anchors, dict):
        rest = anchor_format, box_format, encoded_format, variance, image_shape
        return {
            level: decode_deltas_to_boxes(anchors[level], boxes_delta[level], *rest)
            for level in anchors
        }
    variance = _check_deltas("encoded_format", encoded_format, variance)
    size = _size(image_shape)
    anchors = convert_format(anchors, anchor_format, encoded_format, *size)
    deltas = ops.convert_to_tensor(boxes_delta, "float32") * variance
    sizes = anchors[..., 2:]
    boxes = [deltas[..., :2] * sizes + anchors[..., :2], ops.exp(deltas[..., 2:]) * sizes]
    return convert_format(ops.concatenate(boxes, axis=-1), encoded_format, box_format, *size)
