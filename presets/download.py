"""From a handle to a folder on this machine: embedded files, the Hub's cache, archives."""

import hashlib
import http.client
import os
import re
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from khub.utils import files

from .catalog import entries, info
from .family import of_config
from .handles import parse
from .licences import refusal
from .tensors import NAMES, TORCH_NAMES, parse_json

CONFIG, PIPELINE = "config.json", "model_index.json"
SMALL_FILES = [  # everything of a preset but its weights
    CONFIG,
    PIPELINE,
    "scheduler_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "reference_outputs.safetensors",
]
WEIGHT_FILES = [name for names in NAMES for name in names if "fp16" not in name]
# in place of those, where a repository has none of them
OTHER_WEIGHT_FILES = [
    [name for names in NAMES for name in names if "fp16" in name],
    [name for name in TORCH_NAMES if "fp16" not in name],
    [name for name in TORCH_NAMES if "fp16" in name],
]
# of the network, the disk, a hash, an archive (RuntimeError: an encrypted one)
_FAULTS = (OSError, ValueError, http.client.HTTPException)
_FAULTS += (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError)


class DownloadError(OSError):
    """A preset could not be fetched; the message says why and what to do."""


def download(handle, revision=None, progress=True, weights=True, accept_license=False):
    """Return the folder with the preset's files, fetching what is not on this machine yet.

    revision: branch, tag or commit of a Hub repository   weights: False fetches all but those
    accept_license: needed for weights of the catalogue whose licence restricts their use
    Embedded presets and folders never open a socket. HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE and
    the Hub's tokens count. Raises DownloadError; ValueError for a malformed or unknown handle.
    """
    place = parse(handle)
    if revision and place.kind != "hub":
        raise ValueError(f"{handle} has no revisions: it is no repository on the Hub.")
    in_catalogue = isinstance(handle, str) and handle in entries()
    if weights and in_catalogue and (reason := refusal(info(handle), accept_license)):
        raise DownloadError(reason)
    if place.kind == "hub":
        return _from_hub(place.location, revision or place.revision, progress, weights)
    if place.kind == "archive":
        return _from_archive(place.location, place.revision)
    if place.kind == "published":
        config = info(place.location).config
        return of_config(config, place.location).published(config, True).parent
    folder = Path(place.location)
    if description(folder) is None:
        raise FileNotFoundError(f"{folder} is no preset: it has no {CONFIG} and no {PIPELINE}.")
    return folder


def description(folder):
    """Return the path of what says what a preset is, None where there is none.

    A pipeline of several models has a model_index.json, everything else a config.json.
    """
    return next((p for p in (folder / PIPELINE, folder / CONFIG) if p.is_file()), None)


def is_offline():
    """Whether HF_HUB_OFFLINE forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


@contextmanager
def _progress_bars(wanted):
    from huggingface_hub import utils

    if wanted or utils.are_progress_bars_disabled():
        yield
    else:
        utils.disable_progress_bars()
        try:
            yield
        finally:
            utils.enable_progress_bars()


def _from_hub(repository, revision, progress, weights):
    import huggingface_hub
    from huggingface_hub import errors

    what = f"hf://{repository}" + (f"@{revision}" if revision else "")

    def snapshot(patterns):
        # the environment is read here, because huggingface_hub reads it once, at its import
        return huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            cache_dir=os.environ.get("HF_HUB_CACHE"),
            endpoint=os.environ.get("HF_ENDPOINT"),
            local_files_only=is_offline(),
        )

    try:
        with _progress_bars(progress):
            folder = Path(snapshot(SMALL_FILES + (WEIGHT_FILES if weights else [])))
            parts = [""]
            if (index := folder / PIPELINE).is_file():
                parts = _parts(index)
                files = SMALL_FILES + (WEIGHT_FILES if weights else [])
                snapshot([PIPELINE, *(part + file for part in parts for file in files)])
            for files in OTHER_WEIGHT_FILES if weights else ():  # an old repository
                parts = [part for part in parts if _lacks_weights(folder / part)]
                if parts:
                    snapshot([part + file for part in parts for file in files])
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{what} is gated: accept its terms on its page, then `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{what}: the repository has no such revision.") from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"{what} does not exist, or is private: check the name, or set HF_TOKEN."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        reason = (
            "is not (wholly) in the cache, and HF_HUB_OFFLINE forbids to download it; unset it once"
            if is_offline()
            else "cannot be downloaded: the Hub did not answer; check the network and HF_ENDPOINT"
        )
        raise DownloadError(f"{what} {reason}. ({_first_line(error)})") from error
    except (*errors.HfHubHTTPError.__bases__, OSError) as error:  # the HTTP client's own errors too
        raise DownloadError(f"{what} could not be downloaded: {_first_line(error)}") from error
    if description(folder) is None:
        raise DownloadError(f"{what} is no preset: it has no {CONFIG} and no {PIPELINE}.")
    _check_digests(folder, what)
    return folder


def _parts(index):
    """Return the sub-folders ("unet/", ...) of a pipeline that khub reads."""
    content = parse_json(index.read_bytes(), str(index))
    known = of_config(content, index).backbone.folders
    return [f"{name}/" for name in known if isinstance(content.get(name), list)]


def _lacks_weights(folder):
    """Whether a folder is of a model and has no weights yet."""
    return (folder / CONFIG).is_file() and not any(
        any(folder.glob(name)) for name in [*WEIGHT_FILES, *sum(OTHER_WEIGHT_FILES, [])]
    )


def _first_line(error):
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _check_digests(folder, what):
    """Compare large files with the server's sha256, which the cache keeps as the blob's name.

    A file that passed has its modification time noted in `~/.khub/checked`, and is not read again.
    """
    for path in (*folder.rglob("*.safetensors"), *folder.rglob("*pytorch_model*.bin")):
        blob = path.resolve()
        if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
            continue
        note = _home() / "checked" / blob.name
        stamp = str(blob.stat().st_mtime_ns)
        if note.is_file() and note.read_text() == stamp:
            continue
        with open(blob, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != blob.name:
            path.unlink()
            blob.unlink()
            raise DownloadError(
                f"{what}: {path.name} has sha256 {digest}, the server says {blob.name}. "
                "The damaged file was removed from the cache; download it again."
            )
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(stamp)


def _home():
    from khub import config

    return config.home()


def fetch(address, digest=None):
    """Return the path of a file, fetched once into `~/.khub/files`.

    digest: its MD5 or SHA-256 in hex, None where nobody published one
    Raises DownloadError when it cannot be fetched, or is another file than the digest says.
    """
    place = hashlib.sha256(f"{address} {digest}".encode()).hexdigest()[:16]
    target = _home() / "files" / place / address.rpartition("/")[2]
    return _kept(address, target, lambda part: files.fetch(address, part, digest))


def _from_archive(address, digest):
    def unpacked(folder):
        packed = folder.with_suffix(".zip")
        files.fetch(address, packed, digest)
        files.unpack(packed, folder)
        if description(folder) is None:
            raise ValueError(f"it is no preset: it has no {CONFIG} at its top")

    return _kept(address, _home() / "presets" / digest, unpacked)


def _kept(address, target, make):
    """Return `target`, which `make(path)` makes where it is not there yet."""
    if target.exists():
        return target
    if is_offline():
        raise DownloadError(
            f"{address} is not in {target}, and HF_HUB_OFFLINE forbids to fetch it."
        )
    try:
        with files.placing(target) as part:
            make(part)
    except _FAULTS as error:
        text = str(error).removesuffix(".")
        raise DownloadError(f"{address} could not be fetched: {text}.") from error
    return target
