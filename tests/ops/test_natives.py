"""Every function with which the backend replaces an op's body gives what the body gives.

Both get the very arguments that the op hands on: promoted, with the defaults filled in.
"""

import numpy as np
import pytest
from ops.sample import COUNTS, S
from ops.test_ops import SAMPLES, compiled, exchange

from khub import backend, dtypes, ops, tree
from khub.backend import active
from khub.ops.op import OPS

NATIVES = {
    name: getattr(active, name)
    for name, call in OPS.items()
    if hasattr(call, "reference") and hasattr(active, name)
}
TRACED = {
    "jax": {"bincount": [S(None, COUNTS[0, :, 0], None, 9, fixed=None)]}
}  # native inside of `jit` alone
TRACED = TRACED.get(backend.name, {})


as_run = getattr(active, "body", lambda function: function)  # what the backend does to a body

WITHOUT_OPERATORS = {
    "uint16",
    "uint32",
    "uint64",
}  # torch has no `+` of these, nor a body that adds


def kinds(args):
    return {dtypes.standardize(x.dtype) for x in tree.flatten(args) if hasattr(x, "dtype")}


def whole(sample, function, args):
    """Call the function, on JAX as one computation where it does not need the values."""
    run = compiled if sample.fixed is not None else lambda given: given
    return run(lambda: function(*args))()


def handed_on(call, sample, monkeypatch):
    """Return the arguments that the backend's function gets for this row."""
    given = []
    with monkeypatch.context() as patch:
        patch.setitem(call.__globals__, "run", lambda *args: given.append(args))
        args, options = exchange(sample, ops.convert_to_tensor)
        call(*args, **options)
    assert len(given) == 1
    return given[0]


def agree(native, body, near):
    native, body = tree.flatten(native), tree.flatten(body)
    assert [dtypes.standardize(x.dtype) for x in native] == [
        dtypes.standardize(x.dtype) for x in body
    ]
    for x, y in zip(map(ops.convert_to_numpy, native), map(ops.convert_to_numpy, body)):
        assert x.shape == y.shape
        scale = np.max(np.abs(y[np.isfinite(y)]), initial=1.0) if y.dtype.kind in "fc" else 0
        np.testing.assert_allclose(x, y, rtol=2 * near, atol=2 * near * scale)


@pytest.mark.parametrize("name", NATIVES)
def test_native_and_body(name, monkeypatch):
    call, native, both = OPS[name], NATIVES[name], 0
    body = as_run(call.reference)
    if backend.name == "jax" and name == "dot_product_attention":  # its CPUs take the body
        monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    for sample in TRACED.get(name) or SAMPLES[name]:
        args = handed_on(call, sample, monkeypatch)
        if backend.name == "torch" and WITHOUT_OPERATORS & kinds(args):
            continue
        if name in TRACED:
            found = ops.jit(lambda x, rest=args[1:]: native(x, *rest))(args[0])
        else:
            found = native(*args)
        if found is NotImplemented:
            assert name in active.PARTIAL
            continue
        agree(found, whole(sample, body, args), sample.near)
        both += 1
        if backend.name == "jax":  # each row compiles; test_ops.py has them all, and NumPy's lines
            break
    assert both, f"no row of {name} runs the backend's function and the body"


def test_there_are_natives():
    assert len(NATIVES) > 15 and getattr(active, "PARTIAL", set()) <= NATIVES.keys()
