"""Predictions in, fused predictions out, some rows at a time."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from jacfuse_jax.fusion import ContaminatedRobust
from jacfuse_jax.fusion._supported import check_parameters
from jacfuse_jax.predictions.classes import Alignment
from jacfuse_jax.predictions.flags import FuseConfig
from jacfuse_jax.predictions.join import Joined
from jacfuse_jax.predictions.labelled import draw_labelled, find_silent
from jacfuse_jax.predictions.needs import check_fuse_run
from jacfuse_jax.predictions.opening import find_classes, names_of, open_inputs
from jacfuse_jax.predictions.outputs import FusedRows, write_fused
from jacfuse_jax.predictions.report import Found, make_report
from jacfuse_jax.predictions.rule import FittedRule, choose, evaluate, fuse
from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.files import make_folder
from jacfuse_jax.selection import SCHEMA, ChosenRule, choice_to_dict, read_chosen

_CHUNK_ENTRIES = 2**21  # logits of a modality in memory at a time
_DEFAULT_SHARE = 0.1  # of attacked inputs
_PACKAGES = ("jacfuse_jax", "jax", "jaxlib", "numpy", "pyarrow", "safetensors")


def run(config: FuseConfig) -> None:
    """Fuses the inputs, writes the output and prints a report.

    Args:
      config: all settings.

    Raises:
      InputError: a file or flag does not fit.
    """
    paths = [*config.input.values(), *config.validation.values()]
    classes = find_classes(config, paths)
    given = _read_given(config, classes)
    if given is not None and given.perturbed is not None:
        config = dataclasses.replace(config, perturbed=given.perturbed)
    rule = ContaminatedRobust(config.contamination, config.gamma) if given is None else given.rule
    chosen = [name for name in ("gamma", "contamination") if math.isnan(getattr(config, name))]
    if config.rule == "auto":
        chosen = ["rule"]
    check_fuse_run(config, names_of(config), classes, is_chosen=bool(chosen))
    make_folder(config.output.parent, f"--output={config.output}")
    with contextlib.ExitStack() as stack:
        opened = open_inputs(
            config,
            config.validation,
            classes,
            recalibrated=config.perturbed,
            is_recalibrated=rule.needs_grams and getattr(rule, "gamma", None) != 1,
            folder=config.output.parent,
            stack=stack,
        )
        joined = opened.joined
        fitted = FittedRule(rule, opened.grams, opened.class_prior)
        if given is not None:
            try:
                check_parameters(rule, joined.num_classes, tuple(config.input))
            except ValueError as error:
                raise InputError(f"--rule={config.rule}: {error}") from error
        choice = None
        if chosen:
            fitted, choice = choose(
                fitted,
                draw_labelled(opened, f"--{chosen[0]}=auto"),
                chosen,
                share=_DEFAULT_SHARE if config.attack_share is None else config.attack_share,
                against=config.against,
            )
        facts = {
            "schema": SCHEMA,
            "joined_by": joined.ids_name or "position",
            "classes": classes and classes.names,
            "class_remarks": _without_folders(opened.class_remarks, paths),
            "missing": config.missing,
            "num_missing": {name: int((~has).sum()) for name, has in joined.present.items()},
            "inputs_are": config.inputs_are or "logits",
            "perturbed": config.perturbed,
            "rule": fitted.rule.to_json(),
            "rule_from": None if given is None else given.remark,
            "chosen": chosen,
            "chosen_on": opened.source if chosen else None,
            "choice": choice and choice_to_dict(choice),
            "class_prior": fitted.class_prior.tolist(),
            "class_prior_from": Path(config.class_prior).name,
            "identity_gram": opened.identity_gram if fitted.rule.needs_grams else [],
            **{
                flag: {name: path.name for name, path in getattr(config, flag).items()}
                for flag in ("input", "kernel", "validation")
            },
            "num_rows": len(joined.ids),
            "dtype": opened.dtype.name,
            "device": jax.devices()[0].device_kind,
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        }
        found: list[Found] = []
        batches = _fuse_chunks(fitted, joined, opened.dtype, found)
        write_fused(config.output, joined.ids, batches, facts, classes and classes.names)
    print(make_report(facts, fitted.rule, choice, found))
    print(f"wrote {config.output}")


def _read_given(config: FuseConfig, classes: Alignment | None) -> ChosenRule | None:
    """The rule of a file, if one is given."""
    if config.rule is None or config.rule == "auto":
        return None
    path = Path(config.rule).expanduser()
    try:
        given = read_chosen(
            path.read_text(encoding="utf-8"),
            modalities=list(config.input),
            classes=classes and classes.names,
            perturbed=config.perturbed,
            share=config.attack_share,
            against=config.against,
        )
    except ValueError as error:
        raise InputError(f"--rule={path}: {error}") from error
    if given.perturbed is None and not config.perturbed and given.rule.searched:
        raise InputError(
            f"--rule={path} does not say which modalities are perturbed; name them by --perturbed"
        )
    return given


def _without_folders(lines: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Lines that name files without the folders they are in, which may be private."""
    for path in sorted(paths, key=lambda path: -len(str(path))):
        lines = [line.replace(str(path), path.name) for line in lines]
    return list(lines)


def _fuse_chunks(
    fitted: FittedRule, joined: Joined, dtype: Any, found: list[Found]
) -> Iterator[FusedRows]:
    """The fused rows, some at a time; adds what they are to `found`."""
    num_rows = len(joined.ids)
    size = min(num_rows, max(1, _CHUNK_ENTRIES // joined.num_classes))
    every = joined.present
    is_whole = all(has.all() for has in every.values())
    with tqdm(total=num_rows, unit="row", unit_scale=True, disable=None) as progress:
        for start in range(0, num_rows, size):
            # The last rows again fill the last chunk, so that one program serves all.
            rows = np.minimum(np.arange(start, start + size), num_rows - 1)
            count = min(size, num_rows - start)
            logits = joined.read(rows, dtype)
            present = None if is_whole else {name: has[rows] for name, has in every.items()}
            fused = fuse(fitted, logits, present)
            log_probs = np.asarray(fused.log_probs)
            norms = fused.jacobian_norm
            is_nan = np.isnan(log_probs.sum(axis=1))
            is_silent = {
                name: silent & every[name][rows] for name, silent in find_silent(logits).items()
            }
            evaluation = None
            if joined.labels is not None:
                labels = joined.labels[rows]
                mask = ~np.any([is_nan, *is_silent.values(), labels < 0], axis=0)
                mask &= np.arange(size) < count
                sums = evaluate(fitted, logits, fused.log_probs, labels, mask, present)
                # In float64: float32 stops counting at 2^24.
                evaluation = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            num_silent = {name: int(each[:count].sum()) for name, each in is_silent.items()}
            found.append(Found(int(is_nan[:count].sum()), num_silent, evaluation))
            yield FusedRows(
                joined.ids.slice(start, count),
                np.where(is_nan, -1, log_probs.argmax(axis=1)).astype(np.int32)[:count],
                None if norms is None else np.asarray(norms)[:count],
                log_probs[:count],
            )
            progress.update(count)
