"""from_preset, save_to_preset, push_to_hub: models, tokenizers, preprocessors as preset folders."""

import errno
import inspect
import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import adapters, keras_h5, weights
from .catalog import info
from .download import CONFIG, SMALL_FILES, WEIGHT_FILES, description, download
from .family import Family, families, key_of, of_class, of_config
from .handles import parse
from .tensors import FULL, Checkpoint, no_room, parse_json, write_checkpoint, write_json

GENERATION = "generation_config.json"
CONFIG_LIMIT = 10_000_000  # bytes
COUNT_LIMIT = 10_000  # of layers, heads, ...: a hostile config.json makes nobody build for ever
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Preset:
    """An opened preset: its folder, the content of config.json, and the family that reads it.

    published: whether the folder does not exist, and the family knows where the weights are
    """

    folder: Path
    config: dict
    family: Family
    published: bool = False

    @property
    def saved_class(self):
        """The name of khub's class that was saved, None in a preset of the reference."""
        own = self.config.get("khub")
        return own.get("class") if isinstance(own, dict) else None

    def own(self, part):
        """Return the dict that khub keeps for itself in config.json: "head" or "preprocessor"."""
        own = self.config.get("khub")
        kept = own.get(part) if isinstance(own, dict) else None
        return kept if isinstance(kept, dict) else {}

    @property
    def backbone(self):
        """The class of the backbone: the family's, or of another one that a detector stands on."""
        own = self.config.get("khub")
        name = own.get("backbone_family") if isinstance(own, dict) else None
        found = self.family if name is None else families().get(name)
        if found is None:
            raise ValueError(f"{self.folder / CONFIG} has the unknown backbone_family {name!r}.")
        return found.backbone

    @property
    def positions(self):
        """The longest sequence that the backbone takes, None when it is not said."""
        models = [self.family.backbone, *self.family.tasks.values()]
        if self.saved_class not in (None, *(cls.__name__ for cls in models)):
            return None  # only a tokenizer or a preprocessor was saved
        found = self.family.backbone.config_from_reference(self.config).get("max_sequence_length")
        return found if isinstance(found, int) else None

    @property
    def architecture(self):
        """The reference's class that the weights were saved from, None when it is not said."""
        names = self.config.get("architectures")
        return names[0] if isinstance(names, list) and names else None

    def default_class(self):
        """Return the class that was saved: khub's, else the architecture's, else the backbone."""
        hosts = [getattr(task, "preprocessor_class", None) for task in self.family.tasks.values()]
        for cls in [*self.family.classes(), *filter(None, hosts)]:
            if cls.__name__ == self.saved_class:
                return cls
        for task, architecture in self.family.architectures.items():
            names = (architecture,) if isinstance(architecture, str) else architecture
            if self.architecture in names and task in self.family.tasks:
                return self.family.tasks[task]
        if self.config.get("num_classes") and "architecture" in self.config:  # timm's config.json
            return self.family.tasks.get("ImageClassifier", self.family.backbone)
        return self.family.backbone


def open_preset(handle, load_weights=True, accept_license=False):
    """Fetch a handle and return its `Preset`. Raises ValueError when no family reads it."""
    if (place := parse(handle)).kind == "published":
        config = info(place.location).config
        return Preset(Path(place.location), config, of_config(config, place.location), True)
    folder = download(handle, weights=load_weights, accept_license=accept_license)
    path = description(folder)
    if path.stat().st_size > CONFIG_LIMIT:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes; at most {CONFIG_LIMIT:,} is sane."
        )
    config = parse_json(path.read_bytes(), str(path))
    if (path := folder / GENERATION).is_file():
        config["generation_config"] = parse_json(path.read_bytes(), str(path))
    return Preset(folder, config, of_config(config, description(folder)))


def load(handle, **options):
    """Open a preset as the class it was saved as; options are `from_preset`'s."""
    opening = {n: options[n] for n in ("load_weights", "accept_license") if n in options}
    cls = open_preset(handle, **opening).default_class()
    return cls.from_preset(handle, **options)


