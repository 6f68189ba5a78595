"""Tasks from the embedded preset: texts in, answers out, saved and opened again."""

import errno
import logging
import os

import numpy as np
import pytest

import khub
from khub import nlp, presets
from khub.presets import tensors

NAME, LENGTH = "bert_micro_en_uncased", 16
trains = pytest.mark.skipif(
    khub.backend.name == "numpy", reason="the NumPy backend computes no gradients"
)
# Of each class 24, in turn.
(TEXTS, LABELS), (OTHERS, _) = nlp.datasets.reviews()
ROWS = np.stack([np.flatnonzero(np.array(LABELS) == label)[:24] for label in (0, 1)], 1).ravel()
TEXTS, LABELS, OTHERS = [TEXTS[i] for i in ROWS], np.array(LABELS)[ROWS], OTHERS[:4]


def classifier(**options):
    khub.utils.set_random_seed(0)
    return nlp.BertClassifier.from_preset(NAME, sequence_length=LENGTH, **options)


@pytest.fixture(scope="module")
def fresh():
    """A classifier that nobody trains."""
    return classifier(num_classes=3)


@pytest.fixture(scope="module")
def trained():
    """A classifier after some epochs, and the history."""
    model = classifier(labels=("negative", "positive"))
    model.compile(optimizer=nlp.tasks.adamw(1e-3))
    history = model.fit(TEXTS, LABELS, batch_size=16, epochs=8, verbose=0)
    return model, history.history


# --- fit, evaluate, predict -----------------------------------------------------------------------
@trains
def test_fit_on_texts_learns(trained):
    _, history = trained
    assert list(history) == ["loss", "accuracy"]
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["accuracy"][-1] > max(history["accuracy"][0], 0.75)


@trains
def test_evaluate_gives_the_loss_first(trained):
    model, _ = trained
    loss, accuracy = model.evaluate(TEXTS, LABELS, batch_size=16, verbose=0)
    logits = model.predict(TEXTS, batch_size=16, verbose=0)
    assert accuracy == pytest.approx(np.mean(logits.argmax(-1) == LABELS), abs=1e-6)
    log_sum = np.log(np.exp(logits).sum(-1))
    assert loss == pytest.approx(np.mean(log_sum - logits[np.arange(48), LABELS]), abs=1e-4)
    named = model.evaluate(TEXTS, LABELS, batch_size=16, verbose=0, return_dict=True)
    assert list(named) == ["loss", "accuracy"] and named["loss"] == pytest.approx(loss, abs=1e-5)


def test_predict(fresh):
    logits = fresh.predict(OTHERS, verbose=0)
    assert type(logits) is np.ndarray and logits.shape == (4, 3) and logits.dtype == "float32"
    for same in (np.array(OTHERS), np.array(OTHERS, object), [t.encode() for t in OTHERS]):
        np.testing.assert_allclose(fresh.predict(same, verbose=0), logits, atol=1e-5)
    in_parts = fresh.predict(OTHERS, batch_size=3, verbose=0)
    np.testing.assert_allclose(in_parts, logits, atol=1e-5)
    np.testing.assert_allclose(fresh.predict_on_batch(OTHERS), logits, atol=1e-5)
    fed = fresh(fresh.preprocessor(OTHERS), training=False)
    np.testing.assert_allclose(khub.ops.convert_to_numpy(fed), logits, atol=1e-5)


def test_pairs(fresh):
    first, second = OTHERS[:2], OTHERS[2:]
    logits = fresh.predict((first, second), verbose=0)
    assert logits.shape == (2, 3)
    for pairs in (list(zip(first, second)), [list(p) for p in zip(first, second)]):
        np.testing.assert_allclose(fresh.predict(pairs, verbose=0), logits, atol=1e-5)
    alone = fresh.predict(first, verbose=0)
    assert np.abs(alone - logits).max() > 1e-3  # the second text counts
    x = fresh.preprocessor((first, second))
    np.testing.assert_allclose(fresh.predict(x, verbose=0), logits, atol=1e-5)


