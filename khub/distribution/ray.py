"""Batch inference over data sets larger than a machine, with Ray Data."""

import tempfile
from pathlib import Path

from khub import backend


def ray_predict(
    model, dataset, inputs, output="prediction", batch_size=256, custom_objects=None, **options
):
    """Return a Ray dataset with the model's predictions as new columns, computed by actors.

    model: a Model, which travels as a .keras file, or a preset handle   inputs: the column that
    goes into it, or a list of them: a dict   output: name of the column; several outputs are
    `output_name` or `output_0` ...   custom_objects: as of `load_model`   options: of
    `Dataset.map_batches` (concurrency, num_cpus, num_gpus, ...)

    Raises ImportError for what is no Ray dataset.
    """
    if not hasattr(dataset, "map_batches"):
        raise ImportError(
            f"ray_predict takes a ray.data.Dataset (pip install 'khub[ray]'), got {type(dataset)}."
        )
    if not isinstance(model, str):
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder, "model.keras"))
            model = Path(folder, "model.keras").read_bytes()
    given = (model, inputs, output, custom_objects)
    options = {"concurrency": 1, "runtime_env": _ENVIRONMENT} | options
    return dataset.map_batches(
        _Predictor, fn_constructor_args=given, batch_size=batch_size, **options
    )


_ENVIRONMENT = {"env_vars": {"KHUB_BACKEND": backend.name}}


class _Predictor:
    """What an actor runs: the model, loaded once."""

    def __init__(self, model, inputs, output, custom_objects):
        import khub

        self.inputs, self.output = inputs, output
        if isinstance(model, str):
            self.model = khub.presets.load(model)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.keras").write_bytes(model)
            self.model = khub.saving.load_model(Path(folder, "model.keras"), custom_objects)

    def __call__(self, batch):
        texts = {n: list(x) if x.dtype.kind in "OU" else x for n, x in batch.items()}
        one = isinstance(self.inputs, str)
        x = texts[self.inputs] if one else {name: texts[name] for name in self.inputs}
        y = self.model.predict(x, batch_size=1 << 30, verbose=0)
        if isinstance(y, (list, tuple)):
            y = dict(enumerate(y))
        if not isinstance(y, dict):
            return batch | {self.output: y}
        return batch | {f"{self.output}_{name}": column for name, column in y.items()}
