"""Checkpoints of language models as transformers and PyTorch write them: bfloat16, shards, .bin."""

import json

import numpy as np
import pytest
import torch
import transformers
from parity.decoder_checks import logits, theirs
from parity.image_models import call

from khub import dtypes, nlp

IDS = np.array([[5, 6, 7, 8], [9, 10, 11, 12]], "int32")


def open_here(folder):
    model = nlp.CausalLM.from_preset(str(folder), preprocessor=None)
    return model, call(model, {"token_ids": IDS})


def test_bfloat16_in_shards_is_kept(tmp_path):
    reference = theirs("Llama").to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    model, _ = open_here(tmp_path / "theirs")
    assert {dtypes.standardize(v.dtype) for v in model.variables} == {"bfloat16"}
    assert model.compute_dtype == "bfloat16"
    assert len(model.generate([[5, 6, 7]], 9)[0]) == 9
    model.save_to_preset(tmp_path / "ours")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype is torch.bfloat16
    for name, value in reference.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


class Bomb:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def test_pickles_are_read_and_run_nothing(tmp_path):
    reference = theirs("Qwen2")
    config = {**reference.config.to_dict(), "architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    np.testing.assert_allclose(open_here(tmp_path)[1], logits(reference, IDS), atol=1e-4)
    tensors = {**reference.state_dict(), "lm_head.weight": Bomb(str(tmp_path / "ran"))}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin"):
        open_here(tmp_path)
    assert not (tmp_path / "ran").exists()
