"""Images: sampling and sizes by torch's own functions, on channels-last views without copies."""

import torch
from torch.nn import functional

_PADDING = {"constant": "zeros", "nearest": "border", "reflect": "reflection"}
_MODES = {"nearest": "nearest-exact", "linear": "bilinear"}


def sample_images(images, rows, columns, interpolation, fill_mode, fill_value):
    if images.dtype != torch.float32 or fill_mode not in _PADDING:
        return NotImplemented
    height, width = images.shape[1:3]
    if interpolation == "nearest":  # halves are rounded up
        rows, columns = torch.floor(rows + 0.5), torch.floor(columns + 0.5)
    grid = torch.stack([columns * (2 / width), rows * (2 / height)], -1)
    grid += torch.tensor([1 / width - 1, 1 / height - 1], device=grid.device)
    shift = fill_value if fill_mode == "constant" else 0  # torch fills with zeros
    x = (images - shift if shift else images).permute(0, 3, 1, 2)
    found = functional.grid_sample(x, grid, interpolation, _PADDING[fill_mode], False)
    found = found.permute(0, 2, 3, 1).contiguous()
    return found + shift if shift else found


def resize_pixels(images, size, method, antialias):
    if images.dtype != torch.float32 or method not in _MODES:
        return NotImplemented
    x = images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2)
    smooth = antialias and method == "linear"
    found = functional.interpolate(x, size, mode=_MODES[method], antialias=smooth)
    return found.permute(0, 2, 3, 1).reshape(*images.shape[:-3], *size, images.shape[-1])


def joined(parts, count):
    """One tensor of `parts`, each put into it while caches hold it: half the new memory of cat."""
    whole, start = None, 0
    for part in parts:
        whole = part.new_empty((count, *part.shape[1:])) if whole is None else whole
        whole[start : start + len(part)] = part
        start += len(part)
    return whole
