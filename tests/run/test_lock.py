"""The lock of a run's folder."""

import concurrent.futures
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest
from lib import runs as h
from rich.console import Console

import jaxalign
from jaxalign.digests import own_suffix
from jaxalign.errors import UserError
from jaxalign.run.lock import FILE, locked

HOLDER = """
import sys
from pathlib import Path
from rich.console import Console
from jaxalign.run.lock import locked
with locked(Path(sys.argv[1]), "train", Console()):
    print("held", flush=True)
    sys.stdin.read()
"""


def lock(folder, command="train"):
    return locked(folder, command, h.QUIET)


def test_a_second_command_is_refused_with_the_name_of_the_first(tmp_path):
    message = rf"run.dir: {tmp_path} is in use by evaluate, process {os.getpid()} on .*, since 20"
    with lock(tmp_path, "evaluate"), pytest.raises(UserError, match=message), lock(tmp_path):
        pass


def test_of_commands_started_together_one_holds_the_lock(tmp_path):
    together = threading.Barrier(8)

    def attempt(number):
        together.wait()
        try:
            with lock(tmp_path / "run"):
                together.wait()
                return True
        except UserError:
            together.wait()
            return False

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path):
        raise ZeroDivisionError
    with lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on"), lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / FILE).read_text()  # the file is still there, and nobody holds it
    with lock(tmp_path):
        pass


@pytest.mark.parametrize(
    "command",
    [
        jaxalign.train,
        jaxalign.evaluate,
        jaxalign.reference,
        lambda recipe: jaxalign.export(recipe, "out"),
    ],
    ids=["train", "evaluate", "reference", "export"],
)
def test_a_command_on_a_folder_in_use_writes_nothing(inputs, tmp_path, command):
    recipe = h.recipe(inputs, tmp_path / "run")
    with lock(tmp_path / "run"):
        with pytest.raises(UserError, match="is in use by train"):
            command(recipe)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_cannot_be_written_is_a_mistake_in_run_dir(tmp_path):
    (tmp_path / "file").touch()
    message = rf"^run.dir: {tmp_path}/file cannot be written \(File exists\); choose another --run"
    with pytest.raises(UserError, match=message), lock(tmp_path / "file"):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def flock(held, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, "train", Console(soft_wrap=True)):
        pass
    assert f"{tmp_path}: its file system has no locks" in capsys.readouterr().out


def test_temporary_files_of_two_hosts_have_different_names(monkeypatch):
    ours = own_suffix()
    monkeypatch.setattr("socket.gethostname", lambda: "other")
    assert own_suffix() != ours
