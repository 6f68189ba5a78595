"""safetensors: a memory-mapped reader that distrusts the file, a writer that leaves no half of one.

Format: 8 bytes of header size, a JSON header {name: {dtype, shape, data_offsets}}, the bytes.
https://github.com/huggingface/safetensors#format
"""

import errno
import json
import math
import mmap
import os
import struct
import uuid
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from khub.saving.files import WeightsError

HEADER_LIMIT = 100_000_000  # bytes; the reference implementation's limit too
SHARD_LIMIT = 5_000_000_000  # bytes
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# How a folder's weights may be named, those that are read first first: as transformers does and as
# diffusers does; ".fp16": the half-precision copy of a repository that has both.
NAMES = [
    (f"{stem}{kind}.safetensors", f"{stem}{kind}-*-of-*.safetensors", f"{stem}.safetensors.{index}")
    for kind, index in (("", "index.json"), (".fp16", "index.fp16.json"))
    for stem in ("model", "diffusion_pytorch_model")
]
TORCH_NAMES = [
    f"{stem}{kind}.bin"
    for kind in ("", ".fp16")
    for stem in ("pytorch_model", "diffusion_pytorch_model")
]

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
DTYPES = {code: np.dtype(dtype) for code, dtype in DTYPES.items()}
CODES = {dtype: code for code, dtype in DTYPES.items()}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_float(dtype):
    """Whether a NumPy dtype, of ml_dtypes too, is a floating-point one."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read only when it is needed: on its way into a file, or in one."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self):
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def _unique(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"these names occur twice: {', '.join(twice)}")
    return found


def parse_json(text, what):
    """Return the JSON object in `text` (str or bytes); `what` names it in the WeightsError."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{what} is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{what} must be a JSON object, got {type(found).__name__}.")
    return found


def _is_size(value):
    return type(value) is int and value >= 0


