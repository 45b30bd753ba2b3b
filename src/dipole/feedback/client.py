"""Asks language models behind an OpenAI-compatible URL: vLLM, SGLang, llama.cpp, ``transformers serve``, or a vendor's.

What is sent again: requests that timed out or whose connection broke, and those answered by 408, 409, 425, 429, a 5xx
or half a reply; after a wait that doubles and is drawn at random ("full jitter"), or as long as Retry-After says, which
then holds for all threads. What isn't: a wrong key (the whole run stops), and a request that the server refuses, such
as one that is too long (``Refused``: that question has no answer). Replies are bounded in size and in total time.

A key is given by the name of an environment variable. It is in no message, file or log: where a server repeats it, it
is cut out of what the server said.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from time import monotonic, sleep, time
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dipole.errors import ConfigError, JudgeError
from dipole.feedback.budget import Budget, Limits
from dipole.feedback.cache import Cache, content_key
from dipole.group import Message

try:
    import httpx2
except ImportError as missing:
    raise ConfigError(
        "models behind a URL need the package httpx2", remedy="Install it: pip install 'dipole[judge]'"
    ) from missing

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_REPLY_BYTES = 4 * 2**20
WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429})
"""Beside all of 500 and above."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Refused(Exception):
    """The server won't answer this question, and wouldn't if it were asked again. The text says why."""


class _TooLarge(Refused):
    """It did answer, at such length that the answer is of no use; whatever that costs has been spent."""


