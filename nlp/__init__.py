"""Text models: tokenizers, preprocessors, tasks, and one file for each architecture family."""

from . import audio, datasets, preprocessing, tasks, tokenizers
from .audio import WhisperFeatures, read_audio
from .bert import BertBackbone, BertClassifier, BertMaskedLM, BertTextEmbedder, BertTokenizer
from .preprocessing import (
    MaskedLMPreprocessor,
    TextClassifierPreprocessor,
    TextEmbedderPreprocessor,
)
from .tasks import Backbone, MaskedLM, Task, TextClassifier, TextEmbedder
from .tokenizers import Tokenizer, WordPieceTokenizer, train_word_piece

__all__ = [
    "Backbone",
    "BertBackbone",
    "BertClassifier",
    "BertMaskedLM",
    "BertTextEmbedder",
    "BertTokenizer",
    "MaskedLM",
    "MaskedLMPreprocessor",
    "Task",
    "TextClassifier",
    "TextClassifierPreprocessor",
    "TextEmbedder",
    "TextEmbedderPreprocessor",
    "Tokenizer",
    "WhisperFeatures",
    "WordPieceTokenizer",
    "audio",
    "datasets",
    "preprocessing",
    "read_audio",
    "tasks",
    "tokenizers",
    "train_word_piece",
]
