"""Runs that meet faults: full disks, a second run, signals, files that are damaged or say something odd."""

import concurrent.futures
import errno
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import time

import faults
import numpy as np
import pytest
from conftest import ENDLESS, HANG, call, is_one_clear_line, rows_of, run_apart, run_code, write_dataset

import data
import nn
import train

windows_has_none = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
OTHER_FLAGS = ("--val-size", 12, "--batch-size", 16, "--hidden", 7, "--momentum", 0.9, "--dropout", 0.2)


def flags(folder, out, *more):
    """Flags of a small run of three epochs; of a flag given twice the last counts."""
    return ["--dataset", folder / "small", "--out", out, *OTHER_FLAGS, "--epochs", 3, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a data set, ``small``, and unbroken runs of 3 epochs, ``run``, and 300, ``long``."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "small")
    assert call(train.main, *flags(folder, folder / "run"))[0] == 0
    assert call(train.main, *flags(folder, folder / "long", "--epochs", 300))[0] == 0
    return folder


def contents(folder):
    """The content of each file in a folder and those below it, but for times and halves of files."""
    found = {}
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file() and path.suffix in (".pkl", ".json", ".csv"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def check_same_run(out, other):
    for file in ("params.pkl", "last.pkl"):
        assert (out / file).read_bytes() == (other / file).read_bytes(), file
    assert rows_of(out / "history.csv") == rows_of(other / "history.csv")
    assert json.loads((out / "config.json").read_text())["status"] == "finished"


# --- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error, once", [(errno.ENOSPC, False), (errno.EIO, True)])
def test_a_write_that_fails_loses_nothing(whole, tmp_path, error, once):
    """An earlier run is in the folder; the new one meets the error at its first write, its second, ..."""
    for number in range(1, 200):
        out = tmp_path / str(number)
        shutil.copytree(whole / "run", out)
        earlier = set(contents(out).values())
        with pytest.MonkeyPatch.context() as patch:
            disk = faults.Disk(patch, out, number, error, once)
            status, _, err = call(train.main, *flags(whole, out))
        if disk.count < number:
            break
        if not (once and status == 0):  # it is no harm when a folder cannot be made that is there
            assert status == 2 and is_one_clear_line(err, os.strerror(error)), (number, err)
        assert earlier <= set(contents(out).values()), (
            f"failing write {number} lost a file of the earlier run"
        )
        assert not list(out.glob("*.part")), "a half-written file stays"
        faults.check_whole(out)
        assert call(train.main, *flags(whole, out, *resume_if_begun(out)))[0] == 0
        check_same_run(out, whole / "run")
        shutil.rmtree(out)
    assert number > 20


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_disk_that_is_full_in_the_middle_of_a_file(whole, tmp_path):
    import resource

    largest = max(path.stat().st_size for path in (whole / "run").iterdir())
    for number, size in enumerate(np.linspace(0, largest - 1, 12).astype(int).tolist()):
        out = tmp_path / str(number)
        shutil.copytree(whole / "run", out)
        earlier, before = set(contents(out).values()), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            status, _, err = call(train.main, *flags(whole, out))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert status == 2 and is_one_clear_line(err, os.strerror(errno.EFBIG)), (size, err)
        assert earlier <= set(contents(out).values())
        assert call(train.main, *flags(whole, out, *resume_if_begun(out)))[0] == 0
        check_same_run(out, whole / "run")


def test_a_results_path_that_is_a_file_or_below_one(whole, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        faults.call_refused(train.main, *flags(whole, out), names=[str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "kept"


# --- two runs in one folder -------------------------------------------------------------------


def test_a_second_run_is_refused_while_the_first_lives(whole, tmp_path):
    out = tmp_path / "run"
    given = flags(whole, out, "--epochs", ENDLESS)
    with faults.started("train.py", *given, stdout=subprocess.DEVNULL) as first:
        faults.wait_until((out / "last.pkl").exists, first)
        for more in ([], ["--resume"]):
            faults.call_refused(train.main, *flags(whole, out, *more), names=[str(out)])
        assert not (out / "previous-1").exists() and first.poll() is None
        first.kill()
        faults.wait_until_gone(first)
    assert call(train.main, *flags(whole, out))[0] == 0, "the lock of a killed run blocks nobody"
    check_same_run(out, whole / "run")


def resume_if_begun(out):
    return ["--resume"] if (out / "last.pkl").exists() else []


def test_of_many_runs_started_at_once_one_goes_on(whole, tmp_path):
    code = (
        "import sys, pathlib, train\n"
        "out, mine = pathlib.Path(sys.argv[1]), 0\n"
        "while mine < 30:\n"
        "    try:\n"
        "        with train.locked(out):\n"
        "            (out / 'held').mkdir()\n"  # fails if another one is inside
        "            (out / 'held').rmdir()\n"
        "            mine += 1\n"
        "    except BlockingIOError:\n"
        "        pass\n"
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ended = [pool.submit(run_code, code, tmp_path) for _ in range(4)]
    assert [done.result().stderr for done in ended] == [""] * 4
    assert os.listdir(tmp_path) == [".lock"]


def test_halves_of_files_are_cleared_and_locks_are_not_needed(whole, tmp_path, monkeypatch):
    for name in ("last.pkl.123.part", "history.csv.123-456.part", "film.mkv.part", "predictions.csv.7.part"):
        (tmp_path / name).write_bytes(b"half")
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert call(train.main, *flags(whole, tmp_path))[0] == 0
    assert sorted(os.listdir(tmp_path)) == [
        ".lock",
        "config.json",
        "film.mkv.part",  # of somebody else
        "history.csv",
        "last.pkl",
        "params.pkl",
        "predictions.csv.7.part",  # of a test.py that is at work
    ]


def test_the_lock_of_windows(tmp_path, monkeypatch):
    """With a stand-in for msvcrt: nobody here has Windows."""
    held = []

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor, mode, count):
            if held:
                raise PermissionError(errno.EACCES, "Permission denied")
            held.append(descriptor)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    with train.locked(tmp_path), pytest.raises(BlockingIOError), train.locked(tmp_path):
        pass


# --- killed and stopped -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed, kills", [(0, 4), *(pytest.param(seed, 10, marks=pytest.mark.extended) for seed in range(1, 4))]
)
def test_killed_again_and_again_a_run_ends_with_the_same_bits(whole, tmp_path, seed, kills):
    """30 moments in the extended run: half of them soon after the start, the others after some epochs."""
    out, rng = tmp_path / "run", np.random.default_rng(seed)
    given = flags(whole, out, "--epochs", 300)
    for kill in range(kills):
        with faults.started("train.py", *given, *resume_if_begun(out)) as process:
            for _ in range(rng.integers(1, 40) if kill % 2 else 0):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02 if kill % 2 else 0.6))  # if it ends first, that is no harm
            process.kill()
            process.wait(HANG)
        faults.check_whole(out)
        if (out / "last.pkl").exists():
            train.load_last(out)
    assert call(train.main, *given, *resume_if_begun(out))[0] == 0
    check_same_run(out, whole / "long")
    assert sorted(os.listdir(out)) == [".lock", "config.json", "history.csv", "last.pkl", "params.pkl"]


@windows_has_none
@pytest.mark.parametrize("moments", [2, pytest.param(8, marks=pytest.mark.extended)])
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_what_was_reached(whole, tmp_path, number, status, moments):
    rng = np.random.default_rng(int(number))
    for moment in range(moments):
        out = tmp_path / str(moment)
        with faults.started("train.py", *flags(whole, out, "--epochs", ENDLESS)) as process:
            for _ in range(8 if moment % 2 else 1):  # the first lines say what it trains
                assert process.stdout.readline()
            time.sleep(rng.uniform(0, 0.3))  # it goes on however long this is
            process.send_signal(number)
            said, err = process.communicate(timeout=HANG)
            assert process.returncode == status and is_one_clear_line(err, str(out), "--resume"), err
        faults.check_whole(out)
        assert json.loads((out / "config.json").read_text())["status"] == "stopped"
        if moment % 2 or (out / "last.pkl").exists():
            state, rows, _ = train.load_last(out)
            assert state["epoch"] == len(rows) >= said.count("epoch ")


# --- damaged files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return faults.make_runs(tmp_path_factory.mktemp("runs"))


def use_run(out):
    """Go on with a run for an epoch, as --resume does."""
    state, rows, config, prepared = train.resume_run(out, {}, None)
    config["epochs"] = min(config["epochs"], state["epoch"]) + 1
    train.describe(config, prepared, state["params"])
    for after, row in train.fit(state, prepared, config, rows):
        state, rows = after, [*rows, row]
    train.save_epoch(out, state, rows, config, prepared["steps"])
    train.save_record(out, config, "finished", rows, state["best"])


def use_settings(path):
    train.check_settings(train.load_settings(path))


def copied(run, out):
    return shutil.copytree(run, out, dirs_exist_ok=True)


@pytest.mark.parametrize("count", [faults.FEW, faults.MANY])
@pytest.mark.parametrize("file", ["last.pkl", "history.csv"])
def test_damaged_runs_are_resumed_or_refused(runs, tmp_path, file, count):
    rng = np.random.default_rng([3, len(file), count])

    def cases():
        for run in runs:
            for number in range(count // len(runs)):
                out = copied(run, tmp_path / run.name)
                if number:  # the first is whole: the others have times in them and may all be refused
                    (out / file).write_bytes(faults.damaged((run / file).read_bytes(), rng))
                yield out

    assert 0 < faults.count_fine(cases(), use_run) < count


@pytest.mark.parametrize("count", [faults.FEW, faults.MANY])
def test_damaged_settings(runs, tmp_path, count):
    rng, content = np.random.default_rng([4, count]), (runs[0] / "config.json").read_bytes()
    contents = (faults.damaged(content, rng) for _ in range(count))
    assert 0 < faults.count_fine(faults.written(tmp_path / "c.json", contents), use_settings) < count


@pytest.mark.parametrize("count", [faults.FEW, faults.MANY])
@pytest.mark.parametrize("file", ["last.pkl", "config.json"])
def test_files_of_a_run_that_are_whole_but_say_something_odd(runs, tmp_path, file, count):
    rng = np.random.default_rng([5, len(file), count])

    def cases():
        for run in runs:
            last, settings = nn.load_checkpoint(run / "last.pkl"), train.load_settings(run / "config.json")
            for _ in range(count // len(runs)):
                out = copied(run, tmp_path / run.name)
                if file == "config.json":
                    (out / file).write_text(json.dumps(faults.altered(settings, rng)))
                    yield out / file
                else:
                    (out / file).write_bytes(pickle.dumps(faults.altered(last, rng, arrays=True)))
                    yield out

    assert 0 < faults.count_fine(cases(), use_run if file == "last.pkl" else use_settings) < count


SCRIPTS = ["train.py", "search.py", "test.py", "visualize.py"]


def start_importing(script, folder, code):
    """A script whose first import of numpy does as the code says; waits until it has come so far."""
    (folder / "numpy").mkdir()
    (folder / "numpy" / "__init__.py").write_text(f"import time\nprint('here', flush=True)\n{code}\n")
    path = {**os.environ, "PYTHONPATH": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(faults.command(script), text=True, env=path, **pipes)
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_stopped_while_it_imports_one_line_says_so(tmp_path, script, number, status):
    swallowed = "try:\n    time.sleep(3600)\nexcept BaseException:\n    time.sleep(3600)"  # as in a callback
    process = start_importing(script, tmp_path, swallowed)
    process.send_signal(number)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == status and is_one_clear_line(err, script, "stopped"), err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_package_that_is_missing_is_one_line(tmp_path, script):
    process = start_importing(script, tmp_path, "import no_such_package")
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 2 and is_one_clear_line(err, script, "no_such_package", "pip install"), err


def test_a_backend_that_matplotlib_does_not_know_is_one_line(whole):
    done = run_apart("visualize.py", whole / "run", check=2, MPLBACKEND="nonsense")
    assert is_one_clear_line(done.stderr, "visualize.py: ", "backend", "nonsense")


def killed_at(number, *arguments):
    """Run train.py in a process of its own that is killed before its so manieth file is in its place."""
    code = (
        "import os, sys, train\n"
        "left, replace = [int(sys.argv[1])], os.replace\n"
        "def killed(*paths):\n"
        "    left[0] -= 1\n"
        "    replace(*paths) if left[0] else os.kill(os.getpid(), 9)\n"
        "os.replace = killed\n"
        "train.main(sys.argv[2:])\n"
    )
    return run_code(code, number, *arguments).returncode


@pytest.mark.skipif(sys.platform == "win32", reason="it kills itself")
def test_killed_between_two_files_and_resumed_a_run_is_the_one_it_describes(whole, tmp_path):
    given = ("--epochs", 2, "--lr-schedule", "cosine", "--quiet")
    number = 0
    while killed_at(number := number + 1, *flags(whole, tmp_path / f"{number}", *given)):
        out = tmp_path / f"{number}"
        if not (out / "last.pkl").exists():
            continue
        assert call(train.main, "--resume", "--epochs", 4, "--out", out)[0] == 0
        best = nn.load_checkpoint(out / "last.pkl")["best"]
        params, config = nn.load_params(out / "params.pkl")
        assert config["epoch"] == best["epoch"] and config["epochs"] == 4, number
        kept = data.load_json(out / "config.json")["result"]["kept"]
        assert (kept["epoch"], kept["val_accuracy"]) == (config["epoch"], config["val_accuracy"]), number
        assert all((params[key] == best["params"][key]).all() for key in params), number
    assert number > 5


@pytest.mark.skipif(sys.platform == "win32", reason="it kills itself")
def test_killed_while_it_is_put_aside_a_run_can_still_be_resumed(whole, tmp_path):
    for number in (1, 2, 3, 4):
        given = flags(whole, tmp_path / str(number), "--epochs", 2)
        assert call(train.main, *given)[0] == 0
        assert killed_at(number, *given)
        (place,) = [path.parent for path in (tmp_path / str(number)).rglob("last.pkl")]
        assert call(train.main, "--resume", "--epochs", 3, "--out", place)[0] == 0, number


# --- long runs --------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_the_memory_of_a_long_run_is_flat(tmp_path):
    small = write_dataset(tmp_path / "small", train=600, test=100, shape=(10, 10))
    code = (
        "import sys, train\n"
        "held, save = [], train.save_epoch\n"
        "def save_epoch(*args, **more):\n"
        "    save(*args, **more)\n"
        "    held.append(4096 * int(open('/proc/self/statm').read().split()[1]))\n"
        "train.save_epoch = save_epoch\n"
        "train.main(sys.argv[1:])\n"
        "print(held[19], held[-1], len(held))\n"
    )
    flags = ["--dataset", small, "--val-size", 100, "--epochs", 300, "--hidden", 100, "--momentum", 0.5]
    done = run_code(code, *flags, "--lr", 0.02, "--quiet", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    early, late, epochs = map(int, done.stdout.splitlines()[-1].split())
    assert epochs == 301 and late - early < 4e6, f"{early / 1e6:.1f} MB became {late / 1e6:.1f} MB"
