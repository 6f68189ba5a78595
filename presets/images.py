"""Images as a network takes them: read, resized, cropped, scaled. On the host, with Pillow.

A preprocessor is called as `preprocessor(x, y=None, sample_weight=None)`, as those of texts are.
x: paths, PIL images or arrays of 0..255 (height, width, 3), as a list or a batch of them.
"""

import math
import os
from pathlib import Path

import numpy as np

from khub import config
from khub.choices import choose
from khub.fields import Choice, Configurable
from khub.training.data import pack_x_y_sample_weight

from .preset import Presettable
from .tensors import parse_json, write_json

FILE = "preprocessor_config.json"
FILTERS = {
    "nearest": 0,
    "lanczos": 1,
    "bilinear": 2,
    "bicubic": 3,
    "box": 4,
    "hamming": 5,
}  # Pillow
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CROP = (0.35, 1.0)  # of the area, and the ratio of sides: what augmentation cuts out
RATIO = (3 / 4, 4 / 3)


def read_image(source):
    """Return an RGB PIL image: turned as its EXIF data says, of an animation the first frame.

    source: a path, a PIL image, or an array of 0..255 (height, width[, 1, 3 or 4])
    Raises FileNotFoundError, or ValueError for what is no image or has no pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, (str, os.PathLike)):
        what = str(source)
        if not Path(source).is_file():
            kind = "is a folder" if Path(source).is_dir() else "does not exist"
            raise FileNotFoundError(f"{what} {kind}; expected the file of an image.")
        try:
            with Image.open(source) as file:
                return _rgb(ImageOps.exif_transpose(file), what)
        except UnidentifiedImageError as error:
            raise ValueError(f"{what} is no image that Pillow can read.") from error
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{what} cannot be read as an image: {error}") from error
    if isinstance(source, Image.Image):
        return _rgb(ImageOps.exif_transpose(source), "the image")
    return Image.fromarray(_pixels(source))


def read_images(sources):
    """Return RGB PIL images of one source or several, a list or an array of four axes.

    sources: as `read_image` has them   Raises ValueError for arrays of 0..1, as well.
    """
    several = isinstance(sources, (list, tuple)) or getattr(sources, "ndim", 0) == 4
    sources = sources if several else [sources]
    for source in sources:
        if getattr(getattr(source, "dtype", None), "kind", "") == "f" and np.size(source):
            low, high = float(np.min(source)), float(np.max(source))
            if not (low >= 0 and 1 < high <= 255 or low == high == 0):
                raise ValueError(
                    f"An image's array must have numbers of 0 to 255, got {low:g} to {high:g}."
                )
    if not len(sources):
        raise ValueError("There is no image.")
    return [read_image(source) for source in sources]


def object_rows(items):
    """Return a list as a 1-D array of objects, which the trainer takes; anything else as it is."""
    if not isinstance(items, (list, tuple)):
        return items
    found = np.empty(len(items), object)
    for i, item in enumerate(items):  # all at once NumPy would look into them
        found[i] = str(item) if isinstance(item, os.PathLike) else item
    return found


def _rgb(image, what):
    """Convert any mode of Pillow; 16 bits become 8."""
    if 0 in image.size:
        raise ValueError(f"{what} has no pixels: its size is {image.size}.")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, "float64")
        if image.mode != "F" and values.max() > 255:
            values = values / 257
        return read_image(np.clip(values, 0, 255).round().astype("uint8"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _pixels(source):
    """Return an array as uint8 (height, width, 3)."""
    x = np.asarray(source)
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[-1] not in (1, 3, 4) or 0 in x.shape or x.dtype.kind not in "uif":
        raise ValueError(
            f"An image must be a path, a PIL image or an array (height, width, 3) of numbers from "
            f"0 to 255, got {type(source).__name__} {x.dtype} of shape {x.shape}."
        )
    if x.dtype == np.uint16:
        x = x / 257
    if x.dtype != np.uint8:
        x = np.clip(x, 0, 255).round().astype("uint8")
    x = x[..., :3]
    return np.broadcast_to(x, (*x.shape[:2], 3))


def _single(x):
    if isinstance(x, np.ndarray):
        return x.dtype != object and x.ndim == 3
    return isinstance(x, (str, os.PathLike)) or hasattr(x, "getexif")


def images_of(x):
    """Return a batch of images whatever it is, or one of them, as something to go through."""
    if _single(x):
        return [x]
    x = x.detach().cpu() if hasattr(x, "detach") else x
    x = x if isinstance(x, (list, tuple)) else np.asarray(x)
    if len(x) == 0:
        raise ValueError("There are no images: x is empty.")
    return x


def image_files(folder):
    """Return (paths, classes as integers, names) of a folder with a folder of images a class.

    Raises ValueError when there is no image.
    """
    folder = Path(folder).expanduser()
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    paths, classes = [], []
    for number, name in enumerate(names):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        paths += map(str, found)
        classes += [number] * len(found)
    if not paths:
        raise ValueError(
            f"{folder} has no images; expected a folder for each class with files of "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    return paths, np.asarray(classes, "int32"), names


class ImagePreprocessor(Presettable, Configurable):
    """Resizes, cuts out the centre, and scales: (x * scale - mean) / std for each colour.

    -> float32 (batch, *image_size, 3), or channels first where `config.image_data_format()` is
    image_size: height and width   resize: what the shorter side (of a pair: height and width) is
    resized to before the centre is cut out; None: image_size   mean, std: of red, green, blue
    channels: "bgr" reverses them   floor: a centre between two pixels is the first one's, as in
    transformers   seed: of the crops and flips that `augmented` draws
    """

    image_size: tuple = (224, 224)
    resize: object = None
    interpolation: Choice(*FILTERS) = "bilinear"
    scale: float = 1 / 255
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    channels: Choice("rgb", "bgr") = "rgb"
    floor: bool = False
    seed: int = 0

    def setup(self):
        size = self.image_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self.mean, self.std = tuple(self.mean), tuple(self.std)
        if len(self.image_size) != 2 or not all(
            isinstance(n, int) and n > 0 for n in self.image_size
        ):
            raise ValueError(f"image_size must be height and width, got {size!r}.")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise ValueError(
                f"mean and std must have a value for each of three colours, std none of 0, got "
                f"{self.mean} and {self.std}."
            )
        self.resize = tuple(self.resize) if isinstance(self.resize, list) else self.resize
        least = self.image_size if isinstance(self.resize, tuple) else (min(self.image_size),)
        given = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        if self.resize is not None and any(a < b for a, b in zip(given, least, strict=True)):
            raise ValueError(f"resize={self.resize} leaves less than image_size={self.image_size}.")
        self._calls = 0

    def is_raw(self, x):
        """Whether the trainer brings x here: always."""
        return True

    def __call__(self, x, y=None, sample_weight=None):
        return pack_x_y_sample_weight(self._batch(x, self.fitted), y, sample_weight)

    def augmented(self, x, y=None, sample_weight=None):
        """As a call, but of each image a random part, half of them mirrored (arXiv:1409.4842)."""
        key = [self.seed, self._calls]
        self._calls += 1
        random = np.random.Generator(np.random.Philox(key=key))
        return pack_x_y_sample_weight(
            self._batch(x, lambda image: self._part(image, random)), y, sample_weight
        )

    def _batch(self, x, fit):
        if _single(x):
            return self._batch([x], fit)[0]
        x = images_of(x)
        whole = isinstance(x, np.ndarray) and x.dtype != object
        if whole and fit == self.fitted and x.shape[1:] == (*self.image_size, 3):
            return self.scaled(x)
        return self.scaled(np.stack([np.asarray(fit(read_image(image))) for image in x]))

    def scaled(self, x):
        """Return pixels (batch, height, width, 3) of 0..255 as the network takes them."""
        factor = np.float32(self.scale) / np.asarray(self.std, "float32")
        x = x.astype("float32") * factor - np.asarray(self.mean, "float32") / np.float32(self.std)
        x = x[..., ::-1] if self.channels == "bgr" else x
        x = np.moveaxis(x, -1, 1) if config.image_data_format() == "channels_first" else x
        return np.ascontiguousarray(x)

    def fitted(self, image):
        """Return an RGB image of `image_size`."""
        height, width = self.image_size
        if self.resize is None:
            return self._resized(image, (width, height))
        size = self.resize[::-1] if isinstance(self.resize, tuple) else self.resize
        if isinstance(size, int):
            short, long = sorted(image.size)
            longer, wide = int(size * long / short), image.size[0] == long
            size = (longer, size) if wide else (size, longer)
        spare = [(n - m) / 2 for n, m in zip(size, (width, height))]
        left, top = map(math.floor if self.floor else round, spare)
        return self._resized(image, size).crop((left, top, left + width, top + height))

    def _resized(self, image, size):
        return image if image.size == size else image.resize(size, FILTERS[self.interpolation])

    def _part(self, image, random):
        wide, high = image.size
        area = wide * high * random.uniform(*CROP)
        ratio = math.exp(random.uniform(*map(math.log, RATIO)))
        width = min(wide, max(1, round(math.sqrt(area * ratio))))
        height = min(high, max(1, round(math.sqrt(area / ratio))))
        left, top = random.integers(wide - width + 1), random.integers(high - height + 1)
        box = (left, top, left + width, top + height)
        part = image.resize(self.image_size[::-1], FILTERS[self.interpolation], box)
        return part.transpose(0) if random.random() < 0.5 else part  # 0: left and right change

    # --- presets ---------------------------------------------------------------------------------
    def preset_config(self):
        """What config.json keeps."""
        return {name: getattr(self, name) for name, *_ in self._fields}

    @classmethod
    def config_from_preset(cls, preset):
        """Return the constructor's arguments for a preset: khub's, timm's or transformers'."""
        if own := preset.own("preprocessor"):
            return own
        if isinstance(found := preset.config.get("pretrained_cfg"), dict):
            return from_timm(found)
        path = preset.folder / FILE
        return from_transformers(parse_json(path.read_bytes(), str(path))) if path.is_file() else {}

    def save(self, folder):
        """Write the preprocessor_config.json that transformers reads."""
        height, width = self.image_size
        kind, size = "BitImageProcessor", {"shortest_edge": self.resize}
        if self.resize is None:
            kind, size = "ViTImageProcessor", {"height": height, "width": width}
        elif isinstance(self.resize, tuple):
            kind, size = "DeiTImageProcessor", dict(zip(("height", "width"), self.resize))
        crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
        content = {
            "image_processor_type": kind,
            "do_convert_rgb": True,
            "do_resize": True,
            "size": size,
            **(crop if self.resize else {"do_center_crop": False}),
            "resample": FILTERS[self.interpolation],
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        write_json(folder / FILE, content)

    def to_timm(self):
        """Return the keys of timm's `pretrained_cfg` that describe these images."""
        size, pair = self.image_size, isinstance(self.resize, tuple)
        resized = min(self.resize) if pair else self.resize or min(size)
        return {
            "input_size": [3, *size],
            "interpolation": self.interpolation,
            "crop_pct": min(size) / resized,
            "crop_mode": "squash" if pair or self.resize is None else "center",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def from_timm(found):
    """Return a preprocessor's arguments for a `pretrained_cfg`."""
    _, height, width = found.get("input_size", (3, 224, 224))
    mode = choose("crop_mode", found.get("crop_mode") or "center", ("center", "squash"))
    resize = tuple(math.floor(n / (found.get("crop_pct") or 0.875)) for n in (height, width))
    if mode == "center":
        resize = min(resize)
    elif resize == (height, width):
        resize = None
    interpolation = found.get("interpolation") or "bilinear"
    return {
        "image_size": (height, width),
        "resize": resize,
        "interpolation": "bilinear" if interpolation == "random" else interpolation,
        "mean": tuple(found.get("mean", (0.485, 0.456, 0.406))),
        "std": tuple(found.get("std", (0.229, 0.224, 0.225))),
    }


def _size(size):
    """Return (height, width) of transformers' size: an integer or a dict of them."""
    if isinstance(size, dict):
        return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2
    return (size, size)


def from_transformers(found):
    """Return a preprocessor's arguments for a preprocessor_config.json of transformers."""
    size, kind = found.get("size", 224), str(found.get("image_processor_type", ""))
    kind = kind or str(found.get("feature_extractor_type", ""))
    by_edge = isinstance(size, dict) and "shortest_edge" in size
    options = {"image_size": _size(size)}
    if found.get("do_center_crop"):
        pair = isinstance(size, dict) and not by_edge
        resize = _size(size) if pair else _size(size)[0]
        options = {"image_size": _size(found.get("crop_size", size)), "resize": resize}
    elif kind.startswith("ConvNext"):  # below 384 it cuts the centre out of a larger image
        edge = _size(size)[0]
        larger = int(edge / (found.get("crop_pct") or 224 / 256))
        options["resize"] = larger if edge < 384 else None
    elif by_edge:
        options["resize"] = size["shortest_edge"]
    names = {number: name for name, number in FILTERS.items()}
    options["floor"] = True
    options["interpolation"] = names.get(found.get("resample", 2), "bilinear")
    options["scale"] = (
        found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    )
    if found.get("do_normalize", True):
        options["mean"] = tuple(found.get("image_mean", (0.5, 0.5, 0.5)))
        options["std"] = tuple(found.get("image_std", (0.5, 0.5, 0.5)))
    if found.get("rescale_offset"):  # from -1 to 1
        options["mean"] = tuple(m + 1 for m in options.get("mean", (0.0,) * 3))
    if kind.startswith("EfficientNet") and found.get("include_top", True):  # divides once more
        options["std"] = tuple(s * s for s in options.get("std", (1.0,) * 3))
    return options
