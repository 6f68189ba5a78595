"""Texts to arrays: cutting, pairs, padding, masking. No framework takes part."""

import numpy as np
import pytest

from khub import nlp
from khub.nlp import preprocessing

pytestmark = pytest.mark.once

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
PAD, UNK, CLS, SEP, MASK = range(5)
A = 5  # the id of "a"


@pytest.fixture(scope="module")
def tokenizer():
    return nlp.BertTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS])


def letters(count, start=0):
    return " ".join(LETTERS[(start + i) % 26] for i in range(count))


def shown(arrays, row=0):
    """A row as "^a b|c|..": ^ is [CLS], | is [SEP], . is [PAD]."""
    names = {PAD: ".", CLS: "^", SEP: "|", MASK: "_", UNK: "?"}
    return "".join(names.get(int(i)) or LETTERS[i - A] for i in arrays["token_ids"][row])


# --- cutting and padding --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "truncate, first, second, length, expected",
    [
        ("longest_first", 3, None, 8, "^abc|..."),
        ("longest_first", 3, None, 5, "^abc|"),
        ("longest_first", 9, None, 5, "^abc|"),
        ("longest_first", 0, None, 4, "^|.."),
        ("longest_first", 2, 2, 9, "^ab|kl|.."),
        ("longest_first", 5, 2, 8, "^abc|kl|"),
        ("longest_first", 2, 5, 8, "^ab|klm|"),
        ("longest_first", 5, 5, 8, "^ab|klm|"),  # the second text keeps the odd token
        ("longest_first", 6, 1, 8, "^abcd|k|"),
        ("longest_first", 3, 3, 3, "^||"),
        ("round_robin", 5, 5, 8, "^abc|kl|"),
        ("round_robin", 5, 1, 8, "^abcd|k|"),
        ("round_robin", 1, 9, 8, "^a|klmn|"),
        ("round_robin", 9, None, 5, "^abc|"),
        ("only_first", 9, 2, 8, "^abc|kl|"),
        ("only_second", 2, 9, 8, "^ab|klm|"),
        ("only_first", 9, None, 5, "^abc|"),
        ("only_second", 9, None, 5, "^abc|"),
    ],
)
def test_cutting_and_padding(tokenizer, truncate, first, second, length, expected):
    made = nlp.TextClassifierPreprocessor(tokenizer, length, truncate)
    one, two = [letters(first)], None if second is None else [letters(second, 10)]
    arrays = made(one if two is None else (one, two))
    assert shown(arrays) == expected
    segment, segments = 0, []
    for character in expected:
        segments.append(0 if character == "." else segment)
        segment += character == "|"
    assert arrays["segment_ids"][0].tolist() == segments
    assert arrays["padding_mask"][0].tolist() == [c != "." for c in expected]


def test_names_dtypes_and_shapes(tokenizer):
    arrays = nlp.TextClassifierPreprocessor(tokenizer, 6)(["a", "b c", letters(9)])
    assert {name: (a.dtype.name, a.shape) for name, a in arrays.items()} == {
        "token_ids": ("int32", (3, 6)),
        "segment_ids": ("int32", (3, 6)),
        "padding_mask": ("bool", (3, 6)),
    }


def test_the_default_length_is_512(tokenizer):
    assert nlp.TextClassifierPreprocessor(tokenizer)(["a"])["token_ids"].shape == (1, 512)


ONE, TWO = ["a b", "c"], ["d", "e f"]


@pytest.mark.parametrize(
    "x, rows",
    [
        (ONE, ["^ab|...", "^c|...."]),
        (np.array(ONE), ["^ab|...", "^c|...."]),
        (np.array(ONE, object), ["^ab|...", "^c|...."]),
        ([b"a b", b"c"], ["^ab|...", "^c|...."]),
        (tuple([ONE]), ["^ab|...", "^c|...."]),
        ((ONE, TWO), ["^ab|d|.", "^c|ef|."]),
        ((np.array(ONE), TWO), ["^ab|d|.", "^c|ef|."]),
        (list(zip(ONE, TWO)), ["^ab|d|.", "^c|ef|."]),
        ([list(pair) for pair in zip(ONE, TWO)], ["^ab|d|.", "^c|ef|."]),
        (np.array(list(zip(ONE, TWO))), ["^ab|d|.", "^c|ef|."]),
        ([], []),
    ],
)
def test_forms_of_batches(tokenizer, x, rows):
    arrays = nlp.TextClassifierPreprocessor(tokenizer, 7)(x)
    assert [shown(arrays, row) for row in range(len(arrays["token_ids"]))] == rows


