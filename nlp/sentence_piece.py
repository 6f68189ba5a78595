"""SentencePiece: pieces of raw text, spaces included. Kudo, Richardson 2018, arXiv:1808.06226."""

from .byte_pair import RobertaTokenizer
from .token_files import (
    CONTROL,
    NORMAL,
    UNIGRAM,
    USER,
    merges_of,
    parse_sentence_piece,
    parts,
    read_added_tokens,
    read_bytes,
    refused,
)
from .tokenizers import Tokenizer, described, engine

SPACE = "▁"
EXTRA_LIMIT = 10_000  # sentinels; T5 has 100


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, unigram (Kudo 2018, arXiv:1804.10959) or BPE, with byte fallback.

    model: the path of a spiece.model / tokenizer.model, or its bytes. Control pieces that stand in
    a text are read as such, as transformers does; the spaces beside them are trimmed.
    """

    model_type = "Unigram or BPE"
    byte_level = False
    files = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "*.model")

    def __init__(self, model, special_tokens=None, added_tokens=()):
        lib = engine()
        where = "These bytes" if isinstance(model, bytes) else str(model)
        model = parse_sentence_piece(
            model if isinstance(model, bytes) else read_bytes(model), where
        )
        named = {
            f"{n}_token": model.pieces[i][0]
            for n, i in model.ids.items()
            if 0 <= i < len(model.pieces)
        }
        special_tokens = {**(type(self).special_tokens or named), **(special_tokens or {})}
        with refused(where):
            backend = lib.Tokenizer(self._model(lib, model))
            self._pipeline(backend, lib, model)
        marks = [
            (piece, kind == CONTROL) for piece, _, kind in model.pieces if kind in (CONTROL, USER)
        ]
        marks = [
            {"content": piece, "special": special, "normalized": False} for piece, special in marks
        ]
        super().__init__(backend, special_tokens, [*marks, *added_tokens])
        self._set_wrap()

    def _model(self, lib, model):
        if model.kind == UNIGRAM:
            pieces = [(piece, score) for piece, score, _ in model.pieces]
            return lib.models.Unigram(pieces, model.ids["unk"], model.byte_fallback)
        ids = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
        score = {piece: -score for piece, score, kind in model.pieces if kind == NORMAL}
        return lib.models.BPE(
            ids,
            merges_of(score),
            unk_token=model.pieces[model.ids["unk"]][0],
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )

    def _pipeline(self, backend, lib, model):
        normal = lib.normalizers
        steps = [normal.Precompiled(model.charsmap)] if model.charsmap else []
        if model.remove_extra_spaces:
            steps += [normal.Replace(lib.Regex(pattern), to) for pattern, to in SPACES]
        backend.normalizer = normal.Sequence(steps) if steps else None
        # "first" would ask where the text began before its leading spaces were taken off.
        prefix = "always" if model.dummy_prefix else "never"
        self._spaces(backend, lib, prefix, whole=crosses_spaces(model))

    def _spaces(self, backend, lib, prefix, whole):
        """Write spaces as SPACE, and back.  whole: pieces may reach over spaces"""
        backend.pre_tokenizer = lib.pre_tokenizers.Metaspace(SPACE, prefix, split=not whole)
        back = lib.decoders
        steps = [back.Replace(SPACE, " "), back.ByteFallback(), back.Fuse()]
        steps += [back.Strip(" ", 1, 0)] if prefix != "never" else []
        backend.decoder = back.Sequence(steps)

    @classmethod
    def load_slow(cls, folder, config, special_tokens):
        return cls(
            cls.find(folder),
            special_tokens=special_tokens,
            added_tokens=read_added_tokens(folder, config, special_tokens),
            **cls.options(config),
        )

    @classmethod
    def options(cls, config):
        """Constructor arguments that tokenizer_config.json says."""
        return {}


SPACES = [(r"\A +| +\z", ""), (" {2,}", " ")]


def crosses_spaces(model):
    """Whether a piece reaches over a space, so that words cannot be cut one by one."""
    return any(SPACE in piece[1:] for piece, _, _ in model.pieces)


class T5Tokenizer(SentencePieceTokenizer):
    """T5's unigram model and `extra_ids` sentinels.  first </s> second </s>   arXiv:1910.10683."""

    reference_class = "T5Tokenizer"
    special_tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    wrap = ("$A eos_token", "$A eos_token $B eos_token")

    def __init__(self, model, extra_ids=100, special_tokens=None, added_tokens=()):
        if type(extra_ids) is not int or not 0 <= extra_ids <= EXTRA_LIMIT:
            raise ValueError(f"extra_ids must be 0 .. {EXTRA_LIMIT:,}, got {extra_ids!r}.")
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
        given = {token if isinstance(token, str) else token["content"] for token in added_tokens}
        added_tokens = [*(s for s in sentinels if s not in given), *added_tokens]
        super().__init__(model, special_tokens, added_tokens)

    def _pipeline(self, backend, lib, model):
        if model.charsmap:
            backend.normalizer = lib.normalizers.Precompiled(model.charsmap)
        self._words(backend, lib)

    def _words(self, backend, lib):
        """Cut at any white space; every word begins with SPACE."""
        cut = lib.pre_tokenizers
        words = [cut.WhitespaceSplit(), cut.Metaspace(SPACE, "always", split=True)]
        backend.pre_tokenizer = cut.Sequence(words)
        backend.decoder = lib.decoders.Metaspace(SPACE, "always", split=True)

    @classmethod
    def options(cls, config):
        return {"extra_ids": config.get("extra_ids", 100)}

    def reference_config(self):
        sentinels = [token for token in self.backend.get_vocab() if token.startswith("<extra_id_")]
        return {**super().reference_config(), "extra_ids": len(sentinels)}


