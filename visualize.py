"""Every figure, from the files that runs and searches leave.

    python visualize.py                           figures of the run or search in results/
    python visualize.py results/a results/b       the curves of several runs, overlaid
    python visualize.py --only loss,confusion     some of the figures
    python visualize.py --draw                    a window to draw digits in, with their probabilities

Figures go to the run's figures/ folder, each as PNG and SVG, and all of them as the pages of
report.pdf. A figure function takes data and returns a matplotlib Figure; it touches no file.
"""

import data  # first: while the rest is imported, Ctrl-C is one line already

# isort: split
import io
import math
import pathlib
import sys
import textwrap

import matplotlib
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

import nn

STYLE = {  # one look for every figure; a fixed salt makes the ids in an SVG the same each time
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
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
    "svg.hashsalt": "figures",
}
PAGE = (8, 5.5)  # inches, of every figure
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
MARKED_EPOCHS = 30  # histories of up to so many epochs have a marker at each
SHOWN_MISTAKES = 24
RANKED_TRIALS = 25
FIRES_ABOVE = {"sigmoid": 0.5}  # output above which a hidden unit fires; 0 for the others
DRAWING = (140, 140)  # pixels of the pad to draw on
PEN = 5.5  # radius of its pen in pixels: strokes as wide as MNIST's
RANKED_STATUSES = ("finished", "stopped")  # of trials; the others have failed
NO_SETTINGS = ("data", "versions", "status", "result", "steps", "epoch", "val_accuracy")
LACKING = {  # why a folder has no such thing, where it does not itself say why
    "trials": "there is no trials.csv with a trial that ended well",
    "histories": "there is no trials/NNN/history.csv",
}
LABELLED_CLASSES = 20  # confusion matrices of up to so many classes show their counts
LOSS_LABELS = {
    "cross_entropy": "cross-entropy (nats per image)",
    "mse": "half squared error (per image)",
}


# --- helpers of the figure functions ----------------------------------------------------------


def new_figure(heading, title):
    """An empty page with its two lines of title."""
    figure = Figure(figsize=PAGE, layout="constrained")
    figure.suptitle(f"{heading}\n{title}" if title else heading)
    return figure


def setting_text(value):
    """A setting's value as a reader writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ("+" if value and isinstance(value[0], str) else "-").join(map(str, value)) or "none"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share):
    return f"{100 * share:.2f} %"


def values_of(rows, quantity, part):
    """A quantity of a part, epoch by epoch: float array, nan where there is none."""
    key = f"{part}_{'loss' if quantity == 'loss' else 'accuracy'}"
    values = np.array([np.nan if row[key] is None else row[key] for row in rows], float)
    if quantity == "loss":
        return values
    values = 100 * (1 - values if quantity == "error" else values)
    return np.where(values > 0, values, np.nan) if quantity == "error" else values


def parts_with(rows, quantity):
    return [part for part in PARTS if np.isfinite(values_of(rows, quantity, part)).any()]


def zoomed_range(curves):
    """y-range without the first epoch, where that would flatten all others; else None.

    Parameters
    ----------
    curves : list of float arrays
        One value an epoch each; may hold nan.
    """
    later = np.concatenate([[np.nan], *(curve[1:] for curve in curves)])
    if min(map(len, curves), default=0) < 4 or not np.isfinite(later).any():
        return None
    low, high = np.nanmin(later), np.nanmax(later)
    first = [curve[0] for curve in curves if np.isfinite(curve[0])]
    span = max([high, *first]) - min([low, *first])
    if not high > low or span <= 2 * (high - low):
        return None
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def epoch_axis(ax, epochs, zoomed=False):
    """Whole epochs on the x-axis, which also says when the first is out of range."""
    ax.set_xlabel("epoch (the first lies outside the range shown)" if zoomed else "epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    margin = 0.2 + 0.02 * epochs
    ax.set_xlim(1 - margin, epochs + margin)


def set_quantity_axis(ax, quantity, curves, loss=None):
    """Label and range of the y-axis; returns whether the first epoch is outside it."""
    labels = {"loss": LOSS_LABELS.get(loss, "loss"), "accuracy": "accuracy (%)", "error": "error (%)"}
    ax.set_ylabel(labels[quantity])
    if quantity == "error":
        ax.set_yscale("log")
        label_log_axis(ax.yaxis, np.concatenate([[np.nan], *curves]), room=10)
        if any(np.isnan(curve).any() and not np.isnan(curve).all() for curve in curves):
            ax.set_ylabel("error (%); no point where it is 0")
        return False
    limits = zoomed_range(curves)
    if limits:
        ax.set_ylim(limits)
    return limits is not None


def label_log_axis(axis, values, room):
    """Ticks in plain numbers on a log axis that has room for so many of them."""
    decades = math.log10(np.nanmax(values) / np.nanmin(values)) if np.isfinite(values).any() else 0
    fine = LogLocator(subs=(1, 2, 5)) if 3 * decades < room else LogLocator(numticks=room)
    axis.set_major_locator(MaxNLocator(5) if decades < 1 else fine)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def mark_epoch(ax, rows, quantity, part, chosen, colour):
    """A ring around a curve's value at the chosen epoch."""
    values = {row["epoch"]: value for row, value in zip(rows, values_of(rows, quantity, part))}
    if chosen in values:
        ax.plot([chosen], [values[chosen]], "o", ms=10, mfc="none", mec=colour, mew=1.5)


def legend_below(figure, place, handles, labels, **options):
    """A legend in a place of its own, a cell of a gridspec."""
    ax = figure.add_subplot(place)
    ax.set_axis_off()
    legend = ax.legend(handles, labels, loc="upper left", borderaxespad=0, **options)
    legend.set_in_layout(False)  # it has its place, and must not take that of the axes


def legend_texts(texts):
    """Texts folded to the width of a page, the number of their lines with a title, and the font's size."""

    def folded(size, width):
        parts = [textwrap.fill(text, width) for text in texts]
        return parts, 1 + sum(1 + part.count("\n") for part in parts), size

    large = folded(9, 95)
    return large if large[1] <= 8 else folded(7, 120)


def legend_above(ax, columns=5, **options):
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=columns, borderaxespad=0.2, **options)


# --- curves -----------------------------------------------------------------------------------


