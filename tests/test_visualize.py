import re
import shutil
import xml.etree.ElementTree

import matplotlib.style
import numpy as np
import pytest
from conftest import is_one_clear_line, make_run, run, run_apart, write_dataset
from matplotlib.backend_bases import KeyEvent, MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import data
import nn
import search
import train
import visualize


@pytest.fixture(scope="module")
def linear(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("linear")
    return make_run(out, small, "--hidden", 0, "--epochs", 3, "--momentum", 0.5)


def row(epoch, train=0.5, val=0.4, test=0.3):
    """A row of a history whose accuracies are 1 - loss."""
    parts = {"train": train, "val": val, "test": test}
    losses = {f"{part}_loss": value for part, value in parts.items()}
    accuracies = {f"{p}_accuracy": None if value is None else 1 - value for p, value in parts.items()}
    return {"epoch": epoch, "lr": 0.1, "seconds": 1.0, **losses, **accuracies}


def draw_folder(path, only=None, data_dir=None):
    """``(figures, skipped)`` of a folder."""
    return visualize.draw_run(visualize.load_run(path, only, data_dir), only)


def held(**more):
    """What a figure function takes: a folder's dict (see ``load_folder``), by hand."""
    facts = {"image_shape": [2, 3], "class_names": ["cat", "dog", "emu"], "title": "T"}
    config = {"steps": [], "data": facts, "activation": "relu"} | more.pop("config", {})
    return {"path": "a", "config": config, "title": "T", "chosen": None, "judged": "images", **more}


def curves(rows, quantity, **more):
    return visualize.curves_figure(held(rows=rows, **more), quantity)


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def title_of(figure):
    return figure._suptitle.get_text()


def images_of(figure):
    return [image.get_array() for ax in figure.axes for image in ax.images]


# --- curves ---


def test_curves_show_each_part_and_mark_the_chosen_epoch():
    rows = [row(e, 1 / e, 1.1 / e, 1.2 / e) for e in range(1, 4)]
    figure = curves(rows, "loss", title="MNIST, 784-10", chosen=2, config={"loss": "mse"})
    (ax,) = figure.axes
    lines = lines_of(ax)
    np.testing.assert_allclose(lines["train"].get_xydata(), [[e, 1 / e] for e in (1, 2, 3)])
    np.testing.assert_allclose(lines["validation"].get_ydata(), [1.1 / e for e in (1, 2, 3)])
    np.testing.assert_allclose(lines["test"].get_ydata(), [1.2 / e for e in (1, 2, 3)])
    assert len({line.get_linestyle() for line in lines.values()}) == 4  # told apart without colours
    (kept,) = (line for label, line in lines.items() if "epoch 2" in label)
    np.testing.assert_array_equal(kept.get_xdata(), [2, 2])
    rings = [line.get_xydata().tolist() for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [[2, 1 / 2]] in rings and [[2, 1.2 / 2]] in rings
    assert title_of(figure) == "Loss by epoch\nMNIST, 784-10"
    assert "half squared error" in ax.get_ylabel() and ax.get_xlabel() == "epoch"


def test_accuracy_is_in_percent_and_a_part_without_images_has_no_line():
    figure = curves([row(1, val=None), row(2, 0.25, val=None)], "accuracy")
    lines = lines_of(figure.axes[0])
    assert set(lines) == {"train", "test"}
    np.testing.assert_allclose(lines["train"].get_ydata(), [50, 75])
    assert "%" in figure.axes[0].get_ylabel()


def test_error_is_on_a_log_axis_and_leaves_out_epochs_without_errors():
    figure = curves([row(1, 0.1), row(2, 0.0), row(3, 0.01)], "error")
    ax = figure.axes[0]
    assert ax.get_yscale() == "log" and "no point where it is 0" in ax.get_ylabel()
    np.testing.assert_allclose(lines_of(ax)["train"].get_ydata(), [10, np.nan, 1])
    perfect = [row(1, 0.0, 0.0, 0.0), row(2, 0.0, 0.0, 0.0)]
    assert "no point where it is 0" in curves(perfect, "error").axes[0].get_ylabel()
    assert curves(perfect, "accuracy").axes[0].get_ylim()[1] < 101


@pytest.mark.parametrize("count, every", [(3, 1), (20, 1), (26, 2), (47, 3)])
def test_classes_are_told_by_their_names_however_many(count, every):
    axis = Figure().add_subplot().xaxis
    visualize.label_classes(axis, [f"k{number}" for number in range(count)])
    shown = [(tick, label.get_text()) for tick, label in zip(axis.get_ticklocs(), axis.get_ticklabels())]
    assert shown == [(number, f"k{number}") for number in range(0, count, every)]


@pytest.mark.parametrize(
    "low, high, ticks",
    [(0.9, 60, [1, 2, 5, 10, 20, 50]), (5.88, 5.94, [5, 6, 7]), (8.2, 12, [9, 10]), (3, 3, [3, 4])],
)
def test_a_log_axis_has_two_round_ticks_or_more(low, high, ticks):
    ax = Figure().add_subplot()
    visualize.log_axis(ax, "y", [low, high])
    assert [float(label.get_text()) for label in ax.get_yticklabels()] == ticks
    assert ax.get_ylim()[0] <= min(low, *ticks) and ax.get_ylim()[1] >= max(high, *ticks)
    assert visualize.log_ticks(1, 1e7, 4) == [1, 100, 1e4, 1e6]


@pytest.mark.parametrize("first, epochs, outside", [(2.3, 6, True), (0.5, 6, False), (2.3, 5, False)])
def test_the_first_epoch_is_left_out_when_it_would_flatten_a_long_rest(first, epochs, outside):
    rows = [row(1, first, first, first)] + [row(e, 0.5 - e / 20, 0.4, 0.4) for e in range(2, epochs + 1)]
    ax = curves(rows, "loss").axes[0]
    assert (ax.get_ylim()[1] < first) == outside
    assert ("outside the range" in ax.get_xlabel()) == outside
    assert ax.get_ylim()[0] < 0.25 and ax.get_ylim()[1] > 0.4


def test_twin_axes_hold_losses_left_and_test_accuracy_right():
    left, right = visualize.twin_figure(held(rows=[row(1), row(2, 0.4, 0.4, 0.2)])).axes
    assert set(lines_of(left)) == {"train loss (left axis)", "test loss (left axis)"}
    np.testing.assert_allclose(lines_of(right)["test accuracy (right axis)"].get_ydata(), [70, 80])
    assert "accuracy (%)" in right.get_ylabel()


@pytest.mark.parametrize(
    "there, name, losses", [({}, "validation", ["train", "validation"]), ({"val": None}, "train", ["train"])]
)
def test_twin_of_a_run_without_test_images_shows_what_there_is(there, name, losses):
    rows = [row(1, test=None, **there), row(2, 0.4, test=None, **there)]
    figure = visualize.twin_figure(held(rows=rows))
    left, right = figure.axes
    assert list(lines_of(left)) == [f"{loss} loss (left axis)" for loss in losses]
    (label, line), *others = lines_of(right).items()
    assert label == f"{name} accuracy (right axis)" and not others and np.isfinite(line.get_ydata()).all()
    assert f"{name} accuracy" in right.get_ylabel() and f"{name} accuracy" in title_of(figure)


def test_twin_says_which_of_its_axes_leaves_out_the_first_epoch_and_what_its_rings_are():
    rows = [{**row(e, 0.5 - e / 50), "test_accuracy": 0.5 if e == 1 else 0.9 + e / 1000} for e in range(1, 9)]
    left, right = visualize.twin_figure(held(rows=rows, chosen=2)).axes
    assert left.get_ylim()[1] > rows[0]["train_loss"] and right.get_ylim()[0] > 80
    assert "outside the right axis" in left.get_xlabel()
    assert any("epoch 2" in text.get_text() for text in left.get_legend().get_texts())


@pytest.mark.parametrize(
    "epochs, ticks",
    [(1, [1]), (7, [1, 2, 3, 4, 5, 6, 7]), (12, [2, 4, 6, 8, 10, 12]), (50, [1, 5, 50]), (300, [1, 50, 300])],
)
def test_epochs_have_round_ticks(epochs, ticks):
    ax = Figure().add_subplot()
    visualize.epoch_axis(ax, [{"rows": [row(epochs)]}])
    assert set(ticks) <= set(ax.get_xticks()) and len(ax.get_xticks()) <= 12 and min(ax.get_xticks()) >= 1


def test_one_epoch_has_a_marker_and_whole_numbers_at_the_axis():
    ax = curves([row(1)], "loss").axes[0]
    assert all(line.get_marker() for line in lines_of(ax).values())
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("epochs", [1, 3, 50, 300])
def test_texts_of_curves_do_not_overlap(epochs):
    rows = [row(e, 1 / e, 1.1 / e, 1.2 / e) for e in range(1, epochs + 1)]
    with matplotlib.style.context(visualize.LOOK):
        for quantity in ("loss", "accuracy", "error"):
            figure = curves(rows, quantity, title="MNIST, 784-292-10, test accuracy 98.25 %", chosen=1)
            figure.draw_without_rendering()
            boxes = [text.get_window_extent() for text in visible_texts(figure)]
            for i, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[:i])


def visible_texts(figure):
    (ax,) = figure.axes
    inside = [
        label
        for axis in (ax.xaxis, ax.yaxis)
        for tick, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels())
        if axis.get_view_interval()[0] <= tick <= axis.get_view_interval()[1]
    ]
    return [*inside, ax.xaxis.label, ax.yaxis.label, *ax.get_legend().get_texts(), figure._suptitle]


