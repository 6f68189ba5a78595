"""Generation: the tasks whose answers are made token by token, and one call of them."""

import os
from functools import partial

import numpy as np

import khub
from khub import ops
from khub.backend import active

from .engine import bucket
from .preprocessing import CausalLMPreprocessor, Seq2SeqLMPreprocessor
from .rules import Rules
from .samplers import get_sampler
from .searches import engine
from .tasks import WEIGHTED, Backbone, Task, adamw, crossentropy
from .transformer import dense, tied_scores

UNKNOWN = "\ufffd"  # what stands for bytes that are no character yet
STOP_CHUNK = 16  # tokens that are made before stop texts are looked for


class Answers:
    """Answers to prompts of ids, as they are made.

    total: int (batch,), the most tokens of a prompt and its answer   memory: the encoder's, for
    the model's `new_cache`   over: (tokens of a row) -> whether what it is looked for in is there
    """

    def __init__(
        self,
        model,
        prompts,
        total,
        sampler="greedy",
        stops=(),
        seed=None,
        penalty=1.0,
        rules=None,
        memory=None,
        over=None,
    ):
        sampler, self.over = get_sampler(sampler), over
        lengths = np.array([len(row) for row in prompts], "int32")
        most = np.asarray(total, "int32") - lengths  # of new tokens, whatever the others are
        self.count, padded = int(most.max()), bucket(int(lengths.max()))
        token_ids = np.zeros((len(prompts), padded), "int32")
        for row, ids in zip(token_ids, prompts):
            row[padded - len(ids) :] = ids
        noise = sampler.noise(len(prompts), self.count, seed)
        self.engine = model._engine(sampler, float(penalty), rules)
        self.given = token_ids, padded - lengths, np.array(stops, "int32"), noise, most, memory
        self.new, self.done = np.zeros((len(prompts), 0), "int32"), [0] * len(prompts)
        self.scores = None

    def chunks(self, size=None):
        """Make `size` tokens at a time, None: all at once; yield whether these were the last."""
        with active.inference():
            state = self.engine.start(*self.given)
        step = size or self.count
        for until in range(step, self.count + step, step):
            with active.inference():  # not while the caller has the tokens
                state = self.engine.advance(state, min(until, self.count))
                self.new, self.done, self.scores = self.engine.results(state)
                ended = ops.convert_to_numpy(state["ended"])
            over = self.over or (lambda ids: False)
            last = all(end or over(self.row(row)) for row, end in enumerate(ended))
            last = last or until >= self.count
            yield last
            if last:
                return

    def row(self, row):
        """The new tokens of a row."""
        return self.new[row, : self.done[row]].tolist()

    def rows(self):
        """Make all tokens, and return the new ones of every row."""
        for _ in self.chunks():
            pass
        return [self.row(row) for row in range(len(self.done))]


class Generator(Task):
    """A task that makes texts.  generate(prompts) makes them, stream(prompts) as they come.

    tied: whether the embeddings are the output layer's kernel, and not a matrix of their shape
    """

    backbone: Backbone
    preprocessor: object = None

    echo = False  # whether an answer goes on from its prompt
    rules = None  # see `Engine`
    tied = True
    weight_map = [("lm_head", "lm_head")]

    @property
    def ignored(self):
        return tuple(f"{name}.weight" for name, _ in self.weight_map) if self.tied else ()

    def build(self, shape=None):
        if not self.tied:
            table = self.backbone.embeddings
            self.lm_head = dense(self, table.output_dim, table.input_dim, use_bias=False)

    def logits(self, x):
        """(..., hidden_dim) -> (..., vocabulary_size)"""
        return tied_scores(x, self.backbone.embeddings) if self.tied else self.lm_head(x)

    def begin(self, prompts):
        """(lists of ids that the answers go on from, the encoder's memory) of texts or ids."""
        raise NotImplementedError(f"{type(self).__name__} does not define begin().")

    def generate(
        self,
        prompts,
        max_length=None,
        sampler="greedy",
        stop="auto",
        seed=None,
        repetition_penalty=1.0,
        strip_prompt=False,
        return_scores=False,
    ):
        """Answers to prompts: a text, a list of texts, or a list of lists of token ids.

        max_length: in tokens, of prompt and answer where the answer goes on from its prompt; None:
        what the model has positions for   sampler: a name or a `Sampler`   stop: texts or token ids
        that end an answer, "auto": the tokenizer's end   seed: of random samplers, an int or one
        for each prompt   repetition_penalty: divides the scores of tokens that were there,
        arXiv:1909.05858   return_scores: (answers, float32 (batch,)) of beams

        A language model returns what was given, continued; the answers alone with strip_prompt.
        Raises ValueError for an empty prompt of ids and one that leaves no room.
        """
        run = _Run(self, prompts, max_length, sampler, stop, seed, repetition_penalty)
        for _ in run.answers.chunks(STOP_CHUNK if run.stop_texts else None):
            pass
        results = run.results(strip_prompt)
        if not return_scores:
            return results
        if run.answers.scores is None:
            raise ValueError(f"Only the sampler 'beam' has scores; got sampler={sampler!r}.")
        return results, run.answers.scores

    def stream(self, prompts, *args, strip_prompt=False, **options):
        """Yield the pieces of what `generate` returns as they come: texts of one text, lists else.

        Pieces are as long as it takes to be sure of them: no half characters, no part of a stop.
        """
        run = _Run(self, prompts, *args, **options)
        sent = None
        for last in run.answers.chunks(1):
            if not last and run.answers.scores is not None:
                continue  # beams: no word is sure before the last
            whole = run.listed(run.results(strip_prompt, settled=not last))
            pieces = [x if sent is None else x[len(y) :] for x, y in zip(whole, sent or whole)]
            sent = whole
            if any(map(len, pieces)):
                yield pieces[0] if run.single else pieces

    def forget_functions(self):
        super().forget_functions()
        self.__dict__.pop("_engines", None), self.__dict__.pop("_encode", None)

    def memory(self, *source):
        """What the backbone's encoder gives of arrays, compiled once."""
        if "_encode" not in self.__dict__:
            self.__dict__["_encode"] = khub.jit(self.backbone.encode)
        with active.inference():
            return self._encode(*map(ops.convert_to_tensor, source))

    def _engine(self, *key):
        engines = self.__dict__.setdefault("_engines", {})
        if key not in engines:
            engines[key] = engine(self, *key)
        return engines[key]

    def reference_config(self):
        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {**super().reference_config(), **{n: getattr(tokenizer, n, None) for n in names}}


