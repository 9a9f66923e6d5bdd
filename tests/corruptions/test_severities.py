import inspect
import re
from pathlib import Path

import pytest

from jacfuse_jax import corruptions
from jacfuse_jax.corruptions import SEVERITIES

PAGE = (Path(__file__).parents[2] / "docs" / "corruptions.md").read_text()


def test_every_corruption_is_graded_by_one_of_its_parameters():
    functions = {
        name for name in corruptions.__all__ if inspect.isfunction(getattr(corruptions, name))
    }
    assert functions == set(SEVERITIES)
    for name, grading in SEVERITIES.items():
        assert grading.parameter in inspect.signature(getattr(corruptions, name)).parameters


@pytest.mark.parametrize("name", SEVERITIES)
def test_severities_are_graded(name):
    values = SEVERITIES[name].values
    falls = SEVERITIES[name].parameter in ("photons", "factor", "snr_db", "gain_db", "limit")
    falls |= name == "clipping"
    assert len(values) == 5
    assert list(values) == sorted(set(values), reverse=falls)


def test_names_of_single_gradings():
    assert SEVERITIES["gaussian_noise"].values is corruptions.GAUSSIAN_NOISE_STDDEV
    assert SEVERITIES["missing"].values is corruptions.MISSING_FRACTION


def test_the_documented_table_is_the_code():
    rows = re.findall(
        r"^\| `(\w+)` \| [\w ]+ \| `(\w+)` \| ([\w ]+) \| (.*) \|$", PAGE, re.MULTILINE
    )
    documented = [
        (name, parameter, unit, tuple(float(cell) for cell in cells.split(" | ")))
        for name, parameter, unit, cells in rows
    ]
    assert documented == [(name, *grading) for name, grading in SEVERITIES.items()]
