"""Train the reference systems and the records, and print the table of what they reach.

    python tests/reproduce.py                # every row: hours
    python tests/reproduce.py A C            # these rows
    python tests/reproduce.py --show         # the table of what is there already, without training

Each run is one ``python train.py`` command in a folder of its own below results/reproduce. A run
that was stopped is resumed, one that has ended is not run again. The table is made from the files
that the runs leave. Settings were chosen on validation images, never on the test set.
"""

import argparse
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SOFTMAX = "--hidden 0 --preprocess scale center --batch-size 100 --lr 0.1 --lr-schedule exponential"
LEAKY = "--activation leaky_relu --loss mse --preprocess scale standardize --batch-size 16 --lr 0.001"
LEAKY += " --lr-schedule inverse --momentum 0.9 --weight-decay 0.001 --epochs 100 --patience 15"
OF_E = "--hidden 512 256 --batch-size 64 --lr 0.01 --epochs 10 --val-size 0"

# name -> the network, what was reported of it, flags of train.py, and how many seeds
ROWS = {
    "A": ("784-292-10", "98.08 %", "--val-size 0", 3),
    "B1": ("784-784-100-10, leaky ReLU, MSE", "97.6 %, loss 0.032", f"--hidden 784 100 {LEAKY}", 3),
    "B2": ("784-784-10, leaky ReLU, MSE", "96.0 %, loss 0.055", f"--hidden 784 {LEAKY}", 3),
    "C": (
        "784-10, softmax regression",
        "92.34 %",
        f"{SOFTMAX} --momentum 0.9 --epochs 30 --patience 2 --min-delta 0.0002",
        3,
    ),
    "D": (
        "784-512-256-10, Fashion-MNIST",
        "88.46 %",
        "--dataset fashion-mnist --hidden 512 256 --preprocess scale standardize --lr 0.1 --epochs 10",
        3,
    ),
    "E-relu": ("784-512-256-10, ReLU", "95.51 %", OF_E, 3),
    "E-tanh": ("784-512-256-10, tanh", "less than ReLU", f"{OF_E} --activation tanh", 3),
    "E-sigmoid": ("784-512-256-10, sigmoid", "less than ReLU", f"{OF_E} --activation sigmoid", 3),
}


def runs_of(name, out):
    """``(flags of train.py, folder)`` of each run of a row."""
    *_, flags, seeds = ROWS[name]
    for seed in range(seeds):
        folder = out / name / str(seed)
        yield [*shlex.split(flags), "--seed", str(seed), "--out", str(folder)], folder


def record_of(folder):
    """What config.json says of a run that has ended; None of any other."""
    import data

    path = folder / "config.json"
    record = data.load_json(path) if path.exists() else {}
    return record if record.get("status") == "finished" else None


def train_missing(names, out, jobs):
    """Run what has not ended of the rows, ``jobs`` runs at a time, and share the cores among them."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    runs = [flags for name in names for flags, folder in runs_of(name, out) if not record_of(folder)]
    running = []
    for flags in runs:
        if len(running) == jobs:
            finish(running.pop(0))
        command = [sys.executable, str(ROOT / "train.py"), *flags, "--resume", "--quiet"]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    for process in running:
        finish(process)


def finish(process):
    if process.wait():
        sys.exit(f"failed: {shlex.join(process.args)}")


def table_line(name, out):
    """A row of the table, or None when none of its runs has ended."""
    network, reported, flags, _ = ROWS[name]
    results = [record["result"] for _, folder in runs_of(name, out) if (record := record_of(folder))]
    if not results:
        return None
    accuracy = [100 * result["kept"]["test_accuracy"] for result in results]
    reached = f"**{statistics.mean(accuracy):.2f} %**"
    if len(accuracy) > 1:
        each = ", ".join(f"{value:.2f}" for value in accuracy)
        reached = f"**{statistics.mean(accuracy):.2f} ± {statistics.stdev(accuracy):.2f} %** ({each})"
    if "mse" in flags:
        losses = [result["kept"]["test_loss"] for result in results]
        reached += f", loss {statistics.mean(losses):.4f} ({', '.join(f'{loss:.4f}' for loss in losses)})"
    seconds = statistics.mean(result["seconds"] for result in results)
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    return f"| {name} | {network} | `python train.py {flags}` | {reported} | {reached} | {time} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"any of: {', '.join(ROWS)}")
    parser.add_argument("--out", default=str(ROOT / "results" / "reproduce"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--show", action="store_true", help="train nothing")
    flags = parser.parse_args()
    unknown = set(flags.rows) - set(ROWS)
    if unknown:
        parser.error(f"unknown row {', '.join(unknown)} (any of: {', '.join(ROWS)})")
    names, out = flags.rows or list(ROWS), pathlib.Path(flags.out)
    if not flags.show:
        train_missing(names, out, flags.jobs)
    print("| | network | command | reported | test accuracy, mean ± std (each seed) | training |")
    print("|---|---|---|---|---|---|")
    for name in names:
        if line := table_line(name, out):
            print(line)


if __name__ == "__main__":
    main()
