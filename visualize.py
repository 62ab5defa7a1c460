"""Every figure, from the files that runs and searches leave.

    python visualize.py                           figures of the run or search in results/
    python visualize.py results/a results/b       the curves of several runs, overlaid; of folders with
                                                  several runs their means, with a band of one sd
    python visualize.py --only loss,confusion     some of the figures
    python visualize.py --draw                    a window to draw digits in, with their probabilities

Figures go to the run's figures/ folder, each as PNG and SVG, and all of them as the pages of
report.pdf; without --only there is report.html as well, a page in which the network is live. A figure
function takes what a folder holds, the dict that ``load_folder`` describes, and returns a matplotlib
Figure, or a dict of them by name; it touches no file.
"""

import data  # first: while the rest is imported, Ctrl-C is one line already

# isort: split
import base64
import collections
import hashlib
import html
import io
import itertools
import json
import math
import os
import pathlib
import re
import sys
import textwrap
import time
import warnings

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullLocator

import nn
import test as judging
import train

STYLE = {  # one look for every figure, on top of Matplotlib's defaults, whatever a matplotlibrc says
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "figures",  # a fixed one makes the ids in an SVG the same each time
    "text.parse_math": False,  # a name such as $5 is no formula
}
LOOK = ["default", STYLE]
PAGE = (8, 5.5)  # inches, of every figure; an overlay of many runs is higher
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"  # Okabe & Ito's, safe for all eyes
PARTS = {  # part -> name, colour, line, marker: lines differ in black and white, too
    "train": ("train", BLUE, "-", "o"),
    "val": ("validation", ORANGE, "--", "s"),
    "test": ("test", GREEN, "-.", "^"),
}
RUN_COLOURS = [BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#e69f00", "#000000"]
RUN_LINES = ["-", "--", "-.", ":"]
# Negative is dark and blue, 0 grey, positive light and orange: lightness alone tells the sign.
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#06123f", "#2f66ad", "#a3a3a3", "#f2ab3d", "#fff6b8"], N=511
)
LOSS_LABELS = {
    "cross_entropy": "cross-entropy (nats per image)",
    "mse": "half squared error (per image)",
}
BARE = {"frame_on": False, "xticks": [], "yticks": []}  # axes of a picture
RING = {"ls": "", "marker": "o", "ms": 10, "mfc": "none", "mew": 1.5, "clip_on": False}  # at what was kept
ROUND = {"integer": True, "steps": [1, 2, 5, 10]}  # of ticks
SATURATED = {"tanh": (-0.95, 0.95), "sigmoid": (0.025, 0.975)}  # beyond them the slope is below a tenth
MARKED_EPOCHS = 30  # histories of up to so many epochs have a marker at each
SHORT_RUN = 5  # a run of up to so many epochs is shown whole
SHOWN_FIELDS, SHOWN_STARS = 300, 54
SHOWN_TEMPLATES = 100  # each with its name: Matplotlib takes minutes to lay out many axes
SHOWN_MISTAKES = 24
SALIENT_CLASSES = 10
RANKED_TRIALS, RANKED_COLUMNS = 25, 60
LABEL_SETTINGS = 4  # a label names no more of them
LABELLED_CLASSES = 20  # so many are named at an axis, and up to so many have their errors counted
DRAWING = (140, 140)  # pixels of the pad to draw on
PEN = 5.5  # radius of its pen in pixels: strokes as wide as MNIST's


# --- curves -----------------------------------------------------------------------------------


def curves_figure(run, quantity):
    """The curves of a run: of its loss, of its accuracy or, on a log axis, of its error."""
    figure = new_figure(f"{quantity.capitalize()} by epoch", run["title"])
    ax = figure.add_subplot()
    parts = parts_with(run["rows"], quantity)
    lines = [plot_part(ax, run, quantity, part, *PARTS[part]) for part in parts]
    epoch_axis(ax, [run], "range shown" * quantity_axis(ax, [run], quantity, parts))
    legend_above(ax, [*lines, *mark_chosen(ax, run)])
    return figure


def twin_figure(run):
    """Train and test loss on the left axis, test accuracy on the right one.

    A run without test images shows those of validation, or else of training.
    """
    part = (parts_with(run["rows"], "accuracy") or ["train"])[-1]
    name = PARTS[part][0]
    figure = new_figure(f"Loss and {name} accuracy by epoch", run["title"])
    left = figure.add_subplot()
    right = left.twinx()
    losses = list(dict.fromkeys(["train", part]))
    lines = [
        plot_part(left, run, "loss", each, f"{PARTS[each][0]} loss (left axis)", *PARTS[style][1:])
        for each, style in zip(losses, ("train", "val"))
    ]
    label = f"{name} accuracy (right axis)"
    lines.append(plot_part(right, run, "accuracy", part, label, *PARTS["test"][1:]))
    clipped = ["left axis"] * quantity_axis(left, [run], "loss", losses)
    clipped += ["right axis"] * quantity_axis(right, [run], "accuracy", [part])
    right.set_ylabel(f"{name} accuracy (%)")
    right.grid(False)
    right.spines["right"].set_visible(True)
    epoch_axis(left, [run], " and the ".join(clipped))
    legend_above(left, [*lines, *mark_chosen(left, run)], columns=2)
    return figure


