"""Downloads, driven against an HTTP server on the loopback address."""

import concurrent.futures
import contextlib
import errno
import gc
import gzip
import hashlib
import http.server
import os
import socket
import threading
import urllib.request  # noqa: F401  (now, not while a mirror is waited for)
import warnings

import numpy as np
import pytest
from conftest import HANG, refused, run_code, time_limit, write_dataset

import data

CONTENT = data.idx_bytes(np.arange(200, dtype=np.uint8))
ZIPPED = gzip.compress(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def reply(handler, status=200, body=ZIPPED, length=None, location=None):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    if location:
        handler.send_header("Location", location)
    handler.end_headers()
    handler.wfile.write(body)


def drip(handler, start=b"HTTP/1.0 200 OK\r\n\r\n", drop=b"\x1f"):
    """Send something again and again, without end, until the client hangs up."""
    with contextlib.suppress(OSError):
        handler.wfile.write(start)
        while not CLOSED.wait(0.05):
            handler.wfile.write(drop)
            handler.wfile.flush()


def no_end(handler):
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not CLOSED.is_set():
            handler.wfile.write(bytes(1 << 20))


ANSWERS = {
    "good": reply,
    "403": lambda h: reply(h, 403, b"forbidden"),
    "404": lambda h: reply(h, 404, b"not found"),
    "500": lambda h: reply(h, 500, b"error"),
    "html": lambda h: reply(h, 200, b"<html><body>Please log in</body></html>"),
    "cut": lambda h: reply(h, 200, ZIPPED[:60], length=len(ZIPPED)),
    "cut-without-length": lambda h: reply(h, 200, ZIPPED[:-9]),
    "wrong-hash": lambda h: reply(h, 200, gzip.compress(CONTENT[::-1])),
    "bomb": lambda h: reply(h, 200, gzip.compress(bytes(1 << 26), 9)),
    "empty": lambda h: reply(h, 200, b""),
    "junk-behind": lambda h: reply(h, 200, ZIPPED + b"<!-- served by proxy -->"),
    "member-behind": lambda h: reply(h, 200, ZIPPED + gzip.compress(b"more")),
    "moved": lambda h: reply(h, 302, b"", location="/good/f.gz"),
    "loop": lambda h: reply(h, 302, b"", location="/loop/f.gz"),
    "to-file": lambda h: reply(h, 302, b"", location="file:///etc/hostname"),
    "to-ftp": lambda h: reply(h, 302, b"", location="ftp://127.0.0.1:9/f.gz"),
    "no-number": lambda h: reply(h, 200, length="many"),
    "no-http": lambda h: h.wfile.write(b"\xff" * 100_000),
    "drip": drip,
    "drip-headers": lambda h: drip(h, b"HTTP/1.0 200 OK\r\n", b"X-1: a\r\n"),
    "silent": lambda h: CLOSED.wait(),
    "no-end": no_end,
}
BAD = [name for name in ANSWERS if name not in ("good", "moved", "no-number")]
SLOW = ["drip", "drip-headers", "silent"]  # without end
CLOSED = threading.Event()


@pytest.fixture(scope="module")
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            ANSWERS[self.path.split("/")[1]](self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that give up are the point here
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    CLOSED.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """What has no end is given up soon, and what has one never, however slow the machine."""
    fetch = data._fetch

    def patient(url, size):
        seconds = 0.2 if any(f"/{name}/" in url for name in SLOW) else HANG
        monkeypatch.setattr(data, "ANSWER_SECONDS", seconds)
        return fetch(url, size)

    monkeypatch.setattr(data, "_fetch", patient)


@pytest.fixture
def get(server, tmp_path):
    def get(*answers):
        target = tmp_path / "set" / "f.gz"
        urls = [f"{server}/{answer}/f.gz" for answer in answers]
        data.download_file(urls, target, SHA256, len(CONTENT))
        return target.read_bytes()

    with warnings.catch_warnings():  # urllib forgets a socket when a redirect is no URL at all
        warnings.simplefilter("ignore", ResourceWarning)
        yield get
        gc.collect()


@pytest.mark.parametrize("answer", ["good", "moved", "no-number"])  # what is right is right
def test_a_good_file_is_kept_as_served(get, tmp_path, answer):
    assert get(answer) == ZIPPED
    assert os.listdir(tmp_path / "set") == ["f.gz"]


@pytest.mark.parametrize("bad", BAD)
def test_after_a_bad_mirror_the_next_one_is_tried(get, tmp_path, bad):
    assert get(bad, "good") == ZIPPED
    assert os.listdir(tmp_path / "set") == ["f.gz"]


@pytest.mark.parametrize("bad", [name for name in BAD if name not in SLOW])
def test_when_no_mirror_is_good_nothing_is_left_and_all_are_listed(get, tmp_path, server, bad):
    with refused("f.gz", f"{server}/{bad}/f.gz", f"{server}/404/f.gz", error=OSError):
        get(bad, "404")
    assert not (tmp_path / "set").exists()


def test_when_all_mirrors_are_without_end_all_are_given_up_and_listed(get, tmp_path, server):
    with time_limit(), refused(*(f"{server}/{name}/f.gz" for name in SLOW), error=OSError):
        get(*SLOW)
    assert not (tmp_path / "set").exists()


def test_nobody_listens(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/f.gz"
        with refused(url, error=OSError):
            data.download_file([url], tmp_path / "f.gz", SHA256, 208)


def test_a_name_that_does_not_resolve(tmp_path):
    with refused("no-such-host.invalid", error=OSError):
        data.download_file(["http://no-such-host.invalid/f.gz"], tmp_path / "f.gz", SHA256, 208)


def test_a_full_disk_leaves_nothing(get, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused("f.gz", os.strerror(errno.ENOSPC), error=OSError):
        get("good", "good")
    assert os.listdir(tmp_path / "set") == []


@pytest.fixture
def mirrored(server, tmp_path, monkeypatch):
    """A source `mnist` whose mirrors are on this machine, with small files."""
    made = write_dataset(tmp_path / "origin", zipped=True)
    contents = {part: (made / f"{name}.gz").read_bytes() for part, name in data.FILES.items()}
    source = {
        **data.SOURCES["mnist"],
        "mirrors": [f"{server}/404/", f"{server}/origin/"],
        "sha256": {part: hashlib.sha256(gzip.decompress(c)).hexdigest() for part, c in contents.items()},
    }
    by_name = {f"{data.FILES[part]}.gz": content for part, content in contents.items()}
    monkeypatch.setitem(ANSWERS, "origin", lambda h: reply(h, body=by_name[h.path.split("/")[-1]]))
    monkeypatch.setitem(data.SOURCES, "mnist", source)
    monkeypatch.setattr(
        data, "SIZES", {part: len(gzip.decompress(content)) for part, content in contents.items()}
    )
    return source


def test_a_whole_dataset_is_downloaded_once(mirrored, tmp_path, monkeypatch):
    dataset = data.load_dataset("auto", tmp_path / "data")
    assert dataset["name"] == "mnist" and dataset["train_images"].shape == (60, 20)
    assert len(os.listdir(tmp_path / "data" / "mnist")) == 4
    monkeypatch.setattr(data, "download_file", None)
    assert data.load_dataset("mnist", tmp_path / "data")["sha256"] == dataset["sha256"]


def test_only_what_is_missing_is_downloaded(mirrored, tmp_path):
    data.load_dataset("mnist", tmp_path / "data")
    file = tmp_path / "data" / "mnist" / "t10k-images-idx3-ubyte.gz"
    others = {p.name: p.stat().st_mtime_ns for p in file.parent.iterdir() if p != file}
    file.unlink()
    data.load_dataset("mnist", tmp_path / "data")
    assert file.exists()
    assert others == {p.name: p.stat().st_mtime_ns for p in file.parent.iterdir() if p != file}


def test_mnist_never_falls_back_and_auto_says_so(mirrored, few_glyphs, tmp_path, capsys):
    mirrored["mirrors"] = mirrored["mirrors"][:1]
    with refused("404", error=OSError):
        data.load_dataset("mnist", tmp_path / "data")
    assert data.load_dataset("auto", tmp_path / "data")["name"] == "glyphs"
    warning = capsys.readouterr().err
    assert "NOT MNIST" in warning and "404" in warning and "--data-dir" in warning


def test_auto_gives_up_on_silent_mirrors_within_15_seconds(mirrored, few_glyphs, server, tmp_path):
    assert 2 * data.ANSWER_SECONDS < 14
    mirrored["mirrors"] = [f"{server}/silent/", f"{server}/drip/"]
    with time_limit():
        assert data.load_dataset("auto", tmp_path / "data")["name"] == "glyphs"


def test_several_downloads_at_once_do_no_harm(get, tmp_path):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert list(pool.map(get, ["good"] * 4)) == [ZIPPED] * 4
    assert (tmp_path / "set" / "f.gz").read_bytes() == ZIPPED
    assert os.listdir(tmp_path / "set") == ["f.gz"]


def test_several_processes_at_once_do_no_harm(server, tmp_path):
    code = (
        "import sys, data\n"
        "url, path, sha256, size = sys.argv[1:]\n"
        "for _ in range(20):\n"
        "    data.download_file([url], path, sha256, int(size))\n"
        "    data.load_idx(path)\n"
    )
    arguments = [f"{server}/good/f.gz", tmp_path / "set" / "f.gz", SHA256, len(CONTENT)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ended = [pool.submit(run_code, code, *arguments) for _ in range(3)]
    assert [done.result().stderr for done in ended] == [""] * 3
    assert (tmp_path / "set" / "f.gz").read_bytes() == ZIPPED
    assert os.listdir(tmp_path / "set") == ["f.gz"]


def test_a_data_folder_that_cannot_be_written(mirrored, tmp_path):
    (tmp_path / "a-file").write_text("kept")
    with refused("train-labels", os.strerror(errno.ENOTDIR), error=OSError):
        data.load_dataset("mnist", tmp_path / "a-file")
    assert (tmp_path / "a-file").read_text() == "kept"
