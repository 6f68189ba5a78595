"""Pipelines: several models, tokenizers and settings in one folder, in the layout of diffusers.

`model_index.json` names the parts, each of which lies in a folder of its name.
"""

import math
from pathlib import Path

from .download import CONFIG, PIPELINE
from .family import of_class
from .preset import Presettable, choose_class, load, open_preset, staged
from .tensors import WeightsError, parse_json, write_json
from .weights import numpy_dtype


class Pipeline(Presettable):
    """Gives a class that is made of parts `from_preset` and `save_to_preset`.

    Its constructor takes the parts by name, each of which becomes an attribute, and `index`, what
    model_index.json says besides.
    folders: the parts that are read -> what reads such a folder, None for a model
    required: those of them without which it does not work
    """

    folders = {}
    required = ()

    @classmethod
    def from_preset(
        cls,
        handle,
        load_weights=True,
        dtype=None,
        strict=True,
        quantize=None,
        accept_license=False,
        **overrides,
    ):
        """Return the pipeline of a preset.

        Arguments: as `Presettable.from_preset` has them, dtype of all models; overrides: arguments
        of the constructor, parts too, which are then not read
        Raises FileNotFoundError for a part that is missing.
        """
        preset = open_preset(handle, load_weights, accept_license)
        target = choose_class(cls, preset)
        options = dict(load_weights=load_weights, dtype=dtype, strict=strict, quantize=quantize)
        found = {
            name: _read(preset, name, reader, options)
            for name, reader in target.folders.items()
            if name not in overrides and _is_named(preset.config, name)
        }
        if missing := [n for n in target.required if n not in found and n not in overrides]:
            raise FileNotFoundError(
                f"{preset.folder / PIPELINE} does not name {', '.join(missing)}; a "
                f"{target.__name__} needs {', '.join(target.required)}. Give what is missing as an "
                "argument, or download the preset again."
            )
        others = {n: v for n, v in preset.config.items() if n not in target.folders}
        return target(**{"index": others, **found, **overrides})

    def save_to_preset(self, folder, dtype=None):
        """Write all parts as diffusers lays them out, or, when anything fails, nothing.

        dtype: of the floats in the files, None means as they are
        Raises OSError when there is no room, FileExistsError for a folder that is no preset.
        """
        parts = {name: getattr(self, name) for name in self.folders}
        parts = {name: part for name, part in parts.items() if part is not None}
        models = [part for part in parts.values() if hasattr(part, "weight_map")]
        sizes = (
            numpy_dtype(dtype or v.dtype).itemsize * math.prod(v.shape)
            for model in models
            for v in model.variables
        )
        with staged(Path(folder), sum(sizes)) as scratch:
            index = {name: _write(part, scratch / name, dtype) for name, part in parts.items()}
            others = {n: [None, None] if isinstance(v, list) else v for n, v in self.index.items()}
            write_json(scratch / PIPELINE, {**others, **index})


def _is_named(index, name):
    return isinstance(index.get(name), list) and None not in index[name]


def _read(preset, name, reader, options):
    folder = preset.folder / name
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FileNotFoundError(
            f"{preset.folder} lacks the part {name!r}, which its {PIPELINE} names: there is no "
            f"{folder}. Download or save the preset again."
        )
    return load(folder, **options) if reader is None else reader(folder)


def _write(part, folder, dtype):
    """Write a part and return what model_index.json says of it: [library, class]."""
    if isinstance(part, (list, tuple)):
        raise ValueError(f"A folder has room for one {folder.name}, not {len(part)}: save each.")
    if not hasattr(part, "weight_map"):
        folder.mkdir()
        part.save(folder)
        return [getattr(part, "reference_library", "transformers"), part.reference_class]
    part.save_to_preset(folder, dtype)
    config = parse_json((folder / CONFIG).read_bytes(), str(folder / CONFIG))
    if "_class_name" in config:
        return ["diffusers", config["_class_name"]]
    if not config.get("architectures"):
        raise WeightsError(f"The family {of_class(type(part)).name} says no architecture.")
    return ["transformers", config["architectures"][0]]
