"""What `experiments.accelerator_digits` measures."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data_pipelines import digits
from experiments.run.needs import PROCESS_BYTES
from jacfuse_jax import attacks, fusion, training
from jacfuse_jax.linalg import spectrum_from_kernel
from jacfuse_jax.models import LeNet
from jacfuse_jax.programs import resources
from jacfuse_jax.programs.files import write_atomically
from jacfuse_jax.training import iterate_batches

_NUM_CLASSES = 10
_BATCH_SIZE = 32
_LEARNING_RATE = 3e-3
_GAMMA = 0.1
_EPSILON = 0.1
_MODALITIES = ("upper", "lower")
RuleFn = Callable[[dict[str, jax.Array]], jax.Array]


def measure(num_test: int, num_steps: int) -> dict[str, float]:
    """Trains, attacks and measures.

    Args:
      num_test: test rows.
      num_steps: of PGD, linf with epsilon 0.1, on the upper half and through the rule it attacks.

    Returns:
      Seconds "train_s" and "attack_s", compilation included, and accuracies: "clean_<rule>" and
      "attacked_<rule>" of the rules "statistical" and "robust".
    """
    splits = digits.read_splits()
    start = time.perf_counter()
    models = {m: _train(m, index, splits["train"]) for index, m in enumerate(_MODALITIES)}
    findings = {"train_s": time.perf_counter() - start}
    spectrum = spectrum_from_kernel(models["upper"].head.kernel[...])
    frequencies = np.bincount(splits["train"]["label"], minlength=_NUM_CLASSES)
    prior = jnp.asarray(frequencies / frequencies.sum(), jnp.float32)
    rule_fns: dict[str, RuleFn] = {
        "statistical": partial(fusion.statistical_fusion, class_prior=prior),
        "robust": lambda logits: (
            fusion.robust_fusion(
                logits, {"upper": spectrum}, prior, perturbed="upper", gamma=_GAMMA
            ).log_probs
        ),
    }
    inputs = {m: jnp.asarray(splits["test"][m][:num_test]) for m in _MODALITIES}
    labels = jnp.asarray(splits["test"]["label"][:num_test])
    graph, parameters = nnx.split(models)
    start = time.perf_counter()
    for name, rule_fn in rule_fns.items():
        attack = partial(_attack, graph, rule_fn, num_steps)
        # As arguments: what is constant in a program, XLA tries to compute at compile time.
        for kind, log_probs in jax.jit(attack)(parameters, inputs, labels).items():
            findings[f"{kind}_{name}"] = float(
                (log_probs.argmax(-1).astype(labels.dtype) == labels).mean()
            )
    findings["attack_s"] = time.perf_counter() - start
    return findings


def _attack(
    graph: Any,
    rule_fn: RuleFn,
    num_steps: int,
    parameters: Any,
    inputs: dict[str, jax.Array],
    labels: jax.Array,
) -> dict[str, jax.Array]:
    """Log-probabilities of a rule for clean inputs and for those that attack it."""
    models = nnx.merge(graph, parameters)

    def log_prob_fn(x: Any) -> jax.Array:
        return rule_fn({m: models[m](x[m]).logits for m in _MODALITIES})

    adversarial = attacks.pgd(
        log_prob_fn,
        inputs,
        labels,
        jax.random.key(0),
        epsilon={"upper": _EPSILON},
        num_steps=num_steps,
    )
    return {"clean": log_prob_fn(inputs), "attacked": log_prob_fn(adversarial)}


def _train(modality: str, seed: int, train: dict[str, Any]) -> LeNet:
    """The classifier of one half after one epoch."""
    shape = train[modality].shape[1:]
    model = LeNet(
        shape,
        _NUM_CLASSES,
        channels=(16, 32),
        kernel_size=3,
        hidden_sizes=(64, 32),
        rngs=nnx.Rngs(seed),
    )

    arrays = {"inputs": train[modality], "label": train["label"]}

    def make_batches(epoch: int) -> Iterator[dict[str, Any]]:
        return iterate_batches(arrays, _BATCH_SIZE, shuffle_seed=(seed, epoch))

    with tempfile.TemporaryDirectory() as folder:
        training.fit(
            model, optax.adam(_LEARNING_RATE), make_batches, num_epochs=1, checkpoint_dir=folder
        )
    return model


def run(workdir: str, num_test: int, num_steps: int) -> None:
    """Measures, writes the findings and prints them.

    Args:
      workdir: folder of digits.json.
      num_test: as for `measure`.
      num_steps: as for `measure`.
    """
    resources.check(PROCESS_BYTES, {Path(workdir): 2**20}, remedy="free some")
    text = json.dumps(measure(num_test, num_steps), indent=2) + "\n"
    write_atomically(Path(workdir) / "digits.json", text)
    print(text, end="")
