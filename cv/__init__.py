"""Computer vision: image classification; detection and image generation come with part 5."""

from ..presets.images import ImagePreprocessor, image_files, read_image
from .autoencoder import Autoencoder, TinyAutoencoder
from .backbone import ImageBackbone
from .clip import CLIPTextEncoder
from .controlnet import ControlNet
from .image_classifier import ImageClassifier, Predictions
from .schedulers import Scheduler
from .stable_diffusion import StableDiffusion
from .unet import UNet

__all__ = [
    "Autoencoder",
    "CLIPTextEncoder",
    "ControlNet",
    "ImageBackbone",
    "ImageClassifier",
    "ImagePreprocessor",
    "Predictions",
    "Scheduler",
    "StableDiffusion",
    "TinyAutoencoder",
    "UNet",
    "image_files",
    "read_image",
]
