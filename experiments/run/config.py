"""Settings of one run."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Config:
    """All flags of `experiments.robust_fusion`, under their own names; see its --help."""

    dataset: str
    workdir: Path
    data_dir: Path
    manual_dir: Path | None
    num_workers: int | None
    max_missing: float
    fold: int
    kinds: dict[str, str]
    attack_at: str
    weights: dict[str, Path]
    perturbed: tuple[str, ...]
    perturbations: tuple[str, ...]
    methods: tuple[str, ...]
    threat_models: tuple[str, ...]
    gammas: tuple[float, ...]
    scales: tuple[float, ...]
    contaminations: tuple[float, ...]
    temperings: tuple[float, ...]
    confidences: tuple[float, ...]
    num_select: int
    select_attack: str
    attack_share: float
    jacobian: str
    num_train: int | None
    num_eval: int | None
    num_attack: int
    attack_steps: int
    num_restarts: int
    num_permutations: int
    num_epochs: int
    batch_size: int
    seed: int
    num_seeds: int
