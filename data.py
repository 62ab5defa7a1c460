"""Datasets: load, split, preprocess, augment; pictures of your own; the edges that every script has.

In this order, after a few lines for scripts that are still importing: data sets (``load_dataset``,
``as_dataset``, READERS), ``split``, preprocessing (``fit_steps``, ``preprocess``, ``batches``), distortions
(``augment``), saved networks (``load_run``) and other files, the download, digits drawn from fonts,
pictures of your own (``prepare_picture``), what every script needs (``make_parser``, ``run_script``).

A dataset is a plain dict: ``name``, ``title``, ``train_images`` and ``test_images`` (uint8,
``(n, rows * cols)``), ``train_labels`` and ``test_labels`` (``(n,)``, uint8 up to 256 classes),
``image_shape`` ``(rows, cols)``, ``class_names`` and ``sha256`` (of each file's uncompressed content); and
``val_images`` and ``val_labels`` where it has a validation set of its own. There may be no test images.
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


def load_dataset(name="auto", data_dir=None, download=True, size=None, transpose=False):
    """Load a dataset, a dict as above, downloading or drawing what is missing.

    Parameters
    ----------
    name : str
        ``mnist``, ``fashion-mnist``, ``glyphs`` (drawn from fonts), ``auto`` (mnist, or with a warning
        glyphs when it is not to be had); or the path, perhaps below ``data_dir``, of a file or folder of
        one of the forms of READERS, or of a folder with pictures in a folder for each class.
    data_dir : path, optional
        Holds a folder for each dataset; default: environment variable DATA_DIR, or ``datasets``.
    download : bool
        Whether missing files may be downloaded.
    size, transpose
        As for ``as_dataset``; pictures are resized to ``size``.

    Raises
    ------
    ValueError, OSError
        Unknown name, a damaged file, what does not match; files are missing and could not be had.
    """
    data_dir = pathlib.Path(data_dir or os.environ.get("DATA_DIR") or "datasets")
    form = {"size": parse_size(size), "transpose": transpose}
    if name == "auto":
        return _load_auto(data_dir, download, form)
    if name == "glyphs":
        return _load_glyphs(data_dir / name, form)
    if name in SOURCES:
        return _load_source(name, data_dir, download, form)
    path = _locate(name, data_dir)
    if path is None:
        known = ", ".join(DATASET_NAMES)
        raise ValueError(f"there is no --dataset {name}: neither {known} nor a file or folder with data")
    title = pathlib.Path(name).resolve().name
    return _load_path(path, str(name), title.partition(".")[0] if path.is_file() else title, form)


def _load_auto(data_dir, download, form):
    try:
        return load_dataset("mnist", data_dir, download, **form)
    except OSError as error:
        reason = message_of(error)
    line = "!" * 79
    say(
        f"{line}\nWARNING: this is NOT MNIST. MNIST could not be loaded, so the stand-in data set "
        f"`glyphs` (digits drawn from fonts) is used; its accuracy says nothing about MNIST.\n"
        f"Why: {reason}\nTo get MNIST: connect to the internet and run again, or put its four "
        f"files into {data_dir / 'mnist'}, or name the folder above them with --data-dir or DATA_DIR."
        f"\n{line}",
        sys.stderr,
    )
    return load_dataset("glyphs", data_dir, **form)


def _load_source(name, data_dir, download, form):
    source, places = SOURCES[name], _places(name, data_dir)
    if form["size"] and tuple(form["size"]) != (28, 28):
        raise ValueError(f"--size: the images of {source['title']} have 28x28 pixels, and are not resized")
    folder = next((place for place in places if not _lacks(place)), places[0])
    missing = _lacks(folder)
    if missing and not download:
        raise FileNotFoundError(f"{folder} lacks {', '.join(FILES[part] for part in missing)}")
    for part in missing:
        file = f"{FILES[part]}.gz"
        urls = [mirror + file for mirror in source["mirrors"]]
        download_file(urls, folder / file, source["sha256"][part], SIZES[part])
    try:
        dataset = _load_path(folder, name, source["title"], form, source["class_names"])
        for part, digest in dataset["sha256"].items():
            if digest != source["sha256"][part]:
                raise ValueError(f"{folder}: {FILES[part]} is not that of {source['title']} (its SHA-256)")
    except ValueError as error:
        hint = "if it is damaged, delete it to download it anew; or name its folder as --dataset to use it"
        raise ValueError(f"{error}; {hint}") from error
    return dataset


def _lacks(folder):
    """The parts of FILES that are not in a folder."""
    found = _data_files(folder, known=True) if folder.is_dir() else []
    names = [_plain_name(file) for file in found]
    return [part for part, name in FILES.items() if name not in names]


def _places(name, data_dir):
    """Where a data set may lie; torchvision keeps fashion-mnist in the folder ``FashionMNIST/raw``."""
    plain, folders = re.sub("[-_]", "", str(name)).lower(), sorted(data_dir.glob("*/raw"))
    return [data_dir / name, *(f if f.parent.name.lower() == plain else f / name for f in folders)]


def as_dataset(
    train_images, train_labels, test_images=None, test_labels=None, val_images=None, val_labels=None,
    name="arrays", title=None, class_names=None, size=None, transpose=False, sha256=None, where=None,
):  # fmt: skip
    """The dataset, a dict as above, that arrays make; a ValueError names the first of them that is wrong.

    Parameters
    ----------
    train_images, test_images, val_images : arrays (n, rows, columns), (n, rows, columns, 1) or (n, d)
        uint8 remains as it is. Other numbers are brought to 0 ... 255 from 0 to 1, 16, 255 or 65,535,
        whichever is the first that holds all of them. Test and validation images may be left out.
    train_labels, test_labels, val_labels : arrays (n,)
        Whole numbers or words; the classes are those that occur, in order. Or one-hot (n, k), or
        QMNIST's (n, 8).
    name, title : str
        What the dataset is loaded by, and what it is called.
    class_names : list of str, optional
        As many as there are classes, or one for each label from 0 on.
    size : (rows, columns), optional
        Of images that are (n, d); default: they are square.
    transpose : bool
        Swap rows and columns, as EMNIST needs it.
    sha256, where
        {str: str} of what the arrays were read from, default: of the arrays; its path, for messages.
    """
    size, where, images, labels = parse_size(size), where or name, {}, {}
    for part, word, pictures, answers in (
        ("train", "training", train_images, train_labels),
        ("val", "validation", val_images, val_labels),
        ("test", "test", test_images, test_labels),
    ):
        if pictures is None and part != "train":
            continue
        images[part] = _as_pictures(np.asarray(pictures), f"{where}: the {word} images", size, transpose)
        size = images[part].shape[:0:-1] if transpose else images[part].shape[1:]  # all have the same
        labels[part] = _plain_labels(np.asarray(answers), f"{where}: the {word} labels")
        counts = len(images[part]), len(labels[part])
        if counts[0] != counts[1]:
            raise ValueError(f"{where} has {counts[0]:,} {word} images but {counts[1]:,} labels")
    if not len(images["train"]):
        raise ValueError(f"{where} has no training images")
    images = _as_bytes(images, where)
    labels, names = _as_classes(labels, class_names, where)
    shape = images["train"].shape[1:]
    arrays = {f"{part}_images": array.reshape(-1, math.prod(shape)) for part, array in images.items()}
    arrays |= {f"{part}_labels": array for part, array in labels.items()}
    if not sha256:
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        sha256 = {key: hashlib.sha256(array).hexdigest() for key, array in whole.items()}
    return {
        "name": name,
        "title": printable(title or name),
        "class_names": names,
        "image_shape": shape,
        "test_images": arrays["train_images"][:0],
        "test_labels": arrays["train_labels"][:0],
        **arrays,
        "sha256": sha256,
    }


def _as_pictures(images, what, size, transpose):
    """Images of any usual shape as an array (n, rows, columns)."""
    shape, sides = images.shape, size
    if images.ndim == 4 and 1 in (shape[1], shape[3]):
        images = images.squeeze(axis=3 if shape[3] == 1 else 1)
    elif images.ndim == 2:
        sides = size or (math.isqrt(shape[1]),) * 2
        if math.prod(sides) == shape[1]:
            images = images.reshape(len(images), *sides)
        elif not size:
            hint = "see --size, or leave out a column that is no pixel"
            raise ValueError(f"{what} have {shape[1]:,} numbers each, which make no square: {hint}")
    if images.ndim == 2 or (images.ndim == 3 and sides and images.shape[1:] != tuple(sides)):
        pixels, wanted = (setting_text(list(one)) for one in (images.shape[1:], sides))
        raise ValueError(f"{what} have {pixels} pixels, not the expected {wanted}; see --size of train.py")
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise ValueError(f"{what} have the shape {shape}, not (n, rows, columns) with one channel")
    return images.swapaxes(1, 2) if transpose else images


LEVELS = (1, 16, 255, 65_535)  # what white is: of floats, scikit-learn's digits, bytes, 16 bits


def _as_bytes(images, where):
    """Pictures of all parts, {part: (n, rows, columns)}, as uint8."""
    if all(array.dtype == np.uint8 for array in images.values()):
        return images
    for part, array in images.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{where}: the {part} images are {array.dtype}, not numbers")
        if not (array.min(initial=0) >= 0 and array.max(initial=0) <= LEVELS[-1]):  # neither is true of nan
            wrong = int((~((array >= 0) & (array <= LEVELS[-1]))).argmax())
            raise ValueError(
                f"{where}: {part} image {wrong // array[0].size + 1:,} has a pixel of {array.flat[wrong]:g}; "
                f"from 0 to 1, 255 or {LEVELS[-1]:,} was expected"
            )
    most = max(float(array.max(initial=0)) for array in images.values())
    white = next(level for level in LEVELS if most <= level)
    if most < 1 and all((array * 256.0 % 1 == 0).all() for array in images.values()):
        white = 255 / 256  # bytes divided by 256, as in deeplearning.net's mnist.pkl.gz
    if white != 255:
        _note(f"{where}: pixels from 0 to {white:g} were brought to 0 ... 255")
    factor = np.float32(255 / white)
    in_bytes = lambda block: np.rint(block.astype(np.float32) * factor).astype(np.uint8)
    return {part: _in_blocks(in_bytes, array) for part, array in images.items()}


def _in_blocks(function, images, *more):
    """What a function makes of images (n, ...), 1,000 at a time: what it needs meanwhile stays small.

    Each image lies in one piece of memory, in whatever order the function has left them.
    """
    starts = range(0, len(images) or 1, 1000)  # none are one block without any
    made = [function(images[start : start + 1000], *more) for start in starts]
    return np.ascontiguousarray(np.concatenate(made))


def _note(text):
    say(f"note: {text}", sys.stderr)


def _plain_labels(labels, what):
    """Labels of any usual form as an array (n,) of int64 or of words."""
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        columns = labels.shape[1]
        if columns > 1 and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
            labels = labels.argmax(axis=1)  # one-hot
        elif columns == 1 or (columns == 8 and labels.dtype.kind == "i"):
            labels = labels[:, 0]  # of QMNIST's columns the first one is the class
    if labels.ndim != 1:
        raise ValueError(f"{what} have the shape {labels.shape}, not (n,)")
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels):
        labels = labels.astype(str)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "backslashreplace")
    if labels.dtype.kind not in "biufU":
        raise ValueError(f"{what} are {labels.dtype}, not whole numbers or words")
    if labels.dtype.kind == "U":
        plain, wrong = labels, labels == ""
    else:
        with np.errstate(invalid="ignore"):
            plain = labels.astype(np.int64)
        wrong = plain != labels
    if wrong.any():
        number = int(wrong.argmax())
        given = labels[number] or "missing"
        raise ValueError(f"{what}: that of image {number + 1:,} is {given}, no whole number or word")
    return plain


MOST_CLASSES = 4096  # a confusion matrix is as large as its square


def _as_classes(labels, class_names, where):
    """Class numbers of all parts, {part: (n,)}, and the names of the classes."""
    every = list(labels.values())
    if any(array.dtype.kind == "U" for array in every):
        every = [array.astype(str) for array in every]
    together = np.concatenate(every)
    if together.dtype.kind == "U" and all(_is_whole(text) for text in np.unique(together)):
        together = together.astype(np.int64)
    values, index = np.unique(together, return_inverse=True)
    names = list(map(str, values if class_names is None else class_names))
    if (most := max(len(values), len(names))) > MOST_CLASSES:
        raise ValueError(f"{where} has {most:,} different labels or classes, more than {MOST_CLASSES:,}")
    if len(names) != len(values):  # there is one for each number from 0 on
        if values.dtype.kind != "i" or values[0] < 0 or values[-1] >= len(names):
            raise ValueError(f"{where} has {len(values)} classes, but {len(names)} are named")
        index = values[index]
    names = [printable(name) for name in names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where} has two classes that are called {twice}")
    index = index.astype(np.min_scalar_type(len(names) - 1))  # uint8 up to 256 classes
    ends = np.cumsum([len(array) for array in every])
    return dict(zip(labels, np.split(index, ends[:-1]))), names


def _is_whole(text):
    return text.removeprefix("-").isdecimal() and len(text) < 19 and str(int(text)) == text


def load_dataset_of(config, data_dir=None, name=None):
    """The data set that a network is judged on: the one that its config says, or the one named.

    Its labels are the network's class numbers. Where it has no test images, ``test_images`` are the
    validation images of the run, or all images of another data set; ``judged`` says which: ``test images``,
    ``validation images`` or ``images``. ``data_dir``, ``name`` and the errors are as for ``load_dataset``;
    ValueError as well for images or classes that do not fit the network.
    """
    own, trained_on = config["dataset"], config["data"]
    transpose = name in (None, own) and config["transpose"]
    size = tuple(trained_on["image_shape"][:: -1 if transpose else 1])  # before rows and columns are swapped
    dataset = load_dataset(name or own, data_dir, size=size, transpose=transpose)
    dataset = with_classes(dataset, trained_on["class_names"])
    same = dataset["sha256"] == trained_on.get("sha256")
    if name is None and not same:
        _note("the data set has changed since the network was trained")
    return _with_test_images(dataset, config, same or name in (None, own))


def load_images(path, image_shape, transpose=False):
    """New images for a network, uint8 (n, d), of a file or folder of a form of READERS.

    Of several sets of images those named test are taken; labels are not looked at. ``image_shape`` is that
    of the network's images, and ``transpose`` whether rows and columns were swapped for the training.
    ValueError or OSError for a damaged or missing file, no images, or images of another size.
    """
    path, shape = pathlib.Path(path), tuple(image_shape)[::-1] if transpose else tuple(image_shape)
    pixels = math.prod(shape)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    arrays, _ = _read_files(path, pixels)
    part = next((part for part in ("test", "train", "val") if f"{part}_images" in arrays), None)
    if part is None or not arrays[f"{part}_images"].size:
        raise ValueError(f"{path} holds no images")
    images = arrays[f"{part}_images"]
    images = images[None] if images.shape in (shape, (pixels,)) else images  # it is one
    images = _as_pictures(images, f"{path}: the images", shape, transpose)
    if f"{part}_labels" in arrays:
        _note(f"the labels in {path} are not looked at; to judge by them, see --dataset")
    return _as_bytes({"new": images}, path)["new"].reshape(-1, pixels)


def holds_arrays(path):
    """Whether a path is one for ``load_images``, and not of pictures."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return _form_of(path) is not None or (path.is_file() and not _is_picture(path))
    return bool(_data_files(path)) and not any(map(_is_picture, path.iterdir()))


