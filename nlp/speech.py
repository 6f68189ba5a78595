"""Speech to text: windows of sound, the tokens that say what to do with them, and timestamps.

Radford et al. 2022, arXiv:2212.04356, sections 2.3 and 3.8.
"""

import re

import numpy as np

from khub import ops
from khub.choices import choose
from khub.fields import PositiveInt

from .audio import WhisperFeatures
from .generation import Answers, Seq2SeqLM
from .preprocessing import TextPreprocessor, check_texts, fill
from .rules import NEVER, Rules
from .tasks import Backbone, Ragged

SOURCE, NONE = "<|startoftranscript|>", "<|notimestamps|>"
TASKS = ("transcribe", "translate")
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class TimestampRules(Rules):
    """`Rules`, and timestamps: pairs around each piece of text, the later the greater.

    timestamp: the id of the first, <|0.00|>, which all others follow, and which follows that of
    <|notimestamps|>   latest_first: how many steps after it the first may be
    """

    timestamp: int = None
    latest_first: int = None

    def __call__(self, scores, tokens, i, most):
        scores = super().__call__(scores, tokens, i, most)
        first, ids = self.timestamp, ops.arange(scores.shape[-1])[None]

        def back(n):  # whether the token n places back is a timestamp
            token = ops.take(tokens, ops.maximum(ops.convert_to_tensor(i - n), 0), axis=1)
            return token[:, None] >= first

        last = ops.logical_and(back(1), ops.convert_to_tensor(i >= 1))
        before = ops.logical_or(back(2), ops.convert_to_tensor(i < 2))
        opened = ops.logical_and(last, ops.logical_not(before))  # the text before it has its end
        closed = ops.logical_and(last, before)
        there = ops.arange(ops.shape(tokens)[1])[None] < i
        latest = ops.max(ops.where(there, tokens, 0), -1, keepdims=True)
        step = ops.where(opened, 0, 1)
        least = ops.where(latest >= first, latest + step, first)
        banned = ops.logical_and(opened, ids < self.end)
        banned = ops.logical_or(banned, ops.logical_and(closed, ids >= first))
        early = ops.logical_and(ids >= first, ids < least)
        banned = ops.logical_or(banned, ops.logical_or(early, ids == first - 1))
        at_first = ids < first
        if self.latest_first is not None:
            at_first = ops.logical_or(at_first, ids > first + self.latest_first)
        start = ops.logical_and(at_first, ops.convert_to_tensor(i == 0))
        scores = ops.where(ops.logical_or(banned, start), NEVER, scores)
        # a timestamp where all of them together are likelier than any word
        shares = ops.log_softmax(scores, -1)
        stamps = ops.logsumexp(shares[:, first:], -1, keepdims=True)
        likelier = stamps > ops.max(shares[:, :first], -1, keepdims=True)
        return ops.where(ops.logical_and(likelier, ids < first), NEVER, scores)


