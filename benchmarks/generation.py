"""Text models: generation, prediction and loading, khub beside transformers on the same weights.

python -m benchmarks.generation --backend torch [--cells llama160m_1,load] [--turns 7]
python -m benchmarks.generation --all

One process a backend, one thread; the contenders take turns, the figures are medians of the
per-turn ratios. transformers runs on torch always; on JAX a loop written by hand runs beside them.
Weights are random and of the size that the names say, tokens greedy.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from .compare import NOISE, RESULTS, describe, gpu
from .layers import main, run

PROMPT, NEW = 16, 48  # tokens
SMALL = dict(vocab_size=4000, hidden_size=256, intermediate_size=688, num_hidden_layers=4)
LLAMA = dict(vocab_size=32000, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
MODELS = {  # name -> (transformers' class, its configuration, khub's class)
    "small": ("LlamaForCausalLM", dict(SMALL, num_attention_heads=8), "LlamaCausalLM"),
    "llama160m": ("LlamaForCausalLM", dict(LLAMA, num_attention_heads=12), "LlamaCausalLM"),
    "gpt2": ("GPT2LMHeadModel", {}, "GPT2CausalLM"),
    "t5_small": (
        "T5ForConditionalGeneration",
        dict(num_layers=6, d_model=512, decoder_start_token_id=0),
        "T5Seq2SeqLM",
    ),
    "whisper_tiny": (
        "WhisperForConditionalGeneration",
        dict(d_model=384, encoder_layers=4, decoder_layers=4)
        | dict(encoder_attention_heads=6, decoder_attention_heads=6)
        | dict(encoder_ffn_dim=1536, decoder_ffn_dim=1536, suppress_tokens=None),
        "WhisperSpeechToText",
    ),
    "bert_base": ("BertForSequenceClassification", {}, "BertClassifier"),
}
CELLS = ["small_1", "small_4", "llama160m_1", "llama160m_4", "gpt2_1", "gpt2_4", "prefill"]
CELLS += ["t5_small_1", "whisper_tiny_1", "bert_base", "load", "load_memory"]
SMALL_LIMITS = {"torch": 1 / 1.2, "jax": 1 / 2}  # of a model that Python's time rules
NATIVE = 1 / 0.97  # highest allowed time over the loop by hand
LOAD = 1.2  # highest allowed time over transformers', and memory over the file's size


@cache
def models(name):
    """(transformers' model, khub's with the same weights, the folder they lie in)."""
    import torch
    import transformers

    from khub import nlp

    torch.set_num_threads(1)
    theirs, options, ours = MODELS[name]
    theirs = getattr(transformers, theirs)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() and backend() == "torch" else "cpu"
    model = theirs(theirs.config_class(**options)).eval().to(device)
    folder = Path(tempfile.mkdtemp()) / name
    model.save_pretrained(folder)
    ours = getattr(nlp, ours)
    return model, ours.from_preset(str(folder), preprocessor=None), folder


def generating(name, rows, length=PROMPT, new=NEW):
    """Side -> the tokens that follow random prompts; all sides must find the same."""
    import torch

    theirs, ours, _ = models(name)
    random, seq2seq = np.random.default_rng(0), name == "t5_small"
    prompts = random.integers(3, 4000, (rows, length))
    ids = torch.from_numpy(prompts).to(theirs.device)
    most = new + (1 if seq2seq else length)
    options = dict(attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None)

    def native():
        with torch.inference_mode():
            found = theirs.generate(ids, max_new_tokens=new, pad_token_id=0, **options)
        return found[:, -new:].tolist()

    def khub():
        answers = ours.generate(prompts.tolist(), max_length=most, stop=[], strip_prompt=True)
        return [row[-new:] for row in answers]

    sides = {"khub": khub, "transformers": native}
    if name in ("small", "llama160m") and backend() == "jax":
        sides["native"] = native_jax(ours, prompts, new)
    assert len({str(side()) for side in sides.values()}) == 1, "the sides do not agree"
    return {side: (lambda f=f: len(f())) for side, f in sides.items()}


def backend():
    import khub

    return khub.backend.name


def native_jax(model, prompts, new):
    """Greedy decoding of a Llama as someone writes it who knows JAX: one jitted function."""
    import jax
    import jax.numpy as jnp

    weights = {name: jnp.asarray(v.numpy()) for name, v in model.named_variables().items()}
    backbone = model.backbone
    width, heads = backbone.head_dim, backbone.num_query_heads
    epsilon, hidden = backbone.layer_norm_epsilon, backbone.intermediate_dim
    batch, length = prompts.shape
    room = length + new
    angles = backbone.rope_max_wavelength ** -(np.arange(0, width, 2) / width)

    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * scale

    def turn(x, at):
        turns = (jnp.arange(x.shape[1]) + at)[:, None] * jnp.asarray(angles, jnp.float32)
        cos, sin = jnp.cos(turns)[None, :, None], jnp.sin(turns)[None, :, None]
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def network(w, ids, keys, values, at):
        x = w["backbone.embeddings.embeddings"][ids]
        time = ids.shape[1]
        seen = jnp.arange(room)[None] <= (jnp.arange(time) + at)[:, None]
        for i in range(backbone.num_layers):
            block = f"backbone.blocks.{i}."
            y = norm(x, w[block + "attention_norm.scale"]) @ w[block + "attention.qkv.kernel"]
            q, k, v = jnp.split(y.reshape(len(ids), time, 3 * heads, width), 3, 2)
            start = (i, 0, at, 0, 0)
            keys = jax.lax.dynamic_update_slice(keys, turn(k, at)[None], start)
            values = jax.lax.dynamic_update_slice(values, v[None], start)
            y = jax.nn.dot_product_attention(turn(q, at), keys[i], values[i], mask=seen[None, None])
            output = w[block + "attention.output_projection.kernel"]
            x = x + y.reshape(len(ids), time, -1) @ output
            y = norm(x, w[block + "norm.scale"]) @ w[block + "feed_forward.gate_up.kernel"]
            y = jax.nn.silu(y[..., :hidden]) * y[..., hidden:]
            x = x + y @ w[block + "feed_forward.down.kernel"]
        scores = norm(x[:, -1], w["backbone.norm.scale"]) @ w["lm_head.kernel"]
        return jnp.argmax(scores, -1).astype(jnp.int32), keys, values

    @jax.jit
    def generate(w, ids):
        cache = jnp.zeros((backbone.num_layers, batch, room, heads, width))
        token, keys, values = network(w, ids, cache, cache, 0)
        found = jnp.zeros((batch, new), jnp.int32).at[:, 0].set(token)

        def step(i, state):
            token, found, keys, values = state
            token, keys, values = network(w, token[:, None], keys, values, length + i - 1)
            return token, found.at[:, i].set(token), keys, values

        return jax.lax.fori_loop(1, new, step, (token, found, keys, values))[1]

    ids = jnp.asarray(prompts, jnp.int32)
    return lambda: np.asarray(generate(weights, ids)).tolist()


def hearing():
    """Side -> the tokens that random weights hear in 30 s of features."""
    import torch

    from khub.nlp.generation import Answers

    theirs, ours, _ = models("whisper_tiny")
    features = np.random.default_rng(0).standard_normal((1, 80, 3000), np.float32)
    x = torch.from_numpy(features).to(theirs.device)
    start = theirs.config.decoder_start_token_id
    theirs.generation_config.suppress_tokens = theirs.generation_config.begin_suppress_tokens = None

    def native():
        with torch.inference_mode():
            options = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None)
            return theirs.generate(x, **options)[0, -NEW:].tolist()

    def khub():
        memory = ours.memory(features.swapaxes(1, 2))
        return Answers(ours, [[start]], 1 + NEW, memory=memory).rows()[0]

    assert native() == khub(), "the sides do not agree"
    return {"khub": lambda: len(khub()), "transformers": lambda: len(native())}


def predicting(rows=16, length=128):
    """Side -> BERT-base's logits of texts."""
    import torch

    theirs, ours, _ = models("bert_base")
    ids = np.random.default_rng(0).integers(3, 4000, (rows, length))
    mask = np.arange(length) < np.linspace(length // 2, length, rows, dtype=int)[:, None]
    x = {"token_ids": ids.astype("int32"), "padding_mask": mask}
    x["segment_ids"] = np.zeros_like(x["token_ids"])

    def native():
        with torch.inference_mode():
            on = theirs.device
            given = torch.from_numpy(ids).to(on), torch.from_numpy(mask).long().to(on)
            return theirs(*given).logits.cpu().numpy()

    def khub():
        return ours.predict(x, batch_size=rows, verbose=0)

    np.testing.assert_allclose(khub(), native(), atol=1e-4)
    return {"khub": lambda: khub().sum(), "transformers": lambda: native().sum()}


def loading():
    """Side -> a BERT-base of 440 MB opened."""
    theirs, ours, folder = models("bert_base")
    theirs, ours = type(theirs), type(ours)

    def khub():
        return ours.from_preset(str(folder), preprocessor=None).count_params()

    def native():
        return theirs.from_pretrained(folder).num_parameters()

    return {"khub": khub, "transformers": native}


MEMORY = """
import sys
import numpy as np
from khub import nlp
def peak():
    rows = open("/proc/self/status").read().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM"))
tiny = nlp.BertClassifier(nlp.BertBackbone(9, 1, 1, 8, 8))
tiny.backbone.embeddings.word.embeddings.numpy()
before = peak()
model = nlp.BertClassifier.from_preset(sys.argv[1], preprocessor=None)
for variable in model.weights:
    value = variable.value  # which comes from the file at the first use
    np.asarray(value.detach() if hasattr(value, "detach") else value).sum()
print(peak() - before)
"""


def memory():
    """The memory that opening and using BERT-base took at its peak, over the size of the file."""
    folder = models("bert_base")[2]
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=True
    )
    peak = int(found.stdout.split()[-1])
    result = {"peak_bytes": peak, "file_bytes": size, "ratio": peak / size, "limit": LOAD}
    return result | {"reaches_target": peak / size <= LOAD}


