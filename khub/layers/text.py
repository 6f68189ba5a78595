"""TextVectorization: texts as tokens, tokens as indices or vectors. Strings stay bytes inside."""

import sys
from itertools import chain
from typing import Annotated

import numpy as np

from khub import ops
from khub.backend import name as backend
from khub.fields import Choice
from khub.layers.encoding import _Adaptive, _Encoder, host_array
from khub.layers.lookup import StringLookup
from khub.ops.symbolic import KerasTensor, any_symbolic
from khub.saving import registry

_PUNCTUATION = b"!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'"
_STANDARDIZE = {  # ASCII only: a vocabulary of Keras' fits
    "lower_and_strip_punctuation": lambda text: text.lower().translate(None, _PUNCTUATION),
    "lower": bytes.lower,
    "strip_punctuation": lambda text: text.translate(None, _PUNCTUATION),
}
_SPLIT = {
    "whitespace": bytes.split,
    "character": lambda text: list(text.decode("utf-8", "replace")),
}


def _step(table):
    """The type of a field that holds None, a name of the table or a function, maybe by its name."""

    def convert(argument, value):
        if value is None or callable(value) or value in table:
            return value
        found = registry.get_registered_object(value)
        if found is None:
            raise ValueError(
                f"{argument} must be None, one of {', '.join(table)} or a function, got {value!r}; "
                "decorate a function with khub.saving.register_keras_serializable() to have it "
                "found by its name."
            )
        return found

    return Annotated[object, convert]