def _is_picture(path):
    """Whether a file has the name of a picture."""
    suffixes = tuple(suffix for suffixes in PICTURES.values() for suffix in suffixes)
    return path.name.lower().endswith(suffixes) and not path.name.startswith(".")


def with_classes(dataset, names):
    """A dataset with the classes of a network: its labels count these names.

    Classes are told by their names. Where none of them is known, numbers are those of the classes, and
    other words are taken in order. ValueError for a class that the network does not have.
    """
    own = dataset["class_names"]
    places = {name: number for number, name in enumerate(names)}
    if not any(name in places for name in own):
        if len(own) == len(names):
            places = {name: number for number, name in enumerate(own)}
            pairs = ", ".join(f"{a} for {b}" for a, b in list(zip(own, names))[:3])
            _note(f"{dataset['title']} has other class names; they are taken in order: {pairs}, ...")
        elif all(_is_whole(name) and 0 <= int(name) < len(names) for name in own):
            places = {name: int(name) for name in own}
    labels = {key: dataset[key] for key in dataset if key.endswith("_labels")}
    there = np.unique(np.concatenate(list(labels.values())))
    unknown = [own[number] for number in there if own[number] not in places]
    if unknown:
        raise ValueError(f"{dataset['title']} does not fit: the network knows no class {unknown[0]}")
    to = np.array([places.get(name, 0) for name in own]).astype(np.min_scalar_type(len(names) - 1))
    return {**dataset, "class_names": list(names), **{key: to[array] for key, array in labels.items()}}


def _with_test_images(dataset, config, own):
    if len(dataset["test_images"]):
        return {**dataset, "judged": "test images"}
    if own:
        nn.check(config, SPLIT_KIND, "the config of the run")
        _, (images, labels) = split_dataset(dataset, config)
    else:
        images, labels = all_images(dataset)
    judged = "validation images" if own else "images"
    if len(images):
        _note(f"{dataset['title']} has no test images; its {judged} are taken")
    return {**dataset, "test_images": images, "test_labels": labels, "judged": judged}


def judged_images(dataset):
    """``(images, labels)`` to judge a network on, from ``load_dataset_of``; ValueError without any."""
    if not len(dataset["test_images"]):
        raise ValueError(f"{dataset['title']} has no test images, and the run held none out; see --dataset")
    return dataset["test_images"], dataset["test_labels"]


# --- datasets: the files that hold them -------------------------------------------------------


def _locate(name, data_dir):
    """The path of a data set, or None; it may be how names begin, as ``gzip/emnist-letters``."""
    for path in (pathlib.Path(name), *_places(name, data_dir)):
        if path.exists() or (path.parent.is_dir() and _data_files(path)):
            return path
    return None


def _load_path(path, name, title, form, class_names=None):
    arrays, digests = _read_files(path, known=class_names is not None)
    if not arrays and path.is_dir():
        arrays, digests = _read_pictures(path, form["size"])
    if len({key.partition("_")[0] for key in arrays}) == 1:  # mnist_test.csv alone: these are the images
        arrays = {f"train_{key.partition('_')[2]}": array for key, array in arrays.items()}
    for part, short in (("train_images", "X_train"), ("train_labels", "y_train")):
        if part not in arrays:
            names = f"a file or array with a name such as {FILES[part]}, {part} or {short}"
            names += ", or pictures in a folder for each class"
            raise FileNotFoundError(f"{path} lacks the {part.replace('train_', 'training ')}: {names}")
    for part in ("val", "test"):
        if f"{part}_images" in arrays and f"{part}_labels" not in arrays:
            del arrays[f"{part}_images"]
            _note(f"{path}: the {part} images have no labels and are left out; see test.py --predict")
    names = class_names or _read_class_names(path)
    return as_dataset(**arrays, name=name, title=title, class_names=names, sha256=digests, where=path, **form)


