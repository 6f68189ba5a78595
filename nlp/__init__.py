"""Text models: tokenizers, preprocessors, tasks, and one file for each architecture family."""

from . import datasets, preprocessing, tasks, tokenizers
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
from .preprocessing import (
    MaskedLMPreprocessor,
    TextClassifierPreprocessor,
    TextEmbedderPreprocessor,
)
from .sentence_piece import (
    AlbertTokenizer,
    LlamaTokenizer,
    SentencePieceTokenizer,
    T5Tokenizer,
)
from .tasks import Backbone, MaskedLM, Task, TextClassifier, TextEmbedder
from .tokenizers import Tokenizer, WordPieceTokenizer
from .vocabularies import train_byte_pair, train_sentence_piece, train_word_piece

__all__ = [
    "AlbertTokenizer",
    "Backbone",
    "BertBackbone",
    "BertClassifier",
    "BertMaskedLM",
    "BertTextEmbedder",
    "BertTokenizer",
    "BytePairTokenizer",
    "ByteTokenizer",
    "CLIPTokenizer",
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "MaskedLM",
    "MaskedLMPreprocessor",
    "RobertaTokenizer",
    "SentencePieceTokenizer",
    "T5Tokenizer",
    "Task",
    "TextClassifier",
    "TextClassifierPreprocessor",
    "TextEmbedder",
    "TextEmbedderPreprocessor",
    "Tokenizer",
    "UnicodeCodepointTokenizer",
    "WhisperTokenizer",
    "WordPieceTokenizer",
    "datasets",
    "preprocessing",
    "tasks",
    "tokenizers",
    "train_byte_pair",
    "train_sentence_piece",
    "train_word_piece",
]
