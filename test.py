"""Judge saved params on a test set, compare networks, and read pictures of your own.

    python test.py [PARAMS or RUN FOLDER]         loss, accuracy, each class, confusion matrix
    python test.py RUN1 RUN2 RUN3                 a committee: the mean of their probabilities
    python test.py RUN1 RUN2 --compare            which is better, and whether that may be chance;
                                                  folders with several runs: their means
    python test.py --images digit.png photo.jpg   the likeliest classes of each picture

Every prediction is written to predictions.csv beside the params (of a committee to
predictions-committee.csv beside the first, for the data set of --dataset to predictions-NAME.csv).
"""

import data  # first: while the rest is imported, Ctrl-C is one line already

# isort: split
import json
import math
import pathlib
import sys

import numpy as np

import nn

# --- judging ----------------------------------------------------------------------------------


def judge(members, images, labels):
    """Estimates and figures of a committee of one or more networks on uint8 images.

    Parameters
    ----------
    members : list of (params, config)
        From ``data.load_run``; layers and preprocessing may differ.
    images : uint8 array (n, d)
    labels : int array (n,)

    Returns
    -------
    estimates : array (n, k)
        Softmax probabilities, or the linear outputs of an mse network; the mean of the members'.
    report : dict
        See ``make_report``. A committee's loss is the cross-entropy of the mean probabilities; with an
        mse network among the members it is the squared error of the mean estimates.
    reports : list of dict
        Of each member.
    """
    names, every, reports = members[0][1]["data"]["class_names"], [], []
    for params, config in members:
        batches = data.batches(images, labels, config["steps"], dtype=params["W1"].dtype)
        outputs = nn.outputs_of(params, batches, config["activation"])
        every.append(nn.estimates(outputs, config["loss"]))
        reports.append(make_report(outputs, labels, config["loss"], names))
    if len(members) == 1:
        return every[0], reports[0], reports
    mean = np.mean(every, axis=0, dtype=np.float64)
    if all(config["loss"] == "cross_entropy" for _, config in members):
        logits = np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))  # their softmax is the mean
        report = make_report(logits, labels, "cross_entropy", names)
    else:
        report = make_report(mean, labels, "mse", names)
    return mean, report, reports


def make_report(outputs, labels, loss, class_names):
    """The figures of outputs (n, k) on labels (n,).

    Returns
    -------
    dict
        ``images``, ``loss``, ``accuracy``, ``errors``; ``balanced_accuracy``, the mean recall of the
        classes that occur; ``top3``, the share of labels among the three largest outputs, with more
        than five classes; ``auc``, the mean over the classes of the area under the curve of one against the
        rest; ``classes``: for each ``precision``, ``recall``, ``f1`` (0 where their denominator is),
        ``support`` and ``auc`` (None without images on both sides); ``averages`` of these, ``macro`` over the
        classes that occur and ``weighted`` by their images; ``confusion`` (row: label, column: prediction).
    """
    predicted, k = outputs.argmax(axis=1), len(class_names)
    confusion = nn.confusion_matrix(labels, predicted, k)
    areas = [area_under_curve(outputs[:, c], labels == c) for c in range(k)]
    scores = [{**score, "auc": area} for score, area in zip(class_scores(confusion), areas)]
    there = [score for score in scores if score["support"]]
    known = [area for area in areas if area is not None]
    averages = {
        "macro": {name: float(np.mean([score[name] for score in there])) for name in SCORES},
        "weighted": {
            name: float(np.average([s[name] for s in there], weights=[s["support"] for s in there]))
            for name in SCORES
        },
    }
    report = {
        "images": len(labels),
        "loss": nn.loss({}, outputs, labels, loss),
        "accuracy": nn.accuracy(outputs, labels),
        "errors": int((predicted != labels).sum()),
        "balanced_accuracy": averages["macro"]["recall"],
        "auc": float(np.mean(known)) if known else None,
    }
    if k > 5:
        best = np.argpartition(-outputs, 2, axis=1)[:, :3]
        report["top3"] = float((best == labels[:, None]).any(axis=1).mean())
    classes = [{"name": name, **score} for name, score in zip(class_names, scores)]
    return report | {"classes": classes, "averages": averages, "confusion": confusion.tolist()}