@pytest.fixture(scope="module")
def small():
    """A classifier of one layer that is trained on this and that, always 8 rows."""
    model = classifier(num_layers=1, strict=False)
    if khub.backend.name != "numpy":
        model.compile(optimizer=nlp.tasks.adamw(1e-3))
    return model


FIRST, SECOND, EIGHT = TEXTS[:8], TEXTS[8:16], LABELS[:8]


FORMS = {
    "pairs": ((list(zip(FIRST, SECOND)), EIGHT), {}),
    "tuple of lists": (((FIRST, SECOND), EIGHT), {}),
    "array": ((np.array(FIRST), EIGHT), {}),
    "list of labels": ((FIRST, EIGHT.tolist()), {}),
    "generator": ((iter([(FIRST, EIGHT), (SECOND, EIGHT)]),), {"steps_per_epoch": 1}),
    "validation": ((FIRST, EIGHT), {"validation_data": (SECOND, EIGHT)}),
    "split": ((FIRST + SECOND, LABELS[:16]), {"validation_split": 0.5}),
    "weights": ((FIRST, EIGHT), {"sample_weight": np.ones(8)}),
}


@trains
@pytest.mark.parametrize("form", FORMS)
def test_other_data_to_fit_on(small, form):
    given, options = FORMS[form]
    history = small.fit(*given, batch_size=8, epochs=2, verbose=0, **options).history
    assert np.isfinite(history["loss"]).all() and len(history["loss"]) == 2
    assert len(history.get("val_loss", [0, 0])) == 2


@pytest.mark.skipif(khub.backend.name not in ("torch", "tensorflow"), reason="has no loader")
def test_data_of_the_framework(fresh):
    if khub.backend.name == "torch":
        from torch.utils.data import DataLoader

        data = DataLoader(list(zip(OTHERS, [0, 1, 2, 0])), batch_size=2)
    else:
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((OTHERS, [0, 1, 2, 0])).batch(2)
    want = fresh.evaluate(OTHERS, [0, 1, 2, 0], batch_size=2, verbose=0)
    assert fresh.evaluate(data, verbose=0) == pytest.approx(want, abs=1e-5)


@trains
def test_tensors_without_a_preprocessor():
    model = nlp.BertClassifier.from_preset(NAME, preprocessor=None, num_layers=1, strict=False)
    x = nlp.TextClassifierPreprocessor.from_preset(NAME, sequence_length=LENGTH)(TEXTS[:16])
    model.compile(optimizer=nlp.tasks.adamw(1e-3))
    losses = model.fit(x, LABELS[:16], batch_size=16, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert model.predict(x, verbose=0).shape == (16, 2)


# --- what is refused ------------------------------------------------------------------------------
NO_PREPROCESSOR = "This BertClassifier has no preprocessor, so it takes arrays, not texts. Make it"


@pytest.mark.parametrize(
    "method", ["fit", "evaluate", "predict", "train_on_batch", "predict_on_batch"]
)
@pytest.mark.parametrize("x", [["good", "bad"], [("good", "bad")] * 2, np.array(["good", "bad"])])
def test_texts_without_a_preprocessor(fresh, method, x):
    model = nlp.BertClassifier(fresh.backbone, num_classes=2)
    labels = () if method.startswith("predict") else (np.array([1, 0]),)
    with pytest.raises(ValueError, match=NO_PREPROCESSOR):
        getattr(model, method)(x, *labels)


@pytest.mark.parametrize("cls", [nlp.BertMaskedLM, nlp.BertTextEmbedder])
def test_texts_without_a_preprocessor_in_other_tasks(fresh, cls):
    model = cls(fresh.backbone)
    use = model.fill if cls is nlp.BertMaskedLM else model.embed
    with pytest.raises(ValueError, match=f"This {cls.__name__} has no preprocessor, so it takes"):
        use(["a [MASK]"])


@pytest.mark.parametrize(
    "x, message",
    [
        ("one text", "x is one text; expected a list of texts"),
        (("a", "b"), "x is a tuple of texts; expected a list of texts"),
        ([], "The data is empty: x has no rows"),
        ((["a"], ["b", "c"]), "must be equally long"),
        ([("a", "b"), ("c",)], "Every item of a list of pairs"),
    ],
)
def test_what_predict_does_not_take(fresh, x, message):
    with pytest.raises(ValueError, match=message):
        fresh.predict(x, verbose=0)


def test_what_is_no_text_is_named(fresh):
    with pytest.raises(TypeError, match="item 1 is NoneType"):
        fresh.predict(["a", None], verbose=0)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 3, 1, 1], r"Labels must lie in 0 .. 2 for num_classes=3; got 0 .. 3"),
        ([0, -1, 1, 1], r"Labels must lie in 0 .. 2 for num_classes=3; got -1 .. 1"),
        (["good", "bad", "bad", "good"], "Labels must be integers from 0, got 'good'"),
        ([0, 1], "must have equal lengths, got .2, 4."),
    ],
)
def test_labels_that_do_not_do(fresh, labels, message):
    with pytest.raises(ValueError, match=message):
        fresh.evaluate(OTHERS, labels, verbose=0)


