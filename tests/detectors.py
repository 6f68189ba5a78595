"""Coloured rectangles to find, and a detector small enough to learn them in a test."""

import numpy as np

from khub import cv
from khub.cv.detection_data import DetectionPreprocessor

COLOURS = [(250, 20, 40), (20, 230, 60)]


def rectangles(count, seed=0, sides=(60, 100)):
    """Images of different sizes, {"boxes", "classes"} of what is in them; one has nothing."""
    random, images, boxes, classes = np.random.default_rng(seed), [], [], []
    for number in range(count):
        height, width = random.integers(*sides, 2)
        image = random.integers(0, 80, (height, width, 3)).astype("uint8")
        own = []
        for _ in range(0 if number == count - 1 else random.integers(1, 3)):
            wide, high = random.integers(22, 48, 2)
            left, top = random.integers(0, width - wide), random.integers(0, height - high)
            if (image[top : top + high, left : left + wide] > 80).any():
                continue  # none hides another
            own.append((left, top, left + wide, top + high, random.integers(2)))
            image[top : top + high, left : left + wide] = COLOURS[own[-1][4]]
        own = np.asarray(own, "float32").reshape(-1, 5)
        images.append(image)
        boxes.append(own[:, :4])
        classes.append(own[:, 4].astype("int32"))
    return images, {"boxes": boxes, "classes": classes}


def small(classes=2, size=(64, 64), preprocessor=True, **options):
    """A YOLOv8 of about 170,000 weights."""
    host = DetectionPreprocessor(size, mosaic=0.0, zoom=0.1) if preprocessor else None
    common = {"dtype": options["dtype"]} if "dtype" in options else {}
    backbone = cv.YOLOV8Backbone((8, 16, 16, 24, 32), (1, 1, 1, 1), **common)
    return cv.YOLOV8Detector(backbone, classes, host, **options)
