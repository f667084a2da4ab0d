"""Jinja for chat templates, which are a checkpoint's: sandboxed, and bounded in time and size.

The environment is the one in which transformers renders chat templates (trimmed blocks, `tojson`,
`raise_exception`, `strftime_now`, loop controls, `{% generation %}`), except that a template that
runs for too long or makes too large a text is stopped, and that the clock is fixed.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 4.0
"""The longest that one rendering may take."""
SIZE = 2**24
"""The most characters of a text, or elements of a list."""
TOTAL = 2**27
"""The most characters and elements that one rendering may make in all."""
JOINING = {"join", "tojson", "string", "format", "replace", "list", "sum"}
"""Filters and methods whose result can be much larger than any of their arguments."""
WIDTHS = {"center", "ljust", "rjust", "zfill", "indent", "expandtabs", "truncate", "batch", "slice"}
"""Filters and methods that take a number of characters or elements."""
SLOW = {"wordwrap", "urlize"}
"""Filters that take microseconds per character."""


class UnboundedError(Exception):
    """A template ran for too long or made too large a value."""


class Environment(ImmutableSandboxedEnvironment):
    """A bounded environment; `begin` starts the clock of a rendering.

    Attributes:
      marks: the texts before and after the text of a `{% generation %}` block. Drawn at random, so
        that no other text holds them.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: datetime.datetime):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=self._output,
        )
        number = f"{secrets.randbelow(10**16):016d}"
        self.marks = f"\ufdd0{number}", f"\ufdd1{number}"
        self.code_generator_class = _Generator
        self.filters = {name: self._bounded(name, f) for name, f in self.filters.items()}
        self.filters["tojson"] = self._bounded("tojson", _tojson)
        kept = ("range", "dict", "namespace", "cycler", "joiner")
        self.globals = {name: self.globals[name] for name in kept} | {
            "raise_exception": _raise,
            "strftime_now": lambda form: now.strftime(str(form)),
        }
        self._late = False
        self.begin()

    def begin(self) -> None:
        """Start the clock of a rendering; a template that was late is not tried a second time."""
        _refuse_if_late(self._late)
        self._deadline = time.monotonic() + SECONDS
        self._written = self._made = 0

    def tick(self, written: int = 0) -> None:
        """Stop a rendering that is late or long; every turn of a loop and every call does so."""
        self._written += written
        _refuse_if(self._written > SIZE)
        self._late = time.monotonic() > self._deadline
        _refuse_if_late(self._late)

    def joined(self, values: Iterable[Any]) -> str:
        """The texts of some values, one after another."""
        values = tuple(values)
        _weight(values)
        return "".join(map(str, values))

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or a method of a text."""
        own = getattr(__obj, "__wrapped__", __obj)  # jinja wraps `str.format`
        name, text = getattr(__obj, "__name__", ""), getattr(own, "__self__", None)
        self._check(name, (text, *args) if isinstance(text, str) else args, kwargs)
        return self._sized(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Evaluate +, *, ** or %."""
        self.tick()
        if operator == "%" and isinstance(left, str):
            self._check("format", (left, right), {})
        if operator == "*" and any(isinstance(x, str | list | tuple) for x in (left, right)):
            sizes = (x if isinstance(x, int) else _weight(x) for x in (left, right))
            _refuse_if(functools.reduce(lambda a, b: a * b, sizes) > SIZE)
        if operator == "**" or (operator == "*" and isinstance(left, int)):
            _refuse_if(any(isinstance(x, int) and x.bit_length() > 64 for x in (left, right)))
            _refuse_if(operator == "**" and abs(right) > 64)
        return self._sized(super().call_binop(context, operator, left, right))

    def _sized(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple):
            _refuse_if(len(value) > SIZE)
            self._made += len(value)
            _refuse_if(self._made > TOTAL, TOTAL)
        return value

    def _output(self, value: Any) -> Any:
        self.tick(_weight(value))
        return value

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            passed = tuple(x for x in args if not isinstance(x, _PASSED))
            self._check(name, passed, kwargs)
            return self._sized(function(*args, **kwargs))

        return bounded

    def _check(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments whose result would be too large."""
        self.tick()
        values = (*args, *kwargs.values())
        texts = [x for x in args if isinstance(x, str)]
        widths = [len(x) if isinstance(x, str) else x for x in values[1:]]
        widest = max((abs(x) for x in widths if isinstance(x, int)), default=0)
        if name in JOINING:
            _weight(values)
        if name in WIDTHS:
            _refuse_if(widest > SIZE)
        if name in ("indent", "expandtabs") and texts:
            lines = texts[0].count("\n" if name == "indent" else "\t") + 1
            _refuse_if(lines * widest > SIZE)
        if name == "tojson" and args:
            longest = max((_weight(x) for x in widths if not isinstance(x, int)), default=0)
            _refuse_if(_levels(args[0]) * max(widest, longest) > SIZE)
        if name in SLOW and texts:
            longest = max((len(x) for x in values[1:] if isinstance(x, str)), default=0)
            _refuse_if(len(texts[0]) * max(longest, 64) > SIZE)
        if name == "round":
            _refuse_if(widest > 64)
        if name == "translate" and texts:
            _refuse_if(len(texts[0]) * max(map(_weight, values[1:]), default=0) > SIZE)
        if name in ("format", "format_map") and texts:
            # A width from an argument, or many fields with a width.
            written = max(map(int, re.findall(r"\d{1,6}", texts[0])), default=0)
            fields = len(re.findall("[{%]", texts[0]))
            _refuse_if(bool(re.search(r"\{[^{}]+\{|%[-+ #0-9.]*\*", texts[0])))
            _refuse_if(fields * written > SIZE or written > 99_999)
        if name == "replace" and len(texts) == 3:
            text, old, new = texts
            _refuse_if((text.count(old) + 1) * len(new) > SIZE)
        if name == "join" and len(args) > 1 and isinstance(args[0], str | list | tuple):
            _refuse_if(len(args[0]) * len(str(args[1])) > SIZE)


_PASSED = jinja2.Environment, jinja2.runtime.Context, nodes.EvalContext
"""What jinja itself passes to a filter."""


class _Generator(CodeGenerator):
    """Adds a tick to every turn of a loop and every call of a macro, and bounds `~`."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        node.body.insert(0, self._tick(node))
        super().visit_For(node, frame)

    def visit_Macro(self, node: nodes.Macro, frame: Frame) -> None:  # noqa: N802
        node.body.insert(0, self._tick(node))
        super().visit_Macro(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _tick(self, node: nodes.Node) -> nodes.Node:
        """A call of `tick` with the characters that the body of the node holds itself."""
        held = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        tick = nodes.EnvironmentAttribute("tick")
        call = nodes.Call(tick, [nodes.Const(held)], [], None, None)
        return nodes.ExprStmt(call).set_environment(self.environment).set_lineno(node.lineno)


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: puts marks around the text of the assistant."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        assert isinstance(self.environment, Environment)
        opening, closing = self.environment.marks
        return f"{opening}{caller()}{closing}"


def _weight(value: Any) -> int:
    """The characters and elements of a value, to any depth.

    Raises:
      UnboundedError: they are more than `SIZE`.
    """
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Mapping):
            item = list(item.items())
        if isinstance(item, str | list | tuple):
            total += len(item)
            todo.extend(item if not isinstance(item, str) else ())
        total += 1
        _refuse_if(total > SIZE)
    return total


def _levels(value: Any) -> int:
    """The sum of the depths of all elements of a value, whose own depth is 1."""
    total, todo = 0, [(value, 1)]
    while todo:
        item, level = todo.pop()
        if isinstance(item, Mapping):
            item = list(item.values())
        if isinstance(item, list | tuple):
            todo.extend((x, level + 1) for x in item)
        total += level
        _refuse_if(total > SIZE)
    return total


def _refuse_if(large: bool, most: int = SIZE) -> None:
    if large:
        what = "a value" if most == SIZE else "values"
        raise UnboundedError(f"makes {what} of more than {most:,} characters, elements or digits")


def _refuse_if_late(late: bool) -> None:
    if late:
        raise UnboundedError(f"takes more than {SECONDS:g} s")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
