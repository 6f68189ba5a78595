"""Byte-level BPE: GPT-2's tokenizer and what followed. Sennrich et al. 2016, arXiv:1508.07909."""

import itertools

from . import token_files
from .token_files import merges_of, named_tokens, parts, refused
from .tokenizers import Tokenizer, described, engine

END = dict.fromkeys(("eos_token", "unk_token"), "<|endoftext|>")


class BytePairTokenizer(Tokenizer):
    """Words, as UTF-8 bytes, in which the pair that was merged first in training is merged first.

    vocabulary: {token: id} or the path of a vocab.json; merges: [(left, right), ...] in their order
    or the path of a merges.txt   add_prefix_space: whether the first word is cut like the others;
    trim_offsets: whether `offsets` leaves out the space before a word; split: a regular expression
    of the words instead of GPT-2's; options: special_tokens and added_tokens. Radford et al. 2019
    (GPT-2), section 2.2.
    """

    model_type = "BPE"
    byte_level = True
    files = ("vocab.json", "*.tiktoken")
    settings = {"add_prefix_space": ("add_prefix_space", False)}
    word_end = ""  # what marks the last piece of a word, where spaces are not part of words

    def __init__(
        self, vocabulary, merges, add_prefix_space=False, trim_offsets=False, split=None, **options
    ):
        lib, vocabulary = engine(), token_files.vocabulary_dict(vocabulary)
        with refused(f"A vocabulary of {len(vocabulary):,} tokens with its merges"):
            merges = token_files.merge_pairs(merges)
            model = lib.models.BPE(vocabulary, merges, end_of_word_suffix=self.word_end)
        backend = lib.Tokenizer(model)
        self._cut(backend, lib, add_prefix_space, split)
        backend.decoder = lib.decoders.ByteLevel()
        super().__init__(backend, **options)
        spaces = lib.processors.ByteLevel(add_prefix_space, trim_offsets=True)
        self._set_wrap(spaces if trim_offsets else None)

    def _cut(self, backend, lib, add_prefix_space, split):
        cut = lib.pre_tokenizers
        backend.pre_tokenizer = cut.ByteLevel(add_prefix_space, use_regex=split is None)
        if split is not None:
            words = cut.Split(lib.Regex(split), behavior="isolated")
            backend.pre_tokenizer = cut.Sequence([words, backend.pre_tokenizer])

    @classmethod
    def from_tiktoken(cls, path, **options):
        """Make one of a tiktoken file of ranks; options are the constructor's.

        The file holds neither special tokens (added_tokens=[...], in the order of their ids) nor
        the expression that cuts words (split=..., GPT-2's by default).
        """
        letters, ranks = byte_characters(), token_files.read_ranks(path)
        ranks = {"".join(letters[byte] for byte in token): ranks[token] for token in ranks}
        return cls(ranks, merges_of(ranks), **options)

    @classmethod
    def from_file(cls, path, **options):
        if path.name != "vocab.json":
            return cls.from_tiktoken(path, **options)
        return cls(path, cls.find(path.parent, "merges.txt"), **options)

    def reference_config(self):
        cut = list(parts(described(self.backend.pre_tokenizer)))
        spaced = any(part.get("add_prefix_space") for part in cut)
        return {**super().reference_config(), "add_prefix_space": spaced}


class GPT2Tokenizer(BytePairTokenizer):
    """GPT-2's byte-level BPE; no special tokens around a text."""

    reference_class = "GPT2Tokenizer"
    special_tokens = {"bos_token": "<|endoftext|>", **END}


class RobertaTokenizer(BytePairTokenizer):
    """RoBERTa's byte-level BPE.  <s> first </s></s> second </s>   Liu et al., arXiv:1907.11692."""

    reference_class = "RobertaTokenizer"
    special_tokens = named_tokens("<s> </s> <unk> </s> <pad> <s> <mask>")
    wrap = ("cls_token $A sep_token", "cls_token $A sep_token sep_token $B sep_token")

    def __init__(self, vocabulary, merges, trim_offsets=True, **options):
        super().__init__(vocabulary, merges, trim_offsets=trim_offsets, **options)


class CLIPTokenizer(BytePairTokenizer):
    """CLIP's BPE: lower case, spaces dropped, "</w>" on a word's end. arXiv:2103.00020."""

    reference_class = "CLIPTokenizer"
    word_end = "</w>"
    special_tokens = {"bos_token": "<|startoftext|>", **END, "pad_token": "<|endoftext|>"}
    wrap = ("bos_token $A eos_token", "bos_token $A eos_token eos_token $B eos_token")
    words = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

    def __init__(self, vocabulary, merges, **options):
        super().__init__(vocabulary, merges, **options)
        lib = engine()
        self.backend.model.unk_token = self.special_tokens["unk_token"]
        back, around = lib.decoders, lib.Regex(r"\A\s+|\s+\z")
        ends = [back.Replace(self.word_end, " "), back.Replace(around, "")]
        self.backend.decoder = back.Sequence([back.ByteLevel(), *ends])

    def _cut(self, backend, lib, add_prefix_space, split):
        normal, cut = lib.normalizers, lib.pre_tokenizers
        spaces = normal.Replace(lib.Regex(r"\s+"), " ")
        backend.normalizer = normal.Sequence([normal.NFC(), spaces, normal.Lowercase()])
        special = r"<\|startoftext\|>|<\|endoftext\|>|"
        words = cut.Split(lib.Regex(special + (split or self.words)), "removed", invert=True)
        backend.pre_tokenizer = cut.Sequence([words, cut.ByteLevel(add_prefix_space)])

    def reference_config(self):
        return {**super().reference_config(), "model_max_length": 77}


class WhisperTokenizer(BytePairTokenizer):
    """Whisper's byte-level BPE; its tasks and languages are added tokens. arXiv:2212.04356."""

    reference_class = "WhisperTokenizer"
    special_tokens = GPT2Tokenizer.special_tokens
    wrap = tuple(f"<|startoftranscript|> <|notimestamps|> {x} eos_token" for x in ("$A", "$A $B"))


class ByteTokenizer(BytePairTokenizer):
    """The UTF-8 bytes of a text.  Special tokens have the first ids, added ones the last (ByT5).

    lowercase, normalization_form ("NFC", "NFD", "NFKC", "NFKD"): what happens to the text before.
    Xue et al. 2021 (ByT5), arXiv:2105.13626.
    """

    files = ()
    wrap = ("bos_token $A eos_token", "bos_token $A eos_token $B eos_token")

    def __init__(self, lowercase=True, normalization_form=None, special_tokens=None, **options):
        first = dict.fromkeys((special_tokens or {}).values())
        vocabulary = [*first, *byte_characters()]
        super().__init__(vocabulary, [], special_tokens=special_tokens, **options)
        lib = engine()
        self.backend.pre_tokenizer = lib.pre_tokenizers.ByteLevel(False, use_regex=False)
        names = [check_form(normalization_form), "Lowercase" if lowercase else None]
        steps = [getattr(lib.normalizers, name)() for name in names if name]
        self.backend.normalizer = lib.normalizers.Sequence(steps) if steps else None


def check_form(form):
    """The name of a Unicode normalization form, or None. Raises ValueError for all else."""
    if form and form not in ("NFC", "NFD", "NFKC", "NFKD"):
        raise ValueError(f"normalization_form must be NFC, NFD, NFKC, NFKD or None; got {form!r}.")
    return form or None


def byte_characters():
    """The 256 characters that stand for the bytes in vocabularies of GPT-2's kind.

    A visible Latin-1 character stands for itself, the others have the code points from 256 on.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]
