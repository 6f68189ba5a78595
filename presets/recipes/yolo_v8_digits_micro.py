"""Make the preset yolo_v8_digits_micro: a tiny YOLOv8 that finds handwritten digits on photographs.

    KHUB_BACKEND=torch python presets/recipes/yolo_v8_digits_micro.py

MNIST's digits (CC BY-SA 3.0) at random scales, places and colours on canvases cut out of eight
photographs (CC BY); 2,000 of the 10,000 digits are never learned from. All is drawn from one seed.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from mnist import WORDS, read_digits

import khub
from khub import callbacks, cv, optimizers
from khub.cv.detection_data import DetectionPreprocessor
from khub.presets import record_reference

NAME = "yolo_v8_digits_micro"
HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "embedded" / NAME
SEED, SIZE, BATCH, ROUND = 2026, 160, 16, 50  # ROUND: steps between rows of the loss curve
HELD_OUT, TESTED = 2000, 300  # digits that are never learned from, canvases they are tested on
SIDES, MOST = (16, 72), 5  # pixels of a digit's square, digits on a canvas
PEAK_RATE, WARMUP = 3e-3, 200
WIDTHS, NECK, BINS = (16, 24, 48, 64, 96), (48, 64, 96, 1), 8


def photographs(folder):
    """RGB images, the shorter side 480 pixels."""
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".bmp", ".jpg")):
        image = cv.read_image(path)
        scale = 480 / min(image.size)
        found.append(image.resize([round(n * scale) for n in image.size]))
    return found


def canvas(photos, random):
    """A random part of a photograph, in one of its mirrorings, lighter or darker."""
    photo = photos[random.integers(len(photos))]
    side = int(random.integers(SIZE // 2, min(photo.size) + 1))
    left, top = (int(random.integers(0, n - side + 1)) for n in photo.size)
    part = photo.resize((SIZE, SIZE), 2, (left, top, left + side, top + side))
    x = np.asarray(part, "float32")[:: random.choice([1, -1]), :: random.choice([1, -1])]
    return x * random.uniform(0.5, 1) + random.uniform(0, 100)


def drawn(x, digit, place, random):
    """Put a digit onto x and return its box; its colour is far from what lies below it."""
    left, top, side = place
    ink = np.asarray(cv.read_image(digit).resize((side, side), 2), "float32")[..., :1] / 255
    below = x[top : top + side, left : left + side]
    light = below.mean()
    low, high = (0, max(light - 90, 20)) if light > 128 else (min(light + 90, 235), 255)
    ink *= random.uniform(0.8, 1)
    below += ink * (random.uniform(low, high, 3) - below)
    rows, columns = np.nonzero(ink[..., 0] > 0.25)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return np.asarray(box, "float32") + [left, top] * 2


def scene(images, labels, photos, random):
    """A canvas uint8 with some digits that do not hide each other, their boxes and classes."""
    x, taken, boxes, classes = canvas(photos, random), np.zeros((SIZE, SIZE), bool), [], []
    for _ in range(random.integers(1, MOST + 1)):
        side = int(np.exp(random.uniform(*np.log(SIDES))))
        left, top = random.integers(0, SIZE - side + 1, 2)
        square = taken[top : top + side, left : left + side]
        if square.mean() > 0.05:
            continue
        square[:] = True
        number = random.integers(len(images))
        boxes.append(drawn(x, images[number], (left, top, side), random))
        classes.append(labels[number])
    x = x + random.normal(size=x.shape) * random.uniform(0, 8)
    return x.clip(0, 255).astype("uint8"), np.stack(boxes), np.asarray(classes)


def scenes(count, images, labels, photos, random):
    found = zip(*(scene(images, labels, photos, random) for _ in range(count)))
    x, boxes, classes = map(list, found)
    return np.stack(x), {"boxes": boxes, "classes": classes}


def batches(*source):
    """Batches without end; no canvas comes twice."""
    random = np.random.Generator(np.random.Philox(key=SEED))
    while True:
        yield scenes(BATCH, *source, random)


class Recorder(callbacks.Callback):
    """The learning rate of each round, which rises and then falls along a cosine; its loss."""

    def __init__(self, rounds):
        super().__init__()
        self.rounds, self.rows, self.start = rounds, [], time.time()

    def on_epoch_begin(self, epoch, logs=None):
        rate = PEAK_RATE * min(1, (epoch + 0.5) * ROUND / WARMUP)
        self.model.optimizer.learning_rate = rate * 0.5 * (1 + np.cos(np.pi * epoch / self.rounds))

    def on_epoch_end(self, epoch, logs=None):
        seconds, held = round(time.time() - self.start), logs.get("val_mAP50", "")
        held = held and f"{held:.4f}"
        self.rows.append([(epoch + 1) * ROUND, seconds, f"{logs['loss']:.4f}", held])
        print(*self.rows[-1], flush=True)


def plot(rows, target):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    axes.plot([r[0] for r in rows], [float(r[2]) for r in rows], label="loss of training")
    axes.set(title=NAME, xlabel="step", ylabel="loss", ylim=(0, None))
    other = axes.twinx()
    held = [(r[0], float(r[3])) for r in rows if r[3] != ""]
    other.plot(*zip(*held), "C1", label="mAP50, digits never learned from")
    other.set(ylabel="mAP50", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="center right", bbox_to_anchor=(0.88, 0.5))
    figure.tight_layout()
    figure.savefig(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=6000)
    data = HERE.parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--curve", type=Path, default=HERE / NAME, help="of the CSV and the PNG")
    options = parser.parse_args()

    images, labels = read_digits(options.data / "mnist")
    photos = photographs(options.data / "images" / "cc-by")
    khub.utils.set_random_seed(SEED)
    backbone = cv.YOLOV8Backbone(WIDTHS, (1, 1, 1, 1))
    host = DetectionPreprocessor((SIZE, SIZE), max_boxes=MOST)
    model = cv.YOLOV8Detector(backbone, 10, host, NECK, BINS, labels=WORDS)
    optimizer = optimizers.AdamW(PEAK_RATE, weight_decay=0.02, global_clipnorm=10.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer)
    random = np.random.Generator(np.random.Philox(key=SEED + 1))
    held = scenes(TESTED, images[-HELD_OUT:], labels[-HELD_OUT:], photos, random)
    recorder = Recorder(options.steps // ROUND)
    model.fit(
        batches(images[:-HELD_OUT], labels[:-HELD_OUT], photos),
        steps_per_epoch=ROUND,
        epochs=recorder.rounds,
        augment=False,
        validation_data=held,
        validation_freq=max(1, recorder.rounds // 8),
        callbacks=[recorder],
        verbose=0,
    )
    print(f"{model.count_params():,} parameters; on digits never learned from:")
    print({name: round(value, 4) for name, value in model.evaluate(*held, verbose=0).items()})
    model.save_to_preset(options.output)
    most = max(range(TESTED), key=lambda i: len(held[1]["classes"][i]))
    cv.read_image(held[0][most]).save(options.output / "example.png")
    record_reference(model, options.output, {"image": host(list(held[0][:1]))})
    with open(f"{options.curve}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["step", "seconds", "loss", "held_out_mAP50"], *recorder.rows])
    plot(recorder.rows, f"{options.curve}.png")


if __name__ == "__main__":
    main()
