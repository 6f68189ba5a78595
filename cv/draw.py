"""Pictures of what was found: boxes with labels, masks of classes."""

import colorsys

import numpy as np

from khub.utils.bounding_boxes import check_format

from ..presets.images import read_image
from .detection_data import corners


def color(number):
    """The colour of a class, as far as can be from those before it."""
    hue = number * 0.618034 % 1  # the golden ratio fills the circle evenly
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.75)[number % 2]))


def draw_boxes(image, detections, labels=None, bounding_box_format="xyxy"):
    """Return an RGB PIL image with the boxes drawn on it, the most confident one on top.

    image: as `read_image` takes it   detections: of this image, {"boxes": (count, 4), "classes":
    (count,)[, "confidence": (count,)]}, or a batch of one; those of class -1 are padding
    labels: names of the classes, a list or a dict
    """
    from PIL import ImageDraw

    image = read_image(image).copy()
    form = check_format("bounding_box_format", bounding_box_format)
    boxes = np.asarray(detections["boxes"], "float64")
    if boxes.ndim == 3 and len(boxes) != 1:
        raise ValueError(
            f"boxes must be those of one image, (count, 4), got {boxes.shape}; of a batch give "
            "{name: rows[i] for name, rows in detections.items()}."
        )
    boxes, classes = boxes.reshape(-1, 4), np.asarray(detections["classes"]).reshape(-1)
    confidence = np.asarray(detections.get("confidence", np.full(len(classes), np.nan))).reshape(-1)
    sides = corners(boxes, form, *image.size[::-1]).round()
    canvas, width, names = ImageDraw.Draw(image), _width(image), _names(labels)
    for i in np.argsort(confidence, kind="stable"):
        if classes[i] >= 0 and np.isfinite(sides[i]).all():
            low, high = np.sort(sides[i].reshape(2, 2), 0)
            score = "" if np.isnan(confidence[i]) else f" {confidence[i]:.2f}"
            canvas.rectangle((*low, *high), None, color(classes[i]), width)
            _tag(canvas, low, f"{names.get(classes[i], classes[i])}{score}", classes[i], width)
    return image


def draw_mask(image, mask, labels=None, opacity=0.5, background=0):
    """Return an RGB PIL image with the classes of its pixels as colours, their labels beside.

    mask: integers (height, width), of the image's size; `background` and below 0 stay as they are
    """
    from PIL import Image, ImageDraw

    pixels, mask = np.asarray(read_image(image)), np.asarray(mask)
    if mask.shape != pixels.shape[:2]:
        raise ValueError(
            f"mask must have the image's height and width {pixels.shape[:2]}, got {mask.shape}."
        )
    present = [int(n) for n in np.unique(mask) if n >= 0 and n != background]
    pixels = pixels.astype("float32")
    for number in present:
        part = mask == number
        pixels[part] += opacity * (np.asarray(color(number), "float32") - pixels[part])
    image = Image.fromarray(pixels.round().astype("uint8"))
    canvas, width, names = ImageDraw.Draw(image), _width(image), _names(labels)
    place = (0, 0)
    for number in present if labels is not None else ():
        place = (0, _tag(canvas, place, str(names.get(number, number)), number, width))
    return image


def _width(image):
    return max(1, round(sum(image.size) / 500))


def _names(labels):
    return labels if isinstance(labels, dict) else dict(enumerate(labels or ()))


def _tag(canvas, place, text, number, width):
    """Write in the colour of a class, inside the image, and return where the text ends below."""
    from PIL import ImageFont

    font = ImageFont.load_default(10 + 2 * width)
    wide, high = (n + 2 * width for n in canvas.textbbox((0, 0), text, font)[2:])
    x, y = (max(0, min(p, n - m)) for p, n, m in zip(place, canvas.im.size, (wide, high)))
    canvas.rectangle((x, y, x + wide, y + high), color(number))
    canvas.text((x + width, y + width), text, (255,) * 3, font)
    return y + high
