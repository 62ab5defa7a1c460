import io
import json
import os

import numpy as np
import pytest
from conftest import ROOT, is_one_clear_line, make_run, refused, run, write_dataset
from PIL import Image

import data
import nn
import test as judging


def grown(image, times, margin=0):
    """A larger picture of an image, with a margin around it; float in [0, 1], 1 is ink."""
    size = tuple(n * times for n in image.shape[::-1])
    large = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    return np.pad(np.asarray(large, np.float32) / 255, margin)


def coloured(ink, paper, pen):
    """RGB picture of ink (rows, columns) in [0, 1], in the colours of paper and pen."""
    ink = ink[:, :, None]
    return np.uint8(np.clip(ink * np.array(pen) + (1 - ink) * np.array(paper), 0, 255))


def inverted(image):
    return coloured(grown(image, 1), (255, 255, 255), (0, 0, 0)), "png"


def larger(image):
    return coloured(grown(image, 3, margin=60), (0, 0, 0), (255, 255, 255)), "png"


def off_centre(image):
    return coloured(np.pad(grown(image, 1), [(30, 2), (1, 31)]), (0, 0, 0), (255, 255, 255)), "png"


def ink_on_paper(image):
    return coloured(grown(image, 5, margin=20), (245, 235, 215), (40, 60, 170)), "png"


def lit_photo(image):
    """Dark ink on paper that is half as bright at one corner as at the other, compressed as JPEG."""
    ink = grown(image, 6, margin=50)
    y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in ink.shape), indexing="ij")
    light = (1 - 0.3 * x - 0.2 * y)[:, :, None]
    return np.uint8(coloured(ink, (230, 225, 215), (50, 50, 60)) * light), "jpg"


FORMS = [inverted, larger, off_centre, ink_on_paper, lit_photo]


def save(path, pixels):
    Image.fromarray(pixels).save(path, quality=40)  # which is for JPEG only
    return path


