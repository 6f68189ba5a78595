"""Images as Keras' classifiers take them, and their scores as names."""

import numpy as np

from khub import config, dtypes, ops
from khub.backend.windows import channels_first
from khub.choices import choose
from khub.ops.symbolic import KerasTensor

from ..cv.imagenet import classes

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green, blue from 0 to 1
MODES = {  # mode -> divisor; mean and deviation of each channel
    "tf": (127.5, (1.0,) * 3, (1.0,) * 3),
    "torch": (255.0, MEAN, DEVIATION),
    "caffe": (1.0, (103.939, 116.779, 123.68), (1.0,) * 3),  # of blue, green, red
}


def preprocess_input(x, data_format=None, mode="caffe"):
    """Return images from 0 to 255 as a model takes them; arrays stay arrays.

    x: (..., 3), or (..., 3, height, width) channels first
    mode: "tf": from -1 to 1, "torch": normalized by ImageNet's mean and deviation, "caffe": BGR
    less ImageNet's mean
    """
    mode = choose("mode", mode, MODES)
    divisor, mean, deviation = MODES[mode]
    axis = -3 if channels_first(data_format) else -1
    symbolic = isinstance(x, KerasTensor) or ops.is_tensor(x)
    shape = (3, 1, 1) if axis == -3 else (3,)
    mean, deviation = (np.reshape(v, shape).astype("float32") for v in (mean, deviation))
    if not symbolic:
        x = np.asarray(x)
        x = x.astype(config.floatx()) if x.dtype.kind != "f" else x
        x = np.flip(x, axis) if mode == "caffe" else x / x.dtype.type(divisor)
        return ((x - mean) / deviation).astype(x.dtype, copy=False)
    if not dtypes.is_float(dtypes.standardize(x.dtype)):
        x = ops.cast(x, config.floatx())
    x = ops.flip(x, axis) if mode == "caffe" else x / divisor
    return (x - ops.cast(mean, x.dtype)) / ops.cast(deviation, x.dtype)


def preprocessing(mode):
    """Return the `preprocess_input` of a family; mode None: its models take images as they are."""

    def preprocess(x, data_format=None):
        """Return images from 0 to 255 as the models of this module take them."""
        return x if mode is None else preprocess_input(x, data_format, mode)

    preprocess.__name__ = preprocess.__qualname__ = "preprocess_input"
    return preprocess


def decode_predictions(preds, top=5):
    """Return for each row of scores its `top` best: (WordNet id, name, score).

    preds: (batch, 1000)   Raises ValueError for another shape.
    """
    scores = np.asarray(ops.convert_to_numpy(preds) if ops.is_tensor(preds) else preds)
    if scores.ndim != 2 or scores.shape[1] != 1000:
        raise ValueError(
            f"decode_predictions takes scores of ImageNet's classes (batch, 1000), got the shape "
            f"{scores.shape}."
        )
    names = classes()
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(*names[i], float(row[i])) for i in places]
        for row, places in zip(scores, best, strict=True)
    ]
