"""Recurrent layers in torch's fused kernels: cuDNN on a GPU, oneDNN or torch's own on the CPU."""

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from khub.backend.torch.engine import _depth

_RUN = {name: getattr(torch._VF, name) for name in ("lstm", "gru", "rnn_tanh")}


def recurrent(kind, sequences, states, weights, mask, zeros):
    """Return (outputs (batch, time, units), states), or a text that says why it cannot.

    zeros: whether steps that the mask hides give zeros, or the output before them
    """
    if _depth.maps or _depth.gradients > 1 or type(sequences) is not torch.Tensor:
        return "neither vmap, a gradient of a gradient nor a trace goes through it"
    if len({x.dtype for x in (sequences, *states, *weights)}) > 1:
        return "inputs, states and weights differ in dtype"
    steps = rest = None
    if mask is not None and not mask.is_meta and not bool(mask.all()):
        found = _padding(mask)
        if found is None:
            return "the mask hides steps between others, or all steps of a sequence"
        lengths, rest, left = found
        steps = torch.arange(sequences.shape[1], device=sequences.device)
        if left:
            sequences = _steps(sequences, (steps + rest) % len(steps))
    weights = _torch_weights(kind, weights)
    states = tuple(x.unsqueeze(0) for x in states)
    settings = weights, len(weights) == 4, 1, 0.0, torch.is_grad_enabled(), False
    run = _RUN[kind]
    if steps is None:
        found = run(sequences, states if kind == "lstm" else states[0], *settings, True)
        return found[0], [x.squeeze(0) for x in found[1:]]
    packed = pack_padded_sequence(sequences, lengths.cpu(), True, enforce_sorted=False)
    states = tuple(x.index_select(1, packed.sorted_indices) for x in states)
    states = states if kind == "lstm" else states[0]
    outputs, *states = run(packed.data, packed.batch_sizes, states, *settings)
    outputs, _ = pad_packed_sequence(packed._replace(data=outputs), True, 0.0, len(steps))
    if left:
        outputs = _steps(outputs, (steps - rest) % len(steps))
    elif not zeros:
        outputs = _steps(outputs, torch.minimum(steps, lengths[:, None] - 1))
    return outputs, [x.index_select(1, packed.unsorted_indices).squeeze(0) for x in states]


def _padding(mask):
    """Return (lengths, the number of hidden steps (batch, 1), whether they come first), or None."""
    steps, lengths = torch.arange(mask.shape[1], device=mask.device), mask.sum(1)
    rest = mask.shape[1] - lengths[:, None]
    left = torch.equal(mask, steps >= rest)
    if not lengths.all() or not (left or torch.equal(mask, steps < lengths[:, None])):
        return None
    return lengths, rest, left


def _steps(x, order):
    """Take the steps of (batch, time, n) in the order (batch, time) of each sequence."""
    return torch.take_along_dim(x, order.unsqueeze(-1), 1)


def _torch_weights(kind, weights):
    """Return (gates * units, n) views of the weights; a GRU's first two gates change places."""
    kernel, recurrent, *bias = weights
    found = [kernel.t(), recurrent.t()]
    if bias:
        found += bias[0] if kind == "gru" else (bias[0], torch.zeros_like(bias[0]))
    if kind == "gru":
        parts = [w.chunk(3) for w in found]
        found = [torch.cat((reset, update, new)) for update, reset, new in parts]
    if kernel.is_cuda:  # cuDNN wants them in one piece of memory
        flat = torch.cat([w.reshape(-1) for w in found]).split([w.numel() for w in found])
        found = [part.view(w.shape) for part, w in zip(flat, found, strict=True)]
    return found
