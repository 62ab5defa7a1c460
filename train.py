"""One training run: from a config to files in ``results/``.

    python train.py --lr 0.25 --hidden 292

Training is a fold over epochs: ``train_epoch(state, sets, config) -> (state, row)``. The state is
everything that the next epoch depends on, the row is a line of the history, and the epoch's
randomness comes from the seed and the epoch's number. So a run can be stopped anywhere and
resumed with the same bits.

In this order: the fold, the data of a run, settings, files, the command line, and what is only for
speed.
"""

import data  # first: while the rest is imported, Ctrl-C is one line already

# isort: split
import argparse
import contextlib
import math
import os
import pathlib
import platform
import reprlib
import shutil
import sys
import time

import numpy as np

import nn

# --- the fold ---------------------------------------------------------------------------------


def train_epoch(state, sets, config, progress=lambda images: None):
    """One epoch of mini-batch gradient descent, and its line of the history.

    Parameters
    ----------
    state : dict
        ``params``; ``velocity`` (None without momentum); ``average``, the moving average of the
        params (None without ``ema`` and before the first epoch); ``epoch``, the number of epochs
        done; ``best``: None, or ``epoch``, ``accuracy`` and ``params`` of the best epoch so far.
        Left as it is.
    sets : dict
        From ``prepare``.
    config : dict
        From ``check_settings``.
    progress : function
        Called with the number of images done in this epoch.

    Returns
    -------
    state : dict
    row : dict
        ``epoch`` (from 1), ``lr`` of the last step, loss and accuracy of each part after the epoch
        (None for a part without images, or not to be evaluated), ``seconds`` of the steps alone.
        Losses are without weight decay.

    Raises
    ------
    FloatingPointError
        The loss stopped being finite; the message names the epoch and the step.
    """
    started, epoch = time.perf_counter(), state["epoch"] + 1
    columns = None if config["augment"] else sets["columns"]  # W1's rows lie as the columns of x do
    params, velocity = (in_order(state[name], columns) for name in ("params", "velocity"))  # copies
    weights, cache = class_weights(sets["train"]["labels"], sets["classes"], config), None
    room = {key: np.empty_like(w) for key, w in params.items()}  # for the gradients of each step
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by isfinite
        for batch in epoch_batches(epoch, sets, config):
            x = disturbed(params, batch, sets, config)
            outputs, cache = nn.forward(
                params, x, config["activation"], config["dropout"], batch["rng"],
                out=cache, blank=batch["blank"],
            )  # fmt: skip
            if not math.isfinite(outputs.sum()):  # as good as a loss that is not finite, and cheaper
                raise divergence(config, epoch, f"step {batch['step']}")
            grads = nn.backward(
                params, cache, batch["y"], config["loss"], label_smoothing=config["label_smoothing"],
                scale=batch["scale"], class_weight=weights, out=room,
            )  # fmt: skip
            params, velocity = take_step(params, grads, velocity, batch, config)
            progress(batch["done"])
        params, velocity = (in_natural_order(arrays, columns) for arrays in (params, velocity))
        seconds = time.perf_counter() - started
        return end_epoch(state, params, velocity, batch["lr"], seconds, sets, config)


def end_epoch(state, params, velocity, lr, seconds, sets, config):
    """The state and the row after an epoch whose steps led to these params and velocity."""
    average = nn.average(params, state["average"] or params, config["ema"]) if config["ema"] else None
    judged = average or params
    row = {"epoch": state["epoch"] + 1, "lr": lr}
    for part in PARTS:
        try:
            row |= part_figures(judged, sets, part, config) if part in sets["evaluate"] else NO_FIGURES[part]
        except FloatingPointError:
            raise divergence(config, row["epoch"], "after its last step") from None
    row["seconds"] = round(seconds, 4)
    accuracy = row["val_accuracy"]  # None without validation images: then the last epoch is kept
    best = state["best"]
    if accuracy is None or best is None or accuracy > best["accuracy"]:
        best = {"epoch": row["epoch"], "accuracy": accuracy, "params": judged}
    state = {"params": params, "velocity": velocity, "average": average, "epoch": row["epoch"], "best": best}
    return state, row


def divergence(config, epoch, where):
    return FloatingPointError(
        f"epoch {epoch}, {where}: the loss is no longer finite; try an --lr below {config['lr']:g}"
    )


def fit(state, sets, config, rows=(), progress=lambda images: None):
    """Fold ``train_epoch`` over the epochs that are left, until the last or ``should_stop``.

    Takes what ``train_epoch`` takes, and the rows of the history so far; yields state and row after each.
    """
    rows = list(rows)
    while state["epoch"] < config["epochs"] and not should_stop(rows, config):
        state, row = train_epoch(state, sets, config, progress)
        rows.append(row)
        yield state, row


def should_stop(rows, config):
    """Early stopping: --patience epochs in a row without a gain of more than --min-delta."""
    if not config["patience"]:
        return False
    best, stale = -math.inf, 0
    for row in rows:
        if stale >= config["patience"]:  # here it had stopped, and was told to go on
            best, stale = -math.inf, 0
        gained = row["val_accuracy"] > best + config["min_delta"]
        best, stale = (row["val_accuracy"], 0) if gained else (best, stale + 1)
    return stale >= config["patience"]


def init_state(sets, config):
    """The state before the first epoch."""
    dtype = DTYPES[config["dtype"]]
    inputs = inputs_of(sets["train"]["images"][:1], sets, dtype).shape[1]
    sizes = [inputs, *config["hidden"], sets["classes"]]
    rng = np.random.default_rng(config["seed"])
    params = nn.init_params(rng, sizes, config["activation"], config["init"], dtype)
    _, _, moments, _ = OPTIMIZERS[config["optimizer"]]
    velocity = nn.first_moments(params, moments) if moments else None
    if config["momentum"]:
        velocity = {key: np.zeros_like(w) for key, w in params.items()}
    return {"params": params, "velocity": velocity, "average": None, "epoch": 0, "best": None}


