"""Text models: tokenizers, preprocessors, tasks, and one file for each architecture family."""

from . import audio, datasets, preprocessing, samplers, tasks, tokenizers
from .audio import WhisperFeatures, read_audio
from .bart import BartBackbone, BartSeq2SeqLM, BartTokenizer
from .bert import *  # noqa: F403  (made of a table)
from .byte_pair import (
    BytePairTokenizer,
    ByteTokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    WhisperTokenizer,
)
from .codepoints import UnicodeCodepointTokenizer
from .deberta import *  # noqa: F403
from .decoder import *  # noqa: F403  (made of a table)
from .generation import CausalLM, Seq2SeqLM
from .gpt2 import *  # noqa: F403  (made of a table)
from .modernbert import *  # noqa: F403
from .preprocessing import (
    CausalLMPreprocessor,
    MaskedLMPreprocessor,
    QuestionAnswererPreprocessor,
    Seq2SeqLMPreprocessor,
    TextClassifierPreprocessor,
    TextEmbedderPreprocessor,
    TokenClassifierPreprocessor,
)
from .sentence_piece import LlamaTokenizer, SentencePieceTokenizer, T5Tokenizer
from .speech import SpeechToText, SpeechToTextPreprocessor
from .t5 import T5Backbone, T5Seq2SeqLM
from .tasks import (
    Backbone,
    MaskedLM,
    QuestionAnswerer,
    Task,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
)
from .tokenizers import Tokenizer, WordPieceTokenizer
from .vocabularies import train_byte_pair, train_sentence_piece, train_word_piece
from .whisper import WhisperBackbone, WhisperSpeechToText

_MODULES = ("audio", "datasets", "preprocessing", "samplers", "tasks", "tokenizers")
__all__ = [name for name, it in vars().items() if callable(it) and not name.startswith("_")]
__all__ += _MODULES
