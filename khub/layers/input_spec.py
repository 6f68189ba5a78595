"""What a layer expects of its inputs."""


class InputSpec:
    """What a layer expects of an input: rank, sizes of some axes, dtype."""

    def __init__(
        self, dtype=None, shape=None, ndim=None, max_ndim=None, min_ndim=None, axes=None,
        allow_last_axis_squeeze=False, name=None, optional=False,
    ):  # fmt: skip
        self.dtype, self.shape, self.name, self.optional = dtype, shape, name, optional
        self.ndim = len(shape) if shape is not None else ndim
        self.max_ndim, self.min_ndim = max_ndim, min_ndim
        self.axes = {int(k): v for k, v in (axes or {}).items()}
        self.allow_last_axis_squeeze = allow_last_axis_squeeze

    def get_config(self):
        """Return the constructor's arguments as plain data."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config):
        """Build an InputSpec from `get_config()`'s result."""
        return cls(**config)

    def problem(self, shape):
        """Return what is wrong with an input of this shape, None when nothing is."""
        rank = len(shape)
        if self.ndim is not None and rank != self.ndim:
            return f"{self.ndim} axes"
        if self.min_ndim is not None and rank < self.min_ndim:
            return f"at least {self.min_ndim} axes"
        if self.max_ndim is not None and rank > self.max_ndim:
            return f"at most {self.max_ndim} axes"
        for axis, size in (*self.axes.items(), *enumerate(self.shape or ())):
            if size is not None and shape[axis] not in (None, size):
                return f"size {size} at axis {axis}"
        return None
