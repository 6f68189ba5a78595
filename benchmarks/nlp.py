"""Text on the host: khub's tokenizers beside the `tokenizers` package that they stand on.

python -m benchmarks.nlp [--cells gpt2,bert] [--turns 15]

10,000 sentences at a time, one thread; the contenders take turns, the figures are medians of the
per-turn ratios. The data lies in shared/data, see DATA.md there.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median, quantiles

from .compare import RESULTS, describe
from .layers import SLOWEST, run

DATA = Path(__file__).resolve().parents[2] / "shared/data"
FILES = DATA / "tokenizers"
SENTENCES = 10_000
CELLS = {  # name -> khub's tokenizer
    "bert": lambda nlp: nlp.BertTokenizer(FILES / "bert/vocab.txt"),
    "gpt2": lambda nlp: nlp.GPT2Tokenizer(FILES / "gpt2/encoder.json", FILES / "gpt2/vocab.bpe"),
    "albert": lambda nlp: nlp.AlbertTokenizer(FILES / "albert/spiece.model"),
    "llama": lambda nlp: nlp.LlamaTokenizer(DATA / "stories260K/tok512.model"),
}


def sentences():
    """Sentences of film, phone and restaurant reviews, of SST-2 and of Wikipedia."""
    paths = sorted((DATA / "text").rglob("*.t[sx][vt]"))
    lines = [line for path in paths for line in path.read_text("utf-8").splitlines() if line]
    return lines[:: len(lines) // SENTENCES][:SENTENCES]


def contenders(cell):
    """Side -> function that tokenizes all sentences into lists of ids."""
    from tokenizers import Tokenizer

    from khub import nlp

    ours, texts = CELLS[cell](nlp), sentences()
    theirs = Tokenizer.from_str(ours.backend.to_str())

    def native():
        found = theirs.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in found]

    assert len(texts) == SENTENCES and native() == ours(texts)
    # `run` waits for what comes back; a number is there at once.
    return {"khub": lambda: len(ours(texts)), "native": lambda: len(native())}


def judge(seconds):
    """Medians of the per-turn ratios, and whether khub is as fast as it must be."""
    ratios = [a / b for a, b in zip(seconds["khub"], seconds["native"], strict=True)]
    return {
        "median_seconds": {side: median(times) for side, times in seconds.items()},
        "sentences_a_second": SENTENCES / median(seconds["khub"]),
        "ratio": median(ratios),
        "quartiles": quantiles(ratios, n=4)[::2],
        "limit": SLOWEST,
        "reaches_target": median(ratios) <= SLOWEST,
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", help=f"comma-separated, of {', '.join(CELLS)}")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    path, good = RESULTS / "nlp_tokenizers.json", True
    table = json.loads(path.read_text()) if path.exists() else {}
    print(f"{'tokenizer':12}{'khub ms':>10}{'native ms':>11}{'ratio':>7}")
    for cell in options.cells.split(",") if options.cells else CELLS:
        result = judge(run(contenders(cell), 1, options.turns))
        table[cell] = describe("tokenizers") | result
        khub, native = (t * 1e3 for t in result["median_seconds"].values())
        passed = result["reaches_target"]
        verdict = "pass" if passed else "FAIL"
        print(f"{cell:12}{khub:10.1f}{native:11.1f}{result['ratio']:7.2f} {verdict}", flush=True)
        good &= passed
        path.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    os.environ["KHUB_BACKEND"] = "numpy"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.exit(main())
