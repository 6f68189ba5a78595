"""Pipelines: a model_index.json and a folder for each part, with toy parts; downloads of them."""

import json
import shutil

import numpy as np
import pytest

from khub import presets
from khub.presets import Family, Pipeline, WeightsError, register, tensors
from khub.presets.download import DownloadError
from khub.presets.download import download as download_preset


class Clock:
    """A part that is no model."""

    reference_library, reference_class = "diffusers", "ClockScheduler"

    def __init__(self, steps):
        self.steps = steps

    @classmethod
    def load(cls, folder):
        return cls(json.loads((folder / "scheduler_config.json").read_text())["steps"])

    def save(self, folder):
        (folder / "scheduler_config.json").write_text(json.dumps({"steps": self.steps}))


class ToyPipeline(Pipeline):
    folders = {"first": None, "second": None, "scheduler": Clock.load}
    required = ("first", "scheduler")

    def __init__(self, first, scheduler, second=None, index=None):
        self.first, self.scheduler, self.second, self.index = first, scheduler, second, index


@pytest.fixture(scope="module")
def drawn(toys):
    """A toy whose config.json is diffusers' and whose file has diffusers' name."""

    class DrawnBackbone(toys.ToyBackbone):
        weights_name = "diffusion_pytorch_model"

        def reference_config(self):
            config = super().reference_config()
            return {"_class_name": "DrawnModel", **config, "model_type": None}

    register(Family("drawn", ("DrawnModel",), DrawnBackbone))
    register(Family("toy_pipeline", ("ToyPipeline",), ToyPipeline))
    return DrawnBackbone


@pytest.fixture
def saved(toy, drawn, tmp_path):
    other = drawn(words=3)
    made = ToyPipeline(toy, Clock(7), other, {"_class_name": "ToyPipeline", "safe": [None, None]})
    made.save_to_preset(tmp_path / "saved")
    return tmp_path / "saved"


def tree(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))


FILES = {
    "model_index.json",
    "first/config.json",
    "first/model.safetensors",
    "second/config.json",
    "second/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
}


def test_a_pipeline_comes_back(saved, toy):
    assert tree(saved) == FILES
    assert json.loads((saved / "model_index.json").read_text()) == {
        "_class_name": "ToyPipeline",
        "safe": [None, None],
        "first": ["transformers", "ToyModel"],
        "second": ["diffusers", "DrawnModel"],
        "scheduler": ["diffusers", "ClockScheduler"],
    }
    assert "khub" not in json.loads((saved / "second/config.json").read_text())
    for again in (ToyPipeline.from_preset(saved), presets.load(saved)):
        assert same(again.first, toy) and again.scheduler.steps == 7
        assert type(again.second).__name__ == "DrawnBackbone"
        assert again.index == {"_class_name": "ToyPipeline", "safe": [None, None]}
    assert presets.verify(saved).tensors == 24 and presets.verify(saved).ok
    again.first = [toy, toy]
    with pytest.raises(ValueError, match="room for one first, not 2"):
        again.save_to_preset(saved)
    assert ToyPipeline.from_preset(saved, scheduler=Clock(9)).scheduler.steps == 9


def test_it_is_saved_as_a_whole_or_not_at_all(saved, toy, drawn, tmp_path, monkeypatch):
    (saved / "README.md").write_text("kept")
    (saved / "second" / "old.bin").write_text("gone")
    again = ToyPipeline.from_preset(saved)
    write, calls = tensors._write_bytes, iter(range(100))
    before = tree(saved)

    def full(file, data):
        if next(calls) == 8:
            raise OSError(28, "No space left on device")
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "_write_bytes", full)
        with pytest.raises(OSError, match=r"saved has no room: [0-9,]+ bytes are needed"):
            again.save_to_preset(saved)
    assert tree(saved) == before and list(saved.parent.iterdir()) == [saved]
    again.save_to_preset(saved)
    assert tree(saved) == FILES | {"README.md"} and same(ToyPipeline.from_preset(saved).first, toy)


