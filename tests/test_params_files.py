import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import is_one_clear_line, refused
from faults import MEGA, Runs, check_hostile

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


def test_a_pkl_is_readable_without_us(tmp_path, params):
    nn.save_params(tmp_path / "params.pkl", params, CONFIG)
    code = (
        "import pickle\n"
        "content = pickle.load(open('params.pkl', 'rb'))\n"
        "print(sorted(content), content['params']['W1'].shape, content['config']['lr'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "['config', 'params'] (6, 5) 0.1\n", done.stderr


def test_an_npz_is_readable_without_us_and_has_no_pickle(tmp_path, params):
    nn.save_params(tmp_path / "params.npz", params, {"lr": 0.1})
    with np.load(tmp_path / "params.npz", allow_pickle=False) as file:
        assert set(file.files) == {"W1", "b1", "W2", "b2", "config"}
        assert str(file["config"]) == '{"lr": 0.1}'


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(tmp_path, params, protocol):
    config = {"mean": np.arange(6.0).reshape(2, 3).T, "n": np.int64(3), "list": [1, 2.5, "a"], "empty": {}}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"params": params, "config": config}, protocol=protocol))
    got, read = nn.load_params(tmp_path / "p.pkl")
    np.testing.assert_array_equal(got["W1"], params["W1"])
    np.testing.assert_array_equal(read["mean"], config["mean"])
    assert (read["n"], read["list"], read["empty"]) == (3, [1, 2.5, "a"], {})


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


def test_big_endian_params_become_native(tmp_path, params):
    swapped = {key: w.astype(">f4") for key, w in params.items()}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"params": swapped, "config": {}}))
    got, _ = nn.load_params(tmp_path / "p.pkl")
    assert got["W1"].dtype == np.float32 and got["W1"].dtype.isnative
    np.testing.assert_array_equal(got["W1"], params["W1"])


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
    "a tuple": lambda p: {"params": p, "config": {"a": (1, 2)}},
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


def test_shapes_that_lie_are_refused_without_taking_memory(tmp_path, params):
    content = pickle.dumps({"params": {"W1": np.zeros((3, 5), np.float32)}, "config": {}}, protocol=4)
    shape = b"K\x03K\x05"
    assert content.count(shape) == 1
    huge = content.replace(shape, b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f")
    (tmp_path / "p.pkl").write_bytes(huge[:2] + huge[11:])  # without the frame and its length
    with refused("p.pkl", error=ValueError):
        nn.load_params(tmp_path / "p.pkl")


@pytest.mark.parametrize("suffix", ["pkl", "npz"])
def test_a_cut_or_changed_file_is_an_error_or_the_same_network(tmp_path, params, suffix):
    path = tmp_path / f"p.{suffix}"
    nn.save_params(path, params, CONFIG)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for length in rng.integers(0, len(content), 60):
        path.write_bytes(content[:length])
        with refused(path, error=ValueError):
            nn.load_params(path)
    for _ in range(200):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            got, _ = nn.load_params(path)
        except ValueError as error:
            assert is_one_clear_line(f"{error}\n", path)
        else:
            nn.check_params(got)


def test_npz_with_objects_or_text_instead_of_config(tmp_path, params):
    for extra in (
        {"config": np.array([None])},
        {},
        {"config": np.array("no json")},
        {"config": np.array("[]")},
    ):
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


# --- hostile ----------------------------------------------------------------------------------


def pickled(body):
    """A params pickle whose config holds what the opcodes in body leave on the stack."""
    params = pickle.dumps(nn.init_params(np.random.default_rng(0), [2, 2]), protocol=2)[2:-1]
    return b"\x80\x04(X\x06\0\0\0params" + params + b"X\x06\0\0\0config}X\x01\0\0\0a" + body + b"sd."


def text(size):
    return b"X" + struct.pack("<I", size) + b"a" * size


def numbers_that_collide(count):
    step = sys.hash_info.modulus
    return b"".join(
        b"\x8a" + bytes([len(raw)]) + raw + b"N"
        for raw in ((i * step).to_bytes(16, "little") for i in range(1, count))
    )


def zipped(entries, **more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(shape, descr="<f4", content=b""):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + content


HOSTILE = {
    "arrays.pkl of the same bytes": lambda: pickled(
        b"cnumpy.core.multiarray\nscalar\nq\x01cnumpy\ndtype\n(X\x02\0\0\0u1K\0K\x01tRq\x02"
        + text(MEGA // 2) + b"q\x03c_codecs\nencode\nq\x04("
        + b"h\x04h\x03X\x06\0\0\0latin1\x86R" * 20_000 + b"l"
    ),
    "keys.pkl that collide": lambda: pickled(b"(" + numbers_that_collide(300_000) + b"d"),
    "product.pkl without end": lambda: pickled(
        b"cnumpy.core.numeric\n_frombuffer\n(C\x04aaaacnumpy\ndtype\n(X\x02\0\0\0f4K\0K\x01tR("
        + b"\x8a\xff" + b"\x7f" * 255 + b"q\x05" + b"h\x05" * 200_000 + b"tX\x01\0\0\0CtR"
    ),
    "dicts.pkl by the million": lambda: pickled(b"(" + b"}" * (2 * MEGA) + b"l"),
    "nested.pkl": lambda: pickled(b"(" * 100_000 + b"l" * 100_000),
    "itself.pkl": lambda: pickled(b"]q\x01h\x01a"),
    "bomb.npz": lambda: zipped({"W1.npy": npy((25 * MEGA,), content=bytes(100 * MEGA))}),
    "shape.npz": lambda: zipped({"W1.npy": npy((2**31, 2**31)), "b1.npy": npy((2**40,))}),
    "text.npz": lambda: zipped({"config.npy": npy((), "<U500000000", b"aaaa")}),
    "objects.npz": lambda: zipped({"config.npy": npy((), "|O", pickle.dumps(Runs()))}),
    "not-zip.npz": lambda: pickle.dumps(Runs()),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_params_take_no_memory_or_time(tmp_path, name):
    path = tmp_path / name.split()[0]
    path.write_bytes(HOSTILE[name]())
    check_hostile(path)
