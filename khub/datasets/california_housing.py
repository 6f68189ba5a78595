"""Prices of houses in California in 1990: 20,640 rows of 8 numbers.  Pace, Barry 1997."""

from khub.choices import choose
from khub.datasets.files import arrays, split

_DIGEST = "1a2e3a52e0398de6463aebe6f4a8da34fb21fbb6b934cf88c3425e766f2a1a6f"


def load_data(version="large", path="california_housing.npz", test_split=0.2, seed=113):
    """Return ((x, y), (x, y)) for training and testing.  x: (n, 8), y: (n,) in dollars

    version: "large", or "small" for the first 600 rows
    """
    found = arrays(path, "california_housing.npz", _DIGEST)
    rows = {"large": None, "small": 600}[choose("version", version, ("large", "small"))]
    return split(found["x"][:rows], found["y"][:rows], test_split, seed)
