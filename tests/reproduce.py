"""Train the reference systems and the records, and print what they reach.

    python tests/reproduce.py                # every row: hours
    python tests/reproduce.py A C            # these rows
    python tests/reproduce.py --show         # the table, without training
    python tests/reproduce.py --write        # and put it into the README.md

Each run is one ``python train.py`` command in a folder of its own below
results/reproduce. A run that was stopped is resumed, one that has ended is not
run again. The table is made from the files that the runs leave. Settings were
chosen on validation images, never on the test set. Each run takes as many
threads as it can get: with --jobs 2 set OPENBLAS_NUM_THREADS=1.
"""

import argparse
import itertools
import pathlib
import shlex
import statistics
import subprocess
import sys
import textwrap
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data  # noqa: E402
import nn  # noqa: E402
import test as judging  # noqa: E402
import train  # noqa: E402

# --- what a row shows: from (folder, config.json) of each of its runs that have ended -----------


def spread(values, unit):
    each = ", ".join(f"{value:.2f}" for value in values)
    if len(values) < 2:
        return f"**{each}{unit}**"
    return f"**{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}{unit}** ({each})"


def test_accuracy(runs):
    return spread([100 * record["result"]["kept"]["test_accuracy"] for _, record in runs], " %")


def test_accuracy_and_loss(runs):
    losses = [record["result"]["kept"]["test_loss"] for _, record in runs]
    return f"{test_accuracy(runs)}, loss {statistics.mean(losses):.4f}"


def alone_and_together(runs):
    members = judging.load_members([str(folder) for folder, _ in runs])
    dataset = data.load_dataset_of(members[0][1])
    _, report, _ = judging.judge(members, dataset["test_images"], dataset["test_labels"])
    return f"{test_accuracy(runs)}; as a committee **{100 * report['accuracy']:.2f} %**"


def seconds_to(accuracy):
    """From uint8 images in memory to the end of the epoch that reaches it, all but the evaluations."""

    def reached(runs):
        before, times = preparation(runs[0][1]), []
        for folder, _ in runs:
            rows = data.load_rows(folder / "history.csv")
            epochs = [row["epoch"] for row in rows if row["test_accuracy"] >= accuracy]
            times += [before + sum(row["seconds"] for row in rows[: epochs[0]])] if epochs else []
        shown = spread(times, " s") if times else "not reached"
        which = f"to {100 * accuracy:g} % in {len(times)} of {len(runs)} runs, {before:.2f} s of it"
        return f"{shown} {which} before the first step; at the end {test_accuracy(runs)}"

    return reached


def preparation(config):
    """Seconds to split, to fit the preprocessing and to apply it to the training images: the median of 5."""
    dataset, times = train.load_dataset(config, None), []
    for _ in range(5):
        started = time.perf_counter()
        train.prepare(dataset, config, ("train",))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# --- the rows ---------------------------------------------------------------------------------

