"""Encoders against transformers: random arrays, and what both sides make of them."""

import numpy as np
import torch
from parity.image_models import call

import khub

LENGTHS = ((1, False), (7, True), (130, False))  # and whether the padding is on the left


def batch(length, left=False, words=61, segments=False):
    """What a backbone takes: three rows, the last one half padding."""
    random = np.random.default_rng(length)
    real = np.arange(length)[None] < np.maximum(length - np.array([[0], [1], [length // 2]]), 1)
    found = {
        "token_ids": random.integers(0, words, (3, length)).astype("int32"),
        "padding_mask": (real[:, ::-1] if left else real).copy(),
    }
    if segments:
        found["segment_ids"] = random.integers(0, 2, (3, length)).astype("int32")
    return found


def reference(model, inputs):
    """The outputs of a model of transformers; those of an answer's places as one array."""
    names = {"token_ids": "input_ids", "padding_mask": "attention_mask"}
    names["segment_ids"] = "token_type_ids"
    given = {names[name]: torch.tensor(array).long() for name, array in inputs.items()}
    with torch.no_grad():
        found = model.eval()(**given)
    if "start_logits" in found:
        return [torch.stack([found.start_logits, found.end_logits], -1).numpy()]
    return [x.numpy() for x in found.to_tuple()]


def check_hidden_states(theirs, ours, lengths=LENGTHS, **options):
    for length, left in lengths:
        inputs = batch(length, left, **options)
        mask = inputs["padding_mask"][..., None]
        got = call(ours, inputs)["sequence_output"]
        np.testing.assert_allclose(got * mask, reference(theirs, inputs)[0] * mask, atol=1e-4)


def check_task(theirs, cls, folder, **options):
    """A head's outputs, of the way there and the way back."""
    theirs.save_pretrained(folder / "theirs")
    ours = cls.from_preset(str(folder / "theirs"), preprocessor=None)
    inputs = batch(9, **options)
    want, got = reference(theirs, inputs), khub.tree.flatten(call(ours, inputs))
    ours.save_to_preset(str(folder / "ours"))
    again = reference(type(theirs).from_pretrained(folder / "ours"), inputs)
    for first, *others in zip(want, got, again, strict=True):
        real = inputs["padding_mask"][..., None] if first.ndim == 3 else 1
        for other in others:
            np.testing.assert_allclose(other * real, first * real, atol=1e-4)
    return ours


def check_learning(model, **options):
    """A classifier with dropout learns three rows."""
    model.compile(optimizer=khub.optimizers.Adam(1e-2), metrics=None)
    x, y = batch(9, **options), np.array([0, 1, 0])
    losses = model.fit(x, y, epochs=10, batch_size=3, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
