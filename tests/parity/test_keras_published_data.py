"""The published data sets, small ones of the same form from a server on this machine."""

import functools
import gzip
import http.server
import io
import json
import pickle
import struct
import tarfile
import threading

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub.utils import files as khub_files  # noqa: E402

pytestmark = pytest.mark.once
RANDOM = np.random.default_rng(0)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def sentences(count):
    rows = np.empty(count, object)
    lengths = [0, 1, *RANDOM.integers(2, 9, count - 2)]
    rows[:] = [RANDOM.integers(1, 70_000, n).tolist() for n in lengths]
    return rows


def idx(array):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes())


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def images(count, *shape):
    return RANDOM.integers(0, 256, (count, *shape), "uint8")


PIXELS = {part: images(4, 3, 32, 32) for part in (*range(1, 6), "test")}
CLASSES = {part: images(4, 2) % 10 for part in PIXELS}


def cifar(name, kind):
    """The binary form, or the pickled one that Keras reads."""
    fine = name == "cifar-100"
    parts = ["test"] if fine else list(PIXELS)
    found = {}
    for part in [1, "test"] if fine else parts:
        x, y = PIXELS[part].reshape(4, -1), CLASSES[part] if fine else CLASSES[part][:, :1]
        base = {1: "train", "test": "test"} if fine else {p: f"data_batch_{p}" for p in range(1, 6)}
        base = base.get(part, "test_batch")
        if kind == "binary":
            found[f"{name}-binary/{base}.bin"] = np.concatenate([y, x], 1).tobytes()
        else:
            labels = {b"labels": y[:, 0].tolist()}
            if fine:
                labels = {b"coarse_labels": y[:, 0].tolist(), b"fine_labels": y[:, 1].tolist()}
            content = pickle.dumps({b"data": x, **labels})
            found[f"{name}-python/{base}" if fine else f"{name}-batches-py/{base}"] = content
    return tar(found)


WORDS = json.dumps({"the": 1, "of": 2}).encode()
CONTENT = {
    "mnist.npz": npz(
        x_train=images(6, 28, 28), y_train=images(6), x_test=images(3, 28, 28), y_test=images(3)
    ),
    "boston_housing.npz": npz(x=RANDOM.random((9, 13)), y=RANDOM.random(9)),
    "california_housing.npz": npz(x=RANDOM.random((700, 8)), y=RANDOM.random(700)),
    "imdb.npz": npz(
        x_train=sentences(12), y_train=images(12) % 2, x_test=sentences(8), y_test=images(8) % 2
    ),
    "reuters.npz": npz(x=sentences(20), y=images(20) % 46),
    "imdb_word_index.json": WORDS,
    "reuters_word_index.json": WORDS,
    "train-images-idx3-ubyte.gz": idx(images(5, 28, 28)),
    "train-labels-idx1-ubyte.gz": idx(images(5)),
    "t10k-images-idx3-ubyte.gz": idx(images(2, 28, 28)),
    "t10k-labels-idx1-ubyte.gz": idx(images(2)),
    "cifar-10-binary.tar.gz": cifar("cifar-10", "binary"),
    "cifar-100-binary.tar.gz": cifar("cifar-100", "binary"),
    "cifar-10-python.tar.gz": cifar("cifar-10", "python"),
    "cifar-100-python.tar.gz": cifar("cifar-100", "python"),
}
EVIL = npz(x=np.array([print, 1], object), y=np.zeros(2))


class Server(http.server.BaseHTTPRequestHandler):
    content = CONTENT

    def do_GET(self):
        found = self.content.get(self.path.rpartition("/")[2])
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Length", len(found or b""))
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Both libraries ask this machine, and the hashes of the real files are left out."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setenv("KHUB_HOME", str(tmp_path / "khub"))
    ours, theirs = khub_files.get_file, keras.utils.get_file

    def fetch(get_file, options, path=None, origin=None, untar=False, file_hash=None, **more):
        assert origin.startswith("https://") and (file_hash or "fashion" in str(more))
        name = origin.rpartition("/")[2]
        return get_file(path or name, here + name, extract=untar or more.get("extract"), **options)

    (tmp_path / "keras").mkdir()
    for name in ("files", "cifar10", "fashion_mnist"):
        module = __import__(f"khub.datasets.{name}", fromlist=["x"])
        monkeypatch.setattr(module, "get_file", functools.partial(fetch, ours, {}))
    for name in NAMES:
        module = __import__(f"keras.src.datasets.{name}", fromlist=["x"])
        module = getattr(module, "__self__", module)
        options = {"cache_dir": str(tmp_path / "keras")}
        replaced = functools.partial(fetch, theirs, options)

        def call(fname=None, *args, replaced=replaced, **more):
            return replaced(fname, *args, **more)

        monkeypatch.setattr(module, "get_file", call)
    yield here
    server.shutdown()


NAMES = "mnist fashion_mnist cifar10 cifar100 boston_housing california_housing imdb reuters"
NAMES = NAMES.split()
# Keras takes None for the largest number of a word, which it leaves out.
ALL = {"num_words": 70_100}
CASES = {
    **{name: (name, {}) for name in NAMES if name not in ("cifar10", "imdb", "reuters")},
    "imdb": ("imdb", ALL),
    "reuters": ("reuters", ALL),
    "coarse": ("cifar100", {"label_mode": "coarse"}),
    "small": ("california_housing", {"version": "small"}),
    "frequent words": ("imdb", {"num_words": 30_000, "skip_top": 9}),
    "no marks": ("imdb", {"start_char": None, "oov_char": None, "num_words": 40_000}),
    "plain": ("reuters", {"start_char": None, "index_from": 0, "test_split": 0.3, **ALL}),
    "short": ("reuters", {"maxlen": 7, "seed": 4, **ALL}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_keras(served, name):
    dataset, options = CASES[name]
    ours = getattr(khub.datasets, dataset).load_data(**options)
    theirs = getattr(keras.datasets, dataset).load_data(**options)
    for mine, other in zip(ours, theirs, strict=True):
        for x, y in zip(mine, other, strict=True):
            assert x.shape == y.shape  # Keras' labels of CIFAR are int64 or uint8, ours uint8
            assert x.tolist() == y.tolist()


def test_cifar10(served):  # Keras' reader insists on 60,000 images
    parts = khub.datasets.cifar10.load_data()
    for (x, y), names in zip(parts, (range(1, 6), ["test"]), strict=True):
        wanted = np.concatenate([PIXELS[name] for name in names]).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(x, wanted)
        np.testing.assert_array_equal(y, np.concatenate([CLASSES[name][:, :1] for name in names]))


def test_words_and_topics(served):
    for name in ("imdb", "reuters"):
        assert getattr(khub.datasets, name).get_word_index() == {"the": 1, "of": 2}
    assert khub.datasets.reuters.get_label_names() == keras.datasets.reuters.get_label_names()


def test_a_pickle_with_code_is_refused(served, monkeypatch):
    monkeypatch.setitem(CONTENT, "reuters.npz", EVIL)
    with pytest.raises(ValueError, match="x must hold 2 lists of integers"):
        khub.datasets.reuters.load_data()