def choose_class(cls, preset):
    """Return the class of the preset's family that stands for `cls`, a generic or concrete one.

    Raises ValueError, naming the class to use, when `cls` belongs to another family.
    """
    family, own = preset.family, of_class(cls)
    if own is family or hasattr(cls, "preset_config") and own is None:
        return cls
    key = key_of(preset.config)
    where = (
        f"{description(preset.folder) or preset.folder / CONFIG} has {key} {preset.config[key]!r}"
    )
    if own is not None:
        task = _task_name(own, cls)
        right = family.tasks.get(task, family.backbone if task is None else None)
        hint = f"use {right.__name__}" if right else f"{family.name} has no {task}"
        raise ValueError(
            f"{where}, but {cls.__name__} reads {', '.join(own.model_types)}: {hint}, or load("
            "handle) for the class that was saved."
        )
    fitting = [c for c in family.classes() if issubclass(c, cls)]
    if cls.__name__ in family.tasks:
        return family.tasks[cls.__name__]
    if preset.default_class() in fitting:
        return preset.default_class()
    if len(fitting) == 1:
        return fitting[0]
    have = ", ".join(c.__name__ for c in family.classes())
    raise ValueError(f"{where}, and the family {family.name} has no {cls.__name__}; it has {have}.")


def _task_name(family, cls):
    heads = {name: c for name, c in family.tasks.items() if c is not family.backbone}
    return next((name for name, c in heads.items() if issubclass(cls, c)), None)


def _arguments(cls):
    return inspect.signature(cls.__init__).parameters.keys() - {"self", "kwargs", "args"}


class Presettable:
    """Gives a class `from_preset`, `save_to_preset` and `push_to_hub`.

    Three kinds. Models have weight_map, ignored and reference_config(); a backbone also
    reference_prefix, optional and config_from_reference(config), a task head_from_reference(config)
    and preprocessor_class. Preprocessors have preset_config(), save(folder), and either a
    tokenizer, their first argument, or config_from_preset(preset). Tokenizers have load(folder) and
    save(folder).
    """

    @classmethod
    def from_preset(
        cls,
        handle,
        load_weights=True,
        dtype=None,
        strict=True,
        quantize=None,
        accept_license=False,
        **overrides,
    ):
        """Return an instance made from a preset; a generic class returns the family's own.

        handle: catalogue name, hf://org/name[@revision], folder, https://...zip#sha256=...
        dtype: of the weights and the computation; None keeps bfloat16, else is the default
        strict: every tensor must fit; False logs those that do not
        quantize: "int8", "int4" or "float8", how kernels are kept, one by one as they come
        accept_license: see `download`
        overrides: constructor arguments of the task, its backbone or its preprocessor
        """
        from khub.layers import Layer

        preset = open_preset(handle, load_weights and issubclass(cls, Layer), accept_license)
        target = choose_class(cls, preset)
        if not issubclass(target, Layer):
            return _host_side(target, preset, overrides)
        return _model(target, preset, load_weights, dtype, strict, quantize, overrides)

    def save_to_preset(self, folder, dtype=None):
        """Write the Hugging Face layout into `folder`, all of it or, when anything fails, nothing.

        dtype: of the floats in the file, None means as they are
        Raises OSError when there is no room, FileExistsError for a folder that is no preset.
        """
        if hasattr(self, "weight_map"):
            return _save_model(self, Path(folder), dtype)
        _save_host_side(self, Path(folder).expanduser().resolve())

    def save_lora(self, folder):
        """Write what LoRA learned, for `load_lora` and for `peft`; see `khub.presets.adapters`."""
        adapters.save_lora(self, folder)

    def load_lora(self, folder):
        """Take up the LoRA that `save_lora` or `peft` wrote; `merge_lora` puts it into the weights.

        Raises WeightsError when it is of another model.
        """
        adapters.load_lora(self, folder)

    def push_to_hub(self, repository, private=False, token=None):
        """Save, then upload to "org/name" on the Hub; return the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "preset")
            self.save_to_preset(folder)
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=folder)
        return commit.commit_url


def _host_side(cls, preset, overrides):
    if not hasattr(cls, "preset_config"):
        return cls.load(preset.folder, **overrides)
    if hasattr(cls, "config_from_preset"):
        with _named(preset, cls):
            return cls(**{**cls.config_from_preset(preset), **overrides})
    tokenizer = overrides.pop("tokenizer", None) or preset.family.tokenizer.load(preset.folder)
    known = _arguments(cls) - {"tokenizer"}
    lengths = [name for name in known if name.endswith("sequence_length")]
    longest = min(512, preset.positions or 512)
    options = dict.fromkeys(lengths, longest) | preset.own("preprocessor")
    with _named(preset, cls):
        return cls(tokenizer, **{k: v for k, v in options.items() if k in known} | overrides)


@contextmanager
def _named(preset, cls):
    """Say in errors of constructors which config.json they were called for."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        where = f"{preset.folder / CONFIG} does not make a {cls.__name__}"
        raise ValueError(f"{where}: {error}") from error


