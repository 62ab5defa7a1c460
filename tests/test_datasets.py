"""Data sets in every form that people have: each row is a file of the genuine form."""

import gzip
import io
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
from conftest import is_one_clear_line, run, write_dataset
from PIL import Image

import data
import nn

RNG = np.random.default_rng(0)
LABELS = np.arange(30) % 3
IMAGES = RNG.integers(0, 256, (30, 4, 5), dtype=np.uint8)
FLAT = IMAGES.reshape(30, 20)
TEST_IMAGES, TEST_LABELS = IMAGES[:6], LABELS[:6]


def load(path, **more):
    return data.load_dataset(str(path), download=False, **more)


def check(dataset, images=IMAGES, labels=LABELS, test=6, names=("0", "1", "2")):
    """A data set has these training images, and the first of them as test images."""
    for part, count in (("train", len(images)), ("test", test)):
        got = dataset[f"{part}_images"]
        assert got.dtype == np.uint8 and dataset[f"{part}_labels"].dtype == np.uint8
        np.testing.assert_array_equal(got.reshape(count, *images.shape[1:]), images[:count])
        np.testing.assert_array_equal(dataset[f"{part}_labels"], labels[:count])
    assert dataset["image_shape"] == images.shape[1:] and dataset["class_names"] == list(names)
    assert dataset["sha256"] and all(len(digest) == 64 for digest in dataset["sha256"].values())
    assert isinstance(dataset["name"], str) and dataset["title"]


# --- CSV --------------------------------------------------------------------------------------


def csv_text(labels, images, header=None, last=False):
    rows = np.reshape(images, (len(images), -1)).tolist()
    if labels is not None:
        rows = [[*row, label] if last else [label, *row] for label, row in zip(labels, rows)]
    lines = [",".join(map(str, row)) for row in rows]
    return "\n".join([header, *lines] if header else lines) + "\n"


PIXELS = ",".join(f"pixel{i}" for i in range(20))
CSV_FILES = {  # name -> what is in it
    "kaggle.csv": csv_text(LABELS, IMAGES, f"label,{PIXELS}"),
    "rashid.csv": csv_text(LABELS, IMAGES, "label," + ",".join(f"{r}x{c}" for r in "1234" for c in "12345")),
    "pjreddie.csv": csv_text(LABELS, IMAGES),
    "quoted.csv": csv_text(LABELS, IMAGES, '"label",' + ",".join(f'"p {i}"' for i in range(20))),
    "last.csv": csv_text(LABELS, IMAGES, f"{PIXELS},Label", last=True),
    "semicolon.csv": csv_text(LABELS, IMAGES, f"label,{PIXELS}").replace(",", ";"),
    "windows.csv": "\ufeff" + csv_text(LABELS, IMAGES, f"label,{PIXELS}").replace("\n", "\r\n"),
    "zipped.csv.gz": csv_text(LABELS, IMAGES, f"label,{PIXELS}"),
    "zipped-without-gz.csv": csv_text(LABELS, IMAGES, f"label,{PIXELS}"),
}


@pytest.mark.parametrize("name", CSV_FILES)
def test_a_csv_file(tmp_path, name):
    content = CSV_FILES[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if "zipped" in name else content)
    dataset = load(tmp_path / name, size="4x5")
    check(dataset, test=0)
    assert dataset["title"] == name.split(".")[0]


@pytest.mark.parametrize("names", [("train.csv", "test.csv"), ("mnist_train.csv", "mnist_test.csv.gz")])
def test_a_folder_of_csv_files(tmp_path, names):
    for name, count in zip(names, (30, 6)):
        content = csv_text(LABELS[:count], IMAGES[:count], f"label,{PIXELS}").encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    check(load(tmp_path, size="4x5"))


def test_a_test_set_alone_is_a_data_set(tmp_path):
    (tmp_path / "mnist_test.csv").write_text(csv_text(LABELS, IMAGES))
    check(load(tmp_path / "mnist_test.csv", size="4x5"), test=0)


