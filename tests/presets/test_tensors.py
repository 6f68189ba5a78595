"""safetensors files: what is written is read back; hostile and damaged files are refused."""

import errno
import json
import os
import resource
import struct

import ml_dtypes
import numpy as np
import pytest

from khub.presets import tensors
from khub.presets.tensors import Checkpoint, TensorFile, WeightsError, write_checkpoint, write_file

pytestmark = pytest.mark.once


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def make(path, header, data=b"\0" * 8, size=None):
    """Write a file with any header (an object or raw bytes) and any claimed header size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if size is None else size
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return path


@pytest.mark.parametrize("code", tensors.DTYPES)
def test_every_dtype_is_read_back(tmp_path, code):
    array = np.array([[0, 1, 2], [3, 0, 1]]).astype(tensors.DTYPES[code])
    write_file(tmp_path / "x.safetensors", {"x": array})
    found = TensorFile(tmp_path / "x.safetensors").tensor("x").read()
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


def test_odd_arrays(tmp_path):
    arrays = {
        "scalar": np.float32(3),
        "empty": np.zeros((0, 4), "float32"),
        "transposed": np.arange(6, dtype="int32").reshape(2, 3).T,
        "bytes": np.arange(3, dtype="uint8"),
        "after odd bytes": np.arange(3, dtype="float64"),
    }
    write_file(tmp_path / "x.safetensors", arrays, {"made": "here"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt", "made": "here"}
    for name, array in arrays.items():
        found = file.tensor(name).read()
        assert found.shape == np.shape(array) and np.array_equal(found, array)
        assert found.flags.aligned


def test_the_reference_implementation_reads_ours_and_we_read_its(tmp_path):
    from safetensors.numpy import load_file, save_file

    array = np.arange(12, dtype="float16").reshape(3, 4)
    write_file(tmp_path / "ours.safetensors", {"x": array})
    assert np.array_equal(load_file(tmp_path / "ours.safetensors")["x"], array)
    save_file({"x": array, "y": array[0]}, tmp_path / "its.safetensors")
    assert np.array_equal(TensorFile(tmp_path / "its.safetensors").tensor("x").read(), array)


HOSTILE = {
    "a header of 1 TB": ({"x": entry()}, b"\0" * 8, 10**12, "claims a header of 1,000,000,000,000"),
    "a header of 2**64 - 1": ({"x": entry()}, b"", 2**64 - 1, "claims a header of 18,446,744,073"),
    "a header past the end": ({"x": entry()}, b"", 1000, "claims a header of 1,000 bytes"),
    "no JSON": (b"{'x': 1}", b"", None, "is not valid JSON"),
    "no UTF-8": (b'{"\xff": 1}', b"", None, "is not valid JSON"),
    "deeply nested": (b"[" * 100_000, b"", None, "is not valid JSON"),
    "a list": ([1], b"", None, "must be a JSON object, got list"),
    "a name twice": (b'{"x": {}, "x": {}}', b"", None, "names occur twice: x"),
    "an entry of text": ({"x": "y"}, b"", None, "'x' needs dtype, shape and data_offsets"),
    "no offsets": ({"x": {"dtype": "F32", "shape": []}}, b"", None, "needs dtype, shape and data"),
    "an unknown dtype": (
        {"x": entry("F3")},
        b"\0" * 8,
        None,
        "'x' has dtype 'F3'; expected one of",
    ),
    "a dtype of lists": ({"x": entry([])}, b"\0" * 8, None, "'x' has dtype"),
    "a negative size": ({"x": entry(shape=(-2,))}, b"\0" * 8, None, "'x' has shape"),
    "a size of truth": ({"x": entry(shape=(True, 2))}, b"\0" * 8, None, "'x' has shape"),
    "a fractional size": ({"x": entry(shape=(2.0,))}, b"\0" * 8, None, "'x' has shape"),
    "a huge shape": ({"x": entry(shape=(2**62, 4))}, b"\0" * 8, None, "needs 73786976294838206464"),
    "a shape too small": ({"x": entry(shape=(1,))}, b"\0" * 8, None, "needs 4 bytes"),
    "offsets past the end": ({"x": entry(end=16, shape=(4,))}, b"\0" * 8, None, "is truncated or"),
    "offsets backwards": ({"x": entry(begin=8, end=0)}, b"\0" * 8, None, "lies at bytes 8 to 0"),
    "negative offsets": ({"x": entry(begin=-8, end=0)}, b"\0" * 8, None, "has data_offsets"),
    "overlapping": ({"x": entry(), "y": entry(begin=4, end=12)}, b"\0" * 12, None, "'y' overlaps"),
    "the same bytes": ({"x": entry(), "y": entry()}, b"\0" * 8, None, "'y' overlaps tensor 'x'"),
    "a gap": ({"x": entry(begin=8, end=16)}, b"\0" * 16, None, "leaves a gap after the header"),
    "bytes of no tensor": ({"x": entry()}, b"\0" * 9, None, "1 bytes of data that belong to no"),
    "odd metadata": ({"__metadata__": {"x": 1}}, b"", None, "__metadata__ must map names to str"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path, case):
    header, data, size, message = HOSTILE[case]
    path = make(tmp_path / "model.safetensors", header, data, size)
    with pytest.raises(WeightsError, match=message) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 8, 20, 200, -1])
def test_truncated_files(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    write_file(path, {f"weight.{i}": np.ones((10, 10), "float32") for i in range(5)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="too short|claims a header|truncated or damaged"):
        TensorFile(path)


def test_shards(tmp_path):
    arrays = {f"block.{i}": np.full((10,), i, "float32") for i in range(7)}
    write_checkpoint(tmp_path, arrays, shard_limit=100)
    assert len(list(tmp_path.glob("model-*-of-00004.safetensors"))) == 4
    found = Checkpoint(tmp_path)
    assert set(found.names) == set(arrays) and found.bytes == 280
    assert all(np.array_equal(found.tensor(n).read(), arrays[n]) for n in arrays)


def test_indexes_that_lie(tmp_path):
    write_checkpoint(tmp_path, {c: np.ones(10, "float32") for c in "abc"}, shard_limit=40)
    path = tmp_path / tensors.INDEX
    index = json.loads(path.read_text())

    def wrong(message, kind=WeightsError, **shards):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], **shards}}))
        with pytest.raises(kind, match=message):
            Checkpoint(tmp_path)

    wrong("names the shard '../../etc/passwd'", a="../../etc/passwd")
    wrong("names the shard '/etc/x.safetensors'", a="/etc/x.safetensors")
    wrong("disagrees with its shards on: d", d="model-00001-of-00003.safetensors")
    wrong("disagrees with its shards on: a\\.", a="model-00002-of-00003.safetensors")
    wrong("gone.safetensors does not exist", FileNotFoundError, a="gone.safetensors")
    path.write_text("{}")
    with pytest.raises(WeightsError, match="needs weight_map"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="has tf_model.h5, which this version does not"):
        Checkpoint(tmp_path)


def test_a_dtype_that_the_format_lacks(tmp_path):
    with pytest.raises(WeightsError, match="'x' has dtype complex128"):
        write_file(tmp_path / "x.safetensors", {"x": np.zeros(2, "complex128")})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_file(path, {"x": np.zeros(4, "float32")})
    before = path.read_bytes()

    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensors, "_write_bytes", full)
    with pytest.raises(
        OSError, match=f"{tmp_path} has no room: 40,000,[0-9]+ bytes are needed"
    ) as caught:
        write_file(path, {"x": np.ones(10_000_000, "float32")})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_real_limit_of_the_system_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_file(path, {"x": np.zeros(4, "float32")})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="has no room: 4,000,[0-9]+ bytes are needed"):
            write_file(path, {"x": np.ones(1_000_000, "float32")})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_is_read_is_the_callers_own(tmp_path):
    """Pages go back to the system with the last view of them; what is read again is the file's."""
    array = np.arange(100_000, dtype="float32").astype(ml_dtypes.bfloat16)
    path = tmp_path / "x.safetensors"
    write_file(path, {"a": array, "b": array})
    before, checkpoint = path.read_bytes(), Checkpoint(path)
    first = checkpoint.tensor("b").read()
    first[:] = 0
    again = checkpoint.tensor("b").read()
    assert np.array_equal(again, array)
    again[:] = 1
    assert not first.any() and np.array_equal(checkpoint.tensor("b").read(), array)
    view = first[3:]
    neighbour = checkpoint.tensor("a").read()
    neighbour[:] = 2
    del first, neighbour
    assert not view.any() and path.read_bytes() == before


def test_numbers_that_lie_at_odd_places_are_copied(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    for spaces in range(8):
        text = header + b" " * spaces
        path = tmp_path / f"{spaces}.safetensors"
        numbers = np.arange(3, dtype="float32")
        path.write_bytes(len(text).to_bytes(8, "little") + text + numbers.tobytes())
        found = Checkpoint(path).tensor("a").read()
        assert found.flags.aligned and found.flags.writeable and found.tolist() == [0, 1, 2]
