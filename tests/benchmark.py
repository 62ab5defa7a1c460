"""How fast it is, beside the matrix products alone and beside other libraries.

    python tests/benchmark.py                     # every section
    python tests/benchmark.py epoch --quick       # one section, one case

Contestants that are not installed are skipped by name (pip install
torch==2.13.0 jax scikit-learn). All use the same uint8 images, shapes, dtype
and threads, and shuffle and gather their batches from them in every epoch.
Runs are interleaved: ratios are taken run by run, so that a machine that is
busy for a while slows all of them. The table is also written to
results/benchmark.csv, and with --write into results/reference/README.md.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
COLUMNS = ["section", "case", "contestant", "threads", "median", "min", "max", "unit", "ratio"]
LR, WEIGHT_DECAY = 0.2475, 2.5e-7


# --- measuring --------------------------------------------------------------------------------


def contest(section, case, contestants, runs, threads, unit="s"):
    """Run contestants in turn, ``runs`` times; rows with median, min, max and the ratio to the first.

    Each contestant is a function that returns the seconds it took. The first run of each is a
    warm-up and does not count.
    """
    seconds = {name: [] for name in contestants}
    for run in range(runs + 1):
        for name, contestant in contestants.items():
            took = contestant()
            if run:
                seconds[name].append(took)
    reference = next(iter(seconds.values()))
    rows = []
    for name, took in seconds.items():
        ratio = statistics.median(t / r for t, r in zip(took, reference))
        figures = {"median": statistics.median(took), "min": min(took), "max": max(took), "ratio": ratio}
        rows.append(
            {"section": section, "case": case, "contestant": name, "threads": threads, "unit": unit} | figures
        )
    return rows


def timed(function):
    """A contestant from a function."""

    def contestant():
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return contestant


def show(rows):
    for row in rows:
        print(
            f"{row['section']:9} {row['case']:34} {row['contestant']:14} {row['threads']} thr  "
            f"median {row['median']:8.4f}  min {row['min']:8.4f}  max {row['max']:8.4f} {row['unit']}  "
            f"x {row['ratio']:.2f}",
            flush=True,
        )
    return rows


def mnist():
    import data

    return data.load_dataset("mnist", None, download=True)


# --- contestants ------------------------------------------------------------------------------


def ours(dataset, sizes, batch, momentum):
    import train

    step = {"optimizer": "adam"} if momentum == "adam" else {"momentum": momentum, "lr": LR / 4}
    settings = {"hidden": sizes[1:-1], "batch_size": batch, "val_size": 0, "weight_decay": WEIGHT_DECAY}
    config = train.check_settings({**settings, **step})
    sets = train.prepare(dataset, config)
    reached = [train.init_state(sets, config)]

    def epoch():
        reached[0], row = train.train_epoch(reached[0], sets, config)
        return row["seconds"]

    return epoch


def floor(dataset, sizes, batch, momentum):
    """The matrix products of an epoch alone: same shapes and operands, outputs preallocated."""
    import numpy as np

    rng = np.random.default_rng(0)
    pairs = list(zip(sizes, sizes[1:]))
    weights = [rng.standard_normal(pair, dtype=np.float32) for pair in pairs]
    grads = [np.empty_like(w) for w in weights]
    x = dataset["train_images"][:batch].astype(np.float32) / np.float32(255)
    inputs = [x] + [rng.random((batch, width), dtype=np.float32) for width in sizes[1:-1]]
    outputs = [np.empty((batch, width), np.float32) for width in sizes[1:]]
    deltas = [rng.random((batch, width), dtype=np.float32) for width in sizes[1:]]
    below = [np.empty((batch, width), np.float32) for width in sizes[:-1]]

    def epoch():
        for _ in range(-(-len(dataset["train_images"]) // batch)):
            for a, w, z in zip(inputs, weights, outputs):
                np.matmul(a, w, out=z)
            for layer in reversed(range(len(weights))):
                np.matmul(inputs[layer].T, deltas[layer], out=grads[layer])
                if layer:
                    np.matmul(deltas[layer], weights[layer].T, out=below[layer])

    return timed(epoch)


def pytorch(dataset, sizes, batch, momentum, compiled=False):
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    images = torch.tensor(dataset["train_images"])
    labels = torch.from_numpy(dataset["train_labels"]).long()
    layers = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    if momentum == "adam":
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=WEIGHT_DECAY, fused=True)
    else:
        optimiser = torch.optim.SGD(
            model.parameters(), lr=LR / 4, momentum=momentum, weight_decay=WEIGHT_DECAY, fused=True
        )

    def loss_of(x, y):
        return torch.nn.functional.cross_entropy(model(x.float().div_(255)), y)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def epoch():
        for rows in torch.randperm(len(images)).split(batch):
            optimiser.zero_grad(set_to_none=True)
            loss_of(images[rows], labels[rows]).backward()
            optimiser.step()

    return timed(epoch)


def pytorch_compiled(dataset, sizes, batch, momentum):
    return pytorch(dataset, sizes, batch, momentum, compiled=True)


def jax_jitted(dataset, sizes, batch, momentum):
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    params = [
        (jnp.asarray(rng.standard_normal(pair, dtype=np.float32) * np.sqrt(2 / pair[0], dtype=np.float32)),
         jnp.zeros(pair[1], jnp.float32))
        for pair in zip(sizes, sizes[1:])
    ]  # fmt: skip
    velocity = jax.tree.map(jnp.zeros_like, params)
    images, labels = (
        jnp.asarray(dataset["train_images"]),
        jnp.asarray(dataset["train_labels"].astype(np.int32)),
    )

    def loss_of(params, x, y):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        logits = x @ params[-1][0] + params[-1][1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

    def adam(params, state, grads):
        m, v, t = state
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        rate, root = 1e-3 / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)
        params = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) / root + 1e-8), params, m, v)
        return params, (m, v, t + 1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, velocity, images, labels, rows):
        x = images[rows].astype(jnp.float32) / 255
        grads = jax.grad(loss_of)(params, x, labels[rows])
        if momentum == "adam":
            return adam(params, velocity, grads)
        grads = [(g + WEIGHT_DECAY * w, h) for (g, h), (w, _) in zip(grads, params)]
        velocity = jax.tree.map(lambda v, g: momentum * v - LR / 4 * g, velocity, grads)
        return jax.tree.map(jnp.add, params, velocity), velocity

    if momentum == "adam":
        velocity = (velocity, jax.tree.map(jnp.zeros_like, params), jnp.float32(1))
    reached = [params, velocity]

    def epoch():
        order = rng.permutation(len(images)).astype(np.int32)
        for start in range(0, len(order), batch):
            reached[:] = step(*reached, images, labels, order[start : start + batch])
        jax.block_until_ready(reached)

    return timed(epoch)


def sklearn_mlp(dataset, sizes, batch, momentum):
    import numpy as np
    from sklearn.neural_network import MLPClassifier

    x = dataset["train_images"].astype(np.float32) / np.float32(255)
    if momentum == "adam":
        step = {"solver": "adam", "learning_rate_init": 1e-3}
    else:
        step = {"solver": "sgd", "learning_rate_init": LR / 4, "momentum": momentum}
    model = MLPClassifier(
        sizes[1:-1],
        alpha=WEIGHT_DECAY * batch,
        batch_size=batch,
        nesterovs_momentum=False,
        random_state=0,
        **step,
    )
    classes = np.arange(10)
    return timed(lambda: model.partial_fit(x, dataset["train_labels"], classes=classes))


OTHERS = {  # name -> (package, maker)
    "pytorch": ("torch", pytorch),
    "torch.compile": ("torch", pytorch_compiled),
    "jax": ("jax", jax_jitted),
    "scikit-learn": ("sklearn", sklearn_mlp),
}


def make_contestants(names, *shape):
    makers = {"ours": ours, "floor": floor} | {
        name: maker for name, (package, maker) in OTHERS.items() if importlib.util.find_spec(package)
    }
    made = {}
    for name in names:
        if name not in makers:
            print(f"skipped: {name} is not installed", flush=True)
            continue
        made[name] = makers[name](*shape)
    return made


# --- sections ---------------------------------------------------------------------------------


def section_bound(options):
    dataset = mnist()
    for sizes in ([784, 292, 10], [784, 800, 10], [784, 512, 256, 10]):
        case = f"{'-'.join(map(str, sizes))} batch 128"
        made = make_contestants(["floor"], dataset, sizes, 128, 0.0)
        yield contest("bound", case, made, options.runs, options.threads)


def section_epoch(options):
    dataset = mnist()
    cases = [([784, 292, 10], 128, 0.0)]
    if not options.quick:
        cases += [([784, 292, 10], 128, 0.9), ([784, 800, 10], 128, 0.0), ([784, 512, 256, 10], 128, 0.0)]
        cases += [([784, 292, 10], 1024, 0.0), ([784, 292, 10], 16, 0.0), ([784, 292, 10], 128, "adam")]
    for sizes, batch, momentum in cases:
        case = f"{'-'.join(map(str, sizes))} batch {batch}"
        case += " adam" if momentum == "adam" else f" momentum {momentum}" if momentum else ""
        made = make_contestants(["ours", "floor", *OTHERS], dataset, sizes, batch, momentum)
        yield contest("epoch", case, made, options.runs, options.threads)


def section_evaluate(options):
    import numpy as np

    import nn
    import train

    dataset = mnist()
    config = train.check_settings({"val_size": 0})
    sets = train.prepare(dataset, config)
    params = train.init_state(sets, config)["params"]
    x = np.random.default_rng(0).random((1000, 784), dtype=np.float32)
    hidden, outputs = np.empty((1000, 292), np.float32), np.empty((1000, 10), np.float32)

    def products():
        for _ in range(60):
            np.matmul(x, params["W1"], out=hidden)
            np.matmul(hidden, params["W2"], out=outputs)

    made = {
        "ours": timed(lambda: train.part_figures(params, sets, "train", config)),
        "floor": timed(products),
    }
    assert nn.layer_sizes(params) == [784, 292, 10]
    yield contest("evaluate", "60,000 images 784-292-10", made, 3 * options.runs, options.threads)


def section_load(options):
    yield contest("load", "mnist from files to arrays", {"ours": timed(mnist)}, options.runs, options.threads)


def in_process(*arguments):
    return timed(
        lambda: subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    )


def section_startup(options):
    script = ROOT / "train.py"
    with tempfile.TemporaryDirectory() as out:
        made = {"python -c pass": in_process("-c", "pass"), "import numpy": in_process("-c", "import numpy")}
        made["train.py --help"] = in_process(script, "--help")
        made["--epochs 1"] = in_process(script, "--epochs", 1, "--dataset", "mnist", "--out", out)
        yield contest("startup", "start to exit", made, options.runs, options.threads)


def peak_memory(*arguments):
    """Peak resident memory of a process, in MB."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, sys.executable, *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def section_memory(options):
    with tempfile.TemporaryDirectory() as out:
        made = {
            "ours": lambda: peak_memory(ROOT / "train.py", "--epochs", 2, "--dataset", "mnist", "--out", out)
        }
        for name in ("pytorch", "scikit-learn"):
            if importlib.util.find_spec(OTHERS[name][0]):
                made[name] = lambda name=name: peak_memory(__file__, "--one-epoch-of", name)
        yield contest("memory", "peak of a run, 784-292-10", made, 3, options.threads, unit="MB")


