"""Backbones and tasks of text models: what is the same for every architecture.

A task is a backbone, a head and a preprocessor. It takes texts in `fit`, `evaluate` and `predict`
(the trainer runs the preprocessor in its prefetch thread), or arrays when preprocessor=None.
"""

import numpy as np

from khub import losses, metrics, ops, optimizers
from khub.fields import PositiveInt, Rate
from khub.models import Model

from ..presets import Presettable
from .preprocessing import (
    MaskedLMPreprocessor,
    TextClassifierPreprocessor,
    TextEmbedderPreprocessor,
)


class Backbone(Presettable, Model):
    """A network without a head: token ids in, hidden states out. Built when constructed."""

    weight_map = ()  # (reference module, khub module), see presets/weights.py
    ignored = ()  # tensors of a checkpoint that no variable needs
    optional = ()  # modules that a checkpoint may lack as a whole; they start fresh
    reference_prefix = ""

    def setup(self):
        self.build(None)

    @classmethod
    def config_from_reference(cls, config):
        """Constructor arguments for a config.json of the reference implementation."""
        raise NotImplementedError(f"{cls.__name__} does not define config_from_reference().")

    def reference_config(self):
        """Content of config.json that the reference implementation reads."""
        raise NotImplementedError(f"{type(self).__name__} does not define reference_config().")

    def check_inputs(self, inputs):
        """Raise TypeError for what is no dict of arrays: texts that no preprocessor has seen."""
        if isinstance(inputs, dict) and "token_ids" in inputs:
            return
        given = (
            f"a dict of {', '.join(inputs)}" if isinstance(inputs, dict) else type(inputs).__name__
        )
        raise TypeError(
            f"{type(self).__name__} takes a dict with token_ids (and segment_ids, padding_mask), "
            f"got {given}. Texts go to fit, evaluate and predict of a task with a preprocessor, or "
            "through task.preprocessor(texts)."
        )


class Task(Presettable, Model):
    """A backbone with a head, and the preprocessor that turns text into the backbone's inputs."""

    backbone: Backbone
    preprocessor: object = None

    preprocessor_class = None
    weight_map = ()  # of the head alone
    ignored = ()

    def setup(self):
        self._check_preprocessor()
        self.build(None)
        self.compile()

    def _check_preprocessor(self):
        """Raise ValueError where the preprocessor makes what the backbone has no weights for."""
        if not hasattr(self.preprocessor, "tokenizer"):  # a user's own
            return
        for what, made, taken in (
            ("token ids", self.preprocessor.tokenizer.vocabulary_size(), "vocabulary_size"),
            ("positions", self.preprocessor.sequence_length, "max_sequence_length"),
        ):
            limit = getattr(self.backbone, taken, made)
            if made > limit:
                raise ValueError(
                    f"The preprocessor makes {made:,} {what}, but the backbone has "
                    f"{taken}={limit:,}: they do not belong together."
                )

    def _batches(self, source):
        if source.raw:
            self.require_preprocessor()
        return super()._batches(source)

    @classmethod
    def head_from_reference(cls, config):
        """The head's constructor arguments for a config.json of the reference implementation."""
        return {}

    def reference_config(self):
        return self.backbone.reference_config()

    def require_preprocessor(self):
        """The preprocessor; without one, say what to do."""
        if self.preprocessor is None:
            raise ValueError(
                f"This {type(self).__name__} has no preprocessor, so it takes arrays, not texts. "
                "Make it with from_preset(...), or set its attribute preprocessor."
            )
        return self.preprocessor


def adamw(learning_rate):
    """AdamW as BERT uses it: biases and normalizations do not decay, gradients have norm <= 1."""
    optimizer = optimizers.AdamW(learning_rate, weight_decay=0.01, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


class TextClassifier(Task):
    """One of `num_classes` for a text or a pair of texts.

    fit(x=list[str], y=int labels); predict(list[str]) -> logits (n, num_classes)
    labels: names of the classes, for people
    """

    backbone: Backbone
    num_classes: PositiveInt = 2
    preprocessor: object = None
    dropout: Rate = 0.1
    labels: tuple = None

    preprocessor_class = TextClassifierPreprocessor

    def setup(self):
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(
                f"{len(self.labels)} labels were given for {self.num_classes} classes."
            )
        super().setup()

    def compile(self, optimizer="auto", loss="auto", *, metrics="auto", **options):
        """As `Model.compile`; "auto" is AdamW at 5e-5, cross-entropy of logits, accuracy."""
        super().compile(
            optimizer=adamw(5e-5) if optimizer == "auto" else optimizer,
            loss=losses.SparseCategoricalCrossentropy(from_logits=True) if loss == "auto" else loss,
            metrics=["accuracy"] if metrics == "auto" else metrics,
            **options,
        )

    def _batches(self, source):
        y, loss = getattr(source, "y", None), self.loss
        by_index = isinstance(loss, losses.SparseCategoricalCrossentropy)
        integers = isinstance(y, np.ndarray) and y.dtype.kind in "iu"
        checked = integers and by_index and loss.ignore_class is None
        if checked and not (y.min() >= 0 and y.max() < self.num_classes):
            raise ValueError(
                f"Labels must lie in 0 .. {self.num_classes - 1} for num_classes="
                f"{self.num_classes}; got {y.min()} .. {y.max()}."
            )
        return super()._batches(source)

    @classmethod
    def head_from_reference(cls, config):
        names = {int(i): name for i, name in (config.get("id2label") or {}).items()}
        count = len(names) or config.get("num_labels") or 2
        labels = tuple(names[i] for i in sorted(names))
        default = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
        dropout = config.get("classifier_dropout")
        dropout = config.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
        return {"num_classes": count, "dropout": dropout, "labels": None if default else labels}

    def reference_config(self):
        labels = self.labels or [f"LABEL_{i}" for i in range(self.num_classes)]
        return {
            **super().reference_config(),
            "classifier_dropout": self.dropout,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }


def masked_crossentropy():
    """Cross-entropy of logits, its mean over the hidden tokens alone."""
    return losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )


