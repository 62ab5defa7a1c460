"""Searching: spaces, trials that depend on nothing but their number, workers that die, resuming."""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ENDLESS, HANG, ROOT, is_one_clear_line, refused, rows_of, run, run_apart, write_dataset
from faults import living, started, wait_until, wait_until_gone

import data
import nn
import search
import train

SPACE = "lr=0.05:0.2 weight_decay=1e-6:1e-3:log hidden=3:9"
PROCESSES = search._processes
pytestmark = pytest.mark.usefixtures("trials_here")


@pytest.fixture
def processes(monkeypatch):
    """Trials run on workers after all."""
    monkeypatch.setattr(search, "_processes", PROCESSES)


def flags(folder, out, *more, space=SPACE):
    """Flags of a small search; ``more`` wins."""
    words = ["--dataset", folder, "--out", out, "--val-size", 12, "--space", *space.split(), *more]
    if "--epochs" not in more:
        words += ["--epochs", 3]
    return list(map(str, words))


def table(out):
    return rows_of(out / "trials.csv")


def check_same_params(out, other, *folders):
    """The same bits in folders of two searches."""
    for name in folders:
        assert (out / name / "params.pkl").read_bytes() == (other / name / "params.pkl").read_bytes()


def definition(space=SPACE, **more):
    return search.define({"space": space.split(), "val_size": 12, **more}, search.DEFAULT_SEARCH)


# --- spaces -----------------------------------------------------------------------------------


def test_space_has_ranges_and_lists():
    space = search.parse_space(
        "lr=0.15:0.25 weight_decay=1e-7:1e-4:log hidden=784x100,784,0 batch_size=16,32 "
        "activation=relu,tanh nesterov=true,false preprocess=scale,scale+center train_size=10:20"
    )
    assert space == {
        "lr": {"low": 0.15, "high": 0.25, "log": False},
        "weight_decay": {"low": 1e-7, "high": 1e-4, "log": True},
        "hidden": [[784, 100], [784], []],
        "batch_size": [16, 32],
        "activation": ["relu", "tanh"],
        "nesterov": [True, False],
        "preprocess": [["scale"], ["scale", "center"]],
        "train_size": {"low": 10, "high": 20, "log": False},
    }


NO_SPACE = {  # what the error names -> spaces
    "": ["", "=0.1"],
    "learning_rate": ["learning_rate=0.1"],
    "hidden": ["hiden=3", *(f"hidden={values}" for values in ("300:200", "0:300", "8x4:9", "2.5:9"))],
    "tanh": ["activation=relu,tahn"],
    ": tanh is": ["activation=relu,tanh,tanh"],
    ": 8x4 is": ["hidden=8x4,300,8x4"],
    "lr": ["lr", "lr=0.1 lr=0.2"]
    + [f"lr={ends}" for ends in ("", "0.2:0.1", "0.1:0.1", "0:0.1", "nan:0.1", "0.1:inf", "0.1,0.1")]
    + [f"lr={ends}" for ends in ("0.1:0.2:lin", "0.1:0.2:0.3", "1:2:log:log")],
    "weight_decay": ["weight_decay=0:1e-4:log"],
    "activation": ["activation=relu:tanh"],
    "nesterov": ["nesterov=false:true"],
    "momentum": ["momentum=0,1"],
}


@pytest.mark.parametrize("text, name", [(text, name) for name, texts in NO_SPACE.items() for text in texts])
def test_space_that_cannot_be_is_refused(text, name):
    with refused("--space", name, error=ValueError):
        search.parse_space(text)


def test_choices_may_have_a_number_of_their_own():
    trials = search.trial_settings(definition("preprocess=scale,scale+pca:50", strategy="grid"))
    assert [settings["preprocess"] for settings in trials] == [["scale"], ["scale", "pca:50"]]


ONE_FOR_ALL = ["size", "transpose", "folds", "fold"]  # how data sets are read, and split for a search


EXAMPLES = (  # of the others: 1:9
    "dataset=mnist,glyphs loss=mse,cross_entropy optimizer=sgd,adam init=he,lecun dtype=float32,float64 "
    "lr_schedule=constant,cosine activation=relu,tanh nesterov=true,false preprocess=scale,center "
    "augment=none,elastic+flip holdout=random,last class_weight=none,balanced dropout=0.1:0.5 "
    "beta1=0.8:0.9 beta2=0.9:0.99 input_dropout=0.1:0.5 label_smoothing=0.1:0.5 ema=0.1:0.5 "
    "adversarial=0.1:0.5 max_scaling=0.1:0.5 momentum=0.1:0.9 min_delta=0.1:0.2"
)


@pytest.mark.parametrize("name", [name for name in train.SETTINGS if name not in ONE_FOR_ALL])
def test_every_setting_can_be_searched(name):
    examples = dict(example.split("=") for example in EXAMPLES.split())
    dimension = search.parse_space(f"{name}={examples.get(name, '1:9')}")[name]
    value = search.draw(dimension, np.random.default_rng(0))
    checked = train.check_setting(name, value)
    assert train.check_setting(name, data.setting_text(checked)) == checked


@pytest.mark.parametrize(
    "name, value", [("hidden", []), ("preprocess", []), ("class_weight", [1.0, 0.5, 2.0])]
)
def test_a_list_as_one_word_is_read_again(name, value):
    assert train.check_setting(name, data.setting_text(value)) == value
    assert train.as_flags({**train.DEFAULTS, name: value})[1:] == (list(map(str, value)) or ["none"])


def test_draws_lie_in_their_range():
    rng = np.random.default_rng(0)
    space = search.parse_space("lr=0.15:0.25 weight_decay=1e-7:1e-4:log hidden=200:203 batch_size=1:100:log")
    drawn = {name: [search.draw(d, rng) for _ in range(2000)] for name, d in space.items()}
    assert all(0.15 <= lr < 0.25 for lr in drawn["lr"])
    assert abs(np.mean(drawn["lr"]) - 0.2) < 0.002
    assert all(1e-7 <= wd < 1e-4 for wd in drawn["weight_decay"])
    assert abs(np.mean(np.log10(drawn["weight_decay"])) + 5.5) < 0.06
    assert set(drawn["hidden"]) == {200, 201, 202}
    assert set(map(type, drawn["batch_size"])) == {int}
    assert min(drawn["batch_size"]) >= 1 and max(drawn["batch_size"]) <= 99
    assert 0.45 < np.mean(np.array(drawn["batch_size"]) < 10) < 0.55


# --- definitions ------------------------------------------------------------------------------


