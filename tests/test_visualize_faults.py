"""visualize.py with full disks, damaged folders, nonsense for flags, and data sets at the edge."""

import errno
import io
import json
import shutil

import numpy as np
import pytest
from conftest import call, is_one_clear_line, refused, write_dataset
from faults import EDGE_SETS, WORDS, altered, call_refused, check_writes, count_fine, damaged, make_set
from test_visualize import draw_folder, make_search

import data
import train
import visualize

MANY = pytest.mark.extended


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with runs, ``run`` and ``other``, and a ``search``."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "small", shape=(8, 9))
    base = ["--dataset", folder / "small", "--val-size", 12, "--hidden", 7, "--out"]
    assert call(train.main, *base, folder / "run", "--epochs", 4, "--lr", 0.01)[0] == 0
    assert call(train.main, *base, folder / "other", "--epochs", 2, "--preprocess", "scale", "center")[0] == 0
    make_search(folder / "search")
    return folder


@pytest.mark.parametrize("error, once", [(errno.ENOSPC, False), pytest.param(errno.EIO, True, marks=MANY)])
def test_a_write_that_fails_loses_nothing(whole, tmp_path, monkeypatch, error, once):
    shutil.copytree(whole / "run", tmp_path / "run")
    drawing = [visualize.main, tmp_path / "run", "--only", "loss"]
    assert check_writes(tmp_path, "run/figures/*", error, once, *drawing) >= 10


def test_a_folder_for_figures_that_is_a_file(whole, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        call_refused(visualize.main, whole / "run", "--only", "loss", "--out", out, names=[str(out)])
    assert (tmp_path / "file").read_text() == "kept"
    call_refused(visualize.main, tmp_path / "file", names=[str(tmp_path / "file")])


# --- damaged files ----------------------------------------------------------------------------


def draw(figures):
    """Draw figures as they are: to lay them out takes most of the time."""
    for figure in figures.values():
        figure.set_layout_engine(None)
        figure.savefig(io.BytesIO(), format="png", dpi=30)


def use_figures(path, rng):
    """Draw two of the figures of a folder, whichever it has."""
    names = rng.choice(list(visualize.FIGURES), 2, replace=False).tolist()
    with np.errstate(over="ignore"):  # as main does
        draw(draw_folder(path, names)[0])


RUN_FILES = ["history.csv", "config.json", "params.pkl"]
SEARCH_FILES = ["trials.csv", "search.json", "trials/001/history.csv", "trials/001/config.json"]


@pytest.mark.parametrize("count", [8, pytest.param(120, marks=MANY)])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    "folder, file", [*(("run", file) for file in RUN_FILES), *(("search", file) for file in SEARCH_FILES)]
)
def test_damaged_folders_are_drawn_or_refused(whole, tmp_path, folder, file, odd, count):
    if odd and not file.endswith("json"):
        pytest.skip("only JSON can be whole and odd here")
    rng, out = np.random.default_rng([8, len(file), odd, count]), tmp_path / "out"
    shutil.copytree(whole / folder, out)
    honest = (out / file).read_bytes()

    def cases():
        for _ in range(count):
            if odd:
                (out / file).write_text(json.dumps(altered(json.loads(honest), rng)))
            else:
                (out / file).write_bytes(damaged(honest, rng))
            yield out

    count_fine(cases(), lambda path: use_figures(path, rng))


@pytest.mark.parametrize("count", [8, pytest.param(120, marks=MANY)])
@pytest.mark.parametrize("file", RUN_FILES[:2])
def test_damaged_runs_are_compared_or_refused(whole, tmp_path, file, count):
    rng, out = np.random.default_rng([9, len(file), count]), tmp_path / "out"
    shutil.copytree(whole / "run", out)
    honest = (out / file).read_bytes()

    def cases():
        for number in range(count):
            content = damaged(honest, rng)
            if number % 2 and file == "config.json":
                content = json.dumps(altered(json.loads(honest), rng)).encode()
            (out / file).write_bytes(content)
            yield [out, whole / "other"]

    def use(paths):
        draw(visualize.draw_comparison(paths, ["loss"])[0])

    count_fine(cases(), use)


@pytest.mark.parametrize("flag", ["", "--only", "--data-dir", "--show", "--draw", "--nonsense"])
def test_nonsense_for_visualize_py(whole, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(visualize, "save_figures", lambda figures, folder: None)
    for value in WORDS:
        more = [] if flag == "--only" else ["--only", "loss"]
        words = [value, *more] if not flag else [whole / "run", *more, flag, value]
        status, _, err = call(visualize.main, *words)
        if flag == "--data-dir":
            assert (status, err) == (0, "") or (status == 2 and is_one_clear_line(err)), (value, err)
        else:
            assert status == 2 and is_one_clear_line(err), (value, err)


# --- data sets at the edge --------------------------------------------------------------------

FEW_EDGES = ["all black", "one class", "200x200"]


@pytest.mark.parametrize("hidden", [3, pytest.param(0, marks=MANY)])
@pytest.mark.parametrize(
    "name", [*FEW_EDGES, *(pytest.param(n, marks=MANY) for n in EDGE_SETS if n not in FEW_EDGES)]
)
def test_runs_on_data_sets_at_the_edge_are_drawn(tmp_path, name, hidden):
    folder = make_set(tmp_path / "set", *EDGE_SETS[name])
    words = ["--dataset", folder, "--out", tmp_path / "run", "--epochs", 2, "--hidden", hidden, "--quiet"]
    assert call(train.main, *words, "--val-size", 0 if name == "one image" else 2, "--lr", 0.01)[0] == 0
    names = [n for n in visualize.FIGURES if n != "fields" or "256" not in name]  # 256 templates take long
    figures, _ = draw_folder(tmp_path / "run", names)
    assert {"loss", "accuracy", "error", "confusion", "calibration"} <= set(figures)
    draw(figures)
    figures, _ = visualize.draw_comparison([tmp_path / "run"] * 2, None)
    assert set(figures) == {"loss", "accuracy", "error"}
    draw(figures)


@pytest.mark.parametrize("column, word", [("trial", ""), ("epochs", "abc")])
def test_a_table_of_trials_without_numbers_is_refused(whole, tmp_path, column, word):
    shutil.copytree(whole / "search", tmp_path / "search")
    path = tmp_path / "search" / "trials.csv"
    rows = data.load_rows(path, words=True)
    data.save_rows(path, [row | {column: word} for row in rows], list(rows[0]))
    with refused("trials.csv", column, error=ValueError):
        visualize.load_search(tmp_path / "search")
