"""Reviews of films, 25,000 and 25,000, good or bad, as numbers of words.  Maas et al. 2011."""

import numpy as np

from khub.datasets import files

_DIGEST = "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f"


def load_data(
    path="imdb.npz", num_words=None, skip_top=0, maxlen=None, seed=113, start_char=1, oov_char=2,
    index_from=3, **kwargs,
):  # fmt: skip
    """Return ((x, y), (x, y)) for training and testing.

    x: lists of the words' ranks by frequency, raised by `index_from`, after a `start_char`; those
    outside of skip_top..num_words are `oov_char`, or left out where it is None.  maxlen: only
    reviews shorter than it.  y: 0 or 1
    """
    if kwargs:
        raise TypeError(f"load_data() takes no {', '.join(kwargs)}.")
    found, parts = files.arrays(path, "imdb.npz", _DIGEST), []
    random = np.random.RandomState(seed)
    for part in ("train", "test"):
        order = np.arange(len(found[f"x_{part}"]))
        random.shuffle(order)
        parts.append((found[f"x_{part}"][order], found[f"y_{part}"][order]))
    options = num_words, skip_top, maxlen, start_char, oov_char, index_from
    return tuple(files.encode(x, y, *options) for x, y in parts)


def get_word_index(path="imdb_word_index.json"):
    """Return word -> its rank by frequency, which `load_data` raises by `index_from`."""
    return files.word_index(path, "imdb_word_index.json", "bfafd718b763782e994055a2d397834f")
