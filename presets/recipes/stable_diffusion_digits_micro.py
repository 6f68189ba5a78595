"""Make the preset stable_diffusion_digits_micro: handwritten digits, drawn from what a text says.

    KHUB_BACKEND=jax python presets/recipes/stable_diffusion_digits_micro.py

A text encoder, an autoencoder and a UNet, all trained here on the 10,000 digits of MNIST's test
set. A classifier trained beside them, which saw none of their images, says which of the drawn
digits are right. Everything is drawn from one seed.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from mnist import WORDS, read_digits

import khub
from khub import callbacks, cv, layers, losses, nlp, ops, optimizers
from khub.nlp.byte_pair import byte_characters

NAME = "stable_diffusion_digits_micro"
HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "embedded" / NAME
SEED, BATCH, ROUND = 2026, 64, 100  # ROUND: steps between rows of the loss curve
SIZE, TOKENS = 32, 32  # pixels of a side, tokens of a text
START, END = "<|startoftext|>", "<|endoftext|>"
ONE = ["a handwritten {0}", "a handwritten digit {0}", "the digit {0}", "the number {0}", "a {0}"]
TWO = ["two digits: {0} and {1}", "the digits {0} and {1}", "a {0} and a {1}"]
NUMERALS = 0.25  # share of the texts that say 3 in place of three
NO_TEXT = 0.1  # share of the texts that are left out, for guidance; Ho and Salimans, 2207.12598
PEAK_RATES = {"vae": 2e-3, "unet": 1.5e-3}
TEXT = dict(num_layers=2, num_heads=4, hidden_dim=96, intermediate_dim=256)
VAE = dict(
    block_out_channels=(16, 24, 32),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=8,
)
UNET = dict(
    sample_size=SIZE // 4,
    block_out_channels=(48, 96),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=TEXT["hidden_dim"],
    norm_num_groups=16,
)
SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def make_tokenizer():
    """The 256 bytes, inside a word and at its end, and the words of the captions merged from them.

    No text is unknown to it; a word that no caption has is a token for each letter.
    """
    last = nlp.CLIPTokenizer.word_end
    texts = " ".join(text.format(*WORDS[:2]) for text in ONE + TWO).replace(":", " ")
    symbols, merges = byte_characters(), []
    for word in dict.fromkeys([*texts.split(), *WORDS]):
        left, *others = *word[:-1], word[-1] + last
        for letter in others:
            merges += [(left, letter)] * ((left, letter) not in merges)
            left += letter
    whole = [left + right for left, right in merges]
    vocabulary = [*symbols, *(symbol + last for symbol in symbols), *whole, START, END]
    return nlp.CLIPTokenizer(dict(zip(vocabulary, range(len(vocabulary)))), merges)


def caption(random, *labels):
    names = [str(n) if random.random() < NUMERALS else WORDS[n] for n in labels]
    return random.choice(ONE if len(names) == 1 else TWO).format(*names)


def picture(random, *digits):
    """One digit anywhere, or two side by side.  -> float32 (SIZE, SIZE, 3), -1 to 1"""
    from PIL import Image

    canvas = Image.new("L", (SIZE, SIZE))
    for place, digit in enumerate(digits):
        image = Image.fromarray(digit)
        if len(digits) == 2:
            image = image.resize((16, 24), Image.Resampling.BICUBIC)
        free = (SIZE // len(digits) - image.width, SIZE - image.height)
        left, top = (int(random.integers(0, n + 1)) for n in free)
        canvas.paste(image, (place * SIZE // 2 + left, top))
    gray = np.asarray(canvas, "float32") / 127.5 - 1
    return np.repeat(gray[..., None], 3, -1)


def examples(images, labels, count):
    """(pictures (count, SIZE, SIZE, 3), captions); two of three show one digit."""
    random = np.random.Generator(np.random.Philox(key=SEED))
    rows = [random.integers(0, len(images), 1 if i % 3 else 2) for i in range(count)]
    texts = [caption(random, *labels[row]) for row in rows]
    return np.stack([picture(random, *images[row]) for row in rows]), texts


class Compression(khub.Model):
    """images and noise -> the images again, from latents that are near a normal distribution."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def call(self, inputs):
        mean, log_variance = self.vae.encode(inputs["images"])
        log_variance = ops.clip(log_variance, -30.0, 20.0)
        surplus = ops.square(mean) + ops.exp(log_variance) - 1.0 - log_variance
        self.add_loss(1e-3 * ops.mean(surplus))
        return self.vae.decode(mean + ops.exp(0.5 * log_variance) * inputs["noise"])


