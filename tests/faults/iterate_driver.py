"""A process that has imported everything and forks an iteration for each order it reads; see ``driver.py``."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "iterate")]

import torch  # noqa: E402
from driver import arrange  # noqa: E402
from tiny_rounds import tiny_rounds  # noqa: E402

import dipole.feedback.client  # noqa: E402
import dipole.feedback.language_model  # noqa: E402
from dipole.evaluate import measure, report  # noqa: E402
from dipole.iterate.run import iterate  # noqa: E402
from dipole.train import run  # noqa: E402

LOADED = (dipole.feedback.client, dipole.feedback.language_model, measure, report, run)
"""What an iteration imports when it needs it, here before the first fork."""


def child(order: dict[str, Any]) -> int:
    """An iteration; it may be killed at the n-th call of a function."""
    handle = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        if order["event"]:
            arrange(order["event"])
        config = tiny_rounds(Path(order["model"]), Path(order["folder"]), order["output"], **order["options"])
        sampler = replace(config.sampler, num_completions=3, batch_size=6)
        iterate(replace(config, sampler=sampler))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        if not (pid := os.fork()):
            status = 1
            try:
                status = child(json.loads(line))
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
