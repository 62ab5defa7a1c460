import json
import os

import numpy as np
import pytest
from conftest import is_one_clear_line, refused, rows_of, run, run_apart, write_dataset

import data
import nn
import train

SMALL = ("--val-size", 12, "--batch-size", 16, "--hidden", 7, "--quiet")


def small_run(folder, **settings):
    """Config and prepared data of a run on a folder's data set."""
    given = {"dataset": str(folder), "hidden": [7], "val_size": 12, "batch_size": 16, "epochs": 5, **settings}
    config = train.check_settings(given)
    return config, train.prepare(data.load_dataset(config["dataset"]), config)


def pictures(sets, part):
    """The images (n, d) of a part of the sets, with their columns where they were, and its labels."""
    images = sets[part]["images"]
    natural = slice(None) if sets["columns"] is None else np.argsort(sets["columns"])
    return images[:, natural], sets[part]["labels"]


def fit(state, sets, config, rows=()):
    """The last state of a training, and all rows."""
    rows = list(rows)
    for after, row in train.fit(state, sets, config, rows):
        state, rows = after, [*rows, row]
    return state, rows


def history(out):
    return rows_of(out / "history.csv")


# --- the fold ---------------------------------------------------------------------------------


def epoch_of_core_functions(state, prepared, config):
    """Params after the first epoch; the images of a batch are sorted by ink, as products like them."""
    rng = np.random.default_rng([config["seed"], 1])
    images, labels = pictures(prepared, "train")
    order, size = rng.permutation(len(images)), config["batch_size"]
    params, velocity = state["params"], state["velocity"]
    for start in range(0, len(images), size):
        rows = order[start : start + size]
        rows = rows[np.argsort(prepared["train"]["inked"][rows], kind="stable")]
        x = data.preprocess(images[rows], prepared["steps"], params["W1"].dtype)
        _, cache = nn.forward(params, x, config["activation"], config["dropout"], rng)
        grads = nn.backward(params, cache, labels[rows], config["loss"])
        optimiser = (config["lr"], config["momentum"], config["nesterov"], config["weight_decay"])
        params, velocity = nn.sgd_step(params, grads, velocity, *optimiser)
        if config["max_norm"]:
            params = nn.limit_norms(params, config["max_norm"])
    return params, velocity


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "activation": "tanh", "hidden": [6, 5]},
        {"hidden": [], "loss": "mse", "lr": 0.01},
        {"dropout": 0.3, "dtype": "float64", "preprocess": ["scale", "center", "standardize"]},
        {"weight_decay": 0.0},
        {"weight_decay": 1.5, "lr": 0.1, "epochs": 9},  # halves W1 in a few steps
        {"weight_decay": 8.0, "lr": 0.1},  # and within one
        {"momentum": 0.5, "batch_size": 1, "lr": 0.01},  # 48 steps: the factor of the velocity gets small
        {"momentum": 0.5, "batch_size": 1, "lr": 0.01, "weight_decay": 4.5},  # that of W1 as well
        {"momentum": 0.7, "batch_size": 1, "lr": 0.01, "weight_decay": 2.5, "dtype": "float64", "hidden": []},
        {"momentum": 0.9, "lr": 0.01, "weight_decay": 4.5},  # too fast to be deferred
        {"momentum": 0.9, "max_norm": 1.0, "weight_decay": 0.0},
        *(
            {"activation": activation, "loss": loss, "hidden": hidden, "lr": 0.02, **optimiser}
            for activation in nn.ACTIVATIONS
            for loss in nn.LOSSES
            for hidden in ([], [7], [6, 5])
            for optimiser in (
                {},
                {"dropout": 0.3, "dtype": "float64"},
                {"momentum": 0.9, "dropout": 0.3},
                {"momentum": 0.9, "nesterov": True},
            )
        ),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_an_epoch_is_the_core_functions_in_a_row(small_set, settings):
    config, prepared = small_run(small_set, **{"weight_decay": 0.01, **settings})
    state = train.init_state(prepared, config)
    before = {key: w.copy() for key, w in state["params"].items()}
    new, row = train.train_epoch(state, prepared, config)
    again, same_row = train.train_epoch(state, prepared, config)

    dtype = train.DTYPES[config["dtype"]]
    params, velocity = epoch_of_core_functions(state, prepared, config)
    # the products leave out blank columns, lr is multiplied in earlier, and W1 decays as a factor
    # that is multiplied in at the end: the last bits may differ
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for key in params:
        np.testing.assert_allclose(new["params"][key], params[key], rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(again["params"][key], new["params"][key])
        np.testing.assert_array_equal(state["params"][key], before[key])
        assert new["params"][key].dtype == dtype
        if config["momentum"]:
            np.testing.assert_allclose(new["velocity"][key], velocity[key], rtol=tolerance, atol=tolerance)
            assert new["velocity"][key].dtype == dtype
    assert {**row, "seconds": 0} == {**same_row, "seconds": 0}
    assert list(row) == train.COLUMNS and row["epoch"] == 1 and row["lr"] == config["lr"]


@pytest.mark.parametrize(
    "settings", [{}, {"hidden": []}, {"hidden": [6, 5], "dropout": 0.3}, {"momentum": 0.9}]
)
def test_a_blank_corner_is_left_out_of_the_products(tmp_path, monkeypatch, settings):
    folder = write_dataset(tmp_path / "set", train=260, shape=(8, 8))
    config, prepared = small_run(folder, batch_size=124, weight_decay=0.01, **settings)
    images, _ = pictures(prepared, "train")
    images[np.arange(len(images)) % 8 > 0, 32:] = 0
    prepared |= data.sort_pixels(images)
    prepared["train"] |= {"images": prepared["images"], "inked": prepared["inked"]}
    state = train.init_state(prepared, config)
    corners, forward = [], nn.forward
    monkeypatch.setattr(nn, "forward", lambda *a, **b: corners.append(b.get("blank")) or forward(*a, **b))
    new, _ = train.train_epoch(state, prepared, config)
    assert corners[:2] == [(93, 32), (93, 32)]
    for key, w in epoch_of_core_functions(state, prepared, config)[0].items():
        np.testing.assert_allclose(new["params"][key], w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_an_epoch_with_another_optimiser_is_the_core_functions_in_a_row(small_set, optimizer, clip_norm):
    config, prepared = small_run(small_set, optimizer=optimizer, clip_norm=clip_norm, weight_decay=0.1)
    state = train.init_state(prepared, config)
    new, _ = train.train_epoch(state, prepared, config)
    params, moments, options = state["params"], None, train.OPTIMIZERS[optimizer][1]
    images, labels = pictures(prepared, "train")
    order = np.random.default_rng([config["seed"], 1]).permutation(len(images))
    for rows in np.split(order, range(16, len(images), 16)):
        _, cache = nn.forward(params, images[rows] / 255)
        grads = nn.backward(params, cache, labels[rows])
        grads = nn.clip_norm(grads, clip_norm) if clip_norm else grads
        settings = {name: config[name] for name in options}
        params, moments = getattr(nn, f"{optimizer}_step")(params, grads, moments, 0.001, **settings)
    for key in params:
        np.testing.assert_allclose(new["params"][key], params[key], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(new["velocity"]["v"][key], moments["v"][key], rtol=1e-4, atol=1e-7)


def test_lr_without_a_flag_is_the_optimisers_own():
    for optimizer, lr in [(n, o[-1]) for n, o in train.OPTIMIZERS.items()]:
        assert train.check_settings({"optimizer": optimizer})["lr"] == lr
    saved = train.check_settings({"optimizer": "adam"})
    assert train.check_settings(train.changed(saved, {"optimizer": "sgd"}))["lr"] == 0.2475
    with pytest.raises(ValueError, match="--momentum"):
        train.check_settings({"optimizer": "adam", "momentum": 0.9})


def test_a_run_with_adam_is_resumed_with_the_same_bits(small_set, tmp_path):
    given = ("--dataset", small_set, "--optimizer", "adam", *SMALL)
    run("train.py", *given, "--epochs", 4, "--out", tmp_path / "whole")
    run("train.py", *given, "--epochs", 2, "--out", tmp_path / "halves")
    run("train.py", "--out", tmp_path / "halves", "--resume", "--epochs", 4)
    for file in ("params.pkl", "last.pkl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "halves" / file).read_bytes()


def test_rows_hold_the_loss_and_accuracy_of_each_part(small_set):
    config, prepared = small_run(small_set)
    state, row = train.train_epoch(train.init_state(prepared, config), prepared, config)
    for part in ("train", "val", "test"):
        images, labels = pictures(prepared, part)
        outputs, _ = nn.forward(state["params"], images / 255)
        assert row[f"{part}_loss"] == pytest.approx(nn.loss(state["params"], outputs, labels), rel=1e-4)
        assert row[f"{part}_accuracy"] == np.mean(outputs.argmax(axis=1) == labels)


def test_fit_learns_and_keeps_the_best_epoch(small_set):
    config, prepared = small_run(small_set, epochs=30, lr=0.05)
    state, rows = fit(train.init_state(prepared, config), prepared, config)
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    accuracies = [row["val_accuracy"] for row in rows]
    assert max(accuracies) > 0.9
    assert state["best"]["epoch"] == 1 + accuracies.index(max(accuracies))
    images, labels = pictures(prepared, "val")
    outputs, _ = nn.forward(state["best"]["params"], images / 255)
    assert nn.accuracy(outputs, labels) == max(accuracies)


def test_without_validation_the_last_epoch_is_kept(small_set):
    config, prepared = small_run(small_set, val_size=0)
    state, rows = fit(train.init_state(prepared, config), prepared, config)
    assert state["best"]["epoch"] == 5 and state["best"]["params"] is state["params"]
    assert rows[0]["val_loss"] is None and rows[0]["val_accuracy"] is None


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"optimizer": "adam"}, {"optimizer": "rmsprop"}])
def test_folding_on_gives_the_bits_of_an_unbroken_run(small_set, optimizer):
    config, prepared = small_run(small_set, dropout=0.2, **optimizer)
    whole, rows = fit(train.init_state(prepared, config), prepared, config)
    half = fit(train.init_state(prepared, config), prepared, {**config, "epochs": 2})
    folded, more_rows = fit(half[0], prepared, config, half[1])
    for key in whole["params"]:
        np.testing.assert_array_equal(whole["params"][key], folded["params"][key])
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in more_rows]


