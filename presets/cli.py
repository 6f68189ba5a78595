"""The command `khub`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path


def main(argv=None):
    """Run the command line, return its exit status; a user's error is one message and status 2."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "demo":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return arguments.run(arguments, rest) or 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"khub: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        prog="khub",
        description="Pretrained models on JAX, PyTorch and TensorFlow.",
        epilog="A PRESET is a catalogue name, hf://org/name[@revision] or a folder. The variable "
        "KHUB_BACKEND of the environment chooses the backend.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run, *, preset=True, **options):
        made = commands.add_parser(
            run.__name__.strip("_"), help=run.__doc__, description=run.__doc__, **options
        )
        if preset:
            made.add_argument("preset", metavar="PRESET")
        made.set_defaults(run=run)
        return made

    listing = command(_presets, preset=False)
    listing.add_argument("--task", help="a generic name: TextClassifier, MaskedLM, ...")
    listing.add_argument("--family")
    command(_info)
    downloading = command(_download)
    downloading.add_argument("--revision", help="branch, tag or commit")
    downloading.add_argument(
        "--accept-license", action="store_true", help="accept a licence that restricts the use"
    )
    checking = command(_verify)
    checking.add_argument("--backend", help="jax, torch, tensorflow or numpy")
    checking.add_argument("--json", action="store_true", help="print the report as JSON")
    converting = command(_convert, preset=False)
    converting.add_argument("preset", metavar="SRC")
    converting.add_argument("folder", metavar="DST", type=Path)
    converting.add_argument("--dtype", help="of the weights: float32, float16 or bfloat16")
    predicting = command(_predict)
    predicting.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="a text, or the file of an image"
    )
    predicting.add_argument("--task", help="open the preset as this task: TextClassifier, ...")
    running = command(_run, preset=False)
    running.add_argument("-m", dest="module", action="store_true", help="SCRIPT names a module")
    running.add_argument("script", metavar="SCRIPT")
    running.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's")
    command(_demo, preset=False, add_help=False)
    return parser


def _presets(arguments, _):
    """List the catalogue."""
    from .catalog import list as presets

    found = presets(arguments.task, arguments.family)
    if not found:
        known = sorted({task for preset in presets() for task in preset.tasks})
        raise ValueError(
            f"no preset fits; families: {', '.join(sorted({p.family for p in presets()}))}; "
            f"tasks: {', '.join(known)}"
        )
    rows = [(p.name, f"{p.parameters / 1e6:.1f} M", p.licence, p.description) for p in found]
    _table(("name", "parameters", "licence", ""), rows)


def _info(arguments, _):
    """Say what a preset is."""
    from .catalog import entries, info

    if arguments.preset in entries():
        found = dataclasses.asdict(info(arguments.preset))
        found = {name: v for name, v in found.items() if v is not None and name != "config"}
        found["tasks"] = ", ".join(found["tasks"])
    else:
        from .preset import open_preset

        preset = open_preset(arguments.preset, load_weights=False)
        found = {
            "folder": str(preset.folder),
            "family": preset.family.name,
            "opens as": preset.default_class().__name__,
            "tasks": ", ".join(preset.family.tasks),
        }
    _table(("", ""), [(name, f"{v:,}" if type(v) is int else str(v)) for name, v in found.items()])


def _download(arguments, _):
    """Fetch a preset and print its folder."""
    from .download import download

    accepted = arguments.accept_license
    print(download(arguments.preset, arguments.revision, accept_license=accepted))


def _verify(arguments, _):
    """Load a preset strictly and compare its outputs with the ones kept beside it."""
    from .verify import verify

    report = verify(arguments.preset, arguments.backend)
    print(json.dumps(dataclasses.asdict(report)) if arguments.json else report)
    return 0 if report.ok else 1


def _convert(arguments, _):
    """Save a preset as a folder in the Hugging Face layout."""
    from .preset import load

    load(arguments.preset).save_to_preset(arguments.folder, dtype=arguments.dtype)
    print(arguments.folder)


def _predict(arguments, _):
    """Run a preset on texts or images; a model that draws writes drawn_1.png, ... here."""
    from .preset import load, open_preset

    preset = open_preset(arguments.preset)
    if arguments.task:
        if arguments.task not in preset.family.tasks:
            known = ", ".join(preset.family.tasks)
            raise ValueError(f"{preset.family.name} has no {arguments.task}; it has {known}.")
        model = preset.family.tasks[arguments.task].from_preset(arguments.preset)
    else:
        model = load(arguments.preset)
    if getattr(model, "preprocessor", None) is None:
        known = ", ".join(preset.family.tasks)
        raise ValueError(f"{arguments.preset} is a backbone; choose --task, one of {known}.")
    for text, answer in zip(arguments.inputs, _answers(model, arguments.inputs)):
        print(f"{text}\t{answer}")


def _answers(model, texts):
    """Yield a line of text for each input."""
    import numpy as np

    if hasattr(model, "fill"):
        for masks in model.fill(texts):
            yield "; ".join(", ".join(f"{word} {p:.2f}" for word, p in mask) for mask in masks)
    elif hasattr(model, "embed"):
        for vector in model.embed(texts):
            yield " ".join(f"{x:.5f}" for x in vector)
    elif hasattr(model, "text_to_image"):
        yield from _drawn(model, texts)
    elif hasattr(model, "max_detections"):
        yield from _detected(model, model.predict(texts, verbose=0))
    elif hasattr(model, "feature_pyramid"):  # an image classifier
        for best in model.predict(texts, verbose=0):
            yield ", ".join(f"{label} {score:.3f}" for label, score in best)
    else:
        logits = np.asarray(model.predict(texts, verbose=0), "float64")
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        labels = model.labels or [str(i) for i in range(scores.shape[-1])]
        for row in scores:
            best = np.argsort(-row)[:5]
            yield ", ".join(f"{labels[i]} {row[i]:.3f}" for i in best)


def _drawn(model, texts):
    """Draw each text, and yield the name of the file that it is in."""
    from PIL import Image

    for number, image in enumerate(model.text_to_image(texts, seed=0), 1):
        name = f"drawn_{number}.png"
        Image.fromarray(image).save(name)
        yield name


def _detected(model, found):
    """Yield what was found in each image: "seven 0.93 at 10 20 30 40; ..."."""
    for row, count in enumerate(found["num_detections"]):
        boxes, classes, scores = (found[n][row] for n in ("boxes", "classes", "confidence"))
        yield "; ".join(
            f"{model.labels[classes[i]] if model.labels else classes[i]} {scores[i]:.2f} at "
            f"{' '.join(f'{x:.0f}' for x in boxes[i])}"
            for i in range(count)
        )


def _run(arguments, _):
    """Run a script written for Keras: its `import keras` and `tf.keras` are khub."""
    from .run import run

    return run(arguments.script, arguments.arguments, arguments.module)


def _demo(_, rest):
    """Show small models at work: --task text-classification, text-to-image or detection."""
    from .demo import main as demo

    return demo(rest)


def _table(titles, rows):
    """Print rows: a table on a terminal, else tab-separated."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, box=None, show_header=any(titles))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
