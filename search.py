"""Many training runs: find the best settings by random search, grid or successive halving.

    python search.py                                     50 random trials of 50 epochs
    python search.py --strategy halving                  most trials end early: a sixth of the epochs
    python search.py --strategy grid --space momentum=0,0.9 batch_size=10,100 --lr 0.1
    python search.py --scheduler tcp://host:8786         the same trials on a Dask cluster

A trial is a run of ``train.py`` in a folder of its own. Its settings and its seed come from the
search's seed and the trial's number alone, so it does not matter where or when it runs. Trials
are ranked by their accuracy on the same validation images; the best one is trained again on all
training images. The test set is first looked at after that.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import itertools
import logging
import math
import multiprocessing
import os
import pathlib
import platform
import queue
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
import zipfile
from multiprocessing import resource_tracker

import numpy as np

import nn
import train
from data import (
    check_split,
    load_dataset,
    load_json,
    load_rows,
    make_parser,
    parse_flags,
    progress_line,
    redraw,
    run_script,
    save_json,
    save_rows,
    setting_text,
)

# --- the search space -------------------------------------------------------------------------


def parse_space(text):
    """Read a search space.

    Parameters
    ----------
    text : str
        Such as ``lr=0.15:0.25 weight_decay=1e-7:1e-4:log hidden=200:300 activation=relu,tanh``.
        ``low:high`` is uniform in [low, high), of whole numbers where the setting is one, and with
        ``:log`` uniform in the logarithm; anything else is a list of choices, where ``512x256``
        are two hidden layers and ``scale+center`` two steps of preprocessing.

    Returns
    -------
    dict
        Name of a setting -> list of its choices, or dict of ``low``, ``high`` and ``log``.

    Raises
    ------
    ValueError
        An unknown or repeated setting, a value it cannot have, an empty or reversed range, a range
        of something without an order, a log range that does not start above 0.
    """
    space = {}
    for part in text.split():
        name, _, values = part.partition("=")
        try:
            nn.choose("setting", name, train.SETTINGS)
            if name in space:
                raise ValueError(f"{name} stands twice in the space")
            check = train.SETTINGS[name][1]
            space[name] = (
                _range(values, check) if ":" in values and "," not in values else _choices(values, check)
            )
        except ValueError as error:
            raise ValueError(f"--space {_shortened(part)}: {error}") from None
    if not space:
        raise ValueError("--space: there is no setting to search; an example: lr=0.15:0.25")
    return space


def _shortened(text):
    return text if len(text) <= 80 else f"{text[:80]}..."


def _range(text, check):
    parts = text.split(":")
    if len(parts) != 2 and not (len(parts) == 3 and parts[2] == "log"):
        raise ValueError("a range is low:high or low:high:log")
    low, high = (_number(check(part)) for part in parts[:2])
    if low >= high:
        raise ValueError("the range is empty: its low end must be below its high end")
    if len(parts) == 3 and low <= 0:
        raise ValueError("a log range must start above 0")
    return {"low": low, "high": high, "log": len(parts) == 3}


def _number(value):
    """The number that is a checked setting; hidden widths are one when there is one layer."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("only numbers (above 0 for hidden) make a range; list the choices: a,b,c")
    return value


def _choices(text, check):
    choices = [check(word) for word in text.split(",")]
    for choice in choices:
        if choices.count(choice) > 1:
            raise ValueError(f"{_shortened(setting_text(choice))} stands twice in the list")
    return choices


def draw(dimension, rng):
    """A random value from a dimension of the space."""
    if isinstance(dimension, list):
        return dimension[rng.integers(len(dimension))]
    low, high = dimension["low"], dimension["high"]
    whole = isinstance(low, int)
    if dimension["log"]:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        return min(max(low, int(value)), high - 1) if whole else value
    return int(rng.integers(low, high)) if whole else float(rng.uniform(low, high))


# --- the definition of a search ---------------------------------------------------------------

STRATEGIES = {
    "random": "as many trials as --trials, drawn from the space",
    "grid": "every combination of the lists",
    "halving": "as random, but only the better third goes on to three times as many epochs, and so on",
}
DEFAULT_SEARCH = {
    "space": "lr=0.15:0.25 weight_decay=1e-7:1e-4:log hidden=200:300",
    "strategy": "random",
    "trials": 50,
    "seed": 0,
    "settings": {"val_size": 12_000},
}
MOST_IN_ALL = 100_000  # trials of a search
ETA = 3  # of the trials of a rung, one in so many goes on to the next


