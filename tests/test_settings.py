"""Nonsense settings, too little memory, and data sets at the edges of what there can be."""

import json
import os
import sys

import numpy as np
import pytest
from conftest import is_one_clear_line, run, run_apart, run_code, write_dataset
from faults import CLEAR, EDGE_SETS, ODD_VALUES, WORDS, call, call_refused, make_set, time_limit
from PIL import Image

import data
import test as judging
import train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("tiny") / "set", train=9, test=4)


def is_refused(name, value):
    """Whether a setting alone is refused; the error must be clear and name its flag."""
    try:
        train.check_settings({name: value})
        return False
    except ValueError as error:
        assert train.flag(name) in str(error) and len(str(error)) < 300, str(error)
        return True


def use(settings, dataset):
    """Two epochs with settings that were accepted: they end well or with one clear error."""
    config = train.check_settings({"hidden": [3], "val_size": 2, "batch_size": 4, **settings})
    with time_limit():
        try:
            images = dataset["train_images"]
            train.check_memory(config, *images.shape, len(dataset["class_names"]))
            prepared = train.prepare(dataset, config)
            state = train.init_state(prepared, config)
            for _ in range(2):
                state, row = train.train_epoch(state, prepared, config)
        except CLEAR as error:
            assert is_one_clear_line(f"{error}\n"), error
            return str(error)
    assert all(np.isfinite(value) for value in row.values() if value is not None)
    return None


@pytest.mark.parametrize("name", train.SETTINGS)
def test_every_setting_takes_or_refuses_every_value(tiny, name):
    dataset, accepted = data.load_dataset(str(tiny)), 0
    for value in [train.DEFAULTS[name], *WORDS, *ODD_VALUES, *([word] for word in WORDS)]:
        if not is_refused(name, value):
            accepted += 1
            if name not in ("epochs", "dataset", "patience", "nesterov", "lr_decay"):
                use({name: value}, dataset)
    assert accepted


@pytest.mark.parametrize("name", train.SETTINGS)
def test_nonsense_on_the_command_line_is_refused_before_the_data_is_loaded(name, tmp_path, monkeypatch):
    def load(*_, **__):
        raise FileNotFoundError("the data is loaded")

    monkeypatch.setattr(train.data, "load_dataset", load)
    for value in WORDS:
        status, _, err = call(train.main, train.flag(name), value, "--out", tmp_path / "out")
        assert status == 2 and is_one_clear_line(err), (value, err)
        plain = not value.startswith("-")
        if plain and name not in ("nesterov", "transpose") and is_refused(name, value):
            assert train.flag(name) in err and "is loaded" not in err, (value, err)


@pytest.mark.parametrize("count", [150, pytest.param(700, marks=pytest.mark.extended)])
def test_extreme_settings_together(tiny, count):
    rng, dataset = np.random.default_rng(count), data.load_dataset(str(tiny))
    extremes = {
        "hidden": [[0], [1], [9, 1], [2] * 40], "lr": [1e-320, 1e-3, 1.0, 1e10, 1e38, 1e308],
        "lr_decay": [0.0, 1e-320, 0.5, 1e3, 1e308], "lr_step": [1, 10**30], "momentum": [0.0, 0.5, 1 - 1e-16],
        "weight_decay": [0.0, 1e-320, 1.0, 1e38, 1e308], "dropout": [0.0, 0.5, 1 - 1e-16],
        "batch_size": [1, 3, 10**30], "val_size": [0, 1, 8], "train_size": [None, 1, 7],
        "seed": [0, 2**63], "split_seed": [None, 0, 2**63],
        "preprocess": [[], ["center"], ["standardize"], ["standardize", "center", "scale"], ["hog:99"]],
        "nesterov": [False, True], "patience": [0, 10**30], "min_delta": [0.0, 1.0], "epochs": [1, 10**300],
        "activation": list(train.nn.ACTIVATIONS), "loss": list(train.nn.LOSSES),
        "init": list(train.nn.INIT_NAMES), "lr_schedule": list(train.LR_SCHEDULES),
        "dtype": list(train.DTYPES), "warmup": [0.0, 1e-320, 0.5, 1e300], "input_dropout": [0.0, 0.5],
        "max_norm": [0.0, 1e-30, 1.0, 1e30], "clip_norm": [0.0, 1e-30, 1e30], "eps": [1e-30, 1e-8, 1e30],
        "class_weight": [[], ["balanced"], [0, 1e30, 1e-30], [1, 2, 3]], "optimizer": list(train.OPTIMIZERS),
        "label_smoothing": [0.0, 0.1, 1 - 1e-16],
        "ema": [0.0, 0.5, 1 - 1e-16], "augment": [[], ["affine"], ["elastic", "flip"]],
        "max_shift": [0.0, 3.0, 1e6], "bend": [0.0, 1e6], "smooth": [1e-3, 1.0, 1e6],
        "holdout": list(data.HOLDOUTS), "adversarial": [0.0, 1e-320, 1.0],
    }  # fmt: skip
    good = 0
    for _ in range(count):
        settings = {name: values[rng.integers(len(values))] for name, values in extremes.items()}
        try:
            good += use(settings, dataset) is None
        except ValueError as error:  # a contradiction
            assert str(error).startswith("--")
    assert 0 < good < count