def _read_class_names(path):
    """The lines of the file classes.txt beside the data, or None."""
    file = (path if path.is_dir() else path.parent) / "classes.txt"
    if not file.is_file():
        return None
    with nn.reading(file, "is no text"):
        lines = nn.load_bytes(file, MOST_TEXT).decode("utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _data_files(path, known=False):
    """The files of a folder, or those whose names begin as path does, that make one data set.

    Of a known data set they are those of FILES, whatever else lies beside them.
    """
    folder, start = (path, "") if path.is_dir() else (path.parent, f"{path.name}-".lower())
    found = {form: {} for form in READERS}
    for file in sorted(folder.iterdir()):  # a file comes before the same one with .gz
        form, name = _form_of(file), _plain_name(file)
        wanted = name in FILES.values() if known else file.name.lower().startswith(start)
        if form and wanted and file.is_file():
            found[form].setdefault(name, file)
    files = next((list(files.values()) for files in found.values() if files), [])
    said = [file for file in files if _words_of(file.name, PARTS)]  # not Kaggle's sample_submission.csv
    return said if any(_words_of(file.name, PARTS) == "train" for file in said) else files


def _plain_name(path):
    return path.name.lower().removesuffix(".gz").replace(".idx", "-idx")


def _form_of(path):
    name = path.name.lower().removesuffix(".gz")
    hidden = name.startswith(".") or name.endswith(".part")  # which nn.save_bytes has not finished
    return None if hidden else next((form for form in READERS if re.search(form, name)), None)


PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test", "t10k": "test"}
PARTS |= dict.fromkeys(("val", "valid", "validation"), "val")
KINDS = dict.fromkeys(("x", "image", "images", "img", "imgs", "data", "pixels"), "images")
KINDS |= dict.fromkeys(("y", "label", "labels", "target", "targets"), "labels")


def _words_of(name, meanings):
    """The meaning of the first word in a name that has one: of ``X_train``, ``emnist-test-labels``."""
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)
    return next((meanings[word.lower()] for word in words if word.lower() in meanings), None)


def _read_files(path, pixels=None, known=False):
    """``(arrays, sha256)`` of a file, or of the files of a folder; CSV rows of so many pixels have no label.

    Arrays by part: train_images, train_labels, and perhaps those of val and test. SHA-256 by part, or by
    file where that holds several.
    """
    arrays, digests, origins = {}, {}, {}
    for file in [path] if path.is_file() else _data_files(path, known):
        found, digest = _read_file(file, pixels)
        parts = []
        for name, array in found.items():
            part = _words_of(f"{name} {file.name}", PARTS) or "train"
            kind = _words_of(file.name if re.fullmatch(r"arr_\d+", name) else name, KINDS)
            kind = "images" if file == path and len(found) == 1 and not kind else kind
            key = f"{part}_{kind}"
            if key in arrays:
                both = f"{origins[key]} and {file.name}"
                raise ValueError(f"{path} holds more than one data set: {part} {kind} are in {both}")
            if kind:
                parts.append(key)
                arrays[key], origins[key] = array, file.name
        digests[parts[0] if len(found) == len(parts) == 1 else printable(file.name)] = digest
    return arrays, digests


def _read_file(path, pixels):
    """``(arrays by name, sha256)`` of a file of one of the forms of READERS."""
    form = _form_of(path)
    if form is None:
        raise ValueError(f"{path} is no known kind of data file; .csv, .npz, .npy, .pkl or IDX is expected")
    if READERS[form] is None:
        found, digest = load_idx(path)
    else:
        content, digest = load_content(path)
        with nn.reading(path, "cannot be read"):
            found = READERS[form](content, pixels)
    return (found if isinstance(found, dict) else {path.name: found}), digest


def _parse_pickle(content):
    """The arrays of a dict, of ``(x, y)``, or of Nielsen's ``((x, y), (x, y), (x, y))``."""
    value = nn.pickled_data(content)
    if type(value) in (tuple, list) and len(value) in (2, 3):
        pairs = [value] if all(type(item) is np.ndarray for item in value) else value
        parts = ("train", "val", "test") if len(pairs) == 3 else ("train", "test")
        nn.check(list(pairs), [[(np.ndarray, list)]], "its content")
        value = {}
        for part, (images, labels) in zip(parts, pairs):
            value |= {f"x {part}": images, f"y {part}": labels}
    nn.check(value, dict, "its content")
    value = {key: part for key, part in value.items() if _words_of(key, KINDS)}
    nn.check(value, {str: (np.ndarray, [(int, float, str)])}, "its content")
    return {key: _label_array(array) if type(array) is list else array for key, array in value.items()}


def _label_array(labels):
    """A list of labels as an array, in which each takes as much memory as the longest."""
    longest = max((label for label in labels if isinstance(label, str)), key=len, default="")
    if len(longest) > MOST_LABEL:
        raise ValueError(f"its label {longest[:20]!r}... has {len(longest):,} characters")
    return np.array(labels)


MOST_LABEL, MOST_FIELDS = 100, 300_000  # characters of a label, fields in a row


def _parse_csv(content, pixels):
    """Images (n, d), a row each, and labels: of the column ``label``, else of the first.

    There are none where so many columns are pixels, or where all have the same name but for a number.
    """
    file = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig")
    first = file.readline()
    delimiter = max(",;\t", key=first.count)
    if first.count(delimiter) > MOST_FIELDS:
        raise ValueError(f"its first line has {first.count(delimiter):,} fields")
    names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
    header, labels = not all(map(_is_number, names[1:])), []
    column = names.index("label") if "label" in names else 0
    alike = header and len({re.sub(r"\d+", "", name) for name in names}) == 1  # pixel0, pixel1, ...
    if alike or ("label" not in names and len(names) == pixels):
        column = None

    def keep_label(text):
        labels.append(text.strip())
        return 0.0

    def load(dtype):
        labels.clear()
        file.seek(0)
        return np.loadtxt(
            file, dtype, delimiter=delimiter, comments=None, quotechar='"', skiprows=int(header), ndmin=2,
            encoding="utf-8", converters=None if column is None else {column: keep_label},
        )  # fmt: skip

    try:
        try:
            table = load(np.uint16)  # six times as fast as floats
        except ValueError:
            table = load(np.float32)
    except ValueError as error:
        raise ValueError(_wrong_line(content, delimiter, column, header) or error) from None
    if len(names) < 2 or not len(table):
        raise ValueError("it has no rows of a label and pixels")
    if column is None:
        return {"images": table}
    return {"labels": _label_array(labels), "images": np.delete(table, column, axis=1)}


def _is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _wrong_line(content, delimiter, column, header):
    """What is wrong with the first line of a CSV file that is, or None."""
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig"), delimiter=delimiter)
    width = 0
    for row in rows:
        width = width or len(row)
        if row and len(row) != width:
            return f"line {rows.line_num} has {len(row)} fields, not {width} as the first"
        wrong = [text for place, text in enumerate(row) if place != column and not _is_number(text)]
        if wrong and not (header and rows.line_num == 1):
            return f"line {rows.line_num} has {wrong[0]!r:.40} where a number is expected"
    return None


READERS = {  # what a file's name is like -> what makes its array, or arrays by name, of its content
    r"idx\d|ubyte": None,  # load_idx, which looks at the header first
    r"\.npz$": lambda content, _: nn.npz_arrays(content, _room(len(content))),
    r"\.npy$": lambda content, _: nn.npy_array(content),
    r"\.(pkl|pickle)$": lambda content, _: _parse_pickle(content),
    r"\.csv$": _parse_csv,
}


def _read_pictures(folder, size):
    """``(arrays, sha256)`` as ``_read_files``, of pictures in a folder for each class."""
    parts = {"train": _class_pictures(folder)}
    for inner in sorted(folder.iterdir()):
        part = PARTS.get(inner.name.lower())
        if part and (found := _class_pictures(inner)):
            parts[part] = found
    files = [(part, path) for part, found in parts.items() for path in found]
    first, arrays, digests = None, {}, {}
    with progress_line() as show:
        for done, (part, path) in enumerate(files, start=1):
            picture, digest = _read_picture(path, 1)
            picture = _grey(picture, size or picture.size[::-1])
            first = first or (path, picture.shape)
            if picture.shape != first[1]:
                sizes = [setting_text(list(shape)) for shape in (picture.shape, first[1])]
                given = f"{path} has {sizes[0]} pixels, {first[0]} {sizes[1]}"
                raise ValueError(f"{given}: choose a --size, as 28x28")
            if len(files) * picture.size > nn.MOST_BYTES:
                raise ValueError(f"{folder}: {len(files):,} such pictures are too large; choose a --size")
            arrays.setdefault(f"{part}_images", []).append(picture)
            arrays.setdefault(f"{part}_labels", []).append(path.parent.name)
            line = f"{path.relative_to(folder).as_posix()} {digest}\n".encode(errors="backslashreplace")
            digests.setdefault(f"{part}_pictures", hashlib.sha256()).update(line)
            show(f"reading {folder}: {done:,}/{len(files):,} pictures")
    arrays = {key: np.array(values) for key, values in arrays.items()}
    return arrays, {key: digest.hexdigest() for key, digest in digests.items()}


def _class_pictures(folder):
    """The pictures in the folders of a folder; a note says what else lies there."""
    files = [file for file in sorted(folder.glob("[!.]*/[!.]*")) if file.is_file()]
    files = [file for file in files if not file.name.endswith(WRITTEN)]
    others = [file.name for file in files if not _is_picture(file)]
    if 0 < len(others) < len(files):
        left_out = f"{count(len(others), 'file')} left out, such as {others[0]}"
        _note(f"{folder}: {left_out}; save pictures as PNG or JPEG")
    return [file for file in files if _is_picture(file)]


# --- split ------------------------------------------------------------------------------------


