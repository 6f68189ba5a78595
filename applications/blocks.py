"""Parts of more than one family."""

from .classifier import POOLINGS


def pooled(x, pooling, **options):
    """The features, or their mean or maximum over space by a layer without a name of its own."""
    return x if pooling is None else POOLINGS[pooling]()(x)
