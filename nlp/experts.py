"""Mixture of experts: of many feed-forward layers each token goes through a few.

Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088.
"""

import numpy as np

from khub import ops
from khub.fields import PositiveInt
from khub.layers import Layer

from .cache import EAGER
from .transformer import GatedFeedForward, built, dense, gated, normal


class ExpertDense(Layer):
    """The kernels of `stack` dense layers, (stack, inputs, units); `parts`: as `JoinedDense`.

    A reference has a tensor for each expert, or for each of its parts.
    """

    stack: PositiveInt
    inputs: PositiveInt
    units: PositiveInt
    parts: tuple = None

    def build(self, shape=None):
        shape = (self.stack, self.inputs, self.units)
        self.kernel = self.add_weight(shape, normal(), name="kernel")

    def call(self, x, expert):
        """One expert's product.  x: (tokens, inputs) -> (tokens, units)"""
        return ops.matmul(x, ops.cast(self.kernel.value[expert], ops.dtype(x)))


class Experts(Layer):
    """sum of share * expert(x) over the `chosen` likeliest of `count` gated feed-forward layers.

    The shares are the router's softmax, with `normalize` scaled to sum to 1 over the chosen.
    shared: the width of one more for all tokens, times sigmoid(shared_gate(x)); arXiv:2407.10671.
    x: (..., width) -> same
    """

    width: PositiveInt
    hidden: PositiveInt
    count: PositiveInt
    chosen: PositiveInt
    activation: str = "silu"
    normalize: bool = True
    shared: int = None

    def setup(self):
        if self.chosen > self.count:
            raise ValueError(
                f"Of {self.count} experts {self.chosen} are chosen; expected at most {self.count}."
            )

    def build(self, shape=None):
        options, parts = dict(dtype=self.dtype_policy), (self.hidden, self.hidden)
        self.router = dense(self, self.width, self.count, use_bias=False)
        sizes = self.count, self.width, sum(parts), parts
        self.experts_gate_up = built(ExpertDense(*sizes, **options))
        self.experts_down = built(ExpertDense(self.count, self.hidden, self.width, **options))
        if self.shared:
            sizes = self.width, self.shared, self.activation
            self.shared_expert = built(GatedFeedForward(*sizes, **options))
            self.shared_gate = dense(self, self.width, 1, use_bias=False)

    def call(self, x):
        tokens = ops.reshape(x, (-1, self.width))
        shares = ops.softmax(ops.cast(self.router(tokens), "float32"), -1)
        shares, ids = ops.top_k(shares, self.chosen)
        if self.normalize:
            shares = shares / ops.sum(shares, -1, keepdims=True)
        shares = ops.cast(shares, ops.dtype(x))
        y = (self._sorted if EAGER else self._at_once)(tokens, shares, ids)
        if self.shared:
            y = y + ops.sigmoid(self.shared_gate(tokens)) * self.shared_expert(tokens)
        return ops.reshape(y, ops.shape(x))

    def _sorted(self, tokens, shares, ids):
        """Each expert that is chosen computes its tokens, which lie side by side."""
        ids = ops.convert_to_numpy(ids).reshape(-1)
        order = np.argsort(ids, kind="stable")
        counts = np.bincount(ids, minlength=self.count)
        rows, parts, at = ops.take(tokens, order // self.chosen, axis=0), [], 0
        for expert in np.flatnonzero(counts).tolist():
            part = rows[at : (at := at + int(counts[expert]))]
            hidden = gated(self.experts_gate_up(part, expert), self.activation)
            parts.append(self.experts_down(hidden, expert))
        y = ops.take(ops.concatenate(parts, 0), np.argsort(order), axis=0)
        return ops.sum(ops.reshape(y, (-1, self.chosen, self.width)) * shares[..., None], 1)

    def _at_once(self, tokens, shares, ids):
        """In one program: the kernels of the chosen for a few tokens, else all experts."""
        kernels = self.experts_gate_up.kernel, self.experts_down.kernel
        first, second = (ops.cast(kernel.value, ops.dtype(tokens)) for kernel in kernels)
        rows = ops.shape(tokens)[0]
        if isinstance(rows, int) and 2 * rows * self.chosen <= self.count:
            both = ops.einsum("nw,nkwh->nkh", tokens, ops.take(first, ids, axis=0))
            hidden = gated(both, self.activation) * shares[..., None]
            return ops.einsum("nkh,nkhw->nw", hidden, ops.take(second, ids, axis=0))
        places = ops.one_hot(ids, self.count, dtype=ops.dtype(tokens))
        share = ops.sum(places * shares[..., None], 1)
        both = ops.einsum("nw,ewh->neh", tokens, first)
        hidden = gated(both, self.activation) * share[..., None]
        return ops.einsum("neh,ehw->nw", hidden, second)
