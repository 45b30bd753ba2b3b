"""Files that messages refer to: each fault has its own name, and nothing outside of the folder is read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dipole.data import media
from dipole.data.audit import audit
from dipole.data.media import media_faults
from dipole.group import Comparison, Completion, Group


def group(part: Any) -> Group:
    prompt = ({"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]},)
    answers = (Completion(text="a"), Completion(text="b"))
    return Group(id="g", prompt=prompt, completions=answers, judgments=(Comparison(i=0, j=1),))


def fault(part: Any, folder: Path | None) -> str | None:
    found = list(media_faults(group(part), folder))
    return found[0].name if found else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "data"
    inside.mkdir()
    for name, mode in (("a.png", "RGB"), ("a.jpg", "CMYK"), ("a.gif", "P")):
        Image.new(mode, (1, 1)).save(inside / name)
    (inside / "broken.png").write_bytes((inside / "a.png").read_bytes()[:20])
    (inside / "text.png").write_text("no image")
    (inside / "a.wav").write_bytes(b"RIFF")
    Image.new("RGB", (1, 1)).save(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    return inside


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image", "path": "a.png"}, None),
        ({"type": "image", "image": "a.jpg"}, None),
        ({"type": "image_url", "image_url": {"url": "a.gif"}}, None),
        ({"type": "audio", "path": "a.wav"}, None),
        ({"type": "image", "path": "b.png"}, "media_missing"),
        ({"type": "image"}, "media_missing"),
        ({"type": "image", "path": 7}, "media_missing"),
        ({"type": "image", "path": "."}, "media_missing"),
        ({"type": "image", "path": "../secret.png"}, "media_outside"),
        ({"type": "image", "path": "x/../../secret.png"}, "media_outside"),
        ({"type": "image", "path": "link.png"}, "media_outside"),
        ({"type": "image", "path": "/etc/passwd"}, "media_outside"),
        ({"type": "image", "path": "..\\secret.png"}, "media_outside"),
        ({"type": "image", "path": "C:/secret.png"}, "media_outside"),
        ({"type": "image", "path": "a.png\0"}, "media_outside"),
        ({"type": "image_url", "image_url": {"url": "http://host/a.png"}}, "media_outside"),
        ({"type": "image", "url": "file:///etc/passwd"}, "media_outside"),
        ({"type": "image", "path": "broken.png"}, "media_broken"),
        ({"type": "image", "path": "text.png"}, "media_broken"),
    ],
)
def test_references(part: Any, expected: str | None, folder: Path) -> None:
    assert fault(part, folder) == expected


def test_a_bomb_is_refused_by_its_header(folder: Path) -> None:
    size = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = ((13, size), (1, b"IDATx"))
    packed = (struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk)) for length, chunk in chunks)
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    assert fault({"type": "image", "path": "bomb.png"}, folder) == "media_too_large"


def test_many_frames_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (10, 10), color) for color in range(0, 200, 20)]
    frames[0].save(folder / "many.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(media, "PIXEL_LIMIT", 999)
    assert fault({"type": "image", "path": "many.gif"}, folder) == "media_too_large"


def test_without_a_folder_only_the_reference_is_checked() -> None:
    assert fault({"type": "image", "path": "a.png"}, None) is None
    assert fault({"type": "image", "path": "../a.png"}, None) == "media_outside"


def test_the_audit_reports_it(folder: Path) -> None:
    (error,) = audit([group({"type": "image", "path": "b.png"})], folder=folder).errors
    assert (error.name, error.examples) == ("media_missing", ("g: 'b.png' isn't there",))
