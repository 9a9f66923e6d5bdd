"""Classes by name: which class of one input is which of another, in whatever order they are.

Inputs whose classes differ are refused, or on request

    intersect  keep the classes that all have: softmax is taken over the logits of these alone,
               which is what the classifier says given that one of them is right
    unite      keep those that any has. Of a class that it does not know an input says what its
               prior is: a likelihood ratio of one, which changes nothing in what others say. The
               rest of the mass it shares out as it does; with U what it lacks,
               log p(k) = log prior(k) in U, else log softmax(z)_k + log(1 - prior(U))

The Jacobian of the latter in the features depends on the row, since the softmax does: no Gram
matrix serves all rows, and where a modality that is recalibrated lacks classes a last layer is
refused. Without one it is regularised in the logits of the output.
"""

import itertools
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jacfuse_jax.predictions.flags import Combine
from jacfuse_jax.predictions.ids import list_some
from jacfuse_jax.programs import InputError

Classes = tuple[Hashable, ...]


class Alignment(NamedTuple):
    """The classes of several inputs, and those of the output.

    Attributes:
      names: (K,), of the output.
      own: {input: its classes, in the order of its logits}.
      how: what became of classes that not all have.
      remarks: a line for each input that was permuted, cut or filled.
    """

    names: Classes
    own: Mapping[str, Classes]
    how: Combine | None
    remarks: list[str]

    @property
    def every(self) -> Classes:
        """The classes of any input."""
        return _unite(self.own)

    @property
    def is_alike(self) -> bool:
        """Whether all inputs have the same classes in the same order."""
        return len(set(self.own.values())) == 1

    def places(self, own: Classes) -> NDArray[np.int64]:
        """Where each class of the output, (K,), stands among others; -1 where it does not.

        Args:
          own: the others, each once.
        """
        return _find(self.names, own)

    def positions(self, classes: Classes) -> NDArray[np.int64]:
        """Where each of some classes, (n,), stands in the output; -1 where it does not.

        Args:
          classes: (n,).
        """
        return _find(classes, self.names)


def align_classes(
    own: Mapping[str, Classes], how: Combine | None, *, flag: str = "--classes"
) -> Alignment:
    """Finds the classes of the output, in the order of the first input.

    Args:
      own: {input: its classes, each once}, at least one.
      how: what becomes of classes that not all have; None refuses them.
      flag: what `how` is called in messages.

    Raises:
      InputError: sets differ and are not to, or less than two classes are in all.
    """
    every = _unite(own)
    names = every
    if how != "unite":
        shared = set(every).intersection(*own.values())
        names = tuple(name for name in every if name in shared)
    lacks = {source: _without(every, classes) for source, classes in own.items()}
    if how is None and len(names) < len(every):
        listed = (
            f"{source} lacks {len(those)} of {len(every)}: {list_some(those)}"
            for source, those in lacks.items()
            if those
        )
        raise InputError(
            f"classes differ: {'; '.join(listed)}; rename them, or give {flag}=intersect or unite"
        )
    if len(names) < 2:
        raise InputError(f"{flag}={how}: {len(names)} classes are in all of {', '.join(own)}")
    remarks: list[str] = []
    for source, classes in own.items():
        places = _find(names, classes)
        left_out = _without(classes, names)
        if np.any(np.diff(places[places >= 0]) < 0):
            remarks.append(f"{source}: classes are in another order, and were aligned by name")
        if left_out:
            remarks.append(
                f"{source}: {len(left_out)} of {len(classes)} classes are left out, which others "
                f"lack: {list_some(left_out)}"
            )
        if how == "unite" and lacks[source]:
            remarks.append(
                f"{source} lacks {len(lacks[source])} of {len(names)} classes, of which it says "
                f"the class prior: {list_some(lacks[source])}"
            )
    return Alignment(names, own, how, remarks)


def align_logits(
    logits: NDArray[Any], places: NDArray[np.int64] | None, class_prior: NDArray[Any] | None
) -> NDArray[Any]:
    """Logits of the classes of the output; log-probabilities where the input lacks some.

    Args:
      logits: (n, k), of an input.
      places: (K,), as `Alignment.places`; None: the classes are alike.
      class_prior: (K,), sums to one; None: uniform.

    Returns:
      (n, K). A row that is no logits stays one, whatever classes are left out.
    """
    if places is None:
        return logits
    lacks = places < 0
    if not lacks.any():
        is_unusable = (logits == np.inf).any(axis=1, keepdims=True)
        return np.where(is_unusable, np.nan, logits[:, places]).astype(logits.dtype)
    z = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # rows with NaN or +inf, or with nothing finite, become NaN
        z = z - z.max(axis=1, keepdims=True)
        log_probs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    own = log_probs[:, np.maximum(places, 0)]
    prior = np.full(len(places), 1 / len(places)) if class_prior is None else class_prior
    return np.where(lacks, np.log(prior), own + np.log(prior[~lacks].sum()))


def align_prior(
    prior: NDArray[Any], own: Classes | None, classes: Alignment | None, *, source: str
) -> NDArray[Any]:
    """The class prior, or counts, in the order of the output.

    Args:
      prior: (k,).
      own: its classes, in its order; None where they have no names.
      classes: of the output; None where they have no names.
      source: of the prior, for messages.

    Returns:
      (K,); not normalised.

    Raises:
      InputError: it cannot be told what belongs to which class.
    """
    if classes is None or own is None:
        if own is not None:
            raise InputError(f"{source} names its classes, but no input does; name them there")
        if classes is not None and not classes.is_alike:
            raise InputError(
                f"{source} does not name its classes, and inputs have other ones, or another order;"
                " name them"
            )
        return prior
    if prior.shape != (len(own),):
        raise InputError(f"{source} has {len(own)} classes, but shape {prior.shape}")
    lacking, unknown = _without(classes.names, own), _without(own, classes.names)
    if lacking:
        raise InputError(f"{source} lacks {len(lacking)} classes: {list_some(lacking)}")
    if unknown and classes.how != "intersect":
        raise InputError(
            f"{source} has {len(unknown)} classes that no input has: {list_some(unknown)}"
        )
    return prior[classes.places(own)]


def _unite(own: Mapping[str, Classes]) -> Classes:
    """The classes of any input, those of the first in front."""
    return tuple(dict.fromkeys(itertools.chain(*own.values())))


def _find(classes: Classes, among: Classes) -> NDArray[np.int64]:
    """Where each class is among others; -1 where it is not."""
    place = {name: i for i, name in enumerate(among)}
    return np.array([place.get(name, -1) for name in classes], np.int64)


def _without(classes: Classes, others: Classes) -> list[Hashable]:
    """Those that are not among the others."""
    known = set(others)
    return [name for name in classes if name not in known]
