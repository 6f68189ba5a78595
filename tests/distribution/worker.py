"""Trains small models and prints what came out as JSON: `python worker.py NAME... `.

RANK, COUNT, ADDRESS: of the processes; none for one process. DEVICES: how many one process shows.
"""

import json
import os
import sys

import numpy as np

if os.environ["KHUB_BACKEND"] == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * int(os.environ.get("DEVICES", 1))
    tf.config.set_logical_device_configuration(cpu, devices)

import khub
from khub import distribution, layers

COUNT, RANK = int(os.environ.get("COUNT", 1)), int(os.environ.get("RANK", 0))
LAYOUTS = {  # of a transformer, after Megatron: arXiv:1909.08053
    ".*(query|key|value)/kernel": (None, "model", None),
    ".*attention_output/kernel": ("model", None, None),
    ".*up/kernel": (None, "model"),
    ".*up/bias": ("model",),
    ".*down/kernel": ("model", None),
    "embedding/.*": (None, "model"),
}
generator = np.random.default_rng(0)
X = generator.integers(0, 20, (22, 6))  # the last of three batches has rows for one of two
Y = generator.integers(0, 3, 22)


def network():
    words = x = khub.Input((6,), dtype="int32", name="words")
    x = layers.Embedding(20, 8, name="embedding")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(16, activation="gelu", name="up")(x)
    x = layers.Dense(8, kernel_regularizer="l2", name="down")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return words, layers.Dense(3, name="classes")(x)


class OwnStep(khub.Model):
    """A custom step with its own loss and metric."""

    def train_step(self, data):
        x, y = data

        def loss():
            return self.compute_loss(x, y, self(x, training=True))

        value, gradients = khub.value_and_grad(loss, self.trainable_variables)()
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": value}


def train(kind=khub.Model, epochs=2, weights=None, optimizer=None, **options):
    khub.utils.set_random_seed(1)
    model = kind(*network())
    model.compile(
        optimizer or khub.optimizers.Adam(0.01, global_clipnorm=1.0),
        khub.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    history = model.fit(X, Y, batch_size=7, epochs=epochs, verbose=0)
    tested = model.evaluate(X, Y, batch_size=7, verbose=0, return_dict=True)
    return {
        "history": history.history,
        "tested": tested,
        "predicted": model.predict(X, batch_size=7, verbose=0).tolist(),
        "weights": {v.path: v.numpy().tolist() for v in model.variables},
    }


def data_parallel():
    return None if ALONE else distribution.DataParallel()


def model_parallel(shape=None):
    if ALONE:
        return None
    count = distribution.get_device_count()
    layouts = distribution.LayoutMap(
        distribution.DeviceMesh(shape or (1, count), ["batch", "model"])
    )
    layouts.update(LAYOUTS)
    return distribution.ModelParallel(layout_map=layouts)


def run(name):
    how, *rest = name.split(":")
    chosen = data_parallel() if how == "data" else model_parallel(*map(json.loads, rest[1:]))
    distribution.set_distribution(chosen)
    options = {"plain": {}, "own": {"kind": OwnStep}, "grouped": {"steps_per_execution": 2}}
    options["sgd"] = {"optimizer": khub.optimizers.SGD(0.1, momentum=0.9)}
    return train(**options[rest[0]])


if __name__ == "__main__":
    ALONE = os.environ.get("ALONE") == "1"
    if COUNT > 1:
        distribution.initialize(os.environ["ADDRESS"], COUNT, RANK)
    print("RESULT" + json.dumps({name: run(name) for name in sys.argv[1:]}))
