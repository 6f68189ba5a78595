"""What is added to a Stable Diffusion model: LoRA files and textual inversions.

Hu et al. 2021, arXiv:2106.09685 (LoRA); Gal et al. 2022, arXiv:2208.01618 (textual inversion).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..nlp.tokenizers import engine
from ..nlp.transformer import table
from ..presets.tensors import Checkpoint, WeightsError
from ..presets.weights import JOIN, numpy_dtype, slots
from .single_file import unet_name

MODELS = ("unet", "text_encoder", "text_encoder_2")
# a module, which of the two matrices it is (or alpha), as PEFT, diffusers and kohya write it
KEY = re.compile(
    r"(?P<module>.+?)[._]lora(?:_linear_layer)?(?:_(?P<ab>[AB])|[._](?P<way>down|up))"
    r"(?:\.\w+)?\.weight|(?P<of>.+)\.alpha"
)
PREFIXES = (  # what names begin with -> the model
    ("base_model.model.", ""),
    ("lora_unet_", "unet."),
    ("lora_te2_", "text_encoder_2."),
    ("lora_te1_", "text_encoder."),
    ("lora_te_", "text_encoder."),
)
EMBEDDINGS = {"clip_l": 0, "clip_g": 1}  # names in files for XL -> which text encoder's
NAMELESS = ("*", "emb_params", *EMBEDDINGS)  # keys that are no token


@dataclass(frozen=True)
class Change:
    """scale * up @ down, for some rows of a variable in the reference's layout."""

    slot: object
    first: int
    up: np.ndarray
    down: np.ndarray
    scale: float

    def add_to(self, value):
        """Add it to the variable's value in the reference's layout, in place."""
        change = self.up.reshape(len(self.up), -1) @ self.down.reshape(len(self.down), -1)
        part = value[self.first : self.first + len(self.up)]
        if change.size != part.size:
            raise WeightsError(
                f"A LoRA of {change.shape} does not fit {self.slot.path}, {part.shape}."
            )
        part += self.scale * change.reshape(part.shape)


class Adapters:
    """Gives a pipeline LoRA and textual inversion."""

    def _adapters(self):
        kept = self.__dict__.setdefault("_kept", {"loras": {}, "values": {}, "tokens": {}})
        return kept["loras"], kept["values"], kept["tokens"]

    # --- LoRA ------------------------------------------------------------------------------------
    def load_lora(self, path, scale=1.0, name=None):
        """Merge a file of LoRA into the weights; `remove_lora` takes it out again.

        path: as PEFT, diffusers or kohya write it   scale: how much it counts
        name: None: the file's
        Raises WeightsError for tensors that belong to nothing, before anything is changed.
        """
        loras, _, _ = self.open()._adapters()
        name = name or Path(path).stem
        if name in loras:
            raise ValueError(f"There is a LoRA {name!r} already; remove_lora({name!r}) first.")
        changes = _changes(self, Checkpoint(path), scale)
        self._merge({**loras, name: changes})

    def remove_lora(self, name=None):
        """Take a LoRA out of the weights, None: all; they are then what they were, to the bit."""
        loras, _, _ = self._adapters()
        if name is not None and name not in loras:
            raise ValueError(f"There is no LoRA {name!r}, but {', '.join(loras) or 'none'}.")
        self._merge({n: c for n, c in loras.items() if name not in (None, n)})

    def keep_loras(self):
        """Make all LoRA a part of the weights for good, as training does."""
        loras, values, _ = self._adapters()
        loras.clear(), values.clear()

    def _merge(self, wanted):
        loras, values, _ = self._adapters()
        touched = {}
        for change in [c for changes in (*loras.values(), *wanted.values()) for c in changes]:
            touched.setdefault(change.slot.path, (change.slot, []))
        for change in [c for changes in wanted.values() for c in changes]:
            touched[change.slot.path][1].append(change)
        made = {}
        for path, (slot, changes) in touched.items():
            before = values.get(path)
            before = np.array(slot.variable.numpy()) if before is None else before
            value = before.astype("float32")
            value = np.ascontiguousarray(_turned(value, slot.axes, back=True))
            for change in changes:
                change.add_to(value)
            value = _turned(value, slot.axes).astype(numpy_dtype(slot.variable.dtype))
            made[path] = slot, before, value if changes else before, bool(changes)
        for path, (slot, before, value, changed) in made.items():
            slot.variable.assign(value)
            values[path] = before
            if not changed:
                del values[path]
        loras.clear()
        loras.update(wanted)

    # --- textual inversion -----------------------------------------------------------------------
    def load_textual_inversion(self, path, token=None):
        """Teach the text encoder a new word by its vectors; return the word, to be used in prompts.

        path: .safetensors, .bin or .pt   token: the word, None: as the file says, else <its name>
        """
        _, _, tokens = self.open()._adapters()
        file = Checkpoint(path)
        arrays = {n: np.atleast_2d(np.array(file.tensor(n).read(), "float32")) for n in file.names}
        encoders = [e for e in (self.text_encoder, self.text_encoder_2) if e is not None]
        widths = [encoder.hidden_dim for encoder in encoders]
        given = [n for n in arrays if n not in NAMELESS]
        token = token or (given[0] if len(given) == 1 else f"<{Path(path).stem}>")
        found = {w: x for x in arrays.values() for w in widths if x.shape[1] == w and x.ndim == 2}
        if len(arrays) != len(widths) or found.keys() != set(widths):
            shapes = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
            raise WeightsError(
                f"{path} has {shapes}; expected vectors of the text encoders' width "
                f"{' and '.join(map(str, widths))}."
            )
        count = len(next(iter(found.values())))
        words = [token, *(f"{token}_{i}" for i in range(1, count))]
        tokenizers = [t for t in (self.tokenizer, self.tokenizer_2) if t is not None]
        if known := [w for w in words if any(w in t.backend.get_vocab() for t in tokenizers)]:
            raise ValueError(
                f"The tokenizer knows {', '.join(known)} already; give another token=."
            )
        for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
            tokenizer.backend.add_tokens([engine().AddedToken(w, normalized=False) for w in words])
            ids = [tokenizer.token_to_id(word) for word in words]
            _add_rows(encoder, ids, found[encoder.hidden_dim])
        tokens[token] = words
        self.forget_functions()
        return token

    def expanded(self, text):
        """A prompt with each word of several vectors as so many words."""
        for token, words in self._adapters()[2].items():
            text = text.replace(token, " ".join(words)) if len(words) > 1 else text
        return text


