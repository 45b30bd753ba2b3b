"""What models and people wrote, as HTML that can do nothing: no script, no style, no link, no request to anywhere.

Markdown is rendered with raw HTML shown as text. Links and images in it become words with their address beside them,
since a link would leave the page and an image would tell a server that it was looked at. Images that the data bring are
read from the data's folder alone, decoded and written anew, and known to the page by a name that says nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape

from dipole.data.media import PIXEL_LIMIT, REMEDIES, media_faults, media_reference, media_references
from dipole.errors import DataError
from dipole.group import Group, Message, Text

MARKDOWN_LIMIT = 100_000
"""Characters of one text up to which Markdown is rendered; a longer one is shown as it was written."""

MARKS_LIMIT = 3_000
"""Marks of emphasis and links in one paragraph up to which Markdown is rendered: time grows with their square."""

IMAGE_SIDE = 2048
"""Pixels of the longer side up to which images are sent as they are; larger ones are scaled down."""

SHOWN_KEYS = ("reasoning_content", "tool_calls")
"""What is shown of a message beside its content; anything else might tell which model wrote it."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000)), 0xFFFD)
"""Control characters become their pictures; what UTF-8 can't hold becomes a question mark."""


class _Inert(RendererHTML):
    """Writes links and images as words."""

    def link_open(self, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType) -> str:
        return '<span class="link">'

    def link_close(self, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType) -> str:
        opened = next(
            number
            for number in range(place, -1, -1)
            if tokens[number].type == "link_open" and tokens[number].level == tokens[place].level
        )
        address = str(tokens[opened].attrs.get("href", ""))
        words = "".join(token.content for token in tokens[opened + 1 : place])
        return "</span>" if words == address else f'</span> <span class="address">({escape(address)})</span>'

    def image(self, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType) -> str:
        address = escape(str(tokens[place].attrs.get("src", "")))
        return f'<span class="link">{escape(tokens[place].content)}</span> <span class="address">({address})</span>'


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Inert)
_MARKDOWN.enable(["table", "strikethrough"])


def visible(text: str) -> str:
    """Text in which nothing is hidden, and that UTF-8 can hold."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def markdown(text: str) -> Markup:
    """Markdown as inert HTML. Headings come below those of the page; a table's columns are aligned by classes."""
    tokens = _MARKDOWN.parse(visible(text))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        if style := token.attrs.pop("style", None):  # the page allows no styles but its own
            token.attrs["class"] = str(style).replace("text-align:", "to-")
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


class Gallery:
    """The images that groups refer to, under names that tell nothing.

    Args:
        groups: the groups.
        folder: of the data file, which no image may lie outside of.
        secret: what names are made from, so that the same image has the same name after a restart.

    Raises:
        DataError: a file isn't there, isn't in the folder, or is no image that can be shown.
    """

    def __init__(self, groups: Iterable[Group], folder: Path, secret: str) -> None:
        self._folder = folder.resolve()
        self._secret = secret.encode()
        self._paths: dict[str, str] = {}
        for group in groups:
            if (fault := next(media_faults(group, folder), None)) is not None:
                raise DataError(fault.detail, where=f"group '{group.id}'", remedy=REMEDIES[fault.name])
            for text in (group.prompt, *(completion.text for completion in group.completions)):
                paths = [path for kind, path in media_references(text) if kind == "image"]
                self._paths |= {self.name(path): path for path in paths}
        self.image = lru_cache(maxsize=128)(self._image)

    def name(self, path: str) -> str:
        """The name of the image at a path."""
        return hmac.new(self._secret, path.encode(errors="replace"), hashlib.sha256).hexdigest()[:32]

    def _image(self, name: str) -> bytes | None:
        """The image of that name as WebP, without anything but its pixels; ``None`` if there is none (any more)."""
        from PIL import Image, ImageOps

        reference = self._paths.get(name)
        if reference is None:
            return None
        path = (self._folder / reference).resolve()
        if not path.is_relative_to(self._folder):  # it has become a link since the start
            return None
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > PIXEL_LIMIT:
                    return None
                upright = ImageOps.exif_transpose(image)
                upright.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
                written = io.BytesIO()
                upright.convert("RGBA" if upright.has_transparency_data else "RGB").save(written, "WEBP", quality=92)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        return written.getvalue()


def turns(text: Text, gallery: Gallery) -> list[dict[str, Any]]:
    """What a template needs to show a text: a list of turns, each with a ``role`` (or ``None``) and ``parts``.

    A part has ``kind``: ``text`` (with ``source``, the words as they were written, and ``html``, ``None`` if they are
    too long to be rendered), ``image`` (with ``name``), or ``note``: words about something that can't be shown.
    """
    if isinstance(text, str):
        return [{"role": None, "parts": [_text_part(text)]}]
    return [{"role": visible(str(message.get("role", ""))), "parts": _parts(message, gallery)} for message in text]


def _text_part(text: str) -> dict[str, Any]:
    return {
        "kind": "text",
        "source": visible(text),
        "html": markdown(text) if _is_renderable(text) else None,
    }


def _is_renderable(text: str) -> bool:
    """Whether Markdown of it takes no longer than a moment."""
    paragraphs = text.split("\n\n") if len(text) <= MARKDOWN_LIMIT else []
    return bool(paragraphs) and all(sum(map(part.count, "*_~[`<&")) <= MARKS_LIMIT for part in paragraphs)


def _parts(message: Message, gallery: Gallery) -> list[dict[str, Any]]:
    content = message.get("content")
    pieces: Sequence[Any] = content if isinstance(content, Sequence) and not isinstance(content, str) else [content]
    parts = [_part(piece, gallery) for piece in pieces if piece is not None]
    also = {name: message[name] for name in SHOWN_KEYS if message.get(name)}
    if also:
        written = json.dumps(also, ensure_ascii=False, indent=2, default=str)
        parts.append({"kind": "text", "source": visible(written), "html": None})
    return parts


def _part(piece: Any, gallery: Gallery) -> dict[str, Any]:
    if isinstance(piece, str):
        return _text_part(piece)
    if (media := media_reference(piece)) is not None:
        kind, reference = media
        if kind == "image":
            return {"kind": "image", "name": gallery.name(str(reference))}
        return {"kind": "note", "text": f"(a file of {kind}, which this page doesn't play)"}
    if isinstance(piece, Mapping) and isinstance(piece.get("text"), str):
        return _text_part(piece["text"])
    return {"kind": "note", "text": "(a part that this page can't show)"}
