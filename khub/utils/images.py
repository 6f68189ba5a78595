"""Images as files, as Pillow's and as arrays."""

import numpy as np

from khub import config, ops
from khub.choices import choose

MODES = {"grayscale": "L", "rgb": "RGB", "rgba": "RGBA"}


def load_img(
    path, color_mode="rgb", target_size=None, interpolation="nearest", keep_aspect_ratio=False
):
    """Return a file, or an open binary one, as a Pillow image.

    target_size: (height, width), reached by a filter of Pillow: nearest, box, bilinear, hamming,
    bicubic or lanczos; keep_aspect_ratio: what is too much is cut off around the middle
    """
    from PIL import Image, ImageOps

    mode = MODES[choose("color_mode", color_mode, MODES)]
    with Image.open(path) as opened:
        deep = mode == "L" and opened.mode.startswith("I")  # 16 or 32 bits, which "L" would cut
        image = opened.copy() if deep else opened.convert(mode)
    if target_size is None:
        return image
    filters = {each.name.lower(): each for each in Image.Resampling}
    size, kernel = target_size[::-1], filters[choose("interpolation", interpolation, filters)]
    return ImageOps.fit(image, size, kernel) if keep_aspect_ratio else image.resize(size, kernel)


def _is_first(data_format):
    return (data_format or config.image_data_format()) == "channels_first"


def img_to_array(img, data_format=None, dtype=None):
    """Return a Pillow image as an array (height, width, channels), or with the channels first."""
    x = np.asarray(img, dtype or config.floatx())
    x = x[..., None] if x.ndim == 2 else x
    return x.transpose(2, 0, 1) if _is_first(data_format) else x


def array_to_img(x, data_format=None, scale=True, dtype=None):
    """Return an array of one image as a Pillow image.

    scale: stretch the values from the smallest to the largest over 0 to 255
    """
    from PIL import Image

    x = np.asarray(ops.convert_to_numpy(x), dtype or config.floatx())
    x = x.transpose(1, 2, 0) if x.ndim == 3 and _is_first(data_format) else x
    if x.ndim != 3 or x.shape[2] not in (1, 3, 4):
        raise ValueError(f"An image is (height, width, 1, 3 or 4 channels), got {x.shape}.")
    if scale:
        x = x - x.min()
        x = x * (255 / (x.max() or 1))
    deep = x.shape[2] == 1 and x.max() > 255
    return Image.fromarray(x.squeeze(2).astype("int32") if deep else np.squeeze(x.astype("uint8")))


def save_img(path, x, data_format=None, file_format=None, scale=True, **kwargs):
    """Write an array of one image to a file, in the format of its ending or `file_format`."""
    image = array_to_img(x, data_format, scale)
    if image.mode == "RGBA" and (file_format or str(path).rpartition(".")[2]) in ("jpg", "jpeg"):
        image = image.convert("RGB")
    image.save(path, format="jpeg" if file_format == "jpg" else file_format, **kwargs)


def smart_resize(x, size, interpolation="bilinear", data_format="channels_last", **kwargs):
    """Return images in another size (height, width): the middle of the wanted aspect ratio.

    An array gives an array, a tensor a tensor.
    """
    y = ops.image.resize(
        x, size, interpolation, crop_to_aspect_ratio=True, data_format=data_format, **kwargs
    )
    return ops.convert_to_numpy(y) if isinstance(x, np.ndarray) else y
