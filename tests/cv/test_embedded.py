"""The presets of images that ship with khub: what they draw and find, and the demo of them."""

import numpy as np
import pytest
from PIL import Image

from khub import cv, presets
from khub.presets.catalog import EMBEDDED
from khub.presets.demo import PROMPTS
from khub.presets.demo import main as demo

DRAWS, DETECTS = "stable_diffusion_digits_micro", "yolo_v8_digits_micro"
EXAMPLE = EMBEDDED / DETECTS / "example.png"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_the_detector_finds_what_is_on_the_example():
    detector = cv.YOLOV8Detector.from_preset(DETECTS, confidence_threshold=0.5)
    assert detector.labels == tuple(WORDS)
    found = detector.predict([EXAMPLE], verbose=0)
    count = found["num_detections"][0]
    names = sorted(detector.labels[i] for i in found["classes"][0][:count])
    assert names == ["eight", "nine", "one", "seven", "six"]
    width, height = Image.open(EXAMPLE).size
    boxes = found["boxes"][0][:count]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()


def test_what_is_drawn_is_what_was_asked_for():
    """The detector, which never saw a drawn digit, names most of them."""
    pipeline = cv.StableDiffusion.from_preset(DRAWS)
    prompts = [f"a handwritten {word}" for word in WORDS]
    drawn = pipeline.text_to_image(prompts, num_steps=10, seed=0, verbose=0)
    assert drawn.shape == (10, 32, 32, 3)
    canvases = np.full((10, 160, 160, 3), 60, "uint8")
    larger = drawn.repeat(2, 1).repeat(2, 2)
    canvases[:, 48:112, 48:112] = np.maximum(larger, 60)
    detector = cv.YOLOV8Detector.from_preset(DETECTS)
    found = detector.predict(list(canvases), verbose=0)
    assert (found["classes"][:, 0] == np.arange(10)).sum() >= 7


@pytest.mark.parametrize("name", [DRAWS, DETECTS])
def test_is_small_and_says_its_licence(name):
    files = [path for path in (EMBEDDED / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert presets.info(name).licence in (EMBEDDED / name / "README.md").read_text()
    assert presets.verify(name).ok


@pytest.mark.parametrize("task, files", [("text-to-image", len(PROMPTS)), ("detection", 1)])
def test_the_demo_writes_pictures(task, files, tmp_path, capsys):
    assert demo(["--task", task, "--output", str(tmp_path)]) == 0
    found = sorted(tmp_path.glob("*.png"))
    assert len(found) == files
    assert all(Image.open(path).size[0] >= 256 for path in found)
    assert str(found[0]) in capsys.readouterr().out
