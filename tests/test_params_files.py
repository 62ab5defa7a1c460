import errno
import io
import os
import pickle
import struct
import sys
import warnings
import zipfile

import numpy as np
import pytest
from conftest import is_one_clear_line, refused, run_code, time_limit
from faults import MEGA, Runs, check_hostile, npy, pickled, same_bytes, text, zipped

import nn


@pytest.fixture
def params():
    return nn.init_params(np.random.default_rng(0), [6, 5, 3])


CONFIG = {
    "lr": 0.1,
    "hidden": [5],
    "name": "relu",
    "none": None,
    "yes": True,
    "steps": [{"mean": np.arange(6.0)}],
}


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_round_trip_is_exact(tmp_path, params, suffix):
    path = tmp_path / f"params.{suffix}"
    nn.save_params(path, params, CONFIG)
    got, config = nn.load_params(path)
    assert list(got) == list(params)
    for key in params:
        np.testing.assert_array_equal(got[key], params[key])
        assert got[key].dtype == np.float32
    np.testing.assert_array_equal(config["steps"][0]["mean"], CONFIG["steps"][0]["mean"])
    assert {**config, "steps": 0} == {**CONFIG, "steps": 0}
    content = path.read_bytes()
    nn.save_params(path, got, config)
    assert path.read_bytes() == content, "the same content must give the same bytes"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_arrays_from_a_file_beside_new_ones_give_the_same_bytes(tmp_path, params, suffix):
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    nn.save_params(first, params, CONFIG, velocity={key: w.copy() for key, w in params.items()})
    got = nn.load_checkpoint(first)
    nn.save_params(second, params, got["config"], velocity=got["velocity"])
    assert second.read_bytes() == first.read_bytes()


def test_a_pkl_is_readable_without_us(tmp_path, params):
    nn.save_params(tmp_path / "params.pkl", params, CONFIG)
    code = (
        "import pickle\n"
        "content = pickle.load(open('params.pkl', 'rb'))\n"
        "print(sorted(content), content['params']['W1'].shape, content['config']['lr'])\n"
    )
    done = run_code(code, cwd=tmp_path)
    assert done.stdout == "['config', 'params'] (6, 5) 0.1\n", done.stderr


def test_an_npz_is_readable_without_us_and_has_no_pickle(tmp_path, params):
    nn.save_params(tmp_path / "params.npz", params, {"lr": 0.1})
    with np.load(tmp_path / "params.npz", allow_pickle=False) as file:
        assert set(file.files) == {"W1", "b1", "W2", "b2", "config"}
        assert str(file["config"]) == '{"lr": 0.1}'


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(tmp_path, params, protocol):
    config = {"mean": np.arange(6.0).reshape(2, 3).T, "n": np.int64(3), "list": [1, (2.5, "a")], "empty": {}}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"params": params, "config": config}, protocol=protocol))
    got, read = nn.load_params(tmp_path / "p.pkl")
    np.testing.assert_array_equal(got["W1"], params["W1"])
    np.testing.assert_array_equal(read["mean"], config["mean"])
    assert (read["n"], read["list"], read["empty"]) == (3, [1, [2.5, "a"]], {})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_files_of_both_numpy_generations_are_read(tmp_path, params, protocol):
    content = pickle.dumps({"params": params, "config": {}}, protocol=protocol)
    other = {b"numpy._core.": b"numpy.core.", b"numpy.core.": b"numpy._core."}
    here = next(name for name in other if name in content)
    there = other[here]
    # the module's name has a length byte before it (protocol 4 and 5) or stands on a line (2)
    for module in (b"multiarray", b"numeric"):
        old, new = here + module, there + module
        content = content.replace(bytes([len(old)]) + old, bytes([len(new)]) + new).replace(
            b"c" + old, b"c" + new
        )
    if protocol > 2:  # frames have a length as well: write the pickle without them
        assert content[2:3] == pickle.FRAME
        content = content[:2] + content[11:]
    (tmp_path / "p.pkl").write_bytes(content)
    np.testing.assert_array_equal(nn.load_params(tmp_path / "p.pkl")[0]["W1"], params["W1"])


