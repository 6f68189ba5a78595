"""Fine-tune a small pretrained BERT on real reviews, save it, and open it again.

python examples/fine_tune_bert.py --epochs 5 --output my_reviews
"""

import argparse
from pathlib import Path

import khub
from khub import nlp


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2400, help="sentences to learn from")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("my_reviews"))
    options = parser.parse_args(argv)

    (texts, labels), (test_texts, test_labels) = nlp.datasets.reviews()
    every = len(texts) // options.rows  # the file is sorted by source and label
    texts, labels = texts[::every], labels[::every]

    khub.utils.set_random_seed(0)
    model = nlp.TextClassifier.from_preset(
        "bert_micro_en_uncased", labels=("negative", "positive"), sequence_length=48
    )
    model.compile(optimizer=nlp.tasks.adamw(5e-4))
    model.fit(texts, labels, batch_size=options.batch, epochs=options.epochs)
    loss, accuracy = model.evaluate(test_texts, test_labels, batch_size=options.batch)
    print(f"On {len(test_texts)} other sentences: loss {loss:.3f}, accuracy {accuracy:.1%}")

    model.save_to_preset(options.output)  # transformers opens this folder too
    again = khub.presets.load(options.output)
    sentences = ["I would gladly watch it again.", "The waiter never came back."]
    for sentence, row in zip(sentences, again.predict(sentences, verbose=0)):
        print(f"{again.labels[row.argmax()]:9} {sentence}")


if __name__ == "__main__":
    main()
