"""Damaged and hostile data sets of every form."""

import gzip
import pickle

import numpy as np
import pytest
import test_predict
from faults import (
    FEW,
    MANY,
    MEGA,
    Runs,
    check_hostile,
    count_fine,
    damaged,
    npy,
    same_bytes,
    use_dataset,
    zipped,
)
from PIL import Image
from test_datasets import idx

import data


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
    (folder / "qmnist-train-labels-idx2-int").write_bytes(idx(table, 12))


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

    fine = count_fine(cases(), use_dataset)
    assert fine < count
    assert fine or form in ("csv.gz", "npz", "npz compressed"), "these have checksums"


@pytest.mark.parametrize("count", [20, MANY])
@pytest.mark.parametrize("name", test_predict.FORMS)
def test_damaged_new_images_of_every_form(tmp_path, name, count):
    rng = np.random.default_rng([7, len(name), count])
    path = tmp_path / name
    test_predict.FORMS[name](path, rng.integers(0, 256, (20, 4, 5), dtype=np.uint8))
    honest = path.read_bytes()

    def use(content):
        path.write_bytes(content)
        assert data.load_images(path, (4, 5)).shape[1:] == (20,)

    count_fine((damaged(honest, rng) for _ in range(count)), use)


HOSTILE = {  # content that asks for far more memory or time than it is large
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
}  # fmt: skip


@pytest.mark.parametrize("start", ["set", pytest.param("new", marks=pytest.mark.extended)])
def test_hostile_data_sets_and_new_images_take_no_memory_or_time(tmp_path, start):
    check_hostile(tmp_path, {name.replace("set", start, 1): make for name, make in HOSTILE.items()})