def section_scaling(options):
    import numpy as np

    dataset = mnist()
    sweeps = {
        "hidden": [(width, 128, 60_000) for width in (100, 250, 500, 1000, 2000, 4000)],
        "batch": [(292, batch, 60_000) for batch in (16, 32, 64, 128, 256, 512, 1024)],
        "images": [(292, 128, count) for count in (7500, 15_000, 30_000, 60_000)],
    }
    for name, points in sweeps.items():
        made = {}
        for width, batch, count in points:
            part = {**dataset, "train_images": dataset["train_images"][:count]}
            part["train_labels"] = dataset["train_labels"][:count]
            label = {"hidden": width, "batch": batch, "images": count}[name]
            made[f"{name} {label}"] = ours(part, [784, width, 10], batch, 0.0)
        rows = contest("scaling", f"epoch against {name}", made, 3, options.threads)
        x = np.log([float(row["contestant"].split()[1]) for row in rows])
        exponent = np.polyfit(x, np.log([row["median"] for row in rows]), 1)[0]
        print(f"epoch time grows with {name} to the power of {exponent:.2f}")
        yield rows


def section_augment(options):
    """Distorting 10,000 images, 128 at a time."""
    import numpy as np

    import data

    images, out = mnist()["test_images"], np.empty((128, 784), np.float32)

    def distorting(kind):
        how, rng = data.make_augment([kind], (28, 28)), np.random.default_rng(0)

        def epoch():
            for start in range(0, len(images), 128):
                block = images[start : start + 128]
                data.augment(block, how, rng, out[: len(block)])

        return timed(epoch)

    made = {kind: distorting(kind) for kind in ("elastic", "affine", "shift", "flip")}
    rows = contest("augment", "10,000 images", made, options.runs, options.threads)
    for row in rows:
        print(f"{row['contestant']}: {1e6 * row['median'] / len(images):.1f} microseconds an image")
    yield rows