def split(images, labels, val_size, rng, train_size=None, stratified=False):
    """``(train_images, train_labels), (val_images, val_labels)`` of images (n, d) and labels (n,).

    ``val_size`` of them are held out, and ``train_size`` of the others are kept, by default all. They are
    shuffled by a numpy.random.Generator; without any the last ones are held out. ``stratified``: both parts
    have as large a share of each class as all images, and at least one image of each class that has two,
    as far as the sizes allow. ValueError for more images than there are, or none left to train on.
    """
    wanted = check_split(len(images), val_size, train_size)
    if wanted == len(images):
        return (images, labels), (images[:0], labels[:0])
    if stratified:
        order = stratified_order(labels, rng)
        order = np.concatenate([order[:val_size], order[val_size:][::-1]])  # both its ends have all classes
    else:
        order = np.arange(len(images))[::-1] if rng is None else rng.permutation(len(images))
    val, train = np.sort(order[:val_size]), np.sort(order[val_size : val_size + wanted])
    return (images[train], labels[train]), (images[val], labels[val])


def stratified_order(labels, rng):
    """A shuffled order (n,) of images whose beginning and end have each class in proportion.

    First comes one image of each class that has two or more, last one of each class.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[order]]  # within the class
    sizes = sizes[labels[order]]
    place = (rank + rng.random(len(labels))) / sizes
    place[rank == 0] = -1
    place[rank == sizes - 1] = 2
    return order[np.argsort(place, kind="stable")]


def check_split(n, val_size, train_size=None):
    """The number of training images in a split of n images; ValueError where there is no such split."""
    wanted = n - val_size if train_size is None else train_size
    if val_size < 0 or val_size % 1 or not 1 <= wanted <= n - val_size:
        raise ValueError(
            f"{n} images cannot be split into {val_size} for validation and "
            f"{'at least 1' if train_size is None else train_size} for training (--val-size, --train-size)"
        )
    return wanted


def split_dataset(dataset, config):
    """The training and the validation part of a dataset for a run's settings, as ``split``.

    With ``folds`` the validation part is one of them. A validation set of its own is used as such, whatever
    ``val_size`` is; 0 trains on those images, too, and folds are dealt of all images.
    """
    held = held_out(config, dataset)
    images, labels = all_images(dataset)
    if config.get("folds"):
        fold = folds_of(dataset, config)
        val, train = fold == config["fold"], (fold > 0) & (fold != config["fold"])
        return (images[train], labels[train]), (images[val], labels[val])
    own = "val_images" in dataset and config["val_size"]
    if own:
        images, labels = dataset["train_images"], dataset["train_labels"]
    rng = None if config["holdout"] == "last" else _split_rng(config)
    stratified = config["holdout"] == "stratified"
    train, val = split(images, labels, 0 if own else held, rng, config["train_size"], stratified)
    return train, (dataset["val_images"], dataset["val_labels"]) if own else val


def _split_rng(config):
    seed = config["seed"] if config["split_seed"] is None else config["split_seed"]
    return np.random.default_rng([seed, 0, 1])


def folds_of(dataset, config):
    """The fold (n,) of each of ``all_images`` in a run with folds, from 1; 0 for those that are left out.

    Neither the sizes of two folds nor their images of a class differ by more than one.
    """
    _, labels = all_images(dataset)
    order = _split_rng(config).permutation(len(labels))[: config["train_size"]]
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.zeros(len(labels), int)
    fold[order] = 1 + np.arange(len(order)) % config["folds"]
    return fold


def all_images(dataset):
    """Images and labels of the training and the validation set."""
    if "val_images" not in dataset:
        return dataset["train_images"], dataset["train_labels"]
    return tuple(
        np.concatenate([dataset[f"{part}_{kind}"] for part in ("train", "val")])
        for kind in ("images", "labels")
    )


HOLDOUTS = ("stratified", "random", "last")
SPLIT_KIND = {"holdout": str, "seed": int, "folds?": int, "fold?": int}  # what the config of a run says
SPLIT_KIND |= {"val_size": (int, float), "train_size": (int, None), "split_seed": (int, None)}


def held_out(config, dataset):
    """How many images of a dataset are for validation: a fold, or its own ones where it has them.

    ValueError where it cannot be split as the config asks.
    """
    own, size = len(dataset.get("val_images", ())), config["train_size"]
    n = own + len(dataset["train_images"])
    if config.get("folds"):
        if not config["folds"] <= (size or n) <= n:
            raise ValueError(f"--folds: {size or n} of {n} images cannot be dealt to {config['folds']} folds")
        return len(range(config["fold"] - 1, size or n, config["folds"]))
    held = own if own and config["val_size"] else val_count(config, n - own)
    check_split(n, held, size)
    return held


def val_count(config, images):
    """How many of so many training images --val-size holds out: a share below 1 is one of them."""
    size = config["val_size"]
    return max(1, round(size * images)) if 0 < size < 1 else int(size)


# --- preprocess -------------------------------------------------------------------------------
#
# There are three kinds of step. Those that turn pictures into pictures are done once. So is the one that
# turns pictures into gradients, which are kept as uint8 like grey levels; but where training distorts the
# pictures, it is done in each batch. Those on numbers are done in each batch. They are all affine maps:
# fitted, they are one step.


def fit_steps(names, images, image_shape):
    """Fit preprocessing on training images, uint8 (n, d) of ``image_shape`` (rows, columns).

    The steps are done in the order of their names. First those that turn pictures into pictures, rounded to
    whole grey levels: ``deskew`` shears the ink upright, by its moments; ``width:14`` brings it to 14
    columns; ``pool`` takes the mean of each 2x2 pixels. Then pictures to gradients: ``hog:7`` makes
    histograms of them in 7x7 cells, see ``gradients``; ``pixels-and-hog:7`` keeps the pixels, and puts the
    same behind them. Then those on numbers: ``scale`` divides by 255, ``center`` subtracts each number's
    mean over the images, ``standardize`` subtracts the mean of all numbers and divides by their standard
    deviation, ``pca:50`` keeps the 50 principal components (Pearson 1901).

    Returns
    -------
    list of dict
        The fitted steps: those from pictures, and at most one ``{"name": "affine", "mean": float or (d,),
        "factor": float, "basis": None or (d, k)}`` that all the others make together: an image x becomes
        ``((x - mean) * factor) @ basis``. Plain data that can be stored with the params.

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
    fits = {name for name, _ in parsed} - {*PICTURE_STEPS, "scale"}
    images = redraw(images if fits else images[:0], pictures)
    for name, number in parsed:
        if name not in PICTURE_STEPS:
            numbers = _followed_by(numbers, **_fit_affine(name, number, images, numbers))
    return pictures + numbers


def _fit_affine(name, number, images, steps):
    """Mean, factor and basis of a step that comes after steps, fitted on images that are redrawn."""
    if name == "scale":
        return {"factor": 1 / 255}
    sums = 0.0
    for batch in batches(images, None, steps, dtype=np.float64):
        sums += np.array([batch["x"].sum(axis=0), np.square(batch["x"]).sum(axis=0)])
    mean, square = sums / len(images)  # (d,)
    if name == "center":
        return {"mean": mean}
    if name == "standardize":
        variance = square.mean() - mean.mean() ** 2
        return {"mean": float(mean.mean()), "factor": 1 / (math.sqrt(max(0.0, variance)) or 1.0)}
    if number > len(mean):
        raise ValueError(f"--preprocess pca:{number}: an image has only {len(mean)} numbers there")
    product = sum(batch["x"].T @ batch["x"] for batch in batches(images, None, steps, dtype=np.float64))
    _, vectors = np.linalg.eigh(product / len(images) - np.outer(mean, mean))
    basis = vectors[:, ::-1][:, :number]  # (d, number), the largest variance first
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    return {"mean": mean, "basis": basis * np.sign(largest)}  # eigenvectors have no sign of their own


UNCHANGED = {"name": "affine", "mean": 0.0, "factor": 1.0, "basis": None}


def _followed_by(steps, mean=None, factor=1.0, basis=None):
    """One affine step, as a list, that does what steps (none or one) do and then another."""
    first, mean = affine_step(steps), 0.0 if mean is None else mean
    if first["basis"] is not None:  # its columns are at right angles, and of length 1
        mean = first["basis"] @ np.broadcast_to(mean, first["basis"].shape[1:])
        basis = first["basis"] if basis is None else first["basis"] @ basis
    # as much is subtracted before all that the first one does; of a file its factor may be 0
    mean = np.divide(mean, first["factor"]) + first["mean"]
    return [{"name": "affine", "mean": mean, "factor": first["factor"] * factor, "basis": basis}]


STEP_NAMES = ["deskew", "width:14", "pool", "hog:7", "pixels-and-hog:7"]  # with numbers to try
STEP_NAMES += ["scale", "center", "standardize", "pca:50"]
STEP_EXAMPLES = {text.partition(":")[0]: text for text in STEP_NAMES}


def parse_steps(names):
    """``["deskew", "pca:50"]`` as ``[("deskew", None), ("pca", 50)]``; ValueError if it makes no sense."""
    steps = []
    for text in names:
        name, colon, number = text.partition(":") if isinstance(text, str) else (text, "", "")
        example = nn.choose("preprocessing", name, STEP_EXAMPLES)
        if name in GRADIENT_STEPS and not colon:  # the example's number is the default
            _, colon, number = example.partition(":")
        whole = number.isdecimal() and 1 <= int(number[:9]) == int(number)
        if not whole if ":" in example else colon:
            kind = "with any whole number behind the colon" if ":" in example else "without a number"
            raise ValueError(f"must be as {example}, {kind}, not {text:.40}")
        before = [one for one, _ in steps if one not in PICTURE_STEPS or one in GRADIENT_STEPS]
        if name in PICTURE_STEPS and before:
            raise ValueError(f"{name} works on pictures: put it before {before[0]}")
        if name in dict(steps):
            raise ValueError("must name each step once")
        steps.append((name, int(number) if colon else None))
    return steps


