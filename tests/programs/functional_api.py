"""A functional model of two inputs and two outputs: tickets get a priority and a department."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(1)
WORDS, TAGS, DEPARTMENTS = 40, 6, 3
random = np.random.RandomState(0)
titles = random.randint(1, WORDS, (512, 10))
tags = random.randint(0, 2, (512, TAGS)).astype("float32")
urgent = (tags[:, 0] + tags[:, 1] > 1).astype("float32")[:, None]
department = (titles[:, 0] * DEPARTMENTS // WORDS).astype("int32")

title = keras.Input((None,), dtype="int32", name="title")
tag = keras.Input((TAGS,), name="tags")
words = layers.Embedding(WORDS, 16)(title)
joined = layers.concatenate([words[:, 0], layers.GlobalMaxPooling1D()(words), tag])
hidden = layers.Dense(32, activation="relu")(joined)
priority = layers.Dense(1, activation="sigmoid", name="priority")(hidden)
scores = layers.Dense(DEPARTMENTS, name="department")(hidden)
model = keras.Model([title, tag], {"priority": priority, "department": scores})
assert model.input_shape == [(None, None), (None, TAGS)]
assert model.output_shape == [(None, DEPARTMENTS), (None, 1)]  # by their names

model.compile(
    keras.optimizers.Adam(0.01),
    loss={
        "priority": "binary_crossentropy",
        "department": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    },
    loss_weights={"priority": 1.0, "department": 0.5},
    metrics={"priority": "accuracy", "department": ["accuracy"]},
)
targets = {"priority": urgent, "department": department}
history = model.fit({"title": titles, "tags": tags}, targets, epochs=12, verbose=0).history
assert history["loss"][-1] < 0.5 * history["loss"][0]
results = model.evaluate([titles, tags], targets, verbose=0, return_dict=True)
assert results["priority_accuracy"] > 0.95 and results["department_accuracy"] > 0.9, results

answers = model.predict([titles[:7], tags[:7]], verbose=0)
assert sorted(answers) == ["department", "priority"]
assert answers["department"].shape == (7, DEPARTMENTS)
assert ((answers["priority"] > 0) & (answers["priority"] < 1)).all()

# a part of the graph is a model of its own, and a model is called like a layer
encoder = keras.Model([title, tag], hidden)
again = keras.Model([title, tag], model.get_layer("priority")(encoder([title, tag])))
np.testing.assert_allclose(
    again.predict([titles[:7], tags[:7]], verbose=0), answers["priority"], atol=1e-5
)
