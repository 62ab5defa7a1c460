"""Many training runs: the best settings, and how far they can be told apart.

A trial is a run of ``train.py`` in a folder of its own. Its settings and its seed come from the
search's seed and the trial's number alone, so it does not matter where or when it runs. Trials
are ranked by their accuracy on the same validation images; the best one is trained again on all
training images. The test set is first looked at after that.

In this order: the search, what its runs show, its definition and space, workers, files, what is
printed, command line.
"""

import data  # first: while the rest is imported, Ctrl-C is one line already

# isort: split
import argparse
import asyncio
import concurrent.futures
import contextlib
import datetime
import functools
import itertools
import logging
import math
import operator
import os
import pathlib
import pickle
import platform
import queue
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np

import nn
import train

# --- the search -------------------------------------------------------------------------------
#
# A trial is a dict: ``number``, that of its settings; ``repeat``, that of its seed or its fold, from 1;
# ``config``, ``rows`` (its history), ``status`` (of STATUSES; None before it has run) and ``seconds``.
# Its params are on disk only. The trials with one number are a group: they are ranked together.

STRATEGIES = {
    "random": "as many trials as --trials, drawn from the space",
    "grid": "every combination of the lists",
    "halving": "as random, but only the better third goes on to three times as many epochs, and so on",
}
RANKED = ("finished", "stopped")  # stopped before its last epoch, to go on if it is among the best
STATUSES = (*RANKED, "diverged", "failed")
ETA = 3  # of the trials of a rung, one in so many goes on to the next


