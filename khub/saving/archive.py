"""`.keras` archives: a zip of metadata, config, weights and assets, or the same as a folder.

An archive is hostile until shown otherwise: its members are checked before one is read, and only
registered classes are made from its config (`khub.saving.registry`).
"""

import io
import json
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from khub.layers.layer import Layer
from khub.saving import h5, registry
from khub.saving.files import check_size, parse_json, replacing
from khub.saving.weights import assign, entries, load_legacy, places

CONFIG, METADATA, WEIGHTS, ASSETS = "config.json", "metadata.json", "model.weights.h5", "assets"
KERAS = "3.15.1"  # the version whose files these are


def save_model(model, filepath, overwrite=True, zipped=None, **kwargs):
    """Write a model: architecture, weights, state of the optimizer, what `compile` got.

    filepath: ends in .keras; does not where `zipped` is False: a folder is written
    Raises FileExistsError when there is one and not `overwrite`; ValueError for what has no config.
    """
    from khub.models import lora

    path = Path(filepath)
    if kwargs or (path.suffix == ".keras") == (zipped is False):
        raise ValueError(
            f"filepath must end in .keras, and must not where zipped=False; got {path.name!r}"
            f"{kwargs or ''}. Legacy .h5 files are only read; export() writes what others serve."
        )
    metadata = {"keras_version": KERAS, "date_saved": f"{datetime.now():%Y-%m-%d@%H:%M:%S}"}
    texts = {METADATA: metadata, CONFIG: registry.serialize_built(model) | lora.described(model)}
    with (
        replacing(path, overwrite) as temporary,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as private,
    ):
        folder = Path(private) / "files"
        folder.mkdir()
        for name, content in texts.items():
            (folder / name).write_text(json.dumps(content))
        h5.write(folder / WEIGHTS, entries(model))
        for place, item in places(model).items():
            if hasattr(item, "save_assets"):
                (folder / ASSETS / place).mkdir(parents=True, exist_ok=True)
                item.save_assets(str(folder / ASSETS / place))
        if zipped is False:
            folder.rename(temporary)
            return
        with zipfile.ZipFile(temporary, "w") as archive:
            for file in filter(Path.is_file, sorted(folder.rglob("*"))):
                name = file.relative_to(folder).as_posix()
                with (
                    archive.open(name, "w", force_zip64=True) as member,
                    open(file, "rb") as source,
                ):
                    shutil.copyfileobj(source, member, 2**20)  # zipfile alone: 8 KB at a time


@contextmanager
def opened(path):
    """Give the root of an archive or folder, whose members have been checked.

    Raises ValueError when it is none, damaged or hostile.
    """
    try:
        if path.is_dir():
            if links := [str(file) for file in path.rglob("*") if file.is_symlink()]:
                raise ValueError(f"{path} has links, refused: {links}.")
            yield path
            return
        with zipfile.ZipFile(path) as archive:
            _check(path, archive.infolist())
            yield zipfile.Path(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is no .keras archive, or is damaged: {error}.") from error


def _check(path, members):
    names = [member.filename for member in members]
    for member in members:
        name, kind = member.filename, member.external_attr >> 28
        problems = {
            "is there twice": names.count(name) > 1,
            "leads out of it": re.search(r"^/|\\|:|(^|/)\.\.(/|$)", name),
            "is a link or device": kind not in (0, 4, 8),  # 0: unknown, 4: folder, 8: file
            "is encrypted": member.flag_bits & 1,
        }
        for problem in filter(problems.get, problems):
            raise ValueError(f"{path}: {name!r} {problem}, refused.")
        check_size(f"{path}: {name!r}", member.file_size, member.compress_size)


def load_model(filepath, custom_objects=None, compile=True, safe_mode=True):  # noqa: A002
    """Return the model in a file that `save_model` or Keras wrote, or in a legacy .h5 file.

    custom_objects: name -> class or function that may be made beside the registered ones
    compile: whether to compile as it was when it was saved
    safe_mode: for Keras' sake; nothing in a file is run either way
    Raises ValueError for what is damaged, hostile, unknown or does not fit.
    """
    path = Path(filepath)
    with registry.CustomObjectScope(custom_objects):
        if path.suffix in (".h5", ".hdf5"):
            return _load_legacy(path, compile)
        with opened(path) as root:
            if not (root / CONFIG).is_file():
                raise ValueError(f"{path} has no {CONFIG}: it is no .keras archive.")
            model = _made(path, (root / CONFIG).read_bytes(), compile)
        load_state(model, path)
        return model


def _made(path, text, compiled, modern=dict):
    from khub.models import lora

    config = parse_json(text, f"{path}: {CONFIG}")
    training = config.pop("compile_config", None)
    try:
        model = registry.deserialize_built(modern(config), "models")
        if not isinstance(model, Layer):
            raise ValueError(f"it holds a {type(model).__name__}, expected a model or layer.")
        if "adapted" in config:
            lora.restore(model, **config["adapted"])
        if compiled and training:
            model.compile_from_config(training)
        return model
    except Exception as error:  # whatever a class of the user's raises too
        text = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path}: its config describes no model: {text}") from error


