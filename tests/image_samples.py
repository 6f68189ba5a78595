"""Every image layer: arguments, and on which parts of the data Keras does something else."""

import numpy as np

HEIGHT, WIDTH, COUNT = 12, 16, 3
SHAPE = (COUNT, HEIGHT, WIDTH, 3)

GEOMETRY = {  # class -> (arguments, parts that differ in Keras; forms: boxes other than xyxy)
    "Resizing": [
        (dict(height=8, width=20), ""),
        (dict(height=6, width=8, interpolation="nearest"), ""),
        (dict(height=24, width=20, interpolation="bicubic"), "images"),
        (dict(height=5, width=7, antialias=True), ""),
        (dict(height=8, width=8, crop_to_aspect_ratio=True), "bounding_boxes"),
        (dict(height=8, width=8, pad_to_aspect_ratio=True, fill_value=9), "bounding_boxes"),
    ],
    "CenterCrop": [
        (dict(height=7, width=10), ""),
        (dict(height=12, width=3), ""),
        (dict(height=16, width=16), "segmentation_masks"),  # mixes classes
    ],
    "RandomCrop": [
        (dict(height=7, width=10, seed=1), "bounding_boxes"),
        (dict(height=12, width=16, seed=2), ""),
    ],
    "RandomFlip": [
        (dict(mode="horizontal", seed=1), ""),
        (dict(mode="vertical", seed=1), ""),
        (dict(seed=5), ""),
    ],
    "RandomRotation": [
        (dict(factor=0.2, fill_mode="constant", fill_value=3.0, seed=1), "forms"),
        (dict(factor=(0.1, 0.2), fill_mode="nearest", seed=1), "forms"),
        (dict(factor=0.5, interpolation="nearest", seed=1), "forms"),
    ],
    "RandomZoom": [
        (dict(height_factor=0.4, fill_mode="constant", fill_value=3.0, seed=1), ""),
        (dict(height_factor=(-0.3, 0.2), width_factor=(0.1, 0.5), fill_mode="nearest"), ""),
        (dict(height_factor=0.2, width_factor=0.1), ""),
    ],
    "RandomTranslation": [
        (dict(height_factor=0.4, width_factor=0.3, fill_mode="constant", fill_value=3.0), ""),
        (dict(height_factor=(-0.3, 0.2), width_factor=(0.1, 0.5), fill_mode="nearest"), ""),
        (dict(height_factor=0.2, width_factor=0.1), ""),
    ],
    "RandomShear": [
        (dict(x_factor=0.4, fill_mode="constant", fill_value=3.0), "bounding_boxes"),
        (dict(x_factor=(0.1, 0.2), y_factor=0.5, fill_mode="nearest"), "bounding_boxes"),
        (dict(y_factor=0.5), "bounding_boxes"),
    ],
    "RandomPerspective": [
        (dict(scale=0.3, fill_value=3.0), "forms"),
        (dict(factor=(0.4, 0.8), interpolation="nearest", scale=0.1), "forms"),
    ],
    "RandomElasticTransform": [
        (dict(fill_mode="constant"), "all"),
        (dict(factor=(0.5, 1.0), scale=(0.2, 0.4), fill_mode="nearest"), "all"),
    ],
    "MaxNumBoundingBoxes": [(dict(max_number=3), ""), (dict(max_number=1), "")],
}


def data(boxes="xyxy", masks=True, seed=0, dtype="float32"):
    """A batch: images, labels, boxes of the given form and masks."""
    random = np.random.RandomState(seed)
    corner = random.uniform(0, 7, (COUNT, 2, 2))
    sides = np.concatenate([corner, corner + random.uniform(1, 4, corner.shape)], -1)
    if boxes == "yxyx":
        sides = sides[..., [1, 0, 3, 2]]
    if boxes == "xywh":
        sides[..., 2:] -= sides[..., :2]
    if boxes == "rel_xyxy":
        sides /= [WIDTH, HEIGHT, WIDTH, HEIGHT]
    result = {
        "images": random.uniform(0, 255, SHAPE).astype(dtype),
        "labels": np.arange(COUNT, dtype="float32"),
        "bounding_boxes": {
            "boxes": sides.astype("float32"),
            "labels": np.array([[1, 2]] * COUNT, "float32"),
        },
    }
    if masks:
        masks = np.kron(random.randint(0, 9, (COUNT, HEIGHT // 4, WIDTH // 4)), np.ones((4, 4)))
        result["segmentation_masks"] = masks[..., None].astype("int32")
    return result
