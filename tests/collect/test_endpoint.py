import itertools
import json
import sys

import pytest
from lib.endpoints import KEY, Fault, completion, endpoint

from jaxalign.collect.endpoint import Ask, Client, Reply
from jaxalign.errors import RunError, UserError
from jaxalign.settings.endpoint import Endpoint


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def client(url, folder, **options):
    cache = str(folder / "replies" / "cache.jsonl")
    how = {"timeout": 5.0, "attempts": 3, "concurrency": 4, "cache": cache} | options
    return Client(Endpoint(endpoint=url, model="m", **how))


def ask(text, again=0, **options):
    return Ask({"messages": [{"role": "user", "content": text}], **options}, again)


def echo(body, number):
    return body["messages"][-1]["content"]


def test_replies_are_in_the_order_of_the_requests(tmp_path):
    def slow_first(body, number):
        text = echo(body, number)
        return Fault(body=completion([text]), seconds=0.3 if text == "0" else 0.0)

    with endpoint(slow_first) as served:
        found = client(served.url, tmp_path).ask([ask(str(i)) for i in range(8)])
    assert [reply.texts for reply in found] == [[str(i)] for i in range(8)]
    assert found[0] == Reply(["0"], ["stop"], 100, 10)


def test_a_request_has_its_options_and_gets_all_choices(tmp_path):
    with endpoint(lambda body, _: ["a"] * body["n"]) as served:
        (found,) = client(served.url, tmp_path).ask([ask("x", n=3, temperature=0.5, seed=7)])
    assert found.texts == ["a"] * 3
    assert found.finishes == ["stop"] * 3
    messages = [{"role": "user", "content": "x"}]
    assert served.bodies == [
        {"model": "m", "messages": messages, "n": 3, "temperature": 0.5, "seed": 7}
    ]


def test_nothing_is_asked_twice(tmp_path):
    with endpoint(echo) as served:
        first = client(served.url, tmp_path)
        asks = [ask("x"), ask("y"), ask("x"), ask("x", again=1)]
        once = first.ask(asks)
        assert first.ask(asks) == once
        second = client(served.url, tmp_path)
        assert second.ask(asks) == once
    assert sorted(served.texts) == ["x", "x", "y"]
    assert first.report()["requests"] == 3
    assert second.report() | {"requests": 0} == first.report() | {"requests": 0}
    assert second.report()["requests"] == 0


@pytest.mark.parametrize("changed", [{"model": "other"}, {"temperature": 1.0}, {"messages": []}])
def test_another_request_is_asked(tmp_path, changed):
    with endpoint(lambda *_: "a") as served:
        client(served.url, tmp_path).ask([ask("x")])
        cache = str(tmp_path / "replies" / "cache.jsonl")
        how = Endpoint(endpoint=served.url, model=changed.get("model", "m"), cache=cache)
        other = {k: v for k, v in changed.items() if k != "model"}
        Client(how).ask([Ask({**ask("x").request, **other})])
    assert len(served.bodies) == 2


