"""Searches that meet faults: stopped, killed, full disks, damaged files, nonsense, too little memory."""

import contextlib
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
from conftest import ENDLESS, HANG, ROOT, call, is_one_clear_line, rows_of, write_dataset
from faults import (
    EDGE_SETS,
    READERS,
    WORDS,
    Disk,
    altered,
    call_refused,
    check_whole,
    count_fine,
    damaged,
    make_set,
    started,
    wait_until,
    wait_until_gone,
)

import data
import search
import train

pytestmark = pytest.mark.usefixtures("trials_here")

EXTENDED = pytest.mark.extended
windows_has_none = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "small")


def flags(folder, out, *more, space="lr=0.05:0.2 hidden=3:9"):
    """Flags of a small search of four trials with two workers; of a flag given twice the last counts."""
    words = ["--dataset", folder, "--out", out, "--val-size", 12, "--batch-size", 16, "--workers", 2]
    return [*words, "--epochs", 2, "--trials", 4, "--space", *space.split(), *more]


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A folder with a search of two trials, ``run``, and the first of them alone, ``half``."""
    folder = tmp_path_factory.mktemp("whole")
    assert call(search.main, *flags(small, folder / "run", "--trials", 2))[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "retrain", lambda *_: "")
        assert call(search.main, *flags(small, folder / "half", "--trials", 1))[0] == 0
    return folder


def files_of(out):
    """Each file of a search but for those of earlier retrained runs: its bytes, or rows without times."""
    found = {}
    for path in out.rglob("*"):
        if path.is_file() and "previous-" not in str(path.relative_to(out)):
            content = path.read_bytes() if path.suffix == ".pkl" else None
            found[path.relative_to(out)] = rows_of(path) if path.suffix == ".csv" else content
    return found


def check_same_search(out, other):
    found, expected = files_of(out), files_of(other)
    assert set(found) == set(expected)
    assert not [path for path in found if found[path] != expected[path]]


# --- stopped and killed -----------------------------------------------------------------------

ENDLESS_SPACE = f"epochs=2,3,{ENDLESS} hidden=3,5"  # of six trials the last two end only when stopped
SHORT_SPACE = "epochs=2,3,4 hidden=3,5"


STRATEGIES = {
    "random": ["--epochs", 9, "--trials", 12],
    "halving": ["--epochs", 9, "--trials", 12, "--strategy", "halving"],
    "repeats": ["--epochs", 9, "--trials", 4, "--repeat", 3],
}


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    """Finished searches by name: a ``grid`` of SHORT_SPACE and each of STRATEGIES."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert call(search.main, *grid(small, folder / "grid", SHORT_SPACE))[0] == 0
    for name, more in STRATEGIES.items():
        assert call(search.main, *flags(small, folder / name, *more))[0] == 0
    return folder


def grid(small, out, space=ENDLESS_SPACE):
    words = ["--dataset", small, "--out", out, "--val-size", 12, "--batch-size", 16, "--workers", 2]
    return [*words, "--strategy", "grid", "--space", *space.split()]


def go_on_to_the_end(out):
    """Resume an endless search as one of SHORT_SPACE: the trials that have ended are the same."""
    path = out / "search.json"
    path.write_text(path.read_text().replace(ENDLESS_SPACE, SHORT_SPACE))
    assert call(search.main, "--resume", "--out", out)[0] == 0


@windows_has_none
@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("moments", [1, pytest.param(10, marks=EXTENDED)])
def test_stopped_at_any_moment_a_search_leaves_no_process_and_resumes(
    small, unbroken, tmp_path, number, status, moments
):
    """After its first line (its workers start), or when some or all of the trials that end have ended."""
    rng = np.random.default_rng([number, moments])
    for moment in range(moments):
        out = tmp_path / str(moment)
        with started("search.py", *grid(small, out)) as process:
            assert process.stdout.readline()
            ended = 1 + moment % 5  # then: none, or as many trials
            for _ in range(ended if ended < 5 else 0):
                assert process.stdout.readline()
            time.sleep(rng.uniform(0, 0.5) if moments > 1 else 0)  # it goes on however long this is
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            _, err = process.communicate(timeout=HANG)
            assert process.returncode == status
            assert not err if number == signal.SIGKILL else is_one_clear_line(err, str(out), "--resume")
            wait_until_gone(process)
        check_whole(out)
        assert ended == 5 or len(rows_of(out / "trials.csv")) >= ended - 1
        go_on_to_the_end(out)
        check_same_search(out, unbroken / "grid")


