"""Samplers: the next token from scores. Random ones take one number a token from the host, so that
a prompt's answer depends on its seed alone: not on the backend, nor on the batch it is in.
"""

import zlib

import numpy as np

from khub import ops
from khub.fields import Configurable, PositiveInt


class Sampler(Configurable):
    """call(logits float32 (batch, vocabulary), noise (batch, count), i) -> ids int32 (batch,)"""

    def noise(self, batch, count, seed):
        """Numbers in [0, 1) of each row and step; `seed`: an int, or one for each row."""
        return np.zeros((batch, count), "float32")

    def __hash__(self):
        return zlib.crc32(repr(self).encode())

    def __eq__(self, other):
        return repr(self) == repr(other)


class Greedy(Sampler):
    """The likeliest token."""

    def __call__(self, logits, noise, i):
        return ops.cast(ops.argmax(logits, -1), "int32")


class RandomSampler(Sampler):
    """A token by its probability, after temperature, top_k and top_p.  arXiv:1904.09751"""

    temperature: float = 1.0
    top_k: int = None
    top_p: float = None

    def noise(self, batch, count, seed):
        one = seed is None or isinstance(seed, int)
        seeds = [seed if seed is None else (seed, row) for row in range(batch)] if one else seed
        if len(seeds) != batch:
            raise ValueError(f"Got {len(seeds)} seeds for {batch} prompts; expected one each.")
        rows = [np.random.Generator(np.random.Philox(s)).random(count) for s in seeds]
        return np.stack(rows).astype("float32")

    def __call__(self, logits, noise, i):
        scores = logits / self.temperature
        size = logits.shape[-1]
        scores, ids = ops.top_k(scores, min(self.top_k or size, size))
        shares = ops.softmax(scores, -1)
        sums = ops.cumsum(shares, -1)
        if self.top_p is not None:  # what lies behind the first that reach top_p
            shares = ops.where(sums - shares < self.top_p, shares, 0.0)
            sums = ops.cumsum(shares, -1)
        drawn = ops.take(ops.convert_to_tensor(noise), i, axis=1)[:, None] * sums[:, -1:]
        place = ops.sum(ops.cast(sums <= drawn, "int32"), -1, keepdims=True)
        return ops.cast(ops.take_along_axis(ids, place, -1)[:, 0], "int32")


class Beam(Sampler):
    """The likeliest answer as a whole of `num_beams` that are kept; a score over length ** penalty.

    early_stopping: end at `num_beams` answers, whether or not a better one could come
    """

    num_beams: PositiveInt = 5
    length_penalty: float = 1.0
    early_stopping: bool = False


class Contrastive(Sampler):
    """Of `top_k` tokens the likeliest less `alpha` times its likeness.  arXiv:2202.06417"""

    top_k: PositiveInt = 5
    alpha: float = 0.6


class Speculative(Sampler):
    """What `sampler` chooses, sooner: a small model of the same tokens proposes `num_tokens`."""

    draft: object
    num_tokens: PositiveInt = 5
    sampler: object = "greedy"

    def setup(self):
        self.sampler = get_sampler(self.sampler)
        if type(self.sampler) not in (Greedy, RandomSampler):
            raise ValueError(
                f"A speculative sampler needs one of single tokens; got {self.sampler}."
            )

    __hash__, __eq__ = object.__hash__, object.__eq__  # a model is itself alone

    def noise(self, *args):
        return self.sampler.noise(*args)

    def __call__(self, *args):
        return self.sampler(*args)


SAMPLERS = {
    "greedy": Greedy,
    "random": RandomSampler,
    "temperature": RandomSampler,
    "top_k": lambda: RandomSampler(top_k=5),
    "beam": Beam,
    "contrastive": Contrastive,
    "top_p": lambda: RandomSampler(top_p=0.9),
}


def get_sampler(sampler):
    """A sampler by its name, or the one that is given."""
    if isinstance(sampler, Sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}.")
    return SAMPLERS[sampler]()
