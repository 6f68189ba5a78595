"""SentencePiece: pieces of raw text, spaces included. Kudo, Richardson 2018, arXiv:1808.06226."""

from . import token_files
from .byte_pair import RobertaTokenizer
from .token_files import CONTROL, NORMAL, UNIGRAM, USER, named_tokens, refused
from .tokenizers import Tokenizer, WordPieceTokenizer, described, engine, kinds

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
    by_words = False  # whether texts are cut at any white space; every word begins with SPACE then

    def __init__(self, model, special_tokens=None, added_tokens=()):
        lib, given = engine(), isinstance(model, bytes)
        where = "These bytes" if given else str(model)
        model = model if given else token_files.read_bytes(model)
        model = token_files.parse_sentence_piece(model, where)
        count = len(model.pieces)
        named = {f"{n}_token": model.pieces[i][0] for n, i in model.ids.items() if 0 <= i < count}
        special_tokens = {**(type(self).special_tokens or named), **(special_tokens or {})}
        with refused(where):
            backend = lib.Tokenizer(self._model(lib, model))
            self._pipeline(backend, lib, model)
        marks = [
            {"content": piece, "special": kind == CONTROL, "normalized": False}
            for piece, _, kind in model.pieces
            if kind in (CONTROL, USER)
        ]
        super().__init__(backend, special_tokens, [*marks, *added_tokens])
        self._set_wrap()

    def _model(self, lib, model):
        if model.kind == UNIGRAM:
            pieces = [(piece, score) for piece, score, _ in model.pieces]
            return lib.models.Unigram(pieces, model.ids["unk"], model.byte_fallback)
        ids = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
        score = {piece: -score for piece, score, kind in model.pieces if kind == NORMAL}
        unknown = model.pieces[model.ids["unk"]][0]
        more = dict(unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
        return lib.models.BPE(ids, token_files.merges_of(score), **more)

    def _pipeline(self, backend, lib, model):
        steps = self._steps(lib.normalizers, model)
        if model.remove_extra_spaces and not self.by_words:
            steps += [lib.normalizers.Replace(lib.Regex(old), to) for old, to in SPACES]
        backend.normalizer = lib.normalizers.Sequence(steps) if steps else None
        if self.by_words:
            cut = lib.pre_tokenizers
            words = [cut.WhitespaceSplit(), cut.Metaspace(SPACE, "always", split=True)]
            backend.pre_tokenizer = cut.Sequence(words)
            backend.decoder = lib.decoders.Metaspace(SPACE, "always", split=True)
        else:  # "first" would ask where the text began before its leading spaces were taken off
            prefix = "always" if model.dummy_prefix else "never"
            # Words cannot be cut one by one where a piece reaches over a space.
            whole = any(SPACE in piece[1:] for piece, _, _ in model.pieces)
            self._spaces(backend, lib, prefix, whole)

    def _steps(self, normal, model):
        """What happens to a text first."""
        return [normal.Precompiled(model.charsmap)] if model.charsmap else []

    def _spaces(self, backend, lib, prefix, whole):
        """Write spaces as SPACE, and back.  whole: pieces may reach over spaces"""
        backend.pre_tokenizer = lib.pre_tokenizers.Metaspace(SPACE, prefix, split=not whole)
        back = lib.decoders
        steps = [back.Replace(SPACE, " "), back.ByteFallback(), back.Fuse()]
        steps += [back.Strip(" ", 1, 0)] if prefix != "never" else []
        backend.decoder = back.Sequence(steps)


SPACES = [(r"\A +| +\z", ""), (" {2,}", " ")]


def new(tokens, added_tokens):
    """Those of tokens that are not among the added ones."""
    given = {token if isinstance(token, str) else token["content"] for token in added_tokens}
    return [token for token in tokens if token not in given]


class T5Tokenizer(SentencePieceTokenizer):
    """T5's unigram model and `extra_ids` sentinels.  first </s> second </s>   arXiv:1910.10683."""

    reference_class = "T5Tokenizer"
    special_tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    wrap = ("$A eos_token", "$A eos_token $B eos_token")
    by_words = True
    settings = {"extra_ids": ("extra_ids", 100)}

    def __init__(self, model, extra_ids=100, special_tokens=None, added_tokens=()):
        if type(extra_ids) is not int or not 0 <= extra_ids <= EXTRA_LIMIT:
            raise ValueError(f"extra_ids must be 0 .. {EXTRA_LIMIT:,}, got {extra_ids!r}.")
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
        super().__init__(model, special_tokens, [*new(sentinels, added_tokens), *added_tokens])

    def reference_config(self):
        sentinels = [token for token in self.backend.get_vocab() if token.startswith("<extra_id_")]
        return {**super().reference_config(), "extra_ids": len(sentinels)}


class AlbertTokenizer(SentencePieceTokenizer):
    """ALBERT's unigram model.  [CLS] first [SEP] second [SEP]   Lan et al., arXiv:1909.11942."""

    reference_class = "AlbertTokenizer"
    special_tokens = named_tokens("[CLS] [SEP] <unk> [SEP] <pad> [CLS] [MASK]")
    wrap = WordPieceTokenizer.wrap
    by_words = True
    settings = {"lowercase": ("do_lower_case", True), "keep_accents": ("keep_accents", False)}

    def __init__(self, model, lowercase=True, strip_accents=True, **options):
        self.lowercase, self.strip_accents = lowercase, strip_accents  # for _pipeline
        super().__init__(model, **options)

    def _steps(self, normal, model):
        steps = [normal.Replace("``", '"'), normal.Replace("''", '"')]
        steps += [normal.NFKD(), normal.StripAccents()] if self.strip_accents else []
        steps += [normal.Lowercase()] if self.lowercase else []
        return steps + super()._steps(normal, model)

    @classmethod
    def options(cls, config):
        found = super().options(config)
        strip = not found.pop("keep_accents")
        return {**found, "strip_accents": strip}

    def reference_config(self):
        steps = kinds(self.backend.normalizer)
        ours = {"do_lower_case": "Lowercase" in steps, "keep_accents": "StripAccents" not in steps}
        return {**super().reference_config(), **ours}


class XLMRobertaTokenizer(SentencePieceTokenizer):
    """XLM-RoBERTa's unigram model.  <s> first </s></s> second </s>   arXiv:1911.02116

    Ids as fairseq has them: <s>, <pad>, </s>, <unk>, the model's pieces from its third on, <mask>.
    """

    reference_class = "XLMRobertaTokenizer"
    special_tokens = RobertaTokenizer.special_tokens
    wrap = RobertaTokenizer.wrap
    by_words = True

    def __init__(self, model, special_tokens=None, added_tokens=()):
        mask = {"content": "<mask>", "lstrip": True, "normalized": False, "special": True}
        super().__init__(model, special_tokens, [mask, *added_tokens])

    def _model(self, lib, model):
        if model.kind != UNIGRAM:
            raise ValueError("XLM-RoBERTa's SentencePiece model is a unigram model; got BPE.")
        own = [(piece, score) for piece, score, _ in model.pieces[3:]]
        first = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        return lib.models.Unigram([*first, *own, ("<mask>", 0.0)], 3, model.byte_fallback)


class DebertaV3Tokenizer(SentencePieceTokenizer):
    """DeBERTa's unigram model, versions 2 and 3.  [CLS] first [SEP] second [SEP]   arXiv:2111.09543

    Of the model's file it takes the pieces alone, as transformers does; texts become NFC.
    """

    files = ("spm.model", *SentencePieceTokenizer.files)
    reference_class = "DebertaV2Tokenizer"
    special_tokens = named_tokens("[CLS] [SEP] [UNK] [SEP] [PAD] [CLS] [MASK]")
    wrap = WordPieceTokenizer.wrap
    settings = {
        "lowercase": ("do_lower_case", False),
        "split_punctuation": ("split_by_punct", False),
    }

    def __init__(
        self, model, lowercase=False, split_punctuation=False, special_tokens=None, added_tokens=()
    ):
        self.lowercase, self.split_punctuation = lowercase, split_punctuation  # for _pipeline
        mask = (special_tokens or {}).get("mask_token", "[MASK]")  # the model's file lacks it
        super().__init__(model, special_tokens, [*added_tokens, *new([mask], added_tokens)])

    def _pipeline(self, backend, lib, model):
        normal, cut = lib.normalizers, lib.pre_tokenizers
        steps = [normal.Lowercase()] if self.lowercase else []
        steps += [normal.Replace(lib.Regex(r"\s{2,}|[\n\r\t]"), " "), normal.NFC()]
        backend.normalizer = normal.Sequence([*steps, normal.Strip(left=False, right=True)])
        steps = [cut.Punctuation("isolated")] if self.split_punctuation else []
        backend.pre_tokenizer = cut.Sequence([*steps, cut.Metaspace(SPACE, "always")])
        backend.decoder = lib.decoders.Metaspace(SPACE, "always")

    def reference_config(self):
        steps = kinds(self.backend.normalizer, self.backend.pre_tokenizer)
        ours = {"do_lower_case": "Lowercase" in steps, "split_by_punct": "Punctuation" in steps}
        return {**super().reference_config(), **ours}


class LlamaTokenizer(SentencePieceTokenizer):
    """Llama's and Llama 2's BPE with byte fallback; spaces are kept. arXiv:2302.13971."""

    reference_class = "LlamaTokenizer"
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {
        name: (name, name in ("add_bos_token", "add_prefix_space"))
        for name in ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
    }

    def __init__(
        self,
        model,
        add_bos_token=True,
        add_eos_token=False,
        add_prefix_space=True,
        legacy=False,
        **options,
    ):
        self.prefix = ("always" if legacy else "first") if add_prefix_space else "never"
        bos, eos = "bos_token" if add_bos_token else "", "eos_token" if add_eos_token else ""
        second = f"{bos and bos + ':1'} $B:1 {eos and eos + ':1'}"
        self.wrap = (f"{bos} $A {eos}", f"{bos} $A {eos} {second}")
        super().__init__(model, **options)

    def _pipeline(self, backend, lib, model):
        self._spaces(backend, lib, self.prefix, whole=True)

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
