"""Reads report.html back, by Python's own parser of HTML."""

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

_VOID = {"meta", "link", "br", "hr", "img", "input"}


class PageTable(NamedTuple):
    """A table: its title, its headers, the texts of its cells."""

    title: str
    headers: list[str]
    rows: list[list[str]]

    def column(self, header: str) -> list[str]:
        return [row[self.headers.index(header)] for row in self.rows]

    def row(self, first: str) -> dict[str, str]:
        (found,) = (row for row in self.rows if row[0] == first or row[0].startswith(f"{first} "))
        return dict(zip(self.headers, found, strict=True))


class Page(HTMLParser):
    """What a page says; raises AssertionError where an element is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[PageTable] = []
        self.findings: list[str] = []
        self.commands: list[str] = []
        self.facts: dict[str, str] = {}
        self.alternatives: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.title = ""
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[str] = [""]
        self._heading = self._term = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def table(self, title: str) -> PageTable:
        (found,) = (table for table in self.tables if table.title == title)
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        if tag == "svg":
            self.alternatives.append(attributes.get("aria-label") or "")
        if tag == "table":
            self.tables.append(PageTable(self._heading, [], []))
        if tag == "tr" and self.tables[-1].headers:
            self.tables[-1].rows.append([])
        if tag not in _VOID:
            self._open.append((tag, attributes))
            self._texts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self._texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        opened, attributes = self._open.pop()
        assert opened == tag, (opened, tag)
        raw = self._texts.pop()
        text = " ".join(raw.split())
        if tag == "title" and "svg" not in [name for name, _ in self._open]:
            self.title = text
        elif tag in ("h4", "summary"):
            self._heading = text
        elif tag == "th":
            self.tables[-1].headers.append(text)
        elif tag == "td":
            self.tables[-1].rows[-1].append(text)
        elif tag == "dt":
            self._term = text
        elif tag == "dd":
            self.facts[self._term] = text
        elif tag == "pre":
            self.commands.append(raw)
        elif tag == "p" and attributes.get("class") == "finding":
            self.findings.append(text)
        if tag not in ("style", "script", "svg"):
            self._texts[-1] += raw