def difference(a, b):
    """Mean absolute difference of two images in grey levels, where they lie on each other best.

    Centring by whole pixels may put the same digit a pixel further.
    """
    moved = [np.roll(a.astype(int), (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return min(np.abs(image - b).mean() for image in moved)


@pytest.fixture
def seven():
    """A 28x28 image of a 7, already as MNIST's are: 20 pixels high, centred by mass."""
    y, x = np.mgrid[:28, :28]
    bar = (y >= 4) & (y < 7) & (x >= 8) & (x < 20)
    stem = (y >= 4) & (y < 24) & (np.abs(x - (19.5 - (y - 4) * 0.4)) < 1.5)
    drawn = np.where(bar | stem, 255, 0).astype(np.uint8)
    return data.prepare_picture(coloured(grown(drawn, 1), (0, 0, 0), (255, 255, 255)))


REFERENCE = ROOT / "results" / "reference" / "elastic"  # 99 % right


def test_ten_real_digits_in_five_disturbed_forms_are_classified(real_data, tmp_path):
    dataset = data.load_dataset("mnist", real_data)
    files, labels = [], []
    for form in FORMS:
        for index in range(10):
            pixels, suffix = form(dataset["test_images"][index].reshape(28, 28))
            files.append(save(tmp_path / f"{form.__name__}{index}.{suffix}", pixels))
            labels.append(str(dataset["test_labels"][index]))
    shown = run("test.py", REFERENCE, "--json", "--images", *files).stdout
    found = [row["classes"][0]["name"] for row in json.loads(shown)]
    right = np.array([a == b for a, b in zip(found, labels)]).reshape(5, 10)
    assert right.mean() >= 0.9, dict(zip([form.__name__ for form in FORMS], right.sum(axis=1)))


def test_an_image_of_mnists_form_remains_as_it_is(seven):
    again = data.prepare_picture(coloured(grown(seven, 1), (0, 0, 0), (255, 255, 255)))
    rows, columns = (np.flatnonzero((again > 50).any(axis=axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == 20 and columns[-1] - columns[0] + 1 < 20
    mass = again.astype(float)
    center = [(mass.sum(axis=1 - axis) @ np.arange(28)) / mass.sum() for axis in (0, 1)]
    np.testing.assert_allclose(center, 14, atol=0.51)
    assert difference(again, seven) < 3


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_to_the_same_image(seven, form):
    pixels, _ = form(seven)
    assert difference(data.prepare_picture(pixels), seven) < 12  # another digit: above 30


@pytest.mark.parametrize(
    "paper, pen",
    [
        ((255, 255, 255), (255, 230, 0)),  # yellow on white
        ((20, 30, 60), (240, 240, 240)),  # chalk on a board
        ((200, 60, 60), (60, 150, 60)),  # green on a red that is as light
        ((215, 215, 215), (170, 170, 170)),  # a faint pencil
    ],
)
def test_any_ink_on_any_paper(seven, paper, pen):
    seen = data.prepare_picture(coloured(grown(seven, 4, margin=30), paper, pen))
    assert difference(seen, seven) < 12


def test_a_small_digit_on_a_large_noisy_photo(seven):
    rng = np.random.default_rng(0)
    ink = np.pad(grown(seven, 4), [(600, 300), (200, 800)])
    photo = coloured(ink, (200, 195, 190), (60, 60, 90)) + rng.normal(0, 4, (*ink.shape, 1))
    seen = data.prepare_picture(np.uint8(np.clip(photo, 0, 255)))
    assert difference(seen, seven) < 12


def test_specks_of_dust_are_left_out(seven):
    ink = grown(seven, 6, margin=60)
    ink[10:13, 10:13] = 1
    ink[-20:-17, 100:104] = 1
    seen = data.prepare_picture(coloured(ink, (255, 255, 255), (0, 0, 0)))
    assert difference(seen, seven) < 12


def test_a_thin_pens_strokes_are_thickened():
    ink = np.zeros((400, 400), np.float32)
    ink[60:340, 198:201] = 1
    ink[60:63, 120:280] = 1
    seen = data.prepare_picture(coloured(ink, (255, 255, 255), (0, 0, 0)))
    assert (seen[14] > 100).sum() >= 2  # the stem


@pytest.mark.parametrize("size", [(8, 8), (8, 30), (11, 9), (40, 8)])
def test_small_pictures(size):
    ink = np.zeros(size, np.float32)
    ink[1:-1, size[1] // 2] = 1
    seen = data.prepare_picture(coloured(ink, (255, 255, 255), (0, 0, 0)))
    assert seen.shape == (28, 28) and seen.max() == 255
    rows = np.flatnonzero((seen > 50).any(axis=1))
    assert rows[-1] - rows[0] >= 16


@pytest.mark.parametrize("shape", [(28, 28), (14, 14), (20, 40), (9, 5)])
def test_other_image_shapes(seven, shape):
    seen = data.prepare_picture(coloured(grown(seven, 4), (255, 255, 255), (0, 0, 0)), shape)
    assert seen.shape == shape and seen.dtype == np.uint8 and seen.max() == 255
    rows = np.flatnonzero((seen > 30).any(axis=1))
    assert rows[-1] - rows[0] + 1 <= round(shape[0] * 20 / 28)


def test_the_picture_is_left_as_it_is(seven):
    pixels, _ = lit_photo(seven)
    before = pixels.copy()
    data.prepare_picture(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("grey, noise", [(0, 0), (255, 0), (120, 0), (200, 8), (90, 3)])
def test_a_blank_picture_is_refused(grey, noise):
    blank = np.random.default_rng(0).normal(grey, noise, (120, 160, 1)) * np.ones(3)
    with refused(error=ValueError):
        data.prepare_picture(np.uint8(np.clip(blank, 0, 255)))


# --- reading picture files ---


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16", "LA", "RGBA"])
def test_all_kinds_of_pixels(seven, tmp_path, mode):
    large = Image.fromarray(np.uint8(255 - 255 * grown(seven, 4)))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(large, np.uint16) * 257)
    elif mode in ("LA", "RGBA"):  # black ink on nothing
        picture = Image.new("RGBA", large.size, (0, 0, 0, 255))
        picture.putalpha(Image.eval(large, lambda v: 255 - v))
        picture = picture.convert(mode)
    else:
        picture = large.convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    picture.save(path)
    pixels = data.load_picture(path)
    assert pixels.shape == (112, 112, 3) and pixels.dtype == np.uint8
    assert difference(data.prepare_picture(pixels), seven) < 12


def test_white_ink_on_nothing(seven, tmp_path):
    picture = Image.new("RGBA", (28, 28), (255, 255, 255, 255))
    picture.putalpha(Image.fromarray(seven))
    picture.save(tmp_path / "white.png")
    seen = data.prepare_picture(data.load_picture(tmp_path / "white.png"))
    assert difference(seen, seven) < 12


def test_a_photo_is_turned_upright(tmp_path):
    picture, exif = Image.new("RGB", (40, 20)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert data.load_picture(tmp_path / "turned.jpg").shape == (40, 20, 3)


def cut_jpeg():
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(buffer, "JPEG")
    return buffer.getvalue()[:3000]


def png_of(*size, mode="1"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


BAD = {
    "empty.png": lambda: b"",
    "text.png": lambda: b"this is a text",
    "cut.jpg": cut_jpeg,
    "small.png": lambda: png_of(7, 100),
    "large.png": lambda: png_of(7100, 7100),
    "bomb.png": lambda: png_of(20_000, 20_000),
    "blank.png": lambda: png_of(50, 50),
}


# --- test.py --images and committees ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs on one data set of 28x28, of different layers, preprocessing and losses."""
    folder = tmp_path_factory.mktemp("runs")
    dataset = write_dataset(folder / "set", train=90, test=60, shape=(28, 28))
    kinds = {
        "plain": ["--hidden", 8],
        "deep": ["--hidden", 9, 7, "--preprocess", "scale", "center", "--activation", "tanh"],
        "mse": ["--hidden", 0, "--loss", "mse", "--lr", 0.001],
    }
    for name, more in kinds.items():
        make_run(folder / name, dataset, "--epochs", 2, *more)
    return folder


def test_a_committee_is_the_mean_of_its_members(runs, capsys):
    names = [str(runs / "plain"), str(runs / "deep" / "params.pkl")]
    assert not judging.main([*names, "--json"])
    report = json.loads(capsys.readouterr().out)
    dataset = data.load_dataset(str(runs / "set"))
    labels, probs = dataset["test_labels"], []
    for name, row in zip(names, report["members"]):
        params, config = data.load_run(name)
        x = data.preprocess(dataset["test_images"], config["steps"])
        probs.append(nn.predict(params, x, config["activation"]))
        assert row["run"] == name and row["accuracy"] == (probs[-1].argmax(axis=1) == labels).mean()
    mean = (probs[0].astype(float) + probs[1]) / 2
    assert report["accuracy"] == (mean.argmax(axis=1) == labels).mean()
    assert report["loss"] == pytest.approx(-np.log(mean[np.arange(60), labels]).mean(), rel=1e-5)
    assert [row["layers"] for row in report["members"]] == ["784-8-3", "784-9-7-3"]
    assert not (runs / "plain" / "predictions.csv").exists()  # they are not those of that run


def test_a_committee_may_have_an_mse_member(runs, capsys):
    names = [str(runs / name) for name in ("plain", "mse", "deep")]
    assert not judging.main(names)
    text = capsys.readouterr().out
    assert "committee of 3: 60 test images" in text and all(f"{name} " in text for name in names)


def test_members_must_know_the_same_classes(runs, tmp_path):
    other = write_dataset(tmp_path / "other", classes=4, shape=(28, 28))
    make_run(tmp_path / "r", other, "--hidden", 0, "--epochs", 1)
    with refused(error=ValueError):
        judging.main([str(runs / "plain"), str(tmp_path / "r")])


def test_members_of_different_data_sets_need_a_choice(runs, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", shape=(28, 28))
    make_run(tmp_path / "r", other, "--hidden", 0, "--epochs", 1)
    both = [str(runs / "plain"), str(tmp_path / "r")]
    with refused("--dataset", error=ValueError):
        judging.main(both)
    assert not judging.main([*both, "--dataset", str(other)])


def test_pictures_are_judged_as_the_network_judges_their_images(runs, seven, tmp_path, capsys):
    path = save(tmp_path / "ink.png", ink_on_paper(seven)[0])
    for names in (["plain"], ["plain", "deep"]):
        folders = [str(runs / name) for name in names]
        assert judging.main([*folders, "--images", str(path), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        facts = data.load_run(folders[0])[1]["data"]
        image = data.fit_pictures(data.load_picture(path), facts)[0][0].reshape(1, -1)
        mean = np.zeros(3)
        for params, config in map(data.load_run, folders):
            x = data.preprocess(image, config["steps"])
            mean += nn.predict(params, x, config["activation"])[0] / len(names)
        assert [c["name"] for c in row["classes"]] == [str(i) for i in np.argsort(-mean)]
        np.testing.assert_allclose([c["probability"] for c in row["classes"]], np.sort(mean)[::-1])
    assert judging.main([folders[0], "--images", str(path)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{path}: ") and line.count("%") == 3 and line.count("\n") == 1


def test_save_writes_what_the_network_saw_beside_what_was_given(runs, seven, tmp_path, capsys):
    pixels, _ = ink_on_paper(seven)
    path = save(tmp_path / "ink.png", pixels)
    chosen = [str(runs / "plain"), "--fit", "digit"]
    assert judging.main([*chosen, "--images", str(path), "--save"]) == 0
    seen = tmp_path / "ink.png.seen.png"
    assert f"(seen: {seen})" in capsys.readouterr().out
    sheet = np.asarray(Image.open(seen))
    right = sheet[10:290, 300:580, 0].reshape(28, 10, 28, 10)
    np.testing.assert_array_equal(right[:, 5, :, 5], data.prepare_picture(pixels))
    assert (sheet[10:290, 10:290] == (245, 235, 215)).all(axis=2).mean() > 0.5  # the paper
    again = [*chosen, "--images", str(path), str(seen), "--save"]  # as *.png would name them
    assert judging.main(again) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["ink.png", "ink.png.seen.png"]


def test_a_folder_of_pictures_is_classified_and_json_has_all_classes(runs, seven, tmp_path, capsys):
    for name in ("b.png", "a.png"):
        save(tmp_path / name, larger(seven)[0])
    for given in (tmp_path, tmp_path / "*.png"):
        assert judging.main([str(runs / "plain"), "--json", "--images", str(given)]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["file"] for row in rows] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    classes = data.load_run(runs / "plain")[1]["data"]["class_names"]
    assert {row["name"] for row in rows[0]["classes"]} == set(classes)
    (odd,) = data.expand_pictures([save(tmp_path / "\x1b[31m.png", larger(seven)[0])])
    assert "\x1b" not in run("test.py", runs / "plain", "--images", odd).stdout


def test_bad_pictures_have_a_line_each_and_the_others_go_on(runs, seven, tmp_path):
    good = save(tmp_path / "good.png", larger(seven)[0])
    files = []
    for name, content in BAD.items():
        files.append(tmp_path / name)
        files[-1].write_bytes(content())
    files = [*files[:3], good, *files[3:], tmp_path / "missing.png"]
    done = run("test.py", runs / "plain", "--fit", "digit", "--images", *files, check=2)
    assert done.stdout.count("\n") == 1 and done.stdout.startswith(f"{good}: ")
    lines = done.stderr.splitlines()
    assert len(lines) == len(BAD) + 1
    assert all(name in line for name, line in zip([*BAD, "missing.png"], lines)), lines


def test_a_picture_beside_which_nothing_can_be_written_does_not_stop_the_others(runs, seven, tmp_path):
    files = [save(tmp_path / name, larger(seven)[0]) for name in ("a.png", "b.png")]
    (tmp_path / "a.png.seen.png").mkdir()
    done = run("test.py", runs / "plain", "--save", "--images", *files, check=2)
    assert is_one_clear_line(done.stderr, "a.png.seen.png")
    assert done.stdout.count("\n") == 1 and done.stdout.startswith(f"{files[1]}: ")


PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\n{ } loop\n%%EOF\n"


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.png", PROGRAM),
        ("a.eps", PROGRAM),
        ("a.pdf", b"%PDF-1.4\n"),
        ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("a.ico", b"\0\0\1\0\1\0  \0\0\1\0 \0\x16\0\0\0\x16\0\0\0"),
    ],
)
def test_programs_and_unknown_formats_are_to_be_saved_as_another(tmp_path, monkeypatch, name, content):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "load", lambda *_: pytest.fail("it ran"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*JPEG or PNG"):
        data.load_picture(tmp_path / name)


@pytest.mark.parametrize("kind", data.PICTURES)
def test_each_kind_of_picture_is_read_whatever_its_name(tmp_path, seven, kind):
    path = tmp_path / "picture.dat"
    Image.fromarray(seven).save(path, kind)
    assert data.load_picture(path).shape == (28, 28, 3)
    for suffix in data.PICTURES[kind]:
        assert Image.registered_extensions()[suffix] == kind


def test_what_c_writes_does_not_reach_standard_error(tmp_path, seven, capfd):
    path = tmp_path / "damaged.tif"
    Image.fromarray(np.tile(seven, (9, 9))).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[30:300] = bytes(270)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.tif"):
        data.load_picture(path)
    os.write(2, b"ours")
    assert capfd.readouterr().err == "ours"


def test_a_picture_is_bounded_before_it_is_read_and_may_be_missing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        data.load_picture(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(bytes(100))
    monkeypatch.setattr(data, "MOST_PICTURE_BYTES", 99)
    with pytest.raises(ValueError, match=r"x\.png"):
        data.load_picture(tmp_path / "x.png")


def test_patterns_and_folders_of_pictures(tmp_path, monkeypatch):
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "a.png.seen.png", "notes.txt", "[1].png"):
        (tmp_path / "photos" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path / "photos")
    assert data.expand_pictures(["*.png"]) == ["[1].png", "a.png"]
    assert data.expand_pictures(["b.JPG", "[1].png", "no*.gif"]) == ["b.JPG", "[1].png", "no*.gif"]
    assert data.expand_pictures(["a.png.seen.png"]) == ["a.png.seen.png"]
    folder = tmp_path / "photos"
    assert data.expand_pictures([folder]) == [str(folder / name) for name in ("[1].png", "a.png", "b.JPG")]
    with pytest.raises(ValueError, match="empty"):
        data.expand_pictures(["empty"])


@pytest.mark.parametrize(
    "arguments, names",
    [
        (["--save"], ["--save", "--images"]),
        (["--images", "a.png", str(ROOT)], ["--images", str(ROOT)]),
        (["--images", "a.png", "--dataset", "mnist"], ["--dataset", "--images"]),
    ],
)
def test_flags_that_do_not_go_together(runs, arguments, names):
    assert is_one_clear_line(run("test.py", runs / "plain", *arguments, check=2).stderr, *names)


# --- what is on a photograph beside the digit -------------------------------------------------


def framed(ink, rng):
    ink[:3] = ink[-3:] = 1
    ink[:, :3] = ink[:, -3:] = 1
    return ink


def one_dark_edge(ink, rng):
    ink[:, : rng.integers(3, 9)] = 1
    return ink


def spot_in_the_corner(ink, rng):
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    return np.maximum(ink, (y - 14) ** 2 + (x - ink.shape[1] + 15) ** 2 < 64)


def underlined(ink, rng):
    ink[-14:-10, 25:-25] = 1
    return ink


def boxed(ink, rng):
    box = np.zeros_like(ink)
    box[8:-8, 8:-8] = 1
    box[11:-11, 11:-11] = 0
    return np.maximum(ink, box)


def on_a_desk(ink, rng):
    photo = np.full((ink.shape[0] + 80, ink.shape[1] + 80, 3), (90, 60, 40), np.uint8)
    photo[30:-50, 45:-35] = coloured(ink, (245, 240, 230), (40, 40, 60))
    turned = Image.fromarray(photo).rotate(rng.uniform(-6, 6), fillcolor=(90, 60, 40))
    return np.asarray(turned)


@pytest.mark.parametrize("count", [8, pytest.param(30, marks=pytest.mark.extended)])
@pytest.mark.parametrize("form", [framed, one_dark_edge, spot_in_the_corner, underlined, boxed, on_a_desk])
def test_what_lies_around_a_digit_is_left_out(real_data, form, count):
    params, config = data.load_run(REFERENCE)
    dataset, rng, right = data.load_dataset("mnist", real_data), np.random.default_rng(0), 0
    for image, label in zip(dataset["test_images"][:count], dataset["test_labels"]):
        picture = form(grown(image.reshape(28, 28), 5, margin=20), rng)
        if picture.ndim == 2:
            picture = coloured(picture, (245, 240, 230), (40, 40, 60))
        seen = data.prepare_picture(picture)
        x = data.preprocess(seen.reshape(1, -1), config["steps"])
        right += nn.predict(params, x).argmax() == label
    assert right >= 0.9 * count, f"{right} of {count}"


# --- networks that know no digits -------------------------------------------------------------


def test_how_pictures_are_fitted_follows_from_the_training_images(real_data, tmp_path):
    for name, fit in (("mnist", "digit"), ("fashion-mnist", "whole")):
        dataset = data.load_dataset(name, real_data)
        assert data.picture_facts({**dataset, "name": "mine"})["fit"] == fit
    assert data.picture_facts(data.load_dataset(str(write_dataset(tmp_path / "set"))))["fit"] == "whole"


@pytest.mark.parametrize("name, times", [("fashion-mnist", 1), ("fashion-mnist", 4), ("mnist", 1)])
def test_pictures_of_test_images_come_back_as_they_were(real_data, name, times):
    dataset = data.load_dataset(name, real_data)
    facts = {"image_shape": (28, 28), **data.picture_facts(dataset)}
    for image in dataset["test_images"][:9].reshape(-1, 28, 28):
        picture = np.repeat(np.kron(image, np.ones((times, times), np.uint8))[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(data.fit_pictures(picture, facts)[0][0], image)


def test_a_picture_is_inverted_where_that_makes_it_like_the_training_images():
    picture = np.repeat(np.arange(200, 250, dtype=np.uint8).reshape(5, 10)[:, :, None], 3, axis=2)
    facts = {"image_shape": (5, 10), "fit": "whole", "edge": 3.0}
    np.testing.assert_array_equal(data.fit_pictures(picture, facts)[0][0], 255 - picture[:, :, 0])
    np.testing.assert_array_equal(
        data.fit_pictures(picture, {**facts, "edge": 250.0})[0][0], picture[:, :, 0]
    )


def test_fit_can_be_chosen(runs, tmp_path, seven):
    path = save(tmp_path / "seven.png", coloured(grown(seven, 4, margin=50), (255, 255, 255), (0, 0, 0)))
    seen = {}
    for fit in data.FITS:
        assert judging.main([str(runs / "plain"), "--images", str(path), "--fit", fit, "--save"]) == 0
        seen[fit] = np.asarray(Image.open(f"{path}.seen.png"))
    assert (seen["digit"] != seen["whole"]).any()
    with pytest.raises(ValueError, match="--fit"):
        judging.main([str(runs / "plain"), "--images", str(path), "--fit", "hole"])
