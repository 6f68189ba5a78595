"""Beam, contrastive and speculative search, and the cache that they work with."""

import numpy as np
import pytest
import torch
from parity.decoder_checks import ours, theirs

import khub
from khub import ops
from khub.nlp.samplers import Beam, Contrastive, Speculative

PROMPTS = [[5, 6, 7, 9, 3], [8, 9]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, khub's)"""
    reference = theirs("Llama", num_hidden_layers=2)
    return reference, ours(tmp_path_factory.mktemp("llama"), reference)


def beams(reference, prompt, total, **options):
    """(answer, score) of transformers."""
    found = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_length=total,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return found.sequences[0].tolist(), found.sequences_scores[0].item()


@pytest.mark.parametrize(
    ("penalty", "early", "repetition", "stops"),
    [(1.0, False, 1.0, 0), (0.0, True, 1.0, 3), (2.0, False, 1.0, 3), (-1.0, True, 1.3, 3)],
)
def test_beams(pair, penalty, early, repetition, stops):
    reference, model = pair
    random, total = np.random.default_rng(int(penalty) + 1), 32
    prompts = [random.integers(1, 71, n).tolist() for n in (5, 2, 7)]
    stop = random.integers(1, 71, stops).tolist()  # some end early, some do not
    options = dict(sampler=Beam(4, penalty, early), stop=stop, repetition_penalty=repetition)
    answers, scores = model.generate(prompts, total, return_scores=True, **options)
    for prompt, answer, score in zip(prompts, answers, scores):
        expected = beams(
            reference,
            prompt,
            total,
            num_beams=4,
            eos_token_id=stop or None,
            length_penalty=penalty,
            early_stopping=early,
            repetition_penalty=repetition,
        )
        assert answer == expected[0]
        assert score == pytest.approx(expected[1], abs=1e-4)


def test_only_beams_have_scores(pair):
    with pytest.raises(ValueError, match="Only the sampler 'beam' has scores"):
        pair[1].generate(PROMPTS, 12, return_scores=True)


@pytest.mark.parametrize("sampler", ["greedy", "top_p"])
def test_speculation_changes_no_token(pair, sampler, tmp_path):
    reference, model = pair
    draft = theirs("Llama", num_hidden_layers=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in draft.parameters():  # mostly right, and often wrong
            value += torch.randn_like(value) / 50
    draft = ours(tmp_path, draft)
    expected = model.generate(PROMPTS, 30, sampler=sampler, seed=3)
    assert model.generate(PROMPTS, 30, sampler=Speculative(draft, 3, sampler), seed=3) == expected
    assert expected != draft.generate(PROMPTS, 30, sampler=sampler, seed=3)


def test_a_draft_of_other_tokens(pair, tmp_path):
    draft = ours(tmp_path, theirs("Llama", vocab_size=80))
    with pytest.raises(ValueError, match="80 tokens, this one 71"):
        pair[1].generate(PROMPTS, 30, sampler=Speculative(draft))


def contrastive(reference, prompt, total, count, alpha):
    """As the paper's equation 5 says, without a cache."""
    ids = list(prompt)
    while len(ids) < total:
        found = reference(torch.tensor([ids]), output_hidden_states=True)
        past = torch.nn.functional.normalize(found.hidden_states[-1][0], dim=-1)
        shares, candidates = found.logits[0, -1].softmax(-1).topk(count)
        tried = torch.tensor([[*ids, int(token)] for token in candidates])
        hidden = reference(tried, output_hidden_states=True).hidden_states[-1][:, -1]
        like = (torch.nn.functional.normalize(hidden, dim=-1) @ past.T).max(-1).values
        ids.append(int(candidates[((1 - alpha) * shares - alpha * like).argmax()]))
    return ids


def test_contrastive(pair):
    reference, model = pair
    answers = model.generate(PROMPTS, 30, sampler=Contrastive(4, 0.5))
    with torch.no_grad():
        assert answers == [contrastive(reference, prompt, 30, 4, 0.5) for prompt in PROMPTS]


def test_the_cache_by_hand(pair):
    """Parts of any length give what the whole does, also anew after a rewind, and padded rows."""
    backbone = pair[1].backbone
    run = khub.jit(backbone.run)
    token_ids = np.random.default_rng(0).integers(1, 71, (2, 9)).astype("int32")
    ids = ops.convert_to_tensor(token_ids)
    whole = ops.convert_to_numpy(run(ids)[0])
    cache, parts = backbone.new_cache(2, 12), []
    for at, end in ((0, 4), (4, 5), (5, 9)):
        hidden, cache = run(ids[:, at:end], cache)
        parts.append(ops.convert_to_numpy(hidden))
    assert int(cache.length) == 9 and cache.room == 12
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-4)
    other, cache = run(ids[:, :2], cache.rewind(ops.shape(ids)[1] - 4))
    hidden, _ = run(ids[:, 5:], cache.rewind(5))
    np.testing.assert_allclose(ops.convert_to_numpy(hidden), whole[:, 5:], atol=1e-4)
    assert np.abs(ops.convert_to_numpy(other) - whole[:, 5:7]).max() > 0.01
    starts = np.array([0, 3], "int32")
    hidden, _ = run(ids, backbone.new_cache(2, 9, ops.convert_to_tensor(starts)))
    alone = run(ids[1:, 3:])[0]
    np.testing.assert_allclose(
        ops.convert_to_numpy(hidden)[1, 3:], ops.convert_to_numpy(alone)[0], atol=1e-4
    )