def test_early_stopping_counts_epochs_without_a_gain():
    config = {"patience": 2, "min_delta": 0.01}

    def stops(*accuracies):
        return train.should_stop([{"val_accuracy": a} for a in accuracies], config)

    assert not stops(0.5) and not stops(0.5, 0.6, 0.605) and not stops(0.5, 0.505, 0.52, 0.52)
    assert stops(0.5, 0.6, 0.605, 0.609) and stops(0.5, 0.4, 0.5)
    assert not train.should_stop([{"val_accuracy": 0.5}] * 9, {**config, "patience": 0})


def test_fit_stops_early(small_set):
    config, prepared = small_run(small_set, epochs=50, lr=1e-9, patience=3)
    _, rows = fit(train.init_state(prepared, config), prepared, config)
    assert len(rows) == 4


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [1, 1, 1, 1]),
        ({"lr_schedule": "inverse", "lr_decay": 0.5}, [1, 1 / 1.5, 1 / 2, 1 / 2.5]),
        ({"lr_schedule": "exponential", "lr_decay": 0.9}, [1, 0.9, 0.81, 0.729]),
        ({"lr_schedule": "step", "lr_decay": 0.1, "lr_step": 2}, [1, 1, 0.1, 0.1]),
        ({"lr_schedule": "cosine", "epochs": 4}, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ({"lr_schedule": "linear", "epochs": 5}, [1, 0.8, 0.6, 0.4]),
        ({"warmup": 2}, [0, 0.5, 1, 1]),
        ({"warmup": 2.5, "lr_schedule": "linear", "epochs": 5}, [0, 0.8 * 0.4, 0.6 * 0.8, 0.4]),
    ],
)
def test_lr_schedules(settings, expected):
    config = train.check_settings({"lr": 1.0, **settings})
    assert [train.learning_rate(config, t) for t in range(4)] == pytest.approx(expected)