class MaskedLM(Task):
    """The hidden tokens of a text.

    fit(x=list[str]) hides tokens itself; fill(list[str with mask tokens]) proposes words.
    call: the preprocessor's x -> logits (batch, mask_selection_length, vocabulary); without
    "mask_positions" (batch, time, vocabulary).
    """

    preprocessor_class = MaskedLMPreprocessor

    def compile(self, optimizer="auto", loss="auto", *, weighted_metrics="auto", **options):
        """As `Model.compile`; "auto" is AdamW at 5e-5, cross-entropy of logits, accuracy."""
        accuracy = metrics.SparseCategoricalAccuracy(name="accuracy")
        super().compile(
            optimizer=adamw(5e-5) if optimizer == "auto" else optimizer,
            loss=masked_crossentropy() if loss == "auto" else loss,
            weighted_metrics=[accuracy] if weighted_metrics == "auto" else weighted_metrics,
            **options,
        )

    def fill(self, texts, top_k=5):
        """The likeliest tokens for every mask of every text.

        -> for each text a list with, for each of its masks, [(token, probability), ...]
        """
        texts, preprocessor = list(texts), self.require_preprocessor()
        tokenizer, most = preprocessor.tokenizer, preprocessor.mask_selection_length
        x = preprocessor.encode(texts)
        masks = x["token_ids"] == tokenizer.mask_token_id
        for text, count in zip(texts, masks.sum(1)):
            if not 0 < count <= most:
                mask, length = tokenizer.special_tokens["mask_token"], preprocessor.sequence_length
                raise ValueError(
                    f"fill() needs {mask} where a word is wanted, 1 to {most} times in the first "
                    f"{length} tokens; {text!r:.80} has it {count} times."
                )
        x, _, _ = preprocessor.mask(x)
        probabilities = ops.convert_to_numpy(ops.softmax(self.predict_on_batch(x), axis=-1))
        results = []
        for row, count in zip(probabilities, masks.sum(1)):
            best = np.argsort(-row[:count], axis=-1)[:, :top_k]
            results.append(
                [
                    [(tokenizer.id_to_token(i), float(scores[i])) for i in ids]
                    for ids, scores in zip(best, row)
                ]
            )
        return results


def pooled(x, mask, pooling):
    """One vector of the hidden states: "mean" over the real tokens, or "cls", the first one.

    x: (batch, time, width), mask: bool (batch, time) or None -> (batch, width)
    """
    if pooling == "cls":
        return x[:, 0]
    if mask is None:
        return ops.mean(x, axis=1)
    weights = ops.expand_dims(ops.cast(mask, x.dtype), -1)
    return ops.sum(x * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1e-9)


class TextEmbedder(Task):
    """One vector for a text.  embed(list[str]) -> float32 (n, width)

    pooling: "mean" of the hidden states over the real tokens, or "cls", the first one;
    normalize: scale every vector to length 1. Reimers and Gurevych 2019, arXiv:1908.10084.
    """

    backbone: Backbone
    preprocessor: object = None
    pooling: str = "mean"
    normalize: bool = False

    preprocessor_class = TextEmbedderPreprocessor

    def setup(self):
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls'; got {self.pooling!r}.")
        super().setup()

    def call(self, inputs, training=None):
        x = self.backbone(inputs, training=training)["sequence_output"]
        x = pooled(x, inputs.get("padding_mask"), self.pooling)
        return ops.normalize(x, axis=-1) if self.normalize else x

    def embed(self, texts, batch_size=32):
        """Vectors of texts."""
        return self.predict(list(texts), batch_size=batch_size, verbose=0)