class _Unanswered(Exception):
    """No reply this time; another try may help.

    Args:
        reason: in a few words.
        wait: seconds that the server asks to wait.
        refused: whether it is known that nothing was computed.
    """

    def __init__(self, reason: str, *, wait: float | None = None, refused: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.refused = reason, wait, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered.

    Args:
        text: may be empty.
        finish_reason: ``"stop"``, ``"length"`` (cut at ``max_tokens``) or whatever else the server says.
        prompt_tokens: as the server counts; ``None`` if it doesn't say.
        completion_tokens: likewise.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client waits for one reply, and how often it tries.

    Args:
        timeout: seconds a try may take altogether, however slowly the reply drips in.
        tries: at most, the first included.
        deadline: seconds for all tries and the waits between them.
        longest_wait: between two tries, unless the server asks for more.
    """

    timeout: float = 120.0
    tries: int = 6
    deadline: float = 600.0
    longest_wait: float = 30.0

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.tries < 1:
            raise ConfigError("a reply needs some time and at least one try", where="--timeout")


class ChatClient:
    """Sends chats to one model of one server, each at most once in the life of its cache. Threads may share it.

    Args:
        url: up to the version, such as ``http://127.0.0.1:8000/v1``.
        model: the server's name for it.
        key_variable: the name of the environment variable that holds the key, for servers that want one.
        cache: of replies, with the ledger of calls; by default in memory.
        limits: on what may be spent.
        patience: with a slow or failing server.
        sleep: waits some seconds; tests put their own in.

    Raises:
        ConfigError: the URL is none, holds a password, or the environment variable isn't set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = None,
        cache: Cache | None = None,
        limits: Limits | None = None,
        patience: Patience | None = None,
        sleep: Callable[[float], object] = sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "the URL holds more than an address", remedy="Keys go into an environment variable: ?key=NAME"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"'{url}' is no URL of a server", remedy="Write it as http://127.0.0.1:8000/v1")
        self.url, self.model = url.rstrip("/"), model
        self._endpoint = f"{self.url}/chat/completions"
        self.cache = cache or Cache()
        self.budget = Budget(self.cache, limits)
        self.patience = patience or Patience()
        self._key = _read_key(key_variable)
        self._sleep = sleep
        self._asking = [threading.Lock() for _ in range(16**3)]
        self._not_before = 0.0
        self._fatal: JudgeError | None = None
        self._http = httpx2.Client(
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            verify=parts.scheme == "https",  # no redirect is followed, so plain HTTP needs no certificates
            trust_env=parts.hostname not in LOOPBACK,  # a proxy can't know this machine's own servers
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def complete(self, messages: Sequence[Message], *, max_tokens: int, sample: int = 0, **settings: Any) -> Reply:
        """The model's answer to a chat, from the cache if it was asked before.

        Args:
            messages: the chat.
            max_tokens: of the answer.
            sample: which of several answers to the same chat; 0 is the first.
            settings: sent as they are, such as ``temperature``, ``top_p``, ``stop``, ``seed``.

        Raises:
            Refused: the server won't answer this one.
            JudgeError: the budget is spent, the key is wrong, or the server is out of reach.
        """
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens, **settings}
        key = content_key({"url": self.url, "sample": sample, "body": body})
        with self._asking[int(key[:3], 16)]:  # or two threads would ask the same at the same time
            if (kept := self.cache.get(key)) is not None:
                return Reply(**kept)
            reply = self._ask(key, body)
            self.cache.put(key, asdict(reply))
            return reply

    def _ask(self, key: str, body: Mapping[str, Any]) -> Reply:
        """Tries until there is a reply, or no hope of one."""
        end = monotonic() + self.patience.deadline
        last = "no time left"
        for number in range(self.patience.tries):
            self._wait_for_turn(end)
            try:
                return self._try(key, body, min(self.patience.timeout, max(0.1, end - monotonic())))
            except _Unanswered as fault:
                last = fault.reason
                wait = self._wait(number, fault)
                if number + 1 == self.patience.tries or monotonic() + wait > end:
                    break
                self._sleep(wait)
        raise self._out_of_reach(last)

    def _wait(self, number: int, fault: _Unanswered) -> float:
        """Seconds until the next try. Jitter keeps threads from coming back all at once."""
        jitter = random.uniform(0, min(self.patience.longest_wait, 0.5 * 2**number))
        if fault.wait is None:
            return jitter
        self._not_before = max(self._not_before, monotonic() + fault.wait)
        return fault.wait + min(1.0, jitter)

    def _wait_for_turn(self, end: float) -> None:
        """Waits while the server wants to be left alone; raises what has stopped other threads."""
        if (wait := self._not_before - monotonic()) > 0 and monotonic() + wait < end:
            self._sleep(wait)
        if self._fatal is not None:
            raise self._fatal

    def _try(self, key: str, body: Mapping[str, Any], seconds: float) -> Reply:
        with self.budget.call(key, body["messages"], body["max_tokens"]) as booking:
            try:
                status, headers, text = self._send(body, seconds)
                _check_status(status, headers, text, self.url)
                reply = _read_reply(text, headers, self.url)
            except Refused as fault:
                if not isinstance(fault, _TooLarge):
                    booking.refused(str(fault))
                raise
            except _Unanswered as fault:
                if fault.refused:
                    booking.refused(fault.reason)
                raise
            except JudgeError as fault:
                self._fatal = fault
                booking.refused(fault.problem)
                raise
            booking.answered(reply.prompt_tokens, reply.completion_tokens)
        return reply

    def _send(self, body: Mapping[str, Any], seconds: float) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of the reply; the text without the key, should the server repeat it."""
        end = monotonic() + seconds
        timeout = httpx2.Timeout(seconds, connect=min(seconds, 10.0))
        content = json.dumps(body).encode("ascii")  # escapes hold what UTF-8 can't: half a surrogate pair
        received = bytearray()
        try:
            with self._http.stream("POST", self._endpoint, content=content, timeout=timeout) as response:
                for piece in response.iter_bytes():
                    received += piece
                    if len(received) > MAX_REPLY_BYTES:
                        raise _TooLarge(f"the reply is larger than {MAX_REPLY_BYTES:,} bytes")
                    if monotonic() > end:
                        raise _Unanswered(f"the reply took longer than {seconds:.3g} s")
        except httpx2.ConnectError as fault:
            raise _Unanswered(f"no connection ({self._without_key(str(fault))})", refused=True) from fault
        except httpx2.TimeoutException as fault:
            raise _Unanswered(f"no reply within {seconds:.3g} s") from fault
        except (httpx2.TransportError, httpx2.DecodingError) as fault:
            raise _Unanswered(f"the connection broke ({self._without_key(str(fault))})") from fault
        text = self._without_key(received.decode("utf-8", errors="replace"))
        return response.status_code, response.headers, text

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _out_of_reach(self, reason: str) -> JudgeError:
        return JudgeError(
            f"gave no reply to a question, in {self.patience.tries} tries or {self.patience.deadline:g} s: {reason}",
            where=self.url,
            remedy="See to the server and run the same command again: nothing is asked twice",
        )


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """``map`` with several threads: results in order, items read only a little ahead.

    What ``function`` raises is raised in its place, after all results before it; what has not begun then never does.
    """
    pool = ThreadPoolExecutor(max_workers=threads)
    window: deque[Future[Result]] = deque()
    try:
        for item in items:
            window.append(pool.submit(function, item))
            if len(window) >= 2 * threads:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable '{variable}' isn't set",
            remedy="Name the variable that holds the key, not the key itself",
        )
    return key


def _check_status(status: int, headers: Mapping[str, str], text: str, url: str) -> None:
    if status < 300:
        return
    said = f"status {status}: {_message(text)}"
    if status in WORTH_ANOTHER_TRY or status >= 500:
        raise _Unanswered(said, wait=_retry_after(headers.get("retry-after")), refused=status == 429)
    if status in (400, 413, 422):
        raise Refused(said)
    remedy = {
        401: "Name the environment variable that holds a valid key: ?key=NAME",
        403: "The key may not use this model",
        404: "Check the URL, which ends before /chat/completions, and the model's name",
    }
    raise JudgeError(f"refuses every question ({said})", where=url, remedy=remedy.get(status, "Check the URL"))


def _message(text: str) -> str:
    """What an error reply says, in one line."""
    try:
        value = json.loads(text)
        error = value.get("error", value.get("detail", value)) if isinstance(value, dict) else value
        said = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        said = text
    return " ".join(str(said).split())[:300]


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def _read_reply(text: str, headers: Mapping[str, str], url: str) -> Reply:
    if "html" in headers.get("content-type", ""):
        raise JudgeError("answers with a web page", where=url, remedy="The URL is that of something else")
    try:
        value = json.loads(text)
        choice = value["choices"][0]
        content = choice["message"]["content"]
        usage = value.get("usage") or {}
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as fault:
        raise _Unanswered(f"half a reply, or none of a chat ({text[:80]!r})") from fault
    counts = [number if isinstance(number, int) and number >= 0 else None for number in tokens]
    reason = choice.get("finish_reason")
    return Reply(
        text=content if isinstance(content, str) else "",
        finish_reason=str(reason) if reason is not None else None,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
    )
