"""The page that visualize.py writes: what stands in it, and what it does in a real browser."""

import re

import pytest
from browser import browser, open_page, value_of
from conftest import run, write_dataset
from test_visualize import make_run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "small", train=80, test=40)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), small, "--hidden", 7, 5, "--epochs", 4, "--lr", 0.05)


@pytest.fixture(scope="module")
def page(trained):
    run("visualize.py", trained)
    return trained / "figures" / "report.html"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A browser for all tests here; a page that is opened in it must not complain."""
    with browser(tmp_path_factory.mktemp("browser")) as send:
        yield send


def checked(send):
    """What the page found out about itself: images, largest difference, images of another class."""
    return value_of(send, "(({images, largest, others}) => [+images, +largest, +others])($('check').dataset)")


# --- what stands in it ---


def test_the_page_names_what_was_trained_and_asks_for_nothing(page):
    text = page.read_text()
    assert "<h1>small, 20-7-5-3, test accuracy" in text
    assert re.search(r"python train.py .*--hidden 7 5 .*--lr 0.05", text)
    sources = re.findall(r'\bsrc="([^"]{30})', text)
    assert len(sources) > 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"\b(href|action|srcset)=|https?:|url\(|@import|<link|<iframe|<object", text)


# --- what it does in a browser ---


def test_the_page_computes_what_the_program_does(opened, page):
    assert not open_page(opened, page)
    images, largest, others = checked(opened)
    assert 30 < images <= 40 and largest < 1e-3 and others == 0
