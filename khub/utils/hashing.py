"""Fingerprints of strings, bit for bit TensorFlow's: FarmHash64, SipHash-2-4, hashed crosses.

FarmHash (Pike and Alakuijala 2014, the portable variant "na"); SipHash (Aumasson and Bernstein
2012, eprint 2012/351). Plain Python over 64-bit integers; `buckets` asks once a distinct string.
"""

from functools import lru_cache

import numpy as np

_MASK = 2**64 - 1
_K0, _K1, _K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F
_CROSS_KEY = 0xDECAFCAFFE  # what TensorFlow starts a cross with


def _rotate(x, bits):
    """Turn a 64-bit number to the right."""
    x &= _MASK
    return (x >> bits | x << 64 - bits) & _MASK


def _mix(x):
    x &= _MASK
    return x ^ x >> 47


def _merge(u, v, factor):
    """Two 64-bit numbers as one."""
    a = _mix((u ^ v) * factor)
    return _mix(((v & _MASK) ^ a) * factor) * factor & _MASK


def _word(text, at, size=8):
    return int.from_bytes(text[at : at + size], "little")


def _block(text, at, a, b):
    """Mix 32 bytes into a pair of seeds."""
    w, x, y, z = (_word(text, at + i) for i in (0, 8, 16, 24))
    a += w
    b = _rotate(b + a + z, 21)
    whole = a + x + y
    return whole + z & _MASK, b + _rotate(whole, 44) + a & _MASK


def _short(text):
    """Up to 16 bytes."""
    size = len(text)
    factor = _K2 + 2 * size
    if size >= 8:
        a, b = _word(text, 0) + _K2, _word(text, size - 8)
        return _merge(_rotate(b, 37) * factor + a, (_rotate(a, 25) + b) * factor, factor)
    if size >= 4:
        return _merge(size + (_word(text, 0, 4) << 3), _word(text, size - 4, 4), factor)
    if size:
        y = text[0] + (text[size >> 1] << 8)
        return _mix((y * _K2 & _MASK) ^ (size + (text[-1] << 2)) * _K0) * _K2 & _MASK
    return _K2


def _medium(text):
    """17 to 64 bytes."""
    size = len(text)
    factor = _K2 + 2 * size
    a, b = _word(text, 0) * (_K1 if size <= 32 else _K2), _word(text, 8)
    c, d = _word(text, size - 8) * factor, _word(text, size - 16) * _K2
    y, z = _rotate(a + b, 43) + _rotate(c, 30) + d, a + _rotate(b + _K2, 18) + c
    if size <= 32:
        return _merge(y & _MASK, z & _MASK, factor)
    z = _merge(y & _MASK, z & _MASK, factor)
    e, f = _word(text, 16) * factor, _word(text, 24)
    g, h = (y + _word(text, size - 32)) * factor, (z + _word(text, size - 24)) * factor
    y, z = _rotate(e + f, 43) + _rotate(g, 30) + h, e + _rotate(f + a, 18) + g
    return _merge(y & _MASK, z & _MASK, factor)


def _round(text, at, x, y, z, v, w, factor, weight):
    """Mix 64 bytes into the state."""
    x = _rotate(x + y + v[0] + _word(text, at + 8), 37) * factor
    y = _rotate(y + v[1] + _word(text, at + 48), 42) * factor
    x = (x ^ w[1] * weight) & _MASK
    y += v[0] * weight + _word(text, at + 40)
    z = _rotate(z + w[0], 33) * factor & _MASK
    v = _block(text, at, v[1] * factor, x + w[0])
    w = _block(text, at + 32, z + w[1], y + _word(text, at + 16))
    return z, y & _MASK, x, v, w


def farmhash64(text):
    """Return the FarmHash fingerprint of bytes, a 64-bit number."""
    size = len(text)
    if size <= 64:
        return _short(text) if size <= 16 else _medium(text)
    y = 81 * _K1 + 113
    x, z, v, w = 81 * _K2 + _word(text, 0), _mix(y * _K2 + 113) * _K2, (0, 0), (0, 0)
    for at in range(0, (size - 1) // 64 * 64, 64):
        x, y, z, v, w = _round(text, at, x, y, z, v, w, _K1, 1)
    factor, left = _K1 + ((z & 0xFF) << 1), size - 1 & 63
    first = v[0] + w[0] + left
    v, w = (first, v[1]), (w[0] + left + first, w[1])
    x, y, z, v, w = _round(text, size - 64, x, y, z, v, w, factor, 9)
    one = _merge(v[0], w[0], factor) + _mix(y) * _K0 + z
    return _merge(one & _MASK, _merge(v[1], w[1], factor) + x & _MASK, factor)


def siphash64(text, key):
    """Return the SipHash-2-4 of bytes under a key of two 64-bit numbers."""
    words = [_word(text, at) for at in range(0, len(text) // 8 * 8, 8)]
    words.append(_word(text, len(words) * 8) | (len(text) & 0xFF) << 56)
    start = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    a, b, c, d = (n ^ key[i % 2] & _MASK for i, n in enumerate(start))
    for word, rounds in [*((word, 2) for word in words), (0, 4)]:
        d ^= word
        if rounds == 4:
            c ^= 0xFF
        for _ in range(rounds):
            a, c = a + b & _MASK, c + d & _MASK
            b, d = _rotate(b, 51) ^ a, _rotate(d, 48) ^ c
            a, c = _rotate(a, 32) + d & _MASK, c + b & _MASK
            b, d = _rotate(b, 47) ^ c, _rotate(d, 43) ^ a
            c = _rotate(c, 32)
        a ^= word
    return a ^ b ^ c ^ d


@lru_cache(100_000)
def _fingerprint(text, key):
    text = text if isinstance(text, bytes) else str(text).encode()
    return farmhash64(text) if key is None else siphash64(text, key)


def buckets(values, count, key=None):
    """Return the bucket of each string or integer.  (...) -> (...) int64

    key: two integers, for SipHash in place of FarmHash
    """
    values = np.asarray(values)
    found = [_fingerprint(value, key) % count for value in values.ravel().tolist()]
    return np.asarray(found, "int64").reshape(values.shape)


@lru_cache(100_000)
def _cross(values):
    factor, result = 0xC6A4A7935BD1E995, _CROSS_KEY
    for value in values:
        value = _fingerprint(value, None) if isinstance(value, (str, bytes)) else value
        result = (result ^ factor ^ _mix(value * factor) * factor) * factor
        result = _mix(_mix(result) * factor)
    return result


def crossed_buckets(columns, count):
    """Return the bucket of each row of several columns of strings or integers.  int64"""
    rows = zip(*(np.ravel(column).tolist() for column in columns), strict=True)
    found = np.asarray([_cross(row) % count for row in rows], "int64")
    return found.reshape(np.shape(columns[0]))
