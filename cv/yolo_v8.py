"""YOLOv8, a detector of one stage without anchor boxes, after its published descriptions.

Cross stage partial networks, arXiv:1911.11929; spatial pyramid pooling, arXiv:1406.4729; path
aggregation, arXiv:1803.01534; sides of boxes as distributions, arXiv:2006.04388.
"""

import logging
import math

from khub import initializers, layers, ops, tree
from khub.fields import PositiveInt

from ..presets import Family, register
from ..presets.tensors import TORCH_SUFFIXES
from . import parts
from .backbone import ImageBackbone, Reference
from .detection import ObjectDetector, image_size
from .detection_loss import anchor_points, around, check_size, distances, losses

log = logging.getLogger("khub")

SIZES = {  # depth, width, most channels: as published
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.50, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.00, 1.00, 512),
    "x": (1.00, 1.25, 512),
}
WIDTHS, REPEATS = (64, 128, 256, 512, 1024), (3, 6, 6, 3)
VARIANTS = {
    f"yolo_v8_{size}": dict(
        widths=tuple(int(min(n, most) * width) for n in WIDTHS),
        repeats=tuple(max(1, round(n * depth)) for n in REPEATS),
    )
    for size, (depth, width, most) in SIZES.items()
}
STRIDES = {"P3": 8, "P4": 16, "P5": 32}
GAINS = {"box_loss": 7.5, "class_loss": 0.5, "distance_loss": 1.5}
PRIOR = -math.log(99.0)  # a point stands for a class with 1 %: arXiv:1708.02002, section 4.1
LICENCE = (
    "%s: the published YOLOv8 weights, and what was trained from them, stand under the AGPL-3.0 "
    "unless their owner says otherwise; khub's Apache-2.0 does not cover them."
)


def unit(x, width, kernel=1, stride=1, name=None):
    """A convolution, normalized, SiLU."""
    x = parts.conv(x, width, kernel, stride, name=f"{name}.conv")
    return parts.active(parts.batch_norm(x, f"{name}.bn", 1e-3, 0.97), "silu")


def joined(ways):
    return layers.Concatenate(parts.channel_axis())(ways)


