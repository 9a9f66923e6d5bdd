"""Baselines of the literature in plain NumPy float64, from their definitions."""

import itertools

import numpy as np
import scipy.special


def log_probs_of(logits):
    """(M, B, K)."""
    return np.stack([scipy.special.log_softmax(np.float64(z), axis=-1) for z in logits.values()])


def dempster_shafer(logits, temperatures, error_rates):
    """Pignistic probabilities by differences of plausibilities."""
    plausibility = np.ones(next(iter(logits.values())).shape)
    for m, z in logits.items():
        p = scipy.special.softmax(np.float64(z) / temperatures[m], axis=-1)
        plausibility = plausibility * ((1 - error_rates[m]) * p + error_rates[m])
    frame = np.prod([error_rates[m] for m in logits])
    pignistic = plausibility - frame + frame / plausibility.shape[-1]
    return np.log(pignistic / pignistic.sum(axis=-1, keepdims=True))


def combine(masses, num_classes):
    """Dempster's rule on {set of classes: mass}, over all choices of a set each, for one sample."""
    classes = range(num_classes)
    subsets = [frozenset(s) for n in classes for s in itertools.combinations(classes, n + 1)]
    combined = dict.fromkeys(subsets, 0.0)
    for chosen in itertools.product(subsets, repeat=len(masses)):
        common = frozenset.intersection(*chosen)
        if common:
            combined[common] += np.prod(
                [m.get(s, 0.0) for m, s in zip(masses, chosen, strict=True)]
            )
    total = sum(combined.values())
    return {subset: mass / total for subset, mass in combined.items()}


def energy_weighted(logits):
    fused = 0.0
    for array in logits.values():
        z = np.float64(array)
        fused = fused + np.log(np.exp(z).sum(axis=-1, keepdims=True)) / 10 * z
    return scipy.special.log_softmax(fused, axis=-1)


def majority_vote(logits):
    """Sample by sample."""
    log_probs = log_probs_of(logits)
    rows = []
    for sample in log_probs.swapaxes(0, 1):
        votes = np.bincount(sample.argmax(axis=1), minlength=sample.shape[1])
        joint = np.exp(sample.sum(axis=0))
        is_leading = votes == votes.max()
        q = np.where(is_leading, joint / joint[is_leading].sum(), joint / joint.sum())
        rows.append((votes + q / 2) / (votes + q / 2).sum())
    return np.log(rows)


def median(logits):
    return scipy.special.log_softmax(np.median(log_probs_of(logits), axis=0), axis=-1)


def trimmed_mean(logits):
    stack = log_probs_of(logits)
    kept = (stack.sum(axis=0) - stack.max(axis=0) - stack.min(axis=0)) / (len(stack) - 2)
    return scipy.special.log_softmax(kept, axis=-1)
