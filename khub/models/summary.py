"""The table that `model.summary()` prints."""

import numpy as np

from khub import dtypes


def _bytes(variables):
    size = sum(int(np.prod(v.shape)) * dtypes.numpy_dtype(v.dtype).itemsize for v in variables)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            return f"{size:.2f} {unit}"
        size /= 1024


def _count(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def _output_shapes(model):
    shapes = {}
    for node in getattr(getattr(model, "_graph", None) or model, "_nodes", ()):
        shapes.setdefault(id(node.function), str(getattr(node.outputs, "shape", "several")))
    return shapes


def _rows(model, shapes, expand, show_trainable, depth=0):
    for layer in model.layers:
        name = f"{'  ' * depth}{layer.name} ({type(layer).__name__})"
        shape = shapes.get(id(layer)) or str(getattr(layer, "batch_shape", "?"))
        parameters = f"{_count(layer.weights):,}" if layer.built else "0 (unbuilt)"
        row = [name, shape, parameters]
        yield row + [("Y" if layer.trainable else "N")] if show_trainable else row
        if expand and getattr(layer, "layers", None):
            yield from _rows(layer, _output_shapes(layer), expand, show_trainable, depth + 1)


def summary_text(model, width=None, expand=False, show_trainable=False, layer_range=None):
    """Return the table as text.

    layer_range: (first, last) names of the layers to show
    """
    rows = list(_rows(model, _output_shapes(model), expand, show_trainable))
    if layer_range:
        names = [layer.name for layer in model.layers]
        first, last = (names.index(name) for name in layer_range)
        rows = rows[first : last + 1]
    header = ["Layer (type)", "Output shape", "Param #"] + (["Trainable"] if show_trainable else [])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    if width:
        widths[0] = max(widths[0] + width - sum(widths) - 2 * len(widths), len(header[0]))
    line = "─" * (sum(widths) + 2 * len(widths))

    def text(row):
        cells = [c[: widths[i]].ljust(widths[i]) for i, c in enumerate(row)]
        cells[2] = row[2].rjust(widths[2])
        return "  ".join(cells).rstrip()

    trained, fixed = model.trainable_weights, model.non_trainable_weights
    totals = [
        f"Total params: {_count([*trained, *fixed]):,} ({_bytes([*trained, *fixed])})",
        f"Trainable params: {_count(trained):,} ({_bytes(trained)})",
        f"Non-trainable params: {_count(fixed):,} ({_bytes(fixed)})",
    ]
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and optimizer.built:
        count = _count(optimizer.variables)
        totals.append(f"Optimizer params: {count:,} ({_bytes(optimizer.variables)})")
    return "\n".join(
        [f'Model: "{model.name}"', line, text(header), line, *map(text, rows), line, *totals]
    )