def curves_figure(rows, quantity, title="", chosen=None, loss=None):
    """Train, validation and test curves of one run.

    Parameters
    ----------
    rows : list of dict
        The history.
    quantity : {"loss", "accuracy", "error"}
        Accuracy and error in percent, error on a log axis (epochs without errors have no point).
    title : str
    chosen : int, optional
        The epoch whose params were kept; marked.
    loss : str, optional
        Name of the loss, for the axis.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(f"{quantity.capitalize()} by epoch", title)
    ax = figure.add_subplot()
    curves = []
    for part in parts_with(rows, quantity):
        name, colour, line, marker = PARTS[part]
        curves.append(values_of(rows, quantity, part))
        marker = marker if len(rows) <= MARKED_EPOCHS else None
        ax.plot([row["epoch"] for row in rows], curves[-1], line, color=colour, marker=marker, label=name)
        mark_epoch(ax, rows, quantity, part, chosen, colour)
    if chosen is not None:
        ax.axvline(chosen, color=GREY, ls=":", lw=1, label=f"epoch {chosen}, whose params are kept")
    zoomed = set_quantity_axis(ax, quantity, curves, loss)
    epoch_axis(ax, rows[-1]["epoch"], zoomed)
    legend_above(ax)
    return figure


def twin_figure(rows, title="", chosen=None, loss=None):
    """Train and test loss on the left axis, test accuracy on the right one; see ``curves_figure``."""
    figure = new_figure("Loss and test accuracy by epoch", title)
    left = figure.add_subplot()
    right = left.twinx()
    lines, zoomed = [], []
    styles = [(left, "loss", "train", BLUE, "-"), (left, "loss", "test", ORANGE, "--")]
    styles += [(right, "accuracy", "test", GREEN, "-.")]
    for ax, quantity, part, colour, line in styles:
        values = values_of(rows, quantity, part)
        marker = PARTS[part][3] if len(rows) <= MARKED_EPOCHS else None
        label = f"{part} {quantity} ({'right' if ax is right else 'left'} axis)"
        epochs = [row["epoch"] for row in rows]
        lines += ax.plot(epochs, values, line, color=colour, marker=marker, label=label)
        mark_epoch(ax, rows, quantity, part, chosen, colour)
    for ax, quantity, parts in ((left, "loss", ("train", "test")), (right, "accuracy", ("test",))):
        curves = [values_of(rows, quantity, part) for part in parts]
        zoomed.append(set_quantity_axis(ax, quantity, curves, loss))
    right.set_ylabel("test accuracy (%)")
    right.grid(False)
    right.spines["right"].set_visible(True)
    epoch_axis(left, rows[-1]["epoch"], any(zoomed))
    legend_above(left, handles=lines)
    return figure


def compare_figure(runs, quantity, title=""):
    """The curves of several runs: a panel for each part, a colour and a line for each run.

    Parameters
    ----------
    runs : list of dict
        ``rows``, ``label``, ``chosen`` and ``config``.
    quantity : {"loss", "accuracy", "error"}
    """
    losses = {run["config"].get("loss") for run in runs}
    parts = [part for part in PARTS if any(part in parts_with(run["rows"], quantity) for run in runs)]
    parts = parts or ["train"]  # no error above 0 to show on a logarithmic axis
    figure = new_figure(f"{quantity.capitalize()} of {len(runs)} runs by epoch", title)
    labels, lines, size = legend_texts([run["label"] for run in runs])
    grid = figure.add_gridspec(2, len(parts), height_ratios=[1, min(1, 0.055 * lines)])
    curves = [values_of(run["rows"], quantity, part) for run in runs for part in parts]
    for column, part in enumerate(parts):
        ax = figure.add_subplot(grid[0, column], sharey=figure.axes[0] if column else None)
        for number, run in enumerate(runs):
            colour, line = RUN_COLOURS[number % len(RUN_COLOURS)], RUN_LINES[number % len(RUN_LINES)]
            epochs = [row["epoch"] for row in run["rows"]]
            marker = "." if len(epochs) <= MARKED_EPOCHS else None
            values = values_of(run["rows"], quantity, part)
            ax.plot(epochs, values, line, color=colour, marker=marker, label=labels[number])
            mark_epoch(ax, run["rows"], quantity, part, run["chosen"], colour)
        ax.set_title(PARTS[part][0])
        zoomed = set_quantity_axis(ax, quantity, curves, next(iter(losses)) if len(losses) == 1 else None)
        epoch_axis(ax, max(run["rows"][-1]["epoch"] for run in runs))
        if column:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
    note = "circle: the epoch whose params are kept" + "; epoch 1 lies outside the range" * zoomed
    handles = figure.axes[0].get_legend_handles_labels()
    legend_below(figure, grid[1, :], *handles, title=note, fontsize=size, alignment="left")
    return figure


# --- weights ----------------------------------------------------------------------------------


def signed_image(ax, array, limit=None, **options):
    """Draw an array in colours centred on 0; few values lie beyond the limit, in its colour."""
    limit = signed_limit(array) if limit is None else limit
    return ax.imshow(array, cmap=SIGNED, vmin=-limit, vmax=limit, **options)


def signed_limit(array):
    """The symmetric limit of a colour scale: what one value in 500 exceeds, so that the rest has contrast."""
    return float(np.quantile(np.abs(array), 0.998)) or 1.0


def weight_colourbar(figure, image, label, **options):
    beyond = np.abs(image.get_array()).max() > image.norm.vmax
    figure.colorbar(image, label=label, fraction=0.05, extend="both" if beyond else "neither", **options)


def weights_figure(weights, name, title="", class_names=None):
    """Heat map of a weight matrix (inputs, outputs), colours centred on 0.

    With ``class_names`` the outputs are classes, and named.
    """
    inputs, outputs = weights.shape
    figure = new_figure(f"{name}: {inputs} × {outputs} weights", title)
    ax = figure.add_subplot()
    image = signed_image(ax, weights, aspect="auto")
    weight_colourbar(figure, image, "weight")
    ax.grid(False)
    ax.set_ylabel("input pixel" if name == "W1" else "hidden unit of the layer below")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("class" if class_names else "hidden unit")
    if class_names and len(class_names) <= LABELLED_CLASSES:
        label_classes(ax.xaxis, class_names)
    return figure


def label_classes(axis, class_names):
    axis.set_ticks(range(len(class_names)), class_names)
    if axis.axis_name == "x" and max(map(len, class_names)) > 3:
        for label in axis.get_ticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def mosaic(pictures, aspect=1.0, gap=2):
    """Pictures (n, rows, columns) on one sheet, row by row, with gaps of nan between them.

    Parameters
    ----------
    pictures : float array (n, rows, columns)
    aspect : float
        Width over height that the sheet should have, about.
    gap : int
        Pixels between pictures.

    Returns
    -------
    float array
        The sheet; places left over are nan.
    """
    n, rows, columns = pictures.shape
    across = round(math.sqrt(aspect * n * (rows + gap) / (columns + gap)))
    across = min(n, max(1, across))
    down = -(-n // across)
    sheet = np.full((down * across, rows + gap, columns + gap), np.nan, pictures.dtype)
    sheet[:n, :rows, :columns] = pictures
    sheet = sheet.reshape(down, across, rows + gap, columns + gap).swapaxes(1, 2)
    return sheet.reshape(down * (rows + gap), across * (columns + gap))[:-gap, :-gap]


def receptive_fields(weights, image_shape):
    """Columns of W1 (d, units) as pictures (units, rows, columns), the largest norm first."""
    order = np.argsort(-np.linalg.norm(weights, axis=0), kind="stable")
    return weights.T[order].reshape(-1, *image_shape)


def fields_figure(weights, image_shape, title=""):
    """The receptive field of every unit of the first layer on one sheet, strongest first."""
    fields = receptive_fields(weights, image_shape)
    units = "hidden unit" if len(fields) == 1 else f"{len(fields)} hidden units, strongest first"
    figure = new_figure(f"Receptive fields of the {units}", title)
    ax = figure.add_subplot()
    sheet = mosaic(fields, aspect=1.4, gap=2 if len(fields) < 500 else 1)
    image = signed_image(ax, sheet, signed_limit(fields))
    weight_colourbar(figure, image, "weight from a pixel to the unit")
    ax.set_axis_off()
    return figure


def templates_figure(weights, image_shape, class_names, title=""):
    """The weights of each class of a network without hidden layers, as a picture."""
    figure = new_figure("Class templates: the weights of each class", title)
    axes = picture_grid(figure, len(class_names))
    for ax, template, name in zip(axes, weights.T, class_names):
        image = signed_image(ax, template.reshape(image_shape), signed_limit(weights))
        ax.set_title(name, fontsize=9)
    weight_colourbar(figure, image, "weight from a pixel to the class", ax=list(axes))
    return figure


def picture_grid(figure, count, aspect=2.0):
    """A grid of axes without ticks, as many as there are pictures."""
    down = max(1, round(math.sqrt(count / aspect)))
    axes = figure.subplots(down, -(-count // down), squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    return axes[:count]


def histogram_figure(params, title=""):
    """How the weights of each layer are distributed: a histogram for each."""
    depth = len(params) // 2
    figure = new_figure("Distribution of each layer's weights", title)
    across = math.ceil(math.sqrt(depth))
    axes = figure.subplots(-(-depth // across), across, squeeze=False).ravel()
    for ax in axes[depth:]:
        ax.set_axis_off()
    for layer, ax in enumerate(axes[:depth], start=1):
        weights = params[f"W{layer}"].ravel()
        ax.hist(weights, bins=80, color=BLUE, log=True)
        ax.axvline(0, color=GREY, lw=1)
        ax.set_title(f"W{layer}: standard deviation {weights.std():.3g}")
        ax.set_xlabel("weight")
        ax.set_ylabel("number of weights")
    return figure


def activations_figure(activations, layer, fires_above=0.0, title=""):
    """Distribution of a hidden layer's outputs, and the share of images for which each unit fires.

    Parameters
    ----------
    activations : float array (n, width)
        Outputs of the layer for the test images.
    layer : int
        From 1; for the title.
    fires_above : float
        A unit fires when its output is above this.
    """
    fires = (activations > fires_above).mean(axis=0)  # (width,)
    never, width = int((fires == 0).sum()), len(fires)
    heading = f"Activations of hidden layer {layer}: {never} of {width} units never fire"
    figure = new_figure(heading, title)
    left, right = figure.subplots(1, 2)
    every = max(1, activations.size // 2_000_000)  # so many are enough for a histogram
    left.hist(activations.ravel()[::every], bins=80, color=BLUE, log=True)
    left.set_xlabel("activation")
    left.set_ylabel("number of activations")
    left.set_title(f"{percent((activations > fires_above).mean())} are above {fires_above:g}")
    right.stairs(100 * np.sort(fires)[::-1], np.arange(width + 1) + 0.5, fill=True, color=ORANGE)
    right.set_xlim(0.5, width + 0.5)
    right.set_ylim(0, 100)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlabel("hidden unit, the most active first")
    right.set_ylabel(f"test images with an activation above {fires_above:g} (%)")
    right.set_title("how often each unit fires")
    return figure


# --- predictions ------------------------------------------------------------------------------


def confusion_figure(counts, class_names, title=""):
    """Confusion matrix (k, k) with counts; colours show the errors alone, which are few."""
    counts = np.asarray(counts)
    figure = new_figure("Confusion matrix of the test images", title)
    ax = figure.add_subplot()
    errors = np.ma.masked_array(counts, np.eye(len(counts), dtype=bool))
    cmap = matplotlib.colormaps["Oranges"].with_extremes(bad="#d9d9d9")
    most = max(1, int(errors.filled(0).max()))
    image = ax.imshow(errors, cmap=cmap, vmin=0, vmax=most)
    figure.colorbar(image, label="wrongly classified images", fraction=0.05).ax.yaxis.set_major_locator(
        MaxNLocator(integer=True)
    )
    ax.grid(False)
    ax.set_xlabel("prediction")
    ax.set_ylabel("label")
    if len(counts) <= LABELLED_CLASSES:
        label_classes(ax.xaxis, class_names)
        label_classes(ax.yaxis, class_names)
        for (row, column), count in np.ndenumerate(counts):
            dark = row != column and count > 0.6 * most
            if count:
                ax.text(column, row, f"{count}", ha="center", va="center", size=8, color="w" if dark else "k")
    return figure


def worst_mistakes(estimates, labels):
    """Indices of the wrongly classified images, the most confident prediction first."""
    predicted, confidence = estimates.argmax(axis=1), estimates.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


def mistakes_figure(images, labels, estimates, class_names, title=""):
    """Wrongly classified pictures with label, prediction and its probability.

    Parameters
    ----------
    images : uint8 array (n, rows, columns)
        Those to show.
    labels : int array (n,)
    estimates : float array (n, k)
    """
    figure = new_figure("The most confident mistakes: label → prediction, its probability", title)
    for ax, image, label, estimate in zip(picture_grid(figure, len(images)), images, labels, estimates):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        names = [class_names[label], class_names[estimate.argmax()]]
        arrow = " → " if max(map(len, names)) <= 3 else " →\n"
        ax.set_title(f"{arrow.join(names)}\n{100 * min(1, estimate.max()):.1f} %", fontsize=8)
    return figure


def augment_figure(pictures, versions, title=""):
    """Each picture (n, rows, columns) beside distorted versions of it, (n, versions, rows, columns)."""
    figure = new_figure("An image of each class, and as distorted for eight epochs", title)
    ax = figure.add_subplot()
    blank = np.zeros_like(versions[:, 0])
    shown = np.stack([pictures, blank, *versions.swapaxes(0, 1)], axis=1).astype(np.float32)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in shown])
    ax.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
    ax.set_axis_off()
    return figure


def calibration(confidence, correct, bins=10):
    """Accuracy by confidence, and the expected calibration error (Guo et al. 2017).

    Parameters
    ----------
    confidence : float array (n,)
        Probability of each prediction.
    correct : bool array (n,)
    bins : int
        Of equal width, between 0 and 1.

    Returns
    -------
    counts : int array (bins,)
    mean_confidence, accuracy : float arrays (bins,)
        nan in an empty bin.
    error : float
        Mean distance between confidence and accuracy, weighted by counts.
    """
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin is 0 / 0
        mean_confidence = np.bincount(which, confidence, bins) / counts
        accuracy = np.bincount(which, correct, bins) / counts
    error = float(np.nansum(counts * np.abs(mean_confidence - accuracy)) / len(confidence))
    return counts, mean_confidence, accuracy, error


def calibration_figure(estimates, labels, title=""):
    """Confidence of the predictions against their accuracy, and how many there are of each."""
    confidence = estimates.max(axis=1).clip(0, 1).astype(float)
    correct = estimates.argmax(axis=1) == labels
    counts, mean_confidence, accuracy, error = calibration(confidence, correct)
    figure = new_figure(f"Calibration: expected calibration error {percent(error)}", title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 100], [0, 100], ":", color=GREY, label="perfect calibration")
    upper.plot(100 * mean_confidence, 100 * accuracy, "o-", color=BLUE, label="this network")
    upper.set_ylabel("accuracy (%)")
    upper.set_ylim(0, 102)
    legend_above(upper)
    edges = np.linspace(0, 100, len(counts) + 1)
    lower.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=BLUE, edgecolor="w", log=True)
    lower.set_xlabel("confidence: probability of the prediction (%)")
    lower.set_ylabel("test images")
    lower.set_xlim(0, 102)
    return figure


# --- searches ---------------------------------------------------------------------------------


def axis_kind(spec, values):
    """How a searched setting's axis is drawn: ``linear``, ``log`` or ``choices``.

    Parameters
    ----------
    spec : str or None
        Its range, as ``0.1:1`` or ``1e-7:1e-4:log``, or choices, as ``0,0.9``; None: not known.
    values : list
        What the trials have.
    """
    numeric = all(isinstance(value, (int, float)) for value in values)
    if not numeric or (spec is not None and ":" not in spec):
        return "choices"
    return "log" if spec is not None and spec.endswith(":log") and min(values) > 0 else "linear"


def floor_of(values):
    """The lowest value that is worth the space on an axis: outliers lie below."""
    low, high = np.percentile(values, [25, 75])
    return max(min(values), low - 3 * (high - low))


def search_figure(trials, space, title=""):
    """Validation accuracy of each trial against each searched setting.

    Parameters
    ----------
    trials : list of dict
        The ranked rows of trials.csv, the best first; at least one.
    space : dict
        Searched setting -> its range or choices, as text, or None.
    """
    figure = new_figure("Validation accuracy against each searched setting", title)
    across = min(3, len(space))
    down = -(-len(space) // across)
    grid = figure.add_gridspec(down + 1, across, height_ratios=[1] * down + [0.1])
    axes = []
    for number in range(len(space)):
        place = grid[number // across, number % across]
        axes.append(figure.add_subplot(place, sharey=axes[0] if axes else None))
        if number % across == 0:
            axes[-1].set_ylabel("validation accuracy (%)")
    floor = 100 * floor_of([trial["val_accuracy"] for trial in trials])
    for ax, (name, spec) in zip(axes, space.items()):
        plot_setting(ax, name, spec, trials, floor)
    handles, labels = axes[0].get_legend_handles_labels()
    below = sum(100 * trial["val_accuracy"] < floor for trial in trials)
    if below:
        handles.append(Line2D([], [], ls=""))
        labels.append(f"{below} at the bottom lie lower still")
    legend_below(figure, grid[down, :], handles, labels, ncol=4)
    return figure


def plot_setting(ax, name, spec, trials, floor):
    """Validation accuracy of trials, but at least floor, against one setting; the best is a star."""
    places = setting_places(ax, name, axis_kind(spec, [trial[name] for trial in trials]), trials)
    longest = max(trial["epochs"] for trial in trials)
    groups = [
        ("all epochs", [t for t in trials[1:] if t["epochs"] == longest], {"marker": "o", "color": BLUE}),
        (
            "fewer epochs",
            [t for t in trials[1:] if t["epochs"] < longest],
            {"marker": "s", "color": BLUE, "mfc": "none"},
        ),
        ("the best", trials[:1], {"marker": "*", "color": ORANGE, "ms": 14}),
    ]
    for label, chosen, style in groups:
        x = [places(trial[name]) for trial in chosen]
        y = [max(floor, 100 * trial["val_accuracy"]) for trial in chosen]
        ax.plot(x, y, ls="", label=label if chosen else None, **style)
    ax.set_xlabel(name)


def setting_places(ax, name, kind, trials):
    """Set up an axis for a setting; returns the function from its values to places on the axis."""
    if kind != "choices":
        ax.set_xscale(kind)
        if kind == "log":
            label_log_axis(ax.xaxis, [trial[name] for trial in trials], room=5)
        return lambda value: value
    choices = {trial[name] for trial in trials}
    choices = sorted(choices, key=lambda v: (0, v) if isinstance(v, (int, float)) else (1, str(v)))
    ax.set_xticks(range(len(choices)), [setting_text(choice) for choice in choices])
    ax.set_xlim(-0.5, len(choices) - 0.5)
    return choices.index


def ranking_figure(trials, settings, title=""):
    """The best trials, each a line with its settings and its validation accuracy.

    Parameters
    ----------
    trials : list of dict
        As for ``search_figure``.
    settings : list of str
        Names of the searched settings.
    """
    shown = trials[:RANKED_TRIALS]
    heading = f"The best {len(shown)} of {len(trials)} trials" if len(shown) < len(trials) else "All trials"
    figure = new_figure(f"{heading}, ranked by validation accuracy", title)
    ax = figure.add_subplot()
    accuracies = [100 * trial["val_accuracy"] for trial in shown]
    places = np.arange(1, len(shown) + 1)
    ax.plot(accuracies, places, "o", color=BLUE)
    ax.plot(accuracies[:1], places[:1], "*", color=ORANGE, ms=14)
    columns = [[name, *(setting_text(trial[name]) for trial in shown)] for name in ("trial", *settings)]
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(text.rjust(w) for text, w in zip(line, widths)) for line in zip(*columns)]
    ax.set_yticks([0, *places], lines, family="monospace")
    ax.set_ylim(len(shown) + 0.7, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("validation accuracy (%)")
    return figure


def learning_curves_figure(histories, best, title=""):
    """Validation accuracy of all trials by epoch, the best one in colour.

    Parameters
    ----------
    histories : dict
        Trial -> rows of its history.
    best : int
        The trial to show in colour.
    """
    figure = new_figure(f"Learning curves of {len(histories)} trials", title)
    ax = figure.add_subplot()
    curves = {trial: values_of(rows, "accuracy", "val") for trial, rows in histories.items()}
    for trial, values in sorted(curves.items(), key=lambda item: item[0] == best):
        epochs = [row["epoch"] for row in histories[trial]]
        marker = "." if len(epochs) <= MARKED_EPOCHS else None
        if trial == best:
            style = {"color": ORANGE, "lw": 2.5, "label": f"trial {trial}, the best"}
        else:
            style = {"color": "#999999", "lw": 0.8, "label": None}
        ax.plot(epochs, values, marker=marker, **style)
    zoomed = set_quantity_axis(ax, "accuracy", list(curves.values()))
    ax.set_ylabel("validation accuracy (%)")
    epoch_axis(ax, max(rows[-1]["epoch"] for rows in histories.values()), zoomed)
    if best in curves:
        legend_above(ax)
    return figure


# --- what a folder holds ----------------------------------------------------------------------


def load_folder(path):
    """What a folder holds of a run or of a search, as a dict.

    Returns
    -------
    dict
        ``path``, ``config``, ``chosen`` (the epoch whose params were kept), ``title`` and, where the
        folder has them, ``rows`` (the history), ``params`` and ``trials`` (see ``load_search``).
        ``lacks`` says for each thing that a figure needs why it is not there.

    Raises
    ------
    ValueError
        A file that is there is damaged.
    OSError
        There is no such folder.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; python train.py makes one (see its --out)")
    run = {"path": path, "lacks": {}, "config": load_config(path / "config.json")}
    if (path / "params.pkl").exists():
        run["params"], config = data.load_run(path)
        run["config"] = {**run["config"], **config}
    else:
        run["lacks"] |= dict.fromkeys(("params", *TEST_SET), "there is no params.pkl")
    if rows := load_history(path / "history.csv"):
        run["rows"] = rows
    else:
        run["lacks"]["rows"] = "there is no history.csv with an epoch"
    run |= load_search(path)
    run["chosen"] = chosen_epoch(run["config"])
    return {**run, "title": title_of(run)}


