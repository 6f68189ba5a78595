"""What the signature of a layer's `call` says."""

import inspect


class CallSpec:
    """What the signature of a class's `call` says, worked out once a class."""

    def __init__(self, cls, base):
        parameters = list(inspect.signature(cls.call).parameters.values())[1:]
        names = [p.name for p in parameters]
        self.names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        self.training = "training" in names
        self.training_default = next(
            (p.default for p in parameters if p.name == "training" and p.default is not p.empty),
            None,
        )
        self.masks = [  # (tensor argument, its mask argument)
            (name, mask)
            for position, name in enumerate(names)
            for mask in ([f"{name}_mask", "mask"] if position == 0 else [f"{name}_mask"])
            if mask in names
        ]
        own = [f for c in cls.__mro__[: cls.__mro__.index(base)] for f in vars(c).values()]
        codes = [getattr(inspect.unwrap(f), "__code__", None) for f in own if callable(f)]
        self.reports = any(code is not None and "add_loss" in code.co_names for code in codes)
        joins = getattr(cls.compute_mask, "joins", False)  # makes none where there are none
        self.makes_masks = cls.compute_mask is not base.compute_mask and not joins