def compare_figure(runs, quantity):
    """The curves of several runs: a panel for each part, a colour and a line for each run.

    The page grows with the legend, which names each run and says how it differs from the others.
    """
    labels = [textwrap.fill(label, 100, subsequent_indent="    ") for label in run_labels(runs)]
    columns = max(1, min(4, 122 // (8 + max(map(len, labels)))))
    lines = 1 + -(-sum(1 + label.count("\n") for label in labels) // columns)  # 1 for the title
    below = 0.17 * lines + 0.25  # inches
    heading = f"{quantity.capitalize()} of {len(runs)} runs by epoch"
    figure = new_figure(heading, common_title(runs), max(PAGE[1], 4.4 + below))
    parts = [part for part in PARTS if any(part in parts_with(run["rows"], quantity) for run in runs)]
    parts = parts or ["train"]  # no error above 0 to show on a logarithmic axis
    height = figure.get_figheight() - 0.5
    upper, lower = figure.subfigures(2, 1, height_ratios=[height - below, below])
    axes = upper.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for ax, part in zip(axes, parts):
        ax.set_title(PARTS[part][0])
        styles = zip(itertools.cycle(RUN_COLOURS), itertools.cycle(RUN_LINES))
        handles = [
            plot_part(ax, run, quantity, part, label, *style, ".")
            for run, label, style in zip(runs, labels, styles)
        ]
        clipped = quantity_axis(ax, runs, quantity, parts)
        epoch_axis(ax, runs, room=5)
        ax.label_outer()
    note = "circle: the epoch whose params are kept" + ", and its test accuracy" * ("test" in parts)
    note += "; epoch 1 lies outside the range" * clipped
    legend_below(lower, handles, labels, title=note, ncol=columns, fontsize=8, alignment="left")
    return figure


def plot_part(ax, run, quantity, part, label, colour, line, marker):
    """One curve, and a ring around its value at the epoch whose params were kept; returns the line."""
    epochs, values = [row["epoch"] for row in run["rows"]], values_of(run["rows"], quantity, part)
    marker = marker if len(epochs) <= MARKED_EPOCHS else None
    (curve,) = ax.plot(epochs, values, line, color=colour, marker=marker, label=label)
    sds = values_of(run["rows"], quantity, part, "_sd")
    if np.isfinite(sds).any():
        low = np.maximum(values / 2, values - sds) if quantity == "error" else values - sds  # on a log axis
        ax.fill_between(epochs, low, values + sds, color=colour, alpha=0.2, lw=0)
    if run["chosen"] in epochs:
        ax.plot([run["chosen"]], [values[epochs.index(run["chosen"])]], **RING, mec=colour)
    return curve


def mark_chosen(ax, run):
    """A line at the epoch whose params were kept; returns what explains it and the rings in a legend."""
    if run["chosen"] is None:
        return []
    label = f"epoch {run['chosen']}, whose params are kept"
    ax.axvline(run["chosen"], color=GREY, ls=":", lw=1, label=label)
    return [Line2D([], [], **{**RING, "ls": ":", "ms": 8}, color=GREY, lw=1, label=label)]


def values_of(rows, quantity, part, what=""):
    """A quantity of a part, or with ``_sd`` its deviation over runs, by epoch; nan where there is none."""
    column = f"{part}_{'loss' if quantity == 'loss' else 'accuracy'}{what}"
    values = np.array([row.get(column) for row in rows], float)
    if quantity == "error" and not what:
        values = np.where(values < 1, 1 - values, np.nan)
    return values if quantity == "loss" else 100 * values


def mean_rows(histories):
    """The history of several runs together: the mean of each figure, and its deviation as NAME_sd."""
    found = []
    for rows in zip(*histories):  # as far as all of them have come
        row = {}
        for name in ROW:
            values = [row[name] for row in rows]
            row[name], row[f"{name}_sd"] = (None, None) if None in values else nn.mean_and_sd(values)
        found.append(row)
    return found


def parts_with(rows, quantity):
    return [part for part in PARTS if np.isfinite(values_of(rows, quantity, part)).any()]


# --- weights ----------------------------------------------------------------------------------


def weights_figures(run):
    """A heat map of each weight matrix, with its longer side along the page and colours centred on 0."""
    params, config, figures = run["params"], run["config"], {}
    depth = len(params) // 2
    step = data.gradient_step(config["steps"]) or {"name": None}
    gradients = {"hog": "gradient", "pixels-and-hog": "input pixel, then gradient"}
    first = gradients.get(step["name"], "input pixel")
    if data.affine_step(config["steps"])["basis"] is not None:
        first = "principal component"
    sides = [first, *(f"unit of hidden layer {layer}" for layer in range(1, depth)), "class"]
    for layer in range(1, depth + 1):
        weights = params[f"W{layer}"]  # (inputs, outputs)
        inputs, outputs = weights.shape
        figure = new_figure(f"W{layer}: {inputs:,} × {outputs:,} weights", run["title"])
        ax = figure.add_subplot()
        axes = (ax.xaxis, ax.yaxis) if inputs >= outputs else (ax.yaxis, ax.xaxis)
        image = signed_image(ax, weights.T if inputs >= outputs else weights, aspect="auto")
        weight_colourbar(figure, image, "weight")
        for axis, side in zip(axes, sides[layer - 1 :]):
            axis.set_major_locator(MaxNLocator(**ROUND))
            axis.set_label_text(side)
        if layer == depth:
            label_classes(axes[1], config["data"]["class_names"])
        figures[f"weights_W{layer}"] = figure
    return figures


def fields_figure(run):
    """The receptive fields of the first layer on one sheet, strongest first; or a template for each class."""
    weights, shape, start = drawn_weights(run)
    linear = len(run["params"]) == 2
    if linear and weights.shape[1] <= SHOWN_TEMPLATES:
        return templates_figure(weights, shape, start, run)
    unit, units = ("class", "classes") if linear else ("hidden unit", "hidden units")
    order = np.argsort(-np.linalg.norm(weights, axis=0), kind="stable")
    of_stars = shape != run["config"]["data"]["image_shape"]  # they need more room
    shown = weights.T[order[: SHOWN_STARS if of_stars else SHOWN_FIELDS]].reshape(-1, *shape)
    which = f"{len(order):,} {units}, strongest first" if len(order) > 1 else unit
    if len(shown) < len(order):
        which = f"strongest {len(shown)} of {len(order):,} {units}"
    figure = new_figure(f"Receptive fields of the {which}", run["title"])
    ax = figure.add_subplot()
    across = round(math.sqrt(1.4 * len(shown) * (shape[0] + 2) / (shape[1] + 2)))
    image = signed_image(ax, mosaic(shown, min(len(shown), max(1, across))), signed_limit(shown))
    weight_colourbar(figure, image, f"weight from {start} to the {unit.split()[-1]}")
    ax.set_axis_off()
    return figure


def templates_figure(weights, shape, start, run):
    """The weights of each class of a network without hidden layers, as ``drawn_weights`` gives them."""
    names = run["config"]["data"]["class_names"]
    figure = new_figure("Class templates: the weights of each class", run["title"])
    axes = picture_grid(figure, len(names), shape)
    letters = 84 // axes[0].get_gridspec().ncols
    for ax, template, name in zip(axes, weights.T, names):
        image = signed_image(ax, template.reshape(shape), signed_limit(weights))
        ax.set_title(data.printable(name, letters), fontsize=9)
    label = f"weight from {start} to the class"
    weight_colourbar(figure, image, label, location="bottom", aspect=50, ax=axes)
    return figure


SPOKE = 4  # pixels of a picture from the middle of a cell to its edge


def drawn_weights(run):
    """W1 as pictures (rows * columns, units), their (rows, columns), and where their weights start.

    Those of gradients are a star in each cell: a spoke in each direction, towards what is brighter.
    """
    weights, config = run["params"]["W1"], run["config"]
    step, shape = data.gradient_step(config["steps"]), config["data"]["image_shape"]
    if step is None or step["name"] == "pixels-and-hog":
        start = "a pixel (those of gradients are not drawn)" if step else "a pixel"
        return data.weights_in_pixels(weights, config["steps"]), shape, start
    weights = data.weights_in_pixels(weights, [data.affine_step(config["steps"])])
    cells = [min(side, step["number"]) for side in step["shape"]]
    angles = np.arange(8)[:, None, None] * np.pi / 4
    y, x = np.mgrid[-SPOKE : SPOKE + 1, -SPOKE : SPOKE + 1]
    ahead = x * np.cos(angles) + y * np.sin(angles)
    aside = np.abs(y * np.cos(angles) - x * np.sin(angles))
    spokes = ((ahead > 0.5) & (aside < 0.5)).astype(weights.dtype)  # (8, rows, columns)
    stars = np.einsum("drcu,dyx->rycxu", weights.reshape(8, *cells, -1), spokes)
    shape = [cells[0] * len(y), cells[1] * len(x)]
    return stars.reshape(math.prod(shape), -1), shape, "a direction in a cell"


def histogram_figure(run):
    """How the weights of each layer are distributed: a histogram for each."""
    depth = len(run["params"]) // 2
    figure = new_figure("Distribution of each layer's weights", run["title"])
    across = math.ceil(math.sqrt(depth))
    for layer in range(1, depth + 1):
        weights = run["params"][f"W{layer}"].ravel()
        ax = figure.add_subplot(-(-depth // across), across, layer, xlabel="weight")
        count_axis(ax, ax.hist(weights, bins=80, color=BLUE)[0])
        ax.axvline(0, color=GREY, lw=1)
        ax.set(title=f"W{layer}: standard deviation {weights.std():.3g}", ylabel="number of weights")
    return figure


def activations_figures(run):
    """For each hidden layer the distribution of its outputs, and how often each unit is at work.

    A relu unit is of no use when it fires for no image; one of tanh or sigmoid when it is always
    saturated, so that its gradient is nearly 0.
    """
    figures = {}
    for layer, activations in enumerate(run["hidden"], start=1):  # (n, width)
        width, limits = activations.shape[1], SATURATED.get(run["config"]["activation"])
        if limits:
            low, high = limits
            counted = (activations < low) | (activations > high)
            what, state = f"below {low:g} or above {high:g}".replace("-", "−"), "saturated"
            units = f"{int(counted.all(axis=0).sum())} of {width:,} units always saturated"
        else:
            counted, what, state = activations > 0, "above 0", "active"
            units = f"{int((~counted.any(axis=0)).sum())} of {width:,} units never fire"
        figure = new_figure(f"Activations of hidden layer {layer}: {units}", run["title"])
        left, right = figure.subplots(1, 2)
        every = max(1, activations.size // 2_000_000)  # so many are enough for a histogram
        count_axis(left, left.hist(activations.ravel()[::every], bins=80, color=BLUE)[0])
        left.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        left.set(xlabel="activation", ylabel="number of activations")
        left.set_title(f"{judging.percent(counted.mean())} are {what}")
        share = 100 * np.sort(counted.mean(axis=0))[::-1]  # (width,)
        right.stairs(share, np.arange(width + 1) + 0.5, fill=True, color=ORANGE)
        right.xaxis.set_major_locator(MaxNLocator(**ROUND))
        right.set(xlabel=f"hidden unit, the most often {state} first", ylabel=f"{run['judged']} (%)")
        right.set(xlim=(0.5, width + 0.5), ylim=(0, 100), title=f"how often each unit is {state}")
        figures[f"activations_{layer}"] = figure
    return figures


def mosaic(pictures, across, gap=2):
    """Pictures (n, rows, columns) on one sheet, so many in each row, with gaps of nan between them."""
    n, rows, columns = pictures.shape
    down = -(-n // across)
    sheet = np.full((down * across, rows + gap, columns + gap), np.nan, np.float32)
    sheet[:n, :rows, :columns] = pictures
    sheet = sheet.reshape(down, across, rows + gap, columns + gap).swapaxes(1, 2)
    return sheet.reshape(down * (rows + gap), across * (columns + gap))[:-gap, :-gap]


# --- predictions ------------------------------------------------------------------------------


def confusion_of(run):
    names = run["config"]["data"]["class_names"]
    return names, nn.confusion_matrix(run["labels"], run["estimates"].argmax(axis=1), len(names))


def confusion_figure(run):
    """Confusion matrix with counts; colours show the errors alone, which are few."""
    names, counts = confusion_of(run)
    figure = new_figure(f"Confusion matrix of the {run['judged']}", run["title"], layout="compressed")
    ax = figure.add_subplot()
    errors = np.ma.masked_array(counts, np.eye(len(counts), dtype=bool))
    cmap = matplotlib.colormaps["Oranges"].with_extremes(bad="#d9d9d9")
    most = max(1, int(errors.filled(0).max()))
    image = ax.imshow(errors, cmap=cmap, vmin=0, vmax=most, interpolation="none")
    bar = figure.colorbar(image, label="wrongly classified images", fraction=0.05)
    bar.ax.yaxis.set_major_locator(MaxNLocator(**ROUND))
    ax.grid(False)
    ax.set(xlabel="prediction", ylabel="label")
    label_classes(ax.xaxis, names)
    label_classes(ax.yaxis, names)
    if len(names) <= LABELLED_CLASSES:
        for row, column in np.argwhere(counts):
            count = counts[row, column]
            dark = row != column and count > 0.6 * most
            ax.text(column, row, f"{count}", ha="center", va="center", size=8, color="w" if dark else "k")
    return figure


def mistakes_figure(run):
    """The wrongly classified pictures of the most confident predictions, with label and prediction."""
    names, worst = run["config"]["data"]["class_names"], run["mistakes"][:SHOWN_MISTAKES]
    space, line = ("   ", " ") if max(map(len, names)) <= 2 else ("\n", "\n")  # on one line, or on three
    texts = []
    for label, estimate in zip(run["labels"][worst], run["estimates"][worst]):
        before, after = (data.printable(names[k], 11) for k in (label, estimate.argmax()))
        texts.append(f"{before} →{line}{after}{space}{100 * min(1, estimate.max()):.1f} %")
    heading = "The most confident mistakes: label → prediction, its probability"
    return pictures_figure(heading, run["title"], run["images"][worst], texts, run)


def suspects_figure(run):
    """The training images whose own label is least likely to a network that did not train on them."""
    names, rows = run["config"]["data"]["class_names"], run["suspects"]
    texts = []
    for row in rows:
        label, prediction = (data.printable(names[row[key]], 11) for key in ("label", "prediction"))
        texts.append(f"{row['index']}: {100 * row['probability']:.2f} %\n{label}\n→ {prediction}")
    heading = "Suspects: training image, probability of its label, label → prediction"
    return pictures_figure(heading, run["search_title"], [row["image"] for row in rows], texts, run)


def pictures_figure(heading, title, images, texts, run):
    """Images in a grid, with texts of as many lines each above them."""
    shape = run["config"]["data"]["image_shape"]
    figure = new_figure(heading, title)
    axes = picture_grid(figure, len(images), shape, 1 + texts[0].count("\n"))
    for ax, image, text in zip(axes, images, texts):
        ax.imshow(image.reshape(shape), **picture_style(run))
        ax.set_title(text, fontsize=8, pad=2)
    return figure


def picture_style(run):
    """How images are drawn: digits, light on dark for a network, as ink on paper, all else as it is."""
    is_digit = run["config"]["data"].get("fit") == "digit"
    return {"cmap": "gray_r" if is_digit else "gray", "vmin": 0, "vmax": 255}


def saliency_figure(run):
    """A test image of each class, and below it what speaks for and against the likeliest class."""
    facts, shown = run["config"]["data"], run["explained"]
    rows, columns = facts["image_shape"]
    heading = "What speaks for the likeliest class (orange), and what against it (blue)"
    figure = new_figure(heading, run["title"])
    axes = picture_grid(figure, len(shown), (2.1 * rows, columns))
    for ax, i in zip(axes, shown):
        above, below = (0, columns, 0, rows), (0, columns, -1.1 * rows, -0.1 * rows)
        ax.imshow(run["images"][i].reshape(rows, columns), **picture_style(run), extent=above)
        ax.set_title(data.printable(facts["class_names"][run["estimates"][i].argmax()], 11), fontsize=8)
        evidence = judging.evidence(run["params"], run["config"], run["images"][i])
        image = signed_image(ax, evidence / (np.abs(evidence).max() or 1), 1, extent=below)
        ax.set_ylim(below[2], rows)
    label = "slope of the log probability × grey level, as a share of the largest"
    figure.colorbar(image, label=label, location="bottom", aspect=50, ax=axes)
    return figure


def worst_mistakes(estimates, labels):
    """Indices of the wrongly classified images, the most confident prediction first."""
    predicted, confidence = estimates.argmax(axis=1), estimates.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


def augment_figure(run):
    """An image of each class, some of each where there are few, beside distorted versions of it."""
    config, rng = run["config"], np.random.default_rng(0)
    steps = data.without_gradients(config["steps"])
    shape = data.shape_after(steps, config["data"]["image_shape"])
    strengths = {name: config[name] for name in data.STRENGTHS if name in config}
    how = data.make_augment(config["augment"], shape, **strengths)
    classes = np.unique(run["labels"])[:10]
    each = -(-5 // len(classes))
    first = np.concatenate([np.flatnonzero(run["labels"] == k)[:each] for k in classes])
    images = data.redraw(run["images"][first], steps)
    blank = np.full(images.shape, np.nan, np.float32)
    shown = np.stack([images, blank, *(data.augment(images, how, rng) for _ in range(14))], axis=1)
    figure = new_figure("Images of each class, and as distorted for fourteen epochs", run["title"])
    ax = figure.add_subplot()
    ax.imshow(mosaic(shown.reshape(-1, *shape), across=16), **picture_style(run))
    ax.set_axis_off()
    return figure


def calibration_figure(run):
    """Confidence of the predictions against their accuracy, and how many there are of each."""
    confidence = run["estimates"].max(axis=1).clip(0, 1).astype(float)
    correct = run["estimates"].argmax(axis=1) == run["labels"]
    counts, mean_confidence, accuracy, error = calibration(confidence, correct)
    figure = new_figure(f"Calibration: expected calibration error {judging.percent(error)}", run["title"])
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    (perfect,) = upper.plot([0, 100], [0, 100], ":", color=GREY, label="perfect calibration")
    (ours,) = upper.plot(100 * mean_confidence, 100 * accuracy, "o-", color=BLUE, label="this network")
    upper.set(ylabel="accuracy (%)", ylim=(-3, 103))
    legend_above(upper, [perfect, ours])
    edges = np.linspace(0, 100, len(counts) + 1)
    lower.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE, edgecolor="w")
    count_axis(lower, counts, room=5)
    lower.set(xlabel="confidence: probability of the prediction (%)", ylabel=run["judged"], xlim=(0, 102))
    return figure


def calibration(confidence, correct, bins=10):
    """Accuracy by confidence, in bins of equal width, and the expected calibration error (Guo et al. 2017).

    Takes the confidence (n,) of each prediction, and whether it is correct. Returns three arrays (bins,), the
    counts, the mean confidence and the accuracy (nan in an empty bin), and the mean distance between the
    last two, weighted by the counts.
    """
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin is 0 / 0
        mean_confidence = np.bincount(which, confidence, bins) / counts
        accuracy = np.bincount(which, correct, bins) / counts
    error = float(np.nansum(counts * np.abs(mean_confidence - accuracy)) / len(confidence))
    return counts, mean_confidence, accuracy, error


# --- searches ---------------------------------------------------------------------------------


def search_figure(run):
    """Validation accuracy of each trial against each searched setting."""
    trials, space = run["trials"], run["space"]
    figure = new_figure("Validation accuracy against each searched setting", run["search_title"])
    across = min(3, len(space))
    down = -(-len(space) // across)
    upper, lower = figure.subfigures(2, 1, height_ratios=[down, 0.1])
    accuracy, sd = accuracies_of(trials)
    floor = floor_of(accuracy - sd)
    axes = upper.subplots(down, across, sharey=True, squeeze=False)
    for ax in axes.ravel()[len(space) :]:
        ax.set_axis_off()
    for ax, (name, spec) in zip(axes.ravel(), space.items()):
        places = setting_axis(ax, name, spec, trials)
        plot_trials(ax, run, trials, places, np.maximum(floor, accuracy))
        if sd.any():
            ends = np.maximum(floor, [accuracy - sd, accuracy + sd])
            ax.vlines(places, *ends, color=GREY, lw=1, zorder=1, label="one standard deviation of the runs")
    for ax in axes[:, 0]:
        ax.set_ylabel("validation accuracy (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if below := np.count_nonzero(accuracy < floor):
        handles.append(Line2D([], [], ls=""))
        labels.append(f"{below} at the bottom lie lower still")
    legend_below(lower, handles, labels, ncol=4)
    return figure


def accuracies_of(trials):
    """Validation accuracy of each trial in percent, and its deviation over runs, 0 where there is none."""
    return (100 * np.array([trial.get(key, 0) for trial in trials]) for key in ("val_accuracy", "val_sd"))


def plot_trials(ax, run, trials, x, y):
    """A mark for each trial (the best first) at x and y, two arrays; halving ends some after fewer epochs."""
    halving = run.get("definition", {}).get("strategy") == "halving"
    epochs, others = np.array([trial["epochs"] for trial in trials]), np.arange(len(trials)) > 0
    fewer = others & halving & (epochs < epochs.max())
    for label, chosen, marker, colour, inside, size in (
        ("the best", ~others, "*", ORANGE, ORANGE, 14),
        ("all epochs" if halving else "the others", others & ~fewer, "o", BLUE, BLUE, 5),
        ("fewer epochs", fewer, "o", BLUE, "none", 5),
    ):
        if chosen.any():
            order = 3 if colour == ORANGE else 2  # the best in front
            style = {"color": colour, "mfc": inside, "ms": size, "zorder": order}
            ax.plot(x[chosen], y[chosen], marker, label=label, **style)


def setting_axis(ax, name, spec, trials):
    """Set up an x-axis for a setting; returns the places of the trials on it.

    ``spec`` is its range, as ``0.1:1`` or ``1e-7:1e-4:log``, or its choices, as ``0,0.9``.
    """
    values = [trial[name] for trial in trials]
    ax.set_xlabel(name)
    if ":" in spec and all(isinstance(value, (int, float)) for value in values):
        if spec.endswith(":log") and min(values) > 0:
            log_axis(ax, "x", values, room=4)
        else:
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            ax.margins(x=0.1)
        return np.array(values)
    choices = sorted(set(values), key=lambda v: (0, v) if isinstance(v, (int, float)) else (1, str(v)))
    most = max(4, 30 // len(choices))  # letters of a choice, so that they do not touch
    ax.set_xticks(range(len(choices)), [data.printable(short(choice), most) for choice in choices])
    ax.set_xlim(-0.5, len(choices) - 0.5)
    return np.array([choices.index(value) for value in values])


def floor_of(values):
    """The lowest value that is worth the space on an axis: outliers lie below."""
    low, high = np.percentile(values, [25, 75])
    return max(np.min(values), low - 3 * (high - low))


def ranking_figure(run):
    """The best trials, each a line with its settings and its validation accuracy."""
    trials, shown = run["trials"], run["trials"][:RANKED_TRIALS]
    names = list(run["space"])
    if len({trial["epochs"] for trial in trials}) > 1:
        names = ["epochs", *(name for name in names if name != "epochs")]
    heading = f"The best {len(shown)} of {len(trials)} trials" if len(shown) < len(trials) else "All trials"
    figure = new_figure(f"{heading}, ranked by validation accuracy", run["search_title"])
    ax = figure.add_subplot()
    accuracy, sd = accuracies_of(shown)
    places = np.arange(1, len(shown) + 1)
    plot_trials(ax, run, shown, accuracy, places)
    legend_above(ax, ax.lines, side="right")
    ax.hlines(places, accuracy - sd, accuracy + sd, color=GREY, lw=1, zorder=1)
    head, *lines = ranking_lines(shown, names)
    ax.set_yticks(places, lines, family="monospace")
    ax.set_ylim(len(shown) + 0.6, 0.4)
    ax.tick_params(axis="y", length=0, pad=4)
    above = {"xytext": (-4, 4), "textcoords": "offset points", "ha": "right"}  # in line with the labels
    ax.annotate(head, (0, 1), xycoords="axes fraction", family="monospace", size=8, **above)
    repeats = "; lines: one standard deviation of the runs" if "runs" in trials[0] else ""
    ax.set_xlabel(f"validation accuracy (%){repeats}")
    return figure


def ranking_lines(trials, names):
    """A heading and a line for each trial, with as many of the named settings as half of the page takes."""
    for count in range(len(names), 0, -1):
        columns, more = ["trial", *names[:count]], ["…"] * (count < len(names))
        rows = [[data.printable(short(trial[name]), 36) for name in columns] for trial in trials]
        rows = [columns + more, *(row + [""] * len(more) for row in rows)]
        lines = judging.table_lines(rows, first=str.rjust)
        if len(lines[0]) <= RANKED_COLUMNS:
            break
    return lines


def learning_curves_figure(run):
    """Validation accuracy of all trials by epoch, the best one in colour; of repeats mean and band.

    A few combinations with repeats have a colour each.
    """
    best = run["trials"][0]["trial"]
    runs = {trial: {"rows": rows, "config": {}, "chosen": None} for trial, rows in run["histories"].items()}
    figure = new_figure(f"Learning curves of {data.count(len(runs), 'trial')}", run["search_title"])
    ax = figure.add_subplot()
    few = "runs" in run["trials"][0] and len(runs) <= len(RUN_COLOURS)
    rows = {row["trial"]: row for row in run["trials"]}
    for place, trial in sorted(enumerate(runs), key=lambda pair: pair[1] == best):  # the best is drawn last
        label, colour, style = "the others", "#999999", "-"
        if few:
            words = ", ".join(f"{name} {short(rows[trial][name])}" for name in run["space"])
            label = f"trial {trial}: {data.printable(words, 40)}"
            colour, style = RUN_COLOURS[place], RUN_LINES[place % len(RUN_LINES)]
        elif trial == best:
            label, colour = f"trial {trial}, the best", ORANGE
        line = plot_part(ax, runs[trial], "accuracy", "val", label, colour, style, ".")
        line.set_linewidth(2.5 if trial == best else 0.8 + few)
    clipped = quantity_axis(ax, runs.values(), "accuracy", ["val"])
    ax.set_ylabel("validation accuracy (%)")
    epoch_axis(ax, runs.values(), "range shown" * clipped)
    lines = list({line.get_label(): line for line in ax.lines[::-1]}.values())
    legend_above(ax, lines, columns=2 if few else 4)
    return figure


# --- a first page -----------------------------------------------------------------------------


def summary_figure(run):
    """What was trained or searched, on which data, and what it reached: the first page of a report."""
    figure = new_figure("Summary", run["search_title"] if "trials" in run else run["title"])
    blocks = list(summary_blocks(run).items())
    sizes = [len(lines) + 3.5 for _, lines in blocks]  # in lines of text
    longest, count = min((max(sum(sizes[:n]), sum(sizes[n:])), n) for n in range(1, len(blocks) + 1))
    line = min(0.0225, 0.87 / longest)  # of the page's height
    style = {"family": "monospace", "size": 310 * line, "linespacing": 1.25}
    for x, column in ((0.05, blocks[:count]), (0.53, blocks[count:])):
        y = 0.88
        for heading, lines in column:
            figure.text(x, y, heading, va="top", weight="bold")
            figure.text(x, y - 2 * line, "\n".join(lines), va="top", **style)
            y -= line * (len(lines) + 3.5)
    return figure


def summary_blocks(run):
    """Heading -> lines; the settings first."""
    definition, facts, rows = run.get("definition", {}), run["config"]["data"], run.get("rows", [])
    blocks = {"Settings": name_lines(run["settings"])}
    if "trials" in run:
        told = {name: definition[name] for name in SEARCHED if name in definition and name != "space"}
        blocks = {"Search": name_lines({**told, **(definition.get("settings") or {}), **run["space"]})}
        best = dict(run["trials"][0])
        if "runs" in best:
            del best["seed"]  # each has another
        blocks["The best trial"] = name_lines(best)
    if facts.get("image_shape") and facts.get("class_names"):
        shape, names = " × ".join(map(str, facts["image_shape"])), facts["class_names"]
        about = f"{len(names)} classes of images of {shape} pixels: {', '.join(names)}"
        blocks["Data"] = [run["data_title"], *textwrap.wrap(about, 60, max_lines=5, placeholder=" …")]
    for row in rows:
        words = ["the last"] * (row is rows[-1]) + ["kept"] * (row["epoch"] == run["chosen"])
        lines = [["", "loss", "accuracy"]]
        for part, (name, *_) in PARTS.items():
            loss, accuracy = row[f"{part}_loss"], row[f"{part}_accuracy"]
            if None not in (loss, accuracy):
                lines.append([name, f"{loss:.4f}", judging.percent(accuracy)])
        if words:
            heading = f"Epoch {row['epoch']}, {' and '.join(words)}"
            blocks[heading] = judging.table_lines(lines, first=str.rjust)
    if versions := run["config"].get("versions") or definition.get("versions"):
        blocks["Made with"] = name_lines(versions)
    return blocks


def name_lines(values):
    pairs = [(data.printable(name, 30), data.printable(short(value), 36)) for name, value in values.items()]
    return [f"{name:16} {value}" for name, value in pairs]


# --- names and labels -------------------------------------------------------------------------


def short(value):
    """A setting's value as a reader writes it, its numbers rounded to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None or value == [] else data.setting_text(value)


def run_labels(runs):
    """A label for each run: its folder's name, what is particular to it, and how well it did."""
    values = {name: [run["config"].get(name) for run in runs] for name in train.DEFAULTS}
    labels = []
    for number, (folder, run) in enumerate(zip(folder_names([run["path"] for run in runs]), runs)):
        # what more than half of the runs have is not worth a word
        own = {name: of[number] for name, of in values.items() if 2 * of.count(of[number]) <= len(runs)}
        words = [data.printable(f"{name} {short(value)}", 40) for name, value in own.items()]
        words[LABEL_SETTINGS:] = ["…"] * (len(own) > LABEL_SETTINGS)
        accuracy = (chosen_row(run) or run["rows"][-1])["test_accuracy"]
        if accuracy is not None:
            words.append(f"test {judging.percent(accuracy)}".replace(" ", "\xa0"))
        labels.append(": ".join(filter(None, [data.printable(folder, 60), ", ".join(words)])))
    return labels


def chosen_row(run):
    """Of its history the epoch whose params were kept; None where there is none."""
    return next((row for row in run.get("rows", []) if row["epoch"] == run["chosen"]), None)


def folder_names(paths):
    """The last part of each path, or as many of the last parts as tell the paths apart."""
    paths = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def common_title(runs):
    """What several runs are about: their data sets, and the network where it is the same."""
    whole = dict.fromkeys(run["network"] for run in runs)
    return "; ".join(whole if len(whole) == 1 else dict.fromkeys(run["data_title"] for run in runs))


# --- pages and axes ---------------------------------------------------------------------------


def new_figure(heading, title, height=PAGE[1], layout="constrained"):
    """An empty page with its two lines of title."""
    figure = Figure(figsize=(PAGE[0], height), layout=layout)
    figure.suptitle(f"{heading}\n{textwrap.shorten(title, 110, placeholder=' …')}" if title else heading)
    return figure


def legend_above(ax, handles, columns=4, side="left"):
    place = {"loc": f"lower {side}", "bbox_to_anchor": (int(side == "right"), 1), "borderaxespad": 0.2}
    ax.legend(handles=handles, ncol=columns, **place)


def legend_below(subfigure, handles, labels, **options):
    """A legend that fills a part of the page; a label with an underscore in front would be left out."""
    labels = [f" {label}" if label.startswith("_") else label for label in labels]
    subfigure.legend(handles, labels, loc="upper left", borderaxespad=0, labelspacing=0.3, **options)


def epoch_axis(ax, runs, clipped="", room=10):
    """Round epochs on the x-axis, which also says outside of what the first lies, if it does."""
    epochs = max(run["rows"][-1]["epoch"] for run in runs)
    ticks = MaxNLocator(room, **ROUND).tick_values(0, epochs)
    ticks = [int(tick) for tick in ticks if 1 <= tick <= epochs]
    ax.set_xticks([1, *ticks] if ticks[0] >= 5 else ticks)
    margin = 0.2 + 0.02 * epochs
    ax.set_xlim(1 - margin, epochs + margin)
    ax.set_xlabel(f"epoch (the first lies outside the {clipped})" if clipped else "epoch")


def quantity_axis(ax, runs, quantity, parts):
    """Label and range of the y-axis for curves of runs; returns whether the first epoch is outside it."""
    curves = [values_of(run["rows"], quantity, part) for run in runs for part in parts]
    losses = {run["config"].get("loss") for run in runs}
    loss = LOSS_LABELS.get(losses.pop() if len(losses) == 1 else None, "loss")
    ax.set_ylabel({"loss": loss, "accuracy": "accuracy (%)", "error": "error (%)"}[quantity])
    if quantity == "error":
        log_axis(ax, "y", np.concatenate([[np.nan], *curves]))
        drawn = [curve for curve in curves if not np.isnan(curve).all()]
        if not drawn or any(np.isnan(curve).any() for curve in drawn):
            ax.set_ylabel("error (%); no point where it is 0")
        return False
    limits = clipped_range(curves)
    perfect = quantity == "accuracy" and np.nanmin(np.concatenate([[100.0], *curves])) == 100
    if limits or perfect:
        ax.set_ylim(limits or (90, 100.5))
    return limits is not None


def clipped_range(curves):
    """y-range without the first epoch, where that leaves less than a quarter to all others; else None."""
    if min(map(len, curves), default=0) <= SHORT_RUN:
        return None
    whole, later = (np.concatenate([curve[start:] for curve in curves]) for start in (0, 1))
    whole, later = np.ma.masked_invalid(whole), np.ma.masked_invalid(later)
    low, high = later.min(), later.max()
    if not whole.max() - whole.min() > 4 * (high - low) > 0:  # nor where all is masked
        return None
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def log_axis(ax, name, values, room=10):
    """Make the x- or y-axis a log axis of values, with ticks in plain numbers, at least two of them."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (1, 10)
    margin = (high / low) ** 0.05
    low, high = low / margin, high * margin
    while len(ticks := log_ticks(low, high, room)) < 2:
        low, high = low / 1.1, high * 1.1
    ax.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    set_ticks(getattr(ax, f"{name}axis"), ticks)


def log_ticks(low, high, room):
    """Round numbers from low to high, as many as there is room for: 1, 2, 3, ... or 1, 2, 5, 10, ..."""
    powers = range(math.floor(math.log10(low)), math.ceil(min(308, math.log10(high))) + 1)
    for factors, step in (range(1, 10), 1), ((1, 2, 5), 1), *(((1,), step) for step in range(1, 100)):
        ticks = [float(f"{factor}e{power}") for power in powers if power % step == 0 for factor in factors]
        ticks = [tick for tick in ticks if low <= tick * 1.000001 and tick <= high * 1.000001]
        if len(ticks) <= room:
            break
    return ticks


def set_ticks(axis, ticks):
    axis.set_ticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def count_axis(ax, counts, room=7):
    """A log y-axis of bars: it starts below 1, so that a bar of 1 is seen."""
    most = max(1, *counts)
    ax.set(yscale="log", ylim=(0.5, 2 * most))
    set_ticks(ax.yaxis, log_ticks(1, most, room))


def label_classes(axis, names):
    """Name the classes at an axis; of many every second, third and so on."""
    shown = range(0, len(names), -(-len(names) // LABELLED_CLASSES))
    names = [names[k] for k in shown]
    axis.set_ticks(shown, names)
    if axis.axis_name == "x" and max(map(len, names)) > 3:
        for label in axis.get_ticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def signed_image(ax, array, limit=None, **options):
    """Draw an array in colours centred on 0; few values lie beyond the limit, in its colour.

    Its values are not mixed with their neighbours': an SVG or PDF holds all of them, and a PNG as
    many as it has pixels.
    """
    limit = limit or signed_limit(array)
    ax.grid(False)
    return ax.imshow(array, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="none", **options)


def signed_limit(array):
    """The symmetric limit of a colour scale: what one value in 500 exceeds, so that the rest has contrast."""
    return float(np.quantile(np.abs(array), 0.998)) or 1.0


def weight_colourbar(figure, image, label, **options):
    beyond = np.abs(image.get_array()).max() > image.norm.vmax
    figure.colorbar(image, label=label, fraction=0.05, extend="both" if beyond else "neither", **options)


def picture_grid(figure, count, shape, lines=1):
    """Axes without ticks for pictures of a shape with lines of text above, as large as the page allows."""
    text = 0.15 * lines + 0.05  # inches

    def scale(across):  # inches of a picture's pixel
        width, height = PAGE[0] / across, (PAGE[1] - 0.5) / -(-count // across)
        return min(0.95 * width / shape[1], (height - text) / shape[0])

    across = max(range(1, count + 1), key=scale)
    return [figure.add_subplot(-(-count // across), across, place + 1, **BARE) for place in range(count)]


# --- from folders to figures to files ---------------------------------------------------------

FIGURES = {  # name -> what a folder must hold for it, the function that draws it, its options
    "summary": ("settings", summary_figure, {}),
    "loss": ("rows", curves_figure, {"quantity": "loss"}),
    "accuracy": ("rows", curves_figure, {"quantity": "accuracy"}),
    "error": ("rows", curves_figure, {"quantity": "error"}),
    "twin": ("rows", twin_figure, {}),
    "weights": ("params", weights_figures, {}),
    "fields": ("params", fields_figure, {}),
    "histogram": ("params", histogram_figure, {}),
    "activations": ("hidden", activations_figures, {}),
    "confusion": ("images", confusion_figure, {}),
    "mistakes": ("mistakes", mistakes_figure, {}),
    "saliency": ("explained", saliency_figure, {}),
    "calibration": ("images", calibration_figure, {}),
    "augment": ("distorted", augment_figure, {}),
    "search": ("trials", search_figure, {}),
    "ranking": ("trials", ranking_figure, {}),
    "learning_curves": ("histories", learning_curves_figure, {}),
    "suspects": ("suspects", suspects_figure, {}),
}
COMPARED = ("loss", "accuracy", "error")  # what several runs are overlaid in
TEST_SET = ("images", "hidden", "mistakes", "explained", "distorted", "suspects")  # what needs the data set
LACKING = {  # why a folder has no such thing
    "settings": "there is no config.json with settings",
    "rows": "there is no history.csv with an epoch",
    "params": "there is no params.pkl",
    "hidden": "the network has no hidden layer",
    "mistakes": "no image is classified wrongly",
    "explained": "the network sees gradients (hog), not pixels",
    "distorted": "the run has no --augment",
    "trials": "there is no trials.csv with a trial that ended well",
    "histories": "there is no trials/NNN/history.csv",
    "suspects": "there is no oof.csv; python search.py --folds 5 writes one",
}


def load_run(path, only, data_dir):
    """What a folder holds, and of the test set what the figures need."""
    run = load_folder(path)
    if "params" in run and any(FIGURES[name][0] in TEST_SET for name in only or names_for(run)):
        run = add_test_set(run, data_dir)
    return run


def draw_run(run, only):
    """``(figures, skipped)`` of what ``load_run`` returns: figures by file name; reason -> names left out."""
    figures, skipped = {}, {}
    lacking = LACKING | (dict.fromkeys(TEST_SET, run["why"]) if "why" in run else {})
    for name in only or names_for(run):
        need, function, options = FIGURES[name]
        if need in run:
            drawn = function(run, **options)
            figures |= drawn if isinstance(drawn, dict) else {name: drawn}
        else:
            skipped.setdefault(lacking[need], []).append(name)
    return figures, skipped


def names_for(run):
    """The figures that belong to what a folder is: a run, a search or both."""
    is_search = (run["path"] / "trials.csv").exists()
    is_run = bool({"rows", "params"} & set(run)) or not is_search
    belongs = {
        "settings": "settings" in run,
        "trials": is_search,
        "histories": is_search,
        "distorted": is_run and run["config"].get("augment"),
        "suspects": "oof" in run,
    }
    return [name for name, (need, *_) in FIGURES.items() if belongs.get(need, is_run)]


def draw_comparison(paths, only):
    """``(figures, skipped)`` of several runs overlaid; as ``draw_run``."""
    runs, skipped = [], {}
    for run in map(load_runs, paths):
        if "rows" in run:
            runs.append(run)
        else:
            skipped.setdefault(LACKING["rows"], []).append(str(run["path"]))
    if others := [name for name in only or [] if name not in COMPARED]:
        skipped["it is drawn for one run at a time"] = others
    names = [name for name in only or COMPARED if name in COMPARED]
    return {name: compare_figure(runs, name) for name in names if len(runs) > 1}, skipped


def save_figures(figures, folder):
    """Write each figure as PNG and SVG, and all of them as report.pdf; prints a line for each file.

    The same figures give the same bytes: nothing written holds a date. Returns the PNGs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    report = io.BytesIO()
    with PdfPages(report, metadata={"CreationDate": None}) as pages:
        for name, figure in figures.items():
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # laid out once is enough for three files
            for suffix, metadata in (("png", None), ("svg", {"Date": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=suffix, metadata=metadata)
                save_file(folder / f"{name}.{suffix}", buffer.getvalue())
                pictures += [buffer.getvalue()] * (suffix == "png")
            pages.savefig(figure)
    save_file(folder / "report.pdf", report.getvalue())
    return pictures


def save_file(path, content):
    nn.save_bytes(path, content)
    data.say(str(path))


# --- what a folder holds ----------------------------------------------------------------------

NUMBER = (int, float, None)
CONFIG = {  # what config.json must hold, and what it may
    "data?": {"title?": str, "image_shape?": [int], "class_names?": [str]},
    "hidden?": [int],
    "loss?": str,
    "dataset?": str,
    "versions?": {str: str},
    "result?": {"kept?": {"epoch?": int}},
}
ROW = {"epoch": int, **{f"{part}_{name}": NUMBER for part in PARTS for name in ("loss", "accuracy")}}
TRIAL = {"trial": int, "status": str, "seed": int, "epochs": int, "val_accuracy": NUMBER}
ENDED_WELL = ("finished", "stopped")  # the status of trials that are ranked
DEFINITION = {"space": str, "settings?": dict, "versions?": {str: str}}
OUT_OF_FOLD = {"index": int, "label": int, "prediction": int, "probability": (int, float)}


def load_folder(path):
    """What a folder holds of a run or of a search, as a dict; ValueError where a file of it is damaged.

    It has ``path``, ``config``, ``date``, ``chosen`` (the epoch whose params were kept), ``title`` and, as
    far as the folder has them, ``settings`` (what it was told), ``rows`` (the history), ``params`` and
    ``trials`` (see ``load_search``). ``why`` says why there is nothing that needs the data set.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; python train.py makes one (see its --out)")
    config, found = load_file(path / "config.json", CONFIG), {"why": LACKING["params"]}
    files = [path, *(path / name for name in ("params.pkl", "trials.csv") if (path / name).exists())]
    date = time.strftime("%Y-%m-%d", time.gmtime(files[-1].stat().st_mtime))
    if (path / "params.pkl").exists():
        params, stored = data.load_run(path)
        found, config = {"params": params, "stored": stored}, {**config, **stored}
    settings = {name: config[name] for name in train.DEFAULTS if name in config}
    found |= {"settings": settings} if settings else {}
    rows = load_file(path / "history.csv", [ROW])
    found |= {"rows": rows} if rows else {}
    run = {"path": path, "date": date, **found, "config": with_printable_names(config)}
    return {**run, **titles_of(run), **load_search(path)}


def load_runs(path):
    """As ``load_folder``; a folder that stands for several runs as one run, with their mean history."""
    runs = [load_folder(folder) for folder in judging.runs_in(path)]
    histories = [run["rows"] for run in runs if "rows" in run]
    if len(histories) < 2:
        return runs[0]
    return {**runs[0], "path": pathlib.Path(path), "rows": mean_rows(histories), "chosen": None}


def load_file(path, kind):
    """What a JSON file or a table holds, of a kind (see ``nn.check``); nothing where there is no file."""
    is_table = path.suffix == ".csv"
    if not path.exists():
        return [] if is_table else {}
    content = data.load_rows(path, words=True) if is_table else data.load_json(path)
    nn.check(content, kind, str(path))
    return content


def with_printable_names(config):
    """A config whose title and class names can be drawn; it has ``data``, if only an empty dict."""
    facts = dict(config.get("data") or {})
    if facts.get("title"):
        facts["title"] = data.printable(facts["title"], 60)
    if facts.get("class_names"):
        facts["class_names"] = [data.printable(name, 20) for name in facts["class_names"]]
    return {**config, "data": facts}


def titles_of(run):
    """``chosen``, and what is known of data set, layers and test accuracy: ``data_title`` to ``title``."""
    config, facts, sizes = run["config"], run["config"]["data"], []
    kept = (config.get("result") or {}).get("kept") or {}
    chosen = config.get("epoch", kept.get("epoch"))
    if "params" in run:
        sizes = nn.layer_sizes(run["params"])
    elif facts.get("image_shape") and facts.get("class_names") and config.get("hidden") is not None:
        sizes = [math.prod(facts["image_shape"]), *config["hidden"], len(facts["class_names"])]
    words = [facts.get("title"), "-".join(map(str, sizes))]
    titles = {"data_title": facts.get("title") or "", "network": ", ".join(filter(None, words))}
    row = chosen_row({**run, "chosen": chosen})
    if row and row["test_accuracy"] is not None:
        words.append(f"test accuracy {judging.percent(row['test_accuracy'])}")
    return {"chosen": chosen, **titles, "title": ", ".join(filter(None, words))}


def load_search(path):
    """What a folder holds of a search: a part of the dict of ``load_folder``.

    ``trials``: the ranked rows of trials.csv, the best first, repeats as one trial; ``definition``:
    search.json; ``space``: searched setting -> its range or choices as text; ``search_title``; where there
    are any, ``histories``: trial -> rows, and ``oof``: the rows of oof.csv, what is least likely first.
    Nothing where no trial has ended well.
    """
    rows = load_file(path / "trials.csv", [TRIAL])
    ended = [row for row in rows if row["status"] in ENDED_WELL]
    nn.check(ended, [{"val_accuracy": (int, float)}], str(path / "trials.csv"))
    if not ended:
        return {}
    definition = load_file(path / "search.json", DEFINITION)
    if not definition:
        raise FileNotFoundError(f"there is no {path / 'search.json'}, which says what was searched")
    words = [word.partition("=") for word in definition["space"].split()]
    space = {name: spec for name, _, spec in words if name in ended[0]} or {"seed": ""}
    numbers, groups = {row["trial"] for row in rows}, {}
    for row in ended:
        groups.setdefault(row["trial"], []).append(row)
    histories = {number: load_histories(path / "trials", f"{number:03}") for number in groups}
    histories = {number: mean_rows(found) for number, found in histories.items() if found}
    oof = load_file(path / "oof.csv", [OUT_OF_FOLD])
    trials = [mean_trial(group) for group in groups.values()]
    best, failed = trials[0], len(rows) - len(ended)
    config = load_file(path / "trials" / f"{best['trial']:03}" / "config.json", CONFIG)
    title = [with_printable_names(config)["data"].get("title"), data.count(len(numbers), "trial")]
    title += [f"{len(rows)} runs"] * (len(rows) > len(numbers)) + [f"{failed} failed"] * (failed > 0)
    title.append(f"best validation accuracy {judging.percent(best['val_accuracy'])} (trial {best['trial']})")
    return {
        "trials": trials,
        "definition": definition,
        "space": space,
        **({"histories": histories} if histories else {}),
        **({"oof": sorted(oof, key=lambda row: row["probability"])} if oof else {}),
        "search_title": ", ".join(filter(None, title)),
        "settings": definition,
    }


def load_histories(folder, name):
    """The histories of a trial and of its repeats, which are in NAME-2 and so on."""
    folders = [folder / name, *sorted(folder.glob(f"{name}-*"))]
    return list(filter(None, [load_file(each / "history.csv", [ROW]) for each in folders]))


def mean_trial(rows):
    """The rows of trials.csv with one number as one: their mean figures, and how many ``runs`` there are."""
    if len(rows) == 1:
        return rows[0]
    found = {name: value for name, value in rows[0].items() if name not in ("repeat", "fold")}
    for name, value in found.items():
        values = [row[name] for row in rows]
        if isinstance(value, float) and None not in values and len(set(values)) > 1:
            found[name] = nn.mean_and_sd(values)[0]
    _, sd = nn.mean_and_sd([row["val_accuracy"] for row in rows])
    return {**found, "runs": len(rows), "val_sd": sd}


def load_committee(paths, data_dir):
    """Several runs as one, for a page: their networks are judged as the committee that test.py makes of them.

    The dict has ``runs``, ``title``, ``config``, and as far as there are any ``members``, ``images``,
    ``labels``, ``estimates`` and ``mistakes``; or ``why`` there are no members.
    """
    runs = [load_folder(folder) for path in paths for folder in judging.runs_in(path)]
    runs = [run for run in runs if "rows" in run]
    made = {"runs": runs, "title": f"{common_title(runs)}: {len(runs)} runs", "config": runs[0]["config"]}
    try:
        members = judging.load_members([run["path"] for run in runs])
        if len({config["dataset"] for _, config in members}) > 1:
            raise ValueError("they have different data sets")
        made |= {"members": members, "title": f"{common_title(runs)}: a committee of {len(runs)}"}
        dataset = data.load_dataset_of(members[0][1], data_dir)
        images, labels = data.judged_images(dataset)
        estimates, report, _ = judging.judge(members, images, labels)
    except (OSError, ValueError, ArithmeticError) as error:  # of the data set alone: members stay
        return {**made, "why": f"no committee can be made of these runs: {data.message_of(error)}"}
    made["title"] += f", test accuracy {judging.percent(report['accuracy'])}"
    made |= {"images": images, "labels": labels, "estimates": estimates, "judged": dataset["judged"]}
    return {**made, "mistakes": worst_mistakes(estimates, labels)}


def add_test_set(run, data_dir):
    """The run with what its network makes of its test images.

    Adds ``images``, ``judged``, ``labels``, ``estimates`` (n, k), ``hidden`` (activations of each hidden
    layer), ``mistakes`` and ``explained`` (indices), ``distorted`` and ``suspects`` (the first rows of oof,
    with ``image``), as far as there are any; or ``why`` there is nothing.
    """
    params, config = run["params"], run["config"]
    try:
        dataset = data.load_dataset_of(run["stored"], data_dir)  # its class names are whole
    except (OSError, ValueError) as error:
        return {**run, "why": f"the data set is not at hand: {error}"}
    if suspects := suspects_of(run.get("oof", []), dataset):
        run = {**run, "suspects": suspects}
    try:
        images, labels = data.judged_images(dataset)
    except ValueError as error:
        return {**run, "why": str(error)}
    batches = data.batches(images, None, config["steps"], dtype=params["W1"].dtype)
    outputs, hidden = nn.hidden_of(params, batches, config["activation"])
    estimates = nn.estimates(outputs, config["loss"])
    _, explained = np.unique(labels, return_index=True)
    found = {
        "images": images,
        "judged": dataset["judged"],
        "labels": labels,
        "estimates": estimates,
        "hidden": hidden,
        "mistakes": worst_mistakes(estimates, labels),
        "explained": [] if data.gradient_step(config["steps"]) else explained[:SALIENT_CLASSES],
        "distorted": config.get("augment") or [],
    }
    return {**run, **{name: value for name, value in found.items() if len(value)}}


def suspects_of(rows, dataset):
    """The first rows of oof.csv that go with the data set as it is, each with its ``image``."""
    images, labels = data.all_images(dataset)
    known = [row for row in rows if row["index"] < len(labels) and row["label"] == labels[row["index"]]]
    return [{**row, "image": images[row["index"]]} for row in known[:SHOWN_MISTAKES]]


# --- windows ----------------------------------------------------------------------------------


def open_windows(figures):
    """Show figures in windows until all of them are closed."""
    pyplot = import_pyplot()
    for name, figure in figures.items():
        pyplot.figure(name, FigureClass=lambda figure=figure, **_: figure)  # ours, not a new one
    pyplot.show()


def import_pyplot():
    """pyplot with a backend that has windows; ValueError where there is none."""
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureManagerBase

    backend = pyplot.get_backend()
    if pyplot.figure().canvas.manager_class is FigureManagerBase:
        raise ValueError(
            f"no window can be opened: Matplotlib's backend is {backend}, so there is no display here or "
            f"no toolkit for it (such as python3-tk or PyQt6; see MPLBACKEND)"
        )
    pyplot.close("all")
    return pyplot


def open_drawing(path):
    """A window to draw digits in, for the network of a run."""
    params, config = data.load_run(path)
    pyplot = import_pyplot()
    with matplotlib.rc_context({"toolbar": "None", "keymap.back": []}):  # c is ours
        figure = pyplot.figure("draw", figsize=PAGE, layout="constrained")
        config = with_printable_names(config)
        title = titles_of({"params": params, "config": config})["network"]
        window = drawing_window(figure, params, config, title)
        pyplot.show()
    return window


def drawing_window(figure, params, config, title=""):
    """Make an empty figure one to draw in with the mouse: the probabilities follow each stroke.

    Takes what ``data.load_run`` returns, and any interactive canvas. Returns the dict of ``drawing_axes``, to
    be kept as long as the window is: Matplotlib itself does not keep the button.
    """
    facts, canvas = config["data"], figure.canvas
    window = drawing_axes(figure, facts["class_names"], facts["image_shape"], title)
    state = {"drawing": np.zeros(DRAWING), "last": None, "background": None}

    def show(drawing):
        state["drawing"] = drawing
        image, estimates = read_drawing(drawing, params, config)
        window["ink"].set_data(drawing)
        window["seen"].set_data(image)
        for bar, estimate in zip(window["bars"], estimates):
            bar.set_width(100 * estimate)
            bar.set_color(ORANGE if estimate == estimates.max() else BLUE)
        if state["background"] is None:
            canvas.draw_idle()
        else:  # only what changes is drawn anew: in a quarter of the time, so that curves are smooth
            canvas.restore_region(state["background"])
            draw_changing()
            canvas.blit(figure.bbox)

    def draw_changing():
        for artist in (window["ink"], window["seen"], *window["bars"]):
            figure.draw_artist(artist)

    def drawn(event):  # all of the window, as when its size has changed
        if canvas.supports_blit:
            state["background"] = canvas.copy_from_bbox(figure.bbox)
        draw_changing()

    def point(event):
        here = (event.xdata, event.ydata)
        if event.inaxes is window["pad"] and event.name == "button_press_event" and event.button == 1:
            state["last"] = here
        if event.inaxes is window["pad"] and state["last"]:
            start, state["last"] = state["last"], here
            show(stroke(state["drawing"], start, here))

    def release(event):
        state["last"] = None

    def clear(event):
        if event.name != "key_press_event" or event.key == "c":
            show(np.zeros(DRAWING))

    canvas.mpl_connect("draw_event", drawn)
    canvas.mpl_connect("button_press_event", point)
    canvas.mpl_connect("motion_notify_event", point)
    canvas.mpl_connect("button_release_event", release)
    canvas.mpl_connect("key_press_event", clear)
    window["button"].on_clicked(clear)
    return window


def drawing_axes(figure, class_names, image_shape, title=""):
    """Lay out a figure to draw in: its ``pad``, its ``button``, and what changes in it."""
    from matplotlib.widgets import Button

    figure.suptitle(f"Draw with the mouse; c or the button clears\n{title}")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.3, 1], height_ratios=[1, 0.09])
    right = grid[0, 1].subgridspec(2, 1, height_ratios=[1, 2])
    pad = figure.add_subplot(grid[0, 0], xticks=[], yticks=[])
    small = figure.add_subplot(right[0], xticks=[], yticks=[], title="what the network sees")
    for ax in (pad, small):
        ax.spines[:].set_visible(True)
    ink = pad.imshow(np.zeros(DRAWING), cmap="gray_r", vmin=0, vmax=1, animated=True)
    seen = small.imshow(np.zeros(image_shape), cmap="gray", vmin=0, vmax=255, animated=True)
    places = range(len(class_names))
    chances = figure.add_subplot(right[1], xlim=(0, 100), xlabel="probability (%)")
    bars = chances.barh(places, [0] * len(places), color=BLUE, animated=True)
    chances.set_ylim(len(places) - 0.5, -0.5)
    chances.set_yticks(places, class_names)
    button = Button(figure.add_subplot(grid[1, 0]), "clear")
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # laid out once: to do it at each stroke is slow
    return {"pad": pad, "ink": ink, "seen": seen, "bars": bars, "button": button}


def stroke(drawing, start, end, radius=PEN):
    """A drawing, ink in [0, 1], with a line of a round pen from start to end, both (x, y): a new array."""
    rows, columns = drawing.shape
    y, x = np.ogrid[:rows, :columns]
    (x0, y0), (dx, dy) = start, np.subtract(end, start)
    along = ((x - x0) * dx + (y - y0) * dy) / max(1e-9, dx * dx + dy * dy)
    along = np.clip(along, 0, 1)  # the nearest point of the line, from start to end
    distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
    return np.maximum(drawing, np.clip(radius + 0.5 - distance, 0, 1))


def read_drawing(drawing, params, config):
    """What the network sees of a drawing, and its estimates (k,); blank and zeros of an empty one."""
    facts = config["data"]
    if not drawing.any():
        return np.zeros(facts["image_shape"], np.uint8), np.zeros(len(facts["class_names"]))
    if facts["fit"] == "digit":
        image = data.prepare_ink(drawing, facts["image_shape"])
    else:
        on_paper = np.uint8(255 * (1 - drawing))[:, :, None]
        image = data.fit_pictures(np.repeat(on_paper, 3, axis=2), facts)[0][0]
    x = data.preprocess(image.reshape(1, -1), config["steps"], params["W1"].dtype)
    return image, nn.predict(params, x, config["activation"], config["loss"])[0]


# --- the page ---------------------------------------------------------------------------------
#
# report.html is one file that needs nothing beside it. Python writes what is to be read; the page's own
# script draws and runs the network. Preprocessing on numbers is an affine map, and so is the first
# layer: folded into one they cost the page nothing. Steps on pictures and fits are done by its script.

PAGE_NUMBERS = 3_000_000  # weights of the networks that a page holds at most
PAGE_BYTES = 600_000  # of test images in it
CELL_IMAGES = 12  # of each cell of the confusion matrix
CLICKED_IMAGES = 12  # to click on, of those that are right and of those that are wrong
CHECKED_IMAGES = 100  # that the page runs through its network when it is opened


def page_of(run, pictures):
    """A run or a search (see ``load_folder`` and ``add_test_set``) as the text of report.html.

    Parameters
    ----------
    run : dict
    pictures : dict
        Name of each figure -> its heading and the bytes of its PNG.
    """
    sections, said = [], ["summary"]  # what the page itself says better than a figure
    if "trials" in run:
        sections.append(search_table(run))
    if "images" in run and len(run["config"]["data"]["class_names"]) <= LABELLED_CLASSES:
        sections.append(confusion_table(run))
        said.append("confusion")
    if "images" in run:
        sections.append(classes_table(run))
    figures = [page_figure(*picture) for name, picture in pictures.items() if name not in said]
    if figures:
        sections.append(section("Figures", f'<div class="figures">{"".join(figures)}</div>'))
    parts = {
        "policy": page_policy(),
        "title": safe(run.get("search_title") or run["title"] or "A run"),
        "facts": "".join(f"<dt>{safe(name)}</dt><dd>{safe(text)}</dd>" for name, text in page_facts(run)),
        "sections": "".join(sections),
        "content": json.dumps(page_content(run), allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE)


def safe(text):
    """Text from outside as HTML that shows it and does nothing else."""
    return html.escape(data.printable(str(text)))


def page_policy():
    """The page's Content-Security-Policy: its own style and script, by their hashes, and its own pictures."""
    allowed = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for tag in ("style", "script"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", TEMPLATE, re.DOTALL)[1]
        allowed.append(f"{tag}-src 'sha256-{base64_text(hashlib.sha256(text.encode()).digest())}'")
    return "; ".join(allowed)


def base64_text(content):
    return base64.b64encode(content).decode()


SEARCHED = ("space", "strategy", "trials", "repeat", "seed")  # what a search is told beside settings


def page_facts(run):
    """What stands at the top of the page: pairs of a name and a text."""
    if "runs" in run:
        members = [(f"member {n}", label) for n, label in enumerate(run_labels(run["runs"]), start=1)]
        return [*members, ("files of", max(one["date"] for one in run["runs"]))]
    definition = run.get("definition", {})
    told = {name: definition[name] for name in SEARCHED if name in definition}
    known = (definition if definition else run).get("settings") or {}
    known = {name: known[name] for name in train.DEFAULTS if name in known}
    changed = [(name, value) for name, value in known.items() if value != train.DEFAULTS[name]]
    facts = [("network", run["title"])] * bool(definition and "params" in run)
    facts += [(name, short(value)) for name, value in [*told.items(), *changed]]
    facts += [("to repeat it", made_by(told, known))] * bool(told or known)
    for trials, epochs in definition.get("further", []):
        more = data.command_text("python", "search.py", "--resume", "--best", trials, "--epochs", epochs)
        facts.append(("and then", more))
    versions = run["config"].get("versions") or definition.get("versions") or {}
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [*facts, *[("made with", made)] * bool(made), ("files of", run["date"])]


def made_by(told, settings):
    """The command that makes a search (what it was told) or a run (told nothing else) of settings again."""
    if settings.get("folds"):  # they say what is held out
        settings = {name: value for name, value in settings.items() if name != "val_size"}
    words = train.as_flags({**train.DEFAULTS, **settings})
    if not told:
        return data.command_text("python", "train.py", *words)
    if told.get("strategy") == "grid":
        told = {name: value for name, value in told.items() if name != "trials"}
    if settings.get("val_size") == train.DEFAULTS["val_size"]:  # that of a search is another
        words += ["--val-size", settings["val_size"]]
    own = [[train.flag(name), *str(value).split()] for name, value in told.items()]
    return data.command_text("python", "search.py", *itertools.chain(*own), *words)


def page_figure(heading, picture):
    """A figure of the page; its PNG has 256 colours there, and a third of the size."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64_text(buffer.getvalue())}"
    size = f'width="{image.width}" height="{image.height}"'
    return (
        f'<figure><figcaption>{safe(heading)}</figcaption><div class="wide" tabindex="0">'
        f'<img {size} alt="{safe(heading)}" src="{source}"></div></figure>'
    )


def page_content(run):
    """What the page's script needs: plain data for JSON."""
    facts = run["config"].get("data") or {}
    content = {name: facts.get(name) for name in ("class_names", "image_shape", "fit", "edge")}
    content |= page_members(run)
    if "images" not in run:
        return content
    chosen = page_images(run)
    images, labels, estimates = (run[name][chosen] for name in ("images", "labels", "estimates"))
    predicted = estimates.argmax(axis=1)
    right = predicted == labels
    clicked = [np.flatnonzero(kind)[:CLICKED_IMAGES] for kind in (right, ~right)]
    checked = np.unique(np.linspace(0, len(chosen) - 1, CHECKED_IMAGES).astype(int))
    return content | {
        "pixels": base64_text(images.tobytes()),
        "numbers": chosen,
        "labels": labels.tolist(),
        "predicted": predicted.tolist(),
        "clicked": np.concatenate(clicked).tolist(),
        "checked": checked.tolist(),
        "expected": np.round(estimates[checked], 6).tolist(),
    }


def page_images(run):
    """Indices of the test images in the page: the worst mistakes first, then a few of each cell."""
    seen, few = collections.Counter(), []
    for i, cell in enumerate(zip(run["labels"].tolist(), run["estimates"].argmax(axis=1).tolist())):
        seen[cell] += 1
        few += [(seen[cell], i)] * (seen[cell] <= CELL_IMAGES)
    worst = [int(i) for i in run.get("mistakes", [])[:CLICKED_IMAGES]]
    chosen = dict.fromkeys([*worst, *(i for _, i in sorted(few))])
    return list(chosen)[: max(1, PAGE_BYTES // run["images"].shape[1])]


def page_members(run):
    """The networks of a page, or why it has none."""
    members = run.get("members") or ([(run["params"], run["config"])] if "params" in run else [])
    if not members:
        return {"why": run.get("why", LACKING["params"])}
    grey = [data.on_grey_levels(params, config["steps"]) for params, config in members]
    size = sum(w.size for params in grey for w in params.values())
    if size > PAGE_NUMBERS:
        return {"why": f"a page holds {PAGE_NUMBERS:,} weights, and there are {size:,}"}
    told = [
        {
            "activation": config["activation"],
            "loss": config["loss"],
            "steps": [step for step in config["steps"] if step["name"] != "affine"],
            "params": {name: packed(w) for name, w in params.items()},
        }
        for (_, config), params in zip(members, grey)
    ]
    return {"members": told}


def packed(w):
    """An array for the page's script: whole numbers of 24 bits and their unit, nearly as exact as float32."""
    unit = float(np.abs(w).max()) / (2**23 - 1) or 1.0
    whole = np.rint(w / unit).astype("<i4", order="C")
    return {"unit": unit, "text": base64_text(whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())}


def confusion_table(run):
    """The confusion matrix; the page's script makes buttons of its numbers, for the images behind them."""
    names, counts = confusion_of(run)
    rows = [[name, *(count or "" for count in row)] for name, row in zip(names, counts)]
    return section(
        "Confusion matrix",
        '<p class="soft">A row for each label, a column for each answer; a number shows images behind it.</p>'
        f"{table('confusion', ['', *names], rows)}"
        '<div id="behind" class="images" role="group" aria-label="Images behind a number"></div>',
    )


def classes_table(run):
    """Precision, recall and F1 of each class."""
    names, counts = confusion_of(run)
    head, rows = ["class", *(f"{kind} (%)" for kind in judging.SCORES), run["judged"]], []
    for name, score in zip(names, judging.class_scores(counts)):
        rows.append([name, *(f"{100 * score[kind]:.2f}" for kind in judging.SCORES), score["support"]])
    return section("Classes", table("sortable", head, rows))


def search_table(run):
    """The ranking of a search, which sorts by any of its columns."""
    percents = {"val_accuracy": "validation accuracy (%)", "val_sd": "standard deviation"}
    shown = dict.fromkeys(["trial", *run["space"], "epochs", *percents])
    columns = [name for name in shown if name in run["trials"][0]]
    rows = [
        [rank, *(short(100 * trial[c] if c in percents else trial[c]) for c in columns)]
        for rank, trial in enumerate(run["trials"], start=1)
    ]
    return section("Ranking", table("sortable", ["rank", *(percents.get(c, c) for c in columns)], rows))


def section(heading, content):
    return f"<section><h2>{safe(heading)}</h2>{content}</section>\n"


def table(kind, head, rows):
    """A table in a box that scrolls where it is too wide for the screen; the script sorts a sortable one."""
    columns = "".join(f'<th scope="col">{safe(text)}</th>' for text in head)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{safe(text)}</td>" for text in others)
        lines.append(f'<tr><th scope="row">{safe(first)}</th>{cells}</tr>')
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


TEMPLATE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{policy}}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fff; --panel: #f3f4f6; --ink: #1b1b1b; --soft: #565b63; --line: #8a9099;
  --main: #0069a6; --first: #c24e00; --wrong1: #fde3cf; --wrong2: #f9bd8f; --wrong3: #f08c45;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --panel: #22262d; --ink: #ececec; --soft: #b0b6bf; --line: #767d88;
    --main: #5ab4ec; --first: #ff9a4d; --wrong1: #472c18; --wrong2: #70401a; --wrong3: #9c5212;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 0.5rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.1rem 1rem; }
dt, figcaption, .soft { color: var(--soft); }
dd { margin: 0; font-family: ui-monospace, monospace; font-size: 0.9rem; }
figure { margin: 0; min-width: 0; }
canvas { display: block; width: 100%; image-rendering: pixelated; border: 1px solid var(--line);
  background: #fff; }
[hidden] { display: none !important; }
button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: 4px; padding: 0.3rem 0.5rem; cursor: pointer; }
:focus-visible { outline: 3px solid var(--main); outline-offset: 2px; }
#live { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
#pad { max-width: 17rem; aspect-ratio: 1; touch-action: none; cursor: crosshair; margin-bottom: 0.5rem; }
#answer { display: block; font-weight: 600; min-height: 1.5em; }
#bars { list-style: none; margin: 0; padding: 0; display: grid; gap: 0 0.6rem; align-items: center;
  grid-template-columns: fit-content(7rem) 1fr max-content; }
#bars li { display: contents; }
#bars li > :last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar { height: 0.9rem; border: 1px solid var(--line);
  background: linear-gradient(var(--main) 0 0) no-repeat var(--panel); }
.first { --main: var(--first); }
.views, .images { display: flex; flex-wrap: wrap; align-content: start; gap: 0.5rem; margin: 0.75rem 0; }
.views figure { width: 8.5rem; }
.images p { flex-basis: 100%; margin: 0; }
.images button { width: 5rem; padding: 0.25rem; font-size: 0.75rem; line-height: 1.2; }
.wide { overflow-x: auto; }
.figures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.figures img { display: block; width: 100%; min-width: 30rem; height: auto; background: #fff; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.15rem 0.4rem; text-align: right; }
tbody tr { border-top: 1px solid var(--line); }
.sortable button { width: 100%; border: 0; text-align: right; font-weight: 600; }
[aria-sort=ascending] button::after { content: " ▲"; }
[aria-sort=descending] button::after { content: " ▼"; }
.confusion td { padding: 1px; }
.confusion button { min-width: 2.6rem; width: 100%; padding: 0.2rem; }
.wrong1 { background: var(--wrong1); }
.wrong2 { background: var(--wrong2); }
.wrong3 { background: var(--wrong3); }
</style>
</head>
<body>
<header>
<h1>{{title}}</h1>
<dl>{{facts}}</dl>
</header>
<main>
<section aria-labelledby="try">
<h2 id="try">The network, live</h2>
<p id="why" class="soft">The network runs in this page, on what you draw or click on.</p>
<div id="live" hidden>
  <div>
    <p id="help" class="soft">Draw with mouse, finger or pen. Keys: the arrows draw, with Shift they move
    the pen, c clears.</p>
    <canvas id="pad" tabindex="0" role="application" aria-label="Pad to draw on"
      aria-describedby="help"></canvas>
    <button type="button" id="clear">Clear</button>
  </div>
  <div>
    <output id="answer"></output>
    <ol id="bars" aria-label="Estimates of the classes"></ol>
  </div>
  <div class="views" id="views"></div>
</div>
<div id="clicked" class="images" role="group" aria-label="Test images"></div>
<p id="check" class="soft"></p>
</section>
{{sections}}</main>
<noscript><p>The network and the images need JavaScript; all else does not.</p></noscript>
<script type="application/json" id="data">{{content}}</script>
<script>
"use strict";
const $ = (id) => document.getElementById(id);
const page = JSON.parse($("data").textContent);

// --- numbers: an image is {rows, columns, p}, p its values row by row ---

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const numbers = ({unit, text}) => {  // whole numbers of 3 bytes, the lowest first
  const b = bytes(text), whole = (i) => b[i] | b[i + 1] << 8 | b[i + 2] << 24 >> 8;
  return Float64Array.from({length: b.length / 3}, (_, i) => unit * whole(3 * i));
};
const image = (rows, columns, value) => {
  const p = new Float64Array(rows * columns);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) p[r * columns + c] = value(r, c);
  return {rows, columns, p};
};
const at = ({rows, columns, p}, r, c) =>  // 0 beyond the edges
  (r >= 0 && r < rows && c >= 0 && c < columns ? p[r * columns + c] : 0);
const mapped = (im, f) => ({...im, p: im.p.map(f)});
const transposed = (im) => image(im.columns, im.rows, (r, c) => at(im, c, r));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const moment = ({columns, p}, f) => sum(p.map((v, i) => v * f(Math.floor(i / columns), i % columns)));
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);  // of any number of them
const range = (length, f) => Array.from({length}, (_, i) => f(i));
const order = (values) => [...values.keys()].sort((i, j) => values[j] - values[i]);  // the largest first
const even = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));  // as NumPy rounds
const clip = (x, low, high) => Math.min(high, Math.max(low, x));

function box({columns, p}, level) {  // first and last row and column of what is above it
  const found = [...p.keys()].filter((i) => p[i] > level);
  const [down, across] = [found.map((i) => Math.floor(i / columns)), found.map((i) => i % columns)];
  return [down, across].flatMap((places) => [-most(places.map((place) => -place)), most(places)]);
}

// --- steps on pictures, as in data.py ---

const resampled = (im, start, scale) => image(im.rows, im.columns, (r, c) => {
  const x = clip(start(r) + scale * c, -1, im.columns), left = Math.floor(x);
  return even(at(im, r, left) * (1 - (x - left)) + at(im, r, left + 1) * (x - left));
});

const STEPS = {
  deskew(im) {
    const mass = Math.max(1, sum(im.p)), y = moment(im, (r) => r) / mass, x = moment(im, (r, c) => c) / mass;
    const both = moment(im, (r, c) => (r - y) * (c - x)), height = moment(im, (r) => (r - y) ** 2);
    return resampled(im, (r) => both / Math.max(1, height) * (r - y), 1);
  },
  width(im, {number}) {
    const [, , first, last] = box(im, 32);
    if (last < first) return im;
    const scale = Math.max(0.5, (last - first + 1) / number);
    return resampled(im, () => (first + last) / 2 - scale * (im.columns - 1) / 2, scale);
  },
  pool: (im) => image(Math.ceil(im.rows / 2), Math.ceil(im.columns / 2), (r, c) =>
    even(sum([0, 1, 2, 3].map((i) => at(im, 2 * r + (i >> 1), 2 * c + (i & 1)))) / 4)),
  hog,
  "pixels-and-hog": hog,
};

function hog(im, {name, number}) {  // the arrows of each of 8 directions, averaged in each cell
  const near = (r, c) => at(im, clip(r, 0, im.rows - 1), clip(c, 0, im.columns - 1));
  const arrows = (direction) => image(im.rows, im.columns, (r, c) => {
    const [right, lower] = [near(r, c + 1) - near(r, c - 1), near(r + 1, c) - near(r - 1, c)];
    const straight = (d) => Math.max(0, [right, lower, -right, -lower][d % 4]);
    const slanted = (d) => Math.min(straight(d), straight(d + 1));
    const d = direction >> 1;
    return direction % 2 ? Math.SQRT2 * slanted(d) : straight(d) - slanted(d) - slanted(d + 3);
  });
  const cells = (d) => resized(arrows(d), Math.min(number, im.rows), Math.min(number, im.columns), CELL);
  const found = range(8, (d) => [...cells(d).p]).flat().map((v) => even(Math.min(255, Math.sqrt(v * 510))));
  const p = Float64Array.of(...(name === "hog" ? [] : im.p), ...found);
  return {rows: 1, columns: p.length, p};
}

// --- from a drawing to an image as the network knows them: the fits of data.py ---

const tent = (x) => Math.max(0, 1 - Math.abs(x));
const TENT = {reach: 1, weight: tent, total: sum};  // these two as Pillow resizes
const BOX = {reach: 0.5, weight: (x) => +(x > -0.5 && x <= 0.5), total: sum};
const CELL = {reach: 1, weight: tent, total: (shares, scale) => scale};

function narrowed(im, columns, {reach, weight, total}) {
  const scale = im.columns / columns, wide = Math.max(1, scale);
  const taps = range(columns, (c) => {
    const center = (c + 0.5) * scale, first = Math.max(0, Math.floor(center - reach * wide + 0.5));
    const last = Math.min(im.columns, Math.floor(center + reach * wide + 0.5));
    const shares = range(last - first, (i) => weight((first + i + 0.5 - center) / wide));
    return {first, shares: shares.map((share) => share / total(shares, scale))};
  });
  return image(im.rows, columns, (r, c) =>
    sum(taps[c].shares.map((share, i) => share * at(im, r, taps[c].first + i))));
}

function resized(im, rows, columns, filter, round = (x) => x) {
  const once = mapped(narrowed(im, columns, filter), round);
  return transposed(mapped(narrowed(transposed(once), rows, filter), round));
}

function grown(im, reach) {  // each pixel the largest around it
  const along = (one) => image(one.rows, one.columns, (r, c) => {
    let largest = 0;
    for (let i = -reach; i <= reach; i++) largest = Math.max(largest, at(one, r, c + i));
    return largest;
  });
  return transposed(along(transposed(along(im))));
}

function thickened(ink) {
  const mask = image(ink.rows + 2, ink.columns + 2, (r, c) => +(at(ink, r - 1, c - 1) > 0.4));
  const beside = grown(mapped(mask, (v) => 1 - v), 1);
  const width = 2 * sum(mask.p) / sum(mask.p.map((v, i) => v * beside.p[i]));
  const missing = Math.floor((Math.max(mask.rows, mask.columns) / 12 - width) / 2), edge = missing + 1;
  if (missing < 1) return ink;
  return grown(image(ink.rows + 2 * edge, ink.columns + 2 * edge, (r, c) =>
    Math.floor(255 * at(ink, r - edge, c - edge)) / 255), missing);
}

const FITS = {
  digit(ink, rows, columns) {
    const [first, last, from, to] = box(ink, 0.2);
    const thick = thickened(image(last - first + 1, to - from + 1, (r, c) => at(ink, first + r, from + c)));
    const scale = 20 / 28 * Math.min(rows / thick.rows, columns / thick.columns);
    const size = [thick.rows, thick.columns].map((n) => Math.max(1, even(n * scale)));
    const small = resized(thick, ...size, TENT), white = most(small.p), mass = sum(small.p);
    const start = (n, length, place) => clip(even(n / 2 - moment(small, place) / mass), 0, n - length);
    const top = start(rows, small.rows, (r) => r), left = start(columns, small.columns, (r, c) => c);
    return image(rows, columns, (r, c) => even(255 * at(small, r - top, c - left) / white));
  },
  whole(ink, rows, columns) {
    const grey = mapped(ink, (v) => Math.floor(255 * (1 - v)));
    const im = resized(grey, rows, columns, BOX, (v) => Math.floor(v + 0.5));
    const ends = ({columns, p}) => [...p.slice(0, columns), ...p.slice(-columns)];
    const rim = [...ends(im), ...ends(transposed(im))], edge = sum(rim) / rim.length;
    const inverted = Math.abs(255 - edge - page.edge) < Math.abs(edge - page.edge) - 1;
    return inverted ? mapped(im, (v) => 255 - v) : im;
  },
};

// --- the network, as in nn.py ---

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const ACTIVATIONS = {
  relu: (z) => Math.max(0, z),
  leaky_relu: (z) => Math.max(z, 0.01 * z),
  sigmoid,
  tanh: Math.tanh,
  elu: (z) => (z > 0 ? z : Math.expm1(z)),
  silu: (z) => z * sigmoid(z),
  gelu: (z) => 0.5 * z * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (z + 0.044715 * z ** 3))),
};

function loaded({params, ...member}) {
  const layers = range(Object.keys(params).length / 2, (l) =>
    ({w: numbers(params[`W${l + 1}`]), b: numbers(params[`b${l + 1}`])}));
  return {...member, layers, activate: ACTIVATIONS[member.activation]};
}

function forward({layers, activate, steps, loss}, im) {
  const drawn = steps.reduce((before, step) => STEPS[step.name](before, step), im), inner = [];
  let x = drawn.p, z;
  for (const {w, b} of layers) {
    z = Float64Array.from(b);
    x.forEach((v, i) => { if (v) for (let j = 0; j < z.length; j++) z[j] += v * w[i * z.length + j]; });
    inner.push(z);
    x = z.map(activate);
  }
  const largest = most(z), powers = z.map((v) => Math.exp(v - largest)), total = sum(powers);
  const estimates = loss === "cross_entropy" ? powers.map((v) => v / total) : z;
  return {drawn, inner, estimates};
}

function evidence({layers, activate}, {drawn, inner, estimates}, first, second) {  // for one class, over one
  let slope = estimates.map((_, k) => (k === first) - (k === second));
  for (let l = layers.length - 1; l >= 0; l--) {
    const {w} = layers[l], n = slope.length, below = new Float64Array(w.length / n);
    for (let i = 0; i < below.length; i++) for (let j = 0; j < n; j++) below[i] += w[i * n + j] * slope[j];
    const rise = (z) => (activate(z + 1e-5) - activate(z - 1e-5)) / 2e-5;
    slope = l ? below.map((v, i) => v * rise(inner[l - 1][i])) : below;
  }
  return {...drawn, p: slope.map((v, i) => v * drawn.p[i])};
}

// --- what is on the page ---

const element = (tag, properties, ...inside) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
};
const grey = (v) => [v, v, v];
const inked = (v) => grey(255 - v);
const signed = ({p}) => {  // orange above 0, blue below
  const largest = most(p.map(Math.abs)) || 1;
  return (v) => (v > 0 ? [213, 94, 0] : [0, 105, 166]).map((c) => 255 - Math.abs(v) / largest * (255 - c));
};

function painted(canvas, im, colour) {
  Object.assign(canvas, {width: im.columns, height: im.rows});
  const pixels = new ImageData(im.columns, im.rows);
  pixels.data.fill(255);
  im.p.forEach((v, i) => pixels.data.set(colour(v), 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const view = (title, im, colour = signed(im)) => element("figure", {},
  element("figcaption", {}, title), painted(element("canvas", {ariaHidden: "true"}), im, colour));

function square(values) {  // on a sheet about as wide as it is high
  const columns = Math.ceil(Math.sqrt(values.length));
  return image(Math.ceil(values.length / columns), columns, (r, c) => values[r * columns + c] ?? 0);
}

const names = page.class_names ?? [];
const members = (page.members ?? []).map(loaded);
const probable = members.every(({loss}) => loss === "cross_entropy");  // or outputs that may be below 0
const written = (value) =>
  (probable ? `${(100 * value).toFixed(1)} %` : value.toFixed(3).replace("-", "−"));
const [rows, columns] = page.image_shape ?? [];
const [SIDE, PEN] = [140, 5.5];  // pixels of the pad, and the radius of its pen
const blank = () => image(SIDE, SIDE, () => 0);
let ink = blank(), pen = null;

function estimate(im) {
  const passes = members.map((member) => forward(member, im));
  return {passes, mean: names.map((_, k) => sum(passes.map(({estimates}) => estimates[k])) / passes.length)};
}

function show(im, says = "") {
  const {passes, mean} = estimate(im), [best, next] = order(mean);
  const shown = names.length > 20 ? order(mean).slice(0, 10) : [...mean.keys()];
  $("bars").replaceChildren(...shown.map((k) => {
    const bar = element("span", {className: "bar"});
    bar.style.backgroundSize = `${100 * clip(mean[k], 0, 1)}%`;
    const words = [names[k], written(mean[k])].map((text) => element("span", {}, text));
    return element("li", {className: k === best ? "first" : ""}, words[0], bar, words[1]);
  }));
  $("answer").textContent = `${says}${names[best]}, ${written(mean[best])}`;
  const other = next === undefined ? "" : ` or ${names[next]} (blue)`;
  const views = passes.flatMap((pass, m) => {
    const member = members[m], [own] = order(pass.estimates), evident = [];
    const whose = passes.length === 1 ? "" :
      `member ${m + 1} (${names[own]}, ${written(pass.estimates[own])}): `;
    if (!member.steps.some(({name}) => name.endsWith("hog"))) {  // which sees no pixels
      evident.push(view(`${whose}for ${names[best]} (orange)${other}`, evidence(member, pass, best, next)));
    }
    return [...evident, ...pass.inner.slice(0, -1).map((values, l) =>
      view(`${whose}hidden layer ${l + 1}`, square(values.map(member.activate))))];
  });
  $("views").replaceChildren(view("what the network sees", im, grey), ...views);
}

function redraw() {
  painted($("pad"), mapped(ink, (v) => 255 * v), inked);
  if (ink.p.some((v) => v > 0.2)) return show(FITS[page.fit](ink, rows, columns));
  for (const id of ["bars", "views"]) $(id).replaceChildren();
  $("answer").textContent = "Nothing is drawn yet.";
}

function stroke([x0, y0], [x1, y1]) {  // as visualize.py --draw
  const [dx, dy] = [x1 - x0, y1 - y0], square = Math.max(1e-9, dx * dx + dy * dy);
  ink = image(SIDE, SIDE, (y, x) => {
    const along = clip(((x - x0) * dx + (y - y0) * dy) / square, 0, 1);
    const distance = Math.hypot(x - x0 - along * dx, y - y0 - along * dy);
    return Math.max(at(ink, y, x), clip(PEN + 0.5 - distance, 0, 1));
  });
}

function listen() {
  const pad = $("pad"), place = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE];
  };
  const draw = (to) => { stroke(pen ?? to, to); pen = to; redraw(); };
  pad.onpointerdown = (event) => { pad.setPointerCapture(event.pointerId); pen = null; draw(place(event)); };
  pad.onpointermove = (event) => { if (pad.hasPointerCapture(event.pointerId)) draw(place(event)); };
  pad.onpointerup = pad.onpointercancel = () => { pen = null; };
  const clear = $("clear").onclick = () => { ink = blank(); pen = null; redraw(); };
  pad.onkeydown = (event) => {
    const step = {ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5]}[event.key];
    if (event.key === "c") clear();
    if (!step) return;
    event.preventDefault();
    const to = (pen ?? [SIDE / 2, SIDE / 2]).map((v, i) => clip(v + step[i], 0, SIDE - 1));
    if (event.shiftKey) { pen = to; redraw(); } else draw(to);
    pad.getContext("2d").strokeRect(to[0] - PEN, to[1] - PEN, 2 * PEN, 2 * PEN);  // where the pen is
  };
}

const pixels = bytes(page.pixels ?? "");
const testImage = (i) => image(rows, columns, (r, c) => pixels[(i * rows + r) * columns + c]);

const buttons = (chosen) => chosen.map((i) => {
  const [label, read] = [names[page.labels[i]], names[page.predicted[i]]];
  const says = label === read ? label : `${label} read as ${read}`, number = `mage ${page.numbers[i]}`;
  const onclick = () => {
    show(testImage(i), `I${number}, label ${label}: `);
    $("answer").scrollIntoView({block: "nearest"});
  };
  const about = {type: "button", ariaLabel: `i${number}: ${says}`, disabled: Boolean(why), onclick};
  const drawn = painted(element("canvas"), testImage(i), page.fit === "digit" ? inked : grey);
  return element("button", about, drawn, says);
});

function sort(table, column) {
  const head = [...table.tHead.rows[0].cells], down = head[column].ariaSort === "ascending";
  head.forEach((cell, c) => { cell.ariaSort = c !== column ? null : down ? "descending" : "ascending"; });
  const value = (row) => row.cells[column].textContent;
  const lines = [...table.tBodies[0].rows].sort((a, b) =>
    value(a) - value(b) || value(a).localeCompare(value(b), "en", {numeric: true}));
  table.tBodies[0].append(...(down ? lines.reverse() : lines));
}

function check() {  // that this page computes what the program does
  const found = page.checked.map((i) => estimate(testImage(i)).mean);
  const largest = most(found.flatMap((mean, n) => mean.map((v, k) => Math.abs(v - page.expected[n][k]))));
  const others = page.checked.filter((i, n) => order(found[n])[0] !== page.predicted[i]).length;
  Object.assign($("check").dataset, {images: found.length, largest, others});
  const agree = others ? `${found.length - others} of ${found.length}` : `all ${found.length}`;
  $("check").textContent = "Checked when this page was opened: it gives the same class as the Python " +
    `program for ${agree} images; their estimates differ by ${largest.toExponential(1)} at most.`;
}

const needed = members.flatMap(({activation, steps}) => [activation, ...steps.map(({name}) => name)]);
const unknown = needed.find((name) => !(name in ACTIVATIONS || name in STEPS));
const why = page.why ?? (unknown && `it does not know ${unknown}`);
if (why) {
  $("why").textContent = `The network does not run in this page: ${why}.`;
} else {
  $("live").hidden = false;
  listen();
  redraw();
  if (page.checked) setTimeout(check);
}
$("clicked").append(...buttons(page.clicked ?? []));

const cells = [...document.querySelectorAll(".confusion td")].map((cell) =>
  ({cell, label: cell.parentElement.rowIndex - 1, read: cell.cellIndex - 1, count: +cell.textContent}));
const worst = most(cells.map(({label, read, count}) => (label === read ? 0 : count)));
cells.filter(({count}) => count).forEach(({cell, label, read, count}) => {
  const ariaLabel = `${names[label]} read as ${names[read]}: ${count} images`;
  const className = label === read ? "right" : `wrong${Math.ceil(3 * count / worst)}`;
  const onclick = () => {
    const behind = [...page.labels.keys()].filter((i) =>
      page.labels[i] === label && page.predicted[i] === read);
    const says = element("p", {}, `${ariaLabel}, ${behind.length} of them in this page:`);
    $("behind").replaceChildren(says, ...buttons(behind));
  };
  cell.replaceChildren(element("button", {type: "button", className, ariaLabel, onclick}, count));
});
document.querySelectorAll(".sortable").forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((head, column) => head.replaceChildren(
    element("button", {type: "button", onclick: () => sort(table, column)}, head.textContent)));
});
</script>
</body>
</html>
"""

# --- command line -----------------------------------------------------------------------------


def note_missing_letters(figures):
    """Say once which letters of names the font does not have, where Matplotlib would say it for each."""
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    texts = {text.get_text() for figure in figures.values() for text in figure.findobj(Text)}
    letters = set().union(*texts) - {"\n"} - set(map(chr, get_font(findfont(FontProperties())).get_charmap()))
    if letters:
        few = " ".join(sorted(letters)[:8])
        data.say(f"note: the font of the figures has no {few}: there is a box instead", sys.stderr)


def main(argv=None):
    parser = data.make_parser("Draw what a run or a search has left, as PNG, SVG and report.pdf.")
    folders = "folder of a run or a search (default: results); the curves of several runs are overlaid"
    out = "folder for the files (default: FOLDER/figures; of several, comparison/ beside or in the first)"
    drawing = "open a window to draw in, and watch the probabilities"
    parser.add_argument("folders", nargs="*", metavar="FOLDER", default=["results"], help=folders)
    parser.add_argument("--only", metavar="NAMES", help=f"with commas between: {', '.join(FIGURES)}")
    parser.add_argument("--out", metavar="DIR", help=out)
    parser.add_argument("--show", action="store_true", help="open windows and write no files")
    parser.add_argument("--draw", action="store_true", help=drawing)
    flags = data.parse_flags(parser, argv)
    if flags.draw and (flags.only or flags.out or flags.show or len(flags.folders) > 1):
        raise ValueError("--draw: goes with one FOLDER and nothing else")
    if flags.show and flags.out:
        raise ValueError("--out: has no meaning with --show")
    only = flags.only.split(",") if flags.only is not None else []  # none of them: all that belong
    for name in only:
        nn.choose("figure", name, FIGURES)
    # a warning ignored here is not ignored elsewhere, and params beyond all reason overflow
    with matplotlib.style.context(LOOK), warnings.catch_warnings(), np.errstate(over="ignore"):
        if flags.draw:
            open_drawing(flags.folders[0])
        else:
            draw(flags, only)


def draw(flags, only):
    """Draw what the flags ask for, and write or show it."""
    first = pathlib.Path(flags.folders[0])
    if len(flags.folders) > 1:
        run, (figures, skipped) = None, draw_comparison(flags.folders, only)
        beside = (first if first.name.strip(".") else first.resolve()).parent  # the parent of . is not .
        apart = len({os.path.dirname(os.path.abspath(folder)) for folder in flags.folders}) > 1
        out = (first if apart or beside.resolve() == pathlib.Path.cwd() else beside) / "comparison"
    else:
        run = load_run(first, only, flags.data_dir)
        figures, skipped = draw_run(run, only)
        out = first / "figures"
    reasons = [f"{', '.join(names)}: {reason}" for reason, names in skipped.items()]
    if not figures:
        raise ValueError(f"nothing to draw in {', '.join(flags.folders)} ({'; '.join(reasons)})")
    for reason in reasons:
        data.say(f"skipped {reason}", sys.stderr)
    note_missing_letters(figures)
    if flags.show:
        open_windows(figures)
        return
    out = pathlib.Path(flags.out or out)
    pictures = save_figures(figures, out)
    if not only:
        run = run or load_committee(flags.folders, flags.data_dir)
        headings = [figure._suptitle.get_text().partition("\n")[0] for figure in figures.values()]
        shown = dict(zip(figures, zip(headings, pictures)))
        save_file(out / "report.html", page_of(run, shown).encode())


if __name__ == "__main__":
    sys.exit(data.run_script(main))