# --- weights ---


def test_the_heat_map_shows_the_weights_with_colours_centred_on_0():
    weights = np.random.default_rng(0).normal(0.1, 1, (20, 7))
    params = {"W1": weights, "b1": np.zeros(7), "W2": weights[:7, :3], "b2": np.zeros(3)}
    figures = visualize.weights_figures(held(params=params))
    assert set(figures) == {"weights_W1", "weights_W2"}
    figure = figures["weights_W1"]
    image = figure.axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), weights.T)  # the longer side along the page
    assert image.get_interpolation() == "none"  # no value is mixed with its neighbours
    assert image.norm.vmin == -image.norm.vmax and image.norm.vmax > 1
    assert title_of(figure) == "W1: 20 × 7 weights\nT"


def test_lightness_alone_tells_the_sign_of_a_weight():
    red, green, blue, _ = visualize.SIGNED(np.linspace(0, 1, 101)).T
    lightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert (np.diff(lightness) > 0).all()


def test_a_heat_map_of_zeros_can_be_drawn():
    params = {"W1": np.zeros((4, 3)), "b1": np.zeros(3)}
    assert visualize.weights_figures(held(params=params))["weights_W1"].axes[0].images[0].norm.vmax == 1


@pytest.mark.parametrize("basis, word", [(None, "pixel"), (np.eye(4), "component")])
def test_what_the_rows_of_w1_are_depends_on_the_preprocessing(basis, word):
    affine = {**data.UNCHANGED, "basis": basis}
    run = held(params={"W1": np.ones((4, 3)), "b1": np.zeros(3)}, config={"steps": [affine]})
    assert word in visualize.weights_figures(run)["weights_W1"].axes[0].get_xlabel()


def test_receptive_fields_come_strongest_first_on_one_sheet():
    weights = np.zeros((6, 3), np.float32)  # three units, pictures of 2x3
    weights[:, 0], weights[0, 1], weights[:, 2] = 0.1, 5, 1
    figure = visualize.fields_figure(held(params=dict.fromkeys(("W1", "b1", "W2", "b2"), weights)))
    sheet = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    fields = [sheet[top : top + 2, left : left + 3].ravel() for top, left in ((0, 0), (0, 5), (4, 0))]
    np.testing.assert_array_equal(fields, weights.T[[1, 2, 0]])
    assert np.isfinite(sheet).sum() == weights.size
    assert "3 hidden units" in title_of(figure)


@pytest.mark.parametrize("name, inputs, word", [("hog", 8, "direction"), ("pixels-and-hog", 14, "pixel")])
@pytest.mark.parametrize("hidden", [False, True])
def test_weights_of_gradients_are_drawn_as_directions(name, inputs, word, hidden):
    step = {"name": name, "shape": [2, 3], "number": 1}
    weights = np.zeros((inputs, 3), np.float32)
    weights[0] = 1  # of hog: to the right
    params = dict.fromkeys(("W1", "b1", "W2", "b2") if hidden else ("W1", "b1"), weights)
    figure = visualize.fields_figure(held(params=params, config={"steps": [step]}))
    (drawn, *_) = images_of(figure)
    assert word in " ".join(ax.get_xlabel() + ax.get_ylabel() for ax in figure.axes)
    if name == "hog":
        side = 2 * visualize.SPOKE + 1
        np.testing.assert_array_equal(np.argwhere(drawn[:side, :side] > 0)[:, 0], side // 2)


def test_of_many_receptive_fields_the_strongest_are_shown():
    weights = np.random.default_rng(0).normal(0, 1, (6, 2048))
    figure = visualize.fields_figure(held(params=dict.fromkeys(("W1", "b1", "W2", "b2"), weights)))
    sheet = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert np.isfinite(sheet).sum() == 6 * visualize.SHOWN_FIELDS
    assert f"{visualize.SHOWN_FIELDS} of 2,048" in title_of(figure)


def test_templates_of_many_classes_are_one_sheet_for_they_would_take_minutes():
    weights = np.random.default_rng(0).normal(0, 1, (6, 4096))
    figure = visualize.fields_figure(held(params=dict.fromkeys(("W1", "b1"), weights)))
    assert len(figure.axes) == 2  # the sheet and its colours
    assert f"{visualize.SHOWN_FIELDS} of 4,096 classes" in title_of(figure)


@pytest.mark.parametrize("n, shape", [(1, (4, 5)), (3, (28, 28)), (7, (6, 19)), (2000, (28, 28))])
def test_a_mosaic_holds_every_picture_once(n, shape):
    pictures = np.arange(n, dtype=np.float32)[:, None, None] * np.ones((1, *shape), np.float32)
    sheet = visualize.mosaic(pictures, across=min(n, 40))
    values, counts = np.unique(sheet[np.isfinite(sheet)], return_counts=True)
    np.testing.assert_array_equal(values, np.arange(n))
    assert set(counts) == {shape[0] * shape[1]}


def test_a_network_without_hidden_layers_shows_its_class_templates(linear):
    figures, skipped = draw_folder(linear, ["fields", "activations"])
    params, _ = data.load_run(linear)
    images = images_of(figures["fields"])
    for image, template in zip(images, params["W1"].T):
        np.testing.assert_array_equal(image, template.reshape(4, 5))
    assert [ax.get_title() for ax in figures["fields"].axes[:3]] == ["0", "1", "2"]
    assert list(skipped.values()) == [["activations"]]


def test_histograms_count_all_weights_of_each_layer(trained):
    params, _ = data.load_run(trained)
    figure = visualize.histogram_figure(held(params=params))
    for ax, name in zip(figure.axes, ("W1", "W2", "W3")):
        assert sum(bar.get_height() for bar in ax.patches) == params[name].size
        assert ax.get_title().startswith(name)
        assert ax.get_ylim()[0] == 0.5  # so that a bar of 1 is seen


def test_activations_tell_how_many_units_never_fire():
    activations = np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]], np.float32)
    figure = visualize.activations_figures(held(hidden=[activations, activations]))["activations_2"]
    assert "hidden layer 2: 1 of 3 units never fire" in title_of(figure)
    left, right = figure.axes
    assert sum(bar.get_height() for bar in left.patches) == 6
    np.testing.assert_array_equal(right.patches[0].get_data().values, [100, 50, 0])


