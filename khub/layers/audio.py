"""Sound as pictures: spectrograms on the mel scale and of short-time Fourier transforms."""

import numpy as np

from khub import config, dtypes, ops
from khub.backend.scope import local
from khub.fields import Choice, DataFormat, PositiveInt
from khub.initializers import STFT
from khub.layers.data_layer import DataLayer
from khub.layers.encoding import _ListLayer
from khub.layers.input_spec import InputSpec


class MelSpectrogram(_ListLayer):
    """The power of a sound in bands of the mel scale, over time, in decibels.

    (..., samples) -> (..., num_mel_bins, time).  sampling_rate, min_freq, max_freq: hertz;
    fft_length, sequence_stride, sequence_length: samples
    """

    fft_length: PositiveInt = 2048
    sequence_stride: PositiveInt = 512
    sequence_length: int = None
    window: object = "hann"
    sampling_rate: PositiveInt = 16000
    num_mel_bins: PositiveInt = 128
    min_freq: float = 20.0
    max_freq: float = None
    power_to_db: bool = True
    top_db: float = 80.0
    mag_exp: float = 2.0
    min_power: float = 1e-10
    ref_power: float = 1.0

    def setup(self):
        self.sequence_length = length = self.sequence_length or self.fft_length
        self.max_freq = high = self.max_freq or int(self.sampling_rate / 2)
        if length > self.fft_length:
            most = f"fft_length={self.fft_length}"
            raise ValueError(f"sequence_length must be at most {most}, got {length}.")
        if not 0 <= self.min_freq < high:
            limits = self.min_freq, high
            raise ValueError(f"min_freq must lie between 0 and max_freq, got {limits}.")

    def call(self, inputs):
        x = ops.cast(inputs, self.compute_dtype)
        sizes = self.sequence_length, self.sequence_stride, self.fft_length
        real, imaginary = ops.stft(ops.cast(x, "float32"), *sizes, window=self.window)
        power = ops.sqrt(ops.square(real) + ops.square(imaginary)) ** self.mag_exp
        bins = self.num_mel_bins, self.fft_length // 2 + 1
        rates = self.sampling_rate, self.min_freq, self.max_freq
        power = ops.matmul(power, self.linear_to_mel_weight_matrix(*bins, *rates))
        power = ops.swapaxes(power, -1, -2)
        if self.power_to_db:
            power = self._decibels(power)
        return ops.cast(power, self.compute_dtype)

    def _decibels(self, power):
        """10 log10(power / ref_power), at most `top_db` below the loudest of all."""
        reference = 10.0 * np.log10(max(self.min_power, abs(self.ref_power)))
        found = ops.log10(ops.maximum(power, self.min_power)) * 10.0 - reference
        return ops.maximum(found, ops.max(found) - self.top_db)

    def linear_to_mel_weight_matrix(
        self,
        num_mel_bins=20,
        num_spectrogram_bins=129,
        sampling_rate=8000,
        lower_edge_hertz=125.0,
        upper_edge_hertz=3800.0,
        dtype="float32",
    ):
        """Return the weights of frequencies in overlapping triangles on the mel scale.

        -> (num_spectrogram_bins, num_mel_bins).  mel = 1127 log(1 + hertz / 700)
        """

        def mel(hertz):
            return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

        places = mel(np.linspace(0.0, sampling_rate / 2.0, num_spectrogram_bins)[1:])[:, None]
        edges = np.linspace(mel(lower_edge_hertz), mel(upper_edge_hertz), num_mel_bins + 2)
        low, middle, high = edges[:-2], edges[1:-1], edges[2:]
        rise, fall = (places - low) / (middle - low), (high - places) / (high - middle)
        weights = np.pad(np.maximum(0.0, np.minimum(rise, fall)), [[1, 0], [0, 0]])
        return ops.convert_to_tensor(weights.astype("float32"), dtype)


class STFTSpectrogram(DataLayer):
    """The spectrogram of each channel, by windows that are convolved with sines and cosines.

    (batch, time, channels) -> (batch, frames, channels * bins), with `expand_dims` (batch, frames,
    bins, channels); or channels first.  bins = fft_length // 2 + 1, twice that in mode "stft".
    Weights: real_kernel, imag_kernel (frame_length, 1, bins)
    """

    mode: Choice("log", "magnitude", "psd", "real", "imag", "angle", "stft") = "log"
    frame_length: PositiveInt = 256
    frame_step: int = None
    fft_length: int = None
    window: object = "hann"
    periodic: bool = False
    scaling: Choice(None, "density", "spectrum") = "density"
    padding: Choice("valid", "same") = "valid"
    expand_dims: bool = False
    data_format: DataFormat = None

    def setup(self):
        width = self.frame_length
        self._step = step = width // 2 if self.frame_step is None else self.frame_step
        self._length = length = self.fft_length or 1 << (width - 1).bit_length()
        if not 0 < step <= width:
            raise ValueError(f"frame_step must lie between 1 and frame_length={width}, got {step}.")
        if length < width:
            raise ValueError(f"fft_length must be at least frame_length={width}, got {length}.")
        self.input_spec = InputSpec(ndim=3)
        named = self.window is None or isinstance(self.window, str)
        if not named and np.shape(self.window) != (width,):
            raise ValueError(
                f"window must hold frame_length={width} weights, got an array of shape "
                f"{np.shape(self.window)}."
            )
        sides = [self.mode] if self.mode in ("real", "imag") else ["real", "imag"]
        options = self.window, self.scaling, self.periodic
        self._waves = {f"{side}_kernel": STFT(side, *options) for side in sides}

    def build(self, input_shape):
        shape = self.frame_length, 1, self._length // 2 + 1
        for name, wave in self._waves.items():
            setattr(self, name, self.add_weight(shape, wave, name=name))

    def call(self, inputs):
        if not dtypes.is_float(dtypes.standardize(inputs.dtype)):
            raise ValueError(f"{self.name} takes floats, got {inputs.dtype}; divide or cast them.")
        first = self.data_format == "channels_first"
        x = ops.cast(inputs, self.compute_dtype)
        x = x if first else ops.swapaxes(x, 1, 2)
        batch, channels, time = ops.shape(x)
        x = ops.reshape(x, (-1, time, 1))
        parts = []
        for name in self._waves:
            kernel = getattr(self, name)
            kernel = ops.cast(kernel.numpy() if local.host else kernel, self.compute_dtype)
            parts.append(ops.conv(x, kernel, self._step, self.padding, "channels_last"))
        y = parts[0] if len(parts) == 1 else self._joined(*parts)
        frames, bins = ops.shape(y)[1:]
        y = ops.reshape(y, (batch, channels, frames, bins))
        if self.expand_dims:
            return y if first else ops.transpose(y, (0, 2, 3, 1))
        y = ops.reshape(ops.swapaxes(y, 2, 3), (batch, channels * bins, frames))
        return y if first else ops.swapaxes(y, 1, 2)

    def _joined(self, real, imaginary):
        if self.mode == "stft":
            return ops.concatenate([real, imaginary], -1)
        if self.mode == "angle":
            return ops.arctan2(imaginary, real)
        power = ops.square(real) + ops.square(imaginary)
        if self.mode == "psd":  # the bins between the ends stand for negative frequencies too
            twice = np.full(self._length // 2 + 1, 2.0)
            twice[[0, -1]] = 1
            return power * ops.convert_to_tensor(twice, self.compute_dtype)
        magnitude = ops.sqrt(ops.maximum(power, config.epsilon()))
        return ops.log(magnitude) if self.mode == "log" else magnitude