def _add_rows(encoder, ids, vectors):
    """Give a text encoder the vectors of new ids."""
    old = encoder.embeddings.token_embedding
    rows = np.array(old.embeddings.numpy())
    more = np.zeros((max(0, max(ids) + 1 - len(rows)), rows.shape[1]), rows.dtype)
    rows = np.concatenate([rows, more])
    rows[ids] = vectors
    encoder.embeddings.token_embedding = new = table(encoder, *rows.shape)
    new.embeddings.assign(rows)
    new.trainable = old.trainable
    encoder.vocabulary_size = encoder.embeddings.vocabulary_size = len(rows)


def _turned(value, axes, back=False):
    """An array of the reference's layout in khub's, or back."""
    return value if axes is None else value.transpose(np.argsort(axes) if back else axes)


def _flat(name):
    """A module's name as all of the files' layouts agree on it."""
    for before, after in PREFIXES:
        if name.startswith(before):
            name = after + name[len(before) :]
    if not name.startswith(tuple(f"{model}." for model in MODELS)):
        name = f"unet.{name}"
    name = re.sub(r"_to_out$", "_to_out_0", name.replace(".processor.", ".").replace(".", "_"))
    return re.sub(r"^(text_encoder(?:_2)?)_text_model_", r"\1_", name)


def _modules(pipeline):
    """Flat name -> (slot, first row, rows) of each matrix of the models that LoRA may change."""
    found = {}
    for model in MODELS:
        if (part := getattr(pipeline, model)) is None:
            continue
        for slot in slots(part):
            names = slot.name.split(JOIN)
            sizes = slot.sizes or [slot.shape[0] // len(names)] * len(names)
            for i, (name, size) in enumerate(zip(names, sizes)):
                module, _, last = name.rpartition(".")
                if last == "weight":
                    found[_flat(f"{model}.{module}")] = slot, sum(sizes[:i]), size
    return found


def _changes(pipeline, file, scale):
    """The `Change`s of a file. Raises WeightsError for tensors that it has no place for."""
    modules, parts, unknown = _modules(pipeline), {}, []
    layers = pipeline.unet.layers_per_block
    layers = layers if isinstance(layers, int) else layers[0]
    for name in file.names:
        match = KEY.fullmatch(name)
        module = match and _flat(match["module"] or match["of"])
        if module not in modules and module and module.startswith("unet_"):  # kohya's of XL
            module = _flat("unet." + unet_name(module.removeprefix("unet_"), layers))
        if module not in modules:
            unknown.append(name)
            continue
        kind = "alpha" if match["of"] else {"A": "down", "B": "up"}.get(match["ab"], match["way"])
        parts.setdefault(module, {})[kind] = np.array(file.tensor(name).read(), "float32")
    unknown += [name for name, found in parts.items() if not found.keys() >= {"up", "down"}]
    if unknown or not parts:
        raise WeightsError(
            f"{file.path} is no LoRA of this model: it has no place for "
            f"{', '.join(unknown[:10]) or 'anything'}{' ...' if unknown[10:] else ''}."
        )
    alphas = _alphas(file)
    changes = []
    for name, found in parts.items():
        slot, first, size = modules[name]
        rank = len(found["down"])
        if len(found["up"]) != size or found["up"].size != size * rank:
            raise WeightsError(
                f"{file.path}: {name} has up {found['up'].shape} and down {found['down'].shape}, "
                f"which do not make {size} rows."
            )
        model = next(m for m in reversed(MODELS) if name.startswith(f"{m}_"))
        alpha = float(found.get("alpha", alphas.get(model, rank)))
        changes.append(Change(slot, first, found["up"], found["down"], scale * alpha / rank))
    return changes


def _alphas(file):
    """Model -> lora_alpha, of the notes that diffusers keeps in a file's header."""
    notes = getattr(next(iter(file._files.values())), "metadata", {}).get("lora_adapter_metadata")
    notes = json.loads(notes) if notes else {}
    found = {model: notes.get(f"{model}.lora_alpha") for model in MODELS}
    return {model: alpha for model, alpha in found.items() if alpha is not None}
