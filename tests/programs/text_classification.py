"""Texts from scratch: a vocabulary of their own, ids, an embedding, a classifier."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(24)
random = np.random.RandomState(0)
GOOD = ["lovely", "warm", "funny", "great", "bright"]
BAD = ["dull", "cold", "slow", "awful", "grey"]
FILLER = ["the", "film", "was", "a", "story", "of", "people", "and", "it", "had", "some"]


def review(good):
    words = [random.choice(FILLER) for _ in range(random.randint(5, 9))]
    for word in random.choice(GOOD if good else BAD, 2):
        words.insert(random.randint(0, len(words)), word)
    return " ".join(words).capitalize() + "!"


labels = random.randint(0, 2, 400)
texts = np.array([review(label) for label in labels])
vectorize = layers.TextVectorization(max_tokens=60, output_sequence_length=14)
vectorize.adapt(texts)
words = vectorize.get_vocabulary()
assert words[:2] == ["", "[UNK]"] and set(GOOD + BAD + FILLER) == set(words[2:])
assert vectorize.vocabulary_size() == len(words) == 2 + 10 + len(FILLER)


def ids(texts):
    return ops.convert_to_numpy(vectorize(np.array(texts)))


some = ids(["The FILM, was: unheard!"])
assert some.shape == (1, 14)
assert [words[i] for i in some[0, :4]] == ["the", "film", "was", "[UNK]"] and not some[0, 4:].any()

inputs = keras.Input((14,), dtype="int32")
x = layers.Embedding(60, 16, mask_zero=True)(inputs)
x = layers.Conv1D(16, 3, padding="same", activation="relu")(x)
x = layers.Dropout(0.2)(layers.GlobalMaxPooling1D()(x))
model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
options = {"validation_split": 0.25, "epochs": 8, "verbose": 0}
history = model.fit(ids(texts), labels[:, None], **options).history
assert history["val_accuracy"][-1] > 0.95
good, bad = model.predict(ids(["Lovely and funny story", "a cold, slow story"]), verbose=0)[:, 0]
assert good > 0.5 > bad

again = layers.TextVectorization(vocabulary=words[2:], output_sequence_length=14)
np.testing.assert_array_equal(ops.convert_to_numpy(again(texts[:20])), ids(texts[:20]))
counts = layers.TextVectorization(vocabulary=["a", "b"], output_mode="count")
assert ops.convert_to_numpy(counts(np.array(["a b a", "c"]))).tolist() == [[0, 2, 1], [1, 0, 0]]
pairs = layers.TextVectorization(ngrams=2, vocabulary=["big dog", "dog"])
assert ops.convert_to_numpy(pairs(np.array(["Big dog"]))).tolist() == [[1, 3, 2]]
