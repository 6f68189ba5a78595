"""Chat templates: what they make, and what a hostile one must not do."""

import json
import sys
import time

import pytest

from khub import nlp

pytest.importorskip("jinja2")
pytestmark = pytest.mark.once

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho </s>"}]
LOOP = "{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    return nlp.ByteTokenizer(special_tokens={"eos_token": "</s>"})


def render(tokenizer, template, **variables):
    return tokenizer.apply_chat_template(MESSAGES, template=template, **variables)


@pytest.mark.parametrize(
    "template, expected",
    {
        LOOP: "<user>Hi</s>\n<assistant>Ho </s></s>\n",
        "{{ messages | tojson }}": '[{"role": "user", "content": "Hi"}, '
        '{"role": "assistant", "content": "Ho </s>"}]',
        "{% if add_generation_prompt %}a{% else %}b{% endif %}": "b",
        "{{ tools }}{{ documents }}{{ unheard_of }}": "NoneNone",
        "{{ 'é<&>' | tojson(indent=1) }}": '"é<&>"',
        "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}": "02",
        "{% for i in range(9) %}{{ loop.length }}{% break %}{% endfor %}": "9",
        "{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}"
        "{{ n.x }}": "3",
        "{% set t %}a{{ 1 }}{% endset %}{{ t | upper }}": "A1",
        "{{ '%s-%d' % ('a', 3) }}{{ '{}'.format(4) }}{{ '%s' | format(5) }}": "a-345",
        "{% generation %}{% set y = 2 %}{{ y }}{% endgeneration %}": "2",
        "{% for m in messages recursive %}{{ m.role[0] }}{% endfor %}": "ua",
        "{{ ('x' * 3) ~ (2 ** 5) ~ (7 % 4) }}": "xxx323",
        "{{ messages | map(attribute='role') | list | join(',') }}": "user,assistant",
        "{{ messages[0].items() | list | length }}": "2",
    }.items(),
)
def test_what_templates_make(tokenizer, template, expected):
    assert render(tokenizer, template) == expected


def test_the_template_is_kept_and_chosen(tokenizer, tmp_path):
    tokenizer = nlp.ByteTokenizer(special_tokens={"eos_token": "</s>"})
    with pytest.raises(ValueError, match="ByteTokenizer has no chat template"):
        tokenizer.apply_chat_template(MESSAGES)
    tokenizer.chat_template = {"default": LOOP, "tool_use": "{{ tools | length }}"}
    tokenizer.save(tmp_path)
    again = nlp.ByteTokenizer.load(tmp_path)
    assert again.apply_chat_template(MESSAGES) == render(tokenizer, LOOP)
    assert again.apply_chat_template(MESSAGES, tools=[{}, {}]) == "2"
    assert again.apply_chat_template(MESSAGES, template="default") == render(tokenizer, LOOP)
    with pytest.raises(ValueError, match="only those named default, tool_use, and rag was asked"):
        again.apply_chat_template(MESSAGES, template="rag")
    (tmp_path / "chat_template.jinja").write_text("from a file")
    assert nlp.ByteTokenizer.load(tmp_path).apply_chat_template(MESSAGES) == "from a file"


