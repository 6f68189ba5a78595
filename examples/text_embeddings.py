"""Search by meaning: the sentences of the reviews that are nearest to a question.

python examples/text_embeddings.py "is the battery any good?"
    --preset all_minilm_l6_v2_en    # a real sentence encoder, from the Hub
"""

import argparse

from khub import nlp


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="The battery does not last.")
    parser.add_argument("--preset", default="bert_micro_en_uncased")
    parser.add_argument("--rows", type=int, default=2400, help="sentences to search in")
    parser.add_argument("--count", type=int, default=5)
    options = parser.parse_args(argv)

    (texts, _), _ = nlp.datasets.reviews()
    texts = texts[:: len(texts) // options.rows]
    model = nlp.TextEmbedder.from_preset(options.preset, sequence_length=32, normalize=True)
    vectors = model.embed(texts, batch_size=64)
    mean = vectors.mean(0)  # what all sentences share says nothing about any
    scores = (vectors - mean) @ (model.embed([options.question])[0] - mean)
    for i in (-scores).argsort()[: options.count]:
        print(f"{scores[i]:6.3f}  {texts[i]}")


if __name__ == "__main__":
    main()
