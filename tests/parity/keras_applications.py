"""Writes random weights of Keras' classifiers, and what they make of images: a program of its own.

python keras_applications.py FOLDER NAME...  -> NAME.h5 or NAME.weights.h5, NAME.npz

Under TensorFlow, whatever the backend under test: Keras compiles nothing there, and has them all.
"""

import os
import sys

import numpy as np

OTHER_SIZES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
OPTIONS = {"weights": None, "classes": 7, "classifier_activation": None}


def options(name):
    size = OTHER_SIZES.get(name, 64)
    return OPTIONS | {"input_shape": (size, size, 3)}


def random_weight(variable, generator):
    shape, last = tuple(variable.shape), variable.path.rpartition("/")[2]
    if last in ("gamma", "moving_variance", "variance") or not shape:
        return generator.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        return generator.normal(0, 0.1, shape)
    taps = np.prod(shape[:2] if "depthwise" in last else shape[:-1])
    return generator.normal(0, np.sqrt(1.5 / taps), shape)


def write(folder, name):
    import keras
    import tensorflow as tf

    keras.utils.clear_session()
    model = getattr(keras.applications, name)(**options(name))
    generator = np.random.default_rng(3)
    for variable in model.weights:
        if variable.name not in ("mean", "variance", "count"):  # the images' own
            variable.assign(random_weight(variable, generator).astype(variable.dtype))
    legacy = len(name) % 2
    model.save(f"{folder}/{name}.h5") if legacy else model.save_weights(
        f"{folder}/{name}.weights.h5"
    )
    images = generator.uniform(0, 255, (2, *options(name)["input_shape"])).astype("float32")
    if not any(
        "rescaling" in layer.name or layer.name == "normalization" for layer in model.layers
    ):
        images = images / 127.5 - 1
    kernel = next(v for v in model.trainable_weights if v.name.endswith("kernel"))
    with tf.GradientTape() as tape:
        outputs = model(images, training=False)
        loss = tf.reduce_mean(tf.square(outputs))
    np.savez(
        f"{folder}/{name}.npz",
        images=images,
        outputs=outputs.numpy(),
        gradient=tape.gradient(loss, kernel.value).numpy(),
        kernel=kernel.path,
    )


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in sys.argv[2:]:
        write(sys.argv[1], name)
