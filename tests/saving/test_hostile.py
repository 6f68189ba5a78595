"""Files that lie, lead elsewhere or would run something: each is refused, and says why."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import khub
from khub import layers, saving

pytestmark = pytest.mark.once  # nothing here depends on the backend


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An archive of a small model as name -> bytes."""
    model = khub.Sequential([khub.Input((3,)), layers.Dense(2, name="dense")], name="net")
    path = tmp_path_factory.mktemp("good") / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members, path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for info, content in members:
            archive.writestr(info, content)
    return path


def linked(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def members(good, *more, without=()):
    return [*((n, c) for n, c in good.items() if n not in without), *more]


def changed(good, change):
    """Members whose config was changed by a function."""
    config = json.loads(good["config.json"])
    config = change(config) or config
    return members(good, ("config.json", json.dumps(config)), without=["config.json"])


def with_layer(good, entry):
    """Members whose config has something else in the place of the model's layer."""

    def change(config):
        config["config"]["layers"][1] = entry

    return changed(good, change)


WRONG_NAMES = ["../evil.txt", "/etc/evil", "assets/../../evil", "C:\\evil", "a\\..\\b", "C:/evil"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_members_that_lead_out(good, name, tmp_path):
    path = packed(members(good, (name, "x")), tmp_path / "a.keras")
    with pytest.raises(ValueError, match="leads out of it"):
        saving.load_model(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.keras"]


def test_links_and_twins(good, tmp_path):
    path = packed(
        members(good, (linked("assets/vocabulary.txt"), "/etc/passwd")), tmp_path / "a.keras"
    )
    with pytest.raises(ValueError, match="is a link"):
        saving.load_model(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        packed(members(good, ("config.json", "{}")), path)
    with pytest.raises(ValueError, match="is there twice"):
        saving.load_model(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in good.items():
        (folder / name).write_bytes(content)
    saving.load_model(folder)
    (folder / "assets").symlink_to("/etc")
    with pytest.raises(ValueError, match="has links"):
        saving.load_model(folder)


def test_bombs(good, tmp_path):
    content = bytes(2**27)
    for name in ("config.json", "model.weights.h5", "assets/vocabulary.txt"):
        bomb = members(good, (name, content), without=[name])
        path = packed(bomb, tmp_path / "a.keras", zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 2**20
        with pytest.raises(ValueError, match=f"{name}' claims 134,217,728 bytes, but"):
            saving.load_model(path)


def test_what_is_no_archive(good, tmp_path):
    path = tmp_path / "a.keras"
    for content, message in {
        b"": "is no .keras archive",
        b"PK\x03\x04 nonsense": "is no .keras archive",
        pickle.dumps(os.getcwd): "is no .keras archive",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            saving.load_model(path)
    for name in ("config.json", "model.weights.h5"):
        with pytest.raises(ValueError, match=f"has no {name}"):
            saving.load_model(packed(members(good, without=[name]), path))
    with pytest.raises(FileNotFoundError):
        saving.load_model(tmp_path / "none.keras")


def test_every_damaged_byte_of_the_members_is_seen(good, tmp_path):
    path = packed(members(good), tmp_path / "a.keras")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        starts = [i.header_offset + 30 + len(i.filename) for i in archive.infolist()]
        sizes = [i.file_size for i in archive.infolist()]
        names = archive.namelist()
    for name, start, size in zip(names, starts, sizes, strict=True):
        if name == "metadata.json":
            continue  # nothing in it is needed
        for place in range(start, start + size, max(1, size // 7)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            with pytest.raises(ValueError, match="is damaged"):
                saving.load_model(path)
    for length in range(0, len(whole), len(whole) // 9):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is no .keras archive, or is damaged"):
            saving.load_model(path)


def nested(depth):
    return "[" * depth + "]" * depth


GADGETS = {
    "a lambda": dict(
        module="keras.layers",
        class_name="Lambda",
        config={"name": "x", "function": {"class_name": "__lambda__", "config": {"value": "4wAA"}}},
    ),
    "a class by its module": dict(module="os", class_name="system", config={"command": "true"}),
    "a class of the library": dict(
        module="khub.saving.archive", class_name="load_model", config={}
    ),
    "a function by its module": dict(
        module="keras.layers",
        class_name="Lambda",
        config={
            "name": "x",
            "function": {"module": "os", "class_name": "function", "config": "system"},
        },
    ),
    "a registered name of a function": dict(
        module="builtins", class_name="function", config="eval", registered_name="builtins>eval"
    ),
    "foreign code": dict(
        module="keras.layers", class_name="TFSMLayer", config={"filepath": "/tmp/x"}
    ),
    "a module": dict(
        module="keras.layers", class_name="TorchModuleWrapper", config={"module": "AAAA"}
    ),
    "a file to read": dict(
        module="keras.layers", class_name="StringLookup", config={"vocabulary": "/etc/passwd"}
    ),
    "a file of a text layer": dict(
        module="keras.layers", class_name="TextVectorization", config={"vocabulary": "/etc/passwd"}
    ),
    "an unknown class": dict(module="keras.layers", class_name="Nothing", config={}),
    "an unknown argument": dict(module="keras.layers", class_name="Dense", config={"unit": 3}),
    "no config": dict(module="keras.layers", class_name="Dense"),
    "a number": dict(module="keras.layers", class_name=7, config=3),
}


@pytest.mark.parametrize("what", GADGETS)
def test_configs_that_would_run_something(good, what, tmp_path):
    path = packed(with_layer(good, GADGETS[what]), tmp_path / "a.keras")
    for safe in (True, False):  # there is no switch that makes it do so
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            saving.load_model(path, safe_mode=safe)


def test_configs_that_make_no_model(good, tmp_path):
    path = tmp_path / "a.keras"
    for text in (nested(100_000), nested(900), "[]", "null", "7", "{", '{"class_name": "Model"}'):
        packed(members(good, ("config.json", text), without=["config.json"]), path)
        with pytest.raises(ValueError, match=r"a\.keras"):
            saving.load_model(path)
    deep = {"class_name": "Dense", "config": {}}
    for _ in range(300):
        deep = {
            "class_name": "TimeDistributed",
            "module": "keras.layers",
            "config": {"layer": deep},
        }
    packed(with_layer(good, deep), path)
    with pytest.raises(ValueError):
        saving.load_model(path)


def an_op(module, cls, args, config):
    """A change that adds an op to a graph."""
    entry = dict(module=f"keras.src.ops.{module}", class_name=cls, registered_name=cls, name="bad")
    calls = [{"args": args, "kwargs": {}}]
    entry |= dict(config=config, inbound_nodes=calls)
    return lambda config: config["config"]["layers"].append(entry)


def a_ring(config):
    call = config["config"]["layers"][1]["inbound_nodes"][0]["args"][0]
    call["config"]["keras_history"] = ["two", 0, 0]


GRAPHS = {  # what is wrong with a functional model's config
    "ring": (a_ring, "wait for inputs"),
    "outputs of nothing": (
        lambda c: c["config"].update(output_layers=[["none", 0, 0]]),
        "output 0 of call 0 of 'none'",
    ),
    "memory": (an_op("numpy", "Zeros", [[10**6, 10**6]], {}), "calls 'bad' on no tensor"),
    "time": (an_op("numpy", "Power", [10, 10**9], {}), "calls 'bad' on no tensor"),
    "a loop": (an_op("core", "WhileLoop", ["eval", "eval", 1], {}), "an op that khub has not"),
    "an internal op": (an_op("numpy", "_Select", [], {}), "an op that khub has not"),
    "no layers": (lambda c: c["config"].update(layers=7), "describes no model: TypeError"),
    "a function": (
        lambda c: dict(module="builtins", class_name="function", config="relu"),
        "holds a function",
    ),
    "a negative size": (
        lambda c: c["config"]["layers"][0]["config"].update(batch_shape=[None, -3]),
        "describes no model",
    ),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_graphs(what, tmp_path):
    x = khub.Input((3,), name="x")
    y = layers.Dense(3, name="one")(x)
    path = tmp_path / "a.keras"
    khub.Model(x, layers.Dense(3, name="two")(y)).save(path)
    with zipfile.ZipFile(path) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    change, message = GRAPHS[what]
    packed(changed(good, change), path)
    with pytest.raises(ValueError, match=rf"a\.keras.*{message}"):
        saving.load_model(path)


# --- weights -------------------------------------------------------------------------------------
def h5_with(change):
    """The bytes of a `.weights.h5` of the model `net`, changed."""
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        group = h5.create_group("layers/dense/vars")
        group["0"], group["1"] = np.ones((3, 2), "float32"), np.ones(2, "float32")
        change(h5, group)
    return file.getvalue()


def replaced(name, **options):
    def change(h5, group):
        del group["0"]
        group.create_dataset("0", **options)

    return change


def soft(h5, group):
    del group["0"]
    group["0"] = h5py.SoftLink("/layers/dense/vars/1")


def external(h5, group):
    del group["0"]
    group["0"] = h5py.ExternalLink("/etc/hosts.h5", "/x")


def ring(h5, group):
    group["again"] = h5["layers"]


def outside(h5, group):
    del group["0"]
    group.create_dataset("0", (3, 2), "float32", external=[("/etc/passwd", 0, 24)])


def virtual(h5, group):
    del group["0"]
    layout = h5py.VirtualLayout((3, 2), "float32")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (3, 2))
    group.create_virtual_dataset("0", layout)


WEIGHTS = {
    "soft link": (soft, "is a link, refused"),
    "external link": (external, "is a link, refused"),
    "ring": (ring, "under another name too"),
    "external storage": (outside, "lies outside the file"),
    "virtual": (virtual, "lies outside the file"),
    "huge": (replaced("0", shape=(2**40,), dtype="float32"), "claims 4,398,046,511,104 bytes"),
    "huge, packed": (
        replaced("0", shape=(2**20, 2**12), dtype="float32", chunks=(1, 4), compression="gzip"),
        "claims 17,179,869,184 bytes",
    ),
    "text": (replaced("0", data="import os"), "expected numbers"),
    "object": (replaced("0", shape=(1,), dtype=h5py.vlen_dtype("int8")), "expected numbers"),
    "shape": (replaced("0", data=np.ones((3, 3), "float32")), "misshaped"),
    "more": (lambda h5, group: h5.create_dataset("layers/more/vars/0", data=1.0), "unexpected"),
    "less": (lambda h5, group: h5.pop("layers"), "missing"),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights(good, what, tmp_path):
    change, message = WEIGHTS[what]
    content = h5_with(change)
    name = "model.weights.h5"
    path = packed(members(good, (name, content), without=[name]), tmp_path / "a.keras")
    with pytest.raises(saving.WeightsError, match=message):
        saving.load_model(path)
    (tmp_path / "w.weights.h5").write_bytes(content)
    model = khub.Sequential([khub.Input((3,)), layers.Dense(2, name="dense")], name="net")
    before = model.get_weights()
    with pytest.raises(saving.WeightsError, match=message):
        model.load_weights(tmp_path / "w.weights.h5")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


SAFETENSORS = {
    "empty": b"",
    "oversized header": struct.pack("<Q", 2**62) + b"{}",
    "a header of 200 MB": struct.pack("<Q", 200_000_000) + b"{}",
    "no json": tensors(b"\x80\x04pickle"),
    "outside": tensors({"layers.0.kernel": dict(dtype="F32", shape=[3, 2], data_offsets=[0, 999])}),
    "overlap": tensors(
        {n: dict(dtype="F32", shape=[1], data_offsets=[0, 4]) for n in ("a", "b")}, bytes(4)
    ),
    "huge": tensors({"a": dict(dtype="F32", shape=[2**40, 2**40], data_offsets=[0, 4])}, bytes(4)),
    "pickle": pickle.dumps(os.getcwd),
}


@pytest.mark.parametrize("what", SAFETENSORS)
def test_safetensors(what, tmp_path):
    model = khub.Sequential([khub.Input((3,)), layers.Dense(2)])
    (tmp_path / "w.safetensors").write_bytes(SAFETENSORS[what])
    with pytest.raises(saving.WeightsError, match="is no safetensors file, or is damaged"):
        model.load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.weights.h5", "w.h5", "m.h5", "w.safetensors", "w.keras"])
def test_pickles_under_other_names(name, tmp_path):
    class Gadget:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    model = khub.Sequential([khub.Input((3,)), layers.Dense(2)])
    (tmp_path / name).write_bytes(pickle.dumps(Gadget()))
    with pytest.raises(ValueError, match="or is damaged"):
        saving.load_model(tmp_path / name) if name == "m.h5" else model.load_weights(
            tmp_path / name
        )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shard", ["../other.weights.h5", "/etc/x.h5", "x.json", 7])
def test_shards_lie_beside_their_index(shard, tmp_path):
    model = khub.Sequential([khub.Input((3,)), layers.Dense(2)])
    path = tmp_path / "w.weights.json"
    path.write_text(json.dumps({"weight_map": {"/layers/dense/vars": [shard]}}))
    with pytest.raises(ValueError, match="expected a file beside it"):
        model.load_weights(path)
    path.write_text(nested(100_000))
    with pytest.raises(ValueError, match="is not valid JSON"):
        model.load_weights(path)