def load_config(path):
    config = data.load_json(path) if path.exists() else {}
    records = isinstance(config, dict) and [config.get("data", {}), config.get("result") or {}]
    if not records or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} does not hold a run's settings")
    facts, kept = config.get("data", {}), (config.get("result") or {}).get("kept") or {}
    lists = {"image_shape": (int, facts), "class_names": (str, facts), "hidden": (int, config)}
    for name, (kind, record) in lists.items():
        values = record.get(name, [])
        if not isinstance(values, (list, tuple)) or not all(type(value) is kind for value in values):
            raise ValueError(f"{path}: its {name} is no list of the right kind")
    texts = (config.get("loss", ""), config.get("dataset", ""), facts.get("title", ""))
    if not isinstance(kept, dict) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} holds settings of the wrong kind")
    if type(chosen_epoch(config)) not in (int, type(None)):
        raise ValueError(f"{path}: the epoch that it kept is no number")
    return config


def load_history(path):
    """The rows of a history.csv; none where there is no file."""
    rows = data.load_rows(path) if path.exists() else []
    figures = {f"{part}_{figure}" for part in PARTS for figure in ("loss", "accuracy")}
    check_columns(path, rows, {"epoch"} | figures)
    if not all(isinstance(row["epoch"], int) for row in rows):
        raise ValueError(f"{path} has a row without the number of its epoch")
    return rows


