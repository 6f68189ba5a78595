"""Sound as a speech network takes it, on the host: files read, resampled, log-mel spectrograms.

NumPy only; `soundfile` where a file is compressed.
"""

import io
import math
import os
import struct
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from khub.cosine_windows import cosine_window
from khub.fields import Configurable, PositiveInt

from ..presets import Presettable
from ..presets.tensors import is_float, parse_json, write_json

PATH, BYTES = (str, os.PathLike), (bytes, bytearray, memoryview)
RATES = (1_000, 384_000)  # Hz
LONGEST = 1_000_000_000  # samples, 17 hours at 16 kHz: more than that is what bombs unpack to
LOUDEST = 32  # 30 dB over full scale: beyond are integers that nobody divided

# wav: encoding and bytes of a sample -> dtype, what is silence, what is full scale
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
ENCODINGS = {
    (PCM, 1): ("u1", 128, 2**7),
    (PCM, 2): ("<i2", 0, 2**15),
    (PCM, 3): ("<i4", 0, 2**31),
    (PCM, 4): ("<i4", 0, 2**31),
    (FLOAT, 4): ("<f4", 0, 1),
    (FLOAT, 8): ("<f8", 0, 1),
}
CHUNKS = 1000  # that may precede the samples
STREAMED = 0xFFFFFFFF  # the size of a chunk that was written before its end was known
BLOCK = 1 << 16  # samples that are decoded at once

# The resampler's filter.
ZEROS = 64  # zero crossings of the sinc on each side
ATTENUATION = 80  # dB, of what would alias
BETA = 0.1102 * (ATTENUATION - 8.7)
TRANSITION = (ATTENUATION - 8) / (2.285 * 2 * ZEROS * math.pi)  # width, of half the lower rate
PHASES = 64  # output samples of a period that one matrix makes

TOP = 8000  # Hz, where Whisper's highest band ends at any rate
FRAMES = 500  # transformed at once: they stay in a core's cache
LIMITS = {"bands": 1024, "rate": 96_000, "seconds": 600, "n_fft": 8192, "frames": 100_000}
FILE, NESTED = "preprocessor_config.json", "processor_config.json"
NAMES = {  # transformers' -> ours
    "feature_size": "bands",
    "sampling_rate": "rate",
    "chunk_length": "seconds",
    "hop_length": "hop",
    "n_fft": "n_fft",
    "padding_value": "padding_value",
}
FIXED = {"feature_extractor_type": "WhisperFeatureExtractor", "padding_side": "right", "dither": 0}
FOLLOWING = ("n_samples", "nb_max_frames", "mel_filters")  # from the others
UNUSED = {"return_attention_mask": False, "processor_class": "WhisperProcessor"}  # as written


# --- files ----------------------------------------------------------------------------------------
def read_audio(source, rate=16_000):
    """Return the sound of a file: float32 (samples,) from -1 to 1, its channels averaged.

    source: a path, a binary file object, or the bytes of a file. wav (PCM, float) needs no package;
    flac, ogg, mp3 and what else libsndfile reads need `soundfile`.
    rate: Hz, that the sound is resampled to
    Raises FileNotFoundError, or ValueError for what is no audio, is damaged or empty.
    """
    _sane_rate("rate", rate)
    data, what = _content(source)
    is_wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    samples, found = (_read_wav if is_wav else _read_other)(data, what)
    _sane_rate(f"the sampling rate of {what}", found)
    return np.clip(resample(_sound(samples, what), found, rate), -1, 1)


def _sane_rate(name, rate):
    wanted = f"{name} must be an integer from {RATES[0]:,} to {RATES[1]:,} Hz, got {rate!r}."
    if isinstance(rate, bool) or not hasattr(rate, "__index__"):
        raise TypeError(wanted)
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(wanted)


