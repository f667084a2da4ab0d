"""Hosts of a run that end together: each watches the others, and none outlives another.

jax notices a dead host by itself, but a process then aborts with a stack trace, or waits in its
exit for minutes. So the first host has a connection to each of the others, on which both sides say
every few seconds that they are alive. Where one ends or falls silent, the others say so in one line
and end with code 1. A host that ends with an error says so first, and the others have some seconds
to end with the same one.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..errors import RunError, UserError

TOKEN = 16
"""Bytes of the secret by which the first host knows the others."""
MEET = 20.0
"""Seconds in which the hosts connect."""
NOTICED = 1.0
"""Seconds in which the end of another host is noticed."""
GRACE = 8.0
"""Seconds in which a host ends by itself when another has failed."""
LONGEST = 1000
"""Characters of an error that the other hosts are told."""
AGAIN = "the last checkpoint is intact: run the same command again on every host"


class Place(NamedTuple):
    """This process among the processes of a run."""

    address: str
    """Host and port of the coordinator of jax, which is in the first process."""
    hosts: int
    host: int


NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Variables of the environment that say what `Place` has, where jax does not recognize it."""


def place() -> Place | None:
    """This process, by the environment or as jax recognizes it on TPU pods, Slurm, Kubernetes, MPI.

    Raises:
      UserError: a variable of the environment is no number.
    """
    address, *given = (os.environ.get(name) for name in NAMES)
    for name, value in zip(NAMES[1:], given, strict=True):
        if value is not None and not value.isdecimal():
            raise UserError(f"run.distributed: {name} is '{value}'; wanted a whole number")
    hosts, host = (None if value is None else int(value) for value in given)
    if address is None or hosts is None or host is None:
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            # Not public. Where it changes, jax still joins the hosts, and they are not watched.
            from jax._src.clusters import ClusterEnv

            detect = ClusterEnv.auto_detect_unset_distributed_params
            address, hosts, host, _ = detect(address, hosts, host, None, None, 300)
    return None if address is None or hosts is None or host is None else Place(address, hosts, host)


