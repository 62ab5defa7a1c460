"""The network: pure functions over a plain dict of arrays.

Parameters are ``{"W1": (784, 292), "b1": (292,), "W2": (292, 10), "b2": (10,)}``, for any
depth; a network without hidden layers has just ``W1`` and ``b1``. Gradients and velocities
are dicts with the same keys and shapes. Images are rows ``(n, d)``, labels are class
numbers ``(n,)``. Everything is computed in the dtype of the parameters.

No function changes what it is given, but for the activations, which work in place on an array
that ``forward`` has just made. Where memory is worth reusing there is an ``out=``, as in NumPy:
the result is the same numbers, in the arrays that were handed over.
"""

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
import warnings

import numpy as np

LEAKY_SLOPE = 0.01
UPDATE_BLOCK = 65536  # elements of a weight matrix updated at a time, so that they stay in cache


def choose(kind, name, options):
    """Return ``options[name]``, or raise a ValueError that suggests the nearest name."""
    if isinstance(name, str) and name in options:
        return options[name]
    near = difflib.get_close_matches(name, options, n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown {kind} {reprlib.repr(name)}{hint} (one of: {', '.join(options)})")


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


ACTIVATIONS = {
    "relu": (relu, relu_slope),
    "leaky_relu": (leaky_relu, leaky_relu_slope),
    "sigmoid": (sigmoid, sigmoid_slope),
    "tanh": (tanh, tanh_slope),
}

# --- initialisation ---------------------------------------------------------------------------

INITS = {  # name -> standard deviation from (fan_in, fan_out)
    "he": lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    "he_leaky": lambda fan_in, fan_out: np.sqrt(2 / (fan_in * (1 + LEAKY_SLOPE**2))),
    "xavier": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
    "lecun": lambda fan_in, fan_out: np.sqrt(1 / fan_in),
}
AUTO_INITS = {"relu": "he", "leaky_relu": "he_leaky", "tanh": "lecun", "sigmoid": "xavier"}
INIT_NAMES = ("auto", "he", "xavier", "lecun")


def init_params(rng, sizes, activation="relu", init="auto", dtype=np.float32):
    """Draw normal weights and zero biases.

    Parameters
    ----------
    rng : numpy.random.Generator
    sizes : sequence of int
        Widths of all layers, input and output included: ``[784, 292, 10]``.
    activation : str
        Of the hidden layers; ``auto`` depends on it.
    init : {"auto", "he", "xavier", "lecun"}
        ``he``: std sqrt(2 / fan_in) (He et al. 2015); ``xavier``: sqrt(2 / (fan_in + fan_out))
        (Glorot & Bengio 2010); ``lecun``: sqrt(1 / fan_in) (LeCun et al. 1998). ``auto``: he for
        relu, he with the slope's correction for leaky_relu, lecun for tanh, xavier for sigmoid
        and for a network without hidden layers.
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


def layer_sizes(params):
    """Widths of all layers, input and output included: ``[784, 292, 10]``."""
    depth = len(params) // 2
    return [params["W1"].shape[0]] + [params[f"W{i}"].shape[1] for i in range(1, depth + 1)]


# --- the core ---------------------------------------------------------------------------------


def forward(params, x, activation="relu", dropout=0.0, rng=None, out=None, blank=None):
    """Linear outputs of the last layer, and what ``backward`` needs.

    Parameters
    ----------
    params : dict of arrays
    x : array (n, d)
        Preprocessed images; brought to the dtype of the params.
    activation : str
        Of the hidden layers.
    dropout : float in [0, 1)
        Share of hidden units switched off; the others are scaled by 1 / (1 - dropout)
        (inverted dropout, Srivastava et al. 2014).
    rng : numpy.random.Generator
        Needed with dropout.
    out : cache of an earlier call with the same shapes, optional
        Its arrays are used again; the earlier outputs and cache are gone after that.
    blank : (rows, columns), optional
        The first so many rows of x are 0 from that column on: a corner that the products leave out,
        here and in ``backward``.

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
    dtype = params["W1"].dtype
    x = np.asarray(x, dtype)
    if x.ndim != 2 or x.shape[1] != params["W1"].shape[0]:
        raise ValueError(f"x has shape {x.shape}, the network takes (n, {params['W1'].shape[0]})")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
    if dropout and rng is None:
        raise ValueError("dropout needs a random generator (rng)")
    depth = len(params) // 2
    reused = out["layers"] if out else [None] * depth
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


def _linear(x, W, blank, out):
    """x @ W without the corner of x that is blank."""
    if not blank:
        return np.matmul(x, W, out=out)
    rows, columns = blank
    out = np.matmul(x[:, :columns], W[:columns], out=out)
    out[rows:] += x[rows:, columns:] @ W[columns:]
    return out


def _linear_gradient(x, delta, blank, out):
    """x.T @ delta without the corner of x that is blank."""
    if not blank:
        return np.matmul(x.T, delta, out=out)
    rows, columns = blank
    out = np.empty((x.shape[1], delta.shape[1]), x.dtype) if out is None else out
    np.matmul(x[:, :columns].T, delta, out=out[:columns])
    np.matmul(x[rows:, columns:].T, delta[rows:], out=out[columns:])
    return out


def dropout_mask(shape, share, rng, dtype=np.float32):
    """Factors that switch off a share of what they multiply and scale the rest (inverted dropout)."""
    kept = rng.random(shape, dtype=dtype) >= share
    return np.multiply(kept, 1 / (1 - share), dtype=dtype)


def softmax(outputs):
    """Probabilities (n, k), safe for any finite logits."""
    with np.errstate(over="ignore", under="ignore"):  # a gap beyond the largest float is -inf
        e = outputs.T.copy()  # (k, n): NumPy is faster over a first axis than over short rows
        e -= e.max(axis=0)
        np.exp(e, out=e)
        e /= e.sum(axis=0)
    return e.T  # (n, k)


def _check_labels(outputs, y):
    """Labels as an index array, or a ValueError that says what is wrong with them.

    Those of data sets are uint8: one too large is an IndexError where it is used, at no cost.
    """
    y = np.asarray(y)
    if y.shape != outputs.shape[:1] or y.dtype.kind not in "iu" or not len(y):
        raise ValueError(f"labels must be {len(outputs)} whole numbers, at least one")
    if y.dtype != np.uint8 and (y.min() < 0 or y.max() >= outputs.shape[1]):
        raise _beyond_labels(outputs)
    return y


def _beyond_labels(outputs):
    return ValueError(f"labels must lie in 0 ... {outputs.shape[1] - 1}")


def _minus_targets(outputs, y, label_smoothing):
    """Outputs (n, k), in place, minus 1 for the label, or with label smoothing as ``loss`` says."""
    outputs[np.arange(len(y)), y] -= 1 - label_smoothing
    if label_smoothing:
        outputs -= label_smoothing / outputs.shape[1]
    return outputs


def _cross_entropy(outputs, y, label_smoothing):
    z = outputs.T.astype(np.float64, order="C")  # (k, n), as in softmax
    z -= z.max(axis=0)
    right = z[y, np.arange(len(y))]
    if label_smoothing:
        right = (1 - label_smoothing) * right + label_smoothing * z.mean(axis=0)
    return np.log(np.exp(z, out=z).sum(axis=0)) - right  # (n,), log of at least 1


def _squared_error(outputs, y, label_smoothing):
    z = _minus_targets(outputs.astype(np.float64), y, label_smoothing)
    return 0.5 * np.square(z).sum(axis=1)  # (n,)


LOSSES = {"cross_entropy": _cross_entropy, "mse": _squared_error}


def loss(params, outputs, y, loss="cross_entropy", weight_decay=0.0, label_smoothing=0.0):
    """Mean loss of a batch, as a Python float, summed in float64.

    Parameters
    ----------
    params : dict of arrays
    outputs : array (n, k)
        From ``forward``.
    y : int array (n,)
        Class numbers.
    loss : {"cross_entropy", "mse"}
        Mean of -log softmax(outputs)[y], or of 0.5 * squared distance between the outputs and
        the one-hot label.
    weight_decay : float
        Adds 0.5 * weight_decay * the sum of squares of the W's.
    label_smoothing : float in [0, 1)
        The target is 1 - label_smoothing for the label, and label_smoothing / k more for each of
        the k classes (Szegedy et al. 2016).

    Raises
    ------
    ValueError
        Unknown loss, labels of the wrong shape or outside 0 ... k-1.
    """
    per_image = choose("loss", loss, LOSSES)
    y = _check_labels(outputs, y)
    with np.errstate(over="ignore", under="ignore"):
        try:
            value = float(np.mean(per_image(outputs, y, label_smoothing)))
        except IndexError as error:
            raise _beyond_labels(outputs) from error
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
    out : dict of arrays, optional
        Gradients of an earlier call; overwritten.

    Returns
    -------
    dict of arrays
        Keys, shapes and dtype of the params.
    """
    choose("loss", loss, LOSSES)
    _, slope = ACTIVATIONS[cache["activation"]]
    weight_decay = float(scale * weight_decay)  # a NumPy float64 would upcast
    outputs = cache["layers"][-1]
    y = _check_labels(outputs, y)
    delta = softmax(outputs) if loss == "cross_entropy" else outputs.copy()
    try:
        delta = _minus_targets(delta, y, label_smoothing)
    except IndexError as error:
        raise _beyond_labels(outputs) from error
    delta *= scale / len(y)  # (n, k)
    grads = dict.fromkeys(params) if out is None else out
    for layer in range(len(params) // 2, 0, -1):
        W, b = f"W{layer}", f"b{layer}"
        blank = cache["blank"] if layer == 1 else None
        grads[W] = _linear_gradient(cache["inputs"][layer - 1], delta, blank, grads[W])
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
    params, grads : dicts of arrays
    velocity : dict of arrays or None
        From the step before; None is zero.
    lr, momentum : float
    weight_decay : float
        Adds weight_decay * W to the gradients of the W's, for a caller who left it out of
        ``backward``.
    out : (params, velocity), optional
        Where the results go, in C-contiguous arrays (or a ValueError); may be the very dicts that
        are passed in. Without momentum the velocity may be None: nobody needs it.

    Returns
    -------
    params, velocity : dicts of arrays
        The velocity of plain SGD (momentum 0) is its last step, -lr g.
    """
    lr, momentum, weight_decay = float(lr), float(momentum), float(weight_decay)
    if momentum and velocity is None:
        velocity = {key: np.zeros_like(w) for key, w in params.items()}
    new_params, new_velocity = out or (_empty_like(params), _empty_like(params))
    if not all(w.flags.c_contiguous for arrays in (new_params, new_velocity or {}) for w in arrays.values()):
        raise ValueError("the arrays in out must be C-contiguous")
    scratch = np.empty(UPDATE_BLOCK, params["W1"].dtype)
    for key in params:
        w, g, new_w = (d[key].reshape(-1) for d in (params, grads, new_params))
        v = velocity[key].reshape(-1) if momentum else None
        new_v = new_velocity[key].reshape(-1) if new_velocity is not None else None
        decay = weight_decay if key[0] == "W" else 0.0
        for start in range(0, w.size, UPDATE_BLOCK):
            part = slice(start, min(start + UPDATE_BLOCK, w.size))
            room = scratch[: part.stop - start]
            if momentum:
                step = _step(w[part], g[part], lr, decay, room)
                moved = np.multiply(v[part], momentum, out=new_v[part])
                moved -= step
                np.add(w[part], momentum * moved - step if nesterov else moved, out=new_w[part])
            else:
                step = _step(w[part], g[part], lr, 0.0, room)
                if new_v is not None:
                    np.subtract(w[part] * (-lr * decay), step, out=new_v[part])
                kept = np.multiply(w[part], 1 - lr * decay, out=new_w[part]) if decay else w[part]
                np.subtract(kept, step, out=new_w[part])
    return new_params, new_velocity


def _step(w, g, lr, decay, out):
    """lr * (g + decay * w) in out, or g itself where that is the same."""
    if decay:
        g = np.add(np.multiply(w, decay, out=out), g, out=out)
    return g if lr == 1 else np.multiply(g, lr, out=out)


def _empty_like(params):
    return {key: np.empty_like(w, order="C") for key, w in params.items()}


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


def predict(params, x, activation="relu", loss="cross_entropy"):
    """Softmax probabilities (n, k) of a cross-entropy network, linear outputs of an mse one."""
    outputs, _ = forward(params, x, activation)
    return estimates(outputs, loss)


def estimates(outputs, loss="cross_entropy"):
    """What ``predict`` makes of linear outputs (n, k): their softmax, or for mse themselves."""
    choose("loss", loss, LOSSES)
    return softmax(outputs) if loss == "cross_entropy" else outputs


def outputs_of(params, batches, activation="relu"):
    """Linear outputs (n, k) for all of an iterable of batches, a batch at a time."""
    return hidden_of(params, batches, activation)[0]


def hidden_of(params, batches, activation="relu"):
    """``(outputs, layers)``: linear outputs (n, k) and the activations (n, width) of each hidden layer."""
    outputs, layers = [], []
    with np.errstate(all="ignore"):  # found out by the check that follows
        for batch in batches:
            x = batch["x"] if isinstance(batch, dict) else batch[0]
            out, cache = forward(params, x, activation)
            outputs.append(out)
            layers.append(cache["inputs"][1:])
    outputs = np.concatenate(outputs)
    if not np.isfinite(outputs).all():
        raise ValueError("the network's outputs are not finite: its params or preprocessing are out of range")
    return outputs, [np.concatenate(layer) for layer in zip(*layers)]


def check(value, kind, what):
    """Stand-in."""
    if isinstance(kind, tuple):
        for option in kind:
            try:
                return check(value, option, what)
            except ValueError as error:
                last = error
        raise last
    if kind is None:
        fits = value is None
    elif isinstance(kind, list):
        fits = isinstance(value, (list, tuple))
    elif isinstance(kind, dict):
        fits = isinstance(value, dict)
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError(f"{what} is of the wrong kind: {value!r:.40}")
    if isinstance(kind, list):
        for i, item in enumerate(value):
            check(item, kind[0], f"{what}[{i}]")
    if isinstance(kind, dict):
        for name, of in kind.items():
            if name is str:
                for key, item in value.items():
                    check(key, str, what)
                    check(item, of, f"{what}: {key}")
            elif name.endswith("?"):
                if value.get(name[:-1]) is not None:
                    check(value[name[:-1]], of, f"{what}: {name[:-1]}")
            elif name not in value:
                raise ValueError(f"{what} lacks {name}")
            else:
                check(value[name], of, f"{what}: {name}")


def accuracy(outputs, y):
    """Share of rows whose largest output is that of the label."""
    return float(np.mean(outputs.argmax(axis=1) == y))


def confusion_matrix(y, predicted, classes):
    """Counts (classes, classes): row is the label, column the prediction."""
    pairs = np.asarray(y, np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


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