def test_kaggles_folder_whose_test_images_have_no_labels(tmp_path, capsys):
    (tmp_path / "train.csv").write_text(csv_text(LABELS, IMAGES, f"label,{PIXELS}"))
    (tmp_path / "test.csv").write_text(csv_text(None, FLAT, PIXELS))
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n2,0\n")
    check(load(tmp_path, size="4x5"), test=0)
    assert is_one_clear_line(capsys.readouterr().err, "test images have no labels")


def test_words_and_fractions_in_a_csv_file(tmp_path, capsys):
    words = np.array(["dog", "cat", "a bird"])[LABELS]
    square = IMAGES[:, :4, :4]
    (tmp_path / "x.csv").write_text(csv_text(words, np.round(square / 255, 4)))
    check(load(tmp_path / "x.csv"), square, 2 - LABELS, test=0, names=["a bird", "cat", "dog"])
    assert is_one_clear_line(capsys.readouterr().err, "from 0 to 1", "255")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["no rows"]),
        ("label,p0,p1\n", ["x.csv"]),
        ("label\n1\n", ["x.csv"]),
        ("1,2,3,4,5\n2,1,2,3\n", ["line 2", "4 fields", "not 5"]),
        ("label,a,b,c,d\n1,2,3,4,5\n2,1,oh,3,4\n", ["line 3", "'oh'"]),
        ("label,a,b,c,d\n1,2,3,4,5\n\n2,1,,3,4\n", ["line 4", "''"]),
        ("1,2,3,4,5\n2,1,nan,3,4\n", ["train image 2", "nan"]),
        ("1,2,3,4,5\n2,1,-7,3,4\n", ["train image 2", "-7"]),
        ("1,2,3,4,5\n2,1,70000,3,4\n", ["train image 2", "70000"]),
        ("1,2,3,4,5\n,1,2,3,4\n", ["labels", "image 2"]),
        ("1,2,3\n2,1,2\n", ["2 numbers", "--size"]),
        ("x" * 200 + ",2,3,4,5\n", ["200 characters"]),
        ("\n".join(f"{i},1,2,3,4" for i in range(5000)), ["5,000 different labels"]),
    ],
)
def test_damaged_csv_files_are_named_with_their_line(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError) as error:
        load(tmp_path / "x.csv")
    assert is_one_clear_line(f"{error.value}\n", "x.csv", *words)


# --- NumPy's files and pickles ----------------------------------------------------------------

NPZ_NAMES = [
    ["x_train", "y_train", "x_test", "y_test"],  # Keras's mnist.npz
    ["train_images", "train_labels", "test_images", "test_labels"],  # ours, MedMNIST's
]


@pytest.mark.parametrize("names", NPZ_NAMES)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file(tmp_path, names, save):
    save(tmp_path / "mnist.npz", **dict(zip(names, (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS))))
    check(load(tmp_path / "mnist.npz"))
    check(load(tmp_path))


def test_an_npz_file_of_x_and_y(tmp_path):
    np.savez(tmp_path / "mine.npz", X=IMAGES[..., None], y=LABELS[:, None], author="me")
    check(load(tmp_path / "mine.npz"), test=0)


def test_an_npz_file_that_is_mostly_blank(tmp_path):
    blank = np.zeros((300, 28, 28), np.uint8)
    np.savez_compressed(tmp_path / "x.npz", X=blank, y=np.arange(300) % 3)
    check(load(tmp_path / "x.npz"), blank, np.arange(300) % 3, test=0)


def test_kuzushijis_npz_files(tmp_path):
    arrays = {
        "train-imgs": IMAGES,
        "train-labels": LABELS,
        "test-imgs": TEST_IMAGES,
        "test-labels": TEST_LABELS,
    }
    for name, array in arrays.items():
        np.savez_compressed(tmp_path / f"kmnist-{name}.npz", array)
    check(load(tmp_path))


