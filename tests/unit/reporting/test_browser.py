"""The report in headless Chromium: it fits a phone and a desktop, tips appear, columns sort, a point finds its row."""

import dataclasses
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from flashslm.reporting.html import render
from flashslm.reporting.retraining import render_retraining
from tests.browser import CHROMIUM, rendered
from tests.unit.reporting.documents import artifacts, run_facts
from tests.unit.reporting.test_reports import retrained

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

# A frame has the width it is given, a window at least 500 px. What is seen in it is written where --dump-dom prints it.
FRAME = """<!doctype html><body><iframe id="f" src="report.html" style="width:%dpx;height:900px;border:0"></iframe>
<pre id="seen"></pre><script>
document.getElementById("f").addEventListener("load", () => {
  const frame = document.getElementById("f"), page = frame.contentDocument, seen = {};
  seen.width = frame.clientWidth;
  seen.scrollWidth = page.documentElement.scrollWidth;
  seen.cut = [...page.querySelectorAll("h1, h2, p, figure, .tile, .legend li, dd, pre, .block, .steps td, .beside td")]
    .filter((e) => e.getBoundingClientRect().right > frame.clientWidth + 1).map((e) => e.outerHTML.slice(0, 90));
  %s
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script></body>"""
CHARTS = """
  const text = page.querySelector("figure svg text");
  seen.letter_px = parseFloat(frame.contentWindow.getComputedStyle(text).fontSize) *
    text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width;
  const dot = page.querySelector("[data-row=trial-2]"), tip = page.getElementById("tip");
  dot.dispatchEvent(new PointerEvent("pointerenter"));
  seen.tip = tip.textContent;
  const place = tip.getBoundingClientRect();
  seen.tip_is_inside = place.left >= 0 && place.right <= frame.clientWidth && tip.style.display === "block";
  dot.dispatchEvent(new PointerEvent("pointerleave"));
  seen.tip_goes = tip.style.display === "none";
  dot.dispatchEvent(new MouseEvent("click"));
  seen.lit = [...page.querySelectorAll("tr.lit")].map((row) => row.id);
  const table = page.getElementById("trial-0").closest("table"), head = table.tHead.rows[0].cells[4];
  const order = () => [...table.tBodies[0].rows].map((row) => row.id);
  head.click();
  seen.rising = order();
  head.click();
  seen.falling = order();
  seen.copy = page.querySelectorAll("button.copy:not([hidden])").length;
"""


def look(page: str, directory: Path, width: int, script: str = "") -> dict[str, Any]:
    """What the page says of itself, and to a script, in a frame of this width."""
    (directory / "report.html").write_text(page, encoding="utf-8")
    (directory / "frame.html").write_text(FRAME % (width, script), encoding="utf-8")
    dom = rendered((directory / "frame.html").as_uri(), directory / "profile", width + 60)
    found = re.search(r'<pre id="seen">(.+?)</pre>', dom, re.DOTALL)
    assert found, dom[:2000]
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    return seen


@pytest.mark.parametrize("width", [390, 1400])
def test_the_report_fits_and_answers(tmp_path: Path, width: int) -> None:
    seen = look(render(artifacts(), run_facts()), tmp_path, width, CHARTS)
    assert seen["width"] == width and seen["scrollWidth"] <= width and seen["cut"] == []
    assert seen["letter_px"] >= 9, "a chart's letters can be read"
    assert seen["tip"].startswith("trial 2: DFMFF, width 64") and seen["tip_is_inside"] and seen["tip_goes"]
    assert seen["lit"] == ["trial-2"]
    assert seen["rising"] == ["trial-2", "trial-0", "trial-1", "trial-3"], "a failed trial comes last"
    assert seen["falling"] == ["trial-1", "trial-0", "trial-2", "trial-3"] and seen["copy"] == 1


@pytest.mark.parametrize("width", [390, 1400])
def test_wide_tables_scroll_by_themselves(tmp_path: Path, width: int) -> None:
    """Finalists of long designs, with sizes: more columns than a phone is wide."""
    run, wide = artifacts(), {"operators": "DFMFAF" * 4, "sizes": {"ffn_ratio": 2.25, "mamba_state": 128}}
    losses = {"validation_losses_nats": [4.5] * 3, "test_losses_nats": [4.7] * 3, "validation_loss_nats": 4.5}
    losses |= {"test_loss_nats": 4.7, "difference_nats": 0.1, "difference_interval_nats": [-0.2, 0.4]}
    rows = {name: [row | wide for row in getattr(run, name)] for name in ("history", "winners")}
    finalists = [trial | losses for trial in rows["history"][:2]]
    page = render(dataclasses.replace(run, **rows, finalists=finalists), run_facts())
    seen = look(page, tmp_path, width)
    assert seen["width"] == width and seen["scrollWidth"] <= width and seen["cut"] == []


@pytest.mark.parametrize("width", [390, 1400])
def test_the_retraining_report_fits(tmp_path: Path, width: int) -> None:
    seen = look(render_retraining(retrained("hold"), run_facts()), tmp_path, width)
    assert seen["width"] == width and seen["scrollWidth"] <= width and seen["cut"] == []
