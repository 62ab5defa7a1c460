"""Many training runs: find the best settings, and see how far they can be told apart.

    python search.py                                     50 random trials of 50 epochs
    python search.py --strategy halving                  most trials end early: a sixth of the epochs
    python search.py --strategy grid --space momentum=0,0.9 batch_size=10,100 --lr 0.1
    python search.py --strategy grid --space activation=relu,tanh --repeat 5    five seeds of each
    python search.py --scheduler tcp://host:8786         the same trials on a Dask cluster

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
import collections
import concurrent.futures
import contextlib
import functools
import itertools
import logging
import math
import os
import pathlib
import pickle
import platform
import queue
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
import zipfile

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

    Parameters
    ----------
    plan : list of tuple
        From ``rungs``.
    workers : dict
        From ``local_workers`` or ``cluster_workers``.
    searched : list of str
        Names of the settings that differ from trial to trial.
    show : function
        From ``data.progress_line``.
    """
    found = {trial_name(trial): trial for trial in trials}
    started, reached, worked = time.perf_counter(), 0, 0
    for rung, (count, until) in enumerate(plan):
        chosen = best_at(found.values(), reached, count)
        missing = {trial_name(trial): trial for trial in chosen if is_missing(trial, until)}
        for running, ended in run_trials(list(missing.values()), until, workers, out):
            for trial, result in ended:
                before = missing.pop(trial_name(trial))
                save_trial(out, trial, result, len(before["rows"]))
                found[trial_name(trial)] = trial
                save_table(out, found.values(), searched)
                worked += len(trial["rows"]) - len(before["rows"])
                show("")
                done = f"{len(chosen) - len(missing)}/{len(chosen)}"
                data.say(trial_line(trial, found.values(), searched, done))
            left = epochs_left(missing.values(), plan[rung:], len(trials) // plan[0][0])
            seconds = (time.perf_counter() - started) / worked * left if worked else None
            done = f"{len(chosen) - len(missing)}/{len(chosen)}"
            show(live_line(found.values(), done, running, until, seconds))
        reached = until
    return list(found.values())


def trial_name(trial):
    """``7``; ``7-2`` where it is a repeat after the first, or another fold."""
    return f"{trial['number']}-{trial['repeat']}" if trial["repeat"] > 1 else str(trial["number"])


def rungs(strategy, trials, epochs, further=()):
    """How many trials go on to which epoch: ``[(50, 2), (17, 6), (6, 50)]``.

    Successive halving (Jamieson & Talwalkar 2016) with the third instead of the half, as advised
    for Hyperband (Li et al. 2018): a third of the trials, rounded up, get three times the epochs.
    The last few are not thinned out again but trained to the end: by then they differ less than
    the same settings with another seed. The other strategies have one rung; its epoch None stands
    for the last of each trial. ``further`` are the rungs of --best.
    """
    if strategy != "halving":
        return [(trials, epochs if further else None), *further]
    counts, budgets = [trials], [epochs]
    while counts[-1] >= ETA and budgets[-1] > 1:
        counts.append(math.ceil(counts[-1] / ETA))
        budgets.append(math.ceil(budgets[-1] / ETA))
    plan = list(zip(counts, reversed(budgets)))
    return [*(plan if len(plan) < 3 else [*plan[:-2], (plan[-2][0], epochs)]), *further]


def epochs_left(missing, plan, repeats=1):
    """The epochs that ``missing`` trials of a plan's first rung lack, and those of its later rungs."""
    until = plan[0][1]
    left = sum((until or trial["config"]["epochs"]) - len(trial["rows"]) for trial in missing)
    later = sum(count * (end - start) for (_, start), (count, end) in itertools.pairwise(plan))
    return left + repeats * later


def is_missing(trial, until):
    """Whether a trial has yet to run to the epoch ``until``, or to its end where that is None."""
    if trial["status"] in (None, "failed"):
        return True
    return trial["status"] == "stopped" and len(trial["rows"]) < (until or trial["config"]["epochs"])


def groups_of(trials):
    """The trials of each number, as a list of lists in order of number and repeat."""
    found = {}
    for trial in sorted(trials, key=lambda trial: (trial["number"], trial["repeat"])):
        found.setdefault(trial["number"], []).append(trial)
    return list(found.values())


def best_first(group, epochs=None):
    """Sort key: mean validation accuracy after so many epochs (None: the last), ties by mean loss."""
    rows = [trial["rows"][:epochs][-1] for trial in group]
    return -mean_of(rows, "val_accuracy"), mean_of(rows, "val_loss"), group[0]["number"]


def mean_of(rows, column):
    return math.fsum(row[column] for row in rows) / len(rows)


def ranking(trials):
    """The groups that can win, best first; behind all that finished, those that came further.

    A group of which one has diverged or failed cannot win; trials that have not run do not count yet.
    """
    groups = groups_of(trial for trial in trials if trial["status"])
    able = [group for group in groups if all(trial["status"] in RANKED for trial in group)]
    return sorted(able, key=lambda group: (-came(group), *best_first(group)))


def came(group):
    """The epoch that a group has come to; infinity where it finished, be it by early stopping."""
    return min(math.inf if t["status"] == "finished" else len(t["rows"]) for t in group)


def best_at(trials, epochs, count):
    """The trials of the ``count`` best groups after ``epochs``, first repeats first.

    A trial that ended by early stopping before that counts with its last epoch; a group with one that
    diverged or failed before that is out.
    """
    groups = groups_of(trials)
    if epochs:
        able = [all(len(t["rows"]) >= epochs or t["status"] in RANKED for t in group) for group in groups]
        groups = sorted(itertools.compress(groups, able), key=lambda group: best_first(group, epochs))
    chosen = itertools.chain(*groups[:count])
    return sorted(chosen, key=lambda trial: (trial["repeat"], trial["number"]))


def wait_for_one(futures, seconds):
    """The futures that are done, as soon as there is one, or after so many seconds.

    ``concurrent.futures.wait`` would do, but a Ctrl-C at the wrong moment leaves its locks held for ever.
    """
    deadline = time.monotonic() + seconds
    while not (done := [future for future in futures if future.done()]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return done


def run_trials(trials, until, workers, out):
    """Run trials up to an epoch.

    Yields
    ------
    running : int
        About once a second, and whenever a trial ends.
    ended : list of (trial, result)
        Those that have ended since; ``result`` is that of ``run_trial``, or None for a trial that
        failed: whose worker died, and the next one too.
    """
    waiting, running, ended = collections.deque(trials), {}, []
    deaths = collections.Counter()  # by name
    while waiting or running or ended:
        while waiting and len(running) < workers["capacity"]():
            trial = waiting.popleft()
            job = (trial["config"], *load_trial(out, trial), until, workers["source"](trial["config"]))
            running[workers["submit"](run_trial, *job)] = trial
        yield len(running), ended  # only now: the workers are busy while the caller writes
        done = wait_for_one(running, 1)
        ended = []
        for future in done:
            trial = running.pop(future)
            try:
                result = future.result()
                seconds = trial["seconds"] + result["seconds"]
                new = {"rows": result["rows"], "status": result["status"], "seconds": seconds}
                ended.append(({**trial, **new}, result))
            except workers["lost"]:
                deaths[trial_name(trial)] += 1
                if deaths[trial_name(trial)] < workers["tries"]:
                    waiting.appendleft(trial)
                else:
                    ended.append(({**trial, "status": "failed"}, None))


def run_trial(config, state, rows, until, source):
    """Train a trial up to an epoch, on a worker.

    Parameters
    ----------
    state, rows
        Where to go on from, and the history so far; None and no rows are the beginning.
    until : int or None
        The epoch to pause after; None is the trial's last.
    source : function
        Gives the training and the validation images, as ``train.prepare`` does.

    Returns
    -------
    dict
        ``state``, ``rows``, ``status``, ``steps`` of the preprocessing, and the ``seconds`` that this
        took. Only the last row has the loss and accuracy of the training images: they take as long as
        half a training epoch.
    """
    started = time.perf_counter()
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
    seconds = time.perf_counter() - started
    return {"state": state, "rows": rows, "status": status, "steps": sets["steps"], "seconds": seconds}


def has_ended(rows, config):
    return len(rows) == config["epochs"] or train.should_stop(rows, config)


# --- what the runs show -----------------------------------------------------------------------

LIKELY = 0.05  # a p above this is no evidence, by custom


def compare(ranked):
    """What there is to say of each group, the best first: rows of groups.csv without the settings.

    ``difference`` is that of the mean accuracy to the best group's, ``p`` that of an exact permutation
    test over the pairs of runs with the same seed or fold. They are None for the best itself, and where
    the epochs differ.
    """
    found, best = [], [trial["rows"][-1]["val_accuracy"] for trial in ranked[0]]
    for group in ranked:
        rows = [trial["rows"][-1] for trial in group]
        sd = nn.mean_and_sd([row["val_accuracy"] for row in rows])[1]
        row = {"trial": group[0]["number"], "runs": len(group), "epochs": max(len(t["rows"]) for t in group)}
        row |= {name: mean_of(rows, name) for name in FIGURES} | {"val_sd": sd, "difference": None, "p": None}
        if group is not ranked[0] and came(group) == came(ranked[0]):
            pairs = [own["val_accuracy"] - other for own, other in zip(rows, best)]
            row |= {"difference": sum(pairs) / len(pairs), "p": nn.permutation_test(pairs)}
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
    clear = named(row for row in others if row["p"] <= LIKELY)
    always = named(row for row in others if row["p"] > LIKELY and row["p"] == least)
    unclear = named(row for row in others if row["p"] > max(LIKELY, least))
    words = [f"{first} is better than {clear} by more than chance explains"] if clear else []
    if always:
        words.append(f"{first} was better than {always} in each {kind}, which is a hint but may be chance")
    if unclear:
        words.append(f"that it is better than {unclear} is not shown: the {kind}s differ by as much")
    why = f"with {runs} {kind}s the smallest possible p is 2/{2**runs} = {least:.2g}"
    why += f", above the usual limit of {LIKELY}" if least > LIKELY else ""
    why += "; each p is that of one comparison alone" if len(others) > 1 and clear else ""
    why += "; folds share training images, so that p comes out too small" if kind == "fold" else ""
    sentence = f"{'; '.join(words)} ({why})."
    return sentence[0].upper() + sentence[1:]


def named(rows):
    """``trials 3, 4 and 7``; the first five of many; nothing of none."""
    numbers = [str(row["trial"]) for row in rows]
    numbers[5:] = [f"{len(numbers) - 5} more"] if len(numbers) > 5 else []
    text = " and ".join(filter(None, [", ".join(numbers[:-1]), *numbers[-1:]]))
    return text and f"trial{'s' if len(numbers) > 1 else ''} {text}"


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
    predicted, rows = estimates.argmax(axis=1), []
    for i in np.flatnonzero(fold):
        own = f"{min(1, max(0, estimates[i, labels[i]])):.6g}"
        rows.append({"index": i, "label": labels[i], "prediction": predicted[i], "probability": own})
    data.save_rows(out / "oof.csv", rows, list(rows[0]))
    right = nn.accuracy(estimates[fold > 0], labels[fold > 0])
    data.say(f"out of fold trial {group[0]['number']} gets {100 * right:.2f}% right: {out / 'oof.csv'}\n")


def report_test(out, ranked, datasets, top=10):
    """Write test.csv, and print the test accuracy of the last params: looked at when the ranking is fixed."""
    rows, lines = [], []
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
    lines = ["test accuracy of the last params, the ranking being fixed:", *lines[:top]]
    data.say("\n".join([*lines, f"(all of them: {out / 'test.csv'})\n"]))


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
    """A checked definition of a search: what is given, over a base.

    Parameters
    ----------
    given : dict
        ``space`` (list of words), ``strategy``, ``trials``, ``repeat``, ``seed``, ``best`` (a number of
        trials that go on to ``epochs``), and any other of ``train.SETTINGS``, the same in all trials.
    base : dict
        Such as DEFAULT_SEARCH, with the same keys as the result.
    """
    found = {**base, **{name: given[name] for name in base if name in given}}
    found["space"] = " ".join(given["space"]) if "space" in given else base["space"]
    space = parse_space(found["space"])
    nn.choose("strategy", found["strategy"], STRATEGIES)
    found["seed"] = train.check_setting("seed", found["seed"])
    fixed = {name: value for name, value in given.items() if name in train.SETTINGS and name != "seed"}
    rung = [[given["best"], fixed.pop("epochs", 1)]] if "best" in given else []
    for name in fixed:
        if name in space:
            raise ValueError(f"{train.flag(name)}: {name} is searched: {found['space']} (see --space)")
    settings = {**base["settings"], **fixed}
    found["settings"] = {name: train.check_setting(name, settings[name]) for name in settings}
    if found["strategy"] == "halving" and "epochs" in space:
        raise ValueError("--space: halving itself finds the epochs of each trial; see --epochs")
    if found["strategy"] == "grid" and "trials" in given:
        raise ValueError("--trials: a grid has one for each combination of its lists")
    runs = check_runs(found, space, fixed)
    found["paired"] = runs > 1 if found["paired"] is None else found["paired"]
    found["trials"] = check_count("--trials", found["trials"], MOST_IN_ALL // runs)
    if (every := combinations(found, space)) is not None:
        found["trials"] = len(every) if found["strategy"] == "grid" else min(found["trials"], len(every))
    found["further"] = check_further([*base["further"], *rung], found, space)
    return found


def check_runs(definition, space, fixed):
    """How many runs each combination of settings has, which must go with the rest of the search."""
    definition["repeat"] = check_count("--repeat", definition["repeat"], nn.MOST_PAIRS)
    runs, folds = runs_of(definition), definition["settings"].get("folds")
    if "fold" in fixed or (folds and "val_size" in {**space, **fixed}) or (runs > 1 and "seed" in space):
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
    """The checked settings of the first run of each trial, as a list; its first is that of trial 1.

    Trial i draws its seed and its settings from ``np.random.default_rng([seed, i])``. Counting
    from 1 matters: a seed sequence that ends in 0 is the same as one without that 0. Of a finite
    space it draws among the combinations that no earlier trial has. Settings that the drawn ones switch
    off are left out.
    """
    space, fixed, found = parse_space(definition["space"]), definition["settings"], []
    every = combinations(definition, space)
    for number in range(1, definition["trials"] + 1):
        rng = np.random.default_rng([definition["seed"], number])
        seeds = {"split_seed": definition["seed"], "seed": int(rng.integers(2**32))}
        if definition["strategy"] == "grid":
            drawn = every[number - 1]
        elif every is not None:
            drawn = every.pop(rng.integers(len(every)))
        else:
            drawn = {name: draw(dimension, rng) for name, dimension in space.items()}
        used = without({**fixed, **drawn}, switched_off(definition, space, drawn))
        try:
            settings = run_settings(train.check_settings(seeds | used), definition, 1)
            if not settings["val_size"]:
                raise ValueError("--val-size: a search needs validation images")
        except ValueError as error:
            raise ValueError(f"trial {number} ({settings_text(drawn)}): {error}") from None
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
    """Read a search space; ValueError where it cannot be one.

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
    """
    space = {}
    for part in text.split():
        name, _, values = part.partition("=")
        try:
            nn.choose("setting", name, train.SETTINGS)
            if name in space:
                raise ValueError(f"{name} is in the space twice")
            if name in ("size", "transpose", "folds", "fold"):
                raise ValueError(f"all trials have the same; see {train.flag(name)}")
            check = train.SETTINGS[name][1]
            is_range = ":" in values and "," not in values
            space[name] = parse_range(values, check) if is_range else parse_choices(values, check)
        except ValueError as error:
            raise ValueError(f"--space {shortened(part)}: {error}") from None
    if not space:
        raise ValueError("--space: there is no setting to search; an example: lr=0.15:0.25")
    return space


def parse_range(text, check):
    low, high, *rest = text.split(":")
    if rest not in ([], ["log"]):
        raise ValueError("a range is low:high or low:high:log")
    low, high = as_number(check(low)), as_number(check(high))
    if type(low) is not type(high):
        raise ValueError("one end is a share, the other a number")
    if low >= high:
        raise ValueError("the range is empty: its low end must be below its high end")
    if rest and low <= 0:
        raise ValueError("a log range must start above 0")
    return {"low": low, "high": high, "log": bool(rest)}


def as_number(value):
    """The number that is a checked setting; hidden widths are one when there is one layer."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("only numbers (above 0 for hidden) make a range; list the choices: a,b,c")
    return value


def parse_choices(text, check):
    choices = [check(word) for word in text.split(",")]
    for choice in choices:
        if choices.count(choice) > 1:
            raise ValueError(f"{shortened(data.setting_text(choice))} is in the list twice")
    return choices


def shortened(text):
    return text if len(text) <= 80 else f"{text[:80]}..."


SWITCHES = {"lr_schedule", "optimizer", "momentum", "hidden", "patience", "augment"}  # what idle looks at


def idle(settings):
    """Names of the settings that the others switch off, such as the decay of a constant schedule."""
    s = {**train.DEFAULTS, **settings}
    options = {name: set(names) for name, (_, names, *_) in train.OPTIMIZERS.items()}
    off = set.union(*options.values()) - options[s["optimizer"]]
    return off | {
        *(["nesterov"] if "momentum" in off or not s["momentum"] else []),
        *(["lr_decay"] if s["lr_schedule"] not in train.LR_DECAYS else []),
        *(["lr_step"] if s["lr_schedule"] != "step" else []),
        *(["dropout", "max_norm"] if not s["hidden"] else []),
        *(["min_delta"] if not s["patience"] else []),
        *(data.STRENGTHS if not set(s["augment"]) & set(data.DISTORTIONS) else []),
    }


def combinations(definition, space):
    """The different combinations of lists, as dicts; None where a random search has a range, or too many."""
    grid = definition["strategy"] == "grid"
    ranges = [name for name, dimension in space.items() if isinstance(dimension, dict)]
    size = 0 if ranges else math.prod(map(len, space.values()))
    if grid and ranges:
        raise ValueError(f"--space: a grid needs a list of values for {ranges[0]}, not a range")
    if grid:
        check_count("--trials", size, MOST_IN_ALL // runs_of(definition))
    elif not 0 < size <= MOST_IN_ALL or not definition["distinct"]:
        return None
    every = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    every = [without(drawn, switched_off(definition, space, drawn)) for drawn in every]
    return list({str(sorted(drawn.items())): drawn for drawn in every}.values())


def switched_off(definition, space, drawn):
    """The settings to leave out beside what is drawn: none where nothing that is searched is a switch."""
    switches = SWITCHES & space.keys() and definition["distinct"]
    return idle({**definition["settings"], **drawn}) if switches else ()


def without(settings, names):
    return {name: value for name, value in settings.items() if name not in names}


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
# trial its images, on the worker; ``lost``, the exception of a future whose worker died; ``tries``,
# the number of those after which a trial has failed.

SPLIT_SETTINGS = ("dataset", "val_size", "train_size", "holdout", "folds", "fold", "split_seed", "preprocess")
SPLIT_PARTS = ("train", "val")
ONE_THREAD = {
    f"{library}_THREADS": "1" for library in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM", "VECLIB_MAXIMUM")
}


@contextlib.contextmanager
def local_workers(count, folder, datasets):
    """``count`` processes with one BLAS thread each; they end with the block, however it ends.

    The images are prepared once for all trials with the same SPLIT_SETTINGS; they are in ``folder``
    for as long as the block lasts.
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
            yield {"submit": submit, "capacity": lambda: count, "source": source, "lost": lost, "tries": 2}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _processes(count):
    """``submit(function, *args) -> Future`` on processes of which each has pipes of its own.

    Such a pipe breaks when its process dies, even in the middle of a message. The processes of a
    ProcessPoolExecutor share one that the parent keeps open: when one is killed in the middle of a
    message, the parent waits for the rest of it forever. A process ends when its pipe does, so
    none outlives the parent, however that dies.
    """
    calls, processes, closing = queue.SimpleQueue(), [], threading.Event()
    work = functools.partial(hand_out, calls, processes, closing)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]

    def submit(function, *args):
        future = concurrent.futures.Future()
        calls.put((future, (function, args)))
        return future

    try:
        for thread in threads:
            thread.start()
        yield submit
    finally:
        closing.set()
        for process in list(processes):
            process.kill()
        for _ in threads:
            calls.put(None)
        for thread in threads:
            if thread.is_alive():  # not if Ctrl-C came while it was started
                thread.join()
        for process in processes:
            process.communicate()  # closes the pipes


def hand_out(calls, processes, closing):
    """What each thread of ``_processes`` does: hand calls to a process, and another if that one dies."""
    if hasattr(signal, "pthread_sigmask"):  # a process inherits this: a Ctrl-C may come before it is apart
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    process = None
    for future, call in iter(calls.get, None):
        try:
            if process is None:
                process = start_process()
                processes.append(process)
            if closing.is_set():  # it may have come too late to be killed with the others
                process.kill()
            result, error = ask(process, call)
        except Exception as failure:
            process, result, error = None, None, failure
        future.set_exception(error) if error else future.set_result(result)
        if closing.is_set():
            break


def start_process():
    """A process that answers calls; in a session of its own, where no Ctrl-C reaches it."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import search; search.answer_calls()"
    main = getattr(sys.modules["__main__"], "__file__", None)
    return subprocess.Popen(
        [sys.executable, "-c", code, *([main] if main else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **ONE_THREAD},
        start_new_session=True,
    )


def ask(process, call):
    """Have a process make a call ``(function, args)``: its result and None, or None and its exception."""
    try:
        pickle.dump(call, process.stdin)
        process.stdin.flush()
        return pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        process.kill()
        raise concurrent.futures.BrokenExecutor("a worker died") from None


def answer_calls():
    """What a process of ``_processes`` does: answer the calls on its standard input until that ends."""
    calls, answers = queue.SimpleQueue(), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that is printed may get among the answers
    sys.stdout = sys.stderr
    if len(sys.argv) > 1:  # the parent's script, where functions and activations of its own may be
        main = types.ModuleType("__main__")
        vars(main).update(runpy.run_path(sys.argv[1], run_name="__mp_main__"))
        sys.modules["__main__"] = main

    def listen():
        try:
            while True:
                calls.put(pickle.load(sys.stdin.buffer))
        finally:
            os._exit(1)  # the parent has ended, it may be in the middle of a call

    threading.Thread(target=listen, daemon=True).start()
    while True:
        function, args = calls.get()
        try:
            outcome = function(*args), None
        except Exception as error:  # it is raised again where the call came from
            outcome = None, error
        pickle.dump(outcome, answers)
        answers.flush()


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
        client.upload_file(zip_program(pathlib.Path(folder)))
        executor = client.get_executor(pure=False)
        try:
            yield {
                "submit": executor.submit,
                "capacity": lambda: max(1, sum(client.nthreads().values())),
                "source": lambda config: functools.partial(own_sets, config, data_dir),
                "lost": distributed.scheduler.KilledWorker,
                "tries": 1,  # Dask has tried it on several workers by then
            }
        except (*GONE, distributed.comm.CommClosedError):
            raise ConnectionError(
                f"the scheduler at {address} is gone; every trial that has ended is kept, and --resume "
                f"runs the others"
            ) from None
        finally:
            executor.shutdown(wait=False)  # cancels what runs


def zip_program(folder):
    here = pathlib.Path(__file__).resolve().parent
    with zipfile.ZipFile(folder / "program.zip", "w") as file:
        for name in ("nn.py", "data.py", "train.py", "search.py"):
            file.write(here / name, name)
    return str(folder / "program.zip")


def own_sets(config, data_dir):
    """What ``train.prepare`` gives, on a cluster's worker: from the data that its machine has."""
    worker = f"the worker on {platform.node()}"
    try:
        dataset = train.load_dataset(config, data_dir, download=False)
    except (ValueError, OSError) as error:
        raise FileNotFoundError(
            f"{worker} does not have the data set {config['dataset']}: {error}; put it there, or name "
            f"the folder that it has on the workers with --data-dir"
        ) from None
    if dataset["sha256"] != config["data"]["sha256"]:
        raise ValueError(f"{worker} has another data set under the name {config['dataset']}")
    return train.prepare(dataset, config, SPLIT_PARTS)


# --- the files of a search --------------------------------------------------------------------

FIGURES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
NUMBER = (int, float)
DEFINITION = {"space": str, "strategy": str, "trials": int, "repeat": int, "seed": int, "settings": dict}
DEFINITION |= {"paired": bool, "distinct": bool, "further": [[int]], "data": dict}
TABLE_ROW = {"trial": int, "status": str, "seed": int, "epochs": int, "seconds": NUMBER}
TABLE_ROW |= {"repeat?": int, "fold?": int}


def open_search(out, given, resume):
    """``(definition, data)``: of the search in ``out``, or a new one (data is None).

    ``data`` has the SHA-256 of the files of each data set.

    Raises
    ------
    ValueError
        There is a search already, and it is another one, or ``resume`` was not asked for.
    """
    path = out / "search.json"
    if not path.exists():
        return define(given, DEFAULT_SEARCH), None
    record = data.load_json(path)
    nn.check(record, dict, path)
    record = {**DEFAULT_SEARCH, "paired": False, "distinct": False, **record}  # older ones have less
    nn.check(record, DEFINITION, path)
    record["settings"].setdefault("holdout", "random")  # as searches that do not say it
    try:
        saved = define({}, {name: record[name] for name in DEFAULT_SEARCH})
    except ValueError as error:
        raise ValueError(f"{path} does not define a search: {error}") from error
    definition = define(given, saved if resume else DEFAULT_SEARCH)
    new, old = ({**train.DEFAULTS, **d["settings"], **d, "settings": None} for d in (definition, saved))
    if resume and new["strategy"] != "halving":  # the runs so far are the same, whatever comes after them
        old["repeat"] = max(old["repeat"], new["repeat"])
        old["trials"] = max(old["trials"], new["trials"])
    for name in new:
        if name not in ("further", "paired", "distinct") and new[name] != old[name]:
            raise ValueError(
                f"{out} holds another search: its {name} is {old[name]}, not {new[name]}; "
                "name another folder with --out"
            )
    if not resume:
        raise ValueError(f"{out} holds this search already: go on with --resume, or name another --out")
    return definition, record["data"]


def save_definition(out, definition, datasets):
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    sums = {dataset["name"]: dataset["sha256"] for dataset in datasets.values()}
    data.save_json(out / "search.json", {**definition, "data": sums, "versions": versions})


def trial_folder(out, trial):
    """``trials/007``; ``trials/007-2`` of a second repeat or fold."""
    first, *rest = trial_name(trial).split("-")
    return out / "trials" / "-".join([first.zfill(3), *rest])


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
    ranked = {trial_name(trial): trial for trial in itertools.chain(*ranking(trials))}
    trials = {**ranked, **{trial_name(trial): trial for trial in trials if trial["status"]}}.values()
    runs = [run_column(trial) for trial in trials if trial["repeat"] > 1][:1]
    columns = ["trial", *runs, "status", "seed", *setting_columns(searched), *FIGURES, "seconds"]
    data.save_rows(out / "trials.csv", map(table_row, trials), columns)


def setting_columns(searched):
    return [*(name for name in searched if name not in ("seed", "epochs")), "epochs"]


def run_column(trial):
    """What the runs of a group are called."""
    return "fold" if trial["config"]["folds"] else "repeat"


def table_row(trial):
    last = trial["rows"][-1] if trial["rows"] else dict.fromkeys(FIGURES)
    return {
        **{name: data.setting_text(trial["config"][name]) for name in train.SETTINGS},
        "trial": trial["number"],
        run_column(trial): trial["repeat"],
        "status": trial["status"],
        "epochs": len(trial["rows"]),
        **{name: last[name] for name in FIGURES},
        "seconds": round(trial["seconds"], 3),
    }


def save_groups(out, trials, ranked, compared, searched):
    """Write groups.csv: a row for each combination, the best first, those that cannot win last."""
    rows = {row["trial"]: table_row(group[0]) | row for group, row in zip(ranked, compared)}
    for trial in trials:
        if trial["number"] not in rows and trial["status"] not in RANKED:
            rows[trial["number"]] = table_row(trial) | dict.fromkeys(FIGURES)
    columns = ["trial", "status", "runs", *setting_columns(searched), *FIGURES, "val_sd", "difference", "p"]
    data.save_rows(out / "groups.csv", rows.values(), columns)


def load_trials(out, trials):
    """The trials with what trials.csv and their folders say about those that have run.

    Raises
    ------
    ValueError
        A file is damaged, or does not belong to these trials.
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


def settings_text(settings):
    return "  ".join(f"{name} {short(value, 3)}" for name, value in settings.items())


def short(value, digits=4):
    return f"{value:.{digits}g}" if isinstance(value, float) else data.setting_text(value)


def trial_line(trial, trials, searched, done):
    """``7/50 trial 6  lr 0.2186  hidden 280  val 97.91%  rank 2``, of those that have ended."""
    words = []
    if len(trial["rows"]) != trial["config"]["epochs"]:
        words.append(f"epoch {len(trial['rows'])}")
    numbers = [group[0]["number"] for group in ranking(trials)]
    if trial["status"] in RANKED:
        words.append(f"val {100 * trial['rows'][-1]['val_accuracy']:.2f}%")
        words += [f"rank {numbers.index(trial['number']) + 1}"] if trial["number"] in numbers else []
    else:
        words.append({"diverged": "diverged", "failed": "FAILED: its workers died"}[trial["status"]])

    def lines_of(names, more):
        settings = settings_text({name: trial["config"][name] for name in names})
        line = "  ".join([f"{done} trial {trial_name(trial)}", *filter(None, [settings]), *more, *words])
        return [line if len(line) < 80 else line.replace("  ", " ").replace(" rank ", " #")]

    return fitting(searched, lines_of)[0]


def fitting(names, lines_of):
    """The lines with as many of the names as fit a terminal, the first; ``...`` stands for the others."""
    for count in range(len(names), -1, -1):
        lines = lines_of(names[:count], ["..."] * (count < len(names)))
        if max(map(len, lines)) < 80:
            break
    return lines


def live_line(trials, done, running, until, seconds):
    """Trials done and running, the best so far, and the time left, where it is known."""
    words = [f"{done} trials done" + (f" to epoch {until}" if until else ""), f"{running} running"]
    for best in ranking(trials)[:1]:
        words.append(f"best {-100 * best_first(best)[0]:.2f}% (trial {best[0]['number']})")
    return "  ".join(words if seconds is None else [*words, f"{duration(seconds)} left"])


def duration(seconds):
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def ranking_text(ranked, compared, searched, top=10):
    """The first rows of the ranking as an aligned table."""
    searched = [name for name in searched if name != "epochs"]  # shown anyway: those done
    rows = list(zip(ranked[:top], compared))
    return "\n".join(fitting(searched, lambda names, more: ranking_lines(rows, names, more)))


def ranking_lines(rows, searched, more):
    spread = ["sd", "to best", "p"] if len(rows[0][0]) > 1 else []
    lines = [["rank", "trial", *searched, *more, "epochs", "train %", "val %", *spread, "val loss"]]
    for rank, (group, row) in enumerate(rows, start=1):
        words = [str(rank), str(row["trial"]), *(short(group[0]["config"][name]) for name in searched)]
        words += [""] * len(more)
        shares = [f"{100 * row[name]:.2f}" for name in ("train_accuracy", "val_accuracy")]
        words += [str(row["epochs"]), *shares]
        if spread:
            words.append(f"{100 * row['val_sd']:.2f}")
            words += ["", ""] if row["p"] is None else [f"{100 * row['difference']:+.2f}", f"{row['p']:.2g}"]
        lines.append([*words, f"{row['val_loss']:.4f}"])
    wide = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(word.rjust(w) for word, w in zip(line, wide)) for line in lines]


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
    at_once = min(workers, len(settings) * runs_of(definition))
    for s in settings:
        train.check_memory(s, *train.least_size(s["dataset"]), at_once)
    loaded = {s["dataset"]: s for s in settings}
    loaded = {name: train.load_dataset(s, data_dir) for name, s in loaded.items()}
    datasets, trials = {dataset["name"]: dataset for dataset in loaded.values()}, []
    for number, s in enumerate(settings, start=1):
        dataset = loaded[s["dataset"]]
        train.check_memory(s, *dataset["train_images"].shape, len(dataset["class_names"]), at_once)
        if known is not None and known.get(dataset["name"]) != dataset["sha256"]:
            raise ValueError(f"the data set {dataset['name']} is not the one that the search used")
        train.class_weights(dataset["train_labels"], len(dataset["class_names"]), s)
        for repeat in range(1, runs_of(definition) + 1):
            config = train.run_config(run_settings(s, definition, repeat), dataset)
            empty = {"config": config, "rows": [], "status": None, "seconds": 0.0}
            trials.append({"number": number, "repeat": repeat, **empty})
    for name, steps in {(s["dataset"], tuple(s["preprocess"])) for s in settings}:
        data.fit_steps(steps, loaded[name]["train_images"][:1], loaded[name]["image_shape"])
    return trials, datasets


def retrain(out, group, data_dir):
    """Train the best group's network again, on all training images; returns the command that does it.

    It runs for as many epochs as those trials did, or for all where lr falls along them to the last.
    """
    settings = {name: group[0]["config"][name] for name in train.SETTINGS}
    for name in ("train_size", "split_seed", "folds", "fold", "patience", "min_delta"):
        settings[name] = train.DEFAULTS[name]
    settings["val_size"] = 0
    if settings["lr_schedule"] not in ("linear", "cosine"):
        settings["epochs"] = round(sum(len(trial["rows"]) for trial in group) / len(group))
    words = train.as_flags(settings) + (["--data-dir", data_dir] if data_dir else [])
    there = all((out / name).exists() for name in ("last.pkl", "config.json"))  # or it was killed between
    same = there and settings.items() <= train.load_settings(out / "config.json").items()
    train.main([*words, "--out", str(out), "--quiet", *(["--resume"] if same else [])])
    return data.command_text("python", "train.py", *words)


def count_workers(flags):
    """The number of processes on this machine; default: one for each core that this one may use."""
    if flags.workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if flags.scheduler:
        raise ValueError("--workers: is for this machine; the cluster of --scheduler has its own")
    return check_count("--workers", flags.workers)


def add_flags(parser):
    group = parser.add_argument_group("search")
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--space", nargs="+", metavar="NAME=VALUES",
        help="what to search: ranges low:high or low:high:log, and lists a,b,c (two layers: 512x256; "
        f"two steps of preprocessing: scale+center) (default: {DEFAULT_SEARCH['space']})",
    )  # fmt: skip
    strategies = "; ".join(f"{name}: {what}" for name, what in STRATEGIES.items())
    add("--strategy", metavar="NAME", help=f"{strategies} (default: random)")
    add("--trials", metavar="N", help="trials of random and halving (default: 50)")
    enough = "with 6 a difference can be beyond chance"
    add("--repeat", metavar="N", help=f"run every trial with so many seeds (default: 1); {enough}")
    add("--best", metavar="N", help="with --resume: so many of the best go on to --epochs")
    add = group.add_argument
    add("--test", action="store_true", help="at the end, the test accuracy of every trial, too")
    add("--workers", metavar="N", help="processes on this machine (default: one for each core)")
    add("--scheduler", metavar="ADDRESS", help="run on this Dask cluster: tcp://host:8786")
    more = "or more --trials or --repeat"
    add("--resume", action="store_true", help=f"run what the search in --out is missing, {more}")
    folder = "results/search"
    add("--out", metavar="DIR", default=folder, help=f"folder of the search (default: {folder})")
    train.add_settings(parser, {"val_size": 0.2, "seed": "0, of the whole search"})


EXAMPLES = """examples:
  python search.py --strategy halving
  python search.py --space lr=0.01:0.5:log hidden=128,512x256 --trials 20
  python search.py --strategy grid --space dropout=0,0.2 batch_size=32,128
  python search.py --strategy grid --space init=he,xavier --repeat 5 --test
  python search.py --resume --best 3 --epochs 100"""


def main(argv=None):
    parser = data.make_parser(
        "Search for the best settings, and train the best on all training images.\n"
        "Settings that are not searched are the same in all trials.",
        EXAMPLES,
    )
    add_flags(parser)
    flags = data.parse_flags(parser, argv)
    given = {n: v for n, v in vars(flags).items() if n in {**DEFAULT_SEARCH, **train.SETTINGS, "best": 0}}
    out, count = pathlib.Path(flags.out), count_workers(flags)
    if flags.resume:
        train.check_resumable(out, "search.json", "search")
    elif "best" in given:
        raise ValueError("--best: goes on with a search, with --resume")
    definition, known = open_search(out, given, flags.resume)
    trials, datasets = make_trials(definition, flags.data_dir, known, 1 if flags.scheduler else count)
    if flags.test and not all(len(dataset["test_images"]) for dataset in datasets.values()):
        raise ValueError("--test: there are no test images")
    out.mkdir(parents=True, exist_ok=True)
    titles = " and ".join(dataset["title"] for dataset in datasets.values())
    what = f"{definition['strategy']} search on {titles}: {data.count(definition['trials'], 'trial')}"
    each = f", {runs_of(definition)} {run_column(trials[0])}s of each" if runs_of(definition) > 1 else ""
    data.say(f"{what} of {definition['space']}{each}")
    if flags.scheduler:
        opened = cluster_workers(flags.scheduler, flags.data_dir)
    else:
        opened = local_workers(min(count, len(trials)), out / ".split", datasets)
    try:
        with train.locked(out), data.progress_line() as show, opened as workers:
            if known is None and (out / "search.json").exists():
                raise ValueError(f"another search has been written to {out} meanwhile; name another --out")
            for half in out.glob("trials/*/*.part"):  # of a search that was killed
                half.unlink()
            trials = load_trials(out, trials) if known is not None else trials
            save_definition(out, definition, datasets)
            epochs = {**train.DEFAULTS, **definition["settings"]}["epochs"]
            plan = rungs(definition["strategy"], definition["trials"], epochs, definition["further"])
            searched = list(parse_space(definition["space"]))
            trials = run_search(trials, plan, workers, out, searched, show)
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
