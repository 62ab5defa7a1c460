"""Distortions of odd kinds and strengths, from flags and from damaged params files."""

import copy
import pickle

import numpy as np
import pytest
from conftest import write_dataset
from faults import ODD_VALUES, WORDS, altered, call, outcomes

import data
import nn
import train
import visualize

NAMES = [["none"], ["elastic"], ["shift", "elastic"], ["flip"], ["none", "flip"], ["elastic"] * 3]


@pytest.fixture(scope="module")
def distorted(tmp_path_factory):
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


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.extended)])
def test_odd_distortions_and_steps_in_a_params_file_are_drawn_or_refused(distorted, tmp_path, count):
    honest, rng = nn.load_checkpoint(distorted), np.random.default_rng(count)
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

    fine, faults = outcomes(cases(), lambda folder: visualize.draw_folder(folder, ["augment"], None))
    assert not faults and 0 < fine < len(odd)
