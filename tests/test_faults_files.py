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
HOSTILE = {  # name of the file -> content that asks for far more memory or time than it is large
    "images sizes that lie": lambda: idx_header(2**32 - 1, 28, 28) + bytes(784),
    "images 3 GB announced": lambda: idx_header(4_000_000, 28, 28) + bytes(784),
    "images.gz 3 GB announced": lambda: gzip.compress(idx_header(4_000_000, 28, 28) + bytes(784)),
    "images.gz bomb behind the end": lambda: gzip.compress(idx_header(1, 28, 28) + bytes(100 * MEGA), 9),
    "images.gz bomb in many parts": lambda: gzip.compress(idx_header(1, 28, 28) + bytes(784))
    + gzip.compress(bytes(4 * MEGA), 9) * 100,
    "images.gz endless file name": lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * (2 * MEGA),
    "arrays.pkl of the same bytes": lambda: pickled(
        b"cnumpy.core.multiarray\nscalar\nq\x01cnumpy\ndtype\n(X\x02\0\0\0u1K\0K\x01tRq\x02"
        + text(MEGA // 2) + b"q\x03c_codecs\nencode\nq\x04("
        + b"h\x04h\x03X\x06\0\0\0latin1\x86R" * 20_000 + b"l"
    ),
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
    load.get(path.split(".")[-1], data.load_idx)(path)
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
