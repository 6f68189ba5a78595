"""Weights rounded in blocks of inputs, with a look at the inputs that they meet.

GPTQ: Frantar et al. 2022, arXiv:2210.17323. AWQ: Lin et al. 2023, arXiv:2306.00978.
"""

import math
from itertools import islice

import numpy as np

from khub import ops, quantizers
from khub.backend import active
from khub.layers import EinsumDense

STRIDE = 128  # inputs of GPTQ whose effect on all later ones is added at once


def summed(layer):
    """Axes of the kernel, and of the input from its end, that a Dense or EinsumDense sums over."""
    if not isinstance(layer, EinsumDense):
        return (0,), (-1,)
    kernel, letters = layer._kernel, layer._input
    axes = tuple(i for i, a in enumerate(kernel) if a not in layer._output)
    return axes, tuple(letters.index(kernel[i]) - len(letters) for i in axes)


def walk(layers, model, config):
    """Yield (path, layer, (Gram matrix of its inputs, their mean absolute values)).

    layers: path -> layer   The blocks of the config's structure come one after the other, with what
    is before them as it is by then.   Raises ValueError for a layer that gets no inputs.
    """
    structure = config.quantization_layer_structure
    structure = structure or model.get_quantization_layer_structure(config.mode) or {}
    batches = [_batch(x, config) for x in islice(config.dataset, config.num_samples)]
    for layer in structure.get("pre_block_layers", ()):
        batches = [layer(x) for x in batches]
    for block in structure.get("sequential_blocks", [model]):
        inside = set(map(id, block.named_layers().values()))
        own = {path: layer for path, layer in layers.items() if id(layer) in inside}
        seen = _watched(block, own, batches)
        if missing := own.keys() - seen.keys():
            raise ValueError(f"No input of the calibration reaches {', '.join(sorted(missing))}.")
        for path, layer in own.items():
            yield path, layer, seen.pop(path)
        batches = [block(x) for x in batches] if structure else ()


def _batch(x, config):
    x = config.tokenizer(x) if isinstance(x, str) else x
    one = not isinstance(x, dict) and np.ndim(x) == 1
    return np.asarray(x)[None, : config.sequence_length] if one else x


def _watched(block, layers, batches):
    """Run a block; path -> sums over the inputs of a layer of x^T x and |x|."""
    seen = {}

    def watch(path, layer):
        call, axes = layer.call, summed(layer)[1]

        def watching(inputs, *args, **kwargs):
            x = np.moveaxis(ops.convert_to_numpy(inputs), axes, range(-len(axes), 0))
            x = x.reshape(-1, np.prod(x.shape[-len(axes) :])).astype("float64")
            gram, size = seen.get(path, (0, 0))
            seen[path] = gram + x.T @ x, size + np.abs(x).sum(0)
            return call(inputs, *args, **kwargs)

        layer.call = watching

    try:
        for path, layer in layers.items():
            watch(path, layer)
        with active.no_gradient():
            for x in batches:
                block(x)
    finally:
        for layer in layers.values():
            vars(layer).pop("call", None)
    return seen


def in_blocks(values, axes, config, inputs=None):
    """Round a weight in blocks of the inputs along the last of the axes that are summed over.

    inputs: what `walk` says of them   Returns whole numbers, padded to whole blocks, {"scale",
    "zero", maybe "inverse"}, which broadcast to blocks and to inputs, and the size of a block.
    """
    shape, last, block = values.shape, axes[-1], config.group_size
    order = axes + tuple(i for i in range(values.ndim) if i not in axes)
    columns = values.transpose(order).reshape(np.prod([shape[i] for i in axes]), -1)
    block = shape[last] if block in (None, -1) else min(block, shape[last])
    block = math.gcd(block, shape[last]) if len(axes) > 1 else block  # none spans two rows
    whole, parts = ROUND.get(config.mode, _nearest)(columns, block, config, inputs)

    def laid_out(x):
        outputs = [shape[i] if x.shape[1] > 1 else 1 for i in order[len(axes) :]]
        x = x.reshape(*(shape[i] for i in axes[:-1]), -1, *outputs)
        return x.transpose(np.argsort(order))

    laid = {name: laid_out(part) for name, part in parts.items()}
    laid |= {name: np.expand_dims(laid[name], last + 1) for name in ("scale", "zero")}
    return laid_out(whole), laid, block


