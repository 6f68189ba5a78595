"""Siamese networks: one encoder, two inputs, a contrastive loss of one's own."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(13)
random = np.random.RandomState(0)
CLASSES, WIDTH = 6, 16
centers = random.randn(CLASSES, WIDTH)


def rows(count):
    labels = random.randint(0, CLASSES, count)
    noise = 0.6 * random.randn(count, WIDTH)
    return (centers[labels] + noise).astype("float32"), labels


def contrastive(y_true, y_pred, margin=1.0):
    """Near for equal classes, `margin` apart for others."""
    near = y_true * ops.square(y_pred)
    far = (1 - y_true) * ops.square(ops.maximum(margin - y_pred, 0))
    return ops.mean(near + far, axis=-1)


encoder = keras.Sequential(
    [
        keras.Input((WIDTH,)),
        layers.Dense(32, activation="relu"),
        layers.Dense(8),
        layers.UnitNormalization(),
    ],
    name="encoder",
)
first, second = keras.Input((WIDTH,), name="first"), keras.Input((WIDTH,), name="second")
difference = layers.Subtract()([encoder(first), encoder(second)])
distance = ops.sqrt(ops.sum(ops.square(difference), axis=-1, keepdims=True) + 1e-9)
model = keras.Model([first, second], distance)
assert len(model.weights) == len(encoder.weights) == 4

a, of_a = rows(3000)
partner = random.permutation(3000)
partner[:1500] = [random.choice(np.flatnonzero(of_a == label)) for label in of_a[:1500]]
b, same = a[partner], (of_a == of_a[partner]).astype("float32")[:, None]
model.compile("adam", contrastive)
history = model.fit([a, b], same, batch_size=100, epochs=8, verbose=0).history
assert history["loss"][-1] < 0.3 * history["loss"][0]

x, labels = rows(300)
embedded = encoder.predict(x, verbose=0)
np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-4)
likeness = embedded @ embedded.T - 2 * np.eye(300)
assert (labels[likeness.argmax(1)] == labels).mean() > 0.9