def c2f(x, width, repeats, shortcut, name):
    """Half of the channels goes through `repeats` blocks, whose outputs are all kept.

    shortcut: whether a block adds to what it takes
    """
    ways = ops.split(unit(x, width, name=f"{name}.cv1"), 2, parts.channel_axis())
    for i in range(repeats):
        y = unit(ways[-1], width // 2, 3, name=f"{name}.m.{i}.cv1")
        y = unit(y, width // 2, 3, name=f"{name}.m.{i}.cv2")
        ways = [*ways, layers.Add()([ways[-1], y]) if shortcut else y]
    return unit(joined(ways), width, name=f"{name}.cv2")


def pyramid_pooling(x, width, name):
    """Maxima over 5, 9 and 13 pixels beside x: each pools what the one before found."""
    ways = [unit(x, width // 2, name=f"{name}.cv1")]
    for _ in range(3):
        ways.append(layers.MaxPooling2D(5, 1, "same")(ways[-1]))
    return unit(joined(ways), width, name=f"{name}.cv2")


class YOLOV8Backbone(ImageBackbone):
    """Five halvings, each but the first with a C2f block after it, then pooling in a pyramid.

    images (batch, height, width, 3) of 0..1 -> features (batch, height / 32, width / 32, widths[4])
    widths: of the five stages   repeats: blocks in the C2f of the last four
    """

    widths: tuple
    repeats: tuple

    VARIANTS = VARIANTS
    REFERENCES = {"public": Reference(ignored=("model.1[0-9].*", "model.2[0-9].*"))}  # the heads
    reference: str = "public"

    def draw(self, image):
        x = unit(image, self.widths[0], 3, 2, "model.0")
        for i, (width, repeats) in enumerate(zip(self.widths[1:], self.repeats, strict=True)):
            x = unit(x, width, 3, 2, f"model.{2 * i + 1}")
            x = c2f(x, width, repeats, True, f"model.{2 * i + 2}")
        return pyramid_pooling(x, self.widths[-1], "model.9")

    @classmethod
    def config_from_reference(cls, config):
        name = config.get("architecture")
        if name not in cls.VARIANTS:
            raise ValueError(f"architecture is {name!r}; one of {', '.join(cls.VARIANTS)} is read.")
        return {**cls.VARIANTS[name], "architecture": name}

    def reference_config(self):
        own = {} if self.architecture is None else {"architecture": self.architecture}
        return {"model_type": "yolo_v8"} | own


class YOLOV8Detector(ObjectDetector):
    """Boxes of objects by YOLOv8; see `ObjectDetector`.

    Calling it gives {"boxes": (batch, n, 4 * bins), "classes": (batch, n, num_classes)}, logits, of
    the n = height * width * (1/64 + 1/256 + 1/1024) points of prepared images.
    neck: channels at the strides 8, 16 and 32, and blocks in each C2f, of the part that joins the
    levels; None: the backbone's, or those of size s on a backbone that is not YOLO's
    bins: whole distances from a point to a side, in strides, that the head tells apart
    """

    preprocessor: object = None
    neck: tuple = None
    bins: PositiveInt = 16

    LOSSES = tuple(GAINS)
    ignored = ("model.22.dfl.*",)  # the numbers 0 .. bins - 1

    def setup(self):
        if self.neck is None:
            own = isinstance(self.backbone, YOLOV8Backbone)
            like = vars(self.backbone) if own else VARIANTS["yolo_v8_s"]
            self.neck = (*like["widths"][2:], like["repeats"][0])
        self.neck = tuple(self.neck)
        if len(self.neck) != 4:
            raise ValueError(f"neck must be three widths and the blocks of a C2f, got {self.neck}.")
        super().setup()

    def draw_heads(self, levels):
        *widths, repeats = self.neck
        p3, p4, p5 = (levels[level] for level in STRIDES)

        def merge(x, other, width, number):
            return c2f(joined([x, other]), width, repeats, False, f"model.{number}")

        def raised(x):
            return layers.UpSampling2D()(x)

        middle = merge(raised(p5), p4, widths[1], 12)
        small = merge(raised(middle), p3, widths[0], 15)
        x = unit(small, widths[0], 3, 2, "model.16")
        medium = merge(x, middle, widths[1], 18)
        x = unit(medium, widths[1], 3, 2, "model.19")
        features = small, medium, merge(x, p5, widths[2], 21)
        side, score = (
            max(16, widths[0] // 4, 4 * self.bins),
            max(widths[0], min(self.num_classes, 100)),
        )
        return {
            "boxes": self.draw_head(features, side, 4 * self.bins, "model.22.cv2", 1.0),
            "classes": self.draw_head(features, score, self.num_classes, "model.22.cv3", PRIOR),
        }

    def draw_head(self, features, width, outputs, name, start):
        """Return what one branch says at the points of all levels: (batch, n, outputs)."""
        found = []
        for i, x in enumerate(features):
            for j in range(2):
                x = unit(x, width, 3, name=f"{name}.{i}.{j}")
            bias = initializers.Constant(start)
            x = layers.Conv2D(outputs, 1, bias_initializer=bias, name=f"{name}.{i}.2")(x)
            found.append(layers.Reshape((-1, outputs))(parts.channels_last(x)))
        return layers.Concatenate(1)(found)

    def call(self, inputs, training=None):
        check_size(image_size(tree.flatten(inputs)[0]), STRIDES.values())
        return super().call(inputs, training)

    def part_losses(self, raw, boxes, classes, size):
        points, strides = anchor_points(size, STRIDES.values())
        found = losses(raw, points, strides, boxes, classes, self.bins)
        return {name: GAINS[name] * value for name, value in found.items()}

    def decode(self, raw, size):
        points, strides = anchor_points(size, STRIDES.values())
        raw = {name: ops.cast(x, "float32") for name, x in raw.items()}
        boxes = around(points, distances(raw["boxes"], self.bins) * strides)
        return boxes, ops.sigmoid(raw["classes"])

    def load_weights(self, filepath):
        """Load a file of YOLOv8's public names (.safetensors, .pt, .pth), strictly.

        Such files of others often stand under the AGPL-3.0 or a commercial licence: see theirs.
        """
        if str(filepath).endswith(TORCH_SUFFIXES):
            log.warning(LICENCE, filepath)
        super().load_weights(filepath)


register(
    Family(
        name="yolo_v8",
        model_types=("yolo_v8",),
        backbone=YOLOV8Backbone,
        tasks={"ObjectDetector": YOLOV8Detector},
        variants=tuple(VARIANTS),
    )
)