def test_cosine_linear_and_warmup_go_step_by_step_and_the_others_by_epochs():
    for settings, expected in (
        ({"lr_schedule": "cosine", "epochs": 4}, 0.5 * (1 + np.cos(np.pi * 2.5 / 4))),
        ({"lr_schedule": "linear", "epochs": 4}, 1.5 / 4),
        ({"warmup": 5}, 0.5),
        ({"lr_schedule": "inverse", "lr_decay": 0.5}, 1 / 2),
        ({"lr_schedule": "exponential", "lr_decay": 0.9}, 0.81),
        ({"lr_schedule": "step", "lr_step": 1, "lr_decay": 0.1}, 0.01),
    ):
        config = train.check_settings({"lr": 1.0, **settings})
        assert train.learning_rate(config, 2.5) == pytest.approx(expected)


def test_an_epoch_with_every_regulariser_is_their_functions_in_a_row(small_set):
    config, prepared = small_run(
        small_set, input_dropout=0.2, dropout=0.3, max_norm=0.8, label_smoothing=0.1, ema=0.6,
        preprocess=["deskew", "scale"], augment=["elastic", "flip"], lr_schedule="cosine", warmup=0.5,
        momentum=0.5, batch_size=16, dtype="float64",
    )  # fmt: skip
    state = train.init_state(prepared, config)
    images, labels = pictures(prepared, "train")
    params, velocity, mean = state["params"], state["velocity"], None
    how = data.make_augment(config["augment"], prepared["image_shape"])
    for epoch in (0, 1):
        state, _ = train.train_epoch(state, prepared, config)
        rng = np.random.default_rng([config["seed"], epoch + 1])
        order = train.batches_by_ink(rng.permutation(len(images)), prepared["train"]["inked"], 16)
        for start in range(0, len(images), 16):
            rows = order[start : start + 16]
            x = data.augment(images[rows], how, rng, np.empty((len(rows), images.shape[1])))
            x = x / 255 * nn.dropout_mask(x.shape, 0.2, rng, np.float64)
            _, cache = nn.forward(params, x, "relu", 0.3, rng)
            grads = nn.backward(params, cache, labels[rows], label_smoothing=0.1)
            lr = train.learning_rate(config, epoch + start / len(images))
            params, velocity = nn.sgd_step(params, grads, velocity, lr, 0.5, weight_decay=2.5e-7)
            params = nn.limit_norms(params, 0.8)
        mean = nn.average(params, mean or params, 0.6)
    for key in params:
        np.testing.assert_allclose(state["params"][key], params[key], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state["average"][key], mean[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"preprocess": ["standardize"], "weight_decay": 0.0}])
