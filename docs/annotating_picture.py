"""Takes the picture in annotating.md: ``.venv/bin/python docs/annotating_picture.py`` (needs Chromium)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests" / "browser"))

from browsing import Server, browser_path, come_in, open_browser, write_rows  # noqa: E402

PROMPT = "Why is the sky blue, but red at sunset? Explain it to a ten-year-old."
ANSWERS = (
    "Sunlight looks white, but it is **all colours mixed together**.\n\n"
    "1. Air scatters blue light far more than red light, so blue comes at you from every side of the sky.\n"
    "2. At sunset the light travels through *much more* air. Nearly all of the blue has been scattered away, and "
    "what is left to reach your eyes is orange and red.\n\n"
    "Try it: shine a torch through a glass of water with a drop of milk in it. From the side it looks bluish, from the "
    "far end yellow.",
    "The sky is blue because of Rayleigh scattering, which goes as the inverse fourth power of the wavelength:\n\n"
    "```\nI ∝ 1 / λ⁴\n```\n\n"
    "So light of 450 nm is scattered about five times as strongly as light of 680 nm. At sunset the path through "
    "the atmosphere is longer, and the direct light has lost its short wavelengths.",
)


def main() -> None:
    """Judges two dozen pairs, and photographs the next."""
    if browser_path() is None:
        sys.stderr.write("There is no Chromium here, so the picture stays as it is.\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"prompt": f"{PROMPT}{' ' * number}", "completions": [{"text": text} for text in ANSWERS]}
            for number in range(60)
        ]
        server = Server(write_rows(Path(folder) / "groups.jsonl", rows), Path(folder) / "votes.db")
        try:
            with open_browser() as browser:
                page = browser.new_page(viewport={"width": 1200, "height": 660})
                come_in(page, server, "Anna")
                for number in range(24):
                    page.wait_for_timeout(260)
                    page.keyboard.press("12345"[number % 5])
                while not page.inner_text("#left-text").startswith("Sunlight"):
                    page.wait_for_timeout(260)
                    page.keyboard.press("2")
                page.wait_for_timeout(400)
                page.screenshot(path=str(DOCS / "images" / "annotating.png"))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
