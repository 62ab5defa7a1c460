"""The page that visualize.py writes: what stands in it, and what it does in a real browser."""

import base64
import hashlib
import html
import io
import json
import re
import shlex

import numpy as np
import pytest
from browser import browser, open_page, value_of
from conftest import ROOT, make_run, run, write_dataset
from matplotlib.figure import Figure
from test_visualize import held

import data
import nn
import search
import visualize

EVIL = '</script><img src=x onerror="hacked=1"><script>hacked=1</script>{{content}}\u202e'


@pytest.fixture(scope="module")
def page(trained):
    run("visualize.py", trained)
    return trained / "figures" / "report.html"


@pytest.fixture(scope="module")
def searched(small, tmp_path_factory):
    """The page of a search."""
    out = tmp_path_factory.mktemp("search")
    space = ["--space", "lr=0.05:0.5:log", "hidden=3,12x5"]
    given = [*space, "--trials", 4, "--epochs", 2, "--dataset", small, "--out", out, "--workers", 1]
    assert not search.main(list(map(str, given)))
    path = out / "report.html"
    path.write_text(visualize.page_of(visualize.load_run(out, None, None), {}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A browser for all tests here."""
    with browser(tmp_path_factory.mktemp("browser")) as send:
        yield send


def checked(send):
    """What the page found out about itself: images, largest difference, images of another class."""
    return value_of(send, "(({images, largest, others}) => [+images, +largest, +others])($('check').dataset)")


def note_of(send):
    """What the page says about that."""
    return value_of(send, "$('check').textContent")


def made_up(steps=(), activation="relu", loss="cross_entropy", hidden=(9,), shape=(9, 8), fit="digit"):
    """What a folder would hold of a network that nobody has trained, and its test set."""
    rng = np.random.default_rng(3)
    ink = rng.integers(0, 256, (60, *shape)) * (rng.random((60, *shape)) < 0.6)
    images = ink.astype(np.uint8).reshape(60, -1)
    fitted = data.fit_steps(list(steps), images, shape)
    inputs = data.preprocess(images, fitted).shape[1]
    params = nn.init_params(rng, [inputs, *hidden, 3], activation, init="he")
    params = {name: w + rng.normal(0, 0.1, w.shape).astype(np.float32) for name, w in params.items()}
    facts = {"image_shape": list(shape), "class_names": ["cat", "dog", "emu"], "fit": fit, "edge": 0.0}
    config = {"steps": fitted, "activation": activation, "loss": loss, "data": facts}
    made = {**held(config=config), "config": config, "params": params, "date": "2020-02-02"}
    estimates = nn.predict(params, data.preprocess(images, fitted), activation, loss)
    labels = rng.integers(0, 3, 60)
    return {**made, "images": images, "labels": labels, "estimates": estimates}


def open_text(send, text, folder):
    """Open the text of a page; it must not complain."""
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    assert open_page(send, path) == []


def draw_line(send, *places):
    """Draw on the pad with a pressed mouse: places are shares of its width and height."""
    box = value_of(send, "$('pad').scrollIntoView(), $('pad').getBoundingClientRect().toJSON()")
    at = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in places]
    moves = [("mouseMoved", place) for place in at[1:]]
    for kind, place in [("mousePressed", at[0]), *moves, ("mouseReleased", at[-1])]:
        send("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)


def png():
    buffer = io.BytesIO()
    Figure(figsize=(1, 1)).savefig(buffer)
    return buffer.getvalue()


def bars(send):
    return value_of(
        send, "[...document.querySelectorAll('#bars .bar')].map((bar) => bar.style.backgroundSize)"
    )


# --- what stands in it ---


def test_the_page_names_what_was_trained_and_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert "<h1>small, 20-7-5-3, test accuracy" in text
    assert re.search(r"python train.py .*--hidden 7 5 .*--lr 0.05", text)
    sources = re.findall(r'\bsrc="([^"]{30})', text)
    assert len(sources) > 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"\b(href|action|srcset)=|https?:|url\(|@import|<link|<iframe|<object", text)


def test_its_policy_admits_its_own_style_and_script_alone(page):
    text = page.read_text(encoding="utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    for tag in ("style", "script"):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert allowed.pop(f"{tag}-src") == f"'sha256-{digest}'"
    none = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert allowed == {**none, "img-src": "data:"}
    assert not re.search(r"\bstyle=|\bon\w+=\"", re.sub("<script.*?</script>", "", text, flags=re.DOTALL))


def test_the_same_run_gives_the_same_page(trained):
    pages = [
        visualize.page_of(visualize.load_run(trained, None, None), {"a": ("A", png())}) for _ in range(2)
    ]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    "own", ["--strategy random --trials 4 --val-size 6000", "--strategy grid --val-size 0.1", "--folds 5"]
)
def test_a_search_is_made_again_by_the_command_on_its_page(own, tmp_path):
    given = ["--space", "lr=0.1,0.5", "hidden=3,12x5", *own.split(), "--seed", "3"]
    given += ["--nesterov", "--momentum", "0.5", "--out", str(tmp_path)]

    def defined(words):
        parser = data.make_parser("")
        search.add_flags(parser)
        return search.define(vars(parser.parse_args(words)), search.DEFAULT_SEARCH)

    told = defined(given)
    settings = {"settings": told["settings"], **{name: told[name] for name in visualize.SEARCHED}}
    made = {"definition": settings, "config": {}, "date": "", "title": ""}
    command = dict(visualize.page_facts(made))["to repeat it"]
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "search.py") and defined(words) == told
    made["definition"]["further"] = [[2, 9]]
    assert dict(visualize.page_facts(made))["and then"] == "python search.py --resume --best 2 --epochs 9"


def test_names_from_outside_are_text_and_no_more():
    run = made_up()
    run["config"]["data"]["class_names"] = [EVIL, "b", "c"]
    text = visualize.page_of({**run, "title": EVIL, "settings": {"dataset": EVIL}}, {"a": (EVIL, png())})
    assert text.count("<script") == 2 and text.count("<img") == 1 and "\u202e" not in text
    content = json.loads(re.search('id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert content["class_names"][0] == EVIL


def test_a_page_says_why_its_network_does_not_run(trained, monkeypatch):
    run = visualize.load_folder(trained)
    assert "members" in visualize.page_content(run)
    monkeypatch.setattr(visualize, "PAGE_NUMBERS", 100)
    assert "weights" in visualize.page_content(run)["why"]
    del run["params"]
    assert "params.pkl" in visualize.page_content(run)["why"]


def test_a_page_holds_a_few_images_of_each_cell_and_the_worst_mistakes(monkeypatch):
    run = made_up()
    chosen = visualize.page_images(run)
    cells = list(zip(run["labels"], run["estimates"].argmax(axis=1)))
    assert {cells[i] for i in chosen} == set(cells) and len(set(chosen)) == len(chosen)
    monkeypatch.setattr(visualize, "PAGE_BYTES", 72 * 7)
    mistakes = visualize.worst_mistakes(run["estimates"], run["labels"])
    chosen = visualize.page_images({**run, "mistakes": mistakes})
    assert chosen == mistakes[:7].tolist()


def test_weights_are_packed_to_24_bits():
    rng = np.random.default_rng(0)
    for w in (rng.normal(0, 1e4, (7, 5)), np.asfortranarray(rng.normal(0, 1e-9, (7, 5))), np.zeros(3)):
        held = visualize.packed(w)
        parts = np.frombuffer(base64.b64decode(held["text"]), np.uint8).reshape(*w.shape, 3) @ [1, 256, 65536]
        whole = np.where(parts < 2**23, parts, parts - 2**24)
        np.testing.assert_allclose(whole * held["unit"], w, rtol=0, atol=6e-8 * np.abs(w).max())


# --- what it does in a browser ---


def test_the_page_computes_what_the_program_does(opened, page):
    assert open_page(opened, page) == []
    images, largest, others = checked(opened)
    assert 30 < images <= 40 and largest < 1e-3 and others == 0
    assert f"the same class as the Python program for all {images:g} images" in note_of(opened)
    value_of(opened, "page.predicted[page.checked[0]] += 1, check()")
    assert f"for {images - 1:g} of {images:g} images" in note_of(opened)


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_every_activation_and_step_is_computed_as_the_program_does(opened, activation, tmp_path):
    number = list(nn.ACTIVATIONS).index(activation)
    steps = [["scale"], ["center", "scale"], ["standardize"], ["scale", "pca:7"]][number % 4]
    pictures = [["deskew"], ["width:5"], ["pool", "hog:3"], ["deskew", "width:6", "pixels-and-hog:4"]][
        number // 2
    ]
    loss, hidden = list(nn.LOSSES)[number % 2], [(9,), (12, 6), ()][number % 3]
    run = made_up([*pictures, *steps], activation, loss, hidden)
    open_text(opened, visualize.page_of(run, {}), tmp_path)
    images, largest, others = checked(opened)
    assert images > 30 and largest < 1e-3 and others == 0


@pytest.mark.parametrize(
    "fit, shape, edge",
    [("digit", (28, 28), 0), ("digit", (20, 31), 0), ("whole", (12, 9), 0), ("whole", (12, 9), 127)],
)
@pytest.mark.parametrize(
    "places",
    [[(30, 20), (100, 110), (90, 30)], [(70, 60), (70, 64), (75, 66)], [(5, 5), (135, 135), (9, 20)]],
)
def test_a_drawing_becomes_what_the_program_makes_of_it(opened, fit, shape, edge, places, tmp_path):
    run = made_up(fit=fit, shape=shape)
    run["config"]["data"]["edge"] = edge
    open_text(opened, visualize.page_of(run, {}), tmp_path)
    drawing = np.zeros(visualize.DRAWING)
    for start, end in zip(places, places[1:]):
        drawing = visualize.stroke(drawing, start, end)
        value_of(opened, f"stroke({list(start)}, {list(end)})")
    expected, _ = visualize.read_drawing(drawing, run["params"], run["config"])
    call = "redraw(); [...FITS[page.fit](ink, rows, columns).p]"
    image = np.array(value_of(opened, call)).reshape(shape)
    assert np.abs(image - expected).max() <= 1
    assert len(bars(opened)) == 3


def test_what_speaks_for_the_answer_is_the_slope_of_its_lead_times_the_grey_level(opened, tmp_path):
    run = made_up(["standardize", "pca:20"], "tanh", hidden=(8, 6))
    open_text(opened, visualize.page_of(run, {}), tmp_path)
    params = {name: w.astype(np.float64) for name, w in run["params"].items()}
    chosen = visualize.page_images(run)[0]
    image = run["images"][chosen].astype(np.float64)

    def lead(images):
        x = data.to_numbers(images, run["config"]["steps"], np.float64)
        outputs, _ = nn.forward(params, x, "tanh")
        return outputs[:, 0] - outputs[:, 2]

    nudges = 1e-3 * np.eye(len(image))
    slope = (lead(image + nudges) - lead(image - nudges)) / 2e-3
    shown = value_of(opened, "[...evidence(members[0], forward(members[0], testImage(0)), 0, 2).p]")
    np.testing.assert_allclose(shown, slope * image, rtol=0.01, atol=1e-3 * np.abs(slope * image).max())


def test_the_bars_follow_mouse_and_keys_and_are_cleared(opened, page):
    assert open_page(opened, page) == []
    assert bars(opened) == []
    draw_line(opened, (0.2, 0.3), (0.5, 0.4), (0.8, 0.9))
    line = bars(opened)
    assert len(line) == 3
    draw_line(opened, (0.2, 0.9), (0.4, 0.1), (0.9, 0.1))
    cross = bars(opened)
    assert cross != line
    value_of(opened, "$('clear').click()")
    assert bars(opened) == []
    value_of(opened, "$('pad').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        opened("Input.dispatchKeyEvent", type="keyDown", key=key)
    assert len(bars(opened)) == 3
    opened("Input.dispatchKeyEvent", type="keyDown", key="c")
    assert bars(opened) == []


def test_a_test_image_and_a_cell_of_the_matrix_can_be_clicked(opened, page):
    assert open_page(opened, page) == []
    value_of(opened, "document.querySelector('#clicked button').click()")
    assert value_of(opened, "$('answer').textContent").startswith("Image ")
    assert len(bars(opened)) == 3
    value_of(opened, "document.querySelector('.confusion .right').click()")
    behind = value_of(opened, "[...$('behind').querySelectorAll('button')].map((b) => b.textContent)")
    assert 0 < len(behind) <= 40 and len(set(behind)) == 1
    counts = value_of(
        opened, "[...document.querySelectorAll('.confusion button')].map((b) => +b.textContent)"
    )
    assert sum(counts) == 40


@pytest.mark.parametrize("fit", ["digit", "whole"])
def test_images_to_click_on_are_ink_on_paper_only_where_they_are_digits(opened, fit, tmp_path):
    run = made_up(fit=fit)
    open_text(opened, visualize.page_of(run, {}), tmp_path)
    levels = "document.querySelector('#clicked canvas').getContext('2d').getImageData(0, 0, 8, 9).data"
    shown = np.array(value_of(opened, f"[...{levels}]")).reshape(-1, 4)[:, 0]
    image = np.array(value_of(opened, "[...testImage(page.clicked[0]).p]"))
    np.testing.assert_array_equal(shown, 255 - image if fit == "digit" else image)


def test_a_ranking_sorts_by_each_column(opened, searched):
    assert open_page(opened, searched) == []

    def column(number):
        cell = (
            f"[...document.querySelectorAll('.sortable tbody tr')].map((r) => r.cells[{number}].textContent)"
        )
        return value_of(opened, cell)[:4]

    assert column(0) == ["1", "2", "3", "4"]
    heads = value_of(opened, "[...document.querySelectorAll('.sortable th')].map((h) => h.textContent)")[:6]
    assert heads == ["rank", "trial", "lr", "hidden", "epochs", "validation accuracy (%)"]
    click = "document.querySelectorAll('.sortable th button')[2].click()"
    value_of(opened, click)
    lrs = list(map(float, column(2)))
    assert lrs == sorted(lrs)
    value_of(opened, click)
    assert list(map(float, column(2))) == lrs[::-1]
    assert value_of(opened, "document.querySelectorAll('.sortable th')[2].ariaSort") == "descending"


def test_a_committee_is_a_page_of_its_members(opened, trained, small, tmp_path):
    other = make_run(tmp_path / "b", small, "--hidden", 4, "--epochs", 2, "--preprocess", "standardize")
    run("visualize.py", trained, other, "--out", tmp_path)
    assert open_page(opened, tmp_path / "report.html") == []
    images, largest, others = checked(opened)
    assert images > 30 and largest < 1e-3 and others == 0
    value_of(opened, "document.querySelector('#clicked button').click()")
    titles = value_of(opened, "[...document.querySelectorAll('#views figcaption')].map((f) => f.textContent)")
    assert len(titles) == 1 + 3 + 2 and "member 2" in titles[-1]


def test_runs_that_are_no_committee_have_a_page_that_says_why(trained, tmp_path):
    other = write_dataset(tmp_path / "other", classes=4)
    other = make_run(tmp_path / "b", other, "--hidden", 4, "--epochs", 1)
    made = visualize.load_committee([trained, other], None)
    assert "classes" in visualize.page_content(made)["why"]
    assert "why" not in visualize.page_content(visualize.load_committee([trained, trained], None))


def test_a_page_without_the_data_set_still_reads_what_is_drawn(opened, trained, tmp_path):
    open_text(opened, visualize.page_of(visualize.load_folder(trained), {}), tmp_path)
    draw_line(opened, (0.2, 0.3), (0.5, 0.4), (0.8, 0.9))
    assert len(bars(opened)) == 3


@pytest.mark.parametrize("kind", ["activation", "step"])
def test_what_you_have_added_to_the_program_is_why_there_is_no_pad(opened, kind, monkeypatch, tmp_path):
    if kind == "activation":
        monkeypatch.setitem(nn.ACTIVATIONS, "mine", nn.ACTIVATIONS["relu"])
        run = made_up(activation="mine")
    else:
        monkeypatch.setitem(data.PICTURE_STEPS, "mine", lambda pictures, step: pictures)
        run = made_up()
        run["config"]["steps"] = [{"name": "mine", "shape": [9, 8]}]
    open_text(opened, visualize.page_of(run, {}), tmp_path)
    assert "mine" in value_of(opened, "$('why').textContent")
    assert value_of(opened, "getComputedStyle($('live')).display") == "none"


def test_a_hostile_name_does_nothing(opened, tmp_path):
    run = made_up()
    run["config"]["data"]["class_names"] = [EVIL, "<b>b</b>", "c"]
    text = visualize.page_of({**run, "title": EVIL, "settings": {"dataset": EVIL}}, {"a": (EVIL, png())})
    open_text(opened, text, tmp_path)
    value_of(opened, "document.querySelectorAll('button').forEach((button) => button.click())")
    draw_line(opened, (0.2, 0.3), (0.5, 0.4), (0.8, 0.9))
    assert value_of(opened, "typeof hacked") == "undefined"
    assert value_of(opened, "document.querySelectorAll('main b, [src=x]').length") == 0
    value_of(
        opened, "document.body.append(Object.assign(document.createElement('script'), {text: 'hacked=1'}))"
    )
    assert value_of(opened, "typeof hacked") == "undefined", "its policy forbids any other script"


# what lies beyond its box, and texts whose colour is too near to what is behind them
CUT_OFF = """
[...document.querySelectorAll('body, body *')].filter((e) => {
  const style = getComputedStyle(e);
  return style.display !== 'inline' && e.scrollWidth > e.clientWidth + 1 && !e.closest('.wide');
}).map((e) => e.outerHTML.slice(0, 80))
"""
CONTRAST = """
(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((total, v, i) => total + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    const colour = getComputedStyle(e).backgroundColor;
    return parts(colour)[3] === 0 && e.parentElement ? behind(e.parentElement) : colour;
  };
  return [...document.querySelectorAll('body *')].filter((e) => [...e.childNodes].some((node) =>
    node.nodeType === 3 && node.data.trim()) && e.getClientRects().length && !e.disabled).filter((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((e) => e.outerHTML.slice(0, 80));
})()
"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_text_is_cut_off_or_pale(opened, page, searched, theme, width, tmp_path):
    long = made_up()
    long["config"]["data"]["class_names"] = ["W" * 20, "ß" * 20, "emu"]
    long |= {"title": "W" * 60, "settings": {"dataset": "W" * 300}}
    (tmp_path / "long.html").write_text(visualize.page_of(long, {}), encoding="utf-8")
    opened("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    opened("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    for path in (page, searched, tmp_path / "long.html"):
        assert open_page(opened, path) == []
        value_of(opened, "document.querySelector('#clicked button').click()")
        value_of(opened, "document.querySelector('.confusion button').click()")
        assert value_of(opened, CUT_OFF) == [] and value_of(opened, CONTRAST) == []


def test_everything_to_click_has_a_name_for_a_screen_reader(opened, page):
    assert open_page(opened, page) == []
    nodes = opened("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in ("button", "image")
        if not node.get("name", {}).get("value")
    ]
    assert not nameless


def test_the_page_of_a_default_run_is_small(opened, real_data, tmp_path):
    run("visualize.py", ROOT / "results" / "reference", "--out", tmp_path, "--data-dir", real_data)
    assert (tmp_path / "report.html").stat().st_size < 3e6
    assert open_page(opened, tmp_path / "report.html") == []
    images, largest, others = checked(opened)
    assert images == 100 and largest < 1e-3 and others == 0
