"""Judge saved params on a test set.

    python test.py [PARAMS or RUN FOLDER]

Prints loss, accuracy, precision, recall and F1 of each class and the confusion matrix, and
writes every prediction to predictions.csv.
"""

import json
import pathlib
import sys

import numpy as np

import data
import nn


def judge(params, config, images, labels):
    """Outputs and figures of a network on uint8 images.

    Parameters
    ----------
    params, config
        From ``nn.load_run``.
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
    with np.errstate(all="ignore"):  # found out by the check that follows
        outputs = nn.outputs_of(params, taken, config["activation"])
    if not np.isfinite(outputs).all():
        raise ValueError("the network's outputs are not finite: its params or preprocessing are out of range")
    predicted = outputs.argmax(axis=1)
    names = config["data"]["class_names"]
    confusion = nn.confusion_matrix(labels, predicted, len(names))
    report = {
        "images": len(labels),
        "loss": nn.loss(params, outputs, labels, config["loss"]),
        "accuracy": nn.accuracy(outputs, labels),
        "errors": int((predicted != labels).sum()),
        "classes": [{"name": name, **scores} for name, scores in zip(names, class_scores(confusion))],
        "confusion": confusion.tolist(),
    }
    return nn.estimates(outputs, config["loss"]), report


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


def main(argv=None):
    parser = data.make_parser("Judge saved params on a test set.")
    parser.add_argument(
        "run", nargs="?", default="results", help="a run's folder or a params file (default: results)"
    )
    parser.add_argument("--dataset", metavar="X", help="judge on this data set (default: the run's own)")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder of the data sets (default: DATA_DIR or datasets)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    flags = data.parse_flags(parser, argv)
    params, config = nn.load_run(flags.run)
    dataset = data.load_dataset_of(config, flags.data_dir, flags.dataset)
    images, labels = dataset["test_images"], dataset["test_labels"]
    estimates, report = judge(params, config, images, labels)

    layers = "-".join(map(str, nn.layer_sizes(params)))
    if flags.json:
        print(json.dumps({"dataset": dataset["name"], "layers": layers, **report}, indent=2))
    else:
        print(report_text(report, config, f"{dataset['title']}, {layers}"))

    run = pathlib.Path(flags.run)  # written last: the report is there even if the folder is read-only
    target = (run if run.is_dir() else run.parent) / "predictions.csv"
    data.save_rows(
        target, prediction_rows(estimates, labels), ["index", "label", "prediction", "probability"]
    )
    if not flags.json:
        print(f"\nevery prediction is in {target}")


if __name__ == "__main__":
    sys.exit(data.run_script(main))