def epoch_batches(epoch, sets, config):
    """Yield the batches of an epoch (from 1) in their random order.

    Each is a dict: ``x`` (n, inputs) and ``blank`` for ``nn.forward``, ``y`` (n,), ``rng``, ``lr``,
    ``step`` (from 1), ``done``, the number of images up to its end, and three that are only for speed, see
    ``step_factors``. All x share one buffer: a batch is gone when the next one is taken.
    """
    part, total = sets["train"], len(sets["train"]["labels"])
    size = min(config["batch_size"], total)
    rng = np.random.default_rng([config["seed"], epoch])
    order = batches_by_ink(rng.permutation(total), part["inked"], size)
    labels, starts = part["labels"][order], range(0, total, size)
    lrs = [learning_rate(config, epoch - 1 + start / total) for start in starts]
    distort = augmentation(sets, config)
    buffer = np.empty(size * part["images"].shape[1], DTYPES[config["dtype"]])
    for step, (start, factors) in enumerate(zip(starts, step_factors(lrs, config)), start=1):
        rows = order[start : start + size]
        images, blank = (distort(rows, rng), None) if distort else inked_columns(part, rows)
        x = buffer[: images.size].reshape(images.shape)
        x = inputs_of(images, sets, x.dtype, out=x, times=factors["times"])
        yield {
            "x": x, "y": labels[start : start + size], "blank": blank, "rng": rng, "lr": lrs[step - 1],
            "step": step, "done": start + len(rows), **factors,
        }  # fmt: skip


def inputs_of(images, sets, dtype, out=None, times=1.0):
    """The numbers that the network gets for images of ``sets``, as ``data.to_numbers``."""
    if sets["late"]:
        images = out = data.gradients(images, sets["late"], dtype)
    return data.to_numbers(images, sets["steps"], dtype, out, times)


