"""Image operations give Keras' numbers."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub import ops  # noqa: E402

RANDOM = np.random.RandomState(0)
X = RANDOM.rand(2, 7, 9, 3).astype("float32")
OTHER = np.clip(X + 0.1 * RANDOM.randn(*X.shape), 0, 1).astype("float32")
BYTES = RANDOM.randint(0, 256, (2, 7, 9, 3)).astype("uint8")
LARGE = RANDOM.rand(2, 14, 16, 2).astype("float32")
VOLUMES = RANDOM.rand(2, 4, 5, 6, 2).astype("float32")
TRANSFORM = np.array([[0.9, 0.2, -0.45, -0.1, 1.1, 0.7, 0.0, 0.0], [1, 0, 1.3, 0, 1, -2, 0, 0]])
TRANSFORM = TRANSFORM.astype("float32")
CORNERS = np.array([[[0, 0], [8, 0], [0, 6], [8, 6]]] * 2, "float32")
MOVED = (CORNERS + RANDOM.rand(2, 4, 2)).astype("float32")
PLACES = RANDOM.uniform(-4, 11, (2, 30)).astype("float32")
PLANE = X[0, :, :, 0]
FILLS = ("constant", "nearest", "wrap", "mirror", "reflect")

CASES = [  # name, arguments, options
    ("rgb_to_grayscale", (X,), {}),
    ("rgb_to_hsv", (X,), {}),
    ("rgb_to_hsv", (np.array([[[[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]]], "float32"),), {}),
    ("hsv_to_rgb", (X,), {}),
    (
        "crop_images",
        (X,),
        {"top_cropping": 1, "left_cropping": 2, "target_height": 4} | {"target_width": 5},
    ),
    (
        "crop_images",
        (X,),
        {"bottom_cropping": 1, "top_cropping": 1, "left_cropping": 0} | {"right_cropping": 3},
    ),
    (
        "pad_images",
        (X,),
        {"top_padding": 1, "left_padding": 2, "target_height": 10} | {"target_width": 13},
    ),
    ("extract_patches", (X, 3), {}),
    ("extract_patches", (X, (2, 3)), {"strides": 1, "padding": "same"}),
    ("extract_patches", (X[0], 3), {"strides": 2}),
    ("extract_patches_3d", (VOLUMES, 2), {}),
    ("extract_patches_3d", (VOLUMES, (2, 1, 3)), {"strides": 1, "padding": "same"}),
    ("sobel_edges", (X,), {}),
    ("ssim", (LARGE, LARGE[::-1]), {}),
    ("ssim", (X, OTHER), {"filter_size": 5, "filter_sigma": 1.0, "max_val": 2.0}),
    ("perspective_transform", (X, CORNERS, MOVED), {}),
    ("perspective_transform", (X, CORNERS, MOVED), {"interpolation": "nearest", "fill_value": 1}),
    ("scale_and_translate", (X, (2, 10, 5, 3), [1.5, 0.5], [0.5, -1.0], (1, 2), "linear"), {}),
    ("scale_and_translate", (X, (2, 4, 12, 3), [0.6, 1.3], [0.5, 0.0], (1, 2), "cubic"), {}),
    (
        "scale_and_translate",
        (X, (2, 4, 12, 3), [0.6, 1.3], [0.5, 0.0], (1, 2), "lanczos3"),
        {"antialias": False},
    ),
]
CASES += [
    ("resize", (X, size), {"interpolation": interpolation, "antialias": antialias})
    for size in ((4, 5), (14, 11))
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")
    for antialias in (False, True)
]
CASES += [
    ("resize", (X, (5, 4)), {"crop_to_aspect_ratio": True}),
    ("resize", (X, (5, 4)), {"pad_to_aspect_ratio": True, "fill_value": 0.5}),
    ("resize", (X[0], (5, 4)), {}),
    ("resize", (BYTES, (5, 4)), {}),
    ("resize", (BYTES, (9, 4)), {"interpolation": "nearest"}),
]
CASES += [
    ("affine_transform", (X, TRANSFORM), {"fill_mode": mode, "interpolation": interpolation})
    for mode in FILLS
    for interpolation in ("nearest", "bilinear")
]
CASES += [
    ("affine_transform", (X[0], TRANSFORM[0]), {"fill_value": 0.3}),
]
CASES += [
    ("map_coordinates", (PLANE, PLACES, order), {"fill_mode": mode, "fill_value": 0.5})
    for mode in FILLS
    for order in (0, 1)
]
FIRST = ["rgb_to_hsv", "crop_images", "extract_patches", "resize", "sobel_edges"]
FIRST += ["affine_transform", "perspective_transform", "pad_images"]


def apart(name, options):
    """Whether Keras on this backend does something else than on JAX."""
    interpolation, mode = options.get("interpolation"), options.get("fill_mode")
    if keras.backend.backend() == "torch":
        return (name == "resize" and interpolation in ("bicubic", "lanczos3", "lanczos5")) or (
            name == "affine_transform" and interpolation == "nearest"
        )
    if keras.backend.backend() == "tensorflow":
        return (
            name == "sobel_edges"
            or (name == "resize" and interpolation == "bicubic" and not options["antialias"])
            or (name == "affine_transform" and mode in ("wrap", "mirror"))
            or (name == "map_coordinates" and mode in ("mirror", "reflect"))
        )
    return False


@pytest.mark.parametrize("name, args, options", CASES, ids=[f"{n}-{o}" for n, _, o in CASES])
def test_values(name, args, options):
    if apart(name, options):
        pytest.skip("Keras' backends differ here; khub has on all what Keras has on JAX")
    wanted = np.asarray(getattr(keras.ops.image, name)(*args, **options))
    found = getattr(ops.image, name)(*args, **options)
    assert ops.dtype(found) == str(wanted.dtype)
    found = ops.convert_to_numpy(found)
    assert found.shape == wanted.shape
    exact = found.dtype != "float32"
    np.testing.assert_allclose(
        found.astype("float64"), wanted.astype("float64"), atol=1 if exact else 2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("name", FIRST)
def test_channels_first(name):
    args, options = next((a, o) for n, a, o in CASES if n == name)
    wanted = ops.convert_to_numpy(getattr(ops.image, name)(*args, **options))
    moved = (np.moveaxis(args[0], -1, 1), *args[1:])
    found = getattr(ops.image, name)(*moved, **options, data_format="channels_first")
    back = np.moveaxis(ops.convert_to_numpy(found), 1, 3)
    np.testing.assert_allclose(back, wanted, atol=1e-5)


def test_unknown_sizes():
    images = khub.KerasTensor((None, None, None, 3), "float32")
    assert ops.image.resize(images, (4, 5)).shape == (None, 4, 5, 3)
    assert ops.image.rgb_to_grayscale(images).shape == (None, None, None, 1)
    assert ops.image.affine_transform(images, TRANSFORM[0]).shape == (None, None, None, 3)


def test_elastic_transform_moves_pixels_smoothly():
    flat = np.full((2, 12, 12, 1), 0.5, "float32")
    ramp = np.broadcast_to(np.linspace(0, 1, 12, dtype="float32")[None, :, None, None], flat.shape)
    found = [
        ops.convert_to_numpy(ops.image.elastic_transform(x, alpha=8.0, sigma=2.0, seed=1))
        for x in (flat, ramp, ramp)
    ]
    np.testing.assert_allclose(found[0], flat, atol=1e-6)
    np.testing.assert_array_equal(found[1], found[2])
    moved = np.abs(found[1] - ramp)
    assert 0 < moved.mean() < 0.2 and not np.allclose(found[1][0], found[1][1])


ERRORS = [
    (lambda: ops.image.resize(X, (2, 2, 2)), "size must be"),
    (lambda: ops.image.resize(X, (2, 2), interpolation="cubicc"), "got 'cubicc'"),
    (lambda: ops.image.resize(PLANE, (2, 2)), "Expected 3 axes, or 4 with a batch"),
    (lambda: ops.image.crop_images(X, top_cropping=1, target_width=3), "Give two of"),
    (
        lambda: ops.image.pad_images(X, top_padding=1, target_height=3, target_width=20),
        "must not be negative",
    ),
    (lambda: ops.image.map_coordinates(PLANE, PLACES, 2), "order must be 0 or 1, got 2"),
    (lambda: ops.image.map_coordinates(PLANE, PLACES[:1], 1), "a row for each axis"),
    (lambda: ops.image.map_coordinates(PLANE, PLACES, 1, "far"), "fill_mode must be one of"),
    (lambda: ops.image.affine_transform(X, TRANSFORM, "cubic"), "nearest or bilinear"),
]


@pytest.mark.parametrize("act, words", ERRORS, ids=[words for _, words in ERRORS])
def test_errors(act, words):
    with pytest.raises(ValueError, match=words):
        act()


@pytest.mark.parametrize(("size", "sigma"), [((3, 3), (1.0, 1.0)), ((5, 3), (2.0, 0.5))])
def test_gaussian_blur_is_the_two_dimensional_filter(size, sigma):
    """Keras 3.15.1 blurs one axis only and mixes the channels; SciPy is the reference here."""
    signal = pytest.importorskip("scipy.signal")
    axes = [np.arange(n) - (n - 1) / 2 for n in size]
    rows, columns = (np.exp(-0.5 * (a / s) ** 2) for a, s in zip(axes, sigma, strict=True))
    kernel = np.outer(rows, columns) / (rows.sum() * columns.sum())
    found = ops.convert_to_numpy(ops.image.gaussian_blur(X, size, sigma))
    for image, blurred in zip(X, found, strict=True):
        for channel in range(X.shape[-1]):
            wanted = signal.correlate2d(image[..., channel], kernel, "same")
            np.testing.assert_allclose(blurred[..., channel], wanted, atol=1e-5)
