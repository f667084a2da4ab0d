"""The run that a commit must pass says what it cannot test, before it tests anything."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("versions", "ci", "missing"),
    [(("3.11",), "true", "3.12"), (("3.12",), "", "3.11"), (("3.12",), "true", "3.11")],
)
def test_an_interpreter_that_is_not_there_is_one_line_and_a_failure(
    tmp_path, versions, ci, missing
):
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    for version in versions:
        python = tmp_path / f"python{version}"
        python.write_text("#!/bin/sh\nexit 0\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"PATH": str(tmp_path)}
    environment |= {"CI": ci} if ci else {}
    done = subprocess.run(
        [str(tmp_path / "bash"), str(ROOT / ".ci" / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"ci: no Python {missing}, on which the ")
