"""Images and boxes as detectors take them: letterboxed, augmented, padded. On the host."""

import math
import os

import numpy as np

from khub.fields import PositiveInt, Rate
from khub.training.data import pack_x_y_sample_weight
from khub.utils.bounding_boxes import check_format, from_corners, to_corners

from ..presets.images import FILTERS, ImagePreprocessor, images_of, read_image

GREY = (114, 114, 114)  # what lies around an image
LEAST_PART, LEAST_SIDE = 0.1, 2  # of a box that augmentation leaves: of its area, in pixels


def letterbox(image, size):
    """Return an RGB PIL image of `size` with the whole image in it, its scale, (left, top).

    image: as `read_image` takes it; its point (x, y) comes to (x * scale + left, y * scale + top)
    size: height and width
    """
    from PIL import Image

    image = read_image(image)
    scaled, scale = _scaled(image, size)
    left, top = ((n - m) // 2 for n, m in zip(size[::-1], scaled.size))
    canvas = Image.new("RGB", size[::-1], GREY)
    canvas.paste(scaled, (left, top))
    return canvas, scale, (left, top)


def _scaled(image, size):
    """The image as large as `size` has room for, and the scale."""
    scale = min(n / m for n, m in zip(size[::-1], image.size))
    inner = [max(1, math.floor(n * scale + 1e-6)) for n in image.size]
    # less than a pixel at the right and below is cut off, so that both sides have one scale
    part = (0, 0, *(min(n, m / scale) for n, m in zip(image.size, inner)))
    whole = image.size == tuple(inner)
    return image if whole else image.resize(inner, FILTERS["bilinear"], part), scale


class DetectionPreprocessor(ImagePreprocessor):
    """Letterboxes images, moves their boxes along, pads these with -1 to `max_boxes` an image.

    x: paths, PIL images or arrays of 0..255; y: {"boxes", "classes"}, for each image (count, 4) in
    `bounding_box_format` and (count,), or padded with classes of -1; more keys, with a number for
    each object, are padded alike  ->  float32 (batch, *image_size, 3), {"boxes": float32
    (batch, m, 4) in xyxy of the prepared images, "classes": int32 (batch, m), "frames": see
    `prepare`}; m: a multiple of max_boxes. What lies outside of an image is cut off.
    Raises ValueError, naming the image, for boxes of NaN, without area or wholly outside.

    What `augmented` draws: mosaic, flip: the part of the images that is put together of four
    (arXiv:2004.10934), that is mirrored   degrees, shear: up to which it is turned, leant
    translate: up to which part of the size it is moved   zoom: by which part it grows or shrinks
    hue, saturation, value: up to which part they change
    A box goes when less than a tenth of it, or of its sides less than 2 pixels, is left.
    """

    image_size: tuple = (640, 640)
    bounding_box_format: str = "xyxy"
    max_boxes: PositiveInt = 32
    mosaic: Rate = 1.0
    degrees: float = 0.0
    translate: Rate = 0.1
    zoom: Rate = 0.5
    shear: float = 0.0
    hue: Rate = 0.015
    saturation: Rate = 0.7
    value: Rate = 0.4
    flip: Rate = 0.5

    def setup(self):
        super().setup()
        self.bounding_box_format = check_format("bounding_box_format", self.bounding_box_format)

    def __call__(self, x, y=None, sample_weight=None):
        images, frames = self.prepare(x)
        y = None if y is None else self.labels(y, frames, x) | {"frames": frames}
        return pack_x_y_sample_weight(images, y, sample_weight)

    def labels(self, y, frames, x):
        """Return the objects of images x, checked, padded, as they lie in the prepared images."""
        found = [self._objects(y, i, frame[3:], x) for i, frame in enumerate(frames)]
        moved = [boxes * frame[0] + [*frame[1:3]] * 2 for frame, (boxes, _) in zip(frames, found)]
        return self._padded(moved, [more for _, more in found])

    def prepare(self, x):
        """Return the prepared images and their frames, which `restored` takes.

        frames: float32 (batch, 5), scale, left, top, height and width of the image before
        """
        images = [read_image(image) for image in images_of(x)]
        boxed = [letterbox(image, self.image_size) for image in images]
        frames = [(s, *place, *image.size[::-1]) for image, (_, s, place) in zip(images, boxed)]
        return self._stacked([image for image, *_ in boxed]), np.asarray(frames, "float32")

    def _stacked(self, images):
        return self.scaled(np.stack([np.asarray(image) for image in images]))

    def restored(self, detections, frames):
        """Return detections in prepared images as they lie in the images before, cut off there.

        detections: {"boxes": (batch, k, 4) in xyxy, "classes", ...} -> boxes in the preprocessor's
        bounding_box_format; those of class -1 stay
        """
        frames, form = frames[:, None], self.bounding_box_format
        boxes, classes = (np.asarray(detections[name]) for name in ("boxes", "classes"))
        found = (boxes - frames[..., [1, 2, 1, 2]]) / frames[..., :1]
        found = np.moveaxis(np.clip(found, 0, frames[..., [4, 3, 4, 3]]), -1, 0)
        found = np.stack(from_corners(*found, form.removeprefix("rel_")), -1)
        found = found / _unit(form, frames[..., 3], frames[..., 4])
        found = np.where(classes[..., None] < 0, boxes, found).astype("float32")
        return {**detections, "boxes": found}

    # --- objects ---------------------------------------------------------------------------------
    def _objects(self, y, i, size, x):
        """Boxes (count, 4) of image i in pixels and xyxy, {"classes": (count,), ...}; checked."""
        source, form = images_of(x)[i], self.bounding_box_format
        where = source if isinstance(source, (str, os.PathLike)) else f"image {i} of the batch"
        if not isinstance(y, dict) or not {"boxes", "classes"} <= y.keys():
            raise ValueError(f'Labels must be {{"boxes": ..., "classes": ...}}, got {y!r:.80}.')
        boxes = np.asarray(y["boxes"][i], "float64").reshape(-1, 4)
        more = {name: np.asarray(y[name][i]).reshape(-1) for name in y if name != "boxes"}
        counts = {name: len(values) for name, values in more.items()}
        if {*counts.values()} != {len(boxes)}:
            raise ValueError(f"{where}: {len(boxes)} boxes but {counts}.")
        there = more["classes"] != -1
        boxes, more = boxes[there], {name: values[there] for name, values in more.items()}
        if ((classes := more["classes"]) != np.floor(classes)).any() or (classes < 0).any():
            raise ValueError(f"{where}: classes must be whole numbers from 0, got {classes}.")
        found = corners(boxes, form, *size)
        cut = np.clip(found, 0, [*size[::-1]] * 2)
        no_area, outside = ((box[:, 2:] <= box[:, :2]).any(-1) for box in (found, cut))
        rules = {"is not finite": ~np.isfinite(boxes).all(-1), "has no area": no_area}
        rules[f"lies outside of height {size[0]:.0f}, width {size[1]:.0f}"] = outside
        for text, broken in rules.items():
            if broken.any():
                k = broken.argmax()
                raise ValueError(f"{where}: box {k} {text}: {boxes[k].tolist()} in {form}.")
        return cut, more

    def _padded(self, boxes, more):
        """Labels of the batch, from those of each image."""
        steps = math.ceil(max(map(len, boxes)) / self.max_boxes)
        shape = len(boxes), max(1, steps) * self.max_boxes
        rows = {name: np.full(shape, -1, "float32") for name in more[0]}
        rows["classes"] = np.full(shape, -1, "int32")
        rows["boxes"] = np.full((*shape, 4), -1, "float32")
        for i, own in enumerate(boxes):
            for name, values in {"boxes": own, **more[i]}.items():
                rows[name][i, : len(own)] = values
        return rows

    # --- augmentation ----------------------------------------------------------------------------
    def augmented(self, x, y=None, sample_weight=None):
        """As a call, but each image and its boxes are changed at random."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, self._calls]))
        self._calls += 1
        x, items = images_of(x), []
        given = {"boxes": [[]] * len(x), "classes": [[]] * len(x)} if y is None else y
        for i, source in enumerate(x):
            image = read_image(source)
            boxes, more = self._objects(given, i, image.size[::-1], x)
            single = more.get("crowd", 0 * more["classes"]) <= 0  # of a crowd nothing is learnt
            items.append((image, boxes[single], more["classes"][single]))
        images, boxes, classes = zip(*[self._drawn(i, items, random) for i in range(len(items))])
        y = None if y is None else self._padded(boxes, [{"classes": row} for row in classes])
        return pack_x_y_sample_weight(self._stacked(images), y, sample_weight)

    def _drawn(self, i, items, random):
        if random.random() < self.mosaic:
            others = random.integers(len(items), size=3)
            image, boxes, classes = self._together([items[k] for k in (i, *others)], random)
        else:
            image, boxes, classes = items[i]
            image, scale, place = letterbox(image, self.image_size)
            boxes = boxes * scale + [*place] * 2
        image, boxes, kept = self._moved(image, boxes, random)
        image = self._colored(image, random)
        if random.random() < self.flip:
            image = image.transpose(0)  # left and right change
            boxes[:, [0, 2]] = image.size[0] - boxes[:, [2, 0]]
        return image, boxes, classes[kept]

    def _together(self, four, random):
        """An image of double size, of four that meet in a point around its centre."""
        from PIL import Image

        height, width = self.image_size
        canvas = Image.new("RGB", (2 * width, 2 * height), GREY)
        x, y = (int(random.integers(n // 2, n + n // 2 + 1)) for n in (width, height))
        boxes = []
        for k, (image, own, _) in enumerate(four):
            scaled, scale = _scaled(image, self.image_size)
            place = (x if k % 2 else x - scaled.size[0], y if k // 2 else y - scaled.size[1])
            canvas.paste(scaled, place)
            boxes.append(own * scale + [*place] * 2)
        return canvas, np.concatenate(boxes), np.concatenate([classes for *_, classes in four])

    def _moved(self, image, boxes, random):
        """Turned, leant, scaled around the centre and moved to `image_size`; which boxes remain."""
        angle, *lean = np.radians(random.uniform(-1, 1, 3) * [self.degrees, *[self.shear] * 2])
        scale = random.uniform(1 - self.zoom, 1 + self.zoom)
        size = np.asarray(self.image_size[::-1])
        center = size * random.uniform(0.5 - self.translate, 0.5 + self.translate, 2)
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = scale * np.asarray([[1, np.tan(lean[0])], [np.tan(lean[1]), 1]]) @ turn
        before = np.asarray(image.size) / 2
        back = np.linalg.inv(matrix)  # Pillow asks where a pixel comes from
        data = np.column_stack([back, before - back @ center]).ravel()
        image = image.transform(tuple(size), 0, tuple(data), FILTERS["bilinear"], fillcolor=GREY)
        whole = (boxes[:, 2:] - boxes[:, :2]).prod(-1) * abs(np.linalg.det(matrix))
        boxes = np.clip(boxes, 0, [*before * 2] * 2)  # a mosaic has cut images off
        places = (boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] - before) @ matrix.T + center
        cut = np.clip(np.concatenate([places.min(1), places.max(1)], -1), 0, [*size] * 2)
        sides = cut[:, 2:] - cut[:, :2]
        kept = (sides >= LEAST_SIDE).all(-1) & (sides.prod(-1) > LEAST_PART * whole)
        return image, cut[kept], kept

    def _colored(self, image, random):
        gains = 1 + random.uniform(-1, 1, 3) * [self.hue, self.saturation, self.value]
        if (gains == 1).all():
            return image
        shades = np.arange(256) * gains[:, None]
        table = np.concatenate([shades[0] % 256, np.clip(shades[1:], 0, 255).ravel()])
        return image.convert("HSV").point(table.astype(int).tolist()).convert("RGB")


def corners(boxes, form, height, width):
    """Return boxes (..., 4) of any form as xyxy in pixels."""
    parts = np.moveaxis(boxes * _unit(form, height, width), -1, 0)
    return np.stack(to_corners(parts, form.removeprefix("rel_")), -1)


def _unit(form, height, width):
    """What one coordinate of a form means in pixels, each of the four."""
    if not form.startswith("rel_"):
        return 1.0
    return np.stack([height, width] * 2 if form[-4:-2] == "yx" else [width, height] * 2, -1)