def test_half_of_each_batch_moves_against_the_network(small_set, settings):
    config, prepared = small_run(
        small_set, adversarial=0.05, input_dropout=0.2, batch_size=16, dtype="float64",
        **{"weight_decay": 0.01, **settings},
    )  # fmt: skip
    state = train.init_state(prepared, config)
    images, labels = pictures(prepared, "train")
    params, velocity, rng = state["params"], None, np.random.default_rng([config["seed"], 1])
    order, factor = rng.permutation(len(images)), data.affine_step(prepared["steps"])["factor"]
    for start in range(0, len(images), 16):
        rows = order[start : start + 16]
        x, y = data.to_numbers(images[rows], prepared["steps"], np.float64), labels[rows]
        half = len(rows) // 2
        x[half:] += 0.05 * 255 * factor * np.sign(nn.input_gradient(params, x[half:], y[half:]))
        x *= nn.dropout_mask(x.shape, 0.2, rng, np.float64)
        _, cache = nn.forward(params, x)
        grads = nn.backward(params, cache, y)
        params, velocity = nn.sgd_step(
            params, grads, velocity, config["lr"], weight_decay=config["weight_decay"]
        )
    state, _ = train.train_epoch(state, prepared, config)
    for key in params:
        np.testing.assert_allclose(state["params"][key], params[key], rtol=1e-10, atol=1e-12)


def test_the_moving_average_is_what_is_judged_and_kept(small_set, tmp_path):
    config, prepared = small_run(small_set, ema=0.9, epochs=3)
    state, rows = fit(train.init_state(prepared, config), prepared, config)
    best = state["best"]["params"]
    again = train.part_figures(state["average"], prepared, "val", config)
    assert again == {name: rows[-1][name] for name in ("val_loss", "val_accuracy")}
    assert any((best[key] != state["params"][key]).any() for key in best)


def test_a_row_has_the_lr_of_its_last_step(small_set):
    config, sets = small_run(small_set, warmup=2, lr=0.4)  # 48 images in steps of 16
    _, row = train.train_epoch(train.init_state(sets, config), sets, config)
    assert row["lr"] == pytest.approx(0.4 * (2 / 3) / 2)


def test_another_schedule_does_not_inherit_the_decay():
    saved = train.check_settings({"lr_schedule": "exponential"})
    assert train.check_settings(train.changed(saved, {"lr_schedule": "cosine"}))["lr_decay"] is None
    assert train.changed(saved, {"lr_schedule": "exponential", "lr": 2})["lr_decay"] == saved["lr_decay"]
    assert train.changed(saved, {"lr_schedule": "inverse", "lr_decay": 3})["lr_decay"] == 3
    assert train.changed({"lr_decay": 0.7}, {"lr_schedule": "step"})["lr_decay"] == 0.7


def test_the_last_images_can_be_held_out(small_set):
    _, prepared = small_run(small_set, holdout="last")
    dataset = data.load_dataset(str(small_set))
    np.testing.assert_array_equal(pictures(prepared, "val")[0], dataset["train_images"][-12:])
    np.testing.assert_array_equal(prepared["train"]["labels"], dataset["train_labels"][:-12])


