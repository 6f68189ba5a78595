"""Computer vision: image classification and detection."""

from ..presets.images import ImagePreprocessor, image_files, read_image
from .backbone import ImageBackbone
from .detection import ObjectDetector
from .image_classifier import ImageClassifier, Predictions
from .weight_average import WeightAverage
from .yolo_v8 import YOLOV8Backbone, YOLOV8Detector

__all__ = [
    "ImageBackbone",
    "ImageClassifier",
    "ImagePreprocessor",
    "ObjectDetector",
    "Predictions",
    "WeightAverage",
    "YOLOV8Backbone",
    "YOLOV8Detector",
    "image_files",
    "read_image",
]
