"""The programs in examples/ run, learn what they say, and stay short."""

import gzip
import re
import runpy
import sys

import numpy as np
import pytest
from sources import ROOT

import khub

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NATIVE = {"torch_loop": "torch", "jax_loop": "jax", "tf_loop": "tensorflow"}
NO_GRADIENTS = {"text_embeddings"}  # what the NumPy backend can run
HERE = [
    path.stem
    for path in EXAMPLES
    if NATIVE.get(path.stem, khub.backend.name) == khub.backend.name
    and (khub.backend.name != "numpy" or path.stem in NO_GRADIENTS)
]


def write_digits(folder):
    """400 pictures of ten kinds, a bright row each: the labels packed, the images not."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 400).astype("uint8")
    images = random.integers(0, 60, (400, 28, 28)).astype("uint8")
    images[np.arange(400), 2 * labels + 4] = 255
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        sizes = np.array(array.shape, ">u4").tobytes()
        data = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
        (folder / f"t10k-{name}").write_bytes(data)
    labels_file = folder / "t10k-labels-idx1-ubyte"
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels_file.read_bytes()))
    images_file = folder / "t10k-images-idx3-ubyte"
    images_file.with_suffix(".gz").write_bytes(gzip.compress(images_file.read_bytes()))
    labels_file.unlink(), images_file.unlink()
    return [str(folder), "--epochs", "8"]


def write_photographs(folder):
    """240 photographs of CIFAR-10, of cars and frogs."""
    with np.load(ROOT.parent / "shared" / "data" / "cifar10" / "train_2000.npz") as file:
        x, y = file["x"], file["y"]
    rows = np.concatenate([np.flatnonzero(y == kind)[:120] for kind in (1, 6)])
    np.savez(folder / "photographs.npz", x=x[rows], y=(y[rows] == 6).astype("uint8"))
    return [
        f"{folder}/photographs.npz",
        "--size",
        "64",
        "--batch",
        "16",
        "--frozen",
        "4",
        "--epochs",
        "1",
    ]


ARGUMENTS = {
    "data_parallel": lambda folder: ["--epochs", "5"],
    "fine_tune_images": write_photographs,
    "fine_tune_bert": lambda folder: [
        "--rows",
        "96",
        "--epochs",
        "2",
        "--output",
        f"{folder}/bert",
    ],
    "custom_train_step": lambda folder: ["--epochs", "20"],
    "lora_sentences": lambda folder: ["--count", "12", "--epochs", "30"],
    "mnist_cnn": write_digits,
    "number_words": lambda folder: ["--steps", "400"],
    "text_embeddings": lambda folder: ["--rows", "240", "The food was cold.", "--count", "3"],
}


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def falls(text):
    first, last = number(r"step 0: loss ([0-9.]+)", text), number(r"final loss ([0-9.]+)", text)
    assert last < 0.4 * first


def tuned(text):
    assert 45 < number(r"accuracy ([0-9.]+)%", text) <= 100
    assert len(re.findall(r"^(?:negative|positive) +[TI]", text, re.M)) == 2


def better_than_random(text):
    """The pretrained network tells cars from frogs after few steps."""
    pretrained = number(r"pretrained: accuracy ([0-9.]+)%", text)
    assert pretrained > 70 and pretrained >= number(r"random start: accuracy ([0-9.]+)%", text)


def close_to_the_circle(text):
    assert 0.6 < number(r"mean radius of generated points: ([0-9.]+)", text) < 1.4


def digits(text):
    answers, truth = re.search(r"digits: (.*), true: (.*)", text).groups()
    assert sum(a == b for a, b in zip(answers, truth)) > 0.7 * len(truth)


def by_heart(text):
    known, count = map(int, re.search(r"(\d+) of (\d+) sentences", text).groups())
    assert count == 12 and known > 8


def read_numbers(text):
    """What 400 steps teach of it."""
    assert number(r"exact match on 500 other numbers: ([0-9.]+)%", text) > 20


def nearest(text):
    scores = [float(line.split()[0]) for line in text.splitlines()[-3:]]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0


def both_rings(text):
    assert number(r"accuracy ([0-9.]+)%", text) > 95


CHECKS = {
    "data_parallel": both_rings,
    "fine_tune_images": better_than_random,
    "fine_tune_bert": tuned,
    "custom_train_step": close_to_the_circle,
    "lora_sentences": by_heart,
    "mnist_cnn": digits,
    "number_words": read_numbers,
    "text_embeddings": nearest,
    **dict.fromkeys(NATIVE, falls),
}


@pytest.mark.parametrize("name", HERE)
def test_examples(name, tmp_path, monkeypatch, capsys):
    arguments = ARGUMENTS.get(name, lambda folder: ["--steps", "60"])(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    CHECKS[name](capsys.readouterr().out)


@pytest.mark.once
def test_every_example_is_checked_and_short():
    assert {path.stem for path in EXAMPLES} == CHECKS.keys()
    assert [p.name for p in EXAMPLES if len(p.read_text().splitlines()) >= 60] == []
