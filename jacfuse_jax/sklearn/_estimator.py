"""Robust late fusion as a scikit-learn classifier.

In one file, since the estimator is one class: half of it says what its arguments mean.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import check_cv
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import (
    _safe_indexing,  # pyright: ignore[reportPrivateUsage] documented; knows every data frame
    assert_all_finite,
    check_consistent_length,
    check_random_state,
    column_or_1d,
    get_tags,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from jacfuse_jax._checks import check_modalities
from jacfuse_jax.calibration import (
    WITH_CONTAMINATION,
    WITH_GAMMA,
    choose_contamination,
    choose_gamma,
    fit_temperature,
)
from jacfuse_jax.fusion import Robust, Rule, fuse
from jacfuse_jax.linalg import GramSpectrum
from jacfuse_jax.sklearn._members import (
    check_classes,
    check_decision,
    classes_of,
    find_present,
    fit_copy,
    gram_of,
    is_mapping,
    logits_of,
    split_columns,
    take_rows,
)

_Logits = dict[str, NDArray[np.float64]]
_Present = dict[str, NDArray[np.bool_]]
_SMALLEST_BATCH = 256
_DEFAULT_RULE = Robust(0.1)
_CHOOSABLE = {"contamination": WITH_CONTAMINATION, "gamma": WITH_GAMMA}  # in the order of choices


class RobustLateFusion(ClassifierMixin, BaseEstimator):
    """Fuses classifiers, one per modality, so that perturbed modalities have less of a say.

    A rule of `fusion`, applied to the logits z_m / T_m, where z_m is the logarithm of
    `predict_proba`, with probabilities below 2e-16 taken for 2e-16, or else `decision_function` (in
    the binary case of the second class, with 0 for the first). For rules that regularise a
    Jacobian, the kernel W_m is the `coef_` of the classifier, or of the last step of its pipeline,
    where that has a row for every class, or one for the second of two (support vector machines
    excepted); then it is the Jacobian in what that step is given. Else the kernel is the identity,
    and the Jacobian that in the logits. Kernels are centred over classes, since probabilities tell
    logits only up to a constant, to which the prediction is indifferent then.

    `X` is a mapping {modality: what its classifier takes}, or one array, sparse matrix or data
    frame from whose columns each modality takes its own. Only the latter can be split into rows by
    `GridSearchCV` and `cross_val_score`. Their grids reach everything: `rule`, `perturbed`,
    `image`, `image__C` for a modality named "image".

    Whatever `fit` has to learn beside the classifiers, it learns from held-out predictions: those
    of copies trained on the other folds of `cv`, or, with cv="prefit", those on `X`. Classifiers in
    `sklearn.frozen.FrozenEstimator` are not trained either and, unlike prefit ones, survive the
    copying of `GridSearchCV`. Sample weights are not supported.

    A row of a modality that is all NaN, or None, is missing: its classifier is neither trained on
    it nor asked, and the row is fused as `fusion.fuse` does with `present`. Rows that are partly
    NaN go to the classifier, which may take them or not. Parameters are chosen on rows that lack
    nothing. Where all that a row has left is believed perturbed, recalibration takes from it what
    nothing else makes up for: say what is `perturbed`.

    Args:
      estimators: {modality: classifier}, at least one. `fit` trains copies, unless cv="prefit".
      columns: {modality: columns}, of every modality; integers, names, a slice or a mask as in
        `sklearn.compose.ColumnTransformer`, where a single one gives a one-dimensional array. None:
        every classifier takes all columns. Not used where `X` is a mapping.
      perturbed: name or names of the modalities believed perturbed. None: all of them. Empty:
        none of them, which is statistical fusion.
      rule: of `fusion`, with its parameters. None: `Robust(0.1)`.
      choose: names of the rule's parameters that are chosen on the held-out predictions, whatever
        their value in `rule`: "gamma" by `calibration.choose_gamma`, "contamination" by
        `calibration.choose_contamination`, before gamma. Empty: none, as for rules that have
        neither.
      calibrate: whether T_m is `calibration.fit_temperature` of the held-out predictions. It is 1
        if not, and for classifiers that never err there: their likelihood has no maximum.
      cv: number of stratified folds, splitter or splits as in `cross_val_score`, or "prefit".
      class_prior: (K,), class frequencies of the training labels, in the order of the sorted
        classes. None: those of `y`.
      random_state: seed or generator of the exchange of samples in `calibration.choose_gamma`.

    Attributes:
      estimators_: {modality: trained classifier}.
      classes_: (K,), sorted.
      class_prior_: (K,).
      temperatures_: {modality: T_m}.
      perturbed_: names of the modalities believed perturbed.
      grams_: {perturbed modality: spectrum of the Gram matrix of W_m / T_m}; empty for rules that
        take none.
      rule_: the rule, with the parameters given or chosen.
      n_features_in_: columns of `X`, unless it was a mapping.
      feature_names_in_: their names, if all of them are strings.

    Examples:
      >>> from sklearn.datasets import load_digits
      >>> from sklearn.linear_model import LogisticRegression
      >>> from jacfuse_jax.sklearn import RobustLateFusion
      >>> X, y = load_digits(return_X_y=True)
      >>> halves = {"top": LogisticRegression(max_iter=500), "bottom": LogisticRegression(C=0.1)}
      >>> columns = {"top": slice(0, 32), "bottom": slice(32, 64)}
      >>> fusion = RobustLateFusion(halves, columns=columns, perturbed="top").fit(X, y)
    """

    def __init__(
        self,
        estimators: Mapping[str, Any],
        *,
        columns: Mapping[str, Any] | None = None,
        perturbed: str | Sequence[str] | None = None,
        rule: Rule | None = None,
        choose: Sequence[str] = ("gamma",),
        calibrate: bool = True,
        cv: Any = 5,
        class_prior: ArrayLike | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimators = estimators
        self.columns = columns
        self.perturbed = perturbed
        self.rule = rule
        self.choose = choose
        self.calibrate = calibrate
        self.cv = cv
        self.class_prior = class_prior
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters; with `deep`, also {modality: classifier} and {modality__name: theirs}."""
        params = super().get_params(deep=False)
        if deep and isinstance(self.estimators, Mapping):
            params.update(self.estimators)
            for modality, classifier in self.estimators.items():
                if hasattr(classifier, "get_params"):
                    nested = classifier.get_params(deep=True)
                    params.update({f"{modality}__{name}": nested[name] for name in nested})
        return params

    def set_params(self, **params: Any) -> Self:
        """Sets parameters, replaces classifiers by modality, and sets theirs, in this order."""
        if "estimators" in params:
            self.estimators = params.pop("estimators")
        if isinstance(self.estimators, Mapping):
            replaced = {name: params.pop(name) for name in self.estimators if name in params}
            if replaced:
                self.estimators = {**self.estimators, **replaced}
        return super().set_params(**params)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Without tags: classifiers that only behave like scikit-learn's.
        with suppress(AttributeError):
            inputs = [get_tags(classifier).input_tags for classifier in self.estimators.values()]
            # NaN in single entries; rows of NaN are missing, whatever the classifiers take.
            tags.input_tags.allow_nan = all(tag.allow_nan for tag in inputs)
            tags.input_tags.sparse = all(tag.sparse for tag in inputs)
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Trains the classifiers, calibrates them and chooses parameters of the rule.

        Args:
          X: {modality: (N, ...)}, or (N, F) with the columns of all modalities.
          y: (N,), labels, integers or strings.

        Returns:
          self.

        Raises:
          NotFittedError: cv="prefit" with a classifier that was not fitted.
          ValueError: a parameter lies outside its range, X, y and the classifiers disagree, or a
            classifier does not give finite logits, one a class.
        """
        self.perturbed_ = self._check_params()
        rule = self._check_rule()
        for stale in ("n_features_in_", "feature_names_in_"):
            vars(self).pop(stale, None)
        if not is_mapping(X):
            validate_data(self, X, y, skip_check_array=True)
        arrays = split_columns(X, self.estimators, self.columns)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_consistent_length(next(iter(arrays.values())), y)
        check_classification_targets(y)
        present = {name: find_present(array) for name, array in arrays.items()}
        for name, has in present.items():
            if not has.any():
                raise ValueError(f"X has no row of the modality {name!r} that is not all NaN")
        self.estimators_ = self._trained(arrays, present, y)
        first, classifier = next(iter(self.estimators_.items()))
        self.classes_ = classes_of(first, classifier)
        for name, classifier in self.estimators_.items():
            check_classes(name, classifier, self.classes_)
            check_decision(name, classifier)
        labels = LabelEncoder().fit(self.classes_).transform(y)
        self.class_prior_ = _class_prior(self.class_prior, labels, self.classes_)
        logits: _Logits = {}
        if self.calibrate or self.choose:
            logits, present, labels = self._held_out(arrays, present, y, labels)
        self.temperatures_ = {
            name: _temperature(logits[name][present[name]], labels[present[name]])
            if self.calibrate
            else 1.0
            for name in self.estimators_
        }
        self.grams_ = {
            name: gram_of(self.estimators_[name], len(self.classes_), self.temperatures_[name])
            for name in (self.perturbed_ if rule.needs_grams else ())
        }
        is_whole = np.all(list(present.values()), axis=0)
        if self.choose and not is_whole.any():
            raise ValueError(
                f"choose={self.choose!r} needs held-out rows that have all modalities, and there "
                "are none: give the parameters by rule, and choose=()"
            )
        logits = {name: z[is_whole] / self.temperatures_[name] for name, z in logits.items()}
        self.rule_ = self._chosen(rule, logits, labels[is_whole] if self.choose else labels)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Fused class probabilities (N, K), in the order of `classes_`.

        Args:
          X: as in `fit`.

        Raises:
          NotFittedError: `fit` was not called.
          ValueError: X does not fit what the classifiers were trained on, or one of these does not
            give finite logits, one a class.
        """
        check_is_fitted(self, "rule_")
        # One-dimensional arrays are left to the classifiers, which say how to reshape them.
        if not is_mapping(X) and getattr(X, "ndim", 2) != 1:
            validate_data(self, X, skip_check_array=True, reset=False)
        arrays = split_columns(X, self.estimators_, self.columns)
        present = {name: find_present(array) for name, array in arrays.items()}
        logits = {
            name: logits_of(name, classifier, arrays[name], present[name])
            / self.temperatures_[name]
            for name, classifier in self.estimators_.items()
        }
        is_whole = all(has.all() for has in present.values())
        num_samples = len(next(iter(logits.values())))
        log_probs = _fuse(
            self.rule_,
            {name: _pad(z) for name, z in logits.items()},
            self.class_prior_,
            grams=self.grams_,
            perturbed=self.perturbed_,
            present=None if is_whole else {name: _pad(has) for name, has in present.items()},
        )
        probs = np.exp(np.asarray(log_probs, np.float64)[:num_samples])
        return probs / probs.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each sample, (N,); arguments as in `predict_proba`."""
        probs = self.predict_proba(X)
        return self.classes_[probs.argmax(axis=1)]

    def _is_prefit(self) -> bool:
        return isinstance(self.cv, str) and self.cv == "prefit"

    def _check_params(self) -> tuple[str, ...]:
        """Raises where parameters are wrong; returns the perturbed modalities."""
        if not (
            isinstance(self.estimators, Mapping)
            and self.estimators
            and all(isinstance(name, str) for name in self.estimators)
        ):
            raise ValueError(
                "Invalid 'estimators' attribute, 'estimators' should be a non-empty dict of "
                f"(string, classifier) items. Got {self.estimators!r} instead."
            )
        if conflicts := sorted(self.estimators.keys() & self.get_params(deep=False).keys()):
            raise ValueError(f"Estimator names conflict with constructor arguments: {conflicts!r}")
        if invalid := [name for name in self.estimators if "__" in name]:
            raise ValueError(f"Estimator names must not contain __: got {invalid!r}")
        for classifier in self.estimators.values():
            if not hasattr(classifier, "predict_proba") | hasattr(classifier, "decision_function"):
                raise ValueError(f"The estimator {classifier!r} should be a classifier.")
        if self.columns is not None and set(self.columns) != set(self.estimators):
            raise ValueError(
                f"columns must have an entry for each of {sorted(self.estimators)} and no other, "
                f"got {self.columns!r}"
            )
        names = self.estimators if self.perturbed is None else self.perturbed
        names = names if isinstance(names, str) else tuple(names)
        return check_modalities("perturbed", names, self.estimators)

    def _check_rule(self) -> Rule:
        """The rule; raises where it is none, or what it is given or is to be chosen is wrong."""
        rule: Any = _DEFAULT_RULE if self.rule is None else self.rule
        if not isinstance(rule, Rule):
            raise ValueError(f"rule must be a rule of jacfuse_jax.fusion, got {rule!r}")
        choosable = [name for name, rules in _CHOOSABLE.items() if type(rule) in rules]
        if not isinstance(self.choose, tuple | list) or not set(self.choose) <= set(choosable):
            raise ValueError(
                f"choose must be a tuple of parameters that can be chosen for the rule "
                f"{rule.name}, {choosable}, got {self.choose!r}"
            )
        # Any number of theirs: what is chosen is not looked at.
        _check_numbers(_replace(rule, **dict.fromkeys(self.choose, 1.0)))
        return rule

    def _trained(
        self, arrays: dict[str, Any], present: _Present, y: NDArray[Any]
    ) -> dict[str, Any]:
        """Copies of the classifiers, trained on all there is, or the prefit ones themselves."""
        if not self._is_prefit():
            return {
                name: fit_copy(
                    self.estimators[name], take_rows(array, present[name]), y[present[name]]
                )
                for name, array in arrays.items()
            }
        for classifier in self.estimators.values():
            check_is_fitted(classifier)
        return dict(self.estimators)

    def _held_out(
        self, arrays: dict[str, Any], present: _Present, y: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[_Logits, _Present, NDArray[Any]]:
        """Logits of rows that the classifiers were not trained on, which are there, labels."""
        if self._is_prefit():
            logits = {
                name: logits_of(name, self.estimators_[name], array, present[name])
                for name, array in arrays.items()
            }
            return logits, present, labels
        splitter: Any = check_cv(self.cv, y, classifier=True)
        splits = list(splitter.split(np.zeros(len(y)), y))
        logits: _Logits = {}
        for name, array in arrays.items():
            has = present[name]
            parts: list[NDArray[np.float64]] = []
            for train, test in splits:
                there = np.arange(len(y))[train][has[train]]
                fold = fit_copy(self.estimators[name], _safe_indexing(array, there), y[there])
                check_classes(name, fold, self.classes_)
                parts.append(logits_of(name, fold, _safe_indexing(array, test), has[test]))
            logits[name] = np.concatenate(parts)
        tested = np.concatenate([np.arange(len(y))[test] for _, test in splits])
        return logits, {name: has[tested] for name, has in present.items()}, labels[tested]

    def _chosen(self, rule: Rule, logits: _Logits, labels: NDArray[Any]) -> Rule:
        """The rule, with the parameters that are chosen on held-out logits."""
        arguments = (logits, labels, self.class_prior_)
        if "contamination" in self.choose:
            choice: Any = _choose_contamination(rule, *arguments, perturbed=self.perturbed_)
            rule = _replace(rule, contamination=float(choice.contamination))
        if "gamma" in self.choose:
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
            choice = _choose_gamma(
                rule, *arguments, seed, grams=self.grams_, perturbed=self.perturbed_
            )
            rule = _replace(rule, gamma=float(choice.gamma))
        return rule


def _class_prior(
    class_prior: ArrayLike | None, labels: NDArray[Any], classes: NDArray[Any]
) -> NDArray[np.float64]:
    """The class prior given, or the frequencies of the labels; raises unless it is one."""
    if class_prior is None:
        counts = np.bincount(labels, minlength=len(classes))
        if not counts.all():
            raise ValueError(
                f"y lacks the classes {classes[counts == 0].tolist()} of the classifiers: give "
                "class_prior, the class frequencies of their training labels"
            )
        return counts / counts.sum()
    prior = np.asarray(class_prior, np.float64)
    if prior.shape != classes.shape:
        raise ValueError(
            f"class_prior must have shape {classes.shape}, one entry a class, got {prior.shape}"
        )
    if not (prior > 0).all() or not np.isclose(prior.sum(), 1):
        raise ValueError(f"class_prior must be positive and sum to one, got {prior}")
    return prior


def _temperature(logits: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Temperature of the held-out logits; 1 where no finite one is the best."""
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    # Rows of zeros have the same likelihood at any temperature.
    return float(_fit_temperature(_pad(logits), _pad(labels)))


