"""Image classifiers by name, with Keras' constructors: `applications.ResNet50(weights=None)`.

Each module has a family's constructors, `preprocess_input` and `decode_predictions`.
"""

import importlib


def _names(stem, ends):
    return " ".join(stem + end for end in ends.split())


# module -> stem of its backbone's and classifier's names, if the hub has them; Keras' constructors
_FAMILIES = {
    "convnext": ("ConvNeXt", _names("ConvNeXt", "Base Large Small Tiny XLarge")),
    "cspdarknet": ("CSPDarkNet", ""),
    "densenet": ("DenseNet", _names("DenseNet", "121 169 201")),
    "efficientformer": ("EfficientFormer", ""),
    "efficientnet": ("EfficientNet", _names("EfficientNetB", "0 1 2 3 4 5 6 7")),
    "efficientnet_v2": ("", _names("EfficientNetV2", "B0 B1 B2 B3 L M S")),
    "inception_resnet_v2": ("", "InceptionResNetV2"),
    "inception_v3": ("", "InceptionV3"),
    "keras_backbone": ("Keras", ""),
    "mobilenet": ("", "MobileNet"),
    "mobilenet_v2": ("MobileNetV2", "MobileNetV2"),
    "mobilenet_v3": ("MobileNetV3", "MobileNetV3Large MobileNetV3Small"),
    "mobilenet_v4": ("MobileNetV4", ""),
    "nasnet": ("", "NASNetLarge NASNetMobile"),
    "regnet": ("RegNet", ""),
    "resnet": ("ResNet", "ResNet50 ResNet101 ResNet152"),
    "resnet_v2": ("", "ResNet50V2 ResNet101V2 ResNet152V2"),
    "swin": ("Swin", ""),
    "vgg16": ("VGG", "VGG16"),
    "vgg19": ("", "VGG19"),
    "vit": ("ViT", ""),
    "xception": ("", "Xception"),
}
# families of the hub, imported where presets are looked up
BACKBONES = {module: stem for module, (stem, _) in _FAMILIES.items() if stem}
CONSTRUCTORS = {name: module for module, (_, names) in _FAMILIES.items() for name in names.split()}
CLASSES = {
    f"{stem}{kind}": module
    for module, stem in BACKBONES.items()
    for kind in ("Backbone", "ImageClassifier")
}
_MODULES = {*_FAMILIES, "imagenet_utils", "resnet50"}

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
