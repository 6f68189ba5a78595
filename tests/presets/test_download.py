"""Downloads: the real client against a Hub on the loopback interface."""

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import time
import zipfile

import numpy as np
import pytest

from khub import cv, presets
from khub.presets import download as download_preset
from khub.presets.download import DownloadError
from khub.presets.tensors import Checkpoint, write_file

pytestmark = pytest.mark.once


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "made.safetensors"
    write_file(path, {"weight": np.arange(50_000, dtype="float32")})
    return {
        "config.json": b'{"model_type": "toy"}',
        "model.safetensors": path.read_bytes(),
        "vocab.txt": b"a\nb\n",
        "pytorch_model.bin": b"not wanted",
        "onnx/model.onnx": b"not wanted",
        "README.md": b"not wanted",
    }


@pytest.fixture
def closed(monkeypatch):
    """Call it, and no socket can be connected any more."""

    def refuse(self, address):
        raise AssertionError(f"a socket was opened to {address}")

    return lambda: monkeypatch.setattr(socket.socket, "connect", refuse)


def test_only_the_needed_files_are_fetched(hub, files):
    hub.add("org/toy", files)
    folder = download_preset("hf://org/toy", progress=False)
    found = {p.name for p in folder.rglob("*") if p.is_file()}
    assert found == {"config.json", "model.safetensors", "vocab.txt"}
    assert not {"pytorch_model.bin", "model.onnx"} & hub.fetched()
    assert Checkpoint(folder).tensor("weight").read()[-1] == 49_999


def test_an_old_repository_has_its_weights_in_a_pickle(hub, files):
    del files["model.safetensors"]
    hub.add("org/old", files)
    folder = download_preset("hf://org/old", progress=False)
    assert (folder / "pytorch_model.bin").read_bytes() == b"not wanted"
    hub.add("org/damaged", files | {"vocab.txt": b"c"})
    hub.damaged.add("pytorch_model.bin")
    files["pytorch_model.bin"] = b"of other content"
    hub.add("org/damaged", files)
    with pytest.raises(DownloadError, match="pytorch_model.bin has sha256 .* the server says"):
        download_preset("hf://org/damaged", progress=False)


