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


# --- statistics -------------------------------------------------------------------------------


def test_mean_and_standard_deviation_are_those_counted_by_hand():
    assert nn.mean_and_sd([2, 4, 4, 6]) == (4, math.sqrt(8 / 3))
    assert nn.mean_and_sd([0.5]) == (0.5, None)


@pytest.mark.parametrize(
    "differences, p",
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # no other signs come so far
        ([0.1, 0.2, 0.3], 2 / 8),
        ([0.3, -0.1, -0.2], 1),
        ([1, 1, -1], 1),  # each sum is -3, -1, 1 or 3
        ([3, 2, -1], 4 / 8),  # sums of at least 4: 6 and 4, and their negatives
        ([0, 0], 1),
        ([7], 1),
        ([], 1),
    ],
)
def test_permutation_test_is_that_counted_by_hand(differences, p):
    assert nn.permutation_test(differences) == p
    assert nn.permutation_test([-d for d in differences]) == p


def test_permutation_test_of_very_many_pairs_is_refused():
    with pytest.raises(ValueError, match="21 pairs"):
        nn.permutation_test([1] * 21)


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


@pytest.mark.parametrize("loss", nn.LOSSES)
def test_label_smoothing_against_direct_calculation(loss):
    params, x, y = network()
    outputs, _ = nn.forward(params, x)
    target = 0.9 * np.eye(4)[y] + 0.1 / 4
    log_p = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    direct = {
        "cross_entropy": -(target * log_p).sum(axis=1),
        "mse": 0.5 * ((outputs - target) ** 2).sum(axis=1),
    }
    assert nn.loss(params, outputs, y, loss, label_smoothing=0.1) == pytest.approx(direct[loss].mean())
    assert nn.check_gradients(params, x, y, loss=loss, label_smoothing=0.1)[0] < 1e-5


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


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("blank", [(0, 4), (0, 0), (3, 2), (8, 1), (2, 100)])
def test_x_may_be_cut_off_behind_its_ink(depth, blank):
    params, x, y = network(depth)
    x[:, 4:] = 0
    x[: blank[0], blank[1] :] = 0
    outputs, cache = nn.forward(params, x)
    grads = nn.backward(params, cache, y)
    mine, my_cache = nn.forward(params, x[:, :4], blank=blank)
    np.testing.assert_allclose(mine, outputs, rtol=1e-12)
    out = {key: np.full_like(w, np.nan) for key, w in params.items()}
    for given in (None, out):
        my_grads = nn.backward(params, my_cache, y, out=given)
        assert my_grads["W1"].shape == (4, params["W1"].shape[1])
        for key in params:
            expected = grads[key][:4] if key == "W1" else grads[key]
            np.testing.assert_allclose(my_grads[key], expected, rtol=1e-12, atol=1e-15)
    assert np.shares_memory(my_grads["W1"], out["W1"]) and out["W1"].shape == params["W1"].shape
    with pytest.raises(ValueError):
        nn.forward(params, x[:, :4])
    with pytest.raises(ValueError):
        nn.forward(params, np.pad(x, ((0, 0), (0, 1))), blank=blank)
    with pytest.raises(ValueError):
        nn.backward(params, my_cache, y, weight_decay=0.1)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("rows", [0, 1, 4, 6])