def test_what_is_missing_is_named(saved):
    shutil.rmtree(saved / "second")
    with pytest.raises(FileNotFoundError, match="lacks the part 'second', which its model_index"):
        presets.load(saved)
    index = json.loads((saved / "model_index.json").read_text())
    index["first"], index["second"] = [None, None], [None, None]
    (saved / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="does not name first; a ToyPipeline needs first"):
        presets.load(saved)
    (saved / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(ValueError, match="model_index.json has _class_name 'OtherPipeline', which"):
        presets.load(saved)
    (saved / "model_index.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="nor diffusers' _class_name"):
        presets.load(saved)


NAMES = [  # of the weights in a folder
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_weights(drawn, saved, name):
    folder = saved / "second"
    (folder / NAMES[0]).rename(folder / name)
    assert same(drawn.from_preset(folder), ToyPipeline.from_preset(saved).second)


def test_shards_have_the_name_too(drawn, tmp_path):
    arrays = {n: np.full((10,), i, "float32") for i, n in enumerate("abc")}
    tensors.write_checkpoint(tmp_path, arrays, shard_limit=50, name="diffusion_pytorch_model")
    assert (tmp_path / "diffusion_pytorch_model-00003-of-00003.safetensors").is_file()
    assert tensors.Checkpoint(tmp_path).tensor("c").read()[0] == 2
    for path in tmp_path.iterdir():  # as a half-precision copy is named
        text = path.read_bytes()
        if path.suffix == ".json":
            (tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json").write_bytes(text)
            path.unlink()
    assert tensors.Checkpoint(tmp_path).names == {*"abc"}


@pytest.mark.once
def test_only_the_parts_that_are_read_are_fetched(saved, hub, toy):
    def files():
        return {name: (saved / name).read_bytes() for name in tree(saved)}

    more = dict.fromkeys(
        [
            "v1-5-pruned.safetensors",
            "v1-5-pruned.ckpt",
            "second/diffusion_pytorch_model.fp16.safetensors",
            "second/diffusion_pytorch_model.bin",
            "second/diffusion_pytorch_model.non_ema.safetensors",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
        ],
        b"not wanted",
    )
    hub.add("org/toys", {**files(), **more})
    folder = download_preset("hf://org/toys", progress=False)
    assert tree(folder) == FILES
    assert same(presets.load("hf://org/toys").first, toy)

    half, half_more = files(), more.copy()
    name = "second/diffusion_pytorch_model"
    half_more[f"{name}.fp16.safetensors"] = half.pop(f"{name}.safetensors")
    hub.add("org/half", {**half, **half_more})
    folder = download_preset("hf://org/half", progress=False)
    assert tree(folder) == FILES - {f"{name}.safetensors"} | {f"{name}.fp16.safetensors"}
    assert presets.load("hf://org/half").second.words == 3

    old, old_more = files(), more.copy()
    del old["first/model.safetensors"], old[f"{name}.safetensors"]
    del old_more[f"{name}.fp16.safetensors"]
    hub.add("org/old", {**old, **old_more, "first/pytorch_model.bin": b"damaged?"})
    folder = download_preset("hf://org/old", progress=False)
    assert (folder / f"{name}.bin").is_file() and (folder / "first/pytorch_model.bin").is_file()
    with pytest.raises(WeightsError, match="pytorch_model.bin"):
        presets.load("hf://org/old")

    small = download_preset("hf://org/toys", progress=False, weights=False)
    assert (small / "second/config.json").is_file()
    hub.add("org/damaged", {**files(), "second/config.json": b"{}"})
    hub.damaged.add("first/model.safetensors")
    with pytest.raises(DownloadError, match="model.safetensors has sha256 .* the server says"):
        download_preset("hf://org/damaged", progress=False)
