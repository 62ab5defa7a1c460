"""test.py --predict: new images in every form that people have, and several digits on a picture."""

import csv
import gzip
import pathlib
import pickle

import matplotlib
import numpy as np
import pytest
from conftest import ROOT, is_one_clear_line, run, write_dataset
from PIL import Image, ImageDraw, ImageFont
from test_datasets import PIXELS, csv_text, save_pictures

import data
import nn


def train_briefly(dataset, out, *more):
    common = ["--quiet", "--hidden", 8, "--epochs", 20, "--batch-size", 8, "--lr", 0.1]
    run("train.py", *common, "--dataset", dataset, "--out", out, *more)
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a data set of 4x5 and of two runs on it."""
    folder = tmp_path_factory.mktemp("predict")
    dataset = write_dataset(folder / "set")
    for seed in (0, 1):
        train_briefly(dataset, folder / f"run{seed}", "--seed", seed)
    return folder


@pytest.fixture
def images(trained):
    """New images (20, 4, 5), which the first run knows with certainty."""
    return data.load_dataset(str(trained / "set"))["test_images"].reshape(-1, 4, 5)


def estimates(images, *folders):
    """What the runs make of images by the library alone."""
    every = []
    for params, config in map(data.load_run, folders):
        x = data.preprocess(images.reshape(len(images), -1), config["steps"])
        every.append(nn.predict(params, x, config["activation"]))
    return np.mean(every, axis=0)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


PLACES = ",".join(f"{row}x{column}" for row in range(1, 5) for column in range(1, 6))
FORMS = {  # name of a file -> what writes images (20, 4, 5) to it
    "kaggle.csv": lambda path, x: path.write_text(csv_text(None, x, PIXELS)),
    "places.csv": lambda path, x: path.write_text(csv_text(None, x, PLACES)),
    "plain.csv": lambda path, x: path.write_text(csv_text(None, x)),
    "labelled.csv": lambda path, x: path.write_text(csv_text([9] * 20, x, f"label,{PIXELS}")),
    "zipped.csv.gz": lambda path, x: path.write_bytes(gzip.compress(csv_text(None, x, PIXELS).encode())),
    "t10k-images-idx3-ubyte": lambda path, x: path.write_bytes(data.idx_bytes(x)),
    "new-idx3-ubyte.gz": lambda path, x: path.write_bytes(gzip.compress(data.idx_bytes(x))),
    "new.npy": lambda path, x: np.save(path, x),
    "channel.npy": lambda path, x: np.save(path, x[..., None]),
    "rows.npy": lambda path, x: np.save(path, x.reshape(20, 20)),
    "floats.npy": lambda path, x: np.save(path, x / 255),
    "alone.npz": lambda path, x: np.savez(path, x),
    "keras.npz": lambda path, x: np.savez(path, x_train=x[::-1], y_train=np.zeros(20), x_test=x),
    "new.pkl": lambda path, x: path.write_bytes(pickle.dumps({"x": x})),
}


@pytest.mark.parametrize("name", FORMS)
def test_images_without_labels_in_every_form(trained, images, tmp_path, name):
    FORMS[name](tmp_path / name, images)
    answers = tmp_path / "answers.csv"
    done = run("test.py", trained / "run0", "--predict", tmp_path / name, "--out", answers)
    assert ("the labels in" in done.stderr) == (name == "labelled.csv")
    out = done.stdout
    expected = estimates(images, trained / "run0")
    header, *rows = rows_of(answers)
    assert header == ["index", "class", "probability"] and len(rows) == 20
    for number, (row, shares) in enumerate(zip(rows, expected)):
        assert row[:2] == [str(number), str(shares.argmax())]
        assert float(row[2]) == pytest.approx(shares.max(), abs=1e-5)
    assert (
        str(answers) in out and "20 images" in out and all(len(line) < 80 for line in out.split("\n")[2:-2])
    )


def test_kaggles_folder_to_a_submission_in_two_commands(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = rng.integers(0, 200, (3, 4, 5))[labels] + rng.integers(0, 56, (120, 4, 5))
    (tmp_path / "train.csv").write_text(csv_text(labels[:90], images[:90], f"label,{PIXELS}"))
    (tmp_path / "test.csv").write_text(csv_text(None, images[90:], PIXELS))
    submission = tmp_path / "submission.csv"
    train_briefly(tmp_path, tmp_path / "run", "--size", "4x5")
    given = ["--out", submission, "--columns", "ImageId,Label"]
    for new in (tmp_path / "test.csv", tmp_path):  # of the folder those without labels
        run("test.py", tmp_path / "run", "--predict", new, *given)
        expected = [["ImageId", "Label"], *([str(i + 1), str(y)] for i, y in enumerate(labels[90:]))]
        assert rows_of(submission) == expected
        submission.unlink()  # or it would be another data file of the folder


def test_probabilities_of_a_committee_on_standard_output(trained, images, tmp_path):
    np.save(tmp_path / "new.npy", images)
    runs = [trained / "run0", trained / "run1"]
    out = run("test.py", *runs, "--predict", tmp_path / "new.npy", "--probabilities").stdout
    header, *rows = csv.reader(out.splitlines())
    assert header == ["index", "class", "probability", "p_0", "p_1", "p_2"]
    shares = np.array([row[3:] for row in rows], float)
    np.testing.assert_allclose(shares, estimates(images, *runs), atol=1e-5)
    np.testing.assert_allclose([float(row[2]) for row in rows], shares.max(axis=1))


def test_one_image_is_one(trained, images, tmp_path):
    for number, image in enumerate((images[4], images[4].ravel())):
        np.save(tmp_path / f"{number}.npy", image)
        out = run("test.py", trained / "run0", "--predict", tmp_path / f"{number}.npy").stdout
        assert out.splitlines()[1].startswith("0,1,") and out.count("\n") == 2


def test_new_images_are_transposed_as_those_of_the_training(images, trained, tmp_path):
    train_briefly(trained / "set", tmp_path / "run", "--transpose")
    np.save(tmp_path / "new.npy", images)
    out = run("test.py", tmp_path / "run", "--predict", tmp_path / "new.npy").stdout
    assert [row[1] for row in csv.reader(out.splitlines()[1:])] == [str(i % 3) for i in range(20)]


# --- pictures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cats(tmp_path_factory):
    """A folder of 12x12 pictures of two classes, of which neither has edges that are always dark."""
    folder, rng = tmp_path_factory.mktemp("cats"), np.random.default_rng(0)
    labels = np.arange(80) % 2
    patterns = rng.integers(0, 200, (2, 12, 12))
    patterns[1] = 200 - patterns[0]
    pictures = np.uint8(patterns[labels] + rng.integers(0, 56, (80, 12, 12)))
    for part, rows in (("train", slice(60)), ("test", slice(60, 80))):
        save_pictures(folder / "set" / part, pictures[rows], labels[rows], ("cat", "dog"))
    train_briefly(folder / "set", folder / "run")
    return folder


def test_a_folder_of_pictures_of_two_classes_is_trained_judged_and_drawn(cats, tmp_path):
    assert "accuracy 100.00 %" in run("test.py", cats / "run").stdout
    run("visualize.py", cats / "run", "--only", "confusion,fields", "--out", tmp_path / "figures")
    assert (tmp_path / "figures" / "confusion.png").exists()


def test_pictures_are_answered_by_file(cats, tmp_path):
    given = cats / "set" / "test"
    for paths in ([given / "cat"], sorted((given / "cat").iterdir())):
        run("test.py", cats / "run", "--predict", *paths, "--out", tmp_path / "a.csv")
        header, *rows = rows_of(tmp_path / "a.csv")
        assert header == ["file", "class", "probability"]
        assert [row[:2] for row in rows] == [[f"{number:03}.png", "cat"] for number in range(0, 20, 2)]
    out = run("test.py", cats / "run", "--predict", given, "--columns", "id,what").stdout
    assert out.splitlines()[:3] == ["id,what", "000.png,cat", "002.png,cat"] and out.count("dog") == 10


def test_a_picture_twice_as_large_is_the_same(cats, tmp_path):
    for path in (cats / "set" / "test").rglob("*.png"):
        Image.open(path).resize((24, 24), Image.Resampling.NEAREST).save(
            tmp_path / f"{path.parent.name}{path.name}"
        )
    out = run("test.py", cats / "run", "--predict", tmp_path).stdout
    assert all(row[0].startswith(row[1]) for row in list(csv.reader(out.splitlines()))[1:])


def test_a_picture_that_cannot_be_read_has_a_line_and_the_others_go_on(cats, tmp_path):
    (tmp_path / "b.png").write_bytes(b"no picture")
    Image.new("L", (12, 12)).save(tmp_path / "a.png")
    Image.new("L", (12, 12)).save(tmp_path / "c.png")
    done = run("test.py", cats / "run", "--predict", tmp_path, check=2)
    assert is_one_clear_line(done.stderr, "b.png")
    assert [line.partition(",")[0] for line in done.stdout.splitlines()] == ["file", "a.png", "c.png"]


@pytest.fixture(scope="module")
def numbers():
    """Pictures of the numbers 0, 17 and 305, dark on light."""
    fonts = pathlib.Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
    font, pictures = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 80), {}
    for number in ("0", "17", "305"):
        pictures[number] = Image.new("RGB", (60 * len(number) + 60, 160), (245, 240, 230))
        ImageDraw.Draw(pictures[number]).text((40, 30), number, fill=(40, 40, 60), font=font)
    return pictures


def test_several_digits_are_read_as_a_number(numbers, tmp_path):
    run_folder = ROOT / "results" / "reference" / "elastic"
    for number, picture in numbers.items():
        picture.save(tmp_path / f"{number}.png")
    out = run("test.py", run_folder, "--images", tmp_path, "--split").stdout
    assert [line.split(": ")[1].split()[0] for line in out.splitlines()] == ["0", "17", "305"]
    done = run("test.py", run_folder, "--predict", tmp_path, "--split")
    assert [row[:2] for row in csv.reader(done.stdout.splitlines()[1:])] == [[f"{n}.png", n] for n in numbers]
    assert not done.stderr


def test_without_split_one_line_warns_and_the_pictures_say_so(numbers, tmp_path):
    run_folder = ROOT / "results" / "reference" / "elastic"
    for number, picture in numbers.items():
        picture.save(tmp_path / f"{number}.png")
    done = run("test.py", run_folder, "--images", tmp_path)
    assert is_one_clear_line(done.stderr, "--split", "2 pictures")
    assert [data.SEVERAL in line for line in done.stdout.splitlines()] == [False, True, True]
    assert is_one_clear_line(run("test.py", run_folder, "--predict", tmp_path).stderr, "--split")


def test_ink_up_to_the_edge_says_so(numbers):
    pixels = np.asarray(numbers["0"])
    facts = {"image_shape": (28, 28), "fit": "digit"}
    _, doubts = data.fit_pictures(pixels[:80], facts)  # its upper half
    assert any("edge" in doubt for doubt in doubts)
    assert not data.fit_pictures(pixels, facts)[1]


# --- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("wide.csv", "1,2,3\n4,5,6\n", ["wide.csv", "4x5"]),
        (
            "text.csv",
            csv_text(None, [[0] * 20] * 3) + "a," * 19 + "1\n",
            ["text.csv", "line 4", "'a'"],
        ),
        ("empty.csv", "", ["empty.csv"]),
        ("new.txt", "1,2\n", ["new.txt", ".csv"]),
        ("new.npy", b"\x93NUMPY", ["new.npy"]),
        ("new-idx3-ubyte", data.idx_bytes(np.zeros((2, 5, 5), np.uint8)), ["new-idx3", "5x5", "4x5"]),
        ("new-idx1-ubyte", data.idx_bytes(np.zeros(2, np.uint8)), ["new-idx1"]),
        ("photo.png", "", ["photo.png"]),
    ],
)
def test_bad_input_is_one_clear_line(trained, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    done = run("test.py", trained / "run0", "--predict", tmp_path / name, check=2)
    assert is_one_clear_line(done.stderr, *words) and not done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--predict", "nowhere.csv"], ["nowhere.csv"]),
        (["--predict", "{new}", "--split"], ["--split", "{new}"]),
        (["--predict", "{new}", "--out", "{new}"], ["--out", "{new}"]),
        (["--predict", "{new}", "--columns", "a"], ["--columns"]),
        (["--predict", "{new}", "--columns", "a,b", "--probabilities"], ["--columns", "--probabilities"]),
        (["--predict", "{new}", "--images", "{new}"], ["--predict", "--images"]),
        (["--out", "a.csv"], ["--out", "--predict"]),
        (["--split"], ["--split", "--images"]),
    ],
)
def test_flags_that_do_not_fit(trained, images, tmp_path, arguments, words):
    np.save(tmp_path / "new.npy", images)
    arguments, words = (
        [text.replace("{new}", str(tmp_path / "new.npy")) for text in texts] for texts in (arguments, words)
    )
    assert is_one_clear_line(run("test.py", trained / "run0", *arguments, check=2).stderr, *words)
    assert np.load(tmp_path / "new.npy").shape == images.shape
