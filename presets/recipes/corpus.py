"""The public text that bert_micro_en_uncased is trained on, cleaned and cut into passages.

Sources (../shared/data/text): WikiText-2 (CC BY-SA 3.0), Shakespeare and Botchan (public domain),
the training part of khub.nlp.datasets.reviews (CC BY 4.0; the held-out fifth is never read).
"""

import re

# WikiText-2 is cut into words: "0 @.@ 7 kg ( 1 @-@ 2 lb ) , Mary 's". These put it together again.
GLUE = [
    (r" @([-.,])@ ", r"\1"),
    (r" ([,.;:!?%)\]])", r"\1"),
    (r"([(\[$£#]) ", r"\1"),
    (r" '(s|d|m|t|ve|re|ll)\b", r"'\1"),
    (r'" ([^"]*) "', r'"\1"'),
]
SENTENCE_END = re.compile(r'(?<=[.!?]["”)])\s+|(?<=[.!?])\s+(?=[A-Z"“(])')
UNKNOWN = "<unk>"


def sentences(text):
    return [s.strip() for s in SENTENCE_END.split(text) if s.strip()]


def wikitext(text):
    """Paragraphs as lists of sentences. A rare word is `<unk>` in the source: it stays, as [UNK],
    which is never a prediction target; a sentence with more than one such word in eight goes."""
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith("= "):
            continue
        for pattern, replacement in GLUE:
            line = re.sub(pattern, replacement, line)
        kept = [s for s in sentences(line) if 8 * s.count(UNKNOWN) <= len(s.split())]
        yield [s.replace(UNKNOWN, "[UNK]") for s in kept]


def shakespeare(text):
    """A speech is a paragraph: "First Citizen:" and its lines."""
    for speech in text.split("\n\n"):
        yield sentences(" ".join(speech.split()))


def botchan(text):
    """The novel without Project Gutenberg's notes; without blank lines, so one paragraph."""
    novel = re.search(r"\nCHAPTER I\n(.*)\nEnd of Project Gutenberg", text, re.S).group(1)
    novel = re.sub(r"\[[A-Z]: .*?\]", "", novel)  # the transcriber's notes
    yield sentences(" ".join(novel.split()))


def paragraphs(folder):
    """{source: [[sentence, ...], ...]}"""
    read = lambda name: (folder / name).read_text("utf-8").lstrip("\ufeff")  # noqa: E731
    found = {
        "wikitext": [*wikitext(read("wikitext2/valid.txt")), *wikitext(read("wikitext2/test.txt"))],
        "shakespeare": list(shakespeare(read("shakespeare/input.txt"))),
        "botchan": list(botchan(read("botchan.txt"))),
    }
    return {source: [p for p in parts if p] for source, parts in found.items()}
