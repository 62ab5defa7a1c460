"""One training run: from a config to files in ``results/``.

    python train.py --lr 0.25 --hidden 292

Training is a fold over epochs: ``train_epoch(state, data, config) -> (state, row)``. The state
is everything that the next epoch depends on, the row is a line of the history, and the epoch's
randomness comes from the seed and the epoch's number. So a run can be stopped anywhere and
resumed with the same bits.
"""

import argparse
import contextlib
import math
import os
import pathlib
import platform
import re
import reprlib
import shutil
import sys
import time

import numpy as np

import nn
from data import (
    AUGMENT_NAMES,
    DATASET_NAMES,
    DISTORTIONS,
    LEAST_SMOOTH,
    PIXEL_STEPS,
    STEP_NAMES,
    STRENGTHS,
    STRONGEST,
    augment,
    available_memory,
    check_config,
    check_steps,
    fit_pixel_steps,
    load_dataset,
    load_json,
    load_rows,
    make_augment,
    make_parser,
    parse_flags,
    parse_steps,
    picture_steps,
    preprocess,
    progress_line,
    redraw,
    run_script,
    save_json,
    save_rows,
    scaled,
    shape_after,
    sort_pixels,
    split,
)

# --- settings ---------------------------------------------------------------------------------


NUMBERS = (int, float, str, np.integer, np.floating)


def number(low, high=math.inf, whole=False, above=False, below=False):
    """A check that turns text or a number into a number between low and high, or raises."""
    kind = "a whole number" if whole else "a number"
    lower = f"{'above' if above else 'of at least'} {low}"
    upper = "" if high == math.inf else f" and {'below' if below else 'at most'} {high}"

    def check(value):
        try:
            fits = isinstance(value, NUMBERS) and not isinstance(value, bool)
            result = float(value) if fits else math.nan
            fits = math.isfinite(result) and (result > low if above else result >= low)
            fits = fits and (result < high if below else result <= high)
            fits = fits and (not whole or result == int(result))
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise ValueError(f"must be {kind} {lower}{upper}, not {_shown(value)}")
        return _exact(value, result) if whole else result

    return check


def _exact(value, result):
    """The whole number in value, also beyond 2**53, where its float ``result`` has gaps."""
    try:
        return int(value)
    except ValueError:  # text such as 1e3
        return int(result)


def _shown(value):
    return reprlib.repr(value[0] if isinstance(value, list) and len(value) == 1 else value)


def optional(check):
    return lambda value: None if value is None else check(value)


def one_of(kind, names):
    def check(value):
        nn.choose(kind, value, dict.fromkeys(names))
        return value

    return check


def switch(value):
    value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_shown(value)}")
    return value


def text(value):
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a name, not {_shown(value)}")
    return value


def widths(value):
    """Hidden widths from ``292``, ``"512x256"``, ``["512", "256"]`` or ``[512, 256]``; 0 is none."""
    parts = value if isinstance(value, list) else [value]
    parts = [part for item in parts for part in (item.split("x") if isinstance(item, str) else [item])]
    result = [number(0, WIDEST, whole=True)(part) for part in parts]
    if 0 in result and len(result) > 1:
        raise ValueError("must be 0 alone, or widths above 0")
    return [width for width in result if width]


def names(value):
    """Names from ``scale``, ``"scale+center"`` or ``["scale", "center"]``."""
    parts = value if isinstance(value, list) else [value]
    return [name for part in parts for name in (part.split("+") if isinstance(part, str) else [part])]


def preprocess_names(value):
    given = names(value)
    for name in given:
        kind = name.partition(":")[0] if isinstance(name, str) else name
        nn.choose("preprocessing", kind, {text.partition(":")[0]: text for text in STEP_NAMES})
    parse_steps(given)
    return given


def augment_names(value):
    """What to do to the images: one of the distortions at most, flip; none is no name."""
    given = [one_of("distortion", AUGMENT_NAMES)(name) for name in names(value)]
    if len(given) > 1 and ("none" in given or len(set(given)) < len(given)):
        raise ValueError("must be none alone, or name each kind once")
    if len(set(given) & set(DISTORTIONS)) > 1:
        raise ValueError(f"must be one of {', '.join(DISTORTIONS)}: each does what those before it do")
    return [name for name in given if name != "none"]