SCORES = ("precision", "recall", "f1")


def class_scores(confusion):
    """Precision, recall, F1 and support of each class, from a confusion matrix (k, k)."""
    scores = []
    for hits, predicted, support in zip(confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)):
        precision, recall = ratio(hits, predicted), ratio(hits, support)
        f1 = ratio(2 * precision * recall, precision + recall)
        scores.append({"precision": precision, "recall": recall, "f1": f1, "support": int(support)})
    return scores


def ratio(part, whole):
    return float(part / whole) if whole else 0.0


def area_under_curve(scores, positive):
    """Chance that a positive has a higher score than a negative (Mann & Whitney 1947); None without both.

    Parameters
    ----------
    scores : array (n,)
    positive : bool array (n,)
    """
    count = int(positive.sum())
    if not 0 < count < len(scores):
        return None
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]  # from 1; equal scores share their mean rank
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def compare(right, other):
    """How two networks differ on the same images, and an exact test of it (McNemar 1947).

    Parameters
    ----------
    right, other : bool arrays (n,)
        Which images each of them gets right.

    Returns
    -------
    dict
        ``only_first``, ``only_second``: images that only one of them gets right; ``p``, the chance of
        a difference at least as large if both were equally good (two-sided, binomial).
    """
    first, second = int((right & ~other).sum()), int((other & ~right).sum())
    n, fewer = first + second, min(first, second)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return {"only_first": first, "only_second": second, "p": min(1.0, 2 * tail / 2**n)}


# --- what is printed and written --------------------------------------------------------------

WIDEST = 79  # columns of a terminal
WORST = 10  # classes, or pairs of classes, that are shown where there are too many for a matrix


def report_text(report, config, title):
    """The report as aligned text."""
    names = [name[:20] for name in config["data"]["class_names"]]
    figures = [f"loss {report['loss']:.4f}", f"accuracy {percent(report['accuracy'])}"]
    figures.append(f"errors {report['errors']:,}")
    figures += [f"top 3 {percent(report['top3'])}"] if "top3" in report else []
    lines = [f"{title}: {report['images']:,} test images", "   ".join(figures), ""]
    rows, wide = report["classes"], max(8, *map(len, names))
    if len(rows) > 3 * WORST:
        rows = sorted(rows, key=lambda row: row["f1"])[:WORST]
        lines.append(f"the {WORST} worst of {len(names)} classes")
    lines.append(f"{'class':{wide}}  precision   recall       F1   images")
    averages = [
        {"name": name, "support": report["images"], **row} for name, row in report["averages"].items()
    ]
    for row in [*rows, *averages]:
        scores = "".join(f"{100 * row[key]:7.2f} %" for key in SCORES)
        lines.append(f"{row['name'][:20]:{wide}}  {scores}  {row['support']:7,}")
    return "\n".join([*lines, "", *confusion_lines(report["confusion"], names)])


def confusion_lines(confusion, names):
    """The confusion matrix, or the pairs that are confused most where it is too wide for a terminal."""
    wide, cell = max(map(len, names)), max(5, 1 + len(str(max(map(max, confusion)))))
    if wide + cell * len(names) > WIDEST:
        counts = np.array(confusion) * ~np.eye(len(names), dtype=bool)
        pairs = zip(*np.unravel_index(np.argsort(-counts, axis=None, kind="stable")[:WORST], counts.shape))
        found = [f"{names[a]} taken for {names[b]}: {counts[a, b]:,}" for a, b in pairs if counts[a, b]]
        return ["confused most:", *found]
    lines = ["confusion matrix (row: label, column: prediction)"]
    lines.append(" " * wide + "".join(f"{name[: cell - 1]:>{cell}}" for name in names))
    for name, row in zip(names, confusion):
        lines.append(f"{name:{wide}}" + "".join(f"{count or '.':>{cell}}" for count in row))
    return lines


def percent(share):
    return f"{100 * share:.2f} %"