def define(given, base):
    """A checked definition of a search: what was given on the command line, over a base.

    Parameters
    ----------
    given : dict
        ``space`` (list of words), ``strategy``, ``trials``, ``seed`` and any other of
        ``train.SETTINGS``, which is then the same in all trials.
    base : dict
        Such as DEFAULT_SEARCH, with the same keys as the result.
    """
    definition = {name: given.get(name, base[name]) for name in ("space", "strategy", "trials", "seed")}
    if "space" in given:
        definition["space"] = " ".join(given["space"])
    nn.choose("strategy", definition["strategy"], STRATEGIES)
    definition["seed"] = train.check_setting("seed", definition["seed"])
    fixed = {name: train.check_setting(name, given[name]) for name in given if name in train.SETTINGS}
    definition["settings"] = {n: v for n, v in {**base["settings"], **fixed}.items() if n != "seed"}
    space = parse_space(definition["space"])
    for name in space:
        if name in fixed and name != "seed":
            raise ValueError(f"{train.flag(name)}: {name} is searched: {definition['space']} (see --space)")
    if definition["strategy"] == "grid":
        definition["trials"] = _grid_size(space, given)
    elif definition["strategy"] == "halving" and "epochs" in space:
        raise ValueError("--space: halving itself finds the epochs of each trial; see --epochs")
    definition["trials"] = checked("--trials", train.number(1, MOST_IN_ALL, whole=True), definition["trials"])
    return definition


def _grid_size(space, given):
    for name, dimension in space.items():
        if isinstance(dimension, dict):
            raise ValueError(f"--space: a grid needs a list of values for {name}, not a range")
    if "trials" in given:
        raise ValueError("--trials: a grid has one for each combination of its lists")
    return math.prod(map(len, space.values()))


def trial_settings(definition):
    """The checked settings of each trial, as a list; its first is that of trial 1.

    Trial i draws its seed and its settings from ``np.random.default_rng([seed, i])``. Counting
    from 1 matters: a seed sequence that ends in 0 is the same as one without that 0.
    """
    space = parse_space(definition["space"])
    grid = list(itertools.product(*space.values())) if definition["strategy"] == "grid" else None
    found = []
    for number in range(1, definition["trials"] + 1):
        rng = np.random.default_rng([definition["seed"], number])
        seeds = {"seed": int(rng.integers(2**32)), "split_seed": definition["seed"]}
        values = grid[number - 1] if grid else [draw(dimension, rng) for dimension in space.values()]
        drawn = dict(zip(space, values))
        try:
            settings = train.check_settings({**seeds, **definition["settings"], **drawn})
            if not settings["val_size"]:
                raise ValueError("--val-size: a search needs validation images")
        except ValueError as error:
            raise ValueError(f"trial {number} ({settings_text(drawn)}): {error}") from None
        found.append(settings)
    return found


def rungs(strategy, trials, epochs):
    """How many trials go on to which epoch: ``[(50, 2), (17, 6), (6, 50)]``.

    Successive halving (Jamieson & Talwalkar 2016) with the third instead of the half, as advised
    for Hyperband (Li et al. 2018): a third of the trials, rounded up, get three times the epochs.
    The last few are not thinned out again but trained to the end: by then they differ less than
    the same settings with another seed. The other strategies have one rung; its epoch None stands
    for the last of each trial.
    """
    if strategy != "halving":
        return [(trials, None)]
    counts, budgets = [trials], [epochs]
    while counts[-1] >= ETA and budgets[-1] > 1:
        counts.append(math.ceil(counts[-1] / ETA))
        budgets.append(math.ceil(budgets[-1] / ETA))
    plan = list(zip(counts, reversed(budgets)))
    return plan if len(plan) < 3 else [*plan[:-2], (plan[-2][0], epochs)]


# --- one trial, on a worker -------------------------------------------------------------------


def run_trial(config, state, rows, until, source):
    """Train a trial up to an epoch.

    Parameters
    ----------
    config : dict
    state : dict or None
        Where to go on from; None is the beginning.
    rows : list of dict
        The history so far.
    until : int or None
        The epoch to pause after; None is the trial's last.
    source : dict
        Where the images are; see ``trial_data``.

    Returns
    -------
    dict
        ``state``, ``rows``, ``status`` (``finished``; ``stopped`` before its last epoch;
        ``diverged``), ``steps`` of the preprocessing, and the ``seconds`` that this took. Only the
        last row has the loss and accuracy of the training images: they take as long as half a
        training epoch.
    """
    started = time.perf_counter()
    data = trial_data(config, source)
    reached = {"state": state or train.init_state(data, config), "rows": rows}
    try:
        train.fit(
            reached["state"], data, config, rows, lambda s, r: reached.update(state=s, rows=r), until=until
        )
        ended = reached["state"]["epoch"] == config["epochs"] or train.should_stop(reached["rows"], config)
        status = "finished" if ended else "stopped"
    except FloatingPointError:
        status = "diverged"
    state, rows = reached["state"], reached["rows"]
    if rows and rows[-1]["train_loss"] is None:
        judged = state["average"] or state["params"]
        rows = [*rows[:-1], rows[-1] | train.part_figures(judged, data, "train", config)]
    seconds = time.perf_counter() - started
    return {"state": state, "rows": rows, "status": status, "steps": data["steps"], "seconds": seconds}


