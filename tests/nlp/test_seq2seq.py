"""Encoder-decoders on texts: pairs, fit, generate, files, rules, errors."""

import numpy as np
import pytest

import khub
from khub import nlp, ops
from khub.nlp.rules import Rules

TRAINED = pytest.mark.skipif(khub.backend.name == "numpy", reason="NumPy computes no gradients")
TEXTS = ["red green", "green blue", "blue red", "red"]
ANSWERS = ["1 2", "2 3", "3 1", "1"]
SIZES = dict(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=24, dropout=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return nlp.train_sentence_piece(TEXTS * 9 + ANSWERS * 9, 32, cls=nlp.T5Tokenizer)


def make(tokenizer):
    khub.utils.set_random_seed(0)
    preprocessor = nlp.Seq2SeqLMPreprocessor(tokenizer, 12, 10)
    backbone = nlp.T5Backbone(tokenizer.vocabulary_size(), **SIZES, max_sequence_length=10)
    model = nlp.T5Seq2SeqLM(backbone, preprocessor)
    model.compile(optimizer=khub.optimizers.Adam(2e-2))
    return model


def test_what_a_model_learns_from(tokenizer):
    preprocessor = nlp.Seq2SeqLMPreprocessor(tokenizer, 12, 4, decoder_start_token_id=7)
    x, y, weights = preprocessor((TEXTS, ANSWERS))
    source, target = (tokenizer.encode(texts[0]) for texts in (TEXTS, ANSWERS))
    assert source[-1] == target[-1] == tokenizer.eos_token_id
    assert x["encoder_token_ids"][0, : len(source)].tolist() == source
    assert x["encoder_padding_mask"][0].tolist() == [n < len(source) for n in range(12)]
    target = target if len(target) <= 4 else [*target[:3], target[-1]]  # the end stays
    assert x["decoder_token_ids"][0].tolist()[: len(target)] == [7, *target[:-1]]
    assert y[0, : len(target)].tolist() == target
    assert weights[0].tolist() == x["decoder_padding_mask"][0].tolist()
    for same in (preprocessor(TEXTS, ANSWERS), preprocessor(list(zip(TEXTS, ANSWERS)))):
        np.testing.assert_array_equal(same[1], y)
    single, _, _ = preprocessor((TEXTS[0], ANSWERS[0]))
    np.testing.assert_array_equal(single["decoder_token_ids"], x["decoder_token_ids"][0])
    with pytest.raises(ValueError, match=r"\(sources, targets\)"):
        preprocessor(TEXTS)


@TRAINED
def test_fit_generate_and_the_way_back(tokenizer, tmp_path):
    model = make(tokenizer)
    assert model.preprocessor.decoder_start_token_id == 0
    texts = {"encoder_text": TEXTS, "decoder_text": ANSWERS}
    model.fit(texts, batch_size=4, epochs=60, verbose=0)
    assert model.evaluate((TEXTS, ANSWERS), verbose=0)[1] > 0.9
    assert model.generate(TEXTS) == ANSWERS and model.generate(TEXTS[0]) == ANSWERS[0]
    assert "".join(model.stream(TEXTS[1])) == ANSWERS[1]
    ids = model.preprocessor.sources(TEXTS[2:3])
    assert model.generate(ids)[0] == tokenizer.encode(ANSWERS[2])
    model.save_to_preset(tmp_path / "preset")
    again = nlp.Seq2SeqLM.from_preset(str(tmp_path / "preset"))
    assert isinstance(again, nlp.T5Seq2SeqLM) and again.generate(TEXTS) == ANSWERS
    assert again.preprocessor.encoder_sequence_length == 12


def test_rules():
    scores = ops.convert_to_tensor(np.arange(12, dtype="float32").reshape(2, 6))
    tokens = ops.convert_to_tensor(np.array([[1, 2, 1, 0], [3, 3, 4, 0]], "int32"))
    most = ops.convert_to_tensor(np.array([4, 9], "int32"))

    def possible(i=3, **options):
        found = ops.convert_to_numpy(Rules(**options)(scores, tokens, i, most))
        return [np.flatnonzero(row > -1e8).tolist() for row in found]

    every = [0, 1, 2, 3, 4, 5]
    assert possible(no_repeat=2) == [[0, 1, 3, 4, 5], every]  # 1 2 is there
    assert possible(no_repeat=1) == [[0, 3, 4, 5], [0, 1, 2, 5]]
    assert possible(i=1, no_repeat=2, start=(1,)) == [[0, 2, 3, 4, 5], every]
    assert possible(i=1, no_repeat=2, start=(1, 5, 1)) == [[0, 2, 3, 4], every]
    assert possible(i=0, first=4) == [[4], [4]] and possible(i=1, first=4) == [every, every]
    assert possible(last=5) == [[5], every]
    assert possible(min_length=5, end=2, start=(1,)) == [[0, 1, 3, 4, 5]] * 2
    assert possible(min_length=4, end=2, start=(1,)) == [every, every]
    assert possible(suppressed=(0, 1)) == [[2, 3, 4, 5]] * 2
    assert possible(suppressed_first=(0,)) == [every, every]
    assert possible(allowed=(1, 3)) == [[1, 3]] * 2
    assert Rules(first=1) == Rules(first=1) != Rules(first=0) and len({Rules(), Rules()}) == 1


def test_errors(tokenizer):
    model = make(tokenizer)
    for options, words in (
        (dict(prompts=[]), "at least one token"),
        (dict(prompts=[[]]), "at least one token"),
        (dict(prompts="red", max_length=11), "at most 10"),
        (dict(prompts=[[1, 999]]), "Token ids must lie"),
    ):
        with pytest.raises(ValueError, match=words):
            model.generate(**options)
    with pytest.raises(TypeError, match="decoder_token_ids"):
        model.backbone({"token_ids": np.ones((1, 2), "int32")})
    sizes = dict(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8)
    bart = nlp.BartBackbone(vocabulary_size=9, **sizes, max_sequence_length=4)
    with pytest.raises(ValueError, match="positions for 4"):
        nlp.BartSeq2SeqLM(bart).generate([[1, 2, 3, 4, 5]])
    for cls, options, words in (
        (nlp.BartBackbone, dict(activation="geloo"), "activation must be"),
        (nlp.BartBackbone, dict(num_decoder_heads=3), "multiple of"),
        (nlp.T5Backbone, dict(position_biases="none"), "position_biases must be"),
    ):
        with pytest.raises(ValueError, match=words):
            cls(vocabulary_size=9, **sizes, **options)
    for cls, config, words in (
        (nlp.T5Backbone, dict(vocab_size=9), "must say num_layers"),
        (nlp.BartBackbone, dict(normalize_before=True), "normalize_before=True is not supported"),
        (nlp.WhisperBackbone, dict(scale_embedding=True), "not supported"),
    ):
        with pytest.raises(ValueError, match=words):
            cls.config_from_reference(config)