@pytest.mark.parametrize("x, expected", [("a b", "^ab|..."), (("a b", "d"), "^ab|d|.")])
def test_one_text_or_pair_has_no_batch_axis(tokenizer, x, expected):
    arrays = nlp.TextClassifierPreprocessor(tokenizer, 7)(x)
    assert {a.shape for a in arrays.values()} == {(7,)}
    assert shown({name: a[None] for name, a in arrays.items()}) == expected


def test_labels_and_weights_pass_untouched(tokenizer):
    made, labels, weights = nlp.TextClassifierPreprocessor(tokenizer, 5), [1, 0], np.ones(2)
    x, y = made(ONE, labels)
    assert y is labels and labels == [1, 0] and shown(x) == "^ab|."
    x, y, weight = made(ONE, labels, weights)
    assert y is labels and weight is weights
    x, y, weight = made(ONE, None, weights)
    assert y is None and weight is weights


def test_the_texts_are_left_alone(tokenizer):
    texts = ["a b", "c"]
    nlp.MaskedLMPreprocessor(tokenizer, 7)(texts)
    nlp.TextClassifierPreprocessor(tokenizer, 7)((texts, texts))
    assert texts == ["a b", "c"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"truncate": "left"}, "truncate must be one of longest_first, round_robin, .*got 'left'"),
        ({"sequence_length": 2}, r"at least 3 \(\[CLS\], a token, \[SEP\]\); got 2"),
        ({"sequence_length": 0}, "sequence_length must be a positive integer, got 0"),
        ({"sequence_length": "64"}, "sequence_length must be a positive integer, got '64'"),
        ({"sequence_length": 2.5}, "sequence_length must be a positive integer, got 2.5"),
    ],
)
def test_options_that_do_not_do(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        nlp.TextClassifierPreprocessor(tokenizer, **options)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (["a", 3], TypeError, "item 1 is int"),
        ([None], TypeError, "item 0 is NoneType"),
        ((["a"], ["b", "c"]), ValueError, "must be equally long; got 1 and 2 texts"),
        ((["a"], ["b"], ["c"]), ValueError, "a pair of lists of texts; got a tuple of 3"),
        (("a", ["b"]), ValueError, "a pair of lists of texts; got a tuple of 2"),
        ([("a", "b"), ("c",)], ValueError, "Every item of a list of pairs"),
        ([("a", "b"), "cd"], ValueError, "Every item of a list of pairs"),
    ],
)
def test_what_is_no_text(tokenizer, x, error, message):
    with pytest.raises(error, match=message):
        nlp.TextClassifierPreprocessor(tokenizer, 7)(x)


@pytest.mark.parametrize(
    "truncate, x", [("only_first", ("a", "b c d e")), ("only_second", ("b c d e", "a"))]
)
def test_the_text_that_is_not_cut_must_fit(tokenizer, truncate, x):
    made = nlp.TextClassifierPreprocessor(tokenizer, 6, truncate)
    with pytest.raises(ValueError, match="the other alone has 4 tokens and the room is 3. Use"):
        made(x)


def test_labels_of_text_are_refused(tokenizer):
    with pytest.raises(ValueError, match="Labels must be integers from 0, got 'good'"):
        nlp.TextClassifierPreprocessor(tokenizer, 6)(ONE, ["good", "bad"])


# --- masking --------------------------------------------------------------------------------------
def masked(tokenizer, count=400, length=52, **options):
    made = nlp.MaskedLMPreprocessor(tokenizer, length, **options)
    texts = [letters(50, i) for i in range(count)]
    plain = nlp.TextClassifierPreprocessor(tokenizer, length)(texts)["token_ids"]
    return plain, *made(texts)


def test_shapes_of_masked_texts(tokenizer):
    made = nlp.MaskedLMPreprocessor(tokenizer, 8, mask_selection_length=3)
    x, y, weights = made([letters(6), "a"])
    assert x.keys() == {"token_ids", "segment_ids", "padding_mask", "mask_positions"}
    assert x["mask_positions"].dtype == y.dtype == "int32" and weights.dtype == "float32"
    assert x["mask_positions"].shape == y.shape == weights.shape == (2, 3)
    x, y, weights = made("a b c")
    assert x["token_ids"].shape == (8,) and y.shape == weights.shape == (3,)
    x, y, weights = nlp.MaskedLMPreprocessor(tokenizer, 8)([letters(6)])
    assert y.shape == (1, 96)  # longer than the text: padded