def _pad(rows: NDArray[Any]) -> NDArray[Any]:
    """Adds rows of zeros up to a power of two, so that few shapes are compiled."""
    size = max(_SMALLEST_BATCH, 1 << (len(rows) - 1).bit_length())
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


_fit_temperature = jax.jit(fit_temperature)
_choose_contamination = jax.jit(choose_contamination, static_argnames="perturbed")
_fuse = jax.jit(fuse, static_argnames="perturbed")


@partial(jax.jit, static_argnames="perturbed")
def _choose_gamma(
    rule: Any,
    logits: _Logits,
    labels: jax.Array,
    class_prior: jax.Array,
    seed: jax.Array,
    *,
    grams: dict[str, GramSpectrum],
    perturbed: tuple[str, ...],
) -> Any:
    """`calibration.choose_gamma`, of a seed."""
    key = jax.random.key(seed)
    return choose_gamma(rule, logits, labels, class_prior, key, perturbed=perturbed, grams=grams)


def _replace(rule: Rule, **numbers: float) -> Rule:
    """The rule with other numbers."""
    return dataclasses.replace(rule, **numbers)


def _check_numbers(rule: Rule) -> None:
    """Raises where a parameter is out of range, which compiled programs cannot."""
    identity = GramSpectrum(jnp.ones(2), jnp.eye(2))
    apply = partial(
        fuse, rule, class_prior=np.full(2, 0.5), perturbed="any", grams={"any": identity}
    )
    jax.eval_shape(apply, {"any": jax.ShapeDtypeStruct((1, 2), jnp.result_type(float))})
