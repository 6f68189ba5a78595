"""Computer vision: classification, detection, segmentation, images drawn from words."""

from ..presets.images import ImagePreprocessor, image_files, read_image
from .autoencoder import Autoencoder, TinyAutoencoder
from .backbone import ImageBackbone
from .box_metrics import MeanAveragePrecision
from .clip import CLIPTextEncoder
from .controlnet import ControlNet
from .deeplab import DeepLabV3Plus
from .detection import ObjectDetector
from .detection_data import DetectionPreprocessor, letterbox
from .detection_datasets import read_coco, read_yolo
from .draw import draw_boxes, draw_mask
from .image_classifier import ImageClassifier, Predictions
from .retinanet import RetinaNetDetector
from .schedulers import Scheduler
from .segmentation import ImageSegmenter, SegmentationPreprocessor
from .stable_diffusion import StableDiffusion
from .suppression import non_max_suppression
from .unet import UNet
from .weight_average import WeightAverage
from .yolo_v8 import YOLOV8Backbone, YOLOV8Detector

__all__ = [
    "Autoencoder",
    "CLIPTextEncoder",
    "ControlNet",
    "DeepLabV3Plus",
    "DetectionPreprocessor",
    "ImageBackbone",
    "ImageClassifier",
    "ImagePreprocessor",
    "ImageSegmenter",
    "MeanAveragePrecision",
    "ObjectDetector",
    "Predictions",
    "RetinaNetDetector",
    "Scheduler",
    "SegmentationPreprocessor",
    "StableDiffusion",
    "TinyAutoencoder",
    "UNet",
    "WeightAverage",
    "YOLOV8Backbone",
    "YOLOV8Detector",
    "draw_boxes",
    "draw_mask",
    "image_files",
    "letterbox",
    "non_max_suppression",
    "read_coco",
    "read_image",
    "read_yolo",
]
