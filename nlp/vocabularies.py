"""Vocabularies learned from texts: the same texts give the same one in every process."""

import io
from collections import Counter

from khub.choices import choose

from .byte_pair import BytePairTokenizer, byte_characters
from .sentence_piece import SentencePieceTokenizer
from .tokenizers import SPECIAL_TOKENS, WordPieceTokenizer, described, engine

ALPHABET_LIMIT = 1000  # characters; rarer ones become unknown


def train_word_piece(texts, vocabulary_size, lowercase=True, min_frequency=2):
    """Learn a WordPieceTokenizer of at most `vocabulary_size` tokens from an iterable of texts.

    The same texts give the same vocabulary. Raises ValueError when the characters alone need more.
    """
    lib, texts = engine(), list(texts)
    blank = WordPieceTokenizer(list(SPECIAL_TOKENS.values()), lowercase=lowercase)
    alphabet, inside = characters(blank.backend, texts)
    # Characters are numbered here: the trainer numbers "##x" in the order of a hash table that
    # differs from process to process, and the numbers decide between pairs of equal frequency.
    first = [*SPECIAL_TOKENS.values(), *(f"##{c}" for c in inside)]
    make, sizes = lib.trainers.WordPieceTrainer, (vocabulary_size, min_frequency)
    learn(blank.backend, texts, make, *sizes, first, alphabet, "characters of the texts")
    return WordPieceTokenizer(blank.backend.get_vocab(), lowercase=lowercase)


def learn(backend, texts, make, vocabulary_size, min_frequency, first, alphabet, what):
    """Train a backend.  make: its trainer   first, alphabet: tokens   what: of these, for errors"""
    if vocabulary_size < (needed := len(first) + len(alphabet)):
        raise ValueError(
            f"vocabulary_size={vocabulary_size} is less than the {needed} tokens that the special "
            f"tokens and the {what} need."
        )
    sizes = dict(vocab_size=vocabulary_size, min_frequency=min_frequency)
    tokens = dict(special_tokens=first, initial_alphabet=alphabet, limit_alphabet=len(alphabet))
    backend.train_from_iterator(texts, make(**sizes, **tokens, show_progress=False))


def characters(backend, texts):
    """The commonest characters of texts, and those of them that occur inside words; sorted."""
    words, counts = set(), Counter()
    for text in texts:
        text = backend.normalizer.normalize_str(text)
        found = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        words.update(found), counts.update("".join(found))
    kept = sorted(sorted(counts), key=lambda c: -counts[c])[:ALPHABET_LIMIT]
    return sorted(kept), sorted({c for word in words for c in word[1:]}.intersection(kept))


def train_byte_pair(texts, vocabulary_size, min_frequency=2, special_tokens=None, **options):
    """Learn a BytePairTokenizer of at most `vocabulary_size` tokens from an iterable of texts.

    special_tokens: {"eos_token": "<|endoftext|>", ...}, which get the first ids; options are
    BytePairTokenizer's. No text is unknown to it: all 256 bytes are in the vocabulary.
    """
    lib, special_tokens = engine(), special_tokens or {}
    first = list(dict.fromkeys(special_tokens.values()))
    options["special_tokens"] = special_tokens
    blank = BytePairTokenizer([*first, *byte_characters()], [], **options).backend
    make, sizes = lib.trainers.BpeTrainer, (vocabulary_size, min_frequency)
    learn(blank, texts, make, *sizes, first, byte_characters(), "256 bytes")
    learned = described(blank.model)
    return BytePairTokenizer(learned["vocab"], learned["merges"], **options)


def train_sentence_piece(texts, vocabulary_size, model="unigram", byte_fallback=False, cls=None):
    """Learn a SentencePieceTokenizer of at most `vocabulary_size` pieces from an iterable of texts.

    model: "unigram" or "bpe"; cls: a class below it (T5Tokenizer, ...), whose special tokens get
    the first ids; else they are <unk>, <s> and </s>.
    """
    import sentencepiece

    cls = cls or SentencePieceTokenizer
    model = choose("model", model, ("unigram", "bpe"))
    given = cls.special_tokens or {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    names, taken = {}, {}
    order = ("pad", "eos", "unk", "bos") if cls.special_tokens else ("unk", "bos", "eos", "pad")
    for name in order:
        token = given.get(f"{name}_token")
        names |= {f"{name}_id": -1 if token is None or token in taken else len(taken)}
        if names[f"{name}_id"] >= 0:
            names[f"{name}_piece"], taken[token] = token, name
    others = [t for t in dict.fromkeys(given.values()) if t not in taken]
    data = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=data,
            model_type=model,
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            byte_fallback=byte_fallback,
            control_symbols=others,
            num_threads=1,
            minloglevel=2,
            **names,
        )
    except RuntimeError as error:
        raise ValueError(
            f"SentencePiece learns no {model} model of {vocabulary_size} pieces here: {error}"
        ) from error
    return cls(data.getvalue())
