"""Judge saved params on a test set, compare networks, and say what is on new images and pictures.

    python test.py [PARAMS or RUN FOLDER]         loss, accuracy, each class, confusion matrix
    python test.py RUN1 RUN2 RUN3                 a committee: the mean of their probabilities
    python test.py RUN1 RUN2 --compare            which is better, and whether that may be chance;
                                                  folders with several runs: their means
    python test.py --images digit.png photo.jpg   the likeliest classes of each picture
    python test.py --predict new.csv              the class of each image, as a table
    python test.py RUN --export digits.onnx       the network for other programs

Every prediction on a test set is written to predictions.csv beside the params (of a committee to
predictions-committee.csv beside the first, for the data set of --dataset to predictions-NAME.csv).
"""

import data  # first: while the rest is imported, Ctrl-C is one line already

# isort: split
import collections
import itertools
import json
import math
import os
import pathlib
import string
import sys

import numpy as np

import nn

# --- judging ----------------------------------------------------------------------------------


def judge(members, images, labels, adversarial=0.0):
    """Estimates and figures of a committee on uint8 images (n, d); a run is a committee of one.

    Parameters
    ----------
    members : list of (params, config)
        From ``data.load_run``; layers and preprocessing may differ.
    adversarial : float
        Move all images by so much against each network, see ``data.moved_along``.

    Returns
    -------
    estimates : float64 array (n, k)
        The mean of the members' softmax probabilities, or of an mse network's linear outputs.
    report : dict
        See ``make_report``; with an mse network among the members its loss is the squared error.
    each : list of dict
        The ``figures`` of each member.
    """
    names, losses = members[0][1]["data"]["class_names"], [config["loss"] for _, config in members]
    every = [estimates_of(*member, images, labels, adversarial) for member in members]
    mean, loss = np.mean(every, axis=0), losses[0] if len(set(losses)) == 1 else "mse"
    each = [figures(estimates, labels, own) for estimates, own in zip(every, losses)]
    return mean, make_report(mean, labels, loss, names), each


def estimate(members, images):
    """The mean of the members' estimates (n, k) for uint8 images (n, d): see ``judge``."""
    return np.mean([estimates_of(*member, images) for member in members], axis=0)


def estimates_of(params, config, images, labels=None, adversarial=0.0):
    """A network's estimates (n, k) for uint8 images (n, d), which may be moved against it."""
    batches = data.batches(images, labels, config["steps"], dtype=params["W1"].dtype)
    if adversarial:
        batches = (attacked(batch, params, config, adversarial) for batch in batches)
    outputs = nn.outputs_of(params, batches, config["activation"])
    return nn.estimates(outputs.astype(np.float64), config["loss"])


def attacked(batch, params, config, share):
    """The batch with its images moved against the network."""
    slope = nn.input_gradient(params, batch["x"], batch["y"], config["activation"], config["loss"])
    return {"x": data.moved_along(slope, batch["x"], config["steps"], share)}


def figures(estimates, labels, loss):
    """``loss``, ``accuracy`` and ``errors`` of estimates (n, k) on labels (n,)."""
    outputs = estimates
    if loss == "cross_entropy":
        outputs = np.log(np.maximum(estimates, np.finfo(estimates.dtype).tiny))
    return {
        "loss": nn.loss({}, outputs, labels, loss),
        "accuracy": nn.accuracy(estimates, labels),
        "errors": int((estimates.argmax(axis=1) != labels).sum()),
    }


def make_report(estimates, labels, loss, class_names):
    """The ``figures`` of estimates (n, k) on labels (n,), and what they are of each class.

    Returns
    -------
    dict
        Besides ``figures``: ``images``; ``balanced_accuracy``, the mean recall; ``top3``, with more than five
        classes the share of labels among the three largest estimates; ``classes``: for each its ``name``,
        what ``class_scores`` has, and ``auc``, the area under the curve of it against the rest (None without
        images on both sides), whose mean is ``auc``; ``averages`` of them, ``macro`` over the classes that
        occur and ``weighted`` by their images; ``confusion`` (row: label, column: prediction).
    """
    k = len(class_names)
    confusion = nn.confusion_matrix(labels, estimates.argmax(axis=1), k)
    areas = [area_under_curve(estimates[:, c], labels == c) for c in range(k)]
    known, scores = [area for area in areas if area is not None], class_scores(confusion)
    support = np.array([score["support"] for score in scores])
    averages = {
        kind: {name: float(np.average([s[name] for s in scores], weights=weights)) for name in SCORES}
        for kind, weights in (("macro", support > 0), ("weighted", support))
    }
    report = {"images": len(labels), **figures(estimates, labels, loss)}
    report["balanced_accuracy"] = averages["macro"]["recall"]
    report["auc"] = float(np.mean(known)) if known else None
    if k > 5:
        best = np.argpartition(-estimates, 2, axis=1)[:, :3]
        report["top3"] = float((best == labels[:, None]).any(axis=1).mean())
    classes = [{"name": name, **score, "auc": area} for name, score, area in zip(class_names, scores, areas)]
    return report | {"classes": classes, "averages": averages, "confusion": confusion.tolist()}


