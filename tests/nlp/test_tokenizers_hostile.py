"""Tokenizer files that are damaged or lie: a ValueError that says where, never a crash."""

import base64
import io
import json
import random
import struct

import pytest
import sentencepiece

from khub import nlp
from khub.nlp.byte_pair import byte_characters
from khub.nlp.token_files import MAX_FILE_BYTES

pytestmark = pytest.mark.once

LETTERS = byte_characters()
VOCABULARY = {token: index for index, token in enumerate([*LETTERS, "th", "the"])}


def field(number, value):
    """A field of a protobuf message, of an int, a float, a str or bytes."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value % 2**64)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def piece(text, score=0.0, kind=1):
    return field(1, field(1, text) + field(2, score) + field(3, kind))


def charsmap(units, texts=b"a\x00"):
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts


BASIC = piece("<unk>", kind=2) + piece("<s>", kind=3) + piece("</s>", kind=3)
GOOD = BASIC + piece("▁", -1.0) + piece("a", -2.0) + piece("▁a", -1.5)
EMPTY_MAP = [0] * 256
MODELS = {  # name -> (bytes of a spiece.model, what the error says)
    "empty": (b"", "has 0 pieces, kind 1 and the unknown piece 0"),
    "text": (b"hello, I am a text file", "is no valid SentencePiece model"),
    "cut off": (GOOD[:-3], "claims .* bytes, and .* are left"),
    "a huge claim": (
        GOOD + b"\x0a\xff\xff\xff\xff\x0f",
        "claims 4,294,967,295 bytes, and 0 are left",
    ),
    "an endless number": (GOOD + b"\xff" * 40, "cut off at byte"),
    "a wire type of groups": (GOOD + b"\x0b", "wire type 3"),
    "a piece that is a number": (GOOD + field(1, 7), "is no valid SentencePiece model"),
    "a piece without text": (GOOD + field(1, b""), "piece 6, '', is empty, long or there twice"),
    "a piece that is no UTF-8": (GOOD + piece(b"\xff"), "is no valid SentencePiece model.*utf-8"),
    "a text that is a number": (GOOD + field(1, field(1, 3)), "is no valid SentencePiece model"),
    "a piece twice": (GOOD + piece("a"), "piece 6, 'a', is empty, long or there twice"),
    "an endless piece": (GOOD + piece("a" * 600), "is empty, long or there twice"),
    "a score that is none": (GOOD + piece("b", float("nan")), "piece 6, 'b'"),
    "a score of another kind": (GOOD + field(1, field(1, "b") + field(2, 3)), "is no valid"),
    "no unknown piece": (GOOD + field(2, field(40, -1)), "the unknown piece -1"),
    "an unknown piece beyond": (GOOD + field(2, field(40, 6)), "the unknown piece 6"),
    "a model of words": (GOOD + field(2, field(3, 3)), "kind 3"),
    "a map of no size": (GOOD + field(3, field(2, b"ab")), "claims .* of 2 bytes"),
    "a map that is a number": (GOOD + field(3, field(2, 2**40)), "is no valid SentencePiece model"),
    "a map that claims more": (
        GOOD + field(3, field(2, b"\xff\xff\xff\x7f" + b"a" * 99)),
        "claims 2,147,483,647 of 103 bytes",
    ),
    "a map that leads outside": (
        GOOD + field(3, field(2, charsmap([1 << 10 | 1 << 9, *EMPTY_MAP[1:]]))),
        "points outside itself",
    ),
    "a map whose value leads outside": (
        GOOD + field(3, field(2, charsmap([1 << 10 | 1 << 8, 2**31 | 77, *EMPTY_MAP[2:]]))),
        "points outside itself",
    ),
}


def test_the_good_model_is_read():
    tokenizer = nlp.SentencePieceTokenizer(GOOD)
    assert tokenizer("a a b") == [5, 5, 3, 0]
    sound = charsmap([1 << 10 | 1 << 8, 2**31 | 0, *EMPTY_MAP[2:]])
    assert nlp.SentencePieceTokenizer(GOOD + field(3, field(2, sound)))("a a") == [5, 5]


@pytest.mark.parametrize("case", MODELS)
def test_sentence_piece_models(case, tmp_path):
    data, message = MODELS[case]
    (tmp_path / "spiece.model").write_bytes(data)
    for load in (nlp.Tokenizer.load, nlp.SentencePieceTokenizer.load):
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path)
        assert str(tmp_path / "spiece.model") in str(caught.value)


def test_damaged_models_raise_value_errors_or_work(tmp_path):
    """Single bytes changed, pieces cut out: whatever opens also tokenizes."""
    texts = nlp.datasets.reviews()[0][0][:200]
    made = trained(texts)
    pick = random.Random(0)
    opened = 0
    for _ in range(150):
        data = bytearray(made)
        for _ in range(pick.randint(1, 4)):
            place = pick.randrange(len(data))
            if pick.random() < 0.5:
                data[place] = pick.randrange(256)
            else:
                del data[place : place + pick.randint(1, 40)]
        try:
            tokenizer = nlp.SentencePieceTokenizer(bytes(data))
            tokenizer.detokenize(tokenizer(["the cat é ﬁ ①", *texts[:3]]))
            opened += 1
        except ValueError:
            continue
    assert opened > 10


def trained(texts):
    data = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=data, vocab_size=150, minloglevel=2
    )
    return data.getvalue()


# --- vocab.json, merges.txt -----------------------------------------------------------------------
PAIRS = {  # name -> (vocab.json, merges.txt, what the error says)
    "ids with a gap": ({"a": 0, "b": 2}, "", "vocab.json must be 0 .. 1, each once"),
    "an id twice": ({"a": 0, "b": 0}, "", "must be 0 .. 1, each once"),
    "ids as text": ({"a": "0"}, "", "must be 0 .. 0, each once"),
    "ids as fractions": ({"a": 0.0}, "", "must be 0 .. 0, each once"),
    "a truth": ({"a": False}, "", "must be 0 .. 0, each once"),
    "a huge id": ({"a": 2**70}, "", "must be 0 .. 0, each once"),
    "a list": ([1], "", "vocab.json must be a JSON object, got list"),
    "a token twice": ('{"a": 0, "a": 1}', "", "names occur twice: a"),
    "no JSON": ("{", "", "vocab.json is not valid JSON"),
    "no UTF-8": (b"\xff", "", "vocab.json is not UTF-8"),
    "a merge of three": (VOCABULARY, "t h e", "merge 0 must be two tokens"),
    "a merge of one": (VOCABULARY, "#version: 0.2\nt h\nthe\n", "merge 1 must be two tokens"),
    "a merge of unknown tokens": (VOCABULARY, "q zz", "Token `zz` out of vocabulary"),
    "a merge into nothing": (VOCABULARY, "q q", "Token `qq` out of vocabulary"),
    "merges that are no UTF-8": (VOCABULARY, b"\xff\xff", "merges.txt is not UTF-8"),
    "no special token": (VOCABULARY, "", r"lacks the special tokens <\|endoftext\|>"),
    "no merges": (VOCABULARY, None, "has neither tokenizer.json nor merges.txt"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_vocabularies_and_merges(case, tmp_path):
    vocabulary, merges, message = PAIRS[case]
    if not isinstance(vocabulary, (str, bytes)):
        vocabulary = json.dumps(vocabulary)
    for name, content in (("vocab.json", vocabulary), ("merges.txt", merges)):
        if content is not None:
            data = content.encode() if isinstance(content, str) else content
            (tmp_path / name).write_bytes(data)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        nlp.Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"added_tokens_decoder": {"258": "<new>"}}, "must map ids to records; got '258'"),
        ({"added_tokens_decoder": {"x": {"content": "n"}}}, "got 'x'"),
        ({"added_tokens_decoder": [1]}, "must map ids to records"),
        ({"added_tokens_decoder": {"258": {"content": 3}}}, "must be a token"),
        ({"added_tokens_decoder": {"300": {"content": "new"}}}, "claims the id 300, .* is 258"),
        ({"added_tokens_decoder": {"5": {"content": "the"}}}, "claims the id 5, .* is 257"),
        ({"eos_token": 7}, "eos_token must be a token"),
        ({"eos_token": {"content": ""}}, "eos_token must be a token"),
        ({"eos_token": "<none>"}, "lacks the special tokens <none>"),
    ],
)
def test_tokens_beside_the_vocabulary(config, message, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    (tmp_path / "merges.txt").write_text("t h\nth e\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        nlp.Tokenizer.load(tmp_path)


# --- tiktoken -------------------------------------------------------------------------------------
def ranks(*more, bytes_from=0):
    lines = [base64.b64encode(bytes([b])) + b" %d" % b for b in range(bytes_from, 256)]
    return b"\n".join([*lines, *more]) + b"\n"


RANKS = {
    "empty": (b"", "lacks 256 of the 256 single bytes"),
    "a byte is missing": (
        ranks(b"YWI= 0", bytes_from=1),
        r"lacks 1 of the 256 single bytes: \[0\]",
    ),
    "a token twice": (ranks(b"YQ== 256"), "line 257: b'a' is there twice"),
    "a rank twice": (ranks(b"YWI= 7"), "must be 0 .. 256, each once"),
    "a gap": (ranks(b"YWI= 300"), "must be 0 .. 256, each once"),
    "a negative rank": (ranks(b"YWI= -1"), "must be 0 .. 256, each once"),
    "a rank that is a word": (ranks(b"YWI= two"), "line 257: expected a token in base64"),
    "an endless rank": (ranks(b"YWI= " + b"9" * 5000), "line 257: expected a token in base64"),
    "no base64": (ranks(b"Y!I= 256"), "line 257: expected a token in base64"),
    "one column": (ranks(b"YWI="), "line 257: expected a token in base64"),
    "three columns": (ranks(b"YWI= 256 x"), "line 257: expected a token in base64"),
    "an endless token": (ranks(base64.b64encode(b"a" * 600) + b" 256"), "twice or too long"),
    "bytes": (bytes(range(256)), "expected a token in base64"),
}


@pytest.mark.parametrize("case", RANKS)
def test_tiktoken_files(case, tmp_path):
    data, message = RANKS[case]
    (tmp_path / "some.tiktoken").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        nlp.Tokenizer.load(tmp_path)
    assert "some.tiktoken" in str(caught.value)


# --- tokenizer.json -------------------------------------------------------------------------------
def unigram_json(**changes):
    made = nlp.SentencePieceTokenizer(GOOD)
    return {**json.loads(made.backend.to_str()), **changes}


def precompiled(data):
    text = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {
        "type": "Sequence",
        "normalizers": [{"type": "Precompiled", "precompiled_charsmap": text}],
    }


BAD_MAP = charsmap([1 << 10 | 1 << 9, *EMPTY_MAP[1:]])
JSONS = {
    "a map that leads outside": ({"normalizer": precompiled(BAD_MAP)}, "points outside itself"),
    "a map that is no base64": ({"normalizer": precompiled("?")}, "is not base64"),
    "a map that is a number": ({"normalizer": precompiled(3)}, "is not base64"),
    "an unknown decoder": ({"decoder": {"type": "Shell"}}, "is not a valid tokenizer file"),
    "a regular expression that is none": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(("}, "content": ""}},
        "is not a valid tokenizer file",
    ),
    "a vocabulary of words": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", "b"]]}},
        "is not a valid tokenizer file",
    ),
    "an unknown id beyond": (
        {"model": {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}},
        "is not a valid tokenizer file",
    ),
}


@pytest.mark.parametrize("case", JSONS)
def test_tokenizer_json(case, tmp_path):
    changes, message = JSONS[case]
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram_json(**changes)))
    (tmp_path / "special_tokens_map.json").write_text('{"unk_token": "<unk>"}')
    with pytest.raises(ValueError, match=message):
        nlp.Tokenizer.load(tmp_path)


def test_a_panic_of_the_engine_is_a_value_error(tmp_path):
    """`tokenizers` 0.23 panics where Strip takes more off a token than it has."""
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": ""}]
    steps += [{"type": "Strip", "content": "x", "start": 0, "stop": 1}]
    content = unigram_json(decoder={"type": "Sequence", "decoders": steps})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = nlp.Tokenizer.load(tmp_path)
    for ids in ([4], [[4], [4]]):
        with pytest.raises(ValueError, match="SentencePieceTokenizer.* is not a valid tokenizer"):
            tokenizer.detokenize(ids)


@pytest.mark.parametrize("name", ["spiece.model", "vocab.json", "x.tiktoken", "vocab.txt"])
def test_files_beyond_all_measure(name, tmp_path):
    with open(tmp_path / name, "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: it takes no room
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="a tokenizer file has at most 268,435,456"):
        nlp.Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json; Tokenizer needs it"):
        nlp.Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither tokenizer.json nor spiece.model nor"):
        nlp.T5Tokenizer.load(tmp_path)


@pytest.mark.parametrize("count", [10**12, -1, 1.5, "100", [100]])
def test_sentinels_beyond_all_measure(count, tmp_path):
    (tmp_path / "spiece.model").write_bytes(GOOD + piece("<pad>", kind=3))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": count}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="extra_ids must be 0 .. 10,000, got"):
        nlp.Tokenizer.load(tmp_path)


@pytest.mark.parametrize("model_type", ["rwkv", "llama", ["bert"], {}, None])
def test_a_family_that_khub_does_not_know_has_a_tokenizer_all_the_same(model_type, tmp_path):
    made = nlp.LlamaTokenizer(GOOD)
    made.save_to_preset(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for cls in (nlp.Tokenizer, nlp.LlamaTokenizer):
        opened = cls.from_preset(tmp_path)
        assert type(opened) is nlp.LlamaTokenizer and opened.encode("a a") == made.encode("a a")
