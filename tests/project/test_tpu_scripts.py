"""The scripts run against a stand-in for gcloud that writes down what it is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"
VARIABLES = {
    "PROJECT": "p",
    "ZONE": "z",
    "TPU": "t",
    "TYPE": "v5p-32",
    "RUNTIME": "r",
    "SHARE": "10.0.0.2:/s",
}
RECORD = """#!/bin/sh
echo "$(basename $0) $*" >>"$RECORD"
"""
# What the hosts are to run must be valid shell too. The queued resource goes through the states in
# a file, one at a time, and stays in the last.
GCLOUD = """
for word in "$@"; do
  case $word in --command=*) sh -n -c "${word#--command=}" || exit 3; esac
done
case "$*" in *describe*)
  [ -s "$STATES" ] || exit 1
  head -n 1 "$STATES"
  if [ "$(wc -l <"$STATES")" -gt 1 ]; then sed -i 1d "$STATES"; fi
esac
"""


@pytest.fixture
def script(tmp_path):
    for name, body in {"gcloud": RECORD + GCLOUD, "sleep": RECORD, "git": RECORD}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(body)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "recipe.yaml").write_text("run: {dir: x}\n")

    def run(name, *args, states=("ACTIVE",), without=()):
        (tmp_path / "states").write_text("".join(f"{s}\n" for s in states))
        (tmp_path / "record").write_text("")
        given = {k: v for k, v in VARIABLES.items() if k not in without}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        known = {
            "PATH": path,
            "RECORD": str(tmp_path / "record"),
            "STATES": str(tmp_path / "states"),
        }
        done = subprocess.run(
            ["sh", str(SCRIPTS / name), *args],
            cwd=tmp_path,
            env=given | known,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done, (tmp_path / "record").read_text()

    return run


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda p: p.name)
def test_a_script_is_valid_posix_shell(path):
    done = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("create.sh", ("PROJECT", "ZONE", "TPU", "TYPE", "RUNTIME")),
        ("launch.sh", ("PROJECT", "ZONE", "TPU")),
        ("resume.sh", ("PROJECT", "ZONE", "TPU")),
        ("fetch.sh", ("PROJECT", "ZONE", "TPU")),
    ],
)
def test_missing_variables_are_named_together_and_nothing_is_run(script, name, variables):
    done, asked = script(name, without=variables)
    assert (done.returncode, asked) == (2, "")
    wanted = f"{name}: not set: {' '.join(variables)}; tpu_scripts/README.md says what they are\n"
    assert done.stderr == wanted


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("launch.sh", (), "launch.sh: usage: launch.sh RECIPE [FLAG...]"),
        ("launch.sh", ("gone.yaml",), "launch.sh: gone.yaml: no such recipe"),
        ("resume.sh", (), "resume.sh: usage: resume.sh RECIPE [FLAG...]"),
        ("fetch.sh", ("runs/x",), "fetch.sh: usage: fetch.sh FOLDER TO"),
    ],
)
def test_wrong_arguments_are_told_and_nothing_is_run(script, name, args, message):
    done, asked = script(name, *args)
    assert (done.returncode, asked) == (2, "")
    assert done.stderr.startswith(message)


def test_create_asks_for_the_slice_and_waits_until_it_is_active(script):
    done, asked = script("create.sh", states=("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"))
    lines = asked.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == (
        "gcloud compute tpus queued-resources create t --node-id=t --accelerator-type=v5p-32 "
        "--runtime-version=r --metadata=enable-oslogin=TRUE --project=p --zone=z"
    )
    assert lines.count("sleep 30") == 2


def test_create_installs_on_every_host(script):
    _, asked = script("create.sh")
    lines = asked.splitlines()
    assert lines[-2] == (
        f"gcloud compute tpus tpu-vm scp {SCRIPTS}/setup.sh t:setup.sh --worker=all "
        "--project=p --zone=z"
    )
    assert lines[-1] == (
        "gcloud compute tpus tpu-vm ssh t --worker=all --command=sh setup.sh '10.0.0.2:/s' "
        "--project=p --zone=z"
    )


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_stops_when_the_request_fails(script, state):
    done, asked = script("create.sh", states=("WAITING_FOR_RESOURCES", state))
    assert done.returncode == 1
    assert f"the request for t is {state}; delete it and ask again" in done.stderr
    assert "scp" not in asked


def test_create_stops_when_the_request_cannot_be_seen(script):
    done, asked = script("create.sh", states=())
    assert done.returncode != 0
    assert "scp" not in asked


def test_launch_starts_the_recipe_on_every_host(script):
    done, asked = script("launch.sh", "recipe.yaml", "--run.dir", "runs/it's here")
    assert done.returncode == 0, done.stderr
    assert asked.splitlines()[0] == (
        "gcloud compute tpus tpu-vm scp recipe.yaml t:/mnt/jaxalign/recipe.yaml --worker=0 "
        "--project=p --zone=z"
    )
    assert "tpu-vm ssh t --worker=all --command=" in asked
    words = r"train 'recipe.yaml' --run.distributed '--run.dir' 'runs/it'\''s here' >>log-"
    assert f"nohup $HOME/venv/bin/jaxalign {words}" in asked


def test_resume_stops_the_hosts_of_a_live_slice_and_launches(script):
    done, asked = script("resume.sh", "recipe.yaml", "--mesh.fsdp", "4")
    assert done.returncode == 0, done.stderr
    assert asked.index("kill -9 $pid") < asked.index("--run.distributed '--mesh.fsdp' '4'")
    assert "queued-resources create" not in asked


def test_resume_asks_again_for_a_slice_that_was_taken_away(script):
    done, asked = script("resume.sh", "recipe.yaml", states=("SUSPENDED", "ACTIVE"))
    assert done.returncode == 0, done.stderr
    steps = ("queued-resources delete t --force --quiet", "create t", "setup.sh", "nohup")
    assert [asked.index(s) for s in steps] == sorted(asked.index(s) for s in steps)


def test_fetch_copies_from_the_first_host(script):
    done, asked = script("fetch.sh", "runs/x/slpo/model", "model")
    assert done.returncode == 0, done.stderr
    assert asked == (
        "gcloud compute tpus tpu-vm scp --recurse t:/mnt/jaxalign/runs/x/slpo/model model "
        "--worker=0 --project=p --zone=z\n"
    )
