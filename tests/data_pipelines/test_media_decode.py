import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.errors import DataError, MediaError
from data_pipelines.media.decode import decode_all, read_decoded

Arrays = dict[str, NDArray[Any]]
VALUES = {f"clip-{i}": i for i in range(20)}


def double(value: int) -> Arrays:
    """What a sound decoder does."""
    return {"value": np.full((2, 3), 2 * value), "pid": np.array(os.getpid())}


def double_even(value: int) -> Arrays:
    """A decoder that meets bad files."""
    if value % 2:
        raise MediaError(f"clip {value}: odd")
    return double(value)


def divide(value: int) -> Arrays:
    """A decoder with a bug."""
    return {"value": np.array(1 // value)}


def die(value: int) -> Arrays:
    """A decoder that the system kills."""
    if value == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return double(value)


def double_slowly(value: int) -> Arrays:
    """A decoder that leaves time for a kill, once a few clips are there."""
    time.sleep(0.1 if value < 8 else 5)
    return double(value)


def big(value: int) -> Arrays:
    """Eight megabytes."""
    return {"value": np.full(10**6, value)}


HOARD: list[Arrays] = []


def hoard(value: int) -> Arrays:
    """A decoder that leaks a hundred megabytes a clip."""
    HOARD.append({"value": np.ones(100 * 2**17)})
    time.sleep(0.25)
    return double(value)


def _decode(
    folder: Path, decode_fn: Callable[[int], Arrays] = double, num_workers: int = 1
) -> dict[str, str]:
    return decode_all(
        VALUES, decode_fn, folder, num_workers=num_workers, progress=False, description="Decoding"
    )


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_is_decoded_once_where_it_should_be(num_workers: int, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "decoded"
    assert _decode(folder, num_workers=num_workers) == {}
    assert {path.name for path in folder.iterdir()} == {f"{key}.npz" for key in VALUES}
    pids: set[int] = set()
    for key, value in VALUES.items():
        arrays = read_decoded(folder, key)
        np.testing.assert_array_equal(arrays["value"], np.full((2, 3), 2 * value))
        pids.add(int(arrays["pid"]))
    assert (pids == {os.getpid()}) == (num_workers == 1)
    assert len(pids) <= num_workers


@pytest.mark.parametrize("num_workers", [1, 2])
def test_unusable_clips_are_reported_and_the_others_decoded(
    num_workers: int, tmp_path: Path
) -> None:
    failures = _decode(tmp_path, double_even, num_workers)
    assert list(failures.items()) == [(f"clip-{i}", f"clip {i}: odd") for i in range(1, 20, 2)]
    assert len(list(tmp_path.iterdir())) == 10
    # They are tried again: here they turn out to be sound.
    assert _decode(tmp_path) == {}
    assert len(list(tmp_path.iterdir())) == 20


@pytest.mark.parametrize("num_workers", [1, 2])
def test_other_errors_end_the_call(num_workers: int, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        _decode(tmp_path, divide, num_workers)


def test_a_progress_bar_counts_what_is_there_already(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords: dict[str, Any] = {"num_workers": 1, "description": "Decoding clips"}
    decode_all({"first": 1}, double, tmp_path, progress=True, **keywords)
    assert not capfd.readouterr().err  # no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for number, progress in ((5, True), (20, True), (20, False)):
        jobs = dict(list(VALUES.items())[:number])
        decode_all(jobs, double, tmp_path, progress=progress, **keywords)
    bars = [line for line in re.split(r"[\r\n]", capfd.readouterr().err) if line.strip()]
    assert re.match(r"Decoding clips: +0%.* 0/5 ", bars[0])
    shown = [re.search(r"(\d+)/20 ", bar) for bar in bars if "/20 " in bar]
    assert [match and match[1] for match in (shown[0], shown[-1])] == ["5", "20"]
    assert all(bar.startswith("Decoding clips") for bar in bars)


def test_what_is_there_is_not_decoded_again(tmp_path: Path) -> None:
    _decode(tmp_path)
    (tmp_path / "clip-3.npz").unlink()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    _decode(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (tmp_path / "clip-3.npz").exists()


def test_a_dead_worker_is_explained_and_the_call_carries_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a worker process died .*carries on") as caught:
        _decode(tmp_path, die, 2)
    assert "\n" not in str(caught.value)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert tmp_path / "clip-7.npz" not in done
    assert _decode(tmp_path, num_workers=2) == {}
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert {path.name for path in tmp_path.iterdir()} == {f"{key}.npz" for key in VALUES}


@pytest.mark.slow
@pytest.mark.timeout(120)  # warnings are errors here: joblib's thread would die of one
def test_workers_that_have_grown_are_replaced(tmp_path: Path) -> None:
    assert _decode(tmp_path, hoard, num_workers=2) == {}
    assert len({int(read_decoded(tmp_path, key)["pid"]) for key in VALUES}) > 2
    for key, value in VALUES.items():
        np.testing.assert_array_equal(read_decoded(tmp_path, key)["value"], 2 * value)


_RUN = """
import sys
from pathlib import Path
from tests.data_pipelines.test_media_decode import _decode, double_slowly
if __name__ == "__main__":
    _decode(Path(sys.argv[1]), double_slowly, 2)
"""


@pytest.mark.parametrize("moment", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_call_leaves_whole_files_alone(moment: signal.Signals, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.npz"))) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(moment)
    process.wait(60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # workers would go on with what they have
    (tmp_path / "clip-19.1.tmp").write_bytes(b"half")  # as a killed worker leaves it
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    assert 4 <= len(done) < 20

    assert _decode(tmp_path) == {}

    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert {path.name for path in tmp_path.iterdir()} == {f"{key}.npz" for key in VALUES}
    for key, value in VALUES.items():
        np.testing.assert_array_equal(read_decoded(tmp_path, key)["value"][0, 0], 2 * value)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_memory_does_not_grow_with_the_number_of_clips(num_workers: int, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        _decode(tmp_path, big, num_workers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 8e6  # all twenty are 160 MB


@pytest.mark.parametrize("key", ["", "..", "../clip", "/clip", "a/b", ".clip", "a\\b", "a b", "ä"])
def test_keys_that_are_no_plain_file_names_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot name a clip"):
        decode_all({key: 1}, double, tmp_path / "in", num_workers=1, progress=False, description="")
    with pytest.raises(DataError, match=r"cannot name a clip"):
        read_decoded(tmp_path, key)
    assert not list(tmp_path.rglob("*"))


def test_names_that_youtube_gives_are_keys(tmp_path: Path) -> None:
    jobs = {"-_aB3-_xyz9": 1, "--7BRW39QRs_000030": 2}
    decode_all(jobs, double, tmp_path, num_workers=1, progress=False, description="")
    assert read_decoded(tmp_path, "-_aB3-_xyz9")["value"][0, 0] == 2


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


def _bare(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, value=np.array([{}], dtype=object))


@pytest.mark.parametrize(
    "damage", [_half, _flip, _pickled, _bare, Path.unlink, lambda path: os.truncate(path, 0)]
)
def test_damaged_files_are_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    values = np.arange(1000)
    decode_all(
        {"clip": values},
        lambda job: {"value": job},
        tmp_path,
        num_workers=1,
        progress=False,
        description="",
    )
    np.testing.assert_array_equal(read_decoded(tmp_path, "clip")["value"], values)
    damage(tmp_path / "clip.npz")
    problem = rf"^{tmp_path}/clip\.npz: missing or damaged .*remove the file"
    with pytest.raises(DataError, match=problem) as caught:
        read_decoded(tmp_path, "clip")
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/decoded: cannot be written to \(Not a directory"):
        _decode(tmp_path / "file/decoded")
