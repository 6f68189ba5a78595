"""Make the preset bert_micro_en_uncased: vocabulary, masked language modelling, preset folder.

    KHUB_BACKEND=jax python presets/recipes/bert_micro_en_uncased.py --minutes 35

Everything is drawn from one seed. A run that stops goes on from its last checkpoint in --work.
"""

import argparse
import csv
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
from corpus import paragraphs

import khub
from khub import callbacks, nlp, optimizers
from khub.nlp.bert import VARIANTS

NAME = "bert_micro_en_uncased"
HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "embedded" / NAME
SEED = 2026
BATCH, LENGTH = 32, 64
MASKS, MASK_RATE = 14, 0.2  # a higher rate than BERT's 0.15: more to learn from little text
PEAK_RATE, WARMUP = 2e-3, 400
STEPS_PER_ROUND = 250  # one row of the loss curve
REVIEWS_REPEATED = 3


def train_vocabulary(corpus, reviews):
    texts = [" ".join(p).replace("[UNK]", " ") for parts in corpus.values() for p in parts]
    size = VARIANTS[NAME]["vocabulary_size"]
    tokenizer = nlp.train_word_piece([*texts, *reviews], size)
    assert tokenizer.vocabulary_size() == size, tokenizer
    return nlp.BertTokenizer(tokenizer.get_vocabulary())


def pack(rows, room):
    """Join sentences (lists of ids) to rows of at most `room` ids; a longer one is cut."""
    current = []
    for row in rows:
        pieces = [row[i : i + room] for i in range(0, len(row), room)]
        for piece in pieces:
            if len(current) + len(piece) > room:
                yield current
                current = []
            current = current + piece
    if current:
        yield current