SCORES = ("precision", "recall", "f1")


def class_scores(confusion):
    """``precision``, ``recall``, ``f1`` (0 where nothing divides them), ``support`` of each class."""
    hits, predicted, support = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    wholes = (predicted, support, (predicted + support) / 2)
    shares = [(hits / np.maximum(whole, 0.5)).tolist() for whole in wholes]  # of nothing there are no hits
    return [dict(zip((*SCORES, "support"), row)) for row in zip(*shares, support.tolist())]


def area_under_curve(scores, positive):
    """Chance that one of the positives (n,) has a higher score (n,) than one of the others.

    After Mann & Whitney 1947; None where all or none are positive.
    """
    others = np.sort(scores[~positive])
    if not 0 < len(others) < len(scores):
        return None
    places = [np.searchsorted(others, scores[positive], side) for side in ("left", "right")]
    return float(np.mean(places) / len(others))  # one that is as high counts half


def compare(right, other):
    """How two networks differ, of which each gets these images right (n,): McNemar's exact test (1947).

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


def report_text(report, config, title, what="test images"):
    """The report as aligned text."""
    names = [data.printable(name, 20) for name in config["data"]["class_names"]]
    figures = [f"loss {report['loss']:.4f}", f"accuracy {percent(report['accuracy'])}"]
    figures.append(f"errors {report['errors']:,}")
    figures += [f"top 3 {percent(report['top3'])}"] if "top3" in report else []
    lines = [f"{title}: {report['images']:,} {what}", "   ".join(figures), ""]
    rows = report["classes"]
    if len(rows) > 3 * WORST:
        rows = sorted(rows, key=lambda row: row["f1"])[:WORST]
        lines.append(f"the {WORST} worst of {len(names)} classes")
    averages = [
        {"name": name, "support": report["images"], **row} for name, row in report["averages"].items()
    ]
    cells = [
        [data.printable(row["name"], 20), *(percent(row[score]) for score in SCORES), f"{row['support']:,}"]
        for row in [*rows, *averages]
    ]
    lines += table_lines([["class", "precision", "recall", "F1", "images"], *cells])
    return "\n".join([*lines, "", *confusion_lines(report["confusion"], names)])


def table_lines(rows, gap=2, least=0, first=str.ljust):
    """Rows of texts as lines: the first column at the left, the others, at least so wide, at the right."""
    wide, *others = (max(map(len, column)) for column in zip(*rows))
    others = [max(least, wide) for wide in others]
    return [(" " * gap).join([first(row[0], wide), *map(str.rjust, row[1:], others)]) for row in rows]


def confusion_lines(confusion, names):
    """The confusion matrix, or the pairs that are confused most where it is too wide for a terminal."""
    wide, longest = max(map(len, names)), len(str(max(map(max, confusion))))
    room = (WIDEST - wide) // len(names) - 1  # for the numbers of a column
    if room < max(4, longest):
        counts = np.array(confusion) * ~np.eye(len(names), dtype=bool)
        pairs = zip(*np.unravel_index(np.argsort(-counts, axis=None, kind="stable")[:WORST], counts.shape))
        found = [f"{names[a]} taken for {names[b]}: {counts[a, b]:,}" for a, b in pairs if counts[a, b]]
        return ["confused most:", *found]
    rows = [[name, *(str(count or ".") for count in row)] for name, row in zip(names, confusion)]
    rows = table_lines([["", *(name[:room] for name in names)], *rows], gap=1, least=4)
    return ["confusion matrix (row: label, column: prediction)", *rows]


def percent(share):
    return f"{100 * share:.2f} %"


def best_of(estimates):
    """Class and probability (n,) of each row's largest estimate; an mse network's is cut off at 0 and 1."""
    return estimates.argmax(axis=1), estimates.max(axis=1).clip(0, 1)


def prediction_rows(estimates, labels, class_names):
    """Rows of predictions.csv."""
    return [
        {"index": i, "label": int(y), "prediction": int(p), "probability": f"{q:.6f}"}
        | {"label_name": class_names[y], "prediction_name": class_names[p]}
        for i, (y, p, q) in enumerate(zip(labels, *best_of(estimates)))
    ]


def layers_text(params):
    return "-".join(map(str, nn.layer_sizes(params)))


# --- on a test set ----------------------------------------------------------------------------


def load_members(runs):
    """``(params, config)`` of each run; ValueError unless they can judge the same images."""
    members = [data.load_run(run) for run in runs]
    first = members[0][1]["data"]
    for run, (_, config) in zip(runs, members):
        if any(list(config["data"][key]) != list(first[key]) for key in ("image_shape", "class_names")):
            raise ValueError(f"{run} and {runs[0]} are for other classes or images: judge them one by one")
    return members


def load_test_set(members, flags):
    """The data set that all members are judged on."""
    names = sorted({config["dataset"] for _, config in members})
    if len(names) > 1 and not flags.dataset:
        raise ValueError(f"the runs have different data sets ({', '.join(names)}): choose with --dataset")
    dataset = data.load_dataset_of(members[0][1], flags.data_dir, flags.dataset)
    data.judged_images(dataset)  # there are some
    return dataset


def report_test_set(flags, members):
    """Judge on the test set, print the report, and write the predictions."""
    dataset, config = load_test_set(members, flags), members[0][1]
    labels, names, several = dataset["test_labels"], config["data"]["class_names"], len(members) > 1
    estimates, report, every = judge(members, dataset["test_images"], labels, flags.adversarial)
    each = [
        {"run": run, "layers": layers_text(params), **own}
        for run, (params, _), own in zip(flags.runs, members, every)
    ]
    if flags.json:
        about = {"dataset": dataset["name"], "judged": dataset["judged"]}
        about |= {"members": each} if several else {"layers": each[0]["layers"]}
        about |= {"adversarial": flags.adversarial} if flags.adversarial else {}
        print(json.dumps(about | report, indent=2))
    else:
        title = f"{dataset['title']}, {f'committee of {len(each)}' if several else each[0]['layers']}"
        title += f", attacked by {flags.adversarial:g}" if flags.adversarial else ""
        above = [*member_lines(each), ""] if several else []
        data.say("\n".join([*above, report_text(report, config, title, dataset["judged"])]))
    run = pathlib.Path(flags.runs[0])  # written last: the report is there even if the folder is read-only
    kind = "-committee" * several + "-attacked" * bool(flags.adversarial)
    kind += f"-{pathlib.Path(dataset['name']).name}" * (dataset["name"] != config["dataset"])
    target = (run if run.is_dir() else run.parent) / f"predictions{kind}.csv"
    rows = prediction_rows(estimates, labels, names)
    data.save_rows(target, rows, list(rows[0]))
    if not flags.json:
        data.say(f"\nevery prediction is in {target}")


def member_lines(each):
    rows = []
    for row in each:
        several = "sd" in row
        last = f"sd {100 * row['sd']:.2f}, {row['runs']} runs" if several else f"errors {row['errors']:,}"
        rows.append([row["run"], row["layers"], f"accuracy {percent(row['accuracy'])}", last])
    return table_lines(rows, gap=3)


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
    dataset, left = load_test_set(members, flags), iter(members)
    labels, rows, first = dataset["test_labels"], [], None
    for run, group in zip(flags.runs, groups):
        own = [next(left) for _ in group]
        right = [estimate([member], dataset["test_images"]).argmax(axis=1) == labels for member in own]
        accuracies = [float(each.mean()) for each in right]
        mean, sd = nn.mean_and_sd(accuracies)
        row = {"run": run, "layers": layers_text(own[0][0]), "accuracy": mean}
        several = {"runs": len(group), "sd": sd, "accuracies": accuracies}
        row |= several if len(group) > 1 else {"errors": int((~right[0]).sum())}
        row |= compare_groups(groups[0], first, group, right) if rows else {}
        first = first or right
        rows.append(row)
    if flags.json:
        print(json.dumps({"dataset": dataset["name"], "images": len(labels), "runs": rows}, indent=2))
        return
    data.say("\n".join([f"{dataset['title']}: {len(labels):,} {dataset['judged']}", *member_lines(rows)]))
    for row in rows[1:]:
        data.say(f"\n{comparison_text(row, rows[0]['run'])}")


def compare_groups(names, first, other_names, second):
    """How two groups of runs, of which each gets these images right, differ: single ones, or pairs."""
    if len(first) == len(second) == 1:
        return compare(first[0], second[0])
    if [path.name for path in names] != [path.name for path in other_names]:
        return {"p": None}
    pairs = [float(own.mean() - other.mean()) for own, other in zip(second, first)]
    return {"difference": float(np.mean(pairs)), "p": nn.permutation_test(pairs)}


def comparison_text(row, first):
    if row["p"] is None:
        return f"no test: the runs in {row['run']} and {first} have other names, so they are no pairs"
    verdict = "that is hardly chance" if row["p"] < 0.05 else "that may well be chance"
    if "difference" in row:
        more = "less" if row["difference"] < 0 else "more"
        what = f"{row['run']} has {abs(100 * row['difference']):.2f} points {more} than {first} on average"
        test = f"permutation test of {row['runs']} pairs"
    else:
        single = f"{row['only_second']:,} only {row['run']}"
        what = f"{row['only_first']:,} images only {first} gets right, {single}"
        test = "McNemar test"
    return f"{what}:\n{verdict} (exact {test}, p = {row['p']:.2g})"


# --- pictures of your own ---------------------------------------------------------------------


def read_pictures(paths, flags, facts):
    """``(path, RGB pixels, uint8 images on it, doubts)`` of each picture; a line for one that is none."""
    several = 0
    with data.progress_line() as show:
        for number, path in enumerate(paths, start=1):
            show(f"reading {number:,}/{len(paths):,} pictures")
            try:
                picture, images, doubts = read_picture(path, facts, flags.fit, flags.split)
            except (ValueError, OSError) as error:
                show("")
                complain(error)
                continue
            show("")
            several += data.SEVERAL in doubts
            yield path, picture, images, doubts
    if several:
        seem = f"{data.count(several, 'picture')} with several digits, it seems"
        data.say(f"note: {seem}; --split reads them as a number", sys.stderr)


def complain(error):
    data.say(f"test.py: {data.message_of(error)}", sys.stderr)


def read_picture(path, facts, fit=None, split=False):
    """A picture file as RGB pixels, and what ``data.fit_pictures`` makes of it; errors name the file."""
    picture = data.load_picture(path)
    with nn.reading(f"the picture {path}", "shows no digit"):
        return picture, *data.fit_pictures(picture, facts, fit, split)


def likeliest(members, image):
    """``name`` and ``probability`` of all classes for one uint8 image, the likeliest first."""
    mean = estimate(members, image.reshape(1, -1))[0]  # of an mse network it goes beyond 0 and 1
    names, ranked = members[0][1]["data"]["class_names"], np.argsort(-mean, kind="stable")
    return [{"name": names[i], "probability": float(mean[i].clip(0, 1))} for i in ranked]


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
    return (-data.slope_in_pixels(slope, steps) * redrawn).reshape(shape)


def save_evidence(path, evidence):
    """Write PATH.why.png: orange is for the likeliest class, blue against it; returns its path."""
    from PIL import Image, ImageOps

    share = evidence / (np.abs(evidence).max() or 1)
    colours = np.where(share[..., None] > 0, [255, 140, 0], [0, 114, 178])  # (rows, columns, 3)
    pixels = np.uint8(255 - np.abs(share)[..., None] * (255 - colours))
    scale = max(1, 280 // max(evidence.shape))
    picture = ImageOps.scale(Image.fromarray(pixels), scale, Image.Resampling.NEAREST)
    return data.save_png(f"{path}.why.png", picture)


def report_pictures(flags, members):
    """Print the likeliest classes of each picture; returns 2 if one could not be read, else 0."""
    rows = []
    for path, picture, images, doubts in read_pictures(flags.images, flags, members[0][1]["data"]):
        try:
            files = {"seen": data.save_seen(path, picture, np.hstack(images))} if flags.save else {}
            if flags.explain:
                files["why"] = save_evidence(path, evidence(*members[0], images[0]))
        except OSError as error:  # the other pictures are still to be read
            complain(error)
            continue
        best = [likeliest(members, image) for image in images]
        what = {**as_number(best), "digits": best} if flags.split else {"classes": best[0]}
        rows.append({"file": path, **what, "doubts": doubts, **files})
        if not flags.json:
            notes = [*doubts, *(f"{kind}: {file}" for kind, file in files.items())]
            data.say(f"{path}: {'   '.join([picture_text(best), *(f'({note})' for note in notes)])}")
    if flags.json:
        print(json.dumps(rows, indent=2))
    return 2 * (len(rows) < len(flags.images))


def picture_text(best):
    """The three likeliest classes, or the number that several digits make."""
    chances = [[f"{row['name']} {100 * row['probability']:.1f} %" for row in one] for one in best]
    if len(best) == 1:
        return "   ".join(chances[0][:3])
    number = as_number(best)
    each = ", ".join(one[0] for one in chances)
    return f"{number['number']} {100 * number['probability']:.1f} %   ({each})"


def as_number(best):
    """``number`` and ``probability`` of what the first of ``likeliest`` of each digit make together."""
    names, chances = [one[0]["name"] for one in best], [one[0]["probability"] for one in best]
    return {
        "number": ("" if max(map(len, names)) == 1 else " ").join(names),
        "probability": math.prod(chances),
    }


# --- new images -------------------------------------------------------------------------------


def report_answers(flags, members):
    """Write or print what the new images are; returns 2 if a picture could not be read, else 0."""
    class_names = members[0][1]["data"]["class_names"]
    if flags.out and any(os.path.realpath(path) == os.path.realpath(flags.out) for path in flags.predict):
        raise ValueError(f"--out: {flags.out} is what is to be read")
    kind, counts, images, status = new_images(flags, members[0][1])
    if not counts:
        return status
    estimates = estimate(members, images)
    columns = flags.columns or [kind, "class", "probability"]
    digits = ([{"name": class_names[c], "probability": float(p)}] for c, p in zip(*best_of(estimates)))
    rows = []
    for name, count in counts:
        answer = as_number(list(itertools.islice(digits, count)))
        rows.append(dict(zip(columns, (name, answer["number"], f"{answer['probability']:.6f}"))))
    if flags.probabilities:
        columns += [f"p_{name}" for name in class_names]
        for row, shares in zip(rows, estimates.clip(0, 1).tolist()):
            row |= {name: f"{share:.6f}" for name, share in zip(columns[3:], shares)}
    if not flags.out:
        data.say(data.rows_text(rows, columns).rstrip("\n"))
        return status
    data.save_rows(flags.out, rows, columns)
    data.say(answers_text(flags, members, [row[columns[1]] for row in rows]))
    return status


def new_images(flags, config):
    """What --predict names: what a name is (``index``, ``file``), each name with its number of images, the
    uint8 images (n, d), and the exit status: 2 if a picture could not be read."""
    path, facts = flags.predict[0], config["data"]
    if len(flags.predict) == 1 and data.holds_arrays(path):
        for name in ("fit", "split"):
            if getattr(flags, name):
                raise ValueError(f"--{name}: is for pictures, not for {path}")
        images = data.load_images(path, facts["image_shape"], config["transpose"])
        first = 1 if flags.columns else 0
        return "index", [(first + i, 1) for i in range(len(images))], images, 0
    paths = data.expand_pictures(flags.predict, "--predict")
    found = [(path, images, doubts) for path, _, images, doubts in read_pictures(paths, flags, facts)]
    doubtful = sum(bool(set(doubts) - {data.SEVERAL}) for _, _, doubts in found)
    if doubtful:
        some = data.count(doubtful, "doubtful picture")
        data.say(f"note: {some}; --images in place of --predict says why", sys.stderr)
    names = [data.printable(path) for path, _, _ in found]
    bare = [os.path.basename(name) for name in names]
    names = bare if len(set(bare)) == len(bare) else names
    images = np.array([image.ravel() for _, those, _ in found for image in those])
    counts = [(name, len(those)) for name, (_, those, _) in zip(names, found)]
    return "file", counts, images, 2 * (len(found) < len(paths))


def answers_text(flags, members, answers):
    """How many there are of each answer, the most frequent ones where there are many."""
    what = flags.predict[0] if len(flags.predict) == 1 else f"{len(flags.predict):,} files"
    who = f"committee of {len(members)}" if len(members) > 1 else layers_text(members[0][0])
    counted = collections.Counter(answers).most_common()
    shown = counted[: 3 * WORST]
    lines = [f"{what}, {who}: {data.count(len(answers), 'image')}", ""]
    cells = [[data.printable(name, 20), f"{number:,}"] for name, number in shown]
    lines += table_lines([["class", "images"], *cells])
    lines += [f"and {len(counted) - len(shown):,} more"] if len(counted) > len(shown) else []
    return "\n".join([*lines, "", f"the answers are in {flags.out}"])


# --- export -----------------------------------------------------------------------------------
#
# The preprocessing of numbers becomes part of the first layer: every file but .npz takes uint8 images as
# they are, and holds nothing but layers.

EXPORTED = {  # activation -> its ONNX nodes (z: what it gets, t: what the node before gave), its form in C
    "relu": ([("Relu", "z")], "z > 0 ? z : 0"),
    "leaky_relu": ([("Mul", "z", "slope"), ("Max", "z", "t")], f"z > 0 ? z : {nn.LEAKY_SLOPE}f * z"),
    "sigmoid": ([("Sigmoid", "z")], "1 / (1 + expf(-z))"),
    "tanh": ([("Tanh", "z")], "tanhf(z)"),
    "elu": ([("Elu", "z")], "z > 0 ? z : expm1f(z)"),
    "silu": ([("Sigmoid", "z"), ("Mul", "z", "t")], "z / (1 + expf(-z))"),
    "gelu": (  # 0.5 (1 + tanh(u)) is sigmoid(2 u)
        [("Mul", "z", "z"), ("Mul", "t", "cubic"), ("Add", "t", "linear"), ("Mul", "z", "t")]
        + [("Sigmoid", "t"), ("Mul", "z", "t")],
        f"z / (1 + expf(-{2 * nn.GELU_A}f * (z + {nn.GELU_B}f * z * z * z)))",
    ),
}
CONSTANTS = {"slope": nn.LEAKY_SLOPE, "linear": 2 * nn.GELU_A, "cubic": 2 * nn.GELU_A * nn.GELU_B}
SOFTMAX_IN_C = """float sum = 0;
  for (int k = 0; k < CLASSES; k++) sum += outputs[k] = expf(x[k] - x[best]);
  for (int k = 0; k < CLASSES; k++) outputs[k] /= sum;"""
RESULTS = {  # loss -> what a file gives for each class, its ONNX node, its form in C
    "cross_entropy": ("probabilities", "Softmax", SOFTMAX_IN_C),
    "mse": ("outputs", "Identity", "for (int k = 0; k < CLASSES; k++) outputs[k] = x[k];"),
}


def fold(params, config):
    """The same network on grey levels 0 to 255, in float32; as ``judge`` takes it.

    Its affine step is part of the first layer. Of the config's steps only those on pictures are left.
    """
    nn.choose("activation for a file of --export:", config["activation"], EXPORTED)
    if data.gradient_step(config["steps"]):
        raise ValueError("--export: the network sees gradients (hog), which only .npz can keep")
    exact = data.on_grey_levels(params, config["steps"])
    with np.errstate(over="ignore"):
        folded = {key: w.astype(np.float32) for key, w in exact.items()}
    if not all(np.isfinite(w).all() for w in folded.values()):
        raise ValueError("--export: the network's numbers are too large for float32; .npz keeps them all")
    return folded, {**config, "steps": [step for step in config["steps"] if step["name"] != "affine"]}


def usage_of(config):
    """What a file with the network of ``fold`` takes and gives, in words."""
    rows, columns = data.shape_after(config["steps"], config["data"]["image_shape"])
    first = " and ".join(step["name"] for step in config["steps"])
    first = f" AFTER {first}, which it does not do itself (data.redraw does)" if first else ""
    return f"takes {rows}x{columns} grey levels, 0 to 255{first}; gives {RESULTS[config['loss']][0]}"


def save_onnx(path, params, config):
    """Write ONNX: ``images``, uint8 (n, d), to ``probabilities`` (n, k); of an mse network to ``outputs``."""
    sizes, (result, op, _) = nn.layer_sizes(params), RESULTS[config["loss"]]
    nodes = _onnx_layers(len(sizes) - 1, config["activation"])
    nodes.append((op, [nodes[-1][2]], result))
    used = {name for _, inputs, _ in nodes for name in inputs}
    tensors = params | {name: number for name, number in CONSTANTS.items() if name in used}
    graph = [(1, _node(*node)) for node in nodes] + [(2, "network")]
    graph += [(5, _tensor(name, array)) for name, array in tensors.items()]
    graph += [(11, _value("images", UINT8, sizes[0])), (12, _value(result, FLOAT, sizes[-1]))]
    names = [(1, "class_names"), (2, json.dumps(config["data"]["class_names"]))]
    model = [(1, 7), (2, "test.py"), (6, usage_of(config)), (7, graph), (8, [(1, ""), (2, 13)]), (14, names)]
    nn.save_bytes(path, _message(model))


def _onnx_layers(depth, activation):
    """Nodes from the images to the linear outputs: (op, names of inputs, name of what it makes)."""
    nodes = [("Cast", ["images"], "x")]
    for layer in range(1, depth + 1):
        z = f"z{layer}"
        nodes.append(("Gemm", [nodes[-1][2], f"W{layer}", f"b{layer}"], z))
        for op, *inputs in EXPORTED[activation][0] if layer < depth else []:
            names = {"z": z, "t": nodes[-1][2]}
            nodes.append((op, [names.get(name, name) for name in inputs], f"t{len(nodes)}"))
    return nodes


FLOAT, UINT8 = 1, 2  # as ONNX numbers them


def _node(op, inputs, output):
    to_float = [(5, [(1, "to"), (3, FLOAT), (20, 2)])] if op == "Cast" else []  # 2: a whole number
    return [*((1, name) for name in inputs), (2, output), (4, op), *to_float]


def _tensor(name, array):
    array = np.asarray(array, "<f4")
    return [*((1, size) for size in array.shape), (2, FLOAT), (8, name), (9, array.tobytes())]


def _value(name, kind, width):
    shape = [(1, [(2, "n")]), (1, [(1, width)])]
    return [(1, name), (2, [(1, [(1, kind), (2, shape)])])]


def _message(fields):
    """A protobuf message of pairs: a number, and a whole number, a text, bytes or the pairs of a message."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_varint(number << 3), _varint(value)]
            continue
        value = value.encode() if isinstance(value, str) else value
        value = _message(value) if isinstance(value, list) else value
        parts += [_varint(number << 3 | 2), _varint(len(value)), value]
    return b"".join(parts)


