"""Text models: tokenizers, preprocessors, tasks, and one file for each architecture family."""

from . import audio, datasets, decoder, preprocessing, samplers, tasks, tokenizers
from .audio import WhisperFeatures, read_audio
from .bart import BartBackbone, BartSeq2SeqLM, BartTokenizer
from .bert import BertBackbone, BertClassifier, BertMaskedLM, BertTextEmbedder, BertTokenizer
from .byte_pair import (
    BytePairTokenizer,
    ByteTokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    RobertaTokenizer,
    WhisperTokenizer,
)
from .codepoints import UnicodeCodepointTokenizer
from .decoder import *  # noqa: F403  (made of a table)
from .generation import CausalLM, Seq2SeqLM
from .preprocessing import (
    CausalLMPreprocessor,
    MaskedLMPreprocessor,
    Seq2SeqLMPreprocessor,
    TextClassifierPreprocessor,
    TextEmbedderPreprocessor,
)
from .sentence_piece import (
    AlbertTokenizer,
    LlamaTokenizer,
    SentencePieceTokenizer,
    T5Tokenizer,
)
from .speech import SpeechToText, SpeechToTextPreprocessor
from .t5 import T5Backbone, T5Seq2SeqLM
from .tasks import Backbone, MaskedLM, Task, TextClassifier, TextEmbedder
from .tokenizers import Tokenizer, WordPieceTokenizer
from .vocabularies import train_byte_pair, train_sentence_piece, train_word_piece
from .whisper import WhisperBackbone, WhisperSpeechToText

__all__ = [
    "AlbertTokenizer",
    "Backbone",
    "BartBackbone",
    "BartSeq2SeqLM",
    "BartTokenizer",
    "BertBackbone",
    "BertClassifier",
    "BertMaskedLM",
    "BertTextEmbedder",
    "BertTokenizer",
    "CausalLM",
    "CausalLMPreprocessor",
    "BytePairTokenizer",
    "ByteTokenizer",
    "CLIPTokenizer",
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "MaskedLM",
    "MaskedLMPreprocessor",
    "RobertaTokenizer",
    "SentencePieceTokenizer",
    "Seq2SeqLM",
    "Seq2SeqLMPreprocessor",
    "SpeechToText",
    "SpeechToTextPreprocessor",
    "T5Backbone",
    "T5Seq2SeqLM",
    "T5Tokenizer",
    "Task",
    "TextClassifier",
    "TextClassifierPreprocessor",
    "TextEmbedder",
    "TextEmbedderPreprocessor",
    "Tokenizer",
    "WhisperBackbone",
    "WhisperFeatures",
    "WhisperSpeechToText",
    "UnicodeCodepointTokenizer",
    "WhisperTokenizer",
    "WordPieceTokenizer",
    "audio",
    "datasets",
    "preprocessing",
    "read_audio",
    "samplers",
    "tasks",
    "tokenizers",
    "train_byte_pair",
    "train_sentence_piece",
    "train_word_piece",
]
__all__ += decoder.__all__
