"""Make the preset whisper_digits_micro_en: a tiny Whisper that hears the digits, zero to nine.

    KHUB_BACKEND=torch python presets/recipes/whisper_digits_micro_en.py

600 recordings of six speakers (free-spoken-digit-dataset); two speakers are never learned from.
Everything is drawn from one seed. Park et al. 2019 (SpecAugment), arXiv:1904.08779.
"""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np

import khub
from khub import callbacks, nlp, optimizers
from khub.presets import record_reference

NAME = "whisper_digits_micro_en"
HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "embedded" / NAME
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
HELD_OUT = ("theo", "yweweler")
SEED, BATCH, ROUND = 2026, 40, 50  # ROUND: steps between rows of the loss curve
PEAK_RATE, WARMUP = 2e-3, 200
END, START = "<|endoftext|>", "<|startoftranscript|>"
FEATURES = nlp.WhisperFeatures(bands=40, seconds=2)
SIZES = dict(
    num_mels=FEATURES.bands,
    num_layers=3,
    num_decoder_layers=1,
    num_heads=4,
    hidden_dim=64,
    intermediate_dim=256,
    max_encoder_sequence_length=FEATURES.frames,
    max_sequence_length=16,
)


def recordings(folder):
    """[(samples, word, speaker), ...] in the order of the files' names."""
    found = []
    for path in sorted(folder.glob("*.wav")):
        digit, speaker, _ = path.stem.split("_")
        found.append((nlp.read_audio(path), WORDS[int(digit)], speaker))
    return found


def make_tokenizer():
    """The 256 bytes, the digits' names merged from them, and Whisper's first and last token."""
    special = {"eos_token": END}
    words = nlp.train_byte_pair(WORDS * 2, 400, special_tokens=special)
    learned = json.loads(words.backend.to_str())["model"]
    return nlp.WhisperTokenizer(learned["vocab"], learned["merges"], added_tokens=[START])


def another(samples, random):
    """The same word said faster or slower, higher or lower, nearer or farther, with some noise."""
    speed = np.exp(random.uniform(-0.25, 0.25))
    size = min(int(len(samples) / speed), FEATURES.samples)
    x = np.interp(np.arange(size) * speed, np.arange(len(samples)), samples)
    x = x * np.exp(random.uniform(-2, 0)) / max(np.abs(x).max(), 1e-4)
    whole = np.zeros(FEATURES.samples, "float32")
    at = random.integers(0, FEATURES.samples - size + 1) if random.random() < 0.5 else 0
    whole[at : at + size] = x
    loudness = np.abs(x).mean() * 10 ** random.uniform(-3, -0.5)
    return whole + random.normal(size=len(whole)) * loudness * (random.random() < 0.7)


def masked(features, random):
    """Some bands and some frames at the mean; the bands moved, as a longer throat would."""
    bands = np.arange(FEATURES.bands) * np.exp(random.uniform(-0.12, 0.12))
    low = np.minimum(bands.astype(int), FEATURES.bands - 2)
    share = np.minimum(bands - low, 1)
    x = features[:, low] * (1 - share) + features[:, low + 1] * share
    for _ in range(2):
        width, wide = random.integers(0, 7), random.integers(0, 16)
        band = random.integers(0, FEATURES.bands - width + 1)
        frame = random.integers(0, 60 - wide)
        x[:, band : band + width] = x[frame : frame + wide] = x.mean()
    return x.astype("float32")


def batches(sounds, words, preprocessor):
    """Batches without end, each recording once in an epoch."""
    random = np.random.Generator(np.random.Philox(key=SEED))
    while True:
        order = random.permutation(len(sounds))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[at : at + BATCH]
            made = np.stack([another(sounds[i], random) for i in rows]).clip(-1, 1)
            x, y, weights = preprocessor(list(made.astype("float32")), [words[i] for i in rows])
            x["encoder_features"] = np.stack([masked(f, random) for f in x["encoder_features"]])
            yield x, y, weights


class Recorder(callbacks.Callback):
    """The learning rate of each round, which rises and then falls along a cosine; its loss."""

    def __init__(self, rounds, held):
        super().__init__()
        self.rounds, self.held, self.rows, self.start = rounds, held, [], time.time()

    def on_epoch_begin(self, epoch, logs=None):
        done = epoch / self.rounds
        rate = PEAK_RATE * min(1, (epoch + 0.5) * ROUND / WARMUP)
        self.model.optimizer.learning_rate = rate * 0.5 * (1 + np.cos(np.pi * done))

    def on_epoch_end(self, epoch, logs=None):
        held = accuracy(self.model, *self.held) if (epoch + 1) % 10 == 0 else ""
        self.rows.append(
            [(epoch + 1) * ROUND, round(time.time() - self.start), f"{logs['loss']:.4f}", held]
        )
        print(*self.rows[-1], flush=True)


def accuracy(model, sounds, words):
    return np.mean([a == b for a, b in zip(model.generate(sounds), words)])


def plot(rows, target):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    axes.plot([r[0] for r in rows], [float(r[2]) for r in rows], label="loss of training")
    held = [(r[0], r[3]) for r in rows if r[3] != ""]
    axes.plot(*zip(*held), label="accuracy, speakers never heard")
    axes.set(title=NAME, xlabel="step", ylabel="nats a token; share of digits", ylim=(0, 2))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    data = HERE.parents[2] / "shared" / "data" / "audio" / "spoken_digits"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()

    found = recordings(options.data)
    learned = [(x, word) for x, word, speaker in found if speaker not in HELD_OUT]
    held = [list(part) for part in zip(*[f[:2] for f in found if f[2] in HELD_OUT])]
    tokenizer = make_tokenizer()
    khub.utils.set_random_seed(SEED)
    backbone = nlp.WhisperBackbone(
        **SIZES,
        vocabulary_size=tokenizer.vocabulary_size(),
        dropout=0.1,
        decoder_start_token_id=tokenizer.token_to_id(START),
    )
    preprocessor = nlp.SpeechToTextPreprocessor(tokenizer, FEATURES, sequence_length=4)
    model = nlp.WhisperSpeechToText(backbone, preprocessor)
    optimizer = optimizers.AdamW(PEAK_RATE, weight_decay=0.05, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer=optimizer, weighted_metrics=None)
    recorder = Recorder(options.steps // ROUND, held)
    model.fit(
        batches(*zip(*learned), preprocessor),
        steps_per_epoch=ROUND,
        epochs=recorder.rounds,
        callbacks=[recorder],
        verbose=0,
    )
    print(f"{model.count_params():,} parameters; accuracy on {', '.join(HELD_OUT)}:")
    print(f"{accuracy(model, *held):.1%}")
    model.save_to_preset(options.output)
    x, _, _ = preprocessor(held[0][:2], held[1][:2])
    record_reference(model, options.output, x)
    with open(HERE / f"{NAME}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["step", "seconds", "loss", "held_out_accuracy"], *recorder.rows])
    plot(recorder.rows, HERE / f"{NAME}.png")


if __name__ == "__main__":
    main()
