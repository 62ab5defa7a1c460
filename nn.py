"""The network: pure functions over a plain dict of arrays.

Parameters are ``{"W1": (784, 292), "b1": (292,), "W2": (292, 10), "b2": (10,)}``, for any depth; a
network without hidden layers has just ``W1`` and ``b1``. Gradients and velocities are dicts with the
same keys and shapes. A training step is

    outputs, cache = forward(params, x)
    grads = backward(params, cache, y)
    params, velocity = sgd_step(params, grads, velocity, lr=0.1)

These parameters mean the same in every function:

params : dict of arrays
    Of one floating dtype; everything is computed in it.
x : array (n, d)
    Preprocessed images, one in each row.
y : int array (n,)
    Labels: class numbers 0 ... k-1.
activation : str
    Of the hidden layers, a key of ``ACTIVATIONS``.
loss : str
    A key of ``LOSSES``. ``cross_entropy``: -log softmax(outputs)[y]; ``mse``: 0.5 * squared distance
    between the outputs and the one-hot label; both as the mean over the batch.
weight_decay : float
    Adds 0.5 * weight_decay * the sum of squares of the W's to the loss, and weight_decay * W to its
    gradient; never for the b's.
label_smoothing : float in [0, 1)
    The target is 1 - label_smoothing for the label, and label_smoothing / k more for each of the k
    classes (Szegedy et al. 2016).
class_weight : float array (k,) or None
    Factor on the loss of the images of each class; None is 1.
out : optional
    Where to put the result, as in NumPy: the same numbers in memory that is used again. Without it no
    function changes what it is given.
batches : iterable of dict
    ``x``, ``y`` (None where labels are not known), and perhaps ``blank``, see ``forward``.
"""

import contextlib
import difflib
import io
import itertools
import json
import math
import os
import pickle
import pickletools
import re
import reprlib
import sys
import threading
import types
import warnings
import zipfile

import numpy as np

LEAKY_SLOPE = 0.01
UPDATE_BLOCK = 65536  # numbers that a step updates at a time, so that they stay in cache

# --- the core: initialise, forward, loss, backward, step, predict -----------------------------


def init_params(rng, sizes, activation="relu", init="auto", dtype=np.float32):
    """Draw normal weights and zero biases.

    Parameters
    ----------
    rng : numpy.random.Generator
    sizes : sequence of int
        Widths of all layers, input and output included: ``[784, 292, 10]``.
    init : {"auto", "he", "xavier", "lecun"}
        See ``INITS``. ``auto``: the one that fits the activation, see ``AUTO_INITS``; xavier for a
        network without hidden layers.
    dtype : float32 or float64

    Returns
    -------
    dict
        ``W1 ... WL`` of shape (fan_in, fan_out) and ``b1 ... bL`` of shape (fan_out,).

    Raises
    ------
    ValueError
        Fewer than two sizes, a size below 1, an unknown name.
    """
    sizes = [int(size) for size in sizes]
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be at least two whole numbers above 0, not {sizes}")
    choose("activation", activation, ACTIVATIONS)
    choose("init", init, dict.fromkeys(INIT_NAMES))
    if init == "auto":
        init = AUTO_INITS.get(activation) if len(sizes) > 2 else "xavier"
        if init is None:
            raise ValueError(f"AUTO_INITS has no init for {activation}: add one, or name another than auto")
    params = {}
    for layer, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:]), start=1):
        std = float(INITS[init](fan_in, fan_out))
        params[f"W{layer}"] = rng.standard_normal((fan_in, fan_out), dtype=dtype) * std
        params[f"b{layer}"] = np.zeros(fan_out, dtype)
    return params


def forward(params, x, activation="relu", dropout=0.0, rng=None, out=None, blank=None):
    """Linear outputs of the last layer, and what ``backward`` needs.

    Parameters
    ----------
    params, x, activation
        See the top of this file.
    dropout : float in [0, 1)
        Share of hidden units switched off; the others are scaled by 1 / (1 - dropout)
        (inverted dropout, Srivastava et al. 2014).
    rng : numpy.random.Generator
        Needed with dropout.
    out : cache of an earlier call with at least as many images, optional
        The earlier outputs and cache are gone after that.
    blank : (rows, columns), optional
        What the products leave out, here and in ``backward``: x may be cut off on the right, where all
        of it is 0, and its first ``rows`` rows are 0 from ``columns`` on.

    Returns
    -------
    outputs : array (n, k)
        Before any softmax.
    cache : dict
        Opaque.

    Raises
    ------
    ValueError
        x is not (n, d), an unknown activation, a dropout outside [0, 1) or without rng.
    """
    activate, _, *needs = choose("activation", activation, ACTIVATIONS)
    dtype, d = params["W1"].dtype, len(params["W1"])
    x = np.asarray(x, dtype)
    if x.ndim != 2 or x.shape[1] > d or (x.shape[1] < d and not blank):
        raise ValueError(f"x has shape {x.shape}, the network takes (n, {d})")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
    if dropout and rng is None:
        raise ValueError("dropout needs a random generator (rng)")
    depth = len(params) // 2
    reused = [z[: len(x)] for z in out["layers"]] if out else [None] * depth
    cache = {"activation": activation, "inputs": [x], "masks": [], "layers": [], "hidden": [], "blank": blank}
    for layer in range(1, depth + 1):
        corner = blank if layer == 1 else None
        z = _linear(cache["inputs"][-1], params[f"W{layer}"], corner, reused[layer - 1])
        z += params[f"b{layer}"]  # (n, width)
        cache["layers"].append(z)
        if layer < depth:
            hidden = activate(z)
            if hidden.shape != z.shape or hidden.dtype != dtype or ("input" in needs and hidden is z):
                raise ValueError(f"activation {activation}: another shape or dtype, or z is not left alone")
            cache["hidden"].append(hidden)
            if dropout:
                cache["masks"].append(dropout_mask(hidden.shape, dropout, rng, dtype))
                hidden = hidden * cache["masks"][-1]
            cache["inputs"].append(hidden)
    return z, cache


