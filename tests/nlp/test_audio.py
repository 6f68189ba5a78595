"""Files of sound, sampling rates, Whisper's spectrograms; and what is no sound."""

import io
import json
import os
import struct
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from sources import ROOT

from khub import nlp
from khub.nlp import audio
from khub.nlp.audio import WhisperFeatures, from_transformers, mel_filters, read_audio, resample

pytestmark = pytest.mark.once

DATA = ROOT.parent / "shared" / "data" / "audio"
RANDOM = np.random.default_rng(0)
STEREO = RANDOM.uniform(-1, 1, (400, 2))
MONO = STEREO.mean(1)


def tone(hz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


# --- wav files, byte by byte ----------------------------------------------------------------------
PACK = {  # (encoding, bits) -> the bytes of numbers from -1 to 1
    (1, 8): lambda x: np.round(x * 127 + 128).astype("u1").tobytes(),
    (1, 16): lambda x: np.round(x * 32767).astype("<i2").tobytes(),
    (1, 24): lambda x: (
        np.round(x * (2**23 - 1)).astype("<i4").reshape(-1, 1).view("u1")[:, :3].tobytes()
    ),
    (1, 32): lambda x: np.round(x * (2**31 - 1)).astype("<i4").tobytes(),
    (3, 32): lambda x: x.astype("<f4").tobytes(),
    (3, 64): lambda x: x.astype("<f8").tobytes(),
}
STEP = {8: 2**-6, 16: 2**-14, 24: 1e-6, 32: 1e-6, 64: 1e-6}  # two steps of the quantisation


def chunk(name, content, size=None):
    padding = b"\0" * (len(content) % 2)
    return struct.pack("<4sI", name, len(content) if size is None else size) + content + padding


def form(code=1, channels=1, rate=16_000, bits=16, step=None, extensible=False):
    step = channels * bits // 8 if step is None else step
    kind = 0xFFFE if extensible else code
    start = struct.pack("<HHIIHH", kind, channels, rate, rate * step % 2**32, step, bits)
    tail = bytes.fromhex("000000001000800000aa00389b71")  # of every sub-format's GUID
    return start + struct.pack("<HHIH", 22, bits, 0, code) + tail if extensible else start


def riff(*chunks):
    content = b"WAVE" + b"".join(chunks)
    return struct.pack("<4sI", b"RIFF", len(content)) + content


def wav(x, code=1, bits=16, rate=16_000, extensible=False, **options):
    channels = x.shape[1] if x.ndim == 2 else 1
    header = form(code, channels, rate, bits, extensible=extensible)
    return riff(chunk(b"fmt ", header), chunk(b"data", PACK[code, bits](x), **options))


@pytest.mark.parametrize("extensible", [False, True], ids=["plain", "extensible"])
@pytest.mark.parametrize("code, bits", PACK)
def test_every_encoding_of_a_wav_file(code, bits, extensible):
    for x, want in ((MONO, MONO), (STEREO, MONO)):
        found = read_audio(wav(x, code, bits, extensible=extensible))
        assert found.dtype == np.float32 and found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=0, atol=STEP[bits])


