"""Full and read-only disks, two runs in one folder, runs that are killed, and runs that are long."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, is_one_clear_line, run_apart, write_dataset
from faults import Disk, call, call_refused, check_whole, command, start, wait_until_gone

import data
import nn
import test as judging
import train

SETTINGS = (
    "--val-size",
    12,
    "--batch-size",
    16,
    "--hidden",
    7,
    "--momentum",
    0.9,
    "--dropout",
    0.2,
    "--quiet",
)


def contents(folder):
    """The content of each file in a folder and those below it, but for times and halves of files."""
    found = {}
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file() and path.suffix in (".pkl", ".json", ".csv") and path.name != "predictions.csv":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def without_times(out):
    rows = data.load_rows(out / "history.csv")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check_same_run(out, other):
    for file in ("params.pkl", "last.pkl"):
        assert (out / file).read_bytes() == (other / file).read_bytes(), file
    assert without_times(out) == without_times(other)
    assert json.loads((out / "config.json").read_text())["status"] == "finished"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a data set, ``small``, and an unbroken run of five epochs, ``run``."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "small")
    flags = ["--dataset", folder / "small", "--epochs", 5, *SETTINGS]
    assert call(train.main, *flags, "--out", folder / "run")[0] == 0
    assert call(judging.main, folder / "run")[0] == 0
    return folder


# --- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error, once", [(errno.ENOSPC, False), (errno.EIO, True)])
def test_a_write_that_fails_loses_nothing(whole, tmp_path, monkeypatch, error, once):
    """An earlier run is in the folder; the new one meets the error at its first write, its second, ..."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # for speed; it still can fail
    flags = ["--dataset", whole / "small", "--epochs", 5, *SETTINGS, "--out"]
    for number in range(1, 200):
        out = tmp_path / str(number)
        shutil.copytree(whole / "run", out)
        earlier = set(contents(out).values())
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, out, number, error, once)
            status, _, err = call(train.main, *flags, out)
        if disk.count < number:
            break
        if not (once and status == 0):  # it is no harm when a folder cannot be made that is there
            assert status == 2 and is_one_clear_line(err, os.strerror(error)), (number, err)
        assert earlier <= set(contents(out).values()), (
            f"failing write {number} lost a file of the earlier run"
        )
        assert not list(out.glob("*.part")), "a half-written file stays"
        check_whole(out)
        assert call(train.main, *flags, out, *resume_if_begun(out))[0] == 0
        check_same_run(out, whole / "run")
        shutil.rmtree(out)
    assert number > 30


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_disk_that_is_full_in_the_middle_of_a_file(whole, tmp_path):
    import resource

    flags = ["--dataset", whole / "small", "--epochs", 5, *SETTINGS, "--out"]
    largest = max(path.stat().st_size for path in (whole / "run").iterdir() if path.name != "predictions.csv")
    for number, size in enumerate(np.linspace(0, largest - 1, 12).astype(int).tolist()):
        out = tmp_path / str(number)
        shutil.copytree(whole / "run", out)
        earlier, before = set(contents(out).values()), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            status, _, err = call(train.main, *flags, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert status == 2 and is_one_clear_line(err, "File too large"), (size, err)
        assert earlier <= set(contents(out).values())
        assert call(train.main, *flags, out, *resume_if_begun(out))[0] == 0
        check_same_run(out, whole / "run")


def test_a_results_path_that_is_a_file_or_below_one(whole, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        call_refused(train.main, "--dataset", whole / "small", "--out", out, words=[str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "kept"


def test_a_read_only_results_folder_can_be_judged(whole, tmp_path, monkeypatch):
    Disk(monkeypatch, whole, 1, errno.EROFS, once=False)
    status, out, err = call(judging.main, whole / "run")
    assert status == 2 and is_one_clear_line(err, "Read-only file system") and "confusion matrix" in out


def test_a_read_only_data_folder_can_be_used(whole, tmp_path, monkeypatch):
    Disk(monkeypatch, whole, 1, errno.EROFS, once=False)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "replace", shutil.move)
    assert data.load_dataset(str(whole / "small"))["train_images"].shape == (60, 20)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_output_to_a_full_disk_is_one_clear_line(whole, tmp_path, script):
    shutil.copytree(whole / "run", tmp_path / "run")
    arguments = {
        "train.py": ["--dataset", whole / "small", "--epochs", 1, *SETTINGS, "--out", tmp_path / "run"],
        "test.py": [tmp_path / "run"],
    }[script]
    with open("/dev/full", "w") as full:
        process = start(script, *arguments, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and is_one_clear_line(err, "No space left"), err


@pytest.mark.parametrize(
    "script, lines",
    [
        ("train.py", 0),
        ("train.py", 2),
        ("search.py", 0),
        ("search.py", 1),
        ("test.py", 0),
        ("visualize.py", 0),
    ],
)
def test_output_that_nobody_reads_ends_a_script_without_a_word(whole, tmp_path, script, lines):
    """As in ``| head``: the pipe is closed after some lines."""
    shutil.copytree(whole / "run", tmp_path / "run")
    small = ["--dataset", whole / "small", "--val-size", 12]
    arguments = {
        "train.py": [*small, "--epochs", 300, "--out", tmp_path / "run"],
        "search.py": [*small, "--epochs", 9, "--trials", 5, "--workers", 2, "--out", tmp_path / "search"],
        "test.py": [tmp_path / "run"],
        "visualize.py": [tmp_path / "run", "--only", "loss"],
    }[script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command(script, *arguments), **pipes) as process:
        for _ in range(lines):
            assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == 141
        wait_until_gone(process.pid)
    check_whole(tmp_path)


def test_help_that_nobody_reads():
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(command("train.py", "--help"), stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr.read() == b"" and process.wait(60) in (0, 141)  # argparse may ignore it


# --- two runs in one folder -------------------------------------------------------------------


def test_a_second_run_is_refused_while_the_first_lives(whole, tmp_path):
    out = tmp_path / "run"
    flags = ["--dataset", whole / "small", *SETTINGS, "--out", out]
    first = start(
        "train.py", *flags, "--epochs", 100_000, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: (out / "last.pkl").exists(), first)
        for more in ([], ["--resume"]):
            call_refused(train.main, *flags, "--epochs", 5, *more, words=["another run is writing", str(out)])
        assert not (out / "previous-1").exists() and first.poll() is None
    finally:
        first.kill()
        first.wait()
    assert call(train.main, *flags, "--epochs", 5)[0] == 0, "the lock of a killed run blocks nobody"
    check_same_run(out, whole / "run")


def resume_if_begun(out):
    return ["--resume"] if (out / "last.pkl").exists() else []


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_of_many_runs_started_at_once_one_goes_on(whole, tmp_path):
    code = (
        "import sys, time, pathlib, train\n"
        "out, mine = pathlib.Path(sys.argv[1]), 0\n"
        "end = time.monotonic() + 2\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with train.locked(out):\n"
        "            (out / 'held').mkdir()\n"  # fails if another one is inside
        "            (out / 'held').rmdir()\n"
        "            mine += 1\n"
        "    except BlockingIOError:\n"
        "        pass\n"
        "print(mine)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
        for _ in range(4)
    ]
    counts = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(map(int, counts)) >= 4 and os.listdir(tmp_path) == [".lock"]


def test_halves_of_files_are_cleared_and_locks_are_not_needed(whole, tmp_path, monkeypatch):
    for name in ("last.pkl.123.part", "history.csv.123-456.part", "film.mkv.part", "predictions.csv.7.part"):
        (tmp_path / name).write_bytes(b"half")
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    flags = ["--dataset", whole / "small", "--epochs", 5, *SETTINGS, "--out", tmp_path]
    assert call(train.main, *flags)[0] == 0
    assert sorted(os.listdir(tmp_path)) == [
        ".lock",
        "config.json",
        "film.mkv.part",  # of somebody else
        "history.csv",
        "last.pkl",
        "params.pkl",
        "predictions.csv.7.part",  # of a test.py that is at work
    ]


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("epochs, status", [("1", 0), ("none", 2)])
def test_a_closed_output_changes_nothing(whole, tmp_path, stream, epochs, status):
    flags = ["--dataset", whole / "small", "--epochs", epochs, *SETTINGS, "--out", tmp_path]
    script = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", sys.executable, ROOT / "train.py"]
    done = subprocess.run(
        [str(word) for word in (*script, *flags)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == status and "Traceback" not in done.stderr
    assert (tmp_path / "params.pkl").exists() == (status == 0)


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
    with train.locked(tmp_path), pytest.raises(BlockingIOError, match="another run"), train.locked(tmp_path):
        pass


# --- killed -----------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.parametrize("seed", range(10))
def test_killed_ten_times_a_run_ends_with_the_same_bits(tmp_path_factory, tmp_path, seed):
    """All in all 100 random moments: half of them counted from the start of the process."""
    folder, rng = tmp_path_factory.getbasetemp(), np.random.default_rng(seed)
    flags = [*SETTINGS[:-1], "--epochs", 300]
    if not (folder / "unbroken" / "done").exists():
        write_dataset(folder / "unbroken" / "small")
        whole_run = ["--dataset", folder / "unbroken" / "small", "--out", folder / "unbroken" / "run"]
        assert call(train.main, *whole_run, *flags)[0] == 0
        (folder / "unbroken" / "done").write_text("")
    out = tmp_path / "run"
    flags = ["--dataset", folder / "unbroken" / "small", "--out", out, *flags, "--resume"]
    for kill in range(10):
        process = start("train.py", *flags, stdout=subprocess.PIPE)
        if kill % 2:
            process.stdout.readline()  # it says whether it resumes, and trains from here on
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0.1, 0.6))
        process.kill()
        process.communicate()
        check_whole(out)
        if (out / "last.pkl").exists():
            train.load_last(out)
    assert call(train.main, *flags)[0] == 0
    check_same_run(out, folder / "unbroken" / "run")
    assert sorted(os.listdir(out)) == ["config.json", "history.csv", "last.pkl", "params.pkl"]


@pytest.mark.extended
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_at_any_moment_one_line_says_so(whole, tmp_path, number, status):
    rng = np.random.default_rng(int(number))
    flags = ["--dataset", whole / "small", *SETTINGS[:-1], "--epochs", 100_000]
    for moment in range(15):
        out = tmp_path / str(moment)
        process = start("train.py", *flags, "--out", out, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert process.returncode == status and is_one_clear_line(err, "stopped"), err
        check_whole(out)
        train.load_last(out)


SCRIPTS = ["train.py", "search.py", "test.py", "visualize.py"]


def start_importing(script, folder, code):
    """A script whose first import of numpy does as the code says; waits until it has come so far."""
    (folder / "numpy").mkdir()
    (folder / "numpy" / "__init__.py").write_text(f"import time\nprint('here', flush=True)\n{code}\n")
    path = {**os.environ, "PYTHONPATH": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command(script), text=True, env=path, **pipes)
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_stopped_while_it_imports_one_line_says_so(tmp_path, script, number, status):
    swallowed = "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)"  # as in a callback
    process = start_importing(script, tmp_path, swallowed)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == status and is_one_clear_line(err, script, "stopped"), err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_package_that_is_missing_is_one_line(tmp_path, script):
    process = start_importing(script, tmp_path, "import no_such_package")
    _, err = process.communicate(timeout=300)
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
    return subprocess.run(
        [sys.executable, "-c", code, str(number), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    ).returncode  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="it kills itself")
def test_killed_between_two_files_and_resumed_a_run_is_the_one_it_describes(whole, tmp_path):
    flags = [
        "--dataset",
        whole / "small",
        *SETTINGS[:-1],
        "--epochs",
        3,
        "--lr-schedule",
        "cosine",
        "--quiet",
    ]
    number = 0
    while killed_at(number := number + 1, *flags, "--out", tmp_path / f"{number}"):
        out = tmp_path / f"{number}"
        if not (out / "last.pkl").exists():
            continue
        assert call(train.main, "--resume", "--epochs", 6, "--out", out)[0] == 0
        best = nn.load_checkpoint(out / "last.pkl")["best"]
        params, config = nn.load_params(out / "params.pkl")
        assert config["epoch"] == best["epoch"] and config["epochs"] == 6, number
        kept = data.load_json(out / "config.json")["result"]["kept"]
        assert (kept["epoch"], kept["val_accuracy"]) == (config["epoch"], config["val_accuracy"]), number
        assert all((params[key] == best["params"][key]).all() for key in params), number
    assert number > 5


@pytest.mark.skipif(sys.platform == "win32", reason="it kills itself")
def test_killed_while_it_is_put_aside_a_run_can_still_be_resumed(whole, tmp_path):
    flags = ["--dataset", whole / "small", *SETTINGS[:-1], "--epochs", 2]
    for number in (1, 2, 3, 4):
        out = tmp_path / str(number)
        assert call(train.main, *flags, "--out", out)[0] == 0
        assert killed_at(number, *flags, "--out", out)
        (place,) = [path.parent for path in out.rglob("last.pkl")]
        assert call(train.main, "--resume", "--epochs", 3, "--out", place)[0] == 0, number


# --- long runs --------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_the_memory_of_a_long_run_is_flat(tmp_path):
    small = write_dataset(tmp_path / "small", train=600, test=100, shape=(10, 10))
    code = (
        "import sys, train\n"
        "held, save = [], train.save_epoch\n"
        "def save_epoch(*args):\n"
        "    save(*args)\n"
        "    held.append(4096 * int(open('/proc/self/statm').read().split()[1]))\n"
        "train.save_epoch = save_epoch\n"
        "train.main(sys.argv[1:])\n"
        "print(held[19], held[-1], len(held))\n"
    )
    flags = [
        "--dataset",
        small,
        "--val-size",
        100,
        "--epochs",
        300,
        "--hidden",
        100,
        "--out",
        tmp_path / "run",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, flags), "--momentum", "0.5", "--lr", "0.02", "--quiet"],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    early, late, epochs = map(int, done.stdout.splitlines()[-1].split())
    assert epochs == 300 and late - early < 4e6, f"{early / 1e6:.1f} MB became {late / 1e6:.1f} MB"