def join(heartbeat: int) -> None:
    """Join the other hosts of the run, once in a process, and watch them until it ends.

    Args:
      heartbeat: seconds of silence after which a host counts as dead.

    Raises:
      UserError: nothing says which hosts there are, or jax has been used before.
      RunError: the hosts did not find one another.
    """
    if jax.distributed.is_initialized():
        return
    here = place()
    # gRPC would look for the relay on the machine of a proxy.
    proxy = any(os.environ.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy"))
    relay = Relay(here.address) if here and here.host and not proxy else None
    try:
        jax.distributed.initialize(
            relay.address if relay else here and here.address,
            here and here.hosts,
            here and here.host,
            # Ours comes first, so that jax only ends a process whose watch has failed.
            heartbeat_timeout_seconds=2 * heartbeat,
        )
    except ValueError as e:
        raise UserError(
            f"run.distributed: {e}; outside of TPU pods, Slurm, Kubernetes and MPI set "
            f"{', '.join(NAMES)} in the environment of each process"
        ) from None
    except RuntimeError as e:
        if "must be called before" not in str(e):
            first = str(e).strip().split("\n")[0]
            raise RunError(f"run.distributed: the hosts did not find one another: {first}") from e
        raise UserError(
            "run.distributed: this process has used jax already, so it cannot join other hosts; "
            "start a new process and call jaxalign before anything else of jax"
        ) from None
    if here and here.hosts > 1:
        global _watch
        _watch = Watch(here, heartbeat)
        if relay is not None:
            relay.hold = 0 in _watch.peers
        atexit.register(_watch.leave)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Tell the other hosts if a command ends with an error, so that they end too."""
    watch = _watch
    if watch is None:
        yield
        return
    watch.begin()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, UserError):
            # It may come from the end of another host, which then ends this process.
            time.sleep(NOTICED)
        watch.fail(error)
        raise


class Watch:
    """Connections of the first host to each of the others, and what was said on them."""

    def __init__(self, here: Place, heartbeat: int):
        """Connect; every host calls this at the same time."""
        self._here, self._heartbeat = here, heartbeat
        self._calls = 0
        self._failed = 0
        """The last call that failed, from 1."""
        self._code = 0
        self._parted: set[int] = set()
        """Hosts that have said that they end; the end of their connection says nothing new."""
        self._ending = threading.Lock()
        self._ticked = time.monotonic()
        """When this process last said that it is alive."""
        self._woke = -math.inf
        """When it last resumed after standing still: suspended, or without time on a processor."""
        self.peers = self._listen() if here.host == 0 else self._connect()
        """The connections, by host."""
        for host, peer in self.peers.items():
            peer.settimeout(heartbeat)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread(self._hear_all, host, peer)
        _thread(self._tick)

    def begin(self) -> None:
        """A command begins."""
        self._calls += 1
        self._say("begin")

    def fail(self, error: BaseException) -> None:
        """The command has failed."""
        self._code = 2 if isinstance(error, UserError) else 1
        self._failed = self._calls
        text = (str(error) or type(error).__name__).strip().split("\n")[0][:LONGEST]
        self._say(f"failed {self._calls} {text}")

    def leave(self) -> None:
        """The process ends; after an error, once the others have ended or had time to."""
        if not self._failed or self._failed < self._calls:
            self._say("done")
            return
        self._say("parted")
        deadline = time.monotonic() + GRACE + 2
        while self.peers.keys() - self._parted and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.peers.keys() - self._parted:
            self._end("", self._code)  # the exit of jax would wait for them

    def _listen(self) -> dict[int, socket.socket]:
        """The first host's connections; a host that does not come is not watched."""
        found: dict[int, socket.socket] = {}
        token = secrets.token_bytes(TOKEN)
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        with socket.create_server(
            ("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6
        ) as server:
            port = server.getsockname()[1]
            _from_first(token + port.to_bytes(2, "big"))
            deadline = time.monotonic() + MEET
            while len(found) < self._here.hosts - 1 and time.monotonic() < deadline:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                with contextlib.suppress(OSError):
                    peer, _ = server.accept()
                    peer.settimeout(1)
                    hello = peer.recv(TOKEN + 4, socket.MSG_WAITALL)
                    if secrets.compare_digest(hello[:TOKEN], token):
                        found[int.from_bytes(hello[TOKEN:], "big")] = peer
        return found

    def _connect(self) -> dict[int, socket.socket]:
        """The connection to the first host; none if it cannot be reached."""
        told = _from_first(bytes(TOKEN + 2))
        where = (_split(self._here.address)[0], int.from_bytes(told[TOKEN:], "big"))
        with contextlib.suppress(OSError):
            peer = socket.create_connection(where, timeout=MEET)
            peer.sendall(told[:TOKEN] + self._here.host.to_bytes(4, "big"))
            return {0: peer}
        return {}

    def _say(self, text: str) -> None:
        for peer in self.peers.values():
            with contextlib.suppress(OSError):  # its listener notices
                peer.sendall(text.encode() + b"\n")

    def _tick(self) -> None:
        while True:
            time.sleep(self._heartbeat / 4)
            now = time.monotonic()
            if now - self._ticked > self._heartbeat / 2:
                self._woke = now
            self._ticked = now
            self._say("")

    def _stalled(self) -> bool:
        """Whether this process stood still itself, and so cannot judge the silence of another."""
        now = time.monotonic()
        return now - self._ticked > self._heartbeat / 2 or now - self._woke < self._heartbeat

    def _hear_all(self, host: int, peer: socket.socket) -> None:
        line, part = f"host {host} of {self._here.hosts} ended", b""
        with contextlib.suppress(OSError):
            while True:
                try:
                    if not (data := peer.recv(4096)):
                        break
                except TimeoutError:
                    if self._stalled():
                        continue
                    hosts, seconds = self._here.hosts, self._heartbeat
                    line = f"host {host} of {hosts} has been silent for {seconds} s"
                    break
                *lines, part = (part + data).split(b"\n")
                for said in lines:
                    self._hear(host, said.decode(errors="replace"))
        if host not in self._parted:
            self._lost(f"{line}; {AGAIN}")

    def _hear(self, host: int, text: str) -> None:
        word, _, rest = text.partition(" ")
        if word == "begin":
            self._parted.discard(host)
        elif word in ("done", "parted"):
            self._parted.add(host)
        elif word == "failed":
            self._parted.add(host)
            call, _, message = rest.partition(" ")
            timer = threading.Timer(GRACE, self._outlived, (host, int(call), message))
            timer.daemon = True
            timer.start()
        elif word == "lost":
            self._lost(rest)

    def _outlived(self, host: int, call: int, message: str) -> None:
        """Another host has failed some seconds ago."""
        if self._failed < call:
            self._lost(f"host {host} of {self._here.hosts} ended: {message}")

    def _lost(self, line: str) -> None:
        if 0 < self._failed == self._calls:
            time.sleep(NOTICED)  # in which the error of this host is printed
            self._end("", self._code)
        if self._here.host == 0:
            self._say(f"lost {line}")
        self._end(f"jaxalign: {line}\n", 1)

    def _end(self, line: str, code: int) -> None:
        """End this process now; the exit of jax would wait for the other hosts."""
        self._ending.acquire()  # never released: one line
        flush = _thread(_flush)
        flush.join(1)  # for ever, if the reader of the output has stopped
        os.write(2, line.encode())
        os._exit(code)


class Relay:
    """A local port for the coordinator of jax, on every host but the first.

    A client of jax aborts its process when its connection to the coordinator is lost. Through the
    relay it does not notice, and the process can end with one line.
    """

    def __init__(self, address: str):
        """Pass connections on to `address`."""
        self.hold = False
        """Whether the client keeps a connection that the coordinator has lost."""
        self._target = _split(address)
        self._listener = socket.create_server(("127.0.0.1", 0))
        _thread(self._accept)

    @property
    def address(self) -> str:
        """Host and port to give to jax."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:  # the first host has not started yet; jax tries again
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread(self._pump, near, far, True)
            _thread(self._pump, far, near, False)

    def _pump(self, source: socket.socket, sink: socket.socket, outward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        if outward or not self.hold:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)


_watch: Watch | None = None
"""The watch of this process, which lasts as long as its membership of the hosts of jax."""


def _split(address: str) -> tuple[str, int]:
    name, _, port = address.rpartition(":")
    return name.strip("[]"), int(port)


def _thread(function: Callable[..., object], *args: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()


def _from_first(value: bytes) -> bytes:
    """The bytes of the first host; the others give as many."""
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(value, np.uint8))
    return np.asarray(sent, np.uint8).tobytes()