def test_missing_rows_of_the_first_gradient_are_zero(monkeypatch, rows, momentum, nesterov, decay):
    monkeypatch.setattr(nn, "UPDATE_BLOCK", 10)
    params, x, y = network()
    x[:, rows:] = 0
    velocity = {key: np.full_like(w, 0.3) for key, w in params.items()}
    grads = nn.backward(params, nn.forward(params, x)[1], y)
    step = (velocity, 0.1, momentum, nesterov, decay)
    whole = nn.sgd_step(params, grads, *step)
    assert all_bytes(nn.sgd_step(params, {**grads, "W1": grads["W1"][:rows]}, *step)) == all_bytes(whole)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_a_step_goes_into_any_arrays_that_are_handed_over(momentum, nesterov):
    params, x, y = network()
    grads = nn.backward(params, nn.forward(params, x)[1], y)
    velocity = {key: np.full_like(w, 0.3) for key, w in params.items()}
    step = (0.1, momentum, nesterov, 0.01)
    right = nn.sgd_step(params, grads, velocity, *step)
    before = all_bytes((params, velocity))
    out = tuple({k: np.full(w.shape, np.nan, order="F") for k, w in params.items()} for _ in range(2))
    got = nn.sgd_step(params, grads, velocity, *step, out=out)
    assert got[0] is out[0] and got[1] is out[1] and all_bytes((params, velocity)) == before
    assert all_bytes(out) == all_bytes(right)
    nn.sgd_step(params, grads, velocity, *step, out=(params, velocity))
    assert all_bytes((params, velocity)) == all_bytes(right)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_network_runs_over_batches(depth):
    params, x, _ = network(depth, "tanh")
    x[:3, 4:] = 0
    whole, cache = nn.forward(params, x, "tanh")
    batches = [{"x": x[:3, :4], "y": None, "blank": (0, 4)}, {"x": x[3:]}]
    np.testing.assert_allclose(nn.outputs_of(params, iter(batches), "tanh"), whole, rtol=1e-12)
    outputs, hidden = nn.hidden_of(params, iter(batches), "tanh")
    np.testing.assert_allclose(outputs, whole, rtol=1e-12)
    assert len(hidden) == depth
    for got, expected in zip(hidden, cache["inputs"][1:]):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    x[5, 0] = np.inf
    for run in (nn.outputs_of, nn.hidden_of):
        with pytest.raises(FloatingPointError):
            run(params, batches, "relu")
    with pytest.raises(FloatingPointError):
        nn.predict(params, x)


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
    act, slope, *needs = nn.ACTIVATIONS[activation]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        a = act(z)
        assert np.isfinite(a).all() and np.isfinite(slope(z if "input" in needs else a)).all()


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


# --- other optimisers -------------------------------------------------------------------------


def steps_of(optimizer, count, dtype=np.float64, out=False, **options):
    """Params and state after so many steps with gradients from a fixed generator."""
    rng = np.random.default_rng(3)
    params = nn.init_params(rng, [6, 5, 3], dtype=dtype)
    state = nn.first_moments(params, ("m", "v") if optimizer == "adam" else ("v",)) if out else None
    for _ in range(count):
        grads = {key: rng.standard_normal(w.shape).astype(dtype) for key, w in params.items()}
        more = {"out": (params, state)} if out else {}
        params, state = getattr(nn, f"{optimizer}_step")(params, grads, state, 0.01, **options, **more)
    return params, state