def trial_data(config, source):
    """What ``train.prepare`` gives, without the test images.

    The split is mapped into memory from ``source["folder"]`` (see ``save_split``), where all
    workers of a machine share it, or made from the data set in the worker's own data folder,
    ``source["data_dir"]``.
    """
    if "folder" in source:
        arrays = _map_split(source["folder"])
    else:
        arrays = split_arrays(_own_dataset(config, source["data_dir"]), config)
    sorted_names, parts = ("images", "columns", "inked"), ("train", "val")
    return {
        **{part: (arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in parts},
        "pixels": {part: {name: arrays[f"{part}_sorted_{name}"] for name in sorted_names} for part in parts},
        **train.prepare_steps(arrays["train_images"], config, config["data"]["image_shape"]),
        "classes": len(config["data"]["class_names"]),
        "evaluate": ("val",),
    }


SPLIT_SETTINGS = ("dataset", "val_size", "train_size", "holdout", "split_seed", "preprocess")


def split_arrays(dataset, config):
    """All arrays of a trial's data by name; they depend on SPLIT_SETTINGS alone."""
    arrays, pictures = {}, train.picture_steps(config, dataset["image_shape"])
    for part, (images, labels) in zip(("train", "val"), train.split_dataset(dataset, config)):
        images = redraw(images, pictures)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
        pixels = train.sorted_pixels(images, config)
        arrays |= {f"{part}_sorted_{name}": array for name, array in pixels.items()}
    return arrays


def _map_split(folder):
    files = pathlib.Path(folder).glob("*.npy")
    return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in files}


def _own_dataset(config, data_dir):
    worker = f"the worker on {platform.node()}"
    try:
        dataset = load_dataset(config["dataset"], data_dir, download=False)
    except (ValueError, OSError) as error:
        raise FileNotFoundError(
            f"{worker} does not have the data set {config['dataset']}: {error}; put it there, or name "
            f"the folder that it has on the workers with --data-dir"
        ) from None
    if dataset["sha256"] != config["data"]["sha256"]:
        raise ValueError(f"{worker} has another data set under the name {config['dataset']}")
    return dataset


# --- workers: on this machine, or on a cluster ------------------------------------------------
#
# Both give the same dict: ``submit(function, *args) -> Future`` of concurrent.futures,
# ``capacity() -> int``, how many trials can run at once, ``source(config) -> dict``, where a
# trial finds its images, ``lost``, the exception of a future whose worker died, and ``tries``, the
# number of those after which a trial has failed.

ONE_THREAD = {
    f"{library}_THREADS": "1" for library in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM")
}


@contextlib.contextmanager
def local_workers(count, folder, datasets):
    """``count`` processes with one BLAS thread each; they end with the block, however it ends.

    The splits of the data are in ``folder`` for as long as the block lasts.
    """
    splits = {}

    def source(config):
        key = tuple(str(config[name]) for name in SPLIT_SETTINGS)
        if key not in splits:
            splits[key] = save_split(folder / str(len(splits)), datasets[config["dataset"]], config)
        return {"folder": str(splits[key])}

    shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed
    lost = concurrent.futures.BrokenExecutor
    try:
        with _environment(ONE_THREAD), _processes(count) as submit:  # read when a process loads NumPy
            yield {"submit": submit, "capacity": lambda: count, "source": source, "lost": lost, "tries": 2}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _processes(count):
    """``submit(function, *args) -> Future`` on processes of which each has a pipe of its own.

    Such a pipe breaks when its process dies, even in the middle of a message. The processes of a
    ProcessPoolExecutor share one that the parent keeps open: when one is killed in the middle of
    a message, the parent waits for the rest of it forever.
    """
    processes, idle, closing = [], queue.SimpleQueue(), threading.Event()

    def start():
        try:
            process, connection = _start_process()
        except BrokenPipeError:  # it died while it started
            raise concurrent.futures.BrokenExecutor("a worker died") from None
        processes.append(process)
        if closing.is_set():
            process.kill()
        return connection

    def call(function, *args):  # in a thread, one for each process
        connection = idle.get()
        try:
            connection = connection or start()
            try:
                connection.send((function, args))
                result, error = connection.recv()
            except (EOFError, OSError):
                connection = None  # the next call starts another process
                raise concurrent.futures.BrokenExecutor("a worker died") from None
        finally:
            idle.put(connection)
        if error:
            raise error
        return result

    for _ in range(count):
        idle.put(None)
    threads = concurrent.futures.ThreadPoolExecutor(count)
    try:
        yield functools.partial(threads.submit, call)
    finally:
        with _unstoppable():  # a second Ctrl-C must not leave a process behind
            closing.set()
            for process in list(processes):
                process.kill()
            threads.shutdown(cancel_futures=True)
            for process in processes:
                process.join()