def _content(source):
    """Return (the bytes of a file, how errors call it)."""
    if isinstance(source, PATH):
        path = Path(source)
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "is a pipe or a device"
            kind = kind if path.exists() else "does not exist"
            raise FileNotFoundError(f"{path} {kind}; expected a file of audio.")
        return path.read_bytes(), str(path)
    if isinstance(source, BYTES):
        return bytes(source), "the audio"
    if not hasattr(source, "read"):
        raise TypeError(
            f"Audio is read from a path, a binary file object or bytes, got "
            f"{type(source).__name__}; samples of another rate go through resample()."
        )
    data, name = source.read(), getattr(source, "name", None)
    what = name if isinstance(name, str) else "the audio"
    if not isinstance(data, bytes):
        raise TypeError(f"{what} gives {type(data).__name__}, not bytes; open it in mode 'rb'.")
    return data, what


def _read_wav(data, what):
    """Return (samples, rate) of a RIFF file.  IBM and Microsoft 1991; WAVEFORMATEXTENSIBLE 2007."""
    form, sound = _chunks(memoryview(data), what)
    if len(form) < 16:
        raise ValueError(f"{what} has no format before its samples; the wav header is damaged.")
    code, channels, rate, _, step, bits = struct.unpack_from("<HHIIHH", form)
    if code == EXTENSIBLE and len(form) >= 40:
        (code,) = struct.unpack_from("<H", form, 24)
    if code not in (PCM, FLOAT):
        return _read_other(data, what)
    size = step // channels if channels else 0
    if (code, size) not in ENCODINGS or step % channels or (bits + 7) // 8 != size:
        raise ValueError(
            f"{what} has {channels} channels, {bits} bits and {step} bytes a step in wav encoding "
            f"{code}; expected PCM of 8, 16, 24 or 32 bits or floats of 32 or 64."
        )
    if len(sound) % step:
        raise ValueError(
            f"{what} ends within a sample: {len(sound):,} bytes are no multiple of {step}; it is "
            "truncated or damaged."
        )
    dtype, silence, full = ENCODINGS[code, size]
    if size == 3:  # the lowest byte of four is 0
        sound = np.pad(np.frombuffer(sound, "u1").reshape(-1, 3), ((0, 0), (1, 0)))
    x = np.frombuffer(sound, dtype).reshape(-1, channels)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and inf are named later
        x = x.astype("float32") - np.float32(silence)
        return x @ np.full(channels, 1 / (full * channels), "float32"), rate


def _chunks(data, what):
    """Return the content of the chunks "fmt " and "data"."""
    form, at = b"", 12
    for _ in range(CHUNKS):
        if at + 8 > len(data):
            break
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        left = len(data) - at
        size = left if (name, size) == (b"data", STREAMED) else size
        if size > left:
            raise ValueError(
                f"{what} is truncated or damaged: its chunk {name.decode('latin-1')!r} has "
                f"{size:,} bytes, the file {left:,} more. Copy or record it again."
            )
        if name == b"data":
            return form, data[at : at + size]
        form = data[at : at + size] if name == b"fmt " else form
        at += size + size % 2
    raise ValueError(f"{what} is a wav file without samples (no chunk 'data').")


