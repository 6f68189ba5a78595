"""WordPiece on the host: ids, round trips, files that are damaged. No framework takes part."""

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from khub import nlp, presets
from khub.nlp.tokenizers import SPECIAL_TOKENS

pytestmark = pytest.mark.once

WORDS = [
    "the",
    "cat",
    "sat",
    "##s",
    "##ed",
    "un",
    "##happy",
    "café",
    "cafe",
    "Cat",
    "你",
    "好",
    "!",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXTS = ["the cats sat!", "unhappy 你好", "Cat café", "[MASK] the cat[SEP]", "", "xyz"]


@pytest.fixture
def tokenizer():
    return nlp.BertTokenizer(VOCABULARY)


def tokens(tokenizer, text):
    return " ".join(map(tokenizer.id_to_token, tokenizer(text)))


@pytest.mark.parametrize(
    "text, expected",
    {
        "the cats SAT!": "the cat ##s sat !",
        "unhappy": "un ##happy",
        "un happy": "un [UNK]",
        "cat\tsat\n\r the": "cat sat the",
        "ca\x00t\ufffd s\x07at": "cat sat",
        "café CAFÉ cafe\u0301": "cafe cafe cafe",
        "你好cat": "你 好 cat",
        "[MASK]cat [SEP] [CLS][PAD][UNK]": "[MASK] cat [SEP] [CLS] [PAD] [UNK]",
        "[mask]": "[UNK] [UNK] [UNK]",
        "the" + "s" * 97: "the" + " ##s" * 97,
        "the" + "s" * 98: "[UNK]",
        "😀 cat": "[UNK] cat",
        "": "",
        " \n\u3000": "",
    }.items(),
)
def test_text_to_tokens(tokenizer, text, expected):
    assert tokens(tokenizer, text) == expected
    assert tokenizer.tokenize(text) == tokenizer([text, "cat"])[0] == tokenizer(text)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, "cat cafe 你 好"),
        ({"lowercase": False}, "Cat café 你 好"),
        ({"lowercase": False, "strip_accents": True}, "Cat cafe 你 好"),
        ({"strip_accents": False}, "cat café 你 好"),
        ({"split_on_cjk": False}, "cat cafe [UNK]"),
    ],
)
def test_options_survive_the_files(options, expected, tmp_path):
    tokenizer = nlp.BertTokenizer(VOCABULARY, **options)
    assert tokens(tokenizer, "Cat café 你好") == expected
    tokenizer.save(tmp_path)
    for missing in (None, "tokenizer.json"):  # without it vocab.txt and the options are read
        if missing:
            (tmp_path / missing).unlink()
        again = nlp.BertTokenizer.load(tmp_path)
        assert again(TEXTS) == tokenizer(TEXTS)
        assert again.get_vocabulary() == VOCABULARY
        assert again.reference_config() == tokenizer.reference_config()


def test_ids_back_to_text(tokenizer):
    ids = tokenizer("the cats sat [MASK]!")
    assert tokenizer.detokenize(ids) == "the cats sat [MASK]!"
    assert tokenizer.detokenize(ids, skip_special_tokens=True) == "the cats sat!"
    assert tokenizer.detokenize(np.array(ids)) == tokenizer.detokenize(tuple(ids))
    rows = [ids, tokenizer("cat")]
    assert tokenizer.detokenize(rows) == ["the cats sat [MASK]!", "cat"]
    assert tokenizer.detokenize(np.array([ids, ids])) == [tokenizer.detokenize(ids)] * 2
    assert tokenizer.detokenize([]) == ""


def test_the_vocabulary(tokenizer):
    assert tokenizer.vocabulary_size() == len(VOCABULARY)
    assert tokenizer.get_vocabulary() == VOCABULARY
    assert tokenizer.token_to_id("cat") == VOCABULARY.index("cat")
    assert tokenizer.token_to_id("dog") == tokenizer.unk_token_id == 1
    special = [getattr(tokenizer, f"{name}_id") for name in SPECIAL_TOKENS]
    assert special == [0, 1, 2, 3, 4]
    assert repr(tokenizer) == "BertTokenizer(18 tokens)"
    for index in (-1, 18, 10**9):
        with pytest.raises(ValueError, match=f"No token has the id {index}; ids are 0 .. 17"):
            tokenizer.id_to_token(index)


def test_other_special_tokens_survive_the_files(tmp_path):
    renamed = {"pad_token": "<pad>", "mask_token": "<mask>"}
    vocabulary = ["<pad>", "[UNK]", "[CLS]", "[SEP]", "<mask>", *WORDS]
    tokenizer = nlp.BertTokenizer(vocabulary, special_tokens=renamed)
    assert tokens(tokenizer, "cat<mask> [MASK]") == "cat <mask> [UNK] [UNK] [UNK]"
    tokenizer.save(tmp_path)
    for missing in (None, "tokenizer.json", "tokenizer_config.json"):  # the third names them too
        if missing:
            (tmp_path / missing).unlink()
        again = nlp.BertTokenizer.load(tmp_path)
        assert (again.pad_token_id, again.mask_token_id) == (0, 4)
        assert again("cat<mask>") == tokenizer("cat<mask>")


