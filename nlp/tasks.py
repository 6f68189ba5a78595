"""Backbones and tasks of text models: what is the same for every architecture.

A task is a backbone, a head and a preprocessor. It takes texts in `fit`, `evaluate` and `predict`
(the trainer runs the preprocessor in its prefetch thread), or arrays when preprocessor=None.
"""

import json
from functools import partial

import numpy as np

from khub import losses, metrics, ops, optimizers
from khub.choices import choose
from khub.fields import Choice, PositiveInt, Rate
from khub.layers import Dropout
from khub.models import Model

from ..presets import Presettable
from . import preprocessing
from .spans import AGGREGATIONS, best_spans, entities, softmax, word_spans
from .token_files import read_json, read_text
from .transformer import dense, read_config


class Backbone(Presettable, Model):
    """A network without a head: token ids in, hidden states out. Built when constructed."""

    weight_map = ()  # (reference module, khub module), see presets/weights.py
    ignored = ()  # tensors of a checkpoint that no variable needs
    optional = ()  # modules that a checkpoint may lack as a whole; they start fresh
    reference_prefix = ""
    model_type = ""
    config_names = {}  # khub's name -> the reference's, in config.json
    needed = ("token_ids",)  # of its inputs

    def setup(self):
        self.build(None)

    @classmethod
    def config_from_reference(cls, config):
        """Constructor arguments for a config.json of the reference implementation."""
        what = config.get("model_type", cls.__name__)
        return read_config(config, cls.config_names, what)

    def reference_config(self):
        """Content of config.json that the reference implementation reads."""
        ours = {theirs: getattr(self, name) for name, theirs in self.config_names.items()}
        return {"model_type": self.model_type, **ours}

    def check_inputs(self, inputs):
        """Raise TypeError for what is no dict of arrays: texts that no preprocessor has seen."""
        is_dict = isinstance(inputs, dict)
        if not is_dict or not inputs.keys() >= {*self.needed}:
            given = f"a dict of {', '.join(inputs)}" if is_dict else type(inputs).__name__
            raise TypeError(
                f"{type(self).__name__} takes a dict with {' and '.join(self.needed)} (masks and "
                f"segment_ids may be left out), got {given}. Texts and other raw data go to fit, "
                "evaluate, predict and generate of a task with a preprocessor, or through "
                "task.preprocessor(...)."
            )


def kind_class(kind, module, suffix, base, /, **members):
    """The class of an architecture: `base` with more members, or itself where it has the name.

    kind: `name` and `paper` are read   module: where the class stands   suffix: of its name
    """
    if base.__name__ == f"{kind.name}{suffix}":
        return base
    text = f"{kind.name}'s {suffix}; see `{base.__name__}`. {kind.paper}".strip()
    members = {"__doc__": text, "__module__": module, **members}
    return type(f"{kind.name}{suffix}", (base,), members)


class Task(Presettable, Model):
    """A backbone with a head, and the preprocessor that turns text into the backbone's inputs."""

    backbone: Backbone
    preprocessor: object = None

    preprocessor_class = None
    weight_map = ()  # of the head alone
    ignored = ()
    # Of compile(): argument -> what makes its value.
    defaults = {"optimizer": lambda: "rmsprop", "loss": lambda: None}

    def setup(self):
        self._check_preprocessor()
        self.build(None)
        self.compile()

    def compile(self, optimizer="auto", loss="auto", **options):
        """As `Model.compile`; what is not given, or "auto", is what `defaults` makes."""
        given = {"optimizer": optimizer, "loss": loss, **options}
        for name, make in self.defaults.items():
            if given.get(name, "auto") == "auto":
                given[name] = make()
        super().compile(**given)

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

    def _batches(self, source, preprocess=None):
        if source.raw:
            self.require_preprocessor()
        return super()._batches(source, preprocess)

    @classmethod
    def head_from_reference(cls, config):
        """The head's constructor arguments for a config.json of the reference implementation."""
        return {}

    def reference_config(self):
        return self.backbone.reference_config()

    def hidden_states(self, inputs, training):
        """What the backbone makes of the tokens, (batch, time, width)."""
        return self.backbone(inputs, training=training)["sequence_output"]

    def require_preprocessor(self):
        """The preprocessor; without one, say what to do."""
        if self.preprocessor is None:
            raise ValueError(
                f"This {type(self).__name__} has no preprocessor, so it takes arrays, not texts. "
                "Make it with from_preset(...), or set its attribute preprocessor."
            )
        return self.preprocessor