@contextlib.contextmanager
def _environment(variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _start_process():
    """A process that does what is sent to it, and our end of the pipe to it."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    with _without_interrupts():
        process.start()
    theirs.close()  # so that the pipe breaks when the process ends
    return process, ours


@contextlib.contextmanager
def _without_interrupts():
    """Block SIGINT in this thread: a process inherits that, before it can say that it ignores Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # now: the first process would start it, and that ends the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _unstoppable():
    """Ignore Ctrl-C and SIGTERM, which only the main thread hears of."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(connection):
    """Answer calls until the parent ends, which may be in the middle of one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the pipe breaks when the parent ends
        while True:
            function, args = connection.recv()
            connection.send(_outcome(function, args))


def _outcome(function, args):
    try:
        return function(*args), None
    except Exception as error:  # it is raised again where the call came from
        return None, error


def save_split(folder, dataset, config):
    """Write the split of a dataset as .npy files that workers can map; returns the folder."""
    folder.mkdir(parents=True)
    for name, array in split_arrays(dataset, config).items():
        np.save(folder / f"{name}.npy", array)
    return folder


@contextlib.contextmanager
def cluster_workers(address, data_dir):
    """The workers of a Dask cluster, which get this program, and find the data themselves.

    Dask itself runs the trial of a lost worker again on another one, and gives it up
    (KilledWorker) after several.
    """
    try:
        import distributed  # late: only needed here
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "--scheduler needs Dask on every machine: pip install distributed"
        ) from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its errors are raised, too
    try:
        client = distributed.Client(address, timeout=ANSWER_SECONDS)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"there is no Dask scheduler at {address}: {error}") from None
    with client, tempfile.TemporaryDirectory() as folder:
        try:
            client.wait_for_workers(1, timeout=ANSWER_SECONDS)
        except (TimeoutError, concurrent.futures.TimeoutError):
            raise ConnectionError(f"no worker has joined the scheduler at {address}") from None
        client.upload_file(_zip_program(pathlib.Path(folder)))
        threads = concurrent.futures.ThreadPoolExecutor(MOST_TRIALS)
        futures = weakref.WeakSet()

        def call(function, *args):  # in a thread, one for each running trial
            future = client.submit(function, *args, pure=False)
            futures.add(future)
            return future.result()

        try:
            yield {
                "submit": functools.partial(threads.submit, call),
                "capacity": lambda: min(max(1, sum(client.nthreads().values())), MOST_TRIALS),
                "source": lambda config: {"data_dir": data_dir},
                "lost": distributed.scheduler.KilledWorker,
                "tries": 1,  # Dask has tried it on several workers by then
            }
        except (*GONE, distributed.comm.CommClosedError):
            raise ConnectionError(
                f"the scheduler at {address} is gone; every trial that has ended is kept, and --resume "
                f"runs the others"
            ) from None
        finally:
            client.cancel(list(futures))
            threads.shutdown(cancel_futures=True)


ANSWER_SECONDS = 20  # for the cluster to answer
MOST_TRIALS = 1000  # that a cluster runs at once
GONE = (concurrent.futures.CancelledError, asyncio.CancelledError)  # of a client without a scheduler


def _zip_program(folder):
    here = pathlib.Path(__file__).resolve().parent
    with zipfile.ZipFile(folder / "program.zip", "w") as file:
        for name in ("nn.py", "data.py", "train.py", "search.py"):
            file.write(here / name, name)
    return str(folder / "program.zip")


