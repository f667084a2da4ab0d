import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_dpo_updates_equal_those_of_a_plain_torch_step():
    command = [sys.executable, "-m", "benchmarks.dpo_torch", "--updates", "4"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
