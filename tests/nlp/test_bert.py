"""BERT's network: what it takes and gives, what it refuses. Values: tests/parity/test_bert.py."""

import math

import numpy as np
import pytest

import khub
from khub import nlp, ops, presets
from khub.nlp import bert

SIZES = dict(
    vocabulary_size=31, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.5
)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))


def batch(rows=2, time=5, padding=0):
    random = np.random.default_rng(time)
    tokens = random.integers(5, 31, (rows, time)).astype("int32")
    return {
        "token_ids": np.pad(tokens, [(0, 0), (0, padding)]),
        "segment_ids": np.zeros((rows, time + padding), "int32"),
        "padding_mask": np.pad(np.ones((rows, time), bool), [(0, 0), (0, padding)]),
    }


@pytest.fixture(scope="module")
def backbone():
    khub.utils.set_random_seed(1)
    model = nlp.BertBackbone(**SIZES, max_sequence_length=16)
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(random.normal(0, 0.3, variable.shape).astype("float32"))
    return model


def test_outputs(backbone):
    found = backbone(batch())
    assert found.keys() == {"sequence_output", "pooled_output"}
    assert found["sequence_output"].shape == (2, 5, 8) and found["pooled_output"].shape == (2, 8)
    assert np.abs(numpy(found["pooled_output"])).max() <= 1


def test_segments_and_mask_may_be_left_out(backbone):
    whole = batch()
    for names in (["token_ids"], ["token_ids", "segment_ids"], ["token_ids", "padding_mask"]):
        found = backbone({name: whole[name] for name in names})
        np.testing.assert_allclose(
            numpy(found["sequence_output"]), numpy(backbone(whole)["sequence_output"]), atol=1e-5
        )


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_padding_changes_nothing(backbone, dtype):
    padded = batch(padding=3)
    padded["padding_mask"] = padded["padding_mask"].astype(dtype)
    padded["token_ids"][:, 5:] = 7  # whatever stands there
    found = backbone(padded)
    for name, part in (("sequence_output", slice(0, 5)), ("pooled_output", slice(None))):
        want = numpy(backbone(batch())[name])
        np.testing.assert_allclose(numpy(found[name])[:, part], want, atol=1e-5)


def test_segments_and_positions_count(backbone):
    plain, other = batch(), batch()
    other["segment_ids"] = other["segment_ids"] + 1
    turned = {name: array[:, ::-1].copy() for name, array in plain.items()}
    first = numpy(backbone(plain)["pooled_output"])
    for changed in (other, turned):
        assert np.abs(numpy(backbone(changed)["pooled_output"]) - first).max() > 1e-3


def test_dropout_works_in_training_only(backbone):
    one, two = (numpy(backbone(batch(), training=True)["sequence_output"]) for _ in range(2))
    assert np.abs(one - two).max() > 1e-3
    one, two = (numpy(backbone(batch(), training=False)["sequence_output"]) for _ in range(2))
    assert np.array_equal(one, two)


def test_dropped_attention_equals_the_fused_kernel_without_dropout(backbone):
    """Training goes through a path of its own; at a tiny rate both give the same."""
    options = {**backbone.get_config(), "dropout": 0.0, "attention_dropout": 1e-7}
    model = nlp.BertBackbone(**{n: v for n, v in options.items() if n not in ("name", "dtype")})
    for target, source in zip(model.trainable_variables, backbone.trainable_variables):
        target.assign(source.numpy())
    data = batch(padding=2)
    got, want = (numpy(model(data, training=t)["sequence_output"])[:, :5] for t in (True, False))
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_same_seed_gives_the_same_weights():
    def made():
        khub.utils.set_random_seed(3)
        return nlp.BertClassifier(nlp.BertBackbone(**SIZES), num_classes=3)

    one, two = made().named_variables(), made().named_variables()
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[n].numpy(), two[n].numpy()) for n in one)
    deviation = one["backbone.embeddings.word.embeddings"].numpy().std()
    assert 0.01 < deviation < 0.025


def test_nothing_is_drawn_before_the_first_read():
    model = nlp.BertClassifier(nlp.BertBackbone(**SIZES))
    assert not any(v.is_materialized for v in model.trainable_variables)


@pytest.mark.parametrize(
    "inputs, given",
    [
        (["a film"], "list"),
        ("a film", "str"),
        (np.ones((2, 5), "int32"), ""),
        ({"input_ids": np.ones((2, 5), "int32")}, "a dict of input_ids"),
    ],
)
def test_what_is_no_input(backbone, inputs, given):
    with pytest.raises(TypeError, match=f"BertBackbone takes a dict with token_ids .*got {given}"):
        backbone(inputs)


def test_more_tokens_than_positions(backbone):
    with pytest.raises(ValueError, match="Got 17 tokens; this model has positions for 16. Use a"):
        backbone(batch(time=17))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 3}, "hidden_dim must be a multiple of num_heads; got 8 and 3"),
        ({"activation": "gelu9"}, "activation must be one of gelu, .*, got 'gelu9'"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"dropout": 1.5}, "dropout must lie between 0 and 1, got 1.5"),
        ({"hidden_dim": "8"}, "hidden_dim must be a positive integer, got '8'"),
    ],
)
def test_sizes_that_do_not_do(change, message):
    with pytest.raises(ValueError, match=message):
        nlp.BertBackbone(**{**SIZES, **change})


