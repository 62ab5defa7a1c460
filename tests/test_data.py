import gzip
import hashlib
import io
import os
import struct

import numpy as np
import pytest
from conftest import write_dataset

import data

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
    "content, words",
    [
        (b"", "does not start"),
        (b"\x00\x00", "does not start"),
        (b"<html>not found</html>", "does not start"),
        (idx((2,), b"ab", kind=0x0D), "unsigned bytes"),
        (idx((2, 2), b"abcd"), "unsigned bytes"),
        (idx((2,), b"ab")[:6], "damaged"),
        (idx((5,), b"abc"), "ends before the 5"),
        (idx((2,), b"abc"), "goes on after the 2"),
        (idx((2**32 - 1,) * 3, b"abc"), "damaged"),
        (idx((2**30,), b"abc"), "ends before"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_idx_files_are_named(tmp_path, content, words, zipped):
    path = tmp_path / ("bad.gz" if zipped else "bad")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=words) as error:
        data.load_idx(path)
    assert str(path) in str(error.value)


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    content = data.idx_bytes(np.arange(5, dtype=np.uint8))
    (tmp_path / "raw.gz").write_bytes(content)
    (tmp_path / "zipped").write_bytes(gzip.compress(content))
    for name in ("raw.gz", "zipped"):
        np.testing.assert_array_equal(data.load_idx(tmp_path / name)[0], np.arange(5))


@pytest.mark.parametrize("cut", [slice(0, 30), slice(0, -6), slice(10, None)])
def test_damaged_gzip_is_named(tmp_path, cut):
    content = idx((50,), np.random.default_rng(0).bytes(50))
    (tmp_path / "bad.gz").write_bytes(gzip.compress(content)[cut])
    with pytest.raises(ValueError, match=r"bad\.gz is damaged"):
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


def test_256_classes_and_dotted_names(tmp_path):
    folder = write_dataset(tmp_path / "many", train=512, test=256, classes=256)
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace("-idx", ".idx"))
    dataset = data.load_dataset(str(folder))
    assert len(dataset["class_names"]) == 256 and dataset["train_labels"].max() == 255


@pytest.mark.parametrize(
    "part, array, words",
    [
        ("train_labels", np.zeros(59, np.uint8), "60 train images but 59 labels"),
        ("test_images", np.zeros((20, 4, 4), np.uint8), "differ in size"),
        ("test_images", np.zeros(20, np.uint8), "no test_images"),
        ("train_labels", np.zeros((60, 1, 1), np.uint8), "no train_labels"),
        ("train_images", np.zeros((60, 0, 5), np.uint8), "no train_images"),
    ],
)
def test_files_that_do_not_match(small_set, part, array, words):
    (small_set / data.FILES[part]).write_bytes(data.idx_bytes(array))
    with pytest.raises(ValueError, match=words):
        data.load_dataset(str(small_set))


def test_missing_and_unknown(small_set):
    (small_set / data.FILES["test_labels"]).unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        data.load_dataset(str(small_set))
    with pytest.raises(ValueError, match="unknown dataset 'mnsit'"):
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
        with pytest.raises(ValueError, match="SHA-256 differs"):
            data.load_dataset(name, tmp_path)


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


def test_glyphs_are_cached_as_idx_files(tmp_path, monkeypatch, capsys):
    draw = data.draw_glyphs
    monkeypatch.setattr(data, "draw_glyphs", lambda rng: draw(rng, 300, 100))
    first = data.load_dataset("glyphs", tmp_path)
    assert "drawing" in capsys.readouterr().err
    again = data.load_dataset("glyphs", tmp_path)
    assert "drawing" not in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "glyphs")) == sorted(data.FILES.values())
    assert first["sha256"] == again["sha256"]
    np.testing.assert_array_equal(first["train_images"], again["train_images"])


def test_glyphs_work_where_nothing_can_be_written(tmp_path, monkeypatch, capsys):
    draw = data.draw_glyphs
    monkeypatch.setattr(data, "draw_glyphs", lambda rng: draw(rng, 300, 100))
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


def test_split_with_a_subset_and_without_validation():
    images, labels = np.zeros((100, 1), np.uint8), np.arange(100, dtype=np.uint8)
    (train, kept), (val, held) = data.split(images, labels, 30, np.random.default_rng(1), train_size=20)
    assert len(train) == 20 and len(val) == 30 and not set(kept) & set(held)
    (train, kept), (val, _) = data.split(images, labels, 0, np.random.default_rng(1))
    assert kept is labels and len(val) == 0


@pytest.mark.parametrize("val, train", [(100, None), (101, None), (-1, None), (30, 71), (0, 101)])
def test_impossible_splits(val, train):
    with pytest.raises(ValueError, match="100 images cannot be split"):
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
    with pytest.raises(ValueError, match="unknown preprocessing"):
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
    used = (pixels["images"] > 0).sum(axis=0)
    assert (np.diff(used) <= 0).all()
    for row, inked in zip(pixels["images"], pixels["inked"]):
        assert not row[inked:].any() and (inked == 0 or row[inked - 1])


# --- rows and JSON ----------------------------------------------------------------------------


def test_rows_round_trip_exactly(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "val": None}, {"epoch": 2, "loss": 1e-300, "val": -3.5}]
    data.save_rows(tmp_path / "h.csv", rows, ["epoch", "loss", "val"])
    assert data.load_rows(tmp_path / "h.csv") == rows


@pytest.mark.parametrize("content", ["", "a,b\n1\n", "a\nx\n", "a\n1,2\n", 'a\n"1\n'])
def test_damaged_rows_are_named(tmp_path, content):
    (tmp_path / "h.csv").write_text(content)
    with pytest.raises(ValueError, match=r"h\.csv"):
        data.load_rows(tmp_path / "h.csv")


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.json"):
        data.load_json(tmp_path / "c.json")


def test_a_progress_line_does_not_wrap(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    with data.progress_line() as show:
        show("x" * 100)
    assert terminal.getvalue().count("x") == 39
