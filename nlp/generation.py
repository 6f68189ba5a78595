"""Generation: one engine for every model that makes text token by token.

A model gives `new_cache(batch, length)`, `run(token_ids, cache, at, starts)` and `logits`. Prompts
of different lengths are padded in front, so that all rows write the same position of the cache.
"""

import os
from functools import partial

import numpy as np

import khub
from khub import losses, ops
from khub.backend import active

from .preprocessing import CausalLMPreprocessor
from .samplers import get_sampler
from .tasks import Backbone, Task, adamw
from .transformer import EAGER

UNKNOWN = "\ufffd"  # what stands for bytes that are no character yet
LENGTH_STEP = 64  # answers have room for a multiple of it, so that few lengths are compiled
STOP_CHUNK = 16  # tokens that are made before stop texts are looked for
PREFILL = 512  # the most positions of a prompt that are computed at once


def bucket(length):
    """The length a prompt is padded to where each length would be compiled."""
    if EAGER:
        return length
    if length > PREFILL:
        return -(-length // PREFILL) * PREFILL
    return 1 << max(length - 1, 0).bit_length()


class CausalLM(Task):
    """A language model.  generate(prompts) continues texts; fit(x=list[str]) learns them.

    call: {"token_ids", "padding_mask"} -> logits (batch, time, vocabulary_size)
    """

    backbone: Backbone
    preprocessor: object = None

    preprocessor_class = CausalLMPreprocessor

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

    def generate(
        self,
        prompts,
        max_length=None,
        sampler="greedy",
        stop="auto",
        seed=None,
        repetition_penalty=1.0,
        strip_prompt=False,
    ):
        """Continue prompts: a text, a list of texts, or a list of lists of token ids.

        max_length: of prompt and answer in tokens, None: what the model has positions for
        sampler: a name or a `Sampler`   stop: texts or token ids that end an answer, "auto": the
        tokenizer's end   seed: of random samplers, an int or one for each prompt
        repetition_penalty: divides the scores of tokens that were there.  arXiv:1909.05858
        Returns what was given, continued; the answers alone with strip_prompt. Raises ValueError
        for an empty prompt of ids and one that leaves no room.
        """
        run = _Run(self, prompts, max_length, sampler, stop, seed, repetition_penalty)
        for _ in run.chunks(STOP_CHUNK if run.stop_texts else None):
            pass
        return run.results(strip_prompt)

    def stream(self, prompts, *args, strip_prompt=False, **options):
        """Yield the pieces of what `generate` returns as they come: texts of one text, lists else.

        Pieces are as long as it takes to be sure of them: no half characters, no part of a stop.
        """
        run = _Run(self, prompts, *args, **options)
        sent = None
        for last in run.chunks(1):
            whole = run.listed(run.results(strip_prompt, settled=not last))
            pieces = [x if sent is None else x[len(y) :] for x, y in zip(whole, sent or whole)]
            sent = whole
            if any(map(len, pieces)):
                yield pieces[0] if run.single else pieces

    def _engine(self, *key):
        engines = self.__dict__.setdefault("_engines", {})
        if key not in engines:
            engines[key] = Engine(self, *key)
        return engines[key]


class _Run:
    """One call of generate: its prompts as ids, the engine's state, the answers so far."""

    def __init__(
        self,
        model,
        prompts,
        max_length=None,
        sampler="greedy",
        stop="auto",
        seed=None,
        repetition_penalty=1.0,
    ):
        self.single = isinstance(prompts, str)
        prompts = [prompts] if self.single else list(prompts)
        self.texts = bool(prompts) and all(isinstance(x, (str, bytes)) for x in prompts)
        self.tokenizer = getattr(model.preprocessor, "tokenizer", None)
        if self.texts:
            prompts = model.require_preprocessor().prompts(prompts)
        stops = self._stops(stop)
        lengths = np.array([len(row) for row in prompts], "int32")
        if not lengths.size or lengths.min() == 0:
            raise ValueError("generate() needs at least one token in every prompt.")
        limit = model.backbone.max_sequence_length
        total = limit if max_length is None else max_length
        if not lengths.max() < total <= limit:
            raise ValueError(
                f"A prompt has {lengths.max()} tokens and max_length is {total}; expected prompts "
                f"shorter than max_length, and that at most {limit}."
            )
        vocabulary = model.backbone.vocabulary_size
        if wrong := [i for row in prompts for i in row if not 0 <= i < vocabulary]:
            raise ValueError(
                f"Token ids must lie in 0 .. {vocabulary - 1}; got {str(wrong[:5])[1:-1]}."
            )
        sampler, self.prompts = get_sampler(sampler), prompts
        self.engine = model._engine(sampler, float(repetition_penalty))
        most = total - lengths  # of new tokens, whatever the other prompts are
        self.count, padded = int(most.max()), bucket(int(lengths.max()))
        token_ids = np.zeros((len(prompts), padded), "int32")
        for row, ids in zip(token_ids, prompts):
            row[padded - len(ids) :] = ids
        noise = sampler.noise(len(prompts), self.count, seed)
        self.given = token_ids, padded - lengths, np.array(stops, "int32"), noise, most
        self.new, self.done = np.zeros((len(prompts), 0), "int32"), [0] * len(prompts)

    def _stops(self, stop):
        """Set the stop texts, and return the ids that end an answer."""
        self.stop_texts = []
        if isinstance(stop, str) and stop == "auto":
            end = getattr(self.tokenizer, "eos_token_id", None)
            return [] if end is None else [end]
        given = [stop] if isinstance(stop, (str, int)) else list(stop or ())
        self.stop_texts = [x for x in given if isinstance(x, str)]
        if self.stop_texts and self.tokenizer is None:
            raise ValueError("stop has texts, and without a tokenizer only token ids can stop.")
        if "" in self.stop_texts:
            raise ValueError("stop has an empty text, which would end every answer at once.")
        return [int(x) for x in given if not isinstance(x, str)]

    def chunks(self, size=None):
        """Make `size` tokens at a time, None: all at once; yield whether these were the last."""
        with active.no_gradient():
            state = self.engine.start(*self.given)
        step = size or self.count
        for until in range(step, self.count + step, step):
            with active.no_gradient():  # not while the caller has the tokens
                state = self.engine.advance(state, min(until, self.count))
                self.new, self.done = (ops.convert_to_numpy(state[k]) for k in ("tokens", "done"))
                ended = ops.convert_to_numpy(state["ended"])
            over = [end or self._holds_stop(self._made(row)) for row, end in enumerate(ended)]
            last = until >= self.count or all(over)
            yield last
            if last:
                return

    def _made(self, row):
        return self.new[row, : self.done[row]].tolist()

    def _holds_stop(self, ids):
        text = self.tokenizer.detokenize(ids) if self.stop_texts else ""
        return any(stop in text for stop in self.stop_texts)

    def _answer(self, row):
        """The new tokens of a row, up to that which completes a stop text."""
        ids = self._made(row)
        if not self._holds_stop(ids):
            return ids
        return ids[: 1 + next(n for n in range(len(ids)) if self._holds_stop(ids[: n + 1]))]

    def results(self, strip_prompt, settled=False):
        """What generate returns; `settled`: only what no later token can change."""
        make = self._text if self.texts else self._ids
        rows = [make(row, strip_prompt, settled) for row in range(len(self.prompts))]
        return rows[0] if self.single else rows

    def _ids(self, row, strip_prompt, settled):
        return [*([] if strip_prompt else self.prompts[row]), *self._answer(row)]

    def _text(self, row, strip_prompt, settled):
        """The text of prompt and answer at once: the spaces between tokens depend on both."""
        decode = partial(self.tokenizer.detokenize, skip_special_tokens=True)
        prompt = decode(self.prompts[row])
        text = decode(self._ids(row, False, settled))
        start = len(os.path.commonprefix([prompt, text]))
        ends = [text.find(stop, start) for stop in self.stop_texts]
        text = text[: min((end for end in ends if end >= 0), default=len(text))]
        if settled:  # a part of a character or of a stop text may become another
            text = text.rstrip(UNKNOWN)
            text = text[: len(text) - max((len(stop) - 1 for stop in self.stop_texts), default=0)]
        return text[start:] if strip_prompt else text

    def listed(self, whole):
        """A list of what belongs to each prompt."""
        return [whole] if self.single else whole


class Engine:
    """The compiled functions of one model, sampler and penalty: prefill, the loop over tokens."""

    def __init__(self, model, sampler, penalty):
        self.model, self.sampler, self.penalty = model, sampler, penalty
        self.prefill = khub.jit(self._scores)
        self.first = khub.jit(self._first)
        self.loop = khub.jit(self._loop)

    def start(self, token_ids, starts, stops, noise, most):
        """The state after the prompts, with the first new token."""
        batch, time = token_ids.shape
        if not EAGER:
            noise = np.pad(noise, [(0, 0), (0, -noise.shape[1] % LENGTH_STEP)])
        cache = self.model.backbone.new_cache(batch, time + noise.shape[1])
        real = np.arange(time) >= starts[:, None]
        starts = ops.convert_to_tensor(starts) if starts.any() or not EAGER else None
        for at in range(0, time, PREFILL):
            part = ops.convert_to_tensor(token_ids[:, at : at + PREFILL])
            logits, cache = self.prefill(part, cache, self._number(at), starts)
        state = {"time": self._number(time), "starts": starts}
        state |= {"stops": stops, "noise": noise, "most": most}
        if self.penalty != 1.0:
            seen = np.zeros((batch, self.model.backbone.vocabulary_size), bool)
            for row, ids, there in zip(seen, token_ids, real):
                row[ids[there]] = True
            state["seen"] = seen
        state = {
            k: v if v is None or k == "time" else ops.convert_to_tensor(v) for k, v in state.items()
        }
        state["cache"] = cache
        return self.first(state, logits)

    def advance(self, state, until):
        """The state when `until` tokens are there, or all rows have ended."""
        return self.loop(state, self._number(until))

    @staticmethod
    def _number(n):
        return n if EAGER else ops.convert_to_tensor(n, "int32")

    def _scores(self, token_ids, cache, at, starts):
        x, cache = self.model.backbone.run(token_ids, cache, at, starts=starts)
        return ops.cast(self.model.logits(x[:, -1]), "float32"), cache

    def _first(self, state, logits):
        none, tokens = ops.zeros_like(state["most"]), ops.zeros_like(state["noise"], dtype="int32")
        made = {"i": 0, "tokens": tokens, "done": none}
        state = self._put({**state, **made, "ended": none != 0}, logits)
        return {**state, "i": self._number(1)}

    def _put(self, state, logits):
        """Choose token number i from scores, and note it."""
        i, ended, stops = state["i"], state["ended"], state["stops"]
        if self.penalty != 1.0:
            lower = ops.where(logits > 0, logits / self.penalty, logits * self.penalty)
            logits = ops.where(state["seen"], lower, logits)
        token = self.sampler(logits, state["noise"], i)
        columns = ops.arange(ops.shape(state["tokens"])[1])[None]
        done = state["done"] + ops.cast(ops.logical_not(ended), "int32")
        ended = ops.logical_or(ended, done >= state["most"])
        ended = ops.logical_or(ended, ops.any(token[:, None] == stops[None], -1))
        tokens = ops.where(columns == i, token[:, None], state["tokens"])
        new = {"token": token, "tokens": tokens, "done": done, "ended": ended}
        if self.penalty != 1.0:
            here = ops.arange(logits.shape[-1])[None] == token[:, None]
            new["seen"] = ops.logical_or(state["seen"], here)
        return {**state, **new}

    def _loop(self, state, until):
        changing = ("i", "token", "tokens", "done", "ended", "cache", "seen")
        fixed = {k: v for k, v in state.items() if k not in changing}
        state = {k: v for k, v in state.items() if k in changing}

        def more(state):
            going = ops.logical_not(ops.all(state["ended"]))
            if EAGER:
                return state["i"] < until and bool(going)
            return ops.logical_and(state["i"] < until, going)

        def step(state):
            at = fixed["time"] + state["i"] - 1
            token = state["token"][:, None]
            logits, cache = self._scores(token, state["cache"], at, fixed["starts"])
            made = self._put({**fixed, **state, "cache": cache}, logits)
            return {**{k: made[k] for k in state}, "i": state["i"] + 1}

        if EAGER:  # positions stay numbers
            while more(state):
                state = step(state)
        else:
            state = ops.while_loop(more, lambda x: (step(x),), (state,))[0]
        return {**fixed, **state}
