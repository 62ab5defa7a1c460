import csv
import errno
import json
import os
import pickle

import numpy as np
import pytest
from conftest import call, is_one_clear_line, refused, run, write_dataset
from faults import Disk

import data
import nn
import test as judging


@pytest.fixture
def trained(small_set, tmp_path):
    run(
        "train.py", "--dataset", small_set, "--out", tmp_path / "run", "--val-size", 12, "--batch-size", 16,
        "--hidden", 7, "--epochs", 5, "--preprocess", "scale", "center", "--activation", "tanh", "--quiet",
    )  # fmt: skip
    return tmp_path / "run"


def test_scores_of_a_known_confusion():
    confusion = np.array([[5, 1, 0], [2, 6, 0], [0, 0, 0]])
    first, second, empty = judging.class_scores(confusion)
    assert first == {"precision": 5 / 7, "recall": 5 / 6, "f1": pytest.approx(10 / 13), "support": 6}
    assert second["precision"] == 6 / 7 and second["recall"] == 6 / 8 and second["support"] == 8
    assert empty == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_confusion_matrix_counts_labels_by_row():
    matrix = nn.confusion_matrix(np.array([0, 0, 1, 2], np.uint8), np.array([0, 1, 1, 0]), 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_the_area_under_the_curve_counts_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 40).astype(float), rng.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert judging.area_under_curve(scores, positive) == pytest.approx(np.mean(pairs))
    assert judging.area_under_curve(scores, np.zeros(40, bool)) is None


def test_averages_are_over_classes_and_over_images():
    outputs = np.eye(3)[[0, 0, 0, 1, 1, 2, 2, 0]]
    report = judging.make_report(outputs, np.array([0, 0, 0, 0, 1, 2, 2, 2]), "mse", ["a", "b", "c"])
    recalls = [3 / 4, 1, 2 / 3]
    assert report["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert report["averages"]["macro"]["recall"] == pytest.approx(np.mean(recalls))
    assert report["averages"]["weighted"]["recall"] == pytest.approx(6 / 8)
    assert "top3" not in report, "with three classes it says nothing"
    outputs = np.array([[9, 8, 7, 0, 0, 0], [0, 1, 2, 3, 4, 5.0]])
    assert judging.make_report(outputs, np.array([2, 2]), "mse", list("abcdef"))["top3"] == 0.5


@pytest.mark.parametrize("first, second, p", [(5, 0, 2 / 32), (0, 0, 1.0), (3, 3, 1.0), (8, 1, 20 / 512)])
def test_mcnemars_test_is_the_binomial_one(first, second, p):
    right = np.r_[np.ones(first, bool), np.zeros(second, bool), np.ones(9, bool), np.zeros(4, bool)]
    other = np.r_[np.zeros(first, bool), np.ones(second, bool), np.ones(9, bool), np.zeros(4, bool)]
    found = judging.compare(right, other)
    assert (found["only_first"], found["only_second"]) == (first, second)
    assert found["p"] == pytest.approx(p)


def test_folders_with_several_runs_are_compared_by_their_means(small_set, tmp_path):
    words = ["--dataset", small_set, "--val-size", 12, "--strategy", "grid", "--repeat", 3]
    for name, lr in (("a", 0.2), ("b", 0.01)):
        more = ["--space", f"lr={lr}", "--epochs", 2, "--out", tmp_path / name]
        run("search.py", *words, *more)
    folders = [tmp_path / name / "trials" for name in "ab"]
    shown = run("test.py", *folders, "--compare").stdout
    rows = json.loads(run("test.py", *folders, folders[0] / "001", "--compare", "--json").stdout)["runs"]
    alone = [
        json.loads(run("test.py", folder / name, "--json").stdout)["accuracy"]
        for folder in folders
        for name in ("001", "001-2", "001-3")
    ]
    assert [row["accuracies"] for row in rows[:2]] == [alone[:3], alone[3:]]
    assert rows[0]["accuracy"] == pytest.approx(np.mean(alone[:3])) and rows[0]["runs"] == 3
    assert rows[1]["sd"] == pytest.approx(np.std(alone[3:], ddof=1))
    pairs = np.subtract(alone[3:], alone[:3])
    assert rows[1]["difference"] == pytest.approx(pairs.mean())
    assert rows[1]["p"] == nn.permutation_test(pairs) and "permutation test of 3 pairs" in shown
    assert rows[2]["p"] is None and "errors" in rows[2], "one run and three are no pairs"
    assert "no test" in run("test.py", folders[0], folders[0] / "001", "--compare").stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    assert is_one_clear_line(run("test.py", empty, folders[0], "--compare", check=2).stderr, empty)


def test_two_runs_are_compared_on_the_same_images(trained, small_set, tmp_path):
    given = ("--dataset", small_set, "--val-size", 12, "--hidden", 0, "--epochs", 1, "--quiet")
    run("train.py", *given, "--out", tmp_path / "b")
    shown = run("test.py", trained, tmp_path / "b", "--compare").stdout
    assert "only" in shown and "McNemar" in shown and str(tmp_path / "b") in shown
    rows = json.loads(run("test.py", trained, tmp_path / "b", "--compare", "--json").stdout)["runs"]
    assert rows[1]["errors"] - rows[0]["errors"] == rows[1]["only_first"] - rows[1]["only_second"]
    assert is_one_clear_line(run("test.py", trained, "--compare", check=2).stderr, "--compare")


def test_many_classes_are_shown_by_the_worst_and_the_most_confused():
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(47)]
    labels = rng.integers(0, 47, 500)
    config = {"data": {"class_names": names}}
    report = judging.make_report(rng.random((500, 47)), labels, "mse", names)
    lines = judging.report_text(report, config, "T").splitlines()
    assert max(map(len, lines)) <= 79 and len(lines) < 40
    assert any("taken for" in line for line in lines)


