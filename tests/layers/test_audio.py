"""Spectrograms: known answers, shapes, and alike on the device and on the host."""

import numpy as np
import pytest

import khub
from khub import layers, ops

SOUND = np.sin(2 * np.pi * 1000 / 8000 * np.arange(2000)).astype("float32")  # 1000 Hz
BATCH = np.stack([SOUND, SOUND[::-1]])


def host(x):
    return ops.convert_to_numpy(x)


def test_a_tone_is_loudest_in_its_band():
    layer = layers.MelSpectrogram(256, 64, sampling_rate=8000, num_mel_bins=20, min_freq=0.0)
    found = host(layer(SOUND))
    assert found.shape == (20, 32) and found.dtype == np.float32
    mel = 1127 * np.log(1 + np.array([1000, 4000]) / 700)
    band = round(mel[0] / (mel[1] / 21)) - 1
    assert (found.argmax(0)[2:-2] == band).all()
    assert found.min() >= found.max() - 80
    spectrum = host(layers.STFTSpectrogram(mode="magnitude")(BATCH[:, :, None]))
    assert (spectrum.argmax(-1) == 1000 * 256 // 8000).all()


def test_numbers_of_numpy():
    layer = layers.STFTSpectrogram(mode="stft", frame_length=64, frame_step=16, fft_length=128)
    found = host(layer(BATCH[:, :, None]))
    window = np.hanning(64) / np.sqrt(np.sum(np.hanning(64) ** 2))
    frames = np.lib.stride_tricks.sliding_window_view(BATCH, 64, 1)[:, ::16] * window
    wanted = np.fft.rfft(frames, 128)
    np.testing.assert_allclose(found[..., :65], wanted.real, atol=1e-4)
    np.testing.assert_allclose(found[..., 65:], wanted.imag, atol=1e-4)


LAYERS = [
    ("MelSpectrogram", dict(fft_length=256, sequence_stride=100), BATCH),
    ("MelSpectrogram", dict(fft_length=256, power_to_db=False, window=None), BATCH),
    ("STFTSpectrogram", {}, BATCH[:, :, None]),
    ("STFTSpectrogram", dict(mode="angle", padding="same"), BATCH[:, :, None]),
    ("STFTSpectrogram", dict(mode="psd", data_format="channels_first"), BATCH[:, None]),
]


@pytest.mark.parametrize(("name", "options", "x"), LAYERS)
def test_everywhere_alike(name, options, x):
    layer = getattr(layers, name)(**options)
    expected = host(layer(x))
    if options.get("mode") != "angle":  # of numbers near 0
        np.testing.assert_allclose(layer.on_host(x), expected, rtol=1e-3, atol=1e-3)
    inputs = khub.Input(x.shape[1:])
    model = khub.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *expected.shape[1:])
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-3, atol=1e-3)
    again = type(layer).from_config(layer.get_config())
    np.testing.assert_allclose(host(again(x)), expected, rtol=1e-4, atol=1e-4)


def test_in_a_tf_data_pipeline():
    tensorflow = pytest.importorskip("tensorflow")
    layer = layers.MelSpectrogram(256)
    (found,) = tensorflow.data.Dataset.from_tensor_slices(BATCH).batch(2).map(layer)
    np.testing.assert_allclose(found.numpy(), host(layer(BATCH)), rtol=1e-3, atol=1e-3)


WRONG = [
    (lambda: layers.MelSpectrogram(0), "fft_length must be a positive integer, got 0"),
    (lambda: layers.MelSpectrogram(64, sequence_length=65), "at most fft_length=64, got 65"),
    (lambda: layers.MelSpectrogram(min_freq=9000.0), "between 0 and max_freq"),
    (lambda: layers.MelSpectrogram(window="x")(SOUND), "hann, hamming, blackman, got 'x'"),
    (lambda: layers.STFTSpectrogram(mode="x"), "mode must be one of log, magnitude"),
    (lambda: layers.STFTSpectrogram(scaling="x"), "scaling must be one of None, density"),
    (lambda: layers.STFTSpectrogram(padding="x"), "padding must be one of valid, same"),
    (lambda: layers.STFTSpectrogram(window="x"), "window must be one of hann, hamming"),
    (lambda: layers.STFTSpectrogram(window=[1.0]), r"an array of shape \(1,\)"),
    (lambda: layers.STFTSpectrogram(frame_step=300), "between 1 and frame_length=256, got 300"),
    (lambda: layers.STFTSpectrogram(fft_length=3), "at least frame_length=256, got 3"),
    (lambda: layers.STFTSpectrogram()(SOUND), "was built for an input with"),
    (lambda: layers.STFTSpectrogram()(np.ones((1, 400, 1), "int32")), "takes floats, got"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
