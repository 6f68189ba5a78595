"""Computer vision: image classification, and with part 5 detection and image generation."""

from ..applications.backbone import ImageBackbone, ImageClassifier, Predictions
from ..presets.images import ImagePreprocessor, image_files, read_image

__all__ = [
    "ImageBackbone",
    "ImageClassifier",
    "ImagePreprocessor",
    "Predictions",
    "image_files",
    "read_image",
]