def loss(params, outputs, y, loss="cross_entropy", weight_decay=0.0, label_smoothing=0.0, class_weight=None):
    """Mean loss of a batch, as a Python float, summed in float64.

    Like the other functions it takes the name of the loss as ``loss``.

    Parameters
    ----------
    outputs : array (n, k)
        From ``forward``.
    params, y, loss, weight_decay, label_smoothing, class_weight
        See the top of this file.

    Raises
    ------
    ValueError
        Unknown loss, labels of the wrong shape or outside 0 ... k-1.
    """
    value_of, _ = choose("loss", loss, LOSSES)
    with np.errstate(over="ignore", under="ignore"):
        y = _checked_labels(outputs, y)
        values = value_of(outputs, y, label_smoothing)  # (n,)
        value = float(np.mean(values if class_weight is None else values * np.asarray(class_weight)[y]))
        if weight_decay:
            squares = sum(np.square(w, dtype=np.float64).sum() for k, w in params.items() if k[0] == "W")
            value += 0.5 * weight_decay * float(squares)
    return value


mean_loss = loss  # its other name, for functions that take the name of a loss as ``loss``


def backward(
    params, cache, y, loss="cross_entropy", weight_decay=0.0, label_smoothing=0.0, scale=1.0,
    class_weight=None, out=None,
):  # fmt: skip
    """Gradients of ``loss`` by back-propagation (Rumelhart, Hinton & Williams 1986).

    Parameters
    ----------
    params, y, loss, weight_decay, label_smoothing, class_weight
        As for ``loss``.
    cache : dict
        From ``forward`` with the same params.
    scale : float
        Factor on all gradients. It costs nothing: the errors at the outputs are scaled, which
        are far smaller than the gradients.
    out : dict of arrays like the params, optional

    Returns
    -------
    dict of arrays
        Keys, shapes and dtype of the params. Where ``forward`` got an x that was cut off, W1's gradient
        has only as many rows as x has columns; weight decay is then for ``sgd_step``.
    """
    weight_decay = float(scale * weight_decay)  # a NumPy float64 would upcast
    grads = dict.fromkeys(params) if out is None else dict(out)
    for layer, delta in _errors(params, cache, y, loss, label_smoothing, scale, class_weight):
        W, b = f"W{layer}", f"b{layer}"
        corner = cache["blank"] if layer == 1 else None
        grads[W] = _linear_gradient(cache["inputs"][layer - 1], delta, corner, grads[W])
        grads[b] = delta.sum(axis=0, out=grads[b])
        if weight_decay:
            grads[W] += weight_decay * params[W]
    return grads


