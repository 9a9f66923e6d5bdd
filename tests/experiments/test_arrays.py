"""Arrays of one's own in the experiments: flags, what they need, classifiers, tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx

from data_pipelines import datasets
from experiments.run import classifiers, needs, start
from experiments.run.flags import config_from_flags
from jacfuse_jax.models import MLP, ResNet, SeriesResNet
from jacfuse_jax.programs import InputError
from tests.experiments import runs
from tests.real_data import needs_real_data, real_data

N = 60
SHAPES = {
    "words": (5,),
    "motion": (12, 2),
    "face": (8, 8, 3),
    "clip": (2, 8, 8, 3),
    "voice": (16, 20),
}
KINDS = {
    "clip": "video",
    "face": "image",
    "motion": "series",
    "voice": "spectrogram",
    "words": "vector",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One modality of every kind, on scales of their own; the third feature never changes."""
    path = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 3
    for name, shape in SHAPES.items():
        rows = rng.normal(size=(N, *shape)) + labels.reshape(-1, *[1] * len(shape))
        np.save(path / f"{name}.npy", 100 + 20 * rows)
    words = np.load(path / "words.npy")
    words[:, 2] = 0.1
    np.save(path / "words.npy", words)
    np.save(path / "labels.npy", labels)
    np.save(path / "fold.npy", 1 + np.arange(N) // 5)
    return path


def config_of(path, *arguments):
    with flagsaver.flagsaver():
        given = ("--dataset=arrays", f"--manual_dir={path}", "--kinds=voice:spectrogram")
        flags.FLAGS(["robust_fusion", *given, *arguments])
        return config_from_flags()


def test_modalities_and_folds_are_those_of_the_folder(folder):
    config = config_of(folder, "--fold=12")
    assert config.perturbed == tuple(KINDS)
    assert config.kinds == {"voice": "spectrogram"}
    assert config.num_epochs == 30
    figures = needs.figures_of(config)
    assert figures.kinds == KINDS
    assert figures.num_rows == (50, 5, 5)
    assert figures.num_classes == 3
    assert figures.row_bytes == 4 * sum(np.prod(shape) for shape in SHAPES.values())
    assert config_of(folder, "--fold=12", "--perturbed=face,clip").perturbed == ("face", "clip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fold=13",), "--fold=13: no such fold in .*fold.npy; choose from 1, 2, 3"),
        (("--fold=1", "--perturbed=smell"), "--perturbed=smell: unknown 'smell'; choose from clip"),
        (
            ("--fold=1", "--kinds=face:image,face:image,face:video"),
            "--kinds=face:video: face is given twice",
        ),
        (("--fold=1", "--kinds=face:series"), "--kinds=face:series: .* has shape .60, 8, 8, 3."),
    ],
)
def test_what_does_not_fit_the_folder_is_refused_before_a_run(arguments, message, folder):
    with pytest.raises(InputError, match=f"^{message}"):
        config_of(folder, *arguments)


def load(folder):
    return datasets.load(
        "arrays", data_dir=Path(), manual_dir=folder, fold=1, kinds={"voice": "spectrogram"}
    )


def test_a_classifier_of_every_kind_sees_standardised_inputs(folder):
    dataset = load(folder)
    models = {m: classifiers._make_model(dataset, m, nnx.Rngs(0)) for m in dataset.modalities}
    found = {KINDS[modality]: type(model) for modality, model in models.items()}
    assert found == {
        "vector": MLP,
        "series": SeriesResNet,
        "image": ResNet,
        "spectrogram": ResNet,
        "video": ResNet,
    }
    for modality, model in models.items():
        network: Any = model.network if isinstance(model, SeriesResNet) else model
        column = dataset.splits["train"][modality].astype(float)
        axes = tuple(range(column.ndim - 1))
        stddev = column.std(axis=axes)
        if modality == "words":
            assert stddev[2] < 1e-6
            stddev[2] = 1
        np.testing.assert_allclose(network.mean, column.mean(axis=axes), rtol=1e-6)
        np.testing.assert_allclose(network.stddev, stddev, rtol=1e-6)


def test_arrays_that_are_saved_anew_are_another_run(folder, tmp_path):
    config = config_of(folder, "--fold=1", f"--workdir={tmp_path / 'run'}")
    start.load(config)
    start.load(config)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.glob("*.npy"):
        np.save(copy / path.name, np.load(path))
    start.load(config_of(copy, "--fold=1", f"--workdir={tmp_path / 'run'}"))  # where, not what
    np.save(copy / "face.npy", 1 + np.load(copy / "face.npy"))
    with pytest.raises(InputError, match="belongs to a run on other rows of arrays"):
        start.load(config_of(copy, "--fold=1", f"--workdir={tmp_path / 'run'}"))


def accuracies(workdir):
    """{(method, perturbation, severity): the worst accuracy of any target}."""
    worst: dict[tuple[str, str, str], float] = {}
    for row in runs.read_rows(workdir):
        key = row["method"], row["perturbation"], row["severity"]
        worst[key] = min(worst.get(key, 1.0), float(row["accuracy"]))
    return worst


@pytest.mark.slow
@needs_real_data("mfeat/mfeat.npz")
@pytest.mark.parametrize(
    ("views", "expected"),
    [(("fou", "zer"), 0.75), (("fou", "kar", "mor"), 0.85), (None, 0.95)],
    ids=["two", "three", "six"],
)
def test_views_of_real_digits_from_arrays_to_tables(views, expected, tmp_path):
    """Alone, a linear classifier has 82% from "fou", 82% from "zer", 95% from "kar"."""
    path = real_data("mfeat/mfeat.npz")
    if views is not None:  # fewer than the archive has, as files
        with np.load(path) as archive:
            path = tmp_path / "arrays"
            path.mkdir()
            for name in (*views, "labels"):
                np.save(path / f"{name}.npy", archive[name])
    said = runs.run(
        tmp_path / "run",
        "--dataset=arrays",
        f"--manual_dir={path}",
        "--num_epochs=15",
        "--perturbed=fou",
        "--num_attack=10",
        "--attack_steps=2",
        "--perturbations=clean,missing,pgd",
        "--methods=unimodal,statistical",
    )
    assert "wrote" in said.stdout
    found = accuracies(tmp_path / "run")
    alone = found["unimodal:fou", "clean", "0"]
    assert alone > 0.7
    assert found["statistical", "clean", "0"] > max(expected, alone)
    assert found["unimodal:fou", "missing", "5"] < alone
    assert found["unimodal:fou", "pgd", "5"] < 0.3
    assert json.loads((tmp_path / "run/config.json").read_text())["flags"]["kinds"] == {}
