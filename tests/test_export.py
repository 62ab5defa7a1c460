import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT, is_one_clear_line, refused, run, write_dataset

import data
import nn
import test as judging

CLOSE = 2e-5  # the largest difference in probability that rounding to float32 may make


def network(folder, *flags, hidden=(6,)):
    """A small trained network: the folder of its run, its params and config, and its test images."""
    small = write_dataset(folder / "set", shape=(6, 5))
    given = ("--dataset", small, "--val-size", 12, "--batch-size", 8, "--epochs", 4, "--quiet")
    run("train.py", *given, "--hidden", *hidden, *flags, "--out", folder / "run")
    return folder / "run", *data.load_run(folder / "run"), data.load_dataset(str(small))["test_images"].copy()


def ours(params, config, images):
    x = data.preprocess(images, config["steps"], params["W1"].dtype)
    return nn.predict(params, x, config["activation"], config["loss"])


def in_onnxruntime(path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def in_c(path, images):
    """What a header has and makes of images: class names, likeliest classes (n,), outputs (n, k)."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler (cc)")
    program = path.parent / "program"
    (path.parent / "program.c").write_text(
        f"""#include "{path.name}"
#include <stdio.h>
int main(void) {{
  uint8_t pixels[{images.shape[1]}];
  float outputs[CLASSES];
  for (int k = 0; k < CLASSES; k++) puts(class_names[k]);
  while (fread(pixels, sizeof pixels, 1, stdin)) {{
    printf("%d", predict(pixels, outputs));
    for (int k = 0; k < CLASSES; k++) printf(" %.9g", outputs[k]);
    puts("");
  }}
}}
"""
    )
    strict = ("-std=c99", "-O2", "-pedantic-errors", "-Wall", "-Wextra", "-Werror")
    built = [compiler, *strict, str(path.parent / "program.c"), "-o", str(program), "-lm"]
    done = subprocess.run(built, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([str(program)], input=images.tobytes(), capture_output=True, check=True).stdout
    lines = shown.decode().splitlines()
    table = np.array([line.split() for line in lines[-len(images) :]], float)
    return lines[: -len(images)], table[:, 0].astype(int), table[:, 1:]


def rounded(params, config):
    """The network as a C header holds it."""
    folded, rest = judging.fold(params, config)
    whole, scales = judging.quantise(folded)
    assert all(w.dtype == np.int8 and np.abs(w).max() <= 127 for w in whole.values())
    return {**folded, **{key: whole[key] * scales[key] for key in whole}}, rest


NETWORKS = {  # what they differ in
    **{name: ["--activation", name] for name in nn.ACTIVATIONS},
    "center": ["--preprocess", "scale", "center"],
    "standardize": ["--preprocess", "standardize"],
    "pca": ["--preprocess", "center", "pca:7", "scale", "--lr", "0.01"],
    "mse": ["--loss", "mse", "--lr", "0.01"],
    "float64": ["--dtype", "float64"],
}


@pytest.mark.parametrize("flags", NETWORKS.values(), ids=NETWORKS)
def test_every_network_gives_the_same_in_onnxruntime(tmp_path, flags):
    folder, params, config, images = network(tmp_path, *flags, hidden=(6, 4))
    run("test.py", folder, "--export", tmp_path / "a.onnx")
    found = in_onnxruntime(tmp_path / "a.onnx", images)
    np.testing.assert_allclose(found, ours(params, config, images), atol=CLOSE)


@pytest.mark.parametrize("flags", NETWORKS.values(), ids=NETWORKS)
def test_a_header_computes_the_network_with_rounded_weights(tmp_path, flags):
    folder, params, config, images = network(tmp_path, *flags, hidden=(6, 4))
    run("test.py", folder, "--export", tmp_path / "a.h")
    _, likeliest, outputs = in_c(tmp_path / "a.h", images)
    held = ours(*rounded(params, config), images)
    np.testing.assert_allclose(outputs, held, atol=CLOSE)
    np.testing.assert_array_equal(likeliest, outputs.argmax(axis=1))
    np.testing.assert_allclose(held, ours(params, config, images), atol=0.1)


def untrained(params, activation="relu", loss="cross_entropy", names=None):
    """A config for params whose input is one row of grey levels, without preprocessing."""
    names = names or [str(k) for k in range(nn.layer_sizes(params)[-1])]
    facts = {"image_shape": [1, len(params["W1"])], "class_names": names}
    return {"activation": activation, "loss": loss, "steps": [], "data": facts}


def at_far_inputs(activation):
    """A network that gives what an activation makes of numbers far from zero: (params, config, image)."""
    at = np.float32([-3e30, -40, -1, 0, 1, 40, 3e30])
    params = {"W1": np.zeros((1, 7), np.float32), "b1": at, "W2": np.eye(7, dtype=np.float32), "b2": 0 * at}
    return params, untrained(params, activation, "mse"), np.zeros((1, 1), np.uint8)


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_an_activation_in_onnxruntime_is_right_far_from_zero(tmp_path, activation):
    params, config, image = at_far_inputs(activation)
    judging.save_onnx(tmp_path / "a.onnx", params, config)
    found, expected = in_onnxruntime(tmp_path / "a.onnx", image), ours(params, config, image)
    assert np.isfinite(found).all()
    near = slice(1, None)  # the runtime's sigmoid ends at 1e-8, and that times -3e30 is much
    np.testing.assert_allclose(found[:, near], expected[:, near], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_an_activation_in_c_is_right_far_from_zero(tmp_path, activation):
    params, config, image = at_far_inputs(activation)
    judging.save_header(tmp_path / "a.h", params, config)
    *_, outputs = in_c(tmp_path / "a.h", image)
    np.testing.assert_allclose(outputs, ours(params, config, image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [(0,), (6,), (300, 4)])
def test_onnx_checks_the_model(tmp_path, hidden):
    onnx = pytest.importorskip("onnx")
    folder, params, config, _ = network(tmp_path, "--activation", "gelu", hidden=hidden)
    run("test.py", folder, "--export", tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert json.loads(model.metadata_props[0].value) == config["data"]["class_names"]
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    folded, _ = judging.fold(params, config)
    assert all(np.array_equal(tensors[name], w) for name, w in folded.items())


def test_json_is_read_back_and_computes_the_same_in_numpy_and_pytorch(tmp_path):
    folder, params, config, images = network(tmp_path, "--preprocess", "scale", "center")
    run("test.py", folder, "--export", tmp_path / "a.json")
    content = data.load_json(tmp_path / "a.json")
    read = {name: np.array(w) for name, w in content["params"].items()}
    folded, _ = judging.fold(params, config)
    assert all(
        [float(f"{number:.6g}") for number in w.flat] == [*read[name].flat] for name, w in folded.items()
    )
    assert content["class_names"] == config["data"]["class_names"] and content["activation"] == "relu"
    expected = ours(params, config, images)
    np.testing.assert_allclose(nn.predict(read, images, "relu"), expected, atol=CLOSE)
    torch = pytest.importorskip("torch")
    layers = {name: torch.tensor(w, dtype=torch.float32) for name, w in content["params"].items()}
    hidden = torch.relu(torch.from_numpy(images).float() @ layers["W1"] + layers["b1"])
    found = torch.softmax(hidden @ layers["W2"] + layers["b2"], dim=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=CLOSE)


def test_npz_is_the_run_itself(tmp_path):
    folder, params, config, _ = network(tmp_path, "--preprocess", "deskew", "scale", "pca:9")
    assert str(tmp_path / "a.npz") in run("test.py", folder, "--export", tmp_path / "a.npz").stdout
    read, said = data.load_run(tmp_path / "a.npz")
    assert read.keys() == params.keys() and all(np.array_equal(read[name], w) for name, w in params.items())
    assert said.keys() == config.keys() and said["data"] == config["data"]
    found, known = (run("test.py", path, "--json").stdout for path in (tmp_path / "a.npz", folder))
    assert found == known


@pytest.mark.parametrize("suffix", [".onnx", ".json", ".h"])
def test_a_step_on_pictures_is_left_out_and_said(tmp_path, suffix):
    folder, params, config, images = network(tmp_path, "--preprocess", "deskew", "pool", "scale")
    path = tmp_path / f"a{suffix}"
    shown = run("test.py", folder, "--export", path).stdout.splitlines()[0]
    for text in (shown, path.read_bytes().decode(errors="replace")):
        assert "deskew and pool" in text and "3x3" in text
    if suffix == ".onnx":
        found = in_onnxruntime(path, data.redraw(images, config["steps"]))
        np.testing.assert_allclose(found, ours(params, config, images), atol=CLOSE)


def test_a_hostile_class_name_is_text_in_every_file(tmp_path):
    names = ['"};', "*/ \\", "what??/", "%s", "é 数 😀", "\\n'"]
    params = nn.init_params(np.random.default_rng(0), [4, 6])
    config = untrained(params, names=names)
    judging.save_json(tmp_path / "a.json", params, config)
    assert data.load_json(tmp_path / "a.json")["class_names"] == names
    judging.save_header(tmp_path / "a.h", params, config)
    assert in_c(tmp_path / "a.h", np.arange(4, dtype=np.uint8)[None])[0] == names


def test_a_unit_without_weights_is_no_division_by_zero():
    whole, scales = judging.quantise({"W1": np.float32([[0, 2e-43], [0, 0]]), "b1": np.zeros(2, np.float32)})
    assert not whole["W1"].any() and (scales["W1"] > 0).all() and scales["W1"].dtype == np.float32


def test_what_cannot_be_exported_is_one_line(tmp_path):
    folder, params, config, _ = network(tmp_path)
    for given, names in [
        (["--export", "a.txt"], ["--export", ".onnx", ".npz", ".json", ".h"]),
        (["--export", ""], ["--export", ".onnx"]),
        (["--export", tmp_path / "none" / "a.onnx"], [tmp_path / "none" / "a.onnx"]),
        (["--export", "a.onnx", "--json"], ["--export", "--json"]),
        (["--export", "a.onnx", "--compare"], ["--export", "--compare"]),
        (["--export", "a.onnx", "--images", "a.png"], ["--export", "--images"]),
        ([folder, "--export", tmp_path / "a.onnx"], ["--export", "committee"]),
    ]:
        assert is_one_clear_line(run("test.py", folder, *given, check=2).stderr, *names)
    with refused("square", "--export"):
        judging.fold(params, {**config, "activation": "square"})
    gradients = {"name": "hog", "shape": [4, 5], "number": 2}
    with refused("--export", "hog", ".npz"):
        judging.fold(params, {**config, "steps": [gradients]})
    with refused("--export", "float32"):
        judging.fold({**params, "b2": params["b2"] + np.float64(1e200)}, config)
    assert not (tmp_path / "a.onnx").exists()


def test_eight_bits_lose_no_accuracy_on_mnist(real_data, tmp_path):
    """The reference network's header is as accurate as the network, to a tenth of a point."""
    path = tmp_path / "digits.h"
    shown = run("test.py", ROOT / "results" / "reference", "--export", path, "--data-dir", real_data).stdout
    after, before = (float(word) for word in re.findall(r"([\d.]+) %", shown))
    assert before > 97 and after > before - 0.1
    dataset = data.load_dataset("mnist", real_data)
    _, likeliest, _ = in_c(path, dataset["test_images"])
    assert 100 * np.mean(likeliest == dataset["test_labels"]) == pytest.approx(after, abs=0.02)
