"""Chat templates: Jinja2 programs out of untrusted files, run in a sandbox with bounds.

A template sees plain data, no attribute that begins with an underscore, no file and no loader. What
it may do is counted: the turns of its loops, its calls, and the length of all that it makes.
"""

import functools
import json
import re
import time
from contextvars import ContextVar
from datetime import datetime

TEMPLATE = 1_000_000  # characters of a template, at most
STEPS = 5_000_000  # turns of loops, calls and items looked at, in one rendering
SECONDS = 10  # of one rendering
SIZE = 10_000_000  # characters or items of anything that a template makes, and of all it writes
WIDTH = 9_999  # the largest number that a text's method or a filter may be given
REMOVED = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")  # slow, and not used
BUDGET = ContextVar("what is left to the rendering")


def choose(templates, wanted, variables, owner):
    """The text of one of a tokenizer's templates: `wanted` is a name, a text or None."""
    several = isinstance(templates, dict)
    if several and wanted is None:
        wanted = "tool_use" if variables.get("tools") and "tool_use" in templates else "default"
    if several and wanted in templates:
        return templates[wanted]
    found = templates if wanted is None else wanted
    if isinstance(found, str) and ("{" in found or not several):
        return found
    have = f"only those named {', '.join(templates)}" if templates else "no chat template"
    raise ValueError(
        f"This {owner} has {have}, and {wanted or 'no template'} was asked for. Give "
        "template='{% for message in messages %}...', or a name that it has."
    )


def render(source, **variables):
    """The text that a template makes of variables.  Raises ValueError for all that goes wrong."""
    try:
        from jinja2.exceptions import SecurityError, TemplateError
    except ImportError as error:
        raise ImportError(
            "Chat templates need Jinja2, which is not installed: pip install khub[chat]"
        ) from error
    variables = {name: plain(value, name) for name, value in variables.items()}
    mark = BUDGET.set({"steps": STEPS, "characters": SIZE, "until": time.monotonic() + SECONDS})
    try:
        return compiled(source).render(variables)
    except SecurityError as error:
        raise ValueError(f"The chat template does what it must not: {error}.") from error
    except TemplateError as error:
        raise ValueError(f"The chat template says: {error}") from error
    except (TypeError, ArithmeticError, LookupError, AttributeError, SyntaxError) as error:
        raise ValueError(f"The chat template fails on these messages: {error!r}.") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("The chat template goes too deep.") from error
    finally:
        BUDGET.reset(mark)


def plain(value, where):
    """A copy of JSON's kinds: what a template is given has no methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        return {str(key): plain(each, where) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, where) for each in value]
    raise TypeError(
        f"A chat template takes text, numbers, lists and dicts; {where} has a "
        f"{type(value).__name__}. Give a tool as its JSON schema, a message as a dict."
    )


@functools.lru_cache(16)
def compiled(source):
    """A template's text, ready to be rendered."""
    from jinja2 import Template

    if len(source) > TEMPLATE:
        raise ValueError(
            f"The chat template has {len(source):,} characters; at most {TEMPLATE:,} are read."
        )
    environment = sandbox()
    code = environment.compile(counted(environment.parse(source)))
    return Template.from_code(environment, code, environment.make_globals(None))


def counted(tree):
    """The template's syntax tree with every loop counted and every text that grows measured."""
    from jinja2 import nodes

    def through(name, node, line):
        return nodes.Filter(node, name, [], [], None, None, lineno=line)

    for kind, part, name in ((nodes.For, "iter", "counted"), (nodes.Assign, "node", "measured")):
        for node in list(tree.find_all(kind)):
            setattr(node, part, through(name, getattr(node, part), node.lineno))
    for node in list(tree.find_all((nodes.Output, nodes.Concat))):
        node.nodes = [through("written", each, node.lineno) for each in node.nodes]
    return tree