@pytest.mark.parametrize("activation, saturated", [("tanh", -0.99), ("sigmoid", 0.001)])
def test_of_tanh_and_sigmoid_saturation_is_shown(activation, saturated):
    activations = np.array([[0.5, saturated], [0.5, saturated]])
    run = held(hidden=[activations], config={"activation": activation})
    figure = visualize.activations_figures(run)["activations_1"]
    assert "1 of 2 units always saturated" in title_of(figure)
    np.testing.assert_array_equal(figure.axes[1].patches[0].get_data().values, [100, 0])


# --- predictions ---


def test_the_confusion_matrix_shows_its_counts():
    counts = np.array([[50, 2, 0], [0, 40, 7], [1, 0, 30]])
    labels, predicted = (np.repeat(side.ravel(), counts.ravel()) for side in np.indices((3, 3)))
    figure = visualize.confusion_figure(held(labels=labels, estimates=np.eye(3)[predicted]))
    ax = figure.axes[0]
    texts = {tuple(text.get_position()): text.get_text() for text in ax.texts}
    assert texts == {(c, r): str(n) for (r, c), n in np.ndenumerate(counts) if n}
    shown = ax.images[0].get_array()
    assert shown.mask.diagonal().all() and shown[1, 2] == 7 and ax.images[0].norm.vmax == 7
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "emu"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("prediction", "label")


def test_many_classes_make_a_confusion_matrix_without_numbers():
    config = {"data": {"class_names": list(map(str, range(60)))}}
    run = held(labels=np.arange(60), estimates=np.eye(60), config=config)
    figure = visualize.confusion_figure(run)
    assert not figure.axes[0].texts


def test_mistakes_come_most_confident_first():
    estimates = np.array([[0.9, 0.1], [0.4, 0.6], [0.99, 0.01], [0.2, 0.8]])
    labels = np.array([1, 0, 1, 1])
    worst = visualize.worst_mistakes(estimates, labels)
    assert worst.tolist() == [2, 0, 1]
    images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    config = {"data": {"class_names": ["a", "b"], "image_shape": [2, 3]}}
    run = held(images=images, labels=labels, estimates=estimates, mistakes=worst, config=config)
    figure = visualize.mistakes_figure(run)
    assert figure.axes[0].get_title().split() == ["b", "→", "a", "99.0", "%"]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[2])


@pytest.mark.parametrize("fit, white", [("digit", 0), ("whole", 255)])
def test_digits_are_ink_on_paper_and_other_pictures_are_shown_as_they_are(fit, white):
    run = held(images=np.uint8([[0] * 6, [255] * 6]), labels=np.array([0, 1]), explained=[0, 1])
    run |= {"estimates": np.eye(3)[:2], "mistakes": [0, 1], "search_title": "T"}
    run |= {"params": {"W1": np.ones((6, 3)), "b1": np.zeros(3)}}
    row = {"index": 1, "label": 0, "prediction": 1, "probability": 0.1}
    run["suspects"] = [{**row, "image": image} for image in run["images"]]
    run["config"]["data"]["fit"] = fit
    run["config"] |= {"loss": "cross_entropy", "augment": ["flip"]}
    for draw in (visualize.mistakes_figure, visualize.suspects_figure, visualize.saliency_figure):
        drawn = [image for ax in draw(run).axes for image in ax.images if image.norm.vmax == 255]
        assert [image.to_rgba(white)[:3] for image in drawn] == [(1, 1, 1)] * 2
    (sheet,) = visualize.augment_figure(run).axes[0].images
    assert sheet.to_rgba(white)[:3] == (1, 1, 1) and np.isnan(sheet.get_array()[:, 5:9].filled(np.nan)).all()


@pytest.mark.parametrize("count, rows", [(1, 5), (2, 6), (3, 6), (10, 10), (12, 10)])
def test_distortions_of_few_classes_fill_the_page_too(count, rows):
    run = held(images=np.zeros((100, 4), np.uint8), labels=np.arange(100) % count)
    run["config"] |= {"augment": ["flip"], "data": {"image_shape": [2, 2], "fit": "whole"}}
    (sheet,) = visualize.augment_figure(run).axes[0].images
    assert sheet.get_array().shape == (rows * 4 - 2, 16 * 4 - 2)


@pytest.mark.parametrize("count, shape", [(2, (32, 32)), (3, (32, 32)), (3, (20, 60)), (10, (28, 28))])
def test_saliency_of_few_classes_fills_the_page_too(count, shape):
    pixels = shape[0] * shape[1]
    facts = {"image_shape": list(shape), "class_names": [f"class {k}" for k in range(count)]}
    run = held(images=np.zeros((count, pixels), np.uint8), estimates=np.eye(count), explained=range(count))
    run["config"] |= {"data": facts, "loss": "cross_entropy"}
    run["params"] = {"W1": np.ones((pixels, count)), "b1": np.zeros(count)}
    with matplotlib.style.context(visualize.LOOK):
        figure = visualize.saliency_figure(run)
        figure.draw_without_rendering()
    boxes = [image.get_window_extent() for ax in figure.axes[:count] for image in ax.images]
    assert len(boxes) == 2 * count and not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:]))
    assert sum(box.width * box.height for box in boxes) > 0.3 * figure.bbox.width * figure.bbox.height