def test_a_preprocessor_of_another_model(fresh):
    tokenizer = fresh.preprocessor.tokenizer
    small = nlp.BertBackbone(100, 1, 1, 4, 4, max_sequence_length=8)
    with pytest.raises(ValueError, match="makes 8,192 token ids, but .* vocabulary_size=100: they"):
        nlp.BertClassifier(small, preprocessor=fresh.preprocessor)
    short = nlp.BertBackbone(8192, 1, 1, 4, 4, max_sequence_length=8)
    with pytest.raises(ValueError, match="makes 9 positions, but .* max_sequence_length=8: they"):
        nlp.BertClassifier(short, preprocessor=nlp.TextClassifierPreprocessor(tokenizer, 9))
    with pytest.raises(ValueError, match="makes 513 positions"):
        nlp.BertClassifier.from_preset(NAME, sequence_length=513)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"classes": 2}, TypeError, "unknown argument 'classes'; expected .*num_classes"),
        ({"backbone": None}, TypeError, "unknown argument 'backbone'"),
        ({"num_classes": 0}, ValueError, "num_classes must be a positive integer, got 0"),
        ({"labels": ("a",)}, ValueError, "1 labels were given for 2 classes"),
        ({"dropout": 2}, ValueError, "dropout must lie between 0 and 1, got 2"),
        ({"truncate": "both"}, ValueError, "truncate must be one of"),
        ({"vocabulary_size": 8000}, ValueError, "token ids, but the backbone"),
    ],
)
def test_overrides_that_do_not_do(options, error, message):
    with pytest.raises(error, match=message):
        nlp.BertClassifier.from_preset(NAME, **options)


# --- from_preset ----------------------------------------------------------------------------------
def test_a_fresh_head_is_said(caplog):
    with caplog.at_level(logging.WARNING, "khub"):
        model = classifier(num_classes=5)
    assert "classifier.kernel, classifier.bias start from their initializers" in caplog.text
    assert model.classifier.kernel.shape == (128, 5) and not model.classifier.kernel.is_materialized
    pooler, other = model.backbone.pooler.kernel, classifier().backbone.pooler.kernel
    np.testing.assert_array_equal(pooler.numpy(), other.numpy())


def test_where_overrides_go():
    model = classifier(dropout=0.3, attention_dropout=0.2, truncate="round_robin", name="mine")
    assert (model.dropout, model.backbone.dropout) == (0.3, 0.1)  # the head's comes first
    assert {block.attention.dropout for block in model.backbone.blocks} == {0.2}
    assert model.preprocessor.truncate == "round_robin" and model.name == "mine"
    masked = nlp.BertMaskedLM.from_preset(NAME, dropout=0.0, seed=4)
    assert masked.backbone.dropout == 0.0 and masked.preprocessor.seed == 4