def _entry(path, name, entry, data_size):
    """Return (dtype, shape, begin, end) of a header entry, checked against the file's size."""
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise WeightsError(
            f"{where} needs dtype, shape and data_offsets; the header has {entry!r}."
        )
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise WeightsError(
            f"{where} has dtype {entry['dtype']!r}; expected one of {', '.join(DTYPES)}."
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise WeightsError(f"{where} has shape {shape!r}; expected a list of sizes.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise WeightsError(f"{where} has data_offsets {offsets!r}; expected [begin, end].")
    begin, end = offsets
    if begin > end or end > data_size:
        raise WeightsError(
            f"{where} lies at bytes {begin} to {end} of the data; the file has {data_size}: "
            "it is truncated or damaged; download it again."
        )
    needed = math.prod(shape) * dtype.itemsize
    if needed != end - begin:
        raise WeightsError(
            f"{where}, {dtype} {tuple(shape)}, needs {needed} bytes; its data_offsets cover "
            f"{end - begin}."
        )
    return dtype, tuple(shape), begin, end


class Pages:
    """An open file's bytes as arrays, each the caller's own: writing changes no file, no other.

    The first array of a place is a view of a private memory map; the system gets its pages back
    when nobody holds a view of it any more. What is asked for again is a copy.
    """

    def __init__(self, file):
        self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._given = set()

    def array(self, dtype, count, start):
        """Return `count` numbers from the byte `start` on."""
        pages = self.bytes if start in self._given else self._private
        self._given.add(start)
        array = np.frombuffer(pages, dtype, count, start)
        size = mmap.PAGESIZE
        first, end = -(-start // size) * size, (start + array.nbytes) // size * size
        if first < end and hasattr(mmap, "MADV_DONTNEED"):  # pages that are this array's alone
            release = weakref.finalize(array, pages.madvise, mmap.MADV_DONTNEED, first, end - first)
            release.atexit = False
        # PyTorch and JAX want aligned memory; the formats do not promise it
        return array if array.flags.writeable and array.flags.aligned else array.copy()


class TensorFile:
    """The tensors of one safetensors file.

    Everything the header claims is checked against the file's size before anything is allocated.
    Raises WeightsError when it does not hold, FileNotFoundError when there is no such file.
    """

    def __init__(self, path):
        self.path = path = Path(path)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise WeightsError(f"{path} has {size} bytes: too short for a safetensors file.")
            header_size = struct.unpack("<Q", file.read(8))[0]
            if header_size > min(HEADER_LIMIT, size - 8):
                raise WeightsError(
                    f"{path} claims a header of {header_size:,} bytes, but the file has {size:,} "
                    f"(and {HEADER_LIMIT:,} is the limit): it is damaged or no safetensors file."
                )
            header = parse_json(file.read(header_size), f"The header of {path}")
            self._start = 8 + header_size
            data_size = size - self._start
            metadata = header.pop("__metadata__", {})
            if not isinstance(metadata, dict) or not all(
                isinstance(v, str) for v in metadata.values()
            ):
                raise WeightsError(f"{path}: __metadata__ must map names to strings.")
            self.metadata = metadata
            self._entries = {n: _entry(path, n, entry, data_size) for n, entry in header.items()}
            self._check_order(data_size)
            self._pages = Pages(file)

    def _check_order(self, data_size):
        position, before = 0, "the header"
        for name, (_, _, begin, end) in sorted(self._entries.items(), key=lambda e: e[1][2:]):
            if begin != position:
                what = "overlaps" if begin < position else "leaves a gap after"
                raise WeightsError(f"{self.path}: tensor {name!r} {what} {before}.")
            position, before = end, f"tensor {name!r}"
        if position != data_size:
            raise WeightsError(
                f"{self.path} has {data_size - position} bytes of data that belong to no tensor."
            )

    def __iter__(self):
        return iter(self._entries)

    def tensor(self, name):
        """Return the named `Tensor`; its `read()` gives an array of the caller's own."""
        dtype, shape, begin, end = self._entries[name]
        if begin == end:
            return Tensor(shape, dtype, lambda: np.zeros(shape, dtype))
        place = dtype, math.prod(shape), self._start + begin
        return Tensor(shape, dtype, lambda: self._pages.array(*place).reshape(shape))


class Checkpoint:
    """The tensors of a file, or of a folder with a file of `NAMES` or shards and their index.

    A file may be PyTorch's too; a folder without safetensors may have one of `TORCH_NAMES`.

    `names` is a set, `tensor(name)` a `Tensor`, `bytes` the size of all of them, `metadata` what a
    safetensors file says of itself.
    """

    def __init__(self, path):
        path = Path(path)
        if path.is_dir():
            names = [name for whole, _, index in NAMES for name in (whole, index)]
            there = [name for name in [*names, *TORCH_NAMES] if (path / name).exists()]
            path = path / (there[0] if there else INDEX)
        self.path, self.metadata = path, {}
        if path.name.endswith(".json"):
            self._files = self._read_index(path)
        else:
            self._files = dict.fromkeys(file := _open(path), file)
            self.metadata = file.metadata
        self.names = self._files.keys()
        self.bytes = sum(self.tensor(name).nbytes for name in self.names)

    def _read_index(self, path):
        if not path.exists():
            raise FileNotFoundError(_no_weights(path.parent))
        shards = parse_json(path.read_bytes(), str(path)).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise WeightsError(f"{path} needs weight_map, which maps tensor names to file names.")
        files = {}
        for shard in set(shards.values()):
            if shard != os.path.basename(shard) or not shard.endswith(".safetensors"):
                raise WeightsError(
                    f"{path} names the shard {shard!r}; expected a file beside the index."
                )
            files[shard] = _open(path.parent / shard)
        found = {name: shard for shard, file in files.items() for name in file}
        if found != shards:
            wrong = sorted({name for name, _ in found.items() ^ shards.items()})
            raise WeightsError(f"{path} disagrees with its shards on: {', '.join(wrong)}.")
        return {name: files[shard] for name, shard in shards.items()}

    def tensor(self, name):
        """Return the named `Tensor`."""
        return self._files[name].tensor(name)

    def float_dtypes(self):
        """Return the names of the floating-point dtypes in it."""
        dtypes = {self.tensor(name).dtype for name in self.names}
        return {dtype.name for dtype in dtypes if is_float(dtype)}


class Renamed:
    """Some tensors under other names, as a checkpoint.  tensors: name -> `Tensor`"""

    def __init__(self, path, tensors):
        self.path, self.names, self._tensors = path, tensors.keys(), tensors

    def tensor(self, name):
        """Return the named `Tensor`. Raises WeightsError when there is none."""
        if name not in self._tensors:
            raise WeightsError(f"{self.path} has no {name}, whatever it is called there.")
        return self._tensors[name]


def _open(path):
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; the preset is incomplete.")
    if not path.is_file():  # opening a named pipe would wait for ever
        raise WeightsError(f"{path} is no regular file; expected a safetensors file.")
    if path.suffix in TORCH_SUFFIXES:
        from .torch_pickle import TorchFile

        return TorchFile(path)
    return TensorFile(path)


def _no_weights(folder):
    others = [f.name for f in folder.glob("*") if f.suffix in (".h5", ".msgpack", ".onnx")]
    hint = (
        f" It has {', '.join(sorted(others))}, which this version does not read." if others else ""
    )
    return f"{folder} has no weights: expected {WEIGHTS}, {INDEX} or {TORCH_WEIGHTS}.{hint}"


def as_tensor(value):
    """Return an array as a `Tensor`; a `Tensor` is returned as it is."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    return Tensor(array.shape, array.dtype, lambda: array)


def _write_bytes(file, data):
    file.write(data)


def write_file(path, tensors, metadata=None):
    """Write a safetensors file under a temporary name, then rename it.

    tensors: name -> array or `Tensor` (read one at a time, as they are written)
    Raises OSError when the disk is full; a file that was there is then untouched.
    """
    path = Path(path)
    tensors = {name: as_tensor(value) for name, value in tensors.items()}
    header, position = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise WeightsError(
                f"Tensor {name!r} has dtype {tensor.dtype}, which safetensors does not know."
            )
        end = position + tensor.nbytes
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # where PyTorch may keep large tensors as they lie
    with replacing(path, 8 + len(text) + position) as file:
        _write_bytes(file, struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            array = np.ascontiguousarray(tensor.read(), tensor.dtype)
            if array.size != math.prod(tensor.shape):
                raise WeightsError(
                    f"Tensor {name!r} was announced as {tensor.shape}, got {array.shape}."
                )
            _write_bytes(file, array.reshape(-1).view(np.uint8).data)


@contextmanager
def replacing(path, size):
    """Open a file that replaces `path` only when all went well; `size` is for the error."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_room(error, path.parent, size) from error
    finally:
        temporary.unlink(missing_ok=True)


def no_room(error, folder, needed):
    """Return the OSError to raise for one of `FULL`: where, and how many bytes are needed."""
    size = "" if needed is None else f": {needed:,} bytes are needed"
    return OSError(error.errno, f"{folder} has no room{size}; what was there is unchanged")


def write_checkpoint(folder, tensors, metadata=None, shard_limit=SHARD_LIMIT, name="model"):
    """Write `name`.safetensors, or shards of at most `shard_limit` bytes and their index."""
    folder = Path(folder)
    tensors = {name: as_tensor(value) for name, value in tensors.items()}
    shards, room = [{}], shard_limit
    for key, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shard_limit
        shards[-1][key] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        return write_file(folder / f"{name}.safetensors", tensors, metadata)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for number, shard in enumerate(shards, 1):
        file = f"{name}-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / file, shard, metadata)
        index["weight_map"].update(dict.fromkeys(shard, file))
    write_json(folder / f"{name}.safetensors.index.json", index)


def write_text(path, text):
    """Write UTF-8 under a temporary name, then rename it."""
    data = text.encode()
    with replacing(path, len(data)) as file:
        _write_bytes(file, data)


def write_json(path, content):
    """Write JSON under a temporary name, then rename it."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
