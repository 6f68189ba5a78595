"""DeBERTa against transformers: random small models."""

import numpy as np
import pytest
import torch
from parity.encoder_checks import LENGTHS, check_hidden_states, check_learning, check_task
from parity.image_models import TRAINED
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
)
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from khub import nlp
from khub.nlp.deberta import relative_rows

CONFIGS = {
    "version 3": dict(
        hidden_size=24,
        num_attention_heads=3,
        intermediate_size=40,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
    ),
    "version 2 with a convolution": dict(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=24,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        conv_kernel_size=3,
        conv_act="gelu",
        attention_head_size=8,
    ),
    "own keys, no buckets, places, segments": dict(
        hidden_size=16,
        num_attention_heads=1,
        intermediate_size=24,
        hidden_act="relu",
        pos_att_type=["c2p", "p2c"],
        type_vocab_size=2,
    ),
    "own keys, few buckets": dict(
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_act="gelu_new",
        pos_att_type=["c2p", "p2c"],
        position_buckets=6,
        max_relative_positions=160,
        position_biased_input=False,
    ),
}
V3, V2, SEGMENTS = list(CONFIGS)[:3]


def config(name, **more):
    sizes = dict(vocab_size=61, max_position_embeddings=160, num_hidden_layers=2)
    sizes |= dict(relative_attention=True, initializer_range=0.2)
    return DebertaV2Config(**sizes, **CONFIGS[name], **more)


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states(name, tmp_path):
    torch.manual_seed(0)
    theirs = DebertaV2Model(config(name))
    theirs.save_pretrained(tmp_path)
    ours = nlp.DebertaV3Backbone.from_preset(str(tmp_path))
    lengths = LENGTHS if name == V3 else LENGTHS[1:]  # each is compiled
    check_hidden_states(theirs, ours, lengths, segments=name == SEGMENTS)


@pytest.mark.parametrize("buckets, limit", [(256, 512), (32, 128), (16, 160), (0, 20)])
def test_rows_of_distances(buckets, limit):
    distances = torch.arange(-700, 701)
    found = make_log_bucket_position(distances, buckets, limit) if buckets else distances
    span = buckets or limit
    want = (found + span).clamp(0, 2 * span - 1).long().numpy()
    np.testing.assert_array_equal(relative_rows(distances.numpy(), buckets, limit), want)
    assert len(set(want[700 + limit :])) == len(set(want[: 701 - limit])) == 1  # DebertaV3Backbone


@pytest.mark.parametrize(
    "theirs, ours, name, more",
    [
        (DebertaV2ForSequenceClassification, "Classifier", V3, {"num_labels": 3}),
        (DebertaV2ForSequenceClassification, "Classifier", SEGMENTS, {"cls_dropout": 0.3}),
        (DebertaV2ForTokenClassification, "TokenClassifier", V2, {"num_labels": 5}),
        (DebertaV2ForQuestionAnswering, "QuestionAnswerer", V3, {}),
        (DebertaV2ForMaskedLM, "MaskedLM", V3, {"legacy": False}),
        (DebertaV2ForMaskedLM, "MaskedLM", V2, {"legacy": True}),
    ],
)
def test_tasks_and_the_way_back(theirs, ours, name, more, tmp_path):
    torch.manual_seed(1)
    model = theirs(config(name, **more))
    for parameter in model.parameters():  # biases are 0 at first
        torch.nn.init.normal_(parameter, std=0.2)
    check_task(model, getattr(nlp, f"DebertaV3{ours}"), tmp_path, segments=name == SEGMENTS)


def test_pairs_of_texts(tmp_path):
    texts = [f"the {a} {b} sat on the mat" for a in ("old", "red", "big") for b in ("cat", "dog")]
    tokenizer = nlp.train_sentence_piece(texts, 40, cls=nlp.DebertaV3Tokenizer)
    sizes = dict(num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=24)
    backbone = nlp.DebertaV3Backbone(tokenizer.vocabulary_size(), **sizes)
    preprocessor = nlp.TextClassifierPreprocessor(tokenizer, 32)
    ours = nlp.DebertaV3Classifier(backbone, 2, preprocessor, labels=("no", "yes"))
    ours.save_to_preset(str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path)(
        texts, texts[::-1], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        want = AutoModelForSequenceClassification.from_pretrained(tmp_path)(**theirs).logits
    for model in (ours, nlp.TextClassifier.from_preset(str(tmp_path))):
        got = model.predict((texts, texts[::-1]), verbose=0)
        np.testing.assert_allclose(got, want.numpy(), atol=1e-4)
        assert model.labels == ("no", "yes")


@TRAINED
def test_learning():
    sizes = dict(vocabulary_size=61, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=24)
    backbone = nlp.DebertaV3Backbone(**sizes, bucket_size=8, conv_kernel_size=3)
    check_learning(nlp.DebertaV3Classifier(backbone))


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(relative_attention=False), "relative_attention=False is not supported"),
        (
            dict(max_relative_positions=20),
            "max_relative_positions=20 is not supported; expected 160",
        ),
        (dict(embedding_size=8), "embedding_size=8 is not supported; expected 24"),
        (dict(pos_att_type=["p2c"]), "pos_att_type=.*expected .'c2p', 'p2c'"),
        (dict(position_buckets=7), "bucket_size must be even"),
        (dict(hidden_act="mish"), "activation must be one of .*'mish'"),
        (dict(num_attention_heads=5), "multiple of num_heads; got 24 and 5"),
    ],
)
def test_what_is_not_supported(more, message):
    backbone = nlp.DebertaV3Backbone
    with pytest.raises(ValueError, match=message):
        backbone(**backbone.config_from_reference({**config(V3).to_dict(), **more}))
