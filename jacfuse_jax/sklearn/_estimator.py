"""Robust late fusion as a scikit-learn classifier: one class, half of it its documentation."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.frozen import FrozenEstimator
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
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage] as scikit-learn's classifiers do
    check_is_fitted,
    validate_data,
)

from jacfuse_jax._batching import pad_rows
from jacfuse_jax._checks import check_modalities
from jacfuse_jax.fusion import LearnedCascade, Robust, Rule, fuse
from jacfuse_jax.fusion._supported import check_parameters
from jacfuse_jax.selection import AGAINST, Against, ChosenRule, grid, read_chosen
from jacfuse_jax.sklearn._learning import (
    Logits,
    choose_rule,
    class_prior_of,
    on_host,
    temperature_of,
)
from jacfuse_jax.sklearn._members import (
    check_classes,
    check_decision,
    classes_of,
    find_present,
    fit_copy,
    gram_of,
    is_mapping,
    logits_of,
    names_of_weights,
    split_columns,
)

_Present = dict[str, NDArray[np.bool_]]
_FitParams = dict[str, dict[str, Any]]
_DEFAULT_RULE = Robust(0.1)


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
    copying of `GridSearchCV`.

    Sample weights go to the `fit` of every classifier that is trained, of a pipeline to its last
    step, or where metadata routing is enabled to whatever requests them; and into the class prior,
    the temperatures and the choice of parameters. A row of weight zero is as good as absent, but
    for the folds, which are those of all rows.

    A row of a modality that is all NaN, or None, is missing: its classifier is neither trained on
    it nor asked, and the row is fused as `fusion.fuse` does with `present`. Rows that are partly
    NaN go to the classifier, which may take them or not. Rules are chosen on rows that lack
    nothing. Where all that a row has left is believed perturbed, recalibration takes from it what
    nothing else makes up for: say what is `perturbed`.

    `joblib` and `pickle` keep what is fitted as it is: numbers and NumPy's arrays. `skops.io.load`
    has to trust `RobustLateFusion`, `linalg.GramSpectrum`, the class of the rule, and whatever
    classifiers ask for.

    Args:
      estimators: {modality: classifier}, at least one. `fit` trains copies, unless cv="prefit".
      columns: {modality: columns}, of every modality; integers, names, a slice or a mask as in
        `sklearn.compose.ColumnTransformer`, where a single one gives a one-dimensional array. None:
        every classifier takes all columns. Not used where `X` is a mapping.
      perturbed: name or names of the modalities believed perturbed. None: all of them. Empty:
        none of them, which is statistical fusion.
      rule: of `fusion`, with its parameters; the JSON of one; that of chosen rules, as
        `jacfuse_jax.predictions.stress` writes it, of which `perturbed`, `attack_share` and
        `against` must tell one; or "auto", the rule that is worth most on the held-out predictions,
        which is worth its time. None: `Robust(0.1)`.
      choose: names of the rule's parameters that are chosen on the held-out predictions, whatever
        their value in `rule`: those of `selection.VALUES`. Empty: none.
      attack_share: share of inputs whose perturbed modalities fail, that a rule or parameters are
        chosen for: the best (1 - share) clean + share worst, see `selection.choose`.
      against: what these do, "faults" or "anything", see there.
      calibrate: whether T_m is `calibration.fit_temperature` of the held-out predictions. It is 1
        if not, and for classifiers that never err there: their likelihood has no maximum.
      cv: number of stratified folds, splitter or splits as in `cross_val_score`, or "prefit".
      class_prior: (K,), class frequencies of the training labels, in the order of the sorted
        classes. None: those of `y`, weighted.
      random_state: seed or generator of the faults, folds and resamples of a choice.

    Attributes:
      estimators_: {modality: trained classifier}.
      classes_: (K,), sorted.
      class_prior_: (K,).
      temperatures_: {modality: T_m}.
      perturbed_: names of the modalities believed perturbed.
      grams_: {perturbed modality: spectrum of the Gram matrix of W_m / T_m}; empty for rules that
        take none.
      rule_: the rule, with the parameters given or chosen.
      choice_: what is expected of a rule that was chosen, of statistical fusion and of trusted
        modalities alone, see `selection.choice_to_dict`; None where nothing was.
      n_features_in_: columns of `X`, unless it was a mapping.
      feature_names_in_: their names, if all of them are strings.

    Examples:
      Classifiers that are trained already, with rows that they have not seen:

      >>> from sklearn.datasets import load_digits
      >>> from sklearn.neighbors import KNeighborsClassifier
      >>> from jacfuse_jax.sklearn import RobustLateFusion
      >>> X, y = load_digits(return_X_y=True)
      >>> halves = {"top": X[:, :32], "bottom": X[:, 32:]}
      >>> trained = {m: KNeighborsClassifier().fit(x[:900], y[:900]) for m, x in halves.items()}
      >>> fusion = RobustLateFusion(trained, perturbed="top", cv="prefit")
      >>> fusion = fusion.fit({m: x[900:] for m, x in halves.items()}, y[900:])

      Others are trained by `fit`, which holds rows out in folds:

      >>> columns = {"top": slice(0, 32), "bottom": slice(32, 64)}
      >>> untrained = {m: KNeighborsClassifier() for m in columns}
      >>> fusion = RobustLateFusion(untrained, columns=columns, perturbed="top").fit(X, y)
    """

    def __init__(
        self,
        estimators: Mapping[str, Any],
        *,
        columns: Mapping[str, Any] | None = None,
        perturbed: str | Sequence[str] | None = None,
        rule: Rule | str | None = None,
        choose: Sequence[str] = (),
        attack_share: float = 0.1,
        against: Against = "faults",
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
        self.attack_share = attack_share
        self.against: Against = against
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

    def get_metadata_routing(self) -> MetadataRouter:
        """Who is asked whether it takes sample weights, where metadata routing is enabled."""
        router = MetadataRouter(owner=self).add_self_request(self)
        if not self._is_prefit():
            for name, classifier in self.estimators.items():
                mapping = MethodMapping().add(caller="fit", callee="fit")
                router.add(**{name: classifier}, method_mapping=mapping)
        return router

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Trains the classifiers, calibrates them and chooses the rule, or parameters of it.

        Args:
          X: {modality: (N, ...)}, or (N, F) with the columns of all modalities.
          y: (N,), labels, integers or strings.
          sample_weight: (N,), at least 0, not all 0; see above. None: all rows count alike.
          groups: (N,), equal for rows that depend on each other, for splitters that heed groups and
            for the intervals of a choice. None: each by itself.

        Returns:
          self.

        Raises:
          NotFittedError: cv="prefit" with a classifier that was not fitted.
          ValueError: a parameter lies outside its range, X, y and the classifiers disagree, a
            classifier does not give finite logits, one a class, or takes no weights where they are
            given.
        """
        self.perturbed_ = self._check_params()
        rule, parameters = self._check_rule()
        for stale in ("n_features_in_", "feature_names_in_"):
            vars(self).pop(stale, None)
        if not is_mapping(X):
            validate_data(self, X, y, skip_check_array=True)
        arrays = split_columns(X, self.estimators, self.columns)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_consistent_length(next(iter(arrays.values())), y)
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        counts = weights > 0
        # What does not count is missing.
        present = {name: find_present(array) & counts for name, array in arrays.items()}
        for name, has in present.items():
            if not has.any():
                raise ValueError(
                    f"X has no row of the modality {name!r} that is not all NaN or of weight zero"
                )
        fit_params = self._fit_params(None if sample_weight is None else weights)
        self.estimators_ = self._trained(arrays, present, y, fit_params)
        first, classifier = next(iter(self.estimators_.items()))
        self.classes_ = classes_of(first, classifier)
        for name, classifier in self.estimators_.items():
            check_classes(name, classifier, self.classes_)
            check_decision(name, classifier)
        if isinstance(self.rule, str) and self.rule != "auto":
            self._read_chosen(self.rule, self.classes_.tolist())
        labels = np.zeros(len(y), int)
        labels[counts] = LabelEncoder().fit(self.classes_).transform(y[counts])
        self.class_prior_ = class_prior_of(self.class_prior, labels, weights, self.classes_)
        logits: Logits = {}
        is_chosen = rule is None or bool(parameters)
        if groups is not None:
            check_consistent_length(y, groups)
        members = None if groups is None else np.unique(groups, return_inverse=True)[1]
        if self.calibrate or is_chosen:
            logits, rows = self._held_out(arrays, present, y, fit_params, members)
            labels, weights = labels[rows], weights[rows]
            if members is None and len(np.unique(rows)) < len(rows):
                members = np.arange(len(y))  # splits that repeat rows
            members = None if members is None else members[rows]
            present = {name: has[rows] for name, has in present.items()}
        self.temperatures_ = {
            # Tiny weights would vanish in float32; their scale is no matter here.
            name: temperature_of(logits[name][has], labels[has], weights[has] / weights.max())
            if self.calibrate
            else 1.0
            for name, has in present.items()
        }
        self.grams_ = {
            name: gram_of(self.estimators_[name], len(self.classes_), self.temperatures_[name])
            for name in (self.perturbed_ if rule is None or rule.needs_grams else ())
        }
        self.choice_ = None
        if is_chosen:
            is_whole = np.all(list(present.values()), axis=0)
            if is_whole.sum() < 2:
                raise ValueError(
                    "a choice needs held-out rows that have all modalities, and there are "
                    f"{is_whole.sum()}: give the parameters by rule, and choose=()"
                )
            rule, self.choice_ = choose_rule(
                rule,
                parameters,
                {name: z[is_whole] / self.temperatures_[name] for name, z in logits.items()},
                labels[is_whole],
                self.class_prior_,
                share=self.attack_share,
                against=self.against,
                perturbed=self.perturbed_,
                grams=self.grams_,
                weights=weights[is_whole],
                groups=None if members is None else members[is_whole],
                seed=check_random_state(self.random_state).randint(np.iinfo(np.int32).max),
            )
        assert rule is not None
        check_parameters(rule, len(self.classes_), tuple(self.estimators))
        self.rule_ = on_host(rule)
        if not rule.needs_grams:
            self.grams_ = {}
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
        return softmax(self._log_probs(X), axis=1)

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Their logarithms (N, K), finite also where probabilities are too small for numbers."""
        return log_softmax(self._log_probs(X), axis=1)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each sample, (N,); arguments as in `predict_proba`."""
        log_probs = self._log_probs(X)
        return self.classes_[log_probs.argmax(axis=1)]

    def _log_probs(self, X: Any) -> NDArray[np.float64]:
        """Fused log-probabilities (N, K), which sum to one as far as JAX's dtype goes."""
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
            {name: pad_rows(z) for name, z in logits.items()},
            self.class_prior_,
            grams=self.grams_,
            perturbed=self.perturbed_,
            present=None if is_whole else {name: pad_rows(has) for name, has in present.items()},
        )
        return np.asarray(log_probs, np.float64)[:num_samples]

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

    def _check_rule(self) -> tuple[Rule | None, tuple[str, ...]]:
        """The rule, None if it is to be chosen, and what is to be chosen of it; raises if wrong."""
        if self.against not in AGAINST or not 0 <= self.attack_share <= 1:
            raise ValueError(
                f"attack_share must lie in [0, 1], against be one of {', '.join(AGAINST)}, got "
                f"{self.attack_share} and {self.against!r}"
            )
        choose: Any = self.choose
        rule: Any = _DEFAULT_RULE if self.rule is None else self.rule
        if isinstance(rule, str) and rule != "auto":
            given = self._read_chosen(rule, None)
            if given.perturbed is not None:
                self.perturbed_ = given.perturbed
            rule = given.rule
        if not isinstance(choose, tuple | list):
            raise ValueError(f"choose must be a tuple of names of parameters, got {choose!r}")
        if rule == "auto":
            if choose:
                raise ValueError(f"rule='auto' chooses everything: leave out choose={choose!r}")
            return None, ()
        if not isinstance(rule, Rule):
            raise ValueError(f"rule must be a rule of jacfuse_jax.fusion, got {rule!r}")
        first = grid(rule, choose)[0]
        if not isinstance(rule, LearnedCascade):  # whose number of classes is not known yet
            check_parameters(first, 2, tuple(self.estimators))
        return rule, tuple(choose)

    def _read_chosen(self, text: str, classes: list[Any] | None) -> ChosenRule:
        """A rule of JSON; raises unless it was chosen for these classes, if they are known."""
        against: Any = self.against
        return read_chosen(
            text,
            modalities=list(self.estimators),
            classes=classes,
            perturbed=() if self.perturbed is None else self.perturbed_,
            share=self.attack_share,
            against=against,
        )

    def _fit_params(self, weights: NDArray[np.float64] | None) -> _FitParams:
        """What the `fit` of each classifier takes beside X and y: weights (N,), by their name."""
        if weights is None or self._is_prefit():
            return {name: {} for name in self.estimators}
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "fit", sample_weight=weights)
            params: _FitParams = {name: dict(routed[name].fit) for name in self.estimators}
        else:
            params = {
                name: dict.fromkeys(names_of_weights(classifier), weights)
                for name, classifier in self.estimators.items()
            }
        for name, classifier in self.estimators.items():
            if not params[name] and not isinstance(classifier, FrozenEstimator):
                raise ValueError(
                    f"the classifier of {name!r} takes no sample_weight in fit: leave weights out, "
                    "train it first and freeze it by sklearn.frozen.FrozenEstimator, or enable "
                    "metadata routing if it can pass them on"
                )
        return params

    def _trained(
        self, arrays: dict[str, Any], present: _Present, y: NDArray[Any], fit_params: _FitParams
    ) -> dict[str, Any]:
        """Copies of the classifiers, trained on all there is, or the prefit ones themselves."""
        if not self._is_prefit():
            return {
                name: fit_copy(
                    self.estimators[name], array, y, np.flatnonzero(present[name]), fit_params[name]
                )
                for name, array in arrays.items()
            }
        for classifier in self.estimators.values():
            check_is_fitted(classifier)
        return dict(self.estimators)

    def _held_out(
        self,
        arrays: dict[str, Any],
        present: _Present,
        y: NDArray[Any],
        fit_params: _FitParams,
        groups: NDArray[Any] | None,
    ) -> tuple[Logits, NDArray[np.intp]]:
        """Logits of rows that the classifiers were not trained on, and which rows these are."""
        if self._is_prefit():
            logits = {
                name: logits_of(name, self.estimators_[name], array, present[name])
                for name, array in arrays.items()
            }
            return logits, np.arange(len(y))
        splitter: Any = check_cv(self.cv, y, classifier=True)
        splits = [
            (np.arange(len(y))[train], np.arange(len(y))[test])
            for train, test in splitter.split(np.zeros(len(y)), y, groups)
        ]
        logits: Logits = {}
        for name, array in arrays.items():
            has = present[name]
            parts: list[NDArray[np.float64]] = []
            for train, test in splits:
                fold = fit_copy(
                    self.estimators[name], array, y, train[has[train]], fit_params[name]
                )
                check_classes(name, fold, self.classes_)
                parts.append(logits_of(name, fold, _safe_indexing(array, test), has[test]))
            logits[name] = np.concatenate(parts)
        return logits, np.concatenate([test for _, test in splits])


_fuse = jax.jit(fuse, static_argnames="perturbed")