def test_full_scale():
    for code, bits in ((1, 8), (1, 16), (1, 24), (1, 32)):
        lowest = b"\0" if bits == 8 else b"\0" * (bits // 8 - 1) + b"\x80"
        content = riff(chunk(b"fmt ", form(code, bits=bits)), chunk(b"data", lowest * 2))
        assert read_audio(content).tolist() == [-1, -1]
    loud = read_audio(wav(np.asarray([1.5, -1.25, 0.5]), 3, 32))
    assert loud.tolist() == [1, -1, 0.5]


def test_other_chunks_are_passed_over():
    data = PACK[1, 16](MONO)
    odd = chunk(b"LIST", b"odd")  # a byte follows that its size does not count
    content = riff(odd, chunk(b"fmt ", form()), odd, chunk(b"data", data), odd)
    assert np.array_equal(read_audio(content), read_audio(wav(MONO)))


def test_a_stream_whose_end_was_not_known():
    whole = wav(MONO)
    assert np.array_equal(read_audio(wav(MONO, size=0xFFFFFFFF)), read_audio(whole))


def test_paths_file_objects_and_bytes_are_the_same(tmp_path):
    content = wav(MONO)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    sources = [path, str(path), io.BytesIO(content), bytearray(content), memoryview(content)]
    with open(path, "rb") as file:
        for source in (*sources, file):
            assert np.array_equal(read_audio(source), read_audio(content))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_wav_files_read_as_soundfile_reads_them(kind, subtype):
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, STEREO, 16_000, format=kind, subtype=subtype)
    want, _ = soundfile.read(io.BytesIO(file.getvalue()))
    np.testing.assert_allclose(read_audio(file.getvalue()), want.mean(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "kind, subtype, tolerance",
    [
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.1),
        ("MP3", None, 0.1),
        ("RF64", "PCM_16", 1e-4),
        ("WAV", "ULAW", 0.05),
        ("AIFF", "PCM_24", 1e-5),
    ],
)
def test_compressed_files(kind, subtype, tolerance):
    soundfile = pytest.importorskip("soundfile")
    x, file = 0.5 * tone(440, 16_000), io.BytesIO()
    soundfile.write(file, x, 16_000, format=kind, subtype=subtype)
    found = read_audio(file.getvalue())
    assert found.shape == x.shape and found.dtype == np.float32
    assert np.abs(found - x)[2000:-2000].max() < tolerance


def test_speech():
    pytest.importorskip("soundfile")
    x = read_audio(DATA / "jfk.flac")  # 11 s at 44.1 kHz, stereo
    assert x.shape == (176_000,) and 0.5 < np.abs(x).max() <= 1
    digit = read_audio(DATA / "spoken_digits" / "7_jackson_0.wav")  # at 8 kHz
    assert digit.dtype == np.float32 and 0.2 < len(digit) / 16_000 < 1


# --- files that are damaged, hostile, or something else -------------------------------------------
WHOLE = wav(MONO)
BAD_FILES = {
    "no bytes": (b"", "no audio|soundfile"),
    "a text": (b"no sound at all" * 9, "the audio is no audio that libsndfile can read"),
    "noise": (RANDOM.bytes(5000), "the audio is no audio"),
    "cut in its samples": (WHOLE[:-100], r"truncated or damaged: its chunk 'data' has 800 bytes"),
    "cut in its header": (WHOLE[:30], r"chunk 'fmt ' has 16 bytes, the file 10 more"),
    "only RIFF": (WHOLE[:12], "without samples"),
    "more claimed than there is": (wav(MONO, size=0x7FFFFFFF), "has 2,147,483,647 bytes, the file"),
    "a chunk beyond the end": (riff(chunk(b"LIST", b"", 10**9)), "chunk 'LIST' has 1,000,000,000"),
    "ten thousand chunks": (riff(*[chunk(b"junk", b"")] * 10_000), "without samples"),
    "no samples": (wav(MONO[:0]), r"got shape \(0,\)"),
    "no format": (riff(chunk(b"data", b"ab")), "has no format before its samples"),
    "a format after the samples": (
        riff(chunk(b"data", b"ab"), chunk(b"fmt ", form())),
        "no format before",
    ),
    "half a sample": (riff(chunk(b"fmt ", form()), chunk(b"data", b"abc")), "ends within a sample"),
    "no channels": (
        riff(chunk(b"fmt ", form(channels=0, step=2)), chunk(b"data", b"ab")),
        "0 channels, 16 bits and 2 bytes",
    ),
    "no step": (riff(chunk(b"fmt ", form(step=0)), chunk(b"data", b"ab")), "0 bytes a step"),
    "12 bits of float": (riff(chunk(b"fmt ", form(3, bits=12)), chunk(b"data", b"ab")), "12 bits"),
    "65,535 channels": (
        riff(chunk(b"fmt ", form(channels=65_535, bits=8)), chunk(b"data", b"ab")),
        "ends within a sample",
    ),
    "an unknown encoding": (
        riff(chunk(b"fmt ", form(0x4242)), chunk(b"data", b"ab" * 50)),
        "no audio that libsndfile can read",
    ),
    "a rate of 0": (wav(MONO, rate=0), "rate of the audio must be .* 384,000 Hz, got 0"),
    "an absurd rate": (wav(MONO, rate=4_000_000_000), "got 4000000000"),
    "not a number": (wav(np.asarray([0, np.nan]), 3, 32), "the audio: .* got nan at sample 1"),
    "infinity": (wav(np.asarray([[np.inf, -np.inf]]), 3, 32), "got nan at sample 0"),
    "too large for float32": (wav(np.asarray([0, 1e300]), 3, 64), "got inf at sample 1"),
    "undivided integers": (wav(MONO * 20_000, 3, 32), "from -1 to 1, got .* divide by the full"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_is_no_file_of_sound(case, tmp_path):
    pytest.importorskip("soundfile")
    content, message = BAD_FILES[case]
    with pytest.raises(ValueError, match=message):
        read_audio(content)
    path = tmp_path / "given.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="given.wav"):
        read_audio(path)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "FLAC"])