def test_a_committee_writes_its_predictions_beside_the_first(trained):
    run("test.py", trained, trained / "last.pkl")
    with open(trained / "predictions-committee.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and rows[0]["label_name"] == rows[0]["label"]
    assert not (trained / "predictions.csv").exists()


@pytest.mark.parametrize("steps", [["scale"], ["deskew", "pool", "scale", "center", "pca:9"]])
def test_an_attack_moves_every_pixel_by_as_much_against_the_network(tmp_path, steps):
    folder = write_dataset(tmp_path / "set", shape=(8, 8))
    given = ("--dataset", folder, "--preprocess", *steps, "--hidden", 5, "--epochs", 3, "--dtype", "float64")
    run("train.py", *given, "--out", tmp_path / "run", "--quiet")
    params, config = data.load_run(tmp_path / "run")
    dataset = data.load_dataset(str(folder))
    images, y = data.redraw(dataset["test_images"], config["steps"]), dataset["test_labels"]
    report = json.loads(run("test.py", tmp_path / "run", "--adversarial", 0.2, "--json").stdout)
    basis = data.affine_step(config["steps"])["basis"]
    slope = nn.input_gradient(params, data.to_numbers(images, config["steps"], np.float64), y)
    moved = images + 0.2 * 255 * np.sign(slope if basis is None else slope @ basis.T)
    outputs, _ = nn.forward(params, data.to_numbers(moved, config["steps"], np.float64))
    assert report["loss"] == pytest.approx(nn.loss(params, outputs, y))
    assert report["accuracy"] == nn.accuracy(outputs, y) and report["adversarial"] == 0.2
    assert report["loss"] > json.loads(run("test.py", tmp_path / "run", "--json").stdout)["loss"]
    assert (tmp_path / "run" / "predictions-attacked.csv").exists()


@pytest.mark.parametrize(
    "flags", [["--adversarial", 0.1], ["--images", "x.png", "--explain"], ["--adversarial", "nan"]]
)
def test_what_asks_for_pixels_is_refused_of_gradients(small_set, tmp_path, flags):
    given = ("--dataset", small_set, "--val-size", 12, "--preprocess", "hog:2", "--epochs", 1)
    run("train.py", *given, "--out", tmp_path / "run", "--quiet")
    (tmp_path / "x.png").touch()
    flags = [tmp_path / flag if flag == "x.png" else flag for flag in flags]
    done = run("test.py", tmp_path / "run", *flags, check=2)
    assert is_one_clear_line(done.stderr, [flag for flag in flags if str(flag)[:2] == "--"][-1])
    done = run("train.py", *given, "--adversarial", 0.1, "--out", tmp_path / "other", check=2)
    assert is_one_clear_line(done.stderr, "--adversarial", "--preprocess")


@pytest.mark.parametrize("steps", [["scale"], ["deskew", "pool", "scale", "pca:9"]])
def test_evidence_is_where_the_ink_is_and_adds_up_to_the_slope(tmp_path, steps):
    folder = write_dataset(tmp_path / "set", shape=(8, 8))
    given = ("--dataset", folder, "--val-size", 12, "--preprocess", *steps, "--hidden", 0, "--epochs", 3)
    run("train.py", *given, "--lr", 0.01, "--out", tmp_path / "run", "--quiet")
    params, config = data.load_run(tmp_path / "run")
    image = data.load_dataset(str(folder))["test_images"][3]
    found = judging.evidence(params, config, image)
    redrawn = data.redraw(image[None], config["steps"]).reshape(found.shape)
    assert (found[redrawn == 0] == 0).all() and np.abs(found).sum() > 0

    def loss(images):
        x = data.to_numbers(images.astype(np.float64).reshape(1, -1), config["steps"], np.float64)
        outputs, _ = nn.forward({key: w.astype(np.float64) for key, w in params.items()}, x)
        return nn.loss({}, outputs, likely)

    likely = nn.predict(params, data.preprocess(image[None], config["steps"])).argmax(axis=1)
    factor = next(step["factor"] for step in config["steps"] if "factor" in step)
    moved = loss(redrawn) - loss(redrawn * (1 + 1e-5))
    assert moved == pytest.approx(1e-5 * factor * found.sum(), rel=1e-2, abs=1e-12)


def test_the_report_agrees_with_the_network(trained, small_set):
    report = json.loads(run("test.py", trained, "--json").stdout)
    params, config = data.load_run(trained)
    dataset = data.load_dataset(str(small_set))
    x = data.preprocess(dataset["test_images"], config["steps"])
    probs = nn.predict(params, x, "tanh")
    right = probs.argmax(axis=1) == dataset["test_labels"]
    assert report["accuracy"] == right.mean() and report["errors"] == (~right).sum()
    assert np.array(report["confusion"]).trace() == right.sum()
    assert np.array(report["confusion"]).sum() == report["images"] == 20
    assert report["loss"] == pytest.approx(
        -np.log(probs[np.arange(20), dataset["test_labels"]]).mean(), rel=1e-4
    )
    with open(trained / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["prediction"]) for row in rows] == list(probs.argmax(axis=1))
    assert [int(row["label"]) for row in rows] == list(dataset["test_labels"])
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probs.max(axis=1), atol=1e-6)


