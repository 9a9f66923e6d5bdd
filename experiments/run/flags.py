"""The flags of `experiments.robust_fusion`; importing this module defines them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from data_pipelines.catalogue import MODALITIES, NUM_FOLDS
from experiments.run.config import Config
from experiments.run.suites import SUITES
from jacfuse_jax.evaluation.names import ATTACKS, PERTURBATIONS
from jacfuse_jax.evaluation.rules import NAMES
from jacfuse_jax.evaluation.threat_models import THREAT_MODELS
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import choices

_DEFAULT_METHODS = ("unimodal", "mean", "statistical", "scaled", "robust")
_DEFAULT_PERTURBATIONS = ("clean", "gaussian_noise", "missing", "pgd", "apgd")
DEFAULT_NUM_EPOCHS = {"digits": 30, "av_mnist": 4, "ravdess": 40, "vggsound": 15}

_SUITE = flags.DEFINE_enum(
    "suite",
    None,
    sorted(SUITES),
    "Values for all flags that are not given, see suites.py; numbers of rows for av_mnist alone.",
)
_DATASET = flags.DEFINE_enum("dataset", "digits", sorted(MODALITIES), "Data set.")
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir", None, "Folder with the raw files; they are downloaded where it is not given."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/jacfuse_jax", "Folder of prepared data.")
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", None, "Processes that decode media; default one a core.", lower_bound=1
)
_MAX_MISSING = flags.DEFINE_float(
    "max_missing",
    1.0,
    "Share of the clips of VGGSound that may be missing or damaged.",
    lower_bound=0,
    upper_bound=1,
)
_FOLD = flags.DEFINE_integer(
    "fold",
    0,
    "Of RAVDESS: whose actors are tested on; no actor is in two splits.",
    lower_bound=0,
    upper_bound=NUM_FOLDS - 1,
)
_WEIGHTS = flags.DEFINE_multi_string(
    "weights",
    [],
    "MODALITY=FILE.safetensors, repeatable: weights of torchvision's ResNet-18 to start from, of "
    "vggsound. The last layer is new, unless --num_epochs=0.",
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/robust_fusion", "Folder of results.")
_PERTURBED = flags.DEFINE_list("perturbed", None, "Modalities to perturb in turn; default all.")
_PERTURBATIONS = flags.DEFINE_list(
    "perturbations",
    list(_DEFAULT_PERTURBATIONS),
    f"Of {','.join(PERTURBATIONS)}; those that do not apply to a modality are left out.",
)
_METHODS = flags.DEFINE_list("methods", list(_DEFAULT_METHODS), f"Of {','.join(NAMES)}.")
_THREAT_MODELS = flags.DEFINE_list(
    "threat_models",
    ["known"],
    f"Of {','.join(THREAT_MODELS)}: one modality is perturbed and the defender knows which, "
    "guesses wrong, does not know or judges each sample; both are; or whichever hurts most, "
    "unknown to the defender.",
)
_GAMMAS = flags.DEFINE_list("gammas", ["0.5", "0.1", "0.01"], "Of robust fusion, in (0, 1].")
_SCALES = flags.DEFINE_list("scales", ["0.5", "0.2", "0.1"], "Of scaled fusion, in [0, 1].")
_CONTAMINATIONS = flags.DEFINE_list(
    "contaminations", ["0.7", "0.3"], "Of contaminated likelihoods, in [0, 1]."
)
_TEMPERINGS = flags.DEFINE_list(
    "temperings",
    ["1", "0.33"],
    "Of contaminated likelihoods that are not recalibrated, and of cascades, in [0, 1].",
)
_CONFIDENCES = flags.DEFINE_list(
    "confidences", ["0.8"], "Of trusted modalities in cascades, in [0, 1]."
)
_NUM_SELECT = flags.DEFINE_integer(
    "num_select",
    0,
    "Validation rows to attack, to choose the parameters of every rule by; 0 chooses none.",
    lower_bound=0,
)
_SELECT_ATTACK = flags.DEFINE_enum("select_attack", "apgd", ATTACKS, "The attack on those rows.")
_MAX_CLEAN_LOSS = flags.DEFINE_float(
    "max_clean_loss",
    0.01,
    "Accuracy on clean validation rows that chosen parameters may lose against statistical fusion.",
    lower_bound=0,
    upper_bound=1,
)
_JACOBIAN = flags.DEFINE_enum(
    "jacobian",
    "head",
    ["head", "input"],
    "What robust fusion regularises: the fused prediction's Jacobian in the features of the last "
    "linear layer, or in the input of the perturbed modality (slower: a Jacobian a sample).",
)
_NUM_TRAIN = flags.DEFINE_integer("num_train", None, "Training rows; default all.", lower_bound=1)
_NUM_EVAL = flags.DEFINE_integer("num_eval", None, "Test rows; default all.", lower_bound=1)
_NUM_ATTACK = flags.DEFINE_integer("num_attack", 2000, "Test rows to attack.", lower_bound=1)
_ATTACK_STEPS = flags.DEFINE_integer(
    "attack_steps", 20, "Of iterated attacks; 25 queries each without gradients.", lower_bound=1
)
_NUM_RESTARTS = flags.DEFINE_integer(
    "num_restarts", 1, "Random starts of PGD and APGD.", lower_bound=1
)
_NUM_EPOCHS = flags.DEFINE_integer(
    "num_epochs",
    None,
    f"Training epochs; default {DEFAULT_NUM_EPOCHS}. 0 takes --weights as they are.",
    lower_bound=0,
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Rows at a time.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of training, corruptions, attacks.", lower_bound=0, upper_bound=2**32 - 1
)

_NUM_SEEDS = flags.DEFINE_integer(
    "num_seeds",
    1,
    "Repeats everything with this many seeds, --seed and those after it.",
    lower_bound=1,
)

_MIN_GAMMA = float(np.finfo(np.float32).tiny)  # smaller ones are zero to the classifiers


def config_from_flags() -> Config:
    """Collects the flags; raises InputError where one does not fit."""
    for name, value in SUITES.get(_SUITE.value or "", {}).items():
        # Other data sets may have fewer rows.
        fits = _DATASET.value == "av_mnist" or name not in ("num_train", "num_eval")
        if fits and not flags.FLAGS[name].present:
            flags.FLAGS[name].value = value
    if not 0 <= _MAX_CLEAN_LOSS.value <= 1:  # NaN passes the bounds of the flag
        raise InputError(f"--max_clean_loss={_MAX_CLEAN_LOSS.value} is not in [0, 1]")
    if _SEED.value + _NUM_SEEDS.value > 2**32:
        raise InputError(
            f"--seed={_SEED.value} --num_seeds={_NUM_SEEDS.value}: seeds must stay below {2**32}"
        )
    if not 0 <= _MAX_MISSING.value <= 1:
        raise InputError(f"--max_missing={_MAX_MISSING.value} is not in [0, 1]")
    modalities, chosen = MODALITIES[_DATASET.value], _PERTURBED.value
    num_epochs = _NUM_EPOCHS.value
    if num_epochs is None:
        num_epochs = DEFAULT_NUM_EPOCHS[_DATASET.value]
    weights = _weights(_WEIGHTS.value, _DATASET.value, modalities)
    if not num_epochs and weights.keys() != set(modalities):
        raise InputError("--num_epochs=0 trains nothing; give --weights of every modality")
    return Config(
        dataset=_DATASET.value,
        workdir=str(Path(_WORKDIR.value).expanduser()),
        data_dir=str(Path(_DATA_DIR.value).expanduser()),
        manual_dir=_MANUAL_DIR.value and str(Path(_MANUAL_DIR.value).expanduser()),
        num_workers=_NUM_WORKERS.value,
        max_missing=_MAX_MISSING.value,
        fold=_FOLD.value,
        weights=weights,
        perturbed=choices("perturbed", modalities if chosen is None else chosen, modalities),
        perturbations=choices("perturbations", _PERTURBATIONS.value, PERTURBATIONS),
        methods=choices("methods", _METHODS.value, NAMES),
        threat_models=choices("threat_models", _THREAT_MODELS.value, THREAT_MODELS),
        gammas=_numbers("gammas", _GAMMAS.value, lambda x: _MIN_GAMMA <= x <= 1, "(0, 1]"),
        scales=_shares("scales", _SCALES.value),
        contaminations=_shares("contaminations", _CONTAMINATIONS.value),
        temperings=_shares("temperings", _TEMPERINGS.value),
        confidences=_shares("confidences", _CONFIDENCES.value),
        num_select=_NUM_SELECT.value,
        select_attack=_SELECT_ATTACK.value,
        max_clean_loss=_MAX_CLEAN_LOSS.value,
        jacobian=_JACOBIAN.value,
        num_train=_NUM_TRAIN.value,
        num_eval=_NUM_EVAL.value,
        num_attack=_NUM_ATTACK.value,
        attack_steps=_ATTACK_STEPS.value,
        num_restarts=_NUM_RESTARTS.value,
        num_epochs=num_epochs,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        num_seeds=_NUM_SEEDS.value,
    )


def _numbers(
    flag: str, texts: list[str], is_valid: Callable[[float], bool], interval: str
) -> tuple[float, ...]:
    """The numbers of a flag; raises where one does not lie in the interval."""
    numbers: list[float] = []
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not is_valid(number):
            raise InputError(f"--{flag}: {text!r} is not a number in {interval}")
        numbers.append(number)
    if not numbers:
        raise InputError(f"--{flag} is empty; give numbers in {interval}")
    return tuple(dict.fromkeys(numbers))


def _shares(flag: str, texts: list[str]) -> tuple[float, ...]:
    """The numbers of a flag, all in [0, 1]."""
    return _numbers(flag, texts, lambda x: 0 <= x <= 1, "[0, 1]")


def _weights(texts: list[str], dataset: str, modalities: tuple[str, ...]) -> dict[str, str]:
    """{modality: file} of --weights."""
    files: dict[str, str] = {}
    for text in texts:
        modality, _, file = text.partition("=")
        if dataset != "vggsound":
            raise InputError(f"--weights={text}: only classifiers of vggsound take weights")
        if modality not in modalities or not file:
            raise InputError(
                f"--weights={text} is not MODALITY=FILE.safetensors with a modality of "
                f"{','.join(modalities)}"
            )
        if modality in files:
            raise InputError(f"--weights={text}: there is another file of {modality}")
        path = Path(file).expanduser()
        if not path.is_file():
            raise InputError(f"--weights={text}: no such file")
        files[modality] = str(path)
    return files
