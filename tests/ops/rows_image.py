"""Rows of the inner ops of images, which backends replace: places between pixels, and sizes."""

import numpy as np
from ops.sample import S, integers, normal, uniform

MODES = {"nearest": "edge", "wrap": "wrap", "mirror": "reflect", "reflect": "symmetric"}
KERNELS = {
    "linear": lambda x: np.maximum(1 - x, 0),
    "cubic": lambda x: np.select(
        [x < 1, x < 2], [1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2]
    ),
    "lanczos3": lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0),
}
IMAGES, WHOLE = normal(5, 6, 7, 2), integers(0, 255, 5, 6, 7, 2, dtype="uint8")
DOWN, RIGHT = uniform(-4, 10, 5, 3, 4), uniform(-4, 10, 5, 3, 4)
TURN = uniform(-1, 1, 5, 8) * [1, 1, 4, 1, 1, 4, 0.04, 0.04] + [1, 0, 0, 0, 1, 0, 0, 0]
FACTORS = TURN.astype("float32")
HALVES = np.array(  # places exactly between two pixels
    [[1, 0, s, 0, -1, t, 0, 0] for s, t in [(0.5, 5.5), (-0.5, 6.5), (-2.5, 4.5), (3, 2), (0, 0)]],
    "float32",
)


def sampled(images, rows, columns, interpolation, mode, fill):
    more = {} if mode in MODES else {"constant_values": fill}
    wide = np.pad(images, [(0, 0), (9, 9), (9, 9), (0, 0)], MODES.get(mode, mode), **more)

    def pixel(row, column):
        image = np.arange(len(images))[:, None, None]
        return wide[image, row.astype(int) + 9, column.astype(int) + 9]

    if interpolation == "nearest":
        return pixel(np.floor(rows + 0.5), np.floor(columns + 0.5))
    total = 0
    for row in (np.floor(rows), np.floor(rows) + 1):
        for column in (np.floor(columns), np.floor(columns) + 1):
            share = (1 - abs(rows - row)) * (1 - abs(columns - column))
            total = total + pixel(row, column) * share[..., None]
    return total


def projected(images, factors, interpolation, mode, fill):
    row, column = np.mgrid[: images.shape[1], : images.shape[2]]
    a, b, c, d, e, f, g, h = factors.T[..., None, None]
    scale = g * column + h * row + 1
    rows, columns = (d * column + e * row + f) / scale, (a * column + b * row + c) / scale
    rows, columns = (np.broadcast_to(p, images.shape[:3]) for p in (rows, columns))
    return sampled(images, rows, columns, interpolation, mode, fill)


def resized(x, size, method, antialias):
    for axis, count in zip((-3, -2), size, strict=True):
        length = x.shape[axis]
        places = (np.arange(count) + 0.5) * length / count
        if method == "nearest":
            x = x.take(places.astype(int), axis)
            continue
        distance = abs(places[:, None] - 0.5 - np.arange(length))
        weights = KERNELS[method](distance / (max(length / count, 1) if antialias else 1))
        weights /= weights.sum(1, keepdims=True)
        x = np.moveaxis(np.tensordot(x, weights, (axis, 1)), -1, axis)
    return x


SAMPLES = {
    "sample_images": [
        *[
            S(sampled, IMAGES, DOWN, RIGHT, "bilinear", mode, 0.5, near=1e-5)
            for mode in ("constant", *MODES)
        ],
        S(sampled, IMAGES, DOWN, RIGHT, "nearest", "constant", 0.5, smooth=False),
        S(sampled, IMAGES, DOWN, RIGHT, "nearest", "reflect", 0.5, smooth=False),
        S(sampled, WHOLE, DOWN, RIGHT, "nearest", "nearest", 0, smooth=False, gives="uint8"),
    ],
    "project_images": [
        *[
            S(projected, IMAGES, FACTORS, "bilinear", mode, 0.5, near=1e-5)
            for mode in ("constant", *MODES)
        ],
        S(projected, IMAGES, HALVES[:1], "bilinear", "constant", 0.5, near=1e-5, smooth=False),
        *[
            S(projected, IMAGES, HALVES, "nearest", mode, 0.5, smooth=False)
            for mode in ("constant", *MODES)
        ],
        S(projected, WHOLE, HALVES, "nearest", "reflect", 0, smooth=False, gives="uint8"),
    ],
    "resize_pixels": [
        S(resized, IMAGES, (6, 7), "linear", False),
        S(resized, IMAGES, (9, 4), "nearest", False),
        S(resized, IMAGES, (9, 4), "linear", False, near=1e-5),
        S(resized, IMAGES, (3, 10), "linear", True, near=1e-5),
        S(resized, IMAGES, (9, 4), "cubic", False, near=1e-5),
        S(resized, IMAGES, (3, 4), "lanczos3", True, near=1e-5),
        S(resized, IMAGES[0], (4, 5), "linear", True, near=1e-5),
        S(resized, WHOLE, (4, 9), "nearest", False, gives="uint8"),
    ],
}
