"""Text models: tokenizers, preprocessors, tasks, and one file for each architecture family."""

from . import audio, datasets, decoder, preprocessing, samplers, tasks, tokenizers
from .audio import WhisperFeatures, read_audio
from .bert import BertBackbone, BertClassifier, BertMaskedLM, BertTextEmbedder, BertTokenizer
from .decoder import *  # noqa: F403  (made of a table)
from .generation import CausalLM
from .preprocessing import (
    CausalLMPreprocessor,
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
    "CausalLM",
    "CausalLMPreprocessor",
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
    "samplers",
    "tasks",
    "tokenizers",
    "train_word_piece",
]
__all__ += decoder.__all__