def test_a_folder_of_npy_files_with_a_validation_set_of_its_own(tmp_path):
    arrays = {"X_train": IMAGES, "y_train": LABELS, "X_val": IMAGES[:9], "y_val": LABELS[:9]}
    arrays |= {"X_test": TEST_IMAGES, "y_test": TEST_LABELS}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "mean.npy", IMAGES.mean())
    dataset = load(tmp_path)
    check(dataset)
    np.testing.assert_array_equal(dataset["val_images"], FLAT[:9])
    np.testing.assert_array_equal(dataset["val_labels"], LABELS[:9])
    assert set(dataset["sha256"]) == {
        f"{p}_{kind}" for p in ("train", "val", "test") for kind in ("images", "labels")
    }
    done = run("train.py", "--dataset", tmp_path, "--out", tmp_path / "run", "--epochs", 2, "--hidden", 3)
    assert "30 training, 9 validation, 6 test images" in done.stdout
    run("train.py", "--out", tmp_path / "run", "--resume", "--epochs", 3)
    whole = run("train.py", "--dataset", tmp_path, "--out", tmp_path / "all", "--epochs", 1, "--val-size", 0)
    assert "39 training, 6 test images" in whole.stdout


def python_2_pickle(images, labels, protocol=2):
    """What Python 2's cPickle wrote for Nielsen's ((x, y), (x, y), (x, y)), here of any number of pairs."""

    def text(content):
        return b"T" + struct.pack("<I", len(content)) + content

    def array(values, kind):
        content = np.ascontiguousarray(values).tobytes()
        dtype = (
            b"cnumpy\ndtype\n(U\x02"
            + kind
            + b"K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values.shape) + b"t"
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        return start + b"(K\x01" + shape + dtype + b"\x89" + text(content) + b"tb"

    x, y = array(images, b"f4"), array(labels, b"i8")
    return x, y


def nielsens(tmp_path, divisor):
    images = (IMAGES[:, :, :4].reshape(30, 16) / np.float32(divisor)).astype("<f4")
    parts = [(images, LABELS), (images[:9], LABELS[:9]), (images[:6], LABELS[:6])]
    pairs = [b"(" + b"".join(python_2_pickle(x, y.astype("<i8"))) + b"t" for x, y in parts]
    content = b"\x80\x02(" + b"".join(pairs) + b"t."
    expected = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(expected[0][0], images)
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(content))
    return path


@pytest.mark.parametrize("divisor", [255, 256])
def test_nielsens_pickle_of_python_2(tmp_path, divisor, capsys):
    dataset = load(nielsens(tmp_path, divisor))
    check(dataset, IMAGES[:, :, :4])
    assert len(dataset["val_images"]) == 9
    assert is_one_clear_line(capsys.readouterr().err, "0 ... 255")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickled_dict(tmp_path, protocol):
    content = {
        "train_img": FLAT,
        "train_label": LABELS,
        "test_img": TEST_IMAGES.reshape(6, 20),
        "test_label": TEST_LABELS,
    }
    (tmp_path / "mnist.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    check(load(tmp_path / "mnist.pkl", size="4x5"))


def test_a_pickled_dict_of_python_2_in_text(tmp_path):
    array = pickle.dumps(FLAT, protocol=2)[2:-1]  # its bytes are a text that is encoded
    labels = "(" + "".join(f"I{label}\n" for label in LABELS) + "l"
    content = b"(S'train_img'\n" + array + b"S'train_label'\n" + labels.encode() + b"d."
    (tmp_path / "mnist.pkl").write_bytes(content)
    check(load(tmp_path / "mnist.pkl", size="4x5"), test=0)


def test_a_pickle_is_never_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("it ran",)

    for number, value in enumerate([Attack(), {"x": Attack(), "y": LABELS}, ((Attack(), LABELS),) * 3]):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match=path.name):
            load(path)


@pytest.mark.parametrize(
    "value", [5, [], (1, 2), ((1, 2), (3, 4)), {"x": FLAT}, {"x": 1, "y": 2}, {1: 2}, "a"]
)
def test_other_pickles_are_named(tmp_path, value):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(tmp_path / "x.pkl")
    assert is_one_clear_line(f"{error.value}\n", "x.pkl")


# --- IDX --------------------------------------------------------------------------------------


def idx(array, kind):
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("kind, dtype", data.IDX_TYPES.items())
def test_every_element_type_of_idx(tmp_path, kind, dtype):
    pixels = IMAGES // 2 if dtype == "i1" else IMAGES
    factor = 257 if dtype == ">i4" else 1 / 255 if "f" in dtype else 1
    for part in data.FILES:
        array = pixels * np.float64(factor) if part.endswith("images") else LABELS
        (tmp_path / data.FILES[part]).write_bytes(idx(array.astype(dtype), kind))
    check(load(tmp_path), pixels, test=30)


