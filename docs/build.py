"""Writes docs/objectives.md from the records and docstrings of the objectives.

python docs/build.py
"""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from pathlib import Path
from typing import Any

import annotated_types

from jaxalign.core.objective import Objective
from jaxalign.objectives import OBJECTIVES

PAGE = Path(__file__).with_name("objectives.md")
HEAD = """\
# Objectives

`docs/build.py` writes this page from the docstrings of the objectives. [Choosing](choosing.md) says
which objective suits which data; [Coming from TRL](coming-from-trl.md) lists the names of other
libraries.

A recipe names an objective under `objective.name`; the other keys of that section are its
hyper-parameters. From Python:

```python
from jaxalign.objectives import OBJECTIVES

loss_fn = OBJECTIVES["dpo"].bind(beta=0.1)
loss, metrics = loss_fn(policy=policy, ref=ref)
```

x is the prompt, y a response, y_w the chosen and y_l the rejected one; pi and pi_ref are policy and
reference. Log-probabilities are sums over scored tokens, in nats. A loss is averaged over the
examples of the whole batch, for any number of microbatches and devices, unless its section says
otherwise.

"""
SECTIONS = ("Args", "Returns", "Raises", "Source")


def page() -> str:
    """The whole page."""
    rows = [["name", "data", "reference", "token statistics", "columns", "couples examples"]]
    rows += [row(o) for o in OBJECTIVES.values()]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return HEAD + "\n".join(lines) + "\n" + "".join(section(o) for o in OBJECTIVES.values())


def row(o: Objective[...]) -> list[str]:
    """The requirements of an objective, a row of the table."""
    meet = "yes" if o.couples_examples and not o.init_state else ""
    meet = "through its running state" if o.init_state else meet
    columns = ", ".join(f"`{c}`" for c in o.columns if c != "weight")
    needs = ", ".join(f"`{s.name}`" for s in (*o.needs, *o.layers))
    link = f"[`{o.name}`](#{o.name})"
    return [link, data(o), "yes" if o.uses_ref else "no", needs, columns, meet]


def data(o: Objective[...]) -> str:
    """The name of the kind of data in the table."""
    return o.layout.kind


def section(o: Objective[...]) -> str:
    """The docstring without its array arguments."""
    parts = docstring(o)
    hyper = ""
    if o.hyper:
        told = dict(re.findall(r"^(\w+): (.*(?:\n  .*)*)", parts["Args"], re.M))
        lines = [
            f"| `{name}` | `{p.default!r}` | {allowed(o, name)} | {one_line(told[name])} |"
            for name, p in o.hyper.items()
        ]
        hyper = "\n| | default | values | |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    facts = "\n".join(f"- {one_line(s)}" for s in re.split(r"\n(?=[A-Z]\w+: )", parts["Source"]))
    raises = f"\nRaises: {one_line(parts['Raises'])}\n" if parts.get("Raises") else ""
    return f"\n## {o.name}\n\n{parts['']}\n{hyper}\n{facts}\n{raises}"


def docstring(o: Objective[...]) -> dict[str, str]:
    """The sections of a docstring, dedented; '' is the text before them."""
    pieces = re.split(
        rf"^({'|'.join(SECTIONS)}):\n", inspect.cleandoc(o.fn.__doc__ or ""), flags=re.M
    )
    named = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return {"": pieces[0].strip()} | {k: textwrap.dedent(v).strip() for k, v in named.items()}


def allowed(o: Objective[...], name: str) -> str:
    """The values of a hyper-parameter, in words."""
    return in_words(typing.get_type_hints(o.fn, include_extras=True)[name])


def in_words(kind: Any) -> str:
    """An annotation, in words."""
    arguments = typing.get_args(kind)
    match typing.get_origin(kind):
        case typing.Literal:
            return ", ".join(f"`{a}`" for a in arguments)
        case typing.Annotated:
            return ", ".join(bound(m) for m in arguments[1:])
        case None:
            return "`null`" if kind is type(None) else kind.__name__
    return " or ".join(in_words(a) for a in arguments)


def bound(limits: Any) -> str:
    """A range, in words."""
    limits = [limits] if not isinstance(limits, annotated_types.GroupedMetadata) else list(limits)
    signs = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}
    return " and ".join(
        f"a multiple of {m.multiple_of}"
        if isinstance(m, annotated_types.MultipleOf)
        else f"{signs[type(m).__name__]} {getattr(m, type(m).__name__.lower())}"
        for m in limits
    )


def one_line(text: str) -> str:
    """The text without line breaks, and with its bars escaped for a table cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