def test_default_search_is_that_of_system_a():
    settings = search.trial_settings(search.define({}, search.DEFAULT_SEARCH))
    assert len(settings) == 50
    for config in settings:
        assert 0.15 <= config["lr"] < 0.25 and 1e-7 <= config["weight_decay"] < 1e-4
        assert 200 <= config["hidden"][0] < 300
        assert (config["epochs"], config["batch_size"], config["val_size"]) == (50, 128, 0.2)
    assert len({config["seed"] for config in settings}) == 50
    assert len({config["split_seed"] for config in settings}) == 1


def test_trial_depends_on_the_search_seed_and_its_number_alone():
    few, many = (search.trial_settings(definition(trials=n, seed=7)) for n in (3, 8))
    assert many[:3] == few
    rng = np.random.default_rng([7, 2])
    assert few[1]["seed"] == rng.integers(2**32)
    assert few[1]["lr"] == rng.uniform(0.05, 0.2)
    assert search.trial_settings(definition(trials=3, seed=8))[0] != few[0]


def test_grid_has_every_combination():
    found = definition("lr=0.1,0.2 hidden=4,8x4,0 momentum=0,0.9", strategy="grid")
    assert found["trials"] == 12
    settings = search.trial_settings(found)
    assert len({(s["lr"], tuple(s["hidden"]), s["momentum"]) for s in settings}) == 12


GRID = ["--strategy", "grid"]


@pytest.mark.parametrize(
    "more, names",
    [
        (["--spaces", "lr=1:2"], ["--spaces", "--space"]),
        (["--space", "lr=2:1"], ["--space", "lr"]),
        (["--space", "folds=2,3"], ["--folds"]),
        (["--strategy", "rnadom"], ["random"]),
        (["--strategy", "halving", "--space", "epochs=1:5"], ["--epochs"]),
        (["--trials", 0], ["--trials"]),
        (["--trials", "x"], ["--trials"]),
        ([*GRID, "--space", "lr=1,2", "--trials", 3], ["--trials"]),
        (GRID, ["lr"]),  # a range
        ([*GRID, "--space", "lr=0.1,0.2", "--nesterov"], ["trial 1", "--nesterov"]),
        (["--lr", 0.1], ["--lr"]),
        (["--epochs", 0], ["--epochs"]),
        (["--seed", -1], ["--seed"]),
        (["--repeat", 0], ["--repeat"]),
        (["--repeat", 21], ["--repeat"]),
        (["--repeat", 2, "--space", "seed=1,2"], ["--repeat"]),
        (["--folds", 1], ["--folds"]),
        (["--folds", 21], ["--folds"]),
        (["--folds", 3, "--repeat", 2], ["--repeat"]),
        (["--fold", 2], ["--fold"]),
        (["--best", 1, "--epochs", 9], ["--resume"]),
        (["--workers", 0], ["--workers"]),
        (["--workers", 2, "--scheduler", "tcp://x:1"], ["--workers"]),
        (["--val-size", 0], ["trial 1", "--val-size"]),
        (["--val-size", 60], ["--val-size"]),  # from here on it does not fit the data
        (["--class-weight", 1, 2], ["--class-weight"]),
        (["--preprocess", "pca:900"], ["--preprocess"]),
        (["--space", "preprocess=scale,pca:900"], ["pca:900"]),
    ],
)
def test_what_cannot_be_is_one_clear_line_before_anything_is_written(small_set, tmp_path, more, names):
    done = run("search.py", "--dataset", small_set, "--out", tmp_path / "out", *more, check=2)
    assert is_one_clear_line(done.stderr, *names) and not (tmp_path / "out").exists()


SYSTEMS = {  # the searches of the reference systems B to E -> number of trials
    "batch_size=64,32,16,8,4 lr=1e-2,5e-3,1e-3,3e-4 lr_decay=0.001,0.009 weight_decay=0.01,0.005,0.001 "
    "lr_schedule=inverse": 120,
    "batch_size=10,100,1000,5000 hidden=0": 4,
    "momentum=0,0.9 hidden=0": 2,
    "lr=0.01,0.1,0.5,1,3 hidden=0": 5,
    "lr=0.00075,0.001,0.00125 weight_decay=0,0.2,0.4 hidden=512x256": 9,
    "hidden=512x256,256,256x128,512x128 activation=relu,sigmoid,tanh": 12,
}


@pytest.mark.parametrize("space, trials", SYSTEMS.items())
def test_searches_of_the_reference_systems_can_be_said(space, trials):
    assert len(search.trial_settings(definition(space, strategy="grid"))) == trials


# --- strategies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trials, epochs, expected",
    [
        (50, 50, [(50, 2), (17, 6), (6, 50)]),
        (9, 9, [(9, 1), (3, 9)]),
        (3, 9, [(3, 3), (1, 9)]),
        (9, 2, [(9, 1), (3, 2)]),
        (2, 50, [(2, 50)]),
        (100, 1, [(100, 1)]),
    ],
)
def test_rungs_of_successive_halving(trials, epochs, expected):
    found = definition(strategy="halving", trials=trials, epochs=epochs)
    assert search.rungs(found) == expected
    assert search.rungs({**found, "strategy": "random"}) == [(trials, None)]


def test_halving_of_the_default_search_takes_at_most_a_fifth_of_its_epochs():
    plan = search.rungs(search.define({"strategy": "halving"}, search.DEFAULT_SEARCH))
    assert search.epochs_left([as_trial(1, status=None)] * 50, plan) <= 50 * 50 / 5


def as_trial(number, *accuracies, status="finished", repeat=1):
    rows = [dict.fromkeys(search.FIGURES, 1.0) | {"val_accuracy": accuracy} for accuracy in accuracies]
    config = {"epochs": 3, "folds": 0}
    return {"number": number, "repeat": repeat, "rows": rows, "status": status, "config": config}


def numbers_of(ranked):
    return [group[0]["number"] for group in ranked]


def test_ranking_goes_by_the_last_validation_accuracy():
    trials = [
        as_trial(1, 0.9, 0.8),
        as_trial(2, 0.5, 0.9),
        as_trial(3, 0.99, status="diverged"),
        as_trial(4, status="failed"),
        as_trial(5, 0.95, status="stopped"),
        as_trial(6, 0.4, 0.3, status="stopped"),
        as_trial(7, 0.5, 0.8),
    ]
    assert numbers_of(search.ranking(trials)) == [2, 1, 7, 6, 5]


def test_the_best_at_a_rung_are_found_again_from_later_histories():
    trials = [
        as_trial(1, 0.5, 0.9, 0.9),
        as_trial(2, 0.7, 0.1, status="stopped"),
        as_trial(3, 0.6, status="diverged"),
        as_trial(4, status="diverged"),
        as_trial(5, 0.4, status="finished"),  # by early stopping
    ]
    assert [t["number"] for t in search.best_at(trials, 1, 3)] == [1, 2, 3]
    assert [t["number"] for t in search.best_at(trials, 2, 3)] == [1, 2, 5]


