"""Speech to text on sounds: what goes in, languages, windows, fit, files, errors."""

import numpy as np
import pytest
from sources import ROOT

import khub
from khub import nlp
from khub.nlp import speech
from khub.nlp.audio import WhisperFeatures
from khub.nlp.byte_pair import byte_characters

SOUND = ROOT.parent / "shared" / "data" / "audio" / "spoken_digits" / "7_theo_3.wav"
RATE = 16_000
FEATURES = WhisperFeatures(bands=8, seconds=2)
SPECIAL = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>"]
STAMPS = [f"<|{n * 0.02:.2f}|>" for n in range(101)]


def make(several=True, timestamps=True, **options):
    special = SPECIAL if several else SPECIAL[:1]
    special = [*special, "<|notimestamps|>", *STAMPS] if timestamps else special
    vocabulary = {token: n for n, token in enumerate([*byte_characters(), "<|endoftext|>"])}
    tokenizer = nlp.WhisperTokenizer(vocabulary, [], added_tokens=special)
    khub.utils.set_random_seed(2)
    backbone = nlp.WhisperBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        num_mels=8,
        max_encoder_sequence_length=200,
        max_sequence_length=16,
        decoder_start_token_id=tokenizer.token_to_id(SPECIAL[0]),
    )
    options = {"language": "en" if several else None, **options}
    preprocessor = nlp.SpeechToTextPreprocessor(tokenizer, FEATURES, 16, **options)
    return nlp.WhisperSpeechToText(backbone, preprocessor)


@pytest.fixture(scope="module")
def model():
    return make()


def tone(seconds, hertz=440.0, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(
        "float32"
    )


def test_what_is_heard(model):
    assert model.languages == {"<|en|>": 258, "<|de|>": 259} and model.end == 256
    text = model.generate(SOUND, language="en")
    assert isinstance(text, str) and model.generate(SOUND.read_bytes(), "<|en|>") == text
    sounds = [tone(1), nlp.read_audio(SOUND), tone(2.0, 880)]
    found = model.generate(sounds, language="de", task="translate")
    assert found == [model.generate(sound, "de", "translate") for sound in sounds]
    assert model.generate(np.stack([sounds[0]] * 2), "en") == [model.generate(sounds[0], "en")] * 2
    assert model.detect_language(sounds[0]) in ("en", "de")
    assert model.generate(sounds[0]) == model.generate(sounds[0], model.detect_language(sounds[0]))
    slow = tone(1, rate=8_000)
    assert isinstance(model.generate(slow, "en", rate=8_000), str)


def test_segments(model):
    found = model.generate(tone(5), language="en", timestamps=True)
    assert found.keys() == {"text", "segments"} and len(found["segments"]) >= 2
    times = [(piece["start"], piece["end"]) for piece in found["segments"]]
    assert times == sorted(times) and all(0 <= a <= b <= 7 for a, b in times)
    assert isinstance(model.generate(tone(5), language="en"), str)
    plain = make(several=False, timestamps=False)
    assert isinstance(plain.generate(tone(5)), str)  # window by window
    with pytest.raises(ValueError, match="no timestamps"):
        plain.generate(tone(1), timestamps=True)


def test_windows_are_cut_where_timestamps_meet():
    first, a, b = 100, 5, 6
    assert speech.split([100, a, b, 130, 130, b, 150, 150], first, 200) == (
        [(0, 30, [100, a, b, 130]), (30, 50, [130, b, 150])],
        100,
    )
    alone = [100, a, 110, 110, b, 140]
    assert speech.split(alone, first, 200)[1] == 200
    assert speech.split(alone, first, 200)[0][1] == (10, 40, [110, b, 140])
    assert speech.split([100, a, 120], first, 80) == ([(0, 20, [100, a, 120])], 80)
    assert speech.split([a, b], first, 80) == ([(0, 40, [a, b])], 80)
    assert speech.split([], first, 80) == ([(0, 40, [])], 80)


@pytest.mark.parametrize(
    ("audio", "options", "words"),
    [
        (np.zeros(0, "float32"), {}, "at least one sample"),
        (np.array([0.1, np.nan], "float32"), {}, "finite"),
        (np.zeros((9, 2), "float32"), {}, r"\(batch, samples\)"),
        (np.zeros((2, 3, 9), "float32"), {}, "one channel"),
        ([], {}, "batch is empty"),
        (tone(1), dict(rate=10), "Hz"),
        (tone(1), dict(language="klingon"), "one of de, en"),
        (tone(1), dict(task="sing"), "transcribe, translate"),
        (tone(1), dict(max_length=3, language="en"), "max_length"),
        (tone(1), dict(max_length=99, language="en"), "at most 16"),
    ],
)
def test_bad_sounds(model, audio, options, words):
    with pytest.raises(ValueError, match=words):
        model.generate(audio, **options)


def test_other_errors(model):
    with pytest.raises(TypeError, match="integers"):
        model.generate(np.zeros(9, "int16"))
    with pytest.raises(ValueError, match="one language"):
        make(several=False).generate(tone(1), language="en")
    with pytest.raises(ValueError, match=r"needs language=.* de, en"):
        make(language=None).preprocessor.prompt()
    assert make(language="de").preprocessor.prompt() == [257, 259, 260, 262]
    assert make(multilingual=False).preprocessor.prompt() == [257, 262]
    with pytest.raises(ValueError, match="200, 8"):
        model.backbone(
            {"encoder_features": np.zeros((1, 9, 8), "float32"), "decoder_token_ids": [[1]]}
        )
    with pytest.raises(ValueError, match="no preprocessor"):
        nlp.WhisperSpeechToText(model.backbone).generate(tone(1))


@pytest.mark.skipif(khub.backend.name == "numpy", reason="NumPy computes no gradients")
def test_fit_and_the_way_back(tmp_path):
    model = make(several=False, timestamps=False)
    sounds, texts = [tone(0.5, 300), tone(1.2, 900), nlp.read_audio(SOUND)], ["low", "high", "7"]
    model.compile(optimizer=khub.optimizers.Adam(1e-2))
    model.fit(sounds, texts, batch_size=3, epochs=60, verbose=0)
    assert model.generate(sounds) == texts
    assert model.evaluate(sounds, texts, verbose=0)[1] > 0.9
    model.fit([str(SOUND)], ["7"], epochs=1, verbose=0)
    model.save_to_preset(tmp_path / "preset")
    again = nlp.SpeechToText.from_preset(str(tmp_path / "preset"))
    assert again.preprocessor.features.seconds == 2 and again.generate(sounds) == texts


def test_the_shipped_model_hears_speakers_that_it_never_heard():
    model = nlp.SpeechToText.from_preset("whisper_digits_micro_en")
    paths = sorted(
        p for name in ("theo", "yweweler") for p in SOUND.parent.glob(f"*_{name}_[0-3].wav")
    )
    found = model.generate([str(path) for path in paths])
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    right = [word == words[int(path.stem[0])] for word, path in zip(found, paths)]
    assert len(right) == 80 and np.mean(right) >= 0.8
    assert khub.presets.verify("whisper_digits_micro_en").ok
