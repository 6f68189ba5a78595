"""A convolutional network on handwritten digits, from the four files of the MNIST page.

python examples/mnist_cnn.py FOLDER    # *-images-idx3-ubyte and *-labels-idx1-ubyte, .gz or not
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

import khub
from khub import layers


def read_idx(path):
    """Array of an IDX file: two zero bytes, type 8 (uint8), rank, sizes, values."""
    data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes.")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, 4)
    return np.frombuffer(data, "uint8", offset=4 + 4 * rank).reshape(shape)


def read_digits(folder):
    """-> x: float32 (n, 28, 28, 1) from 0 to 1, y: int32 (n,), of all pairs of files in `folder`"""
    images = sorted(folder.glob("*-images-idx3-ubyte*"))
    if not images:
        raise SystemExit(f"{folder} has no *-images-idx3-ubyte files.")
    labels = [path.with_name(path.name.replace("images-idx3", "labels-idx1")) for path in images]
    x = np.concatenate([read_idx(path) for path in images])[..., None]
    return x.astype("float32") / 255, np.concatenate([read_idx(p) for p in labels]).astype("int32")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args(argv)
    x, y = read_digits(options.folder)
    khub.utils.set_random_seed(0)
    model = khub.Sequential([khub.Input((28, 28, 1))])
    for filters in (16, 32):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(10))
    loss = khub.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    model.summary()
    model.fit(x, y, batch_size=64, epochs=options.epochs, validation_split=0.1)
    print(f"digits: {model.predict(x[-8:], verbose=0).argmax(-1)}, true: {y[-8:]}")


if __name__ == "__main__":
    main()