def _errors(params, cache, y, loss, label_smoothing, scale=1.0, class_weight=None):
    """Yield each layer, the last first, and the loss's slope at its linear outputs (n, width)."""
    _, slope_of_loss = choose("loss", loss, LOSSES)
    _, slope, *needs = ACTIVATIONS[cache["activation"]]
    outputs = cache["layers"][-1]
    y = _checked_labels(outputs, y)
    delta = slope_of_loss(outputs, y, label_smoothing)
    delta *= scale / len(y)  # (n, k)
    if class_weight is not None:
        delta *= np.asarray(class_weight, delta.dtype)[y, None]
    for layer in range(len(params) // 2, 0, -1):
        yield layer, delta
        if layer > 1:
            delta = delta @ params[f"W{layer}"].T  # (n, width of the layer below)
            delta *= slope(cache["layers" if "input" in needs else "hidden"][layer - 2])
            if cache["masks"]:
                delta *= cache["masks"][layer - 2]


def sgd_step(params, grads, velocity, lr, momentum=0.0, nesterov=False, weight_decay=0.0, out=None):
    """One step of stochastic gradient descent.

    v <- momentum v - lr g;  w <- w + v  (Polyak 1964), or with ``nesterov``
    w <- w + momentum v - lr g with the new v (Sutskever et al. 2013).

    Parameters
    ----------
    params, weight_decay
        See the top of this file; the weight decay is for a caller who left it out of ``backward``.
    grads : dict of arrays
        That of W1 may have fewer rows than W1: the others are 0.
    velocity : dict of arrays or None
        From the step before; None is zero.
    lr, momentum : float
    out : (params, velocity), optional
        May be the very dicts that are passed in. Without momentum the velocity may be None: nobody
        needs it.

    Returns
    -------
    params, velocity : dicts of arrays
        The velocity of plain SGD (momentum 0) is its last step, -lr g.
    """
    new_params, new_velocity = out or ({key: np.empty_like(w) for key, w in params.items()} for _ in range(2))
    lr, momentum = float(lr), float(momentum)  # a NumPy float64 would upcast
    for key, w in params.items():
        if new_params is not params:
            new_params[key][...] = w
        if new_velocity is not None and new_velocity is not velocity:
            new_velocity[key][...] = 0 if velocity is None else velocity[key]
        decay = float(lr * weight_decay) if key[0] == "W" else 0.0
        for block in blocks(w):
            v = None if new_velocity is None else new_velocity[key][block]
            _move(new_params[key][block], v, grads[key][block], lr, momentum, nesterov, decay)
    return new_params, new_velocity


def blocks(w):
    """Slices of some rows of an array each, that stay in cache."""
    rows = max(1, UPDATE_BLOCK // w[0].size)
    return [slice(start, start + rows) for start in range(0, len(w), rows)]


def _move(w, v, g, lr, momentum, nesterov, decay):
    """``sgd_step`` for some rows, in place; g may lack the last of them, v may be None without momentum."""
    step = g if lr == 1 else lr * g
    if v is not None:
        v *= momentum
        v[: len(g)] -= step
        if decay:
            v -= decay * w
    if momentum and not nesterov:
        w += v
        return
    if decay:
        w *= 1 - decay
    if momentum:
        w += momentum * v
    w[: len(g)] -= step


def predict(params, x, activation="relu", loss="cross_entropy"):
    """Softmax probabilities (n, k) of a cross-entropy network, linear outputs of an mse one.

    Raises
    ------
    FloatingPointError
        An output is not finite.
    """
    return estimates(outputs_of(params, [{"x": x}], activation), loss)


def accuracy(outputs, y):
    """Share of rows whose largest output is that of the label."""
    return float(np.mean(outputs.argmax(axis=1) == _checked_labels(outputs, y)))


# --- activations: each works in place on z, each slope is read off its own output -------------


def relu(z):
    return np.maximum(z, np.zeros(z.shape[1:], z.dtype), out=z)  # NumPy takes twice as long against a scalar


def relu_slope(a):
    return a > 0


def leaky_relu(z):
    return np.maximum(z, LEAKY_SLOPE * z, out=z)


def leaky_relu_slope(a):
    return np.where(a > 0, a.dtype.type(1), a.dtype.type(LEAKY_SLOPE))


def sigmoid(z):
    with np.errstate(over="ignore", under="ignore"):  # exp(-z) = inf gives 0, which is right
        np.exp(np.negative(z, out=z), out=z)
        return np.divide(1, np.add(z, 1, out=z), out=z)


def sigmoid_slope(a):
    return a * (1 - a)


def tanh(z):
    return np.tanh(z, out=z)


def tanh_slope(a):
    return 1 - a * a


def elu(z):  # Clevert, Unterthiner & Hochreiter 2016
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


def elu_slope(a):
    return np.minimum(a, 0) + 1


def silu(z):  # Elfwing, Uchibe & Doya 2018
    return z * sigmoid(z.copy())


def silu_slope(z):
    share = sigmoid(z.copy())
    return share * (1 + z * (1 - share))


GELU_A, GELU_B = math.sqrt(2 / math.pi), 0.044715


def gelu(z):  # its approximation by tanh: Hendrycks & Gimpel 2016
    near = np.clip(z, -9, 9)  # beyond, tanh is 1
    return 0.5 * z * (1 + np.tanh(GELU_A * (near + GELU_B * near**3)))


def gelu_slope(z):
    near = np.clip(z, -9, 9)
    t = np.tanh(GELU_A * (near + GELU_B * near**3))
    return 0.5 * (1 + t) + 0.5 * near * (1 - t * t) * GELU_A * (1 + 3 * GELU_B * near**2)


# name -> what it makes of z (n, width), perhaps in place, and its slope from the result; or, with
# "input" behind them, its slope from z, which it must then leave alone
ACTIVATIONS = {
    "relu": (relu, relu_slope),
    "leaky_relu": (leaky_relu, leaky_relu_slope),
    "sigmoid": (sigmoid, sigmoid_slope),
    "tanh": (tanh, tanh_slope),
    "elu": (elu, elu_slope),
    "silu": (silu, silu_slope, "input"),
    "gelu": (gelu, gelu_slope, "input"),
}

INITS = {  # name -> standard deviation from (fan_in, fan_out)
    "he": lambda fan_in, fan_out: np.sqrt(2 / fan_in),  # He et al. 2015
    "he_leaky": lambda fan_in, fan_out: np.sqrt(2 / (fan_in * (1 + LEAKY_SLOPE**2))),
    "xavier": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),  # Glorot & Bengio 2010
    "lecun": lambda fan_in, fan_out: np.sqrt(1 / fan_in),  # LeCun et al. 1998
}
INIT_NAMES = ("auto", "he", "xavier", "lecun")
AUTO_INITS = {"relu": "he", "leaky_relu": "he_leaky", "tanh": "lecun", "sigmoid": "xavier"}
AUTO_INITS |= {"elu": "he", "silu": "he", "gelu": "he"}

# --- losses: each a value for every image, and its slope at the outputs -----------------------


def softmax(outputs):
    """Probabilities (n, k), safe for any finite logits."""
    with np.errstate(over="ignore", under="ignore"):  # a gap beyond the largest float is -inf
        e = outputs.T.copy()  # (k, n): NumPy is faster over a first axis than over short rows
        e -= e.max(axis=0)
        np.exp(e, out=e)
        e /= e.sum(axis=0)
    return e.T  # (n, k)


def cross_entropy(outputs, y, label_smoothing):
    z = outputs.T.astype(np.float64, order="C")  # (k, n), as in softmax
    z -= z.max(axis=0)
    right = z[y, np.arange(len(y))]
    if label_smoothing:
        right = (1 - label_smoothing) * right + label_smoothing * z.mean(axis=0)
    return np.log(np.exp(z, out=z).sum(axis=0)) - right  # (n,), log of at least 1


def cross_entropy_slope(outputs, y, label_smoothing):
    return _minus_target(softmax(outputs), y, label_smoothing)  # (n, k)


def squared_error(outputs, y, label_smoothing):
    distance = _minus_target(outputs.astype(np.float64), y, label_smoothing)
    return 0.5 * np.square(distance).sum(axis=1)  # (n,)


def squared_error_slope(outputs, y, label_smoothing):
    return _minus_target(outputs.copy(), y, label_smoothing)  # (n, k)


LOSSES = {"cross_entropy": (cross_entropy, cross_entropy_slope), "mse": (squared_error, squared_error_slope)}


def _minus_target(estimates, y, label_smoothing):
    """Estimates (n, k), in place, minus the one-hot label, smoothed as the top of this file says."""
    estimates[np.arange(len(y)), y] -= 1 - label_smoothing
    if label_smoothing:
        estimates -= label_smoothing / estimates.shape[1]
    return estimates


def _checked_labels(outputs, y):
    y = np.asarray(y)
    if y.shape != outputs.shape[:1] or y.dtype.kind not in "iu" or not len(y):
        hint = "; one-hot labels become numbers by y.argmax(axis=1)" if y.shape == outputs.shape else ""
        raise ValueError(
            f"labels must be whole numbers of shape {outputs.shape[:1]}, at least one, "
            f"not {y.dtype} of shape {y.shape}{hint}"
        )
    if y.max() >= outputs.shape[1] or (y.dtype.kind == "i" and y.min() < 0):
        raise ValueError(f"labels must lie in 0 ... {outputs.shape[1] - 1}, not {y.min()} ... {y.max()}")
    return y


# --- a layer's products without what is blank, and dropout ------------------------------------


def _linear(x, W, blank, out):
    """x @ W, without what ``forward`` calls blank."""
    if not blank:
        return np.matmul(x, W, out=out)
    rows, columns = blank[0], min(blank[1], x.shape[1])
    z = np.matmul(x[:, :columns], W[:columns], out=out)
    if columns < x.shape[1]:
        z[rows:] += x[rows:, columns:] @ W[columns : x.shape[1]]
    return z


def _linear_gradient(x, delta, blank, out):
    """x.T @ delta, without what ``forward`` calls blank; as many rows as x has columns."""
    if not blank:
        return np.matmul(x.T, delta, out=out)
    rows, columns = blank
    g = np.empty((x.shape[1], delta.shape[1]), x.dtype) if out is None else out[: x.shape[1]]
    np.matmul(x[:, :columns].T, delta, out=g[:columns])
    np.matmul(x[rows:, columns:].T, delta[rows:], out=g[columns:])
    return g


def dropout_mask(shape, share, rng, dtype=np.float32):
    """Factors that switch off a share of what they multiply and scale the rest (inverted dropout)."""
    kept = rng.random(shape, dtype=dtype) >= share
    return np.multiply(kept, 1 / (1 - share), dtype=dtype)


# --- around a step, and judging ---------------------------------------------------------------


def limit_norms(params, most, out=None):
    """Max-norm regularisation (Srivastava et al. 2014).

    Shrinks the weights that lead into a hidden unit where their norm is above ``most``; the output
    layer's and the biases remain. ``out``: a dict of arrays for the result, may be params itself.
    """
    out = {key: w.copy() for key, w in params.items()} if out is None else out
    for layer in range(1, len(params) // 2):
        w = params[f"W{layer}"]
        norms = np.sqrt(np.einsum("ij,ij->j", w, w))  # (width,)
        np.multiply(w, most / np.maximum(norms, most), out=out[f"W{layer}"])
    return out


def average(params, earlier, decay):
    """decay * earlier + (1 - decay) * params: an exponential moving average (Polyak & Juditsky 1992)."""
    return {key: decay * earlier[key] + (1 - decay) * w for key, w in params.items()}


def outputs_of(params, batches, activation="relu"):
    """Linear outputs (n, k) of all images of the batches, a batch at a time.

    Raises
    ------
    FloatingPointError
        One of them is not finite.
    """
    with np.errstate(all="ignore"):  # found out by the check
        return _finite([outputs for outputs, _ in _passes(params, batches, activation)])


def hidden_of(params, batches, activation="relu"):
    """``outputs_of``, and what each hidden layer puts out: ``(outputs, [(n, width), ...])``."""
    with np.errstate(all="ignore"):
        passes = list(_passes(params, batches, activation))
    layers = zip(*(hidden for _, hidden in passes))
    return _finite([outputs for outputs, _ in passes]), [np.concatenate(layer) for layer in layers]


def _passes(params, batches, activation):
    """Outputs and hidden activations of each batch."""
    for batch in batches:
        outputs, cache = forward(params, batch["x"], activation, blank=batch.get("blank"))
        yield outputs, cache["inputs"][1:]


def _finite(parts):
    outputs = np.concatenate(parts)
    if not np.isfinite(outputs).all():
        raise FloatingPointError(
            "the network's outputs are not finite: its params or inputs are out of range"
        )
    return outputs


def estimates(outputs, loss="cross_entropy"):
    """What ``predict`` makes of linear outputs (n, k): their softmax, or for mse themselves."""
    choose("loss", loss, LOSSES)
    return softmax(outputs) if loss == "cross_entropy" else outputs


def mean_and_sd(values):
    """Mean and standard deviation of a sample (divided by n - 1); None for that of a single value."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


MOST_PAIRS = 20  # of a permutation test: it looks at 2**20 sums


def permutation_test(differences):
    """Exact two-sided test of paired differences by flips of their signs (Fisher 1935).

    If both of each pair were alike, either sign of each difference would be as likely as the other.

    Parameters
    ----------
    differences : sequence of at most MOST_PAIRS floats

    Returns
    -------
    float
        Of all 2**n choices of signs, the share whose sum is at least as far from 0 as the one there is.
    """
    if len(differences) > MOST_PAIRS:
        raise ValueError(f"an exact test of {len(differences)} pairs takes too long; {MOST_PAIRS} at most")
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    furthest = np.abs(sums).max()  # a difference in the last bits is none
    return float(np.mean(np.abs(sums) >= abs(sum(differences)) - 1e-9 * furthest))


def confusion_matrix(y, predicted, classes):
    """Counts (classes, classes): row is the label, column the prediction."""
    pairs = np.asarray(y, np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def layer_sizes(params):
    """Widths of all layers, input and output included: ``[784, 292, 10]``."""
    depth = len(params) // 2
    return [params["W1"].shape[0]] + [params[f"W{i}"].shape[1] for i in range(1, depth + 1)]


def choose(kind, name, options):
    """Return ``options[name]``, or raise a ValueError that suggests the nearest name."""
    if isinstance(name, str) and name in options:
        return options[name]
    near = difflib.get_close_matches(name, options, n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown {kind} {reprlib.repr(name)}{hint} (one of: {', '.join(options)})")


# --- other optimisers, of the form of sgd_step ------------------------------------------------


def adam_step(params, grads, state, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, out=None):
    """One step of Adam (Kingma & Ba 2015), with decoupled weight decay (Loshchilov & Hutter 2019).

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    w <- (1 - lr weight_decay) w - lr m' / (sqrt(v') + eps), with m' = m / (1 - beta1^t) and
    v' = v / (1 - beta2^t) in step t.

    Parameters
    ----------
    params, grads, weight_decay
        As for ``sgd_step``, but for the gradient of the weight decay, which is in no other.
    state : dict or None
        ``m`` and ``v``, dicts of arrays like the params, and ``steps``, the number of those before.
        None is the beginning.
    lr, beta1, beta2, eps : float
    out : (params, state), optional
        May be the very dicts that are passed in.

    Returns
    -------
    params, state
    """
    params, state = _to_change(params, state, ("m", "v"), out)
    lr, root = float(lr), math.sqrt(1 - beta2 ** state["steps"])
    rate = lr * root / (1 - beta1 ** state["steps"])
    for key in params:
        kept = 1 - float(lr * weight_decay) if key[0] == "W" else 1.0
        for block in blocks(params[key]):
            w, g, m, v = (arrays[key][block] for arrays in (params, grads, state["m"], state["v"]))
            m *= beta1
            m[: len(g)] += (1 - beta1) * g
            step = g * g
            step *= 1 - beta2
            v *= beta2
            v[: len(g)] += step
            step = np.sqrt(v)
            step += eps * root
            np.divide(m, step, out=step)
            step *= rate
            w *= kept
            w -= step
    return params, state


def rmsprop_step(params, grads, state, lr, beta2=0.99, eps=1e-8, weight_decay=0.0, out=None):
    """One step of RMSprop (Tieleman & Hinton 2012), with decoupled weight decay; see ``adam_step``.

    v <- beta2 v + (1 - beta2) g^2;  w <- (1 - lr weight_decay) w - lr g / (sqrt(v) + eps)
    """
    params, state = _to_change(params, state, ("v",), out)
    lr = float(lr)
    for key in params:
        kept = 1 - float(lr * weight_decay) if key[0] == "W" else 1.0
        for block in blocks(params[key]):
            w, g, v = (arrays[key][block] for arrays in (params, grads, state["v"]))
            v *= beta2
            v[: len(g)] += (1 - beta2) * (g * g)
            w *= kept
            w[: len(g)] -= lr * g / (np.sqrt(v[: len(g)]) + eps)
    return params, state


def first_moments(params, names):
    """The state of an optimiser before its first step: zeros like the params under each name."""
    return {name: {key: np.zeros_like(w) for key, w in params.items()} for name in names} | {"steps": 0}


def _to_change(params, state, names, out):
    """Params and a state with one step more in arrays that may be changed: out's, or new ones."""
    state = state or first_moments(params, names)
    new_params, new_state = out or ({key: np.empty_like(w) for key, w in params.items()}, None)
    new_state = new_state or first_moments(params, names)
    pairs = [(new_params, params), *((new_state[name], state[name]) for name in names)]
    for new, old in pairs:
        if new is not old:
            for key in old:
                new[key][...] = old[key]
    return new_params, {**new_state, "steps": state["steps"] + 1}