def test_adam_and_rmsprop_by_hand():
    params, grads = (
        {"W1": np.array([[2.0]]), "b1": np.array([1.0])},
        {"W1": np.array([[0.5]]), "b1": np.zeros(1)},
    )
    new, state = nn.adam_step(params, grads, None, 0.1, weight_decay=0.3)
    # m' = g, v' = g^2: the first step is lr in the direction of the gradient
    assert new["W1"][0, 0] == pytest.approx(2 * (1 - 0.03) - 0.1, abs=1e-8) and new["b1"][0] == 1
    new, state = nn.adam_step(new, {"W1": np.array([[-1.0]]), "b1": np.zeros(1)}, state, 0.1)
    m, v = (0.9 * 0.05 - 0.1) / (1 - 0.81), (0.999 * 0.00025 + 0.001) / (1 - 0.999**2)
    assert new["W1"][0, 0] == pytest.approx(1.84 - 0.1 * m / np.sqrt(v), abs=1e-7) and state["steps"] == 2
    new, state = nn.rmsprop_step(params, grads, None, 0.1, beta2=0.9, weight_decay=0.3)
    assert new["W1"][0, 0] == pytest.approx(2 * 0.97 - 0.1 * 0.5 / np.sqrt(0.025), abs=1e-6)
    assert state["v"]["W1"][0, 0] == pytest.approx(0.025)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_pytorch(optimizer, decay):
    torch = pytest.importorskip("torch")
    start, _ = steps_of(optimizer, 0)
    ours, _ = steps_of(optimizer, 100, weight_decay=decay)
    theirs = {key: torch.nn.Parameter(torch.tensor(w)) for key, w in start.items()}
    weights = [{"params": [w for key, w in theirs.items() if key[0] == kind]} for kind in "Wb"]
    make = torch.optim.AdamW if optimizer == "adam" else torch.optim.RMSprop
    steps = make(weights, lr=0.01, weight_decay=0.0)
    rng = np.random.default_rng(3)
    nn.init_params(rng, [6, 5, 3], dtype=np.float64)
    for _ in range(100):
        for key, w in theirs.items():
            w.grad = torch.tensor(rng.standard_normal(start[key].shape))
            if key[0] == "W":
                w.data *= 1 - 0.01 * decay  # decoupled, as AdamW's own
        steps.step()
    for key, w in theirs.items():
        np.testing.assert_allclose(ours[key], w.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_steps_in_place_give_the_same_bits_and_without_out_change_nothing(optimizer):
    for dtype in (np.float32, np.float64):
        apart, state = steps_of(optimizer, 5, dtype, weight_decay=0.1)
        in_place, _ = steps_of(optimizer, 5, dtype, out=True, weight_decay=0.1)
        for key in apart:
            np.testing.assert_array_equal(apart[key], in_place[key])
            assert apart[key].dtype == state["v"][key].dtype == dtype
        before = {key: w.copy() for key, w in apart.items()}
        getattr(nn, f"{optimizer}_step")(apart, apart, state, 0.1)
        assert all((apart[key] == before[key]).all() for key in apart) and state["steps"] == 5


def test_a_gradient_of_fewer_rows_is_one_with_rows_of_zeros():
    params = nn.init_params(np.random.default_rng(0), [6, 5, 3], dtype=np.float64)
    grads = {key: np.ones_like(w) for key, w in params.items()}
    grads["W1"][4:] = 0
    for step in (nn.adam_step, nn.rmsprop_step):
        whole, state = step(params, grads, None, 0.1)
        whole, _ = step(whole, grads, state, 0.1)
        narrow, state = step(params, {**grads, "W1": grads["W1"][:4]}, None, 0.1)
        narrow, _ = step(narrow, {**grads, "W1": grads["W1"][:4]}, state, 0.1)
        for key in params:
            np.testing.assert_allclose(narrow[key], whole[key], rtol=1e-15)


def test_clipped_gradients_have_a_norm_together():
    grads = {"W1": np.full((2, 2), 3.0), "b1": np.full(2, 4.0)}  # norm sqrt(68)
    clipped = nn.clip_norm(grads, 1.0)
    assert sum(np.square(g).sum() for g in clipped.values()) == pytest.approx(1)
    assert clipped["b1"][0] / clipped["W1"][0, 0] == pytest.approx(4 / 3)
    assert (nn.clip_norm(grads, 100.0)["W1"] == 3).all()


# --- gradients checked, and pieces of one's own -----------------------------------------------


def test_check_gradients_finds_a_wrong_slope_and_says_where(monkeypatch):
    params, x, y = network(2, "relu")
    assert nn.check_gradients(params, x, y, "gelu", weight_decay=0.1)[0] < 1e-5
    assert nn.check_gradients(params, x, y, "relu", class_weight=[0.5, 2.0, 1.0, 1.0])[0] < 1e-5
    monkeypatch.setitem(nn.ACTIVATIONS, "wrong", (lambda z: z * z, lambda z: z, "input"))
    monkeypatch.setitem(nn.AUTO_INITS, "wrong", "he")
    difference, (key, index) = nn.check_gradients(params, x, y, "wrong")
    assert difference > 0.1 and key in ("W1", "b1", "W2", "b2"), "the layers below a wrong slope"
    assert len(index) == params[key].ndim


def test_an_activation_of_ones_own_is_checked_where_it_is_used(monkeypatch):
    params, x, y = network(2, "relu")
    monkeypatch.setitem(nn.ACTIVATIONS, "square", (lambda z: z * z, lambda z: 2 * z, "input"))
    assert nn.check_gradients(params, x, y, "square")[0] < 1e-5
    with pytest.raises(ValueError, match="square"):
        nn.init_params(np.random.default_rng(0), [4, 3, 2], "square")
    for act in (lambda z: z[:, :1], lambda z: z.astype(np.float16), lambda z: np.square(z, out=z)):
        monkeypatch.setitem(nn.ACTIVATIONS, "square", (act, lambda z: 2 * z, "input"))
        with pytest.raises(ValueError, match="square"):
            nn.forward(params, x, "square")


def test_a_loss_of_ones_own_trains_with_its_own_slope(monkeypatch):
    params, x, y = network(1, "tanh")

    def value(outputs, y, label_smoothing):
        return np.abs(outputs - np.eye(outputs.shape[1])[y]).sum(axis=1)

    def slope(outputs, y, label_smoothing):
        return np.sign(outputs - np.eye(outputs.shape[1])[y])

    monkeypatch.setitem(nn.LOSSES, "absolute", (value, slope))
    assert nn.check_gradients(params, x, y, "tanh", "absolute")[0] < 1e-5


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("loss", nn.LOSSES)
def test_the_gradient_of_the_input_is_that_of_finite_differences(activation, loss):
    params, x, y = network(2, "tanh")
    params, x = {key: w.astype(np.float64) for key, w in params.items()}, x.astype(np.float64)
    gradient = nn.input_gradient(params, x, y, activation, loss)
    for index in ((0, 0), (1, 2), (2, 1)):
        sides = []
        for side in (1e-6, -1e-6):
            moved = x.copy()
            moved[index] += side
            row = slice(index[0], index[0] + 1)
            sides.append(nn.loss(params, nn.forward(params, moved[row], activation)[0], y[row], loss))
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_class_weights_are_factors_on_the_loss_of_each_image():
    params, x, y = network(1, "relu")
    outputs, _ = nn.forward(params, x)
    weights = np.arange(1.0, outputs.shape[1] + 1)
    each = [nn.loss(params, outputs[i : i + 1], y[i : i + 1]) for i in range(len(y))]
    assert nn.loss(params, outputs, y, class_weight=weights) == pytest.approx(np.mean(weights[y] * each))


@pytest.mark.parametrize(
    "y, words",
    [
        (np.eye(4)[[0, 1, 2]], ["(3, 4)", "(3,)", "argmax"]),
        ([0, 1], ["(2,)", "(3,)"]),
        ([0.0, 1.0, 2.0], ["float64"]),
        (["a", "b", "c"], ["(3,)"]),
        ([1, 2, 4], ["0 ... 3", "1 ... 4"]),
    ],
)
def test_labels_say_what_was_given_and_what_was_expected(y, words):
    params = nn.init_params(np.random.default_rng(0), [5, 4])
    outputs, cache = nn.forward(params, np.zeros((3, 5)))
    for use in (
        lambda: nn.loss(params, outputs, y),
        lambda: nn.backward(params, cache, y),
        lambda: nn.accuracy(outputs, y),
    ):
        with refused(*words, error=ValueError):
            use()
    with refused("(3, 2, 2)", "(n, 5)", error=ValueError):
        nn.forward(params, np.zeros((3, 2, 2)))
