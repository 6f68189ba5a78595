"""What a checkpoint says of the tokens that may come next, as functions of scores.

`rules(scores (batch, vocabulary), tokens (batch, count), i, most) -> scores` is called before token
number i is chosen: tokens holds those before it, most (batch,) how many there may be.
"""

import zlib

import numpy as np

from khub import ops
from khub.fields import Configurable

from .cache import EAGER

NEVER = -1e9


class Rules(Configurable):
    """Forced, repeated, early and suppressed tokens; those of the same fields are equal.

    start: the ids before the first token   first, last: what the first must be, and the last that
    there is room for   allowed: the only ids that there are   suppressed, suppressed_first: never
    chosen, not chosen first   no_repeat: the size of n-grams that come once   end, min_length: the
    end may not come before so many tokens, with `start`
    """

    start: tuple = ()
    first: int = None
    last: int = None
    no_repeat: int = 0
    end: int = None
    min_length: int = 0
    suppressed: tuple = ()
    suppressed_first: tuple = ()
    allowed: tuple = None

    def __hash__(self):
        return zlib.crc32(repr(self).encode())

    def __eq__(self, other):
        return repr(self) == repr(other)

    def __call__(self, scores, tokens, i, most):
        if self.no_repeat:
            scores = self._without_repeats(scores, tokens, i)
        if self.min_length:
            scores = without(scores, (self.end,), i + len(self.start) < self.min_length)
        if self.first is not None:
            scores = only(scores, self.first, i == 0)
        if self.last is not None:
            scores = only(scores, self.last, (i + 1 == most)[:, None])
        if self.allowed is not None:
            scores = ops.where(among(scores, self.allowed), scores, NEVER)
        if self.suppressed:
            scores = without(scores, self.suppressed, True)
        if self.suppressed_first:
            scores = without(scores, self.suppressed_first, i == 0)
        return scores

    def _without_repeats(self, scores, tokens, i):
        size, done = self.no_repeat, i + len(self.start)
        if EAGER:  # what is not there yet needs no look
            tokens = tokens[:, :i]
        if self.start:
            start = ops.convert_to_tensor(np.array([self.start], "int32"))
            tokens = ops.concatenate([ops.zeros_like(tokens[:, :1]) + start, tokens], 1)
        batch, length = ops.shape(tokens)
        if EAGER and length < size:
            return scores
        count = length - size + 1
        places = ops.arange(count)[None]
        same = places + size - 1 < done + ops.zeros_like(tokens[:, :1])
        for n in range(size - 1):  # whether the tokens from each place on are the last ones
            last = ops.take(tokens, ops.maximum(done - size + 1 + n, 0), axis=1)[:, None]
            same = ops.logical_and(same, tokens[:, n : n + count] == last)
        rows = ops.arange(batch)[:, None] + ops.zeros_like(places)
        indices = ops.stack([ops.reshape(x, (-1,)) for x in (rows, tokens[:, size - 1 :])], -1)
        found = ops.reshape(ops.cast(same, scores.dtype), (-1,))
        banned = ops.scatter_update(ops.zeros_like(scores), indices, found, reduction="max")
        return ops.where(banned > 0, NEVER, scores)

    @classmethod
    def from_reference(cls, config):
        """Rules of a generation_config.json (or an older config.json); None where it has none."""
        start = config.get("decoder_start_token_id")
        end = config.get("eos_token_id")
        given = {ours: config.get(key) for ours, key in NAMES.items()}
        given = {n: tuple(x) if isinstance(x, list) else x for n, x in given.items()}
        found = {n: x for n, x in given.items() if x or n in ("first", "last") and x is not None}
        if not found:
            return None
        end = end[0] if isinstance(end, (list, tuple)) else end
        return cls(start=() if start is None else (start,), end=end, **found)

    def reference_config(self):
        """What generation_config.json says of them."""
        found = {key: getattr(self, ours) for ours, key in NAMES.items()}
        found = {k: x for k, x in found.items() if x or "forced" in k and x is not None}
        end = {} if self.end is None else {"eos_token_id": self.end}
        return end | {key: list(x) if isinstance(x, tuple) else x for key, x in found.items()}


NAMES = {  # khub's name -> the reference's
    "first": "forced_bos_token_id",
    "last": "forced_eos_token_id",
    "no_repeat": "no_repeat_ngram_size",
    "min_length": "min_length",
    "suppressed": "suppress_tokens",
    "suppressed_first": "begin_suppress_tokens",
}


def among(scores, ids):
    """bool (1, vocabulary): which ids these are."""
    there = np.zeros((1, scores.shape[-1]), bool)
    there[:, list(ids)] = True
    return ops.convert_to_tensor(there)


def without(scores, ids, when):
    """Scores without tokens where `when`, a bool or a tensor of one, or one for each row."""
    if when is False:
        return scores
    return ops.where(ops.logical_and(among(scores, ids), when), NEVER, scores)


def only(scores, index, when):
    """Scores of one token alone where `when`."""
    if when is False:
        return scores
    forced = ops.where(among(scores, [index]), 0.0, NEVER) + ops.zeros_like(scores)
    return ops.where(when, forced, scores)
