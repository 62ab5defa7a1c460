"""Searching when things go wrong: memory, kills, disks, damaged files, nonsense, long searches."""

import pytest
from conftest import write_dataset
from faults import call, call_refused

import search
import train


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "small")


def flags(dataset, out, *more, space="lr=0.05:0.2 hidden=3:9"):
    """Flags of a small search of four trials with two workers; ``more`` wins."""
    usual = {"--trials": 4, "--workers": 2, "--epochs": 2, "--val-size": 12, "--batch-size": 16}
    words = [word for name, value in usual.items() if name not in more for word in (name, value)]
    return list(map(str, ["--dataset", dataset, "--out", out, "--space", *space.split(), *words, *more]))


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers, who", [(1, "this run"), (2, "2 trials at once"), (9, "4 trials at once")])
def test_a_space_with_a_hidden_layer_of_a_million_is_refused_before_anything_runs(
    tmp_path, monkeypatch, workers, who
):
    monkeypatch.setattr(train, "available_memory", lambda: 4e9)
    monkeypatch.setattr(search, "load_dataset", None)
    words = [who, "would need about", "GB of memory, and 4.0 GB are free", "--hidden"]
    given = flags("mnist", tmp_path / "out", "--workers", workers, space="hidden=100,1000000")
    call_refused(search.main, *given, words=words)
    assert not (tmp_path / "out").exists()


def test_trials_that_fit_into_memory_one_by_one_may_not_fit_together(small, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "available_memory", lambda: 3e6)
    space = "hidden=2000:2100"
    together = flags(small, tmp_path / "together", space=space)
    call_refused(search.main, *together, words=["2 trials at once", "fewer --workers"])
    one_by_one = flags(small, tmp_path / "out", "--workers", 1, "--trials", 2, "--lr", 0.001, space=space)
    assert call(search.main, *one_by_one)[0] == 0
