import errno
import gzip
import hashlib
import io
import os
import shutil
import struct

import numpy as np
import pytest
from conftest import is_one_clear_line, refused, run, run_apart, write_dataset
from faults import FEW, MANY, MEGA, Disk, check_hostile, count_fine, damaged, use_dataset
from PIL import Image

import data
import nn
import test as judging
import train

# --- IDX files --------------------------------------------------------------------------------


def idx(shape, content, kind=8):
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read_exactly(tmp_path, zipped):
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    content = data.idx_bytes(array)
    assert content == idx((2, 3, 4), bytes(range(24)))
    path = tmp_path / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(content) if zipped else content)
    got, digest = data.load_idx(path)
    np.testing.assert_array_equal(got, array)
    assert digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        b"<html>not found</html>",
        idx((2,), b"ab", kind=0x0D),  # not of unsigned bytes
        idx((2,), b"ab", kind=0x0A),  # of no type that there is
        idx((1,) * 5, b"a"),  # of 5 dimensions
        idx((2,), b"ab")[:6],  # the header is cut
        idx((5,), b"abc"),
        idx((2,), b"abc"),  # goes on after its end
        idx((2**32 - 1,) * 3, b"abc"),
        idx((2**30,), b"abc"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_idx_files_are_named(tmp_path, content, zipped):
    path = tmp_path / ("bad.gz" if zipped else "bad")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with refused(path, error=ValueError):
        data.load_idx(path)


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    content = data.idx_bytes(np.arange(5, dtype=np.uint8))
    (tmp_path / "raw.gz").write_bytes(content)
    (tmp_path / "zipped").write_bytes(gzip.compress(content))
    for name in ("raw.gz", "zipped"):
        np.testing.assert_array_equal(data.load_idx(tmp_path / name)[0], np.arange(5))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_that_announces_more_than_its_size_can_hold_is_not_read(tmp_path, zipped):
    content = data.idx_bytes(np.zeros((70, 1000, 1000), np.uint8))
    path = tmp_path / "blank"
    path.write_bytes(gzip.compress(content) if zipped else content[:99])
    with pytest.raises(ValueError, match=r"blank.*announces 70,000,000"):
        data.load_idx(path)


def test_an_idx_file_has_a_largest_size(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(data.idx_bytes(np.zeros(100, np.uint8)))
    monkeypatch.setattr(nn, "MOST_BYTES", 99)
    with pytest.raises(ValueError, match="large"):
        data.load_idx(path)


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(data.idx_bytes(np.zeros(100, np.uint8)))
    monkeypatch.setattr(data.math, "prod", lambda _: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError, match="large"):
        data.load_idx(path)


@pytest.mark.parametrize("cut", [slice(0, 30), slice(0, -6), slice(10, None)])
def test_damaged_gzip_is_named(tmp_path, cut):
    content = idx((50,), np.random.default_rng(0).bytes(50))
    (tmp_path / "bad.gz").write_bytes(gzip.compress(content)[cut])
    with refused("bad.gz", error=ValueError):
        data.load_idx(tmp_path / "bad.gz")


# --- datasets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_idx_files(tmp_path, zipped):
    folder = write_dataset(tmp_path / "mine", shape=(3, 7), classes=5, zipped=zipped)
    dataset = data.load_dataset(str(folder))
    assert dataset["train_images"].shape == (60, 21) and dataset["train_images"].dtype == np.uint8
    assert dataset["test_images"].shape == (20, 21)
    assert dataset["image_shape"] == (3, 7) and dataset["class_names"] == list("01234")
    assert dataset["title"] == "mine" and set(dataset["sha256"]) == set(data.FILES)
    assert dataset["train_labels"].shape == (60,)


def test_a_read_only_data_folder_can_be_used(small_set, monkeypatch):
    Disk(monkeypatch, small_set, 1, errno.EROFS, once=False)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "replace", shutil.move)
    assert data.load_dataset(str(small_set))["train_images"].shape == (60, 20)


def test_256_classes_and_dotted_names(tmp_path):
    folder = write_dataset(tmp_path / "many", train=512, test=256, classes=256)
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace("-idx", ".idx"))
    dataset = data.load_dataset(str(folder))
    assert len(dataset["class_names"]) == 256 and dataset["train_labels"].max() == 255