def test_the_text_is_aligned_and_complete(trained):
    text = run("test.py", trained).stdout
    assert "small, 20-7-3: 20 test images" in text and "accuracy" in text and "errors" in text
    table = text[text.index("confusion matrix") :].splitlines()[1:5]
    assert len({len(line) for line in table}) == 1
    assert all(name in text for name in ("precision", "recall", "F1"))


def test_an_mse_network_reports_its_estimates(small_set, tmp_path):
    run(
        "train.py", "--dataset", small_set, "--out", tmp_path, "--val-size", 0, "--loss", "mse", "--lr", 0.01,
        "--epochs", 2, "--hidden", 0, "--quiet",
    )  # fmt: skip
    run("test.py", tmp_path)
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert all(0 <= float(row["probability"]) <= 1 for row in csv.DictReader(file))


def test_changed_data_is_noted(trained, small_set):
    write_dataset(small_set, seed=3)
    assert is_one_clear_line(run("test.py", trained).stderr)


def test_a_run_whose_folder_of_data_is_not_there_says_so(trained, tmp_path, monkeypatch):
    params, config = data.load_run(trained)
    nn.save_params(trained / "params.pkl", params, {**config, "dataset": "small"})
    monkeypatch.chdir(trained)
    done = run("test.py", trained, check=2)
    assert is_one_clear_line(done.stderr, "small")


def write_params(path, config):
    params = nn.init_params(np.random.default_rng(0), [20, 7, 3])
    path.write_bytes(pickle.dumps({"params": params, "config": config}))


GOOD = {
    "activation": "relu", "loss": "mse", "dataset": "glyphs", "steps": [],
    "data": {"class_names": ["a", "b", "c"], "image_shape": [4, 5], "title": "T"},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "swish"},
        {"activation": 5},
        {"loss": None},
        {"dataset": 7},
        {"steps": {}},
        {"data": None},
        {"data": {**GOOD["data"], "class_names": ["a"]}},
        {"data": {**GOOD["data"], "image_shape": [20]}},
    ],
)
def test_params_that_no_run_wrote_are_refused(tmp_path, change):
    write_params(tmp_path / "params.pkl", {**GOOD, **change})
    with refused(tmp_path, error=ValueError):
        data.load_run(tmp_path)


