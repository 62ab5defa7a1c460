"""Judge saved params on a test set, or on pictures of your own.

    python test.py [PARAMS or RUN FOLDER]         loss, accuracy, each class, confusion matrix
    python test.py RUN1 RUN2 RUN3                 a committee: the mean of their probabilities
    python test.py --images digit.png photo.jpg   the likeliest classes of each picture

The predictions of a single run are written to predictions.csv beside its params; those for the
data set of --dataset to predictions-NAME.csv.
"""

import data  # first: while the rest is imported, Ctrl-C is one line already

# isort: split
import json
import pathlib
import sys

import numpy as np

import nn


def judge(params, config, images, labels):
    """Outputs and figures of a network on uint8 images.

    Parameters
    ----------
    params, config
        From ``data.load_run``.
    images : uint8 array (n, d)
    labels : int array (n,)

    Returns
    -------
    estimates : array (n, k)
        Softmax probabilities, or the linear outputs of an mse network.
    report : dict
        ``images``, ``loss``, ``accuracy``, ``errors``, ``confusion`` (row: label, column:
        prediction) and for each class ``precision``, ``recall``, ``f1`` and ``support``; a figure
        whose denominator is 0 is 0.
    """
    taken = data.batches(images, labels, config["steps"], dtype=params["W1"].dtype)
    outputs = nn.outputs_of(params, taken, config["activation"])
    report = make_report(outputs, labels, config["loss"], config["data"]["class_names"])
    return nn.estimates(outputs, config["loss"]), report


def make_report(outputs, labels, loss, class_names):
    """The figures that ``judge`` describes, from outputs (n, k) and labels (n,)."""
    predicted = outputs.argmax(axis=1)
    confusion = nn.confusion_matrix(labels, predicted, len(class_names))
    return {
        "images": len(labels),
        "loss": nn.loss({}, outputs, labels, loss),
        "accuracy": nn.accuracy(outputs, labels),
        "errors": int((predicted != labels).sum()),
        "classes": [{"name": name, **scores} for name, scores in zip(class_names, class_scores(confusion))],
        "confusion": confusion.tolist(),
    }


def judge_committee(members, images, labels):
    """Figures of a committee: the mean of its members' estimates.

    Parameters
    ----------
    members : list of (params, config)
        Layers and preprocessing may differ.
    images : uint8 array (n, d)
    labels : int array (n,)

    Returns
    -------
    report : dict
        As from ``judge``. The loss is the cross-entropy of the mean probabilities; with an mse
        network among the members it is the squared error of the mean estimates.
    reports : list of dict
        Of each member.
    """
    judged = [judge(params, config, images, labels) for params, config in members]
    mean = np.mean([estimates for estimates, _ in judged], axis=0, dtype=np.float64)
    class_names = members[0][1]["data"]["class_names"]
    if all(config["loss"] == "cross_entropy" for _, config in members):
        logits = np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))  # their softmax is the mean
        report = make_report(logits, labels, "cross_entropy", class_names)
    else:
        report = make_report(mean, labels, "mse", class_names)
    return report, [report for _, report in judged]


def class_scores(confusion):
    """Precision, recall, F1 and support of each class, from a confusion matrix (k, k)."""
    scores = []
    for hits, predicted, support in zip(confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)):
        precision, recall = _ratio(hits, predicted), _ratio(hits, support)
        f1 = _ratio(2 * precision * recall, precision + recall)
        scores.append({"precision": precision, "recall": recall, "f1": f1, "support": int(support)})
    return scores


def _ratio(part, whole):
    return float(part / whole) if whole else 0.0


def report_text(report, config, title):
    """The report as aligned text."""
    names = config["data"]["class_names"]
    wide = max(5, *(len(name) for name in names))
    lines = [
        f"{title}: {report['images']:,} test images",
        f"loss {report['loss']:.4f}   accuracy {100 * report['accuracy']:.2f} %   "
        f"errors {report['errors']:,}",
        "",
        f"{'class':{wide}}  precision   recall       F1   images",
    ]
    for row in report["classes"]:
        figures = "".join(f"{100 * row[key]:7.2f} %" for key in ("precision", "recall", "f1"))
        lines.append(f"{row['name']:{wide}}  {figures}  {row['support']:7,}")
    cell = max(5, 1 + len(str(max(map(max, report["confusion"])))))
    short = [name[: cell - 1] for name in names]
    lines += ["", "confusion matrix (row: label, column: prediction)"]
    lines.append(" " * wide + "".join(f"{name:>{cell}}" for name in short))
    for name, row in zip(names, report["confusion"]):
        lines.append(f"{name:{wide}}" + "".join(f"{count or '.':>{cell}}" for count in row))
    return "\n".join(lines)


def prediction_rows(estimates, labels):
    """Rows of predictions.csv; an mse network's estimates are clipped to [0, 1]."""
    predicted = estimates.argmax(axis=1)
    probability = estimates[np.arange(len(labels)), predicted].clip(0, 1)
    return [
        {"index": i, "label": int(y), "prediction": int(p), "probability": f"{q:.6f}"}
        for i, (y, p, q) in enumerate(zip(labels, predicted, probability))
    ]


def layers_text(params):
    return "-".join(map(str, nn.layer_sizes(params)))


def load_members(runs):
    """``(params, config)`` of each run; ValueError unless they can judge the same images."""
    members = [data.load_run(run) for run in runs]
    first = members[0][1]["data"]
    for run, (_, config) in zip(runs, members):
        facts = config["data"]
        if any(list(facts[key]) != list(first[key]) for key in ("image_shape", "class_names")):
            raise ValueError(f"{run} and {runs[0]} know different classes or images: no committee for them")
    return members


