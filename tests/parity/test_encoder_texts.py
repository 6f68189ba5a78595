"""Encoders on texts against transformers: ids of every family, entities, answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from khub import nlp

DATA = Path(__file__).resolve().parents[2].parent / "shared/data"
FILES = DATA / "tokenizers"
TEXTS = [
    "Wolfgang lives in Berlin-Mitte, said Angela.",
    "😀 naïve café 👩‍👩‍👧 你好 [MASK] <mask> unaffable!",
    "the   spaces\tand\nlines  stay ",
    "a",
    "",
    "He said: «it's 3.14%» in New York and New York's suburbs; " * 3,
]
OTHERS = ["What is it?", "", "日本語 text", "b c", "not empty", "Where does he live? " * 12]


def word_piece(folder):
    """BERT's vocabulary, the first 3,000 tokens and all characters of it."""
    tokens = (FILES / "bert/vocab.txt").read_text("utf-8").splitlines()
    kept = [t for i, t in enumerate(tokens) if i < 3000 or len(t.removeprefix("##")) == 1]
    (folder / "vocab.txt").write_text("\n".join(kept) + "\n", "utf-8")
    return len(kept)


def with_marks(folder):
    """The same with MPNet's special tokens."""
    count = word_piece(folder)
    tokens = (folder / "vocab.txt").read_text("utf-8").splitlines()
    names = {0: "<s>", 1: "<pad>", 2: "</s>", count - 1: "<mask>"}
    tokens = [names.get(i, token) for i, token in enumerate(tokens)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    return count


def byte_pair(folder):
    """GPT-2's, with RoBERTa's special tokens first and <mask> last."""
    vocabulary = json.loads((FILES / "gpt2/encoder.json").read_text())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(vocabulary, key=vocabulary.get), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text((FILES / "gpt2/vocab.bpe").read_text("utf-8"), "utf-8")
    return len(tokens)


def pieces(source, name, count):
    def write(folder):
        (folder / name).write_bytes((FILES / source).read_bytes())
        return count

    return write


XLM = pieces("sentencepiece/test_model.model", "sentencepiece.bpe.model", 1002)
KINDS = {  # kind -> (files, arguments of the configuration)
    "Bert": (word_piece, {}),
    "Electra": (word_piece, {"embedding_size": 16}),
    "DistilBert": (word_piece, {}),
    "MPNet": (with_marks, {}),
    "Roberta": (byte_pair, {"type_vocab_size": 1}),
    "XLMRoberta": (XLM, {"type_vocab_size": 1}),
    "Albert": (pieces("albert/spiece.model", "spiece.model", 30_000), {"embedding_size": 8}),
}
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
DISTIL = dict(dim=16, n_layers=1, n_heads=2, hidden_dim=16)
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(kind, suffix) -> (folder, transformers' model, its tokenizer), made once."""
    made = {}

    def make(kind, suffix):
        if (kind, suffix) in made:
            return made[kind, suffix]
        folder = tmp_path_factory.mktemp(kind)
        files, options = KINDS[kind]
        sizes = DISTIL if kind == "DistilBert" else SIZES
        names = dict(enumerate(LABELS)) if suffix == "ForTokenClassification" else {0: "a", 1: "b"}
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=files(folder),
            max_position_embeddings=130,
            initializer_range=0.6,
            id2label=names,
            label2id={v: k for k, v in names.items()},
            **sizes,
            **options,
        )
        torch.manual_seed(3)
        model = getattr(transformers, kind + suffix)(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=config)
        model.save_pretrained(folder), tokenizer.save_pretrained(folder)
        return made.setdefault((kind, suffix), (folder, model, tokenizer))

    return make


PREPROCESSORS = {
    "Classifier": nlp.TextClassifierPreprocessor,
    "MaskedLM": nlp.MaskedLMPreprocessor,
    "Embedder": nlp.TextEmbedderPreprocessor,
}


@pytest.mark.once
@pytest.mark.parametrize("task", PREPROCESSORS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_texts_and_pairs(kind, task, opened):
    folder, _, theirs = opened(kind, "Model")
    ours = PREPROCESSORS[task].from_preset(str(folder), sequence_length=24)
    for x in (TEXTS, (TEXTS, OTHERS)):
        segments = x if isinstance(x, tuple) else (x,)
        options = dict(padding="max_length", truncation=True, max_length=24)
        want = theirs(*segments, **options, return_token_type_ids=True)
        got = ours.encode(x)
        np.testing.assert_array_equal(got["token_ids"], want["input_ids"])
        np.testing.assert_array_equal(got["padding_mask"], want["attention_mask"])
        segments = got.get("segment_ids", np.zeros_like(got["token_ids"]))
        np.testing.assert_array_equal(segments, want["token_type_ids"])


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_its_own_files_is_transformers(kind, tmp_path, opened):
    """The files that the authors published, without a tokenizer.json; and what khub saves."""
    theirs = opened(kind, "Model")[2]
    KINDS[kind][0](tmp_path)
    ours = getattr(nlp, f"{kind}Tokenizer").load(tmp_path)
    ours.save(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text, other in zip(TEXTS, [other or "b" for other in OTHERS]):  # "" alone is no pair
        want = theirs(text, other)["input_ids"]
        assert ours.encode(text, other) == want and again(text, other)["input_ids"] == want
    assert ("token_type_ids" in again("a")) == (kind in ("Bert", "Electra"))


NER = ("Bert", "Roberta", "XLMRoberta", "DistilBert")


@pytest.fixture(scope="module")
def taggers(opened):
    """kind -> khub's model, compiled once."""
    folders = {kind: opened(kind, "ForTokenClassification")[0] for kind in NER}
    return {
        kind: nlp.TokenClassifier.from_preset(str(folder), sequence_length=128)
        for kind, folder in folders.items()
    }


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("kind", NER)
def test_entities_equal_the_pipeline(kind, aggregation, opened, taggers):
    _, model, tokenizer = opened(kind, "ForTokenClassification")
    ours = taggers[kind]
    assert ours.labels == LABELS
    pipeline = transformers.pipeline(
        "token-classification", model, tokenizer=tokenizer, aggregation_strategy=aggregation
    )
    texts = [text for text in TEXTS if text]  # the pipeline cannot read an empty one
    found = ours.entities(texts, aggregation)
    assert sum(map(len, found)) >= 3
    for text, got in zip(texts, found):
        want = pipeline(text)
        for one in want:
            one["entity"] = one.get("entity_group", one.get("entity"))
            one.pop("entity_group", None)
        assert [sorted(one) for one in got] == [sorted(one) for one in want]
        for key in want[0] if want else ():
            if key == "score":
                scores = [[one[key] for one in rows] for rows in (got, want)]
                np.testing.assert_allclose(*scores, atol=1e-4)
            else:
                assert [one[key] for one in got] == [one[key] for one in want], key
    assert ours.entities([""] * len(texts), aggregation) == [[]] * len(texts)


def answers(model, tokenizer, question, context, length, stride, top_k, longest):
    """The pipeline's algorithm, which transformers 5 lacks, on transformers' logits.

    A softmax over the context and the first token of each window; start times end; spans of at
    most `longest` tokens; characters of whole words; the best of all windows.
    """
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_token_type_ids=True,  # ALBERT's of version 5 forgets them
        padding=True,
        return_tensors="pt",
    )
    windows.pop("overflow_to_sample_mapping", None)
    with torch.no_grad():
        output = model(**windows)
    found = {}
    for row in range(len(windows["input_ids"])):
        encoding = windows.encodings[row]
        allowed = np.array([number == 1 for number in encoding.sequence_ids])
        kept = allowed.copy()
        kept[0] = True
        start, end = (
            torch.softmax(x[row].masked_fill(~torch.tensor(kept), -1e4), -1).numpy()
            for x in (output.start_logits, output.end_logits)
        )
        for first in np.flatnonzero(allowed):
            for last in np.flatnonzero(allowed):
                if first <= last < first + longest:
                    words = [encoding.token_to_word(int(i)) for i in (first, last)]
                    begin = encoding.word_to_chars(words[0], 1)[0]
                    stop = encoding.word_to_chars(words[1], 1)[1]
                    score = float(start[first] * end[last])
                    found[begin, stop] = max(score, found.get((begin, stop), 0.0))
    ranked = sorted(found.items(), key=lambda item: -item[1])[:top_k]
    return [{"answer": context[s:e], "score": p, "start": s, "end": e} for (s, e), p in ranked]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Albert"])
def test_answers_equal_the_pipeline(kind, opened):
    folder, model, tokenizer = opened(kind, "ForQuestionAnswering")
    ours = nlp.QuestionAnswerer.from_preset(str(folder), sequence_length=40, stride=8)
    questions = ["Where does Wolfgang live?", "who?", "Which emoji 😀?"]
    contexts = [TEXTS[0], TEXTS[5] + TEXTS[0], TEXTS[1] + " " + TEXTS[2]]
    for top_k, longest in ((1, 15), (3, 4)):
        got = ours.answer(questions, contexts, top_k, max_answer_length=longest)
        for question, context, found in zip(questions, contexts, got):
            want = answers(model, tokenizer, question, context, 40, 8, top_k, longest)
            found = found if top_k > 1 else [found]
            for one, two in zip(found, want):
                assert {**one, "score": 0} == {**two, "score": 0}
                assert one["score"] == pytest.approx(two["score"], abs=1e-5)
            assert top_k > 1 or len(found) == len(want)
    assert ours.answer(questions[0], contexts[0]) == ours.answer(questions[:1], contexts[:1])[0]