class Denoising(khub.Model):
    """Noised latents, their times and a text -> the noise."""

    def __init__(self, text_encoder, unet):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def call(self, inputs):
        context = self.text_encoder(inputs["token_ids"])["sequence_output"]
        part = {name: inputs[name] for name in ("latents", "timesteps")}
        return self.unet({**part, "context": context})


def compression_batches(images):
    """Batches without end of images, each in an epoch once, and noise."""
    random = np.random.Generator(np.random.Philox(key=SEED + 1))
    while True:
        order = random.permutation(len(images))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            x = images[order[at : at + BATCH]]
            noise = random.standard_normal((BATCH, SIZE // 4, SIZE // 4, 4), "float32")
            yield {"images": x, "noise": noise}, x


def denoising_batches(latents, tokens, nothing, scheduler):
    """Batches without end of noised latents, their times, and tokens or, at times, none."""
    random = np.random.Generator(np.random.Philox(key=SEED + 2))
    while True:
        order = random.permutation(len(latents))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[at : at + BATCH]
            times = random.integers(0, scheduler.steps, BATCH)
            noise = random.standard_normal(latents[rows].shape, "float32")
            noised, target = scheduler.noised(latents[rows], noise, times)
            ids = np.where(random.random((BATCH, 1)) < NO_TEXT, nothing, tokens[rows])
            x = {"latents": noised, "timesteps": times.astype("int32"), "token_ids": ids}
            yield x, target


class Recorder(callbacks.Callback):
    """The learning rate of each round, which rises and then falls along a cosine; its loss."""

    def __init__(self, part, rounds, rows):
        super().__init__()
        self.part, self.rounds, self.rows, self.start = part, rounds, rows, time.time()

    def on_epoch_begin(self, epoch, logs=None):
        done = (epoch + 0.5) / self.rounds
        rate = PEAK_RATES[self.part] * min(1, 20 * done)
        self.model.optimizer.learning_rate = rate * 0.5 * (1 + np.cos(np.pi * done))

    def on_epoch_end(self, epoch, logs=None):
        seconds = round(time.time() - self.start)
        self.rows.append([self.part, (epoch + 1) * ROUND, seconds, f"{logs['loss']:.4f}"])
        print(*self.rows[-1], flush=True)


def train(model, part, batches, steps, loss, rows):
    """Fit a model; its weights are then the mean of the last thousand steps."""
    average = dict(use_ema=True, ema_momentum=0.998)
    optimizer = optimizers.AdamW(
        PEAK_RATES[part], weight_decay=1e-3, global_clipnorm=1.0, **average
    )
    model.compile(optimizer=optimizer, loss=loss)
    recorder = Recorder(part, steps // ROUND, rows)
    options = dict(steps_per_epoch=ROUND, epochs=recorder.rounds, verbose=0)
    model.fit(batches, callbacks=[recorder], **options)


def encode(vae, images):
    """Latents with variance 1, and what they were multiplied with."""
    function = khub.jit(lambda x: vae.encode(x)[0])
    parts = [
        ops.convert_to_numpy(function(images[i : i + 200])) for i in range(0, len(images), 200)
    ]
    latents = np.concatenate(parts)
    return latents / latents.std(), float(1 / latents.std())


def make_classifier(images, labels):
    """A network that tells digits, of images that nothing else here is trained on.

    -> (network, its accuracy on the last 500 of them)
    """
    random = np.random.Generator(np.random.Philox(key=SEED + 3))
    rows = np.tile(np.arange(len(images) - 500), 6)
    x = np.stack([picture(random, images[i]) for i in rows])
    x_held = np.stack([picture(random, image) for image in images[-500:]])
    widths = [layers.Conv2D(32 * 2**i, 3, 2, "same", activation="relu") for i in range(3)]
    head = [layers.Flatten(), layers.Dropout(0.4), layers.Dense(10, activation="softmax")]
    network = khub.Sequential([khub.Input((SIZE, SIZE, 3)), *widths, *head])
    loss = "sparse_categorical_crossentropy"
    network.compile(optimizers.AdamW(2e-3), loss=loss, metrics=["accuracy"])
    network.fit(x, labels[rows], batch_size=128, epochs=12, verbose=0)
    return network, network.evaluate(x_held, labels[-500:], verbose=0)[1]


def judge(pipeline, classifier, count=200):
    """The share of drawn digits that the classifier takes for what was asked, and the images."""
    asked = np.arange(count) % 10
    drawn = [
        pipeline.text_to_image(
            [f"a handwritten {WORDS[n]}" for n in asked[at : at + 50]],
            num_steps=20,
            unconditional_guidance_scale=4.0,
            seed=list(range(at, at + 50)),
        )
        for at in range(0, count, 50)
    ]
    drawn = np.concatenate(drawn)
    found = classifier.predict(drawn.astype("float32") / 127.5 - 1, verbose=0).argmax(-1)
    return float(np.mean(found == asked)), drawn


def show(drawn, target):
    """Write images as a sheet, ten in a row."""
    from PIL import Image

    sheet = drawn.reshape(-1, 10, SIZE, SIZE, 3).swapaxes(1, 2)
    Image.fromarray(sheet.reshape(-1, 10 * SIZE, 3)).save(target)


def plot(rows, target):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for part, label in (("vae", "autoencoder, L1 + 0.001 KL"), ("unet", "UNet, squared error")):
        axes.plot(*zip(*[(r[1], float(r[3])) for r in rows if r[0] == part]), label=label)
    axes.set(title=NAME, xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--unet-steps", type=int, default=8000)
    parser.add_argument("--examples", type=int, default=30_000)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data" / "mnist")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()

    digits, labels = read_digits(options.data)
    learned, rest = slice(0, 6000), slice(6000, None)  # the classifier has images of its own
    images, texts = examples(digits[learned], labels[learned], options.examples)
    tokenizer, rows = make_tokenizer(), []
    khub.utils.set_random_seed(SEED)
    vae = cv.Autoencoder(**VAE)
    model = Compression(vae)
    loss = losses.MeanAbsoluteError()
    train(model, "vae", compression_batches(images), options.vae_steps, loss, rows)
    latents, vae.scaling_factor = encode(vae, images)

    text_encoder = cv.CLIPTextEncoder(
        **TEXT,
        vocabulary_size=tokenizer.vocabulary_size(),
        max_sequence_length=TOKENS,
        end_token_id=tokenizer.token_to_id(END),
    )
    unet = cv.UNet(**UNET)
    scheduler = cv.Scheduler("ddim", **SCHEDULER)
    end = tokenizer.token_to_id(END)

    def padded(texts):
        found = [list(ids)[:TOKENS] for ids in tokenizer.encode(texts)]
        return np.array([ids + [end] * (TOKENS - len(ids)) for ids in found], "int32")

    batches = denoising_batches(latents, padded(texts), padded([""]), scheduler)
    loss = losses.MeanSquaredError()
    train(Denoising(text_encoder, unet), "unet", batches, options.unet_steps, loss, rows)

    parts = dict(text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, vae=vae)
    pipeline = cv.StableDiffusion(SIZE, SIZE, scheduler=scheduler, **parts)
    pipeline.save_to_preset(options.output, dtype="float16")
    pipeline = cv.StableDiffusion.from_preset(options.output)
    classifier, accuracy = make_classifier(digits[rest], labels[rest])
    right, drawn = judge(pipeline, classifier)
    print(f"The classifier tells {accuracy:.1%} of 500 other digits right.")
    print(f"It takes {right:.1%} of 200 drawn digits for what was asked.")
    show(drawn[:100], HERE / f"{NAME}_drawn.png")
    with open(HERE / f"{NAME}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["part", "step", "seconds", "loss"], *rows])
    plot(rows, HERE / f"{NAME}.png")


if __name__ == "__main__":
    main()