def report_test_set(flags, members):
    """Judge on the test set, print the report, and write a single run's predictions."""
    names = sorted({config["dataset"] for _, config in members})
    if len(names) > 1 and not flags.dataset:
        raise ValueError(f"the runs have different data sets ({', '.join(names)}): choose with --dataset")
    params, config = members[0]
    dataset = data.load_dataset_of(config, flags.data_dir, flags.dataset)
    if len(members) > 1:
        report_committee(flags, members, dataset)
        return
    labels = dataset["test_labels"]
    estimates, report = judge(params, config, dataset["test_images"], labels)
    if flags.json:
        print(json.dumps({"dataset": dataset["name"], "layers": layers_text(params), **report}, indent=2))
    else:
        print(report_text(report, config, f"{dataset['title']}, {layers_text(params)}"))
    run = pathlib.Path(flags.runs[0])  # written last: the report is there even if the folder is read-only
    own = dataset["name"] == config["dataset"]
    name = "predictions.csv" if own else f"predictions-{pathlib.Path(dataset['name']).name}.csv"
    target = (run if run.is_dir() else run.parent) / name
    data.save_rows(
        target, prediction_rows(estimates, labels), ["index", "label", "prediction", "probability"]
    )
    if not flags.json:
        print(f"\nevery prediction is in {target}")


def report_committee(flags, members, dataset):
    """Judge a committee and each of its members, and print the reports."""
    report, reports = judge_committee(members, dataset["test_images"], dataset["test_labels"])
    rows = [
        {"run": run, "layers": layers_text(params), **{k: r[k] for k in ("loss", "accuracy", "errors")}}
        for run, (params, _), r in zip(flags.runs, members, reports)
    ]
    if flags.json:
        print(json.dumps({"dataset": dataset["name"], "members": rows, **report}, indent=2))
        return
    wide, layers = (max(len(row[key]) for row in rows) for key in ("run", "layers"))
    for row in rows:
        accuracy = f"accuracy {100 * row['accuracy']:.2f} %   errors {row['errors']:,}"
        print(f"{row['run']:{wide}}   {row['layers']:{layers}}   {accuracy}")
    title = f"{dataset['title']}, committee of {len(rows)}"
    print(f"\n{report_text(report, members[0][1], title)}")


# --- pictures of your own ---------------------------------------------------------------------


def read_picture(path, image_shape):
    """A picture file as RGB pixels and as the network's uint8 image; errors name the file."""
    picture = data.load_picture(path)
    try:
        return picture, data.prepare_picture(picture, image_shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def likeliest(members, image, count=3):
    """The likeliest classes of one uint8 image: a list of (name, probability), best first."""
    estimates = []
    for params, config in members:
        x = data.preprocess(image.reshape(1, -1), config["steps"], params["W1"].dtype)
        outputs = nn.outputs_of(params, [{"x": x}], config["activation"])
        estimates.append(nn.estimates(outputs, config["loss"])[0])
    mean = np.mean(estimates, axis=0, dtype=np.float64)
    names = members[0][1]["data"]["class_names"]
    order = np.argsort(-mean, kind="stable")[:count]
    return [(names[i], float(mean[i].clip(0, 1))) for i in order]  # an mse network's go beyond


def report_pictures(flags, members):
    """Print the likeliest classes of each picture; returns 2 if one could not be read, else 0."""
    shape, rows, status = members[0][1]["data"]["image_shape"], [], 0
    for path in flags.images:
        try:
            picture, image = read_picture(path, shape)
            seen = data.save_seen(path, picture, image) if flags.save else None
        except (ValueError, OSError) as error:
            print(f"test.py: {data.message_of(error)}", file=sys.stderr, flush=True)
            status = 2
            continue
        best = likeliest(members, image)
        row = {"file": path, "classes": [{"name": name, "probability": p} for name, p in best]}
        rows.append({**row, "seen": str(seen)} if seen else row)
        if not flags.json:
            chances = "   ".join(f"{name} {100 * p:.1f} %" for name, p in best)
            print(f"{path}: {chances}" + (f"   (seen: {seen})" if seen else ""), flush=True)
    if flags.json:
        print(json.dumps(rows, indent=2))
    return status


def main(argv=None):
    parser = data.make_parser("Judge saved params on a test set, or on pictures of your own.")
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        default=["results"],
        help="a run's folder or a params file (default: results); several are a committee",
    )
    parser.add_argument("--dataset", metavar="X", help="judge on this data set (default: the run's own)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help="classify these pictures, one digit on each, instead of a test set",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="with --images: write FILE.seen.png, what was given and what the network saw",
    )
    flags = data.parse_flags(parser, argv)
    if flags.save and not flags.images:
        raise ValueError("--save: needs --images")
    if flags.dataset and flags.images:
        raise ValueError("--dataset: has no meaning with --images")
    if flags.images:  # *.png also matches what --save has written
        flags.images = [path for path in flags.images if not path.endswith(".seen.png")] or flags.images
    for path in flags.images or []:
        if pathlib.Path(path).is_dir():
            raise ValueError(f"--images: {path} is a folder; a run is named before --images")
    members = load_members(flags.runs)
    if flags.images:
        return report_pictures(flags, members)
    return report_test_set(flags, members)


if __name__ == "__main__":
    sys.exit(data.run_script(main))
