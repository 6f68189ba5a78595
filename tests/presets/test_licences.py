"""Licences that restrict the use of a preset need a yes before anything is fetched."""

import io
import sys

import pytest

from khub import config, nlp, presets
from khub.presets import catalog, licences
from khub.presets.download import DownloadError

NAME = "stable_diffusion_1.5"
pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "home", lambda: tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_permissive_licences_need_nothing():
    free = [p for p in presets.list() if p.licence in licences.PERMISSIVE]
    assert len(free) > 150
    assert {licences.refusal(p) for p in free} == {None}


@pytest.mark.parametrize("name", ["stable_diffusion_1.5", "llama3.2_1b", "gemma2_2b_en"])
def test_the_others_say_what_to_do(name):
    preset = catalog.info(name)
    reason = licences.refusal(preset)
    for part in (name, preset.source, preset.licence, "accept_license=True", "--accept-license"):
        assert part in reason


def test_weights_are_not_fetched_without_a_yes():
    with pytest.raises(DownloadError, match="accept_license=True"):
        presets.download(NAME)
    with pytest.raises(DownloadError, match="accept_license=True"):
        presets.load(NAME)


def test_a_yes_is_kept():
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):  # the next hindrance
        presets.download(NAME, accept_license=True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        presets.download(NAME)
    with pytest.raises(DownloadError, match="accept_license=True"):
        presets.download("stable_diffusion_2.1")


@pytest.mark.parametrize(
    "answer, accepted", [("y", True), ("Yes", True), ("", False), ("no", False)]
)
def test_a_person_is_asked(answer, accepted, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    found = licences.refusal(catalog.info(NAME))
    assert (found is None) == accepted
    assert "CreativeML-OpenRAIL-M" in capsys.readouterr().out


def test_a_tokenizer_is_no_matter_of_the_weights_licence():
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        nlp.Tokenizer.from_preset("llama3.2_1b")