class Corpus:
    """Batches of masked text without end; which ones depends on the seed and the step alone."""

    def __init__(self, corpus, reviews, tokenizer):
        self.preprocessor = nlp.MaskedLMPreprocessor(
            tokenizer,
            sequence_length=LENGTH,
            mask_selection_rate=MASK_RATE,
            mask_selection_length=MASKS,
            seed=SEED,
        )
        self.room = LENGTH - 2
        ids = [tokenizer.tokenize(p) for parts in corpus.values() for p in parts]
        rows = list(pack((sentence for p in ids for sentence in p), self.room))
        order = np.random.Generator(np.random.Philox(key=SEED)).permutation(len(rows))
        held = order[: len(rows) // 50]
        self.rows = [rows[i] for i in sorted(order[len(held) :])]
        self.reviews = tokenizer.tokenize(reviews)
        held_out = nlp.MaskedLMPreprocessor(tokenizer, LENGTH, "longest_first", MASK_RATE, MASKS)
        self.validation = held_out.mask(held_out.assemble([[rows[i] for i in held]]))

    def epoch(self, number):
        """Rows of one pass: the text once, the reviews some times, newly joined and shuffled."""
        random = np.random.Generator(np.random.Philox(key=[SEED, 1 + number]))
        rows = list(self.rows)
        for _ in range(REVIEWS_REPEATED):
            order = random.permutation(len(self.reviews))
            rows += pack((self.reviews[i] for i in order), self.room)
        return [rows[i] for i in random.permutation(len(rows))]

    def batches(self, first_step=0):
        self.preprocessor.calls = itertools.count(first_step)
        skip = first_step
        for number in itertools.count():
            rows = self.epoch(number)
            count = len(rows) // BATCH
            for i in range(min(skip, count), count):
                chosen = rows[i * BATCH : (i + 1) * BATCH]
                yield self.preprocessor.mask(self.preprocessor.assemble([chosen]))
            skip = max(0, skip - count)


class Recorder(callbacks.Callback):
    """After each round: a row of the loss curve, and now and then a checkpoint of the run."""

    def __init__(self, work, every_seconds=180):
        super().__init__()
        self.work, self.every = work, every_seconds
        self.last = self.start = time.time()
        self.before = 0.0

    def on_epoch_end(self, epoch, logs=None):
        now = time.time()
        seconds = self.before + now - self.start
        step = (epoch + 1) * STEPS_PER_ROUND
        row = [step, f"{seconds:.0f}", f"{logs['loss']:.4f}", f"{logs['val_loss']:.4f}"]
        with open(self.work / "curve.csv", "a", newline="") as file:
            csv.writer(file).writerow(row)
        print(f"step {step}  {seconds:.0f} s  loss {row[2]}  held out {row[3]}", flush=True)
        if now - self.last > self.every:
            self.save(epoch + 1, seconds)

    def save(self, rounds, seconds):
        arrays = {f"model.{k}": v.numpy() for k, v in self.model.named_variables().items()}
        for i, variable in enumerate(self.model.optimizer.variables):
            arrays[f"optimizer.{i}"] = variable.numpy()
        temporary = self.work / "run.tmp.npz"
        np.savez(temporary, rounds=rounds, seconds=seconds, **arrays)
        os.replace(temporary, self.work / "run.npz")
        self.last = time.time()

    def restore(self, model):
        """Put a stopped run back.  -> rounds done"""
        path = self.work / "run.npz"
        if not path.is_file():
            (self.work / "curve.csv").write_text("step,seconds,loss,held_out_loss\n")
            return 0
        model.optimizer.build(model.trainable_variables)
        with np.load(path) as arrays:
            for name, variable in model.named_variables().items():
                variable.assign(arrays[f"model.{name}"])
            for i, variable in enumerate(model.optimizer.variables):
                variable.assign(arrays[f"optimizer.{i}"])
            self.before, rounds = float(arrays["seconds"]), int(arrays["rounds"])
        lines = (self.work / "curve.csv").read_text().splitlines(keepends=True)
        (self.work / "curve.csv").write_text("".join(lines[: rounds + 1]))
        print(f"going on after round {rounds}", flush=True)
        return rounds


def make_model(tokenizer):
    khub.utils.set_random_seed(SEED)
    backbone = nlp.BertBackbone(**VARIANTS[NAME], dropout=0.0, attention_dropout=0.0)
    return nlp.BertMaskedLM(backbone)


def optimizer(steps):
    """AdamW; the rate rises for WARMUP steps, then falls as a cosine."""
    schedule = optimizers.schedules.CosineDecay(
        0.0, steps - WARMUP, warmup_target=PEAK_RATE, warmup_steps=WARMUP, alpha=0.01
    )
    made = optimizers.AdamW(
        schedule, weight_decay=0.01, beta_2=0.98, epsilon=1e-6, global_clipnorm=1.0
    )
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


def seconds_a_step(corpus, tokenizer):
    """Measured on a throw-away model, the compilation left out."""
    model = make_model(tokenizer)
    model.compile(optimizer=optimizer(1000), weighted_metrics=None)
    batches = corpus.batches()
    model.fit(batches, steps_per_epoch=5, epochs=1, verbose=0)
    start = time.time()
    model.fit(batches, steps_per_epoch=60, epochs=1, verbose=0)
    return (time.time() - start) / 60


def save(model, tokenizer, folder):
    """The preset as it ships: fp16, with BERT's usual dropout for fine-tuning."""
    backbone = nlp.BertBackbone(**VARIANTS[NAME])
    shipped = nlp.BertMaskedLM(backbone, preprocessor=nlp.MaskedLMPreprocessor(tokenizer, 128))
    own = model.named_variables()
    for path, variable in shipped.named_variables().items():
        if path in own:
            variable.assign(own[path].numpy())
    shipped.save_to_preset(folder, dtype="float16")


def plot(curve, target):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with open(curve) as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for key, label in (("loss", "training"), ("held_out_loss", "held-out text")):
        axes.plot([int(r["step"]) for r in rows], [float(r[key]) for r in rows], label=label)
    axes.set(title=f"{NAME}: masked language modelling", xlabel="step", ylabel="loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=35, help="sets the number of steps")
    parser.add_argument("--steps", type=int, help="the number of steps itself")
    data = HERE.parents[2] / "shared" / "data" / "text"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--work", type=Path, default=Path("/tmp") / NAME, help="run's checkpoints")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    text = paragraphs(options.data)
    (reviews, _), _ = nlp.datasets.reviews()
    if not (options.work / "tokenizer.json").is_file():
        train_vocabulary(text, reviews).save(options.work)
    tokenizer = nlp.BertTokenizer.load(options.work)
    corpus = Corpus(text, reviews, tokenizer)
    print(f"{len(corpus.rows):,} rows of {LENGTH} tokens, {len(reviews):,} reviews", flush=True)

    plan = options.work / "plan.json"
    if not plan.is_file():
        steps = options.steps or options.minutes * 60 / seconds_a_step(corpus, tokenizer)
        rounds = max(2, round(steps / STEPS_PER_ROUND))
        plan.write_text(json.dumps({"rounds": rounds, "seed": SEED}))
    rounds = json.loads(plan.read_text())["rounds"]
    print(f"{rounds * STEPS_PER_ROUND:,} steps on {khub.backend.name}", flush=True)

    model = make_model(tokenizer)
    model.compile(optimizer=optimizer(rounds * STEPS_PER_ROUND), weighted_metrics=None)
    recorder = Recorder(options.work)
    done = recorder.restore(model)
    model.fit(
        corpus.batches(done * STEPS_PER_ROUND),
        steps_per_epoch=STEPS_PER_ROUND,
        initial_epoch=done,
        epochs=rounds,
        validation_data=corpus.validation,
        validation_batch_size=BATCH,
        callbacks=[recorder],
        verbose=0,
    )
    recorder.save(rounds, recorder.before + time.time() - recorder.start)
    save(model, tokenizer, options.output)
    curve = (options.work / "curve.csv").read_text()
    (HERE / f"{NAME}.csv").write_text(curve)
    plot(HERE / f"{NAME}.csv", HERE / f"{NAME}.png")


if __name__ == "__main__":
    main()