@pytest.mark.parametrize(
    "part, shape",
    [
        ("train_labels", 59),
        ("test_images", (20, 4, 4)),
        ("test_images", 20),
        ("train_labels", (60, 1, 1)),
        ("train_images", (60, 0, 5)),
    ],
)
def test_files_that_do_not_match(small_set, part, shape):
    array = np.zeros(shape, np.uint8)
    (small_set / data.FILES[part]).write_bytes(data.idx_bytes(array))
    with refused(small_set, error=ValueError):
        data.load_dataset(str(small_set))


def test_missing_and_unknown(small_set):
    (small_set / data.FILES["train_labels"]).unlink()
    with refused(data.FILES["train_labels"], error=FileNotFoundError):
        data.load_dataset(str(small_set))
    with refused("mnsit", "mnist", error=ValueError):
        data.load_dataset("mnsit")


def test_real_data_has_the_known_content(real_data):
    for name, title in (("mnist", "MNIST"), ("fashion-mnist", "Fashion-MNIST")):
        dataset = data.load_dataset(name, real_data, download=False)
        assert dataset["train_images"].shape == (60_000, 784)
        assert dataset["test_images"].shape == (10_000, 784)
        assert dataset["title"] == title and len(dataset["class_names"]) == 10
        assert dataset["sha256"] == data.SOURCES[name]["sha256"]
    assert list(data.load_dataset("mnist", real_data)["train_labels"][:5]) == [5, 0, 4, 1, 9]


def test_other_content_under_a_known_name_is_refused(tmp_path):
    write_dataset(tmp_path / "mnist")
    for name in ("mnist", "auto"):
        with refused(tmp_path / "mnist", error=ValueError):
            data.load_dataset(name, tmp_path)


def test_a_damaged_file_of_a_known_data_set_is_to_be_deleted(tmp_path):
    folder = write_dataset(tmp_path / "mnist")
    (folder / data.FILES["test_labels"]).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=f"{data.FILES['test_labels']}.*delete it"):
        data.load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["train-labels-idx1-ubyte (1)", "t10k-images-idx3-ubyte.bak", "val-labels-idx1-ubyte", "train-idx1"],
)
def test_what_else_lies_beside_a_known_data_set_is_left_alone(tmp_path, name):
    expected = data.load_dataset(str(write_dataset(tmp_path / "glyphs")))
    (tmp_path / "glyphs" / name).write_bytes(data.idx_bytes(np.zeros(3, np.uint8)))
    found = data.load_dataset("glyphs", tmp_path)
    assert found["sha256"] == expected["sha256"] and "val_images" not in found


def test_other_files_are_not_those_of_a_known_data_set(tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in ("X_train", "y_train", "X_test", "y_test"):
        np.save(tmp_path / "mnist" / f"{name}.npy", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=f"lacks {data.FILES['train_labels']}"):
        data.load_dataset("mnist", tmp_path, download=False)


# --- glyphs -----------------------------------------------------------------------------------


def test_glyphs_are_the_same_bytes_for_the_same_seed():
    first, again, other = (
        data.draw_glyphs(np.random.default_rng(seed), train_size=300, test_size=100) for seed in (1, 1, 2)
    )
    assert first["train_images"].shape == (300, 28, 28) and first["test_labels"].shape == (100,)
    for part in first:
        assert first[part].dtype == np.uint8
        np.testing.assert_array_equal(first[part], again[part])
    assert (first["train_images"] != other["train_images"]).any()
    ink = first["train_images"].reshape(300, -1).astype(float)
    assert (ink.max(axis=1) > 100).mean() > 0.99, "every image shows something"
    assert 20 < ink.mean() < 70, "about as much ink as MNIST (33)"
    assert set(first["train_labels"]) == set(range(10))


def test_no_glyph_font_is_in_both_parts():
    assert not set(data.GLYPH_FONTS["train"]) & set(data.GLYPH_FONTS["test"])


def test_glyphs_are_cached_as_idx_files(tmp_path, few_glyphs, capsys):
    first = data.load_dataset("glyphs", tmp_path)
    assert "drawing" in capsys.readouterr().err
    again = data.load_dataset("glyphs", tmp_path)
    assert "drawing" not in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "glyphs")) == sorted(data.FILES.values())
    assert first["sha256"] == again["sha256"]
    np.testing.assert_array_equal(first["train_images"], again["train_images"])