WIDEST = 1_000_000_000  # a hidden layer; what memory allows is far less
LR_SCHEDULES = {  # lr of epoch t, counted from 0, from lr0, decay d, config c
    "constant": lambda lr, d, t, c: lr,
    "inverse": lambda lr, d, t, c: lr / (1 + d * int(t)),
    "exponential": lambda lr, d, t, c: lr * d ** int(t),
    "step": lambda lr, d, t, c: lr * d ** (t // c["lr_step"]),
    "cosine": lambda lr, d, t, c: lr * 0.5 * (1 + math.cos(math.pi * min(1, t / c["epochs"]))),
    "linear": lambda lr, d, t, c: lr * max(0, 1 - t / c["epochs"]),
}
LR_DECAYS = {"inverse": 0.001, "exponential": 0.95, "step": 0.1}  # defaults of those that have one
HOLDOUTS = ("random", "last")
DTYPES = {"float32": np.float32, "float64": np.float64}

SETTINGS = {  # name -> default, check, help; the flags, config files and search spaces follow it
    "dataset": ("auto", text, "auto, mnist, fashion-mnist, glyphs or a folder with IDX files"),
    "hidden": ([292], widths, "widths of the hidden layers, as 292 or 512 256; 0 for none"),
    "activation": ("relu", one_of("activation", nn.ACTIVATIONS), ", ".join(nn.ACTIVATIONS)),
    "loss": ("cross_entropy", one_of("loss", nn.LOSSES), ", ".join(nn.LOSSES)),
    "init": ("auto", one_of("init", nn.INIT_NAMES), ", ".join(nn.INIT_NAMES)),
    "lr": (0.2475, number(0, above=True), "learning rate of the first epoch"),
    "lr_schedule": (
        "constant",
        one_of("lr schedule", LR_SCHEDULES),
        "constant; inverse: lr / (1 + d t); exponential: lr d^t; step: times d every --lr-step "
        "epochs; cosine, linear: to 0 over all epochs, step by step (d is --lr-decay, t the epochs done)",
    ),
    "lr_decay": (
        None,
        optional(number(0)),
        f"d of the schedule; without it {', '.join(f'{d} for {s}' for s, d in LR_DECAYS.items())}",
    ),
    "lr_step": (10, number(1, whole=True), "epochs between the drops of the step schedule"),
    "warmup": (0.0, number(0), "epochs in which lr grows from 0 to that of the schedule"),
    "momentum": (0.0, number(0, 1, below=True), "momentum"),
    "nesterov": (False, switch, "Nesterov's form of momentum"),
    "weight_decay": (2.5e-7, number(0), "L2 penalty: 0.5 * weight decay * sum of squared weights"),
    "dropout": (0.0, number(0, 1, below=True), "share of hidden units switched off in a step"),
    "input_dropout": (0.0, number(0, 1, below=True), "share of inputs switched off in a step"),
    "max_norm": (0.0, number(0), "largest norm of the weights into a hidden unit; 0: no limit"),
    "label_smoothing": (0.0, number(0, 1, below=True), "share of the target given to all classes alike"),
    "ema": (
        0.0,
        number(0, 1, below=True),
        "judge and keep a moving average of the params over epochs: ema * average + (1 - ema) * params",
    ),
    "batch_size": (128, number(1, whole=True), "images in a step"),
    "epochs": (50, number(1, whole=True), "passes over the training images"),
    "val_size": (6000, number(0, whole=True), "training images held out for validation"),
    "train_size": (None, optional(number(1, whole=True)), "use only so many training images"),
    "patience": (
        0,
        number(0, whole=True),
        "stop after so many epochs in a row without a gain in validation accuracy of more than "
        "--min-delta over the last epoch that had one; 0: never",
    ),
    "min_delta": (
        0.0,
        number(0, 1),
        "least gain in accuracy that counts for --patience (0.001 is 0.1 points)",
    ),
    "preprocess": (["scale"], preprocess_names, f"applied in this order; of {', '.join(STEP_NAMES)}"),
    "augment": ([], augment_names, f"distort the images anew for each epoch; of {', '.join(AUGMENT_NAMES)}"),
    "max_shift": (
        STRENGTHS["max_shift"],
        number(0, STRONGEST),
        "largest shift of a distorted image, in pixels",
    ),
    "max_rotation": (STRENGTHS["max_rotation"], number(0, 180), "largest rotation, in degrees"),
    "max_scaling": (
        STRENGTHS["max_scaling"],
        number(0, 1, below=True),
        "largest share by which width and height grow or shrink",
    ),
    "max_shear": (STRENGTHS["max_shear"], number(0, 10), "largest slant, in columns a row"),
    "bend": (
        STRENGTHS["bend"],
        number(0, STRONGEST),
        "size of the elastic displacement: root mean square, in pixels",
    ),
    "smooth": (
        STRENGTHS["smooth"],
        number(LEAST_SMOOTH, STRONGEST),
        "radius of the Gaussian that smooths it",
    ),
    "seed": (0, number(0, 2**63, whole=True), "seed of the split, the first weights and all epochs"),
    "holdout": ("random", one_of("holdout", HOLDOUTS), "validation images: random ones, or the last"),
    "split_seed": (
        None,
        optional(number(0, 2**63, whole=True)),
        "seed of the split alone, so that runs of different seeds hold out the same images",
    ),
    "dtype": ("float32", one_of("dtype", DTYPES), ", ".join(DTYPES)),
}
DEFAULTS = {name: default for name, (default, _, _) in SETTINGS.items()}
RECORDS = ("data", "versions", "status", "result")  # what config.json holds beside the settings


def check_settings(settings):
    """Complete and checked settings; ValueError that names the one that is wrong.

    Parameters
    ----------
    settings : dict
        Any of SETTINGS, as numbers or as text; what is missing takes its default.
    """
    config = {name: check_setting(name, value) for name, value in {**DEFAULTS, **settings}.items()}
    if config["lr_decay"] is None:
        config["lr_decay"] = LR_DECAYS.get(config["lr_schedule"])
    elif config["lr_schedule"] not in LR_DECAYS:
        raise ValueError(f"--lr-decay: the {config['lr_schedule']} schedule has none")
    if config["nesterov"] and not config["momentum"]:
        raise ValueError("--nesterov: needs a --momentum above 0")
    if config["patience"] and not config["val_size"]:
        raise ValueError("--patience: needs validation images (--val-size)")
    return config


def check_setting(name, value):
    """One checked setting, whatever the others are; ValueError that names it."""
    nn.choose("setting", name, SETTINGS)
    try:
        return SETTINGS[name][1](value)
    except ValueError as error:
        raise ValueError(f"{flag(name)}: {error}") from None


def flag(name):
    return "--" + name.replace("_", "-")


def memory_needed(config, images, pixels, classes, runs=1):
    """Bytes that a run holds at its peak: an estimate, with up to half on top for the allocator's gaps.

    Parameters
    ----------
    config : dict
        From ``check_settings``.
    images, pixels, classes : int
        Training images, pixels of an image, and classes.
    runs : int
        How many there are at once; they share the images.
    """
    sizes = [pixels, *config["hidden"], classes]
    itemsize = np.dtype(DTYPES[config["dtype"]]).itemsize
    params = itemsize * sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(sizes, sizes[1:]))
    # the params of this epoch, the one before and the best, and last.pkl while it is put together;
    # with momentum as many velocities, with ema as many averages, and gaps between them
    copies = (16, 18) if config["momentum"] else (7, 12)
    trained = min(images, config["batch_size"]) * (4 if config["dropout"] else 2)
    evaluated = min(images, EVALUATED_AT_ONCE) * 2
    activations = max(trained, evaluated) * itemsize * sum(sizes)
    outputs = (itemsize + 16) * images * classes  # of all images, and their loss in float64
    own = copies[config["ema"] > 0] * params + activations + outputs
    return runs * own + 3 * images * pixels  # as read, split and sorted


