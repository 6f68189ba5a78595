"""Control flow in Python, for backends that run functions as they are."""

from operator import itemgetter

from khub import tree


def while_loop(cond, body, loop_vars, maximum_iterations):
    """Apply `body` to `loop_vars` while `cond(*loop_vars)` holds."""
    steps = 0
    while (maximum_iterations is None or steps < maximum_iterations) and cond(*loop_vars):
        loop_vars = body(*loop_vars)
        steps += 1
    return loop_vars


def scan(function, init, xs, length, reverse, stack):
    """Return the last carry and the stacked results of `carry, y = function(carry, x)`."""
    carry, outputs = init, []
    for i in reversed(range(length)) if reverse else range(length):
        carry, y = function(carry, None if xs is None else tree.map_structure(itemgetter(i), xs))
        outputs.append(y)
    outputs = outputs[::-1] if reverse else outputs
    if not outputs or outputs[0] is None:
        return carry, None
    return carry, tree.map_structure(lambda *ys: stack(ys), *outputs)