def check_columns(path, rows, needed):
    if rows and not needed <= set(rows[0]):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(needed - set(rows[0])))}")


def load_search(path):
    """What a folder holds of a search: a part of the dict of ``load_folder``.

    Returns
    -------
    dict
        ``trials``: the ranked rows of trials.csv, the best first; ``space``: searched setting ->
        its range as text, or None without a search.json; ``histories``: trial -> rows;
        ``search_title``. Nothing where no trial has ended well; no histories where no trial has one.
    """
    table = path / "trials.csv"
    rows = data.load_rows(table, words=True) if table.exists() else []
    check_columns(table, rows, {"trial", "status", "seed", "epochs", "val_accuracy"})
    trials = [
        row
        for row in rows
        if row["status"] in RANKED_STATUSES and isinstance(row["val_accuracy"], (int, float))
    ]
    if not trials:
        return {}
    if not all(type(trial[name]) is int for trial in trials for name in ("trial", "epochs")):
        raise ValueError(f"{table} is not the table of a search")
    columns = list(rows[0])
    space = dict.fromkeys(columns[columns.index("status") + 1 : columns.index("epochs")])
    definition = load_config(path / "search.json")
    words = [word.partition("=") for word in str(definition.get("space", "")).split()]
    space = {name: spec for name, _, spec in words if name in columns} or without(space, "seed")
    space = space or {"seed": None}
    folders = {trial["trial"]: path / "trials" / f"{trial['trial']:03}" for trial in trials}
    histories = {trial: load_history(folder / "history.csv") for trial, folder in folders.items()}
    best = trials[0]
    facts = load_config(folders[best["trial"]] / "config.json").get("data", {})
    accuracy = f"best validation accuracy {percent(best['val_accuracy'])} (trial {best['trial']})"
    counted = f"{len(rows)} trials" + (
        f", {len(rows) - len(trials)} failed" if len(rows) > len(trials) else ""
    )
    histories = {trial: rows for trial, rows in histories.items() if rows}
    return {
        "trials": trials,
        "space": space,
        **({"histories": histories} if histories else {}),
        "search_title": ", ".join([*([facts["title"]] if "title" in facts else []), counted, accuracy]),
    }