def test_long_names_of_templates_do_not_touch():
    weights, names = np.eye(64, 20), [f"a name of many letters {number}" for number in range(20)]
    facts = {"image_shape": [8, 8], "class_names": names}
    run = held(params={"W1": weights, "b1": weights[0]}, config={"data": facts})
    figure = visualize.fields_figure(run)
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in figure.axes[:20]]
    assert not any(a.y0 == b.y0 and a.x1 > b.x0 for a, b in zip(boxes, boxes[1:]))


def test_long_names_of_classes_are_shortened_where_they_are_drawn_alone(tmp_path, small):
    folder = shutil.copytree(small, tmp_path / "data")
    (folder / "classes.txt").write_text("".join(f"a name of many letters {k}\n" for k in "abc"))
    make_run(tmp_path / "run", folder, "--hidden", 0)
    figures, skipped = draw_folder(tmp_path / "run", ["confusion", "fields"])
    assert set(figures) == {"confusion", "fields"} and not skipped


def test_pictures_take_most_of_the_page():
    for count, shape in ((24, (28, 28)), (10, (28, 28)), (3, (20, 60)), (1, (8, 8))):
        figure = Figure(figsize=visualize.PAGE)
        axes = visualize.picture_grid(figure, count, shape)
        across = len({round(ax.get_position().x0, 3) for ax in axes})
        down = -(-count // across)
        scale = min(8 / across / shape[1], 5 / down / shape[0])
        assert count * scale**2 * shape[0] * shape[1] > 0.3 * 8 * 5.5


def test_the_confusion_matrix_is_in_the_middle_of_the_page():
    with matplotlib.style.context(visualize.LOOK):
        figure = visualize.confusion_figure(held(labels=np.arange(3), estimates=np.eye(3)))
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    assert abs(box.x0 + box.x1 - visualize.PAGE[0]) < 0.3


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 1.0])
    correct = np.array([True, True, False, False])
    counts, mean, accuracy, error = visualize.calibration(confidence, correct)
    assert counts[9] == 3 and counts[5] == 1 and counts.sum() == 4
    assert accuracy[9] == pytest.approx(2 / 3) and accuracy[5] == 0 and np.isnan(accuracy[0])
    assert mean[9] == pytest.approx(2.9 / 3)
    assert error == pytest.approx((3 * (2.9 / 3 - 2 / 3) + 0.55) / 4)


def test_figures_of_a_run_agree_with_its_network(trained, small):
    figures, skipped = draw_folder(trained)
    params, config = data.load_run(trained)
    dataset = data.load_dataset(str(small))
    probs = nn.predict(params, data.preprocess(dataset["test_images"], config["steps"]))
    wrong = int((probs.argmax(axis=1) != dataset["test_labels"]).sum())
    expected = {"summary", "loss", "accuracy", "error", "twin", "fields", "histogram"}
    expected |= {"confusion", "calibration", "saliency"}
    expected |= {"weights_W1", "weights_W2", "weights_W3", "activations_1", "activations_2"}
    assert set(figures) == expected | ({"mistakes"} if wrong else set())
    assert list(skipped.values()) == ([] if wrong else [["mistakes"]])
    accuracy = 100 * (1 - wrong / 40)
    for figure in figures.values():
        assert f"small, 20-7-5-3, test accuracy {accuracy:.2f} %" in title_of(figure)
        assert tuple(figure.get_size_inches()) == visualize.PAGE
    cells = figures["confusion"].axes[0].texts
    assert sum(int(text.get_text()) for text in cells) == 40


# --- searches ---


def make_search(folder, epochs=(4, 4, 2), strategy="halving"):
    """A search of three trials and one that failed, as search.py leaves it."""
    columns = ["trial", "status", "seed", "lr", "weight_decay", "hidden", "epochs", *SCORES, "seconds"]
    trials = []
    for number, (lr, decay, hidden, length) in enumerate(
        zip((0.2, 0.15, 0.25), (1e-7, 1e-5, 1e-4), ("30", "30x20", "64"), epochs), start=1
    ):
        rows = [row(e, val=0.1 * number + 0.1 / e) for e in range(1, length + 1)]
        path = folder / "trials" / f"{number:03}"
        path.mkdir(parents=True)
        data.save_rows(path / "history.csv", rows, train.COLUMNS)
        data.save_json(path / "config.json", {"data": {"title": "MNIST"}})
        setting = {"lr": lr, "weight_decay": decay, "hidden": hidden}
        ended = {"trial": number, "status": "finished" if length == 4 else "stopped", "seed": number}
        trials.append({**rows[-1], **setting, **ended, "epochs": length})
    failed = {**trials[0], "trial": 4, "status": "diverged", **dict.fromkeys(SCORES)}
    data.save_rows(folder / "trials.csv", [*trials, failed], columns)
    space = "lr=0.15:0.25 weight_decay=1e-7:1e-4:log hidden=30,30x20,64"
    data.save_json(folder / "search.json", {"space": space, "strategy": strategy})
    return folder


SCORES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


def test_a_search_shows_each_setting_the_ranking_and_the_curves(tmp_path):
    figures, skipped = draw_folder(make_search(tmp_path))
    assert set(figures) == {"summary", "search", "ranking", "learning_curves"} and not skipped
    lr, decay, hidden = figures["search"].axes[:3]
    assert [ax.get_xlabel() for ax in (lr, decay, hidden)] == ["lr", "weight_decay", "hidden"]
    assert [ax.get_xscale() for ax in (lr, decay)] == ["linear", "log"]
    assert {label.get_text() for label in hidden.get_xticklabels()} == {"30", "30x20", "64"}
    np.testing.assert_allclose(lines_of(lr)["the best"].get_xydata(), [[0.2, 100 * (1 - 0.125)]])
    np.testing.assert_allclose(lines_of(decay)["fewer epochs"].get_xdata(), [1e-4])

    ranking = figures["ranking"].axes[0]
    np.testing.assert_allclose([line.get_xdata()[0] for line in ranking.lines], [87.5, 77.5, 65])
    first, *_, last = [label.get_text().split() for label in ranking.get_yticklabels()]
    (heading,) = ranking.texts
    assert heading.get_text().split() == ["trial", "epochs", "lr", "weight_decay", "hidden"]
    assert first == ["1", "4", "0.2", "1e-07", "30"] and last[1] == "2"
    assert [line.get_markerfacecolor() == "none" for line in ranking.lines] == [False, False, True]

    curves = figures["learning_curves"].axes[0].lines
    assert [len(line.get_xdata()) for line in curves] == [4, 2, 4]
    best = curves[-1]
    assert best.get_label() == "trial 1, the best" and best.get_color() == visualize.ORANGE
    assert "MNIST, 4 trials, 1 failed, best validation accuracy 87.50 %" in title_of(figures["search"])


