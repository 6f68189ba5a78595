"""How the embedded preset stories_260k_en was made, from karpathy/tinyllamas (MIT).

python presets/recipes/stories_260k_en.py FOLDER   with stories260K.bin and tok512.model

The file holds seven sizes as int32, then float32 tensors, those of all layers together. Its rotary
pairs lie side by side in a head; a Llama of transformers has them half a head apart.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from khub import nlp
from khub.presets import record_reference, weights
from khub.presets.tensors import Checkpoint, as_tensor, write_file

NAME = "stories_260k_en"
FOLDER = Path(__file__).parent.parent / "embedded" / NAME


def main(folder):
    path = Path(folder, "stories260K.bin")
    width, hidden, layers, heads, key_heads, vocabulary, length = map(
        int, np.fromfile(path, "int32", 7)
    )
    values, head = np.fromfile(path, "float32", offset=28), width // heads
    at = 0

    def take(*shape):
        nonlocal at
        at += (size := int(np.prod(shape)))
        return values[at - size : at].reshape(shape)

    def apart(rows):
        """(layers, heads * head, width), the pairs of each head half a head apart"""
        count = rows.shape[1] // head
        pairs = rows.reshape(layers, count, head // 2, 2, width)
        return pairs.swapaxes(2, 3).reshape(rows.shape)

    embeddings = take(vocabulary, width)
    stacked = {"input_layernorm": take(layers, width)}
    stacked["self_attn.q_proj"] = apart(take(layers, width, width))
    stacked["self_attn.k_proj"] = apart(take(layers, key_heads * head, width))
    stacked["self_attn.v_proj"] = take(layers, key_heads * head, width)
    stacked["self_attn.o_proj"] = take(layers, width, width)
    stacked["post_attention_layernorm"] = take(layers, width)
    stacked["mlp.gate_proj"] = take(layers, hidden, width)
    stacked["mlp.down_proj"] = take(layers, width, hidden)
    stacked["mlp.up_proj"] = take(layers, hidden, width)
    named = {"model.embed_tokens.weight": embeddings, "model.norm.weight": take(width)}
    for name, tensors in stacked.items():
        named |= {f"model.layers.{i}.{name}.weight": tensor for i, tensor in enumerate(tensors)}
    backbone = nlp.LlamaBackbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_query_heads=heads,
        hidden_dim=width,
        intermediate_dim=hidden,
        num_key_value_heads=key_heads,
        max_sequence_length=length,
        layer_norm_epsilon=1e-5,
        tie_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch, "tokenizer.model")
        tokens.write_bytes(Path(folder, "tok512.model").read_bytes())
        tokenizer = nlp.LlamaTokenizer.load(scratch)
        model = nlp.LlamaCausalLM(backbone, nlp.CausalLMPreprocessor(tokenizer, length))
        renamed = Path(scratch, "model.safetensors")
        write_file(renamed, {name: as_tensor(tensor) for name, tensor in named.items()})
        weights.load(model, Checkpoint(renamed))
    model.save_to_preset(FOLDER)
    record_reference(model, FOLDER, {"token_ids": np.arange(1, 33, dtype="int32").reshape(2, 16)})
    print(model.generate("", max_length=64))


if __name__ == "__main__":
    main(sys.argv[1])