def check_memory(config, images, pixels, classes, runs=1):
    """Raise a MemoryError when so many runs need more memory than there is, before any is taken."""
    needed, free = memory_needed(config, images, pixels, classes, runs), available_memory()
    if free is not None and needed > free:
        who, fewer = ("this run", "") if runs == 1 else (f"{runs} trials at once", "fewer --workers, or ")
        raise MemoryError(
            f"{who} would need about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; "
            f"try {fewer}a smaller --hidden, --batch-size or --train-size"
        )


def least_size(name):
    """Training images, pixels and classes that a data set has at least, before it is loaded."""
    return (60_000, 784, 10) if name in DATASET_NAMES else (1, 1, 1)


def setting_text(value):
    """A setting as one word, which its check turns into the same setting: ``512x256``."""
    if isinstance(value, list):
        return ("+" if value and isinstance(value[0], str) else "x").join(map(str, value or [0]))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


# --- training ---------------------------------------------------------------------------------

PARTS = ("train", "val", "test")
COLUMNS = ["epoch", "lr"]
COLUMNS += [f"{part}_{figure}" for part in PARTS for figure in ("loss", "accuracy")]
COLUMNS += ["seconds"]


def prepare(dataset, config):
    """Split a dataset and fit the preprocessing on its training part.

    Returns
    -------
    dict
        ``train``, ``val``, ``test``: (uint8 images (n, d), labels (n,)), redrawn by the steps on
        pictures; ``steps``: all of the fitted preprocessing; ``pixel_steps``: what is left of it;
        ``augment``: from ``make_augment``; ``classes``: how many; ``evaluate``: the parts whose loss
        and accuracy are worked out after each epoch; ``pixels``: the images of each part once
        more, from ``sorted_pixels``.
    """
    train, val = split_dataset(dataset, config)
    test = (dataset["test_images"], dataset["test_labels"])
    pictures = picture_steps(config["preprocess"], dataset["image_shape"])
    parts = {name: (redraw(images, pictures), y) for name, (images, y) in zip(PARTS, (train, val, test))}
    return {
        **parts,
        **prepare_steps(parts["train"][0], config, dataset["image_shape"]),
        "classes": len(dataset["class_names"]),
        "evaluate": PARTS,
        "pixels": {name: sorted_pixels(images, config) for name, (images, _) in parts.items()},
    }


def prepare_steps(images, config, image_shape):
    """What is done to images (n, d) after ``redraw``: see ``prepare``; image_shape is that before it."""
    pictures = picture_steps(config["preprocess"], image_shape)
    fitted = fit_pixel_steps(config["preprocess"], images)
    strengths = {name: config[name] for name in STRENGTHS}
    return {
        "steps": pictures + fitted,
        "pixel_steps": fitted,
        "augment": make_augment(config["augment"], shape_after(pictures, image_shape), **strengths),
    }


def sorted_pixels(images, config):
    """The images for the steps on pixels: with sorted pixels, where blank ones remain blank."""
    blank_stays_blank = set(dict(parse_steps(config["preprocess"]))) & set(PIXEL_STEPS) <= {"scale"}
    return sort_pixels(images) if blank_stays_blank else _pixels_in_place(images, config)


def _pixels_in_place(images, config):
    n, width = images.shape
    inputs = dict(parse_steps(config["preprocess"])).get("pca", width)
    return {"images": images, "columns": np.arange(inputs), "inked": np.full(n, width)}


def split_dataset(dataset, config):
    """The training and the validation part of a dataset's training images, as ``data.split``."""
    seed = config["seed"] if config["split_seed"] is None else config["split_seed"]
    images, labels = dataset["train_images"], dataset["train_labels"]
    rng = np.random.default_rng([seed, 0, 1]) if config["holdout"] == "random" else None
    return split(images, labels, config["val_size"], rng, config["train_size"])


def init_state(data, config):
    """The state before the first epoch."""
    inputs = preprocess(data["train"][0][:1], data["pixel_steps"]).shape[1]
    sizes = [inputs, *config["hidden"], data["classes"]]
    rng = np.random.default_rng(config["seed"])
    params = nn.init_params(rng, sizes, config["activation"], config["init"], DTYPES[config["dtype"]])
    velocity = {key: np.zeros_like(w) for key, w in params.items()} if config["momentum"] else None
    return {"params": params, "velocity": velocity, "average": None, "epoch": 0, "best": None}


def learning_rate(config, epochs_done):
    """lr of the step before which so many epochs, whole and part, are done."""
    schedule = LR_SCHEDULES[config["lr_schedule"]]
    warm = min(1, epochs_done / config["warmup"]) if config["warmup"] else 1
    try:
        return warm * schedule(config["lr"], config["lr_decay"], epochs_done, config)
    except OverflowError:  # a decay above 1, grown beyond the largest float: the run will diverge
        return math.inf