def test_glyphs_work_where_nothing_can_be_written(tmp_path, few_glyphs, capsys):
    (tmp_path / "a-file").write_text("")
    unwritable = data.load_dataset("glyphs", tmp_path / "a-file")
    assert "could not be kept" in capsys.readouterr().err
    kept = data.load_dataset("glyphs", tmp_path)
    assert unwritable["sha256"] == kept["sha256"]


# --- split ------------------------------------------------------------------------------------


def test_split_is_seeded_and_disjoint():
    images, labels = np.arange(100, dtype=np.uint8)[:, None], np.arange(100, dtype=np.uint8)
    (train, train_labels), (val, val_labels) = data.split(images, labels, 30, np.random.default_rng(1))
    assert sorted([*train_labels, *val_labels]) == list(range(100)) and len(val) == 30
    np.testing.assert_array_equal(train[:, 0], train_labels)
    np.testing.assert_array_equal(val[:, 0], val_labels)
    again = data.split(images, labels, 30, np.random.default_rng(1))
    other = data.split(images, labels, 30, np.random.default_rng(2))
    np.testing.assert_array_equal(again[1][1], val_labels)
    assert (other[1][1] != val_labels).any()
    assert (np.sort(val_labels) != np.arange(70, 100)).any(), "shuffled, not the last ones"


def test_folds_are_seeded_and_stratified():
    labels = np.repeat([0, 1, 2], [17, 40, 3])
    dataset = {"train_images": labels[:, None], "train_labels": labels}
    config = {"folds": 5, "train_size": None, "seed": 3, "split_seed": None}
    fold = data.folds_of(dataset, config)
    assert (fold == data.folds_of(dataset, config)).all()
    assert np.bincount(fold).tolist() == [0, 12, 12, 12, 12, 12]
    for label in range(3):
        counts = np.bincount(fold[labels == label], minlength=6)[1:]
        assert counts.max() - counts.min() <= 1
    some = data.folds_of(dataset, {**config, "folds": 2, "train_size": 11})
    assert np.bincount(some).tolist() == [49, 6, 5]


def test_split_with_a_subset_and_without_validation():
    images, labels = np.zeros((100, 1), np.uint8), np.arange(100, dtype=np.uint8)
    (train, kept), (val, held) = data.split(images, labels, 30, np.random.default_rng(1), train_size=20)
    assert len(train) == 20 and len(val) == 30 and not set(kept) & set(held)
    (train, kept), (val, _) = data.split(images, labels, 0, np.random.default_rng(1))
    assert kept is labels and len(val) == 0


@pytest.mark.parametrize("val_size, train_size", [(30, None), (30, 20), (3, 3), (0, 50), (97, 3)])
def test_a_stratified_split_has_all_classes_on_both_sides_in_proportion(val_size, train_size):
    labels = np.repeat([0, 1, 2], [66, 32, 2]).astype(np.uint8)
    images = np.arange(100, dtype=np.uint8)[:, None]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        (train, kept), (val, held) = data.split(images, labels, val_size, rng, train_size, stratified=True)
        assert not set(train[:, 0]) & set(val[:, 0]) and len(val) == val_size
        for part in (kept, held):
            counts = np.bincount(part, minlength=3)
            assert counts.min() > 0 or not len(part)
            assert np.abs(counts - len(part) * np.array([0.66, 0.32, 0.02])).max() < 3


def test_the_only_image_of_a_class_is_trained_on():
    labels = np.array([0] * 20 + [1])
    (_, kept), (_, held) = data.split(labels[:, None], labels, 10, np.random.default_rng(0), stratified=True)
    assert 1 in kept and 1 not in held


@pytest.mark.parametrize("val, train", [(100, None), (101, None), (-1, None), (30, 71), (0, 101)])
def test_impossible_splits(val, train):
    with refused("100", error=ValueError):
        data.split(np.zeros((100, 1)), np.zeros(100), val, np.random.default_rng(0), train)


