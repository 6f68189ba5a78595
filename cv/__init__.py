"""Computer vision: image classification; detection and image generation come with part 5."""

from ..presets.images import ImagePreprocessor, image_files, read_image
from .backbone import ImageBackbone
from .image_classifier import ImageClassifier, Predictions

__all__ = [
    "ImageBackbone",
    "ImageClassifier",
    "ImagePreprocessor",
    "Predictions",
    "image_files",
    "read_image",
]