KINDS = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]
IDX_NAMES = {
    "mnist": [f"{kind}-ubyte" for kind in KINDS],
    "dotted": [f"{kind}-ubyte".replace("-idx", ".idx") for kind in KINDS],
    "emnist": [f"emnist-letters-{kind}-ubyte".replace("t10k", "test") for kind in KINDS],
    "qmnist": [f"qmnist-{kind}-ubyte".replace("t10k", "test").replace("1-ubyte", "2-int") for kind in KINDS],
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", IDX_NAMES)
def test_idx_files_under_all_their_names(tmp_path, kind, zipped):
    arrays = [IMAGES, LABELS.astype(np.uint8), TEST_IMAGES, TEST_LABELS.astype(np.uint8)]
    for name, array in zip(IDX_NAMES[kind], arrays):
        content = data.idx_bytes(array)
        if name.endswith("int"):
            content = idx(np.column_stack([array, RNG.integers(0, 4000, (len(array), 7))]).astype(">i4"), 12)
        path = tmp_path / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    dataset = load(tmp_path)
    check(dataset)
    assert set(dataset["sha256"]) == set(data.FILES)


def test_one_of_emnists_data_sets_in_a_folder_of_all(tmp_path):
    for name, count in (("letters", 30), ("digits", 9)):
        arrays = [IMAGES[:count], LABELS[:count].astype(np.uint8), TEST_IMAGES, TEST_LABELS.astype(np.uint8)]
        for file, array in zip(IDX_NAMES["emnist"], arrays):
            path = tmp_path / "EMNIST" / "raw" / file.replace("letters", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.idx_bytes(array))
    check(load(tmp_path / "EMNIST" / "raw" / "emnist-letters"))
    check(data.load_dataset("emnist-letters", tmp_path))
    check(data.load_dataset("emnist-digits", tmp_path), IMAGES[:9], LABELS[:9])
    with pytest.raises(ValueError, match=r"more than one data set.*emnist-digits.*emnist-letters"):
        load(tmp_path / "EMNIST" / "raw")


def test_a_folder_below_data_dir(tmp_path):
    write_dataset(tmp_path / "kmnist")
    write_dataset(tmp_path / "KMNIST2" / "raw")
    for name in ("kmnist", "kmnist2"):
        dataset = data.load_dataset(name, tmp_path)
        assert (dataset["name"], dataset["title"]) == (name, name) and len(dataset["train_images"]) == 60
    run("train.py", "--dataset", "kmnist", "--data-dir", tmp_path, "--epochs", 1, "--out", tmp_path / "run")
    run("test.py", tmp_path / "run", "--data-dir", tmp_path)
    assert "kmnist" in run("test.py", tmp_path / "run", "--data-dir", tmp_path / "no", check=2).stderr


def test_torchvisions_folder_of_mnist(tmp_path, monkeypatch):
    source = write_dataset(tmp_path / "MNIST" / "raw")
    sums = load(source)["sha256"]
    monkeypatch.setitem(data.SOURCES, "mnist", {**data.SOURCES["mnist"], "sha256": sums})
    dataset = data.load_dataset("mnist", tmp_path, download=False)
    assert dataset["title"] == "MNIST" and len(dataset["class_names"]) == 10


def test_transposed_images(tmp_path):
    write_dataset(tmp_path)
    plain, turned = load(tmp_path), load(tmp_path, transpose=True)
    assert (plain["image_shape"], turned["image_shape"]) == ((4, 5), (5, 4))
    pictures = plain["train_images"].reshape(-1, 4, 5), turned["train_images"].reshape(-1, 5, 4)
    np.testing.assert_array_equal(pictures[0].swapaxes(1, 2), pictures[1])


# --- pictures ---------------------------------------------------------------------------------


def save_pictures(folder, images=IMAGES, labels=LABELS, names="abc", suffix="png", form=Image.fromarray):
    for number, (image, label) in enumerate(zip(images, labels)):
        path = folder / names[label] / f"{number:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        form(image).save(path)


def test_pictures_in_a_folder_for_each_class(tmp_path):
    save_pictures(tmp_path / "train")
    save_pictures(tmp_path / "test", TEST_IMAGES)
    save_pictures(tmp_path / "val", IMAGES[:9])
    (tmp_path / "train" / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "a" / "._000.png").write_bytes(b"x")
    (tmp_path / "train" / "a" / "000.png").rename(tmp_path / "train" / "a" / os.fsdecode(b"000\xff.png"))
    (tmp_path / "train" / "empty").mkdir()
    order = np.argsort(LABELS, kind="stable")
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset["train_images"], FLAT[order])
    np.testing.assert_array_equal(dataset["train_labels"], LABELS[order])
    assert dataset["class_names"] == ["a", "b", "c"] and dataset["image_shape"] == (4, 5)
    assert (len(dataset["val_images"]), len(dataset["test_images"])) == (9, 6)
    again = load(tmp_path)["sha256"]
    assert dataset["sha256"] == again
    shutil.move(tmp_path / "train" / "a" / os.fsdecode(b"000\xff.png"), tmp_path / "train" / "b" / "000.png")
    assert load(tmp_path)["sha256"] != again