def _varint(number):
    """Seven bits to a byte, the lowest first; the eighth says that more follow."""
    lowest, more = number & 127, number >> 7
    return bytes([lowest | 128]) + _varint(more) if more else bytes([lowest])


def save_json(path, params, config):
    """Write JSON: params as lists of numbers with 6 digits, and what is needed to use them."""
    six_digits = np.vectorize(lambda number: float(f"{number:.6g}"))
    content = {
        "usage": usage_of(config),
        "activation": config["activation"],
        "gives": RESULTS[config["loss"]][0],
        "class_names": config["data"]["class_names"],
        "params": {key: six_digits(w).tolist() for key, w in params.items()},
    }
    nn.save_bytes(path, json.dumps(content).encode())


def quantise(params):
    """int8 weights (fan_in, units) and the scale (units,) of each W; their product is the weights."""
    whole, scales = {}, {}
    for key in [key for key in params if key[0] == "W"]:
        scales[key] = np.maximum(np.abs(params[key]).max(axis=0) / 127, np.finfo(np.float32).tiny)
        whole[key] = np.rint(params[key] / scales[key]).astype(np.int8)
    return whole, scales


HEADER = """// $about, written by test.py --export. Needs only C99 and its <math.h> (-lm).
// predict $usage.
#ifndef NETWORK_H
#define NETWORK_H
#include <math.h>
#include <stdint.h>

enum { LAYERS = $depth, CLASSES = $classes, WIDEST = $widest };
static const int sizes[] = {$sizes};
static const char *const class_names[] = {$class_names};
$arrays
static inline float activation(float z) { return $activation; }

// Returns the likeliest class; outputs gets CLASSES numbers.
static inline int predict(const uint8_t *pixels, float *outputs) {
  const int8_t *weight = weights;
  const float *scale = scales, *bias = biases;
  float x[WIDEST], z[WIDEST];
  int best = 0;
  for (int i = 0; i < sizes[0]; i++) x[i] = pixels[i];
  for (int layer = 1; layer <= LAYERS; layer++) {
    for (int unit = 0; unit < sizes[layer]; unit++) {
      z[unit] = 0;
      for (int i = 0; i < sizes[layer - 1]; i++) z[unit] += *weight++ * x[i];
      z[unit] = z[unit] * *scale++ + *bias++;
    }
    for (int i = 0; i < sizes[layer]; i++) x[i] = layer < LAYERS ? activation(z[i]) : z[i];
  }
  for (int k = 1; k < CLASSES; k++) best = x[k] > x[best] ? k : best;
  $result
  return best;
}
#endif
"""


