"""One process to a run directory, however the last one ended."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lra import lock
from lra.lock import InUseError, Lock

HOLD = """
import sys, time, pathlib
from lra.lock import Lock
with Lock(pathlib.Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A lock, and the process that holds it until its input ends."""
    path = tmp_path / "run" / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"mine\n"
    yield Lock(path), process
    process.kill()
    process.wait()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "DEAD_AFTER_SECONDS", 0.4)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "HANDOVER_SECONDS", 0.1)


@pytest.fixture
def no_flock(monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


def sign_as_another_machine(path):
    owner = {"host": "elsewhere", "pid": os.getpid(), "since": "2026-01-01 00:00:00"}
    path.write_text(json.dumps(owner))


def test_the_second_process_is_told_who_runs_here_and_since_when(held):
    ours, process = held
    message = rf"in use by process {process.pid} on {socket.gethostname()}, since 20\d\d-.*; stop"
    with pytest.raises(InUseError, match=message), ours:
        pass
    assert (ours.owner().pid, ours.owner().host) == (process.pid, socket.gethostname())
    process.stdin.close()
    process.wait()
    assert ours.owner() is None
    with ours:
        assert ours.owner().pid == os.getpid()


def test_a_killed_owner_is_followed_at_once_even_if_its_pid_lives_again(held):
    ours, process = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    ours.path.write_text(ours.path.read_text().replace(str(process.pid), str(os.getppid())))
    assert ours.owner() is None
    start = time.monotonic()
    with ours:
        assert ours.owner().pid == os.getpid()
    assert time.monotonic() - start < 1


def test_another_machine_is_followed_when_it_gives_no_sign_of_life(tmp_path, impatient, caplog):
    path = tmp_path / "lock"
    sign_as_another_machine(path)
    assert Lock(path).owner().host == "elsewhere"
    with Lock(path):
        assert Lock(path).owner().host == socket.gethostname()
    assert "taking over from process" in caplog.text


@pytest.mark.parametrize("years", [-1, 0, 1])
def test_another_machine_that_lives_is_not_followed_whatever_its_clock(tmp_path, impatient, years):
    path, is_over = tmp_path / "lock", threading.Event()
    sign_as_another_machine(path)

    def touch():
        beats = 0
        while not is_over.wait(0.05):
            beats += 1
            now = time.time() + years * 3e7 + beats
            os.utime(path, (now, now))

    living = threading.Thread(target=touch)
    living.start()
    with pytest.raises(InUseError, match="on elsewhere"), Lock(path):
        pass
    is_over.set()
    living.join()


def test_without_flock_the_owner_is_known_by_its_touch(tmp_path, impatient, no_flock):
    path = tmp_path / "lock"
    with Lock(path):
        time.sleep(0.5)  # longer than the dead are waited for
        assert Lock(path).owner().pid == os.getpid()
        with pytest.raises(InUseError), Lock(path):
            pass
    assert Lock(path).owner() is None
    with Lock(path):
        pass


def test_looking_at_a_lock_does_not_keep_others_from_taking_it(tmp_path):
    path, is_over = tmp_path / "lock", threading.Event()
    sign_as_another_machine(path)
    path.write_text(path.read_text().replace("elsewhere", socket.gethostname()))

    def look():
        while not is_over.is_set():
            Lock(path).owner()

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(50):
        with Lock(path):
            pass
    is_over.set()
    looking.join()


def test_of_many_who_wait_one_at_a_time_owns(tmp_path, monkeypatch):
    """Whoever has waited at a file that its last owner removed does not own the next one's."""
    monkeypatch.setattr(lock, "HANDOVER_SECONDS", 60)
    path, inside, most = tmp_path / "lock", [], []

    def own():
        for _ in range(20):
            with Lock(path):
                inside.append(1)
                time.sleep(0.01)
                most.append(len(inside))
                inside.pop()

    waiting = [threading.Thread(target=own) for _ in range(4)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    assert most == [1] * 80
    assert not path.exists()
