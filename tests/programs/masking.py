"""Padded sequences: the mask of an Embedding reaches every layer that needs it."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(5)
raw = [[7, 1, 4], [2, 5], [9, 9, 1, 3, 8]]
padded = keras.utils.pad_sequences(raw, padding="post")
assert padded.tolist() == [[7, 1, 4, 0, 0], [2, 5, 0, 0, 0], [9, 9, 1, 3, 8]]
assert keras.utils.pad_sequences(raw, maxlen=2, truncating="pre").tolist()[2] == [3, 8]

embedding = layers.Embedding(10, 6, mask_zero=True)
mask = embedding.compute_mask(ops.convert_to_tensor(padded))
assert ops.convert_to_numpy(mask).tolist() == (padded != 0).tolist()

inputs = keras.Input((None,), dtype="int32")
x = embedding(inputs)
x = layers.Dropout(0.3)(x)
sequences = layers.LSTM(4, return_sequences=True)(x)
pooled = layers.GlobalAveragePooling1D()(sequences)
model = keras.Model(inputs, [layers.GRU(3)(sequences), pooled])
together = model.predict(padded, verbose=0)
for i, row in enumerate(raw):  # padding changes nothing
    alone = model.predict(np.array([row]), verbose=0)
    for one, other in zip(alone, together):
        np.testing.assert_allclose(one[0], other[i], atol=1e-5)

# steps that are all zero are masked out; a mask can be given by hand
signal = np.random.RandomState(0).randn(2, 6, 3).astype("float32")
signal[:, 4:] = 0
masking, lstm = layers.Masking(0.0), layers.LSTM(5)
by_layer = ops.convert_to_numpy(lstm(masking(signal)))
by_hand = ops.convert_to_numpy(lstm(signal, mask=ops.convert_to_tensor(signal.any(-1))))
short = ops.convert_to_numpy(lstm(signal[:, :4]))
np.testing.assert_allclose(by_layer, by_hand, atol=1e-6)
np.testing.assert_allclose(by_layer, short, atol=1e-6)


class Last(layers.Layer):
    """The last step that is not masked."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs, mask=None):
        return None

    def call(self, inputs, mask=None):
        last = ops.sum(ops.cast(mask, "int32"), axis=1) - 1
        return ops.take_along_axis(inputs, last[:, None, None], axis=1)[:, 0]


last = keras.Sequential([layers.Masking(), Last()])(signal)
np.testing.assert_allclose(ops.convert_to_numpy(last), signal[:, 3])