def save_header(path, params, config):
    """Write a C99 header: int8 weights, a scale and a bias for each unit, and the function ``predict``."""
    (whole, scales), sizes = quantise(params), nn.layer_sizes(params)
    arrays = {"int8_t weights": [w.T for w in whole.values()], "float scales": scales.values()}
    arrays["float biases"] = [b for key, b in params.items() if key[0] == "b"]
    names = [json.dumps(name, ensure_ascii=False) for name in config["data"]["class_names"]]
    text = string.Template(HEADER).substitute(
        about=f"{layers_text(params)}, {config['activation']}",
        usage=usage_of(config),
        depth=len(sizes) - 1,
        classes=sizes[-1],
        widest=max(sizes),
        sizes=", ".join(map(str, sizes)),
        class_names=", ".join(names).replace("?", "\\?"),  # in C99 ??/ is a backslash
        arrays="\n".join(_c_array(name, parts) for name, parts in arrays.items()),
        activation=EXPORTED[config["activation"]][1],
        result=RESULTS[config["loss"]][2],
    )
    nn.save_bytes(path, text.encode())


def _c_array(name, parts):
    numbers = [f"{number:.9g}" for part in parts for number in part.flat]
    lines = [", ".join(numbers[i : i + 12]) for i in range(0, len(numbers), 12)]
    return f"static const {name}[] = {{\n" + ",\n".join(lines) + "};"


