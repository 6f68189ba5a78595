"""What is added to a Stable Diffusion model: LoRA files and textual inversions.

Hu et al. 2021, arXiv:2106.09685 (LoRA); Gal et al. 2022, arXiv:2208.01618 (textual inversion).
"""

import re
from pathlib import Path

import numpy as np

from ..nlp.tokenizers import engine
from ..nlp.transformer import table
from ..presets.tensors import Checkpoint, WeightsError, parse_json
from ..presets.weights import JOIN, slots
from .single_file import unet_name

MODELS = ("unet", "text_encoder", "text_encoder_2")
# a module, which of the two matrices it is (or alpha), as PEFT, diffusers and kohya write it
KEY = re.compile(
    r"(?P<module>.+?)[._]lora(?:_linear_layer)?(?:_(?P<ab>[AB])|[._](?P<way>down|up))"
    r"(?:\.\w+)?\.weight|(?P<of>.+)\.alpha"
)
PREFIXES = (  # what names begin with -> the model
    *(("base_model.model.", ""), ("lora_unet_", "unet."), ("lora_te2_", "text_encoder_2.")),
    *(("lora_te1_", "text_encoder."), ("lora_te_", "text_encoder.")),
)
NAMELESS = ("*", "emb_params", "clip_l", "clip_g")  # names of vectors that are no token


class Adapters:
    """Gives a pipeline LoRA and textual inversion."""

    _loras, _values, _words = {}, {}, {}  # by name; of variables before LoRA; of each new word

    # --- LoRA ------------------------------------------------------------------------------------
    def load_lora(self, path, scale=1.0, name=None):
        """Merge a file of LoRA into the weights; `remove_lora` takes it out again.

        path: as PEFT, diffusers or kohya write it   scale: how much it counts
        name: None: the file's
        Raises WeightsError for what belongs to nothing or does not fit; then nothing has changed.
        """
        name = name or Path(path).stem
        if name in self.open()._loras:
            raise ValueError(f"There is a LoRA {name!r} already; remove_lora({name!r}) first.")
        self._merge({**self._loras, name: _changes(self, Checkpoint(path), scale)})

    def remove_lora(self, name=None):
        """Take a LoRA out of the weights, None: all; they are then what they were, to the bit."""
        if name is not None and name not in self._loras:
            raise ValueError(f"There is no LoRA {name!r}; there are {', '.join(self._loras)}.")
        self._merge({n: found for n, found in self._loras.items() if name not in (None, n)})

    def _merge(self, loras):
        wanted = [change for changes in loras.values() for change in changes]
        before = [change for changes in self._loras.values() for change in changes]
        slots = {id(slot.variable): slot for slot, *_ in (*before, *wanted)}
        kept = {key: np.array(slot.variable.numpy()) for key, slot in slots.items()} | self._values
        made = {key: _turned(kept[key], slot.axes, back=True) for key, slot in slots.items()}
        for slot, rows, up, down, scale in wanted:
            part = made[id(slot.variable)][rows]
            up, down = up.reshape(len(up), -1), down.reshape(len(down), -1)
            if up.shape != (len(part), len(down)) or len(part) * down.shape[1] != part.size:
                raise WeightsError(
                    f"A LoRA of {up.shape} @ {down.shape} does not fit {slot.path}, {part.shape}."
                )
            part += scale * (up @ down).reshape(part.shape)
        changed = {id(slot.variable) for slot, *_ in wanted}
        for key, slot in slots.items():
            value = _turned(made[key], slot.axes).astype(kept[key].dtype)
            slot.variable.assign(value if key in changed else kept[key])
        self._loras, self._values = loras, {key: kept[key] for key in changed}

    # --- textual inversion -----------------------------------------------------------------------
    def load_textual_inversion(self, path, token=None):
        """Teach the text encoder a new word by its vectors; return the word, to be used in prompts.

        path: .safetensors, .bin or .pt   token: the word, None: as the file says, else <its name>
        """
        encoders = [self.open().text_encoder, self.text_encoder_2][: 1 + self.is_xl]
        tokenizers = [self.tokenizer, self.tokenizer_2][: 1 + self.is_xl]
        file = Checkpoint(path)
        arrays = {n: np.atleast_2d(np.array(file.tensor(n).read(), "float32")) for n in file.names}
        by_width = {x.shape[1]: x for x in arrays.values() if x.ndim == 2}
        widths = [encoder.hidden_dim for encoder in encoders]
        if len(arrays) != len(widths) or by_width.keys() != set(widths):
            shapes = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
            raise WeightsError(f"{path} has {shapes}; expected vectors of the width {widths}.")
        named = [name for name in arrays if name not in NAMELESS]
        token = token or (named[0] if named else f"<{Path(path).stem}>")
        words = [token, *(f"{token}_{i}" for i in range(1, len(by_width[widths[0]])))]
        if known := {w for w in words for t in tokenizers if w in t.backend.get_vocab()}:
            raise ValueError(f"The tokenizer knows {', '.join(known)} already: give another token.")
        for encoder, tokenizer in zip(encoders, tokenizers):
            tokenizer.backend.add_tokens([engine().AddedToken(w, normalized=False) for w in words])
            ids = [tokenizer.token_to_id(word) for word in words]
            _add_rows(encoder, ids, by_width[encoder.hidden_dim])
        self._words = {**self._words, token: words}
        self.forget_functions()
        return token

    def expanded(self, text):
        """A prompt with each word of several vectors as so many words."""
        for token, words in self._words.items():
            text = text.replace(token, " ".join(words))
        return text