def chosen_epoch(config):
    """The epoch whose params were kept: of a params file's config, or of config.json."""
    kept = (config.get("result") or {}).get("kept") or {}
    return config.get("epoch", kept.get("epoch"))


def title_of(run):
    """Data set, layers and test accuracy of a run, as far as they are known."""
    facts, config = run["config"].get("data", {}), run["config"]
    parts = [facts["title"]] if "title" in facts else []
    if "params" in run:
        parts.append(setting_text(nn.layer_sizes(run["params"])))
    elif {"image_shape", "class_names"} <= set(facts) and "hidden" in config:
        sizes = [math.prod(facts["image_shape"]), *config["hidden"], len(facts["class_names"])]
        parts.append(setting_text(sizes))
    row = next((row for row in run.get("rows", []) if row["epoch"] == run["chosen"]), None)
    if row and row["test_accuracy"] is not None:
        parts.append(f"test accuracy {percent(row['test_accuracy'])}")
    return ", ".join(parts)


def add_test_set(run, data_dir):
    """The run with what its network makes of its test images.

    Adds ``images``, ``labels``, ``estimates`` (n, k), ``hidden`` (activations of each hidden
    layer) and ``mistakes`` (indices); or says under ``lacks`` why not.
    """
    params, config, lacks = run["params"], run["config"], dict(run["lacks"])
    try:
        dataset = data.load_dataset_of(config, data_dir)
    except (OSError, ValueError) as error:
        reason = f"the data set is not at hand: {error}"
        return {**run, "lacks": {**lacks, **dict.fromkeys(TEST_SET, reason)}}
    images, labels = dataset["test_images"], dataset["test_labels"]
    estimates, layers = judge_images(params, config, images)
    found = {"images": images, "labels": labels, "estimates": estimates}
    mistakes = worst_mistakes(estimates, labels)
    found |= {"hidden": layers} if layers else {}
    found |= {"mistakes": mistakes} if len(mistakes) else {}
    found |= {"distorted": True} if config.get("augment") else {}
    lacks |= {} if layers else {"hidden": "the network has no hidden layer"}
    lacks |= {} if len(mistakes) else {"mistakes": "no test image is classified wrongly"}
    lacks |= {"distorted": "the run has no --augment"}
    return {**run, **found, "lacks": lacks}