def test_sizes_against_the_data(tiny, tmp_path):
    base = ["--dataset", tiny, "--out", tmp_path, "--hidden", 3, "--epochs", 1, "--quiet"]
    assert call(train.main, *base, "--val-size", 2, "--batch-size", 10**12)[0] == 0, "one batch of all images"
    for more in (["--val-size", 9], ["--val-size", 10**12], ["--train-size", 8, "--val-size", 2]):
        call_refused(train.main, *base, *more, names=["9"])


@pytest.mark.parametrize(
    "content, names",
    [
        ({"hiden": 3}, ["hiden", "hidden"]),
        ({"--lr": 3}, ["--lr"]),
        ({"momentum": 0.5, "Momentum": 0.5}, ["Momentum"]),
        ({"nesterov": True}, ["--nesterov", "--momentum"]),
        ({"lr": [0.1, 0.2]}, ["--lr"]),
        (["lr"], ["c.json"]),
        (3, ["c.json"]),
    ],
)
def test_config_files_are_checked_like_flags(tmp_path, content, names):
    (tmp_path / "c.json").write_text(json.dumps(content))
    call_refused(train.main, "--config", tmp_path / "c.json", "--out", tmp_path / "out", names=names)
    assert not (tmp_path / "out").exists()


def test_resume_with_fewer_epochs_than_there_are_is_refused(tiny, tmp_path):
    base = ["--dataset", tiny, "--out", tmp_path, "--val-size", 2, "--hidden", 3]
    assert call(train.main, *base, "--epochs", 3)[0] == 0
    call_refused(train.main, *base, "--resume", "--epochs", 2, names=["--epochs", "3"])
    assert call(train.main, *base, "--resume", "--epochs", 3)[0] == 0


def test_large_whole_numbers_are_exact():
    assert train.check_settings({"seed": str(2**53 + 1)})["seed"] == 2**53 + 1


# --- memory -----------------------------------------------------------------------------------


def test_a_hidden_layer_of_a_million_is_refused_before_the_data_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "available_memory", lambda: 4e9)
    monkeypatch.setattr(train.data, "load_dataset", None)
    base = ["--dataset", "mnist", "--out", tmp_path]
    call_refused(train.main, *base, "--hidden", 10**6, names=["--hidden", "4.0 GB"])


def test_a_network_too_large_for_its_data_is_refused_before_it_is_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "available_memory", lambda: 1e6)
    monkeypatch.setattr(train, "init_state", None)
    base = ["--dataset", tiny, "--out", tmp_path, "--val-size", 2]
    call_refused(train.main, *base, "--hidden", 10**4, names=["--hidden"])


@pytest.mark.parametrize(
    "script, flags, names",
    [
        ("train.py", ["--hidden", 10**9, 10**9], ["--hidden"]),
        ("train.py", ["--size", "14x14"], ["--size", "28x28"]),
        ("train.py", ["--val-size", 1.5], ["--val-size", "share"]),
        ("train.py", ["--class-weight", "blanced"], ["--class-weight", "balanced"]),
        ("search.py", ["--space", "lr"], ["--space lr", "lr="]),
    ],
)
def test_a_refusal_says_what_would_do(tmp_path, script, flags, names):
    done = run(script, *flags, "--out", tmp_path, "--dataset", "mnist", check=2)
    assert is_one_clear_line(done.stderr, *names)


def test_pictures_of_one_folder_have_no_classes(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "x.png")
    done = run("train.py", "--dataset", tmp_path, "--out", tmp_path / "run", check=2)
    assert is_one_clear_line(done.stderr, "a folder for each class")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process to a size")