EXPORTS = {".onnx": save_onnx, ".npz": nn.save_params, ".json": save_json, ".h": save_header}


def report_export(flags, params, config):
    """Write the network to the file of --export, and print what that holds."""
    form = pathlib.Path(flags.export).suffix
    folded, rest = (params, config) if form == ".npz" else fold(params, config)
    EXPORTS[form](flags.export, folded, rest)
    held = "params and config, for test.py and nn.load_params"
    if form != ".npz":
        held = f"{layers_text(folded)}, {usage_of(rest)}"
    data.say(f"{flags.export}: {held}")
    if form == ".h":
        dataset, (whole, scales) = load_test_set([(params, config)], flags), quantise(folded)
        rounded = folded | {key: whole[key] * scales[key] for key in whole}
        before, after = (
            percent(nn.accuracy(estimate([one], dataset["test_images"]), dataset["test_labels"]))
            for one in ((params, config), (rounded, rest))
        )
        data.say(f"{dataset['title']}: accuracy {after} with weights of 8 bits, {before} before")


# --- command line -----------------------------------------------------------------------------

EXAMPLES = """examples:
  python test.py results
  python test.py results/a results/b --compare
  python test.py results --images photos/*.jpg --save
  python test.py results --predict new.csv --out answers.csv --probabilities
  python test.py results --export digits.onnx"""


