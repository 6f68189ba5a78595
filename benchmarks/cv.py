"""Images: Stable Diffusion's parts a quarter as wide, YOLOv8n; khub beside what others use.

python -m benchmarks.cv --backend torch [--cells unet_step,yolo_640] [--turns 9]
python -m benchmarks.cv --all

One process a backend, one thread; the contenders take turns, the figures are medians of the
per-turn ratios. On torch diffusers and transformers run on the same weights, and YOLOv8n written
by hand in the faster memory layout; on JAX and TensorFlow the same layers of Keras, compiled as one
function as khub's are.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from . import cv_peers as peers
from . import yolo_v8
from .compare import NOISE, RESULTS, describe
from .cv_peers import CONTEXT, TEXT
from .layers import main, run

CELLS = ["text_encode", "unet_step", "vae_decode", "yolo_320", "yolo_640", "nms", "memory"]
LATENTS = {"unet_step": 64, "vae_decode": 32}  # height and width
NMS_BOXES, NMS_LIMIT = 8400, 0.010  # seconds
MEMORY = 1.1  # highest allowed peak over diffusers'


def parts(folder):
    """Write the networks as diffusers and transformers do; name -> their class."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    width = TEXT["width"]
    text = transformers.CLIPTextConfig(
        vocab_size=TEXT["words"],
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=TEXT["layers"],
        num_attention_heads=TEXT["heads"],
    )
    made = {
        "text_encode": transformers.CLIPTextModel(text),
        "unet_step": diffusers.UNet2DConditionModel(
            block_out_channels=peers.WIDTHS,
            attention_head_dim=peers.HEADS,
            cross_attention_dim=CONTEXT,
            norm_num_groups=peers.GROUPS,
        ),
        "vae_decode": diffusers.AutoencoderKL(
            block_out_channels=peers.DECODER[::-1],
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=peers.DECODER_GROUPS,
        ),
    }
    for name, model in made.items():
        model.save_pretrained(Path(folder, name))
    return {name: type(model) for name, model in made.items()}


def inputs(cell):
    """NumPy arrays that the network of a cell takes."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, "float32")

    if cell == "text_encode":
        return [random.integers(0, TEXT["words"], (2, TEXT["tokens"])).astype("int32")]
    size = LATENTS[cell]
    if cell == "vae_decode":
        return [normal(1, size, size, 4)]
    times = np.array([981, 981], "float32")
    return [normal(2, size, size, 4), times, normal(2, TEXT["tokens"], CONTEXT)]


def khub_network(cell, folder):
    """A function of the arrays of `inputs`."""
    from khub import cv

    if cell == "text_encode":
        model = cv.CLIPTextEncoder.from_preset(folder)
        return lambda ids: model(ids)["sequence_output"]
    if cell == "vae_decode":
        return cv.Autoencoder.from_preset(folder).decode
    model = cv.UNet.from_preset(folder)
    return lambda x, t, c: model({"latents": x, "timesteps": t, "context": c})


def torch_network(cell, cls, folder):
    """The same of the reference, in its own layout."""
    model = cls.from_pretrained(folder).eval()
    if cell == "text_encode":
        return lambda ids: model(ids)[0]

    def first(x):
        return x.permute(0, 3, 1, 2).contiguous()

    if cell == "vae_decode":
        return lambda x: model.decode(first(x)).sample.permute(0, 2, 3, 1)
    return lambda x, t, c: model(first(x), t, c).sample.permute(0, 2, 3, 1)


def on_torch(cell, folder):
    import torch

    import khub

    torch.set_num_threads(1)
    classes = parts(folder)
    sides = {"khub": khub.jit(khub_network(cell, folder / cell))}
    given = [torch.from_numpy(x) for x in inputs(cell)]
    sides["diffusers"] = torch_network(cell, classes[cell], folder / cell)

    def inference(function):
        with torch.inference_mode():
            return function(*given)

    ours, theirs = (inference(function).numpy() for function in sides.values())
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    return {side: (lambda f=f: inference(f)) for side, f in sides.items()}


def on_graphs(cell, folder, backend):
    """JAX and TensorFlow, where both sides are compiled as one function."""
    import keras

    import khub
    from khub import ops

    parts(folder)
    ours = khub.jit(khub_network(cell, folder / cell))
    given = [ops.convert_to_tensor(x) for x in inputs(cell)]
    draw, size = peers.Keras(keras), given[0].shape[1]
    made = {
        "text_encode": lambda: draw.text_encoder(2),
        "unet_step": lambda: draw.unet(2, size),
        "vae_decode": lambda: draw.decoder(size),
    }
    model = made[cell]()
    taken = given if len(given) > 1 else given[0]
    if backend == "tensorflow":
        import tensorflow as tf

        theirs = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0], training=False))
        return {"khub": lambda: ours(*given), "keras": lambda: theirs(*given)}
    import jax

    weights = [
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    theirs = jax.jit(lambda w, x: model.stateless_call(*w, x, training=False)[0])
    return {"khub": lambda: ours(*given), "keras": lambda: theirs(weights, taken)}


def suppression():
    """khub's non-maximum suppression of a detector's whole output."""
    import khub
    from khub import ops
    from khub.cv.suppression import non_max_suppression

    random = np.random.default_rng(0)
    centres, sizes = random.random((2, 1, NMS_BOXES, 2)) * [[[[640]]], [[[200]]]]
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1).astype("float32")
    shape = 1, NMS_BOXES, yolo_v8.CLASSES
    scores = random.beta(0.3, 8, shape).astype("float32")  # most are small
    given = [ops.convert_to_tensor(x) for x in (boxes, scores)]
    found = khub.jit(lambda b, s: non_max_suppression(b, s)["boxes"])
    return {"khub": lambda: found(*given)}


PEAK = """
import sys
import numpy as np
def peak():
    rows = open("/proc/self/status").read().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM"))
