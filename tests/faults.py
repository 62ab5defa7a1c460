"""What the tests of faults share: damaged files, scripts called with a time limit, disks that fail."""

import builtins
import concurrent.futures
import contextlib
import copy
import io
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pytest
from conftest import CLEAR, HANG, ROOT, call, is_one_clear_line, run_code, time_limit, write_dataset

import data
import nn
import train


def call_refused(main, *arguments, names=()):
    """Run a script's main, which must end with status 2 and one clear line with all of the names."""
    status, _, err = call(main, *arguments)
    assert status == 2 and is_one_clear_line(err, *names), (status, err)


def peak_memory():
    """Bytes this process has held at most since the last call, or 0 where that is not to be had."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return 0
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


# --- scripts and disks ------------------------------------------------------------------------

READERS = {
    ".pkl": nn.load_checkpoint,
    ".json": data.load_json,
    ".csv": lambda path: data.load_rows(path, words=path.name in ("trials.csv", "groups.csv")),
}


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


@contextlib.contextmanager
def started(script, *arguments, **more):
    """A script in a session of its own, for as long as the block lasts, whatever becomes of it."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "MARK": mark}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    own = {"text": True, "env": environment, "start_new_session": sys.platform != "win32"}
    with subprocess.Popen(command(script, *arguments), **own, **pipes) as process:
        process.mark = mark
        try:
            yield process
        finally:
            process.kill()
            for pid in living(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def living(process):
    """Ids of a started process and of all that came from it, in whatever group, as far as they live."""
    if not os.path.exists("/proc/self/environ"):
        return [] if process.poll() is not None else [process.pid]
    found, mark = [], f"MARK={process.mark}\0".encode()
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # of somebody else, or it ended meanwhile
            found += [int(path.parent.name)] * (mark in path.read_bytes())
    return found


def check_whole(folder):
    """Every file that runs and searches wrote can be read."""
    for path in pathlib.Path(folder).rglob("*"):
        if path.suffix in READERS:
            READERS[path.suffix](path)


def wait_until(fact, process=None):
    """Wait until something can be seen; a process, where one is given, must not end before."""
    deadline = time.monotonic() + HANG
    while not fact():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def wait_until_gone(process):
    wait_until(lambda: process.poll() is not None and not living(process))


def check_writes(folder, written, error, once, main, *arguments):
    """A script's writes fail one after the other, over old files: each file is the old or the new one.

    Parameters
    ----------
    folder : path
        Where the script writes; ``written`` is the glob of what.

    Returns the number of writes.
    """

    def files():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert call(main, *arguments)[0] == 0
    new, paths = files(), list(folder.glob(written))
    for number in range(1, 40):
        for path in paths:
            path.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, folder, number, error, once)
            status, _, err = call(main, *arguments)
        if disk.count < number:
            break
        if not (once and status == 0):  # it is no harm when a folder cannot be made that is there
            assert status == 2 and is_one_clear_line(err, os.strerror(error)), (number, err)
        found = files()
        assert set(found) == set(new), "a half-written file stays"
        assert all(content in (b"old", new[path]) for path, content in found.items())
    assert call(main, *arguments)[0] == 0 and files() == new
    return number


class Disk:
    """Counts what would write to a folder; from one of them on (or at that one only) all fail."""

    def __init__(self, monkeypatch, folder, number, error, once):
        self.count, self.number, self.folder = 0, number, str(folder)
        self.error, self.once = error, once
        for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir")):
            monkeypatch.setattr(module, name, self.failing(getattr(module, name)))
        opened = builtins.open
        failing = self.failing(opened)
        monkeypatch.setattr(
            builtins,
            "open",
            lambda path, mode="r", *args, **more: (
                failing if set(mode) & set("wax+") and self.folder in str(path) else opened
            )(path, mode, *args, **more),
        )

    def failing(self, function):
        def call(*args, **more):
            self.count += 1
            if self.count == self.number or (self.count > self.number and not self.once):
                raise OSError(self.error, os.strerror(self.error))
            return function(*args, **more)

        return call


# --- damage -----------------------------------------------------------------------------------

