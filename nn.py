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
out : optional
    Where to put the result, as in NumPy: the same numbers in memory that is used again. Without it no
    function changes what it is given.
batches : iterable of dict
    ``x``, ``y`` (None where labels are not known), and perhaps ``blank``, see ``forward``.
"""

import contextlib
import difflib
import io
import json
import math
import os
import pickle
import pickletools
import re
import reprlib
import sys
import threading
import warnings

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
        init = AUTO_INITS[activation] if len(sizes) > 2 else "xavier"
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
    activate, _ = choose("activation", activation, ACTIVATIONS)
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
    cache = {"activation": activation, "inputs": [x], "masks": [], "layers": [], "blank": blank}
    for layer in range(1, depth + 1):
        corner = blank if layer == 1 else None
        z = _linear(cache["inputs"][-1], params[f"W{layer}"], corner, reused[layer - 1])
        z += params[f"b{layer}"]  # (n, width)
        cache["layers"].append(z)
        if layer < depth:
            hidden = activate(z)
            if dropout:
                cache["masks"].append(dropout_mask(hidden.shape, dropout, rng, dtype))
                hidden = hidden * cache["masks"][-1]
            cache["inputs"].append(hidden)
    return z, cache


def loss(params, outputs, y, loss="cross_entropy", weight_decay=0.0, label_smoothing=0.0):
    """Mean loss of a batch, as a Python float, summed in float64.

    Parameters
    ----------
    outputs : array (n, k)
        From ``forward``.
    params, y, loss, weight_decay, label_smoothing
        See the top of this file.

    Raises
    ------
    ValueError
        Unknown loss, labels of the wrong shape or outside 0 ... k-1.
    """
    value_of, _ = choose("loss", loss, LOSSES)
    with np.errstate(over="ignore", under="ignore"):
        value = float(np.mean(value_of(outputs, _checked_labels(outputs, y), label_smoothing)))
        if weight_decay:
            squares = sum(np.square(w, dtype=np.float64).sum() for k, w in params.items() if k[0] == "W")
            value += 0.5 * weight_decay * float(squares)
    return value


def backward(
    params, cache, y, loss="cross_entropy", weight_decay=0.0, label_smoothing=0.0, scale=1.0, out=None
):
    """Gradients of ``loss`` by back-propagation (Rumelhart, Hinton & Williams 1986).

    Parameters
    ----------
    params, y, loss, weight_decay, label_smoothing
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
    _, delta_of = choose("loss", loss, LOSSES)
    _, slope = ACTIVATIONS[cache["activation"]]
    weight_decay = float(scale * weight_decay)  # a NumPy float64 would upcast
    outputs = cache["layers"][-1]
    delta = delta_of(outputs, _checked_labels(outputs, y), label_smoothing)
    delta *= scale / len(y)  # (n, k)
    grads = dict.fromkeys(params) if out is None else dict(out)
    for layer in range(len(params) // 2, 0, -1):
        W, b = f"W{layer}", f"b{layer}"
        corner = cache["blank"] if layer == 1 else None
        grads[W] = _linear_gradient(cache["inputs"][layer - 1], delta, corner, grads[W])
        grads[b] = delta.sum(axis=0, out=grads[b])
        if weight_decay:
            grads[W] += weight_decay * params[W]
        if layer > 1:
            delta = delta @ params[W].T  # (n, width of the layer below)
            delta *= slope(cache["layers"][layer - 2])
            if cache["masks"]:
                delta *= cache["masks"][layer - 2]
    return grads


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
        rows = max(1, UPDATE_BLOCK // w[0].size)
        for start in range(0, len(w), rows):
            block = slice(start, start + rows)
            v = None if new_velocity is None else new_velocity[key][block]
            _move(new_params[key][block], v, grads[key][block], lr, momentum, nesterov, decay)
    return new_params, new_velocity


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


ACTIVATIONS = {  # name -> what it makes of z (n, width), and its slope from the result
    "relu": (relu, relu_slope),
    "leaky_relu": (leaky_relu, leaky_relu_slope),
    "sigmoid": (sigmoid, sigmoid_slope),
    "tanh": (tanh, tanh_slope),
}

INITS = {  # name -> standard deviation from (fan_in, fan_out)
    "he": lambda fan_in, fan_out: np.sqrt(2 / fan_in),  # He et al. 2015
    "he_leaky": lambda fan_in, fan_out: np.sqrt(2 / (fan_in * (1 + LEAKY_SLOPE**2))),
    "xavier": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),  # Glorot & Bengio 2010
    "lecun": lambda fan_in, fan_out: np.sqrt(1 / fan_in),  # LeCun et al. 1998
}
INIT_NAMES = ("auto", "he", "xavier", "lecun")
AUTO_INITS = {"relu": "he", "leaky_relu": "he_leaky", "tanh": "lecun", "sigmoid": "xavier"}

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
        raise ValueError(f"labels must be {len(outputs)} whole numbers, at least one")
    if y.max() >= outputs.shape[1] or (y.dtype.kind == "i" and y.min() < 0):
        raise ValueError(f"labels must lie in 0 ... {outputs.shape[1] - 1}")
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


def accuracy(outputs, y):
    """Share of rows whose largest output is that of the label."""
    return float(np.mean(outputs.argmax(axis=1) == y))


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


# --- params files -----------------------------------------------------------------------------


def check_params(params):
    """Raise a ValueError unless params are a network: ``W1, b1 ... WL, bL``, finite and chained.

    All arrays must share one floating dtype.
    """
    if not isinstance(params, dict) or not params:
        raise ValueError("params must be a dict of arrays W1, b1, W2, b2, ...")
    depth = (len(params) + 1) // 2
    names = {f"{kind}{i}" for i in range(1, depth + 1) for kind in "Wb"}
    if set(params) != names:
        odd = ", ".join(sorted(names ^ set(map(str, params)))[:4])
        raise ValueError(f"params must be W1, b1, W2, b2, ... in pairs (look at: {odd})")
    width = None
    for layer in range(1, depth + 1):
        W, b = params[f"W{layer}"], params[f"b{layer}"]
        for key, array, ndim in ((f"W{layer}", W, 2), (f"b{layer}", b, 1)):
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise ValueError(f"{key} is not an array of floating-point numbers")
            if array.ndim != ndim or not array.size:
                raise ValueError(f"{key} has shape {array.shape}, it must have {ndim} dimensions")
            if array.dtype != params["W1"].dtype:
                raise ValueError(f"{key} is {array.dtype}, but W1 is {params['W1'].dtype}")
            if not np.isfinite(array).all():
                raise ValueError(f"{key} holds nan or inf")
        if width is not None and W.shape[0] != width:
            raise ValueError(f"W{layer} takes {W.shape[0]} inputs, but the layer below gives {width}")
        width = W.shape[1]
        if b.shape != (width,):
            raise ValueError(f"b{layer} has shape {b.shape}, but W{layer} gives {width} outputs")


def save_params(path, params, config, **more):
    """Write params and config to ``.pkl`` or ``.npz``, beside the target and moved into place.

    A ``.pkl`` is a pickled ``{"params": {...}, "config": {...}, **more}`` of plain dicts, lists,
    strings, numbers and arrays. A ``.npz`` holds the params by name, and under ``config`` a JSON
    text in which ``{"$array": name}`` stands for an array kept under that name; no pickle inside.

    Raises
    ------
    ValueError
        Another suffix, params that are no network, a value of another kind in config.
    OSError
        The file cannot be written. Whatever was there before is still there.
    """
    write = choose("suffix", os.path.splitext(path)[1], {".pkl": _to_pickle, ".npz": _to_npz})
    check_params(params)
    if not isinstance(config, dict):
        raise ValueError(f"config must be a dict, not {reprlib.repr(config)}")
    content = write({"params": params, "config": config, **more})
    aside = f"{path}.{os.getpid()}.part"
    try:
        with open(aside, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.remove(aside)


def load_params(path):
    """Read ``(params, config)`` from a ``.pkl`` or ``.npz`` file.

    Nothing in the file is ever run: only dicts, lists, strings, numbers, None, bools and numeric
    NumPy arrays are admitted.

    Raises
    ------
    ValueError
        Anything else, a damaged file, or params that are no network (see ``check_params``).
    OSError
        The file cannot be read.
    """
    content = load_checkpoint(path)
    return content["params"], content["config"]


def load_run(path):
    """``(params, config)`` of a run's folder or of a params file, ready for use.

    Raises
    ------
    ValueError
        As ``load_params``; a config that does not say how to use the params.
    OSError
        There is no such file.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "params.pkl")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no {path}; python train.py makes one (see its --out)")
    params, config = load_params(path)
    try:
        check_config(params, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} was not written by a run: {error}") from error
    return params, config


def check_config(params, config):
    """Raise a ValueError, KeyError or TypeError unless config says how to use the params."""
    choose("activation", config["activation"], ACTIVATIONS)
    choose("loss", config["loss"], LOSSES)
    facts, sizes = config["data"], layer_sizes(params)
    kinds = {"dataset": str, "steps": list, "data": dict}
    if not all(isinstance(config[key], kind) for key, kind in kinds.items()):
        raise ValueError("its config does not name a data set and preprocessing steps")
    names, shape = facts["class_names"], facts["image_shape"]
    if not all(isinstance(value, (list, tuple)) for value in (names, shape)):
        raise ValueError("its class names or image shape are no lists")
    if not all(isinstance(name, str) for name in names) or not all(type(n) is int for n in shape):
        raise ValueError("its class names or image shape are no such things")
    if not isinstance(facts.get("title", ""), str) or not isinstance(config.get("epoch", 0), int):
        raise ValueError("its title is no text, or its epoch no whole number")
    digests = facts.get("sha256", {})
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise ValueError("its SHA-256 of the data are no texts")
    if len(shape) != 2 or len(names) != sizes[-1]:
        raise ValueError("its class names or image shape do not fit its params")


def load_checkpoint(path):
    """Everything in a params file, as a dict with at least ``params`` and ``config``."""
    read = choose(f"suffix of {path}:", os.path.splitext(path)[1], {".pkl": _from_pickle, ".npz": _from_npz})
    with open(path, "rb") as file:
        content = file.read()
    try:
        with warnings.catch_warnings():  # of damaged text, or of a file that NumPy made under Python 2
            warnings.simplefilter("ignore")
            checkpoint = read(content)
        if not isinstance(checkpoint, dict) or not {"params", "config"} <= set(checkpoint):
            raise ValueError("it holds no params and config")
        if not isinstance(checkpoint["config"], dict):
            raise ValueError("its config is not a dict")
        _check_admitted(checkpoint)
        check_params(checkpoint["params"])
    except Exception as error:  # a damaged file can fail in any way, and is always the same error
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is not a usable params file: {reason:.300}") from error
    native = {k: w.astype(w.dtype.newbyteorder("="), copy=False) for k, w in checkpoint["params"].items()}
    return {**checkpoint, "params": native}


def _plain(value, arrays=None):
    """A copy made of dicts, lists, strings, numbers, None, bools and arrays, or a ValueError.

    With a dict ``arrays``, arrays are moved into it and ``{"$array": name}`` left in their place.
    """
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a dict with keys that are no texts cannot be stored with params")
        return {sys.intern(key): _plain(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        if arrays is None:
            return value
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {"$array": name}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return sys.intern(value)  # equal strings become one, so that equal content is equal bytes
    if value is None or isinstance(value, (int, float)):
        return value
    raise ValueError(f"a {type(value).__name__} cannot be stored with params")


def _to_pickle(checkpoint):
    return pickle.dumps(_plain(checkpoint), protocol=4)


def _to_npz(checkpoint):
    arrays = {}
    rest = _plain({key: part for key, part in checkpoint.items() if key != "params"}, arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **checkpoint["params"], **arrays, **{k: json.dumps(v) for k, v in rest.items()})
    return buffer.getvalue()


def _from_npz(content):
    if content[:2] != b"PK":
        raise ValueError("it is no .npz archive")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        sizes = {info.filename: info.file_size for info in file.zip.infolist()}
        if sum(sizes.values()) > 4 * len(content):
            raise ValueError("it claims to unpack to far more than its own size")
        entries = {key: file[key] for key in file.files}

    def restored(value):
        if isinstance(value, dict) and set(value) == {"$array"}:
            return entries[value["$array"]]
        if isinstance(value, dict):
            return {key: restored(item) for key, item in value.items()}
        return [restored(item) for item in value] if isinstance(value, list) else value

    texts = {key: str(value) for key, value in entries.items() if value.dtype.kind == "U"}
    params = {key: value for key, value in entries.items() if re.fullmatch(r"[Wb]\d+", key)}
    return {"params": params, **{key: restored(json.loads(text)) for key, text in texts.items()}}


# --- reading a pickle without running it ------------------------------------------------------
#
# pickle.loads calls whatever the file names. This reads the few opcodes that plain data and
# NumPy arrays are made of, and knows only the functions below by name. Its limits, far above
# what a run writes, keep a small file from taking much time or memory.

MOST_OPCODES = 200_000
MOST_DIMENSIONS = 32
MOST_DEPTH = 50  # of dicts and lists in each other, in a .npz as well


def _numeric_dtype(spec):
    """dtype from ``{"type": "f4", "order": "<"}``; ValueError unless numeric."""
    if not isinstance(spec, dict) or not re.fullmatch(r"[biuf]\d{1,2}", str(spec.get("type"))):
        raise ValueError("it holds an array that is not numeric")
    return np.dtype((spec.get("order") or "=") + spec["type"])


def _array_state(shape, spec, fortran, content):
    """State for ndarray.__setstate__, after checking that the sizes agree."""
    dtype = _numeric_dtype(spec)
    fits = isinstance(shape, tuple) and len(shape) <= MOST_DIMENSIONS
    if not fits or not all(type(n) is int and 0 <= n <= sys.maxsize for n in shape):
        raise ValueError("it holds an array with an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} does not fit its {len(content)} bytes")
    return (1, shape, dtype, bool(fortran), bytes(content))


def _set_array(array, state):
    array.__setstate__(state)
    return array


def _new_array(*_):
    return np.empty(0, np.uint8)


def _from_buffer(content, spec, shape, order):
    return _set_array(_new_array(), _array_state(shape, spec, order == "F", content))


def _scalar(spec, content):
    return _from_buffer(content, spec, (), "C").item()


_CALLS = {
    "numpy ndarray": None,  # only ever an argument of _reconstruct
    "numpy dtype": lambda name, *_: {"type": name, "order": None},
    "_codecs encode": lambda text, encoding: text.encode("latin1"),
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1.x and 2.x
    _CALLS[f"{_core}.multiarray _reconstruct"] = _new_array
    _CALLS[f"{_core}.multiarray scalar"] = _scalar
    _CALLS[f"{_core}.numeric _frombuffer"] = _from_buffer

_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
_LITERALS |= {"UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"}
_LITERALS |= {"BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _build(target, state):
    """What BUILD does, for the two kinds of thing that need it: arrays and their dtypes."""
    if isinstance(target, np.ndarray):
        _, *rest = state
        _set_array(target, _array_state(*rest))
    elif isinstance(target, dict) and set(target) == {"type", "order"}:
        target["order"] = {"<": "<", ">": ">", "|": "|"}[state[1]]
    else:
        raise ValueError("it sets the state of something that is no array")


def _from_pickle(content):
    stack, marks, memo = [], [], {}
    room = 2 * len(content)  # for arrays, and for bytes made from text

    def pop(count):
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def pop_to_mark():
        return pop(len(stack) - marks.pop())

    def pairs(items):
        if not all(isinstance(key, str) for key in items[::2]):  # numbers can be made to collide
            raise ValueError("it holds a dict with a key that is not a string")
        return zip(items[::2], items[1::2])

    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name, made = opcode.name, None
        if count > MOST_OPCODES:
            raise ValueError("it holds far more than params and a config")
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _TUPLES:
            stack.append(tuple(pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name == "LIST":
            stack.append(pop_to_mark())
        elif name == "DICT":
            stack.append(dict(pairs(pop_to_mark())))
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = pop_to_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else pop_to_mark()
            stack[-1].update(pairs(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            path = argument if name == "GLOBAL" else " ".join(pop(2))
            if path not in _CALLS:
                raise ValueError(f"it names {path!r}, which is never run")
            stack.append(path)
        elif name == "REDUCE":
            function, arguments = pop(2)
            made = _CALLS[function](*arguments)
            stack.append(made)
        elif name == "BUILD":
            state = stack.pop()
            made = stack[-1]
            _build(made, state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its pickle does more than hold data ({name})")
        room -= len(made) if isinstance(made, bytes) else getattr(made, "nbytes", 0)
        if room < 0:  # the same bytes made into many arrays
            raise ValueError("it unpacks to far more than its own size")
    (value,) = stack
    return value


def _check_admitted(value):
    """Raise a ValueError unless value is made of plain data; a container may appear only once."""
    pending, seen = [(value, 0)], set()
    while pending:
        item, depth = pending.pop()
        if isinstance(item, (dict, list)):
            if id(item) in seen:
                raise ValueError("it holds the same list or dict twice")
            if depth > MOST_DEPTH:
                raise ValueError("its lists and dicts are nested too deep")
            seen.add(id(item))
            pending.extend((part, depth + 1) for part in (item.values() if isinstance(item, dict) else item))
        elif isinstance(item, np.ndarray):
            if item.dtype.kind not in "biuf":
                raise ValueError("it holds an array that is not numeric")
        elif item is not None and not isinstance(item, (str, int, float)):
            raise ValueError(f"it holds a {type(item).__name__}")


def check(value, kind, what):
    """Raise a ValueError that names the place (what) unless a value from a file is of a kind.

    A kind is a type (exactly that one), None, a tuple of kinds (any of them), ``[kind]`` (a list or
    tuple of it), ``{"name": kind, "name?": kind}`` (a dict with at least these; one with ? may be
    None or missing) or ``{str: kind}`` (a dict of texts to it).
    """
    if isinstance(kind, tuple):
        if not any(_is(value, one) for one in kind):
            raise ValueError(f"{what} is {reprlib.repr(value)}, which is of another kind")
    elif isinstance(kind, list):
        if type(value) not in (list, tuple):
            raise ValueError(f"{what} is {reprlib.repr(value)}, not a list")
        for part in value:
            check(part, kind[0], f"a part of {what}")
    elif isinstance(kind, dict):
        check(value, dict, what)
        entries = dict.fromkeys(value, kind[str]) if str in kind else kind
        for name, part in entries.items():
            check(name, str, f"a name in {what}")
            key = name if str in kind else name.removesuffix("?")
            if key not in value and key == name:
                raise ValueError(f"{what} lacks {key}")
            if key == name or value.get(key) is not None:
                check(value[key], part, f"{key} of {what}")
    elif (value is not None) if kind is None else type(value) is not kind:
        raise ValueError(
            f"{what} is {reprlib.repr(value)}, not of the kind {getattr(kind, '__name__', None)}"
        )


def _is(value, kind):
    try:
        check(value, kind, "")
    except ValueError:
        return False
    return True


def save_bytes(path, content):
    """Write bytes beside ``path`` and move them into place; a reader never sees half a file."""
    aside = f"{path}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        with open(aside, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)
