"""`.keras` archives: a zip of metadata, config, weights and assets, or the same as a folder.

An archive is hostile until shown otherwise: its members are checked before one is read, and only
registered classes are made from its config (`khub.saving.registry`).
"""

import json
import mmap
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from datetime import datetime
from pathlib import Path, PurePosixPath

from khub.saving import h5, registry
from khub.saving.files import parse_json, replacing
from khub.saving.weights import assign, entries, load_legacy, places

CONFIG, METADATA, WEIGHTS, ASSETS = "config.json", "metadata.json", "model.weights.h5", "assets"
KERAS = "3.15.1"  # the version whose files these are
TEXT_LIMIT = 2**28  # bytes of a config
EXPANDED = 1000  # so many times may be packed what is read; deflate cannot do more


# --- saving --------------------------------------------------------------------------------------
def save_model(model, filepath, overwrite=True, zipped=None):
    """Write a model: architecture, weights, state of the optimizer, what `compile` got.

    filepath: ends in .keras; without it where `zipped` is False: a folder is written
    Raises FileExistsError when there is one and not `overwrite`; ValueError for what has no config.
    """
    path = Path(filepath)
    if (path.suffix == ".keras") == (zipped is False):
        wanted = "not end in .keras where zipped=False" if zipped is False else "end in .keras"
        raise ValueError(
            f"filepath must {wanted}, got {path.name!r}. Legacy .h5 files are only read; "
            "export() writes what other programs serve."
        )
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists, and overwrite=False.")
    texts = {
        METADATA: {"keras_version": KERAS, "date_saved": f"{datetime.now():%Y-%m-%d@%H:%M:%S}"}
    }
    texts |= {CONFIG: registry.serialize(model)}
    texts = {name: json.dumps(content) for name, content in texts.items()}
    with replacing(path) as temporary:
        if zipped is False:
            temporary.mkdir()
            for name, text in texts.items():
                (temporary / name).write_text(text)
            h5.write(temporary / WEIGHTS, entries(model))
            _write_assets(model, temporary / ASSETS)
            return
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
            with tempfile.TemporaryFile(dir=path.parent) as file:
                h5.write(file, entries(model))
                file.seek(0)
                with archive.open(WEIGHTS, "w", force_zip64=True) as member:
                    shutil.copyfileobj(file, member, 2**20)
            with tempfile.TemporaryDirectory() as folder:
                _write_assets(model, folder)
                for file in sorted(Path(folder).rglob("*")):
                    if file.is_file():
                        archive.write(file, f"{ASSETS}/{file.relative_to(folder).as_posix()}")


def _write_assets(model, folder):
    for path, item in places(model).items():
        if hasattr(item, "save_assets"):
            own = Path(folder) / path
            own.mkdir(parents=True, exist_ok=True)
            item.save_assets(str(own))


# --- reading -------------------------------------------------------------------------------------
class _Zip:
    """An archive whose members have been checked: names, kinds, sizes."""

    def __init__(self, path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{path} is no .keras archive, or is damaged: {error}.") from error
        self.names = {}
        for info in self._zip.infolist():
            if problem := self._problem(info):
                raise ValueError(f"{path}: the member {info.filename!r} {problem}, refused.")
            self.names[info.filename] = info

    def _problem(self, info):
        kind = stat.S_IFMT(info.external_attr >> 16)
        parts = PurePosixPath(info.filename).parts
        if info.filename in self.names:
            return "is there twice"
        if info.filename[:1] == "/" or ".." in parts or "\\" in info.filename or ":" in parts[0]:
            return "leads out of the archive"
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            return "is a link or device"
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            return "is encrypted or packed in another way than by deflate"
        packed = info.compress_size
        expanded = EXPANDED if info.compress_type else 1
        if info.file_size > packed * expanded:
            return f"claims {info.file_size:,} bytes packed into {packed:,}"
        return None

    def read(self, name):
        """Return the bytes of a member."""
        info = self.names[name]
        try:
            if info.compress_type == zipfile.ZIP_DEFLATED:
                return self._zip.read(info)
            self._zip.open(info).close()  # compares the header before the bytes with the list
            with open(self.path, "rb") as file:
                pages = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            lengths = struct.unpack_from("<HH", pages, info.header_offset + 26)
            start = info.header_offset + 30 + sum(lengths)
            content = pages[start : start + info.file_size]
            if zlib.crc32(content) != info.CRC:
                raise zipfile.BadZipFile(f"the sum of {name} is wrong")
            return content
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self.path} is damaged: {error}.") from error


