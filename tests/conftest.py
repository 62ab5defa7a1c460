"""What the tests share: small data sets as IDX files, scripts run as a user would, real data."""

import gzip
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import data

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write_dataset(folder, train=60, test=20, shape=(4, 5), classes=3, seed=0, zipped=False):
    """Write a learnable data set as four IDX files; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 200, (classes, *shape))
    for part, size in (("train", train), ("test", test)):
        labels = (np.arange(size) % classes).astype(np.uint8)
        images = (patterns[labels] + rng.integers(0, 56, (size, *shape))).astype(np.uint8)
        images[1:, 0] = 0  # as in MNIST, some pixels are blank in nearly all images
        for kind, array in (("images", images), ("labels", labels)):
            content = data.idx_bytes(array)
            name = data.FILES[f"{part}_{kind}"]
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1)) if zipped else (
                folder / name
            ).write_bytes(content)
    return folder


@pytest.fixture
def small_set(tmp_path):
    return write_dataset(tmp_path / "small")


@pytest.fixture
def real_data():
    """The folder with the real data sets; without it the test is skipped, or fails if it may not be."""
    folder = pathlib.Path(os.environ.get("DATA_DIR") or ROOT / "datasets")
    if not (folder if folder.is_absolute() else ROOT / folder).joinpath("mnist").is_dir():
        if os.environ.get("REQUIRE_REAL_DATA") == "1":
            pytest.fail(f"REQUIRE_REAL_DATA=1, but there is no mnist in {folder}")
        pytest.skip(f"no real MNIST in {folder}: run train.py once, or set DATA_DIR")
    return folder if folder.is_absolute() else ROOT / folder


def run(script, *arguments, cwd=ROOT, check=0, **environment):
    """Run a script in a process of its own, without a network; returns the finished process."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        timeout=600,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


def is_one_clear_line(text, *words):
    """Whether an error is a single line without a traceback that says all of the words."""
    return text.count("\n") == 1 and "Traceback" not in text and all(word in text for word in words)
