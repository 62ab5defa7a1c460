"""Full disks, damaged files and pictures, and nonsense for flags, for what judges and draws."""

import errno
import io
import json
import os
import shutil

import numpy as np
import pytest
from conftest import is_one_clear_line, run, write_dataset
from faults import EDGE_SETS, WORDS, Disk, altered, call, call_refused, damaged, make_set, outcomes
from PIL import Image
from test_visualize import make_search

import data
import nn
import test as judging
import train
import visualize

MANY = pytest.mark.extended


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # for speed; it still can fail
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a data set ``small``, a run on it, ``run``, another, ``other``, and ``digit.png``."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "small", shape=(8, 9))
    base = ["--dataset", folder / "small", "--val-size", 12, "--hidden", 7, "--quiet", "--out"]
    assert call(train.main, *base, folder / "run", "--epochs", 4, "--lr", 0.01)[0] == 0
    assert call(train.main, *base, folder / "other", "--epochs", 2, "--preprocess", "scale", "center")[0] == 0
    assert call(visualize.main, folder / "run", "--only", "loss")[0] == 0
    assert call(judging.main, folder / "run")[0] == 0
    make_search(folder / "search")
    y, x = np.mgrid[:60, :50]
    ink = (abs(np.hypot(y - 30, x - 25) - 15) < 3)[:, :, None]
    Image.fromarray(np.where(ink, (30, 30, 90), (230, 225, 220)).astype(np.uint8)).save(folder / "digit.png")
    return folder


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["figures", "predictions", "seen"])
@pytest.mark.parametrize("error, once", [(errno.ENOSPC, False), pytest.param(errno.EIO, True, marks=MANY)])
def test_a_write_that_fails_loses_nothing(whole, tmp_path, script, error, once):
    """At each write in turn, over files of an earlier time: each file is the old or the new one."""
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.copy(whole / "digit.png", tmp_path)
    main, *arguments = {
        "figures": (visualize.main, tmp_path / "run", "--only", "loss"),
        "predictions": (judging.main, tmp_path / "run"),
        "seen": (judging.main, tmp_path / "run", "--images", tmp_path / "digit.png", "--save"),
    }[script]
    assert call(main, *arguments)[0] == 0
    new = files(tmp_path)
    names = {"figures": "figures/*", "predictions": "predictions.csv", "seen": "../*.seen.png"}[script]
    written = list((tmp_path / "run").glob(names))
    for number in range(1, 40):
        for path in written:
            path.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, tmp_path, number, error, once)
            status, out, err = call(main, *arguments)
        if disk.count < number:
            break
        if not (once and status == 0):
            assert status == 2 and is_one_clear_line(err, os.strerror(error)), (number, err)
        assert "confusion matrix" in out or script != "predictions"
        found = files(tmp_path)
        assert set(found) == set(new), "a half-written file stays"
        assert all(content in (b"old", new[path]) for path, content in found.items())
    assert call(main, *arguments)[0] == 0 and files(tmp_path) == new
    assert number >= {"figures": 10, "predictions": 4, "seen": 4}[script]  # 11 with a newer Matplotlib


def test_a_folder_for_figures_that_is_a_file(whole, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        call_refused(visualize.main, whole / "run", "--only", "loss", "--out", out, words=[str(out)])
    assert (tmp_path / "file").read_text() == "kept"
    call_refused(visualize.main, tmp_path / "file", words=["there is no folder"])


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
        draw(visualize.draw_folder(path, names, None)[0])


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

    _, faults = outcomes(cases(), lambda path: use_figures(path, rng))
    assert not faults


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

    _, faults = outcomes(cases(), use)
    assert not faults


KINDS = {"png": {}, "jpg": {}, "gif": {}, "bmp": {}, "tif": {}, "webp": {}, "ppm": {}, "ico": {}}


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=MANY)])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pictures(whole, tmp_path, kind, count):
    rng, path = np.random.default_rng([10, list(KINDS).index(kind), count]), tmp_path / f"digit.{kind}"
    Image.open(whole / "digit.png").save(path)
    honest, members = path.read_bytes(), judging.load_members([whole / "run"])

    def cases():
        for _ in range(count):
            path.write_bytes(damaged(honest, rng))
            yield path

    def use(path):
        _, image = judging.read_picture(str(path), {"image_shape": (8, 9), "fit": "digit", "edge": 0.0})
        assert image.shape == (8, 9) and image.dtype == np.uint8
        assert np.isfinite([chance for _, chance in judging.likeliest(members, image)]).all()

    _, faults = outcomes(cases(), use)
    assert not faults


def test_damaged_pictures_on_the_command_line_have_a_line_each(whole, tmp_path):
    content, paths = (whole / "digit.png").read_bytes(), []
    for number in range(20):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(content[: number * len(content) // 20])
    done = run("test.py", whole / "run", "--images", *paths, whole / "digit.png", "--json", check=2)
    assert 1 <= len(json.loads(done.stdout)) < 20
    lines = done.stderr.splitlines()
    assert len(lines) + len(json.loads(done.stdout)) == 21
    assert all(line.startswith("test.py: ") and str(tmp_path) in line for line in lines)


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=MANY)])
def test_committees_with_a_bad_member(whole, tmp_path, count):
    rng, path = np.random.default_rng([11, count]), tmp_path / "params.pkl"
    honest, other = nn.load_checkpoint(whole / "run" / "params.pkl"), whole / "other"
    content = (whole / "run" / "params.pkl").read_bytes()
    images = data.load_dataset(str(whole / "small"))

    def cases():
        for number in range(count):
            if number % 2:
                path.write_bytes(damaged(content, rng))
            else:
                odd = altered(honest, rng)
                if isinstance(odd.get("params"), dict) and isinstance(odd.get("config"), dict):
                    with open(path, "wb") as file:
                        judging.nn.pickle.dump(odd, file)
            yield [other, path] if number % 3 else [path, other]

    def use(runs):
        members = judging.load_members(runs)
        _, report, _ = judging.judge(members, images["test_images"], images["test_labels"])
        assert np.isfinite(report["loss"])
        judging.report_text(report, members[0][1], "committee")

    fine, faults = outcomes(cases(), use)
    assert not faults and 0 < fine < count


def test_members_that_are_not_there_or_no_params(whole, tmp_path):
    (tmp_path / "params.pkl").write_bytes(b"")
    for bad in (tmp_path, tmp_path / "nowhere", whole / "digit.png", whole / "small"):
        for runs in ([bad, whole / "run"], [whole / "run", bad]):
            call_refused(judging.main, *runs, words=[str(bad)])
            call_refused(judging.main, *runs, "--images", whole / "digit.png", words=[str(bad)])


# --- nonsense ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", ["", "--dataset", "--data-dir", "--images", "--json", "--save", "--nonsense"]
)
def test_nonsense_for_test_py(whole, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    for value in WORDS:
        words = [value] if not flag else [whole / "run", flag, value]
        status, _, err = call(judging.main, *words)
        if flag == "--data-dir" or (flag == "--dataset" and not value) or (flag == "--images" and not value):
            assert (status, err) == (0, "") or (status == 2 and is_one_clear_line(err)), (value, err)
        else:
            assert status == 2 and is_one_clear_line(err), (value, err)


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
            assert flag != "--only" or "figure" in err or value.startswith("-"), err


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
    figures, _ = visualize.draw_folder(tmp_path / "run", names, None)
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
    with pytest.raises(ValueError, match=rf"trials\.csv.* {column} "):
        visualize.load_search(tmp_path / "search")
