"""Text to arrays, on the host: what a task's network is fed. NumPy only, safe in any thread.

A preprocessor is called as `preprocessor(x, y=None, sample_weight=None)` and gives x, (x, y) or
(x, y, sample_weight) back. x: list[str] for single texts; for pairs a tuple of two such lists, or a
list of 2-tuples. One str (or a tuple of two) gives arrays without the batch axis.
"""

import itertools

import numpy as np

from khub import tree
from khub.fields import Choice, Configurable, FieldsOf, PositiveInt, Rate
from khub.training.data import is_raw_texts

from ..presets import Presettable
from .spans import Token, answer_span, token_range, token_spans, token_words
from .tokenizers import check_texts


class TextPreprocessor(Presettable, Configurable):
    """What has a tokenizer, and is saved with it."""

    def save(self, folder):
        """Write the tokenizer's files."""
        self.tokenizer.save(folder)

    def preset_config(self):
        """What config.json keeps: all fields but the tokenizer, which has files of its own."""
        return {name: getattr(self, name) for name, *_ in self._fields if name != "tokenizer"}


def shares(sizes, room, half):
    """What of one text or two fits: of two a half each, and what the other leaves of its own.

    half: the first's; where the room is odd one text has a token more
    """
    if len(sizes) == 1:
        return [min(sizes[0], room)]
    first = min(sizes[0], max(room - sizes[1], half))
    return [first, min(sizes[1], room - first)]


def only(index, sizes, room):
    """Cut one text alone; the others must fit."""
    index = min(index, len(sizes) - 1)
    rest = sum(sizes) - sizes[index]
    if rest > room:
        raise ValueError(
            f"truncate cuts only text {index + 1} of the pair, but the other alone has {rest} "
            f"tokens and the room is {room}. Use truncate='longest_first' or a longer "
            "sequence_length."
        )
    return [min(size, room - rest) if i == index else size for i, size in enumerate(sizes)]


