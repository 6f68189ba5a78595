"""Writes random weights of Keras' classifiers, and what they make of images: a program of its own.

python keras_applications.py FOLDER NAME...  -> NAME.weights.h5, NAME.npz, for those in LEGACY
NAME.h5, for those in BARE NAME_no_top.h5

Under TensorFlow, whatever the backend under test: Keras compiles nothing there, and has them all.
"""

import os
import sys

import numpy as np

LEAST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
OPTIONS = {"weights": None, "classes": 7, "classifier_activation": None}
# A variant each family: its gradient is compared, and what it gives without a top
BARE = "ConvNeXtTiny DenseNet121 EfficientNetB0 EfficientNetV2B0 InceptionResNetV2 InceptionV3 "
BARE += "MobileNet MobileNetV2 MobileNetV3Small NASNetMobile ResNet50 ResNet50V2 VGG16 Xception"
BARE = BARE.split()
LEGACY = "ConvNeXtSmall DenseNet169 EfficientNetB1 EfficientNetB3 EfficientNetB5 EfficientNetV2B1 "
LEGACY += "EfficientNetV2B3 EfficientNetV2M MobileNetV3Large NASNetLarge ResNet101 ResNet152V2 "
LEGACY += "VGG19"
LEGACY = [*BARE, *LEGACY.split()]


def options(name):
    size = LEAST.get(name, 32)
    return OPTIONS | {"input_shape": (size, size, 3)}


def random_weight(variable, generator):
    """He et al.'s standard deviation for kernels; near one for scales, near zero for the others."""
    shape, last = tuple(variable.shape), variable.path.rpartition("/")[2]
    if len(shape) == 1:
        around_one = last in ("gamma", "moving_variance", "variance")
        if around_one or "layer_scale" in variable.path:
            return generator.uniform(0.5, 1.5, shape)
        return generator.normal(0, 0.1, shape)
    taps = np.prod(shape[:2] if "depthwise" in last else shape[:-1])
    return generator.normal(0, np.sqrt(2 / taps), shape)


def calibrate(model, images, generator):
    """Give batch normalizations about the mean square of what they get: activations stay about 1.

    One for all channels, and means near zero: what subtracts the mean of features that are almost
    the same for all images multiplies rounding errors, more with every layer.
    """
    import keras

    normalize = keras.layers.BatchNormalization.call

    def call(layer, x, **kwargs):
        square = np.mean(np.square(x))
        shape = layer.moving_mean.shape
        layer.moving_variance.assign(square * generator.uniform(0.5, 1.5, shape))
        layer.moving_mean.assign(np.sqrt(square) * generator.normal(0, 0.1, shape))
        return normalize(layer, x, training=False)

    keras.layers.BatchNormalization.call = call
    model(images)
    keras.layers.BatchNormalization.call = normalize


def write_legacy(model, path):
    """As the files that Keras' authors published are."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def off_the_kinks(model, kernel, images, generator):
    """Images and the gradient of a kernel, which rounding does not carry over a kink of a ReLU.

    Whether it does depends on the machine; so images are taken that may be moved a little.
    """
    import tensorflow as tf

    def gradient(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(images, training=False)))
        return tape.gradient(loss, kernel.value).numpy()

    start = images
    for _ in range(40):
        found = gradient(images)
        noise = (generator.normal(1, 3e-6, images.shape).astype("float32") for _ in range(3))
        moved = max(np.abs(gradient(images * part) - found).max() for part in noise)
        if moved < 2e-4 * np.abs(found).max():
            return images, found
        images = generator.permuted(start, axis=1)  # other images of the same pixels
    raise AssertionError(f"{model.name}: of 40 batches of images all lie on a kink.")


def write(folder, name):
    import keras

    keras.utils.clear_session()
    make, generator = getattr(keras.applications, name), np.random.default_rng(3)
    model = make(**options(name))
    for variable in model.weights:
        if variable.name not in ("mean", "variance", "count"):  # the images' own
            variable.assign(random_weight(variable, generator).astype(variable.dtype))
    images = generator.uniform(0, 255, (2, *options(name)["input_shape"])).astype("float32")
    own = ("Rescaling", "Normalization")  # layers of models that take pixels
    if not any(type(layer).__name__ in own for layer in model.layers):
        images = images / 127.5 - 1
    calibrate(model, images, generator)
    found = {"images": images}
    if name in BARE:
        kernel = next(v for v in model.trainable_weights if v.name.endswith("kernel"))
        images, gradient = off_the_kinks(model, kernel, images, generator)
        found = {"images": images, "gradient": gradient, "kernel": kernel.path}
        bare = make(**options(name) | {"include_top": False, "pooling": "avg"})
        bare.set_weights(model.get_weights()[: len(bare.weights)])
        found["features"] = bare(images, training=False).numpy()
        write_legacy(bare, f"{folder}/{name}_no_top.h5")
    found["outputs"] = model(images, training=False).numpy()
    if name in LEGACY:
        write_legacy(model, f"{folder}/{name}.h5")
    model.save_weights(f"{folder}/{name}.weights.h5")
    np.savez(f"{folder}/{name}.part.npz", **found)
    os.replace(f"{folder}/{name}.part.npz", f"{folder}/{name}.npz")  # the last: all is there


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in sys.argv[2:]:
        write(sys.argv[1], name)
