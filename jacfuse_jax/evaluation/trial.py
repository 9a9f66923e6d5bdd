"""Rules on validation rows that are attacked: what they are worth, and which is worth most."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jacfuse_jax.evaluation.baselines import DropSuspect
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.intervals import bootstrap_interval, share_values
from jacfuse_jax.evaluation.outcomes import is_correct, predict_all
from jacfuse_jax.evaluation.plan import SEVERITIES
from jacfuse_jax.evaluation.rows import Rows
from jacfuse_jax.evaluation.steps import StepStore
from jacfuse_jax.evaluation.targets import Step
from jacfuse_jax.evaluation.threat_models import DETECT
from jacfuse_jax.fusion import LearnedCascade, Rule, Statistical
from jacfuse_jax.fusion._gate import num_weights
from jacfuse_jax.selection import Candidate, Suspects, candidates
from jacfuse_jax.selection._choose import choose_index

_STATISTICAL = Statistical()


class Trial:
    """The rules of one belief on validation rows, some of which are attacked.

    Attributes:
      believed: modalities that rules believe perturbed, or `DETECT`.
      suspects: modalities that are attacked, one at a time.
      has_trusted: whether some modality is not.
      rules: that are judged.
      attacked: those of them that attacks were aimed at; of others accuracy is at most as said.
    """

    def __init__(
        self,
        believed: tuple[str, ...],
        suspects: tuple[str, ...],
        rules: Sequence[Rule],
        rows: Rows,
        num_attack: int,
        evidence: Evidence,
    ) -> None:
        """Nothing is attacked yet.

        Args:
          believed: modalities that rules believe perturbed, or `DETECT`.
          suspects: modalities that are attacked, one at a time.
          rules: statistical fusion and dropping the suspects among them.
          rows: clean.
          num_attack: the first so many rows are attacked.
          evidence: what fusion knows.
        """
        self.suspects = suspects
        self.has_trusted = believed != DETECT and set(believed) < set(rows.outputs["standard"])
        self.attacked: set[Rule] = set()
        self.believed = believed
        self._rows = rows
        self._attacked_rows = rows.first(num_attack)
        self._evidence = evidence
        self._candidates: dict[Rule, Candidate] = {}
        self._clean: dict[Rule, NDArray[np.bool_]] = {}
        self._right: dict[Rule, NDArray[np.bool_]] = {}  # (modalities, severities, attacked rows)
        for rule in rules:
            self._add(Candidate(rule))

    @property
    def baselines(self) -> list[Rule]:
        """What chosen rules are to be worth as much as."""
        return [_STATISTICAL, *([DropSuspect()] if self.has_trusted else [])]

    @property
    def rules(self) -> list[Rule]:
        """That are judged."""
        return list(self._candidates)

    def observe(
        self, steps: Sequence[Step], store: StepStore, rules: Sequence[Rule] | None = None
    ) -> None:
        """Tries on rules what attacks found.

        Args:
          steps: of one modality each, some of those that are attacked.
          store: where they are kept.
          rules: some; None: all.
        """
        for m, modality in enumerate(self.suspects):
            for s, severity in enumerate(SEVERITIES):
                observations = [
                    store[step]
                    for step in steps
                    if (step.attacked, step.severity) == ((modality,), severity)
                ]
                if not observations:
                    continue
                for rule in self.rules if rules is None else rules:
                    found = self._is_right(
                        self._candidates[rule], observations, self._attacked_rows
                    )
                    self._right[rule][m, s] &= found.all(axis=0)

    def add_learned(self, shares: Sequence[float], steps: Sequence[Step], store: StepStore) -> None:
        """Adds cascades that are fitted to what attacks on statistical fusion leave of it.

        Args:
          shares: of attacked inputs, for each of which there is one.
          steps: those attacks.
          store: where they are kept.
        """
        attacked = np.full(len(self._rows.labels), np.nan)
        withstood = self._withstood(_STATISTICAL)
        attacked[: len(withstood)] = withstood
        of_rows = self._rows.groups
        found = candidates(
            {m: output.logits for m, output in self._rows.outputs["standard"].items()},
            self._rows.labels,
            self._evidence.class_prior,
            Suspects.of(self.believed),
            shares=shares,
            rules=(),
            attacked=attacked,
            groups=of_rows if of_rows.ndim == 1 else of_rows[:, 0],
        )
        for candidate in found:
            self._add(candidate)
        self.observe(steps, store, [candidate.rule for candidate in found])

    def clean(self, rule: Rule) -> float:
        """Accuracy on all clean rows."""
        return float(self._clean[rule].mean())

    def robust(self, rule: Rule) -> float:
        """Accuracy on attacked rows, see `selection.Score`."""
        return float(self._withstood(rule).mean())

    def expected(self, rule: Rule, share: float) -> tuple[float, float, float]:
        """What a rule is worth, with its 95% interval over groups.

        Args:
          rule: that is judged.
          share: of attacked inputs.
        """
        values = self._values(rule, share)
        interval = bootstrap_interval(values, self._rows.groups)
        return float(values.mean()), float(interval.low), float(interval.high)

    def choose(
        self, questions: Sequence[tuple[Sequence[Rule], float]]
    ) -> list[tuple[Rule, list[Rule]]]:
        """Chooses for every question a rule, as `jacfuse_jax.selection.choose` does.

        Args:
          questions: rules, at least one, and the share of attacked inputs.

        Returns:
          For each the rule, and the one on which the choice rests and which has not been attacked
          itself, if there is one.
        """
        values = [
            np.stack([self._values(rule, share) for rule in rules], axis=1)
            for rules, share in questions
        ]
        tops = [int(of_rules.mean(axis=0).argmax()) for of_rules in values]
        leads = [v[:, [top]] - v for v, top in zip(values, tops, strict=True)]
        # All at once, as what takes time is to draw the resamples.
        low = np.asarray(bootstrap_interval(np.concatenate(leads, axis=1), self._rows.groups).low)
        ends = np.cumsum([len(rules) for rules, _ in questions])
        answers: list[tuple[Rule, list[Rule]]] = []
        for (rules, share), of_rules, top, lead_low in zip(
            questions, values, tops, np.split(low, ends[:-1]), strict=True
        ):
            index = choose_index(
                lead_low,
                of_rules.mean(axis=0),
                np.array([self.clean(rule) for rule in rules]),
                max(float(self._values(rule, share).mean()) for rule in self.baselines),
            )
            resting_on = [rules[i] for i in (top, index) if rules[i] not in self.attacked]
            answers.append((rules[index], resting_on[:1]))
        return answers

    def _add(self, candidate: Candidate) -> None:
        rule = candidate.rule
        self._candidates[rule] = candidate
        (self._clean[rule],) = self._is_right(candidate, [self._rows.observed()], self._rows)
        shape = len(self.suspects), len(SEVERITIES), len(self._attacked_rows.labels)
        self._right[rule] = np.ones(shape, bool)

    def _is_right(
        self, candidate: Candidate, observations: Sequence[Observed], rows: Rows
    ) -> NDArray[np.bool_]:
        """Which rows, (T, N), are right under each of T observations; of the rule of their fold."""

        def of_rule(rule: Rule) -> NDArray[np.bool_]:
            log_probs = predict_all(rule, self.believed, observations, rows, self._evidence)
            return is_correct(log_probs, rows.labels)

        if candidate.folds is None:
            return of_rule(candidate.rule)
        of_folds = np.stack([of_rule(rule) for rule in candidate.held_out])
        places = candidate.folds[: len(rows.labels)]
        return of_folds[places, :, np.arange(len(places))].T

    def _withstood(self, rule: Rule) -> NDArray[np.float64]:
        """How often, (n,), an attacked row is right; what a smaller budget found counts."""
        of_modalities = np.logical_and.accumulate(self._right[rule], axis=1)
        return of_modalities.mean(axis=(0, 1))

    def _values(self, rule: Rule, share: float) -> NDArray[np.float64]:
        """What a rule is worth, by row."""
        return share_values(self._clean[rule], self._withstood(rule), share)


def unfitted_cascade(num_classes: int) -> LearnedCascade:
    """A learned cascade of zeros: programs are compiled for what it has in common with all.

    Args:
      num_classes: K.
    """
    zeros = (0.0,) * num_weights(num_classes)
    return LearnedCascade(0.0, zeros, zeros, zeros)
