"""Work on the host: inside `on_host()` NumPy arrays are computed with NumPy, on every backend.

Preprocessing runs so in the workers and threads of a data pipeline, where the backend's device has
no business: the same ops, their bodies and functions those of the NumPy backend.
"""

from functools import cache

from khub.backend import active, name
from khub.backend.scope import Setting, local


def on_host():
    """Make ops leave NumPy arrays on the host, inside a `with` block of this thread."""
    return Setting("host", name != "numpy")


def here():
    """Return the backend that ops run on in this thread: the active one, or NumPy's."""
    return _numpy() if local.host else active


@cache
def _numpy():
    from khub.backend import numpy

    return numpy


@cache
def host_function(call):
    """Return what runs an op on NumPy arrays: the NumPy backend's function or the op's body."""
    numpy, reference = _numpy(), getattr(call, "reference", None)
    native = getattr(numpy, call.__name__, None)
    if reference is None or native and call.__name__ not in getattr(numpy, "PARTIAL", ()):
        return native
    body = numpy.body(reference)
    if native is None:
        return body

    def run(*args):
        result = native(*args)
        return body(*args) if result is NotImplemented else result

    return run
