"""RetinaNet: one stage of anchors on a pyramid, the focal loss. Lin et al. 2017, arXiv:1708.02002.

The levels, anchors and names of weights are torchvision's, whose files load_weights opens.
"""

import math
from functools import partial

import numpy as np

from khub import initializers, layers, ops
from khub.fields import PositiveInt, Rate
from khub.utils.bounding_boxes import compute_iou, decode_deltas_to_boxes, encode_box_to_deltas

from ..presets import Family, register
from .backbone import AnyBackbone
from .detection import ObjectDetector
from .parts import channels_last, conv, width_of

SIDES = (32, 64, 128, 256, 512)  # of the anchors of the levels P3 to P7, pixels
SCALES, RATIOS = (1, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1, 2)  # height / width
ANCHORS = len(SCALES) * len(RATIOS)
NEGATIVE, POSITIVE = 0.4, 0.5  # an anchor's IoU with its object: below, from (section 4.1)
ALPHA, GAMMA, BETA = 0.25, 2.0, 1 / 9  # of the focal loss (equation 5), of the smooth L1
PRIOR = 0.01  # of an object, what the scores start from
LARGEST = math.log(1000 / 16)  # growth of an anchor's side


def anchors(size):
    """Return the anchors (n, 4) of all levels in images of this height and width."""
    found = []
    for level, side in enumerate(SIDES, 3):
        grid = [math.ceil(n / 2**level) for n in size]
        rows, columns = (np.arange(n) * (m // n) for n, m in zip(grid, size))
        places = np.stack([*np.meshgrid(columns, rows)] * 2, -1).reshape(-1, 1, 4)
        sides = np.asarray([int(side * scale) for scale in SCALES])
        wide, high = (np.outer(np.power(RATIOS, p), sides).ravel() for p in (-0.5, 0.5))
        around = np.round(np.stack([-wide, -high, wide, high], -1) / 2)
        found.append((places + around).reshape(-1, 4))
    return np.concatenate(found).astype("float32")


def pyramid(levels, width):
    """Return P3 to P7 (`width` channels) of C3, C4 and C5.  Lin et al. 2016, arXiv:1612.03144"""
    start = "backbone.fpn"
    lay = partial(conv, width=width, bias=True)
    inner = [lay(x, name=f"{start}.inner_blocks.{i}.0") for i, x in enumerate(levels)]
    for i in (1, 0):
        inner[i] = layers.Add()([inner[i], layers.UpSampling2D(2)(inner[i + 1])])
    lay = partial(lay, kernel=3)
    found = [lay(x, name=f"{start}.layer_blocks.{i}.0") for i, x in enumerate(inner)]
    p6 = lay(found[-1], stride=2, name=f"{start}.extra_blocks.p6")
    return [*found, p6, lay(layers.ReLU()(p6), stride=2, name=f"{start}.extra_blocks.p7")]


def head(levels, depth, units, name, last, bias=0.0):
    """Return (b, anchors of all levels, units) of convolutions that all levels share."""
    options = dict(padding="same", kernel_initializer=initializers.RandomNormal(0, 0.01))
    lay, start = partial(layers.Conv2D, **options), initializers.Constant(bias)
    names = [f"head.{name}.conv.{i}.0" for i in range(depth)]
    tower = [lay(width_of(levels[0]), 3, activation="relu", name=each) for each in names]
    tower.append(lay(ANCHORS * units, 3, bias_initializer=start, name=f"head.{name}.{last}"))
    found = []
    for x in levels:
        for layer in tower:
            x = layer(x)
        found.append(layers.Reshape((-1, units))(channels_last(x)))
    return layers.Concatenate(1)(found)


class RetinaNetDetector(ObjectDetector):
    """Objects in images, on the levels P3, P4 and P5 of any application.

    Height and width must be multiples of 32   width: of the pyramid and the heads   depth: of the
    heads, in layers; more: see `ObjectDetector`
    """

    iou_threshold: Rate = 0.5
    width: PositiveInt = 256
    depth: PositiveInt = 4

    LOSSES = ("class_loss", "box_loss")

    def draw_heads(self, levels):
        levels = pyramid([*levels.values()], self.width)
        prior = -math.log((1 - PRIOR) / PRIOR)
        named = {"classes": (self.num_classes, "classification_head", "cls_logits", prior)}
        named["boxes"] = (4, "regression_head", "bbox_reg")
        return {name: head(levels, self.depth, *rest) for name, rest in named.items()}

    def decode(self, raw, size):
        deltas = ops.minimum(raw["boxes"], [*[math.inf] * 2, *[LARGEST] * 2])
        boxes = decode_deltas_to_boxes(anchors(size), deltas, "xyxy", "xyxy", "center_xywh")
        ends = ops.convert_to_tensor([*size[::-1]] * 2, "float32")
        return ops.minimum(ops.maximum(boxes, 0.0), ends), ops.sigmoid(raw["classes"])

    def part_losses(self, raw, boxes, classes, size):
        places = ops.convert_to_tensor(anchors(size))
        there = ops.expand_dims(classes >= 0, 1)
        iou = ops.where(there, compute_iou(places, boxes, "xyxy"), -1.0)  # (b, n, m)
        closest = ops.max(iou, 1, keepdims=True)  # the best anchors of each object are its own
        own = ops.logical_and(iou > closest - 1e-6, closest > 0)
        nearest, best = ops.argmax(iou, -1), ops.max(iou, -1)
        positive = ops.logical_or(best >= POSITIVE, ops.any(own, -1))
        judged = ops.cast(ops.logical_or(positive, best < NEGATIVE), "float32")
        count = ops.maximum(ops.sum(ops.cast(positive, "float32"), 1), 1.0)
        kinds = ops.where(positive, ops.take_along_axis(classes, nearest, 1), -1)
        wanted = ops.one_hot(kinds, self.num_classes, dtype="float32")  # -1: all 0
        focal = focal_loss(raw["classes"], wanted) * judged
        boxes = ops.take_along_axis(boxes, nearest[..., None], 1)
        deltas = encode_box_to_deltas(places, boxes, "xyxy", "xyxy", "center_xywh")
        far = ops.abs(raw["boxes"] - deltas)
        far = ops.where(far < BETA, far * far / (2 * BETA), far - BETA / 2)
        far = ops.where(positive, ops.sum(far, -1), 0.0)
        parts = {"class_loss": focal, "box_loss": far}
        return {name: ops.mean(ops.sum(part, 1) / count) for name, part in parts.items()}

    @property
    def backbone_prefix(self):
        """What stands before the names of the backbone's weights."""
        own = self.backbone
        return "backbone.body" if own.reference == "torchvision" else own.reference_prefix


def focal_loss(logits, wanted):
    """Return the sum over classes, the last axis, of the cross-entropy weighted by what is missed.

    logits, wanted (0 or 1): (..., classes)   arXiv:1708.02002, equation 5
    """
    missed = ops.where(wanted > 0, -logits, logits)
    weight = ops.where(wanted > 0, ALPHA, 1 - ALPHA)
    return ops.sum(weight * ops.sigmoid(missed) ** GAMMA * ops.softplus(missed), -1)


TASKS = {"ObjectDetector": RetinaNetDetector}
register(Family("retinanet", ("khub_retinanet",), AnyBackbone, tasks=TASKS))
