"""Strings and integers as their places in a vocabulary, given or found by `adapt`."""

import os
from collections import Counter
from itertools import chain
from operator import itemgetter

import numpy as np

from khub import ops, tree
from khub.backend import name as backend
from khub.backend.scope import local
from khub.fields import Choice, FieldsOf
from khub.layers.data_layer import _in_worker, _to_device
from khub.layers.encoding import Salt, _Adaptive, _Encoder, array, host_array
from khub.utils import hashing

LookupMode = Choice("int", "one_hot", "multi_hot", "count", "tf_idf")


class _Table(dict):
    """Token -> index; a token that is not in it gets an index of `unknown`."""

    def __missing__(self, token):
        return self.unknown(token)


def _documents(data):
    """The tokens of each row; each token by itself where there is but one axis."""
    x = host_array(data)
    if x.size and isinstance(x.flat[0], (list, tuple)):  # rows of several lengths
        return [tree.flatten(row) for row in x.tolist()]
    return x.reshape(len(x), -1).tolist() if x.ndim > 1 else [[t] for t in x.ravel().tolist()]


class _IndexLookup(_Adaptive, _Encoder):
    """Maps tokens to indices: first the mask's, then those of unknown tokens, then the vocabulary.

    The mask has an index with output_mode "int" only; vectors leave it out.
    """

    def setup(self):
        super().setup()
        mode = self.output_mode
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2, got {self.max_tokens!r}.")
        if self.num_oov_indices < 0:
            raise ValueError(f"num_oov_indices must not be negative, got {self.num_oov_indices!r}.")
        if self.invert and mode != "int":
            raise ValueError(f"invert=True needs output_mode='int', got {mode!r}.")
        if self.pad_to_max_tokens and self.max_tokens is None:
            raise ValueError("pad_to_max_tokens=True needs max_tokens.")
        if self.idf_weights is not None and mode != "tf_idf":
            raise ValueError(f"idf_weights need output_mode='tf_idf', got {mode!r}.")
        self._tokens = self._size = self._table = None
        given, weights = self.vocabulary, self.idf_weights
        self._given_weights = None if weights is None else host_array(weights).tolist()
        self.vocabulary = self.idf_weights = None
        self._forget()
        if given is not None:
            self.set_vocabulary(given, weights)
            if not isinstance(given, str):
                self.vocabulary = host_array(given).tolist()

    # --- the vocabulary --------------------------------------------------------------------------
    def _special(self):
        """The tokens before the vocabulary's: the mask and the unknown."""
        masks = [] if self.mask_token is None or self.output_mode != "int" else [self.mask_token]
        return masks + [self.oov_token] * self.num_oov_indices

    def set_vocabulary(self, vocabulary, idf_weights=None):
        """Set the tokens, most frequent first, with or without the special ones before them.

        vocabulary: a list, an array or the path of a file with one token a line; idf_weights: one
        number a token, for output_mode "tf_idf"
        """
        if isinstance(vocabulary, str):
            vocabulary = self._read(vocabulary)
        tokens = [self._token(t) for t in host_array(vocabulary).ravel().tolist()]
        must = f"{self.name}: vocabulary must hold"
        if not tokens:
            raise ValueError(f"{must} tokens, got {vocabulary!r}.")
        weights = None if idf_weights is None else host_array(idf_weights).ravel().tolist()
        if self.output_mode == "tf_idf" and (weights is None or len(weights) != len(tokens)):
            raise ValueError(
                f"{self.name}: tf_idf needs idf_weights for all tokens, got {weights}."
            )
        special = self._special()
        if special and tokens[: len(special)] == special:
            tokens = tokens[len(special) :]
            weights = weights and weights[len(special) :]
        repeated = [token for token, count in Counter(tokens).items() if count > 1][:10]
        if repeated:
            raise ValueError(f"{must} each token once, got repeated {repeated}.")
        reserved = [self.mask_token] + [self.oov_token] * self.invert
        wrong = [token for token in tokens if token is not None and token in reserved]
        if wrong:
            raise ValueError(f"{must} {special} at its beginning or not at all, got {wrong} later.")
        size, most = len(special) + len(tokens), self.max_tokens
        if most is not None and size > most:
            raise ValueError(f"{must} at most max_tokens={most} tokens with {special}, got {size}.")
        self.vocabulary, self._static = None, True
        self._install(tokens, weights)

    def _install(self, tokens, weights=None):
        """Make the table of these tokens."""
        self._tokens, self._size = tokens, None
        special = self._special()
        self._all = np.array([*special, *tokens, self.oov_token], self._token_dtype)
        self._first = len(special) - self.num_oov_indices
        self._table = _Table(self._keys(tokens, len(special)))
        self._table.unknown = self._unknown
        if self.mask_token is not None:
            place = 0 if self.output_mode == "int" else -1
            self._table.update(self._keys([self.mask_token], place))
        if weights is not None:
            unknown = [np.mean(weights)] * self.num_oov_indices
            self.idf_weights = np.asarray(unknown + list(weights), "float32")

    def _keys(self, tokens, start):
        return {token: start + i for i, token in enumerate(tokens)}

    def _unknown(self, token):
        if self.num_oov_indices == 0:
            how = "give num_oov_indices=1 to allow unknown tokens"
            raise ValueError(f"{self.name}: {token!r} is not in the vocabulary; {how}.")
        return self._first + (self._bucket(token) if self.num_oov_indices > 1 else 0)

    def _bucket(self, token):
        return int(hashing.buckets([token], self.num_oov_indices, self.salt)[0])

    def get_vocabulary(self, include_special_tokens=True):
        """Return the tokens in the order of their indices."""
        return self._special() * bool(include_special_tokens) + list(self._tokens or ())

    def vocabulary_size(self):
        """Return the number of tokens, with the special ones."""
        return self._size or len(self.get_vocabulary())

    def _count(self):
        return self.max_tokens if self.pad_to_max_tokens else self.vocabulary_size()

    def _require_vocabulary(self):
        if self._table is None:
            how = "call adapt(data) or set_vocabulary(tokens)"
            raise ValueError(f"{self.name} has no vocabulary yet: {how}.")

    # --- adapt: the most frequent tokens come first ----------------------------------------------
    def _forget(self):
        self._counts, self._rows_with, self._rows, self._static = Counter(), Counter(), 0, False

    def reset_state(self):
        """Forget the data seen so far."""
        if self._static:
            raise ValueError(f"{self.name} has a given vocabulary; leave it out to adapt it.")
        self._forget()

    def update_state(self, data):
        """Count the tokens of one batch."""
        self._take(_documents(data))

    def _take(self, documents):
        if self.output_mode == "tf_idf":
            documents = list(documents)
            self._rows_with.update(chain.from_iterable(map(set, documents)))
            self._rows += len(documents)
        self._counts.update(chain.from_iterable(documents))

    def finalize_state(self):
        """Make the vocabulary of what was counted."""
        if not self._counts:
            return
        counts, rows = {}, {}
        for total, seen in ((counts, self._counts), (rows, self._rows_with)):
            for token, count in zip(map(self._token, seen), seen.values(), strict=True):
                total[token] = total.get(token, 0) + count  # a string comes as bytes too
        for token in (self.mask_token, self.oov_token):
            counts.pop(token, None)
        ranked = sorted(counts.items(), key=itemgetter(1, 0), reverse=True)
        tokens = [token for token, _ in ranked]
        if self.max_tokens is not None:
            tokens = tokens[: self.max_tokens - len(self._special())]
        weights = None
        if self.output_mode == "tf_idf":
            weights = np.log(1 + self._rows / (1 + np.asarray([rows[t] for t in tokens])))
        self._install(tokens, weights)
        self._forget()

    # --- call ------------------------------------------------------------------------------------
    def call(self, inputs):
        self._require_vocabulary()
        if not self.invert:
            return self._encoded(self._indices(inputs))
        x, last = ops.cast(inputs, "int64"), len(self._all) - 1
        places = ops.where(ops.logical_or(x < 0, x > last), last, x)
        return self._all[places] if self._host_only else ops.take(self._all, places)

    def _indices(self, inputs):
        """Return the index of each token, by the table."""
        x = host_array(inputs)
        tokens = x.ravel().tolist()
        found = map(self._table_for(tokens).__getitem__, tokens)
        return np.fromiter(found, "int64", x.size).reshape(x.shape)

    def _table_for(self, tokens):
        return self._table

    def _encoded(self, indices):
        found = super()._encoded(indices)
        return found * self._padded_weights() if self.output_mode == "tf_idf" else found

    def _result_dtype(self):
        return "float32" if self.output_mode == "tf_idf" else "int64"

    def _padded_weights(self):
        if self.idf_weights is None:
            raise ValueError(f"{self.name} has no idf_weights yet: load or adapt them.")
        return np.pad(self.idf_weights, (0, self._count() - len(self.idf_weights)))

    # --- files -----------------------------------------------------------------------------------
    def _read(self, path):
        if not os.path.exists(path):
            raise ValueError(f"{self.name}: the vocabulary file {path!r} does not exist.")
        with open(path, encoding="utf-8", newline="\n") as file:
            return file.read().removesuffix("\n").split("\n")

    def save_assets(self, dir_path):
        """Write the vocabulary to `vocabulary.txt`, unless the config has it."""
        if self.vocabulary is not None or self._tokens is None:
            return
        lines = [str(token) for token in self.get_vocabulary()]
        if any("\n" in line for line in lines):
            raise ValueError(
                f"{self.name}: a token has a line break, which the vocabulary's file cannot hold; "
                "give the vocabulary to the constructor to have it saved in the config."
            )
        with open(os.path.join(dir_path, "vocabulary.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines))

    def load_assets(self, dir_path):
        """Read what `save_assets` wrote."""
        path = os.path.join(dir_path, "vocabulary.txt")
        if self.vocabulary is None and os.path.exists(path):
            tokens = [self._token(t) for t in self._read(path)]
            self._install(tokens[len(self._special()) :])

    def save_own_variables(self, store):
        """Write the weights of output_mode "tf_idf" as "idf_weights"."""
        if self.idf_weights is not None:
            store["idf_weights"] = self.idf_weights

    def load_own_variables(self, store):
        """Read what `save_own_variables` wrote."""
        if self.output_mode == "tf_idf":
            self.idf_weights = np.asarray(store["idf_weights"], "float32")

    def _constructor_values(self):
        return super()._constructor_values() | {"idf_weights": self._given_weights}

    def get_config(self):
        known = self._tokens is not None or self._size
        size = self.vocabulary_size() if known else None
        return super().get_config() | {"vocabulary_size": size}

    @classmethod
    def from_config(cls, config):
        """Build the layer from `get_config()`'s result; an adapted vocabulary is an asset."""
        config = dict(config)
        size = config.pop("vocabulary_size", None)
        layer = cls(**config)
        layer._size = None if layer._tokens is not None else size
        return layer


class _StringIndex(_IndexLookup):
    """Looks strings up, on the host. Data sets of TensorFlow give them as bytes.

    Each kind has a table of its own: as both hash alike, all would collide in one.
    """

    _host_only, _token_dtype = True, object

    def _token(self, token):
        return token.decode(self.encoding) if isinstance(token, bytes) else str(token)

    def _install(self, tokens, weights=None):
        super()._install(tokens, weights)
        encoded = {token.encode(self.encoding): i for token, i in self._table.items()}
        self._table_of_bytes = _Table(encoded)
        self._table_of_bytes.unknown = self._unknown

    def _table_for(self, tokens):
        return self._table_of_bytes if tokens and isinstance(tokens[0], bytes) else self._table

    def _unknown(self, token):
        found = self._table_for([token]).get(token)  # a list may hold both kinds
        return super()._unknown(token) if found is None else found

    def _result_dtype(self):
        return "string" if self.invert else super()._result_dtype()


class StringLookup(_StringIndex):
    """Strings as indices of a vocabulary, or with `invert` indices as strings; on the host.

    (...) strings -> (...) int64, or vectors (..., vocabulary) as `output_mode` says.  Several
    unknown indices are told apart by hashing; the mask_token has index 0.
    """

    _keras_keys = {"oov_method": "floormod"}

    max_tokens: int = None
    num_oov_indices: int = 1
    mask_token: str = None
    oov_token: str = "[UNK]"
    vocabulary: object = None
    idf_weights: object = None
    invert: bool = False
    output_mode: LookupMode = "int"
    pad_to_max_tokens: bool = False
    sparse: bool = False
    encoding: str = "utf-8"
    salt: Salt = None


class IntegerLookup(_IndexLookup):
    """Integers as indices of a vocabulary, or with `invert` indices as integers.

    (...) int -> (...) int64, or vectors (..., vocabulary) as `output_mode` says.  Several unknown
    indices are told apart by the remainder or, with oov_method "farmhash", on the host by hashing.
    """

    _token_dtype = "int64"

    sizes: FieldsOf(StringLookup, "max_tokens", "num_oov_indices", "mask_token")
    oov_token: int = -1
    vocabulary: object = None
    vocabulary_dtype: str = "int64"
    results: FieldsOf(StringLookup, "idf_weights", "invert", "output_mode", "sparse")
    pad_to_max_tokens: bool = False
    oov_method: str = "floormod"
    salt: Salt = None

    def setup(self):
        if self.oov_method not in ("floormod", "farmhash"):
            raise ValueError(f"oov_method must be floormod or farmhash, got {self.oov_method!r}.")
        if self.salt is not None and self.oov_method != "farmhash":
            raise ValueError(f"salt needs oov_method='farmhash', got {self.oov_method!r}.")
        if self.vocabulary_dtype != "int64":
            raise ValueError(f"vocabulary_dtype must be 'int64', got {self.vocabulary_dtype!r}.")
        hashes = self.oov_method == "farmhash" and self.num_oov_indices > 1
        self._host_only = hashes or self.num_oov_indices == 0  # where an unknown one is an error
        super().setup()

    def __call__(self, inputs):
        x = array(inputs)
        if isinstance(x, np.ndarray) and not local.host and not _in_worker():
            # in 64 bits, also where the device has 32
            return self._sparse(_to_device(self.on_host(x)))
        return super().__call__(x)

    def _token(self, token):
        return int(token)

    def _bucket(self, token):
        hashes = self.oov_method == "farmhash"
        return super()._bucket(token) if hashes else token % self.num_oov_indices

    def _install(self, tokens, weights=None):
        super()._install(tokens, weights)
        self._sorted = np.array(sorted(self._table), "int64")
        self._places = np.array([self._table[t] for t in self._sorted.tolist()], "int64")
        if backend == "jax" and abs(self._sorted).max() >= 2**31:
            self._host_only = True  # the device has 32 bits

    def _indices(self, inputs):
        x = ops.cast(inputs, "int64")
        if self._host_only:
            return super()._indices(x)
        near = ops.minimum(ops.searchsorted(self._sorted, x), len(self._sorted) - 1)
        unknown = ops.full_like(x, self._first)
        if self.num_oov_indices > 1:
            unknown = unknown + ops.mod(x, self.num_oov_indices)
        known = ops.equal(ops.take(self._sorted, near), x)
        return ops.where(known, ops.take(self._places, near), unknown)
