"""Datasets: find, download, verify, parse, draw, split, preprocess, batch.

A dataset is a plain dict: ``name``, ``title``, ``train_images`` and ``test_images`` (uint8,
``(n, rows * cols)``), ``train_labels`` and ``test_labels`` (uint8, ``(n,)``), ``image_shape``
``(rows, cols)``, ``class_names`` and ``sha256`` (of each file's uncompressed content).
Images stay uint8 until a batch is taken.
"""

import argparse
import contextlib
import csv
import difflib
import gzip
import hashlib
import importlib.util
import io
import json
import math
import os
import pathlib
import shutil
import signal
import struct
import sys
import threading
import time
import warnings
import zlib

import numpy as np

import nn

DIGITS = [str(digit) for digit in range(10)]
FILES = {  # part -> name of its IDX file, which may also end in .gz
    "train_labels": "train-labels-idx1-ubyte",
    "train_images": "train-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
}
SIZES = {  # bytes of uncompressed content, the same for both sources
    "train_labels": 60_008,
    "train_images": 47_040_016,
    "test_labels": 10_008,
    "test_images": 7_840_016,
}
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
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
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
}
DATASET_NAMES = ("auto", "mnist", "fashion-mnist", "glyphs")
CHUNK = 1 << 20  # bytes read at a time
ANSWER_SECONDS = 15  # a mirror that has not answered by then is passed over
AUTO_ANSWER_SECONDS = 6  # the same for `auto`: two mirrors are given up within 15 seconds
SLOWEST = 100_000  # a mirror that brings fewer bytes of uncompressed content a second is passed over


# --- files ------------------------------------------------------------------------------------


def save_bytes(path, content):
    """Write bytes beside ``path`` and move them into place; a reader never sees half a file."""
    aside = f"{path}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        with open(aside, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)


def save_json(path, value):
    save_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def load_json(path):
    """A JSON file's content; ValueError that names the file where it is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def save_rows(path, rows, columns):
    """Write a list of dicts as CSV; None becomes an empty field."""
    lines = [columns] + [["" if row[c] is None else row[c] for c in columns] for row in rows]
    save_bytes(path, "".join(",".join(map(_csv_field, line)) + "\n" for line in lines).encode())


def _csv_field(value):
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n\r') else text


def load_rows(path, words=False):
    """A CSV file of numbers as a list of dicts; empty fields become None.

    With ``words``, a field that is no number, such as ``512x256`` or ``relu``, remains text.

    Raises
    ------
    ValueError
        No header, a row of another length, a field that is no number (without ``words``).
    """
    read = _number_or_word if words else _number
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
        if not header or any(len(line) != len(header) for line in lines):
            raise ValueError("its rows differ in length")
        return [dict(zip(header, map(read, line))) for line in lines]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a table{'' if words else ' of numbers'}: {error}") from error


def _number(text):
    if text == "":
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _number_or_word(text):
    try:
        return _number(text)
    except ValueError:
        return text


def load_idx(path):
    """Read an IDX file of unsigned bytes, gzipped when its name ends in .gz.

    Never takes more memory than the sizes in the file's header ask for, or than it has content.

    Returns
    -------
    array : uint8, of the shape in the header
    sha256 : str
        Of the uncompressed content.

    Raises
    ------
    ValueError
        Wrong magic number, another element type, truncated, or with something behind its end.
    OSError
        The file cannot be read.
    """
    opened = gzip.open if str(path).endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            return _read_idx(file)
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, MemoryError) as error:
        raise ValueError(f"{path} is damaged or no IDX file: {error}") from error


def _read_idx(file):
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError("it does not start with an IDX magic number")
    if magic[2] != 0x08 or magic[3] not in (1, 3):
        raise ValueError("it holds neither labels nor images of unsigned bytes")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError("its header is cut off")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    content = np.empty(math.prod(shape), np.uint8)  # memory is only taken where it is filled
    digest, filled = hashlib.sha256(magic + sizes), 0
    view = memoryview(content)
    while filled < len(content):
        count = file.readinto(view[filled : filled + CHUNK])
        if not count:
            raise ValueError(f"it ends after {filled} of {len(content)} bytes")
        digest.update(view[filled : filled + count])
        filled += count
    if file.read(1):
        raise ValueError(f"it goes on after the {len(content)} bytes that its header announces")
    return content.reshape(shape), digest.hexdigest()


def idx_bytes(array):
    """The content of an IDX file for a uint8 array."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


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
        return _load_glyphs(data_dir / "glyphs")
    if name in SOURCES:
        return _load_source(name, data_dir / name, download, ANSWER_SECONDS)
    folder = pathlib.Path(name)
    if not folder.is_dir():
        raise ValueError(
            f"unknown dataset {name!r}: neither {', '.join(DATASET_NAMES)} nor a folder with IDX files"
        )
    return _load_folder(folder, str(name), folder.resolve().name)


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
    own, facts = config["dataset"], config["data"]
    if name is None and own not in DATASET_NAMES and not os.path.isdir(own):
        raise FileNotFoundError(f"there is no folder {own}, which the run was trained on, seen from here")
    dataset = load_dataset(name or own, data_dir)
    width, classes = math.prod(facts["image_shape"]), len(facts["class_names"])
    if dataset["test_images"].shape[1] != width or dataset["test_labels"].max() >= classes:
        raise ValueError(
            f"{dataset['title']} does not fit: the network takes {width} pixels and knows {classes} classes"
        )
    if name is None and dataset["sha256"] != facts.get("sha256"):
        print("note: the data set has changed since the network was trained", file=sys.stderr)
    return dataset