def test_a_repository_of_timm_opens(hub, tmp_path):
    name = "mobilenetv4_conv_small_035"
    model = cv.ImageClassifier.from_variant(name, num_classes=3)
    model.save_to_preset(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    del config["khub"]
    assert config["architecture"] == name
    config["pretrained_cfg"] = {"input_size": [3, 48, 64], "crop_pct": 0.8, "mean": [0.1] * 3}
    weights = (tmp_path / "saved" / "model.safetensors").read_bytes()
    made = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    hub.add(f"timm/{name}.tag_in1k", made)
    again = cv.ImageClassifier.from_preset(f"hf://timm/{name}.tag_in1k")
    assert again.preprocessor.image_size == (48, 64) and again.preprocessor.resize == 60
    assert again.preprocessor.mean == (0.1,) * 3 and again.num_classes == 3
    one, two = (m.backbone.get_weights() for m in (model, again))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_without_weights_only_small_files_are_fetched(hub, files):
    hub.add("org/toy", files)
    folder = download_preset("hf://org/toy", progress=False, weights=False)
    assert (folder / "vocab.txt").is_file() and not (folder / "model.safetensors").exists()


def test_revisions(hub, files):
    hub.add("org/toy", files)
    hub.add("org/toy", {**files, "vocab.txt": b"other\n"}, revision="v2")
    assert (download_preset("hf://org/toy@v2") / "vocab.txt").read_text() == "other\n"
    assert (download_preset("hf://org/toy", revision="v2") / "vocab.txt").read_text() == "other\n"
    assert (download_preset("hf://org/toy") / "vocab.txt").read_text() == "a\nb\n"
    with pytest.raises(DownloadError, match="hf://org/toy@v3.* no such revision"):
        download_preset("hf://org/toy@v3")


def test_a_dropped_connection_is_resumed(hub, files):
    hub.add("org/toy", files)
    hub.dropped.add("model.safetensors")
    folder = download_preset("hf://org/toy", progress=False)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not hub.dropped


def test_a_damaged_file_is_refused_and_removed(hub, files):
    hub.add("org/toy", files)
    hub.damaged.add("model.safetensors")
    with pytest.raises(DownloadError, match="model.safetensors has sha256 .* the server says"):
        download_preset("hf://org/toy", progress=False)
    hub.damaged.clear()
    folder = download_preset("hf://org/toy", progress=False)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_an_interrupted_download_leaves_nothing_half_written(hub, files, monkeypatch, tmp_path):
    hub.add("org/toy", files)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its tries
    hub.dropped.add("model.safetensors")
    hub.always = True
    with pytest.raises(DownloadError, match="hf://org/toy could not be downloaded: "):
        download_preset("hf://org/toy", progress=False)
    assert list((tmp_path / "cache").rglob("model.safetensors")) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((DownloadError, FileNotFoundError)):
        Checkpoint(download_preset("hf://org/toy"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.always, hub.dropped = False, set()
    folder = download_preset("hf://org/toy", progress=False)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_what_was_downloaded_opens_offline_without_a_socket(hub, files, monkeypatch, closed):
    hub.add("org/toy", files)
    folder = download_preset("hf://org/toy", progress=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    closed()
    assert download_preset("hf://org/toy") == folder
    with pytest.raises(DownloadError, match="hf://org/other is not .* HF_HUB_OFFLINE forbids"):
        download_preset("hf://org/other")


def test_no_network(online, files, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(DownloadError, match="hf://org/toy cannot be downloaded: the Hub did not"):
        download_preset("hf://org/toy")


def test_without_network_the_cache_serves(hub, files):
    hub.add("org/toy", files)
    folder = download_preset("hf://org/toy", progress=False)
    hub.server.shutdown()
    hub.server.server_close()
    assert download_preset("hf://org/toy", progress=False) == folder


def test_not_found_and_gated(hub, files):
    with pytest.raises(DownloadError, match="hf://org/nothing does not exist, or is private"):
        download_preset("hf://org/nothing")
    hub.add("org/toy", files)
    hub.gated.add("org/toy")
    with pytest.raises(DownloadError, match="hf://org/toy is gated: accept its terms"):
        download_preset("hf://org/toy")


def test_a_repository_without_config_is_no_preset(hub, files):
    hub.add("org/data", {"vocab.txt": b"a"})
    with pytest.raises(DownloadError, match="hf://org/data is no preset"):
        download_preset("hf://org/data")


def packed(files, *, name=lambda path: path, method=zipfile.ZIP_DEFLATED):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        for path, data in files.items():
            archive.writestr(name(path), data)
    return memory.getvalue()


def test_an_archive_with_its_digest(hub, files, monkeypatch, closed):
    data = packed(files)
    digest = hashlib.sha256(data).hexdigest()
    hub.add("org/zips", {"toy.zip": data})
    address = f"{hub.address}/org/zips/resolve/main/toy.zip"
    folder = download_preset(f"{address}#sha256={digest}")
    assert (folder / "vocab.txt").read_text() == "a\nb\n"
    closed()
    assert download_preset(f"{address}#sha256={digest}") == folder
    with pytest.raises(ValueError, match="zip of a preset folder, followed by #sha256="):
        download_preset(address)


def test_archives_that_are_refused(hub, files):
    def fetch(data, digest=None):
        hub.add("org/zips", {"toy.zip": data})
        digest = digest or hashlib.sha256(data).hexdigest()
        return download_preset(f"{hub.address}/org/zips/resolve/main/toy.zip#sha256={digest}")

    with pytest.raises(DownloadError, match="has the sha256 [0-9a-f]{64}, expected 0000"):
        fetch(packed(files), "0" * 64)
    with pytest.raises(DownloadError, match="holds '../config.json', a link or a path out of it"):
        fetch(packed(files, name=lambda path: f"../{path}"))
    with pytest.raises(DownloadError, match="is no zip and no tar archive"):
        fetch(b"something else")
    bomb = packed({**files, "vocab.txt": b"0" * 150_000_000})
    with pytest.raises(DownloadError, match="unpacked, claims 150,[0-9,]+ bytes"):
        fetch(bomb)
    damaged = bytearray(packed(files, method=zipfile.ZIP_DEFLATED))
    damaged[60:70] = bytes(10)
    with pytest.raises(DownloadError, match="could not be fetched: .*(Error -3|CRC|Bad|invalid)"):
        fetch(bytes(damaged))
    encrypted = bytearray(packed(files))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted"
        encrypted[encrypted.index(mark) + place] |= 1
    with pytest.raises(DownloadError, match="toy.zip could not be fetched: .*encrypted"):
        fetch(bytes(encrypted))
    with pytest.raises(DownloadError, match="no config.json at its top"):
        fetch(packed({"vocab.txt": b"a"}))


def test_an_interrupted_archive_leaves_nothing(hub, files, tmp_path):
    data = packed(files)
    hub.add("org/zips", {"toy.zip": data})
    hub.dropped.add("toy.zip")
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(DownloadError, match="toy.zip (could not be fetched|has the sha256)"):
        download_preset(f"{hub.address}/org/zips/resolve/main/toy.zip#sha256={digest}")
    assert list((tmp_path / "home" / "presets").iterdir()) == []


def test_a_full_disk_while_downloading(hub, files, tmp_path, monkeypatch):
    data = packed(files)
    hub.add("org/zips", {"toy.zip": data})

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(DownloadError, match="could not be fetched: .*No space left on device"):
        download_preset(f"{hub.address}/org/zips/resolve/main/toy.zip#sha256={digest}")
    assert list((tmp_path / "home" / "presets").iterdir()) == []


def test_embedded_presets_and_folders_open_no_socket(tmp_path, monkeypatch, closed):
    closed()
    (tmp_path / "config.json").write_text("{}")
    assert download_preset(tmp_path) == tmp_path
    embedded = presets.list()[0]
    assert embedded.embedded, "the first preset of the catalogue is embedded"
    assert download_preset(embedded.name).name == embedded.name


def test_a_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no preset: it has no config.json"):
        download_preset(tmp_path)


def test_a_revision_is_only_for_the_hub(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no revisions"):
        download_preset(tmp_path, revision="main")