@windows_has_none
@pytest.mark.parametrize("count", [3, pytest.param(20, marks=EXTENDED)])
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_its_workers_start_a_search_leaves_no_process(small, tmp_path, number, status, count):
    """The signal comes soon after the search has said that it starts, or twice, to it or to all of them."""
    rng = np.random.default_rng(int(number))
    for moment in range(count):
        with started("search.py", *grid(small, tmp_path / str(moment))) as process:
            assert process.stdout.readline()
            for _ in range(1 + moment % 2):
                time.sleep(rng.uniform(0, 0.5))  # it goes on however long this is
                with contextlib.suppress(ProcessLookupError):  # the first signal was enough
                    os.killpg(process.pid, number) if moment % 3 else process.send_signal(number)
            _, err = process.communicate(timeout=HANG)
            assert process.returncode == status and is_one_clear_line(err, "--resume"), err
            wait_until_gone(process)
        check_whole(tmp_path / str(moment))


@windows_has_none
@pytest.mark.parametrize(
    "strategy, seed, kills",
    [
        ("halving", 0, 3),
        ("repeats", 0, 3),
        *(pytest.param(name, seed, 6, marks=EXTENDED) for name in STRATEGIES for seed in range(1, 3)),
    ],
)
def test_killed_again_and_again_a_search_ends_with_the_same_bits(
    small, unbroken, tmp_path, strategy, seed, kills
):
    """100 moments in the extended run: soon after the start, the first line (its workers start), the next."""
    out, rng = tmp_path / "out", np.random.default_rng([seed, kills])
    given = flags(small, out, *STRATEGIES[strategy])
    for kill in range(kills):
        with started("search.py", *given, *resume_if_begun(out)) as process:
            for _ in range(kill % 3):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1 if kill % 3 == 2 else 0.5))  # if it ends first, that is no harm
            process.kill()  # the parent alone: its workers must follow
            process.wait(HANG)
            wait_until_gone(process)
        check_whole(out)
    assert call(search.main, *given, *resume_if_begun(out))[0] == 0
    check_same_search(out, unbroken / strategy)


def resume_if_begun(out):
    return ["--resume"] if (out / "search.json").exists() else []


def test_resume_without_a_search_is_refused_and_names_those_nearby(whole, tmp_path):
    shutil.copytree(whole / "half", tmp_path / "there")
    for out in (tmp_path, tmp_path / "here"):
        call_refused(search.main, "--resume", "--out", out, names=["--resume", str(tmp_path / "there")])
    assert not (tmp_path / "here").exists()


def test_a_second_search_is_refused_while_the_first_lives(small, whole, tmp_path):
    words = flags(small, tmp_path, "--trials", 2, "--epochs", ENDLESS)
    with started("search.py", *words, stdout=subprocess.DEVNULL) as first:
        wait_until((tmp_path / "search.json").exists, first)
        call_refused(search.main, *words, "--resume", names=[str(tmp_path)])
        call_refused(search.main, *words, names=[str(tmp_path), "--resume"])
        first.kill()
        wait_until_gone(first)
    shutil.copytree(whole / "half", tmp_path, dirs_exist_ok=True)
    assert call(search.main, "--resume", "--out", tmp_path, "--trials", 2)[0] == 0, "its lock blocks nobody"
    check_same_search(tmp_path, whole / "run")


def test_a_search_that_came_first_is_not_overwritten(small, whole, tmp_path, monkeypatch):
    """Another one has taken the folder and ended while this one loaded its data."""
    load = data.load_dataset

    def load_slowly(*args, **more):
        shutil.copytree(whole / "half", tmp_path / "out")
        return load(*args, **more)

    monkeypatch.setattr(data, "load_dataset", load_slowly)
    words = flags(small, tmp_path / "out", "--trials", 2, "--seed", 1)
    call_refused(search.main, *words, names=[str(tmp_path / "out")])
    for path in (whole / "half").rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(whole / "half")).read_bytes() == path.read_bytes()


