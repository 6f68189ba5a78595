"""Engines that do more for a token than choose it: beams, contrastive and speculative search."""

import numpy as np

import khub
from khub import ops

from .cache import EAGER
from .engine import Engine, note
from .samplers import Beam, Contrastive, Speculative

NEVER = -1e9  # the score of what is no answer


def engine(model, sampler, *options):
    """The engine of a sampler."""
    return ENGINES.get(type(sampler), Engine)(model, sampler, *options)


def rows_of(batch, width):
    """The first row of each prompt that has `width` of them, int (batch, 1)."""
    return ops.arange(batch)[:, None] * width


def pick(x, places):
    """Along axis 1 of (batch, n, ...), what `places` (batch, m) say."""
    return ops.take_along_axis(
        x, ops.reshape(places, (*ops.shape(places), *[1] * (len(x.shape) - 2))), 1
    )


class BeamEngine(Engine):
    """The likeliest answers as wholes, `num_beams` of each prompt side by side.

    An answer scores the sum of its tokens' log probabilities over its length**length_penalty.
    """

    def _first(self, state, hidden):
        beams, batch = self.sampler.num_beams, ops.shape(hidden)[0]
        rows = ops.reshape(rows_of(batch, 1) + ops.zeros((1, beams), "int32"), (-1,))
        notes = {k: ops.convert_to_tensor(state[k]) for k in ("stops", "most", "ended", "done")}
        running = ops.repeat(ops.convert_to_tensor(state["tokens"])[:, None], beams, axis=1)
        first = ops.arange(beams)[None] == 0  # the others would be the same
        none = ops.zeros_like(running[:, :, 0], dtype="float32") + NEVER
        made = {
            "cache": state["cache"].take(rows),
            "scores": ops.where(first, 0.0, none),
            "running": running,
            "tokens": running,
            "found": none,
            "done": running[:, :, 0],
        }
        if self.penalty != 1.0:
            made["seen"] = ops.take(state["seen"], rows, axis=0)
        return self._put({**state, **notes, **made}, ops.take(hidden, rows, axis=0))

    def _put(self, state, hidden):
        beams, i = self.sampler.num_beams, state["i"]
        batch, _, count = ops.shape(state["running"])
        scores = ops.log_softmax(self._scores(hidden), -1)
        scores = self._allowed(state, scores, ops.reshape(state["running"], (-1, count)))
        vocabulary = scores.shape[-1]
        scores = ops.reshape(scores, (batch, beams, vocabulary)) + state["scores"][:, :, None]
        # so many that enough go on when each stop is among the best of every beam
        wanted = min(beams * (1 + max(1, state["stops"].shape[0])), beams * vocabulary)
        best, places = ops.top_k(ops.reshape(scores, (batch, -1)), wanted)
        places = ops.cast(places, "int32")
        parents, token = places // vocabulary, places % vocabulary
        here = (ops.arange(count) == i)[None, None]
        made = ops.where(here, token[:, :, None], pick(state["running"], parents))
        ends = ops.any(token[:, :, None] == state["stops"][None, None], -1)
        ends = ops.logical_or(ends, (i + 1 >= state["most"])[:, None])

        open_rows = ops.logical_not(state["ended"])[:, None]
        new = ops.logical_and(ends, ops.logical_and(ops.arange(wanted)[None] < beams, open_rows))
        size = ops.cast(i + 1, "float32") ** self.sampler.length_penalty
        found = ops.concatenate([state["found"], ops.where(new, best / size, NEVER)], 1)
        found, order = ops.top_k(found, beams)
        done = ops.concatenate([state["done"], ops.zeros_like(token) + (i + 1)], 1)
        tokens = ops.concatenate([state["tokens"], made], 1)
        state = {**state, "found": found, "done": pick(done, order), "tokens": pick(tokens, order)}

        scores, order = ops.top_k(ops.where(ends, NEVER, best), beams)
        rows = ops.reshape(rows_of(batch, beams) + pick(parents, order), (-1,))
        token = ops.reshape(pick(token, order), (-1,))
        full = found[:, -1] > NEVER / 2
        if not self.sampler.early_stopping:  # while one that goes on could become better
            full = ops.logical_and(full, scores[:, 0] / size <= found[:, -1])
        ended = ops.logical_or(full, i + 1 >= state["most"])
        state |= {
            "scores": scores,
            "running": pick(made, order),
            "token": token,
            "cache": state["cache"].reorder(rows),
            "ended": ops.logical_or(state["ended"], ended),
            "i": i + 1,
        }
        if self.penalty != 1.0:
            state["seen"] = ops.take(state["seen"], rows, axis=0)
        return self._saw(state, token)

    def results(self, state):
        """The best answer of each prompt, or while there is none what its best beam has."""
        tokens, running, found, done = (
            ops.convert_to_numpy(state[k])[:, 0] for k in ("tokens", "running", "found", "done")
        )
        none = found < NEVER / 2
        done = np.where(none, int(state["i"]), done)
        return np.where(none[:, None], running, tokens), done, found