PICTURES = ("images", "predict")
VALUES = {  # of FLAGS -> how it is read, where it is no text
    None: {"action": "store_true"},
    "X": {"metavar": "X", "type": float, "default": 0.0},
    "PICTURE": {"metavar": "PICTURE", "nargs": "+"},
    "PATH": {"metavar": "PATH", "nargs": "+"},
}
FLAGS = {  # flag -> what its value looks like (None: it has none), of which flags it needs one, help
    "dataset": ("NAME", (), "judge on this data set (default: the run's own)"),
    "compare": (None, (), "compare the first run with each other; folders of several runs by their means"),
    "json": (None, (), "print the report as JSON"),
    "adversarial": (
        "X", (), "judge on images of which each pixel is moved by so much (1: from black to white) along the "
        "sign of the loss's slope, as train.py --adversarial does"
    ),
    "images": ("PICTURE", (), "classify these pictures, or those of a folder, one digit on each"),
    "predict": ("PATH", (), "say what new images are: a file (.csv, .npy, .npz, IDX), or pictures"),
    "export": ("FILE", (), f"write the network for other programs, by the suffix: {', '.join(EXPORTS)}"),
    "fit": ("NAME", PICTURES, "digit (cut out and centred as in MNIST) or whole (default: as trained)"),
    "split": (None, PICTURES, "read several digits on a picture from left to right as a number"),
    "save": (None, ("images",), "write PICTURE.seen.png, what was given and what the network saw"),
    "explain": (None, ("images",), "write PICTURE.why.png: orange speaks for the answer, blue against it"),
    "out": ("FILE", ("predict",), "write the answers there, as CSV"),
    "columns": ("A,B", ("predict",), "write two columns of these names: ImageId,Label (from 1) for Kaggle"),
    "probabilities": (None, ("predict",), "a column for each class as well"),
}  # fmt: skip
EXCLUDED = {  # flag -> with which it has no meaning
    "images": ("predict", "dataset", "compare", "adversarial", "export"),
    "predict": ("dataset", "compare", "adversarial", "export", "json"),
    "export": ("compare", "json"),
    "split": ("explain", "probabilities"),
    "columns": ("probabilities",),
}


