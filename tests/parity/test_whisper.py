"""Whisper against transformers: random small models on real sound."""

import numpy as np
import pytest
import torch
from parity.image_models import call
from sources import ROOT
from transformers import WhisperConfig, WhisperForConditionalGeneration

import khub
from khub import nlp
from khub.nlp.audio import WhisperFeatures, read_audio

SOUND = ROOT.parent / "shared" / "data" / "audio" / "jfk.flac"
SECONDS, BANDS = 4, 16  # of a window
END, START, LANGUAGES, TASKS, NONE = 20, 21, (22, 23, 24), (25, 26), 27
SIZES = dict(
    vocab_size=28 + 50 * SECONDS + 1,
    num_mel_bins=BANDS,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=2,
    encoder_ffn_dim=40,
    decoder_ffn_dim=48,
    max_source_positions=50 * SECONDS,
    max_target_positions=64,
    init_std=0.3,
    pad_token_id=END,
    bos_token_id=END,
    eos_token_id=END,
    decoder_start_token_id=START,
)
LANGUAGE_IDS = dict(zip(("<|en|>", "<|de|>", "<|haw|>"), LANGUAGES))
GENERATION = dict(
    is_multilingual=True,
    lang_to_id=LANGUAGE_IDS,
    task_to_id=dict(zip(("transcribe", "translate"), TASKS)),
    no_timestamps_token_id=NONE,
    suppress_tokens=[3, 7, START, *LANGUAGES, *TASKS],
    begin_suppress_tokens=[4, END],
    max_initial_timestamp_index=50,
    max_length=64,
)
NUMPY = khub.backend.name == "numpy"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(3)
    reference = WhisperForConditionalGeneration(WhisperConfig(**SIZES)).eval()
    for name, value in GENERATION.items():
        setattr(reference.generation_config, name, value)
    reference.save_pretrained(folder)
    model = nlp.SpeechToText.from_preset(str(folder), preprocessor=None)
    return reference, model


def features(seconds):
    """Of the sound said again and again, (frames, bands)."""
    samples = np.resize(read_audio(SOUND), seconds * 16_000)
    return WhisperFeatures(bands=BANDS, seconds=SECONDS).log_mel(samples, whole=True)


def theirs(reference, x, **options):
    with torch.no_grad():
        return reference.generate(
            torch.tensor(x.T[None]), return_segments=True, do_sample=False, **options
        )["segments"][0]


def test_states_logits_and_the_way_back(models, tmp_path):
    reference, model = models
    x, ids = np.stack([features(4), features(8)[400:]]), np.array([[21, 22, 25, 5], [21, 3, 2, 1]])
    given = {"encoder_features": x, "decoder_token_ids": ids.astype("int32")}
    model.save_to_preset(tmp_path / "ours")
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    wanted = {}
    for name, each in (("theirs", reference), ("again", again)):
        with torch.no_grad():
            wanted[name] = each(torch.tensor(x).mT, decoder_input_ids=torch.tensor(ids))
    got, expected = call(model.backbone, given), wanted["theirs"]
    encoded = expected.encoder_last_hidden_state.numpy()
    np.testing.assert_allclose(got["encoder_sequence_output"], encoded, atol=1e-4)
    np.testing.assert_allclose(call(model, given), expected.logits.numpy(), atol=1e-4)
    np.testing.assert_array_equal(wanted["again"].logits, expected.logits)
    kept = again.generation_config.to_dict()
    assert all(kept[name] == value for name, value in GENERATION.items())


@pytest.mark.parametrize(
    ("language", "task", "timestamps"),
    [("de", "transcribe", False), ("<|haw|>", "translate", True), (None, "transcribe", True)],
)
def test_a_window(models, language, task, timestamps):
    reference, model = models
    x = features(3)
    found = model.segments([x], language, task, timestamps)[0]
    wanted = theirs(reference, x, language=language, task=task, return_timestamps=timestamps)
    same(found, wanted)


@pytest.mark.skipif(NUMPY, reason="takes a minute; the other backends show it")
def test_long_sounds_in_windows(models):
    reference, model = models
    sounds = [features(70)] if khub.backend.name == "jax" else [features(70), features(9)]
    for x, found in zip(sounds, model.segments(sounds, "en", timestamps=True)):
        wanted = theirs(reference, x, language="en", task="transcribe", return_timestamps=True)
        assert len(wanted) >= len(x) / 400
        same(found, wanted)


def same(found, wanted):
    assert len(found) == len(wanted)
    for (start, end, ids), piece in zip(found, wanted):
        tokens = piece["tokens"].tolist()
        assert ids == tokens[: len(ids)] and len(tokens) <= len(ids) + 1
        np.testing.assert_allclose([start * 0.02, end * 0.02], [piece["start"], piece["end"]])


def test_the_language(models):
    reference, model = models
    windows = np.stack([features(9)[at : at + 400] for at in (0, 100, 300, 500)])
    found = model._detected(model._memory(list(windows)), 4)
    wanted = reference.detect_language(
        torch.tensor(windows).mT,
        generation_config=reference.generation_config,
        num_segment_frames=400,
    )
    assert found == wanted.tolist()
