"""Image classifiers by name, with Keras' constructors: `applications.ResNet50(weights=None)`.

Each module has a family's constructors, `preprocess_input` and `decode_predictions`.
"""

import importlib

_FAMILIES = {
    "convnext": "ConvNeXtBase ConvNeXtLarge ConvNeXtSmall ConvNeXtTiny ConvNeXtXLarge",
    "densenet": "DenseNet121 DenseNet169 DenseNet201",
    "efficientnet": " ".join(f"EfficientNetB{i}" for i in range(8)),
    "efficientnet_v2": "EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3 "
    "EfficientNetV2L EfficientNetV2M EfficientNetV2S",
    "inception_resnet_v2": "InceptionResNetV2",
    "inception_v3": "InceptionV3",
    "mobilenet": "MobileNet",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3Large MobileNetV3Small",
    "nasnet": "NASNetLarge NASNetMobile",
    "resnet": "ResNet50 ResNet101 ResNet152",
    "resnet_v2": "ResNet50V2 ResNet101V2 ResNet152V2",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "xception": "Xception",
}
# families of the hub: module -> stem of its classes' names; imported where presets are looked up
BACKBONES = {
    "convnext": "ConvNeXt",
    "cspdarknet": "CSPDarkNet",
    "densenet": "DenseNet",
    "efficientformer": "EfficientFormer",
    "efficientnet": "EfficientNet",
    "keras_backbone": "Keras",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3": "MobileNetV3",
    "mobilenet_v4": "MobileNetV4",
    "regnet": "RegNet",
    "resnet": "ResNet",
    "swin": "Swin",
    "vgg16": "VGG",
    "vit": "ViT",
}
CONSTRUCTORS = {name: module for module, names in _FAMILIES.items() for name in names.split()}
CLASSES = {
    f"{stem}{kind}": module
    for module, stem in BACKBONES.items()
    for kind in ("Backbone", "ImageClassifier")
}
_MODULES = {*_FAMILIES, *BACKBONES, "imagenet_utils", "resnet50"}

__all__ = [*CONSTRUCTORS, *CLASSES, *sorted(_MODULES)]


def register_families():
    """Import the families of the hub, which makes them known to `khub.presets`."""
    for module in BACKBONES:
        importlib.import_module(f"{__name__}.{module}")


def __getattr__(name):
    module = CONSTRUCTORS.get(name) or CLASSES.get(name)
    if module:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