def judge_images(params, config, images):
    """Estimates (n, k) of uint8 images (n, d), and the activations (n, width) of each hidden layer."""
    batches = data.batches(images, None, config["steps"], dtype=params["W1"].dtype)
    outputs, layers = nn.hidden_of(params, batches, config["activation"])
    return nn.estimates(outputs, config["loss"]), layers


# --- which figures there are ------------------------------------------------------------------


def draw_curves(quantity):
    def draw(run):
        loss = run["config"].get("loss")
        return {quantity: curves_figure(run["rows"], quantity, run["title"], run["chosen"], loss)}

    return draw


def draw_twin(run):
    loss = run["config"].get("loss")
    return {"twin": twin_figure(run["rows"], run["title"], run["chosen"], loss)}


def draw_weights(run):
    params, names = run["params"], run["config"]["data"]["class_names"]
    depth = len(params) // 2
    return {
        f"weights_W{i}": weights_figure(params[f"W{i}"], f"W{i}", run["title"], names if i == depth else None)
        for i in range(1, depth + 1)
    }


def draw_fields(run):
    facts = run["config"]["data"]
    weights = data.weights_in_pixels(run["params"]["W1"], run["config"]["steps"])
    if len(run["params"]) == 2:
        return {"fields": templates_figure(weights, facts["image_shape"], facts["class_names"], run["title"])}
    return {"fields": fields_figure(weights, facts["image_shape"], run["title"])}


def draw_histogram(run):
    return {"histogram": histogram_figure(run["params"], run["title"])}


def draw_activations(run):
    above = FIRES_ABOVE.get(run["config"]["activation"], 0.0)
    return {
        f"activations_{i}": activations_figure(layer, i, above, run["title"])
        for i, layer in enumerate(run["hidden"], start=1)
    }


def draw_confusion(run):
    names = run["config"]["data"]["class_names"]
    counts = nn.confusion_matrix(run["labels"], run["estimates"].argmax(axis=1), len(names))
    return {"confusion": confusion_figure(counts, names, run["title"])}


def draw_mistakes(run):
    facts, worst = run["config"]["data"], run["mistakes"][:SHOWN_MISTAKES]
    images = run["images"][worst].reshape(-1, *facts["image_shape"])
    labels, estimates = run["labels"][worst], run["estimates"][worst]
    return {"mistakes": mistakes_figure(images, labels, estimates, facts["class_names"], run["title"])}


def draw_augment(run):
    config, rng = run["config"], np.random.default_rng(0)
    steps, image_shape = config["steps"], config["data"]["image_shape"]
    shape = data.shape_after(steps, image_shape)
    how = data.make_augment(config["augment"], shape, **{n: config[n] for n in data.STRENGTHS if n in config})
    _, first = np.unique(run["labels"], return_index=True)
    pictures = data.redraw(run["images"][first[:10]], steps)
    versions = np.stack([data.augment(pictures, how, rng) for _ in range(8)], axis=1)
    versions = versions.reshape(len(pictures), -1, *shape)
    return {"augment": augment_figure(pictures.reshape(-1, *shape), versions, run["title"])}


