"""Licences: which of them a user has to accept before a preset of the catalogue is downloaded."""

import sys

PERMISSIVE = {
    *("Apache-2.0", "BSD-3-Clause", "MIT"),
    *("CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"),
}


def refusal(preset, accepted=False):
    """Return why a preset may not be downloaded yet, None when it may.

    accepted: whether the user accepts its licence; where the program has a person in front of it
    who did not say so, the person is asked. A yes is kept in `~/.khub/accepted`.
    """
    from khub import config

    note = config.home() / "accepted" / preset.name
    if preset.licence in PERMISSIVE or note.is_file() and note.read_text() == preset.licence:
        return None
    terms = (
        f"{preset.name} ({preset.source}) is under the licence {preset.licence}, which restricts "
        "what it may be used for or by whom"
    )
    if not accepted and not (_is_interactive() and _says_yes(terms)):
        return (
            f"{terms}: read it there and, if you accept it, pass accept_license=True, or once type "
            f"khub download --accept-license {preset.name}."
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(preset.licence)
    return None


def _is_interactive():
    """Whether someone can answer: at a terminal, or in a notebook."""
    kernel = sys.modules.get("ipykernel")
    return kernel is not None or (sys.stdin is not None and sys.stdin.isatty())


def _says_yes(terms):
    answer = input(f"{terms}. Do you accept it? [y/N] ")
    return answer.strip().lower() in ("y", "yes")