def test_compile_defaults(fresh):
    loss, optimizer = fresh.loss, fresh.optimizer
    assert isinstance(loss, khub.losses.SparseCategoricalCrossentropy) and loss.from_logits
    assert isinstance(optimizer, khub.optimizers.AdamW)
    assert float(optimizer.learning_rate) == pytest.approx(5e-5)
    assert (optimizer.weight_decay, optimizer.global_clipnorm) == (0.01, 1.0)
    model = nlp.BertClassifier(fresh.backbone)
    model.compile(optimizer="sgd", loss="mse", metrics=None)
    assert isinstance(model.optimizer, khub.optimizers.SGD) and model.loss == "mse"


@trains
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_other_dtypes(fresh, dtype):
    model = classifier(dtype=dtype, num_layers=1, strict=False)
    stored = "bfloat16" if dtype == "bfloat16" else "float32"
    assert {v.dtype for v in model.trainable_variables} == {stored}
    assert model.compute_dtype == model.backbone.blocks[0].compute_dtype == "bfloat16"
    words = [
        np.asarray(khub.ops.convert_to_numpy(m.backbone.embeddings(x))).astype("float32")
        for m, x in [(m, m.preprocessor(OTHERS)["token_ids"]) for m in (model, fresh)]
    ]
    np.testing.assert_allclose(words[0], words[1], atol=0.05)
    model.compile(optimizer=nlp.tasks.adamw(1e-3))
    losses = model.fit(TEXTS[:16], LABELS[:16], batch_size=16, epochs=9, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.05


# --- saved and opened again -----------------------------------------------------------------------
@trains
def test_a_trained_classifier_comes_back(trained, tmp_path):
    model, _ = trained
    model.save_to_preset(tmp_path / "reviews")
    want = model.predict(OTHERS, verbose=0)
    for opened in (
        nlp.BertClassifier.from_preset(tmp_path / "reviews"),
        nlp.TextClassifier.from_preset(str(tmp_path / "reviews")),
        presets.load(tmp_path / "reviews"),
    ):
        assert type(opened) is nlp.BertClassifier
        assert (opened.labels, opened.num_classes) == (("negative", "positive"), 2)
        assert opened.preprocessor.preset_config() == model.preprocessor.preset_config()
        assert np.array_equal(opened.predict(OTHERS, verbose=0), want)


def test_another_number_of_classes_after_saving(fresh, tmp_path, caplog):
    labels = ("no", "maybe", "yes")
    model = nlp.BertClassifier(fresh.backbone, 3, fresh.preprocessor, labels=labels)
    model.save_to_preset(tmp_path)
    same = nlp.TextClassifier.from_preset(tmp_path, num_classes=3)
    assert same.labels == labels and "initializers" not in caplog.text
    other = nlp.TextClassifier.from_preset(tmp_path, num_classes=4)
    assert other.labels is None and other.classifier.kernel.shape == (128, 4)
    assert "classifier.kernel, classifier.bias start from their initializers" in caplog.text
    one, two = (m.backbone.pooler.kernel.numpy() for m in (model, other))
    assert np.array_equal(one, two)


def test_every_generic_class_finds_its_own():
    for generic, concrete in (
        (nlp.Backbone, nlp.BertBackbone),
        (nlp.TextClassifier, nlp.BertClassifier),
        (nlp.MaskedLM, nlp.BertMaskedLM),
        (nlp.TextEmbedder, nlp.BertTextEmbedder),
        (nlp.Tokenizer, nlp.BertTokenizer),
    ):
        assert type(generic.from_preset(NAME)) is concrete


FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
]


