"""Every figure, from the files that runs and searches leave.

    python visualize.py                           figures of the run or search in results/
    python visualize.py results/a results/b       the curves of several runs, overlaid
    python visualize.py --only loss,confusion     some of the figures
    python visualize.py --draw                    a window to draw digits in, with their probabilities

Figures go to the run's figures/ folder, each as PNG and SVG, and all of them as the pages of
report.pdf. A figure function takes data and returns a matplotlib Figure; it touches no file.
"""

import io
import math
import os
import pathlib
import sys

import matplotlib
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import data
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


def layers_text(sizes):
    return "-".join(map(str, sizes))


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
    later = np.concatenate([curve[1:] for curve in curves])
    if max(map(len, curves)) < 3 or not np.isfinite(later).any():
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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim((0.5, 1.5) if epochs <= 1 else (1 - 0.02 * epochs, epochs + 0.02 * epochs))


def set_quantity_axis(ax, quantity, curves, loss=None):
    """Label and range of the y-axis; returns whether the first epoch is outside it."""
    labels = {"loss": LOSS_LABELS.get(loss, "loss"), "accuracy": "accuracy (%)", "error": "error (%)"}
    ax.set_ylabel(labels[quantity])
    if quantity == "error":
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
        return False
    limits = zoomed_range(curves)
    if limits:
        ax.set_ylim(limits)
    return limits is not None


def mark_epoch(ax, rows, quantity, part, chosen, colour):
    """A ring around a curve's value at the chosen epoch."""
    values = {row["epoch"]: value for row, value in zip(rows, values_of(rows, quantity, part))}
    if chosen in values:
        ax.plot([chosen], [values[chosen]], "o", ms=10, mfc="none", mec=colour, mew=1.5)


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


# --- weights ----------------------------------------------------------------------------------


def colour_limit(array):
    """The symmetric limit of a colour scale centred on 0."""
    return float(np.abs(array).max()) or 1.0


