"""From a name to weights: catalogue, download, checkpoints, weight maps, verification.

khub.presets.list(task="TextClassifier")
khub.presets.load("bert_micro_en_uncased")
"""

from .catalog import PresetInfo, UnknownPreset, info, list
from .download import download
from .family import Family, register
from .pipeline import Pipeline
from .preset import Presettable, load
from .tensors import WeightsError
from .verify import Report, record_reference, verify

__all__ = [
    "Family",
    "Pipeline",
    "PresetInfo",
    "Presettable",
    "Report",
    "UnknownPreset",
    "WeightsError",
    "download",
    "info",
    "list",
    "load",
    "record_reference",
    "register",
    "verify",
]