def test_each_fold_is_held_out_by_one_run(small_set):
    dataset, seen = data.load_dataset(str(small_set)), []
    for fold in range(1, 5):
        config = train.check_settings({"dataset": str(small_set), "folds": 4, "fold": fold, "train_size": 42})
        sets = train.prepare(dataset, config)
        assert len(sets["val"]["labels"]) == train.run_config(config, dataset)["val_size"]
        assert len(sets["train"]["labels"]) + len(sets["val"]["labels"]) == 42
        rows = data.folds_of(dataset, config) == fold
        np.testing.assert_array_equal(pictures(sets, "val")[0], dataset["train_images"][rows])
        seen += np.flatnonzero(rows).tolist()
    assert len(set(seen)) == len(seen) == 42


@pytest.mark.parametrize(
    "words, name",
    [
        (["--folds", "1"], "--folds"),
        (["--folds", "61"], "--folds"),
        (["--folds", "2", "--fold", "3"], "--fold:"),
    ],
)
def test_folds_that_cannot_be_are_refused(small_set, tmp_path, words, name):
    done = run("train.py", "--dataset", small_set, "--out", tmp_path / "out", *words, check=2)
    assert is_one_clear_line(done.stderr, name) and not (tmp_path / "out").exists()


def test_divergence_names_epoch_and_step(small_set):
    config, prepared = small_run(small_set, lr=1e30)
    with refused("--lr", "epoch 1", "step", error=FloatingPointError):
        fit(train.init_state(prepared, config), prepared, config)


# --- settings ---------------------------------------------------------------------------------


def test_settings_are_completed_and_typed():
    config = train.check_settings({"hidden": "512x256", "lr": "1e-2", "batch_size": "32", "nesterov": False})
    assert config["hidden"] == [512, 256] and config["lr"] == 0.01 and config["batch_size"] == 32
    assert config["epochs"] == 50 and config["preprocess"] == ["scale"] and config["train_size"] is None
    assert train.check_settings(config) == config
    assert train.check_settings({"hidden": ["0"]})["hidden"] == []
    assert train.check_settings({"hidden": 0})["hidden"] == []
    assert train.check_settings({"hidden": []})["hidden"] == []


@pytest.mark.parametrize(
    "name, value, nearest",
    [
        *(("lr", value, "") for value in ("abc", 0, "nan", "inf", True)),
        ("momentum", 1, ""),
        ("dropout", -0.1, ""),
        ("batch_size", 0, ""),
        ("batch_size", 1.5, ""),
        ("epochs", "1e9x", ""),
        ("hidden", [5, 0], ""),
        ("hidden", ["-3"], ""),
        ("nesterov", "yes", ""),
        ("activation", "rleu", "relu"),
        ("loss", ["mse"], ""),
        ("preprocess", ["scale", "centre"], "center"),
        ("lr_schedule", "cosin", "cosine"),
        ("dtype", "float16", "float32"),
        ("dataset", "", ""),
        ("seed", -1, ""),
    ],
)
def test_bad_settings_are_named(name, value, nearest):
    with refused(train.flag(name), nearest, error=ValueError):
        train.check_settings({name: value})


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"nesterov": True}, "--nesterov"),
        ({"patience": 3, "val_size": 0}, "--patience"),
        ({"lr_decay": 0.1}, "--lr-decay"),
        ({"learning_rate": 1}, "learning_rate"),
    ],
)
def test_contradictions_and_unknown_settings_are_refused(settings, name):
    with refused(name, error=ValueError):
        train.check_settings(settings)


# --- the script -------------------------------------------------------------------------------


def test_a_run_leaves_its_files(small_set, tmp_path):
    out = tmp_path / "run"
    done = run("train.py", "--dataset", small_set, "--epochs", 3, "--out", out, *SMALL[:-1])
    assert all(word in done.stdout for word in ("small", "48", "12", "4x5", "20-7-3", "epoch 3/3", str(out)))
    assert done.stderr == "", "no progress line unless standard error is a terminal"
    assert sorted(os.listdir(out)) == [".lock", "config.json", "history.csv", "last.pkl", "params.pkl"]
    assert (out / "history.csv").read_text().startswith(",".join(train.COLUMNS))
    config = json.loads((out / "config.json").read_text())
    assert config["status"] == "finished" and config["lr"] == 0.2475 and config["seed"] == 0
    assert set(config["data"]["sha256"]) == set(data.FILES)
    assert config["versions"]["numpy"] == np.__version__
    assert config["result"]["last"] == data.load_rows(out / "history.csv")[-1]
    params, stored = data.load_run(out)
    assert nn.layer_sizes(params) == [20, 7, 3]
    assert stored["epoch"] == config["result"]["kept"]["epoch"]
    assert stored["steps"] == [{"name": "affine", "mean": 0.0, "factor": 1 / 255, "basis": None}]


