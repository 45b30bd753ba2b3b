"""A real browser and a real server, for tests and for the picture in the documentation."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def browser_path() -> str | None:
    """Where a browser of the system lies, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless browser. It says of a page's own requests what they are; of its own it makes none that matter here."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Server:
    """``dipole annotate`` in a process of its own, which can be stopped, killed and started again on the same port."""

    def __init__(self, data: Path, store: Path, *flags: str) -> None:
        self._arguments = ["--data", str(data), "--store", str(store), *flags]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dipole", "annotate", *self._arguments, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.link = self._process.stdout.readline().rpartition(": ")[2].strip()
        self.address = self.link.partition("/#")[0]
        self.port = int(self.address.rpartition(":")[2])

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait()


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes groups as the native format has them."""
    full = [{"schema": 1, "id": f"g{number}", "judgments": []} | row for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in full), encoding="utf-8")
    return path


def come_in(page: Any, server: Server, name: str) -> None:
    """Opens the address that was printed, and says a name."""
    page.goto(server.link)
    page.fill("#name", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#pair:not([hidden])")