@pytest.mark.parametrize(
    "form, suffix",
    [
        (Image.fromarray, "bmp"),
        (Image.fromarray, "PNG"),
        (lambda image: Image.fromarray(image).convert("RGB"), "png"),
        (lambda image: Image.fromarray(image).convert("RGBA"), "png"),
        (lambda image: Image.fromarray(image * np.uint16(257)), "png"),
        (Image.fromarray, "pgm"),
        (Image.fromarray, "tif"),
    ],
)
def test_pictures_of_any_kind_become_grey(tmp_path, form, suffix):
    save_pictures(tmp_path, suffix=suffix, form=form)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset["train_images"], FLAT[np.argsort(LABELS, kind="stable")])
    assert len(dataset["test_images"]) == 0


def test_colour_becomes_grey(tmp_path):
    colours = np.zeros((2, 3, 3, 3), np.uint8)
    colours[0, ..., 0] = colours[1, ..., 1] = 255
    save_pictures(tmp_path, colours, [0, 1])
    assert load(tmp_path)["train_images"][:, 0].tolist() == [76, 150]


def test_pictures_of_several_sizes_become_one(tmp_path):
    save_pictures(tmp_path, [IMAGES[0], IMAGES[1].repeat(2, axis=0)], [0, 1])
    with pytest.raises(ValueError, match=r"001\.png has 8x5 pixels.*000\.png 4x5.*--size"):
        load(tmp_path)
    dataset = load(tmp_path, size="4x5")
    np.testing.assert_array_equal(dataset["train_images"], FLAT[:2])
    assert load(tmp_path, size="28x14")["image_shape"] == (28, 14)


def test_what_test_py_writes_beside_pictures_is_no_data(tmp_path):
    save_pictures(tmp_path)
    before = data.load_dataset(tmp_path)
    for suffix in (".seen.png", ".why.png"):
        shutil.copy(next(tmp_path.glob("a/*.png")), tmp_path / "a" / f"1.png{suffix}")
    assert data.load_dataset(tmp_path)["sha256"] == before["sha256"]


