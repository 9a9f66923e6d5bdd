import shutil
from typing import NamedTuple

import psutil
import pytest

from jacfuse_jax.programs import InputError, resources

GIB = 2**30


class Memory(NamedTuple):
    available: int


class Disk(NamedTuple):
    free: int


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """4 GiB of memory and 10 of disk are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(4 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10 * GIB))


def test_what_fits_is_said_in_one_line(tmp_path, capsys):
    resources.check(3.5 * GIB, {tmp_path / "new" / "run": 9 * GIB}, remedy="lower --batch_size")
    text = f"needs at most about 3.5 GiB of memory, 9.0 GiB in {tmp_path}/new/run (estimated)\n"
    assert capsys.readouterr().out == text
    assert not (tmp_path / "new").exists()


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"4\.5 GiB of memory .* 4\.0 GiB are free; lower"):
        resources.check(4.5 * GIB, {}, remedy="lower --batch_size")
    with pytest.raises(InputError, match=r"/run: about 11\.0 GiB .* 10\.0 GiB are free; make"):
        resources.check(0, {tmp_path / "data": 5 * GIB, tmp_path / "run": 6 * GIB}, remedy="")
