"""What the reference implementations need; khub's own suite runs without it."""

import os

# Keras' convolutions of channels-first images have no other kernels on a CPU under TensorFlow.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Keras runs on khub's backend (on NumPy it has no gradients), whichever test imports it first.
os.environ["KERAS_BACKEND"] = os.environ["KHUB_BACKEND"].replace("numpy", "jax")