# --- preprocessing ----------------------------------------------------------------------------


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3000, 12), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_preprocessing_against_direct_calculation(pixels, dtype):
    x = pixels / 255
    expected = {
        ("scale",): x,
        ("scale", "center"): x - x.mean(axis=0),
        ("center",): pixels - pixels.mean(axis=0),
        ("scale", "standardize"): (x - x.mean()) / x.std(),
        ("standardize",): (x - x.mean()) / x.std(),
        ("center", "standardize"): (x - x.mean(axis=0)) / (x - x.mean(axis=0)).std(),
    }
    for names, right in expected.items():
        got = data.preprocess(pixels, data.fit_steps(names, pixels, (3, 4)), dtype)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4 if dtype == np.float32 else 1e-9)


def test_preprocessing_is_fitted_on_the_images_given_and_no_others(pixels):
    steps = data.fit_steps(["scale", "center"], pixels[:10], (3, 4))
    np.testing.assert_allclose(steps[0]["mean"], pixels[:10].mean(axis=0))
    assert data.preprocess(pixels[:10], steps).mean() == pytest.approx(0, abs=1e-6)
    assert abs(data.preprocess(pixels[10:], steps).mean()) > 1e-4


def test_constant_images_are_no_division_by_zero():
    black = np.zeros((5, 4), np.uint8)
    steps = data.fit_steps(["scale", "standardize"], black, (2, 2))
    assert not data.preprocess(black, steps).any()


def test_preprocessing_leaves_the_images_alone(pixels):
    before = pixels.copy()
    data.preprocess(pixels, data.fit_steps(["scale", "center", "standardize"], pixels, (3, 4)))
    np.testing.assert_array_equal(pixels, before)
    with refused("scale", error=ValueError):
        data.fit_steps(["skale"], pixels, (3, 4))


def test_batches_cover_everything_once(pixels):
    steps = data.fit_steps(["scale"], pixels, (3, 4))
    taken = [(batch["x"].copy(), batch["y"]) for batch in data.batches(pixels, np.arange(3000), steps, 128)]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in taken]), data.preprocess(pixels, steps))
    np.testing.assert_array_equal(np.concatenate([y for _, y in taken]), np.arange(3000))


def test_sorted_pixels_leave_only_blank_columns_behind_the_ink():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (2500, 30), dtype=np.uint8) * (rng.random((2500, 30)) < rng.random(30))
    images[7] = 0
    images = images.astype(np.uint8)
    pixels = data.sort_pixels(images)
    np.testing.assert_array_equal(pixels["images"], images[:, pixels["columns"]])
    assert pixels["images"].flags.c_contiguous, "or taking rows of it would be far slower"
    used = (pixels["images"] > 0).sum(axis=0)
    assert (np.diff(used) <= 0).all()
    for row, inked in zip(pixels["images"], pixels["inked"]):
        assert not row[inked:].any() and (inked == 0 or row[inked - 1])


def params_file(path, **changes):
    """Params of 2x2 images and two classes, with changes of their config."""
    facts = {"title": "x", "image_shape": [2, 2], "class_names": ["0", "1"]}
    config = {"activation": "relu", "loss": "mse", "dataset": "mnist", "steps": [], "data": facts, **changes}
    params = nn.init_params(np.random.default_rng(0), [4, len(config["data"]["class_names"])])
    nn.save_params(path, params, config)
    return path


@pytest.mark.parametrize("name", data.STEP_KINDS)
def test_a_file_with_thousands_of_steps_is_refused(tmp_path, name):
    step = {"name": name, "shape": [2, 2], "number": 2, "mean": np.zeros(4), "basis": np.eye(4)}
    step |= {"affine": {"factor": 1.0}, "standardize": {"mean": 0.0, "std": 1.0}}.get(name, {})
    path = params_file(tmp_path / "params.pkl", steps=[dict(step) for _ in range(2000)])
    with pytest.raises(ValueError, match=r"params\.pkl.* 2,000 "):
        data.load_run(path)


def test_a_network_has_no_more_classes_than_are_taken(tmp_path):
    names = [str(number) for number in range(data.MOST_CLASSES + 1)]
    facts = {"image_shape": [2, 2], "class_names": names}
    with pytest.raises(ValueError, match=r"params\.pkl.*4,097 classes"):
        data.load_run(params_file(tmp_path / "params.pkl", data=facts))