def test_files_beside_pictures_that_are_none_are_named(tmp_path, capsys):
    save_pictures(tmp_path)
    for name in ("a/1.heic", "only/1.svg", "a/._1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert load(tmp_path)["class_names"] == ["a", "b", "c"]
    assert is_one_clear_line(capsys.readouterr().err, tmp_path, "2 files", "1.heic")


def test_folders_named_by_numbers_are_in_the_order_of_numbers(tmp_path):
    save_pictures(tmp_path, names=["10", "9", "2"])
    assert load(tmp_path)["class_names"] == ["2", "9", "10"]


def test_a_class_may_be_called_train(tmp_path):
    save_pictures(tmp_path, names=["bus", "car", "train"])
    assert load(tmp_path)["class_names"] == ["bus", "car", "train"]


def test_a_damaged_picture_is_named(tmp_path):
    save_pictures(tmp_path)
    (tmp_path / "b" / "001.png").write_bytes((tmp_path / "b" / "001.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"b.001\.png"):
        load(tmp_path)


def test_folders_without_data_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=r"lacks the training images.*X_train"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt is no known kind"):
        load(tmp_path / "notes.txt")


# --- labels and pixels ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, names",
    [
        (LABELS, ["0", "1", "2"]),
        (LABELS + 1, ["1", "2", "3"]),
        (np.array([0, 1, 255])[LABELS], ["0", "1", "255"]),
        (np.array([-1, 0, 10])[LABELS], ["-1", "0", "10"]),
        (LABELS.astype(np.float32), ["0", "1", "2"]),
        (LABELS.astype(">i4"), ["0", "1", "2"]),
        (LABELS.astype(np.uint64) + 2**60, [str(2**60 + i) for i in range(3)]),
        (LABELS.astype(str), ["0", "1", "2"]),
        (np.array([9, 10, 11])[LABELS].astype(str), ["9", "10", "11"]),
        (np.array(["01", "1", "10"])[LABELS], ["01", "1", "10"]),
        (np.array(["a", "b", "ß"])[LABELS], ["a", "b", "ß"]),
        (np.array(["a", "b", "c"])[LABELS].astype(object), ["a", "b", "c"]),
        (np.array([b"a", b"b", b"c"])[LABELS], ["a", "b", "c"]),
        (np.eye(3)[LABELS], ["0", "1", "2"]),
        (LABELS[:, None], ["0", "1", "2"]),
        (["a", "b", "c"] * 10, ["a", "b", "c"]),
    ],
)
def test_classes_are_the_labels_that_occur_in_order(labels, names):
    check(data.as_dataset(IMAGES, labels, TEST_IMAGES, labels[:6]), names=names)


def test_more_than_256_classes(tmp_path):
    labels = np.arange(600) % 300
    np.savez(tmp_path / "many.npz", X=RNG.integers(0, 256, (600, 3, 3), dtype=np.uint8), y=labels)
    dataset = load(tmp_path / "many.npz")
    np.testing.assert_array_equal(dataset["train_labels"], labels)
    assert dataset["train_labels"].dtype == np.uint16 and len(dataset["class_names"]) == 300
    flags = ("--dataset", tmp_path / "many.npz", "--hidden", 4, "--epochs", 2, "--out", tmp_path / "run")
    assert "-300, " in run("train.py", *flags).stdout
    run("train.py", "--resume", "--epochs", 3, "--out", tmp_path / "run")
    run("test.py", tmp_path / "run")


@pytest.mark.parametrize(
    "labels, words",
    [
        (LABELS + 0.5, ["image 1 is 0.5"]),
        (np.where(LABELS == 2, np.nan, LABELS), ["image 3 is nan"]),
        (np.zeros((30, 2)), ["(30, 2)"]),
        (LABELS[:29], ["30 training images but 29 labels"]),
        (np.array(["a", "", "b"])[LABELS], ["image 2"]),
        (LABELS.astype(complex), ["complex128"]),
        (None, ["labels", "()"]),
    ],
)
def test_labels_that_are_none(labels, words):
    with pytest.raises(ValueError) as error:
        data.as_dataset(IMAGES, labels, name="mine")
    assert is_one_clear_line(f"{error.value}\n", "mine", *words)


def test_class_names_beside_the_data(tmp_path):
    np.savez(tmp_path / "x.npz", X=IMAGES, y=LABELS + 1)
    (tmp_path / "classes.txt").write_text("Äpfel\nb\n\nc\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "x.npz"):
        check(load(path), test=0, names=["Äpfel", "b", "c"])
    (tmp_path / "classes.txt").write_text("zero\none\ntwo\nthree\nfour")
    dataset = load(tmp_path)
    assert dataset["class_names"][1:4] == ["one", "two", "three"] and set(dataset["train_labels"]) == {
        1,
        2,
        3,
    }
    for text in ("a\nb", "a\nb\nb", "a\nb\nb\nc"):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(ValueError, match=r"x\.npz|named|called b"):
            load(tmp_path)


@pytest.mark.parametrize(
    "images, white",
    [
        (IMAGES / 255, 1),
        (IMAGES / np.float32(255), 1),
        (IMAGES / 256, 0.996094),
        (IMAGES * np.uint16(257), 65535),
        (IMAGES.astype(np.int64), None),
        (IMAGES.astype(np.float64), None),
        (IMAGES[..., None], None),
        (IMAGES[:, None], None),
    ],
)
def test_pixels_are_brought_to_bytes_and_a_line_says_so(images, white, capsys):
    check(data.as_dataset(images, LABELS, images[:6], LABELS[:6]))
    err = capsys.readouterr().err
    assert is_one_clear_line(err, f"from 0 to {white:g}", "0 ... 255") if white else err == ""


def test_scikit_learns_digits(capsys):
    images = RNG.integers(0, 17, (30, 64)).astype(np.float64)  # load_digits(return_X_y=True)
    dataset = data.as_dataset(images, LABELS)
    np.testing.assert_array_equal(dataset["train_images"], np.rint(images * 255 / 16))
    assert dataset["image_shape"] == (8, 8) and "16" in capsys.readouterr().err
    names = np.array(["zero", "one", "two"])  # as load_digits().target_names
    dataset = data.as_dataset(images, LABELS, class_names=names, size="4x16")
    assert dataset["image_shape"] == (4, 16) and dataset["class_names"] == ["zero", "one", "two"]
    bits = np.eye(16, dtype=bool)
    white = np.uint8(255 * bits).reshape(16, 4, 4)
    check(data.as_dataset(bits, np.arange(16) % 3), white, np.arange(16) % 3, test=0)
    faint = data.as_dataset(np.zeros((16, 16), np.uint8), np.arange(16) % 3, bits / 2, np.arange(16) % 3)
    assert faint["train_images"].max() == 0 and faint["test_images"].max() == 128


@pytest.mark.parametrize(
    "images, words",
    [
        (IMAGES.astype(np.int16) - 1, ["train image", "-1"]),
        (np.where(IMAGES > 250, np.nan, IMAGES), ["train image", "nan"]),
        (IMAGES * 1000.0, ["train image"]),
        (np.zeros((30, 4, 4, 3), np.uint8), ["(30, 4, 4, 3)"]),
        (np.zeros((30, 7), np.uint8), ["7 numbers", "--size"]),
        (np.zeros(30), ["(30,)"]),
        (np.array(["a"] * 16).reshape(4, 2, 2), ["numbers"]),
        (IMAGES[:0], ["no training images"]),
        (IMAGES.astype(complex), ["complex"]),
    ],
)
def test_images_that_cannot_be_meant(images, words):
    with pytest.raises(ValueError) as error:
        data.as_dataset(images, LABELS[: len(images)], name="mine")
    assert is_one_clear_line(f"{error.value}\n", "mine", *words)


def test_a_size_that_does_not_fit():
    with pytest.raises(ValueError, match="--size"):
        data.as_dataset(FLAT, LABELS, size=(4, 6))
    with pytest.raises(ValueError, match=r"4x5 pixels.*5x4"):
        data.as_dataset(IMAGES, LABELS, size=(5, 4))
    for text in ("28", "28x", "0x5", "28x28x1", "-1x3", 28, "28X28", "٣x٣"):
        with pytest.raises(ValueError, match="rows x columns"):
            data.parse_size(text)


def test_floats_from_0_to_1_are_not_divided_again():
    steps = data.fit_steps(["scale"], FLAT, (4, 5))
    for use in (lambda x: data.preprocess(x, steps), lambda x: data.fit_steps(["scale"], x, (4, 5))):
        with pytest.raises(ValueError, match=r"uint8.*float64.*as_dataset"):
            use(FLAT / 255)


# --- a network and its data set ---------------------------------------------------------------


def test_the_classes_of_a_network_are_told_by_their_names(capsys):
    dataset = data.as_dataset(IMAGES, np.array(["a", "b", "c"])[LABELS])
    for names, places in ((["c", "x", "b", "a"], [3, 2, 0]), (["x", "y", "z"], [0, 1, 2])):
        got = data.with_classes(dataset, names)
        np.testing.assert_array_equal(got["train_labels"], np.array(places)[LABELS])
        assert got["class_names"] == names
        assert ("a for x" in capsys.readouterr().err) == (places == [0, 1, 2])  # in order is a guess
    for names in (["a", "b"], ["x", "y"]):
        with pytest.raises(ValueError, match="knows no class"):
            data.with_classes(dataset, names)
    numbers = data.as_dataset(IMAGES, np.array([1, 3, 5])[LABELS])
    got = data.with_classes(numbers, list("uvwxyz"))
    np.testing.assert_array_equal(got["train_labels"], np.array([1, 3, 5])[LABELS])


def test_a_run_without_a_test_set_is_judged_on_its_validation_images(tmp_path):
    write_dataset(tmp_path / "set")
    for part in ("images", "labels"):
        (tmp_path / "set" / data.FILES[f"test_{part}"]).unlink()
    flags = ("--dataset", tmp_path / "set", "--val-size", 12, "--epochs", 2)
    done = run("train.py", *flags, "--out", tmp_path / "run")
    assert "48 training, 12 validation images" in done.stdout and " test " not in done.stdout
    assert ",,," in (tmp_path / "run" / "history.csv").read_text().replace(",,", ",,,")
    run("train.py", "--resume", "--epochs", 3, "--out", tmp_path / "run")
    done = run("test.py", tmp_path / "run")
    assert "12 validation images" in done.stdout and is_one_clear_line(
        done.stderr, "no test images", "validation"
    )
    params, config = data.load_run(tmp_path / "run")
    dataset = data.load_dataset_of(config)
    assert dataset["judged"] == "validation images"
    (_, _), (images, labels) = data.split_dataset(dataset, config)
    np.testing.assert_array_equal(dataset["test_images"], images)
    np.testing.assert_array_equal(dataset["test_labels"], labels)
    np.savez(tmp_path / "other.npz", X=IMAGES, y=LABELS)
    other = data.load_dataset_of(config, name=str(tmp_path / "other.npz"))
    assert other["judged"] == "images" and len(other["test_images"]) == 30
    del config["seed"]
    nn.save_params(tmp_path / "run" / "odd.pkl", params, config)
    assert is_one_clear_line(run("test.py", tmp_path / "run" / "odd.pkl", check=2).stderr, "seed")
    run("train.py", *flags[:2], "--val-size", 0, "--epochs", 1, "--out", tmp_path / "no")
    assert is_one_clear_line(run("test.py", tmp_path / "no", check=2).stderr, "--dataset")
    trained = run("train.py", *flags[:2], "--val-size", 0, "--epochs", 1, "--out", tmp_path / "no")
    assert "test.py" not in trained.stdout


def test_size_and_transpose_are_stored_and_used_again(tmp_path):
    (tmp_path / "train.csv").write_text(csv_text(LABELS, IMAGES))
    flags = ("--dataset", tmp_path / "train.csv", "--size", "4x5", "--transpose", "--epochs", 1)
    assert "images of 5x4" in run("train.py", *flags, "--out", tmp_path / "run").stdout
    _, config = data.load_run(tmp_path / "run")
    assert config["size"] == "4x5" and config["transpose"] is True
    assert data.load_dataset_of(config)["image_shape"] == (5, 4)
    run("train.py", "--resume", "--epochs", 2, "--out", tmp_path / "run")
    error = run("train.py", "--resume", "--epochs", 3, "--size", "5x4", "--out", tmp_path / "run", check=2)
    assert is_one_clear_line(error.stderr, "--size")
    error = run("train.py", *flags[:2], "--size", "4", "--out", tmp_path / "no", check=2)
    assert is_one_clear_line(error.stderr, "--size", "28x28")


def test_a_search_takes_them_too(tmp_path):
    arrays = {"x_train": FLAT, "y_train": LABELS, "x_valid": FLAT[:9], "y_valid": LABELS[:9]}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (tmp_path / "x.npz").write_bytes(buffer.getvalue())
    flags = ("--dataset", tmp_path / "x.npz", "--size", "4x5", "--epochs", 1, "--trials", 2, "--workers", 1)
    run("search.py", *flags, "--space", "lr=0.1:0.2", "--out", tmp_path / "search")
    error = run("search.py", *flags[:2], "--space", "size=4x5,5x4", "--out", tmp_path / "no", check=2)
    assert is_one_clear_line(error.stderr, "--space", "--size")