LEAKY = "--activation leaky_relu --loss mse --preprocess scale standardize --batch-size 16 --lr 0.001"
LEAKY += (
    " --lr-schedule inverse --momentum 0.9 --weight-decay 0.001 --epochs 30 --patience 10 --holdout random"
)
SOFTMAX = "--hidden 0 --preprocess scale center --batch-size 100 --lr 0.2 --momentum 0.9"
SOFTMAX += " --lr-schedule exponential --lr-decay 0.9 --epochs 30 --holdout random"
FASHION = "--dataset fashion-mnist --hidden 512 256 --preprocess scale standardize --batch-size 32"
FASHION += " --lr 0.1 --lr-schedule cosine --epochs 10 --val-size 0"
THREE = "--hidden 512 256 --batch-size 64 --lr 0.01 --epochs 10 --val-size 0"
ELASTIC = "--hidden 800 --preprocess deskew scale --augment elastic --max-shift 0.3 --max-rotation 5"
ELASTIC += " --max-scaling 0.08 --max-shear 0.05 --bend 0.9 --lr 1.2 --lr-schedule cosine --warmup 2"
ELASTIC += " --weight-decay 0 --epochs 120 --val-size 0"
SIMARD = "99.3 % (Simard et al. 2003)"
INVARIANT = "--hidden 2048 --lr 0.5 --lr-schedule cosine --warmup 1 --dropout 0.5 --input-dropout 0.2"
INVARIANT += " --max-norm 2 --weight-decay 0 --val-size 0 --epochs 120"
ADVERSARIAL = "--hidden 1024 1024 --lr 0.3 --lr-schedule cosine --warmup 1 --dropout 0.25 --max-norm 3"
ADVERSARIAL += " --weight-decay 0 --val-size 0 --epochs 100 --adversarial 0.1"
BEST_FASHION = "--dataset fashion-mnist --hidden 1024 512 --preprocess scale standardize"
BEST_FASHION += " --augment shift flip --max-shift 1 --dropout 0.1 --batch-size 64 --lr 0.1"
BEST_FASHION += " --lr-schedule cosine --warmup 1 --weight-decay 1e-5 --epochs 80 --val-size 0"
HOG_SOFTMAX = "--hidden 0 --preprocess deskew hog:7 center standardize --batch-size 100 --lr 0.03"
HOG_SOFTMAX += " --momentum 0.9 --lr-schedule cosine --weight-decay 0 --epochs 10 --val-size 0"
HOG = "--hidden 800 --momentum 0.9 --lr 0.03 --lr-schedule cosine --warmup 1 --weight-decay 1e-5"
HOG += " --val-size 0"
HOG_800 = f"{HOG} --dropout 0.3 --augment elastic --epochs 20 --max-shift 0.35 --max-rotation 5"
HOG_800 += " --max-scaling 0.07 --max-shear 0.05 --bend 0.7 --preprocess"
PIXELS_HOG = f"{HOG} --epochs 40 --preprocess deskew pixels-and-hog:7 center standardize --dropout 0.3"
PIXELS_HOG += " --augment elastic --max-shift 0.4 --max-rotation 5.6 --max-scaling 0.08"
PIXELS_HOG += " --max-shear 0.056 --bend 0.8"
FASHION_HOG = f"--dataset fashion-mnist {HOG} --epochs 40 --preprocess hog:7 center standardize --dropout 0.2"
FASHION_HOG += " --input-dropout 0.05 --augment elastic flip --max-shift 1 --max-rotation 3"
FASHION_HOG += " --max-scaling 0.05 --max-shear 0.03 --bend 0.5"
QUICK = "--batch-size 100 --lr-schedule linear --weight-decay 0 --val-size 0"
TIME_98 = "--hidden 200 --preprocess hog standardize --train-size 20000 --lr 0.15 --epochs 2"
TIME_99 = "--hidden 300 --preprocess deskew hog center standardize --lr 0.3 --dropout 0.2 --epochs 3"
TIME_994 = "--hidden 1000 --preprocess deskew hog center standardize --lr 0.3 --dropout 0.5"
TIME_994 += " --input-dropout 0.2 --epochs 12"
KINDS = ("hog", "slanted", "elastic")
SEEDS = {count: [f"--seed {seed}" for seed in range(count)] for count in (3, 5, 10)}