def spend(amount, what="steps"):
    """Take from what the rendering may use. Raises ValueError where it is used up."""
    budget = BUDGET.get()
    budget[what] -= amount
    if budget[what] < 0 or time.monotonic() > budget["until"]:
        raise ValueError(
            f"The chat template does too much: {STEPS:,} steps, {SIZE:,} characters and "
            f"{SECONDS} seconds are what a template may take."
        )


def items_counted(context, items):
    for item in items:
        spend(1)
        yield item


def measured(value):
    """The value, after a look at how long it would be as text."""
    waiting, size = [value], 0
    while waiting:
        each = waiting.pop()
        spend(1)
        if isinstance(each, (str, bytes)):
            size += len(each)
        elif isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple)):
            waiting += each
        if size + len(waiting) > SIZE:
            raise ValueError(f"The chat template makes a text or list of more than {SIZE:,}.")
    return value


def written(context, value):
    text = value if isinstance(value, str) else str(measured(value))
    spend(len(text), "characters")
    return text


def check_arguments(*arguments):
    """Refuse numbers that say how long a result shall be, alone or inside a format."""
    for each in arguments:
        measured(each)
        if isinstance(each, int) and abs(each) > WIDTH:
            raise ValueError(f"The chat template uses the number {each}; {WIDTH:,} at most.")


def check_format(text):
    if re.search(r"\d{5}|\*|\{[^}]*\{", str(text)):
        raise ValueError(f"The chat template formats with a width beyond {WIDTH:,}: {text!r:.60}.")


@functools.cache
def sandbox():
    """Jinja2's sandbox with the names that chat templates use."""
    from jinja2 import ext, nodes, pass_context, utils
    from jinja2.exceptions import SecurityError, TemplateRuntimeError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "%", "+"])

        def call_binop(self, context, operator, left, right):
            numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
            sizes = [abs(x) if isinstance(x, (int, float)) else len(x) for x in (left, right)]
            if operator == "**" and (sizes[0] > 1e6 or sizes[1] > 64):
                raise SecurityError("a power of large numbers")
            if operator == "*" and sizes[0] * sizes[1] > (SIZE if not numbers else 1e300):
                raise SecurityError("a repetition of more than what fits")
            if operator == "%" and isinstance(left, str):
                check_format(left)
            return measured(super().call_binop(context, operator, left, right))

        def call(self, context, function, *args, **kwargs):
            spend(1)
            if isinstance(getattr(function, "__self__", None), (str, bytes, int)):
                check_arguments(*args, *kwargs.values())
            return measured(super().call(context, function, *args, **kwargs))

        def wrap_str_format(self, value):  # is asked for every attribute that is read
            if (made := super().wrap_str_format(value)) is not None:
                check_format(value.__self__)
            return made

    class Generation(ext.Extension):
        """{% generation %}: what the assistant says, for training; it is written as it is."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Namespace(utils.Namespace):
        def __setitem__(self, name, value):
            if str(name).startswith("_"):
                raise SecurityError(f"a namespace has no {name!r} in a chat template")
            super().__setitem__(name, value)

    def namespace(*args, **kwargs):
        made = Namespace()
        for name, value in dict(*args, **kwargs).items():
            made[name] = value
        return made

    def guarded(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            check_arguments(*args[1:], *kwargs.values())
            given = args[1] if hasattr(function, "jinja_pass_arg") and len(args) > 1 else args[0]
            if function is formatted:
                check_format(given)
            return measured(function(measured(args[0]), *args[1:], **kwargs))

        return call

    def raise_exception(message):
        raise TemplateRuntimeError(str(message))

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        more = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    made = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    formatted = made.filters["format"]
    made.filters = {name: guarded(f) for name, f in made.filters.items() if name not in REMOVED}
    made.filters |= {
        "tojson": guarded(tojson),
        "counted": pass_context(items_counted),  # never worked out beforehand
        "measured": pass_context(lambda context, value: measured(value)),
        "written": pass_context(written),
    }
    del made.globals["lipsum"]
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": namespace,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }
    return made