def _model(cls, preset, load_weights, dtype, strict, quantize, overrides):
    family = preset.family
    with_file = load_weights and not preset.published
    checkpoint = Checkpoint(preset.folder) if with_file else None
    if dtype is None and checkpoint and checkpoint.float_dtypes() == {"bfloat16"}:
        dtype = "bfloat16"
    common = {"dtype": dtype} if dtype is not None else {}
    base = preset.backbone
    with _named(preset, base):
        own = preset.own("backbone")  # says more than the reference's config.json can
        backbone = own or base.config_from_reference(preset.config)
        if checkpoint and hasattr(base, "config_from_names"):
            backbone = base.config_from_names(backbone, checkpoint.names)
        for name, value in backbone.items():
            if name.startswith("num_") and isinstance(value, int) and value > COUNT_LIMIT:
                raise ValueError(f"{name} is {value:,}; at most {COUNT_LIMIT:,} is sane.")
    if issubclass(cls, family.backbone):
        _split(overrides, cls)
        with _named(preset, cls):
            model, changed = cls(**{**backbone, **overrides}, **common), False
    else:
        with _named(preset, cls):
            head = cls.head_from_reference(preset.config)
            if hasattr(cls, "head_from_folder"):  # what other files of the reference say
                head |= cls.head_from_folder(preset.folder)
        if preset.saved_class == cls.__name__:
            head |= preset.own("head")
        preprocessor = getattr(cls, "preprocessor_class", None)
        own, inner, host = _split(overrides, cls, base, preprocessor)
        if preprocessor and "preprocessor" not in own:
            own["preprocessor"] = _host_side(preprocessor, preset, host)
        if own.get("num_classes", (was := head.get("num_classes"))) != was:
            head.pop("labels", None)  # they name the classes of the saved head
        changed = any(head.get(name) != own[name] for name in own.keys() - {"preprocessor"})
        with _named(preset, cls):
            body = base(**{**backbone, **inner}, **common)
            model = cls(body, **{**head, **own}, **common)
    if load_weights and preset.published:
        with_head = not changed and not issubclass(cls, family.backbone)
        part = model.network if with_head else getattr(model, "backbone", model)
        keras_h5.load(part, family.published(preset.config, with_head))
    elif load_weights:
        expected = family.architectures.get(_task_name(family, cls), ())
        expected = (expected,) if isinstance(expected, str) else expected
        saved = preset.architecture
        foreign = saved not in (None, *expected) and not saved.endswith("ForPreTraining")
        after = quantize and _packing(model, quantize)
        weights.load(model, checkpoint, family.heads(), foreign, changed, strict, after)
        return model
    if quantize:
        model.quantize(quantize, filters=lambda layer: hasattr(layer, "kernel"))
    return model


def _packing(model, mode):
    """What packs the kernel of a Dense layer as soon as it is there, given its path."""
    from khub.models import quantization

    quantization.configuration(mode)
    layers = quantization.chosen(model, names=("kernel",))

    def pack(path):
        layer, _, name = path.rpartition(".")
        if name == "kernel" and layer in layers:
            quantization.quantize(layers.pop(layer), mode)

    return pack


def _split(overrides, *classes):
    """Share overrides out to the first class that has an argument of this name."""
    shares = [{} for _ in classes]
    for name, value in overrides.items():
        takers = [
            i
            for i, c in enumerate(classes)
            if c and name != "backbone" and name in {"name", "trainable", *_arguments(c)}
        ]
        if not takers:
            known = sorted(set().union(*(_arguments(c) for c in classes if c)) - {"backbone"})
            raise TypeError(
                f"{classes[0].__name__}.from_preset got an unknown argument {name!r}; expected "
                f"load_weights, dtype, strict, quantize or one of {', '.join(known)}."
            )
        shares[takers[0]][name] = value
    return shares


