"""Image classifiers: building, predicting, a step of fit, loading; khub beside Keras and timm.

python -m benchmarks.applications --backend torch [--cells build_ResNet50,fit_vit] [--turns 9]
python -m benchmarks.applications --all

One process a backend, one thread; the contenders take turns, the figures are medians of the
per-turn ratios. On torch khub's networks of timm run beside timm's own forward pass.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from .compare import NOISE, RESULTS, describe
from .layers import BUILD, SLOWEST, main, run

SIZE, FIT_BATCH, FIT_STEPS = 96, 8, 4
KERAS = ("ResNet50", "MobileNetV2", "EfficientNetB0", "ConvNeXtTiny")
TIMM = {  # timm's name -> size of the images
    "resnet50": 128,
    "mobilenetv2_100": 128,
    "efficientnet_b0": 128,
    "convnext_tiny": 128,
    "vit_base_patch16_224": 224,
}
VIT = dict(patch=16, width=768, heads=12, depth=12)  # ViT-B/16, arXiv:2010.11929, table 1
READ = 1.5  # highest allowed time of loading over reading
WHAT = ("build", "predict_1", "predict_16", "fit")
CELLS = [f"{what}_{name}" for what in WHAT for name in (*KERAS, "vit")]
CELLS += [f"timm_{count}_{name}" for count in (1, 16) for name in TIMM]
CELLS += ["load_h5", "load_safetensors"]


def keras_vit(k, size):
    """ViT-B/16 of Keras' layers: Keras has none among its applications."""
    layers, tokens = k.layers, (size // VIT["patch"]) ** 2

    class Positions(layers.Layer):
        def build(self, shape):
            self.token = self.add_weight((1, 1, VIT["width"]), name="token")
            self.embeddings = self.add_weight((tokens + 1, VIT["width"]), name="embeddings")

        def call(self, x):
            token = k.ops.tile(self.token, (k.ops.shape(x)[0], 1, 1))
            return k.ops.concatenate([token, x], axis=1) + self.embeddings

    image = k.Input((size, size, 3))
    x = layers.Conv2D(VIT["width"], VIT["patch"], VIT["patch"])(image)
    x = layers.Reshape((tokens, VIT["width"]))(x)
    x = Positions()(x)
    for _ in range(VIT["depth"]):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.MultiHeadAttention(VIT["heads"], VIT["width"] // VIT["heads"])(y, y)
        x = x + y
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(4 * VIT["width"], activation="gelu")(y)
        x = x + layers.Dense(VIT["width"])(y)
    x = layers.LayerNormalization(epsilon=1e-6)(x)[:, 0]
    return k.Model(image, layers.Dense(1000, activation="softmax")(x))


def khub_vit(size):
    from khub import cv

    return cv.ImageClassifier.from_variant("vit_base_patch16_224", image_shape=(size, size, 3))


def build(side, name, size):
    """A compiled model of khub or Keras, its weights random."""
    import importlib

    k = importlib.import_module(side)
    if name == "vit":
        model = khub_vit(size) if side == "khub" else keras_vit(k, size)
    else:
        model = getattr(k.applications, name)(weights=None, input_shape=(size, size, 3))
    scores = "softmax" if not (side == "khub" and name == "vit") else None
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=scores is None)
    model.compile(optimizer=k.optimizers.SGD(1e-3), loss=loss)
    return model


def contenders(cell, turns):
    """Side -> function that does it once, and which sides khub is compared with."""
    what, _, name = cell.rpartition("_")
    if what == "build":
        return {side: (lambda s=side: build(s, name, 224)) for side in ("khub", "keras")}
    if cell.startswith("timm_"):
        return timm_forward(*cell.removeprefix("timm_").split("_", 1))
    if cell.startswith("load_"):
        return loading(name, turns)
    models = {side: build(side, name, SIZE) for side in ("khub", "keras")}
    random = np.random.default_rng(0)
    if what == "fit":
        count = FIT_BATCH * FIT_STEPS
        x = random.standard_normal((count, SIZE, SIZE, 3), np.float32)
        y = random.integers(0, 1000, count).astype("int32")
        return {
            side: (lambda m=m: m.fit(x, y, batch_size=FIT_BATCH, verbose=0) and None)
            for side, m in models.items()
        }
    x = random.standard_normal((int(what.removeprefix("predict_")), SIZE, SIZE, 3), np.float32)
    return {
        side: (lambda m=m: np.asarray(m.predict(x, verbose=0)).sum()) for side, m in models.items()
    }


def timm_forward(count, name):
    """The same network of khub and timm in inference, on `count` images in their own layouts."""
    import torch

    sys.path[:0] = [str(Path(sys.prefix, "torchvision-site"))]
    sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "shared" / "peers")]
    import tv_shim  # noqa: F401, I001
    import timm

    import khub
    from khub import cv

    torch.set_num_threads(1)
    x = torch.randn(int(count), TIMM[name], TIMM[name], 3)
    shape = (TIMM[name], TIMM[name], 3)
    ours = cv.ImageClassifier.from_variant(name, image_shape=shape)
    theirs, given = timm.create_model(name).eval(), x.permute(0, 3, 1, 2).contiguous()
    forward = khub.jit(lambda x: ours(x, training=False))

    def inference(function, x):
        with torch.inference_mode():
            return function(x).sum().item()

    return {"khub": lambda: inference(forward, x), "native": lambda: inference(theirs, given)}


