"""Every kind of tokenizer on the host: texts there and back, files, threads, training."""

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from khub import nlp
from khub.nlp.byte_pair import byte_characters

pytestmark = pytest.mark.once

TEXTS = nlp.datasets.reviews()[0][0][:600]
ODD = [
    *(
        "",
        " ",
        "\n\n",
        "\x00",
        "\x07a\x1b",
        "a\tb  c",
        "é e\u0301",
        "你好 世界",
        "😀 👩‍👩‍👧",
        "مرحبا",
        "x" * 500,
    ),
    *(
        " lead",
        "trail ",
        "two  spaces",
        "MiXed Case",
        "it's 12,345!",
        "\ufeff",
        "\ud7ff\ue000\U0010ffff",
    ),
]
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def learned(special=(), word_end=""):
    """A vocabulary and merges by hand: bytes, "th", "the", " the"."""
    letters = byte_characters()
    merges = [("t", "h"), ("th", "e" + word_end), ("Ġ", "the")][: 2 if word_end else 3]
    tokens = [*letters, *([c + word_end for c in letters] if word_end else ())]
    tokens += ["".join(pair) for pair in merges] + list(special)
    return {token: index for index, token in enumerate(tokens)}, merges


@pytest.fixture(scope="module")
def kinds():
    """Name -> (tokenizer, the text that comes back for a text; None where much is lost)."""
    same = str
    clip = nlp.CLIPTokenizer(*learned(["<|startoftext|>", "<|endoftext|>"], "</w>"))
    unigram = nlp.train_sentence_piece(TEXTS, 400)
    bpe = nlp.train_sentence_piece(TEXTS, 700, "bpe", byte_fallback=True, cls=nlp.LlamaTokenizer)
    return {
        "bytes": (nlp.ByteTokenizer(lowercase=False), same),
        "code points": (nlp.UnicodeCodepointTokenizer(lowercase=False), same),
        "GPT-2": (nlp.GPT2Tokenizer(*learned(["<|endoftext|>"])), same),
        "RoBERTa": (nlp.RobertaTokenizer(*learned(ROBERTA)), same),
        "CLIP": (clip, None),
        "trained bytes": (nlp.train_byte_pair(TEXTS, 500), same),
        "unigram": (unigram, None),
        "BPE with bytes": (bpe, lambda text: text.removeprefix(" ")),  # as if it were the prefix
        "T5": (nlp.train_sentence_piece(TEXTS, 400, cls=nlp.T5Tokenizer), None),
        "ALBERT": (nlp.train_sentence_piece(TEXTS, 400, cls=nlp.AlbertTokenizer), None),
        "BERT": (nlp.BertTokenizer.from_preset("bert_micro_en_uncased"), None),
    }


KINDS = ["bytes", "code points", "GPT-2", "RoBERTa", "CLIP", "trained bytes", "unigram"]
KINDS += ["BPE with bytes", "T5", "ALBERT", "BERT"]


@pytest.fixture(params=KINDS)
def kind(request, kinds):
    return kinds[request.param]


def test_every_kind_is_here(kinds):
    assert list(kinds) == KINDS


def test_texts_there_and_back(kind):
    tokenizer, expected = kind
    texts = [*TEXTS[:50], *ODD]
    rows = tokenizer(texts)
    assert rows == [tokenizer(text) for text in texts] == [list(r) for r in rows]
    assert all(0 <= i < tokenizer.vocabulary_size() for row in rows for i in row)
    back = tokenizer.detokenize(rows)
    assert back == [tokenizer.detokenize(row) for row in rows]
    if expected is not None:
        assert back == [expected(text) for text in texts]
        return
    known = [text for text in back if "<unk>" not in text and "[UNK]" not in text]
    assert len(known) > 30  # what is lost the first time is all that is lost
    assert tokenizer.detokenize(tokenizer(known)) == known


def test_offsets_point_into_the_text(kind):
    tokenizer, _ = kind
    texts = [*TEXTS[:50], *ODD]
    for text, (ids, spans) in zip(texts, tokenizer.offsets(texts)):
        assert ids == tokenizer(text) and len(ids) == len(spans)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert spans == sorted(spans)
    assert tokenizer.offsets(texts[0]) == tokenizer.offsets(texts)[0]


