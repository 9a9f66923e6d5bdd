"""report.html in Chromium: no network, no errors, both widths and colour schemes, sortable."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

from experiments.reports.page.page import write_comparison, write_report
from tests.experiments import finished
from tests.experiments.test_page import HOSTILE

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get installs it")
SIZES = {"desktop": (1280, 900), "telephone": (400, 800)}
SCHEMES = ("light", "dark")
LEAST_CONTRAST = 4.5  # of WCAG 2, level AA

# Contrast of every element that has text of its own with what is painted behind it.
CONTRASTS = """
() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3).map((x) => {
      const c = x / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      const alpha = numbers(colour)[3];
      if (alpha === undefined || alpha > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const has = Array.from(element.childNodes).some((n) => n.nodeType === 3 && n.data.trim());
    if (!has || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [low, high] = [luminance(colour), luminance(behind(element))].sort((a, b) => a - b);
    found.push([element.tagName, (high + 0.05) / (low + 0.05)]);
  }
  return found;
}
"""
# Elements that reach beyond the window, other than in what scrolls by itself.
WIDTHS = "() => [document.scrollingElement.scrollWidth, window.innerWidth]"
# As people read a column, and how it is said to be sorted.
COLUMN = """
(header) => {
  const rows = Array.from(header.closest("table").tBodies[0].rows);
  return [
    header.getAttribute("aria-sort"),
    rows.map((row) => row.cells[header.cellIndex].firstChild?.data.trim() ?? ""),
  ];
}
"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of everything, with names that look like HTML, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    everything = finished.write_run(folder / "everything", modalities=(HOSTILE, "audio"))
    finished.write_certified(everything, modalities=(HOSTILE, "audio"))
    predictions = finished.write_stress(folder / "predictions")
    several = finished.write_run(folder / "several", seeds=(0, 1), modalities=("image",))
    comparison = folder / "comparison.html"
    write_comparison([everything, predictions, several], comparison)
    return {
        "everything": write_report(everything),
        "predictions": write_report(predictions),
        "comparison": comparison,
    }


@pytest.fixture
def open_page(browser, pages):
    """Opens a page of `pages`; afterwards nothing may have been asked for or complained of."""
    opened = []
    complaints = []

    def open_it(name, size="desktop", scheme="light"):
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: opened.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_it
    for context in browser.contexts:
        context.close()
    assert complaints == []
    others = {url for url in opened if not url.startswith(("file:", "data:"))}
    assert others == set()
    assert len([url for url in opened if url.startswith("file:")]) == 1


@pytest.mark.parametrize("name", ["everything", "predictions", "comparison"])
@pytest.mark.parametrize("size", SIZES)
def test_never_scrolls_sideways(name, size, open_page):
    page = open_page(name, size)
    for summary in page.query_selector_all("summary"):
        summary.click()
    needed, there = page.evaluate(WIDTHS)
    assert needed <= there == SIZES[size][0]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["everything", "comparison"])
def test_text_can_be_read_in_both_colour_schemes(name, scheme, open_page):
    page = open_page(name, scheme=scheme)
    contrasts = page.evaluate(CONTRASTS)
    assert {"P", "TD", "BUTTON", "H1", "text"} <= {tag for tag, _ in contrasts}
    assert [each for each in contrasts if each[1] < LEAST_CONTRAST] == []
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_figures_have_texts_and_fit_their_place(open_page):
    page = open_page("everything", "telephone")
    figures = page.query_selector_all("svg, img")
    assert len(figures) > 10
    for figure in figures:
        said = figure.get_attribute("aria-label") or figure.get_attribute("alt") or ""
        assert len(said) > 60
        box = figure.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES["telephone"][0]
        assert 200 < box["height"] < 700
    # Texts of figures lie within them, in fonts of the browser's own.
    outside = page.evaluate(
        """() => Array.from(document.querySelectorAll("svg text"), (text) => {
          const [a, b] = [text, text.closest("svg")].map((e) => e.getBoundingClientRect());
          return a.left < b.left - 1 || a.right > b.right + 1 ? text.textContent : null;
        }).filter((text) => text !== null)"""
    )
    assert outside == []


def test_columns_are_sorted_by_mouse_and_keyboard(open_page):
    page = open_page("everything")
    table = page.get_by_role("region", name="audio perturbed, threat model known")
    clean = table.locator("th", has_text="clean")
    assert clean.evaluate(COLUMN)[0] == "none"
    shares = ["95.0", "94.0", "93.0", "88.0", "70.0"]
    clean.get_by_role("button").click()
    assert clean.evaluate(COLUMN) == ["descending", shares]
    clean.get_by_role("button").press("Enter")
    assert clean.evaluate(COLUMN) == ["ascending", shares[::-1]]
    rule = table.locator("th").first
    rule.get_by_role("button").press("Space")
    order, labels = rule.evaluate(COLUMN)
    assert order == "ascending"
    assert labels == sorted(labels)
    assert clean.evaluate(COLUMN)[0] == "none"
    certified = table.locator("th", has_text="certified")
    for _ in range(2):  # empty cells stay below, whatever the order
        certified.get_by_role("button").click()
        assert certified.evaluate(COLUMN)[1] == ["70.0", "", "", "", ""]
    # What belongs together stays together.
    first = table.locator("tbody tr").first.inner_text()
    assert first.split("\t")[0].startswith("drop_suspect c=0")
    assert "70.0 [67.0,\N{NO-BREAK SPACE}73.0]" in first


def test_tables_can_be_reached_and_scrolled_by_keyboard(open_page):
    page = open_page("everything", "telephone")
    region = page.get_by_role("region", name="audio perturbed, threat model known")
    region.focus()
    assert region.evaluate("(e) => e.scrollWidth > e.clientWidth")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(e) => e.scrollLeft > 0", arg=region.element_handle())


def test_prints_light_and_unfolded(open_page, tmp_path):
    page = open_page("predictions", scheme="dark")
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert page.locator("details:not([open])").count() == 0
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_is_small(pages):
    assert all(path.stat().st_size < 3e6 for path in pages.values())
