"""`khub demo`: small models that ship with khub at work, offline.

--task text-classification fine-tunes a BERT on real reviews and reopens it on another backend,
--task text-to-image draws digits that are asked for, --task detection finds digits in a picture.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PRESET = "bert_micro_en_uncased"
DRAWS, DETECTS = "stable_diffusion_digits_micro", "yolo_v8_digits_micro"
PROMPTS = [
    "a handwritten three",
    "the number 7",
    "two digits: one and seven",
    "a handwritten eight",
]
LENGTH, BATCH, EPOCHS, RATE = 48, 32, 3, 1e-3
SENTENCES = [
    "The food was cold, and the waiter did not even say sorry.",
    "A warm and funny film; I would gladly watch it again.",
    "The battery lasts for days and the sound is excellent.",
]
PACKAGES = {"jax": "jax", "torch": "torch", "tensorflow": "tensorflow", "numpy": "numpy"}
# Run in a process of its own, because a process has one backend.
REOPEN = """
import sys, numpy, khub
from khub import nlp
folder, sentences, target = sys.argv[1], sys.argv[3:], sys.argv[2]
model = nlp.TextClassifier.from_preset(folder)
numpy.save(target, model.predict(sentences, verbose=0))
"""


def fine_tune(title, load_weights):
    """Train a classifier on the reviews.  -> (model, accuracy before, accuracy after)"""
    import khub
    from khub import nlp

    (train_texts, train_labels), (test_texts, test_labels) = nlp.datasets.reviews()
    khub.utils.set_random_seed(0)
    model = nlp.BertClassifier.from_preset(
        PRESET,
        load_weights=load_weights,
        num_classes=2,
        labels=("negative", "positive"),
        sequence_length=LENGTH,
    )
    steps = EPOCHS * -(-len(train_texts) // BATCH)
    rate = khub.optimizers.schedules.PolynomialDecay(RATE, steps, end_learning_rate=0.0)
    model.compile(optimizer=nlp.tasks.adamw(rate))
    before = accuracy(model, test_texts, test_labels)
    print(f"\n{title}: accuracy on {len(test_texts)} held-out sentences before: {before:.1%}")
    model.fit(train_texts, train_labels, batch_size=BATCH, epochs=EPOCHS)
    after = accuracy(model, test_texts, test_labels)
    print(f"{title}: accuracy after: {after:.1%}")
    return model, before, after


def accuracy(model, texts, labels):
    import numpy as np

    logits = model.predict(texts, batch_size=BATCH, verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == np.asarray(labels)))


def probabilities(logits):
    import numpy as np

    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def other_backend(name):
    """Another installed backend to check the saved model on; NumPy is always there."""
    others = [b for b in PACKAGES if b != name and importlib.util.find_spec(PACKAGES[b])]
    return others[0]


def reopen(folder, backend):
    """Logits of SENTENCES from the saved model, computed on another backend."""
    import numpy as np

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "logits.npy")
        command = [sys.executable, "-c", REOPEN, str(folder), str(target), *SENTENCES]
        environment = {**os.environ, "KHUB_BACKEND": backend}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"Opening {folder} on {backend} failed:\n{run.stderr}")
        return np.load(target)


def classify(options):
    """Fine-tune a classifier of sentences, save it, and open it on another backend."""
    import khub

    if khub.backend.name == "numpy":
        raise ValueError(
            "NumPy computes no gradients; install khub[jax], khub[torch] or khub[tensorflow]."
        )
    start = time.time()
    print(f"khub on {khub.backend.name}: is a sentence of a review positive or negative?")
    print("2,400 sentences to learn from, 600 to test (Kotzias et al., KDD 2015; CC BY 4.0).")
    model, before, after = fine_tune("pretrained", load_weights=True)
    _, _, scratch = fine_tune("random start", load_weights=False)

    print(f"\n{'':24}{'before':>9}{'after':>9}")
    print(f"{PRESET:24}{before:>9.1%}{after:>9.1%}")
    print(f"{'the same from random':24}{'':>9}{scratch:>9.1%}")

    logits = model.predict(SENTENCES, verbose=0)
    print("\nThree new sentences:")
    for sentence, row in zip(SENTENCES, probabilities(logits)):
        print(f"  {model.labels[row.argmax()]} ({row.max():.0%})  {sentence}")

    with tempfile.TemporaryDirectory() as scratch_folder:
        folder = options.output or Path(scratch_folder, "reviews_bert")
        model.save_to_preset(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        where = f" to {folder}" if options.output else ""
        print(f"\nSaved{where} in the Hugging Face layout ({size / 1e6:.1f} MB).")
        backend = other_backend(khub.backend.name)
        again = reopen(folder, backend)
    difference = float(abs(again - logits).max())
    same = (again.argmax(-1) == logits.argmax(-1)).all()
    print(f"Opened on {backend}: largest difference of a logit {difference:.1e}, ", end="")
    print("the same predictions." if same else "NOT the same predictions.")
    print(f"Done in {time.time() - start:.0f} seconds.")
    return 0 if same and difference < 1e-3 else 1


def draw(options):
    """Draw what sentences say, and write a picture of each."""
    import khub
    from khub import cv

    start = time.time()
    pipeline = cv.StableDiffusion.from_preset(DRAWS)
    print(f"khub on {khub.backend.name}: {DRAWS} draws digits of 32 x 32 pixels.")
    images = pipeline.text_to_image(PROMPTS, num_steps=25, seed=list(range(len(PROMPTS))))
    folder = _folder(options)
    for number, (prompt, image) in enumerate(zip(PROMPTS, images), 1):
        _write(image, folder / f"drawn_{number}.png", prompt, larger=8)
    print(f"Done in {time.time() - start:.0f} seconds.")
    return 0


def detect(options):
    """Find the digits in a picture that the detector was not trained on, and draw their boxes."""
    import khub
    from khub import cv

    from .catalog import EMBEDDED

    start = time.time()
    path = EMBEDDED / DETECTS / "example.png"
    detector = cv.YOLOV8Detector.from_preset(DETECTS, confidence_threshold=0.5)
    found = detector.predict([path], verbose=0)
    count = int(found["num_detections"][0])
    print(f"khub on {khub.backend.name}: {DETECTS} finds {count} digits in {path.name}.")
    found = {name: values[0] for name, values in found.items()}
    for number in range(count):
        box = ", ".join(f"{x:.0f}" for x in found["boxes"][number])
        label = detector.labels[found["classes"][number]]
        print(f"  {label} ({found['confidence'][number]:.0%}) at {box}")
    picture = cv.draw_boxes(path, found, labels=detector.labels)
    _write(picture, _folder(options) / "detected.png", "the picture with its boxes", larger=4)
    print(f"Done in {time.time() - start:.0f} seconds.")
    return 0 if count else 1


def _folder(options):
    folder = options.output or Path("khub_demo")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(image, path, what, larger):
    """Write an array or a PIL image as a PNG, `larger` times as large."""
    from PIL import Image

    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    size = image.width * larger, image.height * larger
    image.resize(size, Image.Resampling.NEAREST).save(path)
    print(f"  {path}: {what}")


TASKS = {"text-classification": classify, "text-to-image": draw, "detection": detect}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="khub demo", description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="text-classification")
    parser.add_argument("--backend", choices=PACKAGES)
    parser.add_argument(
        "--output", type=Path, help="folder for the fine-tuned model, or for the pictures"
    )
    options = parser.parse_args(argv)
    if options.backend:
        os.environ["KHUB_BACKEND"] = options.backend

    import khub

    if options.backend and khub.backend.name != options.backend:
        parser.error(f"khub runs on {khub.backend.name} already; start a new process.")
    return TASKS[options.task](options)


if __name__ == "__main__":
    sys.exit(main())