ESCAPES = {
    "attributes of classes": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ [].__class__.__base__.__subclasses__() }}",
    "subclasses by item": "{{ ()['__class__'] }}{{ ''['__class__']['__mro__'] | length + 1 }}",
    "attr": "{{ '' | attr('__class__') | attr('mro') }}",
    "map(attribute)": "{{ [''] | map(attribute='__class__') | list | first | attr('mro') }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "globals of a lambda": "{{ strftime_now.__globals__.json }}",
    "globals of dict": "{{ dict.__globals__.json }}",
    "format_map": "{{ '{a.__class__.mro}'.format_map({'a': 1}) }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.getcwd() }}",
    "extends": "{% extends '/etc/passwd' %}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "the messages": "{{ messages.append({}) }}",
    "a generator's frame": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "raise": "{{ raise_exception('no way') }}",
    "syntax": "{% for %}",
    "unknown tag": "{% python %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "division": "{{ 1 // 0 }}",
    "types": "{{ 1 + 'a' }}",
    "undefined": "{{ nothing.there }}",
    "arguments": "{{ range() }}",
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_template_cannot_leave_the_sandbox(tokenizer, case):
    with pytest.raises(ValueError, match="[Cc]hat template"):
        render(tokenizer, ESCAPES[case])


@pytest.mark.parametrize(
    "template",
    ["{{ '{0.__class__}'.format(1) }}", "{{ '{}'.format | attr('__globals__') }}"],
)
def test_what_a_template_must_not_see_is_undefined(tokenizer, template):
    assert render(tokenizer, template) == ""


BIG = "{% set x = 'ab' * 4000000 %}"
BOMBS = {
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "ranges in ranges": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a recursive macro": "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(400) }}",
    "a binary macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for m in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "repetition": "{{ 'x' * 10**10 }}",
    "repetition of a list": "{{ [1] * 10**10 }}",
    "repetition twice": "{{ ('x' * 10**6 * 10**6) | length }}",
    "a power": "{{ 10**10**10 }}",
    "a shifted power": "{{ (2 ** 64) ** 64 ** 9 }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(80) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
    "doubling blocks": "{% set n = namespace(x='ab') %}{% for i in range(80) %}"
    "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "doubling lists": "{% set n = namespace(x=[1]) %}{% for i in range(80) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "replacing": "{% set n = namespace(x='aa') %}{% for i in range(80) %}"
    "{% set n.x = n.x | replace('a', 'aaaa') %}{% endfor %}",
    "joining": BIG + "{{ [x, x, x, x, x, x] | join }}",
    "joining by method": BIG + "{{ ''.join([x, x, x, x, x]) }}",
    "writing": BIG + "{% for i in range(9999) %}{{ x }}{% endfor %}",
    "concatenation": BIG + "{{ x ~ x ~ x ~ x ~ x }}",
    "comparing": BIG + "{% set y = 'ab' * 4000000 %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{% if x == y ~ i %}{% endif %}{% endfor %}{% endfor %}",
    "a width": "{{ '%999999999d' % 1 }}",
    "a width in a filter": "{{ '%999999999d' | format(1) }}",
    "a width in a method": "{{ '{:999999999}'.format(1) }}",
    "a width from outside": "{{ '%*d' % (999999999, 1) }}",
    "a nested width": "{{ '{:{}}'.format(1, 999999999) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(width=10**9) }}",
    "expandtabs": "{{ '\t\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\n' | indent(10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "tojson": "{{ [[1]] | tojson(indent=10**9) }}",
    "a long template": "a" * 1_000_001,
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_template_cannot_take_for_ever_or_all_memory(tokenizer, case, monkeypatch):
    monkeypatch.setattr("khub.nlp.chat.SECONDS", 0.2)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="[Cc]hat template"):
        render(tokenizer, BOMBS[case])
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("thing", [object(), {1, 2}, b"bytes", open])
def test_a_template_is_given_plain_data_only(tokenizer, thing):
    with pytest.raises(TypeError, match="takes text, numbers, lists and dicts; messages has a"):
        tokenizer.apply_chat_template([{"role": "user", "content": thing}], template=LOOP)


@pytest.mark.parametrize("content", [3, [1], [{"name": 1}], [{"name": "a", "template": 1}]])
def test_a_template_in_a_file_must_be_text(tokenizer, content, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": content}))
    with pytest.raises(ValueError, match="chat_template must"):
        nlp.ByteTokenizer.load(tmp_path)


def test_without_jinja_the_extra_is_named(tokenizer, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "jinja2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install khub\[chat\]"):
        render(tokenizer, LOOP)
