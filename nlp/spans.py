"""Spans of text and the tokens in them: labels of tokens, entities, answers. NumPy only."""

from collections import namedtuple

import numpy as np

Token = namedtuple("Token", "word scores start end index is_subword")
AGGREGATIONS = ("none", "simple", "first", "average", "max")


# --- labels to tokens ----------------------------------------------------------------------------
def class_number(label, labels, prefixes=("",)):
    """The number of a class, given as such or by its name, before which a prefix may stand."""
    if isinstance(label, (int, np.integer)):
        return int(label)
    for prefix in prefixes:
        if labels is not None and f"{prefix}{label}" in labels:
            return labels.index(f"{prefix}{label}")
    known = "none, give labels=(...) to the task" if labels is None else ", ".join(labels)
    raise ValueError(f"{label!r} is no class; known: {known}.")


def token_spans(tokens, spans, _, labels):
    """Yield (place, class) of every token.  tokens: [(place, start, end)], spans: [(start, end,
    class)]; what no span covers is "O", or 0 where no labels are known.
    """
    outside = labels.index("O") if labels is not None and "O" in labels else 0
    found = {place: outside for place, *_ in tokens}
    for span in spans:
        if len(span) != 3:
            raise ValueError(f"A labelled span is (start, end, class); got {span!r:.80}.")
        first, last, label = span
        inside = [place for place, start, end in tokens if start < last and end > first]
        for number, place in enumerate(inside):
            order = ("I-", "", "B-") if number else ("B-", "", "I-")
            found[place] = class_number(label, labels, order)
    yield from found.items()


def token_words(tokens, classes, words, labels):
    """Yield (place, class) of each word's first token.  words: [(start, end)]"""
    if len(classes) != len(words):
        raise ValueError(f"A text has {len(words)} words and {len(classes)} labels.")
    for (first, last), label in zip(words, classes):
        inside = (place for place, start, end in tokens if start < last and end > first)
        if (place := next(inside, None)) is not None:
            yield place, class_number(label, labels)


def token_range(tokens, span):
    """(first, last) of the tokens (start, end, word) that hold a span; None where one lacks."""
    first, last = span
    inside = [i for i, (start, end, _) in enumerate(tokens) if start < last and end > first]
    if not inside or tokens[inside[0]][0] > first or tokens[inside[-1]][1] < last:
        return None
    return inside[0], inside[-1]


def answer_span(context, answer):
    """(start, end) of an answer, given as such or as {"answer_start", "text"}; None for none."""
    if isinstance(answer, dict):
        given = answer["answer_start"], answer["text"]
        many = list, tuple, np.ndarray
        start, text = (x[0] if isinstance(x, many) and len(x) else x for x in given)
        if not isinstance(text, str):  # both lists are empty
            return None
        if context[start : start + len(text)] != text:
            raise ValueError(
                f"The answer {text!r:.80} does not stand at character {start} of its context, "
                f"where {context[start : start + len(text)]!r:.80} is."
            )
        answer = start, start + len(text)
    if answer is None or answer[0] < 0:
        return None
    start, end = map(int, answer)
    if not start < end <= len(context):
        raise ValueError(
            f"An answer's span must lie within its context of {len(context)} characters, start "
            f"before end; got ({start}, {end})."
        )
    return start, end


# --- tokens to entities --------------------------------------------------------------------------
def entities(text, tokens, labels, join, aggregation):
    """Entities of a text, as transformers' token-classification pipeline makes them.

    tokens: `Token`s   join: words -> text
    """
    if aggregation in ("none", "simple"):
        found = [
            best(t.scores, labels, index=t.index, word=t.word, start=t.start, end=t.end)
            for t in tokens
        ]
    else:
        words = runs(tokens, lambda _, token: token.is_subword)
        found = [word_entity(word, labels, join, aggregation) for word in words]
    if aggregation != "none":
        found = [merged(group, join) for group in runs(found, one_entity)]
    return [each for each in found if each["entity"] != "O"]


def runs(items, joined):
    """Lists of neighbours.  joined(last, item): whether an item belongs to the one before it"""
    found = []
    for item in items:
        if found and joined(found[-1][-1], item):
            found[-1].append(item)
        else:
            found.append([item])
    return found


def one_entity(last, each):
    """Whether neighbours are of one class; B- begins a new one."""
    return not each["entity"].startswith("B-") and bare(each["entity"]) == bare(last["entity"])


def best(scores, labels, **more):
    top = int(scores.argmax())
    return {"entity": labels[top], "score": float(scores[top]), **more}


def word_entity(tokens, labels, join, aggregation):
    """One class for all tokens of a word: its first's, the surest one's, or that of the mean."""
    scores = np.stack([token.scores for token in tokens])
    if aggregation == "average":
        scores = scores.mean(0)
    else:
        scores = scores[scores.max(1).argmax() if aggregation == "max" else 0]
    word = join([token.word for token in tokens])
    return best(scores, labels, word=word, start=tokens[0].start, end=tokens[-1].end)


def bare(label):
    return label[2:] if label.startswith(("B-", "I-")) else label


def merged(group, join):
    return {
        "entity": group[0]["entity"].split("-", 1)[-1],
        "score": float(np.mean([np.float32(each["score"]) for each in group])),
        "word": join([each["word"] for each in group]),
        "start": group[0]["start"],
        "end": group[-1]["end"],
    }


# --- logits to answers ---------------------------------------------------------------------------
def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def word_spans(tokens):
    """Number of a word -> (start, end), of tokens (start, end, word); none where there are none."""
    found = {}
    for start, end, word in tokens:
        if word is not None:
            found[word] = found.get(word, (start,))[0], end
    return found


def best_spans(logits, first, count, longest):
    """Spans of a window, the likeliest first: [(score, first token, last token)], and the score of
    no answer.

    logits: (time, 2); the context's tokens are `count` from `first` on; place 0 means no answer.
    A score is the start's probability times the end's, among the context and place 0. Devlin et
    al. 2018, arXiv:1810.04805, section 4.2-4.3; `longest`: in tokens
    """
    places = np.r_[0, np.arange(first, first + count)]
    start, end = softmax(logits[places].astype("float32").T)
    begins = np.repeat(np.arange(count), longest)
    ends = begins + np.tile(np.arange(longest), count)
    begins, ends = begins[ends < count], ends[ends < count]
    scores = start[1:][begins] * end[1:][ends]
    order = np.argsort(-scores, kind="stable")
    found = zip(scores[order].tolist(), begins[order].tolist(), ends[order].tolist())
    return found, float(start[0] * end[0])
