"""Names that an argument may be, and what to say of any other."""

import difflib


def hint(value, names):
    """Return "; did you mean ...?" with the names nearest to `value`, "." when none is near."""
    near = difflib.get_close_matches(str(value), [n for n in names if isinstance(n, str)], 3, 0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def choose(argument, value, names):
    """Return `value`, in lower case, if it is one of `names`.  Raises ValueError if it is not."""
    found = value.lower() if isinstance(value, str) else value
    if found in names:
        return found
    known = ", ".join(map(str, names))
    raise ValueError(f"{argument} must be one of {known}, got {value!r}{hint(value, names)}")