class CausalLM(Generator):
    """A language model.  generate(prompts) continues texts; fit(x=list[str]) learns them.

    call: {"token_ids", "padding_mask"} -> logits (batch, time, vocabulary_size)
    """

    preprocessor_class = CausalLMPreprocessor
    defaults = {**WEIGHTED, "optimizer": partial(adamw, 2e-5), "loss": crossentropy}
    echo = True

    def call(self, inputs, training=None):
        return self.logits(self.backbone(inputs, training=training))

    def begin(self, prompts):
        if prompts and isinstance(prompts[0], (str, bytes)):
            prompts = self.require_preprocessor().prompts(prompts)
        return prompts, None


class Seq2SeqLM(Generator):
    """A text from a text.  generate(texts); fit(x=(sources, targets)) learns pairs.

    call: {"encoder_token_ids", "encoder_padding_mask", "decoder_token_ids",
    "decoder_padding_mask"} -> logits (batch, target time, vocabulary_size)
    """

    backbone: Backbone
    preprocessor: object = None
    rules: object = None

    preprocessor_class = Seq2SeqLMPreprocessor
    defaults = {**WEIGHTED, "optimizer": partial(adamw, 1e-4)}

    def setup(self):
        if getattr(self.preprocessor, "decoder_start_token_id", 0) is None:
            self.preprocessor.decoder_start_token_id = self.backbone.decoder_start_token_id
        super().setup()

    def fit(self, x=None, *args, **options):
        """As `Model.fit`; x may be {"encoder_text": list[str], "decoder_text": list[str]}, too."""
        return super().fit(pairs(x), *args, **options)

    def evaluate(self, x=None, *args, **options):
        """As `Model.evaluate`, of what `fit` takes."""
        return super().evaluate(pairs(x), *args, **options)

    def call(self, inputs, training=None):
        hidden = self.backbone(inputs, training=training)["decoder_sequence_output"]
        return self.logits(hidden)

    @classmethod
    def head_from_reference(cls, config):
        return {"rules": Rules.from_reference({**config, **config.get("generation_config", {})})}

    def generation_config(self):
        """Content of generation_config.json."""
        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        ids = {name: getattr(tokenizer, name, None) for name in names}
        ids["decoder_start_token_id"] = self.backbone.decoder_start_token_id
        ids = {name: index for name, index in ids.items() if index is not None}
        return ids | (self.rules.reference_config() if self.rules else {})

    def begin(self, prompts):
        if prompts and isinstance(prompts[0], (str, bytes)):
            prompts = self.require_preprocessor().sources(prompts)
        lengths = np.array([len(row) for row in prompts], "int32")
        if not lengths.size or lengths.min() == 0:
            raise ValueError("generate() needs at least one token in every source.")
        token_ids = np.zeros((len(prompts), bucket(int(lengths.max()))), "int32")
        for row, ids in zip(token_ids, prompts):
            row[: len(ids)] = ids
        mask = np.arange(token_ids.shape[1]) < lengths[:, None]
        memory = self.memory(token_ids, mask)
        return [[self.backbone.decoder_start_token_id]] * len(prompts), memory