def contenders(cell):
    if cell == "prefill":
        return generating("llama160m", 1, 512, 1)
    if cell == "whisper_tiny_1":
        return hearing()
    if cell == "bert_base":
        return predicting()
    if cell == "load":
        return loading()
    name, _, rows = cell.rpartition("_")
    return generating(name, int(rows))


def judge(cell, seconds):
    """Medians of the per-turn ratios, and whether khub is as fast as it must be."""
    limits = {"transformers": NOISE}
    if cell.startswith("small"):
        limits["transformers"] = SMALL_LIMITS.get(backend(), NOISE)
    if cell == "load":
        limits["transformers"] = LOAD
    if "native" in seconds and not cell.startswith("small"):  # where fixed costs rule
        limits["native"] = NATIVE
    ratios = {
        side: [a / b for a, b in zip(seconds["khub"], seconds[side], strict=True)]
        for side in seconds
        if side != "khub"
    }
    return {
        "median_seconds": {side: median(times) for side, times in seconds.items()},
        "ratio": {side: median(found) for side, found in ratios.items()},
        "quartiles": {side: quantiles(found, n=4)[::2] for side, found in ratios.items()},
        "limit": limits,
        "reaches_target": all(median(ratios[side]) <= limits[side] for side in limits),
        "seconds": seconds,
    }


def measure(options):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    card = "_gpu" if gpu() else ""
    path, good = RESULTS / f"generation_{options.backend}{card}.json", True
    table = json.loads(path.read_text()) if path.exists() else {}
    for cell in options.cells.split(",") if options.cells else CELLS:
        if cell == "load_memory":
            result = memory()
            times, ratios = "", {"file": result["ratio"]}
        else:
            result = judge(cell, run(contenders(cell), 1, options.turns))
            times, ratios = f"{result['median_seconds']['khub'] * 1e3:10.1f} ms", result["ratio"]
        table[cell] = describe(options.backend) | result
        shown = "  ".join(f"{ratio:.2f} of {side}" for side, ratio in ratios.items())
        verdict = "pass" if result["reaches_target"] else "FAIL"
        print(f"{options.backend:12}{cell:16}{times}  {shown}  {verdict}", flush=True)
        good &= result["reaches_target"]
        path.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("benchmarks.generation", __doc__.splitlines()[0], CELLS, 7, measure))