EDGES = [b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\xff" * 8]
TOKENS = [*b'nan -inf 1e999 -1 null [] { " \xef\xbb\xbf'.split(), b"9" * 30, b"", b"\r"]


def damaged(content, rng):
    """The content of a file, cut, changed, spliced or repeated somewhere."""
    content = bytearray(content)
    start, end = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    at = int(rng.integers(len(content)))
    kind = rng.integers(8)
    if kind == 0:
        return bytes(content[:at])
    if kind == 1:
        for place in rng.integers(0, len(content), rng.integers(1, 9)):
            content[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        content[at] = rng.integers(256)
    elif kind == 3:
        edge = EDGES[rng.integers(len(EDGES))]
        content[at : at + len(edge)] = edge
    elif kind == 4:
        del content[start:end]
    elif kind == 5:
        content[at:at] = content[start:end]
    elif kind == 6:
        content[start:end] = rng.bytes(int(rng.integers(1, 40)))
    else:
        token = TOKENS[rng.integers(len(TOKENS))]
        content[at : at + int(rng.integers(6))] = token
    return bytes(content)


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


ODD_VALUES = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.0, 0.5, 1.5, 1e308, 1e-320,
    float("nan"), float("inf"), "", "0", "relu", "mse", "x" * 5000, "\ud800", "a\0b", "../..", "a\nb", [],
    [0], [1] * 40, {}, {"name": "center"}, {"$array": "W1"}, _nested(40), _nested(100),
]  # fmt: skip
ODD_ARRAYS = [
    np.zeros(0), np.zeros(20), np.zeros(20, np.float32), np.full(20, np.nan), np.full(20, 1e300),
    np.array(0.1), np.array([0.1]), np.zeros((2, 3), int), np.full((20, 7), np.float32(3e38)),
    np.zeros((1, 1), np.float16), np.zeros((20, 7), ">f4"), np.array(["a"]), np.array([None]),
]  # fmt: skip


def _places(value, path=()):
    """Paths to everything in nested dicts and lists, outermost first."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


def altered(value, rng, arrays=False):
    """A copy of nested dicts and lists with one of its parts replaced by something odd, or left out."""
    value = copy.deepcopy(value)
    places = list(_places(value))[1:]
    *path, key = places[rng.integers(len(places))]
    target = value
    for step in path:
        target = target[step]
    odd = ODD_VALUES + (ODD_ARRAYS if arrays else [])
    choice = rng.integers(len(odd) + 2)
    if choice < len(odd):
        target[key] = odd[choice]
    elif choice == len(odd):
        del target[key]
    elif isinstance(target[key], np.ndarray):
        with np.errstate(over="ignore"):
            target[key] = target[key] * np.float32(10.0 ** rng.integers(-44, 38))
    else:
        *other, last = places[rng.integers(len(places))]
        source = value
        for step in other:
            source = source[step]
        target[key] = copy.deepcopy(source[last])
    return value


def count_fine(cases, use):
    """Use each damaged file: it is fine, or a clear error says what is wrong; returns how many were fine.

    Parameters
    ----------
    cases : iterable
        Each is passed to ``use``.
    use : function
        Returns when the file is fine; raises a clear error when it is not.
    """
    fine, faults = 0, {}
    peak_memory()
    before = peak_memory()
    for number, case in enumerate(cases):
        try:
            with time_limit(), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib")
                use(case)
            fine += 1
        except CLEAR as error:
            if not str(error):
                faults[f"a {type(error).__name__} that says nothing"] = number
        except BaseException as error:
            faults[f"{type(error).__name__}: {error}"[:200]] = number
        if warned:
            faults[f"warning: {warned[0].message}"] = number
    assert not faults, "the last case of each"
    assert peak_memory() - before < 300e6
    return fine


@contextlib.contextmanager
def no_processes(count):
    """In place of search._processes: the calls are made here, one after the other."""

    def submit(function, *args):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    yield submit


FEW, MANY = 60, pytest.param(400, marks=pytest.mark.extended)  # damaged files of each kind


def written(path, contents, target=None):
    """Each content in turn, written to ``path``; yields the target to use (default: the path)."""
    for content in contents:
        path.write_bytes(content)
        yield target or path


RUNS = [  # settings of runs that are damaged
    {"momentum": 0.9, "preprocess": ["scale", "center"], "patience": 9},
    {"hidden": [], "preprocess": ["standardize"], "dropout": 0.2, "loss": "mse", "lr": 0.001},
    {"val_size": 0, "dtype": "float64", "hidden": [5, 4], "activation": "sigmoid", "dropout": 0.3},
]


def make_runs(folder):
    """Small whole runs with the settings of RUNS; their folders."""
    write_dataset(folder / "small")
    usual = {"dataset": str(folder / "small"), "hidden": [7], "val_size": 12, "batch_size": 16, "epochs": 3}
    outs = [folder / str(number) for number in range(len(RUNS))]
    for out, settings in zip(outs, RUNS):
        data.save_json(folder / "config.json", {**usual, **settings})
        assert call(train.main, "--config", folder / "config.json", "--out", out)[0] == 0
    return outs


# --- settings and data sets -------------------------------------------------------------------

WORDS = [  # for any flag
    "0", "-0", "-1", "1", "2", "0.5", "1.0", "1e3", "nan", "-nan", "inf", "-inf", "1e308", "-1e308", "1e-320",
    "9" * 18, "1" * 400, "1e400", "abc", "", " ", "0x10", "1,5", "1_0", "½", "٣", "None", "true", "x", "5x",
    "1x0", "+", "scale+scale", "scale+center+standardize", "--", "-x", "a\nb", "\ud800", "[1]", "../..",
]  # fmt: skip


def make_set(folder, images, labels, test_images=None, test_labels=None):
    folder.mkdir()
    parts = {"train_images": images, "train_labels": labels}
    parts["test_images"] = images if test_images is None else test_images
    parts["test_labels"] = labels if test_labels is None else test_labels
    for part, array in parts.items():
        (folder / data.FILES[part]).write_bytes(data.idx_bytes(np.asarray(array, np.uint8)))
    return folder


RANDOM = np.random.default_rng(0).integers(0, 256, (12, 4, 5))
EDGE_SETS = {  # name -> training images, training labels, and those of the test where they are others
    "all black": (np.zeros((12, 4, 5)), np.arange(12) % 3),
    "all white": (np.full((12, 4, 5), 255), np.arange(12) % 3),
    "one class": (RANDOM, np.zeros(12)),
    "one image": (RANDOM[:1], [2]),
    "skipped classes": (RANDOM, np.tile([0, 7, 9], 4)),
    "only the last of 256 classes": (RANDOM, np.full(12, 255)),
    "a class that only the test has": (RANDOM, np.arange(12) % 2, RANDOM[:3], [0, 1, 5]),
    "1x1": (RANDOM[:, :1, :1], np.arange(12) % 2),
    "200x200": (np.random.default_rng(1).integers(0, 256, (6, 200, 200)), np.arange(6) % 3),
}


# --- hostile files ----------------------------------------------------------------------------

MEGA = 1 << 20
READ = """
import os, sys
import data, nn
from faults import peak_memory

LOAD = {"pkl": nn.load_params, "npz": nn.load_params, "json": data.load_json, "csv": data.load_rows}
LOAD |= {"set": data.load_dataset, "new": lambda path: data.load_images(path, (28, 28))}
for path in sys.argv[1:]:
    start, _, end = os.path.basename(path).partition(".")
    before = peak_memory() and peak_memory()  # the first sets the peak back
    try:
        LOAD.get(start, LOAD.get(end, data.load_idx))(path)
    except (ValueError, OSError) as error:
        print(peak_memory() - before, error, flush=True)
"""


class Runs:
    """Unpickled by Python, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def check_hostile(folder, hostile):
    """Files that ask for far more memory or time than they are large are refused with one clear line each.

    Their names, up to the first space, say what they are read as. One process reads them all.
    """
    paths = []
    for number, (name, make) in enumerate(hostile.items()):
        paths.append(folder / f"{number}" / name.split()[0])
        paths[-1].parent.mkdir()
        paths[-1].write_bytes(make())
    done = run_code(READ, *paths, cwd=folder)
    assert done.returncode == 0 and not done.stderr, done.stdout[-300:] + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines):
        grown, error = line.split(" ", 1)
        assert is_one_clear_line(f"{error}\n", path)
        assert float(grown) < 50e6 + 10 * path.stat().st_size, error
    assert not (folder / "it-ran").exists()


