"""Transfer learning: train a network, freeze it under a new head, then tune all of it slowly."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(7)
random = np.random.RandomState(0)


def bars(count, classes):
    """Noisy pictures with one bright row (the class)."""
    labels = random.randint(0, classes, count)
    images = random.rand(count, 12, 12, 1).astype("float32") * 0.3
    images[np.arange(count), labels + 2] += 0.7
    return images, labels


inputs = keras.Input((12, 12, 1))
x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
x = layers.BatchNormalization(momentum=0.8)(x)
x = layers.ReLU()(x)
x = layers.MaxPooling2D((1, 4))(x)
base = keras.Model(inputs, layers.Flatten()(x), name="base")
pretraining = keras.Sequential([base, layers.Dense(8, activation="softmax")])
pretraining.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
images, labels = bars(512, 8)
assert pretraining.fit(images, labels, epochs=8, verbose=0).history["accuracy"][-1] > 0.9

base.trainable = False
assert base.trainable_weights == [] and len(base.non_trainable_weights) == 5
inputs = keras.Input((12, 12, 1))
outputs = layers.Dense(1)(layers.Dropout(0.1)(base(inputs, training=False)))
model = keras.Model(inputs, outputs)
assert len(model.trainable_weights) == 2
kept = base.get_weights()
loss = keras.losses.BinaryCrossentropy(from_logits=True)
metric = keras.metrics.BinaryAccuracy(threshold=0.0)
model.compile(keras.optimizers.Adam(0.01), loss, metrics=[metric])
images, labels = bars(256, 8)
targets = (labels % 2).astype("float32")[:, None]
history = model.fit(images, targets, epochs=12, verbose=0).history
assert history["binary_accuracy"][-1] > 0.9
for before, after in zip(kept, base.get_weights()):
    np.testing.assert_array_equal(before, after)

base.trainable = True
assert len(model.trainable_weights) == 5
model.compile(keras.optimizers.Adam(1e-4), loss, metrics=[metric])
tuned = model.fit(images, targets, epochs=3, verbose=0).history
assert tuned["loss"][-1] < 1.5 * history["loss"][-1] and tuned["binary_accuracy"][-1] > 0.9
moved = [not np.array_equal(a, b) for a, b in zip(kept, base.get_weights())]
assert all(moved[:3])
