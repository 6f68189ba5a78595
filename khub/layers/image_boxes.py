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

    def get_config(self):
        config = super().get_config()
        if self.fill_value == -1:
            del config["fill_value"]  # as Keras has it
        return config

    def transform_bounding_boxes(self, bounding_boxes, transformation, training=True):
        return {name: self._fill(part) for name, part in bounding_boxes.items()}

    def _fill(self, part):
        missing = self.max_number - part.shape[1] if part.shape[1] is not None else self.max_number
        borders = [(0, 0), (0, max(missing, 0))] + [(0, 0)] * (len(part.shape) - 2)
        filled = ops.pad(part, borders, constant_values=self.fill_value)
        return filled[:, : self.max_number]