def preprocess(images, steps, dtype=np.float32):
    """Apply fitted steps to uint8 images (n, d): ``redraw``, and then ``to_numbers``."""
    return to_numbers(redraw(images, steps), steps, dtype)


def redraw(images, steps):
    """uint8 images (n, d') after the steps on pictures, of uint8 images (n, d); these without such steps.

    ValueError for other images: floats would be divided by 255 again.
    """
    if images.dtype != np.uint8 or images.ndim != 2:
        given = f"{images.dtype} {images.shape}"
        raise ValueError(f"images must be uint8 (n, d), not {given}; data.as_dataset makes them so")
    for step in steps:
        if step["name"] in PICTURE_STEPS:
            pictures = images.reshape(-1, *step["shape"])
            pictures = _in_blocks(PICTURE_STEPS[step["name"]], pictures, step)
            images = pictures.reshape(len(images), math.prod(pictures.shape[1:]))
    return images


def to_numbers(images, steps, dtype=np.float32, out=None, times=1.0):
    """What the fitted steps make of redrawn images (n, d), times a factor: an array (n, d') of dtype.

    It is ``out``, an array (n, d), where that is given and no step changes d.
    """
    x = np.empty(images.shape, dtype) if out is None else out
    x[...] = images
    affine = affine_step(steps)
    mean = affine["mean"]
    if mean.any() if isinstance(mean, np.ndarray) else mean:  # np.any takes long for a float
        x -= np.asarray(mean, x.dtype)
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
    """(rows, columns) of the images after ``redraw``; gradients are one row."""
    for step in steps:
        if step["name"] == "pool":
            image_shape = [-(-n // 2) for n in image_shape]
        elif step["name"] in GRADIENT_STEPS:
            pixels, cells = math.prod(image_shape), [min(step["number"], side) for side in image_shape]
            image_shape = [1, 8 * math.prod(cells) + (pixels if step["name"] == "pixels-and-hog" else 0)]
    return tuple(image_shape)


def affine_step(steps):
    """The one on numbers; one that changes nothing where there is none."""
    return next((step for step in steps if step["name"] == "affine"), UNCHANGED)


def gradient_step(steps):
    """The one that turns pictures into gradients, or None."""
    return next((step for step in steps if step["name"] in GRADIENT_STEPS), None)


def without_gradients(steps):
    """What is done to pictures before they are distorted, and what to numbers."""
    return [step for step in steps if step["name"] not in GRADIENT_STEPS]


def most_inputs(names, pixels):
    """How many numbers the steps make at most of an image of so many pixels."""
    cells = [min(number**2, pixels) for name, number in parse_steps(names) if name in GRADIENT_STEPS]
    return pixels + 8 * sum(cells)


def keeps_blank(steps):
    """Whether a pixel that is 0 becomes a number that is 0, in the same place (after ``redraw``)."""
    affine = affine_step(steps)
    return not np.any(affine["mean"]) and affine["basis"] is None


def weights_in_pixels(weights, steps):
    """What weights (inputs, units) weigh in the pixels of the image, but for the scale: (d, units).

    ``deskew`` and ``width`` leave the pixels where they are; gradients have none in pixels, and are left out.
    """
    for step in reversed(steps):
        if step["name"] == "pixels-and-hog":
            weights = weights[: math.prod(step["shape"])]
        if step.get("basis") is not None:
            weights = step["basis"].astype(weights.dtype) @ weights
        if step["name"] == "pool":
            rows, columns = step["shape"]
            pooled = weights.reshape(*shape_after([step], step["shape"]), -1) / 4
            spread = pooled.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
            weights = spread.reshape(rows * columns, -1)
    return weights


def on_grey_levels(params, steps):
    """The same network in float64 for images that ``redraw`` has made, its affine step in its first layer.

    ((x - mean) factor) basis W + b is x V + b - mean V, with V = factor basis W.
    """
    affine, params = affine_step(steps), {key: w.astype(np.float64) for key, w in params.items()}
    first = params["W1"] if affine["basis"] is None else affine["basis"] @ params["W1"]
    params["W1"] = affine["factor"] * first  # (d, width)
    params["b1"] -= np.broadcast_to(affine["mean"], len(first)) @ params["W1"]
    return params


def slope_in_pixels(slope, steps):
    """The loss's slope at inputs (n, inputs), no gradients, as that at pixels (n, d), but for the scale."""
    basis = affine_step(steps)["basis"]
    return slope if basis is None else slope @ basis.T.astype(slope.dtype)


def moved_along(slope, x, steps, share, times=1.0):
    """Inputs x (n, inputs) after each pixel has moved by a share of the range from black to white.

    All move along the sign of the loss's slope at the inputs: what the network likes least (the fast
    gradient sign method of Goodfellow, Shlens & Szegedy 2015). The pixels are those after the steps on
    pictures; they may leave the range. ``times`` as for ``to_numbers``.
    """
    affine, move = affine_step(steps), np.sign(slope_in_pixels(slope, steps))
    if affine["basis"] is not None:
        move = move @ affine["basis"].astype(move.dtype)
    return x + move * float(share * 255 * affine["factor"] * times)


def sort_pixels(images, columns=None):
    """Put the pixels that are blank in the most images last, so that few columns hold all the ink.

    In a batch of 128 MNIST digits about a fifth of the columns are blank behind the last ink, and
    a product need not go over them. With ``columns`` that order is taken, as it is from other images.
    Returns a dict of ``images``, a copy (n, d) with its columns sorted; ``columns`` (d,), where each of
    them was; ``inked`` (n,), the number of columns of each image up to its last that is not 0.
    """
    if columns is None:
        used = _in_blocks(lambda block: np.count_nonzero(block, axis=0)[None], images).sum(axis=0)  # (d,)
        columns = np.argsort(-used, kind="stable")
    ordered = images.take(columns, axis=1)  # unlike images[:, columns] row by row in memory
    return {"images": ordered, "columns": columns, "inked": _in_blocks(_last_ink, ordered)}


def _last_ink(images):
    """The number of columns (n,) of each image up to its last that is not 0."""
    ink = images[:, ::-1] != 0  # behind the last of it there are as many as before the first of these
    return np.where(ink.any(axis=1), images.shape[1] - ink.argmax(axis=1), 0)


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
    """Column c of row r is taken from column start[n, r] + scale[n] c, between columns linearly."""
    columns = pictures.shape[2]
    at = start[:, :, None] + scale[:, None, None] * np.arange(columns)  # (n, rows, columns)
    np.clip(at, -1, columns, out=at)
    left = np.floor(at).astype(np.int64)
    right_share = at - left
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 2)))  # blank beyond the edges
    mixed = np.take_along_axis(padded, left + 1, axis=2) * (1 - right_share)
    mixed += np.take_along_axis(padded, left + 2, axis=2) * right_share
    return np.rint(mixed).astype(np.uint8)


# --- preprocess: histograms of gradients ------------------------------------------------------

GRADIENT_BLOCK = 64  # images at a time, so that they stay in cache


def gradients(images, step, dtype=np.float32):
    """Histograms of oriented gradients (Dalal & Triggs 2005) of images (n, d) or (n, rows, columns).

    The slope of grey at a pixel is found by central differences; beyond its edges a picture goes on as
    it is there. It is the sum of two arrows in neighbouring ones of 8 directions, 45 degrees apart, the
    first to the right and the third downwards (Liu et al. 2003: no angle is needed). The lengths of the
    arrows of each direction are averaged in each cell, see ``_windows``; the numbers are twice the roots
    of 255 times that, or 255 at the most: in the range of grey levels.

    ``step`` has a ``name`` of GRADIENT_STEPS, the ``shape`` (rows, columns) of an image and a ``number`` of
    cells a side. Returns an array (n, 8 * cells), by direction and then by rows of cells; with
    ``pixels-and-hog`` the d pixels come before them.
    """
    rows, columns = step["shape"]
    images = images.reshape(-1, rows * columns)
    down, across = (_windows(side, step["number"], dtype) for side in step["shape"])
    found = np.empty((len(images), 8 * len(down) * len(across)), dtype)
    for start in range(0, len(images), GRADIENT_BLOCK):
        block = images[start : start + GRADIENT_BLOCK]
        pictures = block.T.astype(dtype).reshape(rows, columns, -1)  # images last: NumPy is fast along them
        lengths = down @ _arrows(pictures).reshape(8, rows, -1)  # (8, cells, columns * n)
        lengths = across @ lengths.reshape(8 * len(down), columns, -1)  # (8 * cells, cells, n)
        lengths = lengths.reshape(8, -1, len(block))
        lengths[::2] -= lengths[1::2] + np.roll(lengths[1::2], 1, axis=0)  # see _arrows
        lengths[1::2] *= math.sqrt(2)
        np.maximum(lengths, 0, out=lengths)  # rounding may have led below
        np.sqrt(lengths * (4 * 255 / 2), out=lengths)  # half of each difference over two pixels
        np.minimum(lengths, 255, out=lengths)
        found[start : start + GRADIENT_BLOCK] = lengths.reshape(-1, len(block)).T
    return found if step["name"] == "hog" else np.concatenate([images, found], axis=1, dtype=dtype)


def _arrows(pictures):
    """The slopes of pictures (rows, columns, n), split by direction: (8, rows, columns, n).

    A slope of 5 to the right and 2 downwards is 3 to the right and 2 of both at once. Here are 5, 2 and
    that 2: the even directions still hold what belongs to the odd ones beside them.
    """
    padded = np.pad(pictures, ((1, 1), (1, 1), (0, 0)), mode="edge")
    right, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    arrows = np.empty((8, *pictures.shape), pictures.dtype)
    for direction, slope in enumerate((right, down, -right, -down)):
        np.maximum(slope, 0, out=arrows[2 * direction])
    for direction in (1, 3, 5, 7):
        np.minimum(arrows[direction - 1], arrows[(direction + 1) % 8], out=arrows[direction])
    return arrows


