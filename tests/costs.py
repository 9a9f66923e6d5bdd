"""What tests cost: CPU seconds, children included, and programs that XLA compiled, per folder.

python -m pytest -p tests.costs --numprocesses 2 tests        # a table at the end
python -m pytest -p tests.costs --costs=file tests/linalg     # the same per file, or =test
"""

import collections
import os
import resource
from pathlib import Path

import jax
import pytest
import tabulate

_COMPILED = "/jax/core/compile/backend_compile_duration"


class _Meter:
    """Adds up what this process used since the last reading."""

    def __init__(self):
        self._last_s = 0.0
        self._programs = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration_secs, **_):
        del duration_secs
        self._programs += event == _COMPILED

    def read(self):
        spent = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        now_s = sum(used.ru_utime + used.ru_stime for used in spent)
        cost = {"cpu_s": now_s - self._last_s, "programs": self._programs}
        self._last_s, self._programs = now_s, 0
        return cost


_meter = _Meter()


def pytest_addoption(parser):
    parser.addoption("--costs", choices=("folder", "file", "test"), default="folder")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    # A report's properties travel from xdist's processes to the one that prints.
    if call.when == "teardown":
        item.user_properties.append(("cost", _meter.read()))
    return (yield)


def pytest_terminal_summary(terminalreporter, config):
    level = config.getoption("--costs")
    total = collections.defaultdict(lambda: [0, 0.0, 0])
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "teardown":
                continue
            path, _, name = report.nodeid.partition("::")
            key = {
                "folder": str(Path(*Path(path).parts[:2])),
                "file": path,
                "test": f"{path}::{name.partition('[')[0]}",
            }[level]
            cost = dict(report.user_properties)["cost"]
            for row in (total[key], total["all"]):
                row[0] += 1
                row[1] += cost["cpu_s"]
                row[2] += cost["programs"]
    rows = sorted(((key, *row) for key, row in total.items()), key=lambda row: -row[2])
    headers = ("tests of", "tests", "CPU s", "programs")
    terminalreporter.write_line(tabulate.tabulate(rows, headers, floatfmt=".0f", tablefmt="github"))
    if os.environ.get("XLA_FLAGS"):
        terminalreporter.write_line(f"XLA_FLAGS={os.environ['XLA_FLAGS']}")