FAULTS = {
    "too many requests": Fault(status=429),
    "overloaded": Fault(status=503),
    "timeout": Fault(seconds=2.0),
    "closed": Fault(closes=0),
    "dies in the middle": Fault(body=completion(["x" * 100]), closes=20),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_request_that_fails_is_tried_again(tmp_path, fault):
    with endpoint(lambda body, number: fault if number == 0 else echo(body, number)) as served:
        found = client(served.url, tmp_path, timeout=1.0)
        assert [reply.texts for reply in found.ask([ask("x")])] == [["x"]]
    assert served.texts == ["x", "x"]
    assert found.report()["retries"] == 1


def test_retry_after_is_kept(tmp_path):
    wait = Fault(status=429, headers=(("Retry-After", "2"),))
    with endpoint(lambda body, number: wait if number == 0 else "a") as served:
        client(served.url, tmp_path).ask([ask("x")])
    first, second = served.times
    assert second - first >= 2


@pytest.mark.parametrize("fault", [FAULTS["overloaded"], FAULTS["closed"]], ids=["503", "closed"])
def test_a_dead_endpoint_is_an_error_that_keeps_what_was_answered(tmp_path, fault):
    asks = [ask(str(i)) for i in range(6)]
    with endpoint(lambda body, number: echo(body, number) if number < 3 else fault) as served:
        found = client(served.url, tmp_path, concurrency=1, attempts=2)
        with pytest.raises(
            RunError, match=r"no reply after 2 attempts.*run the same command again"
        ):
            found.ask(asks)
    assert served.texts == ["0", "1", "2", "3", "3"]
    assert len((tmp_path / "replies" / "cache.jsonl").read_text().splitlines()) == 3


def test_a_restart_asks_only_for_the_rest(tmp_path):
    asks = [ask(str(i)) for i in range(6)]
    dead = itertools.count()
    with endpoint(
        lambda b, n: echo(b, n) if next(dead) not in (3, 4) else FAULTS["closed"]
    ) as served:
        with pytest.raises(RunError, match=r"no reply after 2 attempts"):
            client(served.url, tmp_path, concurrency=1, attempts=2).ask(asks)
        found = client(served.url, tmp_path, concurrency=1).ask(asks)
    assert [reply.texts for reply in found] == [[str(i)] for i in range(6)]
    assert served.texts == ["0", "1", "2", "3", "3", "3", "4", "5"]


def test_a_torn_last_line_of_the_cache_is_asked_again(tmp_path):
    file = tmp_path / "replies" / "cache.jsonl"
    with endpoint(echo) as served:
        client(served.url, tmp_path, concurrency=1).ask([ask("x"), ask("y")])
        file.write_bytes(file.read_bytes()[:-20])
        found = client(served.url, tmp_path).ask([ask("x"), ask("y")])
    assert [reply.texts for reply in found] == [["x"], ["y"]]
    assert served.texts == ["x", "y", "y"]
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 2


def test_a_damaged_line_of_the_cache_is_named(tmp_path):
    file = tmp_path / "replies" / "cache.jsonl"
    with endpoint(echo) as served:
        client(served.url, tmp_path).ask([ask("x")])
        file.write_text('{"key": 3}\n' + file.read_text())
        with pytest.raises(RunError, match=r"cache\.jsonl line 1: is no reply of an endpoint"):
            client(served.url, tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=401, body=f'{{"error": {{"message": "bad key {KEY}"}}}}'), r"401.*\*\*\*"),
        (Fault(status=404), r"refuses the request: .*404.*check the URL"),
        (Fault(status=400), r"refuses the request: .*400"),
    ],
)
def test_a_refused_request_is_not_tried_again_and_the_key_is_not_shown(tmp_path, fault, message):
    with endpoint(lambda *_: fault) as served, pytest.raises(UserError, match=message) as caught:
        client(served.url, tmp_path).ask([ask("x")])
    assert len(served.bodies) == 1
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("body", ["<html>", "{}", "[]", '{"choices": []}', '{"choices": [{}]}'])
def test_a_reply_that_is_no_completion_is_an_error(tmp_path, body):
    with endpoint(lambda *_: Fault(body=body)) as served:
        found = client(served.url, tmp_path)
        with pytest.raises(RunError, match=r"its reply is no chat completion"):
            found.ask([ask("x")])


def test_an_endpoint_that_is_not_there_is_an_error(tmp_path):
    with endpoint(echo) as served:
        url = served.url
    with pytest.raises(RunError, match=r"no reply after 1 attempts .*Connection"):
        client(url, tmp_path, attempts=1).ask([ask("x")])


def test_the_key_is_sent_and_never_written(tmp_path):
    with endpoint(echo) as served:
        client(served.url, tmp_path).ask([ask("x")])
    assert served.keys == {f"Bearer {KEY}"}
    assert KEY not in (tmp_path / "replies" / "cache.jsonl").read_text()


def test_a_missing_key_is_named_unless_none_is_wanted(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=r"environment variable OPENAI_API_KEY is empty"):
        client("http://localhost:1/v1", tmp_path)
    with endpoint(echo) as served:
        client(served.url, tmp_path, key_env=None).ask([ask("x")])
    assert served.texts == ["x"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"install jaxalign\[endpoint\]"):
        client("http://localhost:1/v1", tmp_path)


def test_the_price_is_of_all_replies_used(tmp_path):
    with endpoint(echo) as served:
        found = client(served.url, tmp_path, price_in=2.0, price_out=30.0)
        found.ask([ask("x"), ask("y")])
    assert found.report() == {
        "requests": 2,
        "retries": 0,
        "replies": 2,
        "tokens_in": 200,
        "tokens_out": 20,
        "price": pytest.approx((200 * 2 + 20 * 30) / 1e6),
    }
