"""The routes of the page. Each takes a request apart, asks the queue, and writes what it says."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dipole.data.formats import save_groups
from dipole.errors import ConfigError, DipoleError
from dipole.feedback.export import export_groups
from dipole.feedback.monitor import overview
from dipole.feedback.queue import CHOICES, REASON_LIMIT, SECONDS_LIMIT, Assignment, Ballot, Desk, Queue, Refused
from dipole.feedback.studio.content import Gallery, markdown, turns, visible
from dipole.feedback.studio.guard import BODY_LIMIT, Guard, Passes, Visitor, person_name
from dipole.group import Group

ASSETS = {"studio.css": "text/css", "studio.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""Files that the page loads; nothing else of the folder is served."""

_EVENT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PROMPT = -1


class Studio:
    """The page: people's questions and answers, and the view of whoever runs it.

    Args:
        groups: what people are asked about.
        queue: hands out their pairs and takes the votes.
        gallery: their images.
        passes: who may come in.
        guide: what people should go by, in Markdown.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        queue: Queue,
        gallery: Gallery,
        passes: Passes,
        *,
        guide: str = "",
    ) -> None:
        self._groups = groups
        self._queue = queue
        self._gallery = gallery
        self._passes = passes
        self._guide = markdown(guide)
        self._person = lru_cache(maxsize=1024)(queue.store.person)
        self._text = lru_cache(maxsize=1024)(self._render_text)
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("dipole", "assets/studio"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def app(self, hosts: frozenset[str]) -> Guard:
        """The guarded app.

        Args:
            hosts: under which it is reached, see ``guard.known_hosts``.
        """
        routes = [
            Route("/", self._page),
            Route("/host", self._host),
            Route("/host/live", self._live),
            Route("/host/export", self._export),
            Route("/assets/{name}", self._asset),
            Route("/media/{name}", self._media),
            Route("/api/me", self._me),
            Route("/api/enter", self._enter, methods=["POST"]),
            Route("/api/name", self._name, methods=["POST"]),
            Route("/api/pairs", self._pairs, methods=["POST"]),
            Route("/api/vote", self._vote, methods=["POST"]),
            Route("/api/undo", self._undo, methods=["POST"]),
        ]
        handlers: dict[Any, Callable[[Request, Any], Response]] = {
            Refused: lambda _, fault: _problem(409, str(fault)),
            DipoleError: lambda _, fault: _problem(400, str(fault)),
            HTTPException: lambda _, fault: _problem(fault.status_code, fault.detail),
            SQLAlchemyError: lambda _, fault: _problem(503, "the store can't be written just now"),
        }
        return Guard(Starlette(routes=routes, exception_handlers=handlers), hosts)

    # Pages

    def _page(self, request: Request) -> Response:
        visitor = self._passes.read(request.cookies.get(self._passes.cookie))
        if visitor is None:
            return self._show("enter.html.jinja", step="token", names=[])
        if visitor.name is None and self._passes.people is not None:
            return self._host(request)
        if visitor.name is None or "name" in request.query_params:
            return self._show("enter.html.jinja", step="name", names=self._queue.store.names())
        return self._show(
            "studio.html.jinja",
            visitor=visitor,
            box=f"{self._passes.cookie}:{self._person(visitor.name)}",
            guide=self._guide,
            may_change=self._passes.people is None,
        )

    def _host(self, request: Request) -> Response:
        self._visitor(request, host=True)
        return self._show("host.html.jinja", **self._state())

    def _live(self, request: Request) -> Response:
        self._visitor(request, host=True)
        return self._show("live.html.jinja", **self._state())

    def _state(self) -> dict[str, Any]:
        now = self._queue.clock()
        rules = self._queue.rules
        return {"work": overview(self._queue.store, rules.votes_per_pair, now), "rules": rules, "now": now}

    def _export(self, request: Request) -> Response:
        self._visitor(request, host=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "groups.jsonl"
            slightly = self._queue.rules.slightly
            save_groups(export_groups(self._queue.store, self._groups.values(), slightly=slightly), file)
            written = file.read_bytes()
        name = time.strftime("groups-%Y%m%d-%H%M%S.jsonl")
        return Response(
            written, media_type="application/jsonl", headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )

    def _show(self, template: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(values))

    # Files

    def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ASSETS:
            raise HTTPException(404, "there is no such file")
        content = files("dipole").joinpath("assets", "studio", name).read_bytes()
        return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})

    def _media(self, request: Request) -> Response:
        self._visitor(request)
        image = self._gallery.image(request.path_params["name"])
        if image is None:
            raise HTTPException(404, "there is no such image")
        return Response(image, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})

    # Who is there

    def _visitor(self, request: Request, *, host: bool = False) -> Visitor:
        visitor = self._passes.read(request.cookies.get(self._passes.cookie))
        if visitor is None or (host and not visitor.is_host):
            raise HTTPException(403, "open the address that was printed for you when the server was started")
        return visitor

    def _judge(self, request: Request) -> int:
        """The number of the person who judges."""
        visitor = self._visitor(request)
        if visitor.name is None:
            raise HTTPException(403, "say who you are first")
        return self._person(visitor.name)

    def _me(self, request: Request) -> Response:
        return JSONResponse({"known": self._passes.read(request.cookies.get(self._passes.cookie)) is not None})

    async def _enter(self, request: Request) -> Response:
        values = await _values(request)
        visitor = self._passes.enter(_string(values, "token", 200))
        if visitor is None:
            raise HTTPException(403, "this address is of an earlier start, or was cut short; ask for the present one")
        known = self._passes.read(request.cookies.get(self._passes.cookie))
        if visitor.is_host and known is not None:  # whoever runs the server may have said their name before
            visitor = Visitor(known.name, is_host=True)
        return self._signed(visitor)

    async def _name(self, request: Request) -> Response:
        visitor = self._visitor(request)
        values = await _values(request)
        if self._passes.people is not None:
            raise HTTPException(403, "everyone has an address of their own here")
        name = person_name(_string(values, "name", 200))
        await run_in_threadpool(self._person, name)
        return self._signed(Visitor(name, is_host=visitor.is_host))

    def _signed(self, visitor: Visitor) -> Response:
        response = JSONResponse({"known": True})
        response.set_cookie(
            self._passes.cookie, self._passes.write(visitor), httponly=True, samesite="strict", max_age=90 * 24 * 3600
        )
        return response

    # Questions and answers

    async def _pairs(self, request: Request) -> Response:
        person = await run_in_threadpool(self._judge, request)
        values = await _values(request)
        return await self._desk(partial(self._queue.desk, person), values)

    async def _vote(self, request: Request) -> Response:
        person = await run_in_threadpool(self._judge, request)
        values = await _values(request)
        return await self._desk(partial(self._queue.answer, person, _ballot(values)), values)

    async def _undo(self, request: Request) -> Response:
        person = await run_in_threadpool(self._judge, request)
        values = await _values(request)
        return await self._desk(partial(self._queue.undo, person, _event_id(values)), values)

    async def _desk(self, ask: Callable[[], Desk], values: Mapping[str, Any]) -> Response:
        """What lies before the person now; texts that the browser has already aren't sent again."""
        have = values.get("have", [])
        known = {key for key in have if isinstance(key, str)} if isinstance(have, list) else set()

        def answer() -> dict[str, Any]:
            desk = ask()
            pairs = [{"key": item.key} | ({} if item.key in known else self._texts(item)) for item in desk.assignments]
            return {"pairs": pairs, "answered": desk.answered, "left": desk.left}

        return JSONResponse(await run_in_threadpool(answer))

    def _texts(self, item: Assignment) -> dict[str, str]:
        places = {"prompt": _PROMPT, "left": item.left, "right": item.right}
        return {name: self._text(item.group_id, place) for name, place in places.items()}

    def _render_text(self, group_id: str, place: int) -> Markup:
        group = self._groups[group_id]
        text = group.prompt if place == _PROMPT else group.completions[place].text
        shown = turns(text, self._gallery)
        template = self._templates.get_template("text.html.jinja")
        return Markup(template.render(turns=shown, is_chat=place == _PROMPT or len(shown) > 1))


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"problem": text}, status)