def test_special_tokens_are_added_on_request(kind):
    tokenizer, _ = kind
    text, other = "the cat", "a dog"
    ids, full = tokenizer(text), tokenizer.encode(text)
    start = next(i for i in range(len(full)) if full[i : i + len(ids)] == ids)
    special = {getattr(tokenizer, f"{name}_id") for name in tokenizer.special_tokens}
    added = full[:start] + full[start + len(ids) :]
    assert set(added) <= special
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    pair = tokenizer.encode([text, text], [other, other])
    assert pair[0] == pair[1] == tokenizer.encode(text, other)
    assert [i for i in pair[0] if i not in special] == ids + tokenizer(other)
    with pytest.raises(ValueError, match="Got 2 texts and 1 to pair"):
        tokenizer.encode([text, text], [other])


def test_copies_and_threads(kind):
    tokenizer, _ = kind
    texts = TEXTS[:100]
    expected = tokenizer(texts)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(texts) == tokenizer.encode(texts)
    with ThreadPoolExecutor(4) as pool:
        assert all(ids == expected for ids in pool.map(tokenizer, [texts] * 8))


def test_what_is_saved_is_opened_again(kind, tmp_path):
    tokenizer, _ = kind
    tokenizer.save(tmp_path)
    named = type(tokenizer).load(tmp_path)
    texts = [*TEXTS[:20], *ODD]
    assert named.encode(texts) == tokenizer.encode(texts)
    assert named.reference_config() == tokenizer.reference_config()
    assert named.special_tokens == tokenizer.special_tokens
    if (tmp_path / "tokenizer.json").exists():
        found = nlp.Tokenizer.from_preset(tmp_path)
        assert found.encode(texts) == tokenizer.encode(texts)
        assert isinstance(found, nlp.Tokenizer) and type(found) is not nlp.Tokenizer


@pytest.mark.parametrize("text", ["the quick brown fox's 12 jumps, " * 32_768, "x" * 2**20])
@pytest.mark.parametrize("name", ["GPT-2", "T5", "BPE with bytes"])
def test_a_megabyte_is_no_hurdle(kinds, name, text):
    start = time.process_time()
    assert kinds[name][0](text)
    assert time.process_time() - start < 3


def test_ids_that_no_token_has(kind):
    tokenizer, _ = kind
    size = tokenizer.vocabulary_size()
    for index in (-1, size, 2**31, 2**40):
        with pytest.raises(
            ValueError, match=f"No token has the id {index}; ids are 0 .. {size - 1}"
        ):
            tokenizer.detokenize([0, index])
    with pytest.raises(TypeError, match="Token ids must be whole numbers"):
        tokenizer.detokenize([0.5])
    with pytest.raises(TypeError, match="Token ids must be whole numbers"):
        tokenizer.detokenize(["the"])


@pytest.mark.parametrize("text", ["a\ud800", "\udfffb"])
def test_half_a_surrogate_pair_is_no_text(kind, text):
    tokenizer, _ = kind
    for texts in (text, ["fine", text]):
        with pytest.raises(ValueError, match=r"Item \d of the texts has a lone surrogate"):
            tokenizer(texts)
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("fine", text)


def test_bytes_that_are_no_utf8(kind):
    tokenizer, _ = kind
    assert tokenizer([b"the cat"]) == [tokenizer("the cat")] == [tokenizer(b"the cat")]
    with pytest.raises(ValueError, match="Item 1 of the texts is not UTF-8"):
        tokenizer([b"fine", b"\xff\xfe"])


# --- one by one -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("GPT-2", "the other the", ["the", "Ġ", "o", "the", "r", "Ġthe"]),
        ("GPT-2", "é<|endoftext|>", ["Ã", "©", "<|endoftext|>"]),
        ("CLIP", "  The\n the ", ["the</w>", "the</w>"]),
        ("CLIP", "THE1<|endoftext|>", ["the</w>", "1</w>", "<|endoftext|>"]),
        ("BPE with bytes", "\x01é", ["▁", "<0x01>", "<0xC3>", "<0xA9>"]),
        ("bytes", "é", ["Ã", "©"]),
        ("code points", "é😀", ["é", "😀"]),
    ],
)
def test_tokens(kinds, name, text, expected):
    tokenizer, _ = kinds[name]
    assert [tokenizer.id_to_token(i) for i in tokenizer(text)] == expected


