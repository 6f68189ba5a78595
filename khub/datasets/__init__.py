"""Small data sets to try things out with, fetched once and kept in khub's own folder."""

from khub.datasets import (
    boston_housing,
    california_housing,
    cifar10,
    cifar100,
    fashion_mnist,
    imdb,
    mnist,
    reuters,
)
