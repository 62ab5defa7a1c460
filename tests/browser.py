"""A headless Chromium to open pages in, by its debugging protocol over a pair of pipes."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


def find_browser():
    """The path of a Chromium; without one the test is skipped, or fails if it may not be."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found and os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"REQUIRE_BROWSER=1, but there is none of {', '.join(NAMES)}")
    return found or pytest.skip(f"no browser ({', '.join(NAMES)})")


@contextlib.contextmanager
def browser(folder):
    """A function ``send(method, **params)`` to an empty page of a browser; ``send.events``: what it said."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    there = f'exec "$0" "$@" 3</dev/fd/{to_read} 4>/dev/fd/{from_write}'  # where a browser looks for them
    command = ["sh", "-c", there, find_browser(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(to_read, from_write), **quiet)
    os.close(to_read)
    os.close(from_write)
    try:
        with open(to_write, "wb", buffering=0) as to, open(from_read, "rb") as answers:
            yield connected(to, answers)
    finally:
        process.kill()
        process.wait()


def connected(to, answers):
    numbers, events, session = itertools.count(1), [], {}

    def send(method, **params):
        number = next(numbers)
        message = {"id": number, "method": method, "params": params, **session}
        to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(read_message(answers))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            events.append(answer)

    targets = send("Target.getTargets")["targetInfos"]
    target = next(target for target in targets if target["type"] == "page")["targetId"]
    session["sessionId"] = send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        send(f"{domain}.enable")
    send.events = events
    return send


def read_message(answers):
    message = bytearray()
    while (byte := answers.read(1)) != b"\0":
        assert byte, "the browser has ended"
        message += byte
    return message


def value_of(send, expression):
    """What an expression in the page gives, once it is a promise that is kept."""
    answer = send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"].get("value")


def open_page(send, path):
    """Open a file and wait until all that its script does at first is done; returns what went wrong in it."""
    send.events.clear()
    send("Page.navigate", url=path.resolve().as_uri())
    value_of(send, "new Promise((done) => document.readyState === 'complete' ? done() : onload = done)")
    value_of(send, "new Promise((done) => setTimeout(() => setTimeout(done)))")
    return complaints(send)


def complaints(send):
    """Errors and warnings so far: exceptions, refusals of the policy, anything asked of the network."""
    told = []
    for event in send.events:
        if event["method"] == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            told.append(details.get("exception", {}).get("description") or details["text"])
        elif event["method"] == "Log.entryAdded":
            told.append(event["params"]["entry"]["text"])
        elif event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            told += [url] * (not url.startswith(("file:", "data:", "about:")))
    return told