def text(content):
    return b"X" + struct.pack("<I", len(content)) + content


def pickled(body):
    """A params pickle whose config holds what the opcodes in body leave on the stack."""
    params = pickle.dumps(nn.init_params(np.random.default_rng(0), [2, 2]), protocol=2)[2:-1]
    return (
        b"\x80\x04" + b"}(" + text(b"params") + params + text(b"config") + b"}" + text(b"a") + body + b"su."
    )


def same_bytes():
    """A params pickle of twenty thousand arrays that share their half million bytes."""
    return pickled(
        b"cnumpy.core.multiarray\nscalar\nq\x01cnumpy\ndtype\n(X\x02\0\0\0u1K\0K\x01tRq\x02"
        + text(b"a" * (MEGA // 2)) + b"q\x03c_codecs\nencode\nq\x04("
        + b"h\x04h\x03X\x06\0\0\0latin1\x86R" * 20_000 + b"l"
    )  # fmt: skip


def zipped(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(shape, descr="<f4", content=b""):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + content


def use_dataset(folder):
    dataset = data.load_dataset(str(folder))
    settings = {"hidden": [3], "val_size": 1, "preprocess": ["scale", "center", "standardize"], "lr": 0.01}
    config = train.check_settings(settings)
    prepared = train.prepare(dataset, config)
    train.train_epoch(train.init_state(prepared, config), prepared, config)
