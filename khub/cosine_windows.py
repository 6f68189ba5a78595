"""The windows of short-time Fourier transforms that are sums of cosines."""

import math

import numpy as np

from khub.choices import choose

COEFFICIENTS = {  # of cos(0), -cos(x), cos(2 x)
    "hann": (0.5, 0.5),
    "hamming": (0.54, 0.46),
    "blackman": (0.42, 0.5, 0.08),
}


def cosine_window(name, length, periodic=True):
    """Return the `length` weights of a window; periodic: its first weight would come next.

    Raises ValueError, with the nearest name, for an unknown one.
    """
    coefficients = COEFFICIENTS[choose("window", name, COEFFICIENTS)]
    if length == 1:
        return np.ones(1)
    angle = 2 * math.pi * np.arange(length) / (length - (not periodic))
    return sum((-1) ** k * c * np.cos(k * angle) for k, c in enumerate(coefficients))
