import os
import subprocess
import sys
import threading
from pathlib import Path

from jacfuse_jax.programs.files import write_atomically


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path, barrier = tmp_path / "file.txt", threading.Barrier(2)
    temporaries = []

    def write(letter):
        def content(temporary):
            temporaries.append(temporary)
            with temporary.open("w") as file:
                for _ in range(3):
                    file.write(letter)
                    file.flush()
                    barrier.wait()

        write_atomically(path, content)

    writers = [threading.Thread(target=write, args=letter) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in ("aaa", "bbb")
    assert len(set(temporaries)) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_content_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def recorded_replace(source, target):
        events.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_atomically(tmp_path / "file.txt", "text")
    content, renamed, folder = events
    assert content.startswith(f"{tmp_path}/.file.")
    assert (renamed, folder) == ("renamed", str(tmp_path))


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    leftover = tmp_path / f".file.{killed.pid}.1.partial.txt"
    others = [
        tmp_path / f".file.{os.getppid()}.1.partial.txt",  # still at work
        tmp_path / f".other.{killed.pid}.1.partial.txt",
        tmp_path / ".file.mine.partial.txt",
    ]
    for path in (leftover, *others):
        path.touch()
    write_atomically(tmp_path / "file.txt", "text")
    assert not leftover.exists()
    assert all(path.exists() for path in others)