def _windows(side, cells, dtype):
    """Weights (cells, side) of the pixels: triangles that fall to 0 at a cell's width from its middle."""
    cells = min(cells, side)
    middles = (np.arange(cells)[:, None] + 0.5) * side / cells - 0.5
    distance = np.abs(np.arange(side) - middles) * cells / side  # in widths of a cell
    return (np.maximum(0, 1 - distance) * cells / side).astype(dtype)


GRADIENT_STEPS = ("hog", "pixels-and-hog")
PICTURE_STEPS = {"deskew": _deskew, "width": _normalize_width, "pool": _pool}
PICTURE_STEPS |= dict.fromkeys(GRADIENT_STEPS, lambda *given: np.rint(gradients(*given)).astype(np.uint8))

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
    """What ``augment`` needs to know, a dict; None where there is nothing to do.

    ``names`` are at most one of ``shift``, ``affine`` (rotation, scaling, shear and shift) and ``elastic``
    (affine, and a smooth random displacement of every pixel: Simard et al. 2003); and ``flip``, which turns
    half of the images left to right. ``strengths`` are other ones than STRENGTHS.
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
    """Distort each of some uint8 images (n, d) in its own random way, as ``make_augment`` says.

    Returns grey levels from 0 to 255, a float32 array (n, d), or ``out``, a float array. Beyond its edges
    an image goes on as it ends.
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
    down, right, none = uniform(limits["max_shift"]), uniform(limits["max_shift"]), np.zeros(n)
    of_row = [[down, -sin * high], [cos * high, none]]  # of the first two curves along y, and along x
    of_column = [[right, cos * wide], [sin * wide + shear, none]]
    positions = []
    for side, affine in zip(distortion["shape"], (of_row, of_column)):
        coefficients = np.zeros((along_y.shape[1], n, along_x.shape[1]), dtype)
        if limits["bend"]:
            bends = coefficients[2:, :, 2:]
            bends[...] = limits["bend"] * rng.standard_normal(bends.shape, dtype=dtype)
        coefficients[:2, :, :2] = np.swapaxes(affine, 1, 2)  # (2, n, 2)
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

NUMBER = (int, float)
CONFIG_KIND = {  # what the config that is stored with params holds at least; see nn.check
    "activation": str, "loss": str, "dataset": str, "size": (str, None), "transpose": bool,
    "steps": [dict], "epoch?": int, "augment": [str], **dict.fromkeys(STRENGTHS, NUMBER),
    "data": {
        "class_names": [str], "image_shape": [int], "title?": str, "sha256?": {str: str},
        "fit": str, "edge": NUMBER,
    },
}  # fmt: skip
OLDER = {"augment": [], "size": None, "transpose": False, "holdout": "random", **STRENGTHS}  # where not said
STEP_KINDS = {  # what each step holds; the last four were not yet one when older files were written
    "deskew": {"shape": [int]},
    "width": {"shape": [int], "number": int},
    "pool": {"shape": [int]},
    "hog": {"shape": [int], "number": int},
    "pixels-and-hog": {"shape": [int], "number": int},
    "affine": {"mean?": (float, np.ndarray), "factor": float, "basis?": np.ndarray},
    "scale": {},
    "center": {"mean": np.ndarray},
    "standardize": {"mean": float, "std": float},
    "pca": {"mean": np.ndarray, "basis": np.ndarray},
}
LARGEST_NUMBER = 1e30  # of what steps from a file hold; float32 ends at 3e38


def load_run(path):
    """``(params, config)`` of a run's folder or of a params file, ready for use.

    Raises as ``nn.load_params``; a ValueError also where the config does not say how to use the params.
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
    config = {**OLDER, **config, "data": {**own, **config["data"]}}
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
    """Steps from a file, as ``fit_steps`` gives them; those on numbers, several in older files, become one.

    ValueError unless they lead from images (rows, columns) to so many inputs.
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
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
SMALL_BYTES, MOST_TEXT = 1 << 26, 1 << 27  # of a data set that may shrink as it likes; of a JSON or CSV file


def load_idx(path):
    """``(array, sha256)`` of an IDX file, which may be gzipped; the hash is of its uncompressed content.

    Never takes more memory than its header announces, which is compared with the file's size first.
    ValueError where it is no IDX file, is cut off, goes on after its end, or holds too much; OSError,
    MemoryError.
    """
    with nn.reading(path, "is damaged or no IDX file"), open(path, "rb") as file:
        unzipped, room = _unzipped(file)
        start = unzipped.read(4)
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_TYPES or not 1 <= start[3] <= 4:
            raise ValueError("it does not start as labels or images do")
        sizes = unzipped.read(4 * start[3])
        shape, dtype = struct.unpack(f">{start[3]}I", sizes), np.dtype(IDX_TYPES[start[2]])
        announced = math.prod(shape) * dtype.itemsize
        if announced > room:
            raise ValueError(f"its header announces {announced:,} bytes, too much for its size (gunzip it?)")
        content = unzipped.read(announced + 1)  # the last byte should not be there
        if len(content) != announced:
            raise ValueError(f"it does not end after the {announced:,} bytes that its header announces")
    digest = hashlib.sha256(start + sizes)
    digest.update(content)
    return np.frombuffer(content, dtype).reshape(shape), digest.hexdigest()


def load_content(path):
    """``(bytes, sha256)`` of a file, which may be gzipped: that is told by its content, not by its name."""
    with nn.reading(path, "is damaged"), open(path, "rb") as file:
        unzipped, room = _unzipped(file)
        content = unzipped.read(room + 1)
        if len(content) > room:
            raise ValueError(f"it has more than {room:,} bytes, too much for its size; unpack it with gunzip")
    return content, hashlib.sha256(content).hexdigest()


def _unzipped(file):
    """A file's content without gzip, and how many bytes that may have."""
    size = os.fstat(file.fileno()).st_size
    if file.peek(2)[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file), _room(size)
    return file, min(size, nn.MOST_BYTES)


def _room(size):
    """Bytes that may be unpacked from so many."""
    return min(max(MOST_SHRUNK * size, SMALL_BYTES), nn.MOST_BYTES)


def idx_bytes(array):
    """The content of an IDX file for a uint8 array."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def save_json(path, value):
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    nn.save_bytes(path, text.encode(errors="backslashreplace"))  # JSON's own form of what is no text


def load_json(path):
    """A JSON file's content; ValueError that names the file where it is damaged."""
    content = nn.load_bytes(path, MOST_TEXT)
    with nn.reading(path, "is not valid JSON"):
        return json.loads(content)


def save_rows(path, rows, columns):
    """Write a list of dicts as CSV; None becomes an empty field."""
    nn.save_bytes(path, rows_text(rows, columns).encode(errors="backslashreplace"))


def rows_text(rows, columns):
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def load_rows(path, words=False):
    """A CSV file of numbers as a list of dicts; empty fields become None.

    With ``words``, a field that is no number, such as ``512x256`` or ``relu``, remains text. ValueError
    for rows that differ in length, no header, and a field that is no number (without ``words``).
    """

    def value(text):
        try:
            return int(text) if text.lstrip("-").isdigit() else float(text) if text else None
        except ValueError:
            if words:
                return text
            raise

    content = nn.load_bytes(path, MOST_TEXT)
    with nn.reading(path, f"is not a table{'' if words else ' of numbers'}"):
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        header, *lines = list(csv.reader(text, strict=True)) or [[]]
        if not header or any(len(line) != len(header) for line in lines):
            raise ValueError("its rows differ in length")
        return [dict(zip(header, map(value, line))) for line in lines]


# --- download ---------------------------------------------------------------------------------

SIZES = {  # bytes of uncompressed content, the same for both sources
    "train_labels": 60_008, "train_images": 47_040_016, "test_labels": 10_008, "test_images": 7_840_016,
}  # fmt: skip
DIGITS = [str(digit) for digit in range(10)]
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
        "class_names": [
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ],
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
}  # fmt: skip
CHUNK = 1 << 20  # bytes read at a time
ANSWER_SECONDS = 6  # a mirror that is silent for so long is passed over, two of them within 15 seconds
SLOWEST = 100_000  # and one that brings fewer bytes of uncompressed content a second


