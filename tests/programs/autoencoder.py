"""A convolutional autoencoder cleans noisy pictures."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(14)
random = np.random.RandomState(0)
clean = np.zeros((300, 12, 12, 1), "float32")
for image in clean:
    top, left = random.randint(0, 7, 2)
    image[top : top + 5, left : left + 5] = 1
noisy = np.clip(clean + 0.4 * random.randn(*clean.shape), 0, 1).astype("float32")

encoder = keras.Sequential(
    [
        keras.Input((12, 12, 1)),
        layers.Conv2D(8, 3, activation="relu", padding="same"),
        layers.MaxPooling2D(2, padding="same"),
        layers.SeparableConv2D(8, 3, activation="relu", padding="same"),
        layers.AveragePooling2D(2),
    ]
)
decoder = keras.Sequential(
    [
        keras.Input(encoder.output_shape[1:]),
        layers.Conv2DTranspose(8, 3, strides=2, activation="relu", padding="same"),
        layers.UpSampling2D(2),
        layers.Conv2D(8, 3, activation="relu", padding="same"),
        layers.Conv2D(1, 3, activation="sigmoid", padding="same"),
    ]
)
assert encoder.output_shape == (None, 3, 3, 8) and decoder.output_shape == (None, 12, 12, 1)
model = keras.Sequential([keras.Input((12, 12, 1)), encoder, decoder])
model.compile("adam", "binary_crossentropy")
model.optimizer.learning_rate.assign(0.01)
options = {"validation_data": (noisy[240:], clean[240:]), "batch_size": 24, "verbose": 0}
history = model.fit(noisy[:240], clean[:240], epochs=15, **options).history
assert history["val_loss"][-1] < 0.5 * history["val_loss"][0]
restored = model.predict(noisy[240:], verbose=0)
before, after = (np.mean((x - clean[240:]) ** 2) for x in (noisy[240:], restored))
assert after < 0.6 * before, (before, after)
codes = encoder.predict(noisy[:3], verbose=0)
decoded = decoder.predict(codes, verbose=0)
np.testing.assert_allclose(decoded, model.predict(noisy[:3], verbose=0), atol=1e-5)
