"""from_preset, save_to_preset, push_to_hub, verify with a toy family."""

import errno
import json
import os
import pickle
import re
import resource
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from khub import ops, optimizers, presets
from khub.presets import WeightsError, record_reference, tensors, verify
from khub.presets.preset import staged

INPUTS = {"token_ids": np.array([[0, 1, 2], [4, 3, 0]], "int32")}


def outputs(model):
    result = model(INPUTS)
    result = result if isinstance(result, dict) else {"output": result}
    return {name: np.asarray(ops.convert_to_numpy(value)) for name, value in result.items()}


def same(one, two):
    one, two = outputs(one), outputs(two)
    return one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def saved(classifier, tmp_path):
    classifier.save_to_preset(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def change(saved):
    """Rewrite the tensors of a saved preset: change(function of a dict of arrays)."""

    def rewrite(function):
        checkpoint = tensors.Checkpoint(saved)
        arrays = {name: np.array(checkpoint.tensor(name).read()) for name in checkpoint.names}
        function(arrays)
        tensors.write_checkpoint(saved, arrays)

    return rewrite


def test_a_loaded_model_and_its_file_change_apart(classifier, saved):
    """Values may be views of the file: of a private map, whose file may be replaced or deleted."""
    first, second, third = (type(classifier).from_preset(saved) for _ in range(3))
    before = content(saved)
    assert same(first, classifier)
    trained = first.trainable_variables
    trained[0].assign_add(np.ones(trained[0].shape, "float32"))
    for _ in range(2):
        gradients = [ops.ones(variable.shape) for variable in trained]
        optimizers.Adam(0.1).apply(gradients, trained)  # in place, where the backend can
    assert not same(first, classifier) and content(saved) == before
    assert same(second, classifier)
    first.save_to_preset(saved)
    assert content(saved) != before and same(type(classifier).from_preset(saved), first)
    assert same(second, classifier) and same(third, classifier)  # `third` reads only now


def test_layout(saved):
    assert content(saved).keys() == {"config.json", "model.safetensors", "vocab.txt"}
    assert json.loads((saved / "config.json").read_text()) == {
        "model_type": "toy",
        "vocab_size": 5,
        "hidden_size": 4,
        "num_hidden_layers": 2,
        "num_labels": 3,
        "dtype": "float32",
        "architectures": ["ToyForSequenceClassification"],
        "khub": {
            "class": "ToyClassifier",
            "head": {"temperature": 2.0},
            "preprocessor": {"sequence_length": 8},
        },
    }


@pytest.mark.parametrize("name", ["ToyClassifier", "TextClassifier", "load"])
def test_a_task_comes_back(toys, classifier, saved, name):
    model = presets.load(saved) if name == "load" else getattr(toys, name).from_preset(saved)
    assert type(model) is toys.ToyClassifier and same(model, classifier)
    assert model.temperature == 2.0
    assert model.preprocessor.sequence_length == 8
    assert model.preprocessor.tokenizer.words == list("abcde")


def test_a_backbone_comes_back_and_is_found_in_a_task(toys, toy, saved, tmp_path):
    toy.save_to_preset(tmp_path / "bare")
    for cls in (toys.ToyBackbone, toys.Backbone):
        assert same(cls.from_preset(tmp_path / "bare"), toy)
        assert same(cls.from_preset(saved), toy)


def test_tokenizers_and_preprocessors(toys, saved, tmp_path):
    assert toys.ToyTokenizer.from_preset(saved).words == list("abcde")
    assert toys.ToyPreprocessor.from_preset(saved).sequence_length == 8
    changed = toys.ToyPreprocessor.from_preset(saved, sequence_length=4)
    assert changed.sequence_length == 4
    changed.save_to_preset(tmp_path / "words")
    assert content(tmp_path / "words").keys() == {"config.json", "vocab.txt"}
    for again in (
        toys.ToyPreprocessor.from_preset(tmp_path / "words"),
        presets.load(tmp_path / "words"),
    ):
        assert type(again) is toys.ToyPreprocessor and again.sequence_length == 4
    assert toys.ToyTokenizer.from_preset(tmp_path / "words").words == list("abcde")


def test_a_tokenizer_saved_into_a_preset_leaves_the_rest(toys, classifier, saved):
    before = content(saved)
    toys.ToyTokenizer(list("vwxyz")).save_to_preset(saved)
    after = content(saved)
    assert after.pop("vocab.txt") == b"v\nw\nx\ny\nz" and before.pop("vocab.txt")
    assert after == before and same(presets.load(saved), classifier)
    toys.ToyPreprocessor(toys.ToyTokenizer(["q"]), sequence_length=5).save_to_preset(saved)
    assert presets.load(saved).preprocessor.sequence_length == 5
    assert (saved / "model.safetensors").read_bytes() == before["model.safetensors"]


def test_a_backbones_checkpoint_leaves_the_head_fresh_and_says_so(toys, toy, tmp_path, caplog):
    toy.save_to_preset(tmp_path / "bare")
    (tmp_path / "bare" / "vocab.txt").write_text("a b")
    model = toys.ToyClassifier.from_preset(tmp_path / "bare", num_classes=4)
    assert model.head.kernel.shape == (4, 4) and not model.head.kernel.is_materialized
    assert same(model.backbone, toy)
    assert "head.kernel, head.bias start from their initializers" in caplog.text


def test_another_number_of_classes_makes_a_fresh_head(toys, toy, saved):
    model = toys.ToyClassifier.from_preset(saved, num_classes=7)
    assert model.head.kernel.shape == (4, 7) and same(model.backbone, toy)
    again = toys.ToyClassifier.from_preset(saved, num_classes=3)
    assert np.array_equal(np.asarray(again.head.bias.numpy()), [1, 1, 1])


def test_a_head_of_another_task_is_not_taken(toys, saved, change):
    config = json.loads((saved / "config.json").read_text())
    config["architectures"] = ["ToyForTokenClassification"]
    (saved / "config.json").write_text(json.dumps(config))
    model = toys.ToyClassifier.from_preset(saved)
    assert not model.head.kernel.is_materialized


def test_overrides_go_where_they_belong(toys, saved):
    model = toys.ToyClassifier.from_preset(
        saved, temperature=3.0, max_sequence_length=12, sequence_length=6, name="mine"
    )
    assert (model.temperature, model.backbone.max_sequence_length, model.name) == (3.0, 12, "mine")
    assert model.preprocessor.sequence_length == 6
    assert toys.ToyClassifier.from_preset(saved, preprocessor=None).preprocessor is None
    with pytest.raises(TypeError, match="unknown argument 'classes'; expected .* num_classes"):
        toys.ToyClassifier.from_preset(saved, classes=2)


def test_without_weights(toys, saved):
    (saved / "model.safetensors").unlink()
    model = toys.ToyClassifier.from_preset(saved, load_weights=False)
    assert not any(v.is_materialized for v in model.named_variables().values())
    with pytest.raises(FileNotFoundError, match="saved has no weights: expected model.safetensors"):
        toys.ToyClassifier.from_preset(saved)


def test_dtypes(toys, classifier, tmp_path):
    classifier.save_to_preset(tmp_path / "half", dtype="float16")
    classifier.save_to_preset(tmp_path / "brain", dtype="bfloat16")
    assert tensors.Checkpoint(tmp_path / "half").float_dtypes() == {"float16"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"

    def dtypes(folder, **options):
        model = toys.ToyClassifier.from_preset(tmp_path / folder, **options)
        return {v.dtype for v in model.named_variables().values()}

    assert dtypes("half") == {"float32"}  # stored so to be small, not to be trained in
    assert dtypes("half", dtype="float16") == {"float16"}
    assert dtypes("brain") == {"bfloat16"}
    assert dtypes("brain", dtype="float32") == {"float32"}
    presets.load(tmp_path / "brain").save_to_preset(tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "brain" / "model.safetensors").read_bytes()


def test_a_config_of_another_family(toys, saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())

    def fails(cls, model_type, message):
        path.write_text(json.dumps({**config, "model_type": model_type}))
        with pytest.raises(ValueError, match=message):
            cls.from_preset(saved)

    where = "config.json has model_type"
    fails(toys.Other, "toy", f"{where} 'toy', but OtherClassifier reads other: use ToyClassifier")
    fails(toys.ToyMaskedLM, "other", f"{where} 'other', but ToyMaskedLM .* other has no MaskedLM")
    fails(
        toys.Backbone, "gpt9", f"{where} 'gpt9', which no family .* expected one of .*toy, toy-v2"
    )
    fails(toys.Backbone, None, "config.json has neither model_type nor")
    path.write_text("{")
    with pytest.raises(WeightsError, match="config.json is not valid JSON"):
        toys.ToyClassifier.from_preset(saved)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="saved is no preset: it has no config.json"):
        toys.ToyClassifier.from_preset(saved)


@pytest.mark.parametrize(
    "function, message",
    [
        (
            lambda a: a.pop("toy.encoder.scale"),
            r"missing     toy.encoder.scale \(4,\) for backbone",
        ),
        (lambda a: a.update(extra=np.ones(2)), "unexpected  extra"),
        (lambda a: a.update({"toy.encoder.scale": np.ones(5)}), "misshaped   toy.encoder.scale is"),
        (lambda a: a.update({"classifier.bias": np.ones(5)}), "misshaped   classifier.bias is"),
        (lambda a: a.pop("classifier.bias"), "missing     classifier.bias"),
    ],
)
def test_checkpoints_that_do_not_fit(toys, change, saved, function, message):
    change(function)
    with pytest.raises(WeightsError, match=message) as caught:
        toys.ToyClassifier.from_preset(saved)
    assert "saved/model.safetensors does not fit ToyClassifier, 1 problem" in str(caught.value)


def test_a_truncated_file(toys, saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="model.safetensors: tensor .* truncated or damaged"):
        toys.ToyClassifier.from_preset(saved)


def test_a_header_of_a_terabyte(toys, saved):
    path = saved / "model.safetensors"
    path.write_bytes((10**12).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(
        WeightsError, match="model.safetensors claims a header of 1,000,000,000,000"
    ):
        toys.ToyClassifier.from_preset(saved)


def test_an_unknown_name(toys):
    with pytest.raises(
        ValueError, match="'bert_mikro_en_uncased'; did you mean bert_micro_en_uncas"
    ):
        toys.ToyClassifier.from_preset("bert_mikro_en_uncased")


def write_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


CONFIGS = {
    "no JSON": (b"{", "config.json is not valid JSON"),
    "no UTF-8": (b'{"model_type": "\xff"}', "config.json is not valid JSON"),
    "a list": (b"[]", "config.json must be a JSON object, got list"),
    "deeply nested": (b"[" * 100_000, "config.json is not valid JSON"),
    "a name twice": (b'{"model_type": "toy", "model_type": "x"}', "names occur twice: model_type"),
    "a model_type of numbers": (b'{"model_type": 3}', "config.json has neither model_type nor"),
    "too large": (b" " * 10_000_001, "config.json has 10,000,001 bytes; at most 10,000,000"),
    "nothing else": (b'{"model_type": "toy"}', "config.json does not make a ToyBackbone: 'vocab_"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_damaged_configs(toys, saved, case):
    data, message = CONFIGS[case]
    (saved / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        toys.ToyClassifier.from_preset(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "head, message",
    [
        ({"head": {"temprature": 2}}, "does not make a ToyClassifier: .*temprature"),
        ({"preprocessor": {"sequence_length": 4, "shell": "rm"}}, None),  # unknown names are left
        ({"preprocessor": {"tokenizer": "x"}}, None),
        ({"head": 3, "preprocessor": [1]}, None),
    ],
)
def test_what_khub_keeps_in_a_config_is_not_trusted(toys, saved, head, message):
    write_config(saved, khub={"class": "ToyClassifier", **head})
    if message is None:
        assert toys.ToyClassifier.from_preset(saved).preprocessor.tokenizer.words == list("abcde")
        return
    with pytest.raises(ValueError, match=message):
        toys.ToyClassifier.from_preset(saved)


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_not_opened(toys, saved, name):
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(pickle.dumps(Evil(saved / "pwned")))
    message = {
        "pytorch_model.bin": "pytorch_model.bin is no PyTorch checkpoint of version 1.6 or later",
        "model.safetensors": "model.safetensors claims a header of .* no safetensors file",
    }[name]
    with pytest.raises((FileNotFoundError, WeightsError), match=message):
        toys.ToyClassifier.from_preset(saved)
    assert not (saved / "pwned").exists()


def test_a_shard_outside_the_folder_is_not_opened(toys, saved):
    (saved / "model.safetensors").rename(saved.parent / "outside.safetensors")
    for shard in ("../outside.safetensors", str(saved.parent / "outside.safetensors")):
        index = {"weight_map": {"toy.encoder.scale": shard}}
        (saved / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(WeightsError, match="names the shard .*; expected a file beside the in"):
            toys.ToyClassifier.from_preset(saved)


def test_a_linked_file_is_read_as_in_the_hubs_cache(toys, classifier, saved):
    blob = saved.parent / "blob"
    (saved / "model.safetensors").rename(blob)
    (saved / "model.safetensors").symlink_to(blob)
    assert same(toys.ToyClassifier.from_preset(saved), classifier)
    blob.unlink()
    with pytest.raises(FileNotFoundError, match="saved has no weights"):
        toys.ToyClassifier.from_preset(saved)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_weights_that_are_no_regular_file(toys, saved, make):
    (saved / "model.safetensors").unlink()
    make(saved / "model.safetensors")
    with pytest.raises(WeightsError, match="model.safetensors is no regular file"):
        toys.ToyClassifier.from_preset(saved)


def test_a_file_where_a_folder_is_expected(toys, toy, saved):
    with pytest.raises(NotADirectoryError, match="config.json is a file; a preset is the folder"):
        toys.ToyClassifier.from_preset(saved / "config.json")
    before = content(saved)
    with pytest.raises(OSError, match="config.json"):
        toy.save_to_preset(saved / "config.json" / "preset")
    with pytest.raises(OSError, match="config.json"):
        toys.ToyTokenizer(["a"]).save_to_preset(saved / "config.json")
    assert content(saved) == before


@pytest.fixture
def read_only():
    """A folder in which nobody may write, not even root; it takes a folder to copy into it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)

        @contextmanager
        def closed(source):
            target = Path(name, "closed", "preset")
            shutil.copytree(source, target)
            target.parent.chmod(0o555)
            target.chmod(0o555)
            root = os.geteuid() == 0
            os.seteuid(65534) if root else None
            try:
                yield target
            finally:
                os.seteuid(0) if root else None
                target.parent.chmod(0o755)
                target.chmod(0o755)

        yield closed


def test_a_folder_that_cannot_be_written(toys, toy, saved, read_only):
    toy.save_to_preset(saved)  # whatever is imported on the way is imported now
    before = content(saved)
    with read_only(saved) as target:
        for item in (toy, toys.ToyTokenizer(["a"])):
            with pytest.raises(PermissionError, match=f"{target} cannot be written: ") as caught:
                item.save_to_preset(target)
            assert caught.value.errno == errno.EACCES
    assert content(target) == before and list(target.parent.iterdir()) == [target]


def test_saving_over_a_preset_replaces_it_and_keeps_other_files(toys, toy, classifier, saved):
    (saved / "README.md").write_text("mine")
    (saved / "notes").mkdir()
    (saved / "notes" / "a").write_text("b")
    (saved / "reference_outputs.safetensors").write_bytes(b"of the old weights")
    tensors.write_checkpoint(saved, {c: np.ones(4, "float32") for c in "ab"}, shard_limit=16)
    toy.save_to_preset(saved)
    assert {p.name for p in saved.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "notes",
    }
    assert (saved / "notes" / "a").read_text() == "b"
    assert same(toys.Backbone.from_preset(saved), toy)
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_while_the_old_files_are_mapped(toys, toy, saved):
    model = toys.ToyBackbone.from_preset(saved)
    model.save_to_preset(saved)
    assert same(toys.ToyBackbone.from_preset(saved), toy)


def test_a_folder_of_something_else_is_not_replaced(toy, tmp_path):
    (tmp_path / "diary").write_text("x")
    with pytest.raises(FileExistsError, match="is no preset .no config.json.; choose another"):
        toy.save_to_preset(tmp_path)
    with pytest.raises(FileExistsError, match="diary exists and is no preset"):
        toy.save_to_preset(tmp_path / "diary")
    assert content(tmp_path) == {"diary": b"x"}


@pytest.mark.parametrize("call", range(5))
def test_a_full_disk_leaves_the_old_preset(toy, saved, monkeypatch, call):
    """config.json, then header and tensors: whichever write fails."""
    before, write, calls = content(saved), tensors._write_bytes, iter(range(100))

    def full(file, data):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data)

    monkeypatch.setattr(tensors, "_write_bytes", full)
    with pytest.raises(
        OSError, match=f"{re.escape(str(saved))}.* [0-9,]+ bytes are needed"
    ) as caught:
        toy.save_to_preset(saved)
    assert caught.value.errno == errno.ENOSPC
    assert content(saved) == before and list(saved.parent.iterdir()) == [saved]


def test_a_real_limit_leaves_the_old_preset(toys, saved):
    before, limits = content(saved), resource.getrlimit(resource.RLIMIT_FSIZE)
    large = toys.ToyBackbone(words=100_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="saved has no room: 1,60[0-9],[0-9]+ bytes are needed"):
            large.save_to_preset(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(saved) == before and list(saved.parent.iterdir()) == [saved]


@pytest.mark.once
def test_when_the_swap_fails_the_old_folder_comes_back(saved, monkeypatch):
    rename, before = type(saved).rename, content(saved)

    def broken(path, target):
        if path.name.endswith(".tmp"):
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    monkeypatch.setattr(type(saved), "rename", broken)
    with pytest.raises(OSError, match="broken"), staged(saved, 0) as scratch:
        (scratch / "config.json").write_text("{}")
    assert content(saved) == before and list(saved.parent.iterdir()) == [saved]


def test_from_the_hub_and_then_offline(toys, classifier, saved, hub, monkeypatch):
    hub.add("org/toy", content(saved))
    assert same(toys.TextClassifier.from_preset("hf://org/toy"), classifier)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refuse(self, address):
        raise AssertionError(f"a socket was opened to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert same(toys.TextClassifier.from_preset("hf://org/toy"), classifier)


def test_tokenizers_fetch_no_weights(toys, saved, hub):
    hub.add("org/toy", content(saved))
    assert toys.ToyTokenizer.from_preset("hf://org/toy").words == list("abcde")
    assert "model.safetensors" not in hub.fetched()


def test_push_to_hub(classifier, saved, monkeypatch):
    import huggingface_hub

    sent = []

    class Api:
        def __init__(self, **options):
            sent.append(options)

        def create_repo(self, repository, **options):
            sent.append((repository, options))

        def upload_folder(self, repo_id, folder_path):
            sent.append((repo_id, content(folder_path)))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub")
    assert classifier.push_to_hub("org/toy", private=True, token="t") == "https://hub/commit"
    assert sent == [
        {"endpoint": "https://hub", "token": "t"},
        ("org/toy", {"private": True, "exist_ok": True}),
        ("org/toy", content(saved)),
    ]


def test_verify(toys, toy, classifier, saved):
    assert verify(saved).errors == {} and "were not compared" in str(verify(saved))
    record_reference(classifier, saved, INPUTS)
    report = verify(saved)
    assert report.ok and report.errors["output"] <= 1e-6 and report.tensors == 14
    assert report.cls == "ToyClassifier" and "allowed 0.0001: ok" in str(report)

    classifier.head.bias.assign(np.full(3, 1.01, "float32"))
    record_reference(classifier, saved, INPUTS)
    report = verify(saved)
    assert not report.ok and abs(report.errors["output"] - 0.005) < 1e-4
    assert "TOO LARGE" in str(report)