def adamw(learning_rate=5e-5):
    """AdamW as BERT uses it: biases and normalizations do not decay, gradients have norm <= 1."""
    optimizer = optimizers.AdamW(learning_rate, weight_decay=0.01, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def crossentropy(**options):
    """Cross-entropy of logits."""
    return losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def place_accuracy():
    """Metrics: how many of the first and last tokens are found."""

    def found(y_true, logits):
        places = ops.cast(ops.argmax(logits, axis=1), "int32")
        return ops.cast(ops.equal(places, ops.cast(y_true, "int32")), "float32")

    return [metrics.MeanMetricWrapper(found, name="accuracy")]


# What "auto" is in compile(), of one label in a row, and of labels that may have a weight of 0.
SINGLE = {"optimizer": adamw, "loss": crossentropy, "metrics": lambda: ["accuracy"]}
WEIGHTED = {
    "optimizer": adamw,
    # its mean over the tokens with a weight alone
    "loss": partial(crossentropy, reduction="mean_with_sample_weight"),
    "weighted_metrics": lambda: [metrics.SparseCategoricalAccuracy(name="accuracy")],
}


class Headed(Task):
    """A task whose head is one dense layer, `classifier`, with dropout before it."""

    preprocessor: object = None
    dropout: Rate = 0.0

    num_classes = 2
    dropout_name = "classifier_dropout"  # in config.json
    weight_map = [("classifier", "classifier")]

    def build(self, shape=None):
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        self.classifier = dense(self, self.backbone.hidden_dim, self.num_classes)

    def call(self, inputs, training=None):
        x = self.hidden_states(inputs, training)
        return self.classifier(self.drop(x, training=training))

    def reference_config(self):
        return {**super().reference_config(), self.dropout_name: self.dropout}


class Labelled(Headed):
    """A task with `num_classes`, whose names, for people, are `labels`."""

    num_classes: PositiveInt = 2
    preprocessor: object = None
    dropout: Rate = 0.1
    labels: tuple = None

    def setup(self):
        labels, count = self.labels, self.num_classes
        if labels is not None and len(labels) != count:
            raise ValueError(f"{len(labels)} labels were given for {count} classes.")
        super().setup()

    @classmethod
    def head_from_reference(cls, config):
        names = {int(i): name for i, name in (config.get("id2label") or {}).items()}
        count = len(names) or config.get("num_labels") or 2
        labels = tuple(names[i] for i in sorted(names))
        default = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
        keys = (cls.dropout_name, "hidden_dropout_prob", "dropout")
        dropout = next((x for x in map(config.get, keys) if x is not None), 0.1)
        return {"num_classes": count, "dropout": dropout, "labels": None if default else labels}

    def class_names(self):
        """The labels; LABEL_0, ... where there are none."""
        return list(self.labels or (f"LABEL_{i}" for i in range(self.num_classes)))

    def reference_config(self):
        labels = self.class_names()
        return {
            **super().reference_config(),
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }


class TextClassifier(Labelled):
    """One of `num_classes` for a text or a pair of texts.

    fit(x=list[str], y=int labels); predict(list[str]) -> logits (n, num_classes)
    labels: names of the classes, for people
    """

    preprocessor_class = preprocessing.TextClassifierPreprocessor
    defaults = SINGLE

    def _batches(self, source, preprocess=None):
        y, loss = getattr(source, "y", None), self.loss
        by_index = isinstance(loss, losses.SparseCategoricalCrossentropy)
        integers = isinstance(y, np.ndarray) and y.dtype.kind in "iu"
        checked = integers and by_index and loss.ignore_class is None
        if checked and not (y.min() >= 0 and y.max() < self.num_classes):
            raise ValueError(
                f"Labels must lie in 0 .. {self.num_classes - 1} for num_classes="
                f"{self.num_classes}; got {y.min()} .. {y.max()}."
            )
        return super()._batches(source, preprocess)


class MaskedLM(Task):
    """The hidden tokens of a text.

    fit(x=list[str]) hides tokens itself; fill(list[str with mask tokens]) proposes words.
    call: the preprocessor's x -> logits (batch, mask_selection_length, vocabulary); without
    "mask_positions" (batch, time, vocabulary).
    """

    preprocessor_class = preprocessing.MaskedLMPreprocessor
    defaults = WEIGHTED

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

        def named(ids, scores):
            return [(tokenizer.id_to_token(i), float(scores[i])) for i in ids]

        rows = zip(probabilities, masks.sum(1))
        ranked = [np.argsort(-row[:count], axis=-1)[:, :top_k] for row, count in rows]
        return [list(map(named, ids, row)) for ids, row in zip(ranked, probabilities)]


Pooling = Choice("mean", "cls")


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

    preprocessor: object = None
    pooling: Pooling = "mean"
    normalize: bool = False

    preprocessor_class = preprocessing.TextEmbedderPreprocessor

    @classmethod
    def head_from_folder(cls, folder):
        """What the files of sentence-transformers beside the weights say: pooling, normalize."""
        path = folder / "modules.json"
        if not path.is_file():
            return {}
        modules = json.loads(read_text(path))
        types = [str(module.get("type")).rpartition(".")[-1] for module in modules]
        pooling = read_json(folder / "1_Pooling/config.json", missing_ok=True)
        modes = {
            name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
            for name, value in pooling.items()
            if name.startswith("pooling_mode_") and value is True
        } or {pooling.get("pooling_mode", "mean")}
        more = [kind for kind in types if kind not in ("Transformer", "Pooling", "Normalize")]
        if more or len(modes) > 1 or not modes <= {"mean", "cls"}:
            raise ValueError(
                f"{path} makes vectors by {', '.join([*types, *sorted(modes)])}; khub knows "
                "Transformer, Pooling (mean or cls) and Normalize."
            )
        return {"pooling": modes.pop(), "normalize": "Normalize" in types}

    def call(self, inputs, training=None):
        x = self.hidden_states(inputs, training)
        x = pooled(x, inputs.get("padding_mask"), self.pooling)
        return ops.normalize(x, axis=-1) if self.normalize else x

    def embed(self, texts, batch_size=32):
        """Vectors of texts."""
        return self.predict(list(texts), batch_size=batch_size, verbose=0)


class Ragged:
    """What a task adds whose rows have lengths of their own: words, labelled spans, sounds."""

    def fit(self, x=None, y=None, *args, validation_data=None, **options):
        """As `Model.fit`."""
        if isinstance(validation_data, (tuple, list)):
            validation_data = tuple(map(rows_of, validation_data))
        x, y = rows_of(x), rows_of(y)
        return super().fit(x, y, *args, validation_data=validation_data, **options)

    def evaluate(self, x=None, y=None, *args, **options):
        """As `Model.evaluate`."""
        return super().evaluate(rows_of(x), rows_of(y), *args, **options)

    def predict(self, x, *args, **options):
        """As `Model.predict`."""
        return super().predict(rows_of(x), *args, **options)


def rows_of(items):
    """A list of lists, arrays, dicts or None as an array of objects, which may differ in length."""
    if not isinstance(items, list) or not any(
        isinstance(item, (list, tuple, dict, np.ndarray)) for item in items[:1] + items[-1:]
    ):
        return items
    return np.fromiter(items, object, len(items))


class TokenClassifier(Ragged, Labelled):
    """One of `num_classes` for every token.

    fit(x=list[str], y=[[(start, end, class), ...], ...]), or fit(x=list[list[str]], words, y=a
    class for each word), see `TokenClassifierPreprocessor`; predict -> logits (n, time,
    num_classes); entities(list[str]). A head of its own overrides build and call.
    """

    preprocessor_class = preprocessing.TokenClassifierPreprocessor
    defaults = WEIGHTED

    def _batches(self, source, preprocess=None):
        if preprocess is None and isinstance(self.preprocessor, self.preprocessor_class):
            preprocess = partial(self.preprocessor, labels=self.class_names())
        return super()._batches(source, preprocess)

    def entities(self, texts, aggregation="simple", batch_size=32):
        """What stands where in texts, or in lists of words joined by spaces.

        -> for each text [{"entity", "score", "word", "start", "end"}, ...], positions in characters
        aggregation: "none", each token alone, with its "index"; "simple", neighbours of one class
        are one, B- begins a new one; "first", "average", "max": all tokens of a word have the class
        of its first, of their mean, of the surest, and then as "simple". Class "O" is left out.
        """
        aggregation = choose("aggregation", aggregation, AGGREGATIONS)
        preprocessor, found = self.require_preprocessor(), []
        texts, _, _ = preprocessing.texts_or_words(texts)
        arrays, located = preprocessor.located(texts)
        scores = softmax(self.predict(arrays, batch_size=batch_size, verbose=0).astype("float32"))
        for text, ids, tokens, row in zip(texts, arrays["token_ids"], located, scores):
            tokens = preprocessor.tokens(text, ids, tokens, row)
            join = preprocessor.tokenizer.join
            found.append(entities(text, tokens, self.class_names(), join, aggregation))
        return found


class QuestionAnswerer(Ragged, Headed):
    """Where in a context the answer to a question stands.

    fit(x=(questions, contexts), y=answers), see `QuestionAnswererPreprocessor`; answer(questions,
    contexts). call -> logits (batch, time, 2) of a token to be the first, and to be the last.
    Devlin et al. 2018, arXiv:1810.04805, section 4.2.
    """

    preprocessor_class = preprocessing.QuestionAnswererPreprocessor
    defaults = {**SINGLE, "loss": partial(crossentropy, axis=1), "metrics": place_accuracy}
    dropout_name = "qa_dropout"  # in config.json
    weight_map = [("qa_outputs", "classifier")]

    @classmethod
    def head_from_reference(cls, config):
        return {"dropout": config.get(cls.dropout_name, 0.0)}

    def answer(
        self,
        questions,
        contexts,
        top_k=1,
        stride=None,
        max_answer_length=15,
        allow_none=False,
        align_to_words=True,
        batch_size=32,
    ):
        """The likeliest answers.  -> for each question {"answer", "score", "start", "end"}, or a
        list of up to `top_k` of them; positions are characters of the context.

        A context that does not fit is cut into windows that share `stride` tokens, None: as the
        preprocessor says. A score is a probability within its window.
        max_answer_length: in tokens   allow_none: "" may be the answer   align_to_words: an answer
        that begins or ends within a word has all of it
        """
        preprocessor = self.require_preprocessor()
        (questions, contexts), several = preprocessing.text_segments((questions, contexts))
        arrays, windows = preprocessor.windows(questions, contexts, stride)
        logits = self.predict(arrays, batch_size=batch_size, verbose=0)
        found, none = [{} for _ in questions], [1.0] * len(questions)
        for row, (number, first, tokens) in zip(logits, windows):
            spans, nothing = best_spans(row, first, len(tokens), max_answer_length)
            none[number], here = min(none[number], nothing), {}
            whole = word_spans(tokens) if align_to_words else {}
            for score, begin, end in spans:
                start, _, word = tokens[begin]
                _, stop, last = tokens[end]
                here.setdefault((whole.get(word, (start,))[0], whole.get(last, (stop,))[-1]), score)
                if len(here) == top_k:
                    break
            for place, score in here.items():
                found[number][place] = max(score, found[number].get(place, 0.0))
        results = []
        for text, places, nothing in zip(contexts, found, none):
            if allow_none or not places:
                places[0, 0] = nothing
            ranked = sorted(places.items(), key=lambda item: -item[1])[:top_k]
            keys = ("answer", "score", "start", "end")
            results.append([dict(zip(keys, (text[s:e], p, s, e))) for (s, e), p in ranked])
        results = results if top_k > 1 else [ranked[0] for ranked in results]
        return results if several else results[0]
