"""Linear algebra and Fourier transforms on TensorFlow tensors."""

import tensorflow as tf

det, inv, eig, eigh = tf.linalg.det, tf.linalg.inv, tf.linalg.eig, tf.linalg.eigh
_solve, _solve_triangular = tf.linalg.solve, tf.linalg.triangular_solve
erfc = tf.math.erfc


def slogdet(x):
    return tuple(tf.linalg.slogdet(x))


def cholesky(x, upper=False):
    lower = tf.linalg.cholesky(x)
    return tf.linalg.adjoint(lower) if upper else lower


def qr(x, mode="reduced"):
    return tuple(tf.linalg.qr(x, full_matrices=mode == "complete"))


def svd(x, full_matrices=True, compute_uv=True):
    if not compute_uv:
        return tf.linalg.svd(x, compute_uv=False)
    s, u, v = tf.linalg.svd(x, full_matrices)
    return u, s, tf.linalg.adjoint(v)


def lu_factor(x):
    factors, order = tf.linalg.lu(x)
    return factors, _exchanges(order)


def _exchanges(order):
    """The row that each row changed places with, from the order that the rows ended in."""
    count = order.shape[-1]
    now = tf.broadcast_to(tf.range(count, dtype=order.dtype), tf.shape(order))
    pivots = []
    for i in range(count):
        wanted = now == order[..., i : i + 1]
        pivots.append(tf.argmax(tf.cast(wanted, tf.int32), -1, tf.int32))
        first = tf.broadcast_to(tf.range(count) == i, tf.shape(order))
        moved = tf.where(wanted, now[..., i : i + 1], now)
        now = tf.where(first, order[..., i : i + 1], moved)
    return tf.stack(pivots, -1)


_FFT = {
    (1, False): tf.signal.fft,
    (1, True): tf.signal.ifft,
    (2, False): tf.signal.fft2d,
    (2, True): tf.signal.ifft2d,
}


def _fft(x, axes, inverse):
    return _FFT[axes, inverse](x)


def _resized(x, length):
    """Cut or pad the last axis; where TensorFlow's transforms do it, their gradient is wrong."""
    x = x[..., :length]
    return tf.pad(x, [(0, 0)] * (x.shape.rank - 1) + [(0, length - tf.shape(x)[-1])])


def _rfft(x, length):
    return tf.signal.rfft(x if length is None else _resized(x, length))


def _irfft(x, length):
    if length is None:
        return tf.signal.irfft(x)
    return tf.signal.irfft(_resized(x, length // 2 + 1), [length])
