"""How the embedded preset mobilenet_0.25_224_imagenet was made, from Google's ImageNet weights.

python presets/recipes/mobilenet_0.25_224_imagenet.py FILE
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from khub.applications.keras_backbone import KerasBackbone, KerasImageClassifier
from khub.presets import record_reference, weights
from khub.presets.images import ImagePreprocessor
from khub.presets.tensors import Checkpoint, write_file

NAME = "mobilenet_0.25_224_imagenet"
FOLDER = Path(__file__).parent.parent / "embedded" / NAME


def main(path):
    given = Checkpoint(path)
    named = {  # Keras 2's names -> khub's
        name.replace("/", ".").replace("depthwise_kernel", "kernel"): given.tensor(name)
        for name in given.names
    }
    model = KerasImageClassifier(
        KerasBackbone("MobileNet", {"alpha": 0.25}),
        preprocessor=ImagePreprocessor(resize=256, mean=(0.5,) * 3, std=(0.5,) * 3),
        dropout=1e-3,
    )
    with tempfile.TemporaryDirectory() as scratch:
        renamed = Path(scratch, "model.safetensors")
        write_file(renamed, named)
        weights.load(model, Checkpoint(renamed))
    model.save_to_preset(FOLDER)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    record_reference(model, FOLDER, {"image": images})


if __name__ == "__main__":
    main(sys.argv[1])