def test_memory_that_runs_out_all_the_same_is_one_clear_line(tiny, tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(train, "available_memory", lambda: None)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, before[1]))
    try:
        base = ["--dataset", tiny, "--val-size", 2, "--out", tmp_path]
        call_refused(train.main, *base, "--hidden", 40_000, 40_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


TRAIN_AND_MEASURE = """
import sys, train
from faults import peak_memory

before = peak_memory() and peak_memory()  # the first sets the peak back
train.main(sys.argv[1:])
print(peak_memory() - before)
"""


@pytest.mark.extended
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize(
    "flags",
    [[], ["--momentum", 0.9], ["--ema", 0.9], ["--momentum", 0.9, "--ema", 0.9], ["--dropout", 0.5]],
    ids=lambda flags: "+".join(map(str, flags)) or "plain",
)
def test_a_run_needs_the_memory_that_is_estimated(tmp_path, monkeypatch, flags):
    folder = write_dataset(tmp_path / "set", train=200, test=50, shape=(28, 28))
    given = ["--dataset", folder, "--out", tmp_path / "run", "--hidden", 4000, "--val-size", 40]
    given += ["--lr", 0.001, "--epochs", 4, "--quiet", *flags]
    # every large array by itself: no gaps between them, whose size is another on every machine
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    done = run_code(TRAIN_AND_MEASURE, *given)
    config = data.load_json(tmp_path / "run" / "config.json")
    held = int(done.stdout.splitlines()[-1])
    assert 1 <= train.memory_needed(config, 250, 784, 3) / held < 5, "it is an upper bound"


def test_the_memory_there_is():
    free = train.available_memory()
    assert free is None or 1e6 < free < 1e15


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", train.DTYPES)
@pytest.mark.parametrize("steps", ["scale", "scale+center+standardize"])
@pytest.mark.parametrize("name", EDGE_SETS)
def test_data_sets_at_the_edge_are_trained_and_judged(tmp_path, name, steps, dtype):
    folder = make_set(tmp_path / "set", *EDGE_SETS[name])
    val_size = 0 if name == "one image" else 2
    flags = ["--dataset", folder, "--out", tmp_path / "run", "--dtype", dtype, "--preprocess", steps]
    flags += ["--epochs", 2, "--val-size", val_size, "--hidden", 3, "--lr", 0.01, "--quiet"]
    status, _, err = call(train.main, *flags)
    assert (status, err) == (0, "")
    assert call(train.main, *flags[:-7], "--resume", "--epochs", 3, "--lr", 0.01)[0] == 0
    status, out, err = call(judging.main, tmp_path / "run")
    assert (status, err) == (0, "") and "accuracy" in out


@pytest.mark.parametrize("loss", train.nn.LOSSES)
@pytest.mark.parametrize("activation", train.nn.ACTIVATIONS)
def test_a_run_that_diverges_says_so_and_leaves_no_nan(tiny, tmp_path, activation, loss):
    for number, lr in enumerate(["1e3", "1e19", "1e38", "1e300"]):
        out = tmp_path / str(number)
        flags = ["--dataset", tiny, "--out", out, "--val-size", 2, "--lr", lr, "--loss", loss, "--epochs", 9]
        for dtype in train.DTYPES:
            status, _, err = call(train.main, *flags, "--activation", activation, "--dtype", dtype, "--quiet")
            assert (status, err) == (0, "") or (status == 2 and is_one_clear_line(err, "--lr")), err

            def refuse(name):
                raise AssertionError(f"config.json holds {name}")

            json.loads((out / "config.json").read_text(), parse_constant=refuse)


def test_a_run_with_warnings_as_errors(tiny, tmp_path):
    flags = ["--dataset", tiny, "--val-size", 2, "--epochs", 2, "--out", tmp_path]
    assert run_apart("train.py", *flags, PYTHONWARNINGS="error").stderr == ""
    assert run_apart("test.py", tmp_path, PYTHONWARNINGS="error").stderr == ""


def test_params_too_large_to_judge_are_one_clear_error(tiny, tmp_path):
    assert call(train.main, "--dataset", tiny, "--val-size", 2, "--epochs", 1, "--out", tmp_path)[0] == 0
    params, config = data.load_run(tmp_path)
    train.nn.save_params(
        tmp_path / "params.pkl", {k: np.full_like(w, 3e38) for k, w in params.items()}, config
    )
    call_refused(judging.main, tmp_path)
