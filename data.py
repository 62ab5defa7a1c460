"""Datasets: load, split, preprocess, augment; pictures of your own; the edges that every script has.

In this order, after a few lines for scripts that are still importing: data sets (``load_dataset``),
``split``, preprocessing (``fit_steps``, ``preprocess``, ``batches``), distortions (``augment``), saved
networks (``load_run``) and other files, the download, digits drawn from fonts, pictures of your own
(``load_picture``, ``prepare_picture``), and what every script needs at its edges (``make_parser``,
``run_script``).

A dataset is a plain dict: ``name``, ``title``, ``train_images`` and ``test_images`` (uint8,
``(n, rows * cols)``), ``train_labels`` and ``test_labels`` (uint8, ``(n,)``), ``image_shape``
``(rows, cols)``, ``class_names`` and ``sha256`` (of each file's uncompressed content).
Images stay uint8 until a batch is taken.
"""

import os
import signal
import sys
import threading


def heed_signals(handler):
    """Let a handler have Ctrl-C and SIGTERM, unless they are ignored, as in a worker."""
    if threading.current_thread() is threading.main_thread():  # no other one gets signals
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, handler)


def _end_early(reason, status):
    """One line instead of a traceback, and the end, for a script that is still importing."""
    line = " ".join(f"{os.path.basename(sys.argv[0])}: {reason}".split())
    os.write(2, f"{line}\n".encode(errors="replace"))
    os._exit(status)  # an exception could get lost in an import


def _end_import(kind, error, trace):
    if issubclass(kind, ImportError):
        _end_early(f"{error} (pip install -r requirements.txt)", 2)
    if issubclass(kind, (ValueError, OSError)):  # Matplotlib's of MPLBACKEND and matplotlibrc
        _end_early(error, 2)
    sys.__excepthook__(kind, error, trace)


if os.path.basename(sys.argv[0]) in ("train.py", "search.py", "test.py", "visualize.py"):
    # what is imported from here on takes its time; then run_script takes over
    heed_signals(lambda signum, frame: _end_early("stopped", 128 + signum))
    sys.excepthook = _end_import

# isort: split
import argparse
import contextlib
import csv
import difflib
import glob
import gzip
import hashlib
import importlib.util
import io
import json
import math
import pathlib
import re
import shlex
import shutil
import struct
import subprocess
import time
import warnings
import zlib

import numpy as np

import nn

DATASET_NAMES = ("auto", "mnist", "fashion-mnist", "glyphs")
FILES = {  # part -> name of its IDX file, which may also end in .gz
    "train_labels": "train-labels-idx1-ubyte",
    "train_images": "train-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
}

# --- datasets ---------------------------------------------------------------------------------


def load_dataset(name="auto", data_dir=None, download=True):
    """Load a dataset, downloading or drawing what is missing.

    Parameters
    ----------
    name : str
        ``mnist``, ``fashion-mnist``, ``glyphs`` (drawn from fonts), ``auto`` (mnist, or with a
        warning glyphs when it is not to be had), or the path of a folder with four IDX files.
    data_dir : path, optional
        Holds a folder for each dataset; default: environment variable DATA_DIR, or ``datasets``.
    download : bool
        Whether missing files may be downloaded.

    Returns
    -------
    dict
        See the top of this file.

    Raises
    ------
    ValueError
        Unknown name, a damaged file, images and labels that do not match.
    OSError
        Files are missing and could not be had.
    """
    data_dir = pathlib.Path(data_dir or os.environ.get("DATA_DIR") or "datasets")
    if name == "auto":
        return _load_auto(data_dir, download)
    if name == "glyphs":
        return _load_glyphs(data_dir / name)
    if name in SOURCES:
        return _load_source(name, data_dir / name, download)
    folder = pathlib.Path(name)
    if not folder.is_dir():
        known = ", ".join(DATASET_NAMES)
        raise ValueError(f"unknown dataset {name!r}: neither {known} nor a folder with IDX files")
    return _load_folder(folder, str(name), folder.resolve().name)


def _load_auto(data_dir, download):
    try:
        return load_dataset("mnist", data_dir, download)
    except OSError as error:
        reason = error
    line = "!" * 88
    print(
        f"{line}\nWARNING: this is NOT MNIST. MNIST could not be loaded, so the stand-in data set "
        f"`glyphs` (digits drawn from fonts) is used; its accuracy says nothing about MNIST.\n"
        f"Why: {message_of(reason)}\nTo get MNIST: connect to the internet and run again, or put its four "
        f"files into {data_dir / 'mnist'}, or name the folder above them with --data-dir or DATA_DIR."
        f"\n{line}",
        file=sys.stderr,
    )
    return load_dataset("glyphs", data_dir)


def _load_source(name, folder, download):
    source = SOURCES[name]
    missing = [part for part in FILES if _find_idx(folder, part) is None]
    if missing and not download:
        raise FileNotFoundError(f"{folder} lacks {', '.join(FILES[part] for part in missing)}")
    for part in missing:
        file = f"{FILES[part]}.gz"
        urls = [mirror + file for mirror in source["mirrors"]]
        download_file(urls, folder / file, source["sha256"][part], SIZES[part])
    try:
        dataset = _load_folder(folder, name, source["title"], source["class_names"])
    except ValueError as error:
        raise ValueError(f"{error}; delete it to download it anew") from error
    for part, digest in dataset["sha256"].items():
        if digest != source["sha256"][part]:
            raise ValueError(
                f"{_find_idx(folder, part)} is not the file of {source['title']} (its SHA-256 differs);"
                f" delete it to download it anew, or name its folder as --dataset to use it as it is"
            )
    return dataset


def _load_folder(folder, name, title, class_names=None):
    arrays, digests = {}, {}
    for part, file in FILES.items():
        path = _find_idx(folder, part)
        if path is None:
            raise FileNotFoundError(f"{folder} lacks {file} (or {file}.gz)")
        arrays[part], digests[part] = load_idx(path)
        if arrays[part].ndim != (3 if part.endswith("images") else 1) or not arrays[part].size:
            raise ValueError(
                f"{path} has the shape {arrays[part].shape}, not that of {part.replace('_', ' ')}"
            )
    return _as_dataset(folder, name, title, arrays, digests, class_names)


