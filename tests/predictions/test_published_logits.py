"""Predictions of other people's classifiers of voices and faces, published with a paper."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose

from jacfuse_jax import certificates, fusion
from tests.data_pipelines.real_arrays import LOGITS, needs_real_arrays, read_npz
from tests.predictions.runs import fuse

pytestmark = needs_real_arrays
PRIOR = np.bincount(np.repeat(np.arange(8), [96] + [192] * 7)) / 1440
MODALITIES = {"audio": "audio_wav2vec", "video": "video_au_bilstm"}
RULES = {
    "contaminated": [fusion.Contaminated(e) for e in (0.1, 0.3, 0.5, 0.7)],
    "cascade": [fusion.Cascade(confidence=c, tempering=1) for c in (0.5, 0.8, 0.95)],
}


@pytest.fixture(scope="module")
def logits():
    found = read_npz(LOGITS)
    return {m: found[name].astype(np.float64) for m, name in MODALITIES.items()}


@pytest.fixture(scope="module")
def labels():
    return read_npz(LOGITS)["labels"]


def test_accuracies_are_those_that_are_known(tmp_path, capsys):
    found = read_npz(LOGITS)
    order = np.random.default_rng(0).permutation(1440)
    np.savez(
        tmp_path / "audio.npz",
        logits=found["audio_wav2vec"],
        labels=found["labels"],
        ids=found["ids"],
    )
    np.savez(
        tmp_path / "video.npz", logits=found["video_au_bilstm"][order], ids=found["ids"][order]
    )
    inputs = [f"--input={modality}={tmp_path}/{modality}.npz" for modality in MODALITIES]
    fuse(*inputs, f"--output={tmp_path}/fused.npz")
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()]
    accuracy = {row[1]: float(row[2]) for row in rows if len(row) > 4 and row[2][:1].isdigit()}
    assert accuracy["audio"] == pytest.approx(81.9, abs=0.05)
    assert accuracy["video"] == pytest.approx(62.4, abs=0.05)
    assert accuracy["statistical fusion"] == pytest.approx(86.9, abs=0.05)


def _attacked(rule, logits, labels, perturbed):
    """Accuracy where a modality says for certain whichever class does most harm."""
    correct = np.ones(len(labels), bool)
    for k in range(8):
        said = np.full((1440, 8), -np.inf)
        said[:, k] = 0
        log_probs = fusion.fuse(rule, logits | {perturbed: said}, PRIOR, perturbed=perturbed)
        correct &= np.asarray(log_probs).argmax(axis=1) == labels
    return correct.mean()


@pytest.mark.parametrize("perturbed", MODALITIES)
@pytest.mark.parametrize("kind", RULES)
def test_the_worst_that_a_modality_can_say_leaves_what_is_certified(
    kind, perturbed, logits, labels
):
    found = []
    for rule in RULES[kind]:
        clean, certified = certificates.certified_accuracy(
            rule, logits, labels, PRIOR, corrupted=perturbed, perturbed=perturbed
        )
        worst = _attacked(rule, logits, labels, perturbed)
        assert_allclose(certified, worst, rtol=0, atol=1e-12)
        found.append(float(certified))
        alone = logits["audio" if perturbed == "video" else "video"].argmax(axis=1) == labels
        assert certified <= alone.mean()
        assert clean > alone.mean()
    sign = 1 if kind == "contaminated" else -1  # the more confidence is wanted, the less is certain
    assert all(sign * (b - a) > 0 for a, b in pairwise(found))


@pytest.mark.parametrize("perturbed", MODALITIES)
def test_statistical_fusion_can_be_overturned_on_every_row(perturbed, logits, labels):
    assert _attacked(fusion.Statistical(), logits, labels, perturbed) == 0