def _read_other(data, what):
    """Return (samples, rate) of what libsndfile reads."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without its library
        raise ImportError(
            f"{what} is no wav file of PCM or floats. flac, ogg and mp3 are read by soundfile: pip "
            "install 'khub[audio]'."
        ) from error
    parts, count = [], 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            # The length of an mp3 may be an estimate.
            least = file.frames * (0.95 if file.format == "MP3" else 1)
            mean = np.full(file.channels, 1 / file.channels, "float32")
            while len(block := file.read(BLOCK, "float32", always_2d=True)):
                count += len(block)
                if count > LONGEST:
                    raise ValueError(f"{what} has more than {LONGEST:,} samples; cut it.")
                parts.append(block @ mean)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{what} is no audio that libsndfile can read: {error}") from error
    if count < least:
        raise ValueError(f"{what} is truncated: {count:,} samples of at least {least:,.0f}.")
    return np.concatenate([np.zeros(0, "float32"), *parts]), rate


# --- samples --------------------------------------------------------------------------------------
def _sound(samples, what="the samples"):
    """Return samples as float32 (samples,), checked."""
    x = np.asarray(samples.detach().cpu() if hasattr(samples, "detach") else samples)
    if not is_float(x.dtype):
        raise TypeError(
            f"{what}: expected floats from -1 to 1, got {x.dtype}; integers are divided by their "
            "full scale first (x / 32768 for int16)."
        )
    if x.ndim != 1 or not x.size:
        raise ValueError(
            f"{what}: expected one channel (samples,) with at least one sample, got shape "
            f"{x.shape}; average channels first, x.mean(channel_axis)."
        )
    with np.errstate(over="ignore"):
        x = x.astype("float32")
    peak = np.abs(x).max()
    if not np.isfinite(peak):
        at = int(np.argmin(np.isfinite(x)))
        raise ValueError(f"{what}: expected finite numbers, got {x[at]} at sample {at:,}.")
    if peak > LOUDEST:
        raise ValueError(
            f"{what}: expected numbers from -1 to 1, got {peak:,.0f}; divide by the full scale "
            "(32768 for 16 bits)."
        )
    return x


def resample(samples, source, rate):
    """Return samples (n,) of `source` Hz at `rate` Hz: float32 (ceil(n * rate / source),).

    y(i) = sum_n x(n) c sinc(c t) w(t / reach), t = i source / rate - n, |t| <= reach, where w is
    Kaiser's window. With r = min(1, rate / source), c = r (1 - TRANSITION / 2), reach = ZEROS / r:
    what lies over half the lower rate is damped by 80 dB, what lies under 0.92 of it kept to 0.1 %.
    J. O. Smith, Digital Audio Resampling, ccrma.stanford.edu/~jos/resample; window and its two
    constants: Kaiser 1974, in Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.
    """
    x = _sound(samples)
    _sane_rate("source", source)
    _sane_rate("rate", rate)
    if source == rate:
        return x
    up, down = (hz // math.gcd(source, rate) for hz in (rate, source))
    size = -(-len(x) * up // down)
    if size > LONGEST:
        raise ValueError(f"{size:,} samples at {rate:,} Hz; at most {LONGEST:,} are made: cut x.")
    ratio = min(1, up / down)
    cutoff, reach = ratio * (1 - TRANSITION / 2), ZEROS / ratio
    # A period, `down` samples in and `up` out, repeats the same weights: a product with a matrix.
    longer = -(-PHASES // up)
    up, down = up * longer, down * longer
    periods, half = -(-size // up), math.ceil(reach)
    padded = np.zeros((periods + 1) * down + 2 * half + 1 + down, "float32")
    padded[half : half + len(x)] = x
    y = np.empty((periods, up), "float32")
    for first in range(0, min(up, size), PHASES):
        phase = np.arange(first, min(first + PHASES, up))
        start, end = first * down // up, int(phase[-1]) * down // up + 2 * half + 1
        t = phase * down / up - np.arange(start, end)[:, None] + half
        window = np.i0(BETA * np.sqrt(np.maximum(1 - (t / reach) ** 2, 0))) / np.i0(BETA)
        weights = cutoff * np.sinc(cutoff * t) * np.where(np.abs(t) <= reach, window, 0)
        weights, made = weights.astype("float32"), 0
        for row in range(0, end - start, down):  # so that rows lie beside each other: no copies
            part = weights[row : row + down]
            rows = padded[start + row :][: periods * down].reshape(periods, down)
            made = made + rows[:, : len(part)] @ part
        y[:, phase] = made
    return y.reshape(-1)[:size]


# --- features -------------------------------------------------------------------------------------
def mel_filters(bands, bins, rate):
    """Return triangles (bands, bins) of equal area over the bins of a spectrum, on Slaney's scale.

    hz = 200 mel / 3 below 1000 Hz, from there 1000 * 6.4 ** ((mel - 15) / 27).
    Slaney 1998, Auditory Toolbox, Interval Research technical report 1998-010.
    """
    mel = np.linspace(0, 15 + 27 * math.log(TOP / 1000) / math.log(6.4), bands + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))[:, None]
    hz = np.linspace(0, rate / 2, bins)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hz - low) / (centre - low), (high - hz) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


class WhisperFeatures(Presettable, Configurable):
    """Sound as Whisper hears it: the logarithm of its power in bands of the mel scale.

    frames = seconds * rate // hop;  x = log10(max(mel power, 1e-10)) -> (max(x, top - 8) + 4) / 4
    bands: of the spectrogram   rate: Hz   seconds: of the window that sound is padded or cut to
    hop, n_fft: samples between frames, and in one   padding_value: of samples after the end
    Radford et al. 2022, arXiv:2212.04356, section 2.2.
    """

    bands: PositiveInt = 80
    rate: PositiveInt = 16_000
    seconds: PositiveInt = 30
    hop: PositiveInt = 160
    n_fft: PositiveInt = 400
    padding_value: float = 0.0

    def setup(self):
        self.samples = self.seconds * self.rate
        self.frames = self.samples // self.hop
        for name, most in LIMITS.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most:,}, got {getattr(self, name):,}.")
        if self.rate < 2 * TOP:
            raise ValueError(
                f"rate must be at least {2 * TOP:,} Hz, the bands reach to {TOP:,} Hz; got "
                f"{self.rate:,}. read_audio and resample bring sound to it."
            )
        if self.n_fft % 2 or not self.hop <= self.n_fft <= self.samples:
            raise ValueError(
                f"expected an even n_fft, hop <= n_fft <= seconds * rate, got n_fft={self.n_fft:,} "
                f"with {self.hop:,} and {self.samples:,}."
            )
        pad = self.padding_value
        if isinstance(pad, bool) or not isinstance(pad, (int, float)) or not abs(pad) <= 1:
            raise ValueError(f"padding_value must lie between -1 and 1, got {pad!r}.")
        self.filters = mel_filters(self.bands, 1 + self.n_fft // 2, self.rate)
        self._filters = self.filters.T.astype("float32", order="C")
        self._window = cosine_window("hann", self.n_fft)

    def __call__(self, audio, rate=None):
        """Return float32 (frames, bands) of one sound, (batch, frames, bands) of several.

        audio: a path, a file, its bytes, or samples from -1 to 1 (samples,); a list of them, or an
        array (batch, samples)   rate: Hz of samples, None: `self.rate`
        """
        if not self.several(audio):
            return self.log_mel(self._heard(audio, rate))
        return np.stack([self.log_mel(sound) for sound in self.sounds(audio, rate)])

    @staticmethod
    def several(audio):
        """Whether these are several sounds."""
        shape = getattr(audio, "shape", ())
        if len(shape) == 2 and shape[0] > shape[1]:
            raise ValueError(
                f"An array of sounds must be (batch, samples), got {tuple(shape)}; if these are "
                "channels, average them: x.mean(channel_axis). Very short sounds go into a list."
            )
        listed = isinstance(audio, (list, tuple)) and not (audio and isinstance(audio[0], Real))
        return listed or len(shape) == 2 or str(getattr(audio, "dtype", "")) == "object"

    def sounds(self, audio, rate=None):
        """Return the checked samples of each sound in a list, or an array (batch, samples)."""
        if not len(audio):
            raise ValueError("There is no audio: the batch is empty.")
        return [self._heard(sound, rate) for sound in audio]

    def _heard(self, audio, rate):
        if isinstance(audio, (*PATH, *BYTES)) or hasattr(audio, "read"):
            return read_audio(audio, self.rate)
        return resample(audio, self.rate if rate is None else rate, self.rate)

    def log_mel(self, samples, whole=False):
        """Return float32 (frames, bands) of checked samples (samples,); of all where `whole`."""
        x = np.full(max(self.samples, whole * len(samples)), self.padding_value)
        x[: len(samples)] = samples[: len(x)]
        x = np.pad(x, self.n_fft // 2, "reflect")
        frames = sliding_window_view(x, self.n_fft)[:: self.hop][:-1]  # the last is dropped
        x = np.empty((len(frames), self.bands), "float32")
        for start in range(0, len(frames), FRAMES):
            some = slice(start, start + FRAMES)
            spectrum = np.fft.rfft(frames[some] * self._window)
            power = spectrum.real**2 + spectrum.imag**2
            x[some] = power.astype("float32") @ self._filters
        x = np.log10(np.maximum(x, np.float32(1e-10)))
        return (np.maximum(x, x.max() - 8) + 4) / 4

    def windows(self, samples, overlap_seconds=0.0):
        """Return a view (windows, seconds * rate) of a long sound (samples,), the last one padded.

        Window i starts at i * (seconds - overlap_seconds).
        """
        x = _sound(samples)
        if not 0 <= overlap_seconds < self.seconds:
            raise ValueError(
                f"overlap_seconds must be from 0 to under {self.seconds}, got {overlap_seconds!r}."
            )
        overlap = min(round(overlap_seconds * self.rate), self.samples - 1)
        step = self.samples - overlap
        count = max(1, -(-(len(x) - overlap) // step))
        padded = np.full((count - 1) * step + self.samples, self.padding_value, "float32")
        padded[: len(x)] = x
        return sliding_window_view(padded, self.samples)[::step]

    # --- presets ---------------------------------------------------------------------------------
    @classmethod
    def load(cls, folder):
        """Read preprocessor_config.json, or its part of processor_config.json."""
        there = [Path(folder, name) for name in (FILE, NESTED) if Path(folder, name).is_file()]
        if not there:
            raise FileNotFoundError(f"{folder} has neither {FILE} nor {NESTED}.")
        path = there[0]
        found = parse_json(path.read_bytes(), str(path))
        found = found.get("feature_extractor") if path.name == NESTED else found
        try:
            return cls(**from_transformers(found))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def config_from_preset(cls, preset):
        """Return the constructor's arguments for a preset."""
        return cls.load(preset.folder).preset_config()

    def preset_config(self):
        """What config.json keeps."""
        return self.get_config()

    def save(self, folder):
        """Write the preprocessor_config.json that transformers reads."""
        content = {theirs: getattr(self, ours) for theirs, ours in NAMES.items()}
        content |= {"n_samples": self.samples, "nb_max_frames": self.frames}
        write_json(Path(folder, FILE), {**FIXED, **content, **UNUSED})


def from_transformers(found):
    """Return the arguments of WhisperFeatures for a preprocessor_config.json of transformers."""
    if not isinstance(found, dict):
        raise ValueError(f"expected the settings of a feature extractor, got {found!r}.")
    known = {*NAMES, *FIXED, *FOLLOWING, *UNUSED}
    if unknown := sorted(found.keys() - known):
        raise ValueError(
            f"WhisperFeatures does not know {', '.join(map(repr, unknown))}; it knows "
            f"{', '.join(sorted(known))}."
        )
    for name, only in FIXED.items():
        if found.get(name, only) != only:
            raise ValueError(f"{name} must be {only!r}, got {found[name]!r}.")
    options = {ours: found[theirs] for theirs, ours in NAMES.items() if theirs in found}
    made = WhisperFeatures(**options)
    for name, wanted in zip(FOLLOWING, (made.samples, made.frames, made.filters)):
        if name in found and not _same(found[name], wanted):
            raise ValueError(f"{name} does not follow from the other settings; remove it.")
    return options


def _same(given, wanted):
    try:
        given = np.asarray(given, "float64")
    except (TypeError, ValueError):
        return False
    return given.shape == np.shape(wanted) and np.allclose(given, wanted, rtol=0, atol=1e-6)