def clip_norm(grads, most, out=None):
    """Gradients scaled down so that the norm of all of them together is at most ``most``.

    Pascanu, Mikolov & Bengio 2013. ``out``: a dict of arrays for the result, may be grads itself.
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
    factor = min(1.0, most / norm) if norm else 1.0
    return {key: np.multiply(g, factor, out=out and out[key]) for key, g in grads.items()}


# --- gradients, checked and of the input ------------------------------------------------------


def check_gradients(
    params, x, y, activation="relu", loss="cross_entropy", weight_decay=0.0, label_smoothing=0.0,
    class_weight=None, samples=50,
):  # fmt: skip
    """Compare ``backward`` with central differences of ``loss``, in float64.

    Parameters
    ----------
    params, x, y, activation, loss, weight_decay, label_smoothing, class_weight
        See the top of this file.
    samples : int
        How many elements of each array are compared, chosen by a generator of seed 0.

    Returns
    -------
    difference : float
        The largest difference, as a share of the larger of both, or of the largest gradient in its
        array over 1000 where that is more; about 1e-7 where all is well, and 1 where a slope is wrong.
    where : (str, tuple)
        The array's name and the index in it.
    """
    params = {key: np.array(w, np.float64) for key, w in params.items()}
    x, settings = np.asarray(x, np.float64), (loss, weight_decay, label_smoothing)

    def value():
        return mean_loss(params, forward(params, x, activation)[0], y, *settings, class_weight)

    cache = forward(params, x, activation)[1]
    grads = backward(params, cache, y, *settings, class_weight=class_weight)
    worst, rng, step = (0.0, None), np.random.default_rng(0), 1e-6
    for key, w in params.items():
        least = max(1e-3 * float(np.abs(grads[key]).max()), 1e-12)
        for place in rng.permutation(w.size)[:samples]:
            index = tuple(map(int, np.unravel_index(place, w.shape)))
            kept, sides = w[index], []
            for side in (kept + step, kept - step):
                w[index] = side
                sides.append(value())
            w[index] = kept
            numeric, ours = (sides[0] - sides[1]) / (2 * step), float(grads[key][index])
            difference = abs(numeric - ours) / max(abs(numeric), abs(ours), least)
            worst = max(worst, (difference, (key, index)), key=lambda found: found[0])
    return worst


def input_gradient(params, x, y, activation="relu", loss="cross_entropy"):
    """Slope of each image's loss at its numbers x: array (n, d)."""
    _, cache = forward(params, x, activation)
    *_, (_, delta) = _errors(params, cache, y, loss, 0.0, scale=len(x))
    return delta @ params["W1"].T


