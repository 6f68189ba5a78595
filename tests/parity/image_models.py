"""Image models of timm, torchvision and transformers, small and random, as checkpoints for khub."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import khub

# tests whose answer does not depend on the backend; torch makes symbolic models the fastest
ON_TORCH = pytest.mark.skipif(khub.backend.name != "torch", reason="tested on torch alone")
TRAINED = pytest.mark.skipif(khub.backend.name == "numpy", reason="NumPy computes no gradients")


def site():
    """Put timm and torchvision on the path; `make test` installs them beside the environment."""
    folder = Path(sys.prefix, "torchvision-site")
    if not folder.is_dir():
        pytest.skip("timm and torchvision are not installed", allow_module_level=True)
    shim = Path(__file__).resolve().parents[3] / "shared" / "peers"
    if str(shim) not in sys.path:
        sys.path.insert(0, str(shim))
    import tv_shim  # noqa: F401


def spread(module, seed=0):
    """Give a torch module weights that keep its activations near 1, and return it for inference."""
    import torch

    random = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=random)
        if value.ndim >= 2 and "pos_embed" not in name and "token" not in name:
            fan_in = value[0].numel()
            value.copy_(noise * (1.5 / fan_in) ** 0.5)
        elif name.endswith("running_var"):
            value.copy_(1 + 0.2 * noise.abs())
        elif name.endswith(("weight", "gamma")):
            value.copy_(1 + 0.1 * noise)
        else:
            value.copy_(0.1 * noise)
    return module.eval()


def images(size, batch=2, seed=0):
    """Prepared images (batch, *size, 3)."""
    return np.random.default_rng(seed).normal(size=(batch, *size, 3)).astype("float32")


def outputs(module, x):
    """Logits of a torch module for images with channels last."""
    import torch

    with torch.no_grad():
        found = module(torch.tensor(x).permute(0, 3, 1, 2))
    return getattr(found, "logits", found).numpy()


@contextmanager
def channels_first():
    """Networks made inside have their channels first."""
    before = khub.config.image_data_format()
    khub.config.set_image_data_format("channels_first")
    try:
        yield
    finally:
        khub.config.set_image_data_format(before)


def whole(function):
    """The function as one program on JAX, which takes twenty times as long for each operation's.

    Elsewhere as it is: to trace it, TensorFlow takes twice as long as to run it.
    """
    return khub.jit(function) if khub.backend.name == "jax" else function


def call(model, x, training=False):
    """What a khub model gives, as arrays."""
    found = whole(lambda x: model(x, training=training))(x)
    return khub.tree.map_structure(khub.ops.convert_to_numpy, found)


def gradient_error(theirs, weight, model, kernel, x):
    """The relative difference of a convolution's gradient, of the mean square of the logits.

    weight, kernel: the parameter (O, I, H, W) of a torch module and khub's Variable (H, W, I, O)
    """
    import torch

    theirs(torch.tensor(x).permute(0, 3, 1, 2)).square().mean().backward()
    want = weight.grad.permute(2, 3, 1, 0).numpy()

    def loss(x):
        return khub.ops.mean(khub.ops.square(model(x, training=False)))

    _, (found,) = khub.jit(khub.value_and_grad(loss, [kernel]))(x)
    return float(np.abs(khub.ops.convert_to_numpy(found) - want).max() / np.abs(want).max())


def save_timm(module, name, folder, **model_args):
    """Write what a repository of timm on the Hub has."""
    from safetensors.torch import save_file

    os.makedirs(folder)
    config = {
        "architecture": name,
        "num_classes": module.num_classes,
        "num_features": module.num_features,
        "pretrained_cfg": {**module.pretrained_cfg, "num_classes": module.num_classes},
    }
    if model_args:
        config["model_args"] = model_args
    Path(folder, "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    save_file(state, Path(folder, "model.safetensors"), {"format": "pt"})