def test_the_same_command_gives_the_same_bytes(small_set, tmp_path):
    for name in ("a", "b"):
        run_apart("train.py", "--dataset", small_set, "--epochs", 3, "--out", tmp_path / name, *SMALL)
    for file in ("params.pkl", "last.pkl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert history(tmp_path / "a") == history(tmp_path / "b")


def test_a_second_run_keeps_the_first(small_set, tmp_path):
    out = tmp_path / "run"
    for epochs in (3, 2):
        done = run("train.py", "--dataset", small_set, "--epochs", epochs, "--out", out, *SMALL[:-1])
    assert str(out / "previous-1") in done.stdout
    assert len(history(out)) == 2 and len(history(out / "previous-1")) == 3
    assert data.load_run(out / "previous-1")


def test_config_file_and_flags(small_set, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"lr": 0.05, "epochs": 2, "hidden": [4, 3]}))
    given = ("--dataset", small_set, "--config", tmp_path / "c.json", "--lr", 0.1, "--out", tmp_path)
    run("train.py", *given, *SMALL)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["lr"], config["epochs"], config["hidden"]) == (0.1, 2, [7])
    first = (tmp_path / "params.pkl").read_bytes()
    run("train.py", "--config", tmp_path / "config.json", "--out", tmp_path / "again", "--quiet")
    assert (tmp_path / "again" / "params.pkl").read_bytes() == first, "a config.json repeats its run"


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--lr", "abc"], ["--lr"]),
        (["--hiden", "5"], ["--hiden", "--hidden"]),
        (["--lr"], ["--lr"]),
        (["--dataset", "nowhere"], ["nowhere", "mnist"]),
        (["--dataset", "{set}", "--val-size", "60"], ["60"]),
        (["--dataset", "{set}", "--val-size", "2", "--lr", "1e30"], ["--lr"]),
        (
            ["--dataset", "{set}", "--val-size", "2", "--out", "{set}/" + data.FILES["test_labels"]],
            [data.FILES["test_labels"]],
        ),
        (["--config", "nothing.json"], ["nothing.json"]),
    ],
)
def test_bad_input_gives_one_clear_line_and_status_2(small_set, tmp_path, arguments, names):
    arguments = [a.replace("{set}", str(small_set)) for a in ["--out", str(tmp_path / "o"), *arguments]]
    done = run("train.py", *arguments, check=2)
    assert is_one_clear_line(done.stderr, "train.py: ", *names)


def test_a_run_that_diverges_keeps_what_was_best(small_set, tmp_path):
    # an lr that grows by the schedule: the first epochs are fine
    done = run(
        "train.py", "--dataset", small_set, "--out", tmp_path, *SMALL, "--lr", 0.001,
        "--lr-schedule", "exponential", "--lr-decay", 1e6, "--epochs", 30, check=2,
    )  # fmt: skip
    assert is_one_clear_line(done.stderr, "--lr")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["status"] == "diverged" and len(history(tmp_path)) == config["result"]["last"]["epoch"] > 0
    data.load_run(tmp_path)


def test_what_cannot_go_well_is_said(small_set, tmp_path):
    given = ("--dataset", small_set, *SMALL[:-1], "--epochs", 2, "--out", tmp_path)
    assert "note" not in run("train.py", *given, "--lr", 0.1, "--epochs", 20).stdout
    assert "no better than guessing" in run("train.py", *given, "--lr", 1e-9, "--seed", 3).stdout
    np.savez(tmp_path / "one.npz", X=np.eye(8, dtype=np.uint8).reshape(8, 2, 4), y=np.zeros(8, int))
    one = run("train.py", "--dataset", tmp_path / "one.npz", "--epochs", 1, "--out", tmp_path / "one")
    assert "guessing" not in one.stdout  # there is nothing to guess
    labels = tmp_path / "rare" / data.FILES["train_labels"]
    write_dataset(labels.parent)
    labels.write_bytes(data.idx_bytes(np.array([2] + [0, 1] * 29 + [1], np.uint8)))
    given = ("--dataset", labels.parent, *SMALL[:-1], "--val-size", 0, "--epochs", 1, "--out", tmp_path)
    done = run("train.py", *given)
    assert "few training images: 2 (1)" in done.stdout


