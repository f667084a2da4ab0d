"""The race's end of the pipe: a side as a process. Uses only the standard library."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def environment(gpu: bool = False) -> dict[str, str]:
    """The environment of every side: no network, and only the CPU unless it races on a GPU."""
    cpu_only = {} if gpu else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | cpu_only | {"HF_HUB_OFFLINE": "1"}


class Missing(Exception):  # noqa: N818
    """A side's interpreter lacks a package."""

    def __init__(self, package: str):
        """`package` is the module that could not be imported."""
        super().__init__(package)
        self.package = package


class Worker:
    """A running side; `pipe.py` documents the protocol."""

    def __init__(self, command: Sequence[str], log: Path, *, gpu: bool = False):
        """Start the side and wait until it has imported everything, before it touches a device.

        Raises:
          Missing: its interpreter lacks a package.
          SystemExit: it failed.
        """
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(gpu),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        about = self._answer()
        if "missing" in about:
            self.close()
            raise Missing(about["missing"])
        self.versions = ""

    def load(self) -> None:
        """Let the side load its model, and wait until it is ready to step.

        Raises:
          Missing: its interpreter lacks a package.
          SystemExit: it failed.
        """
        about = self._ask("load")
        if "missing" in about:
            self.close()
            raise Missing(about["missing"])
        self.versions = about["versions"]

    def step(self) -> dict[str, float]:
        """One step: `loss`, `norm`, `cpu` and `wall` seconds, `peak` MB.

        Raises:
          SystemExit: the side failed.
        """
        return self._ask("step")

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            tail = "\n".join(self._log.read_text().splitlines()[-20:])
            raise SystemExit(f"{self._log.stem} ended with exit code {code}:\n{tail}")
        return json.loads(line)
