"""Files that messages refer to: they have to be there, inside of the data's folder, and of a sane size.

A reference is data of someone else. It never leads out of the folder (not by ``..``, not by a link), never to a server,
and an image's size is read from its header before anything is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dipole.data.validate import Fault
from dipole.group import Group, Text

KINDS = ("image", "audio", "video")

PIXEL_LIMIT = 2**26
"""Pixels of an image, 8192 × 8192: decoded it takes 200 MB."""

BYTES_LIMIT = 2**28
"""Of a media file."""


def media_faults(group: Group, folder: Path | None) -> Iterator[Fault]:
    """What is wrong with the files that a group's messages refer to.

    Args:
        group: the group.
        folder: that of the data file; ``None`` if there is none, and then only the references themselves are checked.
    """
    for text in (group.prompt, *(completion.text for completion in group.completions)):
        for kind, reference in media_references(text):
            fault = _fault(kind, reference, folder)
            if fault is not None:
                yield fault


def media_references(text: Text) -> Iterator[tuple[str, Any]]:
    """Kind and path of every file that a message's parts name."""
    for message in () if isinstance(text, str) else text:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            for part in content:
                if (found := media_reference(part)) is not None:
                    yield found


def media_reference(part: Any) -> tuple[str, Any] | None:
    """Kind and path of the file that a part of a message stands for; ``None`` if it is something else, such as text.

    The path is whatever the data say; see ``media_faults`` for what may be wrong with it.
    """
    kind = str(part.get("type", "")).removesuffix("_url") if isinstance(part, Mapping) else ""
    if kind not in KINDS:
        return None
    found = next((part[name] for name in ("path", kind, f"{kind}_url", "url") if part.get(name) is not None), None)
    return kind, found.get("url") if isinstance(found, Mapping) else found


def _fault(kind: str, reference: Any, folder: Path | None) -> Fault | None:
    if not isinstance(reference, str) or not reference:
        return Fault("media_missing", f"a part of type '{kind}' names no file")
    shown = repr(reference[:80])
    if not _is_inside(reference):
        return Fault("media_outside", f"{shown} isn't a path within the data's folder")
    if folder is None:
        return None
    path = folder / reference
    try:
        resolved = path.resolve()
        if not resolved.is_relative_to(folder.resolve()):
            return Fault("media_outside", f"{shown} leads out of the data's folder")
        if not resolved.is_file():
            return Fault("media_missing", f"{shown} isn't there")
        if resolved.stat().st_size > BYTES_LIMIT:
            return Fault("media_too_large", f"{shown} is larger than {BYTES_LIMIT // 2**20} MiB")
    except OSError as error:
        return Fault("media_missing", f"{shown} can't be read ({error.strerror or error})")
    return _image_fault(resolved, shown) if kind == "image" else None


def _is_inside(reference: str) -> bool:
    """Whether a reference is a plain relative path: no server, no drive, no way up."""
    plain_characters = "\\" not in reference and ":" not in reference and reference.isprintable()
    path = PurePosixPath(reference)
    return plain_characters and not path.is_absolute() and ".." not in path.parts


def _image_fault(path: Path, shown: str) -> Fault | None:
    """Reads the header alone; nothing is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs by its own limit; ours is checked below
            with Image.open(path) as image:
                width, height = image.size
                frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError:
        return Fault("media_too_large", f"{shown} is a decompression bomb")
    except (OSError, SyntaxError, ValueError) as error:
        return Fault("media_broken", f"{shown} is no image that can be read ({type(error).__name__})")
    if width * height * frames > PIXEL_LIMIT:
        return Fault("media_too_large", f"{shown} has {width} × {height} pixels in {frames} frames")
    return None


REMEDIES = {
    "media_missing": "Put the file into the data's folder, or leave the row out.",
    "media_outside": "Refer to files by a path relative to the data's folder; nothing else is read.",
    "media_too_large": "Scale it down, or leave the row out: decoding it would exhaust the memory.",
    "media_broken": "Write the image again, as PNG or JPEG, or leave the row out.",
}