class ContrastiveEngine(Engine):
    """Of the `top_k` likeliest tokens that which is likely and unlike what was there.

    Each token is tried: (1 - alpha) * its probability - alpha * the greatest cosine of its hidden
    state with an earlier one.  Su et al. 2022, arXiv:2202.06417
    """

    def _run(self, token_ids, cache):
        """The hidden states of all positions, and the cache."""
        return self.model.backbone.run(token_ids, cache)

    def _prompts(self, model, *given):
        """As `Engine._prompts`, with the hidden states of all positions."""
        parts = []

        def run(*args):
            hidden, cache = self.prefill(*args)
            parts.append(hidden)
            return hidden, cache

        _, cache = super()._prompts(model, *given, run)
        room = ops.zeros((1, given[1], 1), ops.dtype(parts[0]))
        room = ops.zeros_like(parts[0][:, :1]) + room
        return (parts[-1][:, -1], ops.concatenate([*parts, room], 1)), cache

    def _first(self, state, hidden):
        last, past = hidden
        batch, k = ops.shape(last)[0], self.sampler.top_k
        rows = ops.reshape(rows_of(batch, 1) + ops.zeros((1, k), "int32"), (-1,))
        past = ops.normalize(ops.cast(past, "float32"), axis=-1)
        state = {**state, "past": past, "cache": state["cache"].take(rows)}
        return self._candidates(state, last)

    def _candidates(self, state, hidden):
        """The state with the likeliest tokens that may come next."""
        scores = ops.softmax(self._allowed(state, self._scores(hidden)), -1)
        shares, ids = ops.top_k(scores, self.sampler.top_k)
        return {**state, "shares": shares, "candidates": ops.cast(ids, "int32")}

    def _step(self, state):
        batch, k = ops.shape(state["candidates"])
        at, starts = state["cache"].length, state["cache"].starts
        token = ops.reshape(state["candidates"], (-1, 1))
        hidden, cache = self._run(token, state["cache"])
        hidden = ops.reshape(hidden, (batch, k, -1))
        unit = ops.normalize(ops.cast(hidden, "float32"), axis=-1)
        like = ops.einsum("bkw,btw->bkt", unit, state["past"])
        places = ops.arange(ops.shape(like)[2])[None]
        there = places < at
        if starts is not None:
            there = ops.logical_and(there, places >= starts[::k, None])
        like = ops.max(ops.where(there[:, None], like, -1.0), -1)
        alpha = self.sampler.alpha
        best = ops.argmax((1 - alpha) * state["shares"] - alpha * like, -1)
        best = ops.cast(best, "int32")[:, None]
        rows = ops.reshape(rows_of(batch, k) + best + ops.zeros((1, k), "int32"), (-1,))
        past = ops.where((places == at)[:, :, None], pick(unit, best), state["past"])
        token = pick(state["candidates"], best)[:, 0]
        state = {**state, "cache": cache.reorder(rows), "past": past}
        state = note(self._saw(state, token), token)
        return self._candidates(state, pick(hidden, best)[:, 0])


class SpeculativeEngine(Engine):
    """A small model proposes tokens, the large one looks at all of them at once.

    Both choose with the same random numbers, and what the large one would not have chosen is
    dropped: the answers are those of the large model alone.  After Leviathan et al. 2022,
    arXiv:2211.17192.
    """

    def __init__(self, model, sampler, penalty, rules=None):
        if penalty != 1.0 or rules is not None:
            raise ValueError("A speculative sampler takes no repetition_penalty and no rules.")
        draft = sampler.draft.backbone.vocabulary_size
        if draft != model.backbone.vocabulary_size:
            raise ValueError(
                f"The draft model has {draft:,} tokens, this one "
                f"{model.backbone.vocabulary_size:,}; they must share a vocabulary."
            )
        super().__init__(model, sampler, penalty)
        self.extra = sampler.num_tokens
        self.draft_prefill = khub.jit(sampler.draft.backbone.run)

    def _prompts(self, model, *given):
        token_ids, count, starts, memory, longest = given
        draft = self.sampler.draft, token_ids, count, starts, None, longest
        _, ahead = super()._prompts(*draft, self.draft_prefill)
        hidden, cache = super()._prompts(model, *given)
        return (hidden, ahead), cache

    def _first(self, state, hidden):
        hidden, ahead = hidden
        return super()._first({**state, "ahead": ahead}, hidden)

    def _step(self, state):
        i, count, token = state["i"], self.sampler.num_tokens, state["token"]
        ahead, proposed = state["ahead"], [token]
        for n in range(count):
            hidden, ahead = self.sampler.draft.backbone.run(proposed[-1][:, None], ahead)
            scores = ops.cast(self.sampler.draft.logits(hidden[:, -1]), "float32")
            proposed.append(self.sampler(scores, state["noise"], i + n))
        at = state["cache"].length
        hidden, cache = self.model.backbone.run(ops.stack(proposed[:-1], 1), state["cache"])
        scores = self._scores(hidden)
        chosen = [self.sampler(scores[:, n], state["noise"], i + n) for n in range(count)]
        right = ops.stack([a == b for a, b in zip(proposed[1:], chosen)], 1)
        ended = ops.convert_to_tensor(state["ended"])[:, None]
        right = ops.all(ops.logical_or(right, ended), 0)  # of all prompts
        kept = ops.sum(ops.cumprod(ops.cast(right, "int32")))
        kept = ops.minimum(kept + 1, count)
        kept = int(kept) if EAGER else ops.cast(kept, "int32")
        state = {**state, "ahead": ahead.rewind(at + kept), "cache": cache.rewind(at + kept)}
        for n, token in enumerate(chosen):
            made = note({**state, "token": token}, token)
            if EAGER:
                state = made if n < kept else state
            else:
                new = n < kept
                state = {
                    name: x if made[name] is x else ops.where(new, made[name], x)
                    for name, x in state.items()
                }
        return state


ENGINES = {Beam: BeamEngine, Contrastive: ContrastiveEngine, Speculative: SpeculativeEngine}
