"""Computer vision: image classification; detection and image generation come with part 5."""

from ..presets.images import ImagePreprocessor, image_files, read_image
from .backbone import ImageBackbone
from .clip import CLIPTextEncoder
from .image_classifier import ImageClassifier, Predictions
from .schedulers import Scheduler
from .stable_diffusion import StableDiffusion
from .unet import UNet

__all__ = [
    "CLIPTextEncoder",
    "ImageBackbone",
    "ImageClassifier",
    "ImagePreprocessor",
    "Predictions",
    "Scheduler",
    "StableDiffusion",
    "UNet",
    "image_files",
    "read_image",
]