def test_options_of_bytes_and_code_points():
    for cls in (nlp.ByteTokenizer, nlp.UnicodeCodepointTokenizer):
        assert cls()("ÀB") == cls(lowercase=False)("àb")
        composed = cls(normalization_form="NFC", lowercase=False)
        assert composed("e\u0301") == composed("é") == cls(lowercase=False)("é")
        with pytest.raises(ValueError, match="normalization_form must be NFC.* got 'nfc'"):
            cls(normalization_form="nfc")
    assert nlp.ByteTokenizer()("a") == [97]
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    byt5 = nlp.ByteTokenizer(False, special_tokens=special, added_tokens=["<extra_id_0>"])
    assert byt5.encode("é") == [195 + 3, 169 + 3, 1]
    assert byt5.vocabulary_size() == 260 and byt5.token_to_id("<extra_id_0>") == 259
    small = nlp.UnicodeCodepointTokenizer(vocabulary_size=128)
    assert small("aé😀") == [97, 127, 127]
    with pytest.raises(ValueError, match="vocabulary_size must be 1 .. 1114112"):
        nlp.UnicodeCodepointTokenizer(vocabulary_size=2**21)
    with pytest.raises(ValueError, match="cls_token must be one character"):
        nlp.UnicodeCodepointTokenizer(special_tokens={"cls_token": "[CLS]"})


def test_older_files_of_byte_pairs(tmp_path):
    vocabulary, merges = learned(ROBERTA)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n"
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "RobertaTokenizerFast",
                "add_prefix_space": True,
                "mask_token": {"content": "<mask>", "lstrip": True},
                "added_tokens_decoder": {
                    str(vocabulary["<mask>"]): {
                        "content": "<mask>",
                        "lstrip": True,
                        "special": True,
                    },
                    str(len(vocabulary)): {"content": "<new>", "special": False},
                },
            }
        )
    )
    opened = nlp.Tokenizer.load(tmp_path)
    assert type(opened) is nlp.RobertaTokenizer
    expected = nlp.RobertaTokenizer(vocabulary, merges, add_prefix_space=True)
    assert opened.encode("the cat") == expected.encode("the cat")
    names = [opened.id_to_token(i) for i in opened("the <mask><new>")]
    assert names == ["Ġthe", "<mask>", "<new>"]


def test_older_files_of_sentence_pieces_and_ranks(kinds, tmp_path):
    import base64

    letters = byte_characters()
    vocabulary, _ = learned()
    lines = [
        "".join(map(chr, base64.b64encode(bytes(map(letters.index, token)))))
        for token in vocabulary
    ]
    text = "\n".join(f"{line} {rank}" for rank, line in enumerate(lines)) + "\n"
    (tmp_path / "some.tiktoken").write_text(text)
    added = {"259": {"content": "<|endoftext|>", "special": True}}
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    opened = nlp.Tokenizer.load(tmp_path)
    assert type(opened) is nlp.GPT2Tokenizer
    for text in ODD:
        assert opened(text) == kinds["GPT-2"][0](text)


# --- training -------------------------------------------------------------------------------------
def test_trained_vocabularies(kinds):
    special = {"eos_token": "</s>", "pad_token": "<pad>"}
    made = nlp.train_byte_pair(iter(TEXTS), 400, special_tokens=special)
    assert made.vocabulary_size() == 400 and (made.eos_token_id, made.pad_token_id) == (0, 1)
    assert "Ġthe" in made.get_vocabulary()
    t5, albert = kinds["T5"][0], kinds["ALBERT"][0]
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert t5.token_to_id("<extra_id_0>") == t5.vocabulary_size() - 1
    assert albert.id_to_token(albert.mask_token_id) == "[MASK]"
    assert "▁the" in kinds["unigram"][0].get_vocabulary()
    with pytest.raises(ValueError, match="vocabulary_size=257 is less than the 258 tokens"):
        nlp.train_byte_pair(TEXTS, 257, special_tokens=special)
    with pytest.raises(ValueError, match="SentencePiece learns no unigram model of 4 pieces"):
        nlp.train_sentence_piece(TEXTS, 4)
    with pytest.raises(ValueError, match="model must be one of unigram, bpe, got 'word'"):
        nlp.train_sentence_piece(TEXTS, 400, "word")