def train_epoch(state, data, config, progress=lambda images: None):
    """One epoch of mini-batch SGD, and its line of the history.

    Parameters
    ----------
    state : dict
        ``params``; ``velocity`` (None without momentum); ``average``, the moving average of the
        params (None without ``ema`` and before the first epoch); ``epoch``, the number of epochs
        done; ``best``: None, or ``epoch``, ``accuracy`` and ``params`` of the best epoch so far.
        Left as it is.
    data : dict
        From ``prepare``.
    config : dict
        From ``check_settings``.
    progress : function
        Called with the number of images done in this epoch.

    Returns
    -------
    state : dict
    row : dict
        ``epoch`` (from 1), ``lr`` at its start, loss and accuracy of each part after the epoch (None for a
        part without images, or not to be evaluated), ``seconds`` of the steps alone. Losses are
        without weight decay.

    Raises
    ------
    FloatingPointError
        The loss stopped being finite; the message names the epoch and the step.
    """
    started = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):  # found out by the checks for finite values
        params, velocity = _train_steps(state, data, config, progress)
        average = nn.average(params, state["average"] or params, config["ema"]) if config["ema"] else None
        judged = average or params
        seconds = time.perf_counter() - started
        row = {"epoch": state["epoch"] + 1, "lr": learning_rate(config, state["epoch"])}
        for part in PARTS:
            row |= part_figures(judged, data, part, config) if part in data["evaluate"] else NO_FIGURES[part]
    row["seconds"] = round(seconds, 4)
    if not all(math.isfinite(row[f"{part}_loss"] or 0) for part in PARTS):
        raise _divergence(config, row["epoch"], "after its last step")
    best = state["best"]
    accuracy = row["val_accuracy"]  # None without validation images: then the last epoch is kept
    if accuracy is None or best is None or accuracy > best["accuracy"]:
        best = {"epoch": row["epoch"], "accuracy": accuracy, "params": judged}
    state = {"params": params, "velocity": velocity, "average": average, "epoch": row["epoch"], "best": best}
    return state, row


def _train_steps(state, data, config, progress):
    """Params and velocity after all steps of the epoch that comes after ``state``.

    The steps are those of the core functions, with four savings that change no more than the last
    bits: they work in place, the products leave out what is blank in a batch with its images sorted
    (see ``data.sort_pixels`` and ``_blank_corner``), the gradients are scaled by lr where they are
    made, and W1 decays by a factor that is multiplied in at the end (see ``_deferred_step``).
    """
    whole, labels = data["train"]
    pixels = _pixels_in_place(whole, config) if data["augment"] else data["pixels"]["train"]
    rng = np.random.default_rng([config["seed"], state["epoch"] + 1])
    params, velocity = (
        _sorted_rows(arrays, pixels["columns"]) for arrays in (state["params"], state["velocity"])
    )
    grads, cache = {key: np.empty_like(w) for key, w in params.items()}, None
    momentum = config["momentum"]
    targets = {"loss": config["loss"], "label_smoothing": config["label_smoothing"]}
    deferred, factors = _may_defer(state, config), SETTLED
    size = min(config["batch_size"], len(labels))
    order = _sorted_batches(rng.permutation(len(labels)), pixels["inked"], size)
    labels = labels[order]
    buffer = np.empty(size * pixels["images"].shape[1], params["W1"].dtype)
    for start in range(0, len(labels), size):
        batch = slice(start, start + size)
        rows = order[batch]
        images = _inked_columns(pixels, rows)
        inked = images.shape[1]
        x = buffer[: images.size].reshape(images.shape)
        x = _training_inputs(images, data, config, factors[0], rng, out=x)
        narrow_params, narrow_grads = _first_rows(params, inked), _first_rows(grads, inked)
        if len(rows) != size:
            cache = None  # the last batch is smaller: no arrays of its size to use again
        reused = {"out": cache, "blank": _blank_corner(pixels, rows, inked)}
        outputs, cache = nn.forward(narrow_params, x, config["activation"], config["dropout"], rng, **reused)
        if not math.isfinite(outputs.sum()):  # as good as a loss that is not finite, and cheaper
            raise _divergence(config, state["epoch"] + 1, f"step {start // size + 1}")
        lr = learning_rate(config, state["epoch"] + start / len(labels))
        weight_decay = lr * config["weight_decay"]
        change = _change(factors, momentum, weight_decay) if deferred else 1.0
        nn.backward(narrow_params, cache, labels[batch], **targets, scale=lr / change, out=narrow_grads)
        if deferred:
            arrays = (params, grads, velocity)
            factors = _deferred_step(*arrays, inked, factors, change, momentum, weight_decay)
        else:
            grads["W1"][inked:] = 0
            optimiser = (momentum, config["nesterov"], weight_decay)
            nn.sgd_step(params, grads, velocity, 1, *optimiser, out=(params, velocity))
        if config["max_norm"]:
            nn.limit_norms(params, config["max_norm"], out=params)
        progress(start + len(rows))
    _settle(params, velocity, factors)
    return tuple(_natural_rows(arrays, pixels["columns"]) for arrays in (params, velocity))


def _training_inputs(images, data, config, factor, rng, out):
    """uint8 images as the network gets them in training, but factor times as large."""
    if data["augment"]:
        images = augment(images, data["augment"], rng, out=out)
    steps = data["pixel_steps"] if factor == 1 else scaled(data["pixel_steps"], factor)
    x = preprocess(images, steps, out=out)
    if config["input_dropout"]:
        x *= nn.dropout_mask(x.shape, config["input_dropout"], rng, x.dtype)
    return x


SETTLED = (1.0, 1.0, 0.0)  # the factors of a W1 and a velocity that are what they seem


