"""TextVectorization: texts as tokens, tokens as indices or vectors. Strings stay bytes inside."""

import sys
from itertools import chain, repeat
from typing import Annotated

import numpy as np

from khub import ops
from khub.backend import name as backend
from khub.fields import Choice
from khub.layers.encoding import host_array
from khub.layers.lookup import _StringIndex
from khub.ops.symbolic import KerasTensor, any_symbolic
from khub.saving import registry

_PUNCTUATION = b"!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'"
_LOWER = bytes(range(256)).lower()
_STANDARDIZE = {  # ASCII only: a vocabulary of Keras' fits
    "lower_and_strip_punctuation": lambda text: text.translate(_LOWER, _PUNCTUATION),
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
        value = registry.revive(value)  # a function as files have it
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


class TextVectorization(_StringIndex):
    """Texts, standardized and split into tokens, as indices of a vocabulary, on the host.

    (batch,) or (batch, 1) strings -> (batch, longest or output_sequence_length) int64, 0 where a
    text has ended and 1 for unknown tokens; (batch, vocabulary) in the other output modes.
    standardize, split: names, None, or functions of an array of strings
    """

    mask_token, oov_token, num_oov_indices, invert = "", "[UNK]", 1, False
    _also_at = ("_lookup_layer",)  # where Keras has what is in files, beside the layer itself

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
        super().setup()

    # --- the vocabulary --------------------------------------------------------------------------
    def adapt(self, data, batch_size=None, steps=None):
        """Take the tokens of the texts as vocabulary, most frequent first.

        data: a list, an array or an iterable of batches, of which at most `steps` are read;
        batch_size: accepted for Keras' sake, without effect
        """
        super().adapt(data, steps)

    def update_state(self, data):
        """Count the tokens of one batch."""
        self._take(self._tokenized(host_array(data)))

    # --- texts to tokens -------------------------------------------------------------------------
    def _bytes(self, texts):
        """Yield the texts, encoded: one after another, so that what is made of one stays cached."""
        for text in texts.ravel().tolist():
            yield text if isinstance(text, bytes) else str(text).encode(self.encoding)

    def _strings(self, texts, shape):
        """Return the array of encoded texts as a user's function gets it, decoded."""
        return np.array([text.decode(self.encoding) for text in texts], object).reshape(shape)

    def _tokenized(self, texts):
        """Yield the tokens of each text, as lists of bytes; of str, if these are characters."""
        shape, flat = texts.shape, self._bytes(texts)
        if callable(self.standardize):
            texts = host_array(self.standardize(self._strings(flat, shape)))
            shape, flat = texts.shape, self._bytes(texts)
        elif self.standardize is not None:
            flat = map(_STANDARDIZE[self.standardize], flat)
        if self.split is None:
            rows = np.array(list(flat), object).reshape((*shape, 1, 1)[:2]).tolist()
            if len(shape) < 2:  # each is a token
                return rows
        elif shape[1:] not in ((), (1,)):
            raise ValueError(
                f"{self.name} takes texts of shape (batch,) or (batch, 1), got {shape}; "
                "give split=None for tokens."
            )
        elif callable(self.split):
            found = self.split(self._strings(flat, shape[:1]))
            found = found.to_list() if hasattr(found, "to_list") else found
            rows = (list(self._bytes(host_array(row))) for row in found)
        else:
            rows = map(_SPLIT[self.split], flat)
        return rows if self._sizes is None else map(self._joined, rows)

    def _joined(self, tokens):
        """Return the n-grams of one text's tokens."""
        space = " " if tokens and isinstance(tokens[0], str) else b" "
        return [
            space.join(tokens[i : i + n]) for n in self._sizes for i in range(len(tokens) - n + 1)
        ]

    # --- tokens to numbers -----------------------------------------------------------------------
    def _numbers(self, texts):
        """Return the indices of all tokens in one array, and how many each text has."""
        rows, lengths = self._tokenized(texts), []
        if self.output_sequence_length is not None:
            rows = (row[: self.output_sequence_length] for row in rows)

        def counted(row):
            lengths.append(len(row))
            return row

        table = self._table if self.split == "character" else self._table_of_bytes
        tokens = chain.from_iterable(map(counted, rows))
        found = map(table.get, tokens, repeat(self._first))
        return np.fromiter(found, "int64"), np.array(lengths, "int64")

    def call(self, inputs):
        texts = host_array(inputs)
        self._require_vocabulary()
        numbers, lengths = self._numbers(texts)
        if self.split is None and texts.ndim < 2:
            return self._encoded(numbers.reshape(texts.shape))
        width = self.output_sequence_length or int(lengths.max(initial=0))
        empty = 0 if self.output_mode == "int" else -1  # which a vector does not count
        result = np.full((len(lengths), width), empty, "int64")
        result[np.arange(width) < lengths[:, None]] = numbers
        result = self._encoded(result)
        return result if texts.ndim else result[0]

    def __call__(self, inputs, **kwargs):
        if not self.ragged or any_symbolic(inputs):
            return super().__call__(inputs, **kwargs)
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
        found = super().compute_output_spec(KerasTensor(shape, "string"))
        found.ragged = self.ragged
        return found

    def get_config(self):
        return super().get_config() | {"vocabulary_size": self.vocabulary_size()}
