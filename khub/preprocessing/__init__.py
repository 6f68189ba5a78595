"""Names that Keras keeps for older programs; `khub.utils` has them."""

from khub.utils import arrays as sequence
from khub.utils import images as image
from khub.utils.datasets import (
    image_dataset_from_directory,
    text_dataset_from_directory,
    timeseries_dataset_from_array,
)
