"""A client of an OpenAI-compatible endpoint that keeps every reply on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from ..documents import from_json
from ..errors import RunError, UserError, writing
from ..settings.endpoint import Endpoint
from ..shown import shown


class Ask(NamedTuple):
    """A request for chat completions."""

    request: Mapping[str, Any]
    """Arguments of the request: `messages`, `n`, `temperature`, `max_tokens`, `seed`, ..."""
    again: int = 0
    """How many earlier replies to this request were of no use."""


class Reply(NamedTuple):
    """A reply of the model."""

    texts: list[str]
    finishes: list[str]
    """How each text ended: stop, or length for one that was cut."""
    tokens_in: int = 0
    tokens_out: int = 0


class Client:
    """A model behind an endpoint. No request is sent again whose reply is in the cache.

    The `openai` package waits and tries again after the statuses 408, 409, 429 and 5xx, timeouts
    and lost connections, longer each time, at random, or as long as `Retry-After` says.
    """

    def __init__(self, how: Endpoint):
        """Read the cache; nothing is sent.

        Args:
          how: the endpoint.

        Raises:
          UserError: the API key or the `openai` package is missing.
          RunError: the cache is damaged.
        """
        try:
            import openai
        except ImportError:
            raise UserError(
                "endpoint: the package openai is missing; install jaxalign[endpoint]"
            ) from None
        self._key = os.environ.get(how.key_env, "") if how.key_env else "none"
        if not self._key:
            raise UserError(
                f"endpoint: the environment variable {how.key_env} is empty; put the API key into "
                "it, or set key_env to none for an endpoint without one"
            )
        self._how, self._openai = how, openai
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=how.endpoint,
            timeout=how.timeout,
            max_retries=how.attempts - 1,
        )
        self._file = Path(how.cache)
        self._replies = _read_cache(self._file)
        self._lock = threading.Lock()
        self._sent = self._retries = 0
        self._used: set[str] = set()

    def ask(self, asks: Sequence[Ask]) -> list[Reply]:
        """The replies, in the order of the requests; several are in flight at a time.

        After the first failure no further request is sent; the replies so far are in the cache.

        Raises:
          UserError: the endpoint refuses a request.
          RunError: the endpoint does not answer, or answers something else.
        """
        keys = list(map(self._key_of, asks))
        missing = {k: a for k, a in zip(keys, asks, strict=True) if k not in self._replies}
        stop = threading.Event()

        def send(key: str, ask: Ask) -> None:
            if not stop.is_set():
                try:
                    self._send(key, ask)
                except Exception:
                    stop.set()  # before this thread takes the next request
                    raise

        pool = ThreadPoolExecutor(self._how.concurrency, thread_name_prefix="endpoint")
        try:
            waiting = [pool.submit(send, key, ask) for key, ask in missing.items()]
            done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
            failed = [future for future in waiting if future in done and future.exception()]
            if failed:
                failed[0].result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        self._used |= set(keys)
        return [self._replies[key] for key in keys]

    def _key_of(self, ask: Ask) -> str:
        """SHA-256 of all that a reply depends on."""
        about = [self._how.endpoint, self._how.model, dict(ask.request), ask.again]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _send(self, key: str, ask: Ask) -> None:
        errors = self._openai
        name = self._how.endpoint
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self._how.model, **ask.request
            )
            reply = _reply(json.loads(raw.content))
        except (errors.APITimeoutError, errors.APIConnectionError) as error:
            said = f"{type(error).__name__}: {error.__cause__ or error}"
            raise self._dead(said) from None
        except errors.APIStatusError as error:
            said = f"{error.status_code} {self._without_key(error.message)}"
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise self._dead(said) from None
            raise UserError(
                f"{name}: refuses the request: {shown(said, 300)}; check the URL, the model and "
                "the API key"
            ) from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(
                f"{name}: its reply is no chat completion ({type(error).__name__}: {error}); is it "
                "an OpenAI-compatible endpoint?"
            ) from None
        with self._lock:
            self._sent += 1
            self._retries += raw.retries_taken
            self._write(key, reply)
            self._replies[key] = reply

    def _dead(self, said: str) -> RunError:
        return RunError(
            f"{self._how.endpoint}: no reply after {self._how.attempts} attempts "
            f"({shown(self._without_key(said), 300)}); every reply so far is in {self._file}; run "
            "the same command again when the endpoint answers"
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._how.key_env else text

    def _write(self, key: str, reply: Reply) -> None:
        line = json.dumps({"key": key, **reply._asdict()}) + "\n"
        with writing(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                file.write(line.encode())

    def report(self) -> dict[str, float]:
        """Requests sent and tried again now; tokens and price of all replies used, old and new."""
        used = [self._replies[key] for key in self._used]
        tokens_in = sum(reply.tokens_in for reply in used)
        tokens_out = sum(reply.tokens_out for reply in used)
        price = tokens_in * self._how.price_in + tokens_out * self._how.price_out
        return {
            "requests": self._sent,
            "retries": self._retries,
            "replies": len(used),
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "price": price / 1e6,
        }


def _reply(raw: Any) -> Reply:
    """The reply in the JSON of a chat completion.

    Raises:
      ValueError, KeyError, TypeError: it is of another form.
    """
    choices = raw["choices"]
    if not choices:
        raise ValueError("it has no choices")
    texts = [choice["message"]["content"] or "" for choice in choices]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a content is no text")
    usage = raw.get("usage") or {}
    return Reply(
        texts,
        [str(choice.get("finish_reason") or "stop") for choice in choices],
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of the cache."""

    key: str
    texts: list[str]
    finishes: list[str]
    tokens_in: int
    tokens_out: int


def _read_cache(file: Path) -> dict[str, Reply]:
    """The replies in a cache; a last line without an end, which a kill left, is cut off.

    Raises:
      RunError: another line is damaged.
    """
    if not file.exists():
        return {}
    raw = file.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with writing(file):
            os.truncate(file, len(whole))
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            read = pydantic.TypeAdapter(_Line).validate_python(from_json(line))
        except ValueError:
            raise RunError(
                f"{file} line {number}: is no reply of an endpoint; restore the file, or delete it "
                "to ask everything again"
            ) from None
        found[read.key] = Reply(read.texts, read.finishes, read.tokens_in, read.tokens_out)
    return found