def pairs(x):
    """KerasHub's dict of texts as a pair of lists; all else as it is."""
    texts = isinstance(x, dict) and x.keys() == {"encoder_text", "decoder_text"}
    return (list(x["encoder_text"]), list(x["decoder_text"])) if texts else x


class _Run:
    """One call of generate: its prompts as ids, the answers so far, as what was given."""

    def __init__(
        self,
        model,
        prompts,
        max_length=None,
        sampler="greedy",
        stop="auto",
        seed=None,
        repetition_penalty=1.0,
    ):
        self.single, self.echo = isinstance(prompts, str), model.echo
        prompts = [prompts] if self.single else list(prompts)
        self.texts = bool(prompts) and all(isinstance(x, (str, bytes)) for x in prompts)
        self.tokenizer = getattr(model.preprocessor, "tokenizer", None)
        vocabulary = model.backbone.vocabulary_size
        given = [] if self.texts else [i for row in prompts for i in row]
        if wrong := [i for i in given if not 0 <= i < vocabulary]:
            raise ValueError(
                f"Token ids must lie in 0 .. {vocabulary - 1}; got {str(wrong[:5])[1:-1]}."
            )
        self.prompts, memory = model.begin(prompts)
        lengths = [len(row) for row in self.prompts]
        if not lengths or min(lengths) == 0:
            raise ValueError("generate() needs at least one token in every prompt.")
        limit = model.backbone.max_sequence_length
        total = limit if max_length is None else max_length
        if not max(lengths) < total <= limit:
            raise ValueError(
                f"A prompt has {max(lengths)} tokens and max_length is {total}; expected prompts "
                f"shorter than max_length, and that at most {limit}."
            )
        stops = self._stops(stop)
        self.answers = Answers(
            model,
            self.prompts,
            total,
            sampler,
            stops,
            seed,
            repetition_penalty,
            model.rules,
            memory,
            self._holds_stop if self.stop_texts else None,
        )

    def _stops(self, stop):
        """Set the stop texts, and return the ids that end an answer."""
        self.stop_texts = []
        if isinstance(stop, str) and stop == "auto":
            end = getattr(self.tokenizer, "eos_token_id", None)
            return [] if end is None else [end]
        given = [stop] if isinstance(stop, (str, int)) else list(stop or ())
        self.stop_texts = [x for x in given if isinstance(x, str)]
        if self.stop_texts and self.tokenizer is None:
            raise ValueError("stop has texts, and without a tokenizer only token ids can stop.")
        if "" in self.stop_texts:
            raise ValueError("stop has an empty text, which would end every answer at once.")
        return [int(x) for x in given if not isinstance(x, str)]

    def _holds_stop(self, ids):
        text = self.tokenizer.detokenize(ids) if self.stop_texts else ""
        return any(stop in text for stop in self.stop_texts)

    def _answer(self, row):
        """The new tokens of a row, up to that which completes a stop text."""
        ids = self.answers.row(row)
        if not self._holds_stop(ids):
            return ids
        return ids[: 1 + next(n for n in range(len(ids)) if self._holds_stop(ids[: n + 1]))]

    def results(self, strip_prompt, settled=False):
        """What generate returns; `settled`: only what no later token can change."""
        make = self._text if self.texts else self._ids
        rows = [make(row, strip_prompt, settled) for row in range(len(self.prompts))]
        return rows[0] if self.single else rows

    def _ids(self, row, strip_prompt, settled):
        return [*(self.prompts[row] if self.echo and not strip_prompt else []), *self._answer(row)]

    def _text(self, row, strip_prompt, settled):
        """The text of prompt and answer at once: the spaces between tokens depend on both."""
        decode = partial(self.tokenizer.detokenize, skip_special_tokens=True)
        prompt = decode(self.prompts[row]) if self.echo else ""
        text = decode(self._ids(row, False, settled))
        start = len(os.path.commonprefix([prompt, text]))
        ends = [text.find(stop, start) for stop in self.stop_texts]
        text = text[: min((end for end in ends if end >= 0), default=len(text))]
        if settled:  # a part of a character or of a stop text may become another
            text = text.rstrip(UNKNOWN)
            text = text[: len(text) - max((len(stop) - 1 for stop in self.stop_texts), default=0)]
        return text[start:] if strip_prompt else text

    def listed(self, whole):
        """A list of what belongs to each prompt."""
        return [whole] if self.single else whole
