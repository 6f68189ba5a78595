"""VGG19: a row of the table in `vgg16.py`, under the name of its module in Keras."""

from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .vgg16 import VGG19

__all__ = ["VGG19"]

preprocess_input = preprocessing(VGG19.variant.preprocessing)