# --- all trials -------------------------------------------------------------------------------
#
# A trial is a dict: ``number``, ``config``, ``rows`` (its history), ``status`` (None before it
# has run) and ``seconds``. Its params are on disk only.


def ranking(trials):
    """The trials that can win, best first: by validation accuracy, ties by validation loss.

    Of trials that were stopped early, those that have come further stand before the others.
    """
    return sorted((trial for trial in trials if trial["status"] in ("finished", "stopped")), key=_merit)


def _merit(trial):
    last, finished = trial["rows"][-1], trial["status"] == "finished"
    come = 0 if finished else -len(trial["rows"])
    return (not finished, come, -last["val_accuracy"], last["val_loss"], trial["number"])


def best_at(trials, epochs, count):
    """The ``count`` trials with the best validation accuracy after ``epochs``, in order of number.

    A trial that ended by early stopping before that counts with its last epoch; one that diverged
    or failed before that is out.
    """
    able = [t for t in trials if len(t["rows"]) >= epochs or t["status"] in ("finished", "stopped")]

    def merit(trial):
        row = trial["rows"][min(epochs, len(trial["rows"])) - 1]
        return -row["val_accuracy"], row["val_loss"], trial["number"]

    return sorted(sorted(able, key=merit)[:count], key=lambda trial: trial["number"])


def is_missing(trial, until):
    """Whether a trial has yet to run to the epoch ``until``, or to its end where that is None."""
    if trial["status"] in (None, "failed"):
        return True
    until = trial["config"]["epochs"] if until is None else until
    return trial["status"] == "stopped" and len(trial["rows"]) < until


def run_trials(trials, until, workers, out):
    """Run trials up to an epoch.

    Yields ``(running, ended)`` about once a second and whenever a trial ends: how many are
    running, and a list of ``(trial, result)`` of those that have ended since. ``result`` is that
    of ``run_trial``, or None for a trial that failed: whose worker died, and the next one too.
    """
    waiting, running, ended = collections.deque(trials), {}, []
    deaths = collections.Counter()
    while waiting or running or ended:
        while waiting and len(running) < workers["capacity"]():
            trial = waiting.popleft()
            state, rows = load_trial(out, trial)
            job = (trial["config"], state, rows, until, workers["source"](trial["config"]))
            running[workers["submit"](run_trial, *job)] = trial
        yield len(running), ended  # only now: the workers are busy while the caller writes
        done, _ = concurrent.futures.wait(running, 1, concurrent.futures.FIRST_COMPLETED)
        ended = []
        for future in done:
            trial = running.pop(future)
            try:
                ended.append(_after(trial, future.result()))
            except workers["lost"]:
                deaths[trial["number"]] += 1
                if deaths[trial["number"]] < workers["tries"]:
                    waiting.appendleft(trial)
                else:
                    ended.append(({**trial, "status": "failed"}, None))


def _after(trial, result):
    seconds = trial["seconds"] + result["seconds"]
    return {**trial, "rows": result["rows"], "status": result["status"], "seconds": seconds}, result


def run_search(trials, strategy, workers, out, searched, show):
    """Run what is missing of all trials and write it; a line for each that ends. Returns the trials."""
    found = {trial["number"]: trial for trial in trials}
    plan = rungs(strategy, len(trials), trials[0]["config"]["epochs"])
    clock = {"started": time.perf_counter(), "epochs": 0, "left": epochs_left(trials, plan)}
    reached = 0
    for count, until in plan:
        chosen = best_at(list(found.values()), reached, count) if reached else trials
        missing = [trial for trial in chosen if is_missing(trial, until)]
        done, reached = len(chosen) - len(missing), until
        for running, ended in run_trials(missing, until, workers, out):
            for trial, result in ended:
                before = len(found[trial["number"]]["rows"])
                save_trial(out, trial, result, before)
                found[trial["number"]], done = trial, done + 1
                save_table(out, list(found.values()), searched)
                clock["epochs"] += len(trial["rows"]) - before
                clock["left"] -= (trial["config"]["epochs"] if until is None else until) - before
                show("")
                print(trial_line(trial, found.values(), searched, f"{done}/{len(chosen)}"), flush=True)
            show(live_line(found.values(), clock, f"{done}/{len(chosen)}", running, until))
    return list(found.values())


def epochs_left(trials, plan):
    """How many epochs the rungs of a plan ask for, beyond what the trials have."""
    if plan[0][1] is None:
        return sum(trial["config"]["epochs"] - len(trial["rows"]) for trial in trials)
    before = [0, *(until for _, until in plan)]
    planned = sum(count * (until - start) for (count, until), start in zip(plan, before))
    return planned - sum(len(trial["rows"]) for trial in trials)


