"""Steps that redraw pictures, histograms of gradients, principal components, and distortions."""

import copy
import pickle

import numpy as np
import pytest
from conftest import call, is_one_clear_line, refused, run, write_dataset
from faults import ODD_VALUES, WORDS, altered, count_fine
from test_visualize import draw_folder

import data
import nn
import train


def blob(rows=28, columns=28, center=(13.5, 13.5), slant=0.0, size=(6.0, 1.5)):
    """A smooth stroke: a Gaussian, sheared by so many columns a row."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    y, x = y - center[0], x - center[1]
    x = x - slant * y
    return np.rint(255 * np.exp(-0.5 * ((y / size[0]) ** 2 + (x / size[1]) ** 2))).astype(np.uint8)


def moments(picture):
    """Centre of mass (row, column) and the correlation of columns with rows, as a slant."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    weight = picture / picture.sum()
    row, column = (weight * y).sum(), (weight * x).sum()
    slant = (weight * (y - row) * (x - column)).sum() / (weight * (y - row) ** 2).sum()
    return row, column, slant


def redrawn(names, pictures):
    images = pictures.reshape(len(pictures), -1)
    steps = data.fit_steps(names, images, pictures.shape[1:])
    return data.redraw(images, steps).reshape(len(images), *data.shape_after(steps, pictures.shape[1:]))


# --- steps on pictures ------------------------------------------------------------------------


@pytest.mark.parametrize("slant", [-0.5, -0.1, 0.0, 0.3])
def test_deskew_takes_the_slant_away_and_leaves_the_centre(slant):
    before = blob(center=(12.2, 14.7), slant=slant)
    (after,) = redrawn(["deskew"], before[None])
    row, column, left = moments(after)
    assert abs(left) < 0.01
    np.testing.assert_allclose((row, column), moments(before)[:2], atol=0.1)


def test_deskew_works_on_each_picture_by_itself_and_leaves_blank_ones():
    pictures = np.stack([blob(slant=0.4), np.zeros((28, 28), np.uint8), blob(slant=-0.2)])
    together = redrawn(["deskew"], pictures)
    for picture, after in zip(pictures, together):
        np.testing.assert_array_equal(redrawn(["deskew"], picture[None])[0], after)
    assert not together[1].any()


@pytest.mark.parametrize("number, expected", [(10, 10), (14, 14), (20, 16)])
def test_width_brings_the_ink_to_so_many_columns_but_to_twice_its_own_at_most(number, expected):
    picture = np.zeros((28, 28), np.uint8)
    picture[5:20, 3:11] = 255  # 8 columns
    (after,) = redrawn([f"width:{number}"], picture[None])
    columns = np.flatnonzero(after.max(axis=0) > 127)
    assert abs(len(columns) - expected) <= 1
    assert abs(columns.mean() - 13.5) <= 0.5
    np.testing.assert_array_equal(np.flatnonzero(after.any(axis=1)), np.arange(5, 20))


def test_pool_takes_the_mean_of_2x2_pixels():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
    after = redrawn(["pool"], pictures)
    assert after.shape == (3, 3, 3) and after.dtype == np.uint8
    even = np.pad(pictures.astype(float), ((0, 0), (0, 1), (0, 0)))
    for i in range(3):
        for j in range(3):
            right = even[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(1, 2))
            assert np.abs(after[:, i, j] - right).max() <= 0.5


def test_steps_come_in_the_order_given():
    pictures = np.stack([blob(slant=slant) for slant in (0.4, -0.3)])
    once = redrawn(["pool"], redrawn(["deskew"], pictures))
    np.testing.assert_array_equal(redrawn(["deskew", "pool"], pictures), once)
    assert (redrawn(["pool", "deskew"], pictures) != once).any()


@pytest.mark.parametrize(
    "names, named",
    [
        (["scale", "deskew"], "deskew"),
        *((["pca" + number], "pca") for number in ("", ":0", ":1.5", ":99999999999999999999", ":13")),
        (["width:x"], "width"),
        (["scale:3"], "scale, without a number"),
        (["pool:"], "pool, without a number"),
        (["pca:3", "pca:2"], ""),
    ],
)
def test_impossible_steps_are_named(names, named):
    images = np.random.default_rng(0).integers(0, 256, (50, 12), dtype=np.uint8)
    with refused(named, error=ValueError):
        data.fit_steps(names, images, (3, 4))


# --- histograms of gradients ------------------------------------------------------------------


