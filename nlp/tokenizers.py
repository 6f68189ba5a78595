"""Tokenizers: text to ids and back, on the host, without a framework (the `tokenizers` package)."""

import functools
import json
import os
from pathlib import Path

import numpy as np

from ..presets import Presettable, family
from ..presets.download import download
from ..presets.tensors import write_json, write_text
from . import chat, token_files
from .token_files import parts, read_json, refused

# BERT's
SPECIAL_TOKENS = {f"{x.lower()}_token": f"[{x}]" for x in ("PAD", "UNK", "CLS", "SEP", "MASK")}


@functools.cache
def engine():
    """The `tokenizers` package, made safe to fork: a child process tokenizes on one thread."""
    import tokenizers

    if "TOKENIZERS_PARALLELISM" not in os.environ and hasattr(os, "register_at_fork"):
        # A thread pool does not survive a fork; the package would hang or warn in the child.
        os.register_at_fork(
            before=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"),
            after_in_parent=lambda: os.environ.pop("TOKENIZERS_PARALLELISM", None),
        )
    return tokenizers


class Tokenizer(Presettable):
    """Text to ids and back. Thread-safe, picklable, the same ids as the reference's fast tokenizer.

    backend: a `tokenizers.Tokenizer`; special_tokens: {"pad_token": "[PAD]", ...}, each of which
    becomes an id attribute (`pad_token_id`, ...; None for those that are not there); added_tokens:
    tokens beyond the vocabulary, as text or as records of tokenizer_config.json.
    """

    backend = None
    model_type = None  # the kind of model in tokenizer.json, e.g. "WordPiece"
    byte_level = None  # whether the text is cut as UTF-8 bytes; None where it does not matter
    files = ()  # patterns of what `load_slow` reads
    settings = {}  # argument of the constructor -> its name in tokenizer_config.json, its default
    reference_class = "PreTrainedTokenizerFast"  # the class that transformers opens the folder with
    special_tokens = {}  # the family's; an instance has its own
    # What surrounds a text, and a pair of texts, by the names of special tokens; ":1": segment 1.
    wrap = ("$A", "$A $B:1")
    bos_token_id = eos_token_id = unk_token_id = sep_token_id = None
    pad_token_id = cls_token_id = mask_token_id = None
    chat_template = None  # text, or {name: text}

    def __init__(self, backend, special_tokens=None, added_tokens=()):
        self.backend = backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.special_tokens = {**type(self).special_tokens, **(special_tokens or {})}
        self._add(added_tokens)
        ids = {name: backend.token_to_id(token) for name, token in self.special_tokens.items()}
        missing = [self.special_tokens[name] for name, index in ids.items() if index is None]
        if missing:
            raise ValueError(
                f"The vocabulary ({self.vocabulary_size():,} tokens) lacks the special tokens "
                f"{', '.join(missing)}. Add them to it, or name those it has with special_tokens="
                f"{{...}} (expected keys: {', '.join(self.special_tokens)})."
            )
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([t for t in self.special_tokens.values() if t not in known])
        for name, index in ids.items():
            setattr(self, f"{name}_id", index)

    def _add(self, tokens):
        for token in tokens:
            record = token if isinstance(token, dict) else {"content": token, "special": True}
            content, given = record["content"], {"normalized": not record.get("special"), **record}
            flags = {name: bool(given[name]) for name in token_files.FLAGS if name in given}
            expected = record.get("id", self.backend.token_to_id(content))
            self.backend.add_tokens([engine().AddedToken(content, **flags)])
            if expected not in (None, index := self.backend.token_to_id(content)):
                raise ValueError(
                    f"The added token {content!r} claims the id {expected}, but its place, after "
                    f"the vocabulary and the tokens before it, is {index}; the files disagree."
                )

    def _set_wrap(self, trim=None):
        """Make what surrounds texts, out of `wrap` and the special tokens that are there.

        trim: a post-processor that comes first, or None
        """
        lib, ids = engine(), {}

        def fill(template):
            for part in template.split():
                name, _, segment = part.partition(":")
                token = self.special_tokens.get(name, name)
                ids[token] = None if name.startswith("$") else self.backend.token_to_id(token)
                if name.startswith("$") or ids[token] is not None:
                    yield f"{token}:{segment or 0}"

        single, pair = (list(fill(template)) for template in self.wrap)
        special = [(token, index) for token, index in ids.items() if index is not None]
        template = lib.processors.TemplateProcessing(single, pair, special)
        if trim is not None:
            template = lib.processors.Sequence([trim, template])
        self.backend.post_processor = template

    def __call__(self, texts):
        return self.tokenize(texts)

    def __repr__(self):
        return f"{type(self).__name__}({self.vocabulary_size():,} tokens)"

    # --- text to ids ------------------------------------------------------------------------------
    def tokenize(self, texts):
        """Ids without [CLS]/[SEP].  str -> list[int]; list[str] -> list[list[int]]"""
        return self.encode(texts, add_special_tokens=False)

    def encode(self, texts, pair=None, add_special_tokens=True):
        """Ids of a text (and a second one).  str -> list[int]; list[str] -> list[list[int]]"""
        if isinstance(texts, (str, bytes)):
            return self.encode([texts], None if pair is None else [pair], add_special_tokens)[0]
        found = self._encodings(texts, pair, add_special_tokens, "encode_batch_fast")
        return [each.ids for each in found]

    def offsets(self, texts, pair=None, add_special_tokens=False, words=False):
        """Ids and where in its text each token stands.  str -> (ids, [(start, end), ...])

        Positions are characters, end exclusive, (0, 0) for a special token that was added.
        words: also the number of each token's word, (ids, offsets, words)
        """
        if isinstance(texts, (str, bytes)):
            pair = None if pair is None else [pair]
            return self.offsets([texts], pair, add_special_tokens, words)[0]
        found = self._encodings(texts, pair, add_special_tokens, "encode_batch")
        return [(e.ids, e.offsets, *([e.word_ids] if words else ())) for e in found]

    def _encodings(self, texts, pair, add_special_tokens, method):
        texts = check_texts(texts) if pair is None else check_pairs(texts, pair)
        try:
            with refused(self, "cannot read this text"):
                return getattr(self.backend, method)(texts, add_special_tokens=add_special_tokens)
        except ValueError:
            check_unicode(texts)
            raise

    # --- ids to text ------------------------------------------------------------------------------
    def detokenize(self, ids, skip_special_tokens=False):
        """Text of ids.  (n,) -> str; (batch, n) or list of lists -> list[str]"""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        several = len(ids) and isinstance(ids[0], (list, tuple, np.ndarray))
        rows = [self._check_ids(row) for row in (ids if several else [ids])]
        with refused(f"What {self} was read from"):
            texts = self._decode(rows, skip_special_tokens)
        return texts if several else texts[0]

    def _decode(self, rows, skip_special_tokens):
        return self.backend.decode_batch(rows, skip_special_tokens=skip_special_tokens)

    def join(self, tokens):
        """The text of tokens, each given as the vocabulary has it."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    def _check_ids(self, ids):
        ids = np.asarray(ids)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise TypeError(f"Token ids must be whole numbers in rows; got {ids.tolist()!r:.80}.")
        if ids.size:
            self.id_to_token(int(ids.min())), self.id_to_token(int(ids.max()))
        return ids.astype("int64").tolist()

    # --- the vocabulary ---------------------------------------------------------------------------
    def vocabulary_size(self):
        return self.backend.get_vocab_size()

    def get_vocabulary(self):
        """Tokens in the order of their ids."""
        vocabulary = self.backend.get_vocab()
        return sorted(vocabulary, key=vocabulary.get)

    def id_to_token(self, index):
        if (token := self._token(int(index))) is None:
            most = self.vocabulary_size() - 1
            raise ValueError(f"No token has the id {index}; ids are 0 .. {most}.")
        return token

    def _token(self, index):
        return self.backend.id_to_token(index) if 0 <= index < 2**32 else None

    def token_to_id(self, token):
        """Id of a token; the id of the unknown token when the vocabulary does not have it."""
        index = self.backend.token_to_id(token)
        return self.unk_token_id if index is None else index

    def apply_chat_template(
        self, messages, add_generation_prompt=False, template=None, **variables
    ):
        """The text that a chat model reads.  messages: [{"role": "user", "content": "..."}, ...]

        template: the name of one of several, or a template's text; variables: what it takes besides
        (tools, ...)   The template runs in a sandbox, see `chat`; `pip install khub[chat]`.
        """
        source = chat.choose(self.chat_template, template, variables, type(self).__name__)
        names = {"tools": None, "documents": None, **self.special_tokens, **variables}
        names["add_generation_prompt"] = add_generation_prompt
        return chat.render(source, messages=messages, **names)

    # --- files ------------------------------------------------------------------------------------
    @classmethod
    def from_preset(cls, handle, **overrides):
        """Return a tokenizer of a preset; of any folder with a tokenizer's files, too.

        A family that this version does not know is no hindrance: see `load`.
        """
        if overrides or family.of_class(cls) is not None:
            return super().from_preset(handle, **overrides)
        folder = Path(handle) if isinstance(handle, (str, Path)) and Path(handle).is_dir() else None
        folder = folder or download(handle, weights=False)
        model_type = read_json(folder / "config.json", missing_ok=True).get("model_type")
        known = [each for each in family.families().values() if model_type in each.model_types]
        own = known[0].tokenizer if known else None
        ask = own is not None and issubclass(own, cls)  # the family says which of its files to read
        return super().from_preset(handle) if ask else cls.load(folder)

    @classmethod
    def load(cls, folder):
        """Read a folder's tokenizer.json or older files; `Tokenizer` itself finds the class."""
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json", missing_ok=True)
        path = folder / "tokenizer.json"
        content = read_json(path) if path.is_file() else None
        if cls is Tokenizer:
            cls = cls.suited(folder, config, content)
        special = token_files.read_special_tokens(folder, config, cls.special_tokens)
        if content is None:
            tokenizer = cls.load_slow(folder, config, special)
        else:
            if not cls.reads(content):
                own = f"{cls.model_type}{' of bytes' if cls.byte_level else ''}"
                raise ValueError(
                    f"{path} holds a {kind_of(content)} tokenizer; {cls.__name__} reads {own}. "
                    "Load it with the tokenizer class of its own family."
                )
            token_files.check_normalizers(content, path)
            with refused(path):
                backend = engine().Tokenizer.from_file(str(path))
            tokenizer = cls.__new__(cls)  # whatever its own constructor takes
            Tokenizer.__init__(tokenizer, backend, special)
        if (template := token_files.read_chat_template(folder, config)) is not None:
            tokenizer.chat_template = template
        return tokenizer

    @classmethod
    def suited(cls, folder, config, content):
        """The class for a folder: the one that it names, else the first that reads what it has."""
        name = str(config.get("tokenizer_class")).removesuffix("Fast")
        # The sort is stable: of classes with the name, and of those without, the nearest is first.
        for each in sorted(subclasses(cls), key=lambda c: vars(c).get("reference_class") != name):
            found = any(any(folder.glob(pattern)) for pattern in each.files)
            if found if content is None else each.model_type and each.reads(content):
                return each
        return cls

    @classmethod
    def reads(cls, content):
        """Whether the content of a tokenizer.json is of this class' kind."""
        cut = [*parts(content.get("pre_tokenizer")), *parts(content.get("decoder"))]
        in_bytes = any(part.get("type") == "ByteLevel" for part in cut)
        known = cls.model_type is None or kind_of(content) in cls.model_type.split(" or ")
        return known and cls.byte_level in (None, in_bytes)

    @classmethod
    def find(cls, folder, *patterns):
        """The first file of a folder that matches one of the patterns."""
        for pattern in patterns or cls.files:
            if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return found[0]
        names = " nor ".join(["tokenizer.json", *(patterns or cls.files)])
        raise FileNotFoundError(f"{folder} has neither {names}; {cls.__name__} needs one.")

    @classmethod
    def load_slow(cls, folder, config, special_tokens):
        """Read the family's own files, where there is no tokenizer.json."""
        if not cls.files:
            raise FileNotFoundError(f"{folder} has no tokenizer.json; {cls.__name__} needs it.")
        added = token_files.read_added_tokens(folder, config, special_tokens)
        options = dict(special_tokens=special_tokens, added_tokens=added)
        return cls.from_file(cls.find(folder), **cls.options(config), **options)

    @classmethod
    def from_file(cls, path, **options):
        """Make one of the first of the family's own files."""
        return cls(path, **options)

    @classmethod
    def options(cls, config):
        """Constructor arguments that tokenizer_config.json says."""
        found = {name: config.get(key) for name, (key, _) in cls.settings.items()}
        given = {name: value for name, value in found.items() if value is not None}
        defaults = {name: default for name, (_, default) in cls.settings.items()}
        flags = {name: bool(x) for name, x in given.items() if isinstance(defaults[name], bool)}
        return {**defaults, **given, **flags}

    def reference_config(self):
        """Content of tokenizer_config.json."""
        template = self.chat_template
        if isinstance(template, dict):
            template = [{"name": name, "template": text} for name, text in template.items()]
        own = {} if template is None else {"chat_template": template}
        return {"tokenizer_class": self.reference_class, **self.special_tokens, **own}

    def save(self, folder):
        """Write the files that transformers' AutoTokenizer (and `load`) reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "tokenizer_config.json", self.reference_config())
        if self.backend is not None:
            write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
            write_json(folder / "special_tokens_map.json", self.special_tokens)


class WordPieceTokenizer(Tokenizer):
    """WordPiece: the longest known piece first, "##" before pieces inside a word (BERT).

    vocabulary: list of tokens, {token: id}, or the path of a vocab.txt; options: special_tokens and
    added_tokens. Schuster and Nakajima 2012; Devlin et al. 2018, arXiv:1810.04805.
    """

    model_type = "WordPiece"
    files = ("vocab.txt",)
    reference_class = "BertTokenizer"
    special_tokens = SPECIAL_TOKENS
    wrap = ("cls_token $A sep_token", "cls_token $A sep_token $B:1 sep_token:1")
    settings = {
        "lowercase": ("do_lower_case", True),
        "strip_accents": ("strip_accents", None),
        "split_on_cjk": ("tokenize_chinese_chars", True),
    }

    def __init__(
        self, vocabulary, lowercase=True, strip_accents=None, split_on_cjk=True, **options
    ):
        lib, words = engine(), token_files.vocabulary_dict(vocabulary)
        backend = lib.Tokenizer(lib.models.WordPiece(words, max_input_chars_per_word=100))
        # clean_text, handle_chinese_chars, strip_accents (None: as `lowercase`), lowercase
        normalizer = lib.normalizers.BertNormalizer(True, split_on_cjk, strip_accents, lowercase)
        backend.normalizer = normalizer
        backend.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
        backend.decoder = lib.decoders.WordPiece(prefix="##")
        super().__init__(backend, **options)
        backend.model.unk_token = self.special_tokens["unk_token"]
        self._set_wrap()

    def reference_config(self):
        # A foreign tokenizer.json may lack these; then transformers' defaults hold.
        found = described(self.backend.normalizer)
        found = {**found, "split_on_cjk": found.get("handle_chinese_chars", True)}
        own = {key: found.get(name, default) for name, (key, default) in self.settings.items()}
        return {**super().reference_config(), **own}

    def save(self, folder):
        super().save(folder)
        write_text(Path(folder) / "vocab.txt", "".join(t + "\n" for t in self.get_vocabulary()))


def kind_of(content):
    """The type of the model in a tokenizer.json."""
    model = content.get("model")
    return model.get("type") if isinstance(model, dict) else None


def described(component):
    """What tokenizer.json says of a normalizer, pre-tokenizer or post-processor."""
    return json.loads(component.__getstate__()) if component else {}


def kinds(*components):
    """The types of normalizers and pre-tokenizers, and of all that stand inside them."""
    return {part.get("type") for each in components for part in parts(described(each))}


def subclasses(cls):
    """All classes below a class, those nearest to it first."""
    for each in cls.__subclasses__():
        yield each
        yield from subclasses(each)


def check_texts(texts):
    """list[str] of a list, tuple or array of strings (or UTF-8 bytes)."""
    found = list(texts)
    for index, text in enumerate(found):
        if isinstance(text, bytes):
            try:
                found[index] = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"Item {index} of the texts is not UTF-8: {error}.") from error
        elif not isinstance(text, str):
            raise TypeError(
                f"Expected texts as a list of str; item {index} is {type(text).__name__} "
                f"({text!r:.80}). Token ids go to a model with preprocessor=None."
            )
    return found


def check_pairs(texts, others):
    """[(text, other), ...] of two lists that are equally long."""
    texts, others = check_texts(texts), check_texts(others)
    if len(texts) != len(others):
        raise ValueError(f"Got {len(texts)} texts and {len(others)} to pair with them.")
    return list(zip(texts, others))


def check_unicode(texts):
    """Raise ValueError for the text that has half of a surrogate pair: it is no Unicode."""
    for index, text in enumerate(texts):
        try:
            for each in text if isinstance(text, tuple) else (text,):
                each.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Item {index} of the texts has a lone surrogate at character {error.start}, "
                "which no UTF-8 has; replace it: text.encode('utf-8', 'replace').decode()."
            ) from error