def disturbed(params, batch, sets, config):
    """The inputs of a batch, changed in place.

    Half of the images are moved against the network (``adversarial``: Goodfellow, Shlens & Szegedy 2015),
    and then a share of the inputs is switched off (``input_dropout``).
    """
    x = batch["x"]
    if config["adversarial"]:
        half, labels = x[len(x) // 2 :], batch["y"][len(x) // 2 :]
        slope = nn.input_gradient(params, half, labels, config["activation"], config["loss"])
        half[...] = data.moved_along(slope, half, sets["steps"], config["adversarial"], batch["times"])
    if config["input_dropout"]:
        x *= nn.dropout_mask(x.shape, config["input_dropout"], batch["rng"], x.dtype)
    return x


def augmentation(sets, config):
    """A function from the numbers of training images to their distorted images, or None without any."""
    how = data.make_augment(
        config["augment"], sets["image_shape"], **{name: config[name] for name in data.STRENGTHS}
    )
    images, dtype = sets["train"]["images"], DTYPES[config["dtype"]]
    if how is None:
        return None
    natural = slice(None) if sets["columns"] is None else np.argsort(sets["columns"])

    def distort(rows, rng):
        pictures = images[rows][:, natural]
        return data.augment(pictures, how, rng, out=np.empty(pictures.shape, dtype))

    return distort


def take_step(params, grads, velocity, batch, config):
    """One step of the optimiser, in place."""
    if config["clip_norm"]:
        grads = nn.clip_norm(grads, config["clip_norm"], out=grads)
    if batch["lazy"]:
        return lazy_step(params, grads, velocity, batch, config)
    step, names, _, _ = OPTIMIZERS[config["optimizer"]]
    options = {name: config[name] for name in names}
    params, velocity = step(params, grads, velocity, batch["lr"], **options, out=(params, velocity))
    if config["max_norm"]:
        params = nn.limit_norms(params, config["max_norm"], out=params)
    return params, velocity


def class_weights(labels, classes, config):
    """Factors (k,) on the loss of the images of each class, of mean 1 over the training images, or None."""
    if not config["class_weight"]:
        return None
    counts = np.bincount(labels, minlength=classes)
    weights = 1 / np.maximum(counts, 1) if config["class_weight"] == ["balanced"] else config["class_weight"]
    if len(weights) != len(counts):
        raise ValueError(f"--class-weight: there are {len(counts)} classes, not {len(weights)}")
    weights = np.where(counts, weights, 0.0)
    if not weights.any():
        raise ValueError("--class-weight: it is 0 for all training images")
    return weights * (counts.sum() / (counts @ weights))


OPTIMIZERS = {  # name -> its step, the settings that this takes, the moments that it keeps, its default lr
    "sgd": (nn.sgd_step, ("momentum", "nesterov", "weight_decay"), (), 0.2475),
    "adam": (nn.adam_step, ("beta1", "beta2", "eps", "weight_decay"), ("m", "v"), 0.001),
    "rmsprop": (nn.rmsprop_step, ("beta2", "eps", "weight_decay"), ("v",), 0.001),
}
LR_SCHEDULES = {  # lr after t epochs, whole and part, from lr0, decay d, config c
    "constant": lambda lr, d, t, c: lr,
    "inverse": lambda lr, d, t, c: lr / (1 + d * int(t)),
    "exponential": lambda lr, d, t, c: lr * d ** int(t),
    "step": lambda lr, d, t, c: lr * d ** (t // c["lr_step"]),
    "cosine": lambda lr, d, t, c: lr * 0.5 * (1 + math.cos(math.pi * min(1, t / c["epochs"]))),
    "linear": lambda lr, d, t, c: lr * max(0, 1 - t / c["epochs"]),
}
LR_DECAYS = {"inverse": 0.001, "exponential": 0.95, "step": 0.1}  # defaults of those that have one


def learning_rate(config, epochs_done):
    """lr of the step before which so many epochs, whole and part, are done."""
    schedule = LR_SCHEDULES[config["lr_schedule"]]
    warm = min(1, epochs_done / config["warmup"]) if config["warmup"] else 1
    try:
        return warm * schedule(config["lr"], config["lr_decay"], epochs_done, config)
    except OverflowError:  # a decay above 1, grown beyond the largest float: the run will diverge
        return math.inf


# --- the data of a run ------------------------------------------------------------------------

PARTS = {"train": "training", "val": "validation", "test": "test"}
NO_FIGURES = {part: {f"{part}_loss": None, f"{part}_accuracy": None} for part in PARTS}
COLUMNS = ["epoch", "lr", *(name for part in PARTS for name in NO_FIGURES[part]), "seconds"]
EVALUATED_AT_ONCE = 500  # images: they fit the cache
FEW_IMAGES = 5  # of a class to train on: too few to learn it


def prepare(dataset, config, parts=tuple(PARTS)):
    """Split a dataset, fit the preprocessing on its training part, and redraw its pictures.

    Returns
    -------
    dict
        For each of parts a dict of ``images``, uint8 (n, d), after the steps on pictures,
        ``labels`` (n,) and ``inked`` (n,), see ``data.sort_pixels``; ``columns`` (d,), where each
        column of the images was before they were sorted, or None: they are not; ``steps``, the
        fitted preprocessing; ``late``, the one of them that has to wait until the pictures are
        distorted, or None; ``image_shape`` after those before; ``classes``, how many;
        ``evaluate``, the parts whose loss and accuracy are worked out after each epoch.
    """
    train, val = data.split_dataset(dataset, config)
    arrays = {"train": train, "val": val, "test": (dataset["test_images"], dataset["test_labels"])}
    steps = data.fit_steps(config["preprocess"], train[0], dataset["image_shape"])
    late = data.gradient_step(steps) if config["augment"] else None
    early = data.without_gradients(steps) if late else steps
    sets = {
        "steps": steps,
        "late": late,
        "image_shape": data.shape_after(early, dataset["image_shape"]),
        "classes": len(dataset["class_names"]),
        "evaluate": parts,
        "columns": None,
    }
    for part in parts:
        images, labels = data.redraw(arrays[part][0], early), arrays[part][1]
        sets[part] = {"images": images, "labels": labels, "inked": np.full(images.shape[0], images.shape[1])}
        if data.keeps_blank(steps) and not late and not config["adversarial"]:  # which moves blank ones too
            sorted_ = data.sort_pixels(images, sets["columns"])  # all parts as the training images
            sets["columns"] = sorted_.pop("columns")
            sets[part] |= sorted_
    return sets


def part_figures(params, sets, part, config):
    """``{"val_loss": ..., "val_accuracy": ...}`` of a part: means over its images, without weight decay.

    Images with little ink are taken together, so that the products leave out what is blank.
    """
    images = sets[part]
    if not len(images["labels"]):
        return NO_FIGURES[part]
    order = np.argsort(images["inked"], kind="stable")
    labels, params = images["labels"][order], in_order(params, sets["columns"])
    outputs = nn.outputs_of(params, evaluation_batches(images, order, sets, params), config["activation"])
    loss = nn.loss(params, outputs, labels, config["loss"])
    if not math.isfinite(loss):
        raise FloatingPointError("the loss is not finite")
    return dict(zip(NO_FIGURES[part], (loss, nn.accuracy(outputs, labels))))


def evaluation_batches(part, order, sets, params):
    dtype = params["W1"].dtype
    buffer = np.empty(EVALUATED_AT_ONCE * part["images"].shape[1], dtype)
    for start in range(0, len(order), EVALUATED_AT_ONCE):
        images, blank = inked_columns(part, order[start : start + EVALUATED_AT_ONCE])
        x = buffer[: images.size].reshape(images.shape)
        yield {"x": inputs_of(images, sets, dtype, out=x), "blank": blank}


# --- settings ---------------------------------------------------------------------------------


def number(low, high=math.inf, whole=False, above=False, below=False):
    """A check that turns text or a number into one from low to high (or above, below), or raises."""
    kind = "a whole number" if whole else "a number"
    upper = "" if high == math.inf else f" and {'below' if below else 'at most'} {high}"
    wanted = f"{kind} {'above' if above else 'of at least'} {low}{upper}"

    def check(value):
        result = math.nan
        if isinstance(value, (int, float, str, np.integer, np.floating)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                result = float(value)
        fits = (result > low if above else result >= low) and (result < high if below else result <= high)
        if not fits or math.isinf(result) or (whole and result != int(result)):
            raise ValueError(f"must be {wanted}, not {shown(value)}")
        if not whole:
            return result
        with contextlib.suppress(ValueError):  # of text such as 1e3
            return int(value)  # exact beyond 2**53, where a float has gaps
        return int(result)

    return check


def shown(value):
    return reprlib.repr(value[0] if isinstance(value, list) and len(value) == 1 else value)


def share_or_count(value):
    try:
        result = number(0)(value)
        return result if result < 1 else number(0, whole=True)(value)
    except ValueError:
        raise ValueError(f"must be a share below 1, or a whole number from 0, not {shown(value)}") from None


def fold_count(value):
    result = number(0, whole=True)(value)
    if result == 1:
        raise ValueError("must be 0 for none, or at least 2")
    return result


def optional(check):
    return lambda value: None if value is None else check(value)


def one_of(kind, names):
    return lambda value: nn.choose(kind, value, {name: name for name in names})


def switch(value):
    value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def text(value):
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a name, not {shown(value)}")
    return value


def image_size(value):
    return data.setting_text(list(data.parse_size(value)))


def words(value, separator):
    """The words in a text such as ``scale+center``, or in a list of such texts; ``none`` alone is no word."""
    parts = value if isinstance(value, list) else [value]
    found = [word for part in parts for word in (part.split(separator) if isinstance(part, str) else [part])]
    return [] if found == ["none"] else found


def widths(value):
    """Hidden widths from ``292``, ``"512x256"``, ``["512", "256"]`` or ``[512, 256]``; 0 or none is none."""
    try:
        result = [number(0, WIDEST, whole=True)(part) for part in words(value, "x")]
    except ValueError:
        raise ValueError(f"must be whole numbers from 0, such as 512 256, not {shown(value)}") from None
    if 0 in result and len(result) > 1:
        raise ValueError("must be 0 alone, or widths above 0")
    return [width for width in result if width]


def preprocess_names(value):
    names = words(value, "+")
    data.parse_steps(names)
    return names


def class_weight(value):
    """``["balanced"]``, a number for each class, or [] for none."""
    given = words(value, "x")
    if given in ([], ["balanced"]):
        return given
    try:
        weights = [LIMIT(weight) for weight in given]
    except ValueError:
        raise ValueError(f"must be balanced, or numbers from 0, one a class, not {shown(value)}") from None
    if not any(weights):
        raise ValueError("must not be 0 for all classes")
    return weights


def augment_names(value):
    """What to do to the images: at most one of the distortions, and flip."""
    names = [one_of("distortion", data.AUGMENT_NAMES)(name) for name in words(value, "+")]
    if len(names) > 1 and ("none" in names or len(set(names)) < len(names)):
        raise ValueError("must be none alone, or name each kind once")
    if len(set(names) & set(data.DISTORTIONS)) > 1:
        raise ValueError(f"must be one of {', '.join(data.DISTORTIONS)}: each does what those before it do")
    return names


WIDEST = 1_000_000_000  # a hidden layer; what memory allows is far less
DTYPES = {"float32": np.float32, "float64": np.float64}
SHARE = number(0, 1, below=True)
LIMIT = number(0, 1e30)  # float32 ends at 3e38
FAR = number(0, data.LARGEST_STRENGTH)
SEED = number(0, 2**63, whole=True)
STRENGTHS = data.STRENGTHS

# The flags, config files and search spaces follow this table.
# fmt: off
GROUPS = {  # group -> name -> default, check, what a value looks like, help
    "data": {
        "dataset": ("auto", text, "NAME",
            f"{', '.join(data.DATASET_NAMES)}; or a file (.csv, .npz, .pkl), or a folder with such files, "
            "with .npy or IDX files, or with pictures in a folder for each class"),
        "size": (None, optional(image_size), "RxC",
            "rows x columns, as 28x28: pictures are resized to it; rows of numbers are images of that shape"),
        "transpose": (False, switch, None, "swap rows and columns of the images, as EMNIST needs it"),
        "val_size": (0.1, share_or_count, "N", "training images held out for validation, or a share of them"),
        "train_size": (None, optional(number(1, whole=True)), "N", "use only so many training images"),
        "holdout": ("stratified", one_of("holdout", data.HOLDOUTS), "NAME",
            "stratified: random images, of each class as large a share; random; last: the last ones"),
        "folds": (0, fold_count, "N",
            "deal the training images to so many folds, and hold out one; a search: each in turn"),
        "fold": (1, number(1, whole=True), "N", "the fold to hold out, with --folds; from 1"),
        "split_seed": (None, optional(SEED), "N",
            "seed of the split alone, so that runs of different seeds hold out the same images"),
        "preprocess": (["scale"], preprocess_names, "STEP",
            f"applied in this order; of {', '.join(data.STEP_NAMES)}"),
    },
    "network": {
        "hidden": ([292], widths, "N", "widths of the hidden layers, as 292 or 512 256; 0 for none"),
        "activation": ("relu", one_of("activation", nn.ACTIVATIONS), "NAME",
            f"of the hidden layers: {', '.join(nn.ACTIVATIONS)}"),
        "loss": ("cross_entropy", one_of("loss", nn.LOSSES), "NAME", f"{', '.join(nn.LOSSES)}"),
        "init": ("auto", one_of("init", nn.INIT_NAMES), "NAME",
            f"spread of the first weights: {', '.join(nn.INIT_NAMES)}; auto is the activation's own"),
        "dtype": ("float32", one_of("dtype", DTYPES), "NAME", f"of all numbers: {', '.join(DTYPES)}"),
        "seed": (0, SEED, "N", "of the split, the first weights and all epochs"),
    },
    "training": {
        "epochs": (50, number(1, whole=True), "N", "passes over the training images"),
        "batch_size": (128, number(1, whole=True), "N", "images in a step"),
        "optimizer": ("sgd", one_of("optimizer", OPTIMIZERS), "NAME", f"{', '.join(OPTIMIZERS)}"),
        "lr": (None, optional(number(0, above=True)), "X",
            f"learning rate; or {', '.join(f'{o[-1]} for {name}' for name, o in OPTIMIZERS.items())}"),
        "lr_schedule": ("constant", one_of("lr schedule", LR_SCHEDULES), "NAME",
            "constant; inverse: lr / (1 + d t); exponential: lr d^t; step: times d every --lr-step epochs; "
            "cosine, linear: to 0 over all epochs, step by step (d is --lr-decay, t the epochs done)"),
        "lr_decay": (None, optional(number(0)), "X",
            f"d of the schedule; without it {', '.join(f'{d} for {s}' for s, d in LR_DECAYS.items())}"),
        "lr_step": (10, number(1, whole=True), "N", "epochs between the drops of the step schedule"),
        "warmup": (0.0, number(0), "X", "epochs in which lr grows from 0 to that of the schedule"),
        "momentum": (0.0, SHARE, "X", "share of the last step that goes into the next"),
        "nesterov": (False, switch, None, "Nesterov's form of momentum"),
        "beta1": (0.9, SHARE, "X", "adam: share of the mean gradient that is kept in a step"),
        "beta2": (0.999, SHARE, "X", "adam, rmsprop: share of the mean squared gradient that is kept"),
        "eps": (1e-8, number(1e-30, 1e30), "X", "adam, rmsprop: added to the root of the mean square"),
        "clip_norm": (0.0, LIMIT, "X", "largest norm of all gradients together; 0: no limit"),
    },
    "against overfitting": {
        "weight_decay": (2.5e-7, number(0), "X", "L2 penalty: 0.5 * weight decay * sum of squared weights"),
        "dropout": (0.0, SHARE, "X", "share of hidden units switched off in a step"),
        "input_dropout": (0.0, SHARE, "X", "share of inputs switched off in a step"),
        "adversarial": (0.0, number(0, 1), "X",
            "move half of each batch by so much (1: from black to white) along the sign of the loss's slope"),
        "max_norm": (0.0, LIMIT, "X", "largest norm of the weights into a hidden unit; 0: no limit"),
        "label_smoothing": (0.0, SHARE, "X", "share of the target given to all classes alike"),
        "ema": (0.0, SHARE, "X",
            "judge and keep a moving average of the params over epochs: ema * average + (1 - ema) * params"),
        "patience": (0, number(0, whole=True), "N",
            "stop after so many epochs in a row without a gain in validation accuracy; 0: never"),
        "class_weight": ([], class_weight, "X",
            "balanced: classes count alike, however many images they have; or one number a class"),
        "min_delta": (0.0, number(0, 1), "X", "least gain that counts for --patience (0.001 is 0.1 points)"),
    },
    "distortions": {
        "augment": ([], augment_names, "KIND",
            f"distort the images anew for each epoch; of {', '.join(data.AUGMENT_NAMES)}"),
        "max_shift": (STRENGTHS["max_shift"], FAR, "PIXELS", "largest shift"),
        "max_rotation": (STRENGTHS["max_rotation"], number(0, 180), "DEGREES", "largest rotation"),
        "max_scaling": (STRENGTHS["max_scaling"], SHARE, "X",
            "largest share by which width and height grow or shrink"),
        "max_shear": (STRENGTHS["max_shear"], number(0, 10), "X", "largest slant, in columns a row"),
        "bend": (STRENGTHS["bend"], FAR, "PIXELS", "root mean square of the elastic displacement"),
        "smooth": (STRENGTHS["smooth"], number(data.LEAST_SMOOTH, data.LARGEST_STRENGTH), "PIXELS",
            "radius of the Gaussian that smooths it"),
    },
}
# fmt: on
SETTINGS = {name: row for group in GROUPS.values() for name, row in group.items()}
DEFAULTS = {name: row[0] for name, row in SETTINGS.items()}
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
    if config["lr"] is None:
        config["lr"] = OPTIMIZERS[config["optimizer"]][-1]
    if config["momentum"] and config["optimizer"] != "sgd":
        raise ValueError(f"--momentum: {config['optimizer']} has none")
    if config["nesterov"] and not config["momentum"]:
        raise ValueError("--nesterov: needs a --momentum above 0")
    if config["adversarial"] and {*data.GRADIENT_STEPS} & dict(data.parse_steps(config["preprocess"])).keys():
        raise ValueError("--adversarial: moves pixels, and --preprocess makes gradients of them")
    if config["folds"] and config["fold"] > config["folds"]:
        raise ValueError(f"--fold: there are {config['folds']} folds (see --folds)")
    if config["patience"] and not (config["val_size"] or config["folds"]):
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


def changed(settings, given):
    """Settings with those that are given anew; another schedule or optimiser takes its own decay or lr."""
    for chosen, follows in (("lr_schedule", "lr_decay"), ("optimizer", "lr")):
        before = settings.get(chosen, given.get(chosen))
        if given.get(chosen, before) != before:
            settings = {name: value for name, value in settings.items() if name != follows}
    return {**settings, **given}


# --- memory -----------------------------------------------------------------------------------


def memory_needed(config, images, pixels, classes, runs=1):
    """Bytes that so many runs at once hold at most; they share the images.

    Parameters
    ----------
    config : dict
        From ``check_settings``.
    images, pixels, classes : int
        Training images, pixels of an image, and classes.
    """
    sizes = [data.most_inputs(config["preprocess"], pixels), *config["hidden"], classes]
    params = sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(sizes, sizes[1:]))
    at_once = min(images, max(config["batch_size"], EVALUATED_AT_ONCE))
    numbers = 20 * params + 4 * at_once * sum(sizes) + 5 * images * classes
    return runs * numbers * np.dtype(DTYPES[config["dtype"]]).itemsize + 3 * images * pixels


def check_memory(config, images, pixels, classes, runs=1):
    """Raise a MemoryError when so many runs may need more memory than there is, before any is taken."""
    needed, free = memory_needed(config, images, pixels, classes, runs), available_memory()
    if free is not None and needed > free:
        who, fewer = ("this run", "") if runs == 1 else (f"{runs} trials at once", "fewer --workers, or ")
        raise MemoryError(
            f"{who} would need up to {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; "
            f"try {fewer}a smaller --hidden, --batch-size or --train-size"
        )


def least_size(name):
    """Training images, pixels and classes that a data set has at least, before it is loaded."""
    return (60_000, 784, 10) if name in data.DATASET_NAMES else (1, 1, 1)


def available_memory():
    """Bytes of memory that are free to use, or None where the system does not tell."""
    known = []
    with contextlib.suppress(OSError, StopIteration):  # Linux
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        known.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(OSError, ValueError):  # a container's limit, which may be "max"
        known.append(int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    with contextlib.suppress(AttributeError, ValueError, OSError):  # elsewhere: all that is built in
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(known, default=None)


# --- the files of a run -----------------------------------------------------------------------

RUN_FILES = ["last.pkl", "params.pkl", "history.csv", "config.json", "predictions.csv", "figures"]
TABLES = ["trials.csv", "groups.csv", "oof.csv", "test.csv"]  # of a search
LOCKED_FILES = [*RUN_FILES[:4], "search.json", *TABLES]  # written by none but who holds the lock
STATE = {  # what last.pkl holds, beside params and what data.load_run asks for
    "velocity": (dict, None),
    "average": (dict, None),
    "best": ({"epoch": int, "accuracy": (float, None), "params": dict}, None),
    "config": {"epoch": int, "data": dict},
}


def save_epoch(out, state, rows, config, steps, epochs=1):
    """Write what the last epochs leave: params.pkl when one is the best, history.csv, last.pkl.

    last.pkl, the state to resume from, comes last: the other files never lag behind.
    """
    best, used = state["best"], {**config, "steps": steps}  # all that is needed to use the params
    if best is None:
        (out / "params.pkl").unlink(missing_ok=True)  # of a first epoch that was killed
    elif best["epoch"] > state["epoch"] - epochs:
        chosen = used | {"epoch": best["epoch"], "val_accuracy": best["accuracy"]}
        nn.save_params(out / "params.pkl", best["params"], chosen)
    data.save_rows(out / "history.csv", rows, COLUMNS)
    rest = {name: state[name] for name in ("velocity", "average", "best")}
    nn.save_params(out / "last.pkl", state["params"], used | {"epoch": state["epoch"]}, **rest)


def load_last(out):
    """``(state, rows, config)`` from a folder that a run has left."""
    path = out / "last.pkl"
    last = nn.load_checkpoint(path)
    try:
        stored = data.read_config(last["params"], last["config"])
        nn.check(last, STATE, "it")
        settings = check_settings({name: stored[name] for name in SETTINGS if name in stored})
        state = {name: last[name] for name in ("params", "velocity", "average", "best")}
        state["epoch"] = stored["epoch"]
        rows = load_history(out, state["epoch"], bool(settings["val_size"]))
        check_state(state, settings)
    except ValueError as error:
        raise ValueError(f"{path} cannot be resumed: {error}") from error
    return state, rows, {**settings, "data": stored["data"], "steps": stored["steps"]}


def last_estimates(out, images):
    """Estimates (n, k) by the last params of a run's folder, or by their average with --ema."""
    state, _, config = load_last(out)
    params = state["average"] or state["params"]
    batches = data.batches(images, None, config["steps"], dtype=params["W1"].dtype)
    return nn.estimates(nn.outputs_of(params, batches, config["activation"]), config["loss"])


def check_state(state, config):
    """Raise a ValueError unless a run with that config can be in that state."""
    params, epoch, best, carried = state["params"], state["epoch"], state["best"], state["velocity"]
    _, _, moments, _ = OPTIMIZERS[config["optimizer"]]
    expected = {"velocity": config["momentum"] or moments, "average": config["ema"] and epoch, "best": epoch}
    for name, there in expected.items():
        if (state[name] is not None) != bool(there):
            raise ValueError(f"its {name} does not go with its settings")
    if nn.layer_sizes(params)[1:-1] != config["hidden"]:
        raise ValueError("its params do not have the hidden layers of its config")
    if moments:
        nn.check(carried, {"steps": int, **dict.fromkeys(moments, dict)}, "its state of the optimiser")
    carried = [carried[name] for name in moments] or [carried]
    for arrays in (params, *carried, state["average"], best and best["params"]):
        if arrays is not None:
            nn.check_params(arrays)
            if arrays["W1"].dtype != DTYPES[config["dtype"]]:
                raise ValueError(f"its arrays are not {config['dtype']}")
            if nn.layer_sizes(arrays) != nn.layer_sizes(params):
                raise ValueError("its arrays differ in shape")
    if best and (not 1 <= best["epoch"] <= epoch or (best["accuracy"] is None) != (config["val_size"] == 0)):
        raise ValueError("its best epoch is not among its epochs")


def load_history(out, epochs, validated):
    """The rows of the first so many epochs in history.csv, or a ValueError."""
    rows = data.load_rows(out / "history.csv")[:epochs] if epochs else []
    needed = ["epoch", "lr", "seconds"] + ["val_accuracy"] * validated
    for number, row in enumerate(rows, start=1):  # other figures are missing where a search has not looked
        complete = list(row) == COLUMNS and row["epoch"] == number and None not in [row[n] for n in needed]
        if not complete or not all(math.isfinite(value) for value in row.values() if value is not None):
            raise ValueError(f"history.csv lacks figures of epoch {number}")
    if len(rows) != epochs:
        raise ValueError(f"history.csv does not hold its {epochs} epochs")
    return rows


@contextlib.contextmanager
def locked(out):
    """Hold a folder for one run at a time; what a killed run left half written is removed.

    The lock is the kernel's, on the file .lock, which stays: it ends with its process, however that dies.
    BlockingIOError: another run holds the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a") as file:
        try:
            lock(file.fileno())
        except (BlockingIOError, PermissionError):
            raise BlockingIOError(
                f"another run is writing to {out}; wait for it or choose another --out"
            ) from None
        for name in LOCKED_FILES:
            for half in out.glob(f"{name}.*.part"):
                half.unlink()
        yield


def lock(descriptor):
    """Lock an open file without waiting; BlockingIOError (Windows: PermissionError) if another has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        return msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks, as some clusters have: better to train than to refuse


def keep_previous(out):
    """Move an earlier run's files from ``out`` to ``out/previous-N``; returns that folder or None.

    Whenever this is interrupted, last.pkl lies beside a history and can be resumed.
    """
    found = [name for name in RUN_FILES if (out / name).exists()]
    if not found:
        return None
    number = 1
    while (kept := out / f"previous-{number}").exists():
        number += 1
    kept.mkdir()
    if "history.csv" in found:
        shutil.copy2(out / "history.csv", kept)
    for name in found:  # last.pkl first
        os.replace(out / name, kept / name)
    return kept


def save_record(out, config, status, rows=(), best=None):
    """Write config.json: settings, data set, versions, status, and the figures reached."""
    result = None
    if rows:
        kept = rows[best["epoch"] - 1] if best else rows[-1]
        result = {"kept": kept, "last": rows[-1], "seconds": round(sum(r["seconds"] for r in rows), 3)}
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    record = {**config, "versions": versions, "status": status, "result": result}
    data.save_json(out / "config.json", record)


# --- a run from its settings to its end -------------------------------------------------------


def load_settings(path):
    """Settings from a JSON file, which may be an earlier run's config.json."""
    content = data.load_json(path)
    nn.check(content, dict, path)
    older = {"holdout": "random"} if "versions" in content else {}  # so were runs that do not say it
    return older | {name: value for name, value in content.items() if name not in RECORDS}


def run_config(settings, dataset):
    """The config of a run: its settings, and the facts about the dataset that it is trained on."""
    facts = {key: dataset[key] for key in ("title", "image_shape", "class_names", "sha256")}
    facts |= data.picture_facts(dataset)
    held_out = data.held_out(settings, dataset)
    settings = {name: settings[name] for name in SETTINGS}
    return {**settings, "val_size": held_out, "dataset": dataset["name"], "data": facts}


def load_dataset(settings, data_dir, download=True):
    """The dataset of a run's settings."""
    how = {"size": settings["size"], "transpose": settings["transpose"]}
    return data.load_dataset(settings["dataset"], data_dir, download, **how)


def start_run(settings, data_dir):
    """State, rows, config and sets of a new run."""
    check_memory(settings, *least_size(settings["dataset"]))
    dataset = load_dataset(settings, data_dir)
    check_memory(settings, *dataset["train_images"].shape, len(dataset["class_names"]))
    config = run_config(settings, dataset)
    sets = prepare(dataset, config)
    # a wrong number of weights is found before any folder is made
    class_weights(sets["train"]["labels"], sets["classes"], config)
    return init_state(sets, config), [], config, sets


def resume_run(out, given, data_dir):
    """State, rows, config and sets of the run in ``out``; only --epochs and --patience may be given anew."""
    state, rows, config = load_last(out)
    wanted = check_settings(changed({name: config[name] for name in SETTINGS}, given))
    dataset = load_dataset({**config, "dataset": wanted["dataset"]}, data_dir)
    if dataset["sha256"] != config["data"].get("sha256"):
        raise ValueError(f"--dataset: {dataset['name']} is not the data set that the run in {out} used")
    wanted["val_size"] = data.held_out(wanted, dataset)  # a share, as it was given
    free = ("epochs", "patience", "min_delta", "dataset")
    for name in SETTINGS:
        if name not in free and wanted[name] != config[name]:
            raise ValueError(
                f"{flag(name)}: the run in {out} has {config[name]}; --resume goes on with it as it "
                f"is (leave the flag out, or start a new run without --resume)"
            )
    if wanted["epochs"] < state["epoch"]:
        done = f"the run in {out} has done {state['epoch']} already"
        raise ValueError(f"--epochs: {done}, not {wanted['epochs']}")
    if wanted["epochs"] != config["epochs"] and config["lr_schedule"] in ("cosine", "linear"):
        ends = f"the {config['lr_schedule']} schedule now ends at epoch {wanted['epochs']}"
        data.say(f"note: {ends}, so lr is another one from here on", sys.stderr)
    dataset = data.with_classes(dataset, config["data"]["class_names"])
    config = run_config({**config, **{name: wanted[name] for name in free}}, dataset)
    return state, rows, config, prepare(dataset, config)


def see_through(out, run, say, goes_on=False):
    """Train a run to its end, in a folder that is ours alone meanwhile; returns its last state and rows.

    One that has stopped early ``goes_on``: its epochs so far do not count for --patience.
    """
    state, rows, config, sets = run
    images, first, started = len(sets["train"]["labels"]), state["epoch"], time.perf_counter()
    status, counted = "stopped", [] if goes_on and should_stop(rows, config) else rows

    def progress(done):
        share = (state["epoch"] - first + done / images) / (config["epochs"] - first)
        left = (time.perf_counter() - started) * (1 - share) / share
        epoch = f"epoch {state['epoch'] + 1}/{config['epochs']}"
        show(f"{epoch}   {done:,}/{images:,} images   {left:.0f} s left")

    with data.progress_line() as show:
        try:
            save_epoch(out, state, rows, config, sets["steps"], epochs=state["epoch"])
            save_record(out, config, "running", rows, state["best"])
            for after, row in fit(state, sets, config, counted, progress):
                save_epoch(out, after, [*rows, row], config, sets["steps"])
                state, rows = after, [*rows, row]  # what is on disk
                show("")
                say(epoch_line(row, config))
            status = "finished"
        except FloatingPointError:
            status = "diverged"
            raise
        except KeyboardInterrupt:
            kept = f"{data.count(state['epoch'], 'whole epoch')} kept in {out}"
            raise KeyboardInterrupt(f"{kept}; --resume goes on") from None
        finally:
            save_record(out, config, status, rows, state["best"])
    return state, rows


def epoch_line(row, config):
    """``epoch 49/50  train 0.0023 100.00%  val 0.0803 97.88%  test 0.0642 98.08%  0.65s``"""
    epoch = f"{row['epoch']:{len(str(config['epochs']))}}/{config['epochs']}"
    line = f"epoch {epoch}  {figures_text(row)}  {row['seconds']:.2f}s"
    return line if len(line) < 80 else line.replace("  ", " ")


def figures_text(row, parts=tuple(PARTS)):
    """Loss and accuracy of each part that has images, aligned."""
    shown = [part for part in parts if row[f"{part}_loss"] is not None]
    wide = {"train": 6}  # where 100.00 is usual
    return "  ".join(
        f"{part} {row[f'{part}_loss']:.4f} {100 * row[f'{part}_accuracy']:{wide.get(part, 5)}.2f}%"
        for part in shown
    )


def describe(config, sets, params):
    """A few lines that say what is about to be trained on what."""
    counts = {name: len(sets[part]["labels"]) for part, name in PARTS.items()}
    counted = ", ".join(f"{images:,} {name}" for name, images in counts.items() if images)
    rows, columns = config["data"]["image_shape"]
    layers = "-".join(map(str, nn.layer_sizes(params)))
    lines = [
        f"{config['data']['title']}: {counted} images of {rows}x{columns}",
        f"{layers}, {config['activation'] if config['hidden'] else 'softmax regression'}, "
        f"{sum(w.size for w in params.values()):,} params",
    ]
    return "\n".join([*lines, *rare_classes(config, sets)])


def rare_classes(config, sets):
    """A line for each part of the data that lacks classes, or has too few images of them to learn."""
    lines, names = [], config["data"]["class_names"]
    for part, what in PARTS.items():
        images = np.bincount(sets[part]["labels"], minlength=sets["classes"])
        least = FEW_IMAGES if part == "train" else min(1, images.sum())
        rare = [f"{names[k]} ({images[k]})" for k in np.flatnonzero(images < least)]
        if rare:
            more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
            lines.append(f"note: classes with few {what} images: {', '.join(rare[:5])}{more}")
    if lines and config["holdout"] == "last":
        lines.append("note: the data may be sorted by class; --holdout stratified takes some of each")
    return lines


def summary(rows, best, config, sets):
    """What a run has come to, in a few lines."""
    kept = rows[best["epoch"] - 1]
    why = "the last" if kept["val_accuracy"] is None else "the best on validation"
    lines = [f"{config['data']['title']}, epoch {kept['epoch']}, {why}:", f"  {figures_text(kept)}"]
    if len(rows) < config["epochs"]:
        lines.insert(0, f"stopped early: no gain in {data.count(config['patience'], 'epoch')}")
    commonest = np.bincount(sets["train"]["labels"]).max() / len(sets["train"]["labels"])
    if commonest < 1 and kept["train_accuracy"] <= commonest + 0.05 * (1 - commonest):
        lines.append("note: it is no better than guessing; try a smaller --lr, or --preprocess scale center")
    return "\n".join(lines)


# --- command line -----------------------------------------------------------------------------

SHOWN_DEFAULTS = {"hidden": 292, "preprocess": "scale", "augment": "none", "nesterov": "off"}
SHOWN_DEFAULTS |= {"train_size": "all", "split_seed": "as --seed", "size": "as they are", "transpose": "off"}
SHOWN_DEFAULTS |= {"lr": "by optimizer", "lr_decay": "by schedule", "class_weight": "none"}
EXAMPLES = """examples:
  python train.py --lr 0.25 --hidden 292
  python train.py --dataset fashion-mnist --hidden 512 256 --optimizer adam
  python train.py --hidden 0 --epochs 20 --out results/softmax"""


def add_settings(parser, shown=()):
    """A flag for each of SETTINGS, in groups; only flags that are given appear in what is parsed.

    ``shown``: what the help says of defaults that are other ones here than in a run.
    """
    for title, settings in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, (default, check, value, help) in settings.items():
            if check is switch:
                kind = {"action": argparse.BooleanOptionalAction}
            else:
                kind = {"nargs": "+" if isinstance(default, list) else None, "metavar": value}
            shown_default = {**SHOWN_DEFAULTS, **dict(shown)}.get(name, default)
            help = f"{help} (default: {shown_default})".replace("%", "%%")
            group.add_argument(flag(name), default=argparse.SUPPRESS, help=help, **kind)


def as_flags(settings):
    """The flags that give these settings, as a list of words; what is a default is left out."""
    words = []
    for name, default in DEFAULTS.items():
        value = settings[name]
        if isinstance(value, bool) and value != default:
            words += [flag(name) if value else flag(f"no_{name}")]
        elif value != default:
            words += [flag(name), *map(str, (value or ["none"]) if isinstance(value, list) else [value])]
    return words


def main(argv=None):
    parser = data.make_parser("Train a neural network and write it to a folder.", EXAMPLES)
    add_settings(parser)
    group = parser.add_argument_group("files")
    group.add_argument(
        "--out", metavar="DIR", default="results",
        help="folder for the run's files (default: results); a run that is already there is kept, "
        "in DIR/previous-N",
    )  # fmt: skip
    group.add_argument("--resume", action="store_true", help="go on with the run in --out")
    group.add_argument("--config", metavar="FILE", help="JSON file of settings; flags that are given win")
    group.add_argument("--quiet", action="store_true", help="print only the summary")
    flags = data.parse_flags(parser, argv)
    say = (lambda line: None) if flags.quiet else data.say
    given = {name: value for name, value in vars(flags).items() if name in SETTINGS}
    given = changed(load_settings(flags.config), given) if flags.config else given
    out = pathlib.Path(flags.out)
    if flags.resume:
        check_resumable(out)
    else:
        run = start_run(check_settings(given), flags.data_dir)  # before any folder is made
    with locked(out):
        if flags.resume:
            run = resume_run(out, given, flags.data_dir)
            say(f"resuming the run in {out} after epoch {run[0]['epoch']}")
        elif kept := keep_previous(out):
            say(f"the run that was in {out} is kept in {kept}")
        state, _, config, sets = run
        say(describe(config, sets, state["params"]))
        state, rows = see_through(out, run, say, goes_on=bool({"epochs", "patience"} & set(given)))
    data.say(summary(rows, state["best"], config, sets))
    judged = any(len(sets[part]["labels"]) for part in ("val", "test"))
    data.say(f"its params are in {out / 'params.pkl'}{'; judge them with:' if judged else ''}")
    if judged:
        data.say(f"  {data.command_text('python', 'test.py', out)}")


def check_resumable(out, file="last.pkl", what="run"):
    """Raise a ValueError that names others nearby where there is none in the folder."""
    if not (out / file).exists():
        found = [str(path.parent) for near in (out, out.parent) for path in sorted(near.glob(f"*/{file}"))]
        hint = f"; there is one in {', '.join(found[:5])}" if found else ""
        raise ValueError(f"--resume: there is no {what} in {out}{hint} (name its folder with --out)")


# --- what is only for speed -------------------------------------------------------------------
#
# Everything below changes the last bits of a sum at the most: test_an_epoch_is_the_core_functions_in_a_row
# compares an epoch with the plain functions of nn, in both precisions. What each buys is the time of
# an epoch without it, 784-292-10, one thread.


def in_order(arrays, columns):
    """A copy of params, or of an optimiser's state, with W1's rows in the order of sorted columns, if any."""
    if isinstance(arrays, dict):
        whole = {"W1", *(key for key in arrays if isinstance(arrays[key], dict))}  # the moments of Adam
        return {key: in_order(w, columns if key in whole else None) for key, w in arrays.items()}
    if isinstance(arrays, np.ndarray):
        return arrays.copy() if columns is None else arrays[columns]
    return arrays  # None, or a number of steps


def in_natural_order(arrays, columns):
    """The inverse of ``in_order``."""
    return in_order(arrays, None if columns is None else np.argsort(columns))


def batches_by_ink(order, inked, size):
    """The order of an epoch, with the images of each batch sorted by their number of inked columns."""
    batch = np.arange(len(order)) // size
    return order[np.argsort(batch * (inked.max() + 1) + inked[order], kind="stable")]


def inked_columns(part, rows):
    """Images of a batch sorted by ink, cut off behind all of their ink, and what ``nn.forward`` calls blank.

    The products leave out the columns behind the last ink (1.20 times the time at batch 128), and a
    corner: three quarters of the images have little ink (1.12).
    """
    width = ink_width(part, rows[-1])
    images = part["images"].take(rows, axis=0)[:, :width]
    most = len(rows) * 3 // 4
    columns = ink_width(part, rows[most - 1])
    if columns < 0.9 * width:
        return images, (most, columns)
    return images, (0, width) if width < part["images"].shape[1] else None


def ink_width(part, row):
    """The inked columns of an image, in whole cache lines: 16 columns, or a multiple of that."""
    return min(16 * max(1, -(-int(part["inked"][row]) // 16)), part["images"].shape[1])


def step_factors(lrs, config):
    """For each step of an epoch the factors that ``lazy_step`` needs.

    ``times`` is a factor on the inputs and ``scale`` one on the gradients, both 1 for plain steps, and
    ``lazy`` is None for those.
    """
    decays, momentum = [lr * config["weight_decay"] for lr in lrs], config["momentum"]
    slow = max(decays) < (0.1 * (1 - momentum) if momentum else 0.5)  # or the factors fall too fast
    plain = config["optimizer"] == "sgd" and not any(config[n] for n in ("nesterov", "max_norm", "clip_norm"))
    if not plain or not slow or 0 < momentum < 0.5:
        yield from ({"times": 1.0, "scale": 1.0, "lazy": None} for _ in lrs)
        return
    s, c, e = 1.0, 1.0, 0.0
    for step, (lr, decay) in enumerate(zip(lrs, decays), start=1):
        after = s + momentum * e - decay * s
        shrunk = s * (c * momentum if momentum else after)
        lazy = {"shrunk": shrunk, "decay": decay, "push": momentum * c / after}
        factors = {"times": s, "scale": lr / shrunk, "lazy": lazy}
        s, c, e = (after, momentum * c * s / after, after - s) if momentum else (after, 1.0, 0.0)
        if step == len(lrs) or s < 0.5 or c < 1e-6:  # V and U must not grow without bound
            lazy["settle"], (s, c, e) = (s, c, e), (1.0, 1.0, 0.0)
        yield factors


def lazy_step(params, grads, velocity, batch, config):
    """A step of SGD in place with as few passes over W1 as can be: 1.2 times the time at batch 16 without.

    W1 is s V and its velocity c U + e V; params hold V and velocity holds U. The inputs carry s, so the
    products are those of W1. The gradients come divided by ``shrunk``.

    Plain SGD, W1 <- (1 - decay) W1 - g, becomes s' = (1 - decay) s and V <- V - g / s'. Momentum,
    v <- momentum v - g - decay W1 and W1 <- W1 + v, becomes U <- U - g / (momentum c) and
    V <- V + momentum c / s' U, with s' = s + momentum e - decay s, and then c <- momentum c s / s',
    e <- s' - s and s <- s'.
    """
    lazy, inked, momentum = batch["lazy"], len(grads["W1"]), config["momentum"]
    if momentum:
        velocity["W1"][:inked] -= grads["W1"]
        add_times(params["W1"], lazy["push"], velocity["W1"])
    else:
        params["W1"][:inked] -= grads["W1"]
    for key in params.keys() - {"W1"}:  # these are small: plain steps, without what sgd_step costs
        step = np.multiply(grads[key], lazy["shrunk"], out=grads[key])
        decay = lazy["decay"] if key[0] == "W" else 0.0
        if momentum:
            velocity[key] *= momentum
            velocity[key] -= step + decay * params[key]
            params[key] += velocity[key]
        else:
            if decay:
                params[key] *= 1 - decay
            params[key] -= step
    if "settle" in lazy:
        s, c, e = lazy["settle"]
        if momentum:
            velocity["W1"] *= c
            add_times(velocity["W1"], e, params["W1"])
        params["W1"] *= s
    return params, velocity


def add_times(array, factor, other):
    """array += factor * other, in blocks that stay in cache."""
    for block in nn.blocks(array):
        array[block] += factor * other[block]


if __name__ == "__main__":
    sys.exit(data.run_script(main))