def download_file(urls, path, sha256, size):
    """Download a gzipped file from the first of several URLs whose content has a SHA-256 and a size.

    Both are of the uncompressed content. Nothing is written before it is complete and right. OSError where
    none of the URLs worked: the message lists what was tried and what happened.
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
    """``_read_url`` in a thread, so that even a name look-up that hangs has an end."""
    from multiprocessing.pool import ThreadPool  # late, as it takes some time to import

    seconds = ANSWER_SECONDS + size / SLOWEST
    with ThreadPool(1) as pool:
        return pool.apply_async(_read_url, (url, size, time.monotonic() + seconds)).get(seconds)


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


def _load_glyphs(folder, form):
    """The drawn data set, from its cached IDX files, or drawn now and cached if possible."""
    title = "glyphs (drawn)"
    if not _lacks(folder):
        return _load_path(folder, "glyphs", title, form, DIGITS)
    say("drawing the data set glyphs: 70,000 digits from fonts ...", sys.stderr)
    arrays = draw_glyphs(np.random.default_rng(0))
    contents = {part: idx_bytes(array) for part, array in arrays.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, content in contents.items():
            nn.save_bytes(folder / FILES[part], content)
    except OSError as error:
        say(f"glyphs could not be kept in {folder} ({message_of(error)}); going on", sys.stderr)
    digests = {part: hashlib.sha256(content).hexdigest() for part, content in contents.items()}
    return as_dataset(**arrays, name="glyphs", title=title, class_names=DIGITS, sha256=digests, **form)


def draw_glyphs(rng, train_size=60_000, test_size=10_000):
    """Draw images of digits from the fonts that Matplotlib ships.

    Each digit of each font is rendered once in four thicknesses, and then distorted at random by ``augment``.
    Returns uint8 ``train_images``, ``test_images`` (n, 28, 28), ``train_labels`` and ``test_labels`` (n,).
    ModuleNotFoundError where Matplotlib (its fonts) or Pillow is not installed.
    """
    strengths = {"max_rotation": 17, "max_scaling": 0.2, "max_shear": 0.35, "bend": 0.7, "smooth": 5.0}
    arrays, distortion = {}, make_augment(["elastic"], (28, 28), max_shift=2.5, **strengths)
    for part, size in (("train", train_size), ("test", test_size)):
        glyphs = np.stack([_render_digits(font) for font in GLYPH_FONTS[part]])  # (fonts, 10, 4, 28, 28)
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        fonts, thickness = rng.integers(0, len(glyphs), size), rng.integers(0, glyphs.shape[2], size)
        images = glyphs[fonts, labels, thickness].reshape(size, -1)
        images = _in_blocks(lambda block: np.uint8(np.rint(augment(block, distortion, rng))), images)
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
FITS = ("digit", "whole")  # how a picture is brought into the form of a network's images
SEVERAL = "several digits?"
PICTURES = {  # Pillow's name -> suffixes; of its other formats some run what is in a file, as EPS does
    "PNG": [".png"], "JPEG": [".jpg", ".jpeg"], "BMP": [".bmp"], "GIF": [".gif"], "TIFF": [".tif", ".tiff"],
    "WEBP": [".webp"], "PPM": [".ppm", ".pgm", ".pbm"],
}  # fmt: skip
WRITTEN = (".seen.png", ".why.png")  # what test.py writes beside pictures
MOST_PICTURE_BYTES = 1 << 28


def expand_pictures(paths, flag="--images"):
    """Files of pictures: those of a folder, those that a pattern fits, as ``photos/*.jpg``, or the path.

    A folder without pictures stands for the folders in it. What test.py has written beside pictures is
    left out, unless there is nothing else. A path that is not there remains. ValueError for a folder
    without pictures.
    """
    files = []
    for path in map(str, paths):
        if os.path.isdir(path):
            here, below = (filter(_is_picture, pathlib.Path(path).glob(level)) for level in ("*", "*/*"))
            found = list(map(str, here)) or list(map(str, below))
            if not found:
                raise ValueError(f"{flag}: the folder {path} holds no pictures; name a run before {flag}")
        else:
            found = [] if os.path.exists(path) else glob.glob(path)  # cmd and PowerShell leave it to us
        files += sorted(found) or [path]
    return [path for path in files if not path.endswith(WRITTEN)] or files


def load_picture(path):
    """Read a picture file of one of the kinds of PICTURES; its content decides which.

    Returns a uint8 array (rows, columns, 3), upright. What is transparent is white where the ink is
    dark, and black where it is light. ValueError for what is no picture, a damaged one, one under 8x8
    or over 50 million pixels; OSError, MemoryError.
    """
    return np.asarray(_read_picture(path, SMALLEST_SIDE)[0].convert("RGB"))


def _read_picture(path, smallest):
    """A picture of at least so many pixels a side, as of ``_opaque``, and the SHA-256 of its file."""
    from PIL import Image, ImageOps

    content = nn.load_bytes(path, MOST_PICTURE_BYTES)
    with nn.reading(f"the picture {path}", "cannot be read"), _without_stderr():
        try:
            picture = Image.open(io.BytesIO(content), formats=list(PICTURES))
        except Image.UnidentifiedImageError:
            unknown = "no known format, save it as JPEG or PNG" if content else "the file is empty"
            raise ValueError(unknown) from None
        columns, rows = picture.size
        if min(rows, columns) < smallest or rows * columns > MOST_PIXELS:
            raise ValueError(f"it has {columns}x{rows} pixels, not {smallest}x{smallest} to {MOST_PIXELS:,}")
        return _opaque(ImageOps.exif_transpose(picture)), hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _without_stderr():
    """Nothing on standard error, not even from C: libtiff writes there past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _opaque(picture):
    """A Pillow picture as one of mode L or RGB, whatever it was."""
    from PIL import Image

    if picture.mode[0] in "IF":  # 16 bits of grey, or numbers of any size
        grey = np.asarray(picture, np.float32)
        low, high = (0, 65_535) if picture.mode[0] == "I" else (grey.min(), grey.max())
        grey = 255 * (np.clip(grey, low, high) - low) / max(1e-9, high - low)
        return Image.fromarray(np.uint8(np.rint(grey)))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        grey, opaque = np.asarray(picture.convert("L")), np.asarray(picture.getchannel("A")) / 255
        dark = (grey * opaque).sum() < 128 * opaque.sum()
        paper = Image.new("RGBA", picture.size, "white" if dark else "black")
        picture = Image.alpha_composite(paper, picture)
    return picture if picture.mode == "L" else picture.convert("RGB")


def _grey(picture, shape):
    """uint8 array of a shape, of a Pillow picture's grey levels after ITU-R BT.601."""
    from PIL import Image

    return np.asarray(picture.convert("L").resize(tuple(shape)[::-1], Image.Resampling.BOX))


def _edges(images, share=0.0):
    """The pixels (..., number) along the edges of images (..., rows, columns), or in a share of each side."""
    frame = np.ones(images.shape[-2:], bool)
    rows, columns = (max(1, int(share * n)) for n in frame.shape)
    frame[rows:-rows, columns:-columns] = False
    return images[..., frame]


def picture_facts(dataset):
    """How pictures are fitted for networks trained on a dataset, as a dict to be stored with them.

    ``fit`` is ``digit`` where the training images are digits as MNIST's are, or centred like them, else
    ``whole``; ``edge`` is the mean grey level along their edges, or 127.5 where they are neither all dark
    nor all light: then no picture is inverted.
    """
    shape = dataset["image_shape"]
    pictures = dataset["train_images"][:2000].reshape(-1, *shape).astype(np.float32)
    edges, mass = _edges(pictures), np.maximum(pictures.sum(axis=(1, 2)), 1)
    centred = edges.sum(axis=1) < 0.01 * mass
    for axis, size in enumerate(shape):
        along = pictures.sum(axis=2 - axis)  # (n, size)
        centred &= np.abs(along @ np.arange(size) / mass - size / 2) < 1.01
    dark, light = np.quantile(edges.mean(axis=1), [0.1, 0.9])
    return {
        "fit": "digit" if dataset["name"] in ("mnist", "glyphs") or centred.mean() > 0.95 else "whole",
        "edge": float(edges.mean()) if light < 64 or dark > 191 else 127.5,
    }


def fit_pictures(picture, facts, fit=None, split=False):
    """Bring what is on a picture, uint8 (rows, columns, 3), into the form of a network's images.

    Parameters
    ----------
    facts : dict
        ``image_shape`` of the images, and what ``picture_facts`` says of them.
    fit : str, optional
        ``digit``: see ``prepare_picture``. ``whole``: grey, resized, inverted where its edges are then
        more like theirs. Default: that of facts. A picture of their size is not cut out or resized.
    split : bool
        Whether the digits on a picture are several images, from left to right, and not one.

    Returns ``(images, doubts)``: uint8 arrays of image_shape, and why they may not be what was meant.
    """
    from PIL import Image

    shape = tuple(facts["image_shape"])
    if (fit or facts["fit"]) == "digit" and picture.shape[:2] != shape:
        ink = find_ink(picture)
        digits, doubts = split_ink(ink)
        doubts = [doubt for doubt in doubts if not (split and doubt == SEVERAL)]
        return [prepare_ink(digit, shape) for digit in (digits if split else [ink])], doubts
    image = _grey(Image.fromarray(picture), shape)
    edge = _edges(image).mean()
    inverted = abs(255 - edge - facts["edge"]) < abs(edge - facts["edge"]) - 1  # not by rounding
    return [255 - image if inverted else image], []


def prepare_picture(picture, image_shape=(28, 28)):
    """Bring a picture of a digit, uint8 (rows, columns, 3), into the form of MNIST's images.

    As MNIST's authors did (LeCun et al. 1998): ink is light on black, whichever way it was; the
    digit is cut out, fitted with its proportions kept into 20x20 pixels, and centred by its mass
    in 28x28, or in proportion in the uint8 array of another image_shape. Before that the paper is told
    from the ink, under uneven light and in any colours. ValueError where there is nothing to see.
    """
    return prepare_ink(find_ink(picture), image_shape)


def prepare_ink(ink, image_shape=(28, 28)):
    """The same from ink alone: float array (rows, columns) in [0, 1], not all 0."""
    from PIL import Image

    ink = _thickened(ink[_box_of(ink)]).astype(np.float32)
    scale = min(20 / 28 * most / n for most, n in zip(image_shape, ink.shape))
    size = [max(1, round(n * scale)) for n in ink.shape]
    fitted = np.asarray(Image.fromarray(ink).resize(size[::-1], Image.Resampling.BILINEAR))
    image, place = np.zeros(image_shape, np.uint8), []
    for axis, (most, n) in enumerate(zip(image_shape, size)):  # its centre of mass goes to the middle
        center = fitted.sum(axis=1 - axis) @ np.arange(n) / fitted.sum()
        start = min(max(0, round(most / 2 - center)), most - n)
        place.append(slice(start, start + n))
    image[tuple(place)] = np.rint(255 * (fitted / fitted.max()))
    return image


def find_ink(picture):
    """How much ink there is at each pixel of the part of a picture where there is most: see ``_find_ink``."""
    ink = _find_ink(picture)
    box, scale = _box_of(ink), max(picture.shape) / max(ink.shape)
    found, extent = ink[box], max(ink[box].shape)
    filled = _edges(found > 0.4, share=0.1).mean() > 0.5
    if filled and found.size > 0.2 * ink.size:  # up to its edges, as by a sheet of paper on a desk
        return find_ink(picture[_grown_box(box, -extent / 12, scale)])
    if scale > 1 and extent < SEARCHED_SIDE / 2:  # a small digit on a large picture: look again, closer
        ink = _find_ink(picture[_grown_box(box, extent / 2, scale)])
    return ink