@pytest.mark.parametrize("kept, used", [(">f4", "f4"), (">f8", "f8"), ("f2", "f4"), (">f2", "f4")])
def test_params_kept_in_another_form_become_what_the_network_takes(tmp_path, params, kept, used):
    other = {key: w.astype(kept) for key, w in params.items()}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"params": other, "config": {}}))
    got, _ = nn.load_params(tmp_path / "p.pkl")
    assert got["W1"].dtype == used and got["W1"].dtype.isnative
    np.testing.assert_array_equal(got["W1"], other["W1"])


# --- what must not load -----------------------------------------------------------------------


BAD_PICKLES = {
    "code at the top": lambda p: Runs(),
    "code in params": lambda p: {"params": Runs(), "config": {}},
    "code in config": lambda p: {"params": p, "config": {"a": [Runs()]}},
    "a function": lambda p: {"params": p, "config": {"a": print}},
    "an object array": lambda p: {"params": {**p, "W1": np.array([[None]])}, "config": {}},
    "a text array": lambda p: {"params": p, "config": {"a": np.array(["a"])}},
    "a set": lambda p: {"params": p, "config": {"a": {1}}},
    "bytes": lambda p: {"params": p, "config": {"a": b"a"}},
    "a key that is no string": lambda p: {"params": p, "config": {1: 2}},
    "no config": lambda p: {"params": p},
    "a list": lambda p: [1, 2],
    "config no dict": lambda p: {"params": p, "config": 3},
}
BAD_PARAMS = {  # what is wrong -> params, and the name that the error says
    "no layers": (lambda p: {}, "W1"),
    "a missing bias": (lambda p: {k: p[k] for k in ("W1", "b1", "W2")}, "b2"),
    "a strange name": (lambda p: {**p, "U1": p["W1"]}, "U1"),
    "a bias of another length": (lambda p: {**p, "b1": p["b1"][:2]}, "b1"),
    "a flat weight": (lambda p: {**p, "W1": p["W1"].ravel()}, "W1"),
    "layers that do not chain": (lambda p: {**p, "W2": p["W2"][:4]}, "W2"),
    "an empty layer": (lambda p: {**p, "W1": p["W1"][:0]}, "W1"),
    "whole numbers": (lambda p: {**p, "W1": p["W1"].astype(int)}, "W1"),
    "mixed dtypes": (lambda p: {**p, "W2": p["W2"].astype(float)}, "W2"),
    "nan": (lambda p: {**p, "b2": p["b2"] * np.nan}, "b2"),
    "inf": (lambda p: {**p, "W2": p["W2"] + np.inf}, "W2"),
}


@pytest.mark.parametrize("case", [*BAD_PICKLES, *BAD_PARAMS])
def test_bad_pickles_are_refused(tmp_path, monkeypatch, params, case):
    monkeypatch.chdir(tmp_path)
    make, *name = BAD_PARAMS.get(case, [BAD_PICKLES.get(case)])
    content = {"params": make(params), "config": {}} if name else make(params)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with refused("p.pkl", *name, error=ValueError):
        nn.load_params("p.pkl")
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_a_cut_file_is_an_error(tmp_path, params, suffix):
    path = tmp_path / f"p.{suffix}"
    nn.save_params(path, params, CONFIG)
    content = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(content), 60):
        path.write_bytes(content[:length])
        with refused(path, error=ValueError):
            nn.load_params(path)