def slow_gradients(picture, cells):
    """``data.gradients`` of one picture, pixel by pixel, as its docstring says."""
    (rows, columns), found = picture.shape, np.zeros((8, *(min(cells, side) for side in picture.shape)))
    _, down, across = found.shape
    for r in range(rows):
        for c in range(columns):
            right = picture[r, min(c + 1, columns - 1)] - picture[r, max(c - 1, 0)]
            below = picture[min(r + 1, rows - 1), c] - picture[max(r - 1, 0), c]
            first = int(np.arctan2(below, right) % (2 * np.pi) // (np.pi / 4)) % 8
            pair = [first, (first + 1) % 8]
            basis = [[np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)] for k in pair]
            lengths = np.linalg.solve(np.transpose(basis), [right / 2, below / 2])
            for i in range(down):
                for j in range(across):
                    far = abs((r + 0.5) * down / rows - i - 0.5), abs((c + 0.5) * across / columns - j - 0.5)
                    weight = max(0, 1 - far[0]) * max(0, 1 - far[1]) * down * across / rows / columns
                    found[pair, i, j] += weight * np.maximum(lengths, 0)
    return np.minimum(2 * np.sqrt(255 * found), 255).ravel()


@pytest.mark.parametrize("shape", [(14, 14), (5, 12), (9, 4), (1, 6), (3, 1), (1, 1)])
@pytest.mark.parametrize("cells", [1, 4, 7])
def test_gradients_are_those_of_a_direct_calculation(shape, cells):
    pictures = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    pictures[1] = pictures[1] // 128 * 255  # many slopes straight along a direction
    step = {"name": "hog", "shape": list(shape), "number": cells}
    slow = [slow_gradients(picture.astype(float), cells) for picture in pictures]
    for dtype, close in ((np.float64, 1e-5), (np.float32, 0.1)):  # the root of what rounding leaves of 0
        found = data.gradients(pictures.reshape(3, -1), step, dtype)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, slow, atol=close)


def test_gradients_of_an_image_do_not_depend_on_those_beside_it():
    images = np.random.default_rng(0).integers(0, 256, (150, 30), dtype=np.uint8)
    step = {"name": "hog", "shape": [5, 6], "number": 3}
    alone = np.concatenate([data.gradients(images[i : i + 1], step) for i in range(len(images))])
    np.testing.assert_allclose(data.gradients(images, step), alone, atol=0.1)


def test_gradients_behind_pixels_are_kept_as_whole_numbers():
    images = np.random.default_rng(0).integers(0, 256, (300, 63), dtype=np.uint8)
    steps = data.fit_steps(["pixels-and-hog:3", "center", "standardize"], images, (7, 9))
    redrawn = data.redraw(images, steps)
    assert redrawn.dtype == np.uint8 and redrawn.shape == (300, np.prod(data.shape_after(steps, (7, 9))))
    np.testing.assert_array_equal(redrawn[:, :63], images)
    np.testing.assert_allclose(redrawn, data.gradients(images, steps[0]), atol=0.51)
    x = data.preprocess(images, steps, np.float64)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-9)
    assert x.std() == pytest.approx(1)


@pytest.mark.parametrize("name", ["hog:3", "pixels-and-hog:3"])
def test_gradients_are_those_of_the_distorted_pictures(tmp_path, name):
    dataset = data.load_dataset(str(write_dataset(tmp_path / "set", shape=(9, 8))))
    config = train.check_settings({"preprocess": ["deskew", name, "scale"], "augment": ["affine"]})
    sets = train.prepare(dataset, config)
    batch = next(train.epoch_batches(1, sets, {**config, "weight_decay": 0.0}))
    rng = np.random.default_rng([0, 1])
    rows = train.batches_by_ink(rng.permutation(54), sets["train"]["inked"], 54)
    pictures = train.augmentation(sets, config)(rows, rng)
    wanted = data.gradients(pictures, sets["steps"][1]) / 255
    np.testing.assert_allclose(batch["x"], wanted, rtol=1e-5, atol=1e-6)
    # and what is judged after the epoch is what is stored
    figures = train.part_figures(train.init_state(sets, config)["params"], sets, "val", config)
    x = data.preprocess(data.split_dataset(dataset, config)[1][0], sets["steps"])
    outputs, _ = nn.forward(train.init_state(sets, config)["params"], x)
    loss = nn.loss({}, outputs, sets["val"]["labels"])
    assert figures["val_loss"] == pytest.approx(loss, rel=0.01)  # those that are stored are rounded


