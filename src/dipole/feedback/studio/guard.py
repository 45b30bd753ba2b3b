"""Who may ask the server for what.

The server listens on this machine alone unless it is told otherwise, but pages of other sites run in the same browser
and can send it requests. So every request has to name a host that the server knows (a foreign name that leads here
would make another site's page "same origin"), every write has to come from one of its own pages, and everything but the
entrance needs a cookie, which is given for the token in the address that was printed at the start. Nothing a page
holds can load or send anything elsewhere: the content policy says so to the browser.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dipole.errors import ConfigError

BODY_LIMIT = 64 * 1024
"""Bytes of a request; a vote has a few hundred, its reason up to 16,000."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

NAME_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who a cookie says is there.

    Args:
        name: of a person who judges, ``None`` while they haven't said it.
        is_host: whether they run the server, and may see how the work goes.
    """

    name: str | None = None
    is_host: bool = False


class Passes:
    """Tokens and cookies, all made from the store's secret, so that they outlive a restart.

    Args:
        secret: of the store.
        start_token: of whoever runs the server, new at each start.
        people: names that have a token each; ``None`` where whoever has the start token says their name.
    """

    def __init__(self, secret: str, start_token: str, people: Collection[str] | None = None) -> None:
        self._secret = secret.encode()
        self._start_token = start_token
        self.people = None if people is None else tuple(people)
        self.cookie = f"dipole-{self._sign('cookie')[:8]}"  # cookies of one host are shared by all of its ports

    def token(self, name: str) -> str:
        """The token of a person; the same after a restart."""
        return self._sign(f"person {name}")

    def enter(self, token: str) -> Visitor | None:
        """Whose token it is; ``None`` if nobody's."""
        if hmac.compare_digest(token.encode(errors="replace"), self._start_token.encode()):
            return Visitor(is_host=True)
        given = token.encode(errors="replace")
        return next(
            (Visitor(name) for name in self.people or () if hmac.compare_digest(given, self.token(name).encode())), None
        )

    def write(self, visitor: Visitor) -> str:
        """The cookie of a visitor."""
        said = base64.urlsafe_b64encode(json.dumps([visitor.name, visitor.is_host]).encode()).decode()
        return f"{said}.{self._sign(f'cookie {said}')}"

    def read(self, cookie: str | None) -> Visitor | None:
        """Who a cookie says is there; ``None`` if it isn't one of ours, or the person isn't expected any more."""
        said, _, signature = (cookie or "").rpartition(".")
        if not said or not hmac.compare_digest(signature.encode(), self._sign(f"cookie {said}").encode()):
            return None
        visitor = Visitor(*json.loads(base64.urlsafe_b64decode(said)))
        expected = self.people is None or visitor.name is None or visitor.name in self.people
        return visitor if expected else None

    def _sign(self, text: str) -> str:
        digest = hmac.new(self._secret, text.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def person_name(text: str) -> str:
    """A name as it is kept: normalised, without surplus white space.

    Raises:
        ConfigError: it is empty, too long, or has characters that can't be seen.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 0 < len(name) <= NAME_LIMIT or not name.isprintable():
        raise ConfigError(f"a name has 1 to {NAME_LIMIT} characters that can be seen", where=repr(text[:80]))
    return name


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def known_hosts(names: Iterable[str], port: int, *, known_as: Iterable[str] = ()) -> frozenset[str]:
    """What a request may name as its host: each name, with the port (or without, where it is HTTP's own).

    Args:
        names: of this machine.
        port: on which it listens.
        known_as: under which others reach it, through a tunnel or a proxy that has a port of its own: as they are, so
            ``studio.example`` with HTTP's and HTTPS's own port, ``studio.example:9000`` with that; and with ``port``.
    """
    own, others = [_bracketed(name) for name in names], [_bracketed(name) for name in known_as]
    return frozenset([*(with_port(name, port) for name in (*own, *others)), *others, *(own if port == 80 else [])])


def with_port(name: str, port: int) -> str:
    """A host's name or address as URLs have it, with this port unless it has one."""
    name = _bracketed(name)
    host, _, last = name.rpartition(":")
    return name if host and last.isdigit() else f"{name}:{port}"


def _bracketed(name: str) -> str:
    """A name in lower case; an IPv6 address without a port gets its brackets."""
    return f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name.lower()


class Guard:
    """Stands before the app: refuses what doesn't come from its own pages, and tells browsers what pages may do.

    Args:
        app: what is guarded.
        hosts: see ``known_hosts``.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Connections of other kinds, such as web sockets, are refused."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal is not None:
            status, problem = refusal
            await JSONResponse({"problem": problem}, status)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason if the request isn't taken."""
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return 400, "this server isn't known by that name"
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405, "only GET and POST are known here"
        if headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            return 403, "this came from another page"
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "this came from another page"
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, "only JSON is taken"
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > BODY_LIMIT:
            return 413, f"at most {BODY_LIMIT} bytes are taken, and how many it is has to be said"
        return None
