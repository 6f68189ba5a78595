"""Whisper's spectrograms against transformers, filters against OpenAI's, rates against SciPy."""

import math

import numpy as np
import pytest
from sources import ROOT

from khub.nlp import audio
from khub.nlp.audio import WhisperFeatures, mel_filters, read_audio, resample

pytestmark = pytest.mark.once  # no framework takes part
transformers = pytest.importorskip("transformers")
signal = pytest.importorskip("scipy.signal")

DATA = ROOT.parent / "shared" / "data" / "audio"
SIZES = {  # transformers' names -> ours
    "80 bands": ({}, {}),
    "128 bands": ({"feature_size": 128}, {"bands": 128}),
    "micro": ({"chunk_length": 2, "feature_size": 16}, {"seconds": 2, "bands": 16}),
    "odd sizes": (
        {"chunk_length": 3, "hop_length": 130, "n_fft": 512},
        {"seconds": 3, "hop": 130, "n_fft": 512},
    ),
    "22,050 Hz": ({"sampling_rate": 22_050}, {"rate": 22_050}),
    "padded with 0.1": ({"padding_value": 0.1}, {"padding_value": 0.1}),
}
LENGTHS = [1, 2, 199, 200, 201, 399, 400, 401, 16_000, 31_999, 100_001, 480_000, 500_003]
RATES = [
    *[(8_000, 16_000), (11_025, 16_000), (22_050, 16_000), (24_000, 16_000), (32_000, 16_000)],
    *[(44_100, 16_000), (48_000, 16_000), (96_000, 16_000), (44_101, 16_000), (16_000, 44_100)],
]


def pair(name):
    theirs, ours = SIZES[name]
    return WhisperFeatures(**ours), transformers.WhisperFeatureExtractor(**theirs)


def expected(extractor, sounds):
    found = extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="np")
    return found["input_features"].transpose(0, 2, 1)


def near(found, want):
    assert found.shape == want.shape and found.dtype == want.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SIZES)
def test_speech(name):
    pytest.importorskip("soundfile")
    ours, theirs = pair(name)
    sound = read_audio(DATA / "jfk.flac", ours.rate)
    near(ours(sound), expected(theirs, sound)[0])


@pytest.mark.parametrize("name", SIZES)
def test_random_sounds_of_any_length(name):
    ours, theirs = pair(name)
    random = np.random.default_rng(0)
    lengths = LENGTHS + random.integers(1, ours.samples, 4).tolist()
    scales = 10.0 ** random.uniform(-5, 0, len(lengths))
    sounds = [
        (scale * random.uniform(-1, 1, length)).astype("float32")
        for scale, length in zip(scales, lengths)
    ]
    near(ours(sounds), expected(theirs, sounds))


def test_tones_and_silence():
    ours, theirs = pair("80 bands")
    time = np.arange(48_000) / 16_000
    sounds = [np.sin(2 * np.pi * hz * time).astype("float32") for hz in (20, 440, 1000, 7900)]
    sounds += [np.zeros(9, "float32"), np.ones(48_000, "float32")]
    near(ours(sounds), expected(theirs, sounds))


@pytest.mark.parametrize("name", SIZES)
def test_settings_go_both_ways(name, tmp_path):
    ours, theirs = pair(name)
    theirs.save_pretrained(tmp_path)
    assert WhisperFeatures.load(tmp_path).get_config() == ours.get_config()
    ours.save(tmp_path)
    again = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(again, transformers.WhisperFeatureExtractor)
    own = {"processor_class": "WhisperProcessor"}
    assert {**again.to_dict(), **own} == {**theirs.to_dict(), **own}


@pytest.mark.parametrize("bands", [80, 128])
def test_filters(bands):
    found = mel_filters(bands, 201, 16_000)
    published = np.load(DATA / "mel_filters.npz")[f"mel_{bands}"]
    np.testing.assert_allclose(found, published, rtol=0, atol=1e-6)
    theirs = transformers.WhisperFeatureExtractor(bands).mel_filters.T
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("source, rate", RATES)
def test_rates_as_scipy_changes_them_by_the_same_filter(source, rate):
    common = math.gcd(source, rate)
    up, down = rate // common, source // common
    ratio = min(1, up / down)
    cutoff, reach = ratio * (1 - audio.TRANSITION / 2), audio.ZEROS / ratio
    ends = round(reach * up)
    time = np.arange(-ends, ends + 1) / up
    taps = cutoff * np.sinc(cutoff * time) * signal.windows.kaiser(len(time), audio.BETA)
    for length in (1, 2, 999, source + 17):
        x = np.random.default_rng(length).uniform(-1, 1, length)
        want = signal.resample_poly(x, up, down, window=taps / up)
        found = resample(x, source, rate)
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=0, atol=5e-6)


@pytest.mark.parametrize("source, rate", RATES)
def test_rates_as_scipy_changes_them_by_its_own_filter(source, rate):
    """SciPy's filter is shorter: noise below 0.7 of half the lower rate passes both."""
    random = np.random.default_rng(0)
    spectrum = np.fft.rfft(random.uniform(-1, 1, source))
    spectrum[int(0.7 * min(source, rate) / 2) :] = 0  # a second: bin k is k Hz
    x = np.fft.irfft(spectrum, source)
    common = math.gcd(source, rate)
    want = signal.resample_poly(x, rate // common, source // common)
    inner = slice(rate // 20, -rate // 20)
    error = np.abs(resample(x, source, rate) - want)[inner]
    assert error.max() < 0.01 * np.abs(want).max()