@pytest.fixture
def disk(monkeypatch):
    """A dict; the disk is full for files whose name is its "full_for"."""
    state, write = {"full_for": None}, tensors._write_bytes

    def limited(file, data):
        if state["full_for"] and file.name.split("/")[-1].startswith(f".{state['full_for']}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data)

    monkeypatch.setattr(tensors, "_write_bytes", limited)
    return state


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_is_full_at_any_file_leaves_the_old_preset(fresh, tmp_path, disk, name):
    folder = tmp_path / "saved"
    fresh.save_to_preset(folder)
    before = content(folder)
    assert before.keys() == set(FILES)
    changed = nlp.BertClassifier(fresh.backbone, 2, fresh.preprocessor)
    items = [changed] if name == "model.safetensors" else [changed, fresh.preprocessor]
    disk["full_for"] = name
    for item in items:
        with pytest.raises(
            OSError, match=f"{folder} has no room.*what was there is unch"
        ) as caught:
            item.save_to_preset(folder)
        assert caught.value.errno == errno.ENOSPC
        assert content(folder) == before and list(tmp_path.iterdir()) == [folder]
        with pytest.raises(OSError, match="new has no room"):
            item.save_to_preset(tmp_path / "new")
        assert list(tmp_path.iterdir()) == [folder]
    disk["full_for"] = None
    changed.save_to_preset(folder)
    assert content(folder) != before


# --- masked language model ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def masked():
    return nlp.BertMaskedLM.from_preset(NAME, sequence_length=LENGTH, mask_selection_length=4)


def test_fill(masked):
    (one,), (first, second) = masked.fill(["the [MASK] was very good.", "[MASK] of the [MASK]"], 3)
    for found in (one, first, second):
        assert len(found) == 3 and all(isinstance(token, str) for token, _ in found)
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True) and 0 < sum(scores) < 1
    assert "one" in [token for token, _ in first] or first[0][1] > 0.05  # it has learned something
    for text, count in (("no mask", 0), ("[MASK]" * 5, 5), ("a " * 20 + "[MASK]", 0)):
        with pytest.raises(
            ValueError, match=rf"fill\(\) needs \[MASK\] .* 1 to 4 .*it {count} times"
        ):
            masked.fill(["a [MASK]", text])
    assert masked.fill(["a [MASK]"]) == masked.fill(["a [MASK]"])  # nothing is drawn


@trains
def test_masked_language_modelling_learns_and_counts_hidden_tokens_only():
    model = nlp.BertMaskedLM.from_preset(
        NAME, sequence_length=LENGTH, mask_selection_length=4, dropout=0.0, attention_dropout=0.0
    )
    model.compile(optimizer=nlp.tasks.adamw(1e-3))
    history = model.fit(TEXTS[:32], batch_size=32, epochs=6, verbose=0).history
    assert np.mean(history["loss"][3:]) < np.mean(history["loss"][:3])
    x, y, weights = model.preprocessor(TEXTS[:8])
    loss, accuracy = model.evaluate(x, y, sample_weight=weights, verbose=0)[:2]
    logits = model.predict(x, verbose=0)
    picked = np.take_along_axis(logits, y[..., None].astype(int), -1)[..., 0]
    each = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1) - picked
    assert loss == pytest.approx((each * weights).sum() / weights.sum(), rel=1e-3)
    hits = (logits.argmax(-1) == y) * weights
    assert accuracy == pytest.approx(hits.sum() / weights.sum(), abs=1e-5)


def test_a_masked_lm_comes_back(masked, tmp_path):
    masked.save_to_preset(tmp_path)
    again = presets.load(tmp_path)
    assert type(again) is nlp.BertMaskedLM and again.preprocessor.mask_selection_length == 4
    assert again.fill(["a [MASK]"]) == masked.fill(["a [MASK]"])


# --- embeddings -----------------------------------------------------------------------------------
def test_embed(tmp_path):
    model = nlp.BertTextEmbedder.from_preset(NAME, sequence_length=LENGTH, normalize=True)
    vectors = model.embed(iter(OTHERS), batch_size=3)
    assert vectors.shape == (4, 128) and vectors.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    model.save_to_preset(tmp_path)
    again = presets.load(tmp_path)
    assert type(again) is nlp.BertTextEmbedder and (again.pooling, again.normalize) == (
        "mean",
        True,
    )
    np.testing.assert_allclose(again.embed(OTHERS), vectors, atol=1e-6)
    longer = nlp.BertTextEmbedder.from_preset(tmp_path, sequence_length=2 * LENGTH)
    short = ["a fine film", "what a dull film"]  # more padding changes nothing
    np.testing.assert_allclose(longer.embed(short), model.embed(short), atol=1e-5)
