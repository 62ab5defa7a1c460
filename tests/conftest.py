"""What the tests share: small data sets as IDX files, scripts run as a user would, real data.

Which file tests what; what all tests of faults share is in faults.py.

nn         test_nn (the network), test_params_files (what is read and written)
data       test_data (IDX files, splits, preprocessing), test_datasets (every other form of data),
           test_datasets_faults, test_augment (steps that redraw pictures,
           gradients, distortions), test_pictures (pictures of your own, committees), test_download,
           test_scripts (the edges that every script has)
train      test_train (runs), test_settings (settings, memory, numbers at the edge), test_train_faults
           (full disks, locks, signals, damaged runs)
search     test_search, test_search_faults
test       test_test, test_predict (new images, numbers), test_test_faults, test_export
visualize  test_visualize, test_visualize_faults, test_page (report.html, in the browser of browser.py)
tests      test_reproduce (reproduce.py)
"""

import contextlib
import gzip
import importlib
import io
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import data
import train

ROOT = pathlib.Path(__file__).resolve().parent.parent
HANG = 600  # seconds: what is not done by then, on any machine, will never be
ENDLESS = 10**9  # epochs of a run that lasts until it is stopped, however quick the machine


def pytest_configure():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & would ignore it


def write_dataset(folder, train=60, test=20, shape=(4, 5), classes=3, seed=0, zipped=False):
    """Write a learnable data set as four IDX files; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 200, (classes, *shape))
    for part, size in (("train", train), ("test", test)):
        labels = (np.arange(size) % classes).astype(np.uint8)
        images = (patterns[labels] + rng.integers(0, 56, (size, *shape))).astype(np.uint8)
        images[1:, 0] = 0  # as in MNIST, some pixels are blank in nearly all images
        for kind, array in (("images", images), ("labels", labels)):
            content = data.idx_bytes(array)
            name = data.FILES[f"{part}_{kind}"]
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1)) if zipped else (
                folder / name
            ).write_bytes(content)
    return folder


@pytest.fixture(scope="session", autouse=True)
def quick_writes():
    """Nobody waits for the disk, which took most of the time; only processes of their own still do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def trials_here():
    """Trials of a search run in this process one after the other: for speed."""
    from faults import no_processes  # which needs this file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search._processes", no_processes)
        yield


@pytest.fixture
def small_set(tmp_path):
    return write_dataset(tmp_path / "small")


@pytest.fixture
def few_glyphs(monkeypatch):
    draw = data.draw_glyphs
    monkeypatch.setattr(data, "draw_glyphs", lambda rng: draw(rng, 30, 10))


@pytest.fixture
def real_data():
    """The folder with the real data sets; without it the test is skipped, or fails if it may not be."""
    folder = pathlib.Path(os.environ.get("DATA_DIR") or ROOT / "datasets")
    if not (folder if folder.is_absolute() else ROOT / folder).joinpath("mnist").is_dir():
        if os.environ.get("REQUIRE_REAL_DATA") == "1":
            pytest.fail(f"REQUIRE_REAL_DATA=1, but there is no mnist in {folder}")
        pytest.skip(f"no real MNIST in {folder}: run train.py once, or set DATA_DIR")
    return folder if folder.is_absolute() else ROOT / folder


@contextlib.contextmanager
def time_limit(seconds=HANG):
    """A hang becomes a failure, where the system has an alarm clock."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_):
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(main, *arguments):
    """Run a script's main in this process; returns its exit status, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with time_limit(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = data.run_script(main, [str(argument) for argument in arguments])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status, out.getvalue(), err.getvalue()


def run(script, *arguments, check=0):
    """Run a script in this process as if in one of its own; returns what ``run_apart`` does."""
    main = importlib.import_module(script.removesuffix(".py")).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script])  # the name that its errors begin with
        status, out, err = call(main, *arguments)
    assert status == check, out + err
    return subprocess.CompletedProcess([script, *arguments], status, out, err)


def run_apart(script, *arguments, check=0, **environment):
    """Run a script in a process of its own; returns the finished process."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        timeout=HANG,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


def run_code(code, *arguments, **more):
    """Run Python code in a process of its own that finds the program and the tests; returns it, finished."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": paths},
        timeout=HANG,
        **more,
    )


def rows_of(path):
    """The rows of a history.csv or trials.csv, but for the seconds, which differ each time."""
    rows = data.load_rows(path, words=path.name in ("trials.csv", "groups.csv"))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


CLEAR = (ValueError, OSError, ArithmeticError, MemoryError)  # what run_script turns into one line


def is_one_clear_line(text, *names):
    """Whether an error is a single line without a traceback that has all of the names in it."""
    return text.count("\n") == 1 and "Traceback" not in text and all(str(name) in text for name in names)


@contextlib.contextmanager
def refused(*names, error=CLEAR):
    """Within the block an error must be raised whose message has all of the names in it."""
    with pytest.raises(error) as caught:
        yield
    assert str(caught.value) and all(str(name) in str(caught.value) for name in names), caught.value


# --- runs to be drawn ---------------------------------------------------------------------------


def make_run(out, dataset, *arguments):
    given = ["--dataset", dataset, "--out", out, "--batch-size", 16, "--val-size", 12, "--quiet", *arguments]
    assert not train.main(list(map(str, given)))
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "small", train=80, test=40)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), small, "--hidden", 7, 5, "--epochs", 4, "--lr", 0.05)