def loading(kind, turns):
    """ResNet50's weights into a model just built, beside reading the file that holds them."""
    import khub
    from khub import applications, presets
    from khub.presets import keras_h5

    folder = Path(tempfile.mkdtemp())
    if kind == "h5":
        import h5py
        import keras

        models = [applications.ResNet50(weights=None) for _ in range(turns)]
        path = folder / "resnet50.weights.h5"
        keras.applications.ResNet50(weights=None).save_weights(path)

        def read():
            with h5py.File(path) as file:
                found = []
                file.visititems(lambda _, x: found.append(x[()]) if hasattr(x, "shape") else None)
                return len(found)

        def load():
            keras_h5.load(models.pop(), path)

    else:
        models = [khub.cv.ImageClassifier.from_variant("resnet50") for _ in range(turns + 1)]
        path = folder / "model.safetensors"
        tensors = presets.weights.tensors(models.pop())
        presets.tensors.write_checkpoint(folder, tensors)

        def read():
            return len(path.read_bytes())

        def load():
            presets.weights.load(models.pop(), presets.tensors.Checkpoint(path))

    return {"khub": load, "read": read}


def judge(cell, seconds):
    """Medians of the per-turn ratios, and whether khub is as fast as it must be."""
    (other,) = seconds.keys() - {"khub"}
    ratios = [a / b for a, b in zip(seconds["khub"], seconds[other], strict=True)]
    kind = cell.partition("_")[0]
    limit = {"build": BUILD, "timm": SLOWEST, "load": READ}.get(kind, NOISE)
    return {
        "median_seconds": {side: median(times) for side, times in seconds.items()},
        "compared_with": "timm" if kind == "timm" else other,
        "ratio": median(ratios),
        "quartiles": quantiles(ratios, n=4)[::2],
        "limit": limit,
        "reaches_target": median(ratios) <= limit,
        "seconds": seconds,
    }


def measure(options):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    chosen = options.cells.split(",") if options.cells else CELLS
    path, good = RESULTS / f"applications_{options.backend}.json", True
    table = json.loads(path.read_text()) if path.exists() else {}
    print(f"{options.backend:32}{'khub ms':>10}{'other ms':>10}{'ratio':>7}")
    for cell in chosen:
        if cell.startswith("timm_") and options.backend != "torch":
            continue
        times = 10 if cell.startswith("timm_1_") else 1  # one is as long as the noise
        result = judge(cell, run(contenders(cell, options.turns + 2), times, options.turns))
        table[cell] = describe(options.backend) | result
        khub, other = (t * 1e3 for t in result["median_seconds"].values())
        passed = result["reaches_target"]
        print(
            f"{cell:32}{khub:10.1f}{other:10.1f}{result['ratio']:7.2f}  of "
            f"{result['compared_with']} {'pass' if passed else 'FAIL'}",
            flush=True,
        )
        good &= passed
        path.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("benchmarks.applications", __doc__.splitlines()[0], CELLS, 9, measure))