def _find_idx(folder, part):
    """Path of a part's IDX file in a folder, under any of its usual names, or None."""
    dashed = FILES[part]
    dotted = dashed.replace("-idx", ".idx")
    names = (dashed, dotted, f"{dashed}.gz", f"{dotted}.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _as_dataset(folder, name, title, arrays, digests, class_names=None):
    """The dataset that four arrays make, if they belong together; folder is where they come from."""
    for part in ("train", "test"):
        images, labels = len(arrays[f"{part}_images"]), len(arrays[f"{part}_labels"])
        if images != labels:
            raise ValueError(f"{folder} has {images} {part} images but {labels} labels")
    image_shape = arrays["train_images"].shape[1:]
    if arrays["test_images"].shape[1:] != image_shape:
        raise ValueError(f"{folder}: training and test images differ in size")
    classes = 1 + int(max(arrays["train_labels"].max(), arrays["test_labels"].max()))
    class_names = [printable(name) for name in class_names or map(str, range(classes))]
    if classes > len(class_names):
        raise ValueError(f"{folder} has labels up to {classes - 1}; {title} has {len(class_names)} classes")
    flat = {
        part: array.reshape(len(array), -1) if part.endswith("images") else array
        for part, array in arrays.items()
    }
    return {
        "name": name,
        "title": printable(title),
        **flat,
        "image_shape": image_shape,
        "class_names": class_names,
        "sha256": digests,
    }


def load_dataset_of(config, data_dir=None, name=None):
    """The data set that a network is judged on: the one of its config, or the one named.

    Parameters
    ----------
    config : dict
        Stored with the params; says what they were trained on.
    data_dir, name
        As for ``load_dataset``.

    Raises
    ------
    ValueError
        The data set has images of another size, or classes that the network does not know. And as
        ``load_dataset``.
    OSError
        As ``load_dataset``.
    """
    own, trained_on = config["dataset"], config["data"]
    if name is None and own not in DATASET_NAMES and not os.path.isdir(own):
        raise FileNotFoundError(f"the run was trained on the folder {own}, which is not here; see --dataset")
    dataset = load_dataset(name or own, data_dir)
    width, classes = math.prod(trained_on["image_shape"]), len(trained_on["class_names"])
    if dataset["test_images"].shape[1] != width or dataset["test_labels"].max() >= classes:
        raise ValueError(
            f"{dataset['title']} does not fit: the network takes {width} pixels and knows {classes} classes"
        )
    if name is None and dataset["sha256"] != trained_on.get("sha256"):
        print("note: the data set has changed since the network was trained", file=sys.stderr)
    return dataset


# --- split ------------------------------------------------------------------------------------


def split(images, labels, val_size, rng, train_size=None):
    """Hold out validation images, chosen by a shuffle, or the last ones.

    Parameters
    ----------
    images, labels : arrays (n, d), (n,)
    val_size : int
        Number of validation images; 0 for none.
    rng : numpy.random.Generator or None
        None: no shuffle, the last images are held out.
    train_size : int, optional
        Number of training images to keep of the others; default: all of them.

    Returns
    -------
    (train_images, train_labels), (val_images, val_labels)
        No image is in both; without a hold-out the training arrays are those passed in.

    Raises
    ------
    ValueError
        More images asked for than there are, or none left to train on.
    """
    wanted = check_split(len(images), val_size, train_size)
    if wanted == len(images):
        return (images, labels), (images[:0], labels[:0])
    order = np.arange(len(images))[::-1] if rng is None else rng.permutation(len(images))
    val, train = np.sort(order[:val_size]), np.sort(order[val_size : val_size + wanted])
    return (images[train], labels[train]), (images[val], labels[val])


def folds(labels, count, rng, size=None):
    """Deal images to folds for cross-validation, stratified: in each the classes have equal shares.

    Parameters
    ----------
    labels : array (n,)
    count : int
        Number of folds.
    rng : numpy.random.Generator
    size : int, optional
        Number of images to deal, chosen at random; default: all.

    Returns
    -------
    int array (n,)
        The fold of each image, from 1; 0 for those that are left out. Neither the sizes of two folds
        nor their images of a class differ by more than one.
    """
    order = rng.permutation(len(labels))[:size]
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.zeros(len(labels), int)
    fold[order] = 1 + np.arange(len(order)) % count
    return fold


def check_split(n, val_size, train_size=None):
    """The number of training images in a split of n images; ValueError where there is no such split."""
    wanted = n - val_size if train_size is None else train_size
    if val_size < 0 or not 1 <= wanted <= n - val_size:
        raise ValueError(
            f"{n} images cannot be split into {val_size} for validation and "
            f"{'at least 1' if train_size is None else train_size} for training"
        )
    return wanted


# --- preprocess -------------------------------------------------------------------------------
#
# There are two kinds of step: those that turn pictures into pictures, which is done once, and those
# on numbers, which are done in each batch. The latter are all affine maps: fitted, they are one step.


def fit_steps(names, images, image_shape):
    """Fit preprocessing on training images.

    Parameters
    ----------
    names : list of str
        Applied in this order. First those that turn pictures into pictures, rounded to whole grey
        levels: ``deskew`` shears the ink upright, by its moments; ``width:14`` brings it to 14
        columns; ``pool`` takes the mean of each 2x2 pixels. Then those on numbers: ``scale``
        divides by 255, ``center`` subtracts each pixel's mean over the images, ``standardize``
        subtracts the mean of all pixels and divides by their standard deviation, ``pca:50``
        keeps the 50 principal components (Pearson 1901).
    images : uint8 array (n, d)
        Training images only, as they are read.
    image_shape : (rows, columns)

    Returns
    -------
    list of dict
        The fitted steps: those on pictures, and at most one ``{"name": "affine", "mean": None, float
        or (d,), "factor": float, "basis": None or (d, k)}`` that all the others make together: an
        image x becomes ``((x - mean) * factor) @ basis``. Plain data that can be stored with the params.

    Raises
    ------
    ValueError
        Unknown name, wrong order or number.
    """
    parsed, pictures, numbers = parse_steps(names), [], []
    for name, number in parsed:
        if name in PICTURE_STEPS:
            shape = list(shape_after(pictures, image_shape))
            pictures.append({"name": name, "shape": shape} | ({"number": number} if number else {}))
    if {name for name, _ in parsed} - {*PICTURE_STEPS, "scale"}:
        images = redraw(images, pictures)
    for name, number in parsed:
        if name not in PICTURE_STEPS:
            numbers = _followed_by(numbers, **_fit_affine(name, number, images, numbers))
    return pictures + numbers


def _fit_affine(name, number, images, steps):
    """Mean, factor and basis of a step that comes after steps, fitted on images that are redrawn."""
    if name == "scale":
        return {"factor": 1 / 255}
    mean = _mean_over(images, steps, lambda x: x)  # (d,)
    if name == "center":
        return {"mean": mean}
    if name == "standardize":
        variance = _mean_over(images, steps, np.square).mean() - mean.mean() ** 2
        return {"mean": float(mean.mean()), "factor": 1 / (math.sqrt(max(0.0, variance)) or 1.0)}
    if number > len(mean):
        raise ValueError(f"pca:{number}: an image has only {len(mean)} numbers there")
    product = sum(batch["x"].T @ batch["x"] for batch in batches(images, None, steps, dtype=np.float64))
    _, vectors = np.linalg.eigh(product / len(images) - np.outer(mean, mean))
    basis = vectors[:, ::-1][:, :number]  # (d, number), the largest variance first
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    return {"mean": mean, "basis": basis * np.sign(largest)}  # eigenvectors have no sign of their own


def _mean_over(images, steps, function):
    """Mean over all images of a function of their numbers (d,), float64, after the steps so far."""
    taken = batches(images, None, steps, dtype=np.float64)
    return sum(function(batch["x"]).sum(axis=0) for batch in taken) / len(images)


UNCHANGED = {"name": "affine", "mean": None, "factor": 1.0, "basis": None}


def _followed_by(steps, mean=None, factor=1.0, basis=None):
    """One affine step, as a list, that does what steps (none or one) do and then another."""
    first = steps[0] if steps else UNCHANGED
    if mean is None:
        mean = first["mean"]
    else:  # as much is subtracted before all that the first one does
        if first["basis"] is not None:  # its columns are at right angles, and of length 1
            mean = first["basis"] @ np.broadcast_to(mean, first["basis"].shape[1:])
        mean = mean / first["factor"] + (0.0 if first["mean"] is None else first["mean"])
    if basis is None:
        basis = first["basis"]
    elif first["basis"] is not None:
        basis = first["basis"] @ basis
    return [{"name": "affine", "mean": mean, "factor": first["factor"] * factor, "basis": basis}]


STEP_NAMES = ["deskew", "width:14", "pool", "scale", "center", "standardize", "pca:50"]  # with numbers to try
STEP_EXAMPLES = {text.partition(":")[0]: text for text in STEP_NAMES}


def parse_steps(names):
    """``["deskew", "pca:50"]`` as ``[("deskew", None), ("pca", 50)]``; ValueError if it makes no sense."""
    steps = []
    for text in names:
        name, colon, number = text.partition(":") if isinstance(text, str) else (text, "", "")
        example = nn.choose("preprocessing", name, STEP_EXAMPLES)
        if ":" not in example and colon:
            raise ValueError(f"{name} takes no number, not {text:.40}")
        if ":" in example and not (number.isdecimal() and 1 <= int(number[:9]) == int(number)):
            raise ValueError(f"{name} needs a whole number above 0, as in {example}, not {text:.40}")
        if name in PICTURE_STEPS and steps and steps[-1][0] not in PICTURE_STEPS:
            raise ValueError(f"{name} works on pictures: put it before {steps[-1][0]}")
        if name in dict(steps):
            raise ValueError("must name each step once")
        steps.append((name, int(number) if colon else None))
    return steps


def preprocess(images, steps, dtype=np.float32, out=None):
    """Apply fitted steps to uint8 images (n, d): ``redraw``, and then ``to_numbers``."""
    return to_numbers(redraw(images, steps), steps, dtype, out)


def redraw(images, steps):
    """uint8 images (n, d') after the steps on pictures; the images (n, d) themselves without such."""
    wanted = [step for step in steps if step["name"] in PICTURE_STEPS]
    if not wanted or not len(images):
        return images

    def redrawn(block):
        for step in wanted:
            pictures = PICTURE_STEPS[step["name"]](block.reshape(len(block), *step["shape"]), step)
            block = pictures.reshape(len(block), -1)
        return block

    return np.concatenate([redrawn(images[i : i + 1000]) for i in range(0, len(images), 1000)])


def to_numbers(images, steps, dtype=np.float32, out=None, times=1.0):
    """What the fitted steps make of images (n, d) that are redrawn already, times a factor.

    Returns an array (n, d') of dtype; it is ``out``, an array (n, d), where that is given and no step
    changes d.
    """
    x = np.empty(images.shape, dtype) if out is None else out
    x[...] = images
    affine = next((step for step in steps if step["name"] == "affine"), UNCHANGED)
    if affine["mean"] is not None:
        x -= np.asarray(affine["mean"], x.dtype)
    x *= affine["factor"] * times
    return x if affine["basis"] is None else x @ affine["basis"].astype(x.dtype)  # (n, k)


def batches(images, labels, steps, batch_size=1000, dtype=np.float32):
    """Yield preprocessed batches ``{"x": (n, d'), "y": (n,)}`` as they lie; y is None without labels.

    All x share one buffer: a batch is gone when the next one is taken.
    """
    buffer = None
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        taken = redraw(images[rows], steps)
        buffer = np.empty(taken.shape, dtype) if buffer is None else buffer
        x = to_numbers(taken, steps, dtype, out=buffer[: len(taken)])
        yield {"x": x, "y": None if labels is None else labels[rows]}


def shape_after(steps, image_shape):
    """(rows, columns) of the images after ``redraw``."""
    for step in steps:
        if step["name"] == "pool":
            image_shape = [-(-n // 2) for n in image_shape]
    return tuple(image_shape)


def keeps_blank(steps):
    """Whether a pixel that is 0 becomes a number that is 0, in the same place (after ``redraw``)."""
    return all(step.get("mean") is None and step.get("basis") is None for step in steps)


def weights_in_pixels(weights, steps):
    """What weights (inputs, units) weigh in the pixels of the image, but for the scale: (d, units).

    ``deskew`` and ``width`` leave the pixels where they are.
    """
    for step in reversed(steps):
        if step.get("basis") is not None:
            weights = step["basis"].astype(weights.dtype) @ weights
        if step["name"] == "pool":
            rows, columns = step["shape"]
            pooled = weights.reshape(*shape_after([step], step["shape"]), -1) / 4
            spread = pooled.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
            weights = spread.reshape(rows * columns, -1)
    return weights


def sort_pixels(images, columns=None):
    """Put the pixels that are blank in the most images last, so that few columns hold all the ink.

    In a batch of 128 MNIST digits about a fifth of the columns are blank behind the last ink, and
    a product need not go over them. With ``columns`` that order is taken, as it is from other images.

    Returns
    -------
    dict
        ``images``, a copy (n, d) with its columns sorted; ``columns`` (d,), where each of them
        was; ``inked`` (n,), the number of columns of each image up to its last that is not 0.
    """
    blocks = [slice(start, start + 1000) for start in range(0, len(images), 1000)]
    if columns is None:
        used = sum(np.count_nonzero(images[rows], axis=0) for rows in blocks)  # (d,); 0 without images
        columns = np.argsort(-np.broadcast_to(used, images.shape[1:]), kind="stable")
    ordered, inked = np.empty_like(images), np.empty(len(images), np.int64)
    for rows in blocks:
        ordered[rows] = images[rows][:, columns]
        ink = ordered[rows, ::-1] != 0  # behind the last of it there are as many as before the first of these
        inked[rows] = np.where(ink.any(axis=1), images.shape[1] - ink.argmax(axis=1), 0)
    return {"images": ordered, "columns": columns, "inked": inked}


# --- preprocess: the steps on pictures, uint8 (n, rows, columns) ------------------------------


def _deskew(pictures, step):
    """Shear each picture so that its ink stands upright: no correlation of columns with rows is left."""
    ink = pictures.astype(np.float32)
    mass = np.maximum(ink.sum(axis=(1, 2)), 1)[:, None]  # (n, 1); 1 for blank pictures
    y, x = np.arange(pictures.shape[1]), np.arange(pictures.shape[2])
    by_row, by_column = ink.sum(axis=2), ink.sum(axis=1)
    y = y - by_row @ y[:, None] / mass  # (n, rows), from each picture's centre of mass
    x = x - by_column @ x[:, None] / mass  # (n, columns)
    covariance = np.einsum("nrc,nr,nc->n", ink, y, x, optimize=True)
    slant = covariance / np.maximum(np.einsum("nr,nr->n", by_row, y * y), 1)
    return _resampled_columns(pictures, slant[:, None] * y, np.ones(len(pictures)))


INK_LEVEL = 32  # grey levels out of 255; fainter pixels do not count for the width of the ink


def _normalize_width(pictures, step):
    """Bring each picture's ink to so many columns, at most twice its width, in the middle."""
    columns = pictures.shape[2]
    inked = (pictures > INK_LEVEL).any(axis=1)  # (n, columns)
    first, last = inked.argmax(axis=1), columns - 1 - inked[:, ::-1].argmax(axis=1)
    scale = np.where(inked.any(axis=1), np.maximum((last - first + 1) / step["number"], 0.5), 1)
    start = (first + last) / 2 - scale * (columns - 1) / 2
    return _resampled_columns(pictures, np.repeat(start[:, None], pictures.shape[1], axis=1), scale)


def _pool(pictures, step):
    """The mean of each 2x2 pixels; an odd edge is filled with blank pixels."""
    n, rows, columns = pictures.shape
    even = np.pad(pictures, ((0, 0), (0, rows % 2), (0, columns % 2)))
    blocks = even.reshape(n, (rows + 1) // 2, 2, (columns + 1) // 2, 2)
    return np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def _resampled_columns(pictures, start, scale):
    """Column c of row r is taken from column start[r] + scale c, between columns linearly.

    Parameters
    ----------
    pictures : uint8 array (n, rows, columns)
    start : float array (n, rows)
    scale : float array (n,)
    """
    columns = pictures.shape[2]
    at = start[:, :, None] + scale[:, None, None] * np.arange(columns)  # (n, rows, columns)
    np.clip(at, -1, columns, out=at)
    left = np.floor(at).astype(np.int64)
    right_share = at - left
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 2)))  # blank beyond the edges
    mixed = np.take_along_axis(padded, left + 1, axis=2) * (1 - right_share)
    mixed += np.take_along_axis(padded, left + 2, axis=2) * right_share
    return np.rint(mixed).astype(np.uint8)


PICTURE_STEPS = {"deskew": _deskew, "width": _normalize_width, "pool": _pool}

# --- augment ----------------------------------------------------------------------------------

DISTORTIONS = ("shift", "affine", "elastic")  # each does what those before it do
AUGMENT_NAMES = ("none", *DISTORTIONS, "flip")
STRENGTHS = {  # at most
    "max_shift": 1.0,  # pixels, either way along both axes
    "max_rotation": 10.0,  # degrees
    "max_scaling": 0.12,  # share by which width and height grow or shrink, each on its own
    "max_shear": 0.1,  # columns a row
    "bend": 1.2,  # pixels: root mean square of the elastic displacement along each axis
    "smooth": 4.0,  # pixels: standard deviation of the Gaussian that smooths it
}
LARGEST_STRENGTH, LEAST_SMOOTH = 1_000_000, 0.001  # beyond them numbers overflow
AUGMENT_BLOCK = 64  # images distorted at a time, so that they stay in cache


def make_augment(names, image_shape, **strengths):
    """What ``augment`` needs to know.

    Parameters
    ----------
    names : list of str
        At most one of ``shift``, ``affine`` (rotation, scaling, shear and shift) and ``elastic``
        (affine, and a smooth random displacement of every pixel: Simard et al. 2003); and ``flip``,
        which turns half of the images left to right.
    image_shape : (rows, columns)
    **strengths : float
        Other ones than STRENGTHS.

    Returns
    -------
    dict, or None where there is nothing to do
    """
    kind = next((name for name in DISTORTIONS if name in names), None)
    if kind is None and "flip" not in names:
        return None
    limits = {**STRENGTHS, **strengths}
    if kind != "elastic":
        limits["bend"] = 0
    if kind == "shift":
        limits |= {"max_rotation": 0, "max_scaling": 0, "max_shear": 0}
    curves = [_curves(side, limits["smooth"] if limits["bend"] else None) for side in image_shape]
    flip, shape = "flip" in names, tuple(image_shape)
    return {"kind": kind, "flip": flip, "shape": shape, "limits": limits, "curves": curves}


def augment(images, distortion, rng, out=None):
    """Distort each image in its own random way.

    Parameters
    ----------
    images : uint8 array (n, d)
    distortion : dict
        From ``make_augment``.
    rng : numpy.random.Generator
    out : float array (n, d), optional

    Returns
    -------
    float32 array (n, d) or out
        Grey levels from 0 to 255. Beyond its edges an image goes on as it ends.
    """
    x, shape = np.empty(images.shape, np.float32) if out is None else out, distortion["shape"]
    for start in range(0, len(images), AUGMENT_BLOCK):
        block = slice(start, start + AUGMENT_BLOCK)
        pictures, result = images[block].reshape(-1, *shape), x[block].reshape(-1, *shape)
        if distortion["flip"]:
            turned = rng.random(len(pictures)) < 0.5
            pictures = np.where(turned[:, None, None], pictures[:, :, ::-1], pictures)
        if distortion["kind"]:
            _sample(pictures, *_positions(len(pictures), distortion, rng, x.dtype), out=result)
        else:
            result[...] = pictures
    return x


def _positions(n, distortion, rng, dtype):
    """Row and column, (rows, n, columns) each, from which each pixel of n distorted images comes."""
    limits, (along_y, along_x) = distortion["limits"], distortion["curves"]

    def uniform(limit):
        return limit * rng.uniform(-1, 1, n)

    rotation, shear = uniform(math.radians(limits["max_rotation"])), uniform(limits["max_shear"])
    high, wide = 1 / (1 + uniform(limits["max_scaling"])), 1 / (1 + uniform(limits["max_scaling"]))
    cos, sin = np.cos(rotation), np.sin(rotation)
    constants, by_column, by_row = (0, 0), (0, 1), (1, 0)  # of the curves along y and x
    of_row = {constants: uniform(limits["max_shift"]), by_column: -sin * high, by_row: cos * high}
    of_column = {constants: uniform(limits["max_shift"]), by_column: cos * wide}
    of_column[by_row] = sin * wide + shear
    positions = []
    for side, affine in zip(distortion["shape"], (of_row, of_column)):
        coefficients = np.zeros((along_y.shape[1], n, along_x.shape[1]), dtype)
        if limits["bend"]:
            bends = coefficients[2:, :, 2:]
            bends[...] = limits["bend"] * rng.standard_normal(bends.shape, dtype=dtype)
        for (i, j), values in affine.items():
            coefficients[i, :, j] = values
        coefficients[0, :, 0] += (side - 1) / 2
        bent = along_y.astype(dtype) @ coefficients.reshape(len(coefficients), -1)
        field = bent.reshape(-1, along_x.shape[1]) @ along_x.T.astype(dtype)
        positions.append(field.reshape(distortion["shape"][0], n, -1))
    return positions


def _curves(side, smooth):
    """The curves (side, k) along one axis that displacements are made of: 1, the position, and bends.

    A displacement field is curves_y @ coefficients @ curves_x.T. Bends are what white noise looks
    like after a Gaussian: G z with the matrix G = U S V.T is U S times other white noise, V.T z, and
    all but a few of the singular values S are next to nothing.
    """
    position = np.arange(side) - (side - 1) / 2
    if smooth is None:
        return np.column_stack([np.ones(side), position])
    gaussian = np.exp(-0.5 * ((position[:, None] - position) / smooth) ** 2)
    u, s, _ = np.linalg.svd(gaussian)
    bends = u[:, s > 0.01 * s[0]] * s[s > 0.01 * s[0]]
    bends /= math.sqrt(np.square(bends).sum(axis=1).mean())  # the field's mean square is 1
    return np.column_stack([np.ones(side), position, bends])


def _sample(pictures, row, column, out):
    """Bilinear: pictures (n, rows, columns) at the positions (rows, n, columns), into out."""
    n, rows, columns = pictures.shape
    pixels = np.pad(pictures, ((0, 0), (0, 1), (0, 1)), mode="edge").astype(out.dtype).reshape(-1)
    np.minimum(np.maximum(row, 0, out=row), rows - 1, out=row)
    np.minimum(np.maximum(column, 0, out=column), columns - 1, out=column)
    above, left = np.floor(row), np.floor(column)
    row -= above
    column -= left
    above *= columns + 1
    above += left
    index = above.astype(np.intp)
    index += np.arange(n)[:, None] * ((rows + 1) * (columns + 1))  # where each picture begins
    # between the columns in the row above and in the row below, then between the rows
    upper, lower = (
        _between(pixels[k:].take(index, mode="clip"), pixels[k + 1 :].take(index, mode="clip"), column)
        for k in (0, columns + 1)
    )
    out[...] = _between(upper, lower, row).swapaxes(0, 1)


def _between(first, second, share):
    """first + share * (second - first), in the memory of second."""
    second -= first
    second *= share
    second += first
    return second


# --- files: saved networks --------------------------------------------------------------------

CONFIG_KIND = {  # what the config that is stored with params holds at least; see nn.check
    "activation": str,
    "loss": str,
    "dataset": str,
    "steps": [dict],
    "data": {
        "class_names": [str],
        "image_shape": [int],
        "title?": str,
        "sha256?": {str: str},
        "fit": str,
        "edge": (int, float),
    },
    "epoch?": int,
    "augment": [str],
    **dict.fromkeys(STRENGTHS, (int, float)),
}
STEP_KINDS = {  # what each step holds; the last four were not yet one when older files were written
    "deskew": {"shape": [int]},
    "width": {"shape": [int], "number": int},
    "pool": {"shape": [int]},
    "affine": {"mean?": (float, np.ndarray), "factor": float, "basis?": np.ndarray},
    "scale": {},
    "center": {"mean": np.ndarray},
    "standardize": {"mean": float, "std": float},
    "pca": {"mean": np.ndarray, "basis": np.ndarray},
}
MOST_CLASSES = 256  # a label is a byte
LARGEST_NUMBER = 1e30  # of what steps from a file hold; float32 ends at 3e38


def load_run(path):
    """``(params, config)`` of a run's folder or of a params file, ready for use.

    Raises
    ------
    ValueError
        As ``nn.load_params``; a config that does not say how to use the params.
    OSError
        There is no such file.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "params.pkl")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no folder or file {path}; run python train.py first (see --out)")
    params, config = nn.load_params(path)
    try:
        return params, read_config(params, config)
    except ValueError as error:
        raise ValueError(f"{path} was not written by a run: {error}") from error


def read_config(params, config):
    """The config that is stored with params, checked and complete, its steps as ``fit_steps`` gives them."""
    nn.check(config, {"data": dict}, "its config")
    own = {"fit": "digit" if config.get("dataset") in ("mnist", "glyphs") else "whole", "edge": 0.0}
    config = {
        "augment": [],
        **STRENGTHS,
        **config,
        "data": {**own, **config["data"]},
    }  # older files have less
    nn.check(config, CONFIG_KIND, "its config")
    nn.choose("fit", config["data"]["fit"], dict.fromkeys(FITS))
    nn.choose("activation", config["activation"], nn.ACTIVATIONS)
    nn.choose("loss", config["loss"], nn.LOSSES)
    for name in config["augment"]:
        nn.choose("distortion", name, dict.fromkeys(AUGMENT_NAMES[1:]))
    for name in STRENGTHS:
        if not (LEAST_SMOOTH if name == "smooth" else 0) <= config[name] <= LARGEST_STRENGTH:
            raise ValueError(f"its {name} is out of range")
    shape, names, sizes = config["data"]["image_shape"], config["data"]["class_names"], nn.layer_sizes(params)
    if len(shape) != 2 or len(names) != sizes[-1]:
        raise ValueError("its class_names or image_shape do not fit its params")
    if len(names) > MOST_CLASSES:
        raise ValueError(f"it has {len(names):,} classes, more than {MOST_CLASSES}")
    facts = {**config["data"], "class_names": [printable(name) for name in names]}
    facts["title"] = printable(facts.get("title") or "unnamed data")
    return {**config, "data": facts, "steps": read_steps(config["steps"], shape, sizes[0])}


def read_steps(steps, image_shape, inputs):
    """Fitted steps from a file, checked, those of older files as ``fit_steps`` would give them now.

    Parameters
    ----------
    steps : list
    image_shape : (rows, columns)
    inputs : int
        How many numbers the network takes; the steps must lead there.

    Raises
    ------
    ValueError
        A step that is none, or does not fit what comes before or after it.
    """
    if len(steps) > len(STEP_KINDS):  # thousands of them would run for hours
        raise ValueError(f"its {len(steps):,} preprocessing steps are too many")
    pictures, numbers, shape = [], [], tuple(image_shape)
    with np.errstate(all="ignore"):  # numbers that are out of range are found in the end
        for step in steps:
            nn.check(step, {"name": str}, "a preprocessing step")
            what = f"the preprocessing step {step['name']}"
            kinds = nn.choose("preprocessing step", step["name"], STEP_KINDS)
            nn.check(step, kinds, what)
            if step["name"] not in PICTURE_STEPS:
                held = {key: step.get(key) for key in (kind.removesuffix("?") for kind in kinds)}
                factor = 1 / 255 if step["name"] == "scale" else held.get("factor", 1.0)
                factor = float(np.divide(factor, held.get("std", 1.0)))
                numbers = _followed_by(numbers, held.get("mean"), factor, held.get("basis"))
            elif numbers or tuple(step["shape"]) != shape or step.get("number", 1) < 1:
                raise ValueError(f"{what} does not fit images of {shape}")
            else:
                pictures.append(step)
                shape = shape_after([step], shape)
    (affine,) = numbers or [UNCHANGED]
    pixels, mean, basis = math.prod(shape), affine["mean"], affine["basis"]
    leads = (pixels, pixels) if basis is None else basis.shape
    if leads != (pixels, inputs) or np.shape(mean) not in ((), (pixels,)):
        raise ValueError(f"its preprocessing does not lead from {image_shape} pixels to {inputs} inputs")
    parts = [np.abs(np.float64(part)) for part in (mean, basis, affine["factor"]) if part is not None]
    if affine["factor"] < 1 / LARGEST_NUMBER or not all((part < LARGEST_NUMBER).all() for part in parts):
        raise ValueError("the numbers of its preprocessing are out of range")
    return pictures + numbers


# --- files: IDX, JSON and CSV -----------------------------------------------------------------


MOST_SHRUNK = 100  # times at most that gzip makes pictures smaller: MNIST's 5, blank ones 1,000
SMALL_BYTES, MOST_TEXT = 1 << 26, 1 << 27  # of a data set that may shrink as it likes; of a JSON or CSV file


def load_idx(path):
    """``(array, sha256)`` of an IDX file of unsigned bytes, which may be gzipped.

    Never takes more memory than its header announces, which is compared with the file's size first.
    The SHA-256 is that of the uncompressed content.

    Raises
    ------
    ValueError
        It holds neither labels nor images, is cut off, goes on after its end, or holds too much.
    OSError, MemoryError
        The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            room, unzipped = os.fstat(file.fileno()).st_size, file
            if file.peek(2)[:2] == b"\x1f\x8b":
                room, unzipped = max(MOST_SHRUNK * room, SMALL_BYTES), gzip.GzipFile(fileobj=file)
            magic = unzipped.read(4)
            if magic not in (b"\0\0\x08\x01", b"\0\0\x08\x03"):
                raise ValueError("it does not start as labels or images of unsigned bytes do")
            sizes = unzipped.read(4 * magic[3])
            shape = struct.unpack(f">{magic[3]}I", sizes)
            announced = math.prod(shape)
            if announced > min(room, nn.MOST_BYTES):
                hint = "" if unzipped is file else "; unpack it with gunzip if that is right"
                raise ValueError(f"its header announces {announced:,} bytes, too much for its size{hint}")
            content = unzipped.read(announced + 1)  # the last byte should not be there
        if len(content) != announced:
            wrong = "ends before" if len(content) < announced else "goes on after"
            raise ValueError(f"it {wrong} the {announced:,} bytes that its header announces")
    except MemoryError as error:
        raise MemoryError(f"there is not enough memory to read {path}") from error
    except (ValueError, struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no IDX file: {error}") from error
    digest = hashlib.sha256(magic + sizes)
    digest.update(content)
    return np.frombuffer(content, np.uint8).reshape(shape), digest.hexdigest()


def idx_bytes(array):
    """The content of an IDX file for a uint8 array."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def save_json(path, value):
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    nn.save_bytes(path, text.encode(errors="backslashreplace"))  # JSON's own form of what is no text


def load_json(path):
    """A JSON file's content; ValueError that names the file where it is damaged."""
    content = nn.load_bytes(path, MOST_TEXT)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def save_rows(path, rows, columns):
    """Write a list of dicts as CSV; None becomes an empty field."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    nn.save_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def load_rows(path, words=False):
    """A CSV file of numbers as a list of dicts; empty fields become None.

    With ``words``, a field that is no number, such as ``512x256`` or ``relu``, remains text.

    Raises
    ------
    ValueError
        No header, a row of another length, a field that is no number (without ``words``).
    """
    content = nn.load_bytes(path, MOST_TEXT)
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        header, *lines = list(csv.reader(text, strict=True)) or [[]]
        if not header or any(len(line) != len(header) for line in lines):
            raise ValueError("its rows differ in length")
        return [{name: _number(text, words) for name, text in zip(header, line)} for line in lines]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a table{'' if words else ' of numbers'}: {error}") from error


def _number(text, words):
    if text == "":
        return None
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        if words:
            return text
        raise


# --- download ---------------------------------------------------------------------------------

SIZES = {  # bytes of uncompressed content, the same for both sources
    "train_labels": 60_008, "train_images": 47_040_016, "test_labels": 10_008, "test_images": 7_840_016,
}  # fmt: skip
DIGITS = [str(digit) for digit in range(10)]
GARMENTS = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
SOURCES = {  # what can be downloaded; sha256 is of the uncompressed content
    "mnist": {
        "title": "MNIST",
        "class_names": DIGITS,
        "mirrors": [
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ],
        "sha256": {
            "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        },
    },
    "fashion-mnist": {
        "title": "Fashion-MNIST",
        "class_names": GARMENTS,
        "mirrors": [
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ],
        "sha256": {
            "train_labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "train_images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "test_labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "test_images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        },
    },
}
CHUNK = 1 << 20  # bytes read at a time
ANSWER_SECONDS = 6  # a mirror that is silent for so long is passed over, two of them within 15 seconds
SLOWEST = 100_000  # and one that brings fewer bytes of uncompressed content a second


def download_file(urls, path, sha256, size):
    """Download a gzipped file from the first of several URLs that has the right content.

    Nothing is written before the content is complete and its hash is right.

    Parameters
    ----------
    urls : list of str
    path : path
        Where the gzipped file goes; its folder is made.
    sha256, size : str, int
        Of the uncompressed content, in bytes.

    Raises
    ------
    OSError
        None of the URLs worked; the message lists what was tried and what happened.
    """
    path, failures = pathlib.Path(path), []
    for url in urls:
        try:
            content = _fetch(url, size)
            _check_download(content, sha256, size)
            path.parent.mkdir(parents=True, exist_ok=True)
            nn.save_bytes(path, content)
            return
        except Exception as error:  # whatever goes wrong with one mirror, the next one is tried
            failures.append(f"{url}: {message_of(error)}")
    raise OSError(f"could not download {path.name} ({'; '.join(failures)})")


def _fetch(url, size):
    """Content of a URL. A thread reads it, so that even a name look-up that hangs has an end."""
    seconds, results = ANSWER_SECONDS + size / SLOWEST, []
    deadline = time.monotonic() + seconds

    def work():
        try:
            results.append(_read_url(url, size, deadline))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        raise TimeoutError(f"not complete within {seconds:.0f} s")
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def _read_url(url, size, deadline):
    """What comes from a URL until the deadline, if it is not far too much."""
    import urllib.error  # late: they take a tenth of a second that only a download needs
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    try:
        response = urllib.request.urlopen(request, timeout=ANSWER_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    content = bytearray()
    with response, progress_line() as show:
        while time.monotonic() < deadline and (chunk := response.read1(CHUNK)):
            content += chunk
            show(f"downloading {url}: {len(content) / 1e6:.1f} MB")
            if len(content) > size + CHUNK:  # gzip never makes a file much larger
                raise ValueError(f"more than the {size} bytes that it should have")
    return bytes(content)


def _check_download(content, sha256, size):
    """Raise a ValueError unless content is gzip, and what is in it has the size and the hash."""
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        inflated = inflate.decompress(content, size + 1)
    except zlib.error:
        raise ValueError(f"no gzip file but {content[:20]!r}...") from None
    if not inflate.eof or inflate.unused_data or hashlib.sha256(inflated).hexdigest() != sha256:
        raise ValueError("it is cut off, goes on after its end, or its content has the wrong SHA-256")


# --- glyphs: digits drawn from fonts ----------------------------------------------------------

GLYPH_FONTS = {  # files that Matplotlib ships; no training image uses a font of the test images
    "train": [
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
        "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10",
    ],
    "test": ["DejaVuSans-Oblique", "DejaVuSerif-Bold", "STIXGeneralItalic", "cmtt10"],
}  # fmt: skip
GLYPH_STRENGTHS = {  # of their distortion, see make_augment
    "max_shift": 2.5,
    "max_rotation": 17,
    "max_scaling": 0.2,
    "max_shear": 0.35,
    "bend": 0.7,
    "smooth": 5.0,
}


def _load_glyphs(folder):
    """The drawn data set, from its cached IDX files, or drawn now and cached if possible."""
    title = "glyphs (drawn)"
    if all(_find_idx(folder, part) for part in FILES):
        return _load_folder(folder, "glyphs", title, DIGITS)
    print("drawing the data set glyphs: 70,000 digits from fonts ...", file=sys.stderr)
    arrays = draw_glyphs(np.random.default_rng(0))
    contents = {part: idx_bytes(array) for part, array in arrays.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, content in contents.items():
            nn.save_bytes(folder / FILES[part], content)
    except OSError as error:
        print(f"glyphs could not be kept in {folder} ({message_of(error)}); going on", file=sys.stderr)
    digests = {part: hashlib.sha256(content).hexdigest() for part, content in contents.items()}
    return _as_dataset(folder, "glyphs", title, arrays, digests, DIGITS)


def draw_glyphs(rng, train_size=60_000, test_size=10_000):
    """Draw images of digits from the fonts that Matplotlib ships.

    Each digit of each font is rendered once in four thicknesses, and then distorted at random by ``augment``.

    Parameters
    ----------
    rng : numpy.random.Generator
    train_size, test_size : int

    Returns
    -------
    dict
        uint8 ``train_images``, ``test_images`` (n, 28, 28), ``train_labels``, ``test_labels``
        (n,). The test images come from fonts that no training image uses.

    Raises
    ------
    ModuleNotFoundError
        Matplotlib (its fonts) or Pillow is not installed.
    """
    arrays, distortion = {}, make_augment(["elastic"], (28, 28), **GLYPH_STRENGTHS)
    for part, size in (("train", train_size), ("test", test_size)):
        glyphs = np.stack([_render_digits(font) for font in GLYPH_FONTS[part]])  # (fonts, 10, 4, 28, 28)
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        fonts, thickness = rng.integers(0, len(glyphs), size), rng.integers(0, glyphs.shape[2], size)
        images = glyphs[fonts, labels, thickness].reshape(size, -1)
        for start in range(0, size, 1000):  # they are floating-point numbers for a moment
            block = images[start : start + 1000]
            block[...] = np.rint(augment(block, distortion, rng))
        arrays |= {f"{part}_images": images.reshape(size, 28, 28), f"{part}_labels": labels}
    return arrays


def _render_digits(font):
    """uint8 (10, 4, 28, 28): digits of 20 pixels, thinned, as they are, and thickened once and twice."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

    matplotlib = importlib.util.find_spec("matplotlib")  # found, not imported: it is slow
    if matplotlib is None:
        raise ModuleNotFoundError("the data set glyphs needs Matplotlib's fonts: pip install matplotlib")
    path = pathlib.Path(matplotlib.origin).parent / "mpl-data/fonts/ttf" / f"{font}.ttf"
    typeface = ImageFont.truetype(str(path), 200, layout_engine=ImageFont.Layout.BASIC)
    digits = []
    for digit in DIGITS:
        left, top, right, bottom = typeface.getbbox(digit)
        drawn = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(drawn).text((-left, -top), digit, fill=255, font=typeface)
        plain = ImageOps.expand(ImageOps.pad(drawn, (40, 40), Image.Resampling.BOX), 8)  # 56x56
        thinner = Image.blend(plain, plain.filter(ImageFilter.MinFilter(3)), 0.6)
        thicker, thickest = (plain.filter(ImageFilter.MaxFilter(size)) for size in (3, 5))
        digits.append([np.asarray(image.reduce(2)) for image in (thinner, plain, thicker, thickest)])
    return np.array(digits)


# --- pictures of your own ---------------------------------------------------------------------

SMALLEST_SIDE, MOST_PIXELS = 8, 50_000_000  # of a picture that is read
SEARCHED_SIDE = 256  # pixels of the longer side at which a digit is looked for, and then looked at
LEAST_CONTRAST = 16  # grey levels out of 255 between ink and paper


PICTURES = {  # Pillow's name -> suffixes; of its other formats some run what is in a file, as EPS does
    "PNG": [".png"], "JPEG": [".jpg", ".jpeg"], "BMP": [".bmp"], "GIF": [".gif"], "TIFF": [".tif", ".tiff"],
    "WEBP": [".webp"], "PPM": [".ppm", ".pgm", ".pbm"],
}  # fmt: skip
MOST_PICTURE_BYTES = 1 << 28


def expand_pictures(paths):
    """Files of pictures: those of a folder, those that a pattern fits, as ``photos/*.jpg``, or the path.

    What test.py has written beside pictures is left out, unless there is nothing else. A path that is
    not there remains. ValueError for a folder without pictures.
    """
    files, suffixes = [], tuple(suffix for suffixes in PICTURES.values() for suffix in suffixes)
    for path in map(str, paths):
        if os.path.isdir(path):
            found = [os.path.join(path, name) for name in os.listdir(path) if name.lower().endswith(suffixes)]
            if not found:
                raise ValueError(f"--images: the folder {path} holds no pictures; name a run before --images")
        else:
            found = [] if os.path.exists(path) else glob.glob(path)  # cmd and PowerShell leave it to us
        files += sorted(found) or [path]
    return [path for path in files if not path.endswith((".seen.png", ".why.png"))] or files


def load_picture(path):
    """Read a picture file of one of the kinds of PICTURES; its content decides which.

    Returns
    -------
    uint8 array (rows, columns, 3)
        Upright. What is transparent is white where the ink is dark, and black where it is light.

    Raises
    ------
    ValueError
        An empty file, no picture, a damaged one, one under 8x8 or over 50 million pixels.
    OSError, MemoryError
        The file cannot be read.
    """
    from PIL import Image, ImageOps

    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no picture {path}")
    content = nn.load_bytes(path, MOST_PICTURE_BYTES)
    try:
        with warnings.catch_warnings(), _without_stderr():
            warnings.simplefilter("ignore")  # of large pictures, though our limit is lower, and of odd ones
            picture = Image.open(io.BytesIO(content), formats=list(PICTURES))
            columns, rows = picture.size
            if min(rows, columns) < SMALLEST_SIDE or rows * columns > MOST_PIXELS:
                raise ValueError(f"it has {columns}x{rows} pixels, not 8x8 to {MOST_PIXELS:,}")
            return _as_rgb(ImageOps.exif_transpose(picture))
    except MemoryError as error:
        raise MemoryError(f"there is not enough memory to read {path}") from error
    except Exception as error:  # a damaged picture can fail in any way
        unknown = "no known format, save it as JPEG or PNG" if content else "the file is empty"
        reason = unknown if isinstance(error, Image.UnidentifiedImageError) else message_of(error)
        raise ValueError(f"the picture {path} cannot be read: {reason}") from error


@contextlib.contextmanager
def _without_stderr():
    """Nothing on standard error, not even from C: libtiff writes there past Python."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        sys.stderr.flush()
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _as_rgb(picture):
    from PIL import Image

    if picture.mode[0] in "IF":  # more than 8 bits of grey
        grey = np.asarray(picture, np.float32)
        grey = np.uint8(255 * (grey - grey.min()) / max(1e-9, np.ptp(grey)))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        grey, opaque = np.asarray(picture.convert("L")), np.asarray(picture.getchannel("A"))
        dark = (grey * (opaque / 255)).sum() < 128 * (opaque / 255).sum()
        paper = Image.new("RGBA", picture.size, "white" if dark else "black")
        picture = Image.alpha_composite(paper, picture)
    return np.asarray(picture.convert("RGB"))


FITS = ("digit", "whole")  # how a picture is brought into the form of a network's images


def picture_facts(dataset):
    """How pictures are fitted for networks trained on a dataset, to be stored with them.

    Returns
    -------
    dict
        ``fit``: ``digit`` where the training images are digits as MNIST's are, or centred like them,
        else ``whole``; ``edge``, the mean grey level along the edges of the training images.
    """
    (rows, columns), images = dataset["image_shape"], dataset["train_images"][:2000]
    pictures = images.reshape(-1, rows, columns).astype(np.float32)
    edge = float(np.concatenate([pictures[:, [0, -1]].ravel(), pictures[:, :, [0, -1]].ravel()]).mean())
    mass = np.maximum(pictures.sum(axis=(1, 2)), 1)
    centred = np.ones(len(pictures), bool)
    for axis, size in ((1, rows), (2, columns)):
        along = pictures.sum(axis=3 - axis)  # (n, size)
        margins = along[:, [0, -1]].sum(axis=1)
        centred &= (np.abs(along @ np.arange(size) / mass - size / 2) < 1.01) & (margins < 0.01 * mass)
    fit = "digit" if dataset["name"] in ("mnist", "glyphs") or centred.mean() > 0.95 else "whole"
    return {"fit": fit, "edge": edge}


def fit_picture(picture, facts, fit=None):
    """Bring a picture into the form of a network's images.

    Parameters
    ----------
    picture : uint8 array (rows, columns, 3)
    facts : dict
        ``image_shape``, ``fit`` and ``edge`` of the network's training images.
    fit : str, optional
        ``digit``: see ``prepare_picture``. ``whole``: grey, resized, inverted where its edges are then
        more like those of the training images. Default: the network's own. A picture that has the
        network's size already is not cut out or resized.

    Returns
    -------
    uint8 array of image_shape
    """
    from PIL import Image

    shape = tuple(facts["image_shape"])
    if (fit or facts["fit"]) == "digit" and picture.shape[:2] != shape:
        return prepare_picture(picture, shape)
    grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    image = np.asarray(grey if picture.shape[:2] == shape else grey.resize(shape[::-1], Image.Resampling.BOX))
    edge = np.concatenate([image[[0, -1]].ravel(), image[:, [0, -1]].ravel()]).mean()
    return 255 - image if abs(255 - edge - facts["edge"]) < abs(edge - facts["edge"]) else image


def prepare_picture(picture, image_shape=(28, 28)):
    """Bring a picture of a digit into the form of MNIST's images.

    As MNIST's authors did (LeCun et al. 1998): ink is light on black, whichever way it was; the
    digit is cut out, fitted with its proportions kept into 20x20 pixels, and centred by its mass
    in 28x28. Before that the paper is told from the ink, under uneven light and in any colours.

    Parameters
    ----------
    picture : uint8 array (rows, columns, 3)
    image_shape : (rows, columns)
        Of the network's images; the 20 pixels are in proportion to them.

    Returns
    -------
    uint8 array of image_shape

    Raises
    ------
    ValueError
        There is nothing on the picture.
    """
    pixels = _shrunk(picture)
    ink = _find_ink(pixels)
    box, scale = _box_of(ink), max(picture.shape) / max(pixels.shape)
    extent = max(part.stop - part.start for part in box)
    if _is_sheet(ink[box]) and ink[box].size > 0.2 * ink.size:  # of paper, on a desk
        return prepare_picture(picture[_grown_box(box, -extent / 12, scale)], image_shape)
    if scale > 1 and extent < SEARCHED_SIDE / 2:  # a small digit on a large picture: look again, closer
        ink = _find_ink(_shrunk(picture[_grown_box(box, extent / 2, scale)]))
    return prepare_ink(ink, image_shape)


def prepare_ink(ink, image_shape=(28, 28)):
    """The same from ink alone: float array (rows, columns) in [0, 1], not all 0."""
    fitted = _fit(_thickened(ink[_box_of(ink)]), image_shape)
    return _center_by_mass(fitted, image_shape)


def _box_of(ink):
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _is_sheet(ink):
    """Whether ink fills its box up to the edges, as no digit does."""
    solid = ink > 0.4
    inner = tuple(slice(n // 10, n - n // 10) for n in ink.shape)
    return solid.sum() - solid[inner].sum() > 0.5 * (solid.size - solid[inner].size)


def _grown_box(box, margin, scale):
    """A box with a margin around it, in a picture that is larger by scale."""
    return tuple(
        slice(int(max(0, part.start - margin) * scale), math.ceil((part.stop + margin) * scale))
        for part in box
    )


def _shrunk(picture):
    """float32 (rows, columns, 3) of at most SEARCHED_SIDE pixels a side."""
    from PIL import Image

    scale = max(1, max(picture.shape) / SEARCHED_SIDE)
    size = tuple(max(1, round(n / scale)) for n in picture.shape[1::-1])
    small = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _find_ink(pixels):
    """How much ink there is at each pixel, (rows, columns) in [0, 1]; ValueError if there is none."""
    difference = pixels - _paper(pixels)
    distance = np.linalg.norm(difference, axis=2)
    rank = min(8, 1 + distance.size // 100)  # the very strongest pixels of a large picture may be dust
    most = np.partition(distance.ravel(), -rank)[-rank]
    strong = distance >= 0.5 * most
    colour = difference[strong].mean(axis=0)  # from paper to ink; what differs otherwise is light
    ink = difference @ (colour / max(1e-9, np.linalg.norm(colour)))
    noise = 3.14 * np.quantile(np.abs(ink), 0.25)  # the standard deviation, of normal noise
    peak = np.partition(ink.ravel(), -rank)[-rank]
    if peak < LEAST_CONTRAST or peak < 5 * noise:
        raise ValueError("there is nothing to see on it")
    ink = np.clip((ink / peak - 0.1) / 0.9, 0, 1)
    return np.where(_grown(_digit(_near_strokes(ink > 0.4) & (ink > 0.4))), ink, 0)


def _digit(mask):
    """The connected parts of a mask that are a digit, among frames, boxes, underlines and spots.

    What touches the picture's edge is none, as far as there is something else; nor is a box that
    another part lies in, a line below all else, or a small part beside the largest.
    """
    labels = _connected_parts(mask)
    parts = []
    for label, size in enumerate(np.bincount(labels.ravel())[1:], start=1):
        if size:
            rows, columns = (np.flatnonzero((labels == label).any(axis=axis)) for axis in (1, 0))
            parts.append((label, int(size), rows[0], rows[-1], columns[0], columns[-1]))
    rows, columns = (n - 1 for n in mask.shape)
    inside = [p for p in parts if p[2] > 0 and p[3] < rows and p[4] > 0 and p[5] < columns]
    largest = max(size for _, size, *_ in parts)
    parts = inside if sum(p[1] for p in inside) > 0.1 * largest else parts
    parts = [p for p in parts if not any(_encloses(p, other) for other in parts)] or parts
    main = max(parts, key=lambda p: p[1])
    while len(parts) > 1:  # a line is as wide as all else, and below it
        line = max(parts, key=lambda p: p[3])
        rest = [p for p in parts if p is not line]
        width, height = line[5] - line[4] + 1, line[3] - line[2] + 1
        others = max(p[5] for p in rest) - min(p[4] for p in rest) + 1
        if not (width > 4 * height and width > 0.8 * others and line[2] > max(p[3] for p in rest)):
            break
        parts, main = rest, max(rest, key=lambda p: p[1])
    extent = max(main[3] - main[2], main[5] - main[4]) + 1
    kept = [p[0] for p in parts if max(p[3] - p[2], p[5] - p[4]) + 1 > extent / 4 or _encloses(main, p, 0)]
    return np.isin(labels, kept)


def _encloses(part, other, least=0.05):
    """Whether a part's box encloses another part, of at least so many of its pixels, and is mostly empty."""
    _, size, top, bottom, left, right = part
    inside = top < other[2] and other[3] < bottom and left < other[4] and other[5] < right
    area = (bottom - top + 1) * (right - left + 1)
    return inside and other[1] >= least * size and (least == 0 or size < 0.35 * area)


def _connected_parts(mask):
    """Numbers (rows, columns) from 1 of the parts of a mask that touch, by their corners too; 0 elsewhere."""
    labels = np.where(mask, np.arange(1, mask.size + 1, dtype=np.int32).reshape(mask.shape), np.int32(0))
    while True:  # each pixel takes the largest label around it, until nothing changes
        spread = labels
        for axis in (0, 1):
            edge = np.zeros_like(spread.take([0], axis))
            wide = np.concatenate([edge, spread, edge], axis).swapaxes(0, axis)
            spread = np.maximum(np.maximum(wide[:-2], wide[1:-1]), wide[2:]).swapaxes(0, axis)
        spread = spread * mask
        if np.array_equal(spread, labels):
            return np.unique(labels, return_inverse=True)[1].reshape(mask.shape)
        labels = spread


def _paper(pixels):
    """The paper's colour at each pixel: a quadratic surface through the half that fits it best.

    Least trimmed squares: it starts with a plane through the frame, where there is most paper,
    and the pixels furthest off are left out, again and again.
    """
    rows, columns, _ = pixels.shape
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)
    some = slice(None, None, max(1, max(rows, columns) // 64))  # of the pixels are enough to fit to
    few, colours = terms[some, some].reshape(-1, 6), pixels[some, some].reshape(-1, 3)
    kept = np.abs(few[:, 1:3]).max(axis=1) > 0.8  # the frame
    for step in range(12):
        used = 3 if step < 8 else 6  # bent only in the end, or it bends to the ink
        fitted = np.linalg.lstsq(few[kept, :used], colours[kept], rcond=None)[0]
        error = np.linalg.norm(colours - few[:, :used] @ fitted, axis=1)
        kept = error <= np.median(error)
    return (terms @ fitted).astype(np.float32)


def _near_strokes(mask):
    """A mask and all pixels that touch it, without specks: where it is far below its most when blurred."""
    from PIL import Image, ImageFilter

    wide = ImageFilter.BoxBlur(max(mask.shape) / 24)
    blurred = np.asarray(Image.fromarray(np.uint8(255 * mask)).filter(wide))
    return _grown(mask) & (blurred > 0.2 * blurred.max())


def _grown(mask):
    """A mask and all pixels that touch it."""
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(np.uint8(255 * mask)).filter(ImageFilter.MaxFilter(3))) > 0


def _thickened(ink):
    """Ink with strokes of at least a twelfth of the digit's extent, or a thin pen's fade away."""
    from PIL import Image, ImageFilter

    ink = np.pad(ink, 1)
    mask = ink > 0.4
    edge = mask & _grown(~mask)
    width = 2 * mask.sum() / edge.sum()
    missing = int((max(ink.shape) / 12 - width) / 2)  # on each side
    if missing < 1:
        return ink[1:-1, 1:-1]
    picture = Image.fromarray(np.uint8(255 * np.pad(ink, missing)))
    return np.asarray(picture.filter(ImageFilter.MaxFilter(2 * missing + 1)), np.float32) / 255


def _fit(ink, image_shape):
    """The cut-out ink scaled to 20/28 of image_shape, its proportions kept; its brightest is 1."""
    from PIL import Image

    scale = min(20 / 28 * most / n for most, n in zip(image_shape, ink.shape))
    rows, columns = (max(1, round(n * scale)) for n in ink.shape)
    fitted = Image.fromarray(ink.astype(np.float32)).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(fitted) / np.max(fitted)


def _center_by_mass(fitted, image_shape):
    """uint8 image with the fitted picture's centre of mass at its middle, by whole pixels."""
    image = np.zeros(image_shape, np.uint8)
    start = []
    for axis, most in enumerate(image_shape):
        mass = fitted.sum(axis=1 - axis)
        center = (mass @ np.arange(len(mass))) / mass.sum()
        start.append(min(max(0, round(most / 2 - center)), most - len(mass)))
    rows, columns = fitted.shape
    image[start[0] : start[0] + rows, start[1] : start[1] + columns] = np.rint(255 * fitted)
    return image


def save_seen(path, picture, image):
    """Write PATH.seen.png: the picture that was given beside the image made of it; returns its path."""
    from PIL import Image, ImageOps

    side = 280
    sheet = Image.new("RGB", (2 * side + 30, side + 20), "#808080")
    given = ImageOps.contain(Image.fromarray(np.ascontiguousarray(picture)), (side, side))
    seen = ImageOps.contain(Image.fromarray(image), (side, side), Image.Resampling.NEAREST)
    for left, part in ((10, given), (side + 20, seen)):
        sheet.paste(part, (left + (side - part.width) // 2, 10 + (side - part.height) // 2))
    return save_png(f"{path}.seen.png", sheet)


def save_png(path, picture):
    """Write a Pillow image; returns the path."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    nn.save_bytes(path, buffer.getvalue())
    return path


# --- what every script does at its edges ------------------------------------------------------


def make_parser(description, examples=""):
    """An argparse parser whose errors are one line, with the flag that all scripts share."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
    )
    parser.error = _raise_usage
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder of the data sets (default: DATA_DIR or datasets)"
    )
    return parser


def _raise_usage(message):
    raise ValueError(f"{message} (--help shows all flags)")


def parse_flags(parser, argv):
    """Parse a command line; ValueError with the nearest right name for a flag that is unknown."""
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        _raise_usage(f"unknown argument {unknown[0]}{hint}")
    return flags


def printable(text):
    """Text without what could command a terminal or turn a line around: ``\\x1b`` is spelled out."""
    odd = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(odd, lambda found: ascii(found[0])[1:-1], text)


def message_of(error):
    """What an error says, in one line that is never empty."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without its [Errno 2]
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, ModuleNotFoundError) and error.name in ("PIL", "matplotlib"):
        text = f"{text} (pip install -r requirements.txt)"
    elif not text and isinstance(error, MemoryError):
        text = "there is not enough memory"
    elif not text:  # the words of FloatingPointError
        text = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return printable(f"{' '.join(text.split()):.2000}")


def command_text(*words):
    """A command to copy into the shell that people have here, with quotes around what has spaces."""
    words = [str(word) for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def setting_text(value):
    """A setting as one word, which its check turns into the same setting: ``512x256``."""
    if isinstance(value, list):
        return ("+" if value and isinstance(value[0], str) else "x").join(map(str, value or [0]))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


@contextlib.contextmanager
def progress_line():
    """A function that shows one changing line on a terminal, and nothing anywhere else.

    Called with "" it clears the line.
    """
    shown = [0.0]

    def show(text):
        if not text or time.monotonic() - shown[0] > 0.2:
            shown[0] = time.monotonic()
            text = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps could not be cleared
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()

    if not sys.stderr.isatty():
        yield lambda text: None
        return
    try:
        yield show
    finally:
        show("")


def run_script(main, argv=None):
    """Run a script's ``main(argv)``; returns its exit status.

    Bad input (ValueError), missing or unwritable files (OSError), a training that diverges
    (ArithmeticError), a missing package, too little memory and too few threads give one line on
    standard error and 2; Ctrl-C gives 130, SIGTERM 143. Output that nobody reads on, as after
    ``| head``, ends the script quietly, with 141.
    """
    name, complaint, signals = os.path.basename(sys.argv[0]), "", []

    def stop(signum, frame):
        signals.append(signum)
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # while one is handled, no other counts
            raise KeyboardInterrupt

    _prepare_streams()
    heed_signals(stop)
    try:
        try:
            status = main(argv) or 0
        except SystemExit as end:  # of --help
            status = end.code or 0
        sys.stdout.flush()  # here, where a full disk behind it is an error like any other
    except BrokenPipeError:
        status = 141  # as of a Unix tool: 128 and the number of SIGPIPE
    except (ValueError, OSError, ArithmeticError, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        status, complaint = 2, f"{name}: {message_of(error)}"
    except KeyboardInterrupt as error:
        status = 128 + (signals[0] if signals else signal.SIGINT)
        start = "\n" if sys.stderr.isatty() else ""  # below the ^C that a terminal shows
        complaint = f"{start}{name}: stopped" + (f": {message_of(error)}" if error.args else "")
    heed_signals(signal.SIG_IGN)  # all is done
    with contextlib.suppress(OSError):  # nobody reads it
        if complaint:
            print(complaint, file=sys.stderr, flush=True)
    if status:
        _drop_output()
    return status


def _prepare_streams():
    """Output that takes any text: a name that its encoding lacks is spelled out."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_output():
    """Flush standard output, or drop what it cannot take: Python would complain about it on exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