# --- files ------------------------------------------------------------------------------------

MOST_BYTES = 1 << 32  # of a params file: 4 GB


def save_params(path, params, config, **more):
    """Write params and config to ``.pkl`` or ``.npz``; the same content is the same bytes.

    A ``.pkl`` is a pickled ``{"params": {...}, "config": {...}, **more}`` of plain dicts, lists,
    strings, numbers and arrays. A ``.npz`` holds the params by name, and under ``config`` a JSON
    text in which ``{"$array": name}`` stands for an array kept under that name; no pickle inside.
    ValueError for another suffix, and for what ``load_params`` would not read; after that and after an
    OSError, what was there before is still there.
    """
    write, _ = choose("suffix", os.path.splitext(path)[1], FORMS)
    check_params(params)
    check(config, dict, "config")
    content = write(_plain({"params": params, "config": config, **more}))
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} would have more than {MOST_BYTES:,} bytes, the most that is read again")
    save_bytes(path, content)


def load_params(path):
    """Read ``(params, config)`` from a ``.pkl`` or ``.npz`` file; as ``load_checkpoint``."""
    content = load_checkpoint(path)
    return content["params"], content["config"]


def load_checkpoint(path):
    """Everything in a params file, as a dict with at least ``params`` and ``config``.

    Nothing in the file is ever run: only dicts, lists, strings, numbers, None, bools and numeric
    NumPy arrays are admitted. It takes no more memory than a few times the size of the file.
    ValueError for anything else, a damaged file, and params that are no network (see ``check_params``);
    OSError, MemoryError.
    """
    _, read = choose(f"suffix of {path}:", os.path.splitext(path)[1], FORMS)
    content = load_bytes(path, MOST_BYTES)
    with reading(path, "is not a usable params file"):
        checkpoint = _plain(read(content))
        check(checkpoint, {"params": dict, "config": dict}, "its content")
        check_params(checkpoint["params"])
    params = checkpoint["params"]  # kept in float16, or of a machine with another order of bytes, too
    params = {k: w.astype(np.promote_types(w.dtype, np.float32), copy=False) for k, w in params.items()}
    return {**checkpoint, "params": params}