# name -> the network, what was reported, flags of train.py, more flags of each run, what is shown; or
# without flags the rows of which it takes so many runs each
ROWS = {
    "A": ("784-292-10", "98.08 %", "--val-size 0", SEEDS[3], test_accuracy),
    "B1": (
        "784-784-100-10, leaky ReLU, MSE",
        "97.6 %, loss 0.032",
        f"--hidden 784 100 {LEAKY}",
        SEEDS[3],
        test_accuracy_and_loss,
    ),
    "B2": (
        "784-784-10, leaky ReLU, MSE",
        "96.0 %, loss 0.055",
        f"--hidden 784 {LEAKY}",
        SEEDS[3],
        test_accuracy_and_loss,
    ),
    "C": ("784-10, softmax regression", "92.34 %", SOFTMAX, SEEDS[3], test_accuracy),
    "D": ("784-512-256-10, Fashion-MNIST", "88.46 %", FASHION, SEEDS[3], test_accuracy),
    "E-relu": ("784-512-256-10, ReLU", "95.51 %", THREE, SEEDS[3], test_accuracy),
    "E-tanh": ("784-512-256-10, tanh", "below ReLU", f"{THREE} --activation tanh", SEEDS[3], test_accuracy),
    "E-sigmoid": (
        "784-512-256-10, sigmoid",
        "below ReLU",
        f"{THREE} --activation sigmoid",
        SEEDS[3],
        test_accuracy,
    ),
    "permutation": (
        "784-2048-10, no distortions, permutation-invariant",
        "98.4 % (784-800-10)",
        INVARIANT,
        SEEDS[3],
        test_accuracy,
    ),
    "adversarial": (
        "784-1024-1024-10, permutation-invariant, half of each batch moved against it",
        "99.22 % (Goodfellow et al. 2015)",
        ADVERSARIAL,
        SEEDS[3],
        test_accuracy,
    ),
    "hog-softmax": (
        "392-10, softmax regression on gradients",
        "91.6 % on pixels (LeCun et al. 1998)",
        HOG_SOFTMAX,
        SEEDS[3],
        test_accuracy,
    ),
    "hog": (
        "392-800-10 on gradients, elastic distortions",
        SIMARD,
        f"{HOG_800} deskew hog:7 center standardize",
        SEEDS[5],
        alone_and_together,
    ),
    "slanted": (
        "392-800-10 on gradients, not deskewed, elastic distortions",
        SIMARD,
        f"{HOG_800} hog:7 center standardize",
        SEEDS[3],
        alone_and_together,
    ),
    "pixels-hog": (
        "1176-800-10 on pixels and gradients, elastic distortions",
        SIMARD,
        PIXELS_HOG,
        SEEDS[3],
        test_accuracy,
    ),
    "fashion": (
        "784-1024-512-10, Fashion-MNIST, shifted and mirrored",
        "88.33 %",
        BEST_FASHION,
        SEEDS[3],
        test_accuracy,
    ),
    "fashion-hog": (
        "392-800-10 on gradients, Fashion-MNIST, distorted and mirrored",
        "88.33 %",
        FASHION_HOG,
        SEEDS[5],
        alone_and_together,
    ),
    "elastic": ("784-800-10, elastic distortions", SIMARD, ELASTIC, SEEDS[5], test_accuracy),
    "time-98": ("392-200-10 on gradients", "", f"{QUICK} {TIME_98}", SEEDS[10], seconds_to(0.98)),
    "time-99": ("392-300-10 on gradients", "", f"{QUICK} {TIME_99}", SEEDS[5], seconds_to(0.99)),
    "time-99.4": ("392-1000-10 on gradients", "", f"{QUICK} {TIME_994}", SEEDS[5], seconds_to(0.994)),
    "three": ("a network of each of hog, slanted, elastic", "", None, (KINDS, 1), alone_and_together),
    "committee": (
        "three networks of each of hog, slanted, elastic",
        "99.61 % with 25 (Meier et al. 2011)",
        None,
        (KINDS, 3),
        alone_and_together,
    ),
}


# --- running them -----------------------------------------------------------------------------


def runs_of(name, out):
    """``(flags of train.py, folder)`` of each run of a row."""
    _, _, flags, of_each, _ = ROWS[name]
    if flags is None:
        rows, count = of_each
        for row in rows:
            yield from itertools.islice(runs_of(row, out), count)
        return
    for number, more in enumerate(of_each):
        folder = out / name / str(number)
        yield ["--dataset", "mnist", *shlex.split(f"{flags} {more}"), "--out", str(folder)], folder


def record_of(flags, folder):
    """What config.json says of the run; None where there is none, or one with other settings."""
    path = folder / "config.json"
    record = data.load_json(path) if path.exists() else {}
    parser = argparse.ArgumentParser()
    train.add_settings(parser)
    wanted = train.check_settings(vars(parser.parse_known_args(flags)[0]))
    wanted["val_size"] = data.val_count(wanted, 60_000)  # a share of the training images
    if not wanted["val_size"]:
        del wanted["holdout"]  # then it changes nothing
    older = train.check_settings({})  # what a record of before does not hold has its default
    same = all(record.get(name, older[name]) == value for name, value in wanted.items())
    return record if same else None