def main(argv=None):
    parser = data.make_parser(
        "Judge saved params on a test set, or use them on images of your own.", EXAMPLES
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", default=["results"],
        help="a run's folder or a params file (default: results); several are a committee",
    )  # fmt: skip
    for name, (value, needed, text) in FLAGS.items():
        text = f"with --{' or --'.join(needed)}: {text}" if needed else text
        parser.add_argument(f"--{name}", help=text, **VALUES.get(value, {"metavar": value}))
    flags = data.parse_flags(parser, argv)
    check_flags(flags)
    if flags.images:
        flags.images = data.expand_pictures(flags.images)
    if flags.compare:
        return report_comparison(flags)
    members = load_members(flags.runs)
    for name in ("explain", "adversarial", "export"):
        if getattr(flags, name) and len(members) > 1:
            raise ValueError(f"--{name}: is for one run, not for a committee")
        if name != "export" and getattr(flags, name) and data.gradient_step(members[0][1]["steps"]):
            raise ValueError(f"--{name}: the run's network sees gradients (hog), not pixels")
    if flags.export:
        return report_export(flags, *members[0])
    if flags.images:
        return report_pictures(flags, members)
    return report_answers(flags, members) if flags.predict else report_test_set(flags, members)


def check_flags(flags):
    """ValueError that names the flag which is wrong, or does not go with another."""
    for name, (_, needed, _) in FLAGS.items():
        if needed and getattr(flags, name) and not any(getattr(flags, other) for other in needed):
            raise ValueError(f"--{name}: needs --{' or --'.join(needed)}")
    for name, others in EXCLUDED.items():
        for other in others:
            if getattr(flags, name) and getattr(flags, other):
                raise ValueError(f"--{other}: has no meaning with --{name}")
    if not 0 <= flags.adversarial <= 1:
        raise ValueError(f"--adversarial: must be from 0 to 1, not {flags.adversarial:g}")
    if flags.fit:
        nn.choose("--fit", flags.fit, dict.fromkeys(data.FITS))
    if flags.export is not None:
        nn.choose(f"suffix of --export {flags.export}:", pathlib.Path(flags.export).suffix, EXPORTS)
    if flags.compare and len(flags.runs) < 2:
        raise ValueError("--compare: needs two runs or more")
    if flags.columns:
        flags.columns = flags.columns.split(",")
        if len(set(flags.columns)) != 2 or len(flags.columns) != 2:
            raise ValueError("--columns: takes the names of two columns, as ImageId,Label")


if __name__ == "__main__":
    sys.exit(data.run_script(main))