def _add_rows(encoder, ids, vectors):
    """Give a text encoder the vectors of new ids."""
    old = encoder.embeddings.token_embedding
    rows = np.array(old.embeddings.numpy())
    rows = np.pad(rows, [(0, max(0, max(ids) + 1 - len(rows))), (0, 0)])
    rows[ids] = vectors
    encoder.embeddings.token_embedding = new = table(encoder, *rows.shape)
    new.embeddings.assign(rows)
    new.trainable = old.trainable
    encoder.vocabulary_size = encoder.embeddings.vocabulary_size = len(rows)


def _turned(value, axes, back=False):
    """An array of the reference's layout in khub's, or back, of its own."""
    axes = range(value.ndim) if axes is None else np.argsort(axes) if back else axes
    return np.array(value.transpose(axes), "float32", order="C")


def _flat(name):
    """A module's name as all of the files' layouts agree on it."""
    for before, after in PREFIXES:
        if name.startswith(before):
            name = after + name.removeprefix(before)
    if not name.startswith(tuple(f"{model}." for model in MODELS)):
        name = f"unet.{name}"
    name = re.sub(r"_to_out$", "_to_out_0", name.replace(".processor.", ".").replace(".", "_"))
    return re.sub(r"^(text_encoder(?:_2)?)_text_model_", r"\1_", name)


def _modules(pipeline):
    """Flat name -> (slot, its rows) of each matrix of the models."""
    found = {}
    for model in MODELS:
        if (part := getattr(pipeline, model)) is None:
            continue
        for slot in slots(part):
            names = slot.name.split(JOIN)
            size = slot.shape[0] // len(names) if slot.shape else 1
            for i, name in enumerate(names):
                module = _flat(f"{model}.{name.removesuffix('.weight')}")
                found[module] = slot, slice(i * size, (i + 1) * size)
    return found


def _changes(pipeline, file, scale):
    """[(slot, rows, up, down, scale), ...]: what is added to rows of the reference's tensor.

    Raises WeightsError for tensors that there is no place for.
    """
    modules, parts, unknown = _modules(pipeline), {}, []
    layers = np.ravel(pipeline.unet.layers_per_block)[0]
    for name in file.names:
        match = KEY.fullmatch(name)
        module = _flat(match["module"] or match["of"]) if match else name
        if module not in modules and module.startswith("unet_"):  # kohya's of XL
            module = _flat("unet." + unet_name(module.removeprefix("unet_"), layers))
        if module not in modules:
            unknown.append(name)
            continue
        kind = "alpha" if match["of"] else {"A": "down", "B": "up"}.get(match["ab"], match["way"])
        parts.setdefault(module, {})[kind] = np.array(file.tensor(name).read(), "float32")
    unknown += [name for name, found in parts.items() if not found.keys() >= {"up", "down"}]
    if unknown or not parts:
        what = ", ".join(unknown[:10]) or "anything"
        raise WeightsError(f"{file.path} is no LoRA of this model, which has no place for {what}.")
    notes = parse_json(
        file.metadata.get("lora_adapter_metadata", "{}"), f"The notes in {file.path}"
    )
    changes = []
    for name, found in parts.items():
        slot, rows = modules[name]
        model = next(m for m in MODELS[::-1] if name.startswith(f"{m}_"))
        rank = len(found["down"])
        alpha = float(found.get("alpha", notes.get(f"{model}.lora_alpha", rank)))
        changes.append((slot, rows, found["up"], found["down"], scale * alpha / rank))
    return changes
