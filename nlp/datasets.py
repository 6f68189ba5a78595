"""Small data sets that come with the package, read without a network."""

import csv
from pathlib import Path

DATA = Path(__file__).parent / "data"


def reviews():
    """3,000 sentences of film, product and restaurant reviews; 1 is positive, 0 negative.

    -> (train_texts, train_labels), (test_texts, test_labels): 2,400 and 600 of them, lists of str
    and of int. The split is fixed and balanced over sources and labels; no test sentence is in the
    training part. Kotzias et al., "From Group to Individual Labels using Deep Features", KDD 2015;
    CC BY 4.0 (see `nlp/data/README.md`).
    """
    parts = {"train": ([], []), "test": ([], [])}
    with open(DATA / "reviews.tsv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            texts, labels = parts[row["split"]]
            texts.append(row["text"])
            labels.append(int(row["label"]))
    return parts["train"], parts["test"]
