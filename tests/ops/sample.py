"""What a row of the conformance table is, and the arrays that most rows share."""

import math
import sys
import zlib
from pathlib import Path

import numpy as np


class Sample:
    """`op(*args, **options)` equals `expected(*args, **options)` and has the dtype(s) `gives`.

    fixed: the first axis cannot be unknown in a symbolic call (None: there is no symbolic call)
    smooth: False where the gradient is not that of the expression
    """

    def __init__(
        self, expected, *args, gives="float32", fixed=False, smooth=True, near=1e-6, **options
    ):
        self.expected, self.args, self.options, self.gives = expected, args, options, gives
        self.fixed, self.smooth, self.near = fixed, smooth, near


S = Sample
BATCH = 5  # arrays whose first axis is as long are batches
_GENERATORS = {}


def generator():
    """The generator of the calling file: what it draws does not depend on the files before it."""
    file = Path(sys._getframe(2).f_code.co_filename).name
    return _GENERATORS.setdefault(file, np.random.default_rng(zlib.crc32(file.encode())))


def normal(*shape):
    """Distinct float32 numbers, none at 0."""
    rng = generator()
    values = np.sort(rng.normal(size=math.prod(shape))) + 0.01 * np.arange(math.prod(shape))
    values = (values - values.mean()) / values.std() + 0.003
    return rng.permutation(values).reshape(shape).astype("float32")


def uniform(low, high, *shape):
    return generator().uniform(low, high, shape).astype("float32")


def integers(low, high, *shape, dtype="int32"):
    return generator().integers(low, high, shape).astype(dtype)


X, Y, POSITIVE = normal(5, 4, 3), normal(5, 4, 3), uniform(0.2, 3, 5, 4, 3)
INTS, COUNTS = integers(-4, 9, 5, 4, 3), integers(1, 5, 5, 4, 3)
BYTES, WORDS = integers(0, 200, 5, 4, dtype="uint8"), integers(0, 999, 5, 4, dtype="uint16")
BOOLS, OTHERS = X > 0, Y > 0
SPECIAL = np.array([[np.nan, np.inf, -np.inf, 1.5], [0.0, -2.0, np.nan, 3.0]], "float32")
ROWS, LABELS = normal(5, 6), np.array([3, 0, 5, 1, 2], "int32")
SHARES = uniform(0.1, 1, 5, 6)
COMPLEX = (X + 1j * Y).astype("complex64")
ONE_HOT = np.eye(6, dtype="float32")[LABELS]
A, B = normal(5, 4, 3), normal(5, 3, 2)
