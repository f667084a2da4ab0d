"""The tables of the check, from the results in its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..tables import table
from .runner import Outcome

LOSS, NORM = 1e-2, 5e-2
"""Largest differences between the sides of the race: nats; of the gradient's norm. In bfloat16 the
log-probability of a response is known to some tenth of a nat, of which the loss takes a tenth."""
VOID = "VOID"  # of a side that did other work
GIB = 2**30
Records = Sequence[dict[str, Any]]


def of_kind(found: Records, kind: str) -> list[dict[str, Any]]:
    """The results of one kind."""
    return [record for record in found if record["kind"] == kind]


def values(found: Records) -> str:
    """Each part's checks: their number, the one nearest its bound, and every wrong one by name."""
    rows = [["part", "checks", "nearest its bound", "error", "bound", ""]]
    checks = of_kind(found, "value")

    def share(check: dict[str, Any]) -> float:
        return check["error"] / check["bound"] if check["bound"] else 0.0  # right, so 0 of 0

    for part in dict.fromkeys(check["part"] for check in checks):
        own = [check for check in checks if check["part"] == part]
        wrong = [check for check in own if not check["right"]]
        for check in wrong or [max(own, key=share)]:
            figures = [f"{check['error']:.1e}", f"{check['bound']:.1e}"]
            rows.append([part, str(len(own)), check["check"], *figures, "WRONG" * bool(wrong)])
    return table(rows)


def _rates(record: dict[str, Any]) -> list[str]:
    seconds = record["seconds"]
    return [
        f"{seconds:.3f}",
        f"{record['tokens'] / seconds:,.0f}",
        f"{record['pairs_count'] / seconds:.1f}",
        f"{record['flops'] / seconds / 1e12:.3g}",
    ]


def speed(found: Records) -> str:
    """Updates of the models."""
    rows = [["model", "trained", "objective", "pairs", "s/update", "tokens/s", "pairs/s"]]
    rows[0] += ["useful TFLOP/s", "product TFLOP/s", "utilisation", "peak GiB", "compile s"]
    for r in of_kind(found, "speed"):
        share = f"{r['flops'] / r['seconds'] / r['rate']:.1%}"
        cells = [r["model"], r["trained"], r["objective"], r["pairs"], *_rates(r)]
        cells += [f"{r['rate'] / 1e12:.3g}", share]
        rows.append([*cells, f"{r['peak_bytes'] / GIB:.1f}", f"{r['compile_seconds']:.0f}"])
    return table(rows)


def breakdown(found: Records) -> str:
    """Milliseconds of an update by kind of work."""
    spent = of_kind(found, "breakdown")
    kinds = list(dict.fromkeys(kind for r in spent for kind in r["milliseconds"]))
    rows = [["model", "trained", "objective", "pairs", *kinds]]
    for r in spent:
        cells = [f"{r['milliseconds'].get(kind, 0):.1f}" for kind in kinds]
        rows.append([r["model"], r["trained"], r["objective"], r["pairs"], *cells])
    return table(rows)


def race(found: Records) -> str:
    """The sides on each model, and whether they did the same work."""
    rows = [["model", "side", "s/step", "tokens/s", "pairs/s", "useful TFLOP/s", "x jaxalign"]]
    rows[0] += ["peak GiB", "first pass s", "loss off", "norm off", ""]
    ran = of_kind(found, "race")
    base = {r["model"]: r for r in ran if r["side"] == "jaxalign" and "seconds" in r}
    for r in ran:
        if "absent" in r:
            rows.append([r["model"], r["side"], f"no {r['absent']}", *[""] * (len(rows[0]) - 3)])
            continue
        cells, off = ["-", "-"], ""
        ratio = "-"
        if own := base.get(r["model"]):
            ratio = f"{r['seconds'] / own['seconds']:.2f}"
            loss = float(np.max(np.abs(np.subtract(r["losses"], own["losses"]))))
            norm = float(np.max(np.abs(np.divide(r["norms"], own["norms"]) - 1)))
            cells = [f"{loss:.1e}", f"{norm:.1e}"]
            off = "" if loss <= LOSS and norm <= NORM else VOID
        peak, first = f"{r['peak_bytes'] / GIB:.1f}", f"{r['first_pass_seconds']:.1f}"
        rows.append([r["model"], r["side"], *_rates(r), ratio, peak, first, *cells, off])
    return table(rows)


def outcomes(ended: Sequence[Outcome]) -> str:
    """How the parts ended."""
    rows = [["part", "limit s", "took s", ""]]
    rows += [[o.part.name, f"{o.part.limit:.0f}", f"{o.seconds:.0f}", o.state] for o in ended]
    return table(rows)


SECTIONS: dict[str, tuple[str, Callable[[Records], str]]] = {
    "value": ("Values", values),
    "speed": ("Speed", speed),
    "breakdown": ("Where the time goes, ms of an update", breakdown),
    "race": ("The race", race),
}


def summary(found: Records, ended: Sequence[Outcome]) -> str:
    """Every table that has results."""
    versions = [r["versions"] for r in of_kind(found, "about") if "versions" in r]
    text = ["# One GPU", *versions[:1]]
    for kind, (title, make) in SECTIONS.items():
        if of_kind(found, kind):
            text += [f"## {title}", make(found)]
    for job in of_kind(found, "main job"):
        report = "\n".join(job["report"])
        text += ["## The main job", f"{job['seconds']} s.\n\n```text\n{report}\n```"]
    if ended:
        text += ["## Parts", outcomes(ended)]
    return "\n\n".join(text) + "\n"
