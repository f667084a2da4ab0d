"""The command line of the check; see the package."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from . import __doc__ as about
from .part import records
from .plan import chosen, parts
from .runner import Outcome, run
from .tables import VOID, race, summary


def wrong(folder: Path, ended: list[Outcome]) -> bool:
    """Whether a value is wrong, the race is void or a part failed.

    A part that its limit or the budget cut, or that was left out, has not failed.
    """
    found = records(folder)
    values = any(not r["right"] for r in found if r["kind"] == "value")
    return values or VOID in race(found) or any("failed" in o.state for o in ended)


def main() -> int:
    """Run the parts and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all parts")
    parser.add_argument("--only", nargs="+", default=[], help="parts, by the start of their names")
    parser.add_argument("--data", type=Path, help="preference pairs, .jsonl or .jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="tiny models, on any device")
    args = parser.parse_args()
    if args.data is not None and not args.data.is_file():
        parser.error(f"--data {args.data}: there is no such file")
    if args.quick:  # whose programs take longer to compile than to run
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes of the parts end too
    folder = args.out.resolve()
    (folder / "work").mkdir(parents=True, exist_ok=True)
    todo = chosen(parts(folder, data=args.data, quick=args.quick), args.only)
    for part in todo:
        (folder / f"{part.name}.jsonl").unlink(missing_ok=True)
    ended: list[Outcome] = []
    for outcome in run(todo, folder, args.budget):
        ended.append(outcome)
        print(f"{outcome.part.name}: {outcome.state}, {outcome.seconds:.0f} s", file=sys.stderr)
        (folder / "summary.md").write_text(summary(records(folder), ended), encoding="utf-8")
    print((folder / "summary.md").read_text(encoding="utf-8"))
    return int(wrong(folder, ended))


if __name__ == "__main__":
    sys.exit(main())
