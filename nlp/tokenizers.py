"""Tokenizers: text to ids and back, on the host, without a framework (the `tokenizers` package)."""

import functools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ..presets import Presettable
from ..presets.tensors import parse_json, write_json, write_text

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALPHABET_LIMIT = 1000  # characters; rarer ones become unknown
MAX_FILE_BYTES = 256 * 2**20  # the largest public tokenizer.json is 34 MB


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
    becomes an id attribute (`pad_token_id`, ...).
    """

    model_type = None  # the kind of model in tokenizer.json, e.g. "WordPiece"
    reference_class = "PreTrainedTokenizerFast"  # the class that transformers opens the folder with

    def __init__(self, backend, special_tokens):
        self.backend = backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.special_tokens = dict(special_tokens)
        ids = {name: backend.token_to_id(token) for name, token in self.special_tokens.items()}
        missing = [self.special_tokens[name] for name, index in ids.items() if index is None]
        if missing:
            raise ValueError(
                f"The vocabulary ({self.vocabulary_size():,} tokens) lacks the special tokens "
                f"{', '.join(missing)}. Add them to it, or name those it has with special_tokens="
                f"{{...}} (expected keys: {', '.join(SPECIAL_TOKENS)})."
            )
        backend.add_special_tokens(list(self.special_tokens.values()))
        for name, index in ids.items():
            setattr(self, f"{name}_id", index)

    def __call__(self, texts):
        return self.tokenize(texts)

    def __repr__(self):
        return f"{type(self).__name__}({self.vocabulary_size():,} tokens)"

    def tokenize(self, texts):
        """Ids without [CLS]/[SEP].  str -> list[int]; list[str] -> list[list[int]]"""
        if isinstance(texts, str):
            return self.backend.encode(texts, add_special_tokens=False).ids
        texts = check_texts(texts)
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def detokenize(self, ids, skip_special_tokens=False):
        """Text of ids.  (n,) -> str; (batch, n) or list of lists -> list[str]"""
        if isinstance(ids, np.ndarray):
            ids = ids.tolist()
        if len(ids) and isinstance(ids[0], (list, tuple, np.ndarray)):
            rows = [np.asarray(row, "int64").tolist() for row in ids]
            return self.backend.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def vocabulary_size(self):
        return self.backend.get_vocab_size()

    def get_vocabulary(self):
        """Tokens in the order of their ids."""
        vocabulary = self.backend.get_vocab()
        return sorted(vocabulary, key=vocabulary.get)

    def id_to_token(self, index):
        token = self.backend.id_to_token(int(index)) if index >= 0 else None
        if token is None:
            raise ValueError(
                f"No token has the id {index}; ids are 0 .. {self.vocabulary_size() - 1}."
            )
        return token

    def token_to_id(self, token):
        """Id of a token; the id of the unknown token when the vocabulary does not have it."""
        index = self.backend.token_to_id(token)
        return self.unk_token_id if index is None else index

    @classmethod
    def load(cls, folder):
        """Read tokenizer.json, or the family's own files, from a folder."""
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json", missing_ok=True)
        special = special_tokens_of(folder, config)
        path = folder / "tokenizer.json"
        if not path.is_file():
            return cls.load_slow(folder, config, special)
        model = read_json(path).get("model")
        kind = model.get("type") if isinstance(model, dict) else None
        if cls.model_type not in (None, kind):
            raise ValueError(
                f"{path} holds a {kind} tokenizer; {cls.__name__} reads {cls.model_type}. "
                "Load it with the tokenizer class of its own family."
            )
        try:
            backend = engine().Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception for every malformed file
            raise ValueError(f"{path} is not a valid tokenizer file: {error}") from error
        return cls.from_backend(backend, special)

    @classmethod
    def from_backend(cls, backend, special_tokens):
        """Wrap a ready `tokenizers.Tokenizer`, whatever the subclass' own constructor takes."""
        tokenizer = cls.__new__(cls)
        Tokenizer.__init__(tokenizer, backend, special_tokens)
        return tokenizer

    @classmethod
    def load_slow(cls, folder, config, special_tokens):
        raise FileNotFoundError(f"{folder} has no tokenizer.json; {cls.__name__} needs it.")

    def reference_config(self):
        """Content of tokenizer_config.json."""
        return {"tokenizer_class": self.reference_class, **self.special_tokens}

    def save(self, folder):
        """Write the files that transformers' AutoTokenizer (and `load`) reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", self.reference_config())
        write_json(folder / "special_tokens_map.json", self.special_tokens)


class WordPieceTokenizer(Tokenizer):
    """WordPiece: the longest known piece first, "##" before pieces inside a word (BERT).

    vocabulary: list of tokens, {token: id}, or the path of a vocab.txt. Schuster and Nakajima 2012;
    Devlin et al. 2018, arXiv:1810.04805.
    """

    model_type = "WordPiece"
    reference_class = "BertTokenizer"

    def __init__(
        self,
        vocabulary,
        lowercase=True,
        strip_accents=None,
        split_on_cjk=True,
        special_tokens=SPECIAL_TOKENS,
    ):
        lib = engine()
        special_tokens = {**SPECIAL_TOKENS, **special_tokens}
        backend = lib.Tokenizer(
            lib.models.WordPiece(
                vocabulary_dict(vocabulary),
                unk_token=special_tokens["unk_token"],
                max_input_chars_per_word=100,
            )
        )
        backend.normalizer = lib.normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=split_on_cjk,
            strip_accents=strip_accents,  # None: as `lowercase`
            lowercase=lowercase,
        )
        backend.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
        backend.decoder = lib.decoders.WordPiece(prefix="##")
        super().__init__(backend, special_tokens)
        cls_token, sep_token = special_tokens["cls_token"], special_tokens["sep_token"]
        backend.post_processor = lib.processors.TemplateProcessing(
            single=f"{cls_token}:0 $A:0 {sep_token}:0",
            pair=f"{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1",
            special_tokens=[(cls_token, self.cls_token_id), (sep_token, self.sep_token_id)],
        )

    @classmethod
    def load_slow(cls, folder, config, special_tokens):
        path = folder / "vocab.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has neither tokenizer.json nor vocab.txt; {cls.__name__} needs one."
            )
        tokenizer = cls(
            path,
            lowercase=config.get("do_lower_case", True),
            strip_accents=config.get("strip_accents"),
            split_on_cjk=config.get("tokenize_chinese_chars", True),
            special_tokens=special_tokens,
        )
        added = read_json(folder / "added_tokens.json", missing_ok=True)
        unknown = [token for token in added if tokenizer.backend.token_to_id(token) is None]
        if unknown:
            raise ValueError(
                f"{folder} adds {', '.join(unknown[:5])} to its vocab.txt, which only a "
                "tokenizer.json says how to split; save one with transformers' AutoTokenizer."
            )
        return tokenizer

    def reference_config(self):
        # A foreign tokenizer.json may lack these; then transformers' defaults hold.
        normalizer = json.loads(self.backend.to_str())["normalizer"] or {}
        return {
            **super().reference_config(),
            "do_lower_case": normalizer.get("lowercase", True),
            "strip_accents": normalizer.get("strip_accents"),
            "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        }

    def save(self, folder):
        super().save(folder)
        write_text(Path(folder) / "vocab.txt", "".join(t + "\n" for t in self.get_vocabulary()))


def train_word_piece(texts, vocabulary_size, lowercase=True, min_frequency=2):
    """Learn a WordPieceTokenizer of at most `vocabulary_size` tokens from an iterable of texts.

    The same texts give the same vocabulary. Raises ValueError when the characters alone need more.
    """
    lib, texts = engine(), list(texts)
    blank = WordPieceTokenizer(list(SPECIAL_TOKENS.values()), lowercase=lowercase)
    alphabet, inside = characters(blank.backend, texts)
    # Characters are numbered here: the trainer numbers "##x" in the order of a hash table that
    # differs from process to process, and the numbers decide between pairs of equal frequency.
    first = [*SPECIAL_TOKENS.values(), *(f"##{c}" for c in inside)]
    if vocabulary_size < len(first) + len(alphabet):
        raise ValueError(
            f"vocabulary_size={vocabulary_size} is less than the {len(first) + len(alphabet)} "
            "tokens that the special tokens and the characters of the texts need."
        )
    trainer = lib.trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    blank.backend.train_from_iterator(texts, trainer=trainer)
    return WordPieceTokenizer(blank.backend.get_vocab(), lowercase=lowercase)


def characters(backend, texts):
    """The commonest characters of texts, and those of them that occur inside words; sorted."""
    words = Counter()
    for text in texts:
        text = backend.normalizer.normalize_str(text)
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    counts = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = sorted(sorted(counts), key=lambda c: -counts[c])[:ALPHABET_LIMIT]
    return sorted(kept), sorted({c for word in words for c in word[1:]}.intersection(kept))


def vocabulary_dict(vocabulary):
    """{token: id} of a list, a dict or a vocab.txt."""
    if isinstance(vocabulary, dict):
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(
                f"The ids of a vocabulary must be 0 .. {len(vocabulary) - 1}, each once."
            )
        return vocabulary
    if isinstance(vocabulary, (str, Path)):
        lines = read_text(Path(vocabulary)).split("\n")
        vocabulary = lines[:-1] if lines[-1] == "" else lines
    ids = {token: index for index, token in enumerate(vocabulary)}
    if len(ids) < len(vocabulary):  # of a token that is there twice the last counts, as elsewhere
        ids |= {f"[twice {i}]": i for i, token in enumerate(vocabulary) if ids[token] != i}
    return ids


def special_tokens_of(folder, config):
    """Special tokens named in the folder's files, over BERT's; strings or records."""
    named = {**read_json(folder / "special_tokens_map.json", missing_ok=True), **config}
    found = {}
    for name, default in SPECIAL_TOKENS.items():
        token = named.get(name) or default
        found[name] = token.get("content") if isinstance(token, dict) else token
        if not isinstance(found[name], str):
            raise ValueError(
                f"{folder}: {name} must be a token (or a record with its content), got {token!r}."
            )
    return found


def check_texts(texts):
    """list[str] of a list, tuple or array of strings (or UTF-8 bytes)."""
    if isinstance(texts, np.ndarray):
        texts = texts.tolist()
    texts = [t.decode("utf-8") if isinstance(t, bytes) else t for t in texts]
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Expected texts as a list of str; item {index} is {type(text).__name__} "
                f"({text!r:.80}). Token ids go to a model with preprocessor=None."
            )
    return texts


def read_text(path):
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes; a tokenizer file has at most {MAX_FILE_BYTES:,}."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path, missing_ok=False):
    if missing_ok and not path.is_file():
        return {}
    return parse_json(read_text(path), str(path))