class TextVectorization(_Adaptive, _Encoder):
    """Texts, standardized and split into tokens, as indices of a vocabulary, on the host.

    (batch,) or (batch, 1) strings -> (batch, longest or output_sequence_length) int64, 0 where a
    text has ended and 1 for unknown tokens; (batch, vocabulary) in the other output modes.
    standardize, split: names, None, or functions of an array of strings
    """

    _host_only = True

    max_tokens: int = None
    standardize: _step(_STANDARDIZE) = "lower_and_strip_punctuation"
    split: _step(_SPLIT) = "whitespace"
    ngrams: object = None
    output_mode: Choice("int", "multi_hot", "count", "tf_idf") = "int"
    output_sequence_length: int = None
    pad_to_max_tokens: bool = False
    vocabulary: object = None
    idf_weights: object = None
    sparse: bool = False
    ragged: bool = False
    encoding: str = "utf-8"

    def setup(self):
        super().setup()
        mode, length, n = self.output_mode, self.output_sequence_length, self.ngrams
        self._sizes = sizes = tuple(range(1, n + 1)) if isinstance(n, int) else n
        numbers = isinstance(sizes, (list, tuple)) and all(isinstance(n, int) for n in sizes)
        if sizes is not None and not (numbers and sizes):
            raise ValueError(f"ngrams must be None, a positive integer or a tuple, got {n!r}.")
        if length is not None and (mode != "int" or length < 1):
            raise ValueError(
                "output_sequence_length must be None, or a positive integer with "
                f"output_mode='int'; got {length!r} with {mode!r}."
            )
        if self.ragged and (backend != "tensorflow" or mode != "int"):
            raise ValueError(
                "ragged=True needs the TensorFlow backend and output_mode='int', this is "
                f"{backend} and {mode!r}; leave it False for padded rows."
            )
        shared = ("max_tokens", "vocabulary", "idf_weights", "pad_to_max_tokens", "encoding")
        options = {name: getattr(self, name) for name in shared}
        self._lookup_layer = StringLookup(
            **options, mask_token="", output_mode=mode, name=f"{self.name}_lookup"
        )

    # --- the vocabulary --------------------------------------------------------------------------
    def adapt(self, data, batch_size=None, steps=None):
        """Take the tokens of the texts as vocabulary, most frequent first.

        data: a list, an array or an iterable of batches, of which at most `steps` are read;
        batch_size: accepted for Keras' sake, without effect
        """
        super().adapt(data, steps)

    def reset_state(self):
        """Forget the texts seen so far."""
        self._lookup_layer.reset_state()

    def update_state(self, data):
        """Count the tokens of one batch."""
        rows = self._rows(host_array(data))
        self._lookup_layer._take([[t] for t in rows] if isinstance(rows, np.ndarray) else rows)

    def finalize_state(self):
        """Make the vocabulary of what was counted."""
        self._lookup_layer.finalize_state()

    def get_vocabulary(self, include_special_tokens=True):
        """Return the tokens in the order of their indices."""
        return self._lookup_layer.get_vocabulary(include_special_tokens)

    def set_vocabulary(self, vocabulary, idf_weights=None):
        """Set the tokens: a list, an array or the path of a file with one token a line."""
        self._lookup_layer.set_vocabulary(vocabulary, idf_weights)

    def vocabulary_size(self):
        """Return the number of tokens, with the special ones."""
        return self._lookup_layer.vocabulary_size()

    # --- texts to tokens -------------------------------------------------------------------------
    def _bytes(self, texts):
        """Return a flat list of the texts, encoded."""
        flat = texts.ravel().tolist()
        return [t if isinstance(t, bytes) else str(t).encode(self.encoding) for t in flat]

    def _strings(self, texts):
        """Return the array of texts as a user's function gets it, decoded."""
        flat = [t.decode(self.encoding) for t in self._bytes(texts)]
        return np.array(flat, object).reshape(texts.shape)

    def _rows(self, texts):
        """Return the tokens of each text as lists, or an array of tokens where nothing splits."""
        if callable(self.standardize):
            texts = host_array(self.standardize(self._strings(texts)))
        else:
            flat = list(map(_STANDARDIZE.get(self.standardize, bytes), self._bytes(texts)))
            texts = np.array(flat, object).reshape(texts.shape)
        if self.split is not None:
            if texts.shape[1:] not in ((), (1,)):
                raise ValueError(
                    f"{self.name} takes texts of shape (batch,) or (batch, 1), got {texts.shape}; "
                    "give split=None for tokens."
                )
            texts = texts.reshape(texts.shape[:1])
        elif texts.ndim < 2:
            return texts.ravel()
        if callable(self.split):
            found = self.split(self._strings(texts))
            found = found.to_list() if hasattr(found, "to_list") else found
            rows = [host_array(row).tolist() for row in found]
        else:
            rows = texts if self.split is None else map(_SPLIT[self.split], self._bytes(texts))
            rows = [list(row) for row in rows]
        return rows if self._sizes is None else list(map(self._joined, rows))

    def _joined(self, tokens):
        """Return the n-grams of one text's tokens."""
        space = " " if tokens and isinstance(tokens[0], str) else b" "
        return [
            space.join(tokens[i : i + n]) for n in self._sizes for i in range(len(tokens) - n + 1)
        ]

    # --- tokens to numbers -----------------------------------------------------------------------
    def _numbers(self, texts):
        """Return the indices of all tokens in one array, and how many each text has."""
        rows = self._rows(texts)
        if self.output_sequence_length is not None:
            rows = [row[: self.output_sequence_length] for row in rows]
        lengths = np.fromiter(map(len, rows), "int64", len(rows))
        found = map(self._lookup_layer._table.__getitem__, chain.from_iterable(rows))
        return np.fromiter(found, "int64", int(lengths.sum())), lengths

    def call(self, inputs):
        lookup, texts = self._lookup_layer, host_array(inputs)
        lookup._require_vocabulary()
        if self.split is None and texts.ndim < 2:
            return lookup.call(self._rows(texts).reshape(texts.shape))
        numbers, lengths = self._numbers(texts)
        width = self.output_sequence_length or int(lengths.max(initial=0))
        empty = 0 if self.output_mode == "int" else -1  # which a vector does not count
        result = np.full((len(lengths), width), empty, "int64")
        result[np.arange(width) < lengths[:, None]] = numbers
        result = lookup._encoded(result)
        return result if texts.ndim else result[0]

    def __call__(self, inputs):
        if not self.ragged or any_symbolic(inputs):
            return super().__call__(inputs)
        tensorflow = sys.modules["tensorflow"]
        if hasattr(inputs, "graph") and not hasattr(inputs, "numpy"):  # in a tf.data pipeline
            found = tensorflow.numpy_function(self._numbers, [inputs], [tensorflow.int64] * 2)
            for tensor in found:
                tensor.set_shape([None])
        else:
            found = map(ops.convert_to_tensor, self._numbers(host_array(inputs)))
        return tensorflow.RaggedTensor.from_row_lengths(*found)

    def compute_output_spec(self, inputs):
        shape = inputs.shape
        if self.split is not None or len(shape) > 1:
            kept = shape[-1] if self.split is None and self._sizes is None else None
            shape = (*shape[:1], self.output_sequence_length or kept)
        found = self._lookup_layer.compute_output_spec(KerasTensor(shape, "string"))
        found.ragged, found.sparse = self.ragged, self.sparse
        return found

    # --- files -----------------------------------------------------------------------------------
    def save_assets(self, dir_path):
        """Write the vocabulary to `vocabulary.txt`, unless the config has it."""
        self._lookup_layer.save_assets(dir_path)

    def load_assets(self, dir_path):
        """Read what `save_assets` wrote."""
        self._lookup_layer.load_assets(dir_path)

    def save_own_variables(self, store):
        """Write the weights of output_mode "tf_idf" as "idf_weights"."""
        self._lookup_layer.save_own_variables(store)

    def load_own_variables(self, store):
        """Read what `save_own_variables` wrote."""
        self._lookup_layer.load_own_variables(store)

    def _constructor_values(self):
        lookup = self._lookup_layer.get_config()
        return super()._constructor_values() | {k: lookup[k] for k in ("vocabulary", "idf_weights")}

    def get_config(self):
        return super().get_config() | {"vocabulary_size": self.vocabulary_size()}

    @classmethod
    def from_config(cls, config):
        """Build the layer from `get_config()`'s result; an adapted vocabulary is an asset."""
        config = dict(config)
        size = config.pop("vocabulary_size", None)
        layer = cls(**config)
        if layer._lookup_layer._tokens is None:
            layer._lookup_layer._size = size
        return layer
