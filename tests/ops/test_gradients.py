"""Every public op has its gradient compared with finite differences, or says why it has none.

The rows of the table are compared in test_ops.py, with their NumPy lines. The rows here are
functions of arrays, where the table has no smooth line: results with free signs, complex parts,
NaN, functions of functions. Their slope is that of the same function on the host, in float64, whose
values the other tests compare with NumPy, SciPy and Keras.
"""

from functools import partial

import numpy as np
import pytest
from ops.rows_linalg import DEFINITE, GENERAL, TALL, WIDE
from ops.sample import COMPLEX, POSITIVE, SPECIAL, A, B, X, Y, integers, normal, uniform
from ops.test_ops import CASES, compiled, float_arrays, gives

from khub import backend, ops, tree
from khub.backend.host import on_host

# ruff: noqa: E731

NUMBERS = "its result is of integers or truth values"
SHAPES = "its argument is a shape or a number of places"
FUNCTIONS = "it takes functions and gives one: tests/test_transforms.py"
NOT_DIFFERENTIABLE = {
    NUMBERS: """
        all allclose any equal greater greater_equal in_top_k isclose isfinite isin isinf isnan
        isneginf isposinf isreal less less_equal logical_and logical_not logical_or logical_xor
        not_equal signbit argmax argmin argpartition argsort bitwise_and bitwise_invert
        bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor left_shift
        right_shift gcd lcm count_nonzero digitize searchsorted matrix_rank nanargmax nanargmin
        nonzero unravel_index histogram one_hot multi_hot unique bincount""",
    SHAPES: """
        arange bartlett blackman hamming hanning kaiser empty eye identity ones tri zeros ones_like
        zeros_like empty_like""",
    FUNCTIONS: "grad jit value_and_grad vmap",
    "it tells about a tensor": "dtype is_tensor ndim shape shape_of size convert_to_numpy",
    "it gives neighbours among floats, or their bits": "nextafter view",
    "its paths are labels, its scores stand in no loss": "ctc_decode",
    "it is random: tests/parity/test_keras_image.py": "elastic_transform",
}


def symmetric(x):
    return (x + ops.swapaxes(x, -1, -2)) / 2


def parts(z):
    return ops.real(z), ops.imag(z)


def of_complex(function):
    """A function of complex numbers as one of their parts, and its parts."""
    return lambda a, b: parts(function(ops.view_as_complex(ops.stack([a, b], -1))))


def signless(function, *args, **options):
    """Squares do not tell a vector from its opposite."""
    return tree.map_structure(ops.square, function(*args, **options))


def spectrum(x):
    values, vectors = ops.eigh(symmetric(x))
    return values, ops.square(vectors)


def singular(x):
    u, s, vh = ops.svd(x, full_matrices=False)
    return s, ops.square(u), ops.square(vh)


def twice_in_a_loop(x):
    return ops.fori_loop(0, 2, lambda i, y: y * ops.sin(y), x)


def scanned(x):
    def step(carry, row):
        carry = ops.tanh(carry + row)
        return carry, carry * row

    return ops.scan(step, x[0], x)


class Row:
    """A function of arrays; `exact`: the same in NumPy, where the host's own has no float64.

    refused: the framework that has no such gradient, and says so
    """

    def __init__(self, function, *arrays, exact=None, refused=None):
        self.function, self.arrays, self.exact = function, arrays, exact or function
        self.refused = refused


@ops.custom_gradient
def sine(x):
    return ops.sin(x), lambda *args, upstream=None: (args[0] if args else upstream) * ops.cos(x)


R = Row
IMAGE = uniform(0.1, 0.9, 2, 8, 9, 3)
GAPS = np.where(uniform(0, 1, 5, 4, 3) > 0.7, np.nan, X).astype("float32")
GAPS[:, :2], GAPS[:2] = X[:, :2], X[:2]  # no line is of one number: its std has no slope
PLACES = uniform(0.2, 3.8, 2, 30)
TRANSFORM = np.array([[0.9, 0.2, -0.45, -0.1, 1.1, 0.7, 0.0, 0.0]] * 2, "float32")
CORNERS = np.array([[[0, 0], [8, 0], [0, 7], [8, 7]]] * 2, "float32")
MOVED = CORNERS + uniform(0.1, 0.4, 2, 4, 2)
IDS = np.array([0, 2, 2, 0, 1], "int32")
WAVE = normal(2, 24)
ABOVE = integers(0, 2, 5, 4, 3).astype(bool)

