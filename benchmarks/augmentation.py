"""Augmenting a batch of 64 images of 224 x 224: seconds and memory of khub and of its peers.

python -m benchmarks.augmentation --backend torch [--turns 7]
python -m benchmarks.augmentation --all

Peers on the same float32 batch: Keras on the same backend, and in the torch process what one would
write by hand. Pillow, image by image, stands beside them: it works on uint8, a fourth of the bytes
and another result, so it does not decide. One process a backend, one thread, contenders take turns.
`memory` is how far the process grows at its peak during a call, over the bytes of the batch.
"""

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from .compare import RESULTS, describe
from .layers import main, wait

LIMIT, MEMORY = 2.0, 3.0  # over the fastest peer; over the batch
SHAPE = (64, 224, 224, 3)
LAYERS = {
    "flip": lambda k: k.layers.RandomFlip("horizontal", seed=1),
    "rotation": lambda k: k.layers.RandomRotation(0.1, seed=1),
    "zoom": lambda k: k.layers.RandomZoom(0.2, seed=1),
    "translation": lambda k: k.layers.RandomTranslation(0.1, 0.1, seed=1),
    "crop": lambda k: k.layers.RandomCrop(192, 192, seed=1),
    "resizing": lambda k: k.layers.Resizing(128, 128),
    "contrast": lambda k: k.layers.RandomContrast(0.3, seed=1),
    "brightness": lambda k: k.layers.RandomBrightness(0.2, seed=1),
    "saturation": lambda k: k.layers.RandomSaturation((0.3, 0.7), seed=1),
    "grayscale": lambda k: k.layers.RandomGrayscale(0.5, seed=1),
}


def by_hand(images):
    """Name -> what someone writes in PyTorch for these images, channels last."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)
    x, n = torch.from_numpy(images), len(images)

    def warp(matrix):
        grid = F.affine_grid(matrix, (n, 3, *SHAPE[1:3]), align_corners=False)
        y = F.grid_sample(x.permute(0, 3, 1, 2), grid, align_corners=False)
        return y.permute(0, 2, 3, 1)

    def rotation():
        angle = (torch.rand(n) - 0.5) * 0.4 * torch.pi
        row = torch.stack([angle.cos(), -angle.sin(), torch.zeros(n)], 1)
        other = torch.stack([angle.sin(), angle.cos(), torch.zeros(n)], 1)
        return warp(torch.stack([row, other], 1))

    def zoom():
        factor = 1 + (torch.rand(n) - 0.5) * 0.4
        return warp(torch.eye(2, 3) * factor[:, None, None])

    def translation():
        matrix = torch.eye(2, 3).repeat(n, 1, 1)
        matrix[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.4
        return warp(matrix)

    def blend(other, factor):
        return (other + (x - other) * factor).clamp(0, 255)

    def each(low, high):
        return low + (high - low) * torch.rand(n, 1, 1, 1)

    weights = torch.tensor([0.2989, 0.587, 0.114])

    def gray():
        return (x @ weights)[..., None].expand(x.shape)

    return {
        "flip": lambda: torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(2), x),
        "rotation": rotation,
        "zoom": zoom,
        "translation": translation,
        "crop": lambda: x[:, 10:202, 20:212].clone(),
        "resizing": lambda: F.interpolate(x.permute(0, 3, 1, 2), (128, 128), mode="bilinear"),
        "contrast": lambda: blend(x.mean((1, 2), keepdim=True), each(0.7, 1.3)),
        "brightness": lambda: (x + each(-51, 51)).clamp(0, 255),
        "saturation": lambda: blend(gray(), each(0.6, 1.4)),
        "grayscale": lambda: torch.where(torch.rand(n, 1, 1, 1) < 0.5, gray(), x),
    }


def with_pillow(images):
    """Name -> Pillow on each image of a uint8 batch: how data pipelines do it."""
    from PIL import Image, ImageEnhance

    small, bilinear = images.astype("uint8"), Image.Resampling.BILINEAR
    affine = Image.Transform.AFFINE
    each = {
        "flip": lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "rotation": lambda x: x.rotate(20, bilinear),
        "zoom": lambda x: x.transform(x.size, affine, (1.1, 0, -11, 0, 1.1, -11), bilinear),
        "translation": lambda x: x.transform(x.size, affine, (1, 0, 9.5, 0, 1, 4.5), bilinear),
        "crop": lambda x: x.crop((20, 10, 212, 202)),
        "resizing": lambda x: x.resize((128, 128), bilinear, reducing_gap=None),
        "contrast": lambda x: ImageEnhance.Contrast(x).enhance(1.2),
        "brightness": lambda x: ImageEnhance.Brightness(x).enhance(1.2),
        "saturation": lambda x: ImageEnhance.Color(x).enhance(1.2),
        "grayscale": lambda x: x.convert("L").convert("RGB"),
    }

    def batch(function):
        return lambda: np.stack([np.asarray(function(Image.fromarray(x))) for x in small])

    return {name: batch(function) for name, function in each.items()}


def peak_over(function, size):
    """How far the process grows at its peak during a call, over `size` bytes."""

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(key))

    wait(function()), gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    wait(function())
    return (status("VmHWM") - before) / size


def measure(options):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    packages = {name: importlib.import_module(name) for name in ("khub", "keras")}
    images = np.random.default_rng(0).integers(0, 256, SHAPE).astype("float32")
    others = {"pillow": with_pillow(images)}
    if options.backend == "torch":
        others["by hand"] = by_hand(images)
    table, good = {}, True
    chosen = options.cells.split(",") if options.cells else LAYERS
    print(f"{options.backend:14}{'khub ms':>9}  peers")
    for name in chosen:
        sides = {}
        for side, package in packages.items():
            layer, x = LAYERS[name](package), package.ops.convert_to_tensor(images)
            sides[side] = lambda layer=layer, x=x: layer(x, training=True)
            if name == "resizing":
                sides[side] = lambda layer=layer, x=x: layer(x)
        sides |= {side: made[name] for side, made in others.items()}
        for function in sides.values():
            wait(function()), wait(function())
        seconds = {side: [] for side in sides}
        for _ in range(options.turns):
            for side, function in sides.items():
                gc.collect()
                start = time.perf_counter()
                wait(function())
                seconds[side].append(time.perf_counter() - start)
        memory = peak_over(sides["khub"], images.nbytes)
        medians = {side: median(times) for side, times in seconds.items()}
        fastest = min(times for side, times in medians.items() if side not in ("khub", "pillow"))
        ratio = medians["khub"] / fastest
        passed = ratio <= LIMIT and memory <= MEMORY
        table[name] = {
            "median_seconds": medians,
            "khub_to_fastest_peer": ratio,
            "khub_to_pillow_on_uint8": medians["khub"] / medians["pillow"],
            "memory_over_batch": memory,
            "reaches_target": passed,
            "seconds": seconds,
        }
        peers = "  ".join(f"{s} {t * 1e3:.1f}" for s, t in medians.items() if s != "khub")
        verdict = "pass" if passed else "FAIL"
        print(
            f"{name:14}{medians['khub'] * 1e3:9.1f}  {peers}  ratio {ratio:.2f}  "
            f"memory {memory:.2f}  {verdict}",
            flush=True,
        )
        good &= passed
    path = RESULTS / f"augmentation_{options.backend}.json"
    before = json.loads(path.read_text())["layers"] if path.exists() else {}
    table = describe(options.backend) | {"shape": SHAPE, "layers": before | table}
    path.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("benchmarks.augmentation", __doc__.splitlines()[0], LAYERS, 7, measure))
