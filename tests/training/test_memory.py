"""Nothing is kept: models that are gone, batches that are done, logs of evaluation."""

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

import khub
from khub import layers

BACKEND = khub.backend.name
X = np.random.RandomState(0).randn(16, 3).astype("float32")
Y = X[:, :2].copy()


def model_of():
    model = khub.Sequential([khub.Input((3,)), layers.Dense(4), layers.Dense(2)])
    if BACKEND == "numpy":
        model.compile("sgd", "mse")
        model.evaluate(X, Y, verbose=0)
    else:
        model.compile("adam", "mse", metrics=["mae"])
        model.fit(X, Y, batch_size=8, verbose=0)
    model.predict(X, verbose=0)
    return model


def test_a_model_that_is_gone_is_gone():
    model = model_of()
    kept = {"model": model, "layer": model.layers[0], "kernel": model.weights[0]}
    kept |= {"optimizer": model.optimizer, "metric": model.metrics[0]}
    watched = {name: weakref.ref(item) for name, item in kept.items()}
    del model, kept
    gc.collect()
    assert [name for name, item in watched.items() if item() is not None] == []


def test_the_data_are_let_go_after_training():
    if BACKEND == "numpy":
        pytest.skip("no gradients")

    class Rows(np.ndarray):
        pass

    model = model_of()
    x = X.copy().view(Rows)
    watched = weakref.ref(x)
    model.fit(x, Y, batch_size=8, verbose=0)
    model.evaluate(x, Y, batch_size=8, verbose=0)
    del x
    gc.collect()
    assert watched() is None


RUN = """
import gc, resource, sys
import numpy as np
import khub
from khub import layers

X = np.random.RandomState(0).randn(16, 3).astype("float32")
Y = X[:, :2].copy()

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def model_of():
    model = khub.Sequential([khub.Input((3,)), layers.Dense(4), layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    return model

def cycle():
    model_of().fit(X, Y, batch_size=8, verbose=0)

model = model_of()
model.predict(X[:1], verbose=0)

def predict():
    model.predict(X, batch_size=8, verbose=0)

def batches(count):
    for _ in range(count):
        yield X, Y

def evaluate():
    model.evaluate(batches(400), verbose=0)

work, warm, count = {
    "cycle": (cycle, 40, 200), "predict": (predict, 100, 1000), "evaluate": (evaluate, 1, 4)
}[sys.argv[1]]
for _ in range(warm):
    work()
before = resident()
for _ in range(count):
    work()
print("GREW", resident() / before)
"""


def grown(work, timeout=1500):
    """Return the memory of a process at the end of some work, as a multiple of its beginning."""
    environment = {**os.environ, "KHUB_BACKEND": BACKEND}
    run = [sys.executable, "-c", RUN, work]
    done = subprocess.run(
        run, env=environment, capture_output=True, text=True, check=True, timeout=timeout
    )
    return float(done.stdout.split("GREW")[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("work", ["cycle", "predict", "evaluate"])
def test_memory_stays(work, note):
    if BACKEND == "numpy" and work == "cycle":
        pytest.skip("no gradients")
    factor = grown(work)
    note(f"{BACKEND}: resident memory after {work}: {factor:.3f} times that before")
    assert factor < 1.05