# --- the reference's configuration ----------------------------------------------------------------
@pytest.mark.once
def test_the_configuration_goes_both_ways(backbone):
    config = backbone.reference_config()
    assert config["hidden_size"] == 8 and config["model_type"] == "bert"
    ours = nlp.BertBackbone.config_from_reference(config)
    assert ours == {**SIZES, "max_sequence_length": 16} | {
        "num_segments": 2,
        "activation": "gelu",
        "attention_dropout": 0.1,
        "layer_norm_epsilon": 1e-12,
    }


@pytest.mark.once
@pytest.mark.parametrize(
    "cls, change, message",
    [
        ("BertBackbone", {"position_embedding_type": "relative_key"}, "'relative_key' is not supp"),
        ("BertBackbone", {"is_decoder": True}, "is_decoder=True is not supported"),
        ("BertBackbone", {"hidden_size": ...}, "config.json of a BERT must say hidden_size"),
    ],
)
def test_configurations_that_are_not_read(backbone, cls, change, message):
    config = {**backbone.reference_config(), **change}
    config = {name: value for name, value in config.items() if value is not ...}
    cls = getattr(nlp, cls)
    read = getattr(cls, "head_from_reference", None) or cls.config_from_reference
    with pytest.raises(ValueError, match=message):
        read(config)


@pytest.mark.once
@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, (2, 0.1, None)),
        ({"num_labels": 5}, (5, 0.1, None)),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, (3, 0.1, None)),
        ({"id2label": {"1": "good", "0": "bad"}}, (2, 0.1, ("bad", "good"))),
        (
            {"id2label": {str(i): f"c{i}" for i in range(11)}},
            (11, 0.1, tuple(f"c{i}" for i in range(11))),
        ),
        ({"hidden_dropout_prob": 0.3}, (2, 0.3, None)),
        ({"classifier_dropout": 0.0, "hidden_dropout_prob": 0.3}, (2, 0.0, None)),
        ({"classifier_dropout": None, "hidden_dropout_prob": 0.3}, (2, 0.3, None)),
    ],
)
def test_the_head_of_a_reference(config, expected):
    head = nlp.BertClassifier.head_from_reference(config)
    assert (head["num_classes"], head["dropout"], head["labels"]) == expected


@pytest.mark.once
def test_parameters_of_the_catalogue():
    counted = 0
    for name, sizes in bert.VARIANTS.items():
        info = next((p for p in presets.list(family="bert") if p.name == name), None)
        if info is None:
            continue
        model = nlp.BertBackbone(**sizes)
        assert sum(math.prod(v.shape) for v in model.trainable_variables) == info.parameters, name
        counted += 1
    assert counted >= 7


# --- heads ----------------------------------------------------------------------------------------
def test_the_classifiers_logits(backbone):
    model = nlp.BertClassifier(backbone, num_classes=3)
    data = batch()
    kernel, bias = (np.asarray(v.numpy()) for v in model.classifier.trainable_variables)
    want = numpy(backbone(data)["pooled_output"]) @ kernel + bias
    np.testing.assert_allclose(numpy(model(data)), want, atol=1e-5)


def test_masked_positions_are_picked_from_all(backbone):
    model = nlp.BertMaskedLM(backbone)
    data = batch()
    everywhere = numpy(model(data))
    assert everywhere.shape == (2, 5, 31)
    positions = np.array([[4, 0], [1, 1]], "int32")
    picked = numpy(model({**data, "mask_positions": positions}))
    want = np.take_along_axis(everywhere, positions[:, :, None], 1)
    np.testing.assert_allclose(picked, want, atol=1e-5)


def test_the_masked_lm_shares_the_word_embeddings(backbone):
    model = nlp.BertMaskedLM(backbone)
    own = [v for v in model.trainable_variables if not any(v is b for b in backbone.variables)]
    assert sorted(v.shape for v in own) == [(8,), (8,), (8,), (8, 8), (31,)]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling(backbone, pooling, normalize):
    data = batch(padding=3)
    data["padding_mask"][1, 2:] = False
    hidden = numpy(backbone(data)["sequence_output"])
    weights = data["padding_mask"][..., None].astype("float32")
    mean = (hidden * weights).sum(1) / weights.sum(1)
    want = mean if pooling == "mean" else hidden[:, 0]
    want = want / np.linalg.norm(want, axis=-1, keepdims=True) if normalize else want
    model = nlp.BertTextEmbedder(backbone, pooling=pooling, normalize=normalize)
    np.testing.assert_allclose(numpy(model(data)), want, atol=1e-5)


def test_an_unknown_pooling(backbone):
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, got 'max'"):
        nlp.BertTextEmbedder(backbone, pooling="max")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_dtypes_reach_every_layer(dtype):
    model = nlp.BertClassifier(nlp.BertBackbone(**SIZES, dtype=dtype), num_classes=2, dtype=dtype)
    stored = "float32" if dtype.startswith("mixed") else dtype
    assert {v.dtype for v in model.trainable_variables} == {stored}
    data = batch()
    logits = model(data)
    assert ops.dtype(logits) == dtype.removeprefix("mixed_")
    full = nlp.BertClassifier(nlp.BertBackbone(**SIZES), num_classes=2)
    for target, source in zip(full.trainable_variables, model.trainable_variables):
        target.assign(np.asarray(source.numpy()).astype("float32"))
    np.testing.assert_allclose(numpy(logits), numpy(full(data)), atol=2e-2)
