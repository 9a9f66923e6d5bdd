"""The flags of `experiments.robust_fusion`; importing this module defines them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipelines import arrays
from data_pipelines.catalogue import ARRAYS, MODALITIES, NAMES, NUM_FOLDS, base_name, full_name
from data_pipelines.errors import DataError, with_flag
from experiments.run.config import Config
from experiments.run.suites import SUITES, values_of
from jacfuse_jax.evaluation.names import ATTACKS, PERTURBATIONS
from jacfuse_jax.evaluation.rules import LEARNED
from jacfuse_jax.evaluation.rules import NAMES as METHODS
from jacfuse_jax.evaluation.threat_models import THREAT_MODELS
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import by_modality, choices, define
from jacfuse_jax.programs.parsers import (
    ListOf,
    Number,
    OfModality,
    OneOf,
    OneOfModality,
)

DEFAULT_NUM_EPOCHS = {"digits": 30, "av_mnist": 12, "ravdess": 40, "vggsound": 15, "arrays": 30}
# Smaller ones are zero to the classifiers.
_GAMMA = Number(float(np.finfo(np.float32).tiny), "(0, 1]")

flags.DEFINE_enum(
    "suite",
    None,
    sorted(SUITES),
    "Values for all flags that are not given, see suites.py; numbers of rows for av_mnist alone.",
)
flags.DEFINE_enum("dataset", "digits", sorted(NAMES), "Data set.")
flags.DEFINE_string(
    "manual_dir",
    None,
    "Folder with the raw files, downloaded where it is not given; or of the arrays.",
)
flags.DEFINE_string("data_dir", "~/.cache/jacfuse_jax", "Folder of prepared data.")
flags.DEFINE_integer(
    "num_workers", None, "Processes that decode media; default one a core.", lower_bound=1
)
define(
    Number(), "max_missing", 1.0, "Share of the clips of VGGSound that may be missing or damaged."
)
flags.DEFINE_integer(
    "fold",
    0,
    f"Of RAVDESS, below {NUM_FOLDS}: whose actors are tested on; no actor is in two splits. Of "
    "arrays with folds: which is tested on.",
    lower_bound=0,
)
define(
    ListOf(OneOfModality(arrays.KIND_NAMES)),
    "kinds",
    None,
    "<modality>:<kind>,... of arrays whose shape does not tell; kinds are "
    f"{','.join(arrays.KIND_NAMES)}.",
)
flags.DEFINE_enum(
    "attack_at",
    "raw",
    ["raw", "reduced"],
    "Of AV-MNIST, where images are perturbed: before they are reduced to 25% of their energy, so "
    "that the projection belongs to the classifier, or after it.",
)
flags.DEFINE_multi(
    OfModality(),
    flags.ArgumentSerializer(),
    "weights",
    [],
    "<modality>=<file>.safetensors, repeatable: weights of torchvision's ResNet-18 to start from, "
    "of vggsound. The last layer is new, unless --num_epochs=0.",
)
flags.DEFINE_string("workdir", "runs/robust_fusion", "Folder of results.")
flags.DEFINE_list("perturbed", None, "Modalities to perturb in turn; default all.")
define(
    ListOf(OneOf(PERTURBATIONS)),
    "perturbations",
    ("clean", "gaussian_noise", "missing", "pgd", "apgd"),
    f"Of {','.join(PERTURBATIONS)}; those that do not apply to a modality are left out.",
)
define(
    ListOf(OneOf(METHODS)),
    "methods",
    ("unimodal", "mean", "statistical", "scaled", "robust"),
    f"Of {','.join(METHODS)}.",
)
define(
    ListOf(OneOf(THREAT_MODELS)),
    "threat_models",
    ("known",),
    f"Of {','.join(THREAT_MODELS)}: one modality is perturbed and the defender knows which, "
    "guesses wrong, does not know or judges each sample; both are; or whichever hurts most, "
    "unknown to the defender.",
)
define(ListOf(_GAMMA), "gammas", (0.5, 0.1, 0.01), "Of robust fusion, in (0, 1].")
define(ListOf(Number()), "scales", (0.5, 0.2, 0.1), "Of scaled fusion, in [0, 1].")
define(ListOf(Number()), "contaminations", (0.7, 0.3), "Of contaminated likelihoods, in [0, 1].")
define(
    ListOf(Number()),
    "temperings",
    (1.0, 0.33),
    "Of contaminated likelihoods that are not recalibrated, and of cascades, in [0, 1].",
)
define(ListOf(Number()), "confidences", (0.8,), "Of trusted modalities in cascades, in [0, 1].")
flags.DEFINE_integer(
    "num_select",
    0,
    "Validation rows to attack, to choose the parameters of every rule by; 0 chooses none.",
    lower_bound=0,
)
flags.DEFINE_enum("select_attack", "apgd", ATTACKS, "The attack on those rows.")
define(
    Number(),
    "attack_share",
    0.1,
    "Share of inputs that are attacked, by which parameters are chosen: (1 - share) accuracy on "
    "clean validation rows + share accuracy in the worst case.",
)
flags.DEFINE_enum(
    "jacobian",
    "head",
    ["head", "input"],
    "What robust fusion regularises: the fused prediction's Jacobian in the features of the last "
    "linear layer, or in the input of the perturbed modality (slower: a Jacobian a sample).",
)
flags.DEFINE_integer("num_train", None, "Training rows; default all.", lower_bound=1)
flags.DEFINE_integer("num_eval", None, "Test rows; default all.", lower_bound=1)
flags.DEFINE_integer("num_attack", 2000, "Test rows to attack.", lower_bound=1)
flags.DEFINE_integer(
    "attack_steps", 20, "Of iterated attacks; 25 queries each without gradients.", lower_bound=1
)
flags.DEFINE_integer(
    "num_restarts", 1, "Starts of PGD and APGD, all but the first random.", lower_bound=1
)
flags.DEFINE_integer(
    "num_permutations",
    0,
    "Of corrupted rows, to tell what the weights are worth that rules give every sample; 0 tells "
    "nothing.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "num_epochs",
    None,
    f"Training epochs; default {DEFAULT_NUM_EPOCHS}. 0 takes --weights as they are.",
    lower_bound=0,
)
flags.DEFINE_integer("batch_size", 128, "Rows at a time.", lower_bound=1)
flags.DEFINE_integer(
    "seed", 0, "Of training, corruptions, attacks.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_integer(
    "num_seeds",
    1,
    "Repeats everything with this many seeds, --seed and those after it.",
    lower_bound=1,
)


def config_from_flags() -> Config:
    """Collects the flags; raises InputError where some do not fit together."""
    given = flags.FLAGS
    dataset = base_name(given.dataset)
    for name, value in values_of(given.suite or "", dataset).items():
        if not given[name].present:
            given[name].value = value
    values: dict[str, Any] = {
        field.name: given[field.name].value for field in dataclasses.fields(Config)
    }
    for name in ("workdir", "data_dir", "manual_dir"):
        values[name] = values[name] and Path(values[name]).expanduser()
    values["dataset"] = full_name(given.dataset)
    values["kinds"] = kinds = _kinds(given.kinds or (), dataset)
    if dataset == ARRAYS:
        modalities = _modalities_of_arrays(values["manual_dir"], kinds, given.fold)
    else:
        modalities = MODALITIES[dataset]
        if given.fold >= NUM_FOLDS:
            raise InputError(f"--fold={given.fold}: choose from 0 to {NUM_FOLDS - 1}")
    if dataset != "av_mnist" and given.attack_at != "raw":
        raise InputError(f"--attack_at={given.attack_at}: only images of av_mnist are reduced")
    chosen = modalities if given.perturbed is None else given.perturbed
    values["perturbed"] = choices("perturbed", chosen, modalities)
    if given.num_epochs is None:
        values["num_epochs"] = DEFAULT_NUM_EPOCHS[dataset]
    values["weights"] = weights = by_modality("weights", given.weights)
    for modality, path in weights.items():
        if dataset != "vggsound":
            raise InputError(
                f"--weights={modality}={path}: only classifiers of vggsound take weights"
            )
        if modality not in modalities:
            raise InputError(
                f"--weights={modality}={path}: unknown {modality!r}; choose from "
                f"{','.join(modalities)}"
            )
    if values["num_epochs"] == 0 and weights.keys() != set(modalities):
        raise InputError("--num_epochs=0 trains nothing; give --weights of every modality")
    if LEARNED in values["methods"] and not given.num_select:
        raise InputError(
            f"--methods={LEARNED}: it is fitted to attacked validation rows; give --num_select"
        )
    if LEARNED in values["methods"] and not {"known", "wrong"} & set(given.threat_models):
        raise InputError(
            f"--methods={LEARNED}: it needs a modality that is trusted; give --threat_models=known"
        )
    if given.seed + given.num_seeds > 2**32:
        raise InputError(
            f"--seed={given.seed} --num_seeds={given.num_seeds}: seeds must stay below {2**32}"
        )
    return Config(**values)


def _kinds(pairs: Sequence[tuple[str, str]], dataset: str) -> dict[str, str]:
    """The kinds of --kinds."""
    if pairs and dataset != ARRAYS:
        raise InputError(f"--kinds={':'.join(pairs[0])}: only modalities of arrays take kinds")
    return by_modality("kinds", pairs, ":")


def _modalities_of_arrays(
    manual_dir: Path | None, kinds: Mapping[str, str], fold: int
) -> tuple[str, ...]:
    """The modalities that a folder of arrays has."""
    try:
        return tuple(arrays.peek(manual_dir, kinds=kinds, fold=fold).kinds)
    except DataError as error:
        raise InputError(with_flag(error)) from None
