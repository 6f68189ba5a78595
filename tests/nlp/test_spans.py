"""Tokens' classes and answers: texts with positions in characters in, the same out."""

import numpy as np
import pytest

import khub
from khub import nlp
from khub.nlp import spans

NAME, LENGTH = "bert_micro_en_uncased", 16
LABELS = ("O", "B-ANIMAL", "I-ANIMAL", "B-PLACE", "I-PLACE")
trains = pytest.mark.skipif(
    khub.backend.name == "numpy", reason="the NumPy backend computes no gradients"
)
WORDS = [
    ["the", "black", "cat", "sleeps", "in", "the", "kitchen"],
    ["a", "dog", "ran", "to", "the", "park"],
    ["birds", "sing"],
    ["the", "kitchen", "is", "cold"],
]
CLASSES = [
    ["O", "B-ANIMAL", "I-ANIMAL", "O", "O", "O", "B-PLACE"],
    ["O", "B-ANIMAL", "O", "O", "O", "B-PLACE"],
    ["B-ANIMAL", "O"],
    ["O", "B-PLACE", "O", "O"],
]
TEXTS = [" ".join(words) for words in WORDS]
SPANS = [
    [(4, 13, "ANIMAL"), (28, 35, "PLACE")],
    [(2, 5, "ANIMAL"), (17, 21, "PLACE")],
    [(0, 5, "ANIMAL")],
    [(4, 11, "PLACE")],
]
QUESTIONS = ["where does it sleep?", "who ran?", "who sings?", "what is cold?"]
ANSWERS = [(24, 35), (0, 5), (0, 5), (0, 11)]


def made(cls, sequence_length=LENGTH, **options):
    khub.utils.set_random_seed(0)
    one = dict(num_layers=1, strict=False)  # the second's weights are left over
    return cls.from_preset(NAME, sequence_length=sequence_length, **one, **options)


@pytest.fixture(scope="module")
def tagger():
    return made(nlp.TokenClassifier, num_classes=5, labels=LABELS)


@pytest.fixture(scope="module")
def reader():
    return made(nlp.QuestionAnswerer, sequence_length=24, stride=4)


# --- learning -------------------------------------------------------------------------------------
@trains
def test_tokens_are_learned_and_found(tmp_path):
    model = made(nlp.BertTokenClassifier, num_classes=5, labels=LABELS)
    model.compile(optimizer=nlp.tasks.adamw(2e-3))
    history = model.fit(
        WORDS, CLASSES, batch_size=4, epochs=60, verbose=0, validation_data=(TEXTS, SPANS)
    ).history
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert history["loss"][-1] < history["loss"][0] / 5
    assert history["val_loss"][-1] < history["val_loss"][0]  # all tokens of words count there
    assert history["accuracy"][-1] == 1.0
    found = model.entities(TEXTS, "first")  # of a word only the first token was told
    kept = [[(one["start"], one["end"], one["entity"]) for one in row] for row in found]
    assert kept == SPANS
    assert [one["word"] for one in found[0]] == ["black cat", "kitchen"]
    model.save_to_preset(tmp_path / "saved")
    again = nlp.TokenClassifier.from_preset(str(tmp_path / "saved"))
    assert [[one["word"] for one in row] for row in again.entities(WORDS, "first")] == [
        [one["word"] for one in row] for row in found
    ]


@trains
def test_answers_are_learned(tmp_path):
    model = made(nlp.BertQuestionAnswerer, sequence_length=24, stride=4)
    model.compile(optimizer=nlp.tasks.adamw(2e-3))
    history = model.fit(
        (QUESTIONS, TEXTS),
        ANSWERS,
        batch_size=4,
        epochs=60,
        verbose=0,
        validation_data=((QUESTIONS, TEXTS), ANSWERS),
    ).history
    assert history["loss"][-1] < history["loss"][0] / 5 and history["val_accuracy"][-1] == 1.0
    found = model.answer(QUESTIONS, TEXTS)
    assert [(one["start"], one["end"]) for one in found] == ANSWERS
    assert found[0]["answer"] == "the kitchen" and 0.5 < found[0]["score"] <= 1.0
    model.save_to_preset(tmp_path / "saved")
    again = nlp.QuestionAnswerer.from_preset(str(tmp_path / "saved"))
    assert again.preprocessor.stride == 4
    assert again.answer(QUESTIONS[0], TEXTS[0])["answer"] == "the kitchen"


# --- what the preprocessors make ------------------------------------------------------------------
def test_labels_of_words_stand_at_first_tokens(tagger):
    x, y, weights = tagger.preprocessor([["unbelievable", "cats"]], [[1, 2]])
    tokens = tagger.preprocessor.tokenizer.tokenize("unbelievable cats")
    assert x["token_ids"][0, 1 : len(tokens) + 1].tolist() == tokens
    second = len(tagger.preprocessor.tokenizer.tokenize("unbelievable")) + 1
    assert second > 2 and np.flatnonzero(weights[0]).tolist() == [1, second]
    assert y[0, [1, second]].tolist() == [1, 2]


def test_labels_of_spans_begin_and_go_on(tagger):
    x, y, weights = tagger.preprocessor(TEXTS[:1], SPANS[:1], labels=LABELS)
    count = int(x["padding_mask"].sum()) - 2
    assert weights[0].tolist() == [0] + [1] * count + [0] * (LENGTH - count - 1)
    assert {0, 1, 2, 3} <= set(y[0].tolist())
    numbers = tagger.preprocessor(TEXTS[0], [(4, 13, 4)])
    assert set(numbers[1].tolist()) == {0, 4} and numbers[1].shape == (LENGTH,)
    weighted = tagger.preprocessor(TEXTS[:1], SPANS[:1], [0.5], LABELS)[2]
    np.testing.assert_allclose(weighted, weights / 2)