class AlbertTokenizer(SentencePieceTokenizer):
    """ALBERT's unigram model.  [CLS] first [SEP] second [SEP]   Lan et al., arXiv:1909.11942."""

    reference_class = "AlbertTokenizer"
    special_tokens = {
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "unk_token": "<unk>",
        "sep_token": "[SEP]",
        "pad_token": "<pad>",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    wrap = ("cls_token $A sep_token", "cls_token $A sep_token $B:1 sep_token:1")

    def __init__(
        self, model, lowercase=True, strip_accents=True, special_tokens=None, added_tokens=()
    ):
        self.lowercase, self.strip_accents = lowercase, strip_accents  # for _pipeline
        super().__init__(model, special_tokens, added_tokens)

    def _pipeline(self, backend, lib, model):
        normal = lib.normalizers
        steps = [normal.Replace("``", '"'), normal.Replace("''", '"')]
        steps += [normal.NFKD(), normal.StripAccents()] if self.strip_accents else []
        steps += [normal.Lowercase()] if self.lowercase else []
        steps += [normal.Precompiled(model.charsmap)] if model.charsmap else []
        backend.normalizer = normal.Sequence(steps)
        T5Tokenizer._words(self, backend, lib)

    @classmethod
    def options(cls, config):
        return {
            "lowercase": config.get("do_lower_case", True),
            "strip_accents": not config.get("keep_accents", False),
        }

    def reference_config(self):
        steps = {part.get("type") for part in parts(described(self.backend.normalizer))}
        ours = {"do_lower_case": "Lowercase" in steps, "keep_accents": "StripAccents" not in steps}
        return {**super().reference_config(), **ours}


class XLMRobertaTokenizer(SentencePieceTokenizer):
    """XLM-RoBERTa's unigram model.  <s> first </s></s> second </s>   arXiv:1911.02116

    Ids as fairseq has them: <s>, <pad>, </s>, <unk>, the model's pieces from its third on, <mask>.
    """

    reference_class = "XLMRobertaTokenizer"
    special_tokens = RobertaTokenizer.special_tokens
    wrap = RobertaTokenizer.wrap

    def __init__(self, model, special_tokens=None, added_tokens=()):
        mask = {"content": "<mask>", "lstrip": True, "normalized": False, "special": True}
        super().__init__(model, special_tokens, [mask, *added_tokens])

    def _model(self, lib, model):
        if model.kind != UNIGRAM:
            raise ValueError("XLM-RoBERTa's SentencePiece model is a unigram model; got BPE.")
        own = [(piece, score) for piece, score, _ in model.pieces[3:]]
        first = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        return lib.models.Unigram([*first, *own, ("<mask>", 0.0)], 3, model.byte_fallback)

    def _pipeline(self, backend, lib, model):
        if model.charsmap:
            backend.normalizer = lib.normalizers.Precompiled(model.charsmap)
        T5Tokenizer._words(self, backend, lib)


class DebertaV3Tokenizer(SentencePieceTokenizer):
    """DeBERTa's unigram model, versions 2 and 3.  [CLS] first [SEP] second [SEP]   arXiv:2111.09543

    Of the model's file it takes the pieces alone, as transformers does; texts become NFC.
    """

    files = ("spm.model", *SentencePieceTokenizer.files)
    reference_class = "DebertaV2Tokenizer"
    special_tokens = {
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    wrap = AlbertTokenizer.wrap

    def __init__(
        self, model, lowercase=False, split_punctuation=False, special_tokens=None, added_tokens=()
    ):
        self.lowercase, self.split_punctuation = lowercase, split_punctuation  # for _pipeline
        given = [token if isinstance(token, str) else token["content"] for token in added_tokens]
        mask = (special_tokens or {}).get("mask_token", "[MASK]")  # the model's file lacks it
        super().__init__(model, special_tokens, [*added_tokens, *([] if mask in given else [mask])])

    def _pipeline(self, backend, lib, model):
        normal, cut = lib.normalizers, lib.pre_tokenizers
        steps = [normal.Lowercase()] if self.lowercase else []
        steps += [normal.Replace(lib.Regex(r"\s{2,}|[\n\r\t]"), " "), normal.NFC()]
        backend.normalizer = normal.Sequence([*steps, normal.Strip(left=False, right=True)])
        steps = [cut.Punctuation("isolated")] if self.split_punctuation else []
        backend.pre_tokenizer = cut.Sequence([*steps, cut.Metaspace(SPACE, "always")])
        backend.decoder = lib.decoders.Metaspace(SPACE, "always")

    @classmethod
    def options(cls, config):
        return {
            "lowercase": config.get("do_lower_case", False),
            "split_punctuation": config.get("split_by_punct", False),
        }

    def reference_config(self):
        pieces = [*parts(described(self.backend.normalizer))]
        pieces += parts(described(self.backend.pre_tokenizer))
        kinds = {part.get("type") for part in pieces}
        ours = {"do_lower_case": "Lowercase" in kinds, "split_by_punct": "Punctuation" in kinds}
        return {**super().reference_config(), **ours}


class LlamaTokenizer(SentencePieceTokenizer):
    """Llama's and Llama 2's BPE with byte fallback; spaces are kept. arXiv:2302.13971."""

    reference_class = "LlamaTokenizer"
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

    def __init__(
        self,
        model,
        add_bos_token=True,
        add_eos_token=False,
        add_prefix_space=True,
        legacy=False,
        special_tokens=None,
        added_tokens=(),
    ):
        self.prefix = ("always" if legacy else "first") if add_prefix_space else "never"
        bos, eos = "bos_token" if add_bos_token else "", "eos_token" if add_eos_token else ""
        self.wrap = (
            f"{bos} $A {eos}",
            f"{bos} $A {eos} {bos and bos + ':1'} $B:1 {eos and eos + ':1'}",
        )
        super().__init__(model, special_tokens, added_tokens)

    def _pipeline(self, backend, lib, model):
        self._spaces(backend, lib, self.prefix, whole=True)

    @classmethod
    def options(cls, config):
        found = {name: config.get(name) for name in ("add_bos_token", "add_eos_token", "legacy")}
        found["add_prefix_space"] = config.get("add_prefix_space")
        return {name: bool(value) for name, value in found.items() if value is not None}

    def reference_config(self):
        around = described(self.backend.post_processor).get("single", [])
        around = [each["SpecialToken"]["id"] for each in around if "SpecialToken" in each]
        scheme = described(self.backend.pre_tokenizer).get("prepend_scheme")
        return {
            **super().reference_config(),
            "add_bos_token": self.special_tokens.get("bos_token") in around,
            "add_eos_token": self.special_tokens.get("eos_token") in around,
            "add_prefix_space": scheme != "never",
            "legacy": scheme == "always",
        }