@windows_has_none
def test_a_search_whose_lines_nobody_reads_on_ends_quietly(small, tmp_path):
    """As in ``| head``: the pipe is closed after a line; it holds only a part of the others."""
    with started("search.py", *flags(small, tmp_path, "--epochs", 1, "--trials", 2000)) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(HANG) == 141
        wait_until_gone(process)
    check_whole(tmp_path)


# --- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, once, every",
    [
        (errno.ENOSPC, False, 4),
        pytest.param(errno.ENOSPC, False, 1, marks=EXTENDED),
        pytest.param(errno.EIO, True, 1, marks=EXTENDED),
    ],
)
def test_a_write_that_fails_loses_no_trial(small, tmp_path, error, once, every):
    """Two trials are there; a search for two more meets the error at its first write, a later one, ..."""
    given = flags(small, tmp_path / "two", "--trials", 2, "--epochs", 1)
    assert call(search.main, *given)[0] == 0
    more = ["--resume", "--trials", 4, "--out"]
    shutil.copytree(tmp_path / "two", tmp_path / "four")
    assert call(search.main, *more, tmp_path / "four")[0] == 0
    earlier = {path: own for path, own in files_of(tmp_path / "two").items() if "trials" in path.parts}
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


def test_a_search_folder_that_is_a_file_below_one_or_read_only(small, whole, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        call_refused(search.main, *flags(small, out), names=[str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "kept"
    Disk(monkeypatch, whole, 1, errno.EROFS, once=False)
    call_refused(search.main, "--resume", "--out", whole / "run", names=[os.strerror(errno.EROFS)])


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers, who", [(1, "this run"), (2, "2 trials at once"), (9, "4 trials at once")])
def test_a_space_with_a_hidden_layer_of_a_million_is_refused_before_anything_runs(
    tmp_path, monkeypatch, workers, who
):
    monkeypatch.setattr(train, "available_memory", lambda: 4e9)
    monkeypatch.setattr(data, "load_dataset", None)
    words = [who, "--hidden"]
    given = flags("mnist", tmp_path / "out", "--workers", workers, space="hidden=100,200,300,1000000")
    call_refused(search.main, *given, names=words)
    assert not (tmp_path / "out").exists()


def test_trials_that_fit_into_memory_one_by_one_may_not_fit_together(small, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "available_memory", lambda: 9e6)
    space = "hidden=2000:2100"
    together = flags(small, tmp_path / "together", space=space)
    call_refused(search.main, *together, names=["--workers"])
    one_by_one = flags(small, tmp_path / "out", "--workers", 1, "--trials", 2, "--lr", 0.001, space=space)
    assert call(search.main, *one_by_one)[0] == 0


# --- damaged files ----------------------------------------------------------------------------


def use_search(out):
    """All that --resume reads, and what it makes of it, without any training."""
    definition, known = search.resumed(out, {})
    trials, _ = search.make_trials(definition, None, known)
    trials = search.load_trials(out, trials)
    search.epochs_left(trials, search.rungs(definition))
    for trial in trials:
        if trial["rows"]:
            train.load_last(search.trial_folder(out, trial))
    searched = list(search.parse_space(definition["space"]))
    runs = search.runs_of(definition)  # of a group that lacks some these would run first
    if ranked := [group for group in search.ranking(trials) if len(group) == runs]:
        search.ranking_text(ranked, search.compare(ranked), searched)
    search.save_table(out, trials, searched)


DAMAGED = ["trials.csv", "search.json", "trials/001/history.csv", "trials/001/last.pkl"]


@pytest.fixture(scope="module")
def with_repeats(small, tmp_path_factory):
    """As ``whole``: a search of two trials with two repeats, of which one has gone on."""
    folder = tmp_path_factory.mktemp("repeats")
    assert call(search.main, *flags(small, folder / "run", "--trials", 2, "--repeat", 2))[0] == 0
    assert call(search.main, "--resume", "--out", folder / "run", "--best", 1, "--epochs", 3)[0] == 0
    return folder


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.extended)])
@pytest.mark.parametrize(
    "kind, file, way",
    [
        *(("whole", file, "damaged") for file in DAMAGED),
        *(("whole", file, "altered") for file in DAMAGED[1::2]),  # it is whole but says something odd
        *(("with_repeats", file, "damaged") for file in DAMAGED[:2]),
        ("with_repeats", "search.json", "altered"),
    ],
)
def test_damaged_searches_are_resumed_or_refused(request, tmp_path, kind, file, way, count):
    rng = np.random.default_rng([6, len(file), count, len(kind), len(way)])
    out = shutil.copytree(request.getfixturevalue(kind) / "run", tmp_path / "out")
    honest = {name: (out / name).read_bytes() for name in ("trials.csv", file)}  # trials.csv is written
    record = READERS[out.joinpath(file).suffix](out / file)

    def bad_content():
        if way == "damaged":
            return damaged(honest[file], rng)
        odd = altered(record, rng, arrays=file.endswith("pkl"))
        return pickle.dumps(odd) if file.endswith("pkl") else json.dumps(odd).encode()

    def cases():
        for number in range(count):
            for name, content in honest.items():
                (out / name).write_bytes(content)
            if number:  # the first is whole: the others have times in them and may all be refused
                (out / file).write_bytes(bad_content())
            yield out

    assert 0 < count_fine(cases(), use_search) < count