class _Folder:
    """An archive that is not packed."""

    def __init__(self, path):
        self.path, files = path, list(path.rglob("*"))
        if links := [str(file) for file in files if file.is_symlink()]:
            raise ValueError(f"{path} has links, refused: {', '.join(links)}.")
        self.names = {f.relative_to(path).as_posix(): f for f in files if f.is_file()}

    def read(self, name):
        """Return the bytes of a file."""
        return self.names[name].read_bytes()


def opened(path):
    """Return the archive at a path.  Raises ValueError when it is none, or hostile."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a .keras archive.")
    archive = _Folder(path) if path.is_dir() else _Zip(path)
    if missing := [name for name in (CONFIG, WEIGHTS) if name not in archive.names]:
        raise ValueError(f"{path} lacks {' and '.join(missing)}: it is no .keras archive.")
    return archive


def read_config(archive):
    """Return what `config.json` describes."""
    text = archive.read(CONFIG)
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"{archive.path}: {CONFIG} has {len(text):,} bytes, refused.")
    return parse_json(bytes(text), f"{archive.path}: {CONFIG}")


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
        archive = opened(path)
        model = _made(path, read_config(archive), compile)
        _load_state(model, archive)
    return model


def _made(path, config, compiled):
    if not compiled:
        config.pop("compile_config", None)
    try:
        return registry.deserialize(config, kind="models")
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its config makes no model: {error}") from error


def _load_state(model, archive, skip_mismatch=False, objects_to_skip=()):
    source = f"{archive.path}: {WEIGHTS}"
    with h5.opened(archive.read(WEIGHTS), source) as (file, content):
        assign(model, h5.groups(file, content), source, skip_mismatch, objects_to_skip)
    for place, item in places(model).items():
        prefix = f"{ASSETS}/{place}/".replace("//", "/")
        own = [n for n in archive.names if n.startswith(prefix) and "/" not in n[len(prefix) :]]
        if hasattr(item, "load_assets") and any(own):
            with tempfile.TemporaryDirectory() as folder:
                for name in filter(lambda name: name != prefix, own):
                    (Path(folder) / name[len(prefix) :]).write_bytes(archive.read(name))
                item.load_assets(folder)


def load_weights_of(model, path, skip_mismatch=False, objects_to_skip=()):
    """Assign the weights in an archive to a model."""
    _load_state(model, opened(path), skip_mismatch, objects_to_skip)


def _load_legacy(path, compiled):
    with h5.opened(path) as (file, content):
        texts = {k: file.attrs.get(f"{k}_config") for k in ("model", "training")}
        if texts["model"] is None:
            raise ValueError(f"{path} has weights, but no model: make it, then load_weights().")
        config = parse_json(texts["model"], f"{path}: model_config")
        model = _made(path, config, True)
        load_legacy(model, h5.legacy(file, content), path)
        if compiled and texts["training"]:
            training = parse_json(texts["training"], f"{path}: training_config")
            training["optimizer"] = training.pop("optimizer_config")
            model.compile_from_config(training)
            if "optimizer_weights" in file:
                group = h5.inside(file.id, "optimizer_weights")
                model.optimizer.build(model.trainable_variables)
                model.optimizer.set_weights([a.read() for a in h5.named_arrays(group, content)])
    return model
