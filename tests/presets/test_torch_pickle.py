"""PyTorch's checkpoints: read without torch, and nothing in them runs."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from khub.presets.tensors import Checkpoint, WeightsError

pytestmark = pytest.mark.once


class Storage:
    """Stands for a storage in a pickle: the pickler asks for its persistent id."""

    def __init__(self, kind, key, count):
        self.found = ("storage", kind, key, "cpu", count)


class Global:
    """Pickles as the global `module name`."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Object:
    """Pickles as an object of the class `module name` with attributes, as protocol 2 writes it."""

    def __init__(self, module, name, state=None):
        self.module, self.name, self.state = module, name, state


class Pickler(pickle._Pickler):
    def persistent_id(self, item):
        return item.found if isinstance(item, Storage) else None

    def save(self, item, save_persistent_id=True):
        if isinstance(item, Object):
            if id(item) in self.memo:
                return self.write(self.get(self.memo[id(item)][0]))
            self.write(
                f"c{item.module}\n{item.name}\n".encode() + pickle.EMPTY_TUPLE + pickle.NEWOBJ
            )
            self.memoize(item)
            super().save(item.state)
            return self.write(pickle.BUILD)
        if not isinstance(item, Global):
            return super().save(item, save_persistent_id)
        self.write(f"c{item.module}\n{item.name}\n".encode())
        if item.arguments:
            super().save(item.arguments[0])
            self.write(pickle.REDUCE)


def tensor(values, key, strides=None, offset=0, shape=None, kind="FloatStorage"):
    size = values.size
    shape = values.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = Storage(Global("torch", kind), key, size)
    arguments = (storage, offset, shape, strides, False, {})
    return Global("torch._utils", "_rebuild_tensor_v2", arguments)


