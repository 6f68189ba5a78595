"""Images with what was found on them, and galleries of images."""

import colorsys

import numpy as np

from khub import config, ops
from khub.utils.bounding_boxes import convert_format
from khub.utils.extras import optional


def _host_images(images, data_format, value_range=(0, 255)):
    """Return images of any framework, or a batch of one, as uint8 (batch, height, width, 3)."""
    x = np.asarray(ops.convert_to_numpy(images), "float32")
    x = x[None] if x.ndim == 3 else x
    if (data_format or config.image_data_format()) == "channels_first":
        x = x.transpose(0, 2, 3, 1)
    low, high = value_range
    x = np.clip((x - low) * (255 / (high - low)), 0, 255).round().astype("uint8")
    return np.repeat(x, 3, -1) if x.shape[-1] == 1 else x[..., :3]


def draw_bounding_boxes(
    images, bounding_boxes, bounding_box_format, class_mapping=None, color=(128, 128, 128),
    line_thickness=2, text_thickness=1, font_scale=1.0, data_format=None,
):  # fmt: skip
    """Return images, uint8 (batch, height, width, 3), with boxes and their labels drawn on them.

    bounding_boxes: {"boxes": (batch, count, 4), "labels": (batch, count)[, "confidence"]}; those of
    label -1 are padding.  class_mapping: label -> what is written at its box
    """
    from PIL import Image, ImageDraw, ImageFont

    x, names, color = _host_images(images, data_format), class_mapping or {}, tuple(color)
    found = convert_format(bounding_boxes, bounding_box_format, "xyxy", *x.shape[1:3])
    found = {k: np.asarray(ops.convert_to_numpy(v)) for k, v in found.items()}
    found = {k: v.reshape(len(x), -1, *(4,) * (k == "boxes")) for k, v in found.items()}
    font, stroke = ImageFont.load_default(12 * font_scale), (text_thickness or 1) - 1
    images = [Image.fromarray(pixels) for pixels in x]
    for i, j in np.argwhere(found["labels"] >= 0):
        canvas, box, label = ImageDraw.Draw(images[i]), found["boxes"][i, j], found["labels"][i, j]
        score = f" {found['confidence'][i, j]:.2f}" if "confidence" in found else ""
        canvas.rectangle([*box], None, color, line_thickness)
        text, place = f"{names.get(int(label), int(label))}{score}", tuple(box[:2] + line_thickness)
        canvas.text(place, text, color, font, stroke_width=stroke)
    return np.stack([np.asarray(image) for image in images])


def draw_segmentation_masks(
    images, segmentation_masks, num_classes=None, color_mapping=None, alpha=0.8, blend=True,
    ignore_index=-1, data_format=None,
):  # fmt: skip
    """Return images, uint8 (batch, height, width, 3), with the colours of their pixels' classes.

    segmentation_masks: integers (batch, height, width[, 1]); color_mapping: class -> (red, green,
    blue); alpha: how much the colours cover; blend: False puts them alone; pixels of the class
    `ignore_index` stay
    """
    x = _host_images(images, data_format)
    masks = np.asarray(ops.convert_to_numpy(segmentation_masks)).reshape(x.shape[:3]).astype(int)
    count, share = num_classes or max(int(masks.max()) + 1, 1), alpha if blend else 1.0
    # the golden ratio fills the circle of hues evenly
    hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.85, 1.0) for i in range(count)]
    table = np.multiply(hues, 255)
    for number, color in (color_mapping or {}).items():
        table[number] = color
    painted = x * (1 - share) + table[np.clip(masks, 0, count - 1)] * share
    shown = (masks != ignore_index) & (masks >= 0)
    return np.where(shown[..., None], painted, x).round().astype("uint8")


def plot_image_gallery(
    images, y_true=None, y_pred=None, label_map=None, rows=None, cols=None, value_range=(0, 255),
    scale=2, path=None, show=None, transparent=True, dpi=60, legend_handles=None, data_format=None,
):  # fmt: skip
    """Return a figure of matplotlib with the images side by side, their labels above them.

    y_true, y_pred: a label for each; label_map: label -> name; path: a file that it is written to;
    show: open a window, by default where there is no path.  Needs khub[plot]
    """
    pyplot = optional("matplotlib.pyplot", "plot")
    x, names = _host_images(images, data_format, value_range), label_map or {}
    cols = cols or (-(-len(x) // rows) if rows else int(np.ceil(len(x) ** 0.5)))
    rows = rows or -(-len(x) // cols)
    figure, axes = pyplot.subplots(rows, cols, squeeze=False, figsize=(cols * scale, rows * scale))
    labels = {k: y for k, y in {"true": y_true, "predicted": y_pred}.items() if y is not None}
    for axis in axes.flat:
        axis.axis("off")
    for i, axis in enumerate(axes.flat[: len(x)]):
        axis.imshow(x[i])
        title = [f"{kind}: {names.get(int(y[i]), int(y[i]))}" for kind, y in labels.items()]
        axis.set_title("\n".join(title))
    if legend_handles is not None:
        figure.legend(handles=legend_handles, loc="lower center")
    if path is not None:
        figure.savefig(path, transparent=transparent, dpi=dpi, bbox_inches="tight")
    if show or (show is None and path is None):
        pyplot.show()
    return figure


def plot_bounding_box_gallery(
    images, bounding_box_format, y_true=None, y_pred=None, value_range=(0, 255),
    true_color=(0, 188, 212), pred_color=(255, 235, 59), line_thickness=2, font_scale=1.0,
    text_thickness=None, class_mapping=None, ground_truth_mapping=None, prediction_mapping=None,
    legend=False, legend_handles=None, rows=None, cols=None, data_format=None, **kwargs,
):  # fmt: skip
    """Return `plot_image_gallery` of images with the true boxes and the predicted ones on them."""
    x = _host_images(images, data_format, value_range)
    options = line_thickness, text_thickness, font_scale, "channels_last"
    true, predicted = (
        (y_true, ground_truth_mapping, true_color),
        (y_pred, prediction_mapping, pred_color),
    )
    for boxes, names, color in (true, predicted):
        if boxes is not None:
            names = names or class_mapping
            x = draw_bounding_boxes(x, boxes, bounding_box_format, names, color, *options)
    if legend and legend_handles is None:
        patch = optional("matplotlib.patches", "plot").Patch
        named = {"true": true_color, "predicted": pred_color}
        legend_handles = [patch(color=np.divide(c, 255), label=n) for n, c in named.items()]
    kwargs |= {"rows": rows, "cols": cols, "legend_handles": legend_handles}
    return plot_image_gallery(x, data_format="channels_last", **kwargs)


def plot_segmentation_mask_gallery(
    images, num_classes, value_range=(0, 255), y_true=None, y_pred=None, color_mapping=None,
    blend=True, alpha=0.8, ignore_index=-1, data_format=None, **kwargs,
):  # fmt: skip
    """Return `plot_image_gallery` of each image beside itself with its true, its predicted mask."""
    x = _host_images(images, data_format, value_range)
    options = num_classes, color_mapping, alpha, blend, ignore_index, "channels_last"
    masks = [y for y in (y_true, y_pred) if y is not None]
    shown = np.stack([x, *(draw_segmentation_masks(x, y, *options) for y in masks)], 1)
    kwargs = {"cols": shown.shape[1], "data_format": "channels_last", **kwargs}
    return plot_image_gallery(shown.reshape(-1, *x.shape[1:]), **kwargs)