def test_any_damage_is_a_value_error(kind):
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, STEREO, 16_000, format=kind)
    whole, random, read = file.getvalue(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in random.integers(0, [80, len(whole)], (3, 2)).flat:
            damaged[at] = random.integers(256)
        try:
            x = read_audio(damaged[: random.integers(len(whole) // 2, 2 * len(whole))])
        except ValueError:
            continue
        read += 1
        assert x.ndim == 1 and x.dtype == np.float32 and np.abs(x).max() <= 1
    assert read < 300


@pytest.mark.parametrize("kind", ["FLAC", "MP3", "OGG"])
def test_compressed_files_that_are_cut(kind):
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, 0.5 * tone(440, 16_000, 5), 16_000, format=kind)
    for part in (0.5, 0.01):
        with pytest.raises(ValueError, match="the audio"):
            read_audio(file.getvalue()[: int(len(file.getvalue()) * part)])


def test_what_unpacks_to_too_much_is_refused(monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    monkeypatch.setattr(audio, "LONGEST", 100_000)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(200_000), 16_000, format="FLAC")
    assert len(file.getvalue()) < 10_000
    with pytest.raises(ValueError, match="more than 100,000 samples"):
        read_audio(file.getvalue())
    with pytest.raises(ValueError, match="384,000 samples at 384,000 Hz; at most 100,000"):
        resample(np.zeros(1000), 1000, 384_000)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.wav does not exist; expected a file"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_audio(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    # In a thread: a pipe nobody writes to would otherwise stop the tests for good.
    raised = []

    def read():
        with pytest.raises(FileNotFoundError, match="is a pipe or a device"):
            read_audio(tmp_path / "pipe")
        raised.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert raised


def test_what_is_no_source():
    with pytest.raises(TypeError, match="path, a binary file object or bytes, got ndarray"):
        read_audio(MONO)
    with pytest.raises(TypeError, match="gives str, not bytes; open it in mode 'rb'"):
        read_audio(io.StringIO("RIFF"))


BAD_RATES = {0: ValueError, -16_000: ValueError, 10**9: ValueError, 999: ValueError}
BAD_TYPES = {16e3: TypeError, "16000": TypeError, None: TypeError, True: TypeError}


@pytest.mark.parametrize("rate, kind", [*BAD_RATES.items(), *BAD_TYPES.items()])
def test_rates_that_are_none(rate, kind):
    calls = {
        "rate": lambda: read_audio(WHOLE, rate),
        "rate ": lambda: resample(MONO, 16_000, rate),
        "source": lambda: resample(MONO, rate, 16_000),
    }
    for name, call in calls.items():
        with pytest.raises(kind, match=f"{name.strip()} must be an integer from 1,000 to 384,000"):
            call()


def test_without_soundfile(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert len(read_audio(WHOLE)) == len(MONO)
    with pytest.raises(ImportError, match=r"jfk.flac is no wav .* install 'khub\[audio\]'"):
        read_audio(DATA / "jfk.flac")


# --- sampling rates -------------------------------------------------------------------------------
RATES = [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 44_110]


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_stays_what_it_is(rate):
    for hz in (0, 50, 1000, 3600):  # under 0.92 of half the lower rate
        x = np.cos(2 * np.pi * hz * np.arange(rate) / rate)
        found = resample(x, rate, 16_000)
        assert found.shape == (16_000,) and found.dtype == np.float32
        want = np.cos(2 * np.pi * hz * np.arange(16_000) / 16_000)
        inner = slice(500, -500)  # silence before and after rings at the ends
        np.testing.assert_allclose(found[inner], want[inner], rtol=0, atol=1e-3)


@pytest.mark.parametrize("rate", [r for r in RATES if r > 16_000])
def test_what_is_over_half_the_rate_does_not_alias(rate):
    for hz in np.linspace(8000, rate / 2, 12)[:-1]:
        found = resample(tone(hz, rate), rate, 16_000)
        assert np.abs(found[500:-500]).max() < 1e-4  # 80 dB


@pytest.mark.parametrize("rate", [8_000, 11_025])
def test_a_slower_sound_gets_no_images(rate):
    found = resample(tone(0.4 * rate, rate), rate, 16_000)[500:-500]
    spectrum = np.abs(np.fft.rfft(found * np.blackman(len(found))))
    above = spectrum[np.fft.rfftfreq(len(found), 1 / 16_000) > rate / 2]
    assert above.max() < 2e-4 * spectrum.max()


@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_short_sounds(length):
    for rate in RATES:
        x = resample(np.ones(length), rate, 16_000)
        assert x.shape == (-(-length * 16_000 // rate),) and np.isfinite(x).all()
    assert np.array_equal(resample(np.ones(length), 16_000, 16_000), np.ones(length))


BAD_SAMPLES = {
    "nothing": (np.zeros(0), ValueError, r"at least one sample, got shape \(0,\)"),
    "an empty list": ([], ValueError, "shape"),
    "integers": (np.zeros(9, "int16"), TypeError, r"got int16; .*x / 32768 for int16"),
    "a list of integers": ([0, 1, 2], TypeError, "got int64"),
    "booleans": (np.ones(9, bool), TypeError, "got bool"),
    "words": (np.asarray(["a"]), TypeError, "got <U1"),
    "complex": (np.ones(9, complex), TypeError, "got complex128"),
    "stereo": (STEREO, ValueError, r"got shape \(400, 2\); average channels first"),
    "a number": (np.float32(0.5), ValueError, r"got shape \(\)"),
    "not a number": (np.asarray([0, 0, np.nan]), ValueError, "got nan at sample 2"),
    "infinity": (np.asarray([0, -np.inf]), ValueError, "got -inf at sample 1"),
    "16 bits as floats": (MONO * 32_768, ValueError, r"divide by the full scale \(32768"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_what_are_no_samples(case):
    x, kind, message = BAD_SAMPLES[case]
    with pytest.raises(kind, match=message):
        resample(x, 8_000, 16_000)
    with pytest.raises(kind, match=message):
        WhisperFeatures(seconds=2).windows(x)


# --- features -------------------------------------------------------------------------------------
@pytest.mark.parametrize("bands", [80, 128])
def test_filters_are_those_that_were_published(bands):
    want = np.load(DATA / "mel_filters.npz")[f"mel_{bands}"]
    np.testing.assert_allclose(mel_filters(bands, 201, 16_000), want, rtol=0, atol=1e-8)


def test_shapes_of_one_sound_and_of_several(tmp_path):
    made = WhisperFeatures(seconds=2)
    one = made(MONO)
    assert one.shape == (200, 80) == (made.frames, made.bands) and one.dtype == np.float32
    assert made([MONO, MONO[:9], np.zeros(50_000)]).shape == (3, 200, 80)
    assert made(np.stack([MONO, MONO])).shape == (2, 200, 80)
    assert WhisperFeatures(128)(MONO).shape == (3000, 128)
    (tmp_path / "a.wav").write_bytes(WHOLE)
    several = made([tmp_path / "a.wav", WHOLE, io.BytesIO(WHOLE), read_audio(WHOLE)])
    for row in several:
        assert np.array_equal(row, several[0])
    assert np.array_equal(made(str(tmp_path / "a.wav")), several[0])
    assert np.array_equal(made(MONO.tolist()), one)
    assert np.array_equal(made(list(MONO.astype("float32"))), one)


def test_values():
    made = WhisperFeatures(seconds=2)
    silent = made(np.zeros(100))
    np.testing.assert_allclose(silent, (-10 + 4) / 4, rtol=0, atol=1e-6)
    loud = made(tone(1000, 16_000, 2))
    assert np.isclose(loud.max() - loud.min(), 2)  # 8 below the maximum, over 4
    edges = 1000 * 6.4 ** ((np.arange(15, 16) - 15) / 27)
    assert edges[0] == 1000  # the tone lies where the scale turns
    band = int(np.argmax(made.filters[:, 25]))  # bin 25 is 1000 Hz
    assert (loud[3:-3].argmax(1) == band).all()


def test_sounds_are_padded_or_cut_to_the_window():
    made = WhisperFeatures(seconds=2)
    x = RANDOM.uniform(-1, 1, 40_000)
    assert np.array_equal(made(x), made(x[:32_000]))
    padded = np.concatenate([x[:9000], np.zeros(23_000)])
    assert np.array_equal(made(x[:9000]), made(padded))
    other = WhisperFeatures(seconds=2, padding_value=0.25)
    padded[9000:] = 0.25
    assert np.array_equal(other(x[:9000]), made(padded))
    assert made(x[:1]).shape == (200, 80)


def test_samples_at_another_rate():
    made = WhisperFeatures(seconds=2)
    x = 0.5 * tone(440, 48_000)
    assert np.array_equal(made(x, rate=48_000), made(resample(x, 48_000, 16_000)))
    with pytest.raises(ValueError, match="must be an integer from 1,000"):
        made(x, rate=0)


def test_windows_of_a_long_sound():
    made = WhisperFeatures(seconds=2)
    x = RANDOM.uniform(-1, 1, 100_000).astype("float32")
    found = made.windows(x)
    assert found.shape == (4, 32_000) and found.dtype == np.float32
    assert np.array_equal(found.reshape(-1)[: len(x)], x) and not found[3, 4000:].any()
    overlapping = made.windows(x, overlap_seconds=0.5)
    assert overlapping.shape == (4, 32_000)
    for i, window in enumerate(overlapping):
        part = x[i * 24_000 : i * 24_000 + 32_000]
        assert np.array_equal(window[: len(part)], part) and not window[len(part) :].any()
    assert made(found).shape == (4, 200, 80)
    for length, count in ((1, 1), (32_000, 1), (32_001, 2), (64_000, 2)):
        assert len(made.windows(np.zeros(length))) == count
    for wrong in (-1, 2, 99, float("nan")):
        with pytest.raises(ValueError, match="from 0 to under 2, got"):
            made.windows(x, wrong)


@pytest.mark.parametrize(
    "x, message",
    [
        ([], "the batch is empty"),
        (STEREO, r"must be \(batch, samples\), got \(400, 2\)"),
        (np.zeros((0, 400)), "the batch is empty"),
        (np.zeros((2, 0)), r"got \(2, 0\)"),
        (np.zeros((2, 3, 400)), r"got shape \(2, 3, 400\)"),
        ([MONO, np.asarray([np.nan])], "got nan at sample 0"),
        ([MONO, STEREO], r"got shape \(400, 2\)"),
    ],
)
def test_what_is_no_batch(x, message):
    with pytest.raises(ValueError, match=message):
        WhisperFeatures(seconds=2)(x)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bands": 0}, "bands must be a positive integer"),
        ({"bands": 5000}, "bands must be at most 1,024, got 5,000"),
        ({"seconds": 0.5}, "seconds must be a positive integer"),
        ({"seconds": 10**9}, "seconds must be at most"),
        ({"rate": 8_000}, "rate must be at least 16,000 Hz, .* got 8,000"),
        ({"rate": 10**9}, "rate must be at most"),
        ({"hop": 0}, "hop must be a positive integer"),
        ({"hop": 1}, "frames must be at most 100,000, got 480,000"),
        ({"hop": 401}, "expected an even n_fft, hop <= n_fft .* got n_fft=400 with 401"),
        ({"n_fft": 401}, "expected an even n_fft"),
        ({"n_fft": 10**9}, "n_fft must be at most"),
        ({"padding_value": float("nan")}, "padding_value must lie between"),
        ({"padding_value": "0"}, "padding_value must lie between"),
    ],
)
def test_sizes_that_are_none(options, message):
    with pytest.raises(ValueError, match=f"WhisperFeatures: {message}"):
        WhisperFeatures(**options)


# --- presets --------------------------------------------------------------------------------------
def test_a_saved_one_opens_again(tmp_path):
    made = WhisperFeatures(128, seconds=2, hop=200, n_fft=512, padding_value=0.5)
    made.save_to_preset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert content["n_samples"] == 32_000 and content["nb_max_frames"] == 160
    again = WhisperFeatures.load(tmp_path)
    assert again.get_config() == made.get_config()
    assert WhisperFeatures.config_from_preset(SimpleNamespace(folder=tmp_path)) == made.get_config()


def test_from_preset(tmp_path):
    nlp.BertTokenizer.from_preset("bert_micro_en_uncased").save_to_preset(tmp_path)
    WhisperFeatures(seconds=2).save(tmp_path)
    assert WhisperFeatures.from_preset(tmp_path).seconds == 2
    assert WhisperFeatures.from_preset(tmp_path, seconds=3).seconds == 3


PUBLISHED = {  # as openai/whisper-base has it, without its 80 x 201 numbers
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480_000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "WhisperProcessor",
    "return_attention_mask": False,
    "sampling_rate": 16_000,
}


def test_published_settings(tmp_path):
    assert from_transformers(PUBLISHED) == WhisperFeatures().get_config()
    filters = np.load(DATA / "mel_filters.npz")["mel_80"].tolist()
    assert from_transformers({**PUBLISHED, "mel_filters": filters}) == from_transformers(PUBLISHED)
    assert from_transformers({}) == {}
    content = {"feature_extractor": PUBLISHED, "processor_class": "WhisperProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert WhisperFeatures.load(tmp_path).get_config() == WhisperFeatures().get_config()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fmin": 20, "dither_seed": 1}, "does not know 'dither_seed', 'fmin'; it knows chunk_len"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "must be 'WhisperFeatureExtract"),
        ({"padding_side": "left"}, "padding_side must be 'right', got 'left'"),
        ({"dither": 0.1}, "dither must be 0, got 0.1"),
        ({"n_samples": 5}, "n_samples does not follow from the other settings"),
        ({"nb_max_frames": "3000 frames"}, "nb_max_frames does not follow"),
        ({"mel_filters": [[1.0], [2.0, 3.0]]}, "mel_filters does not follow"),
        ({"mel_filters": np.zeros((80, 201)).tolist()}, "mel_filters does not follow"),
        ({"feature_size": "80"}, "bands must be a positive integer, got '80'"),
        ({"chunk_length": None}, "seconds must be a positive integer, got None"),
        ({"n_fft": 10**12}, "n_fft must be at most"),
    ],
)
def test_settings_that_are_not_whispers(tmp_path, change, message):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**PUBLISHED, **change}))
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{message}"):
        WhisperFeatures.load(tmp_path)


def test_settings_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither preprocessor_config.json nor processor_"):
        WhisperFeatures.load(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {}}')
    with pytest.raises(ValueError, match="expected the settings of a feature extractor, got None"):
        WhisperFeatures.load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="preprocessor_config.json must be a JSON object"):
        WhisperFeatures.load(tmp_path)