# --- what is printed --------------------------------------------------------------------------


def settings_text(settings):
    return "   ".join(f"{name} {_short(value)}" for name, value in settings.items())


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else setting_text(value)


def trial_line(trial, trials, searched, done):
    """One line for a trial that has ended, with its rank among those that have."""
    words = [f"{done} trial {trial['number']}", settings_text({n: trial["config"][n] for n in searched})]
    words.append(f"epoch {len(trial['rows'])}")
    if trial["status"] in ("finished", "stopped"):
        rank = [other["number"] for other in ranking(trials)].index(trial["number"]) + 1
        words += [train.figures_text(trial["rows"][-1]), f"{trial['seconds']:.1f} s", f"rank {rank}"]
    else:
        words.append({"diverged": "diverged", "failed": "FAILED: its workers died"}[trial["status"]])
    return "   ".join(words)


def live_line(trials, clock, done, running, until):
    """Trials done and running, the best so far, and the time left."""
    words = [f"{done} trials done" + (f" to epoch {until}" if until else ""), f"{running} running"]
    for best in ranking(trials)[:1]:
        words.append(f"best {100 * best['rows'][-1]['val_accuracy']:.2f} % (trial {best['number']})")
    if clock["epochs"]:
        seconds = (time.perf_counter() - clock["started"]) / clock["epochs"] * clock["left"]
        words.append(f"{duration(seconds)} left")
    return "   ".join(words)


def duration(seconds):
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def ranking_text(trials, searched, top=10):
    """The first rows of the ranking as an aligned table."""
    searched = [name for name in searched if name != "epochs"]  # shown anyway: those done
    lines = [["rank", "trial", *searched, "epochs", "train loss", "train acc", "val loss", "val acc"]]
    for rank, trial in enumerate(ranking(trials)[:top], start=1):
        last = trial["rows"][-1]
        lines.append([str(rank), str(trial["number"]), *(_short(trial["config"][n]) for n in searched)])
        lines[-1].append(str(len(trial["rows"])))
        for part in ("train", "val"):
            lines[-1] += [f"{last[f'{part}_loss']:.4f}", f"{100 * last[f'{part}_accuracy']:.2f} %"]
    wide = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("   ".join(word.rjust(w) for word, w in zip(line, wide)) for line in lines)


# --- the files of a search --------------------------------------------------------------------

STATUSES = ("finished", "stopped", "diverged", "failed")
FIGURES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


