"""Hosts that watch each other, as threads of one process."""

import concurrent.futures
import functools
import queue
import socket
import threading
import time

import jax
import pytest

from jaxalign.errors import RunError, UserError
from jaxalign.run import hosts
from jaxalign.run.hosts import Place, Relay, Watch

ENDED = "host 2 of 3 ended; the last checkpoint is intact: run the same command again on every host"


@pytest.fixture
def watched(monkeypatch):
    """`watched(heartbeat)`: three watches, and a queue of (host, line, code) of ended ones."""
    ended, known, told = queue.Queue(), threading.Event(), []

    def from_first(value):
        if any(value):  # the first host's
            told.append(value)
            known.set()
        assert known.wait(10)
        return told[0]

    def end(self, line, code):
        ended.put((self._here.host, line, code))

    monkeypatch.setattr(hosts, "_from_first", from_first)
    monkeypatch.setattr(hosts, "GRACE", 0.1)
    monkeypatch.setattr(hosts, "NOTICED", 0.01)
    monkeypatch.setattr(Watch, "_end", end)
    made = []

    def make(heartbeat=60):
        places = [Place("127.0.0.1:1", 3, host) for host in range(3)]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            made.extend(pool.map(Watch, places, [heartbeat] * 3))
        for watch in made:
            # A thread of it may call this after the test, and must not end the process.
            watch._end = functools.partial(end, watch)
            watch.begin()
        return made, ended

    yield make
    for watch in made:
        watch.leave()


def close(watch):
    for peer in watch.peers.values():
        peer.shutdown(socket.SHUT_RDWR)


def test_the_end_of_a_host_is_told_to_all_others_in_the_same_words(watched):
    watches, ended = watched()
    close(watches[2])
    found = {(host, line) for host, line, _ in (ended.get(timeout=5) for _ in range(3))}
    assert {(0, f"jaxalign: {ENDED}\n"), (1, f"jaxalign: {ENDED}\n")} <= found


def test_an_error_of_one_host_ends_the_others_after_some_time(watched):
    watches, ended = watched()
    watches[1].fail(UserError("a mistake\nof two lines"))
    found = {ended.get(timeout=5)[:2] for _ in range(2)}
    assert found >= {(0, "jaxalign: host 1 of 3 ended: a mistake\n")}


def test_hosts_that_fail_together_end_by_themselves(watched):
    watches, ended = watched()
    for watch in watches:
        watch.fail(UserError("a mistake"))
    with pytest.raises(queue.Empty):
        ended.get(timeout=0.5)


def test_a_process_that_stood_still_does_not_judge_the_silence_of_another(watched, monkeypatch):
    monkeypatch.setattr(Watch, "_tick", lambda self: None)
    watches, ended = watched(0.3)
    for watch in watches:
        watch._ticked = time.monotonic() - 60
    with pytest.raises(queue.Empty):
        ended.get(timeout=0.5)


def test_silence_ends_the_others(watched, monkeypatch):
    silent = Watch._say
    monkeypatch.setattr(
        Watch, "_say", lambda self, text: self._here.host == 2 or silent(self, text)
    )
    _, ended = watched(2)
    assert ended.get(timeout=10)[1].startswith("jaxalign: host 2 of 3 has been silent for 2 s; ")


@pytest.mark.parametrize("hold", [False, True])
def test_a_relay_passes_bytes_on_and_holds_a_lost_connection(hold):
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
        relay.hold = hold
        host, port = relay.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            far, _ = server.accept()
            client.sendall(b"ping")
            assert far.recv(4) == b"ping"
            far.sendall(b"pong")
            assert client.recv(4) == b"pong"
            far.close()
            client.settimeout(0.3 if hold else 5)
            if hold:
                with pytest.raises(TimeoutError):
                    client.recv(1)
            else:
                assert client.recv(1) == b""


def test_a_number_of_a_process_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'first'; wanted"):
        hosts.place()


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (ValueError("no address"), UserError, "no address; outside of TPU pods, .* set JAX_COORD"),
        (RuntimeError("DEADLINE\nrest"), RunError, "did not find one another: DEADLINE$"),
    ],
)
def test_hosts_that_cannot_be_joined_are_one_line(monkeypatch, raised, kind, message):
    def initialize(*_, **__):
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(kind, match=f"^run.distributed: .*{message}"):
        hosts.join(20)