def _load_auto(data_dir, download):
    try:
        return _load_source("mnist", data_dir / "mnist", download, AUTO_ANSWER_SECONDS)
    except OSError as error:
        reason = error
    line = "!" * 88
    print(
        f"{line}\nWARNING: this is NOT MNIST. MNIST could not be loaded, so the stand-in data set "
        f"`glyphs` (digits drawn from fonts) is used; its accuracy says nothing about MNIST.\n"
        f"Why: {reason}\nTo get MNIST: connect to the internet and run again, or put its four "
        f"files into {data_dir / 'mnist'}, or name the folder above them with --data-dir or DATA_DIR."
        f"\n{line}",
        file=sys.stderr,
    )
    return load_dataset("glyphs", data_dir)


def _load_source(name, folder, download, answer_seconds):
    source = SOURCES[name]
    missing = [part for part in FILES if _find_idx(folder, part) is None]
    if missing and not download:
        raise FileNotFoundError(f"{folder} lacks {', '.join(FILES[part] for part in missing)}")
    for part in missing:
        download_file(
            [f"{mirror}{FILES[part]}.gz" for mirror in source["mirrors"]],
            folder / f"{FILES[part]}.gz",
            source["sha256"][part],
            SIZES[part],
            answer_seconds,
        )
    dataset = _load_folder(folder, name, source["title"], source["class_names"])
    for part, digest in dataset["sha256"].items():
        if digest != source["sha256"][part]:
            raise ValueError(
                f"{_find_idx(folder, part)} is not the file of {source['title']} (its SHA-256 differs);"
                f" delete it to download it anew, or name its folder as --dataset to use it as it is"
            )
    return dataset


