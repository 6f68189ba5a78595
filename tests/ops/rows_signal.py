"""Rows of Fourier transforms, windows, segments and patterns."""

import math

import numpy as np
from ops.sample import *  # noqa: F403
from ops.sample import S

# ruff: noqa: E731, F405

TWO = ("float32", "float32")
REAL, IMAGINARY = normal(5, 6), normal(5, 6)
PLANES = normal(5, 4, 6), normal(5, 4, 6)
WAVE = normal(5, 40)
IDS = np.array([0, 2, 2, 0, 3], "int32")
STRAY = np.array([0, -1, 2, 7, 2], "int32")


def pair(z):
    return z.real, z.imag


def transform(function):
    return lambda x, *_: pair(function(x[0] + 1j * x[1]))


def short_time(x, length, stride, fft_length, window="hann", center=True):
    if center:
        x = np.pad(x, [(0, 0), (fft_length // 2,) * 2], "reflect")
    shapes = {"hann": (0.5, 0.5), "hamming": (0.54, 0.46), None: (1.0, 0.0)}
    one, two = shapes[window]
    weights = np.zeros(fft_length)
    start = (fft_length - length) // 2
    weights[start : start + length] = one - two * np.cos(2 * np.pi * np.arange(length) / length)
    count = 1 + (x.shape[1] - fft_length) // stride
    frames = [x[:, i * stride : i * stride + fft_length] * weights for i in range(count)]
    return pair(np.fft.rfft(np.stack(frames, 1)))


def spectrum(*options):
    return [p.astype("float32") for p in short_time(WAVE.astype("float64"), *options)]


def segments(reduce, empty):
    def expected(data, ids, count=None, sorted=False):
        count = ids.max() + 1 if count is None else count
        rows = [data[ids == i] for i in range(count)]
        return np.stack([reduce(r) if len(r) else np.full(data.shape[1:], empty) for r in rows])

    return expected


def segment_rows(reduce, empty, least):
    found = segments(reduce, empty)
    return [
        S(found, ROWS, IDS, 4, fixed=True, smooth=reduce is SUM),
        S(found, ROWS, IDS, fixed=None, smooth=False),
        S(found, ROWS, STRAY, 4, fixed=True, smooth=reduce is SUM),
        S(segments(reduce, least), INTS, IDS, 4, fixed=True, gives="int32"),
    ]


SUM = lambda rows: rows.sum(0)
LEAST, MOST = np.iinfo("int32").min, np.iinfo("int32").max
SAMPLES = {
    "_fft": [
        S(lambda x, *_: np.fft.fft(x), COMPLEX, 1, False, gives="complex64", near=1e-5),
        S(lambda x, *_: np.fft.ifft2(x), COMPLEX, 2, True, gives="complex64", near=1e-5),
    ],
    "_rfft": [S(np.fft.rfft, REAL, 7, gives="complex64", smooth=False, near=1e-5)],
    "_irfft": [S(np.fft.irfft, COMPLEX, 4, smooth=False, near=1e-5)],
    "fft": [S(transform(np.fft.fft), [REAL, IMAGINARY], gives=TWO, near=1e-5)],
    "fft2": [S(transform(np.fft.fft2), list(PLANES), gives=TWO, near=1e-5)],
    "ifft2": [S(transform(np.fft.ifft2), list(PLANES), gives=TWO, near=1e-5)],
    "rfft": [
        S(lambda x, n=None: pair(np.fft.rfft(x, n)), REAL, gives=TWO, near=1e-5),
        S(lambda x, n=None: pair(np.fft.rfft(x, n)), REAL, 4, gives=TWO, near=1e-5),
        S(lambda x, n=None: pair(np.fft.rfft(x, n)), REAL, 9, gives=TWO, near=1e-5),
    ],
    "irfft": [
        S(lambda x: np.fft.irfft(x[0] + 1j * x[1]), [REAL, IMAGINARY], near=1e-5),
        S(lambda x, n: np.fft.irfft(x[0] + 1j * x[1], n), [REAL, IMAGINARY], 8, near=1e-5),
    ],
    "extract_sequences": [
        S(
            lambda x, length, stride: np.lib.stride_tricks.sliding_window_view(x, length, -1)[
                ..., ::stride, :
            ],
            WAVE,
            7,
            3,
        )
    ],
    "stft": [
        S(short_time, WAVE, 8, 4, 8, gives=TWO, near=1e-5),
        S(short_time, WAVE, 6, 3, 9, "hamming", gives=TWO, near=1e-5),
        S(short_time, WAVE, 8, 4, 10, None, False, gives=TWO, near=1e-5),
    ],
    "istft": [
        S(lambda x, *_: WAVE, spectrum(8, 4, 8), 8, 4, 8, 40, smooth=False, fixed=True, near=1e-5),
        S(lambda x, *_: WAVE, spectrum(8, 2, 8), 8, 2, 8, smooth=False, fixed=True, near=1e-5),
        S(
            lambda x, *_: WAVE,
            spectrum(8, 4, 8, None),
            8,
            4,
            8,
            40,
            None,
            smooth=False,
            fixed=True,
            near=1e-5,
        ),
    ],
    "segment_sum": segment_rows(SUM, 0, 0),
    "segment_max": segment_rows(lambda rows: rows.max(0), -np.inf, LEAST),
    "segment_min": segment_rows(lambda rows: rows.min(0), np.inf, MOST),
    "segment_prod": segment_rows(lambda rows: rows.prod(0), 1, 1),
    "erfc": [S(np.vectorize(math.erfc), X, near=1e-5), S(np.vectorize(math.erfc), INTS, near=1e-5)],
    "view_as_complex": [
        S(lambda x: x[..., 0] + 1j * x[..., 1], normal(5, 4, 2), gives="complex64", smooth=False)
    ],
    "view_as_real": [S(lambda x: np.stack(pair(x), -1), COMPLEX, smooth=False)],
    "rearrange": [
        S(lambda x, _: x.transpose(2, 0, 1), X, "b h c -> c b h", fixed=None),
        S(lambda x, _: x.reshape(5, 12), X, "b h c -> b (h c)", fixed=None),
        S(
            lambda x, _, h: x.reshape(5, 2, 2, 3).transpose(0, 2, 3, 1),
            X,
            "b (h w) c -> b w c h",
            h=2,
            fixed=None,
        ),
    ],
}
