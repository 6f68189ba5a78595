"""Generation: one engine for every model that makes text token by token.

A model gives `new_cache(batch, length)`, `run(token_ids, cache, at, starts)` and `logits`. Prompts
of different lengths are padded in front, so that all rows write the same position of the cache.
"""

import numpy as np

import khub
from khub import losses, ops
from khub.backend import active

from .samplers import get_sampler
from .tasks import Backbone, Task, adamw
from .transformer import EAGER

LENGTH_STEP = 64  # the cache has a multiple of it, so that few lengths are compiled
PREFILL = 512  # the most positions of a prompt that are computed at once


def bucket(length):
    """The length a prompt is padded to where each length would be compiled."""
    if EAGER:
        return length
    if length > PREFILL:
        return -(-length // PREFILL) * PREFILL
    return 1 << max(length - 1, 0).bit_length()


class CausalLM(Task):
    """A language model.  generate(prompts) -> texts

    call: {"token_ids", "padding_mask"} -> logits (batch, time, vocabulary_size)
    """

    backbone: Backbone
    preprocessor: object = None

    def compile(self, optimizer="auto", loss="auto", *, weighted_metrics="auto", **options):
        """As `Model.compile`; "auto" is AdamW at 2e-5, cross-entropy of logits, accuracy."""
        super().compile(
            optimizer=adamw(2e-5) if optimizer == "auto" else optimizer,
            loss=losses.SparseCategoricalCrossentropy(from_logits=True) if loss == "auto" else loss,
            weighted_metrics=["accuracy"] if weighted_metrics == "auto" else weighted_metrics,
            **options,
        )

    def call(self, inputs, training=None):
        return self.logits(self.backbone(inputs, training=training))

    def reference_config(self):
        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {**super().reference_config(), **{n: getattr(tokenizer, n, None) for n in names}}

    def generate(self, prompts, max_length=None, sampler="greedy", stop_token_ids=None, seed=None):
        """Token ids that continue each prompt.

        prompts: a list of lists of token ids   max_length: of prompt and answer   stop_token_ids:
        a row ends with one of them   -> a list of lists of ids, prompts included
        """
        lengths = [len(row) for row in prompts]
        if not lengths or min(lengths) == 0:
            raise ValueError("generate() needs at least one token in every prompt.")
        limit = self.backbone.max_sequence_length
        total = limit if max_length is None else max_length
        if not max(lengths) < total <= limit:
            raise ValueError(
                f"A prompt has {max(lengths)} tokens and max_length is {total}; expected prompts "
                f"shorter than max_length, and that at most {limit}."
            )
        padded = bucket(max(lengths))
        count = total - max(lengths)
        token_ids = np.zeros((len(prompts), padded), "int32")
        for row, ids in zip(token_ids, prompts):
            row[padded - len(ids) :] = ids
        starts = np.array([padded - n for n in lengths], "int32")
        stops = np.array(sorted(set(stop_token_ids or ())), "int32")
        sampler = get_sampler(sampler)
        noise = sampler.noise(len(prompts), count, seed)
        length = padded + count
        length = length if EAGER else -(-length // LENGTH_STEP) * LENGTH_STEP
        with active.no_gradient():
            new, done = self._engine(sampler)(token_ids, starts, stops, noise, length, count)
        new, done = ops.convert_to_numpy(new), ops.convert_to_numpy(done)
        return [[*ids, *row[:n].tolist()] for ids, row, n in zip(prompts, new, done)]

    def _engine(self, sampler):
        engines = self.__dict__.setdefault("_engines", {})
        if sampler not in engines:
            engines[sampler] = Engine(self, sampler)
        return engines[sampler]


class Engine:
    """The compiled functions of one model and sampler: prefill, and the loop over new tokens."""

    def __init__(self, model, sampler):
        self.model, self.sampler = model, sampler
        self.prefill = khub.jit(self._prefill)
        self.loop = khub.jit(self._loop)

    def __call__(self, token_ids, starts, stops, noise, length, count):
        """(new tokens (batch, count), how many of them count)"""
        batch, time = token_ids.shape
        cache = self.model.backbone.new_cache(batch, length)
        starts = ops.convert_to_tensor(starts) if starts.any() or not EAGER else None
        for at in range(0, time, PREFILL):
            part = ops.convert_to_tensor(token_ids[:, at : at + PREFILL])
            at = at if EAGER else ops.convert_to_tensor(at, "int32")
            logits, cache = self.prefill(part, cache, at, starts)
        count, time = (n if EAGER else ops.convert_to_tensor(n, "int32") for n in (count, time))
        return self.loop(logits, cache, time, starts, ops.convert_to_tensor(stops), noise, count)

    def _next(self, token_ids, cache, at, starts):
        x, cache = self.model.backbone.run(token_ids, cache, at, starts=starts)
        return ops.cast(self.model.logits(x[:, -1]), "float32"), cache

    _prefill = _next

    def _loop(self, logits, cache, time, starts, stops, noise, count):
        batch, room = ops.shape(logits)[0], noise.shape[1]
        columns = ops.arange(room)[None]

        def put(i, logits, tokens, done, ended):
            token = self.sampler(logits, noise, i)
            tokens = ops.where(columns == i, token[:, None], tokens)
            done = done + ops.cast(ops.logical_not(ended), "int32")
            if stops.shape[0]:
                ended = ops.logical_or(ended, ops.any(token[:, None] == stops[None], -1))
            return token, tokens, done, ended

        def more(i, token, tokens, done, ended, cache):
            going = ops.logical_not(ops.all(ended))
            return i < count and bool(going) if EAGER else ops.logical_and(i < count, going)

        def step(i, token, tokens, done, ended, cache):
            logits, cache = self._next(token[:, None], cache, time + i - 1, starts)
            return i + 1, *put(i, logits, tokens, done, ended), cache

        none = ops.zeros((batch,), "int32")
        first = put(0, logits, ops.zeros((batch, room), "int32"), none, none != 0)
        if not EAGER:
            state = ops.while_loop(more, step, (ops.ones((), "int32"), *first, cache))
        else:  # positions stay numbers
            state = (1, *first, cache)
            while more(*state):
                state = step(*state)
        return state[2], state[3]
