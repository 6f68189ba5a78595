"""`Model.export`: which backend makes which format, here or in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from unittest.mock import patch

from khub import backend, saving
from khub.choices import choose
from khub.export.signature import need, signature_of
from khub.ops.symbolic import KerasTensor
from khub.saving.files import replacing

MADE_BY = {  # format -> the backends that make it; the first one makes it for the others
    "tf_saved_model": ("tensorflow", "jax"),
    "litert": ("tensorflow",),
    "onnx": ("torch",),
    "torch": ("torch",),
    "stablehlo": ("jax",),
}


def export_model(model, filepath, format, verbose, input_signature, options):  # noqa: A002
    """Write a model's call (`training=False`) to `filepath`, which is replaced when all is there.

    Raises ImportError where the framework that makes the format is not installed.
    """
    if format == "openvino":
        raise NotImplementedError("OpenVINO reads ONNX: export(path, format='onnx').")
    makers = MADE_BY[choose("format", format, MADE_BY)]
    signature = signature_of(model, input_signature)
    need(makers[0], f"format={format!r}")
    with replacing(filepath) as path:
        if backend.name in makers:
            place = "archive" if format == "tf_saved_model" else backend.name
            make = getattr(import_module(f"khub.export.{place}"), f"to_{format}")
            make(model, signature, path, **options)
        else:
            _elsewhere(makers[0], model, format, signature, path, options)
    if verbose:
        print(f"{model.name} is exported to {filepath}: {format}.")


def _elsewhere(name, model, format, signature, path, options):  # noqa: A002
    """Let a process with another backend load the model and export it."""
    classes = {type(layer).__module__ for layer in model.named_layers().values()}
    attributes = vars(model)
    own = {"preprocessor": None} if "preprocessor" in attributes else {}  # it is not exported
    with tempfile.TemporaryDirectory() as folder:
        with patch.dict(attributes, own):
            saving.save_model(model, f"{folder}/model.keras")
        asked = dict(model=f"{folder}/model.keras", modules=sorted(classes - {"__main__"}))
        asked |= dict(filepath=str(path), format=format, input_signature=[signature])
        done = subprocess.run(
            [sys.executable, "-m", "khub.export"],
            input=json.dumps(asked | options, default=_plain),
            env={**os.environ, "KHUB_BACKEND": name, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(
            f"{model.name} could not be exported as {format!r} on the {name} backend:\n"
            f"{done.stderr[-2000:]}"
        )


def _plain(x):
    if isinstance(x, KerasTensor):
        return {"KerasTensor": dict(shape=x.shape, dtype=x.dtype, name=x.name)}
    raise TypeError(f"Options of an export on another backend are plain data, got {x!r}.")


def _revived(value):
    return KerasTensor(**value["KerasTensor"]) if "KerasTensor" in value else value


def main():
    """Do what `_elsewhere` asks for, on standard input."""
    asked = json.load(sys.stdin, object_hook=_revived)
    for module in asked.pop("modules"):
        import_module(module)
    model = saving.load_model(asked.pop("model"), compile=False)
    model.export(**asked)
