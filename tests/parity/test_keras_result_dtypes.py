"""The dtype that every op gives for every dtype, and for every pair of them, is Keras'.

Keras' own calls decide, not its symbolic rules, which differ from them here and there. On JAX both
libraries are traced, for a call compiles. What Keras refuses, khub may give.
"""

import os

import numpy as np
import pytest

BACKEND = os.environ["KHUB_BACKEND"]
if BACKEND == "numpy":  # Keras is on JAX in this process
    pytest.skip("test_result_dtypes.py holds NumPy to the others", allow_module_level=True)
keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub import dtypes  # noqa: E402

KINDS = ["bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64"]
KINDS += ["float16", "bfloat16", "float32", "float64"]
if BACKEND == "jax":  # 64 bits are off: they are the 32-bit dtypes, by another name
    KINDS = [kind for kind in KINDS if not kind.endswith("64")]
if BACKEND == "torch":  # Keras makes them int32, khub keeps them: docs/deviations.md
    KINDS = [kind for kind in KINDS if kind not in ("uint16", "uint32")]
NUMBERS = {"int": 2, "float": 2.0}  # of Python, which are weak
IMAGE, VECTOR = (1, 4, 4, 4), (3,)
VALUES = {"unique", "nonzero", "bincount"}  # ops whose shapes depend on values cannot be traced

ONE = {  # op -> the arguments after the tensor; all the names of a line have the same
    """abs absolute all amax amin angle any arccos arccosh arcsin arcsinh arctan arctanh argmax
    argmin argsort array average bitwise_invert bitwise_not cbrt ceil celu conj conjugate
    copy corrcoef cos cosh count_nonzero cumprod cumsum deg2rad diag diagflat diagonal diff elu
    empty_like erf erfc exp exp2 expm1 fabs flip fliplr flipud floor gelu glu hard_shrink
    hard_sigmoid hard_silu hard_swish hard_tanh i0 imag isfinite isinf isnan isneginf
    isposinf isreal leaky_relu log log10 log1p log2 log_sigmoid log_softmax logical_not logsumexp
    max mean median min nan_to_num nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmedian
    nanmin nanprod nanstd nansum nanvar negative normalize ones_like prod ptp rad2deg ravel
    real reciprocal relu relu6 rms_normalization rot90 round rsqrt selu sigmoid sign signbit silu
    sin sinc sinh soft_shrink softmax softplus softsign sort sparse_plus sparse_sigmoid sparsemax
    sqrt square squareplus squeeze std stop_gradient sum swish tan tanh tanh_shrink trace
    transpose trapezoid tril triu trunc unique var zeros_like layer_normalization
    convert_to_tensor""": (),
    """cholesky det inv logdet slogdet norm pinv qr svd eigh lu_factor matrix_rank
    cholesky_inverse""": (),
    "argpartition top_k expand_dims repeat roll tile array_split split vsplit hsplit": (1,),
    "full_like": (2,),
    "moveaxis swapaxes": (0, 1),
    "clip": (0, 1),
    "threshold": (0, 1),
    "reshape": ((9,),),
    "broadcast_to": ((2, 3, 3),),
    "pad": (((1, 1), (0, 0)),),
    "quantile nanquantile": (0.5,),
    "percentile nanpercentile": (50,),
    "moments": ((0,),),
    "extract_sequences": (2, 1),
    "rearrange": ("a b -> b a",),
    "slice": ((0, 0), (2, 2)),
    "get_item": (0,),
    "histogram": (),
    "rfft": (),
    "stft": (2, 1, 2),
    "unstack": (),
    "take": ([0, 1],),
}
SPECIAL_ONE = {  # op -> (shapes, function)
    "adaptive_average_pool adaptive_max_pool": (IMAGE, (2,)),
    "average_pool max_pool": (IMAGE, (2, 2)),
    "depth_to_space space_to_depth": (IMAGE, (2,)),
    "unfold": (IMAGE, (2,)),
    "dsplit": (IMAGE, (2,)),
    "vander bincount erfinv": (VECTOR, ()),
    "one_hot multi_hot": (VECTOR, (3,)),
    "unravel_index": (VECTOR, ((2, 3),)),
    "view_as_complex": ((3, 2), ()),
}
SAME = {  # ops of several tensors which have one dtype: shapes, then arguments
    "conv": ([IMAGE, (2, 2, 4, 4)], ()),
    "conv_transpose": ([IMAGE, (2, 2, 4, 4)], ()),
    "depthwise_conv": ([IMAGE, (2, 2, 4, 1)], ()),
    "separable_conv": ([IMAGE, (2, 2, 4, 1), (1, 1, 4, 2)], ()),
    "batch_normalization": ([(3, 3), VECTOR, VECTOR], (-1,)),
    "dot_product_attention": ([(1, 2, 2, 4)] * 3, ()),
    "binary_crossentropy categorical_crossentropy": ([(3, 2)] * 2, ()),
    "solve solve_triangular lstsq": ([(3, 3)] * 2, ()),
    "cdist": ([(3, 3)] * 2, ()),
    "polar": ([(3, 3)] * 2, ()),
}
TWO = """add append arctan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift
    bitwise_xor cross divide divide_no_nan dot equal floor_divide fmax fmin fmod gcd greater
    greater_equal heaviside hypot inner isclose isin kron lcm ldexp left_shift less less_equal
    logaddexp logaddexp2 logical_and logical_or logical_xor matmul maximum minimum mod multiply
    nextafter not_equal outer power right_shift subtract tensordot true_divide vdot correlate
    digitize searchsorted linspace logspace geomspace"""