def test_repeats_are_drawn_as_their_mean_and_a_band(tmp_path):
    make_search(tmp_path, epochs=(4, 4, 3), strategy="random")
    rows = data.load_rows(tmp_path / "trials.csv", words=True)
    less = lambda row, name: {name: row[name] - 0.1}
    again = [{**r, "seed": 9, **less(r, "val_accuracy"), **less(r, "val_loss")} for r in rows[:3]]
    data.save_rows(tmp_path / "trials.csv", rows + again, list(rows[0]))
    for number in range(1, 4):
        second = [row(e, val=0.1 * number + 0.1 / e + 0.1) for e in range(1, 5)]
        path = tmp_path / "trials" / f"{number:03}-2"
        path.mkdir()
        data.save_rows(path / "history.csv", second, train.COLUMNS)
    run = visualize.load_folder(tmp_path)
    assert [(t["trial"], t["runs"]) for t in run["trials"]] == [(1, 2), (2, 2), (3, 2)]
    best = run["trials"][0]
    assert best["val_accuracy"] == pytest.approx(0.825)
    assert best["val_loss"] == pytest.approx(rows[0]["val_loss"] - 0.05)
    assert not any(
        "seed" in line for line in visualize.summary_blocks(run | {"config": {"data": {}}})["The best trial"]
    )
    figures, _ = draw_folder(tmp_path)
    ax = figures["learning_curves"].axes[0]
    best = ax.lines[-1]
    assert "lr 0.2" in best.get_label() and len(ax.lines) == len(ax.collections) == 3
    np.testing.assert_allclose(best.get_ydata(), [75, 80, 100 * (1 - 0.1 / 3 - 0.15), 82.5])
    band, sd = ax.collections[-1].get_paths()[0].vertices[:, 1], 100 * np.std([0, 0.1], ddof=1)
    assert band.min() == pytest.approx(75 - sd) and band.max() == pytest.approx(82.5 + sd)
    (lines,) = figures["ranking"].axes[0].collections
    np.testing.assert_allclose(lines.get_segments()[0][:, 0], [82.5 - sd, 82.5 + sd])
    searched = figures["search"].axes[0]
    (bars,) = searched.collections
    bars = {segment[0, 0]: segment[:, 1] for segment in bars.get_segments()}
    np.testing.assert_allclose(bars[0.2], [82.5 - sd, 82.5 + sd])
    assert set(lines_of(searched)) == {"the best", "the others"}, "epochs differ, but by no halving"
    legend = figures["search"].subfigs[1].legends[0].get_texts()
    assert "standard deviation" in legend[-1].get_text()
    assert lines.zorder < min(mark.zorder for mark in figures["ranking"].axes[0].lines)
    assert "4 trials, 7 runs, 1 failed" in title_of(figures["search"])


def test_a_folder_of_several_runs_is_overlaid_as_their_mean(trained, linear, tmp_path):
    for number, folder in enumerate((trained, trained, linear)):
        shutil.copytree(folder, tmp_path / "many" / str(number), ignore=shutil.ignore_patterns("figures"))
    figures, skipped = visualize.draw_comparison([tmp_path / "many", linear], [])
    assert set(figures) == {"loss", "accuracy", "error"} and not skipped
    rows = [data.load_rows(folder / "history.csv") for folder in (trained, trained, linear)]
    ax = figures["accuracy"].axes[1]
    expected = [100 * np.mean([r[e]["val_accuracy"] for r in rows]) for e in range(3)]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert len(ax.collections) == 1, "a single run has no band"


def test_suspects_are_the_training_images_whose_label_is_least_likely(trained, small, tmp_path):
    make_search(tmp_path)
    for name in ("params.pkl", "config.json"):
        shutil.copy(trained / name, tmp_path)
    dataset, rng = data.load_dataset(str(small)), np.random.default_rng(0)
    rows = [
        {"index": i, "label": int(y), "prediction": 1, "probability": p}
        for i, (y, p) in enumerate(zip(dataset["train_labels"], rng.random(80)))
    ]
    data.save_rows(tmp_path / "oof.csv", rows, list(rows[0]))
    figures, skipped = draw_folder(tmp_path)
    assert "suspects" in figures and "suspects" not in str(skipped)
    worst = sorted(rows, key=lambda row: row["probability"])[: visualize.SHOWN_MISTAKES]
    shown = images_of(figures["suspects"])
    assert len(shown) == len(worst)
    for image, row in zip(shown, worst):
        np.testing.assert_array_equal(image.ravel(), dataset["train_images"][row["index"]])
    title = figures["suspects"].axes[-1].get_title()
    assert title.startswith(f"{worst[-1]['index']}: {100 * worst[-1]['probability']:.2f} %\n")
    (tmp_path / "oof.csv").write_text("index,label\n1,x\n")
    with pytest.raises(ValueError, match=r"oof\.csv"):
        visualize.load_folder(tmp_path)
    (tmp_path / "oof.csv").unlink()
    _, skipped = draw_folder(tmp_path, ["suspects"])
    assert "--folds" in next(iter(skipped))


def test_suspects_need_no_test_set(small_set, tmp_path):
    for part in ("images", "labels"):
        (small_set / data.FILES[f"test_{part}"]).unlink()
    given = ["--dataset", small_set, "--epochs", 1, "--space", "lr=0.1", "--strategy", "grid", "--folds", 2]
    search.main([*map(str, given), "--workers", "1", "--out", str(tmp_path / "out")])
    figures, skipped = draw_folder(tmp_path / "out")
    assert "suspects" in figures and "confusion" in str(skipped)


def test_saliency_shows_an_image_of_each_class_above_what_speaks_for_it(trained, small):
    figures, _ = draw_folder(trained, ["saliency"])
    params, config = data.load_run(trained)
    dataset = data.load_dataset(str(small))
    images, labels = dataset["test_images"], dataset["test_labels"]
    first = [int(np.flatnonzero(labels == k)[0]) for k in range(3)]
    pairs = images_of(figures["saliency"])[:6]
    assert "orange" in title_of(figures["saliency"])
    for i in first:
        assert any((array.ravel() == images[i]).all() for array in pairs)
        x = data.preprocess(images[i : i + 1], config["steps"])
        likely = nn.predict(params, x).argmax(axis=1)
        slope = -nn.input_gradient(params, x, likely) * images[i]
        assert any(np.allclose(array.ravel(), slope[0] / np.abs(slope).max(), atol=1e-5) for array in pairs)


@pytest.mark.parametrize("settings", [3, 60])
def test_the_first_page_holds_all_its_text(tmp_path, settings):
    definition = {
        "space": "lr=0.1:1",
        **{f"setting{n}": n for n in range(settings)},
        "versions": {"numpy": "2"},
    }
    search = visualize.load_folder(make_search(tmp_path))
    with matplotlib.style.context(visualize.LOOK):
        figure = visualize.summary_figure({**search, "definition": definition})
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_a_search_without_histories_is_still_drawn(tmp_path):
    make_search(tmp_path)
    for path in tmp_path.glob("trials/*/*"):
        path.unlink()
    figures, skipped = draw_folder(tmp_path)
    assert [ax.get_xlabel() for ax in figures["search"].axes[:3]] == ["lr", "weight_decay", "hidden"]
    assert set(figures) == {"summary", "search", "ranking"}
    ((reason, names),) = skipped.items()
    assert "history.csv" in reason and names == ["learning_curves"]