def _save_model(model, folder, dtype):
    family = of_class(type(model))
    if family is None:
        raise ValueError(f"{type(model).__name__} belongs to no registered family.")
    ends = [n.rpartition(".")[2] for n in model.named_variables()]
    if any(n.startswith("lora_") or n in ("kernel_scale", "embeddings_scale") for n in ends):
        raise ValueError(
            f"{model.name} has LoRA or kernels of integers, which no reference reads: merge_lora() "
            "first; a quantized model is saved before it is quantized."
        )
    task, preprocessor = _task_name(family, type(model)), getattr(model, "preprocessor", None)
    saved = family.tasks[task] if task else family.backbone
    found = weights.tensors(model, dtype)
    floats = {t.dtype.name for t in found.values() if weights.is_float(t.dtype)}
    own = {"class": saved.__name__}
    base = getattr(model, "backbone", model)
    if backbone := getattr(base, "own_config", dict)():
        own["backbone"] = backbone
    if of_class(type(base)) is not family:
        own["backbone_family"] = of_class(type(base)).name
    config = {"dtype": floats.pop() if len(floats) == 1 else "float32", "khub": own}
    if "_class_name" in (reference := model.reference_config()):
        config = {}  # diffusers warns of what it does not know
    config = {**reference, **config}
    if task and (head := _head_beyond(model, saved, config)):
        own["head"] = head
    if preprocessor is not None:
        own["preprocessor"] = preprocessor.preset_config()
    architecture = family.architectures.get(task or "Backbone")
    if isinstance(architecture, str):
        config["architectures"] = [architecture]
    needed = sum(tensor.nbytes for tensor in found.values())
    with staged(folder, needed) as scratch:
        write_json(scratch / CONFIG, config)
        if task and hasattr(model, "generation_config"):
            write_json(scratch / GENERATION, model.generation_config())
        write_checkpoint(scratch, found, name=getattr(model, "weights_name", "model"))
        if preprocessor is not None:
            preprocessor.save(scratch)


def _save_host_side(item, folder):
    """Write a tokenizer's or preprocessor's files and, in a folder without one, a config.json."""
    tokenizer, config = getattr(item, "tokenizer", item), {}
    family = of_class(type(tokenizer))
    if (folder / CONFIG).is_file():
        config = parse_json((folder / CONFIG).read_bytes(), str(folder / CONFIG))
    elif family is not None:
        config = {"model_type": family.model_types[0], "khub": {"class": type(item).__name__}}
    if config and hasattr(item, "preset_config"):
        config.setdefault("khub", {})["preprocessor"] = item.preset_config()
    is_new = not folder.exists()
    scratch = folder / f".{uuid.uuid4().hex[:8]}.tmp"
    try:
        with _explained(folder):
            scratch.mkdir(parents=True)
            tokenizer.save(scratch)
            if config:
                write_json(scratch / CONFIG, config)
            for path in scratch.iterdir():
                path.replace(folder / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _explained(folder, needed=None):
    """Say in errors of writing which folder it was, not which temporary file.

    needed: bytes, for a full disk
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise no_room(error, folder, needed) from error
        if error.errno in DENIED:
            text = f"{folder} cannot be written: {folder.parent} and it must be writable"
            raise OSError(error.errno, text) from error
        raise


def _head_beyond(model, cls, config):
    """Return the head's constructor arguments that the reference's config.json has no place for."""
    from khub.saving import registry

    known = {"backbone", "preprocessor", *cls.head_from_reference(config)}
    beyond = [name for name in sorted(_arguments(cls) - known) if hasattr(model, name)]
    return {name: registry.serialize(getattr(model, name)) for name in beyond}


@contextmanager
def staged(folder, needed):
    """Give a temporary sibling of `folder` that takes its place when all went well.

    A preset that was there stays whole until then; files that khub does not write (README.md, ...)
    are kept. Raises FileExistsError when the folder holds something else than a preset.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and not (folder.is_dir() and _replaceable(folder)):
        raise FileExistsError(
            f"{folder} exists and is no preset (no {CONFIG}); choose another folder."
        )
    mark = uuid.uuid4().hex[:8]
    scratch = folder.with_name(f".{folder.name}.{mark}.tmp")
    try:
        with _explained(folder, needed):
            scratch.mkdir(parents=True)
            yield scratch
            if not folder.exists():
                scratch.rename(folder)
                return
            _keep_others(folder, scratch)
            old = folder.with_name(f".{folder.name}.{mark}.old")
            folder.rename(old)
            try:
                scratch.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            shutil.rmtree(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replaceable(folder):
    return description(folder) is not None or not any(folder.iterdir())


def _keep_others(folder, scratch):
    for path in folder.iterdir():
        ours = any(path.match(pattern) for pattern in [*SMALL_FILES, *WEIGHT_FILES])
        if ours or (scratch / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, scratch / path.name, symlinks=True)
        else:
            shutil.copy2(path, scratch / path.name, follow_symlinks=False)
