"""The engine of generation: compiled functions that compute prompts and then token after token.

A model gives `backbone.new_cache(batch, room, starts)`, `backbone.run(token_ids, cache)` and
`logits(hidden)`. Prompts of different lengths are padded in front, so that all rows write the same
position of the cache.
"""

import numpy as np

import khub
from khub import ops
from khub.layers.layer import CallContext

from .cache import EAGER, KVCache, number

LENGTH_STEP = 16  # short answers have room for a multiple of it, so that few are compiled
PREFILL = 512  # the most positions of a prompt that are computed at once


def bucket(length):
    """The length a prompt is padded to where each length would be compiled."""
    if EAGER:
        return length
    if length > PREFILL:
        return -(-length // PREFILL) * PREFILL
    return 1 << max(length - 1, 0).bit_length()


def roomy(count):
    """The tokens that there is room for where `count` are wanted: up to a fourth more."""
    return count + -count % max(LENGTH_STEP, 1 << max(count.bit_length() - 3, 0))


class Engine:
    """The compiled functions of one model and sampler: the prompts, and the loop over tokens.

    rules: (scores, tokens so far, i, how many there may be) -> scores that token number i is chosen
    by, None: as they are
    A state is a dict. Of each prompt: tokens (batch, count), done: how many of them there are,
    ended, most: how many there may be; i: the tokens that all have; cache.
    """

    extra = 0  # positions that a step may write behind the last

    def __init__(self, model, sampler, penalty, rules=None):
        self.model, self.sampler, self.penalty, self.rules = model, sampler, penalty, rules
        self.prefill = khub.jit(self._run)
        # where jit does nothing, the notes of a state stay NumPy's
        jit = khub.jit if not EAGER else lambda function: function
        self.begin, self.first, self.loop = map(jit, (self._begin, self._first, self._loop))

    def start(self, token_ids, starts, stops, noise, most, memory=None):
        """The state after the prompts."""
        batch, time = token_ids.shape
        count = noise.shape[1] + self.extra
        count = count if EAGER else roomy(count)
        noise = np.pad(noise, [(0, 0), (0, count - noise.shape[1])])
        real = np.arange(time) >= starts[:, None]
        longest = number(int((time - starts + most).max()))
        starts = starts if starts.any() or not EAGER else None
        state = {"stops": stops, "most": most, "noise": noise}
        if self.penalty != 1.0:
            state["seen"] = np.zeros((batch, self.model.backbone.vocabulary_size), bool)
            for row, ids, there in zip(state["seen"], token_ids, real):
                row[ids[there]] = True
        state |= {"tokens": np.zeros((batch, count), "int32"), "done": np.zeros(batch, "int32")}
        state |= {"ended": np.zeros(batch, bool), "i": number(0)}
        begin = self.begin if time <= PREFILL else self._begin  # compiled once, or part by part
        return begin(state, token_ids, starts, memory, longest)

    def _begin(self, state, token_ids, starts, memory, longest):
        count = ops.shape(state["tokens"])[1]
        starts = starts if starts is None else ops.convert_to_tensor(starts)
        hidden, cache = self._prompts(self.model, token_ids, count, starts, memory, longest)
        return self.first({**state, "cache": cache}, hidden)

    def _prompts(self, model, token_ids, count, starts, memory, longest, run=None):
        """The hidden states and the cache of prompts, in parts of `PREFILL` positions."""
        batch, time = ops.shape(token_ids)
        options = {} if memory is None else {"memory": memory}
        cache = model.backbone.new_cache(batch, time + count, starts, **options)
        cache = cache._replace(longest=longest)
        for at in range(0, token_ids.shape[1] or 1, PREFILL):  # unknown: in `begin`, one part
            part = ops.convert_to_tensor(token_ids[:, at : at + PREFILL])
            hidden, cache = (run or self.prefill)(part, cache)
        return hidden, cache

    def advance(self, state, until):
        """The state when `until` tokens are there, or all rows have ended."""
        with CallContext(training=False):  # layers need not ask what the outermost call is
            return self.loop(state, number(until))

    def _run(self, token_ids, cache):
        """The last position's hidden state, (batch, width), and the cache."""
        hidden, cache = self.model.backbone.run(token_ids, cache)
        return hidden[:, -1], cache

    def _scores(self, hidden):
        return ops.cast(self.model.logits(hidden), "float32")

    def _allowed(self, state, scores, tokens=None):
        """Scores after the penalty for tokens that were there, and after the rules."""
        if self.penalty != 1.0:
            lower = ops.where(scores > 0, scores / self.penalty, scores * self.penalty)
            scores = ops.where(state["seen"], lower, scores)
        if self.rules is not None:
            tokens = state["tokens"] if tokens is None else tokens
            most = ops.convert_to_tensor(state["most"])
            if (beams := getattr(self.sampler, "num_beams", 1)) > 1:
                most = ops.reshape(most[:, None] + ops.zeros((1, beams), "int32"), (-1,))
            scores = self.rules(scores, ops.convert_to_tensor(tokens), state["i"], most)
        return scores

    def _first(self, state, hidden):
        return self._put(state, hidden)

    def _step(self, state):
        """One more token."""
        hidden, cache = self._run(state["token"][:, None], state["cache"])
        return self._put({**state, "cache": cache}, hidden)

    def _put(self, state, hidden):
        """Choose token number i, and note it."""
        scores = self._allowed(state, self._scores(hidden))
        token = self.sampler(scores, state["noise"], state["i"])
        return note(self._saw({**state, "token": token}, token), token)

    def _saw(self, state, token):
        if self.penalty == 1.0:
            return state
        here = ops.arange(ops.shape(state["seen"])[1])[None] == token[:, None]
        return {**state, "seen": ops.logical_or(state["seen"], here)}

    def _loop(self, state, until):
        if EAGER:
            while state["i"] < until and not bool(state["ended"].all()):
                state = self._step(state)
            return state
        fixed = {name: state[name] for name in ("stops", "most", "noise")}
        caches = {name: x for name, x in state.items() if isinstance(x, KVCache)}

        def carried(state):  # what a step changes
            state = {name: x for name, x in state.items() if name not in fixed}
            return {name: x[:3] if name in caches else x for name, x in state.items()}

        def whole(state):
            kept = {name: KVCache(*state[name], *caches[name][3:]) for name in caches}
            return {**fixed, **state, **kept}

        def more(state):
            return ops.logical_and(state["i"] < until, ops.logical_not(ops.all(state["ended"])))

        def step(state):
            return (carried(self._step(whole(state))),)

        return whole(ops.while_loop(more, step, (carried(state),))[0])

    def results(self, state):
        """(tokens, how many of each row, scores or None) as NumPy arrays."""
        return ops.convert_to_numpy(state["tokens"]), ops.convert_to_numpy(state["done"]), None


def note(state, token):
    """The state with a token of each prompt at place i: where all is, unless the row has ended."""
    i, ended = state["i"], state["ended"]
    if EAGER:
        token = ops.convert_to_numpy(token)
        state["tokens"][:, i] = token
        done = state["done"] + ~ended
        ended = ended | (done >= state["most"])
        if len(state["stops"]):
            ended = ended | (token[:, None] == state["stops"]).any(-1)
        return {**state, "done": done, "ended": ended, "i": i + 1}
    columns = ops.arange(ops.shape(state["tokens"])[1])[None]
    tokens = ops.where(columns == i, token[:, None], state["tokens"])
    done = state["done"] + ops.cast(ops.logical_not(ended), "int32")
    ended = ops.logical_or(ended, done >= state["most"])
    ended = ops.logical_or(ended, ops.any(token[:, None] == state["stops"][None], -1))
    return {**state, "tokens": tokens, "done": done, "ended": ended, "i": i + 1}