# --- whole searches ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A data set and a finished search of five trials."""
    folder = write_dataset(tmp_path_factory.mktemp("search") / "small")
    out = folder.parent / "found"
    search.main(flags(folder, out, "--trials", 5))
    return folder, out


@pytest.fixture
def copy(done, tmp_path):
    return shutil.copytree(done[1], tmp_path / "copy")


def test_results_do_not_depend_on_the_number_of_workers(done, tmp_path, processes):
    folder, out = done
    mine = tmp_path / "two" / "split" / "mine.txt"  # a search has its splits in a folder of another name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    search.main(flags(folder, tmp_path / "two", "--trials", 5, "--workers", 2))
    assert mine.read_text() == "mine" and not (tmp_path / "two" / ".split").exists()
    assert table(tmp_path / "two") == table(out)
    check_same_params(tmp_path / "two", out, ".", *(f"trials/00{number}" for number in range(1, 6)))


def test_table_is_the_ranking_with_settings_and_figures(done):
    rows = table(done[1])
    assert list(rows[0]) == [
        *("trial", "status", "seed", "lr", "weight_decay", "hidden", "epochs"),
        *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    ]
    assert sorted(row["trial"] for row in rows) == [1, 2, 3, 4, 5]
    accuracies = [row["val_accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    for row, config in zip(sorted(rows, key=lambda r: r["trial"]), search.trial_settings(definition())):
        assert (row["lr"], row["seed"], [row["hidden"]]) == (config["lr"], config["seed"], config["hidden"])


def test_trial_is_a_run_of_train_and_never_sees_the_test_set(done, tmp_path):
    trial = done[1] / "trials" / "002"
    train.main(["--config", str(trial / "config.json"), "--out", str(tmp_path), "--quiet"])
    run_params, trial_params = (nn.load_params(f / "params.pkl")[0] for f in (tmp_path, trial))
    assert all((run_params[key] == trial_params[key]).all() for key in run_params)
    rows, run_rows = data.load_rows(trial / "history.csv"), data.load_rows(tmp_path / "history.csv")
    assert [r["val_loss"] for r in rows] == [r["val_loss"] for r in run_rows]
    assert rows[-1]["train_loss"] == run_rows[-1]["train_loss"]
    assert all(row["test_loss"] is None and row["test_accuracy"] is None for row in rows)


def test_best_is_trained_again_on_all_images_and_so_is_the_printed_command(done, tmp_path, capsys):
    folder, out = done
    search.main(flags(folder, out, "--resume"))
    printed = capsys.readouterr().out
    command = shlex.split(printed.rsplit("to train it again: ", 1)[1])
    assert command[:2] == ["python", "train.py"]
    run("train.py", *command[2:], "--out", tmp_path)
    check_same_params(tmp_path, out, ".")
    config, best = data.load_json(out / "config.json"), table(out)[0]
    assert (config["seed"], config["lr"], config["val_size"]) == (best["seed"], best["lr"], 0)
    assert "20 test images" in run("test.py", out).stdout


@pytest.mark.parametrize("schedule, epochs", [("cosine", 9), ("linear", 9), ("constant", 4)])
def test_the_best_is_trained_again_along_its_own_schedule(tmp_path, monkeypatch, schedule, epochs):
    monkeypatch.setattr(search.train, "main", lambda words: None)
    config = search.train.check_settings({"lr_schedule": schedule, "epochs": 9, "patience": 1})
    command = search.retrain(tmp_path, [{"config": config, "rows": [{}] * 4}], None)  # stopped early
    assert f"--epochs {epochs} " in f"{command} "


@pytest.mark.parametrize("given", [[], ["--trials", 5, "--batch-size", 128, "--dropout", 0]])
def test_finished_search_is_resumed_without_running_anything(done, capsys, given):
    """A default that is spelled out is the same search."""
    folder, out = done
    before = {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*")}
    search.main(flags(folder, out, "--resume", *given) if given else ["--resume", "--out", str(out)])
    assert {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*")} == before
    assert "/5 trial" not in capsys.readouterr().out


def test_resume_runs_what_is_missing(done, copy):
    lines = (copy / "trials.csv").read_text().splitlines(keepends=True)
    (copy / "trials.csv").write_text("".join(lines[:1] + lines[3:]))
    shutil.rmtree(copy / "trials" / f"{int(lines[1].split(',')[0]):03}")
    search.main(["--resume", "--out", str(copy)])
    assert table(copy) == table(done[1])
    check_same_params(copy, done[1], ".")


def test_random_search_can_be_resumed_with_more_trials(done, copy):
    search.main(["--resume", "--out", str(copy), "--trials", "7"])
    by_number = {row["trial"]: row for row in table(copy)}
    assert sorted(by_number) == [1, 2, 3, 4, 5, 6, 7]
    assert all(by_number[row["trial"]] == row for row in table(done[1]))


@pytest.mark.parametrize(
    "more, names",
    [
        ([], ["--resume"]),
        (["--trials", 6], ["--resume"]),
        (["--resume", "--trials", 4], ["trials", "5", "4"]),
        (["--resume", "--seed", 1], ["seed", "0", "1"]),
        (["--resume", "--strategy", "halving"], ["strategy", "random", "halving"]),
        (["--resume", "--space", "lr=0.1:0.2"], ["space", "lr=0.05:0.2", "lr=0.1:0.2"]),
        (["--resume", "--epochs", 9], ["epochs", "3", "9"]),
        (["--resume", "--momentum", 0.9], ["momentum", "0.0", "0.9"]),
        (["--resume", "--best", 2], ["--best", "--epochs"]),
        (["--resume", "--best", 2, "--epochs", 3], ["--best", "--epochs"]),
        (["--resume", "--best", 6, "--epochs", 9], ["--best"]),
        (["--resume", "--best", "x", "--epochs", 9], ["--best"]),
        (["--resume", "--best", 1, "--epochs", "x"], ["--epochs"]),
    ],
)
def test_a_search_that_is_there_is_not_changed(done, more, names):
    """By a new one, or by going on with it as another one, or with more epochs that cannot be."""
    with refused(done[1], *names, error=ValueError):
        search.main(["--out", str(done[1]), *map(str, more)])


@pytest.mark.parametrize(
    "name, content",
    [
        ("search.json", "{"),
        ("search.json", "[]"),
        ("search.json", '{"space": 3}'),
        ("search.json", '{"lr": [1]}'),
        ("trials.csv", ""),
        ("trials.csv", "trial,status\n1\n"),
        ("trials.csv", "trial,status\n1,finished\n"),
        ("trials.csv", "trial,status,seed,epochs,seconds\n9,finished,0,3,1\n"),
        ("trials.csv", "trial,status,seed,epochs,seconds\n1,finished,0,3,1\n"),
        ("trials.csv", "\xff\x00"),
        ("trials/001/history.csv", "epoch\n"),
        ("trials.csv", "trial,status,seed,epochs,seconds\n1,finished,SEED,0,1\n"),
        ("trials/001/history.csv", "a,b\n1,x\n"),
    ],
)
def test_damaged_files_are_named(copy, name, content):
    seed = str(data.load_json(copy / "trials" / "001" / "config.json")["seed"])
    (copy / name).write_bytes(content.replace("SEED", seed).encode("latin1"))
    with refused(copy, error=ValueError):
        search.main(["--resume", "--out", str(copy)])


def test_other_data_are_refused(done, copy):
    record = data.load_json(copy / "search.json")
    record["data"] = {name: dict.fromkeys(sums, "0") for name, sums in record["data"].items()}
    (copy / "search.json").write_text(json.dumps(record))
    with refused(done[0], error=ValueError):
        search.main(["--resume", "--out", str(copy)])


def test_two_searches_in_one_folder_are_refused(done):
    with train.locked(done[1]), refused(done[1], error=OSError):
        search.main(["--resume", "--out", str(done[1])])


def test_halving_goes_on_with_the_better_third(small_set, tmp_path):
    out = tmp_path / "halving"
    search.main(flags(small_set, out, "--strategy", "halving", "--trials", 9, "--epochs", 9))
    rows = {row["trial"]: row for row in table(out)}
    assert sorted(row["epochs"] for row in rows.values()) == [1] * 6 + [9] * 3
    best = table(out)[0]
    assert (best["status"], best["epochs"]) == ("finished", 9)
    assert all((row["status"] == "stopped") == (row["epochs"] == 1) for row in rows.values())
    histories = {n: data.load_rows(out / f"trials/00{n}/history.csv") for n in rows}
    first = sorted(rows, key=lambda n: (-histories[n][0]["val_accuracy"], histories[n][0]["val_loss"], n))
    assert {number for number in rows if rows[number]["epochs"] > 1} == set(first[:3])
    # it was continued: its history and params are those of an unbroken run
    config = out / f"trials/00{best['trial']}/config.json"
    train.main(["--config", str(config), "--out", str(tmp_path / "unbroken"), "--quiet"])
    unbroken = data.load_rows(tmp_path / "unbroken" / "history.csv")
    assert [r["val_loss"] for r in histories[best["trial"]]] == [r["val_loss"] for r in unbroken]
    params = [nn.load_params(f.parent / "params.pkl")[0] for f in (config, tmp_path / "unbroken" / "x")]
    assert all((params[0][key] == params[1][key]).all() for key in params[0])
    # and a resume of a part ends with the same table
    before = table(out)
    lines = (out / "trials.csv").read_text().splitlines(keepends=True)
    (out / "trials.csv").write_text("".join(lines[:1] + lines[2:]))
    search.main(["--resume", "--out", str(out)])
    assert table(out) == before


def test_trials_that_diverge_are_rows(small_set, tmp_path):
    out = tmp_path / "out"
    space = "lr=0.1,1e30 hidden=8x4,4 momentum=0.9"
    search.main(flags(small_set, out, "--strategy", "grid", space=space))
    assert [row["status"] for row in table(out)] == ["finished"] * 2 + ["diverged"] * 2
    assert {row["hidden"] for row in table(out)} == {"8x4", 4}
    assert data.load_json(out / "trials/003/config.json")["status"] == "diverged"
    with refused("trials.csv", error=ValueError):
        search.main(flags(small_set, tmp_path / "all", "--trials", 1, space="lr=1e30"))


def test_file_that_cannot_be_written_ends_the_search_and_resume_goes_on(small_set, tmp_path):
    out = tmp_path / "out"
    (out / "trials").mkdir(parents=True)
    (out / "trials" / "003").touch()  # where a folder should be
    with refused("003", error=OSError):
        search.main(flags(small_set, out, "--trials", 4, "--workers", 1))
    assert [row["trial"] for row in sorted(table(out), key=lambda r: r["trial"])] == [1, 2]
    (out / "trials" / "003").unlink()
    search.main(["--resume", "--out", str(out)])
    assert {row["status"] for row in table(out)} == {"finished"} and len(table(out)) == 4


def test_splits_and_data_sets_can_be_searched(small_set, tmp_path):
    other = write_dataset(tmp_path / "other", seed=1)
    space = f"dataset={small_set},{other} train_size=10,40 preprocess=scale,scale+center"
    words = flags(small_set, tmp_path / "out", "--strategy", "grid", space=space)[2:]
    search.main(words)
    assert [row["status"] for row in table(tmp_path / "out")] == ["finished"] * 8


def test_early_stopping_counts_for_the_best(small_set, tmp_path):
    out = tmp_path / "out"
    more = ["--trials", 2, "--epochs", 40, "--patience", 2]
    search.main(flags(small_set, out, *more, space="lr=0.1,0.2 hidden=0"))
    best = table(out)[0]
    assert best["status"] == "finished" and best["epochs"] < 40
    assert data.load_json(out / "config.json")["epochs"] == best["epochs"]


# --- settings that others switch off, and spaces that are finite ---------------------------------


@pytest.mark.parametrize(
    "space, fixed, trials",
    [
        ("momentum=0.9,0 nesterov=true,false", {}, 3),
        ("lr_schedule=constant,inverse,cosine lr_decay=0.1,0.2", {}, 4),
        ("lr_schedule=constant,step,cosine", {"lr_decay": 0.5, "lr_step": 3}, 3),
        ("optimizer=sgd,adam momentum=0,0.5 beta1=0.8,0.9", {}, 4),
        ("hidden=0,5 dropout=0,0.5 max_norm=0,2", {}, 5),
        ("augment=none,shift max_shift=1,2 batch_size=1,2", {}, 6),
        ("patience=0,3 min_delta=0,0.1", {}, 3),
        ("lr=1,2,3", {}, 3),
    ],
)
@pytest.mark.parametrize("strategy", ["grid", "random"])
def test_a_setting_that_the_others_switch_off_is_left_out(space, fixed, trials, strategy):
    found = definition(space, strategy=strategy, **fixed)
    settings = search.trial_settings(found)
    assert len(settings) == found["trials"] == trials
    names = search.parse_space(space)
    assert len({str([s[name] for name in names]) for s in settings}) == trials, "none is run twice"
    for config in settings:
        for name in search.idle(config):
            assert config[name] == train.check_settings({"lr_schedule": config["lr_schedule"]})[name]


def test_a_random_space_with_a_range_leaves_them_out_too():
    settings = search.trial_settings(definition("lr=0.1:0.2 optimizer=sgd,adam momentum=0:0.9", trials=20))
    assert {config["momentum"] == 0 for config in settings if config["optimizer"] == "adam"} == {True}
    assert all(config["momentum"] for config in settings if config["optimizer"] == "sgd")


def test_an_earlier_combination_does_not_depend_on_how_many_are_drawn():
    few, many = (search.trial_settings(definition("lr=1,2,3,4 batch_size=5,6", trials=n)) for n in (3, 50))
    assert many[:3] == few and len(many) == 8


OLDER = ("repeat", "further", "paired", "distinct")  # what search.json did not have once


def test_older_searches_are_gone_on_with_as_they_began(done, copy, capsys):
    record = data.load_json(copy / "search.json")
    for name in OLDER:
        del record[name]
    (copy / "search.json").write_text(json.dumps(record))
    search.main(["--resume", "--out", str(copy)])
    assert table(copy) == table(done[1]) and "/5 trial" not in capsys.readouterr().out
    drawn = {**search.DEFAULT_SEARCH, "paired": False, "distinct": False}
    found = search.define({"space": ["lr=1,2", "momentum=0,0.5"], "trials": 9}, drawn)
    expected = []
    for number in range(1, 10):
        rng = np.random.default_rng([0, number])
        rng.integers(2**32)
        expected.append(([1, 2][rng.integers(2)], [0, 0.5][rng.integers(2)]))
    assert [(s["lr"], s["momentum"]) for s in search.trial_settings(found)] == expected


# --- what runs show -------------------------------------------------------------------------------


def as_group(number, *accuracies, status="finished"):
    return [as_trial(number, a, status=status, repeat=i) for i, a in enumerate(accuracies, start=1)]


def test_groups_are_ranked_by_their_mean_and_compared_in_pairs():
    groups = [as_group(1, 0.5, 0.9), as_group(2, 0.8, 0.7), as_group(3, 0.8, 0.7), as_group(4, 0.99, 0.1)]
    groups[3][1]["status"] = "diverged"
    ranked = search.ranking([trial for group in groups[::-1] for trial in group[::-1]])
    assert numbers_of(ranked) == [2, 3, 1]
    best, same, last = search.compare(ranked)
    assert (best["val_accuracy"], best["runs"], best["difference"], best["p"]) == (0.75, 2, None, None)
    assert best["val_sd"] == pytest.approx(math.sqrt(0.005)) and (same["difference"], same["p"]) == (0, 1)
    assert last["difference"] == pytest.approx(-0.05) and last["p"] == 1


def sentence(*groups, kind="repeat"):
    ranked = search.ranking(itertools.chain(*groups))
    return search.verdict(search.compare(ranked), kind)


def test_the_sentence_says_what_is_shown_and_what_is_not():
    better, worse = [0.9 + 0.001 * i for i in range(6)], [0.8 + 0.002 * i for i in range(6)]
    mixed = [0.9, 0.902, 0.9, 0.9, 0.9, 0.9]
    six = sentence(as_group(1, *better), as_group(2, *worse), as_group(3, *mixed))
    assert "better than trial 2 by more than chance" in six and "better than trial 3 is not shown" in six
    assert "2/64 = 0.031" in six and "above" not in six
    five = sentence(as_group(7, *better[:5]), as_group(2, *worse[:5]))
    assert "Trial 7 was better than trial 2 in each repeat" in five and "2/32 = 0.062" in five
    assert "above the usual limit" in five and "more than chance" not in five
    folds = sentence(as_group(7, *better[:5]), as_group(2, *worse[:5]), kind="fold")
    assert "each fold" in folds and "too small" in folds
    assert "--repeat" in sentence(as_group(1, 0.9), as_group(2, 0.8))
    assert "nothing to compare" in sentence(as_group(1, 0.9, 0.8))
    unequal = sentence(as_group(1, 0.9, 0.8), as_group(2, 0.95, 0.9, status="stopped"))
    assert "nothing to compare" in unequal, "they have fewer epochs"


def test_many_trials_are_named_shortly():
    rows = [{"trial": number} for number in range(1, 9)]
    texts = [search.named(rows[:count]) for count in (1, 2, 3, 8)]
    assert texts == ["trial 1", "trials 1 and 2", "trials 1, 2 and 3", "trials 1, 2, 3, 4, 5 and 3 more"]


# --- repeats and folds ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """A data set and a finished grid of two trials with three repeats each."""
    folder = write_dataset(tmp_path_factory.mktemp("repeats") / "small", test=200)
    out = folder.parent / "found"
    search.main(flags(folder, out, *GRID, "--repeat", 3, "--test", space="lr=0.01,0.2"))
    return folder, out


def groups(out):
    return rows_of(out / "groups.csv")


def test_repeats_have_the_same_seeds_for_all_trials_and_the_same_split(repeated):
    seeds = {}
    for row in table(repeated[1]):
        seeds.setdefault(row["repeat"], set()).add(row["seed"])
    assert sorted(seeds) == [1, 2, 3] and all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == 3
    folders = sorted(path.name for path in (repeated[1] / "trials").iterdir())
    assert folders == ["001", "001-2", "001-3", "002", "002-2", "002-3"]
    configs = [data.load_json(repeated[1] / "trials" / name / "config.json") for name in folders]
    assert len({config["split_seed"] for config in configs}) == 1


def test_groups_hold_mean_and_spread_of_each_combination(repeated):
    rows = table(repeated[1])
    assert [(row["trial"], row["repeat"]) for row in rows] == list(itertools.product([2, 1], [1, 2, 3]))
    for place, row in enumerate(groups(repeated[1])):
        values = [r["val_accuracy"] for r in rows if r["trial"] == row["trial"]]
        assert (row["runs"], row["lr"]) == (3, [0.2, 0.01][place])
        assert row["val_accuracy"] == pytest.approx(np.mean(values))
        assert row["val_sd"] == pytest.approx(np.std(values, ddof=1))
    pairs = np.subtract([r["val_accuracy"] for r in rows[3:]], [r["val_accuracy"] for r in rows[:3]])
    assert row["difference"] == pytest.approx(pairs.mean()) and row["p"] == nn.permutation_test(pairs)


def test_the_test_accuracy_of_each_repeat_is_that_of_its_last_params(repeated, capsys):
    folder, out = repeated
    rows = data.load_rows(out / "test.csv")
    assert [(row["trial"], row["repeat"]) for row in rows] == list(itertools.product([2, 1], [1, 2, 3]))
    dataset = data.load_dataset(str(folder))
    for row in rows:
        name = f"{row['trial']:03}" + f"-{row['repeat']}" * (row["repeat"] > 1)
        params, config = data.load_run(out / "trials" / name / "last.pkl")
        x = data.preprocess(dataset["test_images"], config["steps"], np.float32)
        predicted = nn.predict(params, x, config["activation"]).argmax(axis=1)
        assert row["test_accuracy"] == (predicted == dataset["test_labels"]).mean()
    before = table(out)
    search.main(["--resume", "--out", str(out)])
    assert "test accuracy" not in capsys.readouterr().out and table(out) == before
    assert data.load_rows(out / "test.csv") == rows


def test_a_test_accuracy_without_test_images_is_refused(small_set, tmp_path):
    for kind in ("images", "labels"):
        (small_set / data.FILES[f"test_{kind}"]).unlink()
    with refused("--test", error=ValueError):
        search.main(flags(small_set, tmp_path / "out", "--test"))
    assert not (tmp_path / "out").exists()


def test_more_repeats_end_as_if_asked_for_at_once(repeated, tmp_path):
    folder, out = repeated
    search.main(flags(folder, tmp_path, *GRID, "--repeat", 2, space="lr=0.01,0.2"))
    (tmp_path / "test.csv").touch()
    search.main(["--resume", "--out", str(tmp_path), "--repeat", "3"])
    assert not (tmp_path / "test.csv").exists()  # it was of other params
    assert table(tmp_path) == table(out) and groups(tmp_path) == groups(out)
    check_same_params(tmp_path, out, "trials/001-2", "trials/002-3", ".")


def test_repeats_can_be_added_to_single_runs(done, copy):
    search.main(["--resume", "--out", str(copy), "--repeat", "2"])
    rows = table(copy)
    seeds = {row["trial"]: row["seed"] for row in table(done[1])}
    assert {row["trial"]: row["seed"] for row in rows if row["repeat"] == 1} == seeds
    assert len(rows) == 10 and len({row["seed"] for row in rows if row["repeat"] == 2}) == 1


def test_more_epochs_for_the_best(done, copy, tmp_path):
    """The first trials are left alone; what goes on ends as if all of its epochs had been asked for."""
    folder, out = done
    best, second = (row["trial"] for row in table(out)[:2])
    for _ in range(2):  # the same command again is the same search
        search.main(["--resume", "--out", str(copy), "--best", "2", "--epochs", "6"])
        rows = table(copy)
        assert {row["trial"] for row in rows[:2]} == {best, second}
        assert [(r["status"], r["epochs"]) for r in rows] == [("finished", 6)] * 2 + [("stopped", 3)] * 3
    search.main(flags(folder, tmp_path / "six", "--trials", 5, "--epochs", 6))
    expected = {row["trial"]: row for row in table(tmp_path / "six")}
    assert all(row == expected[row["trial"]] for row in rows[:2])
    search.main(["--resume", "--out", str(copy), "--best", "1", "--epochs", "7"])
    assert [row["epochs"] for row in table(copy)] == [7, 6, 3, 3, 3]


def test_every_image_is_predicted_by_the_run_that_did_not_train_on_it(small_set, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--dataset", small_set, "--out", out, "--epochs", 3, *GRID, "--space", "lr=0.01,0.2"]
    search.main(list(map(str, [*words, "--folds", 3, "--train-size", 50])))
    assert "out of fold" in capsys.readouterr().out
    rows, dataset = data.load_rows(out / "oof.csv"), data.load_dataset(str(small_set))
    assert len({row["index"] for row in rows}) == len(rows) == 50
    assert [row["label"] for row in rows] == dataset["train_labels"][[row["index"] for row in rows]].tolist()
    assert [(row["trial"], row["fold"]) for row in table(out)] == list(itertools.product([2, 1], [1, 2, 3]))
    for fold, name in enumerate(["002", "002-2", "002-3"], start=1):
        params, config = data.load_run(out / "trials" / name / "last.pkl")
        mine = np.flatnonzero(data.folds_of(dataset, config) == fold)
        x = data.preprocess(dataset["train_images"][mine], config["steps"], np.float32)
        chances = nn.predict(params, x, config["activation"])
        found = [row for row in rows if row["index"] in mine]
        assert [row["prediction"] for row in found] == chances.argmax(axis=1).tolist()
        own = chances[np.arange(len(mine)), dataset["train_labels"][mine]]
        np.testing.assert_allclose([row["probability"] for row in found], own, rtol=1e-5)
    retrained = data.load_json(out / "config.json")
    assert (retrained["folds"], retrained["val_size"], retrained["train_size"]) == (0, 0, None)


def planted_and_found(out, dataset, wrong, *more):
    """How many of so many planted wrong labels are among as many least likely ones out of fold."""
    rng = np.random.default_rng(0)
    planted = rng.permutation(len(dataset["train_labels"]))[:wrong]
    dataset["train_labels"] = dataset["train_labels"].copy()
    classes = len(dataset["class_names"])
    dataset["train_labels"][planted] += rng.integers(1, classes, wrong).astype(np.uint8)
    dataset["train_labels"] %= classes
    for part, name in data.FILES.items():
        array = dataset[part].reshape(-1, *dataset["image_shape"]) if "images" in part else dataset[part]
        (out / name).write_bytes(data.idx_bytes(np.uint8(array)))
    words = ["--dataset", out, "--out", out / "search", *GRID, "--folds", 5, *more]
    search.main(list(map(str, words)))
    rows = data.load_rows(out / "search" / "oof.csv")
    rows.sort(key=lambda row: row["probability"])
    return len(set(planted.tolist()) & {row["index"] for row in rows[:wrong]})


def test_wrong_labels_are_the_first_suspects(tmp_path):
    dataset = data.load_dataset(str(write_dataset(tmp_path / "right", train=600)))
    more = ["--epochs", 10, "--space", "hidden=9", "--batch-size", 16]
    assert planted_and_found(tmp_path, dataset, 24, *more) >= 18


@pytest.mark.extended
def test_of_120_wrong_labels_of_real_digits_90_are_among_the_first_120_suspects(real_data, tmp_path):
    dataset = data.load_dataset("mnist", str(real_data))
    for kind in ("images", "labels"):
        dataset[f"train_{kind}"] = dataset[f"train_{kind}"][:12_000]
    assert planted_and_found(tmp_path, dataset, 120, "--epochs", 10, "--space", "hidden=292") >= 90


def test_halving_goes_on_with_the_trials_of_the_best_mean(small_set, tmp_path):
    out = tmp_path / "out"
    search.main(flags(small_set, out, "--strategy", "halving", "--trials", 3, "--epochs", 6, "--repeat", 2))
    assert [row["epochs"] for row in table(out)] == [6, 6, 2, 2, 2, 2]
    assert table(out)[0]["trial"] == table(out)[1]["trial"]
    with refused("repeat", error=ValueError):
        search.main(["--resume", "--out", str(out), "--repeat", "3"])


def test_a_combination_of_which_one_run_diverges_cannot_win(small_set, tmp_path):
    out = tmp_path / "out"
    search.main(flags(small_set, out, *GRID, "--repeat", 2, space="lr=0.1,1e30"))
    assert [row["status"] for row in groups(out)] == ["finished", "diverged"]
    assert groups(out)[1]["val_accuracy"] is None


# --- workers ----------------------------------------------------------------------------------


def wait_for_file(path):
    while not path.exists():
        time.sleep(0.01)
    return True


def die(*_):
    os._exit(9)


class DiesHalfWritten:
    """Its worker dies in the middle of a message."""

    def __reduce__(self):
        die()


def die_half_written():
    return bytes(10_000_000), DiesHalfWritten()


def die_once(trial, *rest):
    """In place of run_trial: the worker of the second trial dies the first time."""
    marker = pathlib.Path(os.environ["MARKER"])
    if trial["number"] == 2 and not marker.exists():
        marker.touch()
        die()
    return search.run_trial(trial, *rest)


def die_always(trial, *rest):
    return die() if trial["number"] == 2 else search.run_trial(trial, *rest)


def test_workers_have_one_thread_each(tmp_path, monkeypatch, processes):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with search.local_workers(1, tmp_path / "split", {}) as workers:
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
            assert workers["submit"](os.getenv, name).result() == "1"
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7" and "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("die", [die, die_half_written])
def test_death_of_one_worker_leaves_the_others_alone(tmp_path, die, processes):
    with search.local_workers(2, tmp_path / "split", {}) as workers:
        busy = workers["submit"](wait_for_file, tmp_path / "go")
        with pytest.raises(workers["lost"]):
            workers["submit"](die).result()
        assert workers["submit"](os.getpid).result() != os.getpid()
        (tmp_path / "go").touch()
        assert busy.result()


def test_the_last_row_of_a_trial_is_that_of_the_same_run(small_set, tmp_path):
    """Its training figures, too, are those of the moving average."""
    trials, datasets = search.make_trials(definition(dataset=str(small_set), ema=0.9, epochs=2), None, None)
    config = trials[0]["config"]
    sets = train.prepare(datasets[str(small_set)], config)
    row = search.run_trial(trials[0], None, 2, lambda: sets)[0]["rows"][-1]
    *_, (_, expected) = train.fit(train.init_state(sets, config), sets, config)
    assert {name: row[name] for name in search.FIGURES} == {name: expected[name] for name in search.FIGURES}


def test_epochs_that_are_searched_have_one_column(small_set, tmp_path, capsys):
    words = ["--dataset", small_set, "--out", tmp_path / "out", "--val-size", 12, "--strategy", "grid"]
    search.main([*map(str, words), "--space", "epochs=1,2"])
    header, *_ = (tmp_path / "out" / "trials.csv").read_text().splitlines()
    assert header.split(",").count("epochs") == 1
    assert sorted(row["epochs"] for row in table(tmp_path / "out")) == [1, 2]
    assert capsys.readouterr().out.splitlines()[4].split().count("epochs") == 1  # the ranking's heading


def test_images_are_mapped_not_copied(small_set, tmp_path, processes):
    (trial, *_), datasets = search.make_trials(definition(dataset=str(small_set)), None, None)
    with search.local_workers(1, tmp_path / "split", datasets) as workers:
        source = workers["source"](trial["config"])
        mapped, again = source(), workers["source"](trial["config"])()
        expected = train.prepare(datasets[str(small_set)], trial["config"], ("train", "val"))
        assert mapped.keys() == expected.keys() and mapped["steps"] == expected["steps"]
        for part in ("train", "val"):
            for name, array in expected[part].items():
                assert (mapped[part][name] == array).all() and mapped[part][name].dtype == array.dtype
                assert is_mapped(mapped[part][name]) and is_mapped(again[part][name])
        assert len(list((tmp_path / "split").iterdir())) == 1
        del mapped, again
    assert not (tmp_path / "split").exists()


def is_mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.obj if isinstance(array, memoryview) else array.base
    return array is not None


@pytest.mark.parametrize("worker, statuses", [(die_once, {"finished"}), (die_always, {"finished", "failed"})])
def test_search_survives_dead_workers(done, tmp_path, monkeypatch, worker, statuses, processes):
    folder, out = done
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    (tmp_path / "out").mkdir()
    trials, datasets = search.make_trials(definition(dataset=str(folder), epochs=3, trials=5), None, None)
    monkeypatch.setattr(search, "run_trial", worker)
    names = ["lr", "weight_decay", "hidden"]
    with search.local_workers(2, tmp_path / "split", datasets) as workers:
        search.run_search(trials, [(5, None)], workers, tmp_path / "out", names, print)
    rows, expected = table(tmp_path / "out"), table(out)
    assert {row["status"] for row in rows} == statuses
    if "failed" in statuses:
        assert rows.pop()["trial"] == 2
        expected = [row for row in expected if row["trial"] != 2]
    assert rows == expected


CTRL_C_ALL_THE_WHILE = """
import os, pathlib, signal, sys, threading, time, search
signal.signal(signal.SIGINT, lambda *_: None)
start, is_there = search.start_process, threading.Event()
def start_and_say_so():
    process = start()
    is_there.set()  # before that, for a moment, it is in this process's group
    return process
search.start_process = start_and_say_so
with search.local_workers(1, pathlib.Path(sys.argv[1]), {}) as workers:
    answers = [workers["submit"](sum, [1, 2]), workers["submit"](time.sleep, 1)]
    is_there.wait()
    while not answers[1].done():  # from the first moment of the worker's interpreter on
        os.killpg(0, signal.SIGINT)
        time.sleep(0.001)
    print([answer.result() for answer in answers])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups")
def test_ctrl_c_does_not_disturb_what_a_worker_does(tmp_path):
    code = [sys.executable, "-c", CTRL_C_ALL_THE_WHILE, tmp_path / "split"]
    process = subprocess.run(
        code, cwd=ROOT, capture_output=True, text=True, timeout=HANG, start_new_session=True
    )
    assert (process.stdout, process.stderr) == ("[3, None]\n", "")


PARENT = """
import os, pathlib, sys, time, search
if __name__ == "__main__":
    with search.local_workers(2, pathlib.Path(sys.argv[1]), {}) as workers:
        for answer in [workers["submit"](os.getpid) for _ in range(9)]:
            answer.result()
        busy = [workers["submit"](time.sleep, 3600) for _ in range(2)]
        print("busy", flush=True)
        time.sleep(3600)
"""


def test_workers_end_with_their_parent_even_in_the_middle_of_a_call(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "parent.py").write_text(PARENT)
    with started(tmp_path / "parent.py", tmp_path / "split") as process:
        assert process.stdout.readline() == "busy\n"
        assert len(living(process)) == 3
        process.kill()
        wait_until_gone(process)


OWN_SCRIPT = """
import pathlib, sys, nn, search

nn.ACTIVATIONS["mine"] = nn.ACTIVATIONS["relu"]

def known():
    print("on standard output", flush=True)
    return "mine" in nn.ACTIVATIONS

if __name__ == "__main__":
    with search.local_workers(1, pathlib.Path(sys.argv[1]), {}) as workers:
        print(workers["submit"](known).result())
"""


def test_workers_know_the_script_they_work_for_and_no_module_of_the_folder_they_are_in(tmp_path):
    """It may have an activation of its own; a file there may have the name of one of ours."""
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "own.py").write_text(OWN_SCRIPT)
    for name in ("data.py", "search.py", "queue.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        [sys.executable, "script/own.py", "split"], capture_output=True, text=True, timeout=HANG,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "on standard output\n")


def test_search_does_not_import_matplotlib_or_dask():
    code = "import sys, search; print({'matplotlib', 'distributed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_lines_of_a_search_of_many_settings_fit_a_terminal():
    names = ["lr", "weight_decay", "hidden", "label_smoothing", "class_weight", "preprocess"]
    trials = [as_trial(number, 0.9) for number in range(1, 4)]
    for trial in trials:
        trial["rows"][-1]["val_loss"] = 0.1
        trial["config"] |= dict.fromkeys(names, "balanced")
    ranked = search.ranking(trials)
    table = search.ranking_text(ranked, search.compare(ranked), names).split("\n")
    lines = [search.trial_line(trial, trials, names, "1/3") for trial in trials]
    assert len(table) == 4 and max(map(len, table + lines)) <= 79
    few = search.ranking_text(ranked, search.compare(ranked), names[1:4]).split("\n")
    assert all(name in few[0] for name in names[1:4])  # rather than more figures
    assert "weight_decay" in table[0] and all("..." in line for line in [table[0], *lines])
    assert "..." not in search.trial_line(trials[0], trials, ["lr"], "1/3")


def test_live_line_tells_done_running_best_and_time_left():
    line = search.live_line([as_trial(7, 0.9791)], "1/5", 2, None, 240)
    assert line == "1/5 trials done  2 running  best 97.91% (trial 7)  0:04:00 left"


def test_words_in_tables_are_read_as_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,c\n512x256,3,\nrelu,0.5,--1\n")
    assert data.load_rows(path, words=True) == [
        {"a": "512x256", "b": 3, "c": None},
        {"a": "relu", "b": 0.5, "c": "--1"},
    ]
    with refused("table.csv", error=ValueError):
        data.load_rows(path)


# --- a cluster --------------------------------------------------------------------------------

needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="needs Dask: pip install distributed"
)


def test_without_dask_the_error_says_what_to_install(small_set, tmp_path):
    (tmp_path / "distributed.py").write_text("raise ModuleNotFoundError")
    done = run_apart(
        *("search.py", *flags(small_set, tmp_path / "out", "--scheduler", "tcp://127.0.0.1:1")),
        check=2,
        PYTHONPATH=str(tmp_path),
    )
    assert is_one_clear_line(done.stderr, "pip install distributed")


@pytest.fixture
def cluster(tmp_path):
    """``(address, scheduler, workers)``: two workers of one thread, all processes of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*free.getsockname())
    host, port = address.split(":")
    folder = tmp_path / "cluster"
    folder.mkdir()
    processes = [dask(folder, "scheduler", "--host", host, "--port", port)]
    try:
        processes += [add_worker(folder, address, name) for name in range(2)]
        yield f"tcp://{address}", processes[0], processes[1:]
    finally:
        for process in processes:
            kill(process)


def dask(folder, *arguments):
    words = [sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def add_worker(folder, address, name):
    address = address.removeprefix("tcp://")
    return dask(folder, "worker", address, "--name", name, "--nthreads", 1, "--local-directory", folder)


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


ENDLESS_SPACE, SHORT_SPACE = (f"epochs=2,3,{last} hidden=3" for last in (ENDLESS, 4))


def grid(folder, out, *more, space=ENDLESS_SPACE):
    """Flags of a search of three trials, of which the last ends only when it is stopped."""
    words = ["--dataset", folder, "--out", out, "--val-size", 12, "--strategy", "grid"]
    return [*words, "--space", *space.split(), *more]


NAME_BUSY_WORKERS = """
import sys, time, distributed
with distributed.Client(sys.argv[1]) as client:
    while True:  # whenever the only trial that is running has come to another worker
        names = {at: worker["name"] for at, worker in client.scheduler_info()["workers"].items()}
        print(*(names[at] for at, tasks in client.processing().items() if tasks and at in names), flush=True)
        time.sleep(0.02)
"""


@needs_dask
def test_cluster_worker_without_the_data_says_so(small_set, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(small_set.parent)
    relative = flags("small", tmp_path / "out", "--scheduler", cluster[0])
    assert is_one_clear_line(run_apart("search.py", *relative, check=2).stderr, "small")


@needs_dask
def test_cluster_search_is_interrupted_and_resumed_though_a_worker_dies(small_set, cluster, tmp_path):
    address, _, workers = cluster
    out, whole = tmp_path / "out", tmp_path / "whole"
    with started("search.py", *grid(small_set, out, "--scheduler", address)) as process:
        wait_until(lambda: (out / "trials.csv").exists() and len(rows_of(out / "trials.csv")) == 2, process)
        code = [sys.executable, "-c", NAME_BUSY_WORKERS, address]
        with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as watcher:
            names = map(str.split, watcher.stdout)
            (first,) = next(found for found in names if found)
            kill(workers[int(first)])
            next(found for found in names if found and found != [first])  # the other one does it now
            watcher.kill()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 143 and is_one_clear_line(err, "--resume"), err
    for worker in workers:  # a thread that works on a trial cannot be stopped
        kill(worker)
    (out / "search.json").write_text((out / "search.json").read_text().replace(ENDLESS_SPACE, SHORT_SPACE))
    another = add_worker(tmp_path / "cluster", address, 2)
    try:
        run("search.py", "--resume", "--out", out, "--scheduler", address)
    finally:
        kill(another)
    run("search.py", *grid(small_set, whole, space=SHORT_SPACE))
    assert table(out) == table(whole)
    check_same_params(out, whole, *(f"trials/00{number}" for number in (1, 2, 3)))


@needs_dask
def test_cluster_whose_scheduler_dies_gives_one_clear_line(small_set, cluster, tmp_path):
    with started("search.py", *grid(small_set, tmp_path / "out", "--scheduler", cluster[0])) as process:
        wait_until((tmp_path / "out" / "trials.csv").exists, process)
        kill(cluster[1])
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 2 and is_one_clear_line(err, cluster[0], "--resume"), err
