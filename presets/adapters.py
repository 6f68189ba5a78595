"""LoRA of a model as PEFT keeps it: adapter_config.json and adapter_model.safetensors.

Hu et al. 2021, arXiv:2106.09685. In khub a is (inputs, rank) and b (rank, outputs), in PEFT A is
(rank, inputs) and B (outputs, rank). Where khub has several layers of the reference as one, they
share a, and each has its columns of b.
"""

import math
import re
from pathlib import Path

import numpy as np

from .tensors import Checkpoint, WeightsError, parse_json, write_checkpoint, write_json
from .weights import JOIN, reference_name, slots

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."
# what changes the result, with the values that do not
PLAIN = dict(bias=("none",), use_dora=(False, None), modules_to_save=(None, []), lora_bias=(False,))
PLAIN |= dict(use_qalora=(False, None), use_bdlora=(False, None), trainable_token_indices=(None,))
KEY = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")


def save_lora(model, folder):
    """Write a model's LoRA into a folder that `peft` opens on the reference's model.

    Raises ValueError for a model without LoRA.
    """
    from khub.models import lora

    if not (adapted := lora.adapted(model)):
        raise ValueError(f"{model.name} has no LoRA; call enable_lora(rank) first.")
    tensors, ranks, alphas = {}, {}, {}
    modules = _modules(model)
    for path, layer in adapted.items():
        a, b = (np.asarray(v.numpy()) for v in layer.matrices())
        mark = "lora_{}.weight" if hasattr(layer, "kernel") else "lora_embedding_{}"
        for module, columns in modules[path].items():
            for which, matrix in (("A", a), ("B", b[:, columns])):
                name = f"{PREFIX}{module}.{mark.format(which)}"
                tensors[name] = np.ascontiguousarray(matrix.T)
            ranks[module], alphas[module] = layer.lora_rank, layer.lora_alpha
    rank, alpha = (next(iter(found.values())) for found in (ranks, alphas))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, tensors, {"format": "pt"}, name=WEIGHTS)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: n for module, n in ranks.items() if n != rank},
        "alpha_pattern": {module: x for module, x in alphas.items() if x != alpha},
        "target_modules": list(ranks),
        "bias": "none",
    }
    write_json(folder / CONFIG, config)


def load_lora(model, folder):
    """Give a model the LoRA that `peft` or `save_lora` wrote; it is trained on, or merged.

    Raises WeightsError for what the model has no place for, or khub does not read; ValueError for a
    model that has LoRA. Then nothing has changed.
    """
    from khub.models import lora

    folder = Path(folder)
    config = parse_json((folder / CONFIG).read_bytes(), str(folder / CONFIG))
    _check(config, folder / CONFIG)
    pieces = _pieces(Checkpoint(folder / f"{WEIGHTS}.safetensors"), config)
    known, layers, made = _modules(model), model.named_layers(), {}
    for path, modules in known.items():
        found = {module: pieces.pop(module) for module in modules if module in pieces}
        if found:
            made[path] = _joined(found, modules, layers[path], folder)
    if pieces or not made:
        names = [name for parts in known.values() for name in parts]
        raise WeightsError(
            f"{folder} is no LoRA of {type(model).__name__}, which has no place for "
            f"{', '.join(list(pieces)[:10]) or 'anything'}; it has {', '.join(names[:10])}."
        )
    lora.begin(model, {path: (a.shape[1], alpha) for path, (a, _, alpha) in made.items()})
    for path, (a, b, _) in made.items():
        for variable, value in zip(layers[path].matrices(), (a, b)):
            variable.assign(value)


def _modules(model):
    """Path of a layer -> {the reference's module: its columns of b} in the order that they have."""
    from khub.models.quantization import weight_of

    found, layers = {}, model.named_layers()
    for slot in slots(model):
        path, _, last = slot.path.rpartition(".")
        if slot.stack or path not in layers or last != weight_of(layers[path]):
            continue
        names = reference_name(model, slot).split(JOIN)
        units = slot.shape[0]
        ends = np.cumsum(slot.sizes or [units // len(names)] * len(names))
        columns = [slice(None)] if len(names) == 1 else map(slice, [0, *ends[:-1]], ends)
        found[path] = {n.removesuffix(".weight"): part for n, part in zip(names, columns)}
    return found


def _check(config, path):
    kind = config.get("peft_type")
    wrong = {n: config[n] for n, plain in PLAIN.items() if config.get(n, plain[0]) not in plain}
    if kind != "LORA" or wrong:
        raise WeightsError(f"{path} has peft_type {kind!r}, {wrong or ''}: expected plain LoRA.")


def _pieces(file, config):
    """Module -> (A, B, what their product is multiplied by)."""
    found, result = {}, {}
    for name in file.names:
        module, which = match.groups() if (match := KEY.fullmatch(name)) else (name, None)
        found.setdefault(module, {})[which] = np.array(file.tensor(name).read(), "float32")
    for module, pair in found.items():
        shapes = {which: matrix.shape for which, matrix in pair.items()}
        if pair.keys() != {"A", "B"} or any(x.ndim != 2 for x in pair.values()):
            raise WeightsError(f"{file.path}: {module} needs matrices A and B, got {shapes}.")
        rank = len(pair["A"])
        alpha = _number(config, module, file.path)
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else max(rank, 1))
        result[module] = pair["A"], pair["B"], scale
    return result


def _number(config, module, path):
    """The module's lora_alpha."""
    patterns = config.get("alpha_pattern") or {}
    found = [v for key, v in patterns.items() if f".{module}".endswith(f".{key.lstrip('^')}")]
    alpha = (found or [config.get("lora_alpha")])[0]
    if any(re.search(r"[^\w.^]", key) for key in patterns) or not isinstance(alpha, (int, float)):
        raise WeightsError(f"{path.parent / CONFIG}: no number for lora_alpha of {module}.")
    return alpha


def _joined(found, modules, layer, folder):
    """(a, b, alpha) of a layer, of the matrices of the modules that it is made of."""
    from khub.models.quantization import weight_of

    *_, inputs, units = getattr(layer, weight_of(layer)).value.shape
    first = next(iter(found.values()))[2] or 1.0
    rank = sum(len(a) for a, _, _ in found.values())
    b, row = np.zeros((rank, units), "float32"), 0
    for module, (one, other, scale) in found.items():
        part = b[row : row + len(one), modules[module]]
        if one.shape[1] != inputs or other.T.shape != part.shape:
            raise WeightsError(
                f"{folder}: {module} has A {one.shape}, B {other.shape}; expected (rank, {inputs}) "
                f"and ({part.shape[1]}, rank)."
            )
        part += other.T * (scale / first)
        row += len(one)
    a = np.concatenate([one for one, _, _ in found.values()]).T
    return np.ascontiguousarray(a), b, first * rank