class SpeechToTextPreprocessor(TextPreprocessor):
    """Sound to windows of `features`, texts to the tokens that predict the next one.

    x: paths, or a list of samples (samples,) at the features' rate, y: list[str] ->
    ({"encoder_features": (batch, frames, bands), "decoder_token_ids", "decoder_padding_mask":
    (batch, sequence_length)}, y the ids one place on, sample_weight 1 where they are text or end)
    language, task: of the texts, for a model of several languages   multilingual: whether it is
    one, None: as the model, else where the tokenizer has languages
    """

    tokenizer: object
    features: WhisperFeatures = None
    sequence_length: PositiveInt = 448
    language: str = None
    task: str = "transcribe"
    multilingual: bool = None

    def setup(self):
        self.features = self.features or WhisperFeatures()

    def __call__(self, x, y=None, sample_weight=None):
        if y is None or sample_weight is not None:
            raise ValueError("Speech to text learns from sounds x and texts y, without weights.")
        tokenizer, length = self.tokenizer, self.sequence_length + 1
        prompt = self.prompt()
        end = tokenizer.eos_token_id
        rows = [[*prompt, *ids, end] for ids in tokenizer.tokenize(check_texts(y))]
        token_ids, mask = fill(rows, length, end)
        weights = mask[:, 1:].astype("float32")
        weights[:, : len(prompt) - 1] = 0
        x = {
            "encoder_features": self.features(list(x)),
            "decoder_token_ids": token_ids[:, :-1],
            "decoder_padding_mask": mask[:, :-1],
        }
        return x, token_ids[:, 1:], weights

    def prompt(self):
        """The ids that a text without timestamps begins with."""
        known = self.tokenizer.backend.token_to_id
        languages = [t for t in self.tokenizer.get_vocabulary() if LANGUAGE.fullmatch(t)]
        names = [SOURCE]
        if languages and self.multilingual is not False:
            if self.language is None:
                raise ValueError(
                    "The preprocessor needs language=, that of the texts: one of "
                    f"{', '.join(sorted(t[2:-2] for t in languages))}."
                )
            names += [f"<|{self.language}|>", f"<|{self.task}|>"]
        ids = [known(name) for name in names]
        if None in ids:
            raise ValueError(f"The tokenizer lacks {names[ids.index(None)]}.")
        return ids if known(NONE) is None else [*ids, known(NONE)]

    def save(self, folder):
        self.tokenizer.save(folder), self.features.save(folder)

    def preset_config(self):
        found = super().preset_config()
        return {name: value for name, value in found.items() if name != "features"}

    @classmethod
    def config_from_preset(cls, preset):
        """The constructor's arguments for a preset."""
        return {
            "tokenizer": preset.family.tokenizer.load(preset.folder),
            "features": WhisperFeatures.load(preset.folder),
            "sequence_length": preset.positions or 448,
            **preset.own("preprocessor"),
        }


