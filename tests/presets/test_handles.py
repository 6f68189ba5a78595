"""Handles and the catalogue."""

import pytest

from khub import presets
from khub.presets.handles import Handle, parse

pytestmark = pytest.mark.once


def test_forms(tmp_path):
    digest = "0" * 64
    forms = {
        "bert_base_en_uncased": Handle("hub", "google-bert/bert-base-uncased"),
        "hf://org/name": Handle("hub", "org/name"),
        "hf://org/name.x-2@refs/pr/1": Handle("hub", "org/name.x-2", "refs/pr/1"),
        str(tmp_path): Handle("folder", str(tmp_path)),
        tmp_path: Handle("folder", str(tmp_path)),
        f"https://host/a.zip#sha256={digest}": Handle("archive", "https://host/a.zip", digest),
    }
    assert {form: parse(form) for form in forms} == forms
    assert parse("bert_micro_en_uncased").kind == "embedded"


def test_unknown_names_get_suggestions():
    with pytest.raises(
        ValueError, match="no folder 'bert_base_uncased'; did you mean bert_base_en_"
    ):
        parse("bert_base_uncased")
    with pytest.raises(ValueError, match="`khub presets` lists the names"):
        parse("zzzzzz")
    with pytest.raises(
        ValueError, match="has no preset 'bert_tiny'; did you mean .*bert_tiny_en_unc"
    ):
        presets.info("bert_tiny")
    with pytest.raises(ValueError, match="on the Hub write hf://google-bert/bert-base-uncased"):
        parse("google-bert/bert-base-uncased")


@pytest.mark.parametrize(
    "handle, message",
    [
        ("", "must not be empty"),
        ("hf://name", "must look like hf://org/name"),
        ("hf://a/b/c", "must look like"),
        ("hf://a/b@", "must look like"),
        ("hf://../b?x=1", "must look like"),
        ("https://host/model.safetensors", "must be the address of a zip"),
        ("https://host/a.zip#sha256=12", "64 hex digits"),
    ],
)
def test_malformed_handles(handle, message):
    with pytest.raises(ValueError, match=message):
        parse(handle)


def test_a_path_that_is_no_folder():
    with pytest.raises(FileNotFoundError, match="no folder ./nowhere"):
        parse("./nowhere")


def test_every_entry_of_the_catalogue():
    families = presets.family.families()
    for preset in presets.list():
        assert preset == presets.info(preset.name)
        assert preset.family in families and preset.tasks and preset.licence
        assert preset.parameters > 0 and preset.bytes > 0 and preset.description.endswith(".")
        assert preset.embedded == (preset.source == "embedded")
        kind = parse(preset.name).kind
        assert kind == "embedded" if preset.embedded else kind in ("hub", "published")


def test_list_by_task_and_family():
    everything = presets.list()
    berts = presets.list(family="bert")
    assert 0 < len(berts) < len(everything) and all(p.family == "bert" for p in berts)
    masked = presets.list(task="MaskedLM")
    assert 0 < len(masked) < len(everything)
    assert all("MaskedLM" in preset.tasks for preset in masked)
    assert presets.list(task="Nothing") == []