def _box_of(ink):
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _grown_box(box, margin, scale):
    """A box with a margin around it, in a picture that is larger by scale."""
    edges = ((max(0, part.start - margin) * scale, (part.stop + margin) * scale) for part in box)
    return tuple(slice(int(start), math.ceil(stop)) for start, stop in edges)


def _find_ink(picture):
    """How much ink there is at each pixel, (rows, columns) in [0, 1]; ValueError if there is none.

    Of a large picture it is found on a smaller one of SEARCHED_SIDE pixels.
    """
    from PIL import Image

    scale = max(1, max(picture.shape) / SEARCHED_SIDE)
    size = [max(1, round(n / scale)) for n in picture.shape[1::-1]]
    pixels = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), np.float32)
    difference = pixels - _paper(pixels)
    distance = np.linalg.norm(difference, axis=2)
    rank = min(8, 1 + distance.size // 100)  # the very strongest pixels of a large picture may be dust
    most = np.partition(distance.ravel(), -rank)[-rank]
    colour = difference[distance >= 0.5 * most].mean(axis=0)  # from paper to ink; other differences are light
    ink = difference @ (colour / max(1e-9, np.linalg.norm(colour)))
    noise = 3.14 * np.quantile(np.abs(ink), 0.25)  # the standard deviation, of normal noise
    peak = np.partition(ink.ravel(), -rank)[-rank]
    if peak < LEAST_CONTRAST or peak < 5 * noise:
        raise ValueError("there is nothing to see on it")
    ink = np.clip((ink / peak - 0.1) / 0.9, 0, 1)
    mask = ink > 0.4
    near = _filtered(np.uint8(255 * mask), "BoxBlur", max(mask.shape) / 24)
    labels, parts = _parts(mask & (near > 0.2 * near.max()))  # without specks, far from all strokes
    return _ink_of(_digit(parts, mask.shape), labels, ink)


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


def _parts(mask):
    """``(labels, parts)``: the parts of a mask that touch, by their corners too, numbered and measured."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0).astype(np.int32)
    while True:  # each pixel takes the largest label around it, and that pixel's own, until nothing changes
        largest = _filtered(labels, "MaxFilter", 3)
        spread = np.where(mask, labels.ravel()[largest - 1], 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    parts = []
    for label in np.unique(labels[mask]):
        rows, columns = np.nonzero(labels == label)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        box = {"top": top, "bottom": bottom, "left": left, "right": right}
        sizes = {"size": len(rows), "height": bottom - top, "width": right - left}
        parts.append({"label": label, **sizes, **box})
    return labels, parts


def _ink_of(parts, labels, ink):
    """The ink of some of its parts, and right around them."""
    mask = np.isin(labels, [part["label"] for part in parts])
    return np.where(_grown(mask), ink, 0)


def _digit(parts, shape):
    """The parts that are a digit, among frames, boxes, underlines and spots.

    What touches the picture's edge is none, as far as there is something else; nor is a box that
    another part lies in, a line below all else, or a small part beside the largest.
    """
    whole = {"top": 0, "bottom": shape[0], "left": 0, "right": shape[1]}
    inside = [p for p in parts if _surrounds(whole, p)]
    if sum(p["size"] for p in inside) > 0.1 * max(p["size"] for p in parts):
        parts = inside
    boxes = [
        p for p in parts
        if p["size"] < 0.35 * p["height"] * p["width"]
        and any(_surrounds(p, other) and other["size"] >= 0.05 * p["size"] for other in parts)
    ]  # fmt: skip
    parts = [p for p in parts if p not in boxes] or parts
    while len(parts) > 1:  # a line is as wide as all else, and below it
        *rest, line = sorted(parts, key=lambda p: p["bottom"])
        width = max(p["right"] for p in rest) - min(p["left"] for p in rest)
        flat = line["width"] > 4 * line["height"] and line["width"] > 0.8 * width
        if not flat or line["top"] < rest[-1]["bottom"]:
            break
        parts = rest
    main = max(parts, key=lambda p: p["size"])
    least = max(main["height"], main["width"]) / 4
    return [p for p in parts if max(p["height"], p["width"]) > least or _surrounds(main, p)]


def _surrounds(box, other):
    """Whether a box lies within another one and touches none of its edges."""
    rows = box["top"] < other["top"] and other["bottom"] < box["bottom"]
    return rows and box["left"] < other["left"] and other["right"] < box["right"]


def split_ink(ink):
    """The ink of each digit, from left to right, and what is doubtful about them.

    Parts of ink are one digit where they lie above each other; a low part belongs to the nearest digit.
    """
    labels, parts = _parts(ink > 0.4)
    least, digits = 0.4 * max(p["height"] for p in parts), []
    for part in sorted(parts, key=lambda p: (p["height"] <= least, p["left"])):  # the low ones last
        last = digits[-1][-1] if digits else {"right": 0, "width": 0}
        shared = min(part["right"], last["right"]) - part["left"]
        if part["height"] <= least:
            middle = part["left"] + part["right"]
            min(digits, key=lambda digit: abs(middle - digit[0]["left"] - digit[0]["right"])).append(part)
        elif shared > 0.5 * min(part["width"], last["width"]):
            digits[-1].append(part)
        else:
            digits.append([part])
    inks = [_ink_of(digit, labels, ink) for digit in digits]
    shapes = [digit[_box_of(digit)].shape for digit in inks]
    doubts = {
        SEVERAL: len(digits) > 1,
        "digits that touch?": any(columns > 1.3 * rows for rows, columns in shapes),
        "many parts": len(parts) > 2 * len(digits),
        "ink up to the edge": (_edges(ink) > 0.4).any(),
    }
    return inks, [doubt for doubt, there in doubts.items() if there]


def _filtered(values, name, size):
    """What one of Pillow's filters makes of a uint8 or int32 array (rows, columns)."""
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(values).filter(getattr(ImageFilter, name)(size)))


def _grown(mask):
    """A mask and all pixels that touch it."""
    return _filtered(np.uint8(mask), "MaxFilter", 3) > 0


def _thickened(ink):
    """Ink with strokes of at least a twelfth of the digit's extent, or a thin pen's fade away."""
    ink = np.pad(ink, 1)
    mask = ink > 0.4
    width = 2 * mask.sum() / (mask & _grown(~mask)).sum()
    missing = int((max(ink.shape) / 12 - width) / 2)  # on each side
    if missing < 1:
        return ink[1:-1, 1:-1]
    return _filtered(np.uint8(255 * np.pad(ink, missing)), "MaxFilter", 2 * missing + 1) / 255


def save_seen(path, picture, image):
    """Write PATH.seen.png: the picture that was given beside the image made of it; returns its path."""
    from PIL import Image, ImageOps

    side = 280
    sheet = Image.new("RGB", (2 * side + 30, side + 20), "#808080")
    seen = Image.fromarray(image).convert("RGB")
    sheet.paste(ImageOps.pad(Image.fromarray(picture), (side, side), color="#808080"), (10, 10))
    sheet.paste(ImageOps.pad(seen, (side, side), Image.Resampling.NEAREST, "#808080"), (side + 20, 10))
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

    def error(message):
        raise ValueError(f"{message} (--help shows all flags)")

    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
    )
    parser.error = error
    where = "folder of the data sets (default: DATA_DIR or datasets)"
    parser.add_argument("--data-dir", metavar="DIR", help=where)
    return parser


def parse_flags(parser, argv):
    """Parse a command line; ValueError with the nearest right name for a flag that is unknown."""
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, n=1)
        parser.error(f"unknown argument {unknown[0]}{f'; did you mean {near[0]}?' if near else ''}")
    return flags


def printable(text, most=None):
    """Text without what could command a terminal or turn a line around: ``\\x1b`` is spelled out.

    Of one that is longer than ``most`` characters there are both ends.
    """
    odd = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    text = re.sub(odd, lambda found: ascii(found[0])[1:-1], text)
    if most is None or len(text) <= most:
        return text
    return f"{text[: most - most // 2 - 1]}…{text[-(most // 2) :]}"


def count(number, what):
    """``1 trial``, ``2 trials``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def say(text, file=None):
    """Print lines at once, on standard output or another file; no name in them commands the terminal."""
    print("\n".join(map(printable, text.split("\n"))), file=file, flush=True)


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


def parse_size(text):
    """``"28x28"`` as (28, 28), rows and columns; None remains None. ValueError if it is no size."""
    if text is None or (isinstance(text, tuple) and len(text) == 2):
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"must be rows x columns, as 28x28, not {text!r:.40}")
    return int(match[1]), int(match[2])


def setting_text(value):
    """A setting as one word, which its check turns into the same setting: ``512x256``."""
    if isinstance(value, list):
        return ("+" if value and isinstance(value[0], str) else "x").join(map(str, value or ["none"]))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


@contextlib.contextmanager
def progress_line():
    """A function that shows one changing line on a terminal, and nothing elsewhere; ``""`` clears it."""
    shown = [0.0]

    def show(text):
        if sys.stderr.isatty() and (not text or time.monotonic() - shown[0] > 0.2):
            shown[0] = time.monotonic()
            most = shutil.get_terminal_size().columns - 1  # a line that wraps could not be cleared
            sys.stderr.write(f"\r{printable(text)[:most]}\x1b[K")
            sys.stderr.flush()

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
    try:
        sys.stdout.flush()
    except OSError:  # Python would complain about what is left in it on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _prepare_streams():
    """Output that takes any text: a name that its encoding lacks is spelled out."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