class SpeechToText(Ragged, Seq2SeqLM):
    """What is said in a sound.  generate(audio); fit(x=list of paths or of arrays (samples,),
    y=list[str]).

    call: {"encoder_features", "decoder_token_ids", "decoder_padding_mask"} -> logits
    languages, tasks: {"<|en|>": id, ...}, {"transcribe": id, ...} of a model of several languages
    no_timestamps: the id of <|notimestamps|>, None: it knows none   latest_first: see
    `TimestampRules`   end: the id that ends a text
    """

    backbone: Backbone
    preprocessor: object = None
    rules: object = None
    languages: dict = None
    tasks: dict = None
    no_timestamps: int = None
    latest_first: int = None
    end: int = None

    preprocessor_class = SpeechToTextPreprocessor

    def setup(self):
        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        if tokenizer is not None:  # what no generation_config.json said
            known = tokenizer.backend.token_to_id
            vocabulary = tokenizer.get_vocabulary() if self.languages is None else ()
            found = {t: known(t) for t in vocabulary if LANGUAGE.fullmatch(t)}
            self.languages = found or self.languages
            if self.languages and self.tasks is None:
                self.tasks = {name: known(f"<|{name}|>") for name in TASKS}
            self.no_timestamps = known(NONE) if self.no_timestamps is None else self.no_timestamps
            self.end = tokenizer.eos_token_id if self.end is None else self.end
            if getattr(self.preprocessor, "multilingual", True) is None:
                self.preprocessor.multilingual = bool(self.languages)
        super().setup()

    @classmethod
    def head_from_reference(cls, config):
        config = {**config, **config.get("generation_config", {})}
        found = {ours: config.get(key) for ours, key in NAMES.items()}
        if isinstance(found["end"], list):
            found["end"] = found["end"][0]
        if config.get("is_multilingual") is False:  # its tokenizer may have languages all the same
            found["languages"] = {}
        return {**super().head_from_reference(config), **found}

    def generation_config(self):
        found = {key: getattr(self, ours) for ours, key in NAMES.items()}
        found = {key: value for key, value in found.items() if value not in (None, {})}
        more = {"is_multilingual": bool(self.languages), "return_timestamps": False}
        more["max_length"] = self.backbone.max_sequence_length
        return {**super().generation_config(), **more, **found}

    def generate(
        self, audio, language=None, task="transcribe", timestamps=False, rate=None, **options
    ):
        """Texts of sounds of any length: one of one, a list of several.

        audio: a path, bytes, samples (samples,) from -1 to 1, or a list of them   rate: Hz of
        samples, None: the features'   language: "en" or "<|en|>", None: found in the first window
        task: "transcribe", or "translate" into English   timestamps: return {"text", "segments":
        [{"start", "end", "text"}]}, seconds   options: max_length in tokens of a window with its
        prompt, sampler, seed and repetition_penalty, as in `Generator.generate`

        A long sound is heard in windows; each begins where the last whole segment of the one before
        ended, or without timestamps behind it.
        """
        features = self.require_preprocessor().features
        several = features.several(audio)
        sounds = features.sounds(audio if several else [audio], rate)
        whole = [features.log_mel(sound, whole=True) for sound in sounds]
        found = self.segments(whole, language, task, timestamps, **options)
        results = [self._result(pieces, timestamps) for pieces in found]
        return results if several else results[0]

    def stream(self, *args, **options):
        raise NotImplementedError("Speech has no stream(); generate() takes it window by window.")

    def segments(
        self,
        features,
        language=None,
        task="transcribe",
        timestamps=False,
        max_length=None,
        seed=None,
        repetition_penalty=1.0,
        sampler="greedy",
    ):
        """What `generate` hears, for each of `features` (frames, bands) [(start, end, ids), ...].

        Times are in steps of two frames.
        """
        window = self.backbone.max_encoder_sequence_length
        limit = self.backbone.max_sequence_length
        if timestamps and self.no_timestamps is None:
            raise ValueError("timestamps=True: this model has no timestamps.")
        none = self.backbone.vocabulary_size if self.no_timestamps is None else self.no_timestamps
        stamped, first = timestamps or any(len(x) > window for x in features), none + 1
        stamped = stamped and self.no_timestamps is not None
        rules = self._rules(first if stamped else None)
        seek, found, prompts = [0] * len(features), [[] for _ in features], None
        stops = () if self.end is None else (self.end,)
        options = dict(sampler=sampler, stops=stops, penalty=repetition_penalty, rules=rules)
        while rows := [i for i, x in enumerate(features) if seek[i] < len(x)]:
            heard = [features[i][seek[i] : seek[i] + window] for i in rows]
            memory = self._memory(heard)
            if prompts is None:
                prompts = self._prompts(len(rows), language, task, stamped, memory)
            total = limit if max_length is None else max_length
            if not len(prompts[0]) < total <= limit:
                raise ValueError(
                    f"max_length must be over the {len(prompts[0])} tokens of a prompt, at most "
                    f"{limit}; got {max_length}."
                )
            seeds = [seed[i] for i in rows] if isinstance(seed, list) else seed
            given = [prompts[i] for i in rows]
            answers = Answers(self, given, total, seed=seeds, memory=memory, **options).rows()
            for i, ids, part in zip(rows, answers, heard):
                ids = ids[:-1] if ids and ids[-1] == self.end else ids
                pieces, moved = split(ids, first, len(part))
                found[i] += [(a + seek[i] / 2, b + seek[i] / 2, piece) for a, b, piece in pieces]
                seek[i] += moved
        return found

    def detect_language(self, audio, rate=None):
        """The languages of sounds by their first windows: "en" of one, a list of several."""
        features = self.require_preprocessor().features
        several = features.several(audio)
        heard = [features.log_mel(x) for x in features.sounds(audio if several else [audio], rate)]
        ids = self._detected(self._memory(heard), len(heard))
        names = {index: token[2:-2] for token, index in self.languages.items()}
        found = [names[index] for index in ids]
        return found if several else found[0]

    def _memory(self, heard):
        """The encoder's, of windows of which the last may be short: behind it is nothing."""
        window = self.backbone.max_encoder_sequence_length
        padded = [np.pad(x, [(0, window - len(x)), (0, 0)]) for x in heard]
        return self.memory(np.stack(padded))

    def _prompts(self, count, language, task, stamped, memory):
        """What each text begins with: start, language, task, and whether without timestamps."""
        task = choose("task", task, TASKS)
        start, middle = [self.backbone.decoder_start_token_id], [[]] * count
        if self.languages:
            if language is None:
                ids = self._detected(memory, count)
            else:
                ids = [self._language(language)] * count
            middle = [[index, self.tasks[task]] for index in ids]
        elif language is not None or task != "transcribe":
            raise ValueError(
                f"This model transcribes the one language it knows; got {language=}, {task=}."
            )
        last = [] if stamped or self.no_timestamps is None else [self.no_timestamps]
        return [[*start, *part, *last] for part in middle]

    def _language(self, language):
        token = language if language in self.languages else f"<|{language}|>"
        if token not in self.languages:
            names = ", ".join(sorted(name[2:-2] for name in self.languages))
            raise ValueError(f"language must be one of {names}; got {language!r}.")
        return self.languages[token]

    def _detected(self, memory, count):
        if not self.languages:
            raise ValueError("This model knows one language alone.")
        rules = Rules(allowed=tuple(self.languages.values()))
        prompts = [[self.backbone.decoder_start_token_id]] * count
        return [ids[0] for ids in Answers(self, prompts, 2, rules=rules, memory=memory).rows()]

    def _rules(self, timestamp):
        if timestamp is None:
            return self.rules
        own = self.rules.get_config() if self.rules else {}
        end = self.backbone.vocabulary_size if self.end is None else self.end
        more = dict(timestamp=timestamp, latest_first=self.latest_first, end=end)
        return TimestampRules(**{**own, **more})

    def _result(self, pieces, timestamps):
        text = self._text([i for _, _, ids in pieces for i in ids])
        if not timestamps:
            return text
        features = self.preprocessor.features
        step = 2 * features.hop / features.rate
        segments = [
            {"start": round(a * step, 3), "end": round(b * step, 3), "text": self._text(ids)}
            for a, b, ids in pieces
        ]
        return {"text": text, "segments": segments}

    def _text(self, ids):
        if self.no_timestamps is not None:
            ids = [i for i in ids if i <= self.no_timestamps]
        return self.preprocessor.tokenizer.detokenize(ids, skip_special_tokens=True).strip()


NAMES = {  # khub's name -> that of a generation_config.json
    "languages": "lang_to_id",
    "tasks": "task_to_id",
    "no_timestamps": "no_timestamps_token_id",
    "latest_first": "max_initial_timestamp_index",
    "end": "eos_token_id",
}


def split(ids, first, frames):
    """([(start, end, ids), ...] of a window's tokens, the frames to the next window).

    Where two timestamps meet a segment ends. What lies behind the last meeting is heard again, but
    for a single timestamp at the end: then nothing is said behind it.
    """
    stamps = [index >= first for index in ids]
    ends = [n for n in range(1, len(ids)) if stamps[n - 1] and stamps[n]]
    if not ends:
        times = [index - first for index, is_stamp in zip(ids, stamps) if is_stamp]
        last = times[-1] if times and times[-1] else frames // 2
        return [(0, last, ids)], frames
    alone = stamps[-2:] == [False, True]
    ends += [len(ids)] if alone else []
    found = [(ids[a] - first, ids[b - 1] - first, ids[a:b]) for a, b in zip([0, *ends], ends)]
    return found, frames if alone else 2 * found[-1][1]
