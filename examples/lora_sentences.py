"""Teach the small storyteller sentences by LoRA: two thin matrices a layer learn, no weight does.

python examples/lora_sentences.py [--count 100] [--epochs 60]
"""

import argparse

import khub
from khub import nlp


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="sentences to learn by heart")
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args(argv)

    khub.utils.set_random_seed(0)
    (texts, _), _ = nlp.datasets.reviews()
    sentences = [text for text in texts if 20 < len(text) < 60][: options.count]
    preprocessor = nlp.CausalLMPreprocessor.from_preset(
        "stories_260k_en", sequence_length=40, add_end_token=False
    )
    model = nlp.CausalLM.from_preset("stories_260k_en", preprocessor=preprocessor)

    model.enable_lora(rank=16)
    model.compile(optimizer=khub.optimizers.Adam(1e-2))
    schedule = dict(batch_size=25, epochs=options.epochs, shuffle=False)
    losses = model.fit(x=sentences, **schedule, verbose=0).history["loss"]
    model.merge_lora()  # an ordinary model again

    starts = [" ".join(words[: len(words) // 2]) for words in map(str.split, sentences)]
    answers = model.generate(starts, max_length=41)
    known = sum(answer.startswith(sentence) for answer, sentence in zip(answers, sentences))
    print(f"loss {losses[0]:.4f}, {losses[len(losses) // 2]:.4f}, {losses[-1]:.4f}")
    print(f"{known} of {len(sentences)} sentences are finished from their first half")


if __name__ == "__main__":
    main()