def draw_calibration(run):
    return {"calibration": calibration_figure(run["estimates"], run["labels"], run["title"])}


def draw_search(run):
    return {"search": search_figure(run["trials"], run["space"], run["search_title"])}


def draw_ranking(run):
    return {"ranking": ranking_figure(run["trials"], list(run["space"]), run["search_title"])}


def draw_learning_curves(run):
    best = run["trials"][0]["trial"]
    return {"learning_curves": learning_curves_figure(run["histories"], best, run["search_title"])}


FIGURES = {  # name -> what it is drawn from, function from a folder's content to figures by file name
    "loss": ("rows", draw_curves("loss")),
    "accuracy": ("rows", draw_curves("accuracy")),
    "error": ("rows", draw_curves("error")),
    "twin": ("rows", draw_twin),
    "weights": ("params", draw_weights),
    "fields": ("params", draw_fields),
    "histogram": ("params", draw_histogram),
    "activations": ("hidden", draw_activations),
    "confusion": ("images", draw_confusion),
    "mistakes": ("mistakes", draw_mistakes),
    "calibration": ("images", draw_calibration),
    "augment": ("distorted", draw_augment),
    "search": ("trials", draw_search),
    "ranking": ("trials", draw_ranking),
    "learning_curves": ("histories", draw_learning_curves),
}
TEST_SET = ("images", "hidden", "mistakes", "distorted")  # what needs the data set
SEARCH = ("trials", "histories")
COMPARED = ("loss", "accuracy", "error")  # what several runs are overlaid in


def wanted_names(run, only):
    """The figures asked for, or all that belong to what the folder is: a run, a search or both."""
    if only:
        return only
    is_run = {"rows", "params"} & set(run) or "trials" not in run
    belongs = dict.fromkeys(SEARCH, "trials" in run) | {"distorted": is_run and run["config"].get("augment")}
    return [name for name, (need, _) in FIGURES.items() if belongs.get(need, is_run)]


def draw_folder(path, only, data_dir):
    """``(figures, skipped)`` of a folder: figures by file name, and reason -> names left out."""
    run = load_folder(path)
    names = wanted_names(run, only)
    if "params" in run and any(FIGURES[name][0] in TEST_SET for name in names):
        run = add_test_set(run, data_dir)
    figures, skipped = {}, {}
    for name in names:
        need, draw = FIGURES[name]
        if need in run:
            figures |= draw(run)
        else:
            skipped.setdefault({**LACKING, **run["lacks"]}[need], []).append(name)
    return figures, skipped


# --- several runs -----------------------------------------------------------------------------


def without(settings, *names):
    return {name: value for name, value in settings.items() if name not in names}


def run_labels(runs):
    """A label for each run: the settings in which they differ, and how well it did."""
    settings = [without(run["config"], *NO_SETTINGS) for run in runs]
    names = dict.fromkeys(name for config in settings for name in config)
    differing = [n for n in names if any(c.get(n) != settings[0].get(n) for c in settings)]
    words = [", ".join(f"{n} {setting_text(c.get(n))}" for n in differing) for c in settings]
    labels = []
    for run, text in zip(runs, words):
        label = text if text and words.count(text) == 1 else f"{text}, {run['path']}".lstrip(", ")
        row = next((row for row in run["rows"] if row["epoch"] == run["chosen"]), run["rows"][-1])
        figure = row["test_accuracy"]
        labels.append(label if figure is None else f"{label}: test accuracy {percent(figure)}")
    return labels


def draw_comparison(paths, only):
    """``(figures, skipped)`` of several runs overlaid; as ``draw_folder``."""
    skipped = {}
    runs = [load_folder(path) for path in paths]
    for run in runs:
        if "rows" not in run:
            skipped.setdefault(run["lacks"]["rows"], []).append(str(run["path"]))
    runs = [run for run in runs if "rows" in run]
    others = [name for name in only or [] if name not in COMPARED]
    if others:
        skipped["it is drawn for one run at a time"] = others
    if len(runs) < 2:
        return {}, skipped
    runs = [{**run, "label": label} for run, label in zip(runs, run_labels(runs))]
    titles = dict.fromkeys(run["title"].partition(", test accuracy")[0] for run in runs)
    if len(titles) > 2:
        titles = dict.fromkeys(run["title"].partition(", ")[0] for run in runs)
    names = [name for name in only or COMPARED if name in COMPARED]
    return {name: compare_figure(runs, name, "; ".join(titles)) for name in names}, skipped


# --- files ------------------------------------------------------------------------------------