from pathlib import Path
from benchmarks.cv import inputs, khub_network, torch_network
import diffusers, torch
torch.set_num_threads(1)
torch.nn.functional.conv2d(torch.ones(1, 3, 9, 9), torch.ones(3, 3, 3, 3))
before, folder = peak(), Path(sys.argv[2])
classes = {"unet_step": diffusers.UNet2DConditionModel, "vae_decode": diffusers.AutoencoderKL}
for cell, cls in classes.items():
    ours = sys.argv[1] == "khub"
    run = khub_network(cell, folder / cell) if ours else torch_network(cell, cls, folder / cell)
    with torch.inference_mode():
        run(*[torch.from_numpy(x) for x in inputs(cell)])
print(peak() - before)
"""


def memory():
    """Memory at its peak of loading, a UNet's step and decoding, khub's over diffusers'."""
    with tempfile.TemporaryDirectory() as folder:
        parts(folder)
        peaks = {}
        for side in ("khub", "diffusers"):
            command = [sys.executable, "-c", PEAK, side, folder]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[side] = int(found.stdout.split()[-1])
    ratio = peaks["khub"] / peaks["diffusers"]
    result = {"peak_bytes": peaks, "ratio": ratio, "limit": MEMORY}
    return result | {"compared_with": "diffusers", "reaches_target": ratio <= MEMORY}


def judge(cell, seconds):
    """Medians of the per-turn ratios, and whether khub is as fast as it must be."""
    result = {"median_seconds": {side: median(times) for side, times in seconds.items()}}
    result["seconds"] = seconds
    if cell == "nms":
        found = result["median_seconds"]["khub"]
        return result | {"limit_seconds": NMS_LIMIT, "reaches_target": found <= NMS_LIMIT}
    other = min(seconds.keys() - {"khub"}, key=lambda side: median(seconds[side]))  # the faster one
    ratios = [a / b for a, b in zip(seconds["khub"], seconds[other], strict=True)]
    result |= {"ratio": median(ratios), "quartiles": quantiles(ratios, n=4)[::2], "limit": NOISE}
    return result | {"compared_with": other, "reaches_target": median(ratios) <= NOISE}


def measure(options):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    path, good = RESULTS / f"cv_{options.backend}.json", True
    table = json.loads(path.read_text()) if path.exists() else {}
    for cell in options.cells.split(",") if options.cells else CELLS:
        if cell == "memory":
            if options.backend != "torch":
                continue
            result = memory()
        else:
            with tempfile.TemporaryDirectory() as folder:
                if cell == "nms":
                    sides = suppression()
                elif cell.startswith("yolo"):
                    sides = yolo_v8.contenders(int(cell.partition("_")[2]), options.backend)
                elif options.backend == "torch":
                    sides = on_torch(cell, Path(folder))
                else:
                    sides = on_graphs(cell, Path(folder), options.backend)
                result = judge(cell, run(sides, 1, options.turns))
        table[cell] = describe(options.backend) | result
        times = result.get("median_seconds", {})
        shown = [f"{side} {t * 1e3:.1f} ms" for side, t in times.items()]
        if "ratio" in result:
            shown.append(f"{result['ratio']:.2f} of {result['compared_with']}")
        verdict = "pass" if result["reaches_target"] else "FAIL"
        print(f"{options.backend:12}{cell:14}{', '.join(shown)}  {verdict}", flush=True)
        good &= result["reaches_target"]
        path.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("benchmarks.cv", __doc__.splitlines()[0], CELLS, 9, measure))