def save_bytes(path, content):
    """Write bytes beside ``path`` and move them into place; a reader never sees half a file."""
    aside = f"{path}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        with open(aside, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say which file
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)


def load_bytes(path, most):
    """The bytes of a file; a ValueError, before any is read, where there are more than ``most``."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path} has {size:,} bytes, more than the {most:,} that such a file may have")
        return file.read(size)


@contextlib.contextmanager
def reading(path, wrong):
    """Within it whatever fails is the file's fault, and becomes one ValueError that names the file.

    But a MemoryError remains one, and so does an OSError of the disk.
    """
    try:
        with warnings.catch_warnings():  # of odd pictures, damaged text, arrays that Python 2 wrote
            warnings.simplefilter("ignore")
            yield
    except MemoryError as error:
        raise MemoryError(f"there is not enough memory to read {path}") from error
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path} {wrong}: {str(error) or type(error).__name__:.300}") from error


def check(value, kind, what):
    """Raise a ValueError that names the place, ``what``, unless a value out of a file is of a kind.

    A type: exactly that one. None: nothing else. A tuple of kinds: any of them. ``[kind]``: a list or tuple
    of it. ``{"name": kind, "name?": kind}``: a dict with at least these; what ends in ? may be missing or
    None. ``{str: kind}``: a dict from texts to it.
    """
    if isinstance(kind, tuple):
        for one in kind:
            if type(one) is type(value):  # a dict or list has to be the one that is described
                return check(value, one, what)
            with contextlib.suppress(ValueError):
                return check(value, one, what)
    if isinstance(kind, list) and type(value) in (list, tuple):
        for i, item in enumerate(value):
            check(item, kind[0], f"{what}[{i}]")
    elif isinstance(kind, dict) and str in kind and type(value) is dict:
        for key, item in value.items():
            check(key, str, f"a key of {what}")
            check(item, kind[str], f"{what}: {reprlib.repr(key)}")
    elif isinstance(kind, dict) and type(value) is dict:
        for name, part in kind.items():
            key = name.removesuffix("?")
            if key not in value and key == name:
                raise ValueError(f"{what} lacks {key}")
            if key == name or value.get(key) is not None:
                check(value[key], part, f"{what}: {key}")
    elif not (value is None if kind is None else type(value) is kind):
        shown = reprlib.repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
        raise ValueError(f"{what} is {shown}, not {_words(kind)}")


def _words(kind):
    if isinstance(kind, tuple):
        return " or ".join(map(_words, kind))
    return "None" if kind is None else getattr(kind, "__name__", type(kind).__name__)  # [...] is a list


def check_params(params):
    """Raise a ValueError unless params are a network: ``W1, b1 ... WL, bL``, finite and chained.

    All arrays must share one floating dtype.
    """
    check(params, {str: np.ndarray}, "params")
    names = [f"{kind}{layer}" for layer in range(1, (len(params) + 1) // 2 + 1) for kind in "Wb"]
    if not params or set(params) != set(names):
        odd = ", ".join(map(reprlib.repr, sorted(set(names) ^ set(params))[:4]))
        raise ValueError(f"params must be W1, b1, W2, b2, ... in pairs (look at: {odd})")
    width = len(params["W1"]) if params["W1"].ndim else 0
    for key in names:
        array, ndim = params[key], 2 if key[0] == "W" else 1
        if array.dtype.kind != "f" or array.dtype != params["W1"].dtype:
            raise ValueError(f"{key} is {array.dtype}: all params must be of one floating-point type")
        if array.ndim != ndim or not array.size:
            raise ValueError(f"{key} has shape {array.shape}, but must have {ndim} dimensions")
        if array.shape[0] != width:
            raise ValueError(f"{key} is for {array.shape[0]} values, but it gets {width}")
        if not np.isfinite(array).all():
            raise ValueError(f"{key} holds nan or inf")
        width = array.shape[-1]


def _plain(value, count=None, depth=0):
    """A copy in which tuples are lists, NumPy's numbers are Python's, and equal texts are one object.

    ValueError unless value is made of plain data, and not of far too much of it.
    """
    count = itertools.count() if count is None else count
    if next(count) > MOST_OPCODES or depth > MOST_DEPTH:
        raise ValueError("its lists and dicts are nested too deep, or hold too much")
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is dict:
        check(list(value), [str], "a key of a dict")
        return {sys.intern(key): _plain(item, count, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_plain(item, count, depth + 1) for item in value]
    if type(value) is str:
        return sys.intern(value)  # or pickles of equal content would differ
    if type(value) is np.ndarray and value.dtype.kind not in "biuf":
        raise ValueError("an array that is not numeric cannot be stored with params")
    check(value, (int, float, bool, None, np.ndarray), "what is stored with params")
    return value


def _to_npz(checkpoint):
    arrays = dict(checkpoint["params"])

    def name_of(array):
        name = f"array{len(arrays)}"
        arrays[name] = array
        return {"$array": name}

    texts = {k: json.dumps(part, default=name_of) for k, part in checkpoint.items() if k != "params"}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **texts)
    return buffer.getvalue()


def _from_npz(content):
    arrays = npz_arrays(content, 4 * len(content))

    def array_of(item):
        return arrays[item["$array"]] if item.keys() == {"$array"} else item

    texts = {key: str(array) for key, array in arrays.items() if array.dtype.kind == "U"}
    params = {key: array for key, array in arrays.items() if re.fullmatch(r"[Wb]\d+", key)}
    return {"params": params, **{k: json.loads(text, object_hook=array_of) for k, text in texts.items()}}


def npz_arrays(content, most):
    """{name: array} from the bytes of an .npz file; a ValueError where they are more than ``most`` bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > most:
            raise ValueError("it claims to unpack to far more than its own size")
        return {entry.filename.removesuffix(".npy"): npy_array(archive.read(entry)) for entry in entries}


