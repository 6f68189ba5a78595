"""The command line: what it prints, and that a user's error is one message and status 2."""

import numpy as np
import pytest

from khub import presets
from khub.presets.cli import main


@pytest.fixture
def saved(classifier, tmp_path):
    classifier.save_to_preset(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def run(capsys):
    """Run a command; return its status and the lines it printed."""

    def run(*arguments):
        status = main([str(a) for a in arguments])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return run


@pytest.mark.once
def test_presets(run):
    status, out, _ = run("presets")
    assert status == 0 and len(out) == len(presets.list())
    assert out[0].startswith("bert_micro_en_uncased\t1.5 M\tCC-BY-SA-3.0\t2 layers")
    assert any(line.startswith("mobilenet_0.25_224_imagenet\t0.2 M\tApache-2.0") for line in out)
    _, out, _ = run("presets", "--task", "MaskedLM", "--family", "bert")
    assert len(out) == len(presets.list("MaskedLM", "bert"))
    status, _, err = run("presets", "--task", "Nothing")
    assert status == 2 and err[0].startswith("khub: error: no preset fits; families: albert, ")


def test_info(run, toys, saved):
    _, out, _ = run("info", "bert_base_en_uncased")
    tasks = "TextClassifier, TokenClassifier, QuestionAnswerer, MaskedLM, TextEmbedder"
    assert "parameters\t109,482,240" in out and f"tasks\t{tasks}" in out
    _, out, _ = run("info", saved)
    assert "opens as\tToyClassifier" in out and "tasks\tTextClassifier, MaskedLM" in out


def test_download_and_convert(run, toys, saved, tmp_path):
    assert run("download", saved)[:2] == (0, [str(saved)])
    assert run("convert", saved, tmp_path / "half", "--dtype", "float16")[:2] == (
        0,
        [str(tmp_path / "half")],
    )
    assert presets.tensors.Checkpoint(tmp_path / "half").float_dtypes() == {"float16"}


def test_verify(run, classifier, saved):
    inputs = {"token_ids": np.array([[0, 1]], "int32")}
    presets.record_reference(classifier, saved, inputs)
    status, out, _ = run("verify", saved)
    assert status == 0 and out[0].startswith(f"{saved}: ToyClassifier on ")
    classifier.head.bias.assign(np.zeros(3, "float32"))
    presets.record_reference(classifier, saved, inputs)
    status, out, _ = run("verify", saved)
    assert status == 1 and out[1].endswith("TOO LARGE")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["info", "bert_base"],
            "khub: error: There is no preset and no folder 'bert_base'; did you",
        ),
        (["download", "hf://nothing"], "khub: error: Handle 'hf://nothing' must look like"),
        (["verify", "./nowhere"], "khub: error: There is no folder ./nowhere"),
        (
            ["download", "hf://org/toy"],
            "khub: error: hf://org/toy is not (wholly) in the cache, and",
        ),
    ],
)
def test_errors(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    status, out, err = run(*arguments)
    assert status == 2 and out == [] and len(err) == 1 and err[0].startswith(message)


def test_a_damaged_preset(run, toys, saved):
    (saved / "model.safetensors").write_bytes(b"short")
    status, _, err = run("verify", saved)
    assert status == 2 and "has 5 bytes: too short for a safetensors file" in err[-1]


@pytest.mark.once
def test_usage():
    for arguments in ([], ["nothing"], ["presets", "--nothing"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
