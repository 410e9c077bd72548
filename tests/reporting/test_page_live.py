"""The page as a browser shows it: on a wide and a narrow screen, in both colour schemes, and printed.

These need Chromium and its driver, and run with `python -m pytest -m live`.
"""

import json
import shutil
from dataclasses import replace

import pytest

from encoders.reporting.page import build_page
from encoders.reporting.table_formats import ReportTable
from tests.reporting.test_page import PAIRS, TASK, build_seeds, metric_rows, write_all_runs, write_run

pytestmark = pytest.mark.live
SHOWN = {
    # Screens: width, height, medium, colour scheme. A4 has 718 pixels between the margins that Chromium leaves.
    "wide": (1280, 800, "screen", "light"),
    "dark": (1280, 800, "screen", "dark"),
    "narrow": (390, 844, "screen", "light"),
    "narrow and dark": (390, 844, "screen", "dark"),
    "printed": (718, 1047, "print", "light"),
}
WIDE = ReportTable(
    "Twelve columns",
    ("experiment", *(f"column {i}" for i in range(10)), "what the printed number counts"),
    tuple(
        (
            name,
            *(f"{i * 12345.678:,.3f}" for i in range(10)),
            "the paper's 235M, 233M and 225M, rounded up from what it is",
        )
        for name in ("albert", "albert-xxlarge-RTE-rate3e-05-batch32-epochs3", "x" * 60)
    ),
    ("Scores of each run's best checkpoint on the development rows; steps: the median of the best. " * 5,),
)
# Every piece of text with the box it is drawn in, its nearest block and its colours.
MEASURE = """
const colours = text => (text.match(/[\\d.]+/g) || []).map(Number);
const ground = element => {
  for (let e = element; e; e = e.parentElement) {
    const found = colours(getComputedStyle(e).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found.slice(0, 3);
  }
  return null;
};
const box = rect => [rect.left, rect.top, rect.right, rect.bottom];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
for (let node; (node = walker.nextNode());) {
  const inside = node.parentElement;
  if (!node.data.trim() || !inside.checkVisibility()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const figure = inside.closest('svg'), style = getComputedStyle(inside);
  let block = figure || inside;
  while (!figure && getComputedStyle(block).display.startsWith('inline')) block = block.parentElement;
  found.push({
    text: node.data, figure: figure ? figure.getAttribute('aria-label') : null,
    box: box(figure ? inside.getBoundingClientRect() : range.getBoundingClientRect()),
    block: box(block.getBoundingClientRect()),
    scrolls: Boolean(inside.closest('.scroll, pre')), code: Boolean(inside.closest('pre')),
    colour: colours(figure ? style.fill : style.color).slice(0, 3), ground: ground(inside),
  });
}
return {
  texts: found, width: document.documentElement.clientWidth, whole: document.documentElement.scrollWidth,
  hidden: [...document.querySelectorAll('.scroll, pre')].filter(e => e.scrollWidth > e.clientWidth).length,
};
"""


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for name in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = write_all_runs(tmp_path_factory.mktemp("runs"))
    for name in ("pairs-of-a-name-that-is-so-long-that-it-needs-more-than-a-line-on-a-phone", *"abcdefghij"):
        experiments = build_seeds(replace(TASK, name=f"bert-RTE-{name}"), 2)
        for experiment in (replace(PAIRS, name=f"pairs-{name}"), *experiments):
            write_run(folder, experiment, metric_rows(experiment, level=1 + len(name) / 100))
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(build_page(folder, [WIDE], "A title"), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=SHOWN)
def measured(request, browser, file):
    """The page with all of its details opened."""
    width, height, medium, scheme = SHOWN[request.param]
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})
    browser.get(file.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = browser.execute_script(MEASURE)
    assert found["width"] == width and len(found["texts"]) > 500
    return request.param, found


def contrast(one, other):
    """The contrast of two colours as WCAG 2.2 defines it."""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_page_is_never_wider_than_the_screen(measured):
    assert measured[1]["whole"] <= measured[1]["width"]


def test_no_text_exceeds_its_box(measured):
    for text in measured[1]["texts"]:
        (left, top, right, bottom), block = text["box"], text["block"]
        assert text["code"] or (left >= block[0] - 0.5 and right <= block[2] + 0.5), text
        assert not text["figure"] or (top >= block[1] - 0.5 and bottom <= block[3] + 0.5), text
        assert text["scrolls"] or (left >= 0 and right <= measured[1]["width"]), text


def test_no_two_labels_of_a_chart_overlap(measured):
    figures = {}
    for text in measured[1]["texts"]:
        if text["figure"]:
            figures.setdefault((text["figure"], *text["block"]), []).append(text)
    assert len(figures) > 12
    for texts in figures.values():
        assert len(texts) > 4
        for i, one in enumerate(texts):
            for other in texts[:i]:
                (a, b, c, d), (e, f, g, h) = one["box"], other["box"]
                assert min(c, g) - max(a, e) < 0.5 or min(d, h) - max(b, f) < 0.5, (one["text"], other["text"])


def test_text_has_contrast_with_its_background(measured):
    dark = "dark" in measured[0]
    for text in measured[1]["texts"]:
        ground = text["ground"] or [255, 255, 255]  # the paper's
        assert (sum(ground) < 3 * 128) == dark
        assert contrast(text["colour"], ground) >= 4.5, text


def test_labels_of_charts_are_large_enough_on_a_phone(measured):
    heights = [text["box"][3] - text["box"][1] for text in measured[1]["texts"] if text["figure"]]
    assert min(heights) >= 9


def test_nothing_is_cut_off_in_print(measured):
    if measured[0] == "printed":
        assert measured[1]["hidden"] == 0
    else:
        assert measured[1]["hidden"] > 0  # a wide table scrolls


def test_the_browser_requests_only_the_page(browser, measured, file):
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(file.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == {file.as_uri()}