def test_a_search_whose_trials_have_all_failed_says_so(tmp_path):
    (tmp_path / "trials.csv").write_text("trial,status,seed,epochs,val_accuracy\n1,diverged,1,0,\n")
    (tmp_path / "search.json").write_text("{}")
    assert is_one_clear_line(run("visualize.py", tmp_path, check=2).stderr, tmp_path, "trials.csv")


def test_a_search_without_its_definition_is_refused(tmp_path):
    (make_search(tmp_path) / "search.json").unlink()
    with pytest.raises(OSError, match=r"search\.json"):
        draw_folder(tmp_path)


def test_ticks_of_a_small_search_do_not_touch(tmp_path):
    steps = "scale+center+standardize+pca:50"
    first = {"trial": 1, "lr": 0.19021, "weight_decay": 1.2e-7, "bend": 0.2512345}
    second = {"trial": 2, "lr": 0.20572, "weight_decay": 9.8e-5, "bend": 0.2512346, "preprocess": steps}
    first["preprocess"] = f"deskew+width:14+pool+{steps}"
    trials = [{**trial, "epochs": 2, "val_accuracy": 0.9} for trial in (first, second)]
    space = {"lr": "0.15:0.25", "weight_decay": "1e-7:1e-4:log", "bend": "0:1", "preprocess": "a,b"}
    with matplotlib.style.context(visualize.LOOK):
        figure = visualize.search_figure(held(trials=trials, space=space, search_title=""))
        figure.draw_without_rendering()
        for ax in figure.axes[:4]:
            low, high = ax.get_xlim()
            ticks = [t for t in ax.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
            boxes = [tick.label1.get_window_extent() for tick in ticks]
            assert len(boxes) >= 2 and not any(a.x1 + 3 > b.x0 for a, b in zip(boxes, boxes[1:]))


def test_trials_far_below_the_others_do_not_flatten_them():
    values = [0.97, 0.972, 0.974, 0.975, 0.976, 0.98, 0.1]
    assert 0.95 < visualize.floor_of(values) < 0.97
    trials = [
        {"trial": i, "lr": i, "epochs": 3, "val_accuracy": v}
        for i, v in enumerate(sorted(values, reverse=True))
    ]
    run = {"trials": trials, "space": {"lr": "0:9"}, "search_title": ""}
    figure = visualize.search_figure(run)
    assert figure.axes[0].get_ylim()[0] > 90
    assert any("lower still" in text.get_text() for text in figure.subfigs[1].legends[0].get_texts())


def test_a_ranking_of_many_settings_leaves_a_third_of_the_page_to_its_marks(recwarn):
    names = [f"setting_{number}" for number in range(9)]
    trials = [
        {"trial": i, "epochs": i, "val_accuracy": 0.9, **dict.fromkeys(names, "256x256")} for i in (1, 2)
    ]
    run = {"trials": trials, "space": dict.fromkeys(names, "256x256"), "search_title": ""}
    figure = visualize.ranking_figure(run)
    figure.draw_without_rendering()
    ax, legend = figure.axes[0], figure.axes[0].get_legend().get_window_extent()
    heading = ax.texts[0].get_text()
    assert "setting_0" in heading and "…" in heading and not recwarn.list
    assert ax.get_position().width > 0.33 and 0 < legend.x0 < legend.x1 < figure.bbox.x1


# --- several runs ---


def test_runs_are_overlaid_with_the_settings_in_which_they_differ(small, tmp_path, capsys):
    runs = [
        make_run(tmp_path / f"m{m}", small, "--hidden", 0, "--epochs", 3, "--momentum", m) for m in (0, 0.9)
    ]
    assert not visualize.main([*map(str, runs)])
    written = capsys.readouterr().out.splitlines()[2 * 4 :]  # after what training prints
    assert written == [
        str(tmp_path / "comparison" / name)
        for name in ["loss.png", "loss.svg", "accuracy.png", "accuracy.svg", "error.png", "error.svg"]
        + ["report.pdf", "report.html"]
    ]
    figures, _ = visualize.draw_comparison(runs, None)
    panels = figures["loss"].axes[:3]
    assert [ax.get_title() for ax in panels] == ["train", "validation", "test"]
    for ax, part in zip(panels, ("train", "val", "test")):
        for path, (label, line) in zip(runs, lines_of(ax).items()):
            rows = data.load_rows(path / "history.csv")
            np.testing.assert_allclose(line.get_ydata(), [r[f"{part}_loss"] for r in rows])
            assert re.match(rf"{path.name}: momentum (0|0\.9), test\s[\d.]+\s%$", label)
        styles = {(line.get_color(), line.get_linestyle()) for line in lines_of(ax).values()}
        assert len(styles) == 2
    assert "small, 20-3" in title_of(figures["loss"])


def test_a_run_is_labelled_with_its_folder_and_with_what_is_particular_to_it():
    config = {"lr": 0.1, "hidden": [5], "nesterov": True}
    runs = [
        {"config": config, "path": f"x/{name}", "rows": [row(1)], "chosen": 1} for name in ("a", "_b", "c")
    ]
    labels = [label.replace("\xa0", " ") for label in visualize.run_labels(runs)]
    assert labels == ["a: test 70.00 %", "_b: test 70.00 %", "c: test 70.00 %"]
    runs[1]["config"] = {**config, "nesterov": False, "hidden": []}
    label = visualize.run_labels(runs)[1].replace("\xa0", " ")
    assert label == "_b: hidden none, nesterov false, test 70.00 %"


def test_folders_of_one_name_are_told_apart_by_those_above():
    assert visualize.folder_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert visualize.folder_names(["x/a", "x/b"]) == ["a", "b"]
    assert visualize.folder_names(["x/a", "x/a"]) == ["a", "a"]


@pytest.mark.parametrize("count", [2, 6, 7, 12, 40])
def test_the_page_of_an_overlay_grows_with_its_legend(count):
    """Each run has its entry, all of it on the page and below the axes, even if its name starts with _."""
    config = {"lr": 0.1, "loss": "mse"}
    runs = [
        held(path=f"_{n}{'long' * 9}", rows=[row(1), row(2)], chosen=1, network="", data_title="")
        | {"config": {**config, "lr": n / 100, "momentum": n / 50, "hidden": [n, n]}}
        for n in range(count)
    ]
    with matplotlib.style.context(visualize.LOOK):
        figure = visualize.compare_figure(runs, "loss")
        figure.draw_without_rendering()
    panels, legend = figure.axes, figure.subfigs[1].legends[0]
    assert all(panel.get_xlabel() == "epoch" for panel in panels)
    texts = legend.get_texts()
    assert [text.get_text().strip().split("long")[0] for text in texts] == [f"_{n}" for n in range(count)]
    legend = legend.get_window_extent()
    assert legend.y0 >= 0 and legend.x1 <= figure.bbox.x1
    assert all(legend.y1 <= panel.get_tightbbox().y0 for panel in panels)


def test_comparing_skips_a_run_without_history(trained, linear, small, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    figures, skipped = visualize.draw_comparison([trained, linear, empty], ["loss", "fields"])
    assert set(figures) == {"loss"} and len(lines_of(figures["loss"].axes[0])) == 2
    assert list(skipped.values()) == [[str(empty)], ["fields"]]


# --- files, flags, errors ---


def test_files_are_the_same_each_time_and_reported_line_by_line(trained, tmp_path):
    lines = []
    for out in (tmp_path / "a", tmp_path / "b"):
        done = run("visualize.py", trained, "--only", "loss,fields", "--out", out)
        lines.append(done.stdout.splitlines())
        assert not done.stderr
    names = ["loss.png", "loss.svg", "fields.png", "fields.svg", "report.pdf"]
    assert lines[0] == [str(tmp_path / "a" / name) for name in names]
    for name in names:
        first, second = ((tmp_path / out / name).read_bytes() for out in "ab")
        assert first == second, name
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(names)
    assert len(re.findall(rb"/Type /Page\b", (tmp_path / "a" / "report.pdf").read_bytes())) == 2


def test_figures_do_not_depend_on_a_matplotlibrc(trained, tmp_path):
    rc = "text.usetex: True\npath.sketch: 1, 100, 2\nfont.size: 30\nsavefig.bbox: tight\nsavefig.dpi: 20\n"
    (tmp_path / "matplotlibrc").write_text(rc)
    names = ["loss.png", "loss.svg", "report.pdf"]
    for out, environment in (("a", {}), ("b", {"MATPLOTLIBRC": str(tmp_path)})):
        run_apart("visualize.py", trained, "--only", "loss", "--out", tmp_path / out, **environment)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_names_are_drawn_as_they_are_and_letters_that_no_font_has_are_one_note(tmp_path, capfd):
    """A ``$`` is no formula; all missing letters of all figures are noted once, on one line."""
    folder = write_dataset(tmp_path / "price$5_$x^{手写")
    out = make_run(tmp_path / "_run", folder, "--hidden", 3, "--epochs", 1)
    capfd.readouterr()
    assert not visualize.main([str(out)])
    assert is_one_clear_line(capfd.readouterr().err, "手", "写")
    other = shutil.copytree(out, tmp_path / "_$other$")
    assert not visualize.main([str(out), str(other)])
    assert is_one_clear_line(capfd.readouterr().err, "手", "写")
    figures, _ = draw_folder(out, ["loss"])
    assert "price$5_$x^{手写" in title_of(figures["loss"])


ODD_NAMES = [
    "price$5_$x^{",
    "$5 to $10",
    "_under",
    "a\x1b[31mb\nc",
    "\ud800",
    "x" * 300,
    r"$\frac$",
    "%s {0} &<",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_drawn_as_it_is(tmp_path, name):
    """As title, class and folder; nothing of it is a formula, none is left out."""
    config = {"data": {"title": name, "image_shape": [2, 3], "class_names": [name, "b"]}, "steps": []}
    config |= {"activation": "relu", "loss": "cross_entropy", "dataset": "glyphs"}
    params = nn.init_params(np.random.default_rng(0), [6, 2])
    runs = []
    for number in range(2):
        runs.append(tmp_path / str(number) / "run")
        runs[-1].mkdir(parents=True)
        nn.save_params(runs[-1] / "params.pkl", params, config)
        data.save_rows(runs[-1] / "history.csv", [row(1)], train.COLUMNS)
    with matplotlib.style.context(visualize.LOOK):
        figures, _ = draw_folder(runs[0], ["summary", "loss", "fields", "weights"])
        loaded = {**visualize.load_folder(runs[0]), "labels": np.array([0, 1]), "mistakes": np.array([0])}
        loaded |= {"images": np.zeros((2, 6), np.uint8), "estimates": np.eye(2)[::-1], "judged": "images"}
        figures["confusion"] = visualize.confusion_figure(loaded)
        figures["mistakes"] = visualize.mistakes_figure(loaded)
        named = [{**loaded, "path": tmp_path / part / (name if "/" not in name else "x")} for part in "ab"]
        figures["compared"] = visualize.compare_figure(named, "loss")
        visualize.save_figures(figures, tmp_path / "out")
    shown = data.printable(name)
    entries = [text.get_text() for text in figures["compared"].subfigs[1].legends[0].get_texts()]
    assert len(entries) == 2 and all(shown[:20] in entry.replace("\n", "") for entry in entries)
    assert shown[:20] in title_of(figures["loss"])
    labels = [label.get_text() for label in figures["confusion"].axes[0].get_yticklabels()]
    assert labels[0] == data.printable(shown, 20)
    for svg in (tmp_path / "out").glob("*.svg"):
        xml.etree.ElementTree.parse(svg)


def test_the_default_folder_is_the_runs_own_figures(trained, capsys):
    assert not visualize.main([str(trained), "--only", "error"])
    assert str(trained / "figures" / "error.png") in capsys.readouterr().out


def test_missing_pieces_are_skipped_with_a_reason(trained, tmp_path, capsys):
    (tmp_path / "history.csv").write_bytes((trained / "history.csv").read_bytes())
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    figures, skipped = draw_folder(tmp_path)
    assert set(figures) == {"summary", "loss", "accuracy", "error", "twin"}
    (reason,) = skipped
    assert "params.pkl" in reason and "fields" in skipped[reason]
    assert "small, 20-7-5-3, test accuracy" in title_of(figures["loss"])
    assert not visualize.main([str(tmp_path), "--only", "loss,fields"])
    assert is_one_clear_line(capsys.readouterr().err, "fields", "params.pkl")


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError])
def test_without_the_data_set_the_other_figures_are_drawn(trained, monkeypatch, error):
    def missing(*_):
        raise error("gone")

    monkeypatch.setattr(data, "load_dataset_of", missing)
    figures, skipped = draw_folder(trained, ["weights", "confusion", "activations"])
    assert set(figures) == {"weights_W1", "weights_W2", "weights_W3"}
    ((reason, names),) = skipped.items()
    assert "gone" in reason and names == ["confusion", "activations"]


def test_a_run_is_compared_from_inside_its_folder(trained, tmp_path, monkeypatch):
    other = shutil.copytree(trained, tmp_path / "other")
    here = shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(here)
    assert not visualize.main([".", str(other), "--only", "loss"])
    assert (tmp_path / "comparison" / "loss.png").exists() and not (here / "comparison").exists()


@pytest.mark.parametrize("first, second", [("runs/a", "runs/b"), ("results", "results/a"), ("a", "b")])
def test_an_overlay_is_written_beside_the_runs_but_not_into_the_folder_one_works_in(
    trained, tmp_path, monkeypatch, first, second
):
    for name in (first, second):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(trained / "history.csv", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert not visualize.main([first, second, "--only", "loss"])
    expected = {"runs/a": "runs", "results": "results", "a": "a"}[first]
    assert [str(path) for path in tmp_path.rglob("loss.png")] == [
        str(tmp_path / expected / "comparison" / "loss.png")
    ]


def test_long_labels_are_folded_to_the_page():
    rows = [row(1), row(2)]
    runs = [held(path=f"{n}{'long ' * 30}", rows=rows, network="", data_title="") for n in range(2)]
    figure = visualize.compare_figure(runs, "loss")
    labels = [text.get_text() for text in figure.subfigs[1].legends[0].get_texts()]
    assert max(len(line) for label in labels for line in label.splitlines()) <= 100


HEADER = ",".join(["epoch", *(column for column in row(1) if "_" in column)]) + "\n"


@pytest.mark.parametrize(
    "made, arguments, names",
    [
        (None, ["{tmp}/nowhere"], ["nowhere"]),
        (None, ["{tmp}"], ["{tmp}", "history.csv", "params.pkl"]),
        (None, ["{tmp}", "{tmp}"], ["{tmp}"]),
        (None, ["{tmp}", "--only", "los"], ["'los'", "loss"]),
        (None, ["{tmp}", "--onyl", "loss"], ["--onyl", "--only"]),
        (("history.csv", "epoch,x\n1,2\n"), ["{tmp}"], ["history.csv"]),
        (("history.csv", "epoch\n1,2\n"), ["{tmp}"], ["history.csv"]),
        (("params.pkl", "rubbish"), ["{tmp}"], ["params.pkl"]),
        (("config.json", "[]"), ["{tmp}"], ["config.json"]),
        (("config.json", '{"data": null}'), ["{tmp}"], ["{tmp}"]),
        (("history.csv", HEADER + ",1,1,1,1,1,1\n"), ["{tmp}"], ["history.csv"]),
        (("trials.csv", "trial,status\n1,finished\n"), ["{tmp}"], ["trials.csv"]),
        (None, ["{run}", "--draw", "--only", "loss"], ["--draw"]),
        (None, ["{run}", "--show", "--out", "x"], ["--out"]),
        (None, ["{run}", "--draw"], ["window"]),
        (None, ["{run}", "--show", "--only", "loss"], ["window"]),
    ],
)
def test_bad_input_gives_one_clear_line(trained, tmp_path, monkeypatch, made, arguments, names):
    if made:
        (tmp_path / made[0]).write_text(made[1])

    def filled(words):
        return [word.replace("{tmp}", str(tmp_path)).replace("{run}", str(trained)) for word in words]

    with matplotlib.rc_context({"backend": "agg"}):
        done = run("visualize.py", *filled(arguments), check=2)
    assert is_one_clear_line(done.stderr, "visualize.py", *filled(names))


# --- drawing ---


def test_a_stroke_is_a_round_line_and_leaves_the_drawing_alone():
    empty = np.zeros((40, 60))
    drawn = visualize.stroke(empty, (10, 20), (50, 20), radius=3)
    assert not empty.any()
    assert (drawn[20, 10:51] == 1).all() and drawn[20, 5] == 0 and drawn[20, 55] == 0
    assert (drawn[18:23, 30] == 1).all() and drawn[25, 30] == 0
    dot = visualize.stroke(empty, (30, 20), (30, 20), radius=4)
    assert dot[20, 30] == 1 and 40 < dot.sum() < 65


def test_drawing_with_the_mouse_moves_the_probabilities(trained):
    params, config = data.load_run(trained)
    figure = Figure(figsize=visualize.PAGE, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    window = visualize.drawing_window(figure, params, config)
    pad, bars = window["pad"], window["bars"]
    canvas.draw()

    def mouse(name, x, y, ax=pad):
        place = ax.transData.transform((x, y))
        canvas.callbacks.process(name, MouseEvent(name, canvas, *place, button=1))

    def ink():
        return float(np.asarray(window["ink"].get_array()).sum())

    assert [bar.get_width() for bar in bars] == [0, 0, 0]
    mouse("motion_notify_event", 40, 40)  # a move without a button pressed draws nothing
    assert ink() == 0
    mouse("button_press_event", 40, 40)
    for y in range(50, 100, 15):
        mouse("motion_notify_event", 40, y)
    mouse("button_release_event", 40, 95)
    assert ink() > 500 and np.asarray(window["seen"].get_array()).max() > 50
    assert sum(bar.get_width() for bar in bars) == pytest.approx(100, abs=0.01)
    image, estimates = visualize.read_drawing(np.asarray(window["ink"].get_array()), params, config)
    np.testing.assert_allclose([bar.get_width() for bar in bars], 100 * estimates, rtol=1e-5)
    np.testing.assert_array_equal(window["seen"].get_array(), image)
    before = ink()
    mouse("motion_notify_event", 100, 100)  # the button is up again
    assert ink() == before

    button = window["button"].ax  # no key is down when it is pressed
    mouse("button_press_event", 0.5, 0.5, button)
    mouse("button_release_event", 0.5, 0.5, button)
    assert ink() == 0 and [bar.get_width() for bar in bars] == [0, 0, 0]
    mouse("button_press_event", 40, 40)
    mouse("button_release_event", 40, 40)
    assert ink() > 0
    for key, cleared in (("x", False), ("c", True)):
        for name in ("key_press_event", "key_release_event"):
            canvas.callbacks.process(name, KeyEvent(name, canvas, key))
        assert (ink() == 0) == cleared


def test_a_stroke_redraws_only_what_changes(trained, monkeypatch):
    params, config = data.load_run(trained)
    figure = Figure(figsize=visualize.PAGE, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    blitted = []
    monkeypatch.setattr(canvas, "blit", blitted.append, raising=False)
    window = visualize.drawing_window(figure, params, config)
    canvas.draw()
    empty = np.array(canvas.buffer_rgba())
    monkeypatch.setattr(figure, "draw", lambda *_: pytest.fail("all of the window is drawn anew"))
    for name, y in (("button_press_event", 40), ("motion_notify_event", 90)):
        place = window["pad"].transData.transform((40, y))
        canvas.callbacks.process(name, MouseEvent(name, canvas, *place, button=1))
    assert len(blitted) == 2
    changed = (np.array(canvas.buffer_rgba()) != empty).any(axis=2)
    assert changed.any() and changed.mean() < 0.5
    monkeypatch.undo()
    stroke = np.array(canvas.buffer_rgba())
    canvas.draw()
    np.testing.assert_array_equal(canvas.buffer_rgba(), stroke)  # as if all of it had been


def test_figures_of_real_mnist_show_what_was_learned(real_data, tmp_path):
    out = make_run(tmp_path, "mnist", "--data-dir", real_data, "--epochs", 1, "--hidden", 0, "--lr", 0.05)
    figures, _ = draw_folder(out, ["fields", "confusion", "mistakes"], real_data)
    templates = images_of(figures["fields"])
    assert len(templates) == 10 and templates[0].shape == (28, 28)
    assert templates[0][12:16, 12:16].mean() < templates[0][12:16, 6:9].mean()  # a 0 is hollow
    assert len(images_of(figures["mistakes"])) == visualize.SHOWN_MISTAKES
    assert "MNIST, 784-10, test accuracy 9" in title_of(figures["confusion"])
