"""The edges that every script has: output that is full, closed or read by nobody; impossible names."""

import errno
import importlib
import os
import subprocess
import sys

import pytest
from conftest import ENDLESS, HANG, call, is_one_clear_line, run_apart, write_dataset
from faults import call_refused, check_whole, command, started, wait_until_gone

import data
import test as judging
import train
import visualize


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a data set, ``small``, and a run on it, ``run``."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "small")
    assert call(train.main, *training(folder, folder / "run", 2))[0] == 0
    return folder


def training(whole, out, epochs):
    return ["--dataset", whole / "small", "--val-size", 12, "--epochs", epochs, "--out", out]


@pytest.mark.parametrize("script", ["train", "search", "test", "visualize", "reproduce", "benchmark"])
def test_help_fits_a_terminal(monkeypatch, capsys, script):
    monkeypatch.setenv("COLUMNS", "80")
    main = importlib.import_module(script).main
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        main()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 79


@pytest.mark.parametrize("script", ["train.py", "search.py", "test.py", "visualize.py"])
def test_scripts_do_without_their_docstrings(script):
    assert "usage:" in run_apart(script, "--help", PYTHONOPTIMIZE="2").stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_output_to_a_full_disk_is_one_clear_line(whole, tmp_path, script):
    arguments = {"train.py": training(whole, tmp_path, 1), "test.py": [whole / "run"]}[script]
    with open("/dev/full", "w") as full, started(script, *arguments, stdout=full) as process:
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 2 and is_one_clear_line(err, os.strerror(errno.ENOSPC)), err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
def test_a_run_whose_lines_nobody_reads_on_ends_without_a_word(whole, tmp_path):
    """As in ``| head``: the pipe is closed after some lines."""
    with started("train.py", *training(whole, tmp_path, ENDLESS)) as process:
        for _ in range(2):
            assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(HANG) == 141
        wait_until_gone(process)
    check_whole(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
@pytest.mark.parametrize(
    "way, script",
    [
        *(("work", script) for script in ("train.py", "search.py", "test.py", "visualize.py")),
        *(("--help", script) for script in ("train.py", "visualize.py")),
        *(("error", script) for script in ("train.py", "visualize.py")),
    ],
)
def test_output_that_nobody_reads_ends_quietly(whole, tmp_path, script, way):
    """As with ``| head``; when nobody reads the errors either, nobody needs to be told."""
    words = {
        "train.py": training(whole, tmp_path, 9),
        "search.py": training(whole, tmp_path, 1),
        "test.py": [whole / "run"],
        "visualize.py": [whole / "run", "--only", "loss", "--out", tmp_path],
    }[script]
    words = {"work": words, "--help": ["--help"], "error": ["--nonsense"]}[way]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        errors = closed if way == "error" else subprocess.PIPE
        process = subprocess.run(command(script, *words), stdout=closed, stderr=errors, timeout=HANG)
    ends = {"work": [141], "--help": [0, 141], "error": [2]}  # argparse ignores what becomes of its help
    assert process.returncode in ends[way] and not process.stderr
    for path in tmp_path.rglob("*.json"):
        assert data.load_json(path)


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("epochs, status", [("1", 0), ("none", 2)])
def test_a_closed_output_changes_nothing(whole, tmp_path, stream, epochs, status):
    words = [
        "sh",
        "-c",
        f'exec "$@" {stream}>&-',
        "sh",
        *command("train.py", *training(whole, tmp_path, epochs)),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert (tmp_path / "params.pkl").exists() == (status == 0)


def test_names_of_folders_that_no_system_has(whole, monkeypatch):
    for main, more in ((visualize.main, ["--only", "loss"]), (judging.main, [])):
        for name in ("a\0b", "x" * 5000, "\ud800"):
            call_refused(main, name, *more)
    for name in ("a\0b", "x" * 5000):
        call_refused(visualize.main, whole / "run", "--only", "loss", "--out", name)
