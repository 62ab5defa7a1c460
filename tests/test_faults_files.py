"""Damaged and hostile files: each loads and can be used, or is one clear error."""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import HANG, ROOT, write_dataset
from faults import FEW, MANY, altered, call, damaged, outcomes, written
from PIL import Image

import data
import nn
import test as judging
import train

SETTINGS = [
    {"momentum": 0.9, "preprocess": ["scale", "center"], "patience": 9},
    {"hidden": [], "preprocess": ["standardize"], "dropout": 0.2, "loss": "mse", "lr": 0.001},
    {"val_size": 0, "dtype": "float64", "hidden": [5, 4], "activation": "sigmoid", "dropout": 0.3},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of small whole runs, one for each of SETTINGS."""
    folder = tmp_path_factory.mktemp("runs")
    write_dataset(folder / "small")
    for number, settings in enumerate(SETTINGS):
        usual = {
            "dataset": str(folder / "small"),
            "hidden": [7],
            "val_size": 12,
            "batch_size": 16,
            "epochs": 3,
        }
        data.save_json(folder / "config.json", {**usual, **settings})
        assert call(train.main, "--config", folder / "config.json", "--out", folder / f"{number}")[0] == 0
    return [folder / f"{number}" for number in range(len(SETTINGS))]


@pytest.fixture(autouse=True)
def fast_writes(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# --- what is done with a file that loads ------------------------------------------------------


def use_dataset(folder):
    dataset = data.load_dataset(str(folder))
    settings = {"hidden": [3], "val_size": 1, "preprocess": ["scale", "center", "standardize"], "lr": 0.01}
    config = train.check_settings(settings)
    prepared = train.prepare(dataset, config)
    train.train_epoch(train.init_state(prepared, config), prepared, config)


def use_params(path):
    members = judging.load_members([path])
    config = members[0][1]
    dataset = data.load_dataset_of(config)
    estimates, report, _ = judging.judge(members, dataset["test_images"], dataset["test_labels"])
    judging.report_text(report, config, "title")
    judging.prediction_rows(estimates, dataset["test_labels"], config["data"]["class_names"])


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("way", ["raw", "gzipped", "before gzip"])
def test_damaged_idx_files(tmp_path, way, count):
    faults, fine, rng = {}, 0, np.random.default_rng([1, len(way), count])
    for part in data.FILES:
        folder = write_dataset(tmp_path / part, zipped=way != "raw")
        path = folder / (data.FILES[part] + ("" if way == "raw" else ".gz"))
        content = path.read_bytes()
        if way == "before gzip":
            honest = gzip.decompress(content)
            contents = (gzip.compress(damaged(honest, rng), 1) for _ in range(count // 4))
        else:
            contents = (damaged(content, rng) for _ in range(count // 4))
        good, bad = outcomes(written(path, contents, folder), use_dataset)
        fine, faults = fine + good, faults | bad
    assert not faults and 0 < fine < count


def numbers(rng, n=24):
    """Images, and labels of three classes."""
    return rng.integers(0, 256, (n, 4, 4), dtype=np.uint8), np.arange(n) % 3


def save_csv(folder, images, labels):
    rows = np.column_stack([labels, images.reshape(len(images), -1)])
    np.savetxt(folder / "train.csv", rows, "%d", ",", header="label" + 16 * ",p", comments="")


def save_zipped_csv(folder, images, labels):
    save_csv(folder, images, labels)
    content = (folder / "train.csv").read_bytes()
    (folder / "train.csv").unlink()
    (folder / "train.csv.gz").write_bytes(gzip.compress(content, 1))


def save_npy(folder, images, labels):
    for name, array in (("X_train", images / 255), ("y_train", labels)):
        np.save(folder / f"{name}.npy", array)


def save_words(folder, images, labels):
    np.save(folder / "X.npy", images)
    np.save(folder / "y.npy", np.array(["a", "bc", "ü"])[labels])


def save_pickle(protocol):
    def save(folder, images, labels):
        pairs = (
            ((images / 255, labels),) * 3 if protocol < 3 else {"train_img": images, "train_label": labels}
        )
        (folder / "mnist.pkl").write_bytes(pickle.dumps(pairs, protocol=protocol))

    return save


def save_qmnist(folder, images, labels):
    table = np.column_stack([labels] * 8).astype(">i4")
    (folder / "qmnist-train-images-idx3-ubyte").write_bytes(data.idx_bytes(images))
    header = bytes([0, 0, 12, 2]) + struct.pack(">2I", *table.shape)
    (folder / "qmnist-train-labels-idx2-int").write_bytes(header + table.tobytes())


def save_pictures(folder, images, labels):
    for number, (image, label) in enumerate(zip(images, labels)):
        (folder / f"{label}").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{label}" / f"{number}.{('png', 'bmp', 'tif')[label]}")


def save_names(folder, images, labels):
    np.savez(folder / "x.npz", X=images, y=labels)
    (folder / "classes.txt").write_text("one\ntwo\nthree\n")


DATA_FORMS = {
    "csv": save_csv,
    "csv.gz": save_zipped_csv,
    "npz": lambda folder, x, y: np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y),
    "npz compressed": lambda folder, x, y: np.savez_compressed(folder / "mnist.npz", X=x, y=y),
    "npy": save_npy,
    "npy of words": save_words,
    "pkl of Python 2": save_pickle(2),
    "pkl": save_pickle(4),
    "IDX of int32": save_qmnist,
    "pictures": save_pictures,
    "classes.txt": save_names,
}


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("form", DATA_FORMS)
def test_damaged_data_of_every_form(tmp_path, form, count):
    rng = np.random.default_rng([6, len(form), count])
    DATA_FORMS[form](tmp_path, *numbers(rng))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    files = files[:1] if form == "classes.txt" else files

    def cases():
        for _ in range(count):
            path = files[rng.integers(len(files))]
            honest = path.read_bytes()
            path.write_bytes(damaged(honest, rng))
            yield tmp_path
            path.write_bytes(honest)

    fine, faults = outcomes(cases(), use_dataset)
    assert not faults and fine < count
    assert fine or form in ("csv.gz", "npz", "npz compressed"), "these have checksums"


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_damaged_params(runs, tmp_path, suffix, count):
    rng, path = np.random.default_rng([2, count]), tmp_path / f"params.{suffix}"
    contents = []
    for run in runs:
        nn.save_params(path, *nn.load_params(run / "params.pkl"))
        content = path.read_bytes()
        contents += [damaged(content, rng) for _ in range(count // len(runs))]
    fine, faults = outcomes(written(path, contents), use_params)
    assert not faults and fine < count
    assert fine or suffix == "npz", "a zip archive has checksums"


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_params_that_are_whole_but_say_something_odd(runs, tmp_path, suffix, count):
    rng, path = np.random.default_rng([5, len(suffix), ord(suffix[0]), count]), tmp_path / f"params.{suffix}"
    honest = [nn.load_checkpoint(run / "params.pkl") for run in runs]

    def cases():
        for number in range(count):
            odd = altered(honest[number % len(honest)], rng, arrays=suffix == "pkl")
            if suffix == "pkl":
                path.write_bytes(pickle.dumps(odd))
            else:
                arrays = odd["params"] if isinstance(odd.get("params"), dict) else {}
                arrays = {key: w for key, w in arrays.items() if isinstance(w, (np.ndarray, str, int))}
                config = json.dumps(odd.get("config"), default=lambda array: {"$array": "W1"})
                np.savez(path, **arrays, config=config)
            yield path

    fine, faults = outcomes(cases(), use_params)
    assert not faults and 0 < fine < count


# --- hostile ----------------------------------------------------------------------------------


def idx_header(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def pickled(body):
    """A params pickle whose config holds what the opcodes in body leave on the stack."""
    params = pickle.dumps(nn.init_params(np.random.default_rng(0), [2, 2]), protocol=2)[2:-1]
    return b"\x80\x04(X\x06\0\0\0params" + params + b"X\x06\0\0\0config}X\x01\0\0\0a" + body + b"sd."


def text(size):
    return b"X" + struct.pack("<I", size) + b"a" * size


def numbers_that_collide(count):
    step = sys.hash_info.modulus
    return b"".join(
        b"\x8a" + bytes([len(raw)]) + raw + b"N"
        for raw in ((i * step).to_bytes(16, "little") for i in range(1, count))
    )


def zipped(entries, **more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(shape, descr="<f4", content=b""):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + content


MEGA = 1 << 20


def same_bytes():
    return pickled(
        b"cnumpy.core.multiarray\nscalar\nq\x01cnumpy\ndtype\n(X\x02\0\0\0u1K\0K\x01tRq\x02"
        + text(MEGA // 2)
        + b"q\x03c_codecs\nencode\nq\x04("
        + b"h\x04h\x03X\x06\0\0\0latin1\x86R" * 20_000
        + b"l"
    )


HOSTILE = {  # name of the file -> content that asks for far more memory or time than it is large
    "images sizes that lie": lambda: idx_header(2**32 - 1, 28, 28) + bytes(784),
    "images 3 GB announced": lambda: idx_header(4_000_000, 28, 28) + bytes(784),
    "images.gz 3 GB announced": lambda: gzip.compress(idx_header(4_000_000, 28, 28) + bytes(784)),
    "images.gz bomb behind the end": lambda: gzip.compress(idx_header(1, 28, 28) + bytes(100 * MEGA), 9),
    "images.gz bomb in many parts": lambda: gzip.compress(idx_header(1, 28, 28) + bytes(784))
    + gzip.compress(bytes(4 * MEGA), 9) * 100,
    "images.gz endless file name": lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * (2 * MEGA),
    "arrays.pkl of the same bytes": same_bytes,
    "keys.pkl that collide": lambda: pickled(b"(" + numbers_that_collide(300_000) + b"d"),
    "product.pkl without end": lambda: pickled(
        b"cnumpy.core.numeric\n_frombuffer\n(C\x04aaaacnumpy\ndtype\n(X\x02\0\0\0f4K\0K\x01tR("
        + b"\x8a\xff" + b"\x7f" * 255 + b"q\x05" + b"h\x05" * 200_000 + b"tX\x01\0\0\0CtR"
    ),
    "dicts.pkl by the million": lambda: pickled(b"(" + b"}" * (2 * MEGA) + b"l"),
    "nested.pkl": lambda: pickled(b"(" * 100_000 + b"l" * 100_000),
    "itself.pkl": lambda: pickled(b"]q\x01h\x01a"),
    "bomb.npz": lambda: zipped({"W1.npy": npy((25 * MEGA,), content=bytes(100 * MEGA))}),
    "shape.npz": lambda: zipped({"W1.npy": npy((2**31, 2**31)), "b1.npy": npy((2**40,))}),
    "text.npz": lambda: zipped({"config.npy": npy((), "<U500000000", b"aaaa")}),
    "objects.npz": lambda: zipped({"config.npy": npy((), "|O", pickle.dumps(Runs()))}),
    "not-zip.npz": lambda: pickle.dumps(Runs()),
    "nested.json": lambda: b"[" * (4 * MEGA),
    "digits.json": lambda: b'{"lr": ' + b"9" * (4 * MEGA) + b"}",
    "set.csv of one wide row": lambda: b"0," * (4 * MEGA),
    "set.csv of many columns": lambda: (b"0," * 1000 + b"0\n") * 1000 + b"0," * (2 * MEGA),
    "set.csv of a long label": lambda: b"cat,1,2,3,4\n" * 9000 + b"a" * MEGA + b",1,2,3,4",
    "set.csv of a quoted field": lambda: b"label,a,b\n" + b'"' + b"1,2\n" * MEGA,
    "set.csv of a long number": lambda: b"1," + b"9" * (4 * MEGA) + b",3,4,5\n",
    "set.csv of a long line of words": lambda: b"label" + b",word" * MEGA + b"\n1,2,3\n",
    "set.npz bomb": lambda: zipped({"X.npy": npy((100 * MEGA,), "|u1", bytes(100 * MEGA))}),
    "set.npz shapes that lie": lambda: zipped({"X.npy": npy((2**31, 2**31)), "y.npy": npy((2**40,))}),
    "set.npz of objects": lambda: zipped({"X.npy": npy((), "|O", pickle.dumps(Runs()))}),
    "set.npy of objects": lambda: npy((), "|O", pickle.dumps(Runs())),
    "set.npy of nothing": lambda: npy((2**40, 0)),
    "set.pkl that runs": lambda: pickle.dumps(Runs()),
    "set.pkl of the same bytes": same_bytes,
    "set.pkl of nested lists": lambda: b"(" * 100_000 + b"l" * 100_000 + b".",
    "set.pkl of itself": lambda: b"\x80\x04]\x94h\0a.",
    "set.pkl of a list in itself": lambda: b"\x80\x04}\x94(X\1\0\0\0x]\x94("
    + b"h\1" * 50_000 + b"eX\1\0\0\0yh\1u.",
    "set.pkl of a long label": lambda: pickle.dumps({"y": ["a" * MEGA, *["b"] * 90_000]}),
    "quoted.csv": lambda: b'"' + b"a" * (8 * MEGA),
    "digits.csv": lambda: b"epoch\n" + b"9" * 100_000,
}  # fmt: skip
READ = """
import os, pathlib, sys
import data, nn

def peak_memory():
    if not os.path.exists("/proc/self/status"):
        return 0
    return 1024 * int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

path = sys.argv[1]
load = {"pkl": nn.load_params, "npz": nn.load_params, "json": data.load_json, "csv": data.load_rows}
before = peak_memory()
try:
    own = load.get(path.split(".")[-1], data.load_idx)
    (data.load_dataset if os.path.basename(path).startswith("set.") else own)(path)
except (ValueError, OSError) as error:
    print(f"{peak_memory() - before} {error}")
"""


class Runs:
    """Unpickled by Python, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_take_no_memory_or_time(tmp_path, name):
    kind = name.split()[0]
    path = tmp_path / kind
    path.write_bytes(HOSTILE[name]())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ, str(path)],
        capture_output=True, text=True, cwd=tmp_path, timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    grown, error = done.stdout.split(" ", 1)
    assert str(path) in error and error.count("\n") == 1
    assert float(grown) < 50e6 + 10 * path.stat().st_size, error
    assert not (tmp_path / "it-ran").exists()