async def _values(request: Request) -> dict[str, Any]:
    """The object that a request brings.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        body = await request.body()
        values = await request.json() if len(body) <= BODY_LIMIT else None
    except (ValueError, RecursionError) as error:
        raise ConfigError("the request isn't JSON") from error
    if not isinstance(values, dict):
        raise ConfigError("the request isn't a JSON object")
    return values


def _string(values: Mapping[str, Any], name: str, limit: int) -> str:
    value = values.get(name, "")
    if not isinstance(value, str) or len(value) > limit:
        raise ConfigError(f"has to be text of at most {limit} characters", where=name)
    return visible(value)


def _event_id(values: Mapping[str, Any]) -> str:
    id = _string(values, "id", 36)
    if not _EVENT_ID.fullmatch(id):
        raise ConfigError("isn't the number of a vote", where="id")
    return id


def _ballot(values: Mapping[str, Any]) -> Ballot:
    choice, slightly, ms = values.get("choice"), values.get("slightly", False), values.get("ms", 0)
    if choice not in CHOICES:
        raise ConfigError(f"has to be one of {', '.join(CHOICES)}", where="choice")
    if not isinstance(slightly, bool) or (slightly and choice not in ("left", "right")):
        raise ConfigError("belongs to a better side", where="slightly")
    if not isinstance(ms, int) or isinstance(ms, bool) or not 0 <= ms <= SECONDS_LIMIT * 1000:
        raise ConfigError("has to be a whole number of milliseconds, of one day at most", where="ms")
    return Ballot(
        id=_event_id(values),
        key=_string(values, "key", 64),
        choice=choice,
        slightly=slightly,
        reason=_string(values, "reason", REASON_LIMIT).strip(),
        ms=ms,
    )
