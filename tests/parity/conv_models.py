"""What the tests of convolutional families share: a reference model against khub's, both ways."""

import numpy as np
from parity import image_models

from khub import cv
from khub.presets import weights
from khub.presets.tensors import Checkpoint

NUM_CLASSES = 7


def compare(got, want, what, most=1e-4):
    """Print and check the largest difference, as a share of values that are above 1."""
    size = np.abs(want).max()
    assert got.shape == want.shape and size > 0.1, (got.shape, want.shape, size)
    difference = np.abs(got - want).max()
    print(f"{what}: {difference:.1e} of {size:.2f}")
    assert difference <= most * max(1, size), (what, difference)


def timm_model(name, **options):
    import timm

    return image_models.spread(timm.create_model(name, num_classes=NUM_CLASSES, **options))


def check_timm(name, folder, size=64, back=False):
    """A timm model of this name opens here; with `back`, what is saved here opens in timm."""
    theirs = timm_model(name)
    image_models.save_timm(theirs, name, folder / "theirs")
    ours = cv.ImageClassifier.from_preset(str(folder / "theirs"))
    x = image_models.images((size, size), batch=1)
    want = image_models.outputs(theirs, x)
    compare(image_models.call(ours, x), want, name)
    if back:
        import timm

        ours.save_to_preset(str(folder / "ours"))
        again = timm.create_model(f"local-dir:{folder / 'ours'}", pretrained=True).eval()
        np.testing.assert_allclose(image_models.outputs(again, x), want, atol=1e-5)
    return ours


def check_transformers(model_class, config, folder, size=64, head_of_backbone=()):
    """A transformers classifier opens here, and what is saved here opens there; both as backbones.

    head_of_backbone: tensors of the reference's backbone that are khub's head
    """
    from transformers import AutoModel, AutoModelForImageClassification

    config.num_labels = NUM_CLASSES
    theirs = image_models.spread(model_class(config))
    theirs.save_pretrained(folder / "theirs")
    ours = cv.ImageClassifier.from_preset(str(folder / "theirs"))
    x = image_models.images((size, size), batch=1)
    want = image_models.outputs(theirs, x)
    compare(image_models.call(ours, x), want, config.model_type)
    ours.save_to_preset(str(folder / "ours"))
    again, info = AutoModelForImageClassification.from_pretrained(
        folder / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    np.testing.assert_allclose(image_models.outputs(again.eval(), x), want, atol=1e-5)
    for name, value in theirs.config.to_dict().items():
        if name not in {"architectures", "dtype", "transformers_version", "_name_or_path"}:
            assert again.config.to_dict()[name] == value, name

    backbone = type(ours.backbone).from_preset(str(folder / "theirs"))
    module = getattr(theirs, theirs.base_model_prefix)
    features = np.moveaxis(last_hidden_state(module, x), 1, -1)
    compare(image_models.call(backbone, x), features, f"{config.model_type} backbone")
    backbone.save_to_preset(str(folder / "backbone"))
    again, info = AutoModel.from_pretrained(folder / "backbone", output_loading_info=True)
    left = {key: {*names} - {*head_of_backbone} for key, names in info.items()}
    assert not any(left.values()), info
    np.testing.assert_allclose(
        np.moveaxis(last_hidden_state(again.eval(), x), 1, -1), features, atol=1e-5
    )


def last_hidden_state(module, x):
    import torch

    with torch.no_grad():
        return module(torch.tensor(x).permute(0, 3, 1, 2)).last_hidden_state.numpy()


def check_torchvision(make, backbone, folder, size=64):
    """The weights of a torchvision classifier fit a backbone made with reference="torchvision"."""
    import torch

    theirs = image_models.spread(make(num_classes=NUM_CLASSES))
    torch.save(theirs.state_dict(), folder / "weights.pth")
    ours = cv.ImageClassifier(backbone, NUM_CLASSES)
    weights.load(ours, Checkpoint(folder / "weights.pth"))
    x = image_models.images((size, size), batch=1)
    compare(image_models.call(ours, x), image_models.outputs(theirs, x), make.__name__)
    return ours


def check_channels_first(name, folder, size=64):
    """The same weights give the same logits where channels come first."""
    theirs = timm_model(name)
    image_models.save_timm(theirs, name, folder / "theirs")
    x = image_models.images((size, size), batch=1)
    want = image_models.outputs(theirs, x)
    with image_models.channels_first():
        ours = cv.ImageClassifier.from_preset(str(folder / "theirs"))
        found = image_models.call(ours, np.moveaxis(x, -1, 1).copy())
    compare(found, want, f"{name}, channels first")


def check_gradient(name, kernel, folder, size=32):
    """d mean(logits^2) / d (the first convolution's kernel), with moving statistics, as torch's."""
    theirs = timm_model(name)
    image_models.save_timm(theirs, name, folder / "theirs")
    ours = cv.ImageClassifier.from_preset(str(folder / "theirs"))
    x = image_models.images((size, size), batch=1)
    weight = theirs.get_submodule(kernel).weight
    own = next(s.variable for s in weights.slots(ours) if s.name == f"{kernel}.weight")
    difference = image_models.gradient_error(theirs, weight, ours, own, x)
    print(f"{name}: gradient, relative difference {difference:.1e}")
    assert difference < 1e-3


def check_size(name, backbone_class):
    """A variant has as many parameters as timm's backbone of this name, tensor for tensor."""
    import timm
    import torch

    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=NUM_CLASSES)
    want = {n: tuple(v.shape) for n, v in theirs.state_dict().items() if "num_batches" not in n}
    ours = cv.ImageClassifier(backbone_class.variant(name), NUM_CLASSES)
    assert {s.name: tuple(s.shape) for s in weights.slots(ours)} == want
