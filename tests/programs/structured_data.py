"""A table of numbers and categories through a FeatureSpace: who has the illness?"""

import keras
import numpy as np
from keras import layers, ops
from keras.utils import FeatureSpace

keras.utils.set_random_seed(25)
random = np.random.RandomState(0)
ROWS = 400
table = {
    "age": random.uniform(20, 80, ROWS).astype("float32"),
    "pressure": random.normal(130, 15, ROWS).astype("float32"),
    "pain": random.randint(0, 4, ROWS).astype("int32"),
    "thal": random.choice(["normal", "fixed", "reversible"], ROWS),
}
ill = (table["age"] > 50) ^ (table["thal"] == "reversible")
target = ill.astype("float32")[:, None]

space = FeatureSpace(
    features={
        "age": FeatureSpace.float_discretized(num_bins=4),
        "pressure": FeatureSpace.float_normalized(),
        "pain": FeatureSpace.integer_hashed(num_bins=8, output_mode="one_hot"),
        "thal": FeatureSpace.string_categorical(num_oov_indices=0),
    },
    crosses=[FeatureSpace.cross(("age", "thal"), crossing_dim=32)],
    output_mode="concat",
)
try:
    from tensorflow import data

    batches = data.Dataset.from_tensor_slices(table).batch(50)
except ImportError:  # khub takes any iterable of batches
    batches = [table]
space.adapt(batches)
encoded = ops.convert_to_numpy(space(table))
assert encoded.shape[0] == ROWS and encoded.dtype == "float32"
single = {name: column[0] for name, column in table.items()}
np.testing.assert_array_equal(ops.convert_to_numpy(space(single)).ravel(), encoded[0])
bins = [4, 1, 8, 3, 32]  # of age, pressure, pain, thal and the cross, in the order of their names
assert encoded.shape[1] >= sum(bins)

inputs, features = space.get_inputs(), space.get_encoded_features()
assert sorted(inputs) == sorted(table) and features.shape == (None, encoded.shape[1])
assert inputs["pain"].dtype == "int32" and inputs["age"].shape == (None, 1)

# on rows that were encoded before, in the pipeline
hidden = layers.Dense(16, activation="relu")
model = keras.Sequential([keras.Input((encoded.shape[1],)), hidden, layers.Dense(1)])
loss = keras.losses.BinaryCrossentropy(from_logits=True)
accuracy = keras.metrics.BinaryAccuracy(threshold=0.0)
model.compile(keras.optimizers.Adam(0.02), loss, metrics=[accuracy])
history = model.fit(encoded[:300], target[:300], epochs=25, verbose=0).history
assert history["loss"][-1] < 0.3 * history["loss"][0]
assert model.evaluate(encoded[300:], target[300:], verbose=0)[1] > 0.9