def _nearest(columns, block, config, inputs=None):
    """Round each weight to the nearest.  Returns rows of whole blocks."""
    top, units = 2 ** (config.weight_bits - 1), columns.shape[1]
    blocks = np.pad(columns, [(0, -len(columns) % block), (0, 0)]).reshape(-1, block, units)
    blocks = np.pad(blocks, [(0, 0), (0, 1), (0, 0)])  # all ranges reach 0
    found = quantizers.abs_max_quantize_grouped_with_zero_point(
        blocks.reshape(-1, units).astype("float32"), block + 1, (-top, top - 1), to_numpy=True
    )
    whole, scale, zero = map(ops.convert_to_numpy, found)
    whole = whole.reshape(-1, block + 1, units)[:, :block].reshape(-1, units)
    return whole, {"scale": scale, "zero": zero}


def _awq(columns, block, config, inputs):
    """Equation 4: inputs times |x|**strength, with the strength of the smallest output error."""
    best, of = np.inf, np.arange(len(columns)) // block
    gram, size = inputs or (np.eye(len(columns)), np.ones(len(columns)))
    for strength in np.linspace(0, 1, config.num_grid_points, endpoint=False):
        factor = np.maximum(size / size.max(), 1e-4)[:, None] ** strength
        factor /= np.sqrt(factor.max() * factor.min())
        whole, parts = _nearest(columns * factor, block, config)
        error = whole[: len(of)] - parts["zero"][of].astype("float32")
        error = error * parts["scale"][of] / factor
        error -= columns
        if (loss := np.sum((gram @ error) * error)) < best:
            best, found = loss, (whole, parts | {"inverse": (1 / factor).astype("float32")})
    return found


def _gptq(columns, block, config, inputs):
    """Algorithm 1: one input's weights after the other, the later ones making up for its error."""
    whole, parts = _nearest(columns, block, config)
    top, of = 2 ** (config.weight_bits - 1), np.arange(len(columns)) // block
    if config.symmetric:
        padded = np.pad(np.abs(columns), [(0, -len(columns) % block), (0, 0)])
        largest = padded.reshape(-1, block, columns.shape[1]).max(1)
        parts = {"scale": largest.clip(1e-7) / (top - 1), "zero": 0 * parts["zero"]}
    if inputs is None:
        return whole, parts
    whole, gram, w = whole.copy(), inputs[0].copy(), columns.astype("float64")
    diagonal = np.einsum("ii->i", gram)  # a view
    diagonal += config.hessian_damping * diagonal.mean() + (diagonal == 0)
    order = np.argsort(-diagonal) if config.activation_order else np.arange(len(w))
    inverse = np.linalg.cholesky(np.linalg.inv(gram[order][:, order])).T
    w, scale, zero = w[order], parts["scale"][of[order]], parts["zero"][of[order]].astype("float64")
    for start in range(0, len(w), STRIDE):
        stop = min(start + STRIDE, len(w))
        errors = np.zeros((stop - start, w.shape[1]))
        for i in range(start, stop):
            q = np.clip(np.rint(w[i] / scale[i]) + zero[i], -top, top - 1)
            whole[order[i]] = q
            errors[i - start] = (w[i] - (q - zero[i]) * scale[i]) / inverse[i, i]
            w[i:stop] -= np.outer(inverse[i, i:stop], errors[i - start])
        w[stop:] -= inverse[start:stop, stop:].T @ errors
    return whole, parts


ROUND = {"gptq": _gptq, "awq": _awq}