def prediction_rows(estimates, labels, class_names):
    """Rows of predictions.csv; an mse network's estimates are clipped to [0, 1]."""
    predicted = estimates.argmax(axis=1)
    probability = estimates[np.arange(len(labels)), predicted].clip(0, 1)
    return [
        {"index": i, "label": int(y), "prediction": int(p), "probability": f"{q:.6f}"}
        | {"label_name": class_names[y], "prediction_name": class_names[p]}
        for i, (y, p, q) in enumerate(zip(labels, predicted, probability))
    ]


PREDICTION_COLUMNS = ["index", "label", "prediction", "probability", "label_name", "prediction_name"]


def layers_text(params):
    return "-".join(map(str, nn.layer_sizes(params)))


# --- on a test set ----------------------------------------------------------------------------


def load_members(runs):
    """``(params, config)`` of each run; ValueError unless they can judge the same images."""
    members = [data.load_run(run) for run in runs]
    first = members[0][1]["data"]
    for run, (_, config) in zip(runs, members):
        if any(list(config["data"][key]) != list(first[key]) for key in ("image_shape", "class_names")):
            raise ValueError(
                f"{run} and {runs[0]} are for other classes or images: they cannot be judged together"
            )
    return members


def load_test_set(members, flags):
    """The data set that all members are judged on."""
    names = sorted({config["dataset"] for _, config in members})
    if len(names) > 1 and not flags.dataset:
        raise ValueError(f"the runs have different data sets ({', '.join(names)}): choose with --dataset")
    return data.load_dataset_of(members[0][1], flags.data_dir, flags.dataset)


def report_test_set(flags, members):
    """Judge on the test set, print the report, and write the predictions."""
    dataset, config = load_test_set(members, flags), members[0][1]
    labels, names = dataset["test_labels"], config["data"]["class_names"]
    estimates, report, reports = judge(members, dataset["test_images"], labels)
    each = [
        {"run": run, "layers": layers_text(params), **{k: r[k] for k in ("loss", "accuracy", "errors")}}
        for run, (params, _), r in zip(flags.runs, members, reports)
    ]
    about = {"members": each} if len(each) > 1 else {"layers": each[0]["layers"]}
    if flags.json:
        print(json.dumps({"dataset": dataset["name"], **about, **report}, indent=2))
    else:
        if len(each) > 1:
            print("\n".join(member_lines(each)), end="\n\n")
        title = f"committee of {len(each)}" if len(each) > 1 else each[0]["layers"]
        print(report_text(report, config, f"{dataset['title']}, {title}"))
    run = pathlib.Path(flags.runs[0])  # written last: the report is there even if the folder is read-only
    kind = "-committee" * (len(each) > 1)
    kind += f"-{pathlib.Path(dataset['name']).name}" * (dataset["name"] != config["dataset"])
    target = (run if run.is_dir() else run.parent) / f"predictions{kind}.csv"
    data.save_rows(target, prediction_rows(estimates, labels, names), PREDICTION_COLUMNS)
    if not flags.json:
        print(f"\nevery prediction is in {target}")


def member_lines(each):
    wide, layers = (max(len(row[key]) for row in each) for key in ("run", "layers"))
    return [
        f"{row['run']:{wide}}   {row['layers']:{layers}}   accuracy {percent(row['accuracy'])}   "
        + (f"sd {100 * row['sd']:.2f}, {row['runs']} runs" if "sd" in row else f"errors {row['errors']:,}")
        for row in each
    ]


def runs_in(path):
    """The runs that a folder stands for: those in its folders, where it has no params of its own."""
    path = pathlib.Path(path)
    if not path.is_dir() or (path / "params.pkl").exists():
        return [path]
    return sorted(found.parent for found in path.glob("*/params.pkl")) or [path]


