"""Prices of houses around Boston in the 1970s: 506 rows of 13 numbers.  Harrison 1978."""

from khub.datasets.files import arrays, split

_DIGEST = "f553886a1f8d56431e820c5b82552d9d95cfcb96d1e678153f8839538947dff5"


def load_data(path="boston_housing.npz", test_split=0.2, seed=113):
    """Return ((x, y), (x, y)) for training and testing.  x: (n, 13), y: (n,) in 1,000 dollars"""
    found = arrays(path, "boston_housing.npz", _DIGEST)
    return split(found["x"], found["y"], test_split, seed)