def test_blank_images_have_no_gradients():
    images = np.zeros((4, 12), np.uint8)
    for names in (["hog"], ["pixels-and-hog", "center", "standardize"]):
        x = data.preprocess(images, data.fit_steps(names, images, (3, 4)))
        assert not x.any()


# --- principal components ---------------------------------------------------------------------


def test_pca_keeps_the_directions_of_the_largest_variance():
    rng = np.random.default_rng(0)
    images = np.clip(128 + rng.normal(size=(400, 3)) @ rng.normal(0, 25, (3, 12)), 0, 255).astype(np.uint8)
    steps = data.fit_steps(["scale", "pca:3"], images, (3, 4))
    x = images / 255
    centered = x - x.mean(axis=0)
    _, spread, directions = np.linalg.svd(centered, full_matrices=False)
    got = data.preprocess(images, steps, np.float64)
    np.testing.assert_allclose(np.abs(got), np.abs(centered @ directions[:3].T), atol=1e-9)
    np.testing.assert_allclose(got.std(axis=0), spread[:3] / np.sqrt(400), rtol=1e-9)
    assert data.preprocess(images, steps).dtype == np.float32


@pytest.mark.parametrize("names", [["scale", "pca:5"], ["pool", "scale"], ["pool", "scale", "pca:4"]])
def test_weights_in_pixels_give_the_same_sums(names):
    """x @ W on preprocessed inputs differs from pixels @ (W in pixels) by the same for every image."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 64, (50, 24), dtype=np.uint8) * 4  # 4x6; their 2x2 means are whole
    steps = data.fit_steps(names, images, (4, 6))
    inputs = data.preprocess(images, steps, np.float64)
    weights = rng.normal(size=(inputs.shape[1], 3))
    in_pixels = data.weights_in_pixels(weights, steps)
    assert in_pixels.shape == (24, 3)
    difference = inputs @ weights - images / 255 @ in_pixels
    np.testing.assert_allclose(difference, difference[:1].repeat(50, axis=0), atol=1e-9)


# --- distortions ------------------------------------------------------------------------------

STILL = {"max_shift": 0, "max_rotation": 0, "max_scaling": 0, "max_shear": 0, "bend": 0}


def distorted(pictures, names, seed=0, **strengths):
    how = data.make_augment(names, pictures.shape[1:], **{**STILL, **strengths})
    images = pictures.reshape(len(pictures), -1)
    return data.augment(images, how, np.random.default_rng(seed)).reshape(pictures.shape)


@pytest.mark.parametrize("kind", data.DISTORTIONS)
@pytest.mark.parametrize("shape", [(28, 28), (9, 14), (1, 1)])
def test_distortions_of_strength_0_change_nothing(kind, shape):
    pictures = np.random.default_rng(0).integers(0, 256, (70, *shape), dtype=np.uint8)
    np.testing.assert_allclose(distorted(pictures, [kind]), pictures, atol=0.01)


def test_nothing_to_do_is_none():
    assert data.make_augment([], (28, 28)) is None


def test_flip_turns_half_of_the_images():
    pictures = np.random.default_rng(0).integers(0, 256, (400, 4, 5), dtype=np.uint8)
    after = distorted(pictures, ["flip"])
    turned = (after == pictures[:, :, ::-1]).all(axis=(1, 2))
    assert ((after == pictures).all(axis=(1, 2)) | turned).all()
    assert 150 < turned.sum() < 250


def against_direct_calculation(pictures, names, seed=0, **strengths):
    """Largest difference from bilinear sampling written out, at the positions that are drawn."""
    how = data.make_augment(names, pictures.shape[1:], **{**STILL, **strengths})
    rows, columns = data._positions(len(pictures), how, np.random.default_rng(seed), np.float64)
    got = data.augment(
        pictures.reshape(len(pictures), -1), how, np.random.default_rng(seed), np.empty((len(pictures), 80))
    ).reshape(pictures.shape)
    worst = 0
    for n, picture in enumerate(pictures.astype(float)):
        for i, j in np.ndindex(picture.shape):
            y = min(max(rows[i, n, j], 0), picture.shape[0] - 1)
            x = min(max(columns[i, n, j], 0), picture.shape[1] - 1)
            top, left = int(y), int(x)
            down, right = min(top + 1, picture.shape[0] - 1), min(left + 1, picture.shape[1] - 1)
            upper = picture[top, left] * (1 - x + left) + picture[top, right] * (x - left)
            lower = picture[down, left] * (1 - x + left) + picture[down, right] * (x - left)
            worst = max(worst, abs(got[n, i, j] - (upper * (1 - y + top) + lower * (y - top))))
    return worst


def test_sampling_is_bilinear():
    pictures = np.random.default_rng(0).integers(0, 256, (7, 8, 10), dtype=np.uint8)
    strengths = {"max_shift": 2, "max_rotation": 20, "max_scaling": 0.2, "max_shear": 0.2, "bend": 1}
    assert against_direct_calculation(pictures, ["elastic"], **strengths) < 1e-9


def test_a_shift_moves_the_centre_of_mass_within_its_limits():
    pictures = np.stack([blob(size=(3, 3))] * 300)
    moves = [moments(after)[:2] for after in distorted(pictures, ["shift"], max_shift=4)]
    moves = np.array(moves) - moments(pictures[0])[:2]
    assert (
        (np.abs(moves) < 4.05).all() and (moves.max(axis=0) > 3.5).all() and (moves.min(axis=0) < -3.5).all()
    )
    np.testing.assert_allclose(moves.std(axis=0), 4 / np.sqrt(3), rtol=0.1)


def test_affine_turns_slants_and_scales():
    bar = np.stack([blob(size=(7, 1.2))] * 300)
    slants = [moments(after)[2] for after in distorted(bar, ["affine"], max_shear=0.3)]
    assert 0.27 < np.max(slants) < 0.31 and -0.31 < np.min(slants) < -0.27
    turned = [moments(after)[2] for after in distorted(bar, ["affine"], max_rotation=15)]
    assert 0.23 < np.max(turned) < 0.28  # the tangent of 15 degrees is 0.268
    spot = np.stack([blob(size=(3, 3))] * 300)
    mass = distorted(spot, ["affine"], max_scaling=0.2).sum(axis=(1, 2)) / spot[0].sum()
    assert 1.3 < mass.max() < 1.45 and 0.62 < mass.min() < 0.72  # both sides grow or shrink by a fifth


def test_elastic_displacements_have_the_size_and_smoothness_asked_for():
    how = data.make_augment(["elastic"], (28, 28), **{**STILL, "bend": 1.5, "smooth": 4.0})
    rows, columns = data._positions(4000, how, np.random.default_rng(0), np.float64)
    y, x = np.mgrid[:28, :28]
    for field in (rows.swapaxes(0, 1) - y, columns.swapaxes(0, 1) - x):  # (n, 28, 28)
        assert np.sqrt(np.square(field).mean()) == pytest.approx(1.5, rel=0.03)
        middle = field[:, 14, 14]
        for distance in (2, 4, 8):  # of a Gaussian with a Gaussian: correlation exp(-d^2 / (4 s^2))
            expected = np.exp(-(distance**2) / (4 * 4.0**2))
            found = np.corrcoef(middle, field[:, 14, 14 - distance])[0, 1]
            assert found == pytest.approx(expected, abs=0.05)
    assert abs(np.corrcoef((rows - y[:, None])[14, :, 14], (columns - x[:, None])[14, :, 14])[0, 1]) < 0.05


def test_distortions_come_from_the_generator_alone_and_leave_the_images():
    pictures = np.stack([blob(slant=0.2)] * 130)
    before = pictures.copy()
    strengths = {"max_shift": 1, "max_rotation": 5, "bend": 1}
    first, again = (distorted(pictures, ["elastic", "flip"], 3, **strengths) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(pictures, before)
    assert (first != distorted(pictures, ["elastic", "flip"], 4, **strengths)).any()
    assert (first[0] != first[1]).any() and (first[0] != first[129]).any()


# --- in a run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ["--preprocess", "deskew", "pool", "scale", "--augment", "elastic"],
        ["--preprocess", "width:4", "scale", "pca:7", "--augment", "shift", "flip", "--momentum", "0.9"],
        ["--preprocess", "scale", "center", "--augment", "affine", "--ema", "0.5", "--max-norm", "1"],
        ["--preprocess", "pool", "scale", "--augment", "affine", "--adversarial", "0.1"],
        ["--preprocess", "deskew", "hog:3", "center", "standardize", "--augment", "elastic"],
        ["--preprocess", "pixels-and-hog", "center", "standardize", "pca:9", "--augment", "flip"],
    ],
)
def test_runs_with_all_of_it_are_judged_drawn_and_resumed(tmp_path, flags):
    folder = write_dataset(tmp_path / "set", shape=(7, 6))
    flags = ["--dataset", folder, "--hidden", "5", "--val-size", "10", "--input-dropout", "0.2", *flags]
    run("train.py", *flags, "--epochs", "3", "--out", tmp_path / "whole")
    run("train.py", *flags, "--epochs", "2", "--out", tmp_path / "parts")
    run("train.py", "--resume", "--epochs", "3", "--out", tmp_path / "parts")
    last = [train.load_last(tmp_path / out)[0] for out in ("whole", "parts")]
    for key in ("params", "velocity", "average"):
        for name in last[0][key] or {}:
            np.testing.assert_array_equal(last[0][key][name], last[1][key][name])
    assert "accuracy" in run("test.py", tmp_path / "whole").stdout
    run("visualize.py", tmp_path / "whole", "--only", "fields,augment")
    assert (tmp_path / "whole/figures/fields.png").exists()
    assert (tmp_path / "whole/figures/augment.png").exists()


@pytest.mark.parametrize(
    "flags, names",
    [
        (["--augment", "shift", "affine"], []),
        (["--augment", "none", "flip"], []),
        (["--augment", "elastik"], ["elastic"]),
        (["--preprocess", "deskw"], ["deskew"]),
        (["--preprocess", "scale", "pool"], ["pool"]),
        (["--preprocess", "pca:900"], ["pca"]),
        (["--preprocess", "scale", "hog"], ["hog", "scale"]),
        (["--preprocess", "hog", "pixels-and-hog"], ["hog"]),
        (["--preprocess", "hog:0"], ["hog:7"]),
        (["--smooth", "0"], []),
    ],
)
def test_bad_flags_give_one_clear_line(small_set, tmp_path, flags, names):
    settings = ["--dataset", small_set, "--val-size", "10", "--epochs", "1", "--out", tmp_path / "out"]
    done = run("train.py", *settings, *flags, check=2)
    assert is_one_clear_line(done.stderr, *names) and flags[0] in done.stderr


# --- odd kinds and strengths, from flags and from damaged files ---------------------------------

NAMES = [["none"], ["elastic"], ["shift", "elastic"], ["flip"], ["none", "flip"], ["elastic"] * 3]


@pytest.fixture(scope="module")
def distorted_run(tmp_path_factory):
    """The params file of a run with distortions and steps of every kind."""
    folder = tmp_path_factory.mktemp("distorted")
    small = write_dataset(folder / "small", shape=(8, 9))
    base = ["--dataset", small, "--val-size", 12, "--hidden", 7, "--epochs", 1, "--out", folder / "run"]
    steps = ["deskew", "pool", "scale", "center", "standardize"]
    assert call(train.main, *base, "--augment", "elastic", "flip", "--preprocess", *steps)[0] == 0
    return folder / "run" / "params.pkl"


@pytest.mark.parametrize("name", ["augment", *data.STRENGTHS])
def test_any_distortion_that_is_accepted_works_without_a_warning(name):
    images, accepted = np.random.default_rng(0).integers(0, 256, (5, 72), np.uint8), 0
    for value in [*WORDS, *ODD_VALUES, *NAMES]:
        given = {"augment": ["elastic", "flip"], name: value}
        try:
            config = train.check_settings(given)
        except ValueError as error:
            assert train.flag(name) in str(error)
            continue
        how = data.make_augment(config["augment"], (8, 9), **{n: config[n] for n in data.STRENGTHS})
        if how:
            for dtype in train.DTYPES.values():
                x = data.augment(images, how, np.random.default_rng(0), np.empty(images.shape, dtype))
                assert 0 <= x.min() <= x.max() <= 255
        accepted += 1
    assert accepted


@pytest.mark.parametrize("count", [60, pytest.param(400, marks=pytest.mark.extended)])
def test_odd_distortions_and_steps_in_a_params_file_are_drawn_or_refused(distorted_run, tmp_path, count):
    honest, rng = nn.load_checkpoint(distorted_run), np.random.default_rng(count)
    odd = [{name: value} for name in ("augment", *data.STRENGTHS, "steps") for value in ODD_VALUES + NAMES]
    odd = [odd[i] for i in rng.permutation(len(odd))[:count]]
    parts = {name: honest["config"][name] for name in ("augment", "steps", *data.STRENGTHS)}
    odd += [altered(parts, rng, arrays=True) for _ in range(count)]

    def cases():
        for change in odd:
            content = copy.deepcopy(honest)
            content["config"].update(change)
            (tmp_path / "params.pkl").write_bytes(pickle.dumps(content))
            yield tmp_path

    assert 0 < count_fine(cases(), lambda folder: draw_folder(folder, ["augment"])) < len(odd)
