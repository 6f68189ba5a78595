"""The names of Keras 2's optimizers, which Keras 3 does not have."""


class Optimizer:
    """Raises ImportError: the optimizers of `khub.optimizers` take its place."""

    def __init__(self, *args, **kwargs):
        raise ImportError(
            "Keras 3 has no keras.optimizers.legacy: use the optimizer of the same name in "
            "khub.optimizers."
        )


SGD = Adam = Adagrad = RMSprop = Ftrl = Optimizer
