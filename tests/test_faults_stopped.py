"""Searches that are stopped: for want of memory, killed at any moment, or by a disk that fails."""

import errno
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import is_one_clear_line, write_dataset
from faults import Disk, call, call_refused, check_whole, no_processes, start, wait_until_gone

import data
import search
import train

EXTENDED = pytest.mark.extended


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "small")


def flags(dataset, out, *more, space="lr=0.05:0.2 hidden=3:9"):
    """Flags of a small search of four trials with two workers; ``more`` wins."""
    usual = {"--trials": 4, "--workers": 2, "--epochs": 2, "--val-size": 12, "--batch-size": 16}
    words = [word for name, value in usual.items() if name not in more for word in (name, value)]
    return list(map(str, ["--dataset", dataset, "--out", out, "--space", *space.split(), *words, *more]))


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers, who", [(1, "this run"), (2, "2 trials at once"), (9, "4 trials at once")])
def test_a_space_with_a_hidden_layer_of_a_million_is_refused_before_anything_runs(
    tmp_path, monkeypatch, workers, who
):
    monkeypatch.setattr(train, "available_memory", lambda: 4e9)
    monkeypatch.setattr(data, "load_dataset", None)
    words = [who, "4.0 GB are free", "--hidden"]
    given = flags("mnist", tmp_path / "out", "--workers", workers, space="hidden=100,1000000")
    call_refused(search.main, *given, words=words)
    assert not (tmp_path / "out").exists()


def test_trials_that_fit_into_memory_one_by_one_may_not_fit_together(small, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "available_memory", lambda: 9e6)
    space = "hidden=2000:2100"
    together = flags(small, tmp_path / "together", space=space)
    call_refused(search.main, *together, words=["2 trials at once", "fewer --workers"])
    one_by_one = flags(small, tmp_path / "out", "--workers", 1, "--trials", 2, "--lr", 0.001, space=space)
    assert call(search.main, *one_by_one)[0] == 0


# --- killed -----------------------------------------------------------------------------------

STRATEGIES = {"random": ["--trials", 12], "halving": ["--strategy", "halving", "--trials", 12]}


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    """A finished search of each of STRATEGIES, by name."""
    folder = tmp_path_factory.mktemp("unbroken")
    for name, more in STRATEGIES.items():
        assert call(search.main, *flags(small, folder / name, "--epochs", 9, *more))[0] == 0
    return folder


def files_of(out):
    """Each file of a search but for those of earlier retrained runs: its bytes, or rows without times."""
    found = {}
    for path in out.rglob("*"):
        if "previous-" in str(path.relative_to(out)):
            continue
        if path.suffix == ".csv":
            rows = data.load_rows(path, words=path.name == "trials.csv")
            found[path.relative_to(out)] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        elif path.is_file():
            found[path.relative_to(out)] = path.read_bytes() if path.suffix == ".pkl" else None
    return found


def check_same_search(out, other):
    found, expected = files_of(out), files_of(other)
    assert set(found) == set(expected)
    assert not [path for path in found if found[path] != expected[path]]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups")
@pytest.mark.parametrize(
    "strategy, seed, kills",
    [
        ("halving", 0, 3),
        *(pytest.param(name, seed, 10, marks=EXTENDED) for name in STRATEGIES for seed in range(1, 6)),
    ],
)
def test_killed_again_and_again_a_search_ends_with_the_same_bits(
    small, unbroken, tmp_path, strategy, seed, kills
):
    """At random moments, 100 in the extended run: counted from the start, the first line and the next."""
    out, rng = tmp_path / "out", np.random.default_rng([seed, kills])
    given = flags(small, out, "--epochs", 9, *STRATEGIES[strategy], "--resume")
    for kill in range(kills):
        process = start("search.py", *given, stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(kill % 3):  # its workers start after the first
            process.stdout.readline()
        time.sleep(rng.uniform(0.1, 0.8) if kill % 3 < 2 else rng.uniform(0, 0.1))
        process.kill()  # the parent alone: its workers must follow
        process.communicate()
        wait_until_gone(process.pid)
        check_whole(out)
    assert call(search.main, *given)[0] == 0
    check_same_search(out, unbroken / strategy)


# --- disks ------------------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch):
    """Trials run in this process one after the other, and files need not reach the disk: for speed."""
    monkeypatch.setattr(search, "_processes", no_processes)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize(
    "error, once, every",
    [
        (errno.ENOSPC, False, 4),
        pytest.param(errno.ENOSPC, False, 1, marks=EXTENDED),
        pytest.param(errno.EIO, True, 1, marks=EXTENDED),
    ],
)
def test_a_write_that_fails_loses_no_trial(small, tmp_path, in_this_process, error, once, every):
    """Two trials are there; a search for two more meets the error at its first write, a later one, ..."""
    given = flags(small, tmp_path / "two", "--trials", 2, "--epochs", 1)
    assert call(search.main, *given)[0] == 0
    more = ["--resume", "--trials", 4, "--out"]
    shutil.copytree(tmp_path / "two", tmp_path / "four")
    assert call(search.main, *more, tmp_path / "four")[0] == 0
    earlier = {
        path: content for path, content in files_of(tmp_path / "two").items() if "trials" in path.parts
    }
    retrained = (tmp_path / "two" / "params.pkl").read_bytes()
    for number in range(1, 200, every):
        out = tmp_path / str(number)
        shutil.copytree(tmp_path / "two", out)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, out, number, error, once)
            status, _, err = call(search.main, *more, out)
        if disk.count < number:
            break
        if not (once and status == 0):  # it is no harm when a folder cannot be made that is there
            assert status == 2 and is_one_clear_line(err, os.strerror(error)), (number, err)
        found = files_of(out)
        assert all(found.get(path) == content for path, content in earlier.items()), number
        assert retrained in [path.read_bytes() for path in out.rglob("params.pkl")], number
        assert not list(out.rglob("*.part")) and not (out / ".split").exists()
        check_whole(out)
        status, _, err = call(search.main, *more, out)
        assert (status, err) == (0, ""), number
        check_same_search(out, tmp_path / "four")
        shutil.rmtree(out)
    assert number > 50