def test_npz_with_objects_or_text_instead_of_config(tmp_path, params):
    for extra in ({"config": np.array(value)} if value else {} for value in ([None], "no json", "[]", None)):
        buffer = io.BytesIO()
        np.savez(buffer, **params, **extra)
        (tmp_path / "p.npz").write_bytes(buffer.getvalue())
        with refused("p.npz", error=ValueError):
            nn.load_params(tmp_path / "p.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, params):
    path = tmp_path / "p.pkl"
    nn.save_params(path, params, {"lr": 1.0})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused(os.strerror(errno.ENOSPC), error=OSError):
        nn.save_params(path, params, {"lr": 2.0})
    assert nn.load_params(path)[1] == {"lr": 1.0}
    assert os.listdir(tmp_path) == ["p.pkl"]


def test_only_two_suffixes(tmp_path, params):
    with refused(".json", error=ValueError):
        nn.save_params(tmp_path / "p.json", params, {})
    with refused(error=ValueError):
        nn.save_params(tmp_path / "p.pkl", params, {"f": print})


@pytest.mark.parametrize("config", [None, [], {1: 2}, {"a": {2: 3}}])
@pytest.mark.parametrize("suffix", [".pkl", ".npz"])
def test_a_config_that_could_not_be_read_back_is_not_written(tmp_path, params, config, suffix):
    with refused(error=ValueError):
        nn.save_params(tmp_path / f"params{suffix}", params, config)
    assert os.listdir(tmp_path) == []


# --- pickles made by hand: none hangs, ends the process or runs anything ----------------------

START = b"\x80\x04"
DTYPE = b"cnumpy\ndtype\n"
F4 = DTYPE + b"(\x8c\x02f4K\x00K\x01tR"
SCALAR = b"cnumpy._core.multiarray\nscalar\n"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
MODULUS = sys.hash_info.modulus


def nested(depth=60):
    """A tuple (t, t) of tuples (t, t) ...: small, but without end for whoever hashes or prints it."""
    return b"K\x01\x85\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(depth))


def array_of(content, spec=F4, shape=b"K\x01\x85"):
    """A call of _frombuffer."""
    buffer = b"B" + struct.pack("<I", len(content)) + content
    return b"cnumpy.core.numeric\n_frombuffer\n(" + buffer + spec + shape + text(b"C") + b"tR"


BOMBS = {
    "hash of a function's name": nested() + b")R",
    "hash of a deep tuple": b")" + b"\x85" * 190_000 + b")R",
    "byte order": DTYPE + text(b"f4") + b"\x85R(K\x03" + nested() + b"tb",
    "byte order that is none": DTYPE + text(b"f4") + b"\x85R(K\x03" + text(b"O,") + b"tb",
    "dtype's name": SCALAR + DTYPE + nested() + b"\x85RC\x04\0\0\0\0\x86R",
    "dtype of objects": array_of(bytes(8), DTYPE + text(b"O8") + b"\x85R"),
    "dtype that is a dict": array_of(bytes(4), b"}(" + text(b"type") + text(b"f4") + b"u"),
    "key": b"}" + nested() + b"Ns",
    "keys": b"}(" + nested() + b"Nu",
    "keys of a dict": b"(" + nested() + b"Nd",
    "key of an array": array_of(bytes(4)) + nested() + b"K\x00s",
    "keys that collide": b"(" + b"".join(b"L%dL\nN" % (i * MODULUS) for i in range(1, 300_000)) + b"d",
    "places that collide": b"N" + b"".join(b"p%d\n" % (i * MODULUS) for i in range(1, 60_000)),
    "places of lists": b"]" + b"".join(b"q%c" % i for i in range(256)),
    "names": nested() + b"h\x05\x93",
    "name": text(b"numpy") + nested() + b"\x93",
    "long name": b"c" + b"a" * 4_000_000 + b"\nb\n",
    "something to run": b"cos\nmkdir\n" + text(b"it-ran") + b"\x85R",
    "to run in NumPy": b"cnumpy.core.multiarray\narray\n)R",
    "to run by its parts": b"cnumpy\ndtype.__new__\n)R",
    "instance": b"(" + text(b"it-ran") + b"ios\nmkdir\n",
    "object": b"(cos\nmkdir\n" + text(b"it-ran") + b"o",
    "new object": b"cos\nmkdir\n" + text(b"it-ran") + b"\x85\x81",
    "new object with names": b"cos\nmkdir\n" + text(b"it-ran") + b"\x85}\x92",
    "registered": b"\x82\x01",
    "registered 4": b"\x84\x01\0\0\0",
    "persistent": b"Pit-ran\n",
    "persistent from the stack": nested() + b"Q",
    "set": b"\x8f(" + nested() + b"\x90",
    "frozen set": b"(" + nested() + b"\x91",
    "buffer": b"\x97",
    "read-only buffer": b"\x97\x98",
    "Python 2's text": b"S'a'\n",
    "twice": b"N2",
    "away": b"N0",
    "bytes of a terabyte": b"\x8e" + struct.pack("<Q", 1 << 40) + b"a",
    "bytearray of a terabyte": b"\x96" + struct.pack("<Q", 1 << 40) + b"a",
    "frame of a terabyte": b"\x95" + struct.pack("<Q", 1 << 40) + b"N",
    "text of a terabyte": b"\x8d" + struct.pack("<Q", 1 << 40) + b"a",
    "array as arguments": DTYPE
    + array_of(bytes(8_000_000), DTYPE + text(b"u1") + b"\x85R", b"J\x00\x12\x7a\x00\x85")
    + b"R",
    "array called": array_of(bytes(4)) + b")R",
    "no shape": array_of(bytes(4), shape=nested()),
    "shape of many dimensions": array_of(bytes(4), shape=b"(" + b"K\x01" * 190_000 + b"t"),
    "shape beyond all": array_of(bytes(4), shape=b"\x8a\x09" + bytes(8) + b"\x01\x85"),
    "shape that overflows": array_of(b"", shape=b"\x8a\x05\0\0\0\0\x01\x8a\x05\0\0\0\0\x01\x86"),
    "state of a text": text(b"a") + b"Nb",
    "state of a dict": b"}}" + text(b"a") + b"Nsb",
    "state of itself": ARRAY + b"\x94h\x00b",
    "array's state": ARRAY + b"(K\x01K\x04\x85" + F4 + b"\x89" + nested() + b"tb",
    "array's order": ARRAY + b"(K\x01K\x01\x85" + F4 + nested() + b"C\x04\0\0\0\0tb",
    "the same bytes many times": b"(" + text(b"a" * 1_000_000) + b"q\x01"
    + b"c_codecs\nencode\nq\x02" + b"h\x02h\x01N\x86R" * 20_000 + b"l",
    "list in itself": b"]\x94h\x00a",
    "lists doubled": b"]\x94" + b"".join(b"]\x94(h%ch%ce" % (i, i) for i in range(60)),
    "lists deep": b"(" * 90_000 + b"l" * 90_000,
    "nothing": b"",
    "empty stack": b"a",
    "no mark": b"u",
}  # fmt: skip
HARMLESS = {
    "Python 2's text",
    "list in itself",  # in a config it is one in the params
    "places of lists",
    "frame of a terabyte",
    "array's order",
}  # read as the data that they hold
LOAD_ALL = """
import os
import nn

for name in sorted(os.listdir(".")):
    print(name, end=": ", flush=True)
    try:
        nn.load_checkpoint(name)
    except ValueError as error:
        print("refused", repr(str(error)), flush=True)
    else:
        print("READ")
    if os.path.exists("it-ran"):
        print("RAN")
"""


def test_pickles_made_to_hang_or_to_run_are_refused(tmp_path):
    for name, body in BOMBS.items():
        (tmp_path / f"{name}.pkl").write_bytes(START + body + b".")
        (tmp_path / f"{name} in a config.pkl").write_bytes(pickled(body))
    done = run_code(LOAD_ALL, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout[-300:] + done.stderr  # the last name is the one that did it
    odd = {line for line in lines if ": refused" not in line}
    assert odd == {f"{name} in a config.pkl: READ" for name in HARMLESS}
    assert len(lines) == 2 * len(BOMBS) == len(os.listdir(tmp_path))


def test_what_the_bombs_are_made_of_is_read_where_it_is_sound(tmp_path):
    four = struct.pack("<f", 0.5)
    sound = {
        "array": array_of(four),
        "big-endian": array_of(four[::-1], DTYPE + text(b"f4") + b"\x85R(K\x03" + text(b">") + b"NNNtb"),
        "state": ARRAY + b"(K\x01K\x01\x85" + F4 + b"\x89C\x04" + four + b"tb",
        "scalar": SCALAR + F4 + b"C\x04" + four + b"\x86R",
    }
    for name, body in sound.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickled(body))
        _, config = nn.load_params(tmp_path / f"{name}.pkl")
        assert np.all(config["a"] == 0.5), name


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_a_file_has_a_largest_size_written_and_read(tmp_path, monkeypatch, params, suffix):
    path = tmp_path / f"p.{suffix}"
    nn.save_params(path, params, {})
    content = path.read_bytes()
    monkeypatch.setattr(nn, "MOST_BYTES", len(content))
    nn.save_params(path, params, {})
    nn.load_params(path)
    monkeypatch.setattr(nn, "MOST_BYTES", len(content) - 1)
    with pytest.raises(ValueError, match=path.name):
        nn.load_params(path)
    with pytest.raises(ValueError, match=path.name):
        nn.save_params(path, params, {"a": 1})
    assert path.read_bytes() == content


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, params):
    nn.save_params(tmp_path / "p.npz", params, {})

    def full(content):
        raise MemoryError

    monkeypatch.setattr(nn, "npy_array", full)
    with pytest.raises(MemoryError, match=r"p\.npz"):
        nn.load_params(tmp_path / "p.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_npz_whose_entries_share_a_name_is_quickly_done(tmp_path, compression):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "p.npz", "w", compression) as archive:
        warnings.simplefilter("ignore")
        for size in [0] * 20_000 + [2_000_000]:
            archive.writestr("W1.npy", bytes(size))
    with time_limit(), refused("p.npz", error=ValueError):
        nn.load_params(tmp_path / "p.npz")


# --- the one checker --------------------------------------------------------------------------

NUMBER = (int, float)
KINDS = [  # kind, values of it, values that are not, with what the message names
    (int, [0, -3], [(True, "True"), (1.0, "1.0"), ("1", "'1'"), (None, "None"), ([], "list")]),
    (None, [None], [(0, "0"), ("", "''")]),
    (NUMBER, [1, 2.5], [(True, "True"), ("x" * 999, "'xxx")]),
    ((NUMBER, None), [1, 2.5, None], [("a", "'a'"), ([1], "list")]),
    ([int], [[], [1, 2], (3,)], [([1, 2.0], "[1]"), ("12", "'12'"), ({}, "dict"), (None, "None")]),
    ([[str]], [[], [["a"], []]], [([["a"], ["b", 1]], "[1][1]"), (["a"], "[0]")]),
    ({"a": int}, [{"a": 1}, {"a": 1, 2: 3}], [({}, "a"), ({"a": None}, "a"), ([], "list"), ({"b": 1}, "a")]),
    ({"a?": int}, [{}, {"a": None}, {"a": 1}], [({"a": "1"}, "a"), ("a", "'a'")]),
    ({"a": (None, int)}, [{"a": None}, {"a": 1}], [({}, "a")]),
    ({str: [int]}, [{}, {"x": [1]}], [({1: [1]}, "key"), ({"x\n": [1, None]}, "'x\\n'[1]"), ([], "list")]),
    ((None, {"a": {"b": int}}), [None, {"a": {"b": 1}}], [({"a": {"b": "1"}}, "a: b"), ({"a": {}}, "b")]),
    (np.ndarray, [np.zeros((2, 2))], [([0.0], "list"), (np.float64(1), "1.0")]),
]


@pytest.mark.parametrize("kind, fine, wrong", KINDS)
def test_a_checked_value_is_of_its_kind(kind, fine, wrong):
    for value in fine:
        assert nn.check(value, kind, "config") is None
    for value, named in wrong:
        with pytest.raises(ValueError) as error:
            nn.check(value, kind, "config")
        assert is_one_clear_line(f"{error.value}\n", "config", named) and len(str(error.value)) < 200


# --- hostile ----------------------------------------------------------------------------------


HOSTILE = {
    "arrays.pkl of the same bytes": same_bytes,
    "product.pkl without end": lambda: pickled(
        b"cnumpy.core.numeric\n_frombuffer\n(C\x04aaaacnumpy\ndtype\n(X\x02\0\0\0f4K\0K\x01tR("
        + b"\x8a\xff" + b"\x7f" * 255 + b"q\x05" + b"h\x05" * 200_000 + b"tX\x01\0\0\0CtR"
    ),
    "dicts.pkl by the million": lambda: pickled(b"(" + b"}" * (2 * MEGA) + b"l"),
    "nested.pkl": lambda: pickled(b"(" * 100_000 + b"l" * 100_000),
    "bomb.npz": lambda: zipped({"W1.npy": npy((25 * MEGA,), content=bytes(100 * MEGA))}),
    "shape.npz": lambda: zipped({"W1.npy": npy((2**31, 2**31)), "b1.npy": npy((2**40,))}),
    "text.npz": lambda: zipped({"config.npy": npy((), "<U500000000", b"aaaa")}),
    "objects.npz": lambda: zipped({"config.npy": npy((), "|O", pickle.dumps(Runs()))}),
    "not-zip.npz": lambda: pickle.dumps(Runs()),
}  # fmt: skip


def test_hostile_params_take_no_memory_or_time(tmp_path):
    check_hostile(tmp_path, HOSTILE)
