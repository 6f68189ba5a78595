"""A Transformer block classifies sequences: does a certain token occur?"""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(12)
LENGTH, WORDS, WIDTH = 8, 12, 32


class TokensAndPlaces(layers.Layer):
    def __init__(self, length, words, width, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.places = layers.Embedding(words, width), layers.Embedding(length, width)

    def call(self, inputs):
        return self.tokens(inputs) + self.places(ops.arange(ops.shape(inputs)[-1]))


class Block(layers.Layer):
    def __init__(self, heads, width, hidden, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(heads, width // heads, dropout=rate)
        self.mlp = keras.Sequential([layers.Dense(hidden, activation="gelu"), layers.Dense(width)])
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]

    def call(self, inputs):
        x = self.norms[0](inputs + self.attention(inputs, inputs))
        return self.norms[1](x + self.mlp(x))


random = np.random.RandomState(0)
x = random.randint(0, WORDS, (1500, LENGTH))
y = (x == 3).any(1).astype("int32")
inputs = keras.Input((LENGTH,), dtype="int32")
hidden = TokensAndPlaces(LENGTH, WORDS, WIDTH)(inputs)
hidden = Block(4, WIDTH, 64)(hidden)
hidden = Block(4, WIDTH, 64, name="second")(hidden)
outputs = layers.Dense(2, activation="softmax")(hidden[:, 0])
model = keras.Model(inputs, outputs)
optimizer, loss = keras.optimizers.AdamW(0.003), "sparse_categorical_crossentropy"
model.compile(optimizer, loss, metrics=["accuracy"])
history = model.fit(x[:1200], y[:1200], batch_size=60, epochs=10, verbose=0).history
assert history["loss"][-1] < 0.6 * history["loss"][0]
assert model.evaluate(x[1200:], y[1200:], verbose=0)[1] > 0.85

tensor = ops.convert_to_tensor(random.randn(2, 5, WIDTH).astype("float32"))
attention = layers.MultiHeadAttention(2, 8)
result, scores = attention(tensor, tensor, use_causal_mask=True, return_attention_scores=True)
scores = ops.convert_to_numpy(scores)
assert result.shape == (2, 5, WIDTH) and scores.shape == (2, 2, 5, 5)
np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
assert (scores[..., ~np.tri(5, dtype=bool)] == 0).all()