@contextmanager
def arrays(path):
    """Give (root, path -> key -> array) of an archive or a .weights.h5, which is its own root."""
    path = Path(path)
    if path.suffix == ".h5":
        with h5.opened(path, path) as file:
            yield path, h5.groups(file)
        return
    with opened(path) as root:
        weights = root / WEIGHTS
        if not weights.is_file():
            raise ValueError(f"{path} has no {WEIGHTS}: it is no .keras archive.")
        source = weights if path.is_dir() else io.BytesIO(weights.read_bytes())
        with h5.opened(source, weights) as file:
            yield root, h5.groups(file)


def load_state(model, path, skip_mismatch=False, objects_to_skip=()):
    """Assign the weights in an archive to a model, and give its layers their assets."""
    with arrays(path) as (root, found):
        assign(model, found, path, skip_mismatch, objects_to_skip)
        for place, item in places(model).items():
            assets = root.joinpath(ASSETS, place)
            if hasattr(item, "load_assets") and assets.is_dir():
                with tempfile.TemporaryDirectory() as folder:
                    for asset in filter(lambda asset: asset.is_file(), assets.iterdir()):
                        (Path(folder) / asset.name).write_bytes(asset.read_bytes())
                    item.load_assets(folder)


_GONE = ("implementation", "input_length", "time_major")  # what layers of Keras 2 had besides


def _modern(value):
    """Return a config of Keras 2 as Keras 3 writes it."""
    if isinstance(value, list):
        return [_modern(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _modern(item) for key, item in value.items() if key not in _GONE}
    for key in ("axis", "input_layers", "output_layers"):  # lists of one stood for it
        if isinstance(value.get(key), list) and len(value[key]) == 1:
            value[key] = value[key][0]
    if value.get("class_name") == "InputLayer" and "batch_input_shape" in value["config"]:
        value["config"]["batch_shape"] = value["config"].pop("batch_input_shape")
    if "inbound_nodes" in value:
        value["inbound_nodes"] = [_modern_call(call) for call in value["inbound_nodes"]]
    return value


def _modern_call(call):
    """Return [[name, call, output, arguments], ...] as {"args", "kwargs"}."""
    tensor = {"class_name": "__keras_tensor__"}
    inputs = [tensor | {"config": {"keras_history": place}} for *place, _ in call]
    return {"args": inputs if len(inputs) == 1 else [inputs], "kwargs": call[0][3]}


def _load_legacy(path, compiled):
    with h5.opened(path, path) as file:
        if "model_config" not in file.attrs:
            raise ValueError(f"{path} has weights, but no model: make it, then load_weights().")
        old = file.attrs.get("keras_version", "3")[:1] in ("2", b"2")
        model = _made(path, file.attrs["model_config"], True, _modern if old else dict)
        load_legacy(model, h5.legacy(file), path)
        if compiled and "training_config" in file.attrs:
            training = parse_json(file.attrs["training_config"], f"{path}: training_config")
            training["optimizer"] = training.pop("optimizer_config")
            if old:
                training["optimizer"]["config"].pop("decay", None)
                warnings.warn(f"{path} is of Keras 2: its optimizer begins anew.", stacklevel=3)
            model.compile_from_config(training)
            if "optimizer_weights" in file and not old:
                state = h5.named_arrays(h5.inside(file.id, "optimizer_weights"))
                model.optimizer.build(model.trainable_variables)
                if any(array.shape for array in state):  # counters alone: it had not begun
                    model.optimizer.set_weights([array.read() for array in state])
    return model