def _may_defer(state, config):
    """Whether the steps of an epoch may be ``_deferred_step``: its factors must not fall too fast."""
    epoch = state["epoch"]
    fastest = max(config["lr"], learning_rate(config, epoch), learning_rate(config, epoch + 1))
    momentum, decay = config["momentum"], fastest * config["weight_decay"]
    if config["nesterov"] or config["max_norm"]:
        return False
    return momentum >= 0.5 and decay < 0.1 * (1 - momentum) if momentum else decay < 0.5


def _change(factors, momentum, weight_decay):
    """What the gradients for ``_deferred_step`` are divided by."""
    s, c, _ = factors
    return s * c * momentum if momentum else s * s * (1 - weight_decay)


def _deferred_step(params, grads, velocity, inked, factors, change, momentum, weight_decay):
    """A step in place with as few passes over W1 as can be; returns the new factors.

    W1 is s V and its velocity c U + e V; params hold V, velocity holds U, and s, c, e are the
    factors. The inputs carry s, so the products are those of W1. The gradients come divided by
    change, and all layers but W1 multiply by it.

    Plain SGD, W1 <- (1 - wd) W1 - g, becomes s <- (1 - wd) s and V <- V - g / s with the new s.
    Momentum, v <- momentum v - g - wd W1 and W1 <- W1 + v, becomes U <- U - g / (momentum c) and
    V <- V + momentum c / s' U, with s' = s + momentum e - wd s, and then c <- momentum c s / s',
    e <- s' - s and s <- s'.
    """
    s, c, e = factors
    if momentum:
        after = s + momentum * e - weight_decay * s
        velocity["W1"][:inked] -= grads["W1"][:inked]
        _add_times(params["W1"], momentum * c / after, velocity["W1"])
        factors = (after, momentum * c * s / after, after - s)
    else:
        params["W1"][:inked] -= grads["W1"][:inked]
        factors = ((1 - weight_decay) * s, c, e)
    for key in params.keys() - {"W1"}:
        decay = weight_decay if key[0] == "W" else 0.0
        grads[key] *= change
        if momentum:
            velocity[key] *= momentum
            velocity[key] -= grads[key] + decay * params[key]
            params[key] += velocity[key]
        else:
            if decay:
                params[key] *= 1 - decay
            params[key] -= grads[key]
    if factors[0] < 0.5 or factors[1] < 1e-6:  # V and U must not grow without bound
        _settle(params, velocity, factors)
        return SETTLED
    return factors


