"""The cache of keys and values: what a decoder has computed, so that a token costs one position."""

from typing import NamedTuple

import numpy as np

from khub import ops, tree
from khub.backend import active

EAGER = active.EAGER  # arrays can be written in place, and lengths are numbers


class KVCache(NamedTuple):
    """Keys and values of every layer, and room for those to come.

    keys, values: lists of (batch, room, key_heads, head_width)   length: the positions written
    starts: int (batch,), the first real position of each row, None: all are real
    memory: what the encoder gave, arrays with the batch first, None where there is none
    longest: the tokens that a text will have at most, None: as there is room for

    `backbone.new_cache(batch, room)` makes one, `backbone.run(token_ids, cache)` gives the next;
    on torch and NumPy that writes the arrays of the one it was given.
    """

    keys: list
    values: list
    length: int = 0
    starts: object = None
    memory: object = None
    longest: object = None

    @classmethod
    def zeros(cls, layers, shape, dtype, starts=None, memory=None):
        """An empty cache of `layers`, each (batch, room, key_heads, head_width)."""
        keys, values = ([ops.zeros(shape, dtype) for _ in range(layers)] for _ in "kv")
        return cls(keys, values, number(0), starts, memory)

    @property
    def room(self):
        """The positions that there are."""
        return ops.shape(self.keys[0])[1]

    def layers(self):
        """(keys, values) of each layer, in a list."""
        return list(zip(self.keys, self.values))

    def written(self, layers, length):
        """The cache that has these keys and values, of `length` positions."""
        keys, values = map(list, zip(*layers))
        return self._replace(keys=keys, values=values, length=length)

    def rewind(self, length):
        """The same cache of fewer positions: what lies behind is written anew."""
        return self._replace(length=length)

    def take(self, rows):
        """A cache of these rows, for any number of them."""
        return tree.map_structure(
            lambda x: ops.take(x, rows, axis=0) if ops.is_tensor(x) and len(x.shape) else x, self
        )

    def reorder(self, rows):
        """Keys and values of these rows, which share what else there is: beams of one prompt."""
        if not EAGER:
            keys, values = ([ops.take(x, rows, axis=0) for x in part] for part in self[:2])
            return self._replace(keys=keys, values=values)
        for x in (*self.keys, *self.values):
            x[:, : self.length] = x[rows, : self.length]
        return self


def number(n):
    """A length as the backend's loop has it."""
    return n if EAGER else np.int32(n)


def overwrite(array, at, new):
    """`array` with `new` from position `at` of its second axis on; in place where that can be."""
    new = ops.cast(new, ops.dtype(array))
    if EAGER:
        array[:, at : at + new.shape[1]] = new
        return array
    return ops.slice_update(array, (0, at) + (0,) * (len(array.shape) - 2), new)