def npy_array(content):
    """What np.load makes of the bytes of an .npy file, but without memory for a shape that lies."""
    file = io.BytesIO(content)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    content = file.read()
    points = np.frombuffer(content, f"{dtype.byteorder}u4") if dtype.kind == "U" else np.zeros(0)
    if points.max(initial=0) > sys.maxunicode:
        raise ValueError("it holds a character that is none")  # Python itself would fail on it
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C").copy("K")


# --- reading a pickle without running it ------------------------------------------------------
#
# pickle.load calls whatever a file names. Here a file may use the opcodes of plain data and no others,
# may name the functions of CONSTRUCTORS and no others, and may make no more bytes than twice its own
# size. Nothing out of it is hashed or printed before it is known to be a text.

MOST_OPCODES = 200_000  # of a pickle, and items of any file: far above what a run writes
MOST_DEPTH = 50  # of dicts and lists in each other
PLAIN_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()  # noqa: SIM905
)


def pickled_data(content):
    """The plain data in the bytes of a pickle, of Python 2 as well: nothing in it is run.

    Dicts with texts as keys, lists, tuples, texts, numbers, None, bools, bytes and numeric arrays.
    ValueError for anything else, and other errors for a damaged one.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        collides = "PUT" in opcode.name and argument > count  # numbers can be chosen so that a dict is slow
        if opcode.name not in PLAIN_OPCODES or count > MOST_OPCODES or collides:
            raise ValueError(f"its pickle does more than hold plain data ({opcode.name})")
    # the one in Python, whose parts can be replaced; latin1 is for texts of Python 2
    reader = pickle._Unpickler(io.BytesIO(content), encoding="latin1")
    reader.room = 2 * len(content)
    reader.find_class = _find
    reader.dispatch = {
        **reader.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.DICT[0]: _make_dict,
        pickle.SETITEM[0]: lambda reader: _set_items(reader, [reader.stack.pop(-2), reader.stack.pop()]),
        pickle.SETITEMS[0]: lambda reader: _set_items(reader, reader.pop_mark()),
    }
    return reader.load()


def _dtype(name, *_):
    """Something that holds a dtype, for BUILD to set its byte order."""
    if type(name) is not str or not re.fullmatch(r"[biuf]\d{1,2}", name):
        raise ValueError("it holds an array that is not numeric")
    return types.SimpleNamespace(dtype=np.dtype(name))


def _view(content, spec, shape, order):
    """The bytes of a file as an array; NumPy refuses a shape that does not fit them."""
    content = content.encode("latin1") if type(content) is str else content  # Python 2's bytes
    return np.frombuffer(content, spec.dtype).reshape(shape, order="F" if order in ("F", True) else "C")


CONSTRUCTORS = {  # as NumPy 1.x calls them; numpy.core is numpy._core in 2.x
    "numpy ndarray": None,  # only ever an argument of _reconstruct
    "numpy dtype": _dtype,
    "numpy.core.multiarray _reconstruct": lambda *_: np.empty(0, np.uint8),  # for BUILD to fill
    "numpy.core.multiarray scalar": lambda spec, content: _view(content, spec, (), "C").item(),
    "numpy.core.numeric _frombuffer": lambda *arguments: _view(*arguments).copy("K"),
    "_codecs encode": lambda text, _: text.encode("latin1"),
}


def _find(module, name):
    path = f"{module} {name}".replace("numpy._core.", "numpy.core.")
    if path not in CONSTRUCTORS:
        raise ValueError(f"it names {path!r:.100}, which is never run")
    return CONSTRUCTORS[path]


def _reduce(reader):
    arguments, function = reader.stack.pop(), reader.stack.pop()
    if type(arguments) is not tuple:  # an array would be unpacked into millions of objects
        raise ValueError("it calls a function without arguments")
    reader.append(_taken(reader, function(*arguments)))


def _build(reader):
    state, target = reader.stack.pop(), reader.stack[-1]
    if type(target) is np.ndarray:
        _, shape, spec, fortran, content = state
        target.__setstate__(_taken(reader, _view(content, spec, shape, fortran)).__reduce__()[2])
    elif type(target) is types.SimpleNamespace and state[1] in ("<", ">", "|", "="):
        target.dtype = np.dtype(state[1] + target.dtype.str[1:])
    else:
        raise ValueError("it sets the state of something that is no array")


def _taken(reader, made):
    """What a file has made, from the room that it has: it can name the same bytes many times."""
    reader.room -= len(made) if type(made) is bytes else getattr(made, "nbytes", 0)
    if reader.room < 0:
        raise ValueError("it unpacks to far more than its own size")
    return made


def _set_items(reader, items):
    target, keys = reader.stack[-1], items[::2]
    if type(target) is not dict or not all(type(key) is str for key in keys):
        raise ValueError("it holds a dict with a key that is not a text")
    target.update(zip(keys, items[1::2]))


def _make_dict(reader):
    items = reader.pop_mark()
    reader.append({})
    _set_items(reader, items)


FORMS = {  # suffix -> (bytes of a checkpoint, checkpoint from the bytes)
    ".pkl": (lambda checkpoint: pickle.dumps(checkpoint, protocol=4), pickled_data),
    ".npz": (_to_npz, _from_npz),
}
