"""Make the preset bert_micro_en_uncased: vocabulary, masked language modelling, preset folder.

    KHUB_BACKEND=jax python presets/recipes/bert_micro_en_uncased.py --minutes 35

Everything is drawn from one seed. A run that stops goes on from its last checkpoint in --work.
"""

import argparse
import csv
import itertools
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
MASKS, MASK_RATE = 13, 0.2  # a higher rate than BERT's 0.15: more to learn from little text
SUMMARY, SUMMARY_WEIGHT = 4, 0.5  # words of the row that the first token has to name
PEAK_RATE = 1.5e-3
STEPS_PER_ROUND = 100  # the learning rate changes, and the loss curve has a row, once a round
WARMUP, DECAY = 5, 0.25  # rounds; part of the run
REVIEWS_REPEATED = 2


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
    """Batches of masked text without end; which ones depends on the seed and the step alone.

    Masked language modelling trains no summary of a text, but classifiers read one from [CLS]: some
    words of the row, rarer ones sooner, are further targets, at position 0.
    """

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
        self.reviews = [row[: self.room] for row in tokenizer.tokenize(reviews)]
        size = tokenizer.vocabulary_size()
        counts = np.bincount(
            [i for row in [*self.rows, *self.reviews] for i in row], minlength=size
        )
        self.frequency = (counts + 1) / (counts + 1).sum()
        held_out = nlp.MaskedLMPreprocessor(tokenizer, LENGTH, "longest_first", MASK_RATE, MASKS)
        self.validation = held_out.mask(held_out.assemble([[rows[i] for i in held]]))

    def epoch(self, number):
        """Rows of one pass: the text once, each review some times, shuffled."""
        random = np.random.Generator(np.random.Philox(key=[SEED, 1 + number]))
        rows = [*self.rows, *self.reviews * REVIEWS_REPEATED]
        return [rows[i] for i in random.permutation(len(rows))]

    def batch(self, rows, step):
        whole = self.preprocessor.assemble([rows])
        x, y, weights = self.preprocessor.mask(whole)
        random = np.random.Generator(np.random.Philox(key=[SEED + 1, step]))
        tokens = whole["token_ids"]
        free = ~np.isin(tokens, self.preprocessor.special_ids)
        rarity = self.frequency[tokens] ** 0.5
        score = np.where(free, random.exponential(size=tokens.shape) * rarity, np.inf)
        columns = np.argsort(score, axis=1)[:, :SUMMARY]
        words = np.take_along_axis(tokens, columns, 1)
        given = np.take_along_axis(free, columns, 1) * np.float32(SUMMARY_WEIGHT)
        x["mask_positions"] = np.pad(x["mask_positions"], [(0, 0), (0, SUMMARY)])
        return x, np.concatenate([y, words], 1), np.concatenate([weights, given], 1)

    def batches(self, first_step=0):
        self.preprocessor.calls = itertools.count(first_step)
        skip = first_step
        for number in itertools.count():
            rows = self.epoch(number)
            count = len(rows) // BATCH
            for i in range(min(skip, count), count):
                yield self.batch(rows[i * BATCH : (i + 1) * BATCH], number * count + i)
            skip = max(0, skip - count)


class Recorder(callbacks.Callback):
    """After each round: a row of the loss curve, the next learning rate, at times a checkpoint.

    The rate rises, stays, and falls linearly to 0 in the last quarter; a run given in minutes
    decides how many rounds it has when three quarters of them are over (plan.json keeps it).
    """

    def __init__(self, work, minutes, rounds, every_seconds=120):
        super().__init__()
        self.work, self.minutes, self.rounds, self.every = work, minutes, rounds, every_seconds
        self.last = self.start = time.time()
        self.before = 0.0

    def learning_rate(self, number):
        rate = PEAK_RATE * min(1.0, (number + 0.5) / WARMUP)
        if self.rounds:
            rate *= min(1.0, (self.rounds - number) / (DECAY * self.rounds))
        return rate

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = self.learning_rate(epoch)

    def on_epoch_end(self, epoch, logs=None):
        now = time.time()
        seconds = self.before + now - self.start
        done = epoch + 1
        row = [done * STEPS_PER_ROUND, f"{seconds:.0f}", *(f"{v:.4f}" for v in logs.values())]
        with open(self.work / "curve.csv", "a", newline="") as file:
            csv.writer(file).writerow(row)
        print(dict(zip(["step", "seconds", *logs], row)), flush=True)
        if not self.rounds and seconds >= 60 * self.minutes * (1 - DECAY):
            self.rounds = round(done / (1 - DECAY))
        if self.rounds and done >= self.rounds:
            self.model.stop_training = True
        if now - self.last > self.every or self.model.stop_training:
            self.save(done, seconds)

    def save(self, done, seconds):
        arrays = {f"model.{k}": v.numpy() for k, v in self.model.named_variables().items()}
        for i, variable in enumerate(self.model.optimizer.variables):
            arrays[f"optimizer.{i}"] = variable.numpy()
        plan = {"done": done, "seconds": seconds, "rounds": self.rounds or 0}
        temporary = self.work / "run.tmp.npz"
        np.savez(temporary, **plan, **arrays)
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
            self.before, done = float(arrays["seconds"]), int(arrays["done"])
            self.rounds = int(arrays["rounds"]) or self.rounds
        lines = (self.work / "curve.csv").read_text().splitlines(keepends=True)
        (self.work / "curve.csv").write_text("".join(lines[: done + 1]))
        print(f"going on after round {done}", flush=True)
        return done


def make_model(corpus):
    """The network from the seed; its output's bias is what the words' frequencies say."""
    khub.utils.set_random_seed(SEED)
    backbone = nlp.BertBackbone(**VARIANTS[NAME], dropout=0.0, attention_dropout=0.0)
    model = nlp.BertMaskedLM(backbone)
    model.decoder_bias.assign(np.log(corpus.frequency).astype("float32"))
    optimizer = optimizers.AdamW(
        PEAK_RATE, weight_decay=0.02, beta_2=0.98, epsilon=1e-6, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer=optimizer, weighted_metrics=None)
    return model


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
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--rounds", type=int, help=f"of {STEPS_PER_ROUND} steps; not --minutes")
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

    model = make_model(corpus)
    recorder = Recorder(options.work, options.minutes, options.rounds)
    done = recorder.restore(model)
    model.fit(
        corpus.batches(done * STEPS_PER_ROUND),
        steps_per_epoch=STEPS_PER_ROUND,
        initial_epoch=done,
        epochs=recorder.rounds or 100_000,
        validation_data=corpus.validation,
        validation_batch_size=BATCH,
        callbacks=[recorder],
        verbose=0,
    )
    save(model, tokenizer, options.output)
    curve = (options.work / "curve.csv").read_text()
    (HERE / f"{NAME}.csv").write_text(curve)
    plot(HERE / f"{NAME}.csv", HERE / f"{NAME}.png")


if __name__ == "__main__":
    main()