# --- nonsense ---------------------------------------------------------------------------------


def not_loaded(*_, **__):
    raise FileNotFoundError("the data is loaded")


COUNTS = {"1", "2", "1.0", "1e3", "1_0", "٣"}
OWN_FLAGS = ["strategy", "trials", "repeat", "best", "workers", "scheduler", "data-dir", "space"]


@pytest.mark.parametrize("flag", [*map(train.flag, OWN_FLAGS), *map(train.flag, train.SETTINGS)])
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
    call_refused(search.main, *words, "--strategy", "grid", "--out", tmp_path, names=["1000000000000"])
    call_refused(search.main, "--trials", 10**9, "--out", tmp_path, names=["--trials"])


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", train.DTYPES)
@pytest.mark.parametrize("name", EDGE_SETS)
def test_data_sets_at_the_edge_are_searched(tmp_path, name, dtype):
    folder = make_set(tmp_path / "set", *EDGE_SETS[name])
    words = flags(folder, tmp_path / "out", "--val-size", 2, "--dtype", dtype, "--space", "lr=0.01,1e4")
    words += ["hidden=3", "preprocess=scale,scale+center+standardize", "--momentum", 0]
    if name == "one image":
        return call_refused(search.main, *words, names=["1"])
    status, out, err = call(search.main, *words, "--trials", 6)
    assert (status, err) == (0, "") and "is the best" in out
    rows = data.load_rows(tmp_path / "out" / "trials.csv", words=True)
    assert len(rows) == 4 and {row["status"] for row in rows} <= {"finished", "diverged"}
    for row in rows:
        figures = [row[name] for name in search.FIGURES if row[name] is not None]
        assert np.isfinite(figures).all()


def test_a_search_in_which_all_diverges_says_so(small, tmp_path):
    words = flags(small, tmp_path, "--space", "lr=1e30:1e37:log", "--loss", "mse")
    call_refused(search.main, *words, names=["trials.csv"])
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
def test_the_memory_of_a_search_of_200_trials_is_flat(small, tmp_path):
    (tmp_path / "many.py").write_text(MANY_TRIALS)
    words = flags(small, tmp_path / "out", "--trials", 200, "--workers", 2)
    done = subprocess.run(
        [sys.executable, tmp_path / "many.py", *map(str, words)],
        capture_output=True, text=True, timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    early, late, trials = eval(done.stdout.splitlines()[-1].replace("] ", "], "))
    assert trials == 200 and len(early) == len(late) == 3
    assert all(b - a < 4e6 for a, b in zip(early, late)), (early, late)
