"""LoRA that peft wrote, here, and that khub wrote, there."""

import numpy as np
import pytest

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import peft  # noqa: E402
import torch  # noqa: E402
from parity.image_models import call  # noqa: E402

from khub import nlp  # noqa: E402
from khub.models import lora  # noqa: E402
from khub.presets import WeightsError  # noqa: E402

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(intermediate_size=40, max_position_embeddings=32, initializer_range=0.2)
IDS = np.random.default_rng(0).integers(1, 50, (2, 9)).astype("int32")
KINDS = {  # reference, its configuration, khub's class, targets
    "bert": (
        "BertForSequenceClassification",
        ("BertConfig", dict(num_labels=3)),
        nlp.TextClassifier,
        ["query", "value", "word_embeddings", "attention.output.dense"],
    ),
    "llama": (
        "LlamaForCausalLM",
        ("LlamaConfig", dict(num_key_value_heads=2)),
        nlp.CausalLM,
        ["q_proj", "v_proj", "down_proj", "gate_proj"],
    ),
}


def pair(kind, folder):
    """A random model of transformers and the same as khub opens it."""
    name, (config, more), cls, _ = KINDS[kind]
    torch.manual_seed(0)
    reference = getattr(transformers, name)(getattr(transformers, config)(**SIZES, **more)).eval()
    reference.save_pretrained(folder)
    return reference, cls.from_preset(str(folder), preprocessor=None)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS).long(), attention_mask=torch.ones(IDS.shape)).logits.numpy()


def ours(model):
    inputs = {"token_ids": IDS, "padding_mask": np.ones_like(IDS, bool)}
    if hasattr(getattr(model, "backbone", None), "num_segments") or "Bert" in type(model).__name__:
        inputs["segment_ids"] = np.zeros_like(IDS)
    return call(model, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways(kind, tmp_path):
    reference, model = pair(kind, tmp_path / "preset")
    targets = KINDS[kind][-1]
    patterns = dict(rank_pattern={targets[0]: 3}, alpha_pattern={targets[1]: 5})
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **patterns)
    adapted = peft.get_peft_model(reference, config).eval()
    for name, value in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:  # zeros at first
            torch.nn.init.normal_(value, std=0.3)
    adapted.save_pretrained(tmp_path / "theirs")
    expected, before = logits(adapted), ours(model)
    model.load_lora(tmp_path / "theirs")
    np.testing.assert_allclose(ours(model), expected, atol=1e-4)
    assert np.abs(expected - before).max() > 0.1
    with pytest.raises(ValueError, match="already"):
        model.load_lora(tmp_path / "theirs")
    model.save_lora(tmp_path / "ours")
    plain, quantized = pair(kind, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(plain, tmp_path / "ours").eval()
    np.testing.assert_allclose(logits(back), expected, atol=1e-4)
    model.merge_lora()
    np.testing.assert_allclose(ours(model), expected, atol=1e-4)
    assert not lora.adapted(model)
    with pytest.raises(ValueError, match="enable_lora"):
        model.save_lora(tmp_path / "none")
    quantized.quantize("int8", filters=lambda layer: hasattr(layer, "kernel"))
    quantized.load_lora(tmp_path / "ours")
    assert 0 < np.abs(ours(quantized) - expected).max() < 0.1 * np.abs(expected).max()


WRONG = {  # change of adapter_config.json -> what is said
    '"peft_type": "LORA"': ('"peft_type": "IA3"', "IA3"),
    '"bias": "none"': ('"bias": "all"', "all"),
    '"lora_alpha": 2': ('"lora_alpha": null', "lora_alpha"),
    '"alpha_pattern": {}': ('"alpha_pattern": {"(a+)+": 1}', "lora_alpha"),
}


def test_what_does_not_fit(tmp_path):
    _, model = pair("llama", tmp_path / "preset")
    model.enable_lora(2, targets="down")
    model.save_lora(tmp_path / "lora")
    model.merge_lora()
    path = tmp_path / "lora" / "adapter_config.json"
    good = path.read_text()
    for before, (after, match) in WRONG.items():
        assert before in good
        path.write_text(good.replace(before, after))
        with pytest.raises(WeightsError, match=match):
            model.load_lora(path.parent)
    path.write_text(good)
    _, other = pair("bert", tmp_path / "bert")
    with pytest.raises(WeightsError, match="no place for model.layers.0.mlp.down_proj"):
        other.load_lora(path.parent)
    assert not lora.adapted(other) and other.trainable_variables