NAN = ["nancumprod", "nancumsum", "nanmax", "nanmean", "nanmedian", "nanmin", "nanprod"]
NAN += ["nanstd", "nansum", "nanvar"]

ROWS = {  # op -> (function, arrays), ...
    # --- factors of matrices ---
    "cholesky": [R(lambda x: ops.cholesky(symmetric(x)), DEFINITE)],
    "lstsq": [R(ops.lstsq, TALL, normal(5, 4, 2)), R(ops.lstsq, TALL[0], normal(4))],
    "pinv": [R(ops.pinv, TALL), R(ops.pinv, WIDE)],
    "eig": [
        R(
            lambda x: ops.sum(ops.real(ops.eig(x)[0] ** 3), -1),
            GENERAL,
            exact=lambda x: np.trace(x @ x @ x, axis1=1, axis2=2),
            refused="jax",
        )
    ],
    "eigh": [R(spectrum, DEFINITE)],
    "lu_factor": [R(lambda x: ops.lu_factor(x)[0], GENERAL, refused="tensorflow")],
    "qr": [R(lambda x: signless(ops.qr, x), TALL), R(lambda x: signless(ops.qr, x), GENERAL)],
    "svd": [
        R(singular, TALL),
        R(singular, WIDE),
        R(lambda x: ops.svd(x, compute_uv=False), GENERAL),
    ],
    # --- complex numbers ---
    "view_as_complex": [R(of_complex(lambda z: z), X, Y)],
    "view_as_real": [R(lambda a, b: ops.view_as_real(ops.polar(a, b)), POSITIVE, Y)],
    "polar": [R(lambda a, b: parts(ops.polar(a, b)), POSITIVE, Y)],
    "real": [R(of_complex(lambda z: z * z), X, Y)],
    "imag": [R(of_complex(lambda z: z * z * z), X, Y)],
    "conj": [R(of_complex(lambda z: ops.conj(z) * z * z), X, Y)],
    "angle": [R(lambda a, b: ops.angle(ops.view_as_complex(ops.stack([a, b], -1))), X, Y)],
    "absolute": [R(lambda a, b: ops.absolute(ops.view_as_complex(ops.stack([a, b], -1))), X, Y)],
    "multiply": [R(of_complex(lambda z: ops.multiply(z, COMPLEX)), X, Y)],
    "divide": [R(of_complex(lambda z: ops.divide(COMPLEX, z)), X, Y)],
    "exp": [R(of_complex(ops.exp), X, Y)],
    "matmul": [R(of_complex(lambda z: ops.matmul(z, ops.swapaxes(z, 1, 2))), X, Y)],
    "istft": [
        R(lambda a, b: ops.istft((a, b), 8, 4, 8), normal(2, 7, 5), normal(2, 7, 5)),
        R(lambda a, b: ops.istft((a, b), 8, 4, 8, 20, None), normal(2, 7, 5), normal(2, 7, 5)),
    ],
    "stft": [R(lambda x: ops.stft(x, 8, 4, 8), WAVE)],
    # --- beside NaN and infinity ---
    "nan_to_num": [
        R(lambda x: ops.nan_to_num(x, 1.0, 2.0, 3.0), SPECIAL),
    ],
    **{
        name: [R(getattr(ops, name), GAPS), R(partial(getattr(ops, name), axis=1), GAPS)]
        for name in NAN
    },
    **{
        name: [
            R(partial(getattr(ops, name), q=0.3 * q), GAPS),
            R(partial(getattr(ops, name), q=[0.25 * q, q], axis=1), GAPS),
        ]
        for name, q in dict(nanquantile=1, nanpercentile=100).items()
    },
    "divide_no_nan": [R(lambda x, y: ops.divide_no_nan(x, ops.where(ABOVE, y, 0.0)), X, POSITIVE)],
    # --- segments ---
    **{
        name: [R(partial(getattr(ops, name), segment_ids=IDS, num_segments=3), normal(5, 6))]
        for name in ("segment_max", "segment_min")
    },
    "segment_prod": [R(lambda x: ops.segment_prod(x, IDS, 3), normal(5, 6), refused="jax")],
    # --- making, converting, choosing ---
    "array": [R(lambda x: ops.array(x) ** 2, X)],
    "convert_to_tensor": [R(lambda x: ops.convert_to_tensor(x) ** 2, X)],
    "cast": [R(lambda x: ops.cast(x, "float32") ** 2, X, exact=np.square)],
    "saturate_cast": [R(lambda x: ops.saturate_cast(x, "float32") ** 2, X, exact=np.square)],
    "full": [R(partial(ops.full, (4, 3)), X[0, 0], exact=partial(np.full, (4, 3)))],
    "linspace": [R(partial(ops.linspace, num=4), X[0], Y[0], exact=partial(np.linspace, num=4))],
    "logspace": [R(lambda a, b: ops.logspace(a, b, 4), X[0], Y[0])],
    "where": [R(lambda a, b: ops.where(ABOVE, a, b), X, Y)],
    "stop_gradient": [R(lambda x: ops.stop_gradient(x) * x, X, exact=lambda x: X * x)],
    # --- functions of functions, and those with branches and loops ---
    "einsum": [
        R(lambda a, b: ops.einsum("bij,bjk->bik", a, b), A, B),
        R(lambda a, b: ops.einsum("bij,bjk,bil->lk", a, b, a), A, B),
        R(lambda a: ops.einsum("bii->b", a), GENERAL),
    ],
    "associative_scan": [R(lambda x: ops.associative_scan(lambda a, b: a * b, x, axis=1), X)],
    "checkpoint": [
        R(lambda x: ops.checkpoint(lambda y: ops.sin(y) * y)(x), X, exact=lambda x: np.sin(x) * x)
    ],
    "custom_gradient": [R(sine, X, exact=np.sin)],
    "cond": [
        R(lambda x: ops.cond(x[0, 0, 0] < 9, lambda: x * x, lambda: x), X),
        R(lambda x: ops.cond(x[0, 0, 0] > 9, lambda: x * x, lambda: ops.sin(x)), X),
    ],
    "switch": [R(lambda x: ops.switch(1, [ops.sin, lambda y: y * y, ops.cos], x), X)],
    "while_loop": [
        R(
            lambda x: ops.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * y), (0, x))[1],
            X / 2,
            exact=lambda x: x**8,
            refused="jax",
        )
    ],
    "fori_loop": [R(twice_in_a_loop, X)],
    "map": [R(lambda x: ops.map(lambda row: row * ops.sum(row), x), X)],
    "scan": [R(scanned, X)],
    "vectorized_map": [
        R(
            lambda x: ops.vectorized_map(lambda row: row * ops.sum(row), x),
            X,
            exact=lambda x: x * x.sum((1, 2), keepdims=True),
        )
    ],
    "vectorize": [
        R(
            lambda x: ops.vectorize(lambda a: a * a + ops.sin(a))(x),
            X[0],
            exact=lambda x: x * x + np.sin(x),
        )
    ],
    "jvp": [
        R(
            lambda x: ops.jvp(lambda y: ops.sin(y) * y, (x,), (x,))[1],
            X,
            exact=lambda x: (np.cos(x) * x + np.sin(x)) * x,
        )
    ],
    # --- images ---
    "rgb_to_grayscale": [R(ops.image.rgb_to_grayscale, IMAGE)],
    "rgb_to_hsv": [R(ops.image.rgb_to_hsv, IMAGE)],
    "hsv_to_rgb": [R(ops.image.hsv_to_rgb, IMAGE)],
    "crop_images": [R(lambda x: ops.image.crop_images(x, 1, 2, None, None, 4, 3), IMAGE)],
    "pad_images": [R(lambda x: ops.image.pad_images(x, 1, 2, None, None, 12, 13), IMAGE)],
    "scale_and_translate": [
        R(
            lambda x: ops.image.scale_and_translate(
                x, (2, 10, 5, 3), [1.5, 0.5], [0.5, -1.0], (1, 2), "cubic"
            ),
            IMAGE,
        )
    ],
    "resize": [
        R(partial(ops.image.resize, size=(5, 12), interpolation=method, antialias=True), IMAGE)
        for method in ("nearest", "bilinear", "bicubic", "lanczos3")
    ],
    "extract_patches": [R(lambda x: ops.image.extract_patches(x, 3, 2, padding="same"), IMAGE)],
    "extract_patches_3d": [R(lambda x: ops.image.extract_patches_3d(x, 2), normal(2, 4, 4, 4, 2))],
    "map_coordinates": [
        R(lambda x, p: ops.image.map_coordinates(x, p, 1), normal(5, 5), PLACES),
    ],
    "affine_transform": [R(lambda x: ops.image.affine_transform(x, TRANSFORM), IMAGE)],
    "perspective_transform": [
        R(partial(ops.image.perspective_transform, start_points=CORNERS, end_points=MOVED), IMAGE)
    ],
    "gaussian_blur": [R(ops.image.gaussian_blur, IMAGE)],
    "sobel_edges": [R(ops.image.sobel_edges, IMAGE)],
    "ssim": [
        R(
            lambda a, b: ops.image.ssim(a, b, filter_size=5),
            IMAGE,
            np.clip(0.9 * IMAGE + 0.1 * normal(*IMAGE.shape), 0, 1),
        )
    ],
}