def _add_times(array, factor, other):
    """array += factor * other, in blocks that stay in cache."""
    rows = max(1, nn.UPDATE_BLOCK // array.shape[1])
    for start in range(0, len(array), rows):
        part = slice(start, start + rows)
        array[part] += factor * other[part]


def _settle(params, velocity, factors):
    """Multiply the factors of ``_deferred_step`` into W1 and its velocity, in place."""
    s, c, e = factors
    if c != 1:
        velocity["W1"] *= c
        _add_times(velocity["W1"], e, params["W1"])
    if s != 1:
        params["W1"] *= s


def _sorted_rows(arrays, columns):
    """A copy of params or velocity with the rows of W1 in the order of the sorted pixels."""
    return arrays and {key: w[columns] if key == "W1" else w.copy() for key, w in arrays.items()}


def _natural_rows(arrays, columns):
    """The inverse of ``_sorted_rows``."""
    return arrays and {**arrays, "W1": arrays["W1"][np.argsort(columns)]}


def _sorted_batches(order, inked, size):
    """The order of an epoch, with the images of each batch sorted by their number of inked columns."""
    batch = np.arange(len(order)) // size
    return order[np.argsort(batch * (inked.max() + 1) + inked[order], kind="stable")]


def _inked_columns(pixels, rows):
    """Images, which are sorted by their inked columns, without the columns behind all of their ink."""
    return pixels["images"].take(rows, axis=0)[:, : _inked_width(pixels, rows[-1])]


def _inked_width(pixels, row):
    """The inked columns of an image, in whole cache lines: 16 columns, or a multiple of that."""
    lines = max(1, -(-int(pixels["inked"][row]) // 16))
    return min(16 * lines, pixels["images"].shape[1])


def _blank_corner(pixels, rows, inked):
    """Three quarters of the images, behind their ink: ``nn.forward`` may leave that out if it is worth it."""
    most = len(rows) * 3 // 4
    columns = _inked_width(pixels, rows[most - 1])
    return (most, columns) if columns < 0.9 * inked else None


def _first_rows(arrays, count):
    return {**arrays, "W1": arrays["W1"][:count]}


def part_figures(params, data, part, config):
    """``{"val_loss": ..., "val_accuracy": ...}`` of a part of the data, as in a row of the history."""
    loss, accuracy = evaluate(params, data["pixels"][part], data[part][1], data["pixel_steps"], config)
    return {f"{part}_loss": loss, f"{part}_accuracy": accuracy}


EVALUATED_AT_ONCE = 500  # images: they fit the cache
NO_FIGURES = {part: {f"{part}_loss": None, f"{part}_accuracy": None} for part in PARTS}


def evaluate(params, pixels, labels, steps, config):
    """Loss (without weight decay) and accuracy on a part of the data, or (None, None) without images.

    Parameters
    ----------
    params : dict
    pixels : dict
        From ``sorted_pixels``. Images with little ink are taken together, so that the products
        leave out half of the columns of MNIST.
    labels : int array (n,)
    steps : list of dict
        The fitted steps on pixels.
    config : dict
        From ``check_settings``.
    """
    if not len(labels):
        return None, None
    params = _sorted_rows(params, pixels["columns"])
    order = np.argsort(pixels["inked"], kind="stable")
    outputs = np.empty((len(labels), nn.layer_sizes(params)[-1]), params["W1"].dtype)
    buffer = np.empty(EVALUATED_AT_ONCE * pixels["images"].shape[1], params["W1"].dtype)
    for start in range(0, len(order), EVALUATED_AT_ONCE):
        rows = order[start : start + EVALUATED_AT_ONCE]
        images = _inked_columns(pixels, rows)
        x = preprocess(images, steps, out=buffer[: images.size].reshape(images.shape))
        outputs[rows], _ = nn.forward(_first_rows(params, images.shape[1]), x, config["activation"])
    return nn.loss(params, outputs, labels, config["loss"]), nn.accuracy(outputs, labels)


def _divergence(config, epoch, where):
    return FloatingPointError(
        f"epoch {epoch}, {where}: the loss is no longer finite; try an --lr below {config['lr']:g}"
    )


def should_stop(rows, config):
    """Early stopping: --patience epochs in a row without a gain of more than --min-delta."""
    best, stale = -math.inf, 0
    for row in rows if config["patience"] else []:
        gained = row["val_accuracy"] > best + config["min_delta"]
        best, stale = (row["val_accuracy"], 0) if gained else (best, stale + 1)
    return bool(config["patience"]) and stale >= config["patience"]


def fit(state, data, config, rows=(), on_epoch=lambda state, rows: None, progress=lambda n: None, until=None):
    """Fold ``train_epoch`` over the epochs that are left, until the last or ``should_stop``.

    Parameters
    ----------
    state, data, config, progress
        As for ``train_epoch``.
    rows : list of dict
        The history so far.
    on_epoch : function
        Called with the new state and all rows after each epoch.
    until : int, optional
        Pause after this epoch, to go on later; the schedule is still that of all epochs.

    Returns
    -------
    state, rows
    """
    rows = list(rows)
    last = config["epochs"] if until is None else min(until, config["epochs"])
    while state["epoch"] < last and not should_stop(rows, config):
        state, row = train_epoch(state, data, config, progress)
        rows.append(row)
        on_epoch(state, rows)
    return state, rows


# --- the files of a run -----------------------------------------------------------------------

RUN_FILES = ["last.pkl", "params.pkl", "history.csv", "config.json", "predictions.csv", "figures"]


def params_config(config, steps, best):
    """The config that is stored with params: all that is needed to use them."""
    chosen = {"epoch": best["epoch"], "val_accuracy": best["accuracy"]} if best else {"epoch": 0}
    return {**config, "steps": steps, **chosen}


def save_epoch(out, state, rows, config, steps, epochs=1):
    """Write what the last epochs leave: params.pkl when one is the best, history.csv, last.pkl."""
    best = state["best"]
    if best and best["epoch"] > state["epoch"] - epochs:
        nn.save_params(out / "params.pkl", best["params"], params_config(config, steps, best))
    save_rows(out / "history.csv", rows, COLUMNS)
    save_last(out, state, config, steps)


def save_last(out, state, config, steps):
    """Write last.pkl, the state to resume from. It comes last: the other files never lag behind."""
    last = params_config(config, steps, None) | {"epoch": state["epoch"]}
    rest = {name: state[name] for name in ("velocity", "average", "best")}
    nn.save_params(out / "last.pkl", state["params"], last, **rest)


def load_last(out):
    """``(state, rows, config)`` from a folder that a run has left."""
    last = nn.load_checkpoint(out / "last.pkl")
    try:
        check_config(last["params"], last["config"])
        facts, inputs = last["config"]["data"], nn.layer_sizes(last["params"])[0]
        check_steps(last["config"]["steps"], facts["image_shape"], inputs)
        settings = check_settings({name: last["config"][name] for name in SETTINGS})
        config = {**settings, "data": last["config"]["data"]}
        state = {key: last[key] for key in ("params", "velocity", "average", "best")}
        state["epoch"] = last["config"]["epoch"]
        _check_state(state, config)
        rows = load_rows(out / "history.csv")[: state["epoch"]] if state["epoch"] else []
        _check_rows(rows, state["epoch"], config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{out / 'last.pkl'} cannot be resumed: {error}") from error
    return state, rows, config


def _check_state(state, config):
    """Raise a ValueError, KeyError or TypeError unless a run with that config can be in that state."""
    params, velocity, average, best, epoch = (
        state[key] for key in ("params", "velocity", "average", "best", "epoch")
    )
    if nn.layer_sizes(params)[1:-1] != config["hidden"]:
        raise ValueError("its params do not have the hidden layers of its config")
    if type(epoch) is not int or epoch < 0:
        raise ValueError("its epoch is no whole number")
    if not isinstance(best, (dict, type(None))):
        raise ValueError("its best epoch is no dict")
    if (velocity is None) != (config["momentum"] == 0) or (best is None) != (epoch == 0):
        raise ValueError("its velocity or best epoch is missing, or there is one too many")
    if (average is None) != (config["ema"] == 0 or epoch == 0):
        raise ValueError("its average of the params is missing, or there is one too many")
    for arrays in (params, velocity, average, None if best is None else best["params"]):
        if arrays is None:
            continue
        nn.check_params(arrays)
        if arrays["W1"].dtype != DTYPES[config["dtype"]]:
            raise ValueError(f"its arrays are not {config['dtype']}")
        if nn.layer_sizes(arrays) != nn.layer_sizes(params):
            raise ValueError("its arrays differ in shape")
    if best is not None:
        kind = float if config["val_size"] else type(None)
        if (
            not isinstance(best["accuracy"], kind)
            or type(best["epoch"]) is not int
            or not 1 <= best["epoch"] <= epoch
        ):
            raise ValueError("its best epoch is none of its epochs")


def _check_rows(rows, epochs, config):
    """Raise a ValueError or KeyError unless rows are the history of so many epochs."""
    if len(rows) != epochs or any(row["epoch"] != i for i, row in enumerate(rows, start=1)):
        raise ValueError(f"history.csv does not hold its {epochs} epochs")
    needed = {"epoch", "lr", "seconds"} | ({"val_accuracy"} if config["val_size"] else set())
    for row in rows:  # the other figures are missing where a search has not looked at them
        if set(row) != set(COLUMNS) or any(row[name] is None for name in needed):
            raise ValueError("history.csv lacks columns or figures")
        if not all(math.isfinite(value) for value in row.values() if value is not None):
            raise ValueError("history.csv holds nan or inf")


HALF_WRITTEN = re.compile(r"\.(json|csv|pkl)\.[\d-]+\.part$")  # see nn.save_bytes


@contextlib.contextmanager
def locked(out):
    """Hold a folder for one run at a time; what a killed run left half written is removed.

    The lock is the kernel's, on a file that is removed at the end: it ends with its process,
    however that dies.

    Raises
    ------
    BlockingIOError
        Another run holds the folder.
    OSError
        Nothing can be written there.
    """
    path = out / ".lock"
    while True:
        with open(path, "a") as file:
            try:
                _lock(file.fileno())
            except BlockingIOError:
                raise BlockingIOError(
                    f"another run is writing to {out}; wait for it or choose another --out"
                ) from None
            if not _is_open_file(path, file):
                continue  # its last holder removed it between our opening and locking it
            try:
                for half in out.glob("*.part"):
                    if HALF_WRITTEN.search(half.name):
                        half.unlink()
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows does not remove a file that is open
                    path.unlink()
            return


def _is_open_file(path, file):
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(descriptor):
    """Lock an open file without waiting; BlockingIOError if another process has it locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks, as some clusters have: better to train than to refuse


def keep_previous(out):
    """Move an earlier run's files from ``out`` to ``out/previous-N``; returns that folder or None."""
    found = [name for name in RUN_FILES if (out / name).exists()]
    if not found:
        return None
    number = 1
    while (kept := out / f"previous-{number}").exists():
        number += 1
    kept.mkdir()
    for name in found:  # last.pkl first: from then on nothing can resume half a run
        shutil.move(out / name, kept / name)
    return kept


# --- command line -----------------------------------------------------------------------------


def add_settings(parser):
    """A flag for each of SETTINGS; only flags that are given appear in what is parsed."""
    for name, (default, check, text) in SETTINGS.items():
        if check is switch:
            kind = {"action": argparse.BooleanOptionalAction}
        else:
            kind = {"nargs": "+" if isinstance(default, list) else None, "metavar": "X"}
        shown = SHOWN_DEFAULTS.get(name, default)
        parser.add_argument(flag(name), default=argparse.SUPPRESS, help=f"{text} (default: {shown})", **kind)


SHOWN_DEFAULTS = {
    "hidden": 292,
    "preprocess": "scale",
    "augment": "none",
    "nesterov": "off",
    "train_size": "all",
    "lr_decay": "by schedule",
    "split_seed": "as --seed",
}


def as_flags(settings):
    """The flags that give these settings, as a list of words; what is a default is left out."""
    words = []
    for name, default in DEFAULTS.items():
        value = settings[name]
        if isinstance(value, bool) and value != default:
            words += [flag(name) if value else flag(f"no_{name}")]
        elif value != default:
            words += [flag(name), *map(str, (value or [0]) if isinstance(value, list) else [value])]
    return words


def changed(settings, given):
    """Settings with those that are given anew; another schedule does not inherit a decay."""
    schedule = settings.get("lr_schedule", given.get("lr_schedule"))
    if given.get("lr_schedule", schedule) != schedule:
        settings = {name: value for name, value in settings.items() if name != "lr_decay"}
    return {**settings, **given}


def load_settings(path):
    """Settings from a JSON file, which may be an earlier run's config.json."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object of settings")
    return {name: value for name, value in content.items() if name not in RECORDS}


def run_config(settings, dataset):
    """The config of a run: its settings, and the facts about the dataset that it is trained on."""
    facts = {key: dataset[key] for key in ("title", "image_shape", "class_names", "sha256")}
    return {**settings, "dataset": dataset["name"], "data": facts}


def start_run(settings, data_dir):
    """State, rows, config and data of a new run."""
    check_memory(settings, *least_size(settings["dataset"]))
    dataset = load_dataset(settings["dataset"], data_dir)
    check_memory(settings, *dataset["train_images"].shape, len(dataset["class_names"]))
    config = run_config(settings, dataset)
    data = prepare(dataset, config)
    return init_state(data, config), [], config, data


def resume_run(out, given, data_dir):
    """State, rows, config and data of the run in ``out``; only --epochs may be given anew."""
    state, rows, config = load_last(out)
    for name, value in check_settings(changed({n: config[n] for n in SETTINGS}, given)).items():
        if name == "epochs" and value >= state["epoch"]:
            config["epochs"] = value
        elif name == "epochs":
            raise ValueError(f"--epochs: the run in {out} has done {state['epoch']} already, not {value}")
        elif value != config[name] and (name, value) != ("dataset", "auto"):
            raise ValueError(
                f"{flag(name)}: the run in {out} has {config[name]}; --resume goes on with it as it "
                f"is (leave the flag out, or start a new run without --resume)"
            )
    dataset = load_dataset(config["dataset"], data_dir)
    if dataset["sha256"] != config["data"].get("sha256"):
        raise ValueError(f"the data set {config['dataset']} is not the one that the run in {out} used")
    config = run_config(config, dataset)
    return state, rows, config, prepare(dataset, config)


def figures_text(row, parts=PARTS):
    """Loss and accuracy of each part that has images, aligned."""
    shown = [part for part in parts if row[f"{part}_loss"] is not None]
    return "   ".join(
        f"{part} {row[f'{part}_loss']:.4f} {100 * row[f'{part}_accuracy']:6.2f} %" for part in shown
    )


def describe(config, data, params):
    """Two lines that say what is about to be trained on what."""
    counts = [f"{len(data[part][0]):,} {name}" for part, name in PART_NAMES.items() if len(data[part][0])]
    rows, columns = config["data"]["image_shape"]
    size = sum(w.size for w in params.values())
    layers = "-".join(map(str, nn.layer_sizes(params)))
    return (
        f"{config['data']['title']}: {', '.join(counts)} images of {rows}x{columns}, "
        f"{data['classes']} classes\n"
        f"{layers}, {config['activation'] if config['hidden'] else 'softmax regression'}, {size:,} params"
    )


PART_NAMES = {"train": "training", "val": "validation", "test": "test"}


def save_record(out, config, status, rows=(), best=None):
    """Write config.json: settings, data set, versions, status, and the figures reached."""
    result = None
    if rows:
        chosen = rows[best["epoch"] - 1] if best else rows[-1]
        result = {"kept": chosen, "last": rows[-1], "seconds": round(sum(r["seconds"] for r in rows), 3)}
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    record = {**config, "versions": versions, "status": status, "result": result}
    save_json(out / "config.json", record)


def main(argv=None):
    parser = make_parser("Train a neural network and write it to a folder.")
    add_settings(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="results",
        help="folder for the run's files (default: results); a run that is already there is kept, "
        "in DIR/previous-N",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, from its last whole epoch"
    )
    parser.add_argument("--config", metavar="FILE", help="JSON file of settings; flags that are given win")
    parser.add_argument("--quiet", action="store_true", help="print only the summary")
    flags = parse_flags(parser, argv)
    given = {name: value for name, value in vars(flags).items() if name in SETTINGS}
    if flags.config:
        given = changed(load_settings(flags.config), given)
    out = pathlib.Path(flags.out)
    resumes = flags.resume and (out / "last.pkl").exists()  # then the run's settings are checked with these
    settings = None if resumes else check_settings(given)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        run_in(out, flags, given, settings)


def run_in(out, flags, given, settings):
    """Start or resume the run in a folder and see it through; the folder is ours alone meanwhile."""
    say = (lambda *lines: None) if flags.quiet else (lambda *lines: print(*lines, sep="\n", flush=True))
    state, rows, config, data = open_run(out, flags, given, settings, say)
    save_record(out, config, "running", rows, state["best"])
    say(describe(config, data, state["params"]))
    reached = {"state": state, "rows": rows, "since": time.perf_counter()}
    started = {"epoch": state["epoch"], "time": reached["since"]}

    with progress_line() as show:

        def progress(done):
            show(live_line(done, len(data["train"][0]), config, reached, started))

        def on_epoch(state, rows):
            save_epoch(out, state, rows, config, data["steps"])
            reached.update(state=state, rows=rows, since=time.perf_counter())
            show("")
            say(epoch_line(rows[-1], config))

        status = "stopped"
        try:
            fit(state, data, config, rows, on_epoch, progress)
            status = "finished"
        except FloatingPointError:
            status = "diverged"
            raise
        except KeyboardInterrupt:
            epoch = reached["state"]["epoch"]
            raise KeyboardInterrupt(f"{epoch} whole epochs are in {out}; --resume goes on") from None
        finally:
            save_record(out, config, status, reached["rows"], reached["state"]["best"])

    if len(reached["rows"]) < config["epochs"]:
        say(f"stopped early: no gain in {config['patience']} epochs")
    print(summary(reached["rows"], reached["state"]["best"], config))
    print(f"its params are in {out / 'params.pkl'}; judge them with: python test.py {out}")


def open_run(out, flags, given, settings, say):
    """State, rows, config and data of the run to go on with, or of a new one."""
    if settings is None:
        run = resume_run(out, given, flags.data_dir)
        say(f"resuming the run in {out} after epoch {run[0]['epoch']}")
        return run
    state, rows, config, data = start_run(settings, flags.data_dir)
    if flags.resume:
        say(f"no run to resume in {out}: starting a new one")
    if kept := keep_previous(out):
        say(f"the run that was in {out} is kept in {kept}")
    save_last(out, state, config, data["steps"])
    return state, rows, config, data


def live_line(done, images, config, reached, started):
    """Where an epoch is, in images, images a second, and the time left for all epochs."""
    now, epoch = time.perf_counter(), reached["state"]["epoch"]
    share = (epoch - started["epoch"] + done / images) / (config["epochs"] - started["epoch"])
    return (
        f"epoch {epoch + 1}/{config['epochs']}   {done:,}/{images:,} images   "
        f"{done / (now - reached['since']):,.0f} images/s   "
        f"{(now - started['time']) * (1 - share) / share:.0f} s left"
    )


def epoch_line(row, config):
    width = len(str(config["epochs"]))
    figures = f"{figures_text(row)}   {row['seconds']:.2f} s"
    return f"epoch {row['epoch']:{width}}/{config['epochs']}   lr {row['lr']:.4g}   {figures}"


def summary(rows, best, config):
    kept = rows[best["epoch"] - 1]
    why = "the last" if kept["val_accuracy"] is None else "the best on validation"
    return f"{config['data']['title']}, epoch {kept['epoch']} ({why}): {figures_text(kept)}"


if __name__ == "__main__":
    sys.exit(run_script(main))