NUMBERS_TOO = "add subtract multiply divide power mod floor_divide maximum minimum"
VECTORS = {"vdot", "correlate", "digitize", "searchsorted"}
LISTS = ["concatenate", "stack", "hstack", "vstack", "dstack"]


NARROWED = {"uint32": "int32"} if BACKEND == "torch" else {}
NARROWED |= {"int64": "int32", "float64": "float32", "uint64": "uint32", "complex128": "complex64"}


def narrow(name):
    """Keras has 64-bit results on TensorFlow alone: docs/deviations.md."""
    return name if BACKEND == "tensorflow" else NARROWED.get(name, name)


def given(space, shape, kind):
    values = np.ones(shape) + (2 * np.eye(3) if shape == (3, 3) else 0)  # positive definite
    return space.ops.cast(values, kind)


def result(space, call, shapes, kinds):
    """Return the dtypes that a call gives, or the error."""
    tensors = [NUMBERS.get(k, (s, k)) for s, k in zip(shapes, kinds, strict=True)]
    try:
        if BACKEND == "jax" and call.__name__ not in VALUES:
            import jax

            at = [i for i, x in enumerate(tensors) if isinstance(x, tuple)]
            structs = [jax.ShapeDtypeStruct(*tensors[i]) for i in at]

            def traced(*given):
                places = dict(zip(at, given, strict=True))
                return call(*(places.get(i, x) for i, x in enumerate(tensors)))

            found = jax.eval_shape(traced, *structs)
        else:
            found = call(*(given(space, *x) if isinstance(x, tuple) else x for x in tensors))
        found = [x for x in khub.tree.flatten(found) if hasattr(x, "dtype")]
        return tuple(narrow(dtypes.standardize(x.dtype)) for x in found)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"


HALF = ("float16", "bfloat16")
FACTORS = """cholesky det inv logdet slogdet pinv qr svd eigh lu_factor cholesky_inverse solve
    solve_triangular lstsq"""
ACTIVATIONS = """elu gelu glu hard_shrink hard_tanh leaky_relu log_sigmoid log_softmax selu sigmoid
    silu soft_shrink softmax softplus sparse_plus sparse_sigmoid squareplus swish tanh_shrink relu
    threshold"""


def whole(kinds):
    return not any("float" in kind for kind in kinds)


def halves(kinds):
    return any(kind in HALF for kind in kinds)


def truths(kinds):
    return set(kinds) == {"bool"}


