"""A SavedModel inside a khub layer."""

import tensorflow as tf


def load_saved_model(folder, names):
    """Return the functions of these names and the variables that they read.

    Raises ValueError for an unknown name. The first result keeps the variables alive.
    """
    model = tf.saved_model.load(str(folder))
    functions, variables = [], {}
    for name in names:
        function = getattr(model, name, None) or model.signatures.get(name)
        if function is None:
            known = [*model.signatures, *(n for n, f in vars(model).items() if callable(f))]
            known = sorted(n for n in set(known) if not n.startswith("_"))
            raise ValueError(f"{folder} has no endpoint {name!r}; it has {', '.join(known)}.")
        functions.append(function)
        for concrete in getattr(function, "concrete_functions", [function]):
            variables |= {v.ref(): v for v in concrete.variables}
    return (model, *functions), list(variables.values())
