"""Figures as SVG inside of a page, whose colours and fonts they take."""

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.8, 3.3  # inches; as wide as a telephone, so that text stays readable there
# What is drawn in a colour of the left is shown in that of the right: one for light pages, another
# one for dark ones, see report.css.
INK, GRID, REST = "#1b1b1a", "#e3e3df", "#a3a39d"
_THEME = {INK: "currentColor", GRID: "var(--grid)", REST: "var(--rest)"}
# Okabe and Ito's, which the colour-blind tell apart; yellow is darker, to be seen on white.
BLUE, SKY, GREEN, ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
VERMILLION, PURPLE, YELLOW = "#d55e00", "#cc79a7", "#8f8000"
_NAMES = {
    BLUE: "blue",
    SKY: "sky",
    GREEN: "green",
    ORANGE: "orange",
    VERMILLION: "vermillion",
    PURPLE: "purple",
    YELLOW: "yellow",
}
_THEME |= {colour: f"var(--{name}, {colour})" for colour, name in _NAMES.items()}
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "path.simplify": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.titlesize": 9.0,
}


class Drawing(NamedTuple):
    """A figure of a page.

    Attributes:
      title: above it.
      caption: what is drawn, and how.
      svg: the picture, with its alternative text.
    """

    title: str
    caption: str
    svg: str


def draw(
    name: str,
    title: str,
    caption: str,
    alt: str,
    draw_fn: Callable[[Any], None],
    *,
    height: float = HEIGHT,
) -> Drawing:
    """Draws on one pair of axes, which leaves room for labels on the right.

    Args:
      name: of the figure, unique in its page, of letters, digits and hyphens.
      title: above it.
      caption: below it.
      alt: what is to be seen, for who does not see it; the title is said before.
      draw_fn: takes the axes.
      height: in inches.
    """
    buffer = io.StringIO()
    settings: Any = {**SETTINGS, "svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser has fonts of its own, and those in which matplotlib measures need no glyph.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=(WIDTH, height))
        below, above = 0.48 / height, 0.3 / height
        draw_fn(figure.add_axes((0.105, below, 0.495, 1 - below - above)))
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Drawing(title, caption, _embedded(buffer.getvalue(), name, f"{title}. {alt}"))


def _embedded(text: str, name: str, alt: str) -> str:
    """SVG without what only files need; its identifiers are unique in the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([A-Za-z][\w.-]*)(?=[\")])", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, shown in _THEME.items():
        text = re.sub(re.escape(colour), shown, text, flags=re.IGNORECASE)
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', _rounded, text)
    text = re.sub(r">\s+<", "><", text)
    head = f'<svg role="img" aria-label="{html.escape(alt)}"'
    text = re.sub(r'<svg(?: (?:width|height|version)="[^"]*")*', lambda _: head, text, count=1)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", text)


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to the hundredth of a point, on one line."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]).replace("\n", " ")