def load_definition(path):
    """The definition in a search.json, and the SHA-256 of its data sets."""
    record = load_json(path)
    try:
        definition = {name: record[name] for name in DEFAULT_SEARCH}
        kinds = {"space": str, "strategy": str, "settings": dict}
        for name, kind in kinds.items():
            if not isinstance(definition[name], kind):
                raise ValueError(f"its {name} is {definition[name]!r:.60}")
        settings = definition["settings"]
        definition["settings"] = {name: train.check_setting(name, settings[name]) for name in settings}
        return define({}, definition), dict(record["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not define a search: {error}") from error


def open_search(out, given, resume):
    """``(definition, data)``: of the search in ``out``, or a new one (data is None).

    Raises
    ------
    ValueError
        There is a search already, and it is another one, or ``resume`` was not asked for.
    """
    path = out / "search.json"
    if not path.exists():
        return define(given, DEFAULT_SEARCH), None
    saved, data = load_definition(path)
    definition = define(given, saved if resume else DEFAULT_SEARCH)
    new, old = ({**train.DEFAULTS, **d, **d["settings"]} for d in (definition, saved))
    if resume and definition["strategy"] == "random" and new["trials"] > old["trials"]:
        old["trials"] = new["trials"]  # the trials so far are the same, whatever comes after them
    for name in [*DEFAULT_SEARCH, *train.SETTINGS]:
        if name != "settings" and new.get(name) != old.get(name):
            raise ValueError(
                f"{out} holds another search: its {name} is {old.get(name)}, not {new.get(name)}; "
                "name another folder with --out"
            )
    if not resume:
        raise ValueError(f"{out} holds this search already: go on with --resume, or name another --out")
    return definition, data


def save_definition(out, definition, datasets):
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    data = {dataset["name"]: dataset["sha256"] for dataset in datasets.values()}
    save_json(out / "search.json", {**definition, "data": data, "versions": versions})


def trial_folder(out, trial):
    return out / "trials" / f"{trial['number']:03}"


def save_trial(out, trial, result, epochs_before):
    """Write a trial's folder: that of a run of train.py."""
    folder, config, rows = trial_folder(out, trial), trial["config"], trial["rows"]
    folder.mkdir(parents=True, exist_ok=True)
    best = None
    if result:
        state, best = result["state"], result["state"]["best"]
        train.save_epoch(folder, state, rows, config, result["steps"], len(rows) - epochs_before)
    train.save_record(folder, config, trial["status"], rows, best)


def load_trial(out, trial):
    """``(state, rows)`` to go on from; None and no rows for a trial that starts."""
    if not trial["rows"]:
        return None, []
    state, rows, _ = train.load_last(trial_folder(out, trial))
    return state, rows


def save_table(out, trials, searched):
    """Write trials.csv: the ranking, and below it the trials that are not ranked."""
    ranked = ranking(trials)
    others = [trial for trial in trials if trial["status"] and trial not in ranked]
    columns = ["trial", "status", "seed", *(name for name in searched if name not in ("seed", "epochs"))]
    columns += ["epochs", *FIGURES, "seconds"]
    save_rows(out / "trials.csv", [table_row(trial) for trial in ranked + others], columns)


def table_row(trial):
    last = trial["rows"][-1] if trial["rows"] else dict.fromkeys(FIGURES)
    return {
        **{name: setting_text(trial["config"][name]) for name in train.SETTINGS},
        "trial": trial["number"],
        "status": trial["status"],
        "epochs": len(trial["rows"]),
        **{name: last[name] for name in FIGURES},
        "seconds": round(trial["seconds"], 3),
    }


def load_trials(out, trials):
    """The trials with what trials.csv and their folders say about those that have run.

    Raises
    ------
    ValueError
        A file is damaged, or does not belong to these trials.
    """
    path, found = out / "trials.csv", {trial["number"]: trial for trial in trials}
    for row in load_rows(path, words=True) if path.exists() else []:
        try:
            trial, status, epochs, seconds = (row[k] for k in ("trial", "status", "epochs", "seconds"))
            trial = found[trial]
            if status not in STATUSES or row["seed"] != trial["config"]["seed"]:
                raise ValueError(f"trial {trial['number']} is not one of this search")
            if not isinstance(epochs, int) or not isinstance(seconds, (int, float)):
                raise ValueError(f"trial {trial['number']} lacks its epochs or seconds")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not the table of this search: {error}") from error
        rows = load_rows(trial_folder(out, trial) / "history.csv")[:epochs] if epochs else []
        needed = [row.get(name) for row in rows for name in ("val_loss", "val_accuracy")]
        if status in ("finished", "stopped"):
            needed += [(rows or [{}])[-1].get(name) for name in FIGURES]
        if len(rows) != epochs or not all(isinstance(figure, (int, float)) for figure in needed):
            raise ValueError(
                f"{trial_folder(out, trial) / 'history.csv'} does not hold all of {epochs} epochs"
            )
        found[trial["number"]] = {**trial, "rows": rows, "status": status, "seconds": seconds}
    return list(found.values())


# --- command line -----------------------------------------------------------------------------


def make_trials(definition, data_dir, known, workers=1):
    """``(trials, datasets)``: all trials before they have run, and the data sets by name.

    ``workers`` is how many of them this machine will run at once.

    Raises
    ------
    ValueError
        Settings that cannot be, or do not fit the data; data that are not the ``known`` ones.
    MemoryError
        So many trials at once do not fit into memory.
    """
    settings = trial_settings(definition)
    runs = min(workers, len(settings))
    for s in settings:
        train.check_memory(s, *train.least_size(s["dataset"]), runs)
    loaded = {name: load_dataset(name, data_dir) for name in dict.fromkeys(s["dataset"] for s in settings)}
    configs = [train.run_config(s, loaded[s["dataset"]]) for s in settings]
    datasets = {dataset["name"]: dataset for dataset in loaded.values()}
    for config in configs:
        images = datasets[config["dataset"]]["train_images"]
        train.check_memory(config, *images.shape, len(config["data"]["class_names"]), runs)
        check_split(len(images), config["val_size"], config["train_size"])
        if known is not None and known.get(config["dataset"]) != config["data"]["sha256"]:
            raise ValueError(f"the data set {config['dataset']} is not the one that the search used")
    empty = {"rows": [], "status": None, "seconds": 0.0}
    return [{"number": n, "config": config, **empty} for n, config in enumerate(configs, 1)], datasets


def retrain(out, trial, data_dir):
    """Train the best trial's network again, on all training images; returns the command that does it.

    It runs for as many epochs as the trial did, or for all where lr falls along them to the last.
    """
    settings = {name: trial["config"][name] for name in train.SETTINGS}
    settings |= {"val_size": 0, "train_size": None, "split_seed": None}
    if settings["lr_schedule"] not in ("linear", "cosine"):
        settings["epochs"] = len(trial["rows"])
    settings |= {name: train.DEFAULTS[name] for name in ("patience", "min_delta")}
    words = train.as_flags(settings) + (["--data-dir", data_dir] if data_dir else [])
    there = all((out / name).exists() for name in ("last.pkl", "config.json"))  # or it was killed between
    record = load_json(out / "config.json") if there else {}
    same = isinstance(record, dict) and all(record.get(name) == settings[name] for name in settings)
    train.main([*words, "--out", str(out), "--quiet", *(["--resume"] if same else [])])
    return shlex.join(["python", "train.py", *words])


def count_cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def count_workers(flags):
    """The number of processes on this machine; default: one for each core."""
    if flags.workers is None:
        return count_cores()
    if flags.scheduler:
        raise ValueError("--workers: is for this machine; the cluster of --scheduler has its own")
    return checked("--workers", train.number(1, whole=True), flags.workers)


def checked(flag, check, value):
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def add_flags(parser):
    parser.add_argument(
        "--space",
        nargs="+",
        metavar="NAME=VALUES",
        default=argparse.SUPPRESS,
        help="what to search: ranges low:high or low:high:log, and lists a,b,c (two layers: 512x256; "
        f"two steps of preprocessing: scale+center) (default: {DEFAULT_SEARCH['space']})",
    )
    strategies = "; ".join(f"{name}: {what}" for name, what in STRATEGIES.items())
    parser.add_argument(
        "--strategy", metavar="X", default=argparse.SUPPRESS, help=f"{strategies} (default: random)"
    )
    parser.add_argument(
        "--trials", metavar="N", default=argparse.SUPPRESS, help="trials of random and halving (default: 50)"
    )
    parser.add_argument(
        "--workers", metavar="N", help="processes on this machine (default: one for each core)"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run on this Dask cluster: tcp://host:8786")
    parser.add_argument("--resume", action="store_true", help="run what the search in --out is missing")
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="results/search",
        help="folder of the search (default: results/search)",
    )
    train.add_settings(parser.add_argument_group("settings that are the same in all trials"))


def main(argv=None):
    parser = make_parser(
        "Search for the best settings, and train the best network on all training images. --seed is "
        "the seed of the search; --val-size is 12000 unless given."
    )
    add_flags(parser)
    flags = parse_flags(parser, argv)
    given = {n: v for n, v in vars(flags).items() if n in DEFAULT_SEARCH or n in train.SETTINGS}
    out, count = pathlib.Path(flags.out), count_workers(flags)
    definition, known = open_search(out, given, flags.resume)
    trials, datasets = make_trials(definition, flags.data_dir, known, 1 if flags.scheduler else count)
    if flags.resume and known is None:
        print(f"no search to resume in {out}: starting a new one")
    out.mkdir(parents=True, exist_ok=True)
    titles = " and ".join(dataset["title"] for dataset in datasets.values())
    print(
        f"{definition['strategy']} search on {titles}: {len(trials)} trials of {definition['space']}",
        flush=True,
    )

    searched = list(parse_space(definition["space"]))
    if flags.scheduler:
        opened = cluster_workers(flags.scheduler, flags.data_dir)
    else:
        opened = local_workers(min(count, len(trials)), out / ".split", datasets)
    try:
        with train.locked(out), progress_line() as show, opened as workers:
            if known is None and (out / "search.json").exists():
                raise ValueError(f"another search has been written to {out} meanwhile; name another --out")
            for half in out.glob("trials/*/*.part"):  # of a search that was killed
                half.unlink()
            trials = load_trials(out, trials) if known is not None else trials
            save_definition(out, definition, datasets)
            trials = run_search(trials, definition["strategy"], workers, out, searched, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"every trial that has ended is in {out}; --resume runs the others") from None

    ranked = ranking(trials)
    if not ranked:
        raise ValueError(f"no trial has ended well; see {out / 'trials.csv'}")
    print(f"\n{ranking_text(trials, searched)}\n(all trials: {out / 'trials.csv'})\n")
    best = ranked[0]
    print(f"trial {best['number']} is the best; its settings, trained on all training images:", flush=True)
    command = retrain(out, best, flags.data_dir)
    print(f"to train it again: {command}")


if __name__ == "__main__":
    sys.exit(run_script(main))
