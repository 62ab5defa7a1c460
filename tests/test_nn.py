import itertools
import math

import numpy as np
import pytest
from conftest import refused

import nn

SIZES = {0: [6, 4], 1: [6, 5, 4], 2: [6, 5, 7, 4], 3: [6, 5, 7, 3, 4]}


def network(depth=1, activation="relu", dtype=np.float64, n=8, seed=0):
    rng = np.random.default_rng(seed)
    params = nn.init_params(rng, SIZES[depth], activation, dtype=dtype)
    params = {k: w + rng.normal(0, 0.1, w.shape).astype(dtype) for k, w in params.items()}
    return params, rng.normal(size=(n, 6)).astype(dtype), rng.integers(0, 4, n)


def all_bytes(value):
    """A nested value with every array as its bytes: to see that nothing changed."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        value = list(value.values())
    return [all_bytes(item) for item in value] if isinstance(value, (list, tuple)) else value


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("depth", SIZES)
@pytest.mark.parametrize("loss", nn.LOSSES)
@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_gradients_agree_with_finite_differences(activation, loss, depth, dropout):
    params, x, y = network(depth, activation)
    decay, eps = 0.03, 1e-6

    def value(params):
        outputs, _ = nn.forward(params, x, activation, dropout, np.random.default_rng(1))
        return nn.loss(params, outputs, y, loss, decay)

    _, cache = nn.forward(params, x, activation, dropout, np.random.default_rng(1))
    grads = nn.backward(params, cache, y, loss, decay)
    for key, w in params.items():
        numeric = np.empty_like(w)
        for at in np.ndindex(w.shape):
            step = np.zeros_like(w)
            step[at] = eps
            plus, minus = value({**params, key: w + step}), value({**params, key: w - step})
            numeric[at] = (plus - minus) / (2 * eps)
        scale = max(np.abs(numeric).max(), np.abs(grads[key]).max(), 1e-3)
        assert np.abs(numeric - grads[key]).max() / scale < 1e-6, key


# --- the core functions, against direct calculations ------------------------------------------


def test_forward_is_what_it_says():
    params, x, _ = network(2, "tanh")
    h1 = np.tanh(x @ params["W1"] + params["b1"])
    h2 = np.tanh(h1 @ params["W2"] + params["b2"])
    outputs, _ = nn.forward(params, x, "tanh")
    np.testing.assert_allclose(outputs, h2 @ params["W3"] + params["b3"], rtol=1e-12)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("relu", lambda z: np.where(z > 0, z, 0)),
        ("leaky_relu", lambda z: np.where(z > 0, z, 0.01 * z)),
        ("sigmoid", lambda z: 1 / (1 + np.exp(-z))),
        ("tanh", np.tanh),
    ],
)
def test_activations(name, expected):
    z = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(nn.ACTIVATIONS[name][0](z.copy()), expected(z), rtol=1e-12)


def test_losses_against_direct_calculation():
    params, x, y = network()
    outputs, _ = nn.forward(params, x)
    p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert nn.loss(params, outputs, y) == pytest.approx(-np.log(p[np.arange(8), y]).mean())
    distance = ((outputs - np.eye(4)[y]) ** 2).sum(axis=1)
    assert nn.loss(params, outputs, y, "mse") == pytest.approx(0.5 * distance.mean())
    penalty = 0.5 * 0.1 * sum((params[key] ** 2).sum() for key in ("W1", "W2"))
    assert nn.loss(params, outputs, y, weight_decay=0.1) == pytest.approx(
        nn.loss(params, outputs, y) + penalty
    )


def test_weight_decay_leaves_biases_alone():
    params, x, y = network()
    _, cache = nn.forward(params, x)
    plain, decayed = nn.backward(params, cache, y), nn.backward(params, cache, y, weight_decay=0.1)
    np.testing.assert_allclose(decayed["W1"], plain["W1"] + 0.1 * params["W1"])
    np.testing.assert_array_equal(decayed["b1"], plain["b1"])


@pytest.mark.parametrize("loss", nn.LOSSES)
def test_label_smoothing_against_direct_calculation(loss):
    params, x, y = network()
    outputs, cache = nn.forward(params, x)
    target = 0.9 * np.eye(4)[y] + 0.1 / 4
    log_p = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    direct = {
        "cross_entropy": -(target * log_p).sum(axis=1),
        "mse": 0.5 * ((outputs - target) ** 2).sum(axis=1),
    }
    assert nn.loss(params, outputs, y, loss, label_smoothing=0.1) == pytest.approx(direct[loss].mean())
    grads, eps = nn.backward(params, cache, y, loss, label_smoothing=0.1), 1e-6
    for key, index in (("W1", (2, 3)), ("b1", 1), ("W2", (4, 0)), ("b2", 2)):
        values = []
        for step in (eps, -eps):
            moved = {k: w.copy() for k, w in params.items()}
            moved[key][index] += step
            values.append(nn.loss(moved, nn.forward(moved, x)[0], y, loss, label_smoothing=0.1))
        assert grads[key][index] == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_are_limited_unit_by_unit_in_hidden_layers(dtype):
    params, _, _ = network(2, dtype=dtype)
    before = all_bytes(params)
    limited = nn.limit_norms(params, 1.2)
    assert all_bytes(params) == before
    for key, w in params.items():
        if key in ("W1", "W2"):
            for new, old in zip(limited[key].T, w.T):
                right = old * min(1, 1.2 / np.linalg.norm(old))
                np.testing.assert_allclose(new, right, rtol=1e-5 if dtype == np.float32 else 1e-12)
        else:
            np.testing.assert_array_equal(limited[key], w)
        assert limited[key].dtype == dtype
    assert {np.linalg.norm(w) > 1.2 for w in params["W1"].T} == {True, False}
    assert nn.limit_norms(params, 1.2, out=params) is params
    assert all_bytes(params) == all_bytes(limited)


def test_average_is_exponential():
    first, second, third = (network(seed=seed)[0] for seed in range(3))
    mean = nn.average(third, nn.average(second, first, 0.75), 0.75)
    for key in first:
        right = 0.75**2 * first[key] + 0.75 * 0.25 * second[key] + 0.25 * third[key]
        np.testing.assert_allclose(mean[key], right, rtol=1e-12)


def test_scaled_gradients_are_the_gradients_times_the_scale():
    params, x, y = network()
    _, cache = nn.forward(params, x)
    plain, scaled = (nn.backward(params, cache, y, weight_decay=0.1, scale=scale) for scale in (1.0, 0.3))
    for key in params:
        np.testing.assert_allclose(scaled[key], 0.3 * plain[key], rtol=1e-12)


def test_predict_gives_probabilities_or_linear_outputs():
    params, x, _ = network()
    outputs, _ = nn.forward(params, x)
    np.testing.assert_allclose(nn.predict(params, x).sum(axis=1), 1)
    np.testing.assert_array_equal(nn.predict(params, x).argmax(axis=1), outputs.argmax(axis=1))
    np.testing.assert_array_equal(nn.predict(params, x, loss="mse"), outputs)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_sgd_step_follows_the_formulas(momentum, nesterov, decay):
    params, x, y = network()
    grads = nn.backward(params, nn.forward(params, x)[1], y)
    velocity = {key: np.full_like(w, 0.3) for key, w in params.items()}
    new_params, new_velocity = nn.sgd_step(params, grads, velocity, 0.1, momentum, nesterov, decay)
    for key, w in params.items():
        g = grads[key] + (decay * w if key[0] == "W" else 0)
        v = momentum * velocity[key] - 0.1 * g
        np.testing.assert_allclose(new_velocity[key], v, rtol=1e-12)
        expected = w + momentum * v - 0.1 * g if nesterov else w + v
        np.testing.assert_allclose(new_params[key], expected, rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_step_without_a_velocity_starts_from_zero(nesterov):
    params, x, y = network()
    grads = nn.backward(params, nn.forward(params, x)[1], y)
    zero = {key: np.zeros_like(w) for key, w in params.items()}
    fresh = nn.sgd_step(params, grads, None, 0.1, 0.9, nesterov)
    for got, expected in zip(fresh, nn.sgd_step(params, grads, zero, 0.1, 0.9, nesterov)):
        for key in params:
            np.testing.assert_allclose(got[key], expected[key], rtol=1e-12)


def test_sgd_steps_lower_the_loss():
    params, x, y = network(1, "tanh")
    values, velocity = [], None
    for _ in range(200):
        outputs, cache = nn.forward(params, x, "tanh")
        values.append(nn.loss(params, outputs, y))
        params, velocity = nn.sgd_step(params, nn.backward(params, cache, y), velocity, 0.1, 0.9)
    assert values[-1] < 0.05 < 1 < values[0]


# --- initialisation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation, init, hidden_std, output_std",
    [
        ("relu", "auto", math.sqrt(2 / 400), math.sqrt(2 / 300)),
        ("leaky_relu", "auto", math.sqrt(2 / (400 * 1.0001)), math.sqrt(2 / (300 * 1.0001))),
        ("tanh", "auto", math.sqrt(1 / 400), math.sqrt(1 / 300)),
        ("sigmoid", "auto", math.sqrt(2 / 700), math.sqrt(2 / 500)),
        ("tanh", "he", math.sqrt(2 / 400), math.sqrt(2 / 300)),
        ("relu", "xavier", math.sqrt(2 / 700), math.sqrt(2 / 500)),
        ("relu", "lecun", math.sqrt(1 / 400), math.sqrt(1 / 300)),
    ],
)
def test_initial_weights_have_the_right_spread(activation, init, hidden_std, output_std):
    params = nn.init_params(np.random.default_rng(0), [400, 300, 200], activation, init)
    assert params["W1"].std() == pytest.approx(hidden_std, rel=0.01)
    assert params["W2"].std() == pytest.approx(output_std, rel=0.01)
    assert not params["b1"].any() and not params["b2"].any()


def test_a_network_without_hidden_layers_starts_with_xavier():
    params = nn.init_params(np.random.default_rng(0), [400, 300], "relu")
    assert list(params) == ["W1", "b1"]
    assert params["W1"].std() == pytest.approx(math.sqrt(2 / 700), rel=0.01)


# --- purity, dtypes, reuse of memory ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", nn.LOSSES)
@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_functions_are_pure_and_keep_the_dtype(activation, loss, dtype):
    params, x, y = network(2, activation, dtype)
    velocity = {key: np.ones_like(w) for key, w in params.items()}
    outputs, cache = nn.forward(params, x, activation, np.float64(0.5), np.random.default_rng(2))
    grads = nn.backward(params, cache, y, loss, np.float64(0.01))
    inputs = (params, x, y, velocity, outputs, cache, grads)
    before = all_bytes(inputs)

    def every_call():
        again = nn.forward(params, x, activation, np.float64(0.5), np.random.default_rng(2))
        nn.loss(params, outputs, y, loss, 0.01)
        step = nn.sgd_step(params, grads, velocity, np.float64(0.1), np.float64(0.9), True, np.float64(0.01))
        return (
            again[0],
            nn.backward(params, cache, y, loss, 0.01),
            step,
            nn.predict(params, x, activation, loss),
        )

    first, second = every_call(), every_call()
    assert all_bytes(inputs) == before
    assert all_bytes(first) == all_bytes(second)
    first_outputs, first_grads, (new_params, new_velocity), probs = first
    for array in (first_outputs, probs, *first_grads.values(), *new_params.values(), *new_velocity.values()):
        assert array.dtype == dtype


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize(
    "activation, loss, depth", list(itertools.product(nn.ACTIVATIONS, nn.LOSSES, (0, 1, 3)))
)
def test_reusing_memory_gives_the_same_bits(activation, loss, depth, momentum, nesterov):
    params, x, y = network(depth, activation, np.float32)
    mine, my_velocity, my_cache, my_grads = {k: w.copy() for k, w in params.items()}, None, None, None
    if momentum:
        my_velocity = {k: np.zeros_like(w) for k, w in params.items()}
    velocity = None
    for step in range(3):
        rng, my_rng = np.random.default_rng(step), np.random.default_rng(step)
        _, cache = nn.forward(params, x, activation, 0.3, rng)
        grads = nn.backward(params, cache, y, loss)
        params, velocity = nn.sgd_step(params, grads, velocity, 0.1, momentum, nesterov, 0.01)
        _, my_cache = nn.forward(mine, x, activation, 0.3, my_rng, out=my_cache)
        my_grads = nn.backward(mine, my_cache, y, loss, out=my_grads)
        nn.sgd_step(mine, my_grads, my_velocity, 0.1, momentum, nesterov, 0.01, out=(mine, my_velocity))
        assert all_bytes(params) == all_bytes(mine)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("blank", [(0, 0), (0, 2), (3, 2), (7, 0), (8, 1), (8, 5), (100, 100)])
def test_a_blank_corner_of_x_may_be_left_out(depth, blank):
    params, x, y = network(depth)
    rows, columns = blank
    x[:rows, columns:] = 0
    outputs, cache = nn.forward(params, x)
    grads = nn.backward(params, cache, y)
    x[:rows, columns:] = np.nan  # not even looked at
    mine, my_cache = nn.forward(params, x, blank=blank)
    my_grads = nn.backward(params, my_cache, y)
    np.testing.assert_allclose(mine, outputs, rtol=1e-12)
    for key in params:
        np.testing.assert_allclose(my_grads[key], grads[key], rtol=1e-12, atol=1e-15)
    bits = all_bytes((mine, my_grads))
    again, my_cache = nn.forward(params, x, blank=blank, out=my_cache)
    assert all_bytes((again, nn.backward(params, my_cache, y, out=my_grads))) == bits


def test_blocks_of_the_update_do_not_change_it(monkeypatch):
    params, x, y = network(1, dtype=np.float32)
    grads = nn.backward(params, nn.forward(params, x)[1], y)
    whole = nn.sgd_step(params, grads, None, 0.1, 0.9, True, 0.01)
    monkeypatch.setattr(nn, "UPDATE_BLOCK", 7)
    assert all_bytes(nn.sgd_step(params, grads, None, 0.1, 0.9, True, 0.01)) == all_bytes(whole)


# --- dropout ----------------------------------------------------------------------------------


def test_dropout_switches_off_the_right_share_and_keeps_the_mean():
    params = {
        "W1": np.zeros((2, 50_000)),
        "b1": np.ones(50_000),
        "W2": np.ones((50_000, 1)),
        "b2": np.zeros(1),
    }
    outputs, cache = nn.forward(params, np.zeros((1, 2)), "relu", 0.25, np.random.default_rng(0))
    hidden = cache["inputs"][1]
    assert (hidden == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert set(np.unique(hidden)) == {0, 1 / 0.75}
    assert outputs[0, 0] / 50_000 == pytest.approx(1, rel=0.01)


# --- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, size", [(np.float32, 1e4), (np.float32, 3e38), (np.float64, 1e4), (np.float64, 1e308)]
)
@pytest.mark.parametrize("loss", nn.LOSSES)
def test_any_finite_logit_is_safe(loss, dtype, size):
    outputs = np.array([[size, -size, 0], [-size, -size, -size], [size, size, -size]], dtype)
    y = np.array([1, 0, 0])
    params = {"W1": np.eye(3, dtype=dtype), "b1": np.zeros(3, dtype)}
    with np.errstate(all="raise"):
        value = nn.loss(params, outputs, y, loss)
        grads = nn.backward(params, nn.forward(params, outputs)[1], y, loss) if size == 1e4 else {}
        probs = nn.softmax(outputs)
    assert not math.isnan(value) and (value < math.inf or dtype == np.float64)
    assert np.isfinite(probs).all() and np.allclose(probs.sum(axis=1), 1)
    assert all(np.isfinite(g).all() for g in grads.values())
    if loss == "cross_entropy" and size == 1e4:
        assert value == pytest.approx((2e4 + np.log(3) + np.log(2)) / 3)


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_are_safe_at_the_ends(activation, dtype):
    z = np.array([-1e30, -1e4, -1.0, 0.0, 1.0, 1e4, 1e30], dtype)
    act, slope = nn.ACTIVATIONS[activation]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        a = act(z)
        assert np.isfinite(a).all() and np.isfinite(slope(a)).all()


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda p, x, y: nn.init_params(np.random.default_rng(), [5]), "sizes"),
        (lambda p, x, y: nn.init_params(np.random.default_rng(), [5, 0, 2]), "sizes"),
        (lambda p, x, y: nn.init_params(np.random.default_rng(), [5, 2], "rleu"), "relu"),
        (lambda p, x, y: nn.init_params(np.random.default_rng(), [5, 2], init="hee"), "he"),
        (lambda p, x, y: nn.forward(p, x[:, :3]), "shape"),
        (lambda p, x, y: nn.forward(p, x[0]), "shape"),
        (lambda p, x, y: nn.forward(p, x, dropout=0.5), "rng"),
        (lambda p, x, y: nn.forward(p, x, dropout=1.0), "dropout"),
        (lambda p, x, y: nn.forward(p, x, "swish"), "activation"),
        (lambda p, x, y: nn.loss(p, nn.forward(p, x)[0], y, "hinge"), "loss"),
        (lambda p, x, y: nn.loss(p, nn.forward(p, x)[0], y[:3]), "label"),
        (lambda p, x, y: nn.loss(p, nn.forward(p, x)[0], y + 4), "label"),
        (lambda p, x, y: nn.loss(p, nn.forward(p, x)[0], np.uint8(y + 4)), "label"),
        (lambda p, x, y: nn.loss(p, nn.forward(p, x)[0], np.uint8(y + 4), "mse"), "label"),
        (lambda p, x, y: nn.backward(p, nn.forward(p, x)[1], np.uint8(y + 4)), "label"),
        (lambda p, x, y: nn.backward(p, nn.forward(p, x)[1], np.uint64(y) - np.uint64(4)), "label"),
        (lambda p, x, y: nn.backward(p, nn.forward(p, x)[1], y - 4), "label"),
        (lambda p, x, y: nn.backward(p, nn.forward(p, x)[1], y.astype(float)), "label"),
        (lambda p, x, y: nn.predict(p, x, loss="nll"), "loss"),
    ],
)
def test_bad_input_is_named(call, name):
    with refused(name, error=ValueError):
        call(*network())


def test_sgd_step_refuses_an_out_that_it_could_not_write_into():
    params = {"W1": np.asfortranarray(np.ones((3, 2))), "b1": np.zeros(2)}
    grads = {key: np.ones_like(w) for key, w in params.items()}
    with refused("out", error=ValueError):
        nn.sgd_step(params, grads, None, 0.1, out=(params, None))
    assert (nn.sgd_step(params, grads, None, 0.1)[0]["W1"] == 0.9).all()
