"""Write nlp/data/reviews.tsv from the three original files.

python presets/recipes/reviews.py ../shared/data/text/sentiment_labelled
"""

import hashlib
import sys
from pathlib import Path

SOURCES = {
    "imdb": "imdb_labelled.txt",
    "amazon": "amazon_cells_labelled.txt",
    "yelp": "yelp_labelled.txt",
}
TARGET = Path(__file__).parents[2] / "nlp" / "data" / "reviews.tsv"


def rows(folder):
    """(source, split, label, text) of every sentence, the test fifth of each group first."""
    for source, name in SOURCES.items():
        lines = [line for line in (folder / name).read_text("utf-8").split("\n") if line.strip()]
        records = [line.rsplit("\t", 1) for line in lines]
        for label in ("0", "1"):
            group = [" ".join(text.split()) for text, y in records if y.strip() == label]
            group.sort(key=lambda text: hashlib.sha256(text.encode()).hexdigest())
            for index, text in enumerate(group):
                yield source, "test" if index < len(group) // 5 else "train", label, text


if __name__ == "__main__":
    table = [("source", "split", "label", "text"), *rows(Path(sys.argv[1]))]
    TARGET.write_text("".join("\t".join(row) + "\n" for row in table), encoding="utf-8")