def report_comparison(flags):
    """Print how the first run, or folder of runs, and each of the others differ on the same test images."""
    groups = [runs_in(run) for run in flags.runs]
    members = load_members([run for group in groups for run in group])
    dataset, judged = load_test_set(members, flags), iter(members)
    labels, rows, right = dataset["test_labels"], [], []  # right: which images each run of a group gets right
    for run, group in zip(flags.runs, groups):
        own = [next(judged) for _ in group]
        every = [judge([member], dataset["test_images"], labels)[0] for member in own]
        right.append([estimates.argmax(axis=1) == labels for estimates in every])
        accuracies = [float(each.mean()) for each in right[-1]]
        mean, sd = nn.mean_and_sd(accuracies)
        row = {"run": run, "layers": layers_text(own[0][0]), "accuracy": mean}
        several = {"runs": len(group), "sd": sd, "accuracies": accuracies}
        rows.append(row | (several if len(group) > 1 else {"errors": int((~right[-1][0]).sum())}))
    for row, group, those in zip(rows[1:], groups[1:], right[1:]):
        row |= compare_groups(groups[0], right[0], group, those)
    if flags.json:
        print(json.dumps({"dataset": dataset["name"], "images": len(labels), "runs": rows}, indent=2))
        return
    print(f"{dataset['title']}: {len(labels):,} test images", *member_lines(rows), sep="\n")
    for row in rows[1:]:
        print(f"\n{comparison_text(row, rows[0]['run'])}")


def compare_groups(first, right, group, others):
    """How the second group of runs differs from the first: a test that is fit for one run or for pairs."""
    if len(first) == len(group) == 1:
        return compare(right[0], others[0])
    if [run.name for run in first] != [run.name for run in group]:
        return {"p": None}
    pairs = [float(own.mean() - other.mean()) for own, other in zip(others, right)]
    return {"difference": float(np.mean(pairs)), "p": nn.permutation_test(pairs)}


def comparison_text(row, first):
    if row["p"] is None:
        return f"no test: the runs in {row['run']} and {first} are not pairs, their folders have other names"
    verdict = "that is hardly chance" if row["p"] < 0.05 else "that may well be chance"
    if "difference" in row:
        more = "less" if row["difference"] < 0 else "more"
        what = f"{row['run']} has {abs(100 * row['difference']):.2f} points {more} than {first} on average"
        test = f"permutation test of {row['runs']} pairs"
    else:
        what = (
            f"{row['only_first']:,} images only {first} gets right, {row['only_second']:,} only {row['run']}"
        )
        test = "McNemar test"
    return f"{what}:\n{verdict} (exact {test}, p = {row['p']:.2g})"


# --- pictures of your own ---------------------------------------------------------------------


def read_picture(path, facts, fit=None):
    """A picture file as RGB pixels and as the network's uint8 image; errors name the file."""
    picture = data.load_picture(path)
    try:
        return picture, data.fit_picture(picture, facts, fit)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def likeliest(members, image):
    """All classes for one uint8 image: a list of (name, probability), the likeliest first."""
    estimates = []
    for params, config in members:
        x = data.preprocess(image.reshape(1, -1), config["steps"], params["W1"].dtype)
        estimates.append(nn.predict(params, x, config["activation"], config["loss"])[0])
    mean = np.mean(estimates, axis=0, dtype=np.float64)
    names = members[0][1]["data"]["class_names"]
    return [
        (names[i], float(mean[i].clip(0, 1))) for i in np.argsort(-mean, kind="stable")
    ]  # mse goes beyond


def evidence(params, config, image):
    """What speaks for the likeliest class in each pixel of a uint8 image, and against it where negative.

    The slope of the loss at a pixel times the pixel's grey level, with the sign turned: float array of
    the shape that the image has after the steps on pictures.
    """
    steps, shape = config["steps"], data.shape_after(config["steps"], config["data"]["image_shape"])
    redrawn = data.redraw(image.reshape(1, -1), steps)
    x = data.to_numbers(redrawn, steps, params["W1"].dtype)
    likely = nn.predict(params, x, config["activation"], config["loss"]).argmax(axis=1)
    slope = nn.input_gradient(params, x, likely, config["activation"], config["loss"])  # (1, inputs)
    basis = next((step["basis"] for step in steps if step.get("basis") is not None), None)
    slope = slope if basis is None else slope @ basis.T
    return (-slope * redrawn).reshape(shape)


