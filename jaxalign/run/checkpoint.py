"""Checkpoints of a training state: written in the background, sealed with checksums.

Orbax writes a checkpoint atomically but restores a flipped byte in silence. So each finished
checkpoint `step-N/` is sealed by a manifest `step-N.json` with the SHA-256 of its files; only
sealed checkpoints count, and a restore reads the files only after their checksums agree.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from ..digests import sha256
from ..errors import RunError, UserError, writing
from ..files import first_process, write_whole
from ..sealed import read_own, sealed

ARGS: Any = ocp.args  # whose constructors type checkers do not see in older releases


class Manifest(NamedTuple):
    """The content of the file that seals a checkpoint."""

    step: int
    sha256: dict[str, str]
    """Digest of each file of the checkpoint."""


class Checkpoints:
    """The checkpoints of one stage, in one folder that all hosts share."""

    def __init__(self, folder: pathlib.Path, keep: int):
        """Open a folder and clear away what an earlier process left unfinished.

        Args:
          folder: made if it does not exist.
          keep: sealed checkpoints to keep; older ones are deleted once a newer one is sealed.
        """
        self._folder = folder.absolute()
        self._keep = keep
        self._primary = first_process()
        self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._sealer = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: list[tuple[int, concurrent.futures.Future[None]]] = []
        if self._primary:
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob("step-*"):
                if path.is_dir() and not path.with_name(path.name + ".json").exists():
                    shutil.rmtree(path)

    def steps(self) -> list[int]:
        """Steps of the sealed checkpoints, oldest first."""
        return sorted(int(p.stem.removeprefix("step-")) for p in self._folder.glob("step-*.json"))

    def save(self, step: int, state: Any, best: int | None = None) -> None:
        """Begin to save `state`, any pytree of arrays; returns once it is safe to donate it.

        Args:
          step: number of the update.
          state: the state after it.
          best: an update whose checkpoint is kept, however old it is.

        Raises:
          RunError: this save or an earlier one failed.
        """
        self.wait()
        try:
            self._saver.save(self._path(step), args=ARGS.StandardSave(_named(state)))
        except (OSError, ValueError) as e:
            raise self._failed(step, e) from e
        self._pending.append((step, self._sealer.submit(self._seal, step, best)))

    def check(self) -> None:
        """Raise the error of a save that has failed since the last look, without waiting.

        Raises:
          RunError: names the step and the last good checkpoint.
        """
        while self._pending and self._pending[0][1].done():
            step, future = self._pending.pop(0)
            if (e := future.exception()) is not None:
                raise self._failed(step, e) from e

    def wait(self) -> None:
        """Wait until everything is written and sealed.

        Raises:
          RunError: a save failed.
        """
        concurrent.futures.wait([f for _, f in self._pending])
        self.check()

    def restore(self, abstract: Any) -> tuple[int, Any] | None:
        """The newest sealed checkpoint, or None if there is none.

        Args:
          abstract: the state as `jax.ShapeDtypeStruct`s with their shardings.

        Returns:
          (step, state).

        Raises:
          UserError: a file is missing or its bytes are not those that were saved.
        """
        steps = self.steps()
        return (steps[-1], self.restore_step(steps[-1], abstract)) if steps else None

    def restore_step(self, step: int, abstract: Any) -> Any:
        """The state of one sealed checkpoint; arguments and errors as for `restore`."""
        self._verify(step)
        named = self._saver.restore(self._path(step), args=ARGS.StandardRestore(_named(abstract)))
        structure = jax.tree.structure(abstract)
        return jax.tree.unflatten(structure, [named[k] for k in _named(abstract)])

    def close(self) -> None:
        """Stop the background threads; a save in flight is finished first."""
        self._sealer.shutdown()
        self._saver.close()

    def _path(self, step: int) -> pathlib.Path:
        return self._folder / f"step-{step:08d}"

    def _manifest(self, step: int) -> pathlib.Path:
        return self._folder / f"step-{step:08d}.json"

    def _seal(self, step: int, best: int | None) -> None:
        self._saver.wait_until_finished()
        if not self._primary:
            return
        root = self._path(step)
        files = {str(p.relative_to(root)): sha256(p) for p in _files(root)}
        write_whole(self._manifest(step), sealed(Manifest(step, files)._asdict()))
        for old in [s for s in self.steps()[: -self._keep] if s != best]:
            # The seal goes first: a kill between the two leaves a folder that does not count.
            self._manifest(old).unlink()
            shutil.rmtree(self._path(old))

    def _verify(self, step: int) -> None:
        root = self._path(step)
        remedy = "delete it to continue from an older checkpoint"
        saved = read_own(self._manifest(step), Manifest, remedy)
        for name, digest in saved.sha256.items():
            path = root / name
            what = "is missing" if not path.exists() else None
            if what or sha256(path) != digest:
                others = [s for s in self.steps() if s != step]
                older = f"the checkpoint of step {others[-1]}" if others else "the start"
                raise UserError(
                    f"checkpoint {root}: {name} {what or 'is damaged (its SHA-256 differs)'}; "
                    f"delete {self._manifest(step).name} to go on from {older}"
                )

    def _failed(self, step: int, error: BaseException) -> RunError:
        error = error.__cause__ or error  # of the seal
        good = [s for s in self.steps() if s != step]
        last = f"the checkpoint of step {good[-1]} is intact" if good else "none was saved before"
        # Tensorstore's errors are long, and what the system said stands anywhere in them.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else str(error).strip().split("\n")[0][:300]
        return RunError(
            f"checkpoint {self._path(step)} could not be saved: {reason}; {last}; "
            "make room on the disk and run the same command again"
        )


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