def section_hog(options):
    """Histograms of gradients of 10,000 images, 128 at a time."""
    import data

    images = mnist()["test_images"]

    def finding(cells):
        step = {"name": "hog", "shape": [28, 28], "number": cells}
        return timed(lambda: [data.gradients(images[i : i + 128], step) for i in range(0, len(images), 128)])

    made = {f"{cells}x{cells} cells": finding(cells) for cells in (7, 14)}
    rows = contest("hog", "10,000 images", made, options.runs, options.threads)
    for row in rows:
        print(f"{row['contestant']}: {1e6 * row['median'] / len(images):.1f} microseconds an image")
    yield rows


def section_search(options):
    """Trials of the default search, a part of its epochs, on 1 worker and on as many as threads.

    Each worker has the same work: the ratio of the seconds is one over the parallel efficiency.
    """
    import search
    import train

    definition = search.define({"dataset": "mnist"}, search.DEFAULT_SEARCH)
    whole, datasets = search.make_trials(definition, None, None)
    epochs, each, memory = 3 if options.quick else 10, 1 if options.quick else 2, {}

    def trials_on(workers):
        def run():
            part = definition["settings"] | {"epochs": epochs}
            trials, _ = search.make_trials(
                {**definition, "trials": workers * each, "settings": part}, None, None
            )
            with tempfile.TemporaryDirectory() as folder:
                seconds, memory[workers] = run_trials(trials, datasets, workers, pathlib.Path(folder))
                return seconds

        return run

    counts = sorted({1, options.threads})
    made = {f"{workers} worker{'s' * (workers > 1)}": trials_on(workers) for workers in counts}
    case = f"{each} trials a worker, {epochs} epochs"
    rows = contest("search", case, made, options.runs, options.threads)
    planned = search.epochs_left(whole, search.rungs({**definition, "strategy": "halving"}))
    for workers, row in zip(counts, rows):
        an_epoch = row["median"] / (workers * each * epochs)
        hour = 3600 / (an_epoch * train.DEFAULTS["epochs"])
        print(
            f"{row['contestant']}: {hour:.0f} default trials an hour, efficiency {1 / row['ratio']:.2f}, "
            f"{memory[workers]:.0f} MB a worker; projected from this part, without the last training: "
            f"default search {len(whole) / hour * 60:.1f} min, halving {planned * an_epoch / 60:.1f} min"
        )
    yield rows