def save_evidence(path, evidence):
    """Write PATH.why.png: orange is for the likeliest class, blue against it; returns its path."""
    from PIL import Image

    share = evidence / (np.abs(evidence).max() or 1)
    colours = np.where(share[..., None] > 0, [255, 140, 0], [0, 114, 178])  # (rows, columns, 3)
    pixels = np.uint8(255 - np.abs(share)[..., None] * (255 - colours))
    scale = max(1, 280 // max(evidence.shape))
    size = (evidence.shape[1] * scale, evidence.shape[0] * scale)
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    return data.save_png(f"{path}.why.png", picture)


def report_pictures(flags, members):
    """Print the likeliest classes of each picture; returns 2 if one could not be read, else 0."""
    facts, rows, status = members[0][1]["data"], [], 0
    for path in flags.images:
        try:
            picture, image = read_picture(path, facts, flags.fit)
            files = {"seen": data.save_seen(path, picture, image)} if flags.save else {}
            if flags.explain:
                files["why"] = save_evidence(path, evidence(*members[0], image))
        except (ValueError, OSError) as error:
            print(f"test.py: {data.message_of(error)}", file=sys.stderr, flush=True)
            status = 2
            continue
        best = likeliest(members, image)
        rows.append(
            {"file": path, "classes": [{"name": name, "probability": p} for name, p in best], **files}
        )
        if not flags.json:
            words = [f"{name} {100 * p:.1f} %" for name, p in best[:3]]
            words += [f"({kind}: {file})" for kind, file in files.items()]
            print(data.printable(f"{path}: {'   '.join(words)}"), flush=True)
    if flags.json:
        print(json.dumps(rows, indent=2))
    return status


# --- command line -----------------------------------------------------------------------------

EXAMPLES = """examples:
  python test.py results
  python test.py results/a results/b --compare
  python test.py results --images photos/*.jpg --save"""


def main(argv=None):
    parser = data.make_parser("Judge saved params on a test set, or on pictures of your own.", EXAMPLES)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", default=["results"],
        help="a run's folder or a params file (default: results); several are a committee",
    )  # fmt: skip
    parser.add_argument("--dataset", metavar="NAME", help="judge on this data set (default: the run's own)")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare the first run with each other one; "
        "a folder without params stands for the runs in its folders: their means are compared",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--images", nargs="+", metavar="FILE",
        help="classify these pictures, or those of a folder, one digit on each, instead of a test set",
    )  # fmt: skip
    parser.add_argument(
        "--fit", metavar="NAME",
        help="with --images: digit (cut out, and centred as MNIST's are) or whole (default: as trained)",
    )  # fmt: skip
    parser.add_argument(
        "--save", action="store_true",
        help="with --images: write FILE.seen.png, what was given and what the network saw",
    )  # fmt: skip
    parser.add_argument(
        "--explain", action="store_true",
        help="with --images: write FILE.why.png, what in the picture speaks for the likeliest class "
        "(orange) and against it (blue)",
    )  # fmt: skip
    flags = data.parse_flags(parser, argv)
    if flags.fit:
        nn.choose("--fit", flags.fit, dict.fromkeys(data.FITS))
    for name in ("fit", "save", "explain"):
        if getattr(flags, name) and not flags.images:
            raise ValueError(f"--{name}: needs --images")
    if flags.images and (flags.dataset or flags.compare):
        raise ValueError(f"--{'dataset' if flags.dataset else 'compare'}: has no meaning with --images")
    if flags.compare and len(flags.runs) < 2:
        raise ValueError("--compare: needs two runs or more")
    if flags.images:
        flags.images = data.expand_pictures(flags.images)
    if flags.compare:
        return report_comparison(flags)
    members = load_members(flags.runs)
    if flags.explain and len(members) > 1:
        raise ValueError("--explain: is for one run, not for a committee")
    if flags.images:
        return report_pictures(flags, members)
    return report_test_set(flags, members)


if __name__ == "__main__":
    sys.exit(data.run_script(main))
