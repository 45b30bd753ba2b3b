"""The picture of the frontier: axes with units, a mark and an interval a point, all methods named, in two themes."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_frontier import point

from dipole.evaluate.frontier import Point
from dipole.evaluate.frontier_plot import GROUND, LOOKS, draw_frontier, save_frontier


@pytest.fixture
def points() -> list[Point]:
    return [
        point("reference", 0.0, 0.1),
        point("dpo", 1.0, 0.5),
        point("dpo", 2.0, 0.4),
        point("dpo", 3.0, 0.8),
        point("ppo", 2.0, 0.3),
        point("of one's own", 2.0, 0.2),
    ]


def test_every_point_has_a_mark_and_every_method_its_front(points: list[Point]) -> None:
    figure = draw_frontier(points, reward="mean sentiment")
    axes = figure.axes[0]
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_linestyle() == "None"]
    assert sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in marks) == sorted(item.at for item in points)
    fronts = [list(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 1.4]
    assert pytest.approx([1.0, 3.0]) in fronts, "the dominated point of DPO isn't on its front"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("KL(policy‖reference), nats a completion", "mean sentiment")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["reference", "DPO", "PPO, reward model", "of one's own"]


def test_methods_differ_in_more_than_colour() -> None:
    assert len({(look.marker, str(look.dashes)) for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)


def test_the_same_points_give_the_same_files_in_both_themes(points: list[Point], tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = save_frontier(points, tmp_path / name)
        assert [file.name for file in files] == [
            f"frontier-{theme}.{suffix}" for theme in ("light", "dark") for suffix in ("svg", "png")
        ]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    for number, (ground, _, _) in zip((0, 2), GROUND.values(), strict=True):
        assert ground in contents[0][number].decode()
    assert b"nats a completion" in contents[0][0], "text stays text"
