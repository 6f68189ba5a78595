"""Language models on texts: the trained `stories_260k_en`, streams, stops, seeds, fit, files."""

import numpy as np
import pytest

import khub
from khub import nlp

BACKEND = khub.backend.name
KNOWN = (  # llama2.c's greedy answer, see shared/data/DATA.md
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know w"
)
LENGTH = 60


@pytest.fixture(scope="module")
def model():
    return nlp.CausalLM.from_preset("stories_260k_en")


def test_the_known_story(model):
    assert isinstance(model, nlp.LlamaCausalLM) and model.count_params() == 260_032
    assert model.generate("", max_length=128).startswith(KNOWN[:200])
    if BACKEND != "jax":  # whose compilation takes longer than all of these tests
        assert model.generate("", max_length=200).startswith(KNOWN)


def test_streams_stops_and_batches_agree(model):
    prompts = ["Once upon", "The dog", ""]
    answers = model.generate(prompts, LENGTH)
    assert answers == [model.generate([prompt], LENGTH)[0] for prompt in prompts]
    assert model.generate(prompts[1], LENGTH) == answers[1]
    for strip_prompt in (False, True):
        whole = model.generate(prompts, LENGTH, strip_prompt=strip_prompt)
        pieces = list(model.stream(prompts, LENGTH, strip_prompt=strip_prompt))
        assert ["".join(parts) for parts in zip(*pieces)] == whole and len(pieces) > 20
    assert [p + a for p, a in zip(prompts, whole)] == answers
    stop = " a big"
    cut = answers[1][: answers[1].index(stop)]
    assert model.generate(prompts[1], LENGTH, stop=stop) == cut
    assert "".join(model.stream(prompts[1], LENGTH, stop=[stop, "never said"])) == cut
    last = model.generate("The dog" + stop, LENGTH, stop=stop)  # in the prompt it stops nothing
    assert last.startswith("The dog a big") and len(last) > len("The dog a big")
    ids = model.preprocessor.prompts(["The dog"])
    found = model.generate(ids, LENGTH, stop=stop)[0]
    text = model.preprocessor.tokenizer.detokenize(found, skip_special_tokens=True)
    assert stop in text and stop not in text[:-1]


def test_answers_depend_on_their_own_seed(model):
    prompts, seeds = ["The dog", "The dog", "Once"], [3, 4, 3]
    answers = model.generate(prompts, LENGTH, sampler="top_p", seed=seeds)
    assert answers[0] != answers[1]
    back = model.generate(prompts[::-1], LENGTH, sampler="top_p", seed=seeds[::-1])
    assert back[::-1] == answers
    assert model.generate("The dog", LENGTH, sampler="top_p", seed=[3]) == answers[0]


@pytest.mark.skipif(BACKEND == "numpy", reason="NumPy computes no gradients")
def test_fit_on_texts_and_the_way_back(tmp_path):
    texts = ["The cat reads a book.", "The bird sings at night."] * 4
    khub.utils.set_random_seed(0)
    preprocessor = nlp.CausalLMPreprocessor.from_preset("stories_260k_en", sequence_length=16)
    model = nlp.CausalLM.from_preset("stories_260k_en", preprocessor=preprocessor)
    assert model.generate("The cat", 16) != texts[0]  # weights that it reads first can be trained
    model.compile(optimizer=khub.optimizers.Adam(3e-3))
    history = model.fit(x=texts, batch_size=4, epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.2 * history["loss"][0] and history["accuracy"][-1] > 0.9
    assert model.generate("The cat", 16) == texts[0]
    model.save_to_preset(tmp_path / "preset")
    again = nlp.CausalLM.from_preset(str(tmp_path / "preset"))
    assert again.generate(["The bird"], 16) == [texts[1]]
    assert again.preprocessor.sequence_length == 16


def test_what_a_model_learns_from():
    preprocessor = nlp.CausalLMPreprocessor.from_preset("stories_260k_en", sequence_length=8)
    x, y, weights = preprocessor(["The dog", "The dog was a big, red ball today."])
    ids = [1, *preprocessor.tokenizer.tokenize("The dog"), 2]
    assert x["token_ids"].shape == y.shape == weights.shape == (2, 8)
    assert x["token_ids"][0, : len(ids) - 1].tolist() == ids[:-1]
    assert y[0, : len(ids) - 1].tolist() == ids[1:]
    assert weights[0].tolist() == [1] * (len(ids) - 1) + [0] * (9 - len(ids))
    assert x["padding_mask"][0].sum() == min(len(ids), 8) and weights[1].all()
    with pytest.raises(ValueError, match="labels itself"):
        preprocessor(["a"], [1])


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "at least one token"),
        ("The dog " * 500, {}, "expected prompts shorter"),
        ("The dog", dict(max_length=3), "max_length is 3"),
        ("The dog", dict(stop=""), "empty text"),
        ([[1, 600]], {}, "0 .. 511; got 600"),
        ("The dog", dict(sampler="best"), "sampler must be one of"),
    ],
)
def test_bad_prompts(model, prompts, options, words):
    with pytest.raises(ValueError, match=words):
        model.generate(prompts, **options)


def test_odd_prompts(model):
    """Control characters, emoji, bytes: whatever the tokenizer reads has an answer."""
    prompts = ["\x00\x07", "🙂 日本語", "a" * 200, b"The dog"]
    answers = model.generate(prompts, 400)
    assert answers[3].startswith("The dog") and "日本語" in answers[1]
    with pytest.raises(ValueError, match="UTF-8"):
        model.generate([b"\xff\xfe"], 30)
    alone = nlp.LlamaCausalLM(model.backbone)
    with pytest.raises(ValueError, match="no preprocessor"):
        alone.generate("The dog", 30)
    with pytest.raises(ValueError, match="only token ids can stop"):
        alone.generate([[1, 2]], 30, stop=["x"])
    assert np.shape(alone.generate([[1, 2]], 30)) == (1, 30)
