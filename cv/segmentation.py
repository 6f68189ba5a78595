"""The task on image networks that gives each pixel a class: training, mean IoU, masks."""

import os

import numpy as np

from khub import ops
from khub.fields import PositiveInt
from khub.losses import SparseCategoricalCrossentropy
from khub.metrics import MeanIoU
from khub.models.functional import Functional
from khub.optimizers import AdamW
from khub.training.data import pack_x_y_sample_weight, unpack_x_y_sample_weight

from ..presets.images import FILTERS, ImagePreprocessor, images_of, object_rows, read_image
from .backbone import ImageBackbone, dtype_policy
from .image_classifier import ImageTask

LEAST_PART = 0.5  # of height and width, of what augmentation cuts out


def read_mask(source, size):
    """Return classes as a PIL image of integers.

    source: a path (the values of a grey image, places in the palette of another) or integers
    (height, width)   size: width and height that it must have
    """
    from PIL import Image

    mask, what = source, "the mask"
    if isinstance(source, (str, os.PathLike)):
        with Image.open(source) as file:
            mask, what = file.copy(), str(source)
    mask = np.asarray(mask)
    if mask.shape != size[::-1] or mask.dtype.kind not in "biu":
        raise ValueError(
            f"{what} must be integers of the image's height and width {size[::-1]}, got "
            f"{mask.dtype} {mask.shape}."
        )
    return Image.fromarray(mask.astype("int32"))


class SegmentationPreprocessor(ImagePreprocessor):
    """Resizes images, and masks (`read_mask`) without mixing classes: int32 (batch, *image_size).

    `augmented` cuts at random out and mirrors half, both alike.
    """

    image_size: tuple = (512, 512)

    def __call__(self, x, y=None, sample_weight=None):
        return self._made(x, y, sample_weight, lambda size: ((0, 0, *size), False))

    def augmented(self, x, y=None, sample_weight=None):
        random = np.random.Generator(np.random.Philox(key=[self.seed, self._calls]))
        self._calls += 1

        def draw(size):
            part = random.uniform(LEAST_PART, 1) * np.asarray(size)
            start = random.uniform(0, size - part)
            return (*start, *(start + part)), random.random() < 0.5

        return self._made(x, y, sample_weight, draw)

    def _made(self, x, y, sample_weight, draw):
        images, masks = [], []
        for i, source in enumerate(images_of(x)):
            image = read_image(source)
            box, mirrored = draw(image.size)
            pairs = [(image, self.interpolation)]
            pairs += [] if y is None else [(read_mask(y[i], image.size), "nearest")]
            for (item, interpolation), kept in zip(pairs, (images, masks)):
                item = item.resize(self.image_size[::-1], FILTERS[interpolation], box)
                kept.append(np.asarray(item.transpose(0) if mirrored else item))
        y = None if y is None else np.stack(masks)
        return pack_x_y_sample_weight(self.scaled(np.stack(images)), y, sample_weight)


class ImageSegmenter(ImageTask):
    """One of `num_classes` for each pixel. Calling it gives logits (batch, height, width, classes).

    fit(x, y), evaluate(x, y) with the mean IoU, predict(x) -> the classes of each image, int32 of
    its height and width   x: paths, PIL images or arrays of 0..255   y: masks, see `read_mask`;
    with preprocessor=None both as the network takes them   ignore_class: in masks, of what is
    neither learnt nor counted
    """

    backbone: ImageBackbone
    num_classes: PositiveInt
    preprocessor: object = None
    labels: tuple = None
    ignore_class: int = 255

    preprocessor_class = SegmentationPreprocessor

    def setup(self):
        self._check_labels()
        self.build(None)
        self.compile()

    def build(self, shape=None):
        with dtype_policy(self.dtype_policy):
            logits = self.draw_head(self.backbone.feature_pyramid().output)
        self.network = Functional(self.backbone.input, logits, name="network")

    def draw_head(self, levels):
        """Return symbolic logits, channels last, from {"P2": symbolic features, ...}."""
        raise NotImplementedError(f"{type(self).__name__} does not define draw_head().")

    def compile(self, optimizer="auto", loss="auto", *, metrics="auto", **options):
        """As `Model.compile`; "auto" is AdamW at 1e-4, cross-entropy of logits, mean IoU."""
        kept = {"ignore_class": self.ignore_class}
        overlap = MeanIoU(self.num_classes, "mean_iou", sparse_y_pred=False, **kept)
        super().compile(
            AdamW(1e-4) if optimizer == "auto" else optimizer,
            SparseCategoricalCrossentropy(from_logits=True, **kept) if loss == "auto" else loss,
            metrics=[overlap] if metrics == "auto" else metrics,
            **options,
        )

    def _data(self, x, y=None, fitting=False):
        return self._rows(x), object_rows(y)

    def _batches(self, source):
        host = self.preprocessor
        prepare = host.augmented if self._augments else host

        def checked(*batch):
            x, y, weight = unpack_x_y_sample_weight(prepare(*batch))
            found = set() if y is None else set(np.unique(y).tolist())
            if wrong := sorted(found - {*range(self.num_classes), self.ignore_class}):
                raise ValueError(
                    f"Masks must have classes of 0 .. {self.num_classes - 1} or ignore_class="
                    f"{self.ignore_class}, got {wrong[:5]}."
                )
            return pack_x_y_sample_weight(x, y, weight)

        return super()._batches(source, checked)

    def predict_step(self, data):
        return ops.argmax(super().predict_step(data), -1)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """Return the classes of the pixels: a list of (height, width), int32, each of its image.

        With preprocessor=None one array (batch, height, width).
        """
        images = x if self.preprocessor is None else images_of(x)
        found = super().predict(self._rows(images), batch_size, verbose, steps, callbacks)
        if self.preprocessor is None:
            return found
        masks = [read_mask(mask, mask.shape[::-1]) for mask in found]
        sizes = [read_image(image).size for image in images[: len(masks)]]
        return [np.asarray(mask.resize(size, 0)) for mask, size in zip(masks, sizes)]
