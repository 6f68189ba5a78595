"""News of 1987 in 46 topics, as numbers of words: 11,228 texts.  Lewis 1997 (Reuters-21578)."""

from khub.datasets import files

_DIGEST = "d6586e694ee56d7a4e65172e12b3e987c03096cb01eab99753921ef915959916"
_TOPICS = """cocoa grain veg-oil earn acq wheat copper housing money-supply coffee sugar trade
reserves ship cotton carcass crude nat-gas cpi money-fx interest gnp meal-feed alum oilseed gold tin
strategic-metal livestock retail ipi iron-steel rubber heat jobs lei bop zinc orange pet-chem dlr
gas silver wpi hog lead"""


def load_data(
    path="reuters.npz", num_words=None, skip_top=0, maxlen=None, test_split=0.2, seed=113,
    start_char=1, oov_char=2, index_from=3,
):  # fmt: skip
    """Return ((x, y), (x, y)) for training and testing, as `imdb.load_data()`.  y: 0 to 45"""
    found = files.arrays(path, "reuters.npz", _DIGEST)
    (x, y), _ = files.split(found["x"], found["y"], 0.0, seed)
    options = num_words, skip_top, maxlen, start_char, oov_char, index_from
    x, y = files.encode(x, y, *options)
    cut = int(len(x) * (1 - test_split))
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def get_word_index(path="reuters_word_index.json"):
    """Return word -> its rank by frequency."""
    return files.word_index(path, "reuters_word_index.json", "4d44cc38712099c9e383dc6e5f11a921")


def get_label_names():
    """Return the names of the topics."""
    return tuple(_TOPICS.split())
