"""Files that other programs run: SavedModel, ONNX, torch.export, StableHLO, LiteRT."""

from khub.export.archive import ExportArchive
