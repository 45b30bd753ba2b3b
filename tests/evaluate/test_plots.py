"""Pictures: what is drawn is what was given, and it fits into a page."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from example_run import metrics

from dipole.evaluate import plots
from dipole.evaluate.plots import CHARTS, interval_pair, training_curve
from dipole.evaluate.stats import Estimate

BY_NAME = {chart.name: chart for chart in CHARTS}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pictures() -> dict[str, str]:
    """Every chart of the example run."""
    found = {chart.name: training_curve(chart, metrics()) for chart in CHARTS}
    assert None not in found.values()
    return found


def drawn(chart_name: str, rows: list[dict]) -> ElementTree.Element:
    svg = training_curve(BY_NAME[chart_name], rows)
    assert svg is not None
    return ElementTree.fromstring(svg)


def lines(svg: ElementTree.Element, color: str) -> list[np.ndarray]:
    """The points of each unfilled path of a colour, in the picture's own units."""
    paths = (path for path in svg.iter(f"{SVG}path") if f"stroke: var(--plot-{color}," in path.get("style", ""))
    found = [re.findall(r"[ML] (\S+) (\S+)", path.get("d", "")) for path in paths if "fill: none" in path.get("style")]
    return [np.array(points, dtype=float) for points in found]


def test_the_line_is_the_values_and_nothing_else() -> None:
    """Neither smoothed nor thinned: heights in the picture are one affine map of the logged values."""
    rows = [row for row in metrics() if "grad_norm" in row]
    curve = max(lines(drawn("grad_norm", rows), "blue"), key=len)
    assert len(curve) == len(rows) == 40
    for column, key in ((0, "step"), (1, "grad_norm")):
        logged = [row[key] for row in rows]
        fit = np.polyfit(logged, curve[:, column], 1)
        assert np.polyval(fit, logged) == pytest.approx(curve[:, column], abs=1e-4)
        assert (fit[0] > 0) == (column == 0), "steps go right, values go up, which is down in the units of SVG"


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_every_chart_names_itself_its_axes_and_its_lines(chart: plots.Chart, pictures: dict[str, str]) -> None:
    svg = ElementTree.fromstring(pictures[chart.name])
    texts = {"".join(text.itertext()) for text in svg.iter(f"{SVG}text")}
    logged = {key for row in metrics() for key in row}
    labels = {series.label for series in chart.series if series.key in logged}
    assert {"optimizer step", chart.unit} <= texts
    assert labels <= texts or len(labels) == 1
    assert svg.get("role") == "img"
    for part in (chart.title, chart.unit, *labels):
        assert part in svg.get("aria-label", "")


def test_the_description_gives_the_ends_of_each_line() -> None:
    svg = drawn("loss", [{"step": 1, "loss": 0.6931}, {"step": 2, "loss": 0.5}, {"step": 2, "eval/loss": 0.55}])
    label = svg.get("aria-label")
    assert label == (
        "Loss, mean per relation: training from 0.693 at step 1 to 0.5 at step 2; "
        "held out from 0.55 at step 2 to 0.55 at step 2."
    )


def test_a_chart_without_numbers_is_not_drawn() -> None:
    assert training_curve(BY_NAME["loss"], []) is None
    assert training_curve(BY_NAME["kl"], [row for row in metrics() if "loss" in row]) is None
    assert training_curve(BY_NAME["loss"], [{"step": 1, "loss": None}, {"step": "<b>", "loss": 0.5}]) is None


def test_what_is_no_finite_number_is_left_out() -> None:
    rows = [{"step": i, "grad_norm": value} for i, value in enumerate([1.0, math.nan, "<script>", True, math.inf, 2.0])]
    svg = training_curve(BY_NAME["grad_norm"], rows)
    assert "script" not in svg
    assert len(max(lines(ElementTree.fromstring(svg), "blue"), key=len)) == 2


def test_the_same_numbers_give_the_same_bytes(pictures: dict[str, str]) -> None:
    assert training_curve(BY_NAME["logps"], metrics()) == pictures["logps"]


def test_every_colour_is_a_variable_of_the_page(pictures: dict[str, str]) -> None:
    for svg in pictures.values():
        bare = re.sub(r"var\(--plot-[a-z]+, #[0-9a-f]{6}\)", "", svg)
        assert not re.findall(r"#[0-9a-f]{6}\b(?!\w)", re.sub(r'(href="#|url\(#)\w+', "", bare))


def test_there_is_nothing_in_a_picture_that_reaches_outside_of_it(pictures: dict[str, str]) -> None:
    for svg in pictures.values():
        assert svg.startswith("<svg ")
        for part in ("<style", "<metadata", "<!DOCTYPE", "<?xml", "DejaVu", "<script"):
            assert part not in svg
        assert not re.search(r'href="(?!#)', svg)
    ids = [identifier for svg in pictures.values() for identifier in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids)), "two pictures of one page share an id"


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    training_curve(BY_NAME["loss"], metrics())
    assert dict(matplotlib.rcParams) == before


def test_no_window_system_is_asked_for() -> None:
    code = "import sys, dipole.evaluate.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_pair_of_intervals_keeps_to_one_scale() -> None:
    before, after = Estimate(0.5, 0.4, 0.6, 10, "by hand"), Estimate(0.8, 0.7, 0.9, 10, "by hand")
    svg = ElementTree.fromstring(interval_pair(before, after, name="0"))
    (grey,), (blue,) = lines(svg, "grey"), lines(svg, "blue")
    # 0.4 … 0.6 and 0.7 … 0.9 on one scale: a gap of half an interval between them; before stands above after.
    assert blue[0, 0] - grey[1, 0] == pytest.approx((grey[1, 0] - grey[0, 0]) / 2, rel=1e-3)
    assert grey[0, 1] < blue[0, 1]
    assert svg.get("aria-hidden") == "true"


def test_a_pair_of_which_little_is_known() -> None:
    only = interval_pair(None, Estimate(0.8, None, None, 1, "one value"), name="1")
    assert only is not None
    assert lines(ElementTree.fromstring(only), "blue") == []
    assert interval_pair(None, Estimate(None, None, None, 0, "none"), name="2") is None
