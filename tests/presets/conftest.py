"""A Hub on the loopback interface that the real `huggingface_hub` client talks to."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

LARGE = (".safetensors", ".bin")  # files whose sha256 the Hub knows


class Hub:
    """Repositories in memory: `hub.add("org/name", {"config.json": bytes}, revision="main")`."""

    def __init__(self):
        self.repositories = {}  # name -> revision or commit -> path -> bytes
        self.gated, self.damaged, self.dropped = set(), set(), set()
        self.always = False  # drop the connection every time, not once
        self.requests = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name, files, revision="main"):
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        revisions = self.repositories.setdefault(name, {})
        revisions[revision] = revisions[commit] = {"": commit, **files}
        return commit

    def fetched(self):
        """Paths of the files whose content was asked for."""
        return {path.rpartition("/")[2] for method, path in self.requests if method == "GET"}

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path))
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not listing and not file:
            return self.send(request, 404, {}, path.encode())
        name, revision = (listing[1], listing[3]) if listing else (file[1], file[2])
        if name in self.gated:
            return self.refuse(request, 403, "GatedRepo")
        if name not in self.repositories:
            return self.refuse(request, 404, "RepoNotFound")
        files = self.repositories[name].get(revision or "main")
        if files is None:
            return self.refuse(request, 404, "RevisionNotFound")
        commit = files[""]
        files = {path: data for path, data in files.items() if path}
        if file:
            return self.send_file(request, name, file[3], files, commit)
        records = [
            {
                "type": "file",
                "path": path,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
                **({"lfs": self.lfs(data)} if path.endswith(LARGE) else {}),
            }
            for path, data in files.items()
        ]
        siblings = [{"rfilename": path} for path in files]
        content = {"_id": "0", "id": name, "sha": commit, "siblings": siblings}
        content = records if listing[2] == "tree" else content
        body = json.dumps(content).encode()
        return self.send(request, 200, {"Content-Type": "application/json"}, body)

    def lfs(self, data):
        digest = hashlib.sha256(data).hexdigest()
        return {"oid": digest, "size": len(data), "pointerSize": 134}

    def send_file(self, request, name, path, files, commit):
        if path not in files:
            return self.refuse(request, 404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = files[path]
        kind = hashlib.sha256 if path.endswith(LARGE) else hashlib.sha1
        headers = {"ETag": f'"{kind(data).hexdigest()}"', "X-Repo-Commit": commit}
        if path in self.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        drop = path in self.dropped and request.command == "GET"
        self.dropped.discard(path) if drop and not self.always else None
        self.send(request, 206 if start else 200, headers, data[start:], drop)

    def refuse(self, request, status, code, headers=()):
        self.send(request, status, {"X-Error-Code": code, **dict(headers)}, b"")

    def send(self, request, status, headers, body, drop=False):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[: len(body) // 2] if drop else body)
        if drop:
            request.close_connection = True
            request.connection.close()


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A fresh cache and home, and no HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KHUB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(online, monkeypatch):
    """A running Hub that HF_ENDPOINT points to."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def make_toys():
    """A family of two blocks and a classifier, with a tokenizer that is a list of words."""
    from khub import ops
    from khub.fields import Configurable
    from khub.layers import Dense, Embedding, Layer, LayerNormalization
    from khub.presets import Family, Presettable, register

    class Backbone(Presettable, Layer):
        weight_map, ignored, optional = (), (), ()

        def setup(self):
            self.build(None)

    class Block(Layer):
        width: int

        def build(self, shape):
            self.up, self.norm = (
                Dense(2 * self.width, dtype=self.dtype),
                LayerNormalization(dtype=self.dtype),
            )
            self.up.build((None, self.width))
            self.norm.build((None, 2 * self.width))

        def call(self, x):
            return self.norm(self.up(x))[..., : self.width]

    class ToyBackbone(Backbone):
        words: int
        width: int = 4
        blocks: int = 2
        max_sequence_length: int = 16

        weight_map = [
            ("embeddings.words", "table"),
            ("encoder.layer.{i}.dense", "layers.{i}.up"),
            ("encoder.layer.{i}.LayerNorm", "layers.{i}.norm"),
            ("encoder.scale", "scale"),
            ("pooler", "pooler"),
        ]
        ignored = ("embeddings.position_ids",)
        optional = ("pooler",)
        reference_prefix = "toy"

        def build(self, shape):
            self.table = Embedding(self.words, self.width, dtype=self.dtype)
            self.table.build(None)
            self.layers = [Block(self.width, dtype=self.dtype) for _ in range(self.blocks)]
            for layer in self.layers:
                layer.build(None)
            self.scale = self.add_weight((self.width,), "ones", name="scale")
            self.pooler = Dense(self.width, dtype=self.dtype)
            self.pooler.build((None, self.width))

        def call(self, inputs):
            x = self.table(inputs["token_ids"])
            for layer in self.layers:
                x = layer(x)
            return {"sequence_output": x * self.scale, "pooled_output": self.pooler(x[:, 0])}

        @classmethod
        def config_from_reference(cls, config):
            names = {"words": "vocab_size", "width": "hidden_size", "blocks": "num_hidden_layers"}
            return {ours: config[theirs] for ours, theirs in names.items()}

        def reference_config(self):
            return {
                "model_type": "toy",
                "vocab_size": self.words,
                "hidden_size": self.width,
                "num_hidden_layers": self.blocks,
            }

    class ToyTokenizer(Presettable):
        def __init__(self, words):
            self.words = words

        @classmethod
        def load(cls, folder):
            return cls((folder / "vocab.txt").read_text().split())

        def save(self, folder):
            (folder / "vocab.txt").write_text("\n".join(self.words))

    class ToyPreprocessor(Presettable, Configurable):
        tokenizer: object
        sequence_length: int = 512

        def preset_config(self):
            return {"sequence_length": self.sequence_length}

        def save(self, folder):
            self.tokenizer.save(folder)

    class Task(Presettable, Layer):
        preprocessor_class = ToyPreprocessor
        ignored = ()

        def setup(self):
            self.build(None)

        def reference_config(self):
            return self.backbone.reference_config()

    class TextClassifier(Task):
        pass

    class ToyClassifier(TextClassifier):
        backbone: object
        num_classes: int = 2
        preprocessor: object = None
        temperature: float = 1.0

        weight_map = [("classifier", "head")]

        def build(self, shape):
            self.head = Dense(self.num_classes, dtype=self.dtype)
            self.head.build((None, self.backbone.width))

        def call(self, inputs):
            return self.head(self.backbone(inputs)["pooled_output"]) / self.temperature

        @classmethod
        def head_from_reference(cls, config):
            return {"num_classes": config.get("num_labels", 2)}

        def reference_config(self):
            return {**super().reference_config(), "num_labels": self.num_classes}

    class ToyMaskedLM(Task):
        backbone: object
        preprocessor: object = None

        weight_map = [("cls.bias", "bias")]

        def build(self, shape):
            self.bias = self.add_weight((self.backbone.words,), "zeros", name="bias")

        def call(self, inputs):
            x = self.backbone(inputs)["sequence_output"]
            return ops.matmul(x, ops.transpose(self.backbone.table.embeddings.value)) + self.bias

        @classmethod
        def head_from_reference(cls, config):
            return {}

    class OtherBackbone(ToyBackbone):
        reference_prefix = "other"

    class OtherClassifier(TextClassifier):
        pass

    register(
        Family(
            "toy",
            ("toy", "toy-v2"),
            ToyBackbone,
            ToyTokenizer,
            {"TextClassifier": ToyClassifier, "MaskedLM": ToyMaskedLM},
            {
                "Backbone": "ToyModel",
                "TextClassifier": "ToyForSequenceClassification",
                "MaskedLM": "ToyForMaskedLM",
            },
        )
    )
    other = Family("other", ("other",), OtherBackbone, None, {"TextClassifier": OtherClassifier})
    classes = (ToyBackbone, ToyTokenizer, ToyPreprocessor, ToyClassifier, ToyMaskedLM)
    generic = {"Backbone": Backbone, "TextClassifier": TextClassifier, "Other": OtherClassifier}
    register(other)
    return SimpleNamespace(**{c.__name__: c for c in classes}, **generic)


@pytest.fixture(scope="session")
def toys():
    return make_toys()


@pytest.fixture
def toy(toys):
    """A backbone of known values."""
    model = toys.ToyBackbone(words=5)
    for number, variable in enumerate(model.named_variables().values()):
        size = int(np.prod(variable.shape))
        values = np.sin(np.arange(size) + number).reshape(variable.shape)
        variable.assign(values.astype("float32"))
    return model


@pytest.fixture
def classifier(toys, toy):
    preprocessor = toys.ToyPreprocessor(toys.ToyTokenizer(list("abcde")), sequence_length=8)
    model = toys.ToyClassifier(toy, num_classes=3, preprocessor=preprocessor, temperature=2.0)
    model.head.kernel.assign(np.arange(12, dtype="float32").reshape(4, 3))
    model.head.bias.assign(np.ones(3, "float32"))
    return model