def test_targets_are_the_hidden_tokens(tokenizer):
    plain, x, y, weights = masked(tokenizer)
    positions, used = x["mask_positions"], weights > 0
    assert np.array_equal(np.take_along_axis(plain, positions, 1)[used], y[used])
    assert not y[~used].any() and not positions[~used].any()
    untouched = x["token_ids"].copy()
    rows, columns = np.nonzero(used)
    untouched[rows, positions[rows, columns]] = plain[rows, positions[rows, columns]]
    assert np.array_equal(untouched, plain)  # nothing else has changed
    ordered = np.where(used, positions, 99)
    assert (np.diff(ordered, axis=1)[:, : used.sum(1).min() - 1] > 0).all()  # none twice
    assert (y[used] >= A).all()  # never [CLS], [SEP] or padding


@pytest.mark.parametrize("rate, expected", [(0.15, 8), (0.5, 25), (1.0, 50), (0.0, 1)])
def test_how_many_are_chosen(tokenizer, rate, expected):
    _, _, _, weights = masked(tokenizer, mask_selection_rate=rate)
    assert set(weights.sum(1)) == {expected}


def test_the_selection_is_capped(tokenizer):
    _, x, _, weights = masked(tokenizer, mask_selection_rate=0.5, mask_selection_length=10)
    assert set(weights.sum(1)) == {10}
    counts = np.bincount(x["mask_positions"].ravel(), minlength=52)
    assert counts[1:26].sum() == pytest.approx(counts[26:51].sum(), rel=0.1)  # from everywhere


@pytest.mark.parametrize(
    "hidden, random", [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)]
)
def test_what_becomes_of_the_chosen(tokenizer, hidden, random):
    _, x, y, weights = masked(
        tokenizer, mask_selection_rate=0.4, mask_token_rate=hidden, random_token_rate=random
    )
    used = weights > 0
    seen = np.take_along_axis(x["token_ids"], x["mask_positions"], 1)[used]
    masks, kept = (seen == MASK).mean(), (seen == y[used]).mean()
    # a random token may be any of the 31, [MASK] and the right one included
    assert masks == pytest.approx(hidden + random / 31, abs=0.02)
    assert kept == pytest.approx(1 - hidden - random + random / 31, abs=0.02)


def test_every_call_draws_anew_and_a_seed_draws_the_same_again(tokenizer):
    texts = [letters(40, i) for i in range(20)]

    def calls(seed):
        made = nlp.MaskedLMPreprocessor(tokenizer, 48, seed=seed)
        return [made(texts)[0]["token_ids"] for _ in range(3)]

    first, again, other = calls(1), calls(1), calls(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])


def test_masks_of_the_user_stay(tokenizer):
    made = nlp.MaskedLMPreprocessor(tokenizer, 8)
    x, y, weights = made(["a [MASK] c [MASK]", "a b c d"])
    assert shown(x) == "^a_c_|.." and x["mask_positions"][0, :3].tolist() == [2, 4, 0]
    assert weights[0].sum() == 0 and weights[1].sum() == 1


def test_texts_without_anything_to_hide(tokenizer):
    x, y, weights = nlp.MaskedLMPreprocessor(tokenizer, 8)(["", "[SEP]"])
    assert shown(x) == "^|......" and shown(x, 1) == "^||....." and weights.sum() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_token_rate": 0.9, "random_token_rate": 0.2}, "must not exceed 1; got 0.9 . 0.2"),
        ({"mask_selection_rate": 1.5}, "mask_selection_rate must lie between 0 and 1, got 1.5"),
        ({"mask_selection_rate": "half"}, "mask_selection_rate must lie between 0 and 1, got 'ha"),
        ({"mask_selection_length": 0}, "mask_selection_length must be a positive integer"),
    ],
)
def test_masking_options_that_do_not_do(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        nlp.MaskedLMPreprocessor(tokenizer, 8, **options)


def test_masking_makes_its_own_targets(tokenizer):
    with pytest.raises(ValueError, match="MaskedLMPreprocessor makes the targets and weights"):
        nlp.MaskedLMPreprocessor(tokenizer, 8)(["a"], [1])


# --- the shares, exhaustively ---------------------------------------------------------------------
@pytest.mark.parametrize("name", ["longest_first", "round_robin"])
def test_shares_fill_the_room_and_favour_nobody(name):
    for first in range(9):
        for second in range(9):
            for room in range(18):
                a, b = preprocessing.TRUNCATE[name]([first, second], room)
                assert 0 <= a <= first and 0 <= b <= second
                assert a + b == min(room, first + second)
                if a < first and b < second:
                    assert abs(a - b) <= 1