def test_positions_count_characters_of_any_script(tagger):
    text = "😀 naïve 👩‍👩‍👧 cats  and\tZürich"
    for aggregation in spans.AGGREGATIONS:
        for one in tagger.entities([text], aggregation)[0]:
            part = text[one["start"] : one["end"]]
            assert part and part == part.strip()
    (one,) = tagger.preprocessor.located([text])[1]
    assert [text[start:end] for _, start, end in one][0] == "😀"
    whole = "".join(text[start:end] for _, start, end in one)
    assert whole == "".join(text.split())


def test_empty_texts_have_nothing(tagger, reader):
    assert tagger.entities(["", " "]) == [[], []] and tagger.entities([[]]) == [[]]
    assert tagger.predict(["", "a"], verbose=0).shape == (2, LENGTH, 5)
    nothing = {"answer": "", "start": 0, "end": 0}
    found = reader.answer(["who?", ""], ["", "a dog"])
    assert {**found[0], "score": 0} == {**nothing, "score": 0}
    assert found[1]["answer"] in ("a", "dog", "a dog")


def test_windows_cover_a_long_context(reader):
    context = " ".join(f"w{i}" for i in range(40))
    arrays, windows = reader.preprocessor.windows(["who?"], [context])
    ids, offsets = reader.preprocessor.tokenizer.offsets(context)
    seen = [[(start, end) for start, end, _ in tokens] for _, _, tokens in windows]
    assert seen[0] + sum((tokens[4:] for tokens in seen[1:]), []) == offsets
    for row, (number, first, tokens) in zip(arrays["token_ids"], windows):
        assert number == 0 and row[first] == ids[offsets.index(tokens[0][:2])]
    for span in (offsets[0], offsets[-1], (offsets[40][0], offsets[42][1])):
        x, places = reader.preprocessor((["who?"], [context]), [span])
        (window,) = [
            w
            for w, row in zip(windows, arrays["token_ids"])
            if np.array_equal(row, x["token_ids"][0])
        ]
        first, last = places[0] - window[1]
        assert (window[2][first][0], window[2][last][1]) == span


def test_answers_may_be_given_as_squad_does(reader):
    both = (QUESTIONS[:3], TEXTS[:3])
    dicts = [
        {"answer_start": [24], "text": ["the kitchen"]},
        {"answer_start": 0, "text": "a dog"},
        {"answer_start": [], "text": []},
    ]
    got, want = (reader.preprocessor(both, y)[1] for y in (dicts, [*ANSWERS[:2], None]))
    assert got.tolist() == want.tolist() and got[2].tolist() == [0, 0] and (got[:2] > 0).all()


def test_more_answers_and_none(reader):
    found = reader.answer(QUESTIONS[:1], TEXTS[:1], top_k=4, max_answer_length=2)[0]
    assert len(found) == 4 and found == sorted(found, key=lambda one: -one["score"])
    assert all(TEXTS[0][one["start"] : one["end"]] == one["answer"] for one in found)
    assert all(len(one["answer"].split()) <= 2 for one in found)
    every = reader.answer(QUESTIONS[0], TEXTS[0], top_k=50, allow_none=True)
    assert "" in [one["answer"] for one in every]


# --- what is refused ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "y, message",
    [
        ([["O", "B-ANIMAL"]], "2 texts and the labels of 1"),
        ([["O"], ["O"]], "A text has 7 words and 1 labels"),
        ([["O"] * 6 + ["B-FOOD"], ["O"] * 6], "'B-FOOD' is no class; known: O, B-ANIMAL"),
    ],
)
def test_labels_that_do_not_do(tagger, y, message):
    with pytest.raises(ValueError, match=message):
        tagger.preprocessor(WORDS[:2], y, labels=LABELS)


def test_other_things_that_do_not_do(tagger, reader):
    for use, message in (
        (lambda: tagger.entities(TEXTS, "mean"), "aggregation must be one of none, simple"),
        (lambda: tagger.preprocessor(["a"], [[(0, 1)]]), r"span is \(start, end, class\)"),
        (lambda: tagger.preprocessor(["a"], [[(0, 1, "X")]]), "known: none, give labels"),
        (lambda: reader.preprocessor(["a"]), "takes pairs"),
        (lambda: reader.answer(["a"], ["b", "c"]), "equally long; got 1 and 2 texts"),
        (lambda: reader.answer("a " * 30, "b"), "Question 0 has 30 tokens, which leave -9"),
        (
            lambda: reader.answer("a", "b", stride=20),
            "stride=20 must be 0 or more and less than that",
        ),
        (lambda: reader.answer("a", "b", stride=-1), "stride=-1 must be 0 or more"),
        (lambda: reader.preprocessor((["a"], ["b"]), [(0, 9)]), "context of 1 characters"),
        (
            lambda: reader.preprocessor((["a"], ["b"]), [{"answer_start": 0, "text": "c"}]),
            "'c' does not stand at character 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    for cls, text in ((nlp.BertTokenClassifier, ["a"]), (nlp.BertQuestionAnswerer, ("a", "b"))):
        model = cls(tagger.backbone)
        with pytest.raises(ValueError, match="has no preprocessor, so it takes arrays"):
            model.entities(text) if hasattr(model, "entities") else model.answer(*text)
