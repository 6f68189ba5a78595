"""Layers about the bounding boxes of images."""

from khub import ops
from khub.fields import PositiveInt
from khub.layers.image_layer import ImageLayer


class MaxNumBoundingBoxes(ImageLayer):
    """The first `max_number` boxes of each image, filled up with `fill_value`, so that batches fit.

    {"boxes": (batch, count, 4), "labels": (batch, count)}  ->  (batch, max_number, ...)
    """

    max_number: PositiveInt
    fill_value: int = -1
    _always = True
    _unsaid = {**ImageLayer._unsaid, "fill_value": -1}

    def on_bounding_boxes(self, bounding_boxes, transformation):
        return {name: self._fill(part) for name, part in bounding_boxes.items()}

    def _fill(self, part):
        borders = [(0, 0), (0, self.max_number)] + [(0, 0)] * (len(part.shape) - 2)
        filled = ops.pad(part, borders, constant_values=self.fill_value)
        return filled[:, : self.max_number]
