"""A tokenizer without a vocabulary: the code points of a text, as CANINE reads them."""

import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .byte_pair import check_form
from .token_files import read_json, read_special_tokens
from .tokenizers import Tokenizer, check_pairs, check_texts, check_unicode

POINTS = 0x110000


class UnicodeCodepointTokenizer(Tokenizer):
    """Every character is its Unicode code point.

    lowercase, normalization_form ("NFC", "NFD", "NFKC", "NFKD"): what happens to the text before;
    vocabulary_size: larger code points count as the last one. special_tokens: {"cls_token":
    "\\ue000", ...}, a character each.   Clark et al. 2021 (CANINE), arXiv:2103.06874.
    """

    reference_class = "CanineTokenizer"
    wrap = ("cls_token $A sep_token", "cls_token $A sep_token $B sep_token")

    def __init__(
        self, lowercase=True, normalization_form=None, vocabulary_size=POINTS, special_tokens=None
    ):
        self.lowercase, self.size = lowercase, vocabulary_size
        self.form = check_form(normalization_form)
        if type(vocabulary_size) is not int or not 0 < vocabulary_size <= POINTS:
            raise ValueError(f"vocabulary_size must be 1 .. {POINTS}, got {vocabulary_size!r}.")
        self.special_tokens = dict(special_tokens or {})
        for name, token in self.special_tokens.items():
            if len(token) != 1 or ord(token) >= vocabulary_size:
                raise ValueError(f"{name} must be one character of the vocabulary, got {token!r}.")
            setattr(self, f"{name}_id", ord(token))

    def _prepare(self, text):
        text = text.lower() if self.lowercase else text
        return unicodedata.normalize(self.form, text) if self.form else text

    def _encodings(self, texts, pair, add_special_tokens, method):
        found = [(t,) for t in check_texts(texts)] if pair is None else check_pairs(texts, pair)
        check_unicode(found)
        rows = [self._ids(*each, special=add_special_tokens) for each in found]
        places = [[(i, i + 1) for i in range(len(row))] for row in rows]
        return [SimpleNamespace(ids=row, offsets=at) for row, at in zip(rows, places)]

    def _ids(self, *texts, special):
        texts, ids = dict(zip(("$A", "$B"), texts)), []
        for part in self.wrap[len(texts) - 1].split():
            if part in texts:
                text = self._prepare(texts[part])
                codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
                ids += np.minimum(codes, self.size - 1).tolist()
            elif special and part in self.special_tokens:
                ids.append(ord(self.special_tokens[part]))
        return ids

    def offsets(self, texts, pair=None, add_special_tokens=False, words=False):
        """Only of texts that stay as they are: lowercase=False, no normalization, no pair."""
        if self.lowercase or self.form or pair is not None or add_special_tokens or words:
            raise ValueError(
                "offsets needs lowercase=False, normalization_form=None, no pair and no special "
                "tokens: otherwise characters of the text and tokens do not correspond."
            )
        return super().offsets(texts)

    def _decode(self, rows, skip_special_tokens):
        special = {ord(token) for token in self.special_tokens.values() if skip_special_tokens}
        rows = [[code for code in row if code not in special] for row in rows]
        return [np.array(row, "<u4").tobytes().decode("utf-32-le", "replace") for row in rows]

    def vocabulary_size(self):
        return self.size

    def get_vocabulary(self):
        return [chr(code) for code in range(self.size)]

    def _token(self, index):
        return chr(index) if 0 <= index < self.size else None

    def token_to_id(self, token):
        return min(ord(token), self.size - 1)

    @classmethod
    def load(cls, folder):
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json")
        own = {name: config[name] for name in OPTIONS if name in config}
        return cls(**own, special_tokens=read_special_tokens(folder, config, {}))

    def reference_config(self):
        own = dict(zip(OPTIONS, (self.lowercase, self.form, self.size)))
        return {**super().reference_config(), **own}


OPTIONS = ("lowercase", "normalization_form", "vocabulary_size")
