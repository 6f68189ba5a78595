"""Random small decoders of transformers, and what khub's must give as they do."""

import numpy as np
import torch
import transformers
from parity.image_models import call

from khub import nlp

BASE = dict(
    vocab_size=71,
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    pad_token_id=0,
)


def theirs(kind, **options):
    """A random model of transformers, the same each time."""
    config = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, head)(config(**{**BASE, **options})).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:  # that no bias is 0 and no scale 1
                value += torch.randn_like(value) / 10
    return model


def ours(folder, reference):
    """The same as khub opens it."""
    reference.save_pretrained(folder)
    return nlp.CausalLM.from_preset(str(folder), preprocessor=None)


def logits(model, token_ids, mask=None, **options):
    mask = None if mask is None else torch.tensor(mask).long()
    with torch.no_grad():
        return model(torch.tensor(token_ids).long(), attention_mask=mask, **options).logits.numpy()


def check_logits_and_the_way_back(folder, kind, options, lengths=(130,)):
    """Logits as the reference's, and those of a saved model that the reference opens."""
    reference = theirs(kind, **options)
    model = ours(folder / "theirs", reference)
    assert type(model).__name__ == f"{kind}CausalLM"
    random = np.random.default_rng(0)
    for time in lengths:
        token_ids = random.integers(1, 71, (2, time)).astype("int32")
        mask = np.ones((2, time), bool)
        mask[1, time // 2 + 1 :] = False  # padding behind
        found = call(model, {"token_ids": token_ids, "padding_mask": mask})
        expected = logits(reference, token_ids, mask)
        np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)
    model.save_to_preset(folder / "ours")
    again = type(reference).from_pretrained(folder / "ours").eval()
    np.testing.assert_array_equal(logits(again, token_ids), logits(reference, token_ids))


def check_greedy(folder, kind, options):
    """64 tokens as the reference's, of two prompts that are not equally long."""
    reference = theirs(kind, **options)
    model = ours(folder, reference)
    prompts, answers = zip(*(decided(reference, n, 73) for n in (9, 4)))
    assert model.generate(list(prompts), max_length=73) == list(answers)


def decided(reference, count, total):
    """A random prompt of so many tokens and its answer, in which no token wins by rounding."""
    for seed in range(count, count + 100):
        prompt = np.random.default_rng(seed).integers(1, 71, count).tolist()
        answer = answer_of(reference, prompt, total)
        scores = np.sort(logits(reference, [answer])[0, count - 1 : -1])
        if (scores[:, -1] - scores[:, -2]).min() > 1e-4:
            return prompt, answer
    raise AssertionError("Of 100 prompts none has an answer whose tokens are all clearly best.")


def answer_of(reference, prompt, total, **options):
    """The reference's answer to one prompt, without a stop."""
    with torch.no_grad():
        return reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_length=total,
            do_sample=False,
            eos_token_id=None,
            **options,
        )[0].tolist()