def finished(flags, folder):
    record = record_of(flags, folder)
    return record if record and record["status"] == "finished" else None


def train_missing(names, out, jobs):
    """Run what has not ended of the rows, ``jobs`` runs at a time."""
    every = {folder: flags for name in names for flags, folder in runs_of(name, out)}
    waiting = [(flags, folder) for folder, flags in every.items() if not finished(flags, folder)]
    running = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                flags, folder = waiting.pop(0)
                print(f"training {folder}", flush=True)
                resume = ["--resume"] if record_of(flags, folder) else []
                command = [sys.executable, str(ROOT / "train.py"), *flags, *resume, "--quiet"]
                running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            time.sleep(0.1)
            for ended in [process for process in running if process.poll() is not None]:
                running.remove(ended)
                if ended.returncode:
                    raise ValueError(f"failed: {shlex.join(ended.args)}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on with what is missing") from None
    finally:
        for process in running:
            process.terminate()  # it saves what it has reached
            process.wait()


def table_line(name, out):
    """A row of the table, or None when none of its runs has ended."""
    network, reported, _, _, reached = ROWS[name]
    every = list(runs_of(name, out))
    runs = [(folder, record) for flags, folder in every if (record := finished(flags, folder))]
    if not runs:
        return None
    seconds = statistics.mean(record["result"]["seconds"] for _, record in runs)
    took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    lacking = len(every) - len(runs)
    missing = f", {lacking} run{'s' * (lacking > 1)} missing" if lacking else ""
    return f"| {name} | {network} | {reported} | {reached(runs)}{missing} | {took} |"


def command_lines(name):
    """The command of a row, and what its runs have of their own, folded."""
    _, _, flags, of_each, _ = ROWS[name]
    if flags is None:
        rows, count = of_each
        return [f"{name}: {data.count(count, 'run')} of each of {', '.join(rows)}, from seed 0 on"]
    more = "--seed 0, 1, ..." if of_each in SEEDS.values() else f"in turn {', '.join(of_each)}"
    text = f"{name}: python train.py --dataset mnist {flags}, {more}"
    options = {"subsequent_indent": "    ", "break_on_hyphens": False, "break_long_words": False}
    return textwrap.wrap(text.replace("--dataset mnist --dataset", "--dataset"), 90, **options)


def table(names, out):
    """The table of the rows that there are, in Markdown, and below it their commands."""
    lines = {name: line for name in names if (line := table_line(name, out))}
    head = ["| | network | reported | test accuracy, mean ± std (each seed) | steps of a run |"]
    commands = [folded for name in lines for folded in command_lines(name)]
    return "\n".join([*head, "|---|---|---|---|---|", *lines.values(), "", "```", *commands, "```"])


def write_section(name, text, path=ROOT / "results" / "reference" / "README.md"):
    """Put text between the marks of a section in a Markdown file."""
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(start)
    if not found or end not in rest:
        raise ValueError(f"{path} has no section {name}")
    after = rest.partition(end)[2]
    nn.save_bytes(path, f"{before}{start}\n{text}\n{end}{after}".encode())


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"reproduce.py: {message}\n")  # one line
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"any of: {', '.join(ROWS)}")
    parser.add_argument("--out", default=str(ROOT / "results" / "reproduce"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--show", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="put the table into results/reference/README.md")
    flags = parser.parse_args(argv)
    for name in flags.rows:
        nn.choose("row", name, ROWS)
    if flags.jobs < 1:
        raise ValueError("--jobs must be at least 1")
    names, out = flags.rows or list(ROWS), pathlib.Path(flags.out)
    if not flags.show:
        train_missing(names, out, flags.jobs)
    print(table(names, out))
    if flags.write:
        write_section("reproduce", table(names, out))


if __name__ == "__main__":
    sys.exit(data.run_script(main))