# --- names from outside -----------------------------------------------------------------------

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b1m\r\n\u202e\udcff"


def test_titles_and_class_names_command_no_terminal(tmp_path, small_set):
    facts = {"title": ESCAPES, "image_shape": [2, 2], "class_names": [f"a{ESCAPES}", "b"]}
    _, config = data.load_run(params_file(tmp_path / "params.pkl", data=facts))
    assert config["data"]["title"].isascii() and config["data"]["title"].isprintable()
    assert config["data"]["class_names"] == [f"a{config['data']['title']}", "b"]
    odd = small_set.rename(tmp_path / "\x1b[31mred")
    assert data.load_dataset(str(odd))["title"] == r"\x1b[31mred"
    assert data.printable("Größe 数据 \u200d") == "Größe 数据 \u200d"
    assert [data.printable("class number 17", most) for most in (9, 15)] == ["clas…r 17", "class number 17"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_folders_on_the_command_line_command_no_terminal(tmp_path, small_set):
    odd, picture = tmp_path / "\x1b[2Jrun\x07", tmp_path / "\x1b[2J.png"
    data.save_png(picture, Image.fromarray(np.eye(28, dtype=np.uint8) * 255))
    flags = ["--dataset", small_set, "--hidden", 3, "--epochs", 1]
    for script, arguments in (
        ("train.py", [*flags, "--out", odd]),
        ("train.py", [*flags, "--out", odd]),  # keeps the first one
        ("train.py", ["--resume", "--epochs", 2, "--out", odd]),
        ("test.py", [odd]),
        ("test.py", [odd, odd]),
        ("test.py", [odd, odd, "--compare"]),
        ("test.py", [odd, "--images", picture, "--save"]),
        ("test.py", [odd, "--export", odd / "network.onnx"]),
        ("visualize.py", [odd, "--only", "loss"]),
        (
            "search.py",
            [*flags[:2], "--epochs", 1, "--space", "hidden=3", "--workers", 1, "--out", odd / "search"],
        ),
    ):
        done = run(script, *arguments)
        assert (done.stdout + done.stderr).replace("\n", "").isprintable(), script


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize(
    "name, encoding",
    [("数据 $x^{", "cp1252"), ("数据 $x^{", "ascii"), (os.fsdecode(b"not text \xff"), "utf-8")],
)
def test_a_name_that_the_output_cannot_encode_ends_nothing(tmp_path, name, encoding):
    folder, out = write_dataset(tmp_path / name), tmp_path / f"{name} run"
    flags = ["--dataset", folder, "--out", out, "--hidden", 3, "--epochs", 1]
    assert run_apart("train.py", *flags, PYTHONIOENCODING=encoding).stderr == ""
    assert run_apart("train.py", *flags[:-1], 2, "--resume", PYTHONIOENCODING=encoding).stderr == ""
    assert run_apart("test.py", out, PYTHONIOENCODING=encoding).stderr == ""
    assert train.load_settings(out / "config.json")["dataset"] == str(folder)


def test_what_an_error_says_is_one_line_and_never_empty():
    says = data.message_of
    assert says(MemoryError()) == "there is not enough memory"
    assert says(FloatingPointError()) == "floating point error"
    assert says(FileNotFoundError(2, "No such file", "a.png")) == "a.png: No such file"
    assert says(OSError(28, "No space left on device")) == "No space left on device"
    assert says(ValueError("a\n b\x1b[31m")) == r"a b\x1b[31m"
    assert "pip install" in says(ModuleNotFoundError("No module named 'PIL'", name="PIL"))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), ValueError(), RuntimeError("can't start new thread"), ModuleNotFoundError(name="PIL")],
)
def test_errors_of_all_kinds_are_one_line(monkeypatch, error):
    monkeypatch.setattr(judging, "load_members", lambda _: (_ for _ in ()).throw(error))
    assert is_one_clear_line(run("test.py", check=2).stderr, "test.py: ")


def test_a_full_disk_says_for_which_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as error:
        nn.save_bytes(tmp_path / "history.csv", b"")
    assert data.message_of(error.value).startswith(f"{tmp_path / 'history.csv'}: ")