def save_figures(figures, folder):
    """Write each figure as PNG and SVG, and all of them as report.pdf; prints a line for each file.

    The same figures give the same bytes: nothing written holds a date.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = io.BytesIO()
    with PdfPages(report, metadata={"CreationDate": None}) as pages:
        for name, figure in figures.items():
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # laid out once is enough for three files
            for suffix, metadata in (("png", None), ("svg", {"Date": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=suffix, metadata=metadata)
                save_file(folder / f"{name}.{suffix}", buffer.getvalue())
            pages.savefig(figure)
    save_file(folder / "report.pdf", report.getvalue())


def save_file(path, content):
    nn.save_bytes(path, content)
    print(path, flush=True)


# --- windows ----------------------------------------------------------------------------------


def open_windows(figures):
    """Show figures in windows until all of them are closed."""
    pyplot = import_pyplot()
    for name, figure in figures.items():
        pyplot.figure(name, FigureClass=lambda figure=figure, **_: figure)
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


def stroke(drawing, start, end, radius=PEN):
    """A drawing with a line from start to end, both (x, y), of a round pen; the drawing is left alone.

    Parameters
    ----------
    drawing : float array (rows, columns)
        Ink in [0, 1].
    """
    rows, columns = drawing.shape
    y, x = np.ogrid[:rows, :columns]
    (x0, y0), (dx, dy) = start, np.subtract(end, start)
    along = ((x - x0) * dx + (y - y0) * dy) / max(1e-9, dx * dx + dy * dy)
    along = np.clip(along, 0, 1)  # the nearest point of the line, from start to end
    distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
    return np.maximum(drawing, np.clip(radius + 0.5 - distance, 0, 1))


def read_drawing(drawing, params, config):
    """What the network sees of a drawing, and its estimates (k,); blank and zeros of an empty one."""
    shape, classes = config["data"]["image_shape"], len(config["data"]["class_names"])
    if not drawing.any():
        return np.zeros(shape, np.uint8), np.zeros(classes)
    image = data.prepare_ink(drawing, shape)
    estimates, _ = judge_images(params, config, image.reshape(1, -1))
    return image, estimates[0]


def drawing_axes(figure, class_names, image_shape, title=""):
    """Lay out a figure to draw in; returns its ``pad`` and ``button``, and what changes in it."""
    from matplotlib.widgets import Button

    figure.suptitle(f"Draw with the mouse; c or the button clears\n{title}")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.3, 1], height_ratios=[1, 0.09])
    pad, right = figure.add_subplot(grid[0, 0]), grid[0, 1].subgridspec(2, 1, height_ratios=[1, 2])
    small, chances = figure.add_subplot(right[0]), figure.add_subplot(right[1])
    ink = pad.imshow(np.zeros(DRAWING), cmap="gray_r", vmin=0, vmax=1)
    seen = small.imshow(np.zeros(image_shape), cmap="gray", vmin=0, vmax=255)
    small.set_title("what the network sees")
    places = range(len(class_names))
    bars = chances.barh(places, [0] * len(places), color=BLUE)
    chances.set(xlim=(0, 100), ylim=(len(places) - 0.5, -0.5), xlabel="probability (%)")
    chances.set_yticks(places, class_names)
    for ax in (pad, small):
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        for spine in ax.spines.values():
            spine.set_visible(True)
    button = Button(figure.add_subplot(grid[1, 0]), "clear")
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # laid out once: to do it at each stroke is slow
    return {"pad": pad, "ink": ink, "seen": seen, "bars": bars, "button": button}


def drawing_window(figure, params, config, title=""):
    """Make a figure one to draw in with the mouse: the probabilities follow each stroke.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Empty; on the canvas of any interactive backend.
    params, config
        From ``data.load_run``.

    Returns
    -------
    dict
        ``pad`` (the axes to draw in), ``ink``, ``seen`` (images), ``bars``, ``button``,
        ``handlers``; to be kept as long as the window is, as Matplotlib itself does not.
    """
    facts = config["data"]
    window = drawing_axes(figure, facts["class_names"], facts["image_shape"], title)
    state = {"drawing": np.zeros(DRAWING), "last": None}

    def show(drawing):
        state["drawing"] = drawing
        image, estimates = read_drawing(drawing, params, config)
        window["ink"].set_data(drawing)
        window["seen"].set_data(image)
        for bar, estimate in zip(window["bars"], estimates):
            bar.set_width(100 * estimate)
            bar.set_color(ORANGE if estimate == estimates.max() else BLUE)
        figure.canvas.draw_idle()

    def press(event):
        if event.inaxes is window["pad"] and event.button == 1:
            state["last"] = (event.xdata, event.ydata)
            show(stroke(state["drawing"], state["last"], state["last"]))

    def move(event):
        if state["last"] and event.inaxes is window["pad"]:
            start, state["last"] = state["last"], (event.xdata, event.ydata)
            show(stroke(state["drawing"], start, state["last"]))

    def release(event):
        state["last"] = None

    def clear(event):
        if getattr(event, "key", "c") == "c":
            show(np.zeros(DRAWING))

    handlers = {"button_press": press, "motion_notify": move, "button_release": release, "key_press": clear}
    for name, handler in handlers.items():
        figure.canvas.mpl_connect(f"{name}_event", handler)
    window["button"].on_clicked(clear)
    return {**window, "handlers": handlers}


def open_drawing(path):
    """A window to draw digits in, for the network of a run."""
    params, config = data.load_run(path)
    pyplot = import_pyplot()
    with matplotlib.rc_context({"toolbar": "None", "keymap.back": []}):  # c is ours
        figure = pyplot.figure("draw", figsize=PAGE, layout="constrained")
        title = f"{config['data']['title']}, {setting_text(nn.layer_sizes(params))}"
        window = drawing_window(figure, params, config, title)
        pyplot.show()
    return window


# --- command line -----------------------------------------------------------------------------


def check_only(text):
    """Names of figures from ``loss,confusion``; None for all."""
    names = text.split(",") if text is not None else []
    for name in names:
        nn.choose("figure", name, FIGURES)
    return names


def main(argv=None):
    parser = data.make_parser("Draw what a run or a search has left, as PNG, SVG and report.pdf.")
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        default=["results"],
        help="folder of a run or a search (default: results); the curves of several runs are overlaid",
    )
    parser.add_argument("--only", metavar="NAMES", help=f"with commas between: {', '.join(FIGURES)}")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the files (default: FOLDER/figures; for several runs comparison/ beside the first)",
    )
    parser.add_argument("--show", action="store_true", help="open windows and write no files")
    parser.add_argument(
        "--draw", action="store_true", help="open a window to draw in, and watch the probabilities"
    )
    flags = data.parse_flags(parser, argv)
    if flags.draw and (flags.only or flags.out or flags.show or len(flags.folders) > 1):
        raise ValueError("--draw: goes with one FOLDER and nothing else")
    if flags.show and flags.out:
        raise ValueError("--out: has no meaning with --show")
    only, first = check_only(flags.only), pathlib.Path(flags.folders[0])
    with matplotlib.rc_context(STYLE), np.errstate(over="ignore"):  # of params beyond all reason
        if flags.draw:
            open_drawing(first)
            return
        if len(flags.folders) > 1:
            figures, skipped = draw_comparison(flags.folders, only)
            beside = first if first.name.strip(".") else first.resolve()  # the parent of . is not .
            out = beside.parent / "comparison"
        else:
            figures, skipped = draw_folder(first, only, flags.data_dir)
            out = first / "figures"
        reasons = [f"{', '.join(names)}: {reason}" for reason, names in skipped.items()]
        if not figures:
            raise ValueError(f"nothing to draw in {', '.join(flags.folders)} ({'; '.join(reasons)})")
        for reason in reasons:
            print(f"skipped {reason}", file=sys.stderr)
        if flags.show:
            open_windows(figures)
        else:
            save_figures(figures, pathlib.Path(flags.out or out))


if __name__ == "__main__":
    sys.exit(data.run_script(main))
