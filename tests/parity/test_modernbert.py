"""ModernBERT against transformers: random small models."""

import json

import pytest
import torch
from parity.encoder_checks import check_hidden_states, check_learning, check_task
from parity.image_models import TRAINED
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    pipeline,
)

from khub import nlp

CONFIGS = {
    "three heads": dict(hidden_size=24, num_attention_heads=3, intermediate_size=40),
    "biases, uneven kinds of layers": dict(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=24,
        num_hidden_layers=2,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        hidden_activation="silu",
        layer_types=["sliding_attention", "full_attention"],
        local_attention=12,
    ),
    "all layers global, other waves": dict(
        hidden_size=16,
        num_attention_heads=1,
        intermediate_size=24,
        num_hidden_layers=2,
        global_attn_every_n_layers=1,
        rope_parameters={"full_attention": {"rope_theta": 500.0, "rope_type": "default"}},
        classifier_bias=True,
        classifier_activation="relu",
    ),
}


def config(name, **more):
    sizes = dict(vocab_size=61, num_hidden_layers=3, local_attention=7, pad_token_id=0)
    special = dict.fromkeys(["bos_token_id", "cls_token_id"], 1)
    special |= dict.fromkeys(["eos_token_id", "sep_token_id"], 2)
    return ModernBertConfig(**sizes | special | CONFIGS[name], initializer_range=0.2, **more)


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states(name, tmp_path):
    torch.manual_seed(0)
    theirs = ModernBertModel(config(name))
    theirs.save_pretrained(tmp_path)
    check_hidden_states(theirs, nlp.ModernBertBackbone.from_preset(str(tmp_path)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifier_and_the_way_back(pooling, tmp_path):
    torch.manual_seed(1)
    name = list(CONFIGS)[pooling == "mean"]
    options = config(name, num_labels=3, classifier_pooling=pooling, classifier_dropout=0.1)
    theirs = ModernBertForSequenceClassification(options)
    ours = check_task(theirs, nlp.ModernBertClassifier, tmp_path)
    assert (ours.pooling, ours.dropout) == (pooling, 0.1)


def test_token_classifier_and_question_answerer(tmp_path):
    torch.manual_seed(3)
    options = config("biases, uneven kinds of layers", num_labels=5, classifier_dropout=0.2)
    theirs = ModernBertForTokenClassification(options)
    ours = check_task(theirs, nlp.ModernBertTokenClassifier, tmp_path / "tokens")
    assert (ours.num_classes, ours.dropout) == (5, 0.2)
    theirs = ModernBertForQuestionAnswering(config("three heads", classifier_dropout=0.2))
    ours = check_task(theirs, nlp.ModernBertQuestionAnswerer, tmp_path / "answers")
    assert ours.dropout == 0.2


@pytest.mark.parametrize("tied", [True, False])
def test_masked_lm(tied, tmp_path):
    torch.manual_seed(2)
    theirs = ModernBertForMaskedLM(config(list(CONFIGS)[1 + tied], tie_word_embeddings=tied))
    torch.nn.init.normal_(theirs.decoder.bias)
    check_task(theirs, nlp.ModernBertMaskedLM, tmp_path)


def test_from_words_to_words(tmp_path):
    texts = [f"the {a} {b} sat on the mat" for a in ("old", "red", "big") for b in ("cat", "dog")]
    special = nlp.tokenizers.SPECIAL_TOKENS
    learned = nlp.train_byte_pair(texts, 300, special_tokens=special).backend
    model = json.loads(learned.to_str())["model"]
    tokenizer = nlp.ModernBertTokenizer(model["vocab"], list(map(tuple, model["merges"])))
    sizes = dict(vocabulary_size=tokenizer.vocabulary_size(), num_layers=2, num_heads=2)
    backbone = nlp.ModernBertBackbone(**sizes, hidden_dim=16, intermediate_dim=24)
    preprocessor = nlp.MaskedLMPreprocessor(tokenizer, 16)
    ours = nlp.ModernBertMaskedLM(backbone, preprocessor)
    ours.save_to_preset(str(tmp_path))
    text = "the old [MASK] sat"
    theirs = pipeline("fill-mask", model=str(tmp_path), tokenizer=str(tmp_path))
    for model in (ours, nlp.MaskedLM.from_preset(str(tmp_path))):
        ((found,),) = model.fill([text], top_k=4)
        assert [word for word, _ in found] == [
            tokenizer.id_to_token(row["token"]) for row in theirs(text, top_k=4)
        ]


@TRAINED
def test_learning():
    sizes = dict(vocabulary_size=61, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=24)
    dropout = dict(dropout=0.1, attention_dropout=0.1, mlp_dropout=0.1)
    check_learning(nlp.ModernBertClassifier(nlp.ModernBertBackbone(**sizes, **dropout)))


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(layer_types=["linear_attention"] * 3), "layer_types must be .*linear_attention"),
        (dict(rope_scaling={"rope_type": "yarn"}), "rope_type='yarn' is not supported"),
        (dict(hidden_activation="mish"), "activation must be one of .*'mish'"),
        (dict(num_attention_heads=5), "multiple of num_heads; got 24 and 5"),
    ],
)
def test_what_is_not_supported(more, message):
    backbone = nlp.ModernBertBackbone
    with pytest.raises(ValueError, match=message):
        backbone(**backbone.config_from_reference({**config("three heads").to_dict(), **more}))