def test_a_command_to_copy_quotes_what_has_spaces(monkeypatch):
    assert data.command_text("python", "test.py", "my run") == "python test.py 'my run'"
    monkeypatch.setattr(os, "name", "nt")
    assert data.command_text("python", "test.py", "my run") == 'python test.py "my run"'


# --- rows and JSON ----------------------------------------------------------------------------


def test_rows_round_trip_exactly(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "val": None}, {"epoch": 2, "loss": 1e-300, "val": -3.5}]
    data.save_rows(tmp_path / "h.csv", rows, ["epoch", "loss", "val"])
    assert data.load_rows(tmp_path / "h.csv") == rows


@pytest.mark.parametrize("content", ["", "a,b\n1\n", "a\nx\n", "a\n1,2\n", 'a\n"1\n'])
def test_damaged_rows_are_named(tmp_path, content):
    (tmp_path / "h.csv").write_text(content)
    with refused("h.csv", error=ValueError):
        data.load_rows(tmp_path / "h.csv")


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "c.json").write_text("{")
    with refused("c.json", error=ValueError):
        data.load_json(tmp_path / "c.json")


@pytest.mark.parametrize("load, name", [(data.load_json, "c.json"), (data.load_rows, "c.csv")])
def test_text_files_have_a_largest_size_and_may_have_a_mark(tmp_path, monkeypatch, load, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (b"a\n1\n" if load is data.load_rows else b'[{"a": 1}]'))
    assert load(tmp_path / name) == [{"a": 1}], "Windows puts a byte order mark before UTF-8"
    monkeypatch.setattr(data, "MOST_TEXT", 5)
    with pytest.raises(ValueError, match=name):
        load(tmp_path / name)


def test_json_keeps_names_that_are_no_text(tmp_path):
    value = {"dataset": os.fsdecode(b"\xff") + "数据"}
    data.save_json(tmp_path / "c.json", value)
    assert (
        data.load_json(tmp_path / "c.json") == value and "数据".encode() in (tmp_path / "c.json").read_bytes()
    )


def test_a_progress_line_does_not_wrap(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    with data.progress_line() as show:
        show("x" * 100)
    assert terminal.getvalue().count("x") == 39


# --- damaged and hostile files ------------------------------------------------------------------


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("way", ["raw", "gzipped", "before gzip"])
def test_damaged_idx_files(tmp_path, way, count):
    rng = np.random.default_rng([1, len(way), count])

    def cases():
        for part in data.FILES:
            folder = write_dataset(tmp_path / part, zipped=way != "raw")
            path = folder / (data.FILES[part] + ("" if way == "raw" else ".gz"))
            honest = path.read_bytes()
            for _ in range(count // 4):
                if way == "before gzip":
                    path.write_bytes(gzip.compress(damaged(gzip.decompress(honest), rng), 1))
                else:
                    path.write_bytes(damaged(honest, rng))
                yield folder

    assert 0 < count_fine(cases(), use_dataset) < count


HOSTILE = {
    "images sizes that lie": lambda: idx((2**32 - 1, 28, 28), bytes(784)),
    "images 3 GB announced": lambda: idx((4_000_000, 28, 28), bytes(784)),
    "images.gz 3 GB announced": lambda: gzip.compress(idx((4_000_000, 28, 28), bytes(784))),
    "images.gz bomb behind the end": lambda: gzip.compress(idx((1, 28, 28), bytes(100 * MEGA)), 9),
    "images.gz bomb in many parts": lambda: gzip.compress(idx((1, 28, 28), bytes(784)))
    + gzip.compress(bytes(4 * MEGA), 9) * 100,
    "images.gz endless file name": lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * (2 * MEGA),
    "nested.json": lambda: b"[" * (4 * MEGA),
    "digits.json": lambda: b'{"lr": ' + b"9" * (4 * MEGA) + b"}",
    "quoted.csv": lambda: b'"' + b"a" * (8 * MEGA),
    "digits.csv": lambda: b"epoch\n" + b"9" * 100_000,
}  # fmt: skip


def test_hostile_files_take_no_memory_or_time(tmp_path):
    check_hostile(tmp_path, HOSTILE)
