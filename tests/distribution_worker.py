"""Trains small models, alone or in one of several processes; prints what came out as JSON.

`python distribution_worker.py JOB...` with RANK, COUNT, ADDRESS of the processes, FOLDER for files
and DEVICES, the number of TensorFlow's.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

LAYOUTS = {  # of a transformer, after Megatron: arXiv:1909.08053
    "embedding/.*": (None, "model"),
    ".*up/kernel": (None, "model"),
    ".*up/bias": ("model",),
    ".*down/kernel": ("model", None),
}
HEADS = {
    ".*(query|key|value)/kernel": (None, "model", None),
    ".*attention_output/kernel": ("model", None, None),
}
generator = np.random.default_rng(0)
X = generator.integers(0, 20, (17, 6))
Y = generator.integers(0, 3, 17)  # the last of three batches of 8 has a row for one of two


def network():
    from khub import Input, layers

    words = x = Input((6,), dtype="int32", name="words")
    x = layers.Embedding(20, 8, name="embedding")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(16, activation="gelu", name="up")(x)
    x = layers.Dense(8, kernel_regularizer="l2", name="down")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return words, layers.Dense(3, name="classes")(x)


def plain():
    import khub

    return khub.Model(*network())


def own():
    """A model with a step of its own that returns a loss as it is."""
    import khub

    class OwnStep(khub.Model):
        def train_step(self, data):
            x, y = data

            def loss():
                return self.compute_loss(x, y, self(x, training=True))

            value, gradients = khub.value_and_grad(loss, self.trainable_variables)()
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": value}

    return OwnStep(*network())


def compiled(make):
    import khub

    khub.utils.set_random_seed(1)
    model = make()
    model.compile(
        khub.optimizers.Adam(0.01, global_clipnorm=1.0),
        khub.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=2 if make is own else 1,
    )
    return model


def train(model, epochs, rows=16, callbacks=None):
    history = model.fit(
        X[:rows],
        Y[:rows],
        8,
        epochs,
        0,
        callbacks,
        shuffle=rows > 16,  # resumed ones draw no seed
    )
    return history.history


def results(make):
    model = compiled(make)
    history = train(model, 2, rows=17)
    return {
        "history": history,
        "tested": model.evaluate(X[:16], Y[:16], batch_size=8, verbose=0, return_dict=True),
        "predicted": model.predict(X[:8], verbose=0).tolist(),
        "weights": weights(model),
        "split": sum(map(is_split, [*model.variables, *model.optimizer.variables])),
    }


def is_split(variable):
    storage = variable.materialize()
    sharding = getattr(storage, "sharding", None)
    parts = sharding is not None and not sharding.is_fully_replicated
    return parts or type(storage).__name__ == "DTensor"


def weights(model):
    return {v.path: v.numpy().tolist() for v in model.variables}


def resumed(folder):
    """Train for three epochs; for one, and in a new model for two more: both must be the same."""
    import khub

    whole, part = compiled(plain), compiled(plain)
    train(whole, 3)
    train(part, 1)
    part.save(folder / "part.keras")
    again = khub.saving.load_model(folder / "part.keras")
    train(again, 2)
    again.save_weights(folder / "again.weights.h5")
    return {"whole": weights(whole), "again": weights(again)}


def distributed(how):
    """Return "data", or "model2": split over two devices, batches over the others."""
    from khub import distribution

    if how == "data":
        return distribution.DataParallel()
    parts, count = int(how.removeprefix("model")), distribution.get_device_count()
    mesh = distribution.DeviceMesh((count // parts, parts), ["batch", "model"])
    layouts = distribution.LayoutMap(mesh)
    layouts.update(LAYOUTS | (HEADS if parts == 2 else {}))
    return distribution.ModelParallel(layout_map=layouts)


class Dies:
    """Ends its process without a word in the second batch."""

    def __new__(cls):
        import khub

        class Callback(khub.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if batch == 1:
                    os._exit(1)

        return Callback()


def main(jobs):
    if os.environ["KHUB_BACKEND"] == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * int(os.environ["DEVICES"])
        tf.config.set_logical_device_configuration(cpu, devices)
    from khub import distribution

    count, rank = int(os.environ["COUNT"]), int(os.environ["RANK"])
    if count > 1:
        distribution.initialize(os.environ["ADDRESS"], count, rank)
    found = {}
    for job in jobs:
        how, what = job.split(":")
        distribution.set_distribution(distributed(how))
        if what == "dies":
            train(compiled(plain), 50, callbacks=[Dies()] if rank else None)
        elif what == "resumed":
            found[job] = resumed(Path(os.environ["FOLDER"]))
        else:
            found[job] = results(globals()[what])
    print("RESULT" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