def public_ops():
    """Every function of khub.ops and its namespaces -> the name it was declared by."""
    names = {n: getattr(ops, n) for n in ops.__all__}
    names |= {n: getattr(space, n) for space in (ops.image, ops.linalg) for n in space.__all__}
    return {n: f.__name__ for n, f in names.items() if callable(f)}


def test_every_op_has_a_gradient_or_a_reason():
    table = {
        name
        for name, sample in (case.values for case in CASES)
        if sample.smooth and "float32" in gives(sample, 1) and float_arrays(sample)
    }
    compared = table | ROWS.keys()
    reasons = [name for names in NOT_DIFFERENTIABLE.values() for name in names.split()]
    found = public_ops()
    bare = {n for n, declared in found.items() if not {n, declared} & {*compared, *reasons}}
    assert bare == set()
    assert {n for n in (*ROWS, *reasons) if n not in found} == set()
    assert len(set(reasons)) == len(reasons) and not set(reasons) & ROWS.keys()
    assert len(found) > 330


@pytest.mark.skipif(backend.name == "numpy", reason="NumPy has no gradients")
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=f"{n}-{i}") for n, rows in ROWS.items() for i, row in enumerate(rows)],
)
def test_gradient(row):
    """The slope in a random direction is that of the function in float64 on the host."""
    generator = np.random.default_rng(1)
    direction = [generator.normal(size=x.shape) for x in row.arrays]

    def exact(step):
        moved = [x.astype("float64") + step * d for x, d in zip(row.arrays, direction, strict=True)]
        with on_host(), np.errstate(all="ignore"):
            return [np.asarray(y) for y in tree.flatten(row.exact(*moved))]

    start = exact(0)
    assert {y.dtype for y in start} == {np.dtype("float64")}
    weights = [generator.normal(size=y.shape) for y in start]

    def loss(tensors):
        outputs = tree.flatten(row.function(*tensors))
        pairs = zip(outputs, weights, strict=True)
        return sum(ops.sum(ops.multiply(y, w.astype("float32"))) for y, w in pairs)

    if row.refused == backend.name:
        with pytest.raises((ValueError, NotImplementedError, LookupError)):
            ops.grad(loss)([ops.convert_to_tensor(x) for x in row.arrays])
        return
    gradients = compiled(ops.grad(loss))([ops.convert_to_tensor(x) for x in row.arrays])
    parts = [ops.convert_to_numpy(g) * d for g, d in zip(gradients, direction, strict=True)]
    slope, size = (sum(f(p).sum() for p in parts) for f in (np.asarray, np.abs))
    above, below = (sum(np.sum(y * w) for y, w in zip(exact(s), weights)) for s in (1e-6, -1e-6))
    assert size == 0 or np.isfinite(size)
    assert slope == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=2e-5 * size + 1e-6)
