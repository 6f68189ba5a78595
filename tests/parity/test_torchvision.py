"""DenseNet and VGG against timm's and torchvision's."""

import pytest
from parity import image_checks as checks
from parity import image_models

from khub import presets
from khub.applications.densenet import DenseNetBackbone
from khub.applications.vgg16 import VGGBackbone, VGGImageClassifier


def test_densenet_opens_from_timm_and_saves_back(tmp_path):
    assert checks.timm_opens("densenet121", tmp_path, (64, 33)) <= 1e-4


@pytest.mark.slow
def test_wide_densenet_opens_from_timm(tmp_path):
    assert checks.timm_opens("densenet161", tmp_path, (64, 64)) <= 1e-4


def test_densenet_of_torchvision(tmp_path):
    assert checks.torchvision_opens("densenet121", "densenet121", tmp_path, (32, 32)) <= 1e-4


def small_vgg(library, normalized):
    """A random VGG with 64 instead of 4096 hidden units."""
    image_models.site()
    import timm
    import torch
    import torchvision

    name = "vgg11_bn" if normalized else "vgg11"
    with torch.device("meta"):
        module = (timm.create_model if library == "timm" else torchvision.models.get_model)(name)
    if library == "timm":
        module.pre_logits = timm.models.vgg.ConvMlp(512, 64, 7)
        module.head.fc = torch.nn.Linear(64, 7)
    else:
        for place, sizes in ((0, (25088, 64)), (3, (64, 64)), (6, (64, 7))):
            module.classifier[place] = torch.nn.Linear(*sizes)
    return image_models.spread(module.to_empty(device="cpu"))


@pytest.mark.parametrize(
    "library, normalized, size",
    [
        ("timm", True, (224, 256)),
        ("torchvision", False, (64, 96)),
        ("torchvision", True, (224, 224)),
    ],
)
def test_vgg(library, normalized, size, tmp_path):
    import torch

    module, x = small_vgg(library, normalized), image_models.images(size, 1)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    name = "vgg11_bn" if normalized else "vgg11"
    backbone = VGGBackbone.variant(name, hidden=64, reference=library)
    model = VGGImageClassifier(backbone, num_classes=7)
    presets.weights.load(model, presets.tensors.Checkpoint(tmp_path / "weights.pth"))
    want = image_models.outputs(module, x)
    assert checks.difference(image_models.call(model, x), want) <= 1e-4


@pytest.mark.slow
def test_vgg_opens_from_timm_and_saves_back(tmp_path):
    assert checks.timm_opens("vgg11", tmp_path, (224, 224)) <= 1e-4


@image_models.TRAINED
def test_gradient_is_torchs(tmp_path):
    kernel = "features.conv0.weight"
    assert checks.gradient("densenet121", tmp_path, (32, 32), kernel) <= 1e-3


@pytest.mark.parametrize("name", DenseNetBackbone.VARIANTS)
@image_models.ON_TORCH
def test_parameters_of_densenets_are_as_many_as_timms(name):
    ours, theirs = checks.parameters(DenseNetBackbone, name)
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", VGGBackbone.VARIANTS)
@image_models.ON_TORCH
def test_parameters_of_vggs_are_as_many_as_timms(name):
    ours, theirs = checks.parameters(VGGBackbone, name)
    assert ours == theirs