DIFFERENT = [  # reason, as docs/deviations.md has it; the dtypes it is about; backend -> ops
    (
        "functions of real numbers make floats of integers",
        whole,
        {
            "numpy": f"{ACTIVATIONS} erf reciprocal rsqrt rfft heaviside hypot round",
            "torch": "hard_tanh average_pool heaviside",
            "jax": "hard_tanh",
            "tensorflow": "",
        },
    ),
    (
        "integers have no normal form: refused, or kept as they are",
        whole,
        {
            "numpy": "moments",
            "torch": "rms_normalization layer_normalization",
            "jax": "moments relu6",
            "tensorflow": "rms_normalization layer_normalization dot_product_attention",
        },
    ),
    (
        "arithmetic counts truth values in int32; conj, round and relu6 leave them",
        truths,
        {"numpy": "floor_divide power conj conjugate unravel_index relu6"},
    ),
    ("truth values are not pooled", truths, {"numpy": "max_pool", "jax": "max_pool"}),
    (
        "histogram counts in int32",
        lambda kinds: True,
        dict.fromkeys(("numpy", "torch", "jax", "tensorflow"), "histogram"),
    ),
    (
        "mod has weak Python numbers, as every other op",
        lambda kinds: bool(NUMBERS.keys() & {*kinds}),
        dict.fromkeys(("numpy", "tensorflow"), "mod"),
    ),
    (
        "products of int8 are int8, as every other dtype's are its own",
        lambda kinds: set(kinds) == {"int8"},
        dict.fromkeys(("numpy", "torch", "jax", "tensorflow"), "matmul"),
    ),
    (
        "linspace makes floatx of tensors, unless it is told a dtype",
        lambda kinds: True,
        dict.fromkeys(("numpy", "torch", "jax", "tensorflow"), "linspace"),
    ),
    (
        "floats of 16 bits have factors and transforms in 32, and keep 16 elsewhere",
        halves,
        {
            "numpy": """rfft i0 logsumexp sparsemax multi_hot batch_normalization geomspace
                binary_crossentropy categorical_crossentropy""",
            "jax": FACTORS,
            "tensorflow": "qr inv geomspace",
        },
    ),
    (
        "int64 makes floatx where a float is needed",
        lambda kinds: whole(kinds),
        {"tensorflow": "cbrt corrcoef deg2rad i0 rad2deg heaviside hypot correlate"},
    ),
    (
        "float64 stays float64",
        lambda kinds: "float64" in kinds,
        {"tensorflow": "view_as_complex geomspace"},
    ),
]
PAIRS = [(a, b) for i, a in enumerate(KINDS) for b in KINDS[i:]]
WEAK = [(a, b) for n in NUMBERS for k in KINDS for a, b in ((n, k), (k, n))]


def function(space, name, more, of_list):
    op = getattr(space.ops, name)

    def call(*xs):
        return op(list(xs), *more) if of_list else op(*xs, *more)

    call.__name__ = name
    return call


def cases():
    """Each op -> (shapes, further arguments, tuples of dtypes, whether it takes a list)."""
    for names, more in ONE.items():
        for name in names.split():
            shape = {"glu": (3, 4), "histogram": (9,)}.get(name, (3, 3))
            yield name, ([shape], more, [(kind,) for kind in KINDS], False)
    for names, (shape, more) in SPECIAL_ONE.items():
        for name in names.split():
            yield name, ([shape], more, [(kind,) for kind in KINDS], False)
    for names, (shapes, more) in SAME.items():
        for name in names.split():
            yield name, (shapes, more, [(kind,) * len(shapes) for kind in KINDS], False)
    for name in TWO.split():
        pairs = [*PAIRS, *(WEAK if name in NUMBERS_TOO.split() else ())]
        yield name, ([VECTOR if name in VECTORS else (3, 3)] * 2, (), pairs, False)
    for name in LISTS:
        yield name, ([(3, 3)] * 2, (), PAIRS, True)


CASES = dict(cases())


def allowed(name, kinds):
    return any(name in names.get(BACKEND, "").split() and of(kinds) for _, of, names in DIFFERENT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_result_dtype(name):
    shapes, more, tried, of_list = CASES[name]
    compared, wrong, excused = 0, [], 0
    for kinds in tried:
        with np.errstate(all="ignore"):
            theirs = result(keras, function(keras, name, more, of_list), shapes, kinds)
            if isinstance(theirs, str):
                continue
            ours = result(khub, function(khub, name, more, of_list), shapes, kinds)
        compared += 1
        if ours != theirs and allowed(name, kinds):
            excused += 1
        elif ours != theirs:
            wrong.append((kinds, ours, theirs))
    assert compared or (BACKEND, name) == ("torch", "imag"), "Keras refuses every dtype"
    assert wrong == []
    listed = any(name in names.get(BACKEND, "").split() for _, _, names in DIFFERENT)
    assert bool(excused) == listed, "the table of differences is not right"


TAKE_NOTHING = """arange bartlett blackman empty eye full hamming hanning identity kaiser ones tri
    zeros"""
FUNCTIONS = """associative_scan cond custom_gradient fori_loop jvp map scan switch vectorize
    vectorized_map while_loop"""
ABOUT = "cast convert_to_numpy dtype is_tensor ndim saturate_cast shape size view allclose"
OF_SORTS = """batch_normalization binary_crossentropy ctc_decode ctc_loss einsum eig fft fft2 fold
    ifft2 in_top_k irfft istft meshgrid nonzero psnr scatter scatter_update segment_max segment_min
    segment_prod segment_sum select slice_update sparse_categorical_crossentropy
    take_along_axis view_as_real where"""  # operands of several sorts: tests/ops has their dtypes


def test_every_op_is_here():
    apart = {n for names in (TAKE_NOTHING, FUNCTIONS, ABOUT, OF_SORTS) for n in names.split()}
    public = {
        n for n in dir(keras.ops) if not n.startswith("_") and callable(getattr(keras.ops, n))
    }
    assert public - CASES.keys() - apart == set()
