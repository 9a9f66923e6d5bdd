"""What a classifier of scikit-learn says: logits, last linear layer, classes."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import (
    _safe_indexing,  # pyright: ignore[reportPrivateUsage] documented; knows every data frame
    indexable,
)
from sklearn.utils.validation import has_fit_parameter

from jacfuse_jax.linalg import GramSpectrum, spectrum_from_kernel
from jacfuse_jax.linalg._spectrum import centre_kernel

_SMALLEST_PROB = np.finfo(np.float64).eps  # as in sklearn.metrics.log_loss
_spectrum_from_kernel = jax.jit(spectrum_from_kernel)


def split_columns(
    X: Any, modalities: Mapping[str, Any], columns: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What each classifier takes, {modality: (N, ...)}, rows indexable; raises on unequal N."""
    if is_mapping(X):
        if missing := sorted(modalities.keys() - X.keys()):
            raise ValueError(f"X lacks the modalities {missing}, it has {sorted(X)}")
        arrays = [X[name] for name in modalities]
    elif columns is None:
        arrays = [X] * len(modalities)
    else:
        (X,) = indexable(X if hasattr(X, "shape") else np.asarray(X))
        arrays = [_safe_indexing(X, columns[name], axis=1) for name in modalities]
    return dict(zip(modalities, indexable(*arrays), strict=True))


def find_present(X: Any) -> NDArray[np.bool_]:
    """Which rows (N,) of what a classifier takes hold anything but NaN, or None."""
    if issparse(X):
        return np.ones(X.shape[0], bool)
    if hasattr(X, "isna"):
        is_nan = np.asarray(X.isna(), bool)
    else:
        try:
            array = np.asarray(X)
        except ValueError:  # rows of different lengths
            return np.ones(len(X), bool)
        if array.dtype.hasobject:
            flat = [x is None or (isinstance(x, Real) and x != x) for x in array.ravel()]
            is_nan = np.reshape(np.array(flat, bool), array.shape)
        else:
            is_nan = np.asarray(array != array)
    if not is_nan.size:
        return np.ones(len(is_nan), bool)
    return ~np.asarray(is_nan.reshape(len(is_nan), -1).all(axis=1))


def take_rows(X: Any, rows: NDArray[np.bool_]) -> Any:
    """The rows that are marked."""
    return X if rows.all() else _safe_indexing(X, np.flatnonzero(rows))


def is_mapping(X: Any) -> bool:
    """Whether X has an entry for every modality. Sparse arrays by keys (DOK) are dicts, too."""
    return isinstance(X, Mapping) and not issparse(X)


def fit_copy(
    classifier: Any, X: Any, y: NDArray[Any], rows: NDArray[np.intp], fit_params: dict[str, Any]
) -> Any:
    """A copy of the classifier, trained on some rows; parameters of its `fit` are (N,)."""
    copy: Any = clone(classifier)
    params = {name: array[rows] for name, array in fit_params.items()}
    is_all = np.array_equal(rows, np.arange(len(y)))
    copy.fit(X if is_all else _safe_indexing(X, rows), y[rows], **params)
    return copy


def names_of_weights(classifier: Any) -> list[str]:
    """What `fit` calls weights of samples: a name, of a pipeline that of its last step, or none."""
    if has_fit_parameter(classifier, "sample_weight"):
        return ["sample_weight"]
    if isinstance(classifier, Pipeline):
        step, last = classifier.steps[-1]
        return [f"{step}__{name}" for name in names_of_weights(last)]
    return []


def logits_of(
    name: str, classifier: Any, X: Any, present: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Logits (N, K), zeros in rows that are missing; raises unless they are finite."""
    logits = np.zeros((len(present), len(classes_of(name, classifier))))
    if present.any():
        logits[present] = _logits_of(name, classifier, take_rows(X, present))
    return logits


def _logits_of(name: str, classifier: Any, X: Any) -> NDArray[np.float64]:
    """Logits (N, K), log-probabilities where the classifier has them; raises unless finite."""
    if hasattr(classifier, "predict_proba"):
        probs = np.asarray(classifier.predict_proba(X), np.float64)
        logits = np.log(np.maximum(probs, _SMALLEST_PROB))
    else:
        logits = np.asarray(classifier.decision_function(X), np.float64)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
    num_classes = len(classes_of(name, classifier))
    if logits.shape[1:] != (num_classes,):
        raise ValueError(
            f"the classifier of {name!r} must give logits of shape (N, {num_classes}), one column "
            f"a class, got {logits.shape}"
        )
    if wrong := np.count_nonzero(~np.isfinite(logits).all(axis=1)):
        raise ValueError(
            f"the classifier of {name!r} gives NaN or infinity for {wrong} of {len(logits)} "
            "samples; check its inputs and parameters"
        )
    return logits


def head_of(classifier: Any) -> Any:
    """The last step of a pipeline, or the classifier itself."""
    steps = getattr(classifier, "steps", None)  # of a classifier it may be a number
    return steps[-1][1] if isinstance(steps, list) else classifier


def gram_of(classifier: Any, num_classes: int, temperature: float) -> GramSpectrum:
    """Spectrum of the Gram matrix of the centred kernel, as NumPy arrays."""
    kernel = centre_kernel(kernel_of(classifier, num_classes))
    return jax.tree.map(np.asarray, _spectrum_from_kernel(kernel / temperature))


def kernel_of(classifier: Any, num_classes: int) -> NDArray[np.float64]:
    """Kernel (H, K) of a linear classifier, at the end of a pipeline or not; else the identity."""
    head = head_of(classifier)
    coef = getattr(head, "coef_", None)
    # Support vector machines have a row of coefficients for every pair of classes.
    if coef is None or hasattr(head, "support_vectors_"):
        return np.eye(num_classes)
    coef = np.atleast_2d(coef.toarray() if issparse(coef) else coef)
    if num_classes == 2 and len(coef) == 1:
        coef = np.concatenate([np.zeros_like(coef), coef])
    is_linear = coef.ndim == 2 and len(coef) == num_classes
    return coef.T if is_linear else np.eye(num_classes)


def classes_of(name: str, classifier: Any) -> NDArray[Any]:
    """The classes (K,) of a classifier, which may hold a list; raises unless they are sorted."""
    if not hasattr(classifier, "classes_"):
        raise ValueError(f"the classifier of {name!r} has no attribute classes_, its labels sorted")
    classes = np.asarray(classifier.classes_)
    if classes.ndim != 1 or not np.array_equal(np.unique(classes), classes):
        raise ValueError(
            f"the classifier of {name!r} has classes_ {classes.tolist()}: they must be sorted, "
            "each once, as the columns of its predictions are"
        )
    return classes


def check_classes(name: str, classifier: Any, classes: NDArray[Any]) -> None:
    """Raises unless the classifier knows exactly these classes."""
    own = classes_of(name, classifier)
    if not np.array_equal(own, classes):
        raise ValueError(
            f"the classifier of {name!r} was fitted with classes {own.tolist()}, "
            f"another one with {classes.tolist()}: all must be alike, also in every fold"
        )


def check_decision(name: str, classifier: Any) -> None:
    """Raises where the logits would be those of pairs of classes: three of three look alike."""
    if (
        not hasattr(classifier, "predict_proba")
        and getattr(head_of(classifier), "decision_function_shape", None) == "ovo"
        and len(classes_of(name, classifier)) > 2
    ):
        raise ValueError(
            f"the classifier of {name!r} has decision_function_shape='ovo', a column for each pair "
            "of classes; set decision_function_shape='ovr', a column for each class"
        )