def test_copies_and_threads_give_the_same_ids(tokenizer):
    expected = tokenizer(TEXTS * 50)
    assert pickle.loads(pickle.dumps(tokenizer))(TEXTS * 50) == expected
    with ThreadPoolExecutor(8) as pool:
        assert all(ids == expected for ids in pool.map(tokenizer, [TEXTS * 50] * 16))


@pytest.mark.parametrize(
    "texts", [tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), [t.encode() for t in TEXTS]]
)
def test_forms_of_texts(tokenizer, texts):
    assert tokenizer(texts) == tokenizer(TEXTS)


@pytest.mark.parametrize(
    "texts, kind", [(["a", None], "NoneType"), (["a", 3], "int"), ([[1]], "list")]
)
def test_what_is_no_text(tokenizer, texts, kind):
    with pytest.raises(TypeError, match=f"item {len(texts) - 1} is {kind}"):
        tokenizer(texts)


# --- as a preset ----------------------------------------------------------------------------------
def test_a_tokenizer_is_saved_and_opened_by_itself(tokenizer, tmp_path):
    tokenizer.save_to_preset(tmp_path / "words")
    names = {path.name for path in (tmp_path / "words").iterdir()}
    assert names == {
        "config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    for cls in (nlp.BertTokenizer, nlp.WordPieceTokenizer, nlp.Tokenizer, presets):
        opened = getattr(cls, "from_preset", presets.load)(tmp_path / "words")
        assert type(opened) is nlp.BertTokenizer and opened(TEXTS) == tokenizer(TEXTS)


@pytest.mark.parametrize(
    "cls, options",
    [
        (nlp.TextClassifierPreprocessor, {"truncate": "only_first"}),
        (nlp.MaskedLMPreprocessor, {"mask_selection_rate": 0.4, "seed": 3}),
    ],
)
def test_a_preprocessor_is_saved_and_opened_by_itself(tokenizer, cls, options, tmp_path):
    made = cls(tokenizer, sequence_length=9, **options)
    made.save_to_preset(tmp_path)
    for again in (cls.from_preset(tmp_path), presets.load(tmp_path)):
        assert type(again) is cls and again.preset_config() == made.preset_config()
    assert cls.from_preset(tmp_path, sequence_length=5).sequence_length == 5
    other = nlp.TextEmbedderPreprocessor.from_preset(tmp_path)
    assert other.sequence_length == 9 and other.tokenizer(TEXTS) == tokenizer(TEXTS)


def test_the_embedded_tokenizer_is_lower_cased_and_has_8192_tokens():
    tokenizer = nlp.BertTokenizer.from_preset("bert_micro_en_uncased")
    assert tokenizer.vocabulary_size() == 8192
    text = "A WARM, funny film!"
    assert tokenizer.detokenize(tokenizer(text)) == text.lower()


# --- training -------------------------------------------------------------------------------------
TRAIN = """
import hashlib, sys
from khub import nlp
texts = nlp.datasets.reviews()[0][0]
tokenizer = nlp.train_word_piece(texts, vocabulary_size=600)
print(hashlib.sha256("\\n".join(tokenizer.get_vocabulary()).encode()).hexdigest())
for tokenizer in (nlp.train_byte_pair(texts, 400), nlp.train_sentence_piece(texts[:600], 300)):
    print(hashlib.sha256(tokenizer.backend.to_str().encode()).hexdigest())  # with merges and scores
"""


def test_training_is_deterministic():
    """In processes of their own: hash tables there are keyed differently."""
    environments = [{"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "1"}]
    found = [
        subprocess.run(
            [sys.executable, "-c", TRAIN],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more in environments
    ]
    assert found[0] == found[1] and len(found[0]) == 3 * 65


def test_a_trained_vocabulary():
    texts = nlp.datasets.reviews()[0][0]
    tokenizer = nlp.train_word_piece(iter(texts), vocabulary_size=500, min_frequency=3)
    vocabulary = tokenizer.get_vocabulary()
    assert vocabulary[:5] == list(SPECIAL_TOKENS.values())
    assert len(vocabulary) == len(set(vocabulary)) == 500
    assert "the" in vocabulary and "The" not in vocabulary
    lines = [" ".join(text.lower().split()) for text in texts[:200] if text.isascii()]
    same = [tokenizer.detokenize(tokenizer(line)).replace(" ", "") for line in lines]
    assert sum(one == line.replace(" ", "") for one, line in zip(same, lines)) > 0.95 * len(lines)
    cased = nlp.train_word_piece(texts, vocabulary_size=500, lowercase=False)
    assert "The" in cased.get_vocabulary()


def test_a_vocabulary_too_small_for_the_characters():
    with pytest.raises(ValueError, match="vocabulary_size=9 is less than the 10 tokens"):
        nlp.train_word_piece(["ab ba c"], vocabulary_size=9)
    tokenizer = nlp.train_word_piece(["ab ba c"], vocabulary_size=10)
    assert tokenizer.get_vocabulary()[5:] == ["##a", "##b", "a", "b", "c"]


# --- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "vocabulary, message",
    [
        (VOCABULARY[1:], r"The vocabulary \(17 tokens\) lacks the special tokens \[PAD\]"),
        (["a"], r"lacks the special tokens \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ({"[PAD]": 0, "[UNK]": 2}, "ids of a vocabulary must be 0 .. 1, each once"),
    ],
)
def test_vocabularies_that_do_not_do(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        nlp.BertTokenizer(vocabulary)


def test_a_token_that_is_there_twice_keeps_the_other_ids(tmp_path):
    tokenizer = nlp.BertTokenizer([*VOCABULARY, "cat", "dog"])
    assert tokenizer("cat dog") == [18, 19]  # the last one counts
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert nlp.BertTokenizer.load(tmp_path)("cat dog") == [18, 19]


def corrupt(name, data):
    """A change of a saved folder: without tokenizer.json, and `data` in the file `name`."""

    def change(folder):
        (folder / "tokenizer.json").unlink()
        (folder / name).write_bytes(data)

    return change


def rewrite(name, **changes):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return change


DAMAGED = {
    "vocab.txt is no UTF-8": (corrupt("vocab.txt", b"[PAD]\n\xff\n"), "vocab.txt is not UTF-8"),
    "vocab.txt is empty": (corrupt("vocab.txt", b""), "lacks the special tokens"),
    "vocab.txt is a folder": (
        lambda f: (
            [(f / n).unlink() for n in ("tokenizer.json", "vocab.txt")],
            (f / "vocab.txt").mkdir(),
        ),
        "has neither tokenizer.json nor vocab.txt",
    ),
    "added tokens that leave a gap": (
        corrupt("added_tokens.json", b'{"<new>": 19}'),
        "added token '<new>' claims the id 19, but .* is 18",
    ),
    "tokenizer.json is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json is not valid JSON",
    ),
    "tokenizer.json is deeply nested": (
        lambda f: (f / "tokenizer.json").write_text("[" * 100_000),
        "tokenizer.json is not valid JSON",
    ),
    "tokenizer.json is a list": (
        lambda f: (f / "tokenizer.json").write_text("[]"),
        "tokenizer.json must be a JSON object",
    ),
    "a name twice": (
        lambda f: (f / "tokenizer.json").write_text('{"model": {}, "model": {}}'),
        "names occur twice: model",
    ),
    "tokenizer.json of another kind": (
        rewrite("tokenizer.json", model={"type": "BPE"}),
        "holds a BPE tokenizer; BertTokenizer reads WordPiece",
    ),
    "a model that is a list": (rewrite("tokenizer.json", model=[1]), "holds a None tokenizer"),
    "a model without a vocabulary": (
        rewrite("tokenizer.json", model={"type": "WordPiece"}),
        "is not a valid tokenizer file",
    ),
    "an unknown normalizer": (
        rewrite("tokenizer.json", normalizer={"type": "Shell"}),
        "is not a valid tokenizer file",
    ),
    "a special token that is a number": (
        rewrite("tokenizer_config.json", pad_token=3),
        "pad_token must be a token",
    ),
    "a special token without content": (
        rewrite("tokenizer_config.json", sep_token={"lstrip": True}),
        "sep_token must be a token",
    ),
    "a special token that the vocabulary lacks": (
        rewrite("tokenizer_config.json", mask_token="<mask>"),
        "lacks the special tokens <mask>",
    ),
    "tokenizer_config.json is text": (
        lambda f: (f / "tokenizer_config.json").write_text('"x"'),
        "tokenizer_config.json must be a JSON object, got str",
    ),
}


WITHOUT_A_PATH = {  # the constructor says these
    "vocab.txt is empty",
    "added tokens that leave a gap",
    "a special token that the vocabulary lacks",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(tokenizer, case, tmp_path):
    change, message = DAMAGED[case]
    tokenizer.save(tmp_path)
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        nlp.BertTokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value) or case in WITHOUT_A_PATH


def test_a_file_beyond_all_measure_is_not_read(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    with open(tmp_path / "tokenizer.json", "r+b") as file:
        file.truncate(300 * 2**20)  # sparse: it takes no room
    with pytest.raises(ValueError, match="has 314,572,800 bytes; a tokenizer file has at most"):
        nlp.BertTokenizer.load(tmp_path)