def write(path, content, storages, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    Pickler(data, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes(), compression)
    return path


A = np.arange(12, dtype="float32").reshape(3, 4)
B = np.arange(5, dtype="int64")


def test_tensors_views_and_wrappers(tmp_path):
    numbers = tensor(B, "1", kind="LongStorage")
    state = {
        "a": tensor(A, "0"),
        "turned": tensor(A, "0", strides=(1, 4), shape=(4, 3)),
        "row": tensor(A, "0", strides=(1,), shape=(4,), offset=4),
        "b": Global("torch._utils", "_rebuild_parameter", (numbers, True, {})),
        "none": tensor(A, "0", shape=(0, 3)),
    }
    for content in (state, {"state_dict": state, "epoch": 3, "args": [1, 2.5, None, True]}):
        found = Checkpoint(write(tmp_path / "model.pth", content, {"0": A, "1": B}))
        assert list(found.names) == list(state) and found.float_dtypes() == {"float32"}
        values = {name: found.tensor(name).read() for name in found.names}
        assert np.array_equal(values["a"], A) and np.array_equal(values["turned"], A.T)
        assert np.array_equal(values["row"], A[1]) and np.array_equal(values["b"], B)
        assert values["none"].shape == (0, 3)
        values["row"][:] = 9  # of the same storage as "a", yet memory of its own
        assert np.array_equal(values["a"], A)


def evil(path):
    return Global("posix", "system", (f"touch {path}",))


HOSTILE = {
    "a call": (lambda p: {"a": evil(p)}, {}, "names posix.system, which no state dict needs"),
    "a class": (lambda p: {"a": Global("builtins", "print")}, {}, "names builtins.print"),
    "no tensors": (lambda p: {"a": 3}, {}, "these are no named tensors: a"),
    "a list": (lambda p: [1, 2], {}, "holds no state dict"),
    "outside its storage": (
        lambda p: {"a": tensor(A, "0", strides=(4, 1), offset=1)},
        {"0": A},
        r"tensor 'a' \(3, 4\) lies outside its storage of 12 numbers",
    ),
    "huge strides": (
        lambda p: {"a": tensor(A, "0", strides=(2**62, 1))},
        {"0": A},
        "lies outside its storage",
    ),
    "a missing storage": (lambda p: {"a": tensor(A, "7")}, {"0": A}, "lacks its plain data/7"),
    "a short storage": (lambda p: {"a": tensor(A, "0")}, {"0": A[:1]}, "lies outside its storage"),
    "a negative offset": (
        lambda p: {"a": tensor(A, "0", offset=-1, shape=(1,), strides=(1,))},
        {"0": A},
        "lies outside its storage",
    ),
    "an unknown dtype": (
        lambda p: {"a": tensor(A, "0", kind="QuantizedStorage")},
        {"0": A},
        "names torch.QuantizedStorage",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path, case):
    make, storages, message = HOSTILE[case]
    path = write(tmp_path / "model.bin", make(tmp_path / "pwned"), storages)
    with pytest.raises(WeightsError, match=message) as caught:
        Checkpoint(path)
    assert "model.bin" in str(caught.value) and not (tmp_path / "pwned").exists()


def module(kind="torch.nn.modules.conv Conv2d", inner=None, buffers=None, **parameters):
    state = {"training": True, "_parameters": parameters, "_buffers": buffers or {}}
    return Object(*kind.split(), state | {"_modules": inner or {}})


def whole_model(path):
    """A file as `torch.save({"model": module, ...})` writes it, of classes nobody has."""
    conv = module(weight=tensor(A, "0"), bias=None)
    norm = module(buffers={"running_mean": tensor(A, "0", shape=(4,)), "scratch": tensor(A, "0")})
    norm.state["_non_persistent_buffers_set"] = Global("__builtin__", "set", (["scratch"],))
    block = module("their.models Block", {"conv": conv, "norm": norm, "same": conv, "none": None})
    block.state["act"] = evil(path)  # not even this is looked up
    model = module("their.models Net", {"0": block}, {"steps": tensor(B, "1", kind="LongStorage")})
    args = Object("argparse", "Namespace", {"path": Object("pathlib", "PosixPath")})
    return {"epoch": -1, "model": model, "args": args, "best": b"bytes", "kind": {1.5, "x"}}


def test_whole_modules_are_records(tmp_path):
    content, storages = whole_model(tmp_path / "pwned"), {"0": A, "1": B}
    for given in (content, content["model"], {"ema": content["model"], "model": None}):
        found = Checkpoint(write(tmp_path / "model.pt", given, storages))
        names = ["steps", "0.conv.weight", "0.norm.running_mean", "0.same.weight"]
        assert list(found.names) == names
        assert np.array_equal(found.tensor("0.conv.weight").read(), A)
    assert not (tmp_path / "pwned").exists()


def many_modules(depth):
    inner = module(weight=tensor(A, "0"))
    for _ in range(depth):
        inner = module(inner={"a": inner, "b": inner})
    return inner


def test_hostile_modules(tmp_path):
    cyclic = module(weight=tensor(A, "0"))
    cyclic.state["_modules"]["again"] = cyclic
    path = tmp_path / "model.pt"
    for content in (cyclic, {"model": many_modules(60)}):
        with pytest.raises(WeightsError, match="its modules are too many or contain themselves"):
            Checkpoint(write(path, content, {"0": A}))
    for value in (evil(tmp_path / "pwned"), Object("posix", "system")):
        with pytest.raises(WeightsError, match="names posix.system, which no state dict needs"):
            Checkpoint(write(path, module(weight=value), {}))
    for content in (Object("their", "Thing", {"a": 1}), module(), module().state["_modules"]):
        with pytest.raises(WeightsError, match="holds no state dict"):
            Checkpoint(write(path, content, {}))
    assert not (tmp_path / "pwned").exists()


def test_damaged_files(tmp_path):
    path = write(tmp_path / "model.pt", {"a": tensor(A, "0")}, {"0": A})
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match="model.pt"):
            Checkpoint(path)
    write(path, {"a": tensor(A, "0")}, {"0": A}, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="lacks its plain data/0"):
        Checkpoint(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match="no PyTorch checkpoint of version 1.6 or later"):
        Checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(WeightsError, match="has no data.pkl"):
        Checkpoint(path)


def test_random_damage_is_an_error_or_harmless(tmp_path):
    path = write(tmp_path / "model.pt", {"a": tensor(A, "0")}, {"0": A})
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        path.write_bytes(bytes(data))
        try:
            found = Checkpoint(path)
            for name in found.names:
                found.tensor(name).read()
        except WeightsError:
            pass
    assert not os.path.exists(tmp_path / "pwned")