def _find_idx(folder, part):
    """Path of a part's IDX file in a folder, under any of its usual names, or None."""
    dashed = FILES[part]
    dotted = dashed.replace("-idx", ".idx")
    names = (dashed, dotted, f"{dashed}.gz", f"{dotted}.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _load_folder(folder, name, title, class_names=None):
    dataset, digests = {}, {}
    for part, file in FILES.items():
        path = _find_idx(folder, part)
        if path is None:
            raise FileNotFoundError(f"{folder} lacks {file} (or {file}.gz)")
        array, digests[part] = load_idx(path)
        if array.ndim != (3 if part.endswith("images") else 1) or not array.size:
            raise ValueError(f"{path} holds an array of shape {array.shape}, which are no {part}")
        dataset[part] = array
    for part in ("train", "test"):
        images, labels = dataset[f"{part}_images"], dataset[f"{part}_labels"]
        if len(images) != len(labels):
            raise ValueError(f"{folder} has {len(images)} {part} images but {len(labels)} labels")
    image_shape = dataset["train_images"].shape[1:]
    if dataset["test_images"].shape[1:] != image_shape:
        raise ValueError(f"{folder}: training and test images differ in size")
    classes = 1 + int(max(dataset["train_labels"].max(), dataset["test_labels"].max()))
    if class_names is None:
        class_names = [str(number) for number in range(classes)]
    if classes > len(class_names):
        raise ValueError(f"{folder} has labels up to {classes - 1}; {title} has {len(class_names)} classes")
    return _as_dataset(name, title, dataset, image_shape, class_names, digests)


def _as_dataset(name, title, arrays, image_shape, class_names, digests):
    flat = {
        part: array.reshape(len(array), -1) if part.endswith("images") else array
        for part, array in arrays.items()
    }
    return {
        "name": name,
        "title": title,
        **flat,
        "image_shape": tuple(map(int, image_shape)),
        "class_names": list(class_names),
        "sha256": digests,
    }


# --- download ---------------------------------------------------------------------------------


def download_file(urls, path, sha256, size, answer_seconds=ANSWER_SECONDS):
    """Download a gzipped file from the first of several URLs that has the right content.

    Nothing is written before the content is complete and its hash is right.

    Parameters
    ----------
    urls : list of str
    path : path
        Where the gzipped file goes; its folder is made.
    sha256 : str
        Of the uncompressed content.
    size : int
        Bytes of the uncompressed content.
    answer_seconds : float
        How long a mirror may be silent; all in all it gets ``size / SLOWEST`` seconds more.

    Raises
    ------
    OSError
        None of the URLs worked; the message lists what was tried and what happened.
    """
    path, failures = pathlib.Path(path), []
    for url in urls:
        try:
            content = _fetch(url, size, answer_seconds)
            _check_download(content, sha256, size)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_bytes(path, content)
            return
        except Exception as error:  # whatever goes wrong with one mirror, the next one is tried
            failures.append(f"{url}: {str(error) or type(error).__name__}")
    raise OSError(f"could not download {path.name} ({'; '.join(failures)})")


def _fetch(url, size, answer_seconds):
    """Content of a URL. A thread does it, so that even a name look-up that hangs has an end."""
    result, seconds = {}, answer_seconds + size / SLOWEST
    deadline = time.monotonic() + seconds

    def work():
        try:
            result["content"] = _read_url(url, size, answer_seconds, deadline)
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in result:
        raise result["error"]
    if "content" not in result:
        raise TimeoutError(f"not complete within {seconds:.0f} s")
    return result["content"]


def _read_url(url, size, answer_seconds, deadline):
    import urllib.error  # late: they take a tenth of a second that only a download needs
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    try:
        response = urllib.request.urlopen(request, timeout=answer_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    content, most = bytearray(), size + CHUNK  # gzip never makes a file much larger
    with response, progress_line() as show:
        length = int(response.headers.get("Content-Length") or 0)
        while chunk := response.read1(CHUNK):
            content += chunk
            of_all = f" of {length / 1e6:.1f}" if length else ""
            show(f"downloading {url}: {len(content) / 1e6:.1f}{of_all} MB")
            if len(content) > most:
                raise ValueError(f"more than the {size} bytes that it should have")
            if time.monotonic() > deadline:
                raise TimeoutError("too slow")
    if len(content) < length:
        raise ValueError(f"the connection was cut after {len(content)} of {length} bytes")
    return bytes(content)


def _check_download(content, sha256, size):
    """Raise a ValueError unless content is gzip, and what is in it has the size and the hash."""
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        inflated = inflate.decompress(content, size + 1)
    except zlib.error:
        raise ValueError(f"no gzip file but {bytes(content[:20])!r}...") from None
    if not inflate.eof or hashlib.sha256(inflated).hexdigest() != sha256:
        raise ValueError("its content has the wrong SHA-256")


# --- glyphs: digits drawn from fonts ----------------------------------------------------------

GLYPH_FONTS = {  # files that Matplotlib ships; no training image uses a font of the test images
    "train": [
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-BoldOblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSerif",
        "DejaVuSerif-Italic",
        "DejaVuSerif-BoldItalic",
        "STIXGeneral",
        "STIXGeneralBol",
        "STIXGeneralBolIta",
        "cmr10",
        "cmb10",
        "cmss10",
    ],
    "test": ["DejaVuSans-Oblique", "DejaVuSerif-Bold", "STIXGeneralItalic", "cmtt10"],
}
GLYPH_SIDE = 56  # pixels of a rendered digit's canvas; its images have half as many
GLYPH_STROKES = 4  # each digit is kept thinned once, as it is, and thickened once and twice


def _load_glyphs(folder):
    """The drawn data set, from its cached IDX files, or drawn now and cached if possible."""
    if any(_find_idx(folder, part) is None for part in FILES):
        print("drawing the data set glyphs: 70,000 digits from fonts ...", file=sys.stderr)
        arrays = draw_glyphs(np.random.default_rng(0))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for part, array in arrays.items():
                save_bytes(folder / FILES[part], idx_bytes(array))
        except OSError as error:
            print(f"glyphs could not be kept in {folder} ({error}); going on", file=sys.stderr)
            digests = {k: hashlib.sha256(idx_bytes(array)).hexdigest() for k, array in arrays.items()}
            return _as_dataset("glyphs", "glyphs (drawn)", arrays, (28, 28), DIGITS, digests)
    return _load_folder(folder, "glyphs", "glyphs (drawn)", DIGITS)


def draw_glyphs(rng, train_size=60_000, test_size=10_000):
    """Draw images of digits from the fonts that Matplotlib ships.

    Each digit of each font is rendered once, then rotated, scaled, sheared, shifted, bent and
    thickened or thinned at random.

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
    arrays = {}
    for part, size in (("train", train_size), ("test", test_size)):
        glyphs = np.stack([_render_digits(font) for font in GLYPH_FONTS[part]])
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        fonts = rng.integers(0, len(glyphs), size)
        images = np.empty((size, 28, 28), np.uint8)
        for start in range(0, size, 1000):
            rows = slice(start, start + 1000)
            images[rows] = _distort_glyphs(rng, glyphs, fonts[rows], labels[rows])
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    return arrays


def _render_digits(font):
    """(10, strokes, side, side) float32 in [0, 1]: the digits of a font, about 40 pixels high."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    matplotlib = importlib.util.find_spec("matplotlib")  # found, not imported: it is slow
    if matplotlib is None:
        raise ModuleNotFoundError("the data set glyphs needs Matplotlib's fonts: pip install matplotlib")
    path = pathlib.Path(matplotlib.origin).parent / "mpl-data/fonts/ttf" / f"{font}.ttf"
    typeface = ImageFont.truetype(str(path), 200, layout_engine=ImageFont.Layout.BASIC)
    digits = []
    for digit in DIGITS:
        left, top, right, bottom = typeface.getbbox(digit)
        width, height = right - left, bottom - top
        drawn = Image.new("L", (width, height))
        ImageDraw.Draw(drawn).text((-left, -top), digit, fill=255, font=typeface)
        fitted = (max(1, min(40, round(40 * width / height))), 40)
        canvas = Image.new("L", (GLYPH_SIDE, GLYPH_SIDE))
        canvas.paste(
            drawn.resize(fitted, Image.Resampling.BOX),
            ((GLYPH_SIDE - fitted[0]) // 2, (GLYPH_SIDE - fitted[1]) // 2),
        )
        thicker = canvas.filter(ImageFilter.MaxFilter(3))
        thinner = Image.blend(canvas, canvas.filter(ImageFilter.MinFilter(3)), 0.6)
        strokes = [thinner, canvas, thicker, thicker.filter(ImageFilter.MaxFilter(3))]
        digits.append([np.asarray(s.filter(ImageFilter.BoxBlur(0.5)), np.float32) for s in strokes])
    return np.array(digits) / np.float32(255)


def _distort_glyphs(rng, glyphs, fonts, labels):
    """uint8 images (n, 28, 28) of the given fonts and labels, each distorted in its own way."""
    n, side = len(labels), GLYPH_SIDE

    def uniform(low, high):
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    angle, shear = uniform(-0.3, 0.3), uniform(-0.35, 0.35)
    wide, high = uniform(0.75, 1.25), uniform(0.8, 1.15)
    move_x, move_y = uniform(-5, 5), uniform(-5, 5)
    bend_x, bend_y = uniform(-3.5, 3.5), uniform(-2.5, 2.5)
    phase_x, phase_y = uniform(-np.pi, np.pi), uniform(-np.pi, np.pi)
    # where each pixel of an image comes from on the glyph's canvas, twice as fine
    grid = (np.arange(28, dtype=np.float32) - 13.5) * 2
    x, y = grid[None, None, :] - move_x, grid[None, :, None] - move_y  # (n, 1, 28), (n, 28, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    u = (cos * x + sin * y) / wide
    v = (cos * y - sin * x) / high
    u += shear * v + bend_x * np.sin(v / 8 + phase_x)
    v += bend_y * np.sin(u / 8 + phase_y)
    u += (side - 1) / 2  # (n, 28, 28)
    v += (side - 1) / 2
    np.clip(u, 0, side - 1.001, out=u)
    np.clip(v, 0, side - 1.001, out=v)
    column, row = u.astype(np.int32), v.astype(np.int32)
    u -= column
    v -= row
    stroke = rng.integers(0, GLYPH_STROKES, n)
    which = (fonts * 10 + labels) * GLYPH_STROKES + stroke
    at = which.astype(np.int32)[:, None, None] * (side * side) + row * side + column
    pixels = glyphs.reshape(-1)
    above = pixels[at] * (1 - u) + pixels[at + 1] * u  # bilinear
    below = pixels[at + side] * (1 - u) + pixels[at + side + 1] * u
    ink = above * (1 - v) + below * v
    return np.rint(255 * ink).astype(np.uint8)


# --- split, preprocess, batch -----------------------------------------------------------------


def split(images, labels, val_size, rng, train_size=None):
    """Hold out validation images, chosen by a shuffle, or the last ones.

    Parameters
    ----------
    images : array (n, d)
    labels : array (n,)
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


def check_split(n, val_size, train_size=None):
    """The number of training images in a split of n images; ValueError where there is no such split."""
    wanted = n - val_size if train_size is None else train_size
    if val_size < 0 or not 1 <= wanted <= n - val_size:
        raise ValueError(
            f"{n} images cannot be split into {val_size} for validation and "
            f"{'at least 1' if train_size is None else train_size} for training"
        )
    return wanted


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


def _normalize_width(pictures, step):
    """Bring each picture's ink to so many columns, at most twice its width, in the middle."""
    columns = pictures.shape[2]
    inked = (pictures > FAINT).any(axis=1)  # (n, columns)
    first, last = inked.argmax(axis=1), columns - 1 - inked[:, ::-1].argmax(axis=1)
    scale = np.where(inked.any(axis=1), np.maximum((last - first + 1) / step["number"], 0.5), 1)
    start = (first + last) / 2 - scale * (columns - 1) / 2
    return _resampled_columns(pictures, np.repeat(start[:, None], pictures.shape[1], axis=1), scale)


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


def _pool(pictures, step):
    """The mean of each 2x2 pixels; an odd edge is filled with blank pixels."""
    n, rows, columns = pictures.shape
    even = np.pad(pictures, ((0, 0), (0, rows % 2), (0, columns % 2)))
    blocks = even.reshape(n, (rows + 1) // 2, 2, (columns + 1) // 2, 2)
    return np.rint(blocks.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def _scale(x, step):
    x *= step.get("by", 1 / 255)  # in half the time of a division
    return x


def _center(x, step):
    x -= step["mean"].astype(x.dtype)
    return x


def _standardize(x, step):
    x -= x.dtype.type(step["mean"])
    x /= x.dtype.type(step["std"])
    return x


def _pca(x, step):
    return _center(x, step) @ step["basis"].astype(x.dtype)  # (n, number)


def _fit_center(images, steps, number):
    return {"mean": _mean_over(images, steps, lambda x: x)}


def _fit_standardize(images, steps, number):
    mean = float(_mean_over(images, steps, lambda x: x).mean())
    square = float(_mean_over(images, steps, np.square).mean())
    return {"mean": mean, "std": math.sqrt(max(0.0, square - mean**2)) or 1.0}


def _fit_pca(images, steps, number):
    mean = _mean_over(images, steps, lambda x: x)
    if number > len(mean):
        raise ValueError(f"pca:{number}: an image has only {len(mean)} numbers there")
    product = sum(b["x"].T @ b["x"] for b in batches(images, images[:, 0], steps, dtype=np.float64))
    _, vectors = np.linalg.eigh(product / len(images) - np.outer(mean, mean))
    basis = vectors[:, ::-1][:, :number]  # (d, number), the largest variance first
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    return {"mean": mean, "basis": basis * np.sign(largest)}  # eigenvectors have no sign of their own


def _mean_over(images, steps, function):
    """Mean over all images of a function of their numbers (d,), float64, after the steps so far."""
    taken = batches(images, images[:, 0], steps, dtype=np.float64)
    return sum(function(b["x"]).sum(axis=0) for b in taken) / len(images)


FAINT = 32  # grey levels out of 255 that do not count for the width of the ink
PICTURE_STEPS = {"deskew": _deskew, "width": _normalize_width, "pool": _pool}  # uint8 (n, rows, columns)
PIXEL_STEPS = {  # name -> (fit on training images, or None; apply to float (n, d), maybe in place)
    "scale": (None, _scale),
    "center": (_fit_center, _center),
    "standardize": (_fit_standardize, _standardize),
    "pca": (_fit_pca, _pca),
}
NUMBERED_STEPS = {"width": "width:14", "pca": "pca:50"}  # those that need a number, with an example
STEP_NAMES = [NUMBERED_STEPS.get(name, name) for name in (*PICTURE_STEPS, *PIXEL_STEPS)]


def parse_steps(names):
    """``["deskew", "pca:50"]`` as ``[("deskew", None), ("pca", 50)]``; ValueError if it makes no sense."""
    steps = []
    for text in names:
        name, colon, number = text.partition(":") if isinstance(text, str) else (text, "", "")
        if name not in {**PICTURE_STEPS, **PIXEL_STEPS}:
            raise ValueError(f"unknown preprocessing {text!r:.40} (one of: {', '.join(STEP_NAMES)})")
        if name not in NUMBERED_STEPS and colon:
            raise ValueError(f"{name} takes no number, not {text:.40}")
        if name in NUMBERED_STEPS and not (number.isdecimal() and 1 <= int(number[:9]) == int(number)):
            raise ValueError(
                f"{name} needs a whole number above 0, as in {NUMBERED_STEPS[name]}, not {text:.40}"
            )
        if name in PICTURE_STEPS and any(before in PIXEL_STEPS for before, _ in steps):
            raise ValueError(f"{name} works on pictures: put it before {steps[-1][0]}")
        if name in dict(steps):
            raise ValueError("must name each step once")
        steps.append((name, int(number) if colon else None))
    return steps


def fit_preprocess(names, images, image_shape=None):
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
        Training images only.
    image_shape : (rows, columns), optional
        Needed by the steps on pictures.

    Returns
    -------
    list of dict
        The fitted steps, for ``preprocess``; plain data that can be stored with the params.

    Raises
    ------
    ValueError
        Unknown name, wrong order or number.
    """
    pictures = picture_steps(names, image_shape)
    return pictures + fit_pixel_steps(names, redraw(images, pictures))


def picture_steps(names, image_shape):
    """The steps on pictures (rows, columns) among names; there is nothing to be fitted."""
    steps, shape = [], image_shape
    for name, number in parse_steps(names):
        if name in PICTURE_STEPS:
            steps.append({"name": name, "shape": list(shape)} | ({"number": number} if number else {}))
            shape = _shape_after(name, shape)
    return steps


def fit_pixel_steps(names, images):
    """The other steps among names, fitted on training images that are redrawn already."""
    steps = []
    for name, number in parse_steps(names):
        if name in PIXEL_STEPS:
            fit, _ = PIXEL_STEPS[name]
            steps.append({"name": name} | (fit(images, steps, number) if fit else {}))
    return steps


def shape_after(steps, image_shape):
    """(rows, columns) of the images after ``redraw``."""
    for step in steps:
        image_shape = _shape_after(step["name"], image_shape)
    return tuple(image_shape)


def _shape_after(name, shape):
    return [-(-n // 2) for n in shape] if name == "pool" else list(shape)


def check_steps(steps, image_shape, inputs):
    """Raise a ValueError unless steps (from a file) lead from images of that shape to so many inputs."""
    shape, width = list(image_shape), math.prod(image_shape)
    for step in steps:
        name = step.get("name") if isinstance(step, dict) else None
        if not isinstance(name, str) or name not in {**PICTURE_STEPS, **PIXEL_STEPS}:
            raise ValueError(f"unknown preprocessing step {step!r:.60}")
        mean, basis, number = step.get("mean"), step.get("basis"), step.get("number")
        if name in PICTURE_STEPS:
            if shape is None or step.get("shape") != shape or width != math.prod(shape):
                raise ValueError(f"the step {name} does not fit images of {shape}")
            if name == "width" and (type(number) is not int or number < 1):
                raise ValueError("the step width lacks its number")
            shape = _shape_after(name, shape)
            width = math.prod(shape)
        if name == "scale" and len(step) > 1:  # see scaled
            raise ValueError("the step scale holds more than its name")
        if name in ("center", "pca") and not _is_floats(mean, (width,)):
            raise ValueError(f"the step {name} does not fit images of {width} pixels")
        if name == "standardize" and not (
            isinstance(mean, float)
            and isinstance(step.get("std"), float)
            and abs(mean) < BEYOND_REASON
            and 1 / BEYOND_REASON < step["std"] < BEYOND_REASON
        ):
            raise ValueError("the step standardize lacks its mean or std")
        if name == "pca":
            if getattr(basis, "ndim", 0) != 2 or not _is_floats(basis, (width, basis.shape[1])):
                raise ValueError(f"the step pca does not fit images of {width} pixels")
            width, shape = basis.shape[1], None
    if width != inputs:
        raise ValueError(
            f"its images of {' x '.join(map(str, image_shape))} pixels are {width} numbers after "
            f"preprocessing, but W1 takes {inputs}"
        )


BEYOND_REASON = 1e30  # of what steps from a file hold; float32 ends at 3e38


def _is_floats(array, shape):
    fits = isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.shape == shape
    return fits and bool((np.abs(array) < BEYOND_REASON).all())


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


def pixel_steps(steps):
    """The steps that are left after ``redraw``."""
    return [step for step in steps if step["name"] in PIXEL_STEPS]


def scaled(steps, by):
    """Steps whose result is ``by`` times as large; after ``scale``, the last of most runs, at no cost."""
    if steps and steps[-1] == {"name": "scale"}:
        return [*steps[:-1], {"name": "scale", "by": by / 255}]
    return [*steps, {"name": "scale", "by": by}]


def preprocess(images, steps, dtype=np.float32, out=None):
    """Apply fitted steps to uint8 images (n, d).

    Returns an array (n, d') of dtype; it is ``out`` where that is given and no step changes d.
    """
    images = redraw(images, steps)
    x = np.empty(images.shape, dtype) if out is None or out.shape != images.shape else out
    x[...] = images
    for step in pixel_steps(steps):
        x = PIXEL_STEPS[step["name"]][1](x, step)
    return x


def weights_in_pixels(weights, steps):
    """What weights (inputs, units) weigh in the pixels of the image: (d, units).

    The steps on numbers but ``pca`` change no more than the scale, and those on pictures but
    ``pool`` leave the pixels where they are.
    """
    for step in reversed(steps):
        if step["name"] == "pca":
            weights = step["basis"].astype(weights.dtype) @ weights
        if step["name"] == "pool":
            rows, columns = step["shape"]
            pooled = weights.reshape(*_shape_after("pool", step["shape"]), -1) / 4
            spread = pooled.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
            weights = spread.reshape(rows * columns, -1)
    return weights


def sort_pixels(images):
    """Put the pixels that are blank in the most images last, so that few columns hold all the ink.

    In a batch of 128 MNIST digits about a fifth of the columns are blank behind the last ink, and
    a product need not go over them.

    Parameters
    ----------
    images : uint8 array (n, d)

    Returns
    -------
    dict
        ``images``, a copy (n, d) with its columns sorted; ``columns`` (d,), where each of them
        was; ``inked`` (n,), the number of columns of each image up to its last that is not 0.
    """
    used = np.zeros(images.shape[1], np.int64)
    for start in range(0, len(images), 1000):
        used += np.count_nonzero(images[start : start + 1000], axis=0)
    columns = np.argsort(-used, kind="stable")
    ordered = np.empty_like(images)
    inked = np.empty(len(images), np.int64)
    for start in range(0, len(images), 1000):
        rows = slice(start, start + 1000)
        ordered[rows] = images[rows][:, columns]
        blank = ordered[rows, ::-1] == 0
        inked[rows] = images.shape[1] - np.where(blank.all(axis=1), blank.shape[1], blank.argmin(axis=1))
    return {"images": ordered, "columns": columns, "inked": inked}


def batches(images, labels, steps, batch_size=1000, dtype=np.float32):
    """Yield preprocessed batches ``(x, y)`` as they lie.

    All x share one buffer: a batch is gone when the next one is taken.
    """
    buffer = np.empty((min(batch_size, len(images)), images.shape[1]), dtype)
    for start in range(0, len(images), batch_size):
        taken = images[start : start + batch_size]
        x = preprocess(taken, steps, out=buffer[: len(taken)])
        yield {"x": x, "y": None if labels is None else labels[start : start + batch_size]}


def load_run(path):
    params, config = nn.load_run(path)
    check_steps(config["steps"], config["data"]["image_shape"], nn.layer_sizes(params)[0])
    return params, config


def setting_text(value):
    """A setting as one word, which its check turns into the same setting: ``512x256``."""
    if isinstance(value, list):
        return ("+" if value and isinstance(value[0], str) else "x").join(map(str, value or [0]))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


# --- augment ----------------------------------------------------------------------------------

DISTORTIONS = ("shift", "affine", "elastic")  # each does what those before it do
AUGMENT_NAMES = ("none", *DISTORTIONS, "flip")
AUGMENT_BLOCK = 64  # images distorted at a time, so that they stay in cache


STRENGTHS = {  # of the distortions, at most; lengths are in pixels
    "max_shift": 1.0,
    "max_rotation": 10.0,
    "max_scaling": 0.12,
    "max_shear": 0.1,
    "bend": 1.2,
    "smooth": 4.0,
}
STRONGEST, LEAST_SMOOTH = 1_000_000, 0.001  # beyond them numbers overflow


def make_augment(names, image_shape, **strengths):
    """What ``augment`` needs to know.

    Parameters
    ----------
    names : list of str
        At most one of ``shift``, ``affine`` (rotation, scaling, shear and shift) and ``elastic``
        (affine, and a smooth random displacement of every pixel: Simard et al. 2003); and ``flip``,
        which turns half of the images left to right.
    image_shape : (rows, columns)
    max_shift : float
        Pixels, either way along both axes.
    max_rotation : float
        Degrees.
    max_scaling : float
        Share by which width and height grow or shrink, each on its own.
    max_shear : float
        Columns a row.
    bend : float
        Root mean square of the elastic displacement along each axis, in pixels.
    smooth : float
        Standard deviation, in pixels, of the Gaussian that smooths the displacement.

    Returns
    -------
    dict, or None where there is nothing to do

    Raises
    ------
    ValueError
        A name or a strength (they may come from a file) that is none.
    """
    strengths = {name: strengths.get(name, default) for name, default in STRENGTHS.items()}
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name in AUGMENT_NAMES[1:] for name in names
    ):
        raise ValueError(f"the distortions {names!r:.60} are not of {', '.join(AUGMENT_NAMES[1:])}")
    fit = all(isinstance(value, (int, float)) and 0 <= value <= STRONGEST for value in strengths.values())
    if not fit or strengths["smooth"] < LEAST_SMOOTH:
        raise ValueError("the strengths of the distortions are no numbers of at least 0, or out of range")
    kind = next((name for name in DISTORTIONS if name in names), None)
    if kind is None and "flip" not in names:
        return None
    limits = {"shift": strengths["max_shift"]}
    limits |= dict.fromkeys(("rotation", "scaling", "shear", "bend"), 0)
    if kind != "shift":
        limits["rotation"] = math.radians(strengths["max_rotation"])
        limits |= {name: strengths[f"max_{name}"] for name in ("scaling", "shear")}
    if kind == "elastic":
        limits["bend"] = strengths["bend"]
    curves = [_curves(side, strengths["smooth"] if limits["bend"] else None) for side in image_shape]
    how = {"kind": kind, "flip": "flip" in names, "shape": tuple(image_shape)}
    return how | {"limits": limits, "curves": curves}


def _curves(side, smooth):
    """The curves (side, k) along one axis that displacements are made of: 1, the position, and bends.

    A displacement field is curves_y @ coefficients @ curves_x.T. Bends are what white noise looks
    like after a Gaussian: G z with the matrix G = U S V.T is U S times other white noise, V.T z, and
    all but a few of the singular values S are next to nothing.
    """
    at = np.arange(side) - (side - 1) / 2
    if smooth is None:
        return np.column_stack([np.ones(side), at])
    gaussian = np.exp(-0.5 * ((at[:, None] - at) / smooth) ** 2)
    u, s, _ = np.linalg.svd(gaussian)
    bends = u[:, s > 0.01 * s[0]] * s[s > 0.01 * s[0]]
    bends /= math.sqrt(np.square(bends).sum(axis=1).mean())  # the field's mean square is 1
    return np.column_stack([np.ones(side), at, bends])


def augment(images, how, rng, out=None):
    """Distort each image in its own random way.

    Parameters
    ----------
    images : uint8 array (n, d)
    how : dict
        From ``make_augment``.
    rng : numpy.random.Generator
    out : float array (n, d), optional

    Returns
    -------
    float32 array (n, d) or out
        Grey levels from 0 to 255. Beyond its edges an image goes on as it ends.
    """
    x = np.empty(images.shape, np.float32) if out is None else out
    for start in range(0, len(images), AUGMENT_BLOCK):
        block = slice(start, start + AUGMENT_BLOCK)
        pictures, result = images[block].reshape(-1, *how["shape"]), x[block].reshape(-1, *how["shape"])
        if how["flip"]:
            turned = rng.random(len(pictures)) < 0.5
            pictures = np.where(turned[:, None, None], pictures[:, :, ::-1], pictures)
        if how["kind"]:
            _sample(pictures, *_positions(len(pictures), how, rng, x.dtype), out=result)
        else:
            result[...] = pictures
    return x


def _positions(n, how, rng, dtype):
    """Row and column, (rows, n, columns) each, from which each pixel of n distorted images comes."""
    limits, (along_y, along_x) = how["limits"], how["curves"]

    def uniform(limit):
        return rng.uniform(-abs(limit), abs(limit), n)  # which refuses (0, -0.0)

    rotation, shear = uniform(limits["rotation"]), uniform(limits["shear"])
    high, wide = 1 / (1 + uniform(limits["scaling"])), 1 / (1 + uniform(limits["scaling"]))
    cos, sin = np.cos(rotation), np.sin(rotation)
    constants, by_column, by_row = (0, 0), (0, 1), (1, 0)  # of the curves along y and x
    of_row = {constants: uniform(limits["shift"]), by_column: -sin * high, by_row: cos * high}
    of_column = {constants: uniform(limits["shift"]), by_column: cos * wide, by_row: sin * wide + shear}
    positions = []
    for side, affine in zip(how["shape"], (of_row, of_column)):
        coefficients = np.zeros((along_y.shape[1], n, along_x.shape[1]), dtype)
        if limits["bend"]:
            bends = coefficients[2:, :, 2:]
            bends[...] = limits["bend"] * rng.standard_normal(bends.shape, dtype=dtype)
        for (i, j), values in affine.items():
            coefficients[i, :, j] = values
        coefficients[0, :, 0] += (side - 1) / 2
        bent = along_y.astype(dtype) @ coefficients.reshape(len(coefficients), -1)
        field = bent.reshape(-1, along_x.shape[1]) @ along_x.T.astype(dtype)
        positions.append(field.reshape(how["shape"][0], n, -1))
    return positions


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
    at = above.astype(np.intp)
    at += np.arange(n)[:, None] * ((rows + 1) * (columns + 1))  # where each picture begins
    # between the columns in the row above and in the row below, then between the rows
    upper, lower = (
        _between(pixels[k:].take(at, mode="clip"), pixels[k + 1 :].take(at, mode="clip"), column)
        for k in (0, columns + 1)
    )
    out[...] = _between(upper, lower, row).swapaxes(0, 1)


def _between(first, second, share):
    second -= first
    second *= share
    second += first
    return second


# --- pictures of your own ---------------------------------------------------------------------

SMALLEST_PICTURE = 8  # pixels a side
MOST_PIXELS = 50_000_000
LOOK = 256  # pixels of the longer side at which a digit is looked for, and then looked at
FAINTEST = 16  # grey levels out of 255 between ink and paper


def load_picture(path):
    """Read a picture file of any kind that Pillow knows.

    Returns
    -------
    uint8 array (rows, columns, 3)
        Upright. What is transparent is white where the ink is dark, and black where it is light.

    Raises
    ------
    ValueError
        An empty file, no picture, a damaged one, one under 8x8 or over 50 million pixels.
    OSError
        The file cannot be read.
    """
    from PIL import Image, ImageOps

    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise ValueError(f"{path} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, though our limit is lower, and of odd ones
            picture = Image.open(io.BytesIO(content))
            columns, rows = picture.size
            if min(rows, columns) >= SMALLEST_PICTURE and rows * columns <= MOST_PIXELS:
                return _as_rgb(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        raise ValueError(f"{path} has over {MOST_PIXELS:,} pixels") from None
    except Exception as error:  # a damaged picture can fail in any way
        reason = "no known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{path} is no picture that can be read ({reason})") from error
    if rows * columns > MOST_PIXELS:
        raise ValueError(f"{path} has {columns}x{rows} pixels; the most is {MOST_PIXELS:,}")
    raise ValueError(f"{path} has {columns}x{rows} pixels; the least is 8x8")


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
    if scale > 1 and extent < LOOK / 2:  # a small digit on a large picture: look again, closer
        margin = extent / 2
        closer = tuple(
            slice(int(max(0, part.start - margin) * scale), math.ceil((part.stop + margin) * scale))
            for part in box
        )
        ink = _find_ink(_shrunk(picture[closer]))
    return prepare_ink(ink, image_shape)


def prepare_ink(ink, image_shape=(28, 28)):
    """The same from ink alone: float array (rows, columns) in [0, 1], not all 0."""
    fitted = _fit(_thickened(ink[_box_of(ink)]), image_shape)
    return _center_by_mass(fitted, image_shape)


def _box_of(ink):
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _shrunk(picture):
    """float32 (rows, columns, 3) of at most LOOK pixels a side."""
    from PIL import Image

    scale = max(1, max(picture.shape) / LOOK)
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
    if peak < FAINTEST or peak < 5 * noise:
        raise ValueError("there is nothing to see on it")
    ink = np.clip((ink / peak - 0.1) / 0.9, 0, 1)
    return np.where(_grown(_without_specks(ink > 0.4)), ink, 0)


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


def _without_specks(mask):
    """A mask without its connected parts that are under a twentieth of the largest."""
    cell = -(-max(mask.shape) // 64)  # pixels a side of the cells that are looked at
    padded = np.pad(mask, [(0, -n % cell) for n in mask.shape])
    rows, columns = (n // cell for n in padded.shape)
    cells = padded.reshape(rows, cell, columns, cell).any(axis=(1, 3))
    left, parts = set(map(tuple, np.argwhere(cells).tolist())), []
    while left:
        part = [left.pop()]
        for row, column in part:  # grows while it is walked through
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            part.extend(around)
        parts.append(part)
    largest = max(map(len, parts))
    large = np.zeros_like(cells)
    for part in parts:
        if len(part) >= 0.05 * largest:
            large[tuple(np.transpose(part))] = True
    return mask & large.repeat(cell, axis=0).repeat(cell, axis=1)[: mask.shape[0], : mask.shape[1]]


def _grown(mask):
    """A mask and all pixels that touch it."""
    wide = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.any([wide[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0)


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
    buffer, target = io.BytesIO(), f"{path}.seen.png"
    sheet.save(buffer, "PNG")
    save_bytes(target, buffer.getvalue())
    return target


# --- what every script does at its edges ------------------------------------------------------


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


def make_parser(description):
    """An argparse parser whose errors are one line, with the flag that all scripts share."""
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
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


def run_script(main, argv=None):
    """Run a script's ``main(argv)``; returns its exit status.

    Bad input (ValueError), missing or unwritable files (OSError), a training that diverges
    (ArithmeticError), a missing package and too little memory give one line on standard error
    and 2; Ctrl-C gives 130, SIGTERM 143. Output that nobody reads on, as after ``| head``, ends the
    script quietly, with the 141 of a Unix tool.
    """
    name = os.path.basename(sys.argv[0])
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed when Python started
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
    stopped = []

    def stop(signum, frame):
        stopped.append(signum)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    try:
        return _finish(main, argv)
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except (ValueError, OSError, ArithmeticError, ImportError, MemoryError) as error:
        _complain(f"{name}: {_one_line(error)}")
        _drop_output()
        return 2
    except KeyboardInterrupt as error:
        heeded = [signal.SIGINT, signal.SIGTERM]  # a second one would be a traceback, even in this loop
        while heeded:
            try:
                signal.signal(heeded[-1], signal.SIG_IGN)
                heeded.pop()
            except KeyboardInterrupt:
                continue
            except ValueError:  # in another thread, which no signal reaches
                break
        start = "\n" if sys.stderr.isatty() else ""  # below the ^C that a terminal shows
        _complain(f"{start}{name}: stopped{_one_line(error) and ': '}{_one_line(error)}")
        _drop_output()
        return 128 + (stopped[0] if stopped else signal.SIGINT)


BROKEN_PIPE = 141  # 128 and the number of SIGPIPE


def _finish(main, argv):
    try:
        status = main(argv) or 0
    except SystemExit as end:  # of --help
        status = end.code or 0
    sys.stdout.flush()  # here, where a full disk behind it is an error like any other
    return status


def _complain(line):
    with contextlib.suppress(OSError):  # nobody reads it
        print(line, file=sys.stderr, flush=True)


def _drop_output():
    """Flush standard output, or drop what it cannot take: Python would complain about it on exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def _one_line(error):
    line = " ".join(str(error).split())
    return line if len(line) < 2000 else line[:2000] + " ..."