def test_sorted_data_whose_last_images_are_held_out_are_noted(tmp_path):
    write_dataset(tmp_path / "sorted")
    path = tmp_path / "sorted" / data.FILES["train_labels"]
    path.write_bytes(data.idx_bytes(np.repeat(np.arange(3, dtype=np.uint8), 20)))
    given = ("--dataset", path.parent, *SMALL[:-1], "--epochs", 1, "--out", tmp_path / "run")
    shown = run("train.py", *given, "--holdout", "last").stdout
    notes = [line for line in shown.splitlines() if "note" in line]
    assert "0 (0), 1 (0)" in notes[0] and "validation" in notes[0] and "--holdout stratified" in notes[1]
    assert "few" not in run("train.py", *given).stdout


def test_runs_that_do_not_say_how_they_held_out_split_as_they_did(small_set, tmp_path):
    run("train.py", "--dataset", small_set, *SMALL, "--epochs", 2, "--holdout", "random", "--out", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    last = nn.load_checkpoint(tmp_path / "last.pkl")
    del config["holdout"], last["config"]["holdout"]
    data.save_json(tmp_path / "config.json", config)
    nn.save_params(tmp_path / "last.pkl", **last)
    assert train.load_last(tmp_path)[2]["holdout"] == "random"
    assert train.load_settings(tmp_path / "config.json")["holdout"] == "random"
    run("train.py", "--resume", "--epochs", 3, "--out", tmp_path)
    assert data.load_run(tmp_path)[1]["holdout"] == "random"


def test_class_weights_make_rare_classes_count(small_set, tmp_path):
    config, sets = small_run(small_set, class_weight="balanced")
    sets["train"]["labels"] = np.repeat(np.arange(3), [40, 6, 2])
    weights = train.class_weights(sets["train"]["labels"], sets["classes"], config)
    np.testing.assert_allclose(weights * [40, 6, 2], 16, rtol=1e-12)
    labels = sets["train"]["labels"]
    given = train.class_weights(labels, 3, train.check_settings({"class_weight": "1x2x4"}))
    np.testing.assert_allclose(given / given[0], [1, 2, 4])
    assert given @ [40, 6, 2] == pytest.approx(48)
    assert train.class_weights(labels, 3, train.check_settings({"class_weight": "none"})) is None
    refused = run(
        "train.py", "--dataset", small_set, "--class-weight", 1, 2, "--out", tmp_path, *SMALL, check=2
    )
    assert is_one_clear_line(refused.stderr, "--class-weight")


def test_an_epoch_with_class_weights_is_the_core_functions_in_a_row(small_set):
    config, sets = small_run(small_set, class_weight=["1", "2", "4"], batch_size=64)
    state = train.init_state(sets, config)
    images, labels = pictures(sets, "train")
    weights = train.class_weights(sets["train"]["labels"], sets["classes"], config)
    _, cache = nn.forward(state["params"], images / 255)
    grads = nn.backward(state["params"], cache, labels, class_weight=weights)
    params, _ = nn.sgd_step(state["params"], grads, None, config["lr"], weight_decay=2.5e-7)
    new, _ = train.train_epoch(state, sets, config)
    for key in params:
        np.testing.assert_allclose(new["params"][key], params[key], rtol=1e-4, atol=1e-6)


def test_a_run_that_stopped_early_goes_on_when_it_is_given_more(small_set, tmp_path):
    given = ("--dataset", small_set, "--lr", 1e-9, "--patience", 2, "--out", tmp_path, *SMALL[:-1])
    assert "stopped early" in run("train.py", *given, "--epochs", 20).stdout
    stopped = len(history(tmp_path))
    run("train.py", "--out", tmp_path, "--resume")
    assert len(history(tmp_path)) == stopped < 20
    run("train.py", "--out", tmp_path, "--resume", "--epochs", stopped + 1)
    assert len(history(tmp_path)) == stopped + 1
    run("train.py", "--out", tmp_path, "--resume", "--patience", 0, "--epochs", 12)
    assert len(history(tmp_path)) == 12


def test_the_same_data_elsewhere_is_the_same_data(small_set, tmp_path):
    run("train.py", "--dataset", small_set, "--out", tmp_path / "run", "--epochs", 1, *SMALL)
    small_set.rename(tmp_path / "moved")
    assert is_one_clear_line(run("train.py", "--resume", "--out", tmp_path / "run", check=2).stderr, "small")
    run("train.py", "--resume", "--out", tmp_path / "run", "--dataset", tmp_path / "moved", "--epochs", 2)
    assert len(history(tmp_path / "run")) == 2


@pytest.mark.parametrize("given, held_out", [(0.25, 15), ("0.1", 6), (7, 7), (0, 0), (1, 1)])
def test_validation_images_are_a_number_or_a_share(small_set, given, held_out):
    config, sets = small_run(small_set, val_size=given)
    assert len(sets["val"]["labels"]) == held_out
    config = train.run_config(config, data.load_dataset(config["dataset"]))
    assert config["val_size"] == held_out and type(config["val_size"]) is int


def test_a_folder_is_made_when_the_run_can_start_and_not_before(small_set, tmp_path):
    for given in (("--dataset", "nowhere"), ("--lr", "x"), ("--dataset", small_set, "--val-size", 60)):
        run("train.py", *given, "--out", tmp_path / "out", check=2)
        assert not (tmp_path / "out").exists()


# --- stopped and resumed ----------------------------------------------------------------------


def test_more_epochs_for_a_schedule_that_has_come_to_its_end_get_a_note(small_set, tmp_path):
    flags = ["--dataset", small_set, "--epochs", 2, "--lr-schedule", "cosine", *SMALL, "--out", tmp_path]
    assert not run("train.py", *flags).stderr
    resumed = run("train.py", "--resume", "--epochs", 4, "--out", tmp_path)
    assert is_one_clear_line(resumed.stderr, "note", "cosine", "4")


def test_resume_refuses_another_run_and_extends_its_own(small_set, tmp_path):
    def go(*more, check=0):
        return run("train.py", "--out", tmp_path / "run", *more, check=check)

    go("--dataset", small_set, "--epochs", 2, *SMALL)
    assert is_one_clear_line(go("--resume", "--lr", 0.1, check=2).stderr, "--lr", "0.2475")
    go("--resume", "--epochs", 4)
    assert len(history(tmp_path / "run")) == 4
    write_dataset(small_set, seed=5)
    assert is_one_clear_line(go("--resume", "--epochs", 5, check=2).stderr, "--dataset")


def test_flags_of_a_resumed_run_are_checked_beside_its_own_settings(small_set, tmp_path):
    given = ["--dataset", small_set, "--out", tmp_path, *SMALL[:-1], "--momentum", 0.5, "--nesterov"]
    run("train.py", *given, "--epochs", 1)
    run("train.py", "--out", tmp_path, "--resume", "--epochs", 2, "--nesterov")
    assert len(history(tmp_path)) == 2
    bad = run("train.py", "--out", tmp_path, "--resume", "--nesterof", check=2)
    assert is_one_clear_line(bad.stderr, "--nesterof", "--nesterov")


def test_resume_with_nothing_there_is_refused_and_names_the_runs_nearby(small_set, tmp_path):
    run("train.py", "--dataset", small_set, "--out", tmp_path / "there", "--epochs", 1, *SMALL)
    for out in (tmp_path, tmp_path / "here"):
        refused = run("train.py", "--out", out, "--resume", check=2)
        assert is_one_clear_line(refused.stderr, "--resume", str(out), str(tmp_path / "there"))
    assert not (tmp_path / "here").exists() and not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("damage", ["cut", "no-state", "history"])
def test_a_damaged_run_is_not_resumed(small_set, tmp_path, damage):
    run("train.py", "--dataset", small_set, "--out", tmp_path, "--epochs", 2, *SMALL)
    last = tmp_path / "last.pkl"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:-20])
    elif damage == "no-state":
        nn.save_params(last, nn.load_params(last)[0], {"epoch": "two"})
    else:
        (tmp_path / "history.csv").unlink()
    done = run("train.py", "--out", tmp_path, "--resume", check=2)
    assert is_one_clear_line(done.stderr, str(tmp_path))


# --- real data --------------------------------------------------------------------------------


def test_three_epochs_on_real_mnist(real_data, tmp_path):
    run_apart(
        "train.py", "--dataset", "mnist", "--data-dir", real_data, "--out", tmp_path, "--epochs", 3,
        "--hidden", 100, "--lr", 0.1, "--momentum", 0.9, "--quiet",
    )  # fmt: skip
    done = run_apart("test.py", tmp_path, "--data-dir", real_data, "--json")
    report = json.loads(done.stdout)
    assert report["dataset"] == "mnist" and report["images"] == 10_000
    assert report["accuracy"] >= 0.97
    kept = json.loads((tmp_path / "config.json").read_text())["result"]["kept"]
    assert report["accuracy"] == kept["test_accuracy"] and report["loss"] == pytest.approx(kept["test_loss"])
