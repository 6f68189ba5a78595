"""Devices in a grid with named axes, and which axis of a tensor is split over which of them."""

import re
from collections.abc import MutableMapping
from functools import cached_property
from importlib import import_module

import numpy as np

from khub import backend


def engine():
    """Return the module that does the work on this backend.  Raises NotImplementedError."""
    if backend.name == "numpy":
        raise NotImplementedError(
            "khub.distribution needs the backend jax, torch or tensorflow; set KHUB_BACKEND."
        )
    return import_module(f"khub.distribution.{backend.name}")


class DeviceMesh:
    """A grid of devices.

    shape: devices along each axis; axis_names: one name an axis; devices: "cpu:0", ..., all by
    default

    Raises ValueError where these do not fit each other.
    """

    def __init__(self, shape, axis_names, devices=None):
        devices = np.array(engine().list_devices(None) if devices is None else devices)
        shape = tuple(int(n) for n in shape)
        if not shape or len(shape) != len(axis_names) or len(set(axis_names)) < len(axis_names):
            raise ValueError(
                f"DeviceMesh needs a name of its own for each axis of the shape, got {shape} and "
                f"{list(axis_names)}."
            )
        if np.prod(shape) != devices.size:
            raise ValueError(f"A mesh of shape {shape} does not hold {devices.size} devices.")
        self.shape, self.axis_names = shape, list(axis_names)
        self.devices = devices.reshape(shape)

    @cached_property
    def backend_mesh(self):
        """The framework's own mesh."""
        return engine().mesh(self)

    def __repr__(self):
        return f"<DeviceMesh shape={self.shape}, axis_names={self.axis_names}>"


class TensorLayout:
    """For each axis of a tensor the mesh axis it is split over, or None.

    Raises ValueError for names that the mesh does not have.
    """

    def __init__(self, axes, device_mesh=None):
        self.axes = tuple(axes)
        self.device_mesh = device_mesh

    @property
    def device_mesh(self):
        """The mesh; None until a `LayoutMap` gives its own."""
        return self._mesh

    @device_mesh.setter
    def device_mesh(self, mesh):
        names = [axis for axis in self.axes if axis is not None]
        if mesh is not None and not (set(names) <= set(mesh.axis_names)):
            raise ValueError(f"{self.axes} names axes that {mesh} does not have.")
        if len(set(names)) < len(names):
            raise ValueError(f"{self.axes} splits two axes of a tensor over one of the mesh.")
        self._mesh = mesh

    @property
    def backend_layout(self):
        """The framework's own layout.  Raises ValueError without a mesh."""
        if self._mesh is None:
            raise ValueError(f"{self} has no mesh yet: TensorLayout(axes, device_mesh).")
        return engine().layout(self)

    def check(self, shape, what):
        """Raise ValueError where a tensor of this shape cannot be laid out so."""
        sizes = dict(zip(self._mesh.axis_names, self._mesh.shape, strict=True))
        if len(shape) != len(self.axes) or any(
            axis is not None and size % sizes[axis]
            for size, axis in zip(shape, self.axes, strict=True)
        ):
            raise ValueError(
                f"{what} of shape {tuple(shape)} cannot be laid out as {self.axes}: one entry an "
                f"axis, and each size a multiple of its devices ({sizes})."
            )

    def __repr__(self):
        return f"<TensorLayout axes={self.axes}, device_mesh={self._mesh}>"


class LayoutMap(MutableMapping):
    """Path of a Variable -> `TensorLayout` (or the tuple of its axes); keys are regexes.

    A key that equals the path comes first; else the one key that matches the path's beginning. No
    such key gives None.  Raises ValueError where several match, and for a key set twice.
    """

    def __init__(self, device_mesh):
        self.device_mesh, self._layouts = device_mesh, {}

    def __getitem__(self, path):
        if path in self._layouts:
            return self._layouts[path]
        keys = [key for key in self._layouts if re.match(key, path)]
        if len(keys) > 1:
            raise ValueError(f"{path!r} is matched by {keys}; make the keys of LayoutMap distinct.")
        return self._layouts[keys[0]] if keys else None

    def __setitem__(self, key, layout):
        if key in self._layouts:
            raise ValueError(f"LayoutMap has {key!r} already: {self._layouts[key]}; delete it first.")
        if isinstance(layout, tuple):
            layout = TensorLayout(layout)
        if not isinstance(layout, TensorLayout):
            raise ValueError(f"{key!r} needs a TensorLayout or a tuple of axes, got {layout!r}.")
        layout.device_mesh = layout.device_mesh or self.device_mesh
        self._layouts[key] = layout

    def __delitem__(self, key):
        del self._layouts[key]

    def __iter__(self):
        return iter(self._layouts)

    def __len__(self):
        return len(self._layouts)
