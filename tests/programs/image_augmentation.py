"""Augmentation inside the model: random in training, absent in inference."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(26)
random = np.random.RandomState(0)


def pictures(count):
    """A bright bar, upright or lying, somewhere."""
    labels, images = random.randint(0, 2, count), np.zeros((count, 12, 12, 3), "float32")
    for image, label in zip(images, labels):
        place = random.randint(2, 10)
        image[(slice(None), place) if label else (place, slice(None))] = 255
    return images, labels


augment = keras.Sequential(
    [
        layers.RandomFlip("horizontal_and_vertical", seed=1),
        layers.RandomTranslation(0.1, 0.1, fill_mode="constant", seed=2),
        layers.RandomContrast(0.2, value_range=(0, 255), seed=3),
    ],
    name="augment",
)
images, labels = pictures(300)
changed = ops.convert_to_numpy(augment(images[:20], training=True))
same = ops.convert_to_numpy(augment(images[:20], training=False))
assert changed.shape == (20, 12, 12, 3)
np.testing.assert_array_equal(same, images[:20])
assert not np.allclose(changed, same)

inputs = keras.Input((12, 12, 3))
x = augment(inputs)
x = layers.Rescaling(1 / 127.5, offset=-1)(x)
x = layers.Conv2D(8, 3, activation="relu")(x)
x = layers.GlobalMaxPooling2D()(layers.AveragePooling2D(2)(x))
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(images, labels, epochs=10, batch_size=50, verbose=0).history
assert history["loss"][-1] < 0.5 * history["loss"][0]
test, answers = pictures(100)
assert model.evaluate(test, answers, verbose=0)[1] > 0.9
once, twice = (model.predict(test[:10], verbose=0) for _ in range(2))
np.testing.assert_array_equal(once, twice)

resized = layers.Resizing(6, 6)(images[:2])
cropped = layers.CenterCrop(8, 8)(images[:2])
assert resized.shape == (2, 6, 6, 3) and cropped.shape == (2, 8, 8, 3)
np.testing.assert_array_equal(ops.convert_to_numpy(cropped), images[:2, 2:10, 2:10])
turned = layers.RandomRotation((0.25, 0.25), fill_mode="constant")(images[:2], training=True)
quarter = ops.convert_to_numpy(turned)
assert any(np.allclose(quarter, np.rot90(images[:2], k, (1, 2)), atol=1) for k in (1, 3))
