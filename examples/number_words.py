"""A small T5, made from scratch, learns to read numbers: "three hundred and five" -> "305".

python examples/number_words.py --steps 1500
"""

import argparse

import numpy as np

import khub
from khub import nlp

SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def words(n):
    """The words of a number from 0 to 9999."""
    if n < 20:
        return SMALL.split()[n]
    if n < 100:
        return TENS.split()[n // 10 - 2] + (f" {words(n % 10)}" if n % 10 else "")
    unit, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    rest = (" and " if n % unit < 100 else " ") + words(n % unit) if n % unit else ""
    return f"{words(n // unit)} {name}{rest}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args(argv)
    numbers = np.random.default_rng(0).permutation(10_000)
    train, test = numbers[:9000], numbers[9000:9500]

    khub.utils.set_random_seed(0)
    tokenizer = nlp.train_word_piece([f"{words(n)} {' '.join(str(n))}" for n in train], 128)
    preprocessor = nlp.Seq2SeqLMPreprocessor(tokenizer, 12, 8)
    sizes = dict(num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=128, dropout=0.0)
    backbone = nlp.T5Backbone(tokenizer.vocabulary_size(), max_sequence_length=8, **sizes)
    model = nlp.T5Seq2SeqLM(backbone, preprocessor)
    rate = khub.optimizers.schedules.CosineDecay(2e-3, options.steps)
    model.compile(optimizer=khub.optimizers.AdamW(rate, global_clipnorm=1.0))

    sources, targets = [words(n) for n in train], [" ".join(str(n)) for n in train]
    epochs = max(1, options.steps * options.batch // len(train))
    model.fit((sources, targets), batch_size=options.batch, epochs=epochs, verbose=2)
    answers = model.generate([words(n) for n in test], stop=[tokenizer.sep_token_id])
    right = [answer.replace(" ", "") == str(n) for answer, n in zip(answers, test)]
    for n, answer in zip(test[:5], answers):
        print(f"{words(n)} -> {answer.replace(' ', '')}")
    print(f"exact match on {len(test)} other numbers: {100 * np.mean(right):.1f}%")


if __name__ == "__main__":
    main()
