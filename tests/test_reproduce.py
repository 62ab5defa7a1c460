"""The table of reproduced systems comes from the runs' files."""

import json
import re

import benchmark
import pytest
import reproduce
from faults import call_refused

import train


@pytest.fixture
def rows(small_set, monkeypatch):
    flags = f"--dataset {small_set} --hidden 4 --val-size 0 --epochs 2"
    seeds = ["--seed 0", "--seed 1"]
    made = {
        "plain": ("4", "90 %", flags, seeds, reproduce.test_accuracy),
        "both": ("4", "91 %", None, (["plain", "fast"], 1), reproduce.alone_and_together),
        "fast": ("4", "92 %", flags, seeds, reproduce.seconds_to(0.0)),
        "never": ("4", "93 %", flags, seeds, reproduce.seconds_to(1.1)),
    }
    monkeypatch.setattr(reproduce, "ROWS", made)
    return made


def test_rows_are_trained_once_and_shown_from_their_files(rows, tmp_path, monkeypatch, capsys):
    tmp_path = tmp_path / "out"
    for name in rows:
        monkeypatch.setattr("sys.argv", ["reproduce.py", name, "--out", str(tmp_path), "--jobs", "2"])
        reproduce.main()
    shown = capsys.readouterr().out
    accuracy = [
        100
        * json.loads((tmp_path / "plain" / seed / "config.json").read_text())["result"]["kept"][
            "test_accuracy"
        ]
        for seed in "01"
    ]
    assert f"({accuracy[0]:.2f}, {accuracy[1]:.2f})" in shown
    assert re.search(r"\| both \| .*\); as a committee \*\*\d+\.\d\d %\*\*", shown)
    assert "not reached to 110 % in 0 of 2 runs" in shown and "to 0 % in 2 of 2 runs" in shown
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/params.pkl")}
    monkeypatch.setattr("sys.argv", ["reproduce.py", "--out", str(tmp_path)])
    reproduce.main()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/params.pkl")}
    assert len(before) == 6


def test_runs_with_other_settings_are_not_shown_but_trained_again(rows, tmp_path, monkeypatch, capsys):
    arguments = ["reproduce.py", "plain", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    reproduce.main()
    network, reported, flags, *rest = rows["plain"]
    rows["plain"] = (network, reported, f"{flags} --lr 0.125", *rest)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*arguments, "--show"])
    reproduce.main()
    assert "| plain |" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", arguments)
    reproduce.main()
    assert "--lr 0.125" in capsys.readouterr().out
    assert json.loads((tmp_path / "plain" / "0" / "config.json").read_text())["lr"] == 0.125


@pytest.mark.parametrize(
    "main, arguments, name",
    [
        (reproduce.main, ["--jobs", "0"], "--jobs"),
        (reproduce.main, ["--jobs", "x"], "--jobs"),
        (reproduce.main, ["nonsense"], "nonsense"),
        (benchmark.main, ["--runs", "0"], "--runs"),
        (benchmark.main, ["--threads", "0"], "--threads"),
        (benchmark.main, ["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_clear_line(monkeypatch, main, arguments, name):
    monkeypatch.setattr("sys.argv", ["script.py", *arguments])
    call_refused(lambda _: main(), names=[name])


def test_runs_that_have_not_ended_are_not_shown(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reproduce.py", "--show", "--out", str(tmp_path)])
    reproduce.main()
    assert "| plain |" not in capsys.readouterr().out
    assert not (tmp_path / "plain").exists()


def test_a_run_that_holds_out_its_default_share_is_its_own(tmp_path):
    flags = ["--dataset", "mnist", "--hidden", "4"]
    config = {**train.check_settings({"hidden": [4], "dataset": "mnist"}), "val_size": 6000}
    (tmp_path / "config.json").write_text(json.dumps({**config, "status": "finished"}))
    assert reproduce.finished(flags, tmp_path)
    assert not reproduce.finished([*flags, "--val-size", "0.2"], tmp_path)