TRUNCATE = {  # the odd token: the longer text's, the second one's of equals, or the first one's
    "longest_first": lambda sizes, room: shares(sizes, room, (room + (sizes[0] > sizes[-1])) // 2),
    "round_robin": lambda sizes, room: shares(sizes, room, (room + 1) // 2),
    "only_first": lambda sizes, room: only(0, sizes, room),
    "only_second": lambda sizes, room: only(1, sizes, room),
}


class BertPreprocessor(TextPreprocessor):
    """Texts or pairs of texts with the special tokens around them, cut and padded to one length.

    -> {"token_ids": int32 (batch, sequence_length), "segment_ids": the same, "padding_mask": bool};
    segment_ids where the tokenizer tells the texts of a pair apart. The tokenizer says which
    special tokens there are: [CLS] first [SEP] second [SEP] is BERT's way.
    truncate: "longest_first" takes tokens from the longer text of a pair, as transformers does;
    "round_robin" shares the room token by token, as KerasHub does; "only_first" and "only_second"
    cut one text alone.
    """

    tokenizer: object
    sequence_length: PositiveInt = 512
    truncate: Choice(*TRUNCATE) = "longest_first"

    def setup(self):
        if self.sequence_length < 3:
            raise ValueError(
                f"sequence_length must be at least 3 ([CLS], a token, [SEP]); got "
                f"{self.sequence_length}."
            )
        self.templates = [template(self.tokenizer, count) for count in (1, 2)]
        self.has_segments = any(segment for _, _, segment in self.templates[1])

    def __call__(self, x, y=None, sample_weight=None):
        return pack(self.encode(x), y, sample_weight)

    def encode(self, x):
        segments, batched = text_segments(x)
        arrays = self.assemble([self.tokenizer.tokenize(texts) for texts in segments])
        return unbatched(arrays, batched)

    def room(self, count):
        """How many tokens of `count` texts fit."""
        return self.sequence_length - len(self.templates[count - 1]) + count

    def assemble(self, segments):
        """Arrays of token ids.  segments: one or two lists (batch) of lists of ids"""
        length, count, rows = self.sequence_length, len(segments), []
        segment_ids, room = np.zeros((len(segments[0]), length), "int32"), self.room(count)
        for row, parts in enumerate(zip(*segments)):
            kept, ids = TRUNCATE[self.truncate]([len(ids) for ids in parts], room), []
            for index, text, segment in self.templates[count - 1]:
                begin = len(ids)
                ids += [index] if text is None else parts[text][: kept[text]]
                segment_ids[row, begin : len(ids)] = segment
            rows.append(ids)
        token_ids, real = fill(rows, length, self.tokenizer.pad_token_id)
        arrays = {"token_ids": token_ids, "padding_mask": real}
        return {**arrays, "segment_ids": segment_ids} if self.has_segments else arrays


def template(tokenizer, count):
    """What stands around `count` texts: [(id, None, segment) or (None, number of text, segment)].

    Read off a text of one special token, so that files with templates of their own are followed.
    """
    probe = next(iter(tokenizer.special_tokens.values()))
    found = tokenizer.backend.encode(*[probe] * count)
    rows = zip(found.ids, found.sequence_ids, found.type_ids)
    return [(index if text is None else None, text, segment) for index, text, segment in rows]


class TextClassifierPreprocessor(BertPreprocessor):
    """Texts or pairs of texts for a classifier."""

    def __call__(self, x, y=None, sample_weight=None):
        if is_raw_texts(y):
            raise ValueError(
                f"Labels must be integers from 0, got {str(y[0])!r}. Number the classes; "
                "labels=(...) of the classifier keeps their names."
            )
        return super().__call__(x, y, sample_weight)


class TextEmbedderPreprocessor(BertPreprocessor):
    """Texts for a sentence encoder."""


class TokenClassifierPreprocessor(BertPreprocessor):
    """Texts, or texts cut into words, and the classes of their tokens.

    x: list[str], or list[list[str]], words, which are joined by spaces
    y: for texts a list of spans (start, end, class) of characters, everything else is "O"; for
    words a class each, of which a word's first token is told. A class is its number or its name;
    a span's name goes without the B- and I- of the labels.
    -> (x, int32 classes (batch, sequence_length), 1.0 where they count)
    """

    def __call__(self, x, y=None, sample_weight=None, labels=None):
        texts, words, batched = texts_or_words(x)
        arrays, offsets = self.located(texts)
        if y is None:
            return unbatched(arrays, batched)
        y = y if batched else [y]
        if len(y) != len(texts):
            raise ValueError(f"Got {len(texts)} texts and the labels of {len(y)}.")
        targets = np.zeros(arrays["token_ids"].shape, "int32")
        weights = np.zeros(targets.shape, "float32")
        for row, (found, given, cut) in enumerate(zip(offsets, y, words)):
            label = token_spans if cut is None else token_words
            for place, number in label(found, given, cut, labels):
                targets[row, place], weights[row, place] = number, 1.0
        if sample_weight is not None:
            weights *= np.reshape(np.asarray(sample_weight, "float32"), (-1, 1))
        return unbatched((arrays, targets, weights), batched)

    def tokens(self, text, ids, located, scores):
        """The `Token`s of one text, of the scores of its row."""
        backend, found = self.tokenizer.backend, []
        by_length = getattr(backend.model, "continuing_subword_prefix", None)
        for place, start, end in located:
            word = backend.id_to_token(int(ids[place]))
            if by_length:  # "##" makes a part of a word longer than what stands in the text
                inside = len(word) != end - start
            else:
                inside = start > 0 and " " not in text[start - 1 : start + 1]
            if ids[place] == self.tokenizer.unk_token_id:
                word, inside = text[start:end], False
            found.append(Token(word, scores[place], start, end, place, inside))
        return found

    def located(self, texts):
        """Arrays, and of each text a list of (place in the row, start, end) of its tokens."""
        found = self.tokenizer.offsets(texts)
        arrays, rows = self.assemble([[ids for ids, _ in found]]), []
        first = [text for _, text, _ in self.templates[0]].index(0)
        for text, (_, offsets) in zip(texts, found):
            kept = offsets[: self.room(1)]
            tight = [(end - len(text[start:end].lstrip()), end) for start, end in kept]
            rows.append([(first + i, *span) for i, span in enumerate(tight)])
        return arrays, rows


class QuestionAnswererPreprocessor(BertPreprocessor):
    """Questions and the contexts that hold the answers: a window of the context in a row.

    x: (questions, contexts) or [(question, context), ...]
    y: (start, end) of the answers' characters, or {"answer_start", "text"} as in SQuAD; None where
    there is no answer
    -> (x, int32 (batch, 2)): the first window that holds the answer, and the places of its first
    and last token; without an answer the first window, and the places are 0, that of [CLS]
    stride: how many tokens neighbouring windows share, None: 128, or half of a short sequence
    """

    sequence_length: PositiveInt = 384
    truncate: Choice(*TRUNCATE) = "only_second"
    stride: int = None

    def __call__(self, x, y=None, sample_weight=None):
        segments, batched = text_segments(x)
        if len(segments) != 2:
            raise ValueError("A question answerer takes pairs: (questions, contexts).")
        answers = [None] * len(segments[0]) if y is None else y if batched else [y]
        spans = [answer_span(*row) for row in zip(segments[1], answers, strict=True)]
        arrays, windows = self.windows(*segments)
        rows, places = [None] * len(spans), np.zeros((len(spans), 2), "int32")
        for row, (question, first, tokens) in enumerate(windows):
            inside = spans[question] and token_range(tokens, spans[question])
            if rows[question] is None or inside and not places[question].any():
                rows[question] = row
                places[question] = [first + i for i in inside] if inside else 0
        chosen = tree.map_structure(lambda part: part[rows], arrays)
        return unbatched(pack(chosen, None if y is None else places, sample_weight), batched)

    def windows(self, questions, contexts, stride=None):
        """Arrays of all windows, and of each (number of the question, place of its first token,
        [(start, end, word), ...] of its tokens in the context).
        """
        stride = self.stride if stride is None else stride
        stride = min(128, self.sequence_length // 2) if stride is None else stride
        asked, parts, found = self.tokenizer.tokenize(questions), ([], []), []
        located = self.tokenizer.offsets(contexts, words=True)
        before = [text for _, text, _ in self.templates[1]].index(1) - 1
        for number, (question, (ids, offsets, words)) in enumerate(zip(asked, located)):
            room = self.room(2) - len(question)
            if not 0 <= stride < room:
                raise ValueError(
                    f"Question {number} has {len(question)} tokens, which leave {room} of "
                    f"sequence_length={self.sequence_length} for the context; stride={stride} "
                    "must be 0 or more and less than that. Ask a shorter question, or choose other "
                    "lengths."
                )
            tokens = [(*span, word) for span, word in zip(offsets, words)]
            for begin in range(0, max(len(ids) - stride, 1), room - stride):
                parts[0].append(question), parts[1].append(ids[begin : begin + room])
                found.append((number, before + len(question), tokens[begin : begin + room]))
        return self.assemble(parts), found


class MaskedLMPreprocessor(BertPreprocessor):
    """Texts with some tokens hidden, to be predicted: masked language modelling.

    x: {"token_ids", "segment_ids", "padding_mask": (batch, sequence_length),
        "mask_positions": int32 (batch, mask_selection_length), 0 where unused}
    y: the hidden ids (batch, mask_selection_length); sample_weight: 1 where used, else 0.
    Of the chosen tokens `mask_token_rate` become [MASK], `random_token_rate` a random token, the
    rest stay. Every call draws new ones, from Philox keyed by (seed, number of the call). A text
    that already contains [MASK] is left as it is: its masks are the positions, with weight 0.
    Devlin et al. 2018, arXiv:1810.04805, section 3.1.
    """

    lengths: FieldsOf(BertPreprocessor, "sequence_length", "truncate")
    mask_selection_rate: Rate = 0.15
    mask_selection_length: PositiveInt = 96
    mask_token_rate: Rate = 0.8
    random_token_rate: Rate = 0.1
    seed: int = 0

    def setup(self):
        super().setup()
        if self.mask_token_rate + self.random_token_rate > 1:
            raise ValueError(
                "mask_token_rate + random_token_rate must not exceed 1; got "
                f"{self.mask_token_rate} + {self.random_token_rate}."
            )
        fields = vars(self.tokenizer).items()
        self.special_ids = [value for name, value in fields if name.endswith("_token_id")]
        self.calls = itertools.count()  # next() of it is atomic

    def __call__(self, x, y=None, sample_weight=None):
        if y is not None or sample_weight is not None:
            raise ValueError(
                f"{type(self).__name__} makes the targets and weights itself; give texts only, or "
                "preprocessor=None to feed your own."
            )
        segments, batched = text_segments(x)
        arrays = self.mask(self.assemble([self.tokenizer.tokenize(texts) for texts in segments]))
        return unbatched(arrays, batched)

    def mask(self, x):
        """Hide tokens of assembled arrays.  -> (x with "mask_positions", mask_ids, mask_weights)"""
        random = np.random.Generator(np.random.Philox(key=[self.seed, next(self.calls)]))
        tokens, mask_id = x["token_ids"], self.tokenizer.mask_token_id
        free = ~np.isin(tokens, self.special_ids)
        given = tokens == mask_id
        ready = given.any(1, keepdims=True)
        count = np.rint(self.mask_selection_rate * free.sum(1)).clip(1).astype("int64")
        count = np.where(ready[:, 0], given.sum(1), np.minimum(count, free.sum(1)))
        # The `count` highest scores of a row are chosen; what is not free scores below 0.
        score = np.where(np.where(ready, given, free), random.random(tokens.shape), -1.0)
        rank = np.argsort(np.argsort(-score, axis=1), axis=1)
        chosen = rank < np.minimum(count, self.mask_selection_length)[:, None]
        positions = np.argsort(~chosen, axis=1, kind="stable")[:, : self.mask_selection_length]
        used = np.take_along_axis(chosen, positions, 1)
        targets = np.take_along_axis(tokens, positions, 1)
        weights = used & ~ready
        fate = random.random(positions.shape)
        anything = random.integers(0, self.tokenizer.vocabulary_size(), positions.shape, "int32")
        shown = np.where(fate < self.mask_token_rate + self.random_token_rate, anything, targets)
        shown = np.where(fate < self.mask_token_rate, mask_id, shown)
        hidden = tokens.copy()
        np.put_along_axis(hidden, positions, np.where(weights, shown, targets), 1)
        pad = [(0, 0), (0, self.mask_selection_length - positions.shape[1])]
        places, targets = (
            np.pad(np.where(used, part, 0), pad).astype("int32") for part in (positions, targets)
        )
        x = {**x, "token_ids": hidden, "mask_positions": places}
        return x, targets, np.pad(weights, pad).astype("float32")


def text_segments(x):
    """(one or two lists of str, whether x was a batch), of everything that a user may give."""
    if isinstance(x, str):
        return [[x]], False
    if isinstance(x, tuple):
        texts = [isinstance(part, str) for part in x]
        if len(x) == 2 and all(texts):
            return [[part] for part in x], False
        if len(x) > 2 or any(texts):
            raise ValueError(
                f"A tuple is read as a pair of lists of texts; got a tuple of {len(x)}."
            )
    else:
        items = x.tolist() if isinstance(x, np.ndarray) else list(x)
        paired = bool(items) and isinstance(items[0], (tuple, list))
        if paired and any(not isinstance(i, (tuple, list)) or len(i) != 2 for i in items):
            raise ValueError("Every item of a list of pairs must be (first text, second text).")
        x = zip(*items) if paired else [items]
    segments = [check_texts(part) for part in x]
    if len({len(part) for part in segments}) > 1:
        sizes = " and ".join(str(len(part)) for part in segments)
        raise ValueError(f"The two lists of a pair must be equally long; got {sizes} texts.")
    return segments, True


def texts_or_words(x):
    """(texts, for each the spans of its words or None, whether x was a batch)."""
    batched = not isinstance(x, str)
    texts, words = [], []
    for item in x if batched else [x]:
        cut = None
        if isinstance(item, (list, tuple, np.ndarray)):
            item = check_texts(item)
            ends = np.cumsum([len(word) + 1 for word in item]) - 1
            cut = [(int(end) - len(word), int(end)) for word, end in zip(item, ends)]
            item = " ".join(item)
        texts.append(item), words.append(cut)
    return check_texts(texts), words, batched


def pack(x, y, sample_weight):
    if sample_weight is not None:
        return x, y, sample_weight
    return x if y is None else (x, y)


def unbatched(arrays, batched):
    """Arrays as they are, or where there was one text the first row of each."""
    return arrays if batched else tree.map_structure(lambda part: part[0], arrays)


class CausalLMPreprocessor(TextPreprocessor):
    """Texts to token ids that predict the next one.

    (x, y, sample_weight): x {"token_ids": int32 (batch, sequence_length), "padding_mask": bool}, y
    the ids one place on, sample_weight 1 where y is a real token
    """

    tokenizer: object
    sequence_length: PositiveInt = 1024
    add_start_token: bool = True
    add_end_token: bool = True

    def __call__(self, x, y=None, sample_weight=None):
        if y is not None or sample_weight is not None:
            raise ValueError("A language model makes its labels itself: give texts alone, no y.")
        single, length = isinstance(x, (str, bytes)), self.sequence_length + 1
        end = self._special("eos", self.add_end_token)
        rows = [[*ids, *end][:length] for ids in self.prompts([x] if single else x)]
        found = (getattr(self.tokenizer, f"{x}_token_id", None) for x in ("pad", "eos", "unk"))
        pad = next((x for x in found if x is not None), 0)
        token_ids, real = fill(rows, length, pad)
        inputs = {"token_ids": token_ids[:, :-1], "padding_mask": real[:, :-1]}
        return unbatched((inputs, token_ids[:, 1:], real[:, 1:].astype("float32")), not single)

    def prompts(self, texts):
        """Lists of token ids, with the start token."""
        start = self._special("bos", self.add_start_token)
        return [[*start, *ids] for ids in self.tokenizer.tokenize(check_texts(texts))]

    def _special(self, name, wanted):
        token = getattr(self.tokenizer, f"{name}_token_id", None)
        return [token] if wanted and token is not None else []


class Seq2SeqLMPreprocessor(TextPreprocessor):
    """Pairs of texts for an encoder-decoder: the target's tokens predict the next one.

    x: (sources, targets), a list of pairs or {"encoder_text", "decoder_text"}; or y has the targets
    -> ({"encoder_token_ids", "encoder_padding_mask": (batch, encoder_sequence_length),
    "decoder_token_ids", "decoder_padding_mask": (batch, decoder_sequence_length)}, y the target's
    ids, which the decoder has one place later, sample_weight 1 where they are real)
    decoder_start_token_id: what stands before a target, None: the model's, else the padding
    """

    tokenizer: object
    encoder_sequence_length: PositiveInt = 512
    decoder_sequence_length: PositiveInt = 512
    decoder_start_token_id: int = None

    @property
    def sequence_length(self):
        """The longest target."""
        return self.decoder_sequence_length

    def __call__(self, x, y=None, sample_weight=None):
        if isinstance(x, dict):
            x = (x["encoder_text"], x["decoder_text"])
        segments, batched = text_segments(x if y is None else (x, y))
        if sample_weight is not None or len(segments) != 2:
            raise ValueError(
                f"{type(self).__name__} takes (sources, targets) and makes the weights; got "
                f"{len(segments)} list of texts and sample_weight={sample_weight}."
            )
        pad, start = self.tokenizer.pad_token_id or 0, self.decoder_start_token_id
        sources, targets = map(self.sources, segments)
        source, real = fill(sources, self.encoder_sequence_length, pad)
        target, mask = fill(targets, self.decoder_sequence_length, pad)
        first = np.full_like(target[:, :1], pad if start is None else start)
        inputs = {
            "encoder_token_ids": source,
            "encoder_padding_mask": real,
            "decoder_token_ids": np.concatenate([first, target[:, :-1]], 1),
            "decoder_padding_mask": mask,
        }
        return unbatched((inputs, target, mask.astype("float32")), batched)

    def sources(self, texts):
        """Lists of token ids, with the tokenizer's special tokens, in their whole length."""
        return self.tokenizer.encode(check_texts(texts))


def fill(rows, length, pad):
    """(ids int32 (rows, length), bool, which are real); of what is longer the last token stays."""
    token_ids = np.full((len(rows), length), pad, "int32")
    mask = np.zeros(token_ids.shape, bool)
    for ids, here, real in zip(rows, token_ids, mask):
        ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        here[: len(ids)], real[: len(ids)] = ids, True
    return token_ids, mask
