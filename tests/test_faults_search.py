"""Searches on full disks, killed, with damaged files, nonsense for flags, and data sets at the edge."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, is_one_clear_line, write_dataset
from faults import (
    Disk,
    altered,
    call,
    call_refused,
    check_whole,
    damaged,
    no_processes,
    outcomes,
    start,
    wait_until_gone,
)
from test_faults_disks import wait_for
from test_faults_settings import EDGES, WORDS, make_set
from test_faults_stopped import check_same_search

import data
import nn
import search
import train

READERS = {
    ".pkl": nn.load_checkpoint,
    ".json": data.load_json,
    ".csv": lambda p: data.load_rows(p, words=True),
}
SPACE = ["--space", "lr=0.05:0.2", "hidden=3:9"]


def flags(folder, out, *more):
    words = ["--dataset", folder, "--out", out, "--val-size", 12, "--batch-size", 16, "--momentum", 0.9]
    return [*words, *SPACE, "--trials", 2, "--epochs", 2, "--workers", 1, *more]  # the last of a flag wins


@pytest.fixture
def here(monkeypatch):
    """Searches without processes of their own, and without waiting for the disk."""
    monkeypatch.setattr(search, "_processes", no_processes)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a data set, ``small``, a search of two trials, ``run``, and one of one, ``half``."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_processes", no_processes)
        assert call(search.main, *flags(folder / "small", folder / "run"))[0] == 0
        patch.setattr(search, "retrain", lambda *_: "")
        assert call(search.main, *flags(folder / "small", folder / "half", "--trials", 1))[0] == 0
    return folder


# --- disks ------------------------------------------------------------------------------------


def test_a_search_folder_that_is_a_file_below_one_or_read_only(whole, tmp_path, here, monkeypatch):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        call_refused(search.main, *flags(whole / "small", out), words=[str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "kept"
    Disk(monkeypatch, whole, 1, errno.EROFS, once=False)
    call_refused(search.main, "--resume", "--out", whole / "run", words=["Read-only file system"])


def test_a_second_search_is_refused_while_the_first_lives(whole, tmp_path, here):
    words = flags(whole / "small", tmp_path, "--epochs", 100_000)
    first = start("search.py", *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "search.json").exists(), first)
        call_refused(search.main, *words, "--resume", words=["another run is writing", str(tmp_path)])
        call_refused(search.main, *words, words=["holds this search already"])
    finally:
        first.kill()
        first.wait()
    assert (tmp_path / ".lock").exists(), "a killed search leaves its lock file ..."
    shutil.copytree(whole / "half", tmp_path, dirs_exist_ok=True)
    assert call(search.main, "--resume", "--out", tmp_path, "--trials", 2)[0] == 0, "... which blocks nobody"
    check_same_search(tmp_path, whole / "run")


def test_a_search_that_came_first_is_not_overwritten(whole, tmp_path, here, monkeypatch):
    """Another one has taken the folder and ended while this one loaded its data."""
    load = data.load_dataset

    def load_slowly(*args, **more):
        shutil.copytree(whole / "half", tmp_path / "out")
        return load(*args, **more)

    monkeypatch.setattr(data, "load_dataset", load_slowly)
    words = flags(whole / "small", tmp_path / "out", "--seed", 1)
    call_refused(search.main, *words, words=["another search", str(tmp_path / "out")])
    for path in (whole / "half").rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(whole / "half")).read_bytes() == path.read_bytes()


# --- killed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_search(tmp_path_factory):
    """Folder, flags and results of a search of six trials that is worth interrupting."""
    folder = tmp_path_factory.mktemp("long")
    small = write_dataset(folder / "small", train=600, shape=(8, 8))
    words = flags(small, folder / "run", "--trials", 6, "--epochs", 12, "--workers", 2)
    assert call(search.main, *words)[0] == 0
    return words, folder / "run"


@pytest.mark.extended
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_at_random_moments_one_line_says_so(long_search, tmp_path, number, status):
    rng, words = np.random.default_rng(int(number)), [*long_search[0], "--epochs", 100]
    for moment in range(8):
        out = tmp_path / str(moment)
        arguments = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
        process = start("search.py", *words, "--out", out, **arguments)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 3))
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert process.returncode == status and is_one_clear_line(err, "stopped", "--resume"), err
        wait_until_gone(process.pid)
        check_whole(out)


# --- damaged files ----------------------------------------------------------------------------


def use_search(out):
    """All that --resume reads, and what it makes of it, without any training."""
    definition, known = search.open_search(out, {}, True)
    trials, _ = search.make_trials(definition, None, known)
    trials = search.load_trials(out, trials)
    plan = search.rungs(definition["strategy"], len(trials), trials[0]["config"]["epochs"])
    search.epochs_left(trials, plan)
    for trial in trials:
        search.load_trial(out, trial)
    searched = list(search.parse_space(definition["space"]))
    search.ranking_text(trials, searched)
    search.save_table(out, trials, searched)


DAMAGED = ["trials.csv", "search.json", "trials/001/history.csv", "trials/001/last.pkl"]


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.extended)])
@pytest.mark.parametrize("file", DAMAGED)
def test_damaged_searches_are_resumed_or_refused(whole, tmp_path, here, file, count):
    rng, out = np.random.default_rng([6, len(file), count]), shutil.copytree(whole / "run", tmp_path / "out")
    honest = {name: (out / name).read_bytes() for name in ("trials.csv", file)}  # trials.csv is written

    def cases():
        for _ in range(count):
            for name, content in honest.items():
                (out / name).write_bytes(content)
            (out / file).write_bytes(damaged(honest[file], rng))
            yield out

    fine, faults = outcomes(cases(), use_search)
    assert not faults and 0 < fine < count


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.extended)])
@pytest.mark.parametrize("file", ["search.json", "trials/001/last.pkl"])
def test_files_of_a_search_that_are_whole_but_say_something_odd(whole, tmp_path, here, file, count):
    rng, out = np.random.default_rng([7, len(file), count]), shutil.copytree(whole / "run", tmp_path / "out")
    table = (out / "trials.csv").read_bytes()
    honest = READERS[out.joinpath(file).suffix](out / file)

    def cases():
        for _ in range(count):
            (out / "trials.csv").write_bytes(table)
            if file.endswith("json"):
                (out / file).write_text(json.dumps(altered(honest, rng)))
            else:
                (out / file).write_bytes(pickle.dumps(altered(honest, rng, arrays=True)))
            yield out

    fine, faults = outcomes(cases(), use_search)
    assert not faults and 0 < fine < count


# --- nonsense ---------------------------------------------------------------------------------


def not_loaded(*_, **__):
    raise FileNotFoundError("the data is loaded")


COUNTS = {"1", "2", "1.0", "1e3", "1_0", "٣"}
OWN_FLAGS = ("--strategy", "--trials", "--workers", "--scheduler", "--data-dir", "--space")


@pytest.mark.parametrize("flag", [*OWN_FLAGS, *map(train.flag, train.SETTINGS)])
def test_nonsense_on_the_command_line_is_refused_before_the_data_is_loaded(flag, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load_dataset", not_loaded)
    monkeypatch.setitem(sys.modules, "distributed", None)  # --scheduler: no answer is waited for
    for value in WORDS:
        words = ["--out", tmp_path / "out", *([] if flag == "--space" else ["--space", "smooth=1,2"])]
        status, _, err = call(search.main, *words, flag, value)
        assert status == 2 and is_one_clear_line(err), (value, err)
        if not value.startswith("-") and flag in ("--strategy", "--trials", "--workers", "--space"):
            good = {"--trials": COUNTS, "--workers": {*COUNTS, "9" * 18, "1e308"}}.get(flag, ())
            assert (value in good) == ("the data is loaded" in err), (value, err)
            assert value in good or flag.strip("-") in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", train.SETTINGS)
def test_nonsense_in_a_space_is_named(name):
    for one in WORDS:
        for text in (one, f"{one},{one}", f"1,{one}", f"0.1:{one}", f"{one}:2", f"1:{one}:log", f"{one}:"):
            try:
                space = search.parse_space(f"{name}={text}")
                value = train.check_setting(name, search.draw(space[name], np.random.default_rng(0)))
                assert train.check_setting(name, value) == value
            except ValueError as error:
                assert str(error).startswith("--space ") and len(str(error)) < 600, error


def test_a_grid_beyond_any_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load_dataset", not_loaded)
    choices = ",".join(map(str, range(1, 1001)))
    words = ["--space", *(f"{name}={choices}" for name in ("lr", "hidden", "seed", "batch_size"))]
    call_refused(search.main, *words, "--strategy", "grid", "--out", tmp_path, words=["1000000000000"])
    call_refused(search.main, "--trials", 10**9, "--out", tmp_path, words=["--trials", "at most"])


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", train.DTYPES)
@pytest.mark.parametrize("name", EDGES)
def test_data_sets_at_the_edge_are_searched(tmp_path, here, name, dtype):
    folder = make_set(tmp_path / "set", *EDGES[name])
    words = flags(folder, tmp_path / "out", "--val-size", 2, "--dtype", dtype, "--space", "lr=0.01,1e4")
    words += ["hidden=3", "preprocess=scale,scale+center+standardize", "--momentum", 0]
    if name == "one image":
        return call_refused(search.main, *words, words=["1 images cannot be split"])
    status, out, err = call(search.main, *words, "--trials", 6)
    assert (status, err) == (0, "") and "is the best" in out
    rows = data.load_rows(tmp_path / "out" / "trials.csv", words=True)
    assert len(rows) == 6 and {row["status"] for row in rows} <= {"finished", "diverged"}
    for row in rows:
        figures = [row[name] for name in search.FIGURES if row[name] is not None]
        assert np.isfinite(figures).all()


def test_a_search_in_which_all_diverges_says_so(whole, tmp_path, here):
    words = flags(whole / "small", tmp_path, "--space", "lr=1e30:1e37:log", "--loss", "mse")
    call_refused(search.main, *words, words=["every trial has failed", "trials.csv"])
    check_whole(tmp_path)


# --- long -------------------------------------------------------------------------------------

MANY_TRIALS = """
import os, pathlib, sys, search
held, save = [], search.save_trial

def save_trial(*args):
    save(*args)
    stats = pathlib.Path("/proc").glob("[0-9]*/stat")
    parents = {path.parent: path.read_text().rpartition(")")[2].split()[1] for path in stats}
    ours = [p for p in sorted(parents) if str(os.getpid()) in (p.name, parents[p])]
    held.append([4096 * int((p / "statm").read_text().split()[1]) for p in ours])

if __name__ == "__main__":
    search.save_trial = save_trial
    search.main(sys.argv[1:])
    print(held[39], held[-1], len(held))
"""


@pytest.mark.extended
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_the_memory_of_a_search_of_200_trials_is_flat(whole, tmp_path):
    (tmp_path / "many.py").write_text(MANY_TRIALS)
    words = flags(whole / "small", tmp_path / "out", "--trials", 200, "--workers", 2)
    done = subprocess.run(
        [sys.executable, tmp_path / "many.py", *map(str, words)],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    early, late, trials = eval(done.stdout.splitlines()[-1].replace("] ", "], "))
    assert trials == 200 and len(early) == len(late) == 3
    assert all(b - a < 4e6 for a, b in zip(early, late)), (early, late)