@pytest.mark.parametrize(
    "steps",
    [
        [{"name": "warp"}],
        ["scale"],
        [{"name": "center", "mean": np.zeros(3)}],
        [{"name": "standardize", "mean": 0.0, "std": 0.0}],
        [{"name": "affine", "factor": 0.0}, {"name": "scale"}],
        [{"name": "standardize"}],
        [{"name": "deskew"}],
        [{"name": "deskew", "shape": [5, 4]}],
        [{"name": "width", "shape": [4, 5]}],
        [{"name": "pool", "shape": [4, 5]}],  # leads to 6 numbers
        [{"name": "pool", "shape": [4, 5]}, {"name": "center", "mean": np.zeros(20)}],
        [{"name": "hog", "shape": [4, 5], "number": 2}],  # leads to 32 numbers
        [{"name": "hog", "shape": [4, 5], "number": 0}],
        [{"name": "pixels-and-hog", "shape": [4, 5], "number": 1}],  # leads to 28
        [{"name": "pca", "mean": np.zeros(20), "basis": np.zeros((20, 3))}],
        [{"name": "pca", "mean": np.zeros(20), "basis": np.zeros(20)}],
        [{"name": "pca", "mean": np.zeros(20), "basis": np.zeros((20, 20))}, {"name": "pool"}],
    ],
)
def test_preprocessing_steps_from_a_file_are_checked(steps):
    with pytest.raises(ValueError):
        data.read_steps(steps, [4, 5], 20)


def test_steps_that_lead_to_the_inputs_are_accepted():
    pooled = [{"name": "pool", "shape": [4, 5]}, {"name": "center", "mean": np.zeros(6)}]
    reduced = {"name": "pca", "mean": np.zeros(6), "basis": np.zeros((6, 2))}
    data.read_steps(pooled, [4, 5], 6)
    data.read_steps([*pooled, reduced, {"name": "center", "mean": np.zeros(2)}], [4, 5], 2)


def test_estimates_above_1_are_ranked_before_they_are_cut_off():
    params = {"W1": np.zeros((4, 3), np.float32), "b1": np.array([1.1, 0, 1.6], np.float32)}
    config = {
        "activation": "relu",
        "loss": "mse",
        "steps": [{"name": "scale"}],
        "data": {"class_names": ["a", "b", "c"]},
    }
    image = np.zeros((2, 2), np.uint8)
    found = judging.likeliest([(params, config)], image)
    assert [(row["name"], row["probability"]) for row in found] == [("c", 1.0), ("a", 1.0), ("b", 0.0)]
    params["b1"][0] = np.inf
    with refused(error=FloatingPointError):
        judging.likeliest([(params, config)], image)


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["{tmp}/nowhere"], ["nowhere"]),
        (["{tmp}"], ["params.pkl"]),
        (["{run}/config.json"], ["config.json"]),
        (["{run}", "--dataset", "{wide}"], ["wide"]),
        (["{run}", "--jsn"], ["--jsn", "--json"]),
    ],
)
def test_bad_input_gives_one_clear_line(trained, tmp_path, arguments, names):
    wide = write_dataset(tmp_path / "wide", shape=(5, 5))
    for name, value in {"{tmp}": tmp_path, "{run}": trained, "{wide}": wide}.items():
        arguments = [argument.replace(name, str(value)) for argument in arguments]
    assert is_one_clear_line(run("test.py", *arguments, check=2).stderr, *names)


@pytest.mark.parametrize(
    "place, key, value",
    [("data", "title", 5), ("data", "class_names", {"a": 0, "b": 1, "c": 2}), (None, "epoch", [1])],
)
def test_an_odd_config_gives_one_clear_line(trained, tmp_path, place, key, value):
    params, config = nn.load_params(trained / "params.pkl")
    (config[place] if place else config)[key] = value
    nn.save_params(tmp_path / "params.pkl", params, config)
    for script in ("test.py", "visualize.py"):
        assert is_one_clear_line(run(script, tmp_path, check=2).stderr, tmp_path)


def test_another_data_set_leaves_the_predictions_of_the_own_one(trained, tmp_path):
    run("test.py", trained)
    before = (trained / "predictions.csv").read_bytes()
    other = write_dataset(tmp_path / "other", seed=5)
    assert "predictions-other.csv" in run("test.py", trained, "--dataset", other).stdout
    report = json.loads(run("test.py", trained / "last.pkl", "--dataset", other, "--json").stdout)
    assert report["dataset"] == str(other)
    assert (trained / "predictions.csv").read_bytes() == before
    assert (trained / "predictions-other.csv").exists()


def test_a_read_only_results_folder_can_be_judged(trained, monkeypatch):
    Disk(monkeypatch, trained, 1, errno.EROFS, once=False)
    status, out, err = call(judging.main, trained)
    assert status == 2 and is_one_clear_line(err, os.strerror(errno.EROFS)) and "confusion matrix" in out