def run_search(trials, plan, workers, out, searched, show):
    """Run what is missing of all trials; write and print each as it ends; returns them as they are then.

    ``plan`` comes from ``rungs``, ``show`` from ``data.progress_line``; ``searched`` are names of settings.
    """
    found = {trial_name(trial): trial for trial in trials}
    started, reached, worked = time.perf_counter(), 0, 0
    for rung, (count, until) in enumerate(plan):
        chosen = best_at(found.values(), reached, count)
        missing = {trial_name(trial): trial for trial in chosen if epochs_missing(trial, until) > 0}
        done = f"{len(chosen) - len(missing)}/{len(chosen)}"
        for running, ended in run_trials(missing.values(), until, workers, out):
            if ended:
                trial, state, steps = ended
                before = missing.pop(trial_name(trial))
                save_trial(out, trial, state, steps, len(before["rows"]))
                found[trial_name(trial)] = trial
                save_table(out, found.values(), searched)
                worked += len(trial["rows"]) - len(before["rows"])
                done = f"{len(chosen) - len(missing)}/{len(chosen)}"
                show("")
                data.say(trial_line(trial, found.values(), searched, done))
            left = epochs_left(missing.values(), plan[rung:], len(trials) // plan[0][0])
            seconds = (time.perf_counter() - started) / worked * left if worked else None
            show(live_line(found.values(), done, running, until, seconds))
        reached = until
    return list(found.values())


def trial_name(trial, digits=1):
    """``7``; ``7-2`` where it is a repeat after the first, or another fold."""
    name = f"{trial['number']:0{digits}}"
    return f"{name}-{trial['repeat']}" if trial["repeat"] > 1 else name


def rungs(definition):
    """How many trials go on to which epoch: ``[(50, 2), (17, 6), (6, 50)]``; those of --best at the end.

    Successive halving (Jamieson & Talwalkar 2016) with the third instead of the half, as advised
    for Hyperband (Li et al. 2018). The last few are not thinned out again but trained to the end: by then
    they differ less than the same settings with another seed. The other strategies have one rung; its
    epoch None stands for the last of each trial.
    """
    trials, further = definition["trials"], definition["further"]
    epochs = {**train.DEFAULTS, **definition["settings"]}["epochs"]
    if definition["strategy"] != "halving":
        return [(trials, epochs if further else None), *further]
    counts, budgets = [trials], [epochs]
    while counts[-1] >= ETA and budgets[-1] > 1:
        counts.append(math.ceil(counts[-1] / ETA))
        budgets.append(math.ceil(budgets[-1] / ETA))
    plan = list(zip(counts, reversed(budgets)))
    return [*(plan if len(plan) < 3 else [*plan[:-2], (plan[-2][0], epochs)]), *further]


def epochs_left(missing, plan, repeats=1):
    """The epochs that ``missing`` trials of a plan's first rung lack, and those of its later rungs."""
    left = sum(epochs_missing(trial, plan[0][1]) for trial in missing)
    later = sum(count * (end - start) for (_, start), (count, end) in itertools.pairwise(plan))
    return left + repeats * later


def epochs_missing(trial, until):
    """How many epochs a trial lacks to ``until``, or to its last where that is None; 0 if it has ended."""
    ended = trial["status"] in ("finished", "diverged")
    return 0 if ended else (until or trial["config"]["epochs"]) - len(trial["rows"])


def groups_of(trials):
    """The trials of each number, as a list of lists in order of number and repeat."""
    ordered = sorted(trials, key=operator.itemgetter("number", "repeat"))
    return [list(group) for _, group in itertools.groupby(ordered, operator.itemgetter("number"))]


def came(group):
    """The epoch that a group has come to; infinity where it finished, be it by early stopping."""
    return min(math.inf if t["status"] == "finished" else len(t["rows"]) for t in group)


def ranking(trials, epochs=math.inf):
    """The groups that can win, best first, by their figures after so many epochs, or their last.

    Ranked are those that came further, the mean validation accuracy, the mean loss. A group of which one
    has diverged or failed before that cannot win; trials that have not run do not count yet.
    """

    def able(trial):
        return trial["status"] in RANKED or len(trial["rows"]) >= epochs

    def best_first(group):
        rows = [trial["rows"][min(epochs, len(trial["rows"])) - 1] for trial in group]
        accuracy = statistics.fmean(row["val_accuracy"] for row in rows)
        loss = statistics.fmean(row["val_loss"] for row in rows)
        return -min(came(group), epochs), -accuracy, loss, group[0]["number"]

    groups = groups_of(trial for trial in trials if trial["status"])
    return sorted([group for group in groups if all(map(able, group))], key=best_first)


def best_at(trials, epochs, count):
    """The trials of the ``count`` best groups after ``epochs``, first repeats first."""
    groups = ranking(trials, epochs) if epochs else groups_of(trials)
    chosen = itertools.chain(*groups[:count])
    return sorted(chosen, key=operator.itemgetter("repeat", "number"))


def run_trials(trials, until, workers, out):
    """Run trials up to an epoch; about once a second, and when one ends, yields how many run, and that one.

    It is None or what ``run_trial`` returns; without a state where the worker died, and the next one too.
    ``concurrent.futures.wait`` would do, but a Ctrl-C at the wrong moment leaves its locks held.
    """
    waiting, running, futures, ended = list(trials)[::-1], {}, queue.SimpleQueue(), None
    while waiting or running or ended:
        while waiting and len(running) < workers["capacity"]():
            trial, state = waiting.pop(), None
            if trial["rows"]:
                state, rows, _ = train.load_last(trial_folder(out, trial))
                trial = {**trial, "rows": rows}
            future = workers["submit"](run_trial, trial, state, until, workers["source"](trial["config"]))
            running[future] = trial
            future.add_done_callback(futures.put)
        yield len(running), ended  # only now: the workers are busy while the caller writes
        ended = None
        with contextlib.suppress(queue.Empty):
            future = futures.get(timeout=1 if running else 0)
            trial = running.pop(future)
            try:
                ended = future.result()
            except workers["lost"]:
                ended = {**trial, "status": "failed"}, None, None


def run_trial(trial, state, until, source):
    """Train a trial from a state (None: its beginning) up to an epoch (None: its last), on a worker.

    ``source`` gives the images as ``train.prepare`` does. Returns the trial as it is then, the state and
    the steps of its preprocessing. Only the last row has the figures of the training images: they take as
    long as half a training epoch.
    """
    started, config, rows = time.perf_counter(), trial["config"], trial["rows"]
    sets = {**source(), "evaluate": ("val",)}
    state = state or train.init_state(sets, config)
    epochs = max(0, (until or config["epochs"]) - state["epoch"])
    try:
        for after, row in itertools.islice(train.fit(state, sets, config, rows), epochs):
            state, rows = after, [*rows, row]
        status = "finished" if has_ended(rows, config) else "stopped"
    except FloatingPointError:
        status = "diverged"
    if rows and rows[-1]["train_loss"] is None:
        judged = state["average"] or state["params"]
        rows = [*rows[:-1], rows[-1] | train.part_figures(judged, sets, "train", config)]
    seconds = trial["seconds"] + time.perf_counter() - started
    return {**trial, "rows": rows, "status": status, "seconds": seconds}, state, sets["steps"]


def has_ended(rows, config):
    return len(rows) == config["epochs"] or train.should_stop(rows, config)


# --- what the runs show -----------------------------------------------------------------------

LIKELY = 0.05  # a p above this is no evidence, by custom


def compare(ranked):
    """What there is to say of each group, the best first: rows of groups.csv without the settings.

    ``difference`` is that of the mean accuracy to the best group's, ``p`` that of a permutation test over
    the runs with the same seed or fold; None for the best itself, and where the epochs differ.
    """
    found, best = [], [trial["rows"][-1]["val_accuracy"] for trial in ranked[0]]
    for group in ranked:
        rows = [trial["rows"][-1] for trial in group]
        accuracies = [row["val_accuracy"] for row in rows]
        row = {"trial": group[0]["number"], "runs": len(group), "epochs": max(len(t["rows"]) for t in group)}
        row |= {name: statistics.fmean(row[name] for row in rows) for name in FIGURES}
        row |= {"val_sd": nn.mean_and_sd(accuracies)[1], "difference": None, "p": None}
        if group is not ranked[0] and came(group) == came(ranked[0]):
            pairs = np.subtract(accuracies, best)
            row |= {"difference": pairs.mean(), "p": nn.permutation_test(pairs)}
        found.append(row)
    return found


def verdict(compared, kind):
    """One sentence on what is shown and what is not by the groups of ``compare``; kind: repeat or fold."""
    best, others = compared[0], [row for row in compared[1:] if row["p"] is not None]
    first, runs, least = f"trial {best['trial']}", best["runs"], 2 / 2 ** best["runs"]
    if not others:
        return f"There is nothing to compare {first} with."
    if runs == 1:
        return f"One run of each does not show whether {first} is better or luckier: see --repeat."
    clear = [row for row in others if row["p"] <= LIKELY]
    said = {
        f"{first} is better than {{}} by more than chance explains": clear,
        f"{first} was better than {{}} in each {kind}, which is a hint but may be chance": [
            row for row in others if LIKELY < row["p"] == least
        ],
        f"that {first} is better than {{}} is not shown: the {kind}s differ by as much": [
            row for row in others if row["p"] > max(LIKELY, least)
        ],
    }
    text = "; ".join(words.format(named(rows)) for words, rows in said.items() if rows)
    why = f"with {runs} {kind}s the smallest possible p is 2/{2**runs} = {least:.2g}"
    why += f", above the usual limit of {LIKELY}" if least > LIKELY else ""
    why += "; each p is that of one comparison alone" if len(others) > 1 and clear else ""
    why += "; folds share training images, so that p comes out too small" if kind == "fold" else ""
    return f"{text[0].upper()}{text[1:]} ({why})."


def named(rows):
    """``trials 3, 4 and 7``; the first five of many."""
    numbers = [str(row["trial"]) for row in rows]
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    numbers[5:] = [f"{len(numbers) - 5} more"] if len(numbers) > 5 else []
    return f"trials {', '.join(numbers[:-1])} and {numbers[-1]}"


def report_folds(out, group, datasets):
    """Write oof.csv: for each training image what the run says that did not train on it.

    ``probability`` is that of the image's own label; an mse network's outputs are clipped to [0, 1].
    """
    dataset = datasets[group[0]["config"]["dataset"]]
    images, labels = data.all_images(dataset)
    fold = data.folds_of(dataset, group[0]["config"])
    estimates = np.zeros((len(labels), len(dataset["class_names"])))
    for trial in group:
        mine = fold == trial["repeat"]
        estimates[mine] = train.last_estimates(trial_folder(out, trial), images[mine])
    predicted, own = estimates.argmax(axis=1), estimates[np.arange(len(labels)), labels].clip(0, 1)
    columns = ["index", "label", "prediction", "probability"]
    rows = [(i, labels[i], predicted[i], f"{own[i]:.6g}") for i in np.flatnonzero(fold)]
    data.save_rows(out / "oof.csv", [dict(zip(columns, row)) for row in rows], columns)
    right = nn.accuracy(estimates[fold > 0], labels[fold > 0])
    data.say(f"out of fold trial {group[0]['number']} gets {100 * right:.2f}% right: {out / 'oof.csv'}\n")


def report_test(out, ranked, datasets, top=10):
    """Write test.csv, and print the test accuracy of the last params: looked at when the ranking is fixed."""
    rows, lines = [], ["test accuracy of the last params, the ranking being fixed:"]
    for group in ranked:
        dataset, values = datasets[group[0]["config"]["dataset"]], []
        for trial in group:
            estimates = train.last_estimates(trial_folder(out, trial), dataset["test_images"])
            values.append(nn.accuracy(estimates, dataset["test_labels"]))
            rows.append({"trial": trial["number"], "repeat": trial["repeat"], "test_accuracy": values[-1]})
        mean, sd = nn.mean_and_sd(values)
        each = " ".join(f"{100 * value:.2f}" for value in values)
        spread = f"  sd {100 * sd:.2f}  ({each})" if len(group) > 1 else ""
        lines.append(f"  trial {group[0]['number']}: {100 * mean:.2f}%{spread}")
    data.save_rows(out / "test.csv", rows, list(rows[0]))
    data.say("\n".join([*lines[: 1 + top], f"(all of them: {out / 'test.csv'})\n"]))


# --- the definition of a search ---------------------------------------------------------------

DEFAULT_SEARCH = {
    "space": "lr=0.15:0.25 weight_decay=1e-7:1e-4:log hidden=200:300",
    "strategy": "random",
    "trials": 50,
    "repeat": 1,
    "seed": 0,
    "settings": {"val_size": 0.2, "holdout": train.DEFAULTS["holdout"]},
    "further": [],  # rungs of --best, as [trials, epochs]
    "paired": None,  # whether the first runs of all trials have the same seed, as later repeats do
    "distinct": True,  # no combination is run twice
}
MOST_IN_ALL = 100_000  # runs of a search


def define(given, base):
    """A checked definition of a search: what is given, over a base such as DEFAULT_SEARCH.

    Given may be ``space`` (list of words), ``strategy``, ``trials``, ``repeat``, ``seed``, ``best`` (a
    number of trials that go on to ``epochs``), and any other of ``train.SETTINGS``, the same in all trials.
    """
    found = {**base, **{name: given[name] for name in base if name in given}}
    found["space"] = " ".join(given.get("space", [base["space"]]))
    space = parse_space(found["space"])
    nn.choose("strategy", found["strategy"], STRATEGIES)
    found["seed"] = train.check_setting("seed", found["seed"])
    fixed = {name: value for name, value in given.items() if name in train.SETTINGS and name != "seed"}
    rung = [[given["best"], fixed.pop("epochs", 1)]] if "best" in given else []
    if rung and base is DEFAULT_SEARCH:
        raise ValueError("--best: goes on with a search, with --resume")
    for name in fixed:
        if name in space:
            raise ValueError(f"{train.flag(name)}: {name} is searched: {found['space']} (see --space)")
    settings = {**base["settings"], **fixed}
    found["settings"] = {name: train.check_setting(name, settings[name]) for name in settings}
    if found["strategy"] == "halving" and "epochs" in space:
        raise ValueError("--space: halving itself finds the epochs of each trial; see --epochs")
    if found["strategy"] == "grid" and "trials" in given:
        raise ValueError("--trials: a grid has one for each combination of its lists")
    runs = check_runs(found, {**space, **fixed})
    found["paired"] = runs > 1 if found["paired"] is None else found["paired"]
    found["trials"] = check_count("--trials", found["trials"], MOST_IN_ALL // runs)
    if (every := combinations(found, space)) is not None:
        found["trials"] = len(every) if found["strategy"] == "grid" else min(found["trials"], len(every))
    found["further"] = check_further([*base["further"], *rung], found, space)
    return found


def check_runs(definition, asked):
    """How many runs each combination of settings has, which must go with what else is asked for."""
    definition["repeat"] = check_count("--repeat", definition["repeat"], nn.MOST_PAIRS)
    runs, folds = runs_of(definition), definition["settings"].get("folds")
    if "fold" in asked or (folds and "val_size" in asked) or (runs > 1 and "seed" in asked):
        raise ValueError("--repeat or --folds: they go with no --fold, --val-size or seeds of your own")
    if folds and definition["repeat"] > 1:
        raise ValueError("--repeat: the folds are the repeats; leave out --repeat, or --folds")
    return check_count("--folds", runs, nn.MOST_PAIRS)


def runs_of(definition):
    """How many runs each combination of settings has."""
    return definition["settings"].get("folds") or definition["repeat"]


def check_further(rungs, definition, space):
    """The checked rungs of --best; the same command again, after it was stopped, adds none."""
    settings = {**train.DEFAULTS, **definition["settings"]}
    found, done = [], settings["epochs"]
    for count, epochs in rungs:
        rung = [check_count("--best", count, definition["trials"]), train.check_setting("epochs", epochs)]
        if rung in found[-1:]:
            continue
        if rung[1] <= done or "epochs" in space:
            raise ValueError(f"--best: needs --epochs above {done}, the same for all trials")
        if {"linear", "cosine"} & {settings["lr_schedule"], *space.get("lr_schedule", ())}:
            raise ValueError("--best: lr has fallen to 0 along the schedule; search anew with more --epochs")
        found, done = [*found, rung], rung[1]
    return found


def check_count(flag, value, most=math.inf):
    try:
        return train.number(1, most, whole=True)(value)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def trial_settings(definition):
    """The checked settings of each trial, as a list; its first is that of trial 1.

    Trial i draws its seed and its settings from ``np.random.default_rng([seed, i])``. Counting
    from 1 matters: a seed sequence that ends in 0 is the same as one without that 0. Of a finite
    space it draws among the combinations that no earlier trial has.
    """
    space, found = parse_space(definition["space"]), []
    every = combinations(definition, space)
    for number in range(1, definition["trials"] + 1):
        rng = np.random.default_rng([definition["seed"], number])
        seeds = {"split_seed": definition["seed"], "seed": int(rng.integers(2**32))}
        if every is None:
            drawn = {name: draw(dimension, rng) for name, dimension in space.items()}
        else:
            drawn = every.pop(0 if definition["strategy"] == "grid" else rng.integers(len(every)))
        _, used = without_idle(drawn, definition, space)
        try:
            settings = train.check_settings(seeds | used)
            if not settings["val_size"]:
                raise ValueError("--val-size: a search needs validation images")
        except ValueError as error:
            words = "  ".join(f"{name} {short(value, 3)}" for name, value in drawn.items())
            raise ValueError(f"trial {number} ({words}): {error}") from None
        found.append(settings)
    return found


def run_settings(settings, definition, repeat):
    """The settings of a trial's run in a repeat or fold: the same seed for all trials, its own fold."""
    if repeat > 1 or definition["paired"]:
        rng = np.random.default_rng([definition["seed"], 0, 0, repeat])
        settings = {**settings, "seed": int(rng.integers(2**32))}
    if definition["further"]:
        settings = {**settings, "epochs": definition["further"][-1][1]}
    return {**settings, "fold": repeat} if settings["folds"] else settings


# --- its space --------------------------------------------------------------------------------


def parse_space(text):
    """A search space as a dict: name -> list of its choices, or dict of ``low``, ``high`` and ``log``.

    ``lr=0.15:0.25`` is uniform in [low, high), ``weight_decay=1e-7:1e-4:log`` in the logarithm, of whole
    numbers where the setting is one; ``hidden=512x256,292 preprocess=scale,scale+center`` are choices.
    """
    space = {}
    for part in text.split():
        name, given, values = part.partition("=")
        try:
            nn.choose("setting", name, train.SETTINGS)
            if not given:
                raise ValueError("its values are missing; an example: lr=0.15:0.25")
            if name in space:
                raise ValueError(f"{name} is in the space twice")
            if name in ("size", "transpose", "folds", "fold"):
                raise ValueError(f"all trials have the same; see {train.flag(name)}")
            check = train.SETTINGS[name][1]
            is_range = ":" in values and "," not in values
            space[name] = parse_range(values, check) if is_range else parse_choices(values, check)
        except ValueError as error:
            raise ValueError(f"--space {part:.80}: {error}") from None
    if not space:
        raise ValueError("--space: there is no setting to search; an example: lr=0.15:0.25")
    return space


def parse_range(text, check):
    low, high, *rest = text.split(":")
    if rest not in ([], ["log"]):
        raise ValueError("a range is low:high or low:high:log")
    ends = [check(low), check(high)]
    low, high = (end[0] if isinstance(end, list) and len(end) == 1 else end for end in ends)  # of hidden
    if type(low) not in (int, float) or type(low) is not type(high):
        raise ValueError("only two numbers, or two shares below 1, make a range; list the choices: a,b,c")
    if low >= high:
        raise ValueError("the range is empty: its low end must be below its high end")
    if rest and low <= 0:
        raise ValueError("a log range must start above 0")
    return {"low": low, "high": high, "log": bool(rest)}


def parse_choices(text, check):
    choices = [check(word) for word in text.split(",")]
    if twice := [data.setting_text(choice) for choice in choices if choices.count(choice) > 1]:
        raise ValueError(f"{twice[0]:.80} is in the list twice")
    return choices


SWITCHES = {"lr_schedule", "optimizer", "momentum", "hidden", "patience", "augment"}  # what idle looks at


def idle(settings):
    """Names of the settings that the others switch off, such as the decay of a constant schedule."""
    s = {**train.DEFAULTS, **settings}
    options = {name: set(names) for name, (_, names, *_) in train.OPTIMIZERS.items()}
    off = set.union(*options.values()) - options[s["optimizer"]]
    switched_on = {
        ("nesterov",): s["momentum"] and "momentum" not in off,
        ("lr_decay",): s["lr_schedule"] in train.LR_DECAYS,
        ("lr_step",): s["lr_schedule"] == "step",
        ("dropout", "max_norm"): s["hidden"],
        ("min_delta",): s["patience"],
        tuple(data.STRENGTHS): set(s["augment"]) & set(data.DISTORTIONS),
    }
    return off.union(*(names for names, on in switched_on.items() if not on))


def without_idle(drawn, definition, space):
    """What is drawn, and then all that is fixed, but for what is switched off, if a switch is searched."""
    settings = {**definition["settings"], **drawn}
    off = idle(settings) if SWITCHES & space.keys() and definition["distinct"] else ()
    return [{n: v for n, v in found.items() if n not in off} for found in (drawn, settings)]


def combinations(definition, space):
    """The different combinations of lists, as dicts; None where a random search has a range, or too many."""
    ranges = [name for name, dimension in space.items() if isinstance(dimension, dict)]
    size = 0 if ranges else math.prod(map(len, space.values()))
    if definition["strategy"] == "grid":
        if ranges:
            raise ValueError(f"--space: a grid needs a list of values for {ranges[0]}, not a range")
        check_count("--trials", size, MOST_IN_ALL // runs_of(definition))
    elif not 0 < size <= MOST_IN_ALL or not definition["distinct"]:
        return None
    every = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    every = [without_idle(drawn, definition, space)[0] for drawn in every]
    return list({str(sorted(drawn.items())): drawn for drawn in every}.values())


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


# --- workers: on this machine, or on a cluster ------------------------------------------------
#
# Both give the same dict: ``submit(function, *args) -> Future`` of concurrent.futures;
# ``capacity() -> int``, how many trials can run at once; ``source(config)``, a function that gives a
# trial its images, on the worker; ``lost``, the exception of a future of which several workers died.

SPLIT_SETTINGS = ("dataset", "val_size", "train_size", "holdout", "folds", "fold", "split_seed", "preprocess")
SPLIT_PARTS = ("train", "val")
ONE_THREAD = {f"{name}_THREADS": "1" for name in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM")}
TRIES = 2  # so many workers may die before a trial has failed


@contextlib.contextmanager
def local_workers(count, folder, datasets):
    """``count`` processes with one BLAS thread each; they end with the block, however it ends.

    The images are prepared once for all trials with the same SPLIT_SETTINGS, and lie in ``folder``.
    """
    splits = {}

    def source(config):
        key = str([config[name] for name in SPLIT_SETTINGS])
        key += str([bool(config[name]) for name in ("augment", "adversarial")])  # see train.prepare
        if key not in splits:
            sets = train.prepare(datasets[config["dataset"]], config, SPLIT_PARTS)
            splits[key] = save_sets(folder / str(len(splits)), sets)
        return functools.partial(load_sets, splits[key])

    shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed
    lost = concurrent.futures.BrokenExecutor
    try:
        with _processes(count) as submit:
            yield {"submit": submit, "capacity": lambda: count, "source": source, "lost": lost}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _processes(count):
    """``submit(function, *args) -> Future`` on processes of which each has pipes of its own.

    Such a pipe breaks when its process dies, even in the middle of a message; the processes of a
    ProcessPoolExecutor share one that the parent keeps open, and waits at forever. A process ends when its
    pipe does, so none outlives the parent, however that dies.
    """
    processes, idle, closing = [], [], threading.Event()

    def call(*function_and_args):  # on a thread that waits for the answer
        for _ in range(TRIES):
            try:
                process = idle.pop()
            except IndexError:
                process = start_process()
                processes.append(process)
            if closing.is_set():  # it may have come too late to be killed with the others
                process.kill()
            try:
                pickle.dump(function_and_args, process.stdin)
                process.stdin.flush()
                result, error = pickle.load(process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError):
                process.kill()
                if closing.is_set():
                    break
                continue
            idle.append(process)
            if error:
                raise error
            return result
        raise concurrent.futures.BrokenExecutor("its workers died")

    threads = concurrent.futures.ThreadPoolExecutor(count)
    try:
        yield functools.partial(threads.submit, call)
    finally:
        closing.set()
        for process in list(processes):
            process.kill()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.communicate()  # closes the pipes


def start_process():
    """A process that answers calls; in a session of its own, where no Ctrl-C reaches it."""
    if hasattr(signal, "pthread_sigmask"):  # it inherits this: a Ctrl-C may come before it is apart
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    main = getattr(sys.modules["__main__"], "__file__", None)
    code = f"import sys; sys.path[:] = {sys.path!r}; import search; search.answer_calls({main!r})"
    pipe, environment = subprocess.PIPE, {**os.environ, **ONE_THREAD}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=environment, start_new_session=True
    )


def answer_calls(main):
    """What a process of ``_processes`` does: answer the calls on its standard input until that ends."""
    calls, answers = queue.SimpleQueue(), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed may get among the answers
    if main:  # the parent's script, where functions and activations of its own may be
        vars(sys.modules["__main__"]).update(runpy.run_path(main, run_name="__mp_main__"))

    def listen():
        calls.put(pickle.load(sys.stdin.buffer))

    def answer():
        function, *args = calls.get()
        try:
            outcome = function(*args), None
        except Exception as error:  # it is raised again where the call came from
            outcome = None, error
        pickle.dump(outcome, answers)
        answers.flush()

    def again_and_again(function):
        try:
            while True:
                function()
        finally:
            os._exit(1)  # a pipe has broken: the parent has ended, it may be in the middle of a call

    threading.Thread(target=again_and_again, args=[listen], daemon=True).start()
    again_and_again(answer)


def save_sets(folder, sets):
    """Write what ``train.prepare`` gives so that processes can share it in memory; returns the folder.

    Each array is a file, to be mapped; pickle writes the rest without them (PEP 574).
    """
    folder.mkdir(parents=True)
    arrays = []
    (folder / "rest.pickle").write_bytes(pickle.dumps(sets, protocol=5, buffer_callback=arrays.append))
    for number, array in enumerate(arrays):
        (folder / f"{number:03}.array").write_bytes(array.raw())
    return folder


def load_sets(folder):
    """What ``save_sets`` has written, its arrays mapped into memory, read-only."""
    arrays = [np.memmap(path, mode="r") for path in sorted(folder.glob("*.array"))]
    return pickle.loads((folder / "rest.pickle").read_bytes(), buffers=arrays)


ANSWER_SECONDS = 20  # for the cluster to answer
GONE = (concurrent.futures.CancelledError, asyncio.CancelledError)  # of a client without a scheduler


@contextlib.contextmanager
def cluster_workers(address, data_dir):
    """The workers of a Dask cluster, which get this program, and find the data themselves.

    Dask itself runs the trial of a lost worker again on another one, and gives it up
    (KilledWorker) after several.
    """
    try:
        import distributed  # late: only needed here
    except ModuleNotFoundError as error:
        error.msg = "--scheduler needs Dask on every machine: pip install distributed"
        raise
    for name in ("distributed.client", "tornado.application", "asyncio"):  # their errors are raised, too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=ANSWER_SECONDS)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"there is no Dask scheduler at {address}: {error}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=ANSWER_SECONDS)
        except (TimeoutError, concurrent.futures.TimeoutError):
            raise ConnectionError(f"no worker has joined the scheduler at {address}") from None
        for name in ("nn.py", "data.py", "train.py", "search.py"):  # each after those that it imports
            client.upload_file(str(pathlib.Path(__file__).resolve().parent / name))
        try:
            yield {
                "submit": functools.partial(client.submit, pure=False),
                "capacity": lambda: max(1, sum(client.nthreads().values())),
                "source": lambda config: functools.partial(own_sets, config, data_dir),
                "lost": distributed.scheduler.KilledWorker,
            }
        except (*GONE, distributed.comm.CommClosedError):
            kept = "every trial that has ended is kept, and --resume runs the others"
            raise ConnectionError(f"the scheduler at {address} is gone; {kept}") from None


def own_sets(config, data_dir):
    """What ``train.prepare`` gives, on a cluster's worker: from the data that its machine has."""
    worker, name = f"the worker on {platform.node()}", config["dataset"]
    try:
        dataset = train.load_dataset(config, data_dir, download=False)
    except (ValueError, OSError) as error:
        where = "put it there, or name the folder that it has on the workers with --data-dir"
        raise FileNotFoundError(f"{worker} does not have the data set {name}: {error}; {where}") from None
    if dataset["sha256"] != config["data"]["sha256"]:
        raise ValueError(f"{worker} has another data set under the name {name}")
    return train.prepare(dataset, config, SPLIT_PARTS)


# --- the files of a search --------------------------------------------------------------------

FIGURES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
NUMBER = (int, float)
DEFINITION = {"space": str, "strategy": str, "trials": int, "repeat": int, "seed": int, "settings": dict}
DEFINITION |= {"paired": bool, "distinct": bool, "further": [[int]], "data": dict}
TABLE_ROW = {"trial": int, "status": str, "seed": int, "epochs": int, "seconds": NUMBER}
TABLE_ROW |= {"repeat?": int, "fold?": int}


def check_free(out):
    """Raise a ValueError where there is a search already: a new one does not overwrite it."""
    if (out / "search.json").exists():
        raise ValueError(f"{out} holds a search already: go on with it (--resume), or name another --out")


def resumed(out, given):
    """``(definition, data)`` of the search in ``out`` with what is given anew: more of the same, or nothing.

    ``data`` has the SHA-256 of the files of each data set. ValueError where it is another search.
    """
    path = out / "search.json"
    record = data.load_json(path)
    nn.check(record, dict, path)
    record = {**DEFAULT_SEARCH, "paired": False, "distinct": False, **record}  # older ones have less
    nn.check(record, DEFINITION, path)
    record["settings"].setdefault("holdout", "random")  # as searches that do not say it
    try:
        definition = define(given, {name: record[name] for name in DEFAULT_SEARCH})
    except ValueError as error:
        raise ValueError(f"the search in {out} cannot go on: {error}") from error
    new, old = ({**train.DEFAULTS, **d["settings"], **d} for d in (definition, record))
    more = ("trials", "repeat") if new["strategy"] != "halving" else ()  # the runs so far are the same then
    for name in new:
        same = new[name] >= old[name] if name in more else new[name] == old[name]
        if name not in ("settings", "further") and not same:
            another = f"its {name} is {old[name]}, not {new[name]}"
            raise ValueError(f"{out} holds another search: {another}; name another folder with --out")
    return definition, record["data"]


def begin(out, definition, datasets):
    """Write search.json, and remove what a search that was killed left half written."""
    for half in out.glob("trials/*/*.part"):
        half.unlink()
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    sums = {dataset["name"]: dataset["sha256"] for dataset in datasets.values()}
    data.save_json(out / "search.json", {**definition, "data": sums, "versions": versions})


def trial_folder(out, trial):
    return out / "trials" / trial_name(trial, digits=3)


def save_trial(out, trial, state, steps, epochs_before):
    """Write a trial's folder: that of a run of train.py."""
    folder, config, rows = trial_folder(out, trial), trial["config"], trial["rows"]
    folder.mkdir(parents=True, exist_ok=True)
    if state:
        train.save_epoch(folder, state, rows, config, steps, len(rows) - epochs_before)
    train.save_record(folder, config, trial["status"], rows, state and state["best"])


def save_table(out, trials, searched):
    """Write trials.csv: the ranking, and below it the trials that are not ranked."""
    ranked = {trial_name(trial): trial for trial in itertools.chain(*ranking(trials))}
    trials = {**ranked, **{trial_name(trial): trial for trial in trials if trial["status"]}}.values()
    runs = [run_column(trial) for trial in trials if trial["repeat"] > 1][:1]
    columns = ["trial", *runs, "status", "seed", *searched, "epochs", *FIGURES, "seconds"]
    data.save_rows(out / "trials.csv", map(table_row, trials), list(dict.fromkeys(columns)))


def run_column(trial):
    """What the runs of a group are called."""
    return "fold" if trial["config"]["folds"] else "repeat"


def table_row(trial):
    return {
        **(trial["rows"] or [{}])[-1],
        **{name: data.setting_text(trial["config"][name]) for name in train.SETTINGS},
        "trial": trial["number"],
        run_column(trial): trial["repeat"],
        "status": trial["status"],
        "epochs": len(trial["rows"]),
        "seconds": round(trial["seconds"], 3),
    }


def save_groups(out, trials, ranked, compared, searched):
    """Write groups.csv: a row for each combination, the best first, those that cannot win last."""
    rows = {row["trial"]: table_row(group[0]) | row for group, row in zip(ranked, compared)}
    for trial in trials:
        if trial["number"] not in rows and trial["status"] not in RANKED:
            rows[trial["number"]] = table_row(trial) | dict.fromkeys(FIGURES)
    columns = ["trial", "status", "runs", *searched, "epochs", *FIGURES, "val_sd", "difference", "p"]
    data.save_rows(out / "groups.csv", rows.values(), list(dict.fromkeys(columns)))


def load_trials(out, trials):
    """The trials with what trials.csv and their folders say about those that have run.

    ValueError where a file is damaged, or does not belong to these trials.
    """
    path, found = out / "trials.csv", {(trial["number"], trial["repeat"]): trial for trial in trials}
    for row in data.load_rows(path, words=True) if path.exists() else []:
        nn.check(row, TABLE_ROW, path)
        key, status = (row["trial"], row.get("repeat") or row.get("fold") or 1), row["status"]
        trial = found.get(key)
        if not trial or status not in STATUSES or row["seed"] != trial["config"]["seed"]:
            raise ValueError(f"{path} is not the table of this search: see its trial {row['trial']}")
        history = trial_folder(out, trial) / "history.csv"
        rows = data.load_rows(history)[: row["epochs"]] if row["epochs"] else []
        if len(rows) != row["epochs"] or (status in RANKED and not rows):
            raise ValueError(f"{history} does not hold all of {row['epochs']} epochs")
        nn.check(rows, [{"val_loss": NUMBER, "val_accuracy": NUMBER}], history)
        nn.check(rows[-1:] if status in RANKED else [], [dict.fromkeys(FIGURES, NUMBER)], history)
        if status == "finished" and not has_ended(rows, trial["config"]):  # --best gives it more epochs
            status = "stopped"
        found[key] = {**trial, "rows": rows, "status": status, "seconds": row["seconds"]}
    return list(found.values())


# --- what is printed --------------------------------------------------------------------------


def short(value, digits=4):
    return f"{value:.{digits}g}" if isinstance(value, float) else data.setting_text(value)


def trial_line(trial, trials, searched, done):
    """``7/50 trial 6  val 97.91%  rank 2  lr 0.2186  hidden 280``, of those that have ended."""
    words = [f"{done} trial {trial_name(trial)}"]
    if len(trial["rows"]) != trial["config"]["epochs"]:
        words.append(f"epoch {len(trial['rows'])}")
    if trial["status"] in RANKED:
        words.append(f"val {100 * trial['rows'][-1]['val_accuracy']:.2f}%")
    else:
        words.append({"diverged": "diverged", "failed": "FAILED: its workers died"}[trial["status"]])
    numbers = [group[0]["number"] for group in ranking(trials)]
    if trial["number"] in numbers:
        words.append(f"rank {numbers.index(trial['number']) + 1}")
    used = {name: trial["config"][name] for name in searched if trial["config"][name] is not None}
    line = "  ".join([*words, *(f"{name} {short(value, 3)}" for name, value in used.items())])
    return line if len(line) < 80 else textwrap.shorten(line, 79, placeholder=" ...")


def live_line(trials, done, running, until, seconds):
    """Trials done and running, the best so far, and the time left, where it is known."""
    words = [f"{done} trials done" + (f" to epoch {until}" if until else ""), f"{running} running"]
    for best in ranking(trials)[:1]:
        accuracy = statistics.fmean(trial["rows"][-1]["val_accuracy"] for trial in best)
        words.append(f"best {100 * accuracy:.2f}% (trial {best[0]['number']})")
    if seconds is not None:
        words.append(f"{datetime.timedelta(seconds=round(seconds))} left")
    return "  ".join(words)


def ranking_text(ranked, compared, searched, top=10):
    """The first rows of the ranking as an aligned table, with as many columns as fit a terminal."""
    names = [name for name in searched if name != "epochs"]  # shown anyway: those done
    spread = ["sd", "to best", "p"] if len(ranked[0]) > 1 else []
    lines = [["rank", "trial", "epochs", "val %", *spread, *names, "train %", "val loss"]]
    for rank, (group, row) in enumerate(zip(ranked[:top], compared), start=1):
        words = [str(rank), str(row["trial"]), str(row["epochs"]), f"{100 * row['val_accuracy']:.2f}"]
        if spread:
            words.append(f"{100 * row['val_sd']:.2f}")
            words += ["", ""] if row["p"] is None else [f"{100 * row['difference']:+.2f}", f"{row['p']:.2g}"]
        words += [short(group[0]["config"][name]) for name in names]
        lines.append([*words, f"{100 * row['train_accuracy']:.2f}", f"{row['val_loss']:.4f}"])
    wide = [max(map(len, column)) for column in zip(*lines)]
    ends = list(itertools.accumulate(width + 2 for width in wide))
    count = len(ends) if ends[-1] < 82 else sum(end < 77 for end in ends)
    more = ["..."] * (count < len(ends))
    lines = [[word.rjust(w) for word, w in zip(line[:count], wide)] for line in lines]
    return "\n".join("  ".join([*line, *more]) for line in lines)


# --- command line -----------------------------------------------------------------------------


def make_trials(definition, data_dir, known, workers=1):
    """``(trials, datasets)``: all trials before they have run, and the data sets by name.

    ``workers`` is how many of them this machine will run at once: a MemoryError where they do not fit.
    ValueError for settings that cannot be or do not fit the data, and for data that are not ``known``.
    """
    settings, runs, loaded, trials = trial_settings(definition), runs_of(definition), {}, []
    at_once = min(workers, len(settings) * runs)
    for s in settings:
        train.check_memory(s, *train.least_size(s["dataset"]), at_once)
    for number, s in enumerate(settings, start=1):
        if s["dataset"] not in loaded:
            loaded[s["dataset"]] = train.load_dataset(s, data_dir)
        dataset = loaded[s["dataset"]]
        if known is not None and known.get(dataset["name"]) != dataset["sha256"]:
            raise ValueError(f"the data set {dataset['name']} is not the one that the search used")
        train.check_memory(s, *dataset["train_images"].shape, len(dataset["class_names"]), at_once)
        train.class_weights(dataset["train_labels"], len(dataset["class_names"]), s)
        for repeat in range(1, runs + 1):
            config = train.run_config(run_settings(s, definition, repeat), dataset)
            empty = {"config": config, "rows": [], "status": None, "seconds": 0.0}
            trials.append({"number": number, "repeat": repeat, **empty})
    for name, steps in {(s["dataset"], tuple(s["preprocess"])) for s in settings}:
        data.fit_steps(steps, loaded[name]["train_images"][:1], loaded[name]["image_shape"])
    return trials, {dataset["name"]: dataset for dataset in loaded.values()}


def retrain(out, group, data_dir):
    """Train the best group's network again, on all training images; returns the command that does it.

    It runs for as many epochs as those trials did, or for all where lr falls along them to the last.
    """
    default = ("train_size", "split_seed", "folds", "fold", "patience", "min_delta")
    own = {name: group[0]["config"][name] for name in train.SETTINGS if name not in default}
    settings = {**train.DEFAULTS, **own, "val_size": 0}
    if settings["lr_schedule"] not in ("linear", "cosine"):
        settings["epochs"] = round(statistics.fmean(len(trial["rows"]) for trial in group))
    words = train.as_flags(settings) + (["--data-dir", data_dir] if data_dir else [])
    there = all((out / name).exists() for name in ("last.pkl", "config.json"))  # or it was killed between
    same = there and settings.items() <= train.load_settings(out / "config.json").items()
    train.main([*words, "--out", str(out), "--quiet", *["--resume"] * same])
    return data.command_text("python", "train.py", *words)


EXAMPLES = """examples:
  python search.py                       50 random trials of 50 epochs
  python search.py --strategy halving    most end early: a sixth of the epochs
  python search.py --space lr=0.01:0.5:log hidden=128,512x256 --trials 20
  python search.py --strategy grid --space dropout=0,0.2 batch_size=32,128
  python search.py --strategy grid --space init=he,xavier --repeat 5 --test
  python search.py --resume --best 3 --epochs 100
  python search.py --scheduler tcp://host:8786    the same on a Dask cluster"""


def add_flags(parser):
    group = parser.add_argument_group("search")
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--space", nargs="+", metavar="NAME=VALUES",
        help="what to search, the rest being the same in all trials: ranges low:high or low:high:log, and "
        "lists a,b,c (two layers: 512x256; two steps of preprocessing: scale+center) "
        f"(default: {DEFAULT_SEARCH['space']})",
    )  # fmt: skip
    strategies = "; ".join(f"{name}: {what}" for name, what in STRATEGIES.items())
    add("--strategy", metavar="NAME", help=f"{strategies} (default: random)")
    add("--trials", metavar="N", help="trials of random and halving (default: 50)")
    add("--repeat", metavar="N", help="runs of every trial, with other seeds (default: 1)")
    add("--best", metavar="N", help="with --resume: so many of the best go on to --epochs")
    add = group.add_argument
    add("--test", action="store_true", help="at the end, the test accuracy of every trial, too")
    add("--workers", metavar="N", help="processes on this machine (default: one for each core)")
    add("--scheduler", metavar="ADDRESS", help="run on this Dask cluster: tcp://host:8786")
    add(
        "--resume",
        action="store_true",
        help="run what the search in --out lacks, or more --trials or --repeat",
    )
    add("--out", metavar="DIR", default="results/search", help="folder of the search (default: %(default)s)")
    train.add_settings(parser, {"val_size": 0.2, "seed": "0, of the whole search"})


def main(argv=None):
    parser = data.make_parser("Train many networks and rank them by their validation accuracy.", EXAMPLES)
    add_flags(parser)
    flags = data.parse_flags(parser, argv)
    names = {*DEFAULT_SEARCH, *train.SETTINGS, "best"}
    given = {name: value for name, value in vars(flags).items() if name in names}
    if flags.workers is not None and flags.scheduler:
        raise ValueError("--workers: is for this machine; the cluster of --scheduler has its own")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = check_count("--workers", cores if flags.workers is None else flags.workers)
    out, known = pathlib.Path(flags.out), None
    if flags.resume:
        train.check_resumable(out, "search.json", "search")
        definition, known = resumed(out, given)
    else:
        check_free(out)
        definition = define(given, DEFAULT_SEARCH)
    trials, datasets = make_trials(definition, flags.data_dir, known, 1 if flags.scheduler else count)
    if flags.test and not all(len(dataset["test_images"]) for dataset in datasets.values()):
        raise ValueError("--test: there are no test images")
    titles = " and ".join(dataset["title"] for dataset in datasets.values())
    what = f"{definition['strategy']} search on {titles}: {data.count(definition['trials'], 'trial')}"
    each = f", {runs_of(definition)} {run_column(trials[0])}s of each" if runs_of(definition) > 1 else ""
    folded = {"subsequent_indent": "  ", "break_on_hyphens": False, "break_long_words": False}
    data.say(textwrap.fill(f"{what} of {definition['space']}{each}", 79, **folded))
    if flags.scheduler:
        opened = cluster_workers(flags.scheduler, flags.data_dir)
    else:
        opened = local_workers(min(count, len(trials)), out / ".split", datasets)
    try:
        with train.locked(out), data.progress_line() as show, opened as workers:
            if flags.resume:
                trials = load_trials(out, trials)
            else:
                check_free(out)  # another one may have been there meanwhile
            begin(out, definition, datasets)
            searched = list(parse_space(definition["space"]))
            before = trials
            trials = run_search(trials, rungs(definition), workers, out, searched, show)
            if trials != before:
                (out / "test.csv").unlink(missing_ok=True)  # it was of other params
            best = conclude(out, trials, datasets, searched, flags.test)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"every trial that has ended is in {out}; --resume runs the others") from None
    data.say(f"trial {best[0]['number']} is the best; its settings, trained on all training images:")
    data.say(f"to train it again: {retrain(out, best, flags.data_dir)}")


def conclude(out, trials, datasets, searched, test):
    """Print the ranking and what it shows, and write what belongs to it; returns the best group."""
    ranked = ranking(trials)
    if not ranked:
        raise ValueError(f"every trial has failed; see {out / 'trials.csv'}")
    compared, kind, table = compare(ranked), run_column(trials[0]), "trials.csv"
    if len(ranked[0]) > 1:
        save_groups(out, trials, ranked, compared, searched)
        table = "groups.csv"
    data.say(f"\n{ranking_text(ranked, compared, searched)}\n(all of them: {out / table})\n")
    data.say(f"{textwrap.fill(verdict(compared, kind), 79)}\n")
    if kind == "fold":
        report_folds(out, ranked[0], datasets)
    if test:
        report_test(out, ranked, datasets)
    return ranked[0]


if __name__ == "__main__":
    sys.exit(data.run_script(main))