def weights_figure(weights, name, title="", class_names=None):
    """Heat map of a weight matrix (inputs, outputs), colours centred on 0.

    With ``class_names`` the outputs are classes, and named.
    """
    inputs, outputs = weights.shape
    figure = new_figure(f"{name}: {inputs} × {outputs} weights", title)
    ax = figure.add_subplot()
    limit = colour_limit(weights)
    image = ax.imshow(weights, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto")
    figure.colorbar(image, label="weight", fraction=0.05)
    ax.grid(False)
    ax.set_ylabel("input")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("unit")
    if class_names and len(class_names) <= LABELLED_CLASSES:
        ax.set_xlabel("class")
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
    limit = colour_limit(fields)
    sheet = mosaic(fields, aspect=1.5)
    image = ax.imshow(sheet, cmap=SIGNED, vmin=-limit, vmax=limit)
    figure.colorbar(image, label="weight from a pixel to the unit", fraction=0.05)
    ax.set_axis_off()
    return figure


def templates_figure(weights, image_shape, class_names, title=""):
    """The weights of each class of a network without hidden layers, as a picture."""
    figure = new_figure("Class templates: the weights of each class", title)
    limit = colour_limit(weights)
    axes = picture_grid(figure, len(class_names))
    for ax, template, name in zip(axes, weights.T, class_names):
        image = ax.imshow(template.reshape(image_shape), cmap=SIGNED, vmin=-limit, vmax=limit)
        ax.set_title(name, fontsize=9)
    figure.colorbar(image, ax=axes, label="weight from a pixel to the class", fraction=0.05)
    return figure


def picture_grid(figure, count, aspect=2.0):
    """A grid of axes without ticks, as many as there are pictures."""
    across = max(1, math.ceil(math.sqrt(aspect * count)))
    axes = figure.subplots(-(-count // across), across, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    return axes[:count]


# --- predictions ------------------------------------------------------------------------------


def confusion_figure(counts, class_names, title=""):
    """Confusion matrix (k, k) with counts; colours show the errors alone, which are few."""
    counts = np.asarray(counts)
    figure = new_figure("Confusion matrix of the test images", title)
    ax = figure.add_subplot()
    errors = np.ma.masked_array(counts, np.eye(len(counts), dtype=bool))
    cmap = matplotlib.colormaps["Oranges"].copy()
    cmap.set_bad("#d9d9d9")
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


# --- what a folder holds ----------------------------------------------------------------------


def load_run(path):
    """What a run's folder holds, as a dict.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict
        ``path``, ``config``, ``title``, ``chosen`` (the epoch whose params were kept), and, where
        the folder has them, ``rows`` (the history) and ``params``. ``lacks`` says why something is
        missing.

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
    run = {"path": path, "config": {}, "lacks": {}}
    if (path / "config.json").exists():
        run["config"] = data.load_json(path / "config.json")
    if (path / "params.pkl").exists():
        run["params"], config = nn.load_run(path)
        run["config"] = {**run["config"], **config}
    else:
        run["lacks"]["params"] = "there is no params.pkl"
    rows = load_history(path / "history.csv")
    if rows:
        run["rows"] = rows
    else:
        run["lacks"]["rows"] = "there is no history.csv with at least one epoch"
    run["chosen"] = chosen_epoch(run["config"])
    return {**run, "title": title_of(run)}


def load_history(path):
    """The rows of a history.csv; none where there is no file."""
    rows = data.load_rows(path) if path.exists() else []
    needed = {"epoch"} | {f"{part}_{figure}" for part in PARTS for figure in ("loss", "accuracy")}
    if rows and not needed <= set(rows[0]):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(needed - set(rows[0])))}")
    return rows


def chosen_epoch(config):
    """The epoch whose params were kept: of a params file's config, or of config.json."""
    kept = (config.get("result") or {}).get("kept") or {}
    return config.get("epoch", kept.get("epoch"))


def title_of(run):
    """Data set, layers and test accuracy of a run, as far as they are known."""
    facts = run["config"].get("data", {})
    parts = [facts["title"]] if "title" in facts else []
    if "params" in run:
        parts.append(layers_text(nn.layer_sizes(run["params"])))
    row = next((row for row in run.get("rows", []) if row["epoch"] == run["chosen"]), None)
    if row and row["test_accuracy"] is not None:
        parts.append(f"test accuracy {percent(row['test_accuracy'])}")
    return ", ".join(parts)


def add_test_set(run, data_dir):
    """The run with its test ``images``, ``labels`` and ``estimates`` (n, k) of the network."""
    params, config = run["params"], run["config"]
    try:
        dataset = data.load_dataset_of(config, data_dir)
    except OSError as error:
        return {**run, "lacks": {**run["lacks"], "images": f"the data set is not at hand: {error}"}}
    images, labels = dataset["test_images"], dataset["test_labels"]
    batches = data.batches(images, labels, config["steps"], dtype=params["W1"].dtype)
    outputs = nn.outputs_of(params, batches, config["activation"])
    estimates = nn.estimates(outputs, config["loss"])
    return {**run, "images": images, "labels": labels, "estimates": estimates}


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
    facts, weights = run["config"]["data"], run["params"]["W1"]
    if len(run["params"]) == 2:
        return {"fields": templates_figure(weights, facts["image_shape"], facts["class_names"], run["title"])}
    return {"fields": fields_figure(weights, facts["image_shape"], run["title"])}


def draw_confusion(run):
    names = run["config"]["data"]["class_names"]
    counts = nn.confusion_matrix(run["labels"], run["estimates"].argmax(axis=1), len(names))
    return {"confusion": confusion_figure(counts, names, run["title"])}


FIGURES = {  # name -> what it is drawn from, function from a run to figures by file name
    "loss": ("rows", draw_curves("loss")),
    "accuracy": ("rows", draw_curves("accuracy")),
    "error": ("rows", draw_curves("error")),
    "twin": ("rows", draw_twin),
    "weights": ("params", draw_weights),
    "fields": ("params", draw_fields),
    "confusion": ("images", draw_confusion),
}


# --- files ------------------------------------------------------------------------------------


def save_figures(figures, folder):
    """Write each figure as PNG and SVG, and all of them as report.pdf; prints a line for each file.

    The same figures give the same bytes: nothing written holds a date.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = io.BytesIO()
    with PdfPages(report, metadata={"CreationDate": None}) as pages:
        for name, figure in figures.items():
            for suffix, metadata in (("png", None), ("svg", {"Date": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=suffix, metadata=metadata)
                figure.set_layout_engine("none")  # laid out once is enough
                save_file(folder / f"{name}.{suffix}", buffer.getvalue())
            pages.savefig(figure)
    save_file(folder / "report.pdf", report.getvalue())


def save_file(path, content):
    data.save_bytes(path, content)
    print(path)


def main(argv=None):
    parser = data.make_parser("Draw the figures of a run.")
    parser.add_argument("run", nargs="?", default="results")
    parser.add_argument("--data-dir", metavar="DIR")
    flags = data.parse_flags(parser, argv)
    with matplotlib.rc_context(STYLE):
        run = load_run(flags.run)
        if "params" in run:
            run = add_test_set(run, flags.data_dir)
        figures = {}
        for name, (needs, draw) in FIGURES.items():
            if needs in run:
                figures |= draw(run)
        save_figures(figures, run["path"] / "figures")


if __name__ == "__main__":
    sys.exit(data.run_script(main))
