from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from data_pipelines import datasets
from experiments.run import classifiers
from jacfuse_jax.evaluation.models import classify
from jacfuse_jax.models import IMAGENET_MEAN, IMAGENET_STDDEV
from jacfuse_jax.programs import InputError
from jacfuse_jax.training import _regimes as regimes


@pytest.fixture(scope="module")
def dataset():
    return datasets.load("digits", data_dir=Path("unused"), num_train=100, num_eval=50)


def train(dataset, workdir, regime="standard"):
    return classifiers.train_classifiers(
        dataset,
        num_epochs=3,
        batch_size=40,
        seed=0,
        workdir=workdir,
        valid_ranges=dict.fromkeys(dataset.modalities, (0.0, 1.0)),
        weights={},
        regime=regime,
    )


def test_an_unknown_regime_is_named(dataset, tmp_path):
    with pytest.raises(ValueError, match="regime must be one of standard, .*, got 'adversarial'"):
        train(dataset, tmp_path, "adversarial")


def test_regimes_share_initial_parameters_and_batches_but_no_folder(dataset, tmp_path, monkeypatch):
    calls = {}

    def record(model, optimizer, make_batches, *, num_epochs, checkpoint_dir, loss_fn):
        del optimizer
        batches = [batch for epoch in range(num_epochs) for batch in make_batches(epoch)]
        calls[Path(checkpoint_dir)] = nnx.state(model), batches, loss_fn
        # What resumed training depends on: an epoch repeats, whatever came before it.
        last = list(make_batches(num_epochs - 1))
        chex.assert_trees_all_equal(last, batches[-len(last) :])

    monkeypatch.setattr(classifiers.training, "fit", record)
    for regime in regimes.REGIMES:
        train(dataset._replace(modalities=("upper",)), tmp_path, regime)
    assert len(calls) == len(regimes.REGIMES)
    state, batches, _ = calls[tmp_path / "checkpoints" / "upper"]
    assert len(batches) == 9
    assert len({tuple(jax.random.key_data(batch["key"]).tolist()) for batch in batches}) == 9
    shares = [float(batch["radius_share"]) for batch in batches]
    np.testing.assert_allclose(shares, np.repeat([2 / 3, 1, 1], 3), rtol=1e-6)
    for regime in regimes.REGIMES[1:]:
        other_state, other_batches, loss_fn = calls[tmp_path / f"checkpoints_{regime}" / "upper"]
        chex.assert_trees_all_equal(state, other_state)
        chex.assert_trees_all_equal(batches, other_batches)
        assert loss_fn is regimes.choose_loss_fn(regime)


@pytest.fixture(scope="module")
def pictures():
    """Random frames and spectrograms under the name of VGGSound."""
    rng = np.random.default_rng(0)
    train = {
        "video": rng.uniform(size=(3, 2, 40, 40, 3)).astype(np.float32),
        "audio": rng.uniform(size=(3, 32, 48, 1)).astype(np.float32),
        "label": np.arange(3, dtype=np.int32),
    }
    kinds = datasets.KINDS["vggsound"]
    return datasets.MultimodalDataset("vggsound", tuple(kinds), kinds, 3, {"train": train})


@pytest.mark.slow
def test_weights_of_torchvision_are_classifiers_without_training(
    pictures, tmp_path, torch, torchvision
):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    peers = {m: torchvision.models.resnet18(num_classes=3).eval() for m in pictures.modalities}
    peers["audio"].conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    for modality, peer in peers.items():
        save_file(peer.state_dict(), tmp_path / f"{modality}.safetensors")
    loaded = classifiers.train_classifiers(
        pictures,
        num_epochs=0,
        batch_size=2,
        seed=0,
        workdir=tmp_path,
        valid_ranges=dict.fromkeys(peers, (0.0, 1.0)),
        weights={m: tmp_path / f"{m}.safetensors" for m in peers},
    )
    x = {m: pictures.splits["train"][m] for m in peers}
    frames = (x["video"].reshape(6, 40, 40, 3) - IMAGENET_MEAN) / IMAGENET_STDDEV
    inputs = {"video": frames, "audio": (x["audio"] - 0.5) / 0.25}
    for modality, array in inputs.items():
        with torch.no_grad():
            planes = torch.from_numpy(np.moveaxis(array, -1, 1).astype(np.float32))
            expected = peers[modality](planes).numpy()
        if modality == "video":
            expected = expected.reshape(3, 2, 3).mean(axis=1)  # the head is linear
        output = classify(loaded[modality], x[modality], batch_size=2)
        np.testing.assert_allclose(output.logits, expected, rtol=0, atol=1e-4)


def test_weights_of_other_classes_need_training(pictures, tmp_path, torchvision):
    from safetensors.torch import save_file

    path = tmp_path / "resnet18.safetensors"
    save_file(torchvision.models.resnet18(num_classes=4).state_dict(), path)
    with pytest.raises(InputError, match=f"--weights=video={path}: 'fc.weight' has shape"):
        classifiers.train_classifiers(
            pictures,
            num_epochs=0,
            batch_size=2,
            seed=0,
            workdir=tmp_path,
            valid_ranges={},
            weights={"video": path},
        )