def run_trials(trials, datasets, count, out):
    """Run trials as a search does, with its files: seconds, and peak MB of a worker.

    The start of the workers is left out: in a whole search it comes once in 1,250 epochs.
    """
    import search

    with search.local_workers(count, out / ".split", datasets) as workers:
        workers["source"](trials[0]["config"])
        for ready in [workers["submit"](own_peak) for _ in range(count)]:
            ready.result()
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            search.run_search(trials, [(len(trials), None)], workers, out, ["lr"], lambda text: None)
        seconds = time.perf_counter() - started
        return seconds, workers["submit"](own_peak).result()


def own_peak():
    """Peak resident MB of this process, images that it shares included."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():  # this counts what the parent had when it started the process, too
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


NAMES = ("bound", "epoch", "evaluate", "load", "startup", "memory", "scaling", "augment", "hog", "search")
SECTIONS = {name: globals()[f"section_{name}"] for name in NAMES}


# --- command line -----------------------------------------------------------------------------


def machine():
    import numpy as np

    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    a = np.random.default_rng(0).random((2048, 2048), dtype=np.float32)
    took = min(timed(lambda: a @ a)() for _ in range(5))
    threads = os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count())
    return (
        f"{cpu}, {os.cpu_count()} cores; {blas['name']} {blas['version']}, threads: {threads}; "
        f"Python {platform.python_version()}, NumPy {np.__version__}\n"
        f"multiplies float32 matrices at {2 * 2048**3 / took / 1e9:.0f} GFLOP/s"
    )


def one_epoch_of(name):
    """For section memory: load the data, train an epoch with another library, exit."""
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    contestant = OTHERS[name][1](mnist(), [784, 292, 10], 128, 0.0)
    contestant()
    contestant()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"benchmark.py: {message}\n")  # one line
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"any of: {', '.join(SECTIONS)}")
    parser.add_argument("--runs", type=int, default=7, help="runs of each contestant (default: 7)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="epoch: only 784-292-10, batch 128; search: few epochs"
    )
    parser.add_argument("--csv", default=str(ROOT / "results" / "benchmark.csv"), help="where the table goes")
    parser.add_argument("--write", action="store_true", help="put the table into results/reference/README.md")
    parser.add_argument("--one-epoch-of", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_epoch_of:
        return one_epoch_of(options.one_epoch_of)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)} (any of: {', '.join(SECTIONS)})")
    if options.runs < 1 or min(options.threads) < 1:
        parser.error("--runs, --threads: must be at least 1")
    if options.child:
        return run_child(options)
    pathlib.Path(options.csv).unlink(missing_ok=True)
    for threads in options.threads:  # the number of BLAS threads is fixed when NumPy is imported
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        arguments = [
            *options.sections,
            "--runs",
            options.runs,
            "--threads",
            threads,
            "--csv",
            options.csv,
            "--child",
        ]
        arguments += ["--quick"] if options.quick else []
        child = subprocess.run([sys.executable, __file__, *map(str, arguments)], env=environment)
        if child.returncode:  # it has said why
            sys.exit(child.returncode)
    if options.write:
        import reproduce

        import data

        reproduce.write_section("speed", table(data.load_rows(pathlib.Path(options.csv), words=True)))


def table(rows):
    """The measured rows as Markdown: median (least to most), and times ours, for each number of threads."""
    threads = sorted({row["threads"] for row in rows}, reverse=True)
    heads = [f"{count} thread{'s' * (count > 1)} | times ours" for count in threads]
    lines = [machine(), "", f"| | | {' | '.join(heads)} |", "|---|---|" + "---|---|" * len(threads)]
    for case, contestant in dict.fromkeys((row["case"], row["contestant"]) for row in rows):
        cells = []
        for count in threads:
            found = [
                r for r in rows if (r["case"], r["contestant"], r["threads"]) == (case, contestant, count)
            ]
            cells += [
                f"{r['median']:.3g} {r['unit']} ({r['min']:.3g} to {r['max']:.3g}) | {r['ratio']:.2f}"
                for r in found
            ] or [" | "]
        lines.append(f"| {case} | {contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run_child(options):
    (options.threads,) = options.threads
    if hasattr(os, "sched_setaffinity"):  # libraries that ignore the variables keep to it as well
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    import data

    sys.exit(data.run_script(lambda argv: measure(options)))


def measure(options):
    import data

    print(machine(), flush=True)
    path = pathlib.Path(options.csv)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = data.load_rows(path, words=True) if path.exists() else []  # of another number of threads
    for name in options.sections or SECTIONS:
        for part in SECTIONS[name](options):
            rows += show(part)
            data.save_rows(path, rows, COLUMNS)
    print(f"peak memory of the benchmark: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
