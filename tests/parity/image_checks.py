"""What every family of image models is held to, against timm, torchvision and transformers."""

from pathlib import Path

import numpy as np
from parity import image_models

from khub import cv, presets


def difference(got, want):
    """The largest absolute difference of outputs, whose size is no accident."""
    assert got.shape == want.shape and 0.1 < np.abs(want).max() < 100, (got.shape, want.shape)
    return float(np.abs(got - want).max())


def timm_model(name, **options):
    """A random model of timm with seven classes."""
    image_models.site()
    import timm

    module = image_models.spread(timm.create_model(name, num_classes=7, **options))
    for parameter, value in module.named_parameters():
        if parameter.endswith(".gamma"):  # of many residual branches, whose sum would grow
            value.data *= 0.3
    return module


def timm_opens(name, folder, size, back=True):
    """khub opens timm's files; timm opens khub's. Returns the largest difference of logits."""
    module, x = timm_model(name), image_models.images(size)
    image_models.save_timm(module, name, folder / "theirs")
    model = cv.ImageClassifier.from_preset(str(folder / "theirs"))
    want = image_models.outputs(module, x)
    found = difference(image_models.call(model, x), want)
    if back:
        import timm

        model.save_to_preset(str(folder / "ours"))
        again = timm.create_model(f"local-dir:{folder / 'ours'}", pretrained=True).eval()
        assert difference(image_models.outputs(again, x), want) < 1e-5
    return found


def timm_opens_channels_first(name, folder, size=(64, 33)):
    """The largest difference of logits where images have their channels first."""
    module, x = timm_model(name), image_models.images(size)
    image_models.save_timm(module, name, folder / "theirs")
    with image_models.channels_first():
        model = cv.ImageClassifier.from_preset(str(folder / "theirs"))
        found = image_models.call(model, x.transpose(0, 3, 1, 2))
    return difference(found, image_models.outputs(module, x))


def transformers_opens(kind, config, folder, size):
    """As `timm_opens` of a random transformers model; its backbone alone is opened too."""
    import transformers

    module = getattr(transformers, f"{kind}ForImageClassification")(config)
    image_models.spread(module).save_pretrained(folder / "theirs")
    x = image_models.images(size)
    want = image_models.outputs(module, x)
    model = cv.ImageClassifier.from_preset(str(folder / "theirs"))
    found = difference(image_models.call(model, x), want)
    model.save_to_preset(str(folder / "ours"))
    again, report = transformers.AutoModelForImageClassification.from_pretrained(
        folder / "ours", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert difference(image_models.outputs(again.eval(), x), want) < 1e-5
    base = getattr(module, module.base_model_prefix)
    base.save_pretrained(folder / "base")
    backbone = type(model.backbone).from_preset(str(folder / "base"))
    for ours, theirs in zip(backbone.variables, model.backbone.variables, strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy()), ours.path
    return found


def torchvision_opens(name, variant, folder, size, **overrides):
    """A state dict of a random torchvision model fits; returns the largest difference of logits."""
    image_models.site()
    import torch
    import torchvision

    module = image_models.spread(getattr(torchvision.models, name)(num_classes=7))
    path = Path(folder, "weights.pth")
    torch.save(module.state_dict(), path)
    model = cv.ImageClassifier.from_variant(
        variant, num_classes=7, reference="torchvision", **overrides
    )
    presets.weights.load(model, presets.tensors.Checkpoint(path))
    x = image_models.images(size)
    return difference(image_models.call(model, x), image_models.outputs(module, x))


def gradient(name, folder, size, kernel="conv_stem.weight"):
    """The relative difference of the first kernel's gradient, of the mean square of the logits."""
    module, x = timm_model(name), image_models.images(size)
    image_models.save_timm(module, name, folder / "theirs")
    model = cv.ImageClassifier.from_preset(str(folder / "theirs"))
    first = model.trainable_variables[0]
    return image_models.gradient_error(module, module.get_parameter(kernel), model, first, x)


def parameters(backbone, name):
    """Parameters of a variant here and of timm's."""
    image_models.site()
    import timm
    import torch

    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=7)
    model = cv.ImageClassifier.from_variant(name, num_classes=7)
    assert isinstance(model.backbone, backbone)
    ours = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return ours, sum(p.numel() for p in theirs.parameters())
