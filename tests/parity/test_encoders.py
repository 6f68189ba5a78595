"""BERT's relatives against transformers: random small models, a row for each; texts, entities."""

import numpy as np
import pytest
import torch
import transformers
from parity.image_models import call

import khub
from khub import nlp

BASE = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=160,
    initializer_range=0.2,
)
DISTIL = dict(
    vocab_size=61, dim=24, hidden_dim=40, n_layers=2, n_heads=3, max_position_embeddings=160
)
MODELS = {  # name -> (kind, arguments)
    "bert": ("Bert", {}),
    "bert, untied": ("Bert", dict(tie_word_embeddings=False, hidden_act="relu")),
    "roberta": ("Roberta", dict(type_vocab_size=1)),
    "roberta, two segments, padding 3, four heads": (
        "Roberta",
        dict(pad_token_id=3, num_attention_heads=4, hidden_act="gelu_new"),
    ),
    "roberta, untied": ("Roberta", dict(tie_word_embeddings=False)),
    "xlm-roberta": ("XLMRoberta", dict(type_vocab_size=1, hidden_act="silu")),
    "camembert": ("Camembert", dict(type_vocab_size=1)),
    "distilbert": ("DistilBert", DISTIL),
    "distilbert, sines, relu, untied": (
        "DistilBert",
        dict(DISTIL, sinusoidal_pos_embds=True, activation="relu", tie_word_embeddings=False),
    ),
    "electra": ("Electra", dict(embedding_size=16)),
    "electra, no projection, relu": ("Electra", dict(embedding_size=24, hidden_act="relu")),
    "albert": ("Albert", dict(embedding_size=16)),
    "albert, groups of two": (
        "Albert",
        dict(
            embedding_size=24,
            num_hidden_layers=5,
            num_hidden_groups=2,
            inner_group_num=2,
            hidden_act="gelu",
        ),
    ),
    "mpnet": ("MPNet", {}),
    "mpnet, two heads, relu": ("MPNet", dict(num_attention_heads=2, hidden_act="relu")),
}
KINDS = tuple(dict.fromkeys(kind for kind, _ in MODELS.values()))
HEADS = {  # khub's suffix -> the reference's
    "Classifier": "ForSequenceClassification",
    "TokenClassifier": "ForTokenClassification",
    "QuestionAnswerer": "ForQuestionAnswering",
    "MaskedLM": "ForMaskedLM",
}


def theirs(name, suffix="Model"):
    kind, options = MODELS[name]
    options = options if "dim" in options else {**BASE, **options}
    torch.manual_seed(0)
    more = dict(num_labels=3) if suffix.endswith("Classification") else {}
    config = getattr(transformers, f"{kind}Config")(**options, **more)
    model = getattr(transformers, f"{kind}{suffix}")(config).eval()
    for parameter in model.parameters():  # biases and normalizations are none of the start's
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model


def batch(name, length, left=False):
    """Tokens, segments and mask of three rows, padded where the mask is false."""
    random, config = np.random.default_rng(length), MODELS[name][1]
    kind = MODELS[name][0]
    padded = kind in ("Roberta", "XLMRoberta", "Camembert", "MPNet")
    pad = config.get("pad_token_id", 1) if padded else 0
    tokens = random.integers(4, 61, (3, length)).astype("int32")
    real = np.arange(length)[None] < np.maximum(length - np.array([[0], [1], [length // 2]]), 1)
    real = (real[:, ::-1] if left else real).copy()
    one = config.get("type_vocab_size") == 1 or kind in ("DistilBert", "MPNet")
    segments = random.integers(0, 1 if one else 2, (3, length)).astype("int32")
    return np.where(real, tokens, pad).astype("int32"), segments, real


def reference(model, tokens, segments, mask):
    options = (
        {}
        if model.config.model_type in ("distilbert", "mpnet")
        else {"token_type_ids": torch.tensor(segments).long()}
    )
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            **options,
        )


def logits(model, data):
    found = reference(model, *data)
    if hasattr(found, "start_logits"):
        return torch.stack([found.start_logits, found.end_logits], -1).numpy()
    return found.logits.numpy()


def inputs(tokens, segments, mask):
    return {"token_ids": tokens, "segment_ids": segments, "padding_mask": mask}


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    ours = getattr(nlp, f"{MODELS[name][0]}Backbone").from_preset(str(tmp_path))
    every = name in KINDS_ROWS or khub.backend.name in ("torch", "numpy")
    for length, left in ((1, False), (7, True), (130, False)) if every else ((130, True),):
        data = batch(name, length, left)
        want, got = reference(model, *data), call(ours, inputs(*data))
        mask = data[2][..., None]
        np.testing.assert_allclose(got["sequence_output"] * mask, want[0].numpy() * mask, atol=1e-4)
        if "pooled_output" in got and not left:
            np.testing.assert_allclose(got["pooled_output"], want[1].numpy(), atol=1e-4)


KINDS_ROWS = ("roberta", "albert, groups of two", "mpnet")  # a length is a compilation


@pytest.mark.parametrize("suffix", HEADS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(name, suffix, tmp_path):
    plain = name.count(",") == 0
    if not plain and khub.backend.name in ("jax", "tensorflow") and suffix != "MaskedLM":
        pytest.skip("a row a kind is enough where each is compiled")
    model = theirs(name, HEADS[suffix])
    model.save_pretrained(tmp_path / "theirs")
    task = getattr(nlp, MODELS[name][0] + suffix)
    ours = task.from_preset(str(tmp_path / "theirs"), preprocessor=None)
    data = batch(name, 9)
    want, mask = logits(model, data), data[2]
    got = call(ours, inputs(*data))
    rows = slice(None) if suffix == "Classifier" else mask
    np.testing.assert_allclose(got[rows], want[rows], atol=1e-4)
    ours.save_to_preset(str(tmp_path / "ours"))
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(logits(again, data), want, atol=1e-6)
    opened = khub.presets.load(str(tmp_path / "ours"), preprocessor=None)
    assert type(opened) is task
    for one, two in zip(opened.get_config().items(), ours.get_config().items(), strict=True):
        assert one == two or one[0] in ("name", "backbone")
