"""test.py with full disks, damaged params and pictures, committees with a bad member, nonsense for flags."""

import errno
import json
import pickle
import shutil

import faults
import numpy as np
import pytest
from conftest import call, is_one_clear_line, run, write_dataset
from PIL import Image

import data
import nn
import test as judging
import train

MORE = pytest.mark.extended


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return faults.make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a data set ``small``, a run on it, ``run``, another, ``other``, and ``digit.png``."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "small", shape=(8, 9))
    base = ["--dataset", folder / "small", "--val-size", 12, "--hidden", 7, "--epochs", 2, "--out"]
    assert call(train.main, *base, folder / "run", "--lr", 0.01)[0] == 0
    assert call(train.main, *base, folder / "other", "--preprocess", "scale", "center")[0] == 0
    y, x = np.mgrid[:60, :50]
    ink = (abs(np.hypot(y - 30, x - 25) - 15) < 3)[:, :, None]
    Image.fromarray(np.where(ink, (30, 30, 90), (230, 225, 220)).astype(np.uint8)).save(folder / "digit.png")
    return folder


@pytest.mark.parametrize("what", ["predictions", "seen"])
@pytest.mark.parametrize("error, once", [(errno.ENOSPC, False), pytest.param(errno.EIO, True, marks=MORE)])
def test_a_write_that_fails_loses_nothing(whole, tmp_path, what, error, once):
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.copy(whole / "digit.png", tmp_path)
    more = ["--images", tmp_path / "digit.png", "--save"] if what == "seen" else []
    judge = [judging.main, tmp_path / "run", *more]
    assert faults.check_writes(tmp_path, f"**/*{what}*", error, once, *judge) >= 4


def use_params(path):
    members = judging.load_members([path])
    config = members[0][1]
    dataset = data.load_dataset_of(config)
    estimates, report, _ = judging.judge(members, dataset["test_images"], dataset["test_labels"])
    judging.report_text(report, config, "title")
    judging.prediction_rows(estimates, dataset["test_labels"], config["data"]["class_names"])


@pytest.mark.parametrize("count", [faults.FEW, faults.MANY])
@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_damaged_params(runs, tmp_path, suffix, count):
    rng, path = np.random.default_rng([2, count]), tmp_path / f"params.{suffix}"
    contents = []
    for folder in runs:
        nn.save_params(path, *nn.load_params(folder / "params.pkl"))
        content = path.read_bytes()
        contents += [faults.damaged(content, rng) for _ in range(count // len(runs))]
    fine = faults.count_fine(faults.written(path, contents), use_params)
    assert fine < count
    assert fine or suffix == "npz", "a zip archive has checksums"


@pytest.mark.parametrize("count", [faults.FEW, faults.MANY])
@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_params_that_are_whole_but_say_something_odd(runs, tmp_path, suffix, count):
    rng, path = np.random.default_rng([5, len(suffix), ord(suffix[0]), count]), tmp_path / f"params.{suffix}"
    honest = [nn.load_checkpoint(folder / "params.pkl") for folder in runs]

    def cases():
        for number in range(count):
            odd = faults.altered(honest[number % len(honest)], rng, arrays=suffix == "pkl")
            if suffix == "pkl":
                path.write_bytes(pickle.dumps(odd))
            else:
                arrays = odd["params"] if isinstance(odd.get("params"), dict) else {}
                arrays = {key: w for key, w in arrays.items() if isinstance(w, (np.ndarray, str, int))}
                config = json.dumps(odd.get("config"), default=lambda array: {"$array": "W1"})
                np.savez(path, **arrays, config=config)
            yield path

    assert 0 < faults.count_fine(cases(), use_params) < count


KINDS = ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "ico"]


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=MORE)])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pictures(whole, tmp_path, kind, count):
    rng, path = np.random.default_rng([10, KINDS.index(kind), count]), tmp_path / f"digit.{kind}"
    Image.open(whole / "digit.png").save(path)
    honest, members = path.read_bytes(), judging.load_members([whole / "run"])

    def cases():
        for _ in range(count):
            path.write_bytes(faults.damaged(honest, rng))
            yield path

    def use(path):
        facts = {"image_shape": (8, 9), "fit": "digit", "edge": 0.0}
        _, (image,), _ = judging.read_picture(str(path), facts)
        assert image.shape == (8, 9) and image.dtype == np.uint8
        assert np.isfinite([row["probability"] for row in judging.likeliest(members, image)]).all()

    if kind != "ico":  # of no known kind
        use(path)
    faults.count_fine(cases(), use)


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


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=MORE)])
def test_committees_with_a_bad_member(whole, tmp_path, count):
    rng, path = np.random.default_rng([11, count]), tmp_path / "params.pkl"
    honest, other = nn.load_checkpoint(whole / "run" / "params.pkl"), whole / "other"
    content = (whole / "run" / "params.pkl").read_bytes()
    images = data.load_dataset(str(whole / "small"))

    def cases():
        for number in range(count):
            if number % 2:
                path.write_bytes(faults.damaged(content, rng))
            else:
                odd = faults.altered(honest, rng)
                if isinstance(odd.get("params"), dict) and isinstance(odd.get("config"), dict):
                    path.write_bytes(pickle.dumps(odd))
            yield [other, path] if number % 3 else [path, other]

    def use(runs):
        members = judging.load_members(runs)
        _, report, _ = judging.judge(members, images["test_images"], images["test_labels"])
        assert np.isfinite(report["loss"])
        judging.report_text(report, members[0][1], "committee")

    assert 0 < faults.count_fine(cases(), use) < count


def test_members_that_are_not_there_or_no_params(whole, tmp_path):
    (tmp_path / "params.pkl").write_bytes(b"")
    for bad in (tmp_path, tmp_path / "nowhere", whole / "digit.png", whole / "small"):
        for runs in ([bad, whole / "run"], [whole / "run", bad]):
            faults.call_refused(judging.main, *runs, names=[str(bad)])
            faults.call_refused(judging.main, *runs, "--images", whole / "digit.png", names=[str(bad)])


@pytest.mark.parametrize(
    "flag", ["", "--dataset", "--data-dir", "--images", "--json", "--save", "--nonsense"]
)
def test_nonsense_for_test_py(whole, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    for value in faults.WORDS:
        words = [value] if not flag else [whole / "run", flag, value]
        status, _, err = call(judging.main, *words)
        if flag == "--data-dir" or (flag == "--dataset" and not value) or (flag == "--images" and not value):
            assert (status, err) == (0, "") or (status == 2 and is_one_clear_line(err)), (value, err)
        else:
            assert status == 2 and is_one_clear_line(err), (value, err)
