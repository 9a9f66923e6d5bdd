"""Predictions in, fused predictions out, some rows at a time."""

import contextlib
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from jacfuse_jax._simplex import says_nothing
from jacfuse_jax.fusion import ContaminatedRobust
from jacfuse_jax.predictions.arrays import open_arrays
from jacfuse_jax.predictions.class_names import align_files, read_classes
from jacfuse_jax.predictions.classes import Alignment, align_prior
from jacfuse_jax.predictions.flags import FuseConfig
from jacfuse_jax.predictions.inputs import Names, open_predictions
from jacfuse_jax.predictions.join import Joined, join
from jacfuse_jax.predictions.kinds import check_probs, look_like_probs
from jacfuse_jax.predictions.layers import HEADS, head_spectrum
from jacfuse_jax.predictions.needs import NUM_CHOICE_ROWS, check_fuse_run
from jacfuse_jax.predictions.npy import ArrayOnDisk, ScratchFn
from jacfuse_jax.predictions.outputs import FusedRows, write_fused
from jacfuse_jax.predictions.report import Found, make_report
from jacfuse_jax.predictions.rule import FittedRule, choose, evaluate, fuse
from jacfuse_jax.programs import InputError

_CHUNK_ENTRIES = 2**21  # logits of a modality in memory at a time
_PACKAGES = ("jacfuse_jax", "jax", "jaxlib", "numpy", "pyarrow", "safetensors")


def run(config: FuseConfig) -> None:
    """Fuses the inputs, writes the output and prints a report.

    Args:
      config: all settings.

    Raises:
      InputError: a file or flag does not fit.
    """
    names = Names(
        logits=config.logits_column,
        ids=config.ids_column,
        labels=config.labels_column,
        by_position=config.join == "position",
    )
    classes = None
    if config.classes != "position":
        paths = [*config.input.values(), *config.validation.values()]
        classes = align_files(paths, names, config.classes)
    check_fuse_run(config, names, classes)
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output={config.output}: its folder cannot be made ({error.strerror}); name another"
        ) from error
    with contextlib.ExitStack() as stack:

        def make_scratch() -> BinaryIO:
            # Without a name it ends with this process; folders for temporary files may be memory.
            return stack.enter_context(tempfile.TemporaryFile(dir=config.output.parent))

        joined = _open(config, names, config.input, make_scratch, classes)
        source = "validation" if config.validation else "input"
        reference = joined
        if config.validation:
            reference = _open(config, names, config.validation, make_scratch, classes)
        if reference.num_classes != joined.num_classes:
            raise InputError(
                f"--validation has {reference.num_classes} classes, --input {joined.num_classes}"
            )
        if config.labels_column and joined.labels is None and reference.labels is None:
            raise InputError(f"--labels_column={config.labels_column} is in no input")
        is_double = any(p.logits.dtype.name == "float64" for p in joined.inputs.values())
        dtype = jax.dtypes.canonicalize_dtype(np.float64 if is_double else np.float32)
        if is_double and dtype == np.float32:
            print("float64 logits are rounded to float32", file=sys.stderr)
        heads = {
            name: _head(config, joined, name, make_scratch, classes) for name in config.perturbed
        }
        class_prior = _class_prior(config, classes, reference, dtype, make_scratch)
        fitted = FittedRule(
            ContaminatedRobust(config.contamination, config.gamma),
            {
                name: head_spectrum(head, joined.inputs[name].logits.shape[1], dtype, places)
                for name, (head, places) in heads.items()
            },
            class_prior,
        )
        joined, reference = (each._replace(class_prior=class_prior) for each in (joined, reference))
        chosen = [name for name, value in fitted.rule.parameters.items() if math.isnan(value)]
        if chosen:
            fitted = _choose(fitted, chosen, reference, source, dtype)
        facts = {
            "joined_by": joined.ids_name or "position",
            "classes": classes and classes.names,
            "class_remarks": _class_remarks(classes, joined, reference),
            "missing": config.missing,
            "num_missing": {name: int((~has).sum()) for name, has in joined.present.items()},
            "inputs_are": config.inputs_are or "logits",
            "perturbed": config.perturbed,
            "rule": fitted.rule.to_json(),
            "gamma": fitted.rule.gamma,
            "contamination": fitted.rule.contamination,
            "chosen": chosen,
            "chosen_on": source if chosen else None,
            "class_prior": fitted.class_prior.tolist(),
            "class_prior_from": config.class_prior,
            "identity_gram": [name for name, (head, _) in heads.items() if not head],
            **{
                flag: {name: str(path) for name, path in getattr(config, flag).items()}
                for flag in ("input", "kernel", "validation")
            },
            "num_rows": len(joined.ids),
            "dtype": dtype.name,
            "device": jax.devices()[0].device_kind,
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        }
        found: list[Found] = []
        batches = _fuse_chunks(fitted, joined, dtype, found)
        write_fused(config.output, joined.ids, batches, facts, classes and classes.names)
    print(make_report(facts, found))
    print(f"wrote {config.output}")


def _open(
    config: FuseConfig,
    names: Names,
    paths: Mapping[str, Path],
    scratch_fn: ScratchFn,
    classes: Alignment | None,
) -> Joined:
    """The rows that these files share; says what is not used of them."""
    joined = join(
        {
            name: open_predictions(path, scratch_fn=scratch_fn, names=names, classes=classes)
            for name, path in paths.items()
        },
        config.missing,
    )
    for line in joined.remarks:
        print(line, file=sys.stderr)
    if joined.ids_name is None and config.join is None and len(paths) > 1:
        print("no input has a column of ids: rows are joined by position", file=sys.stderr)
    for p in joined.inputs.values():
        unused = [name for name in p.unused if name != joined.ids_name]
        if unused:
            print(f"{p.path}: not used: {', '.join(unused)}", file=sys.stderr)
        if config.inputs_are is None and look_like_probs(p.logits):
            print(
                f"warning: {p.logits.name} look like probabilities: all rows lie in [0, 1] and sum "
                "to one; say --inputs_are=probabilities, or logits",
                file=sys.stderr,
            )
        elif config.inputs_are in ("probabilities", "log_probabilities"):
            check_probs(p.logits, config.inputs_are)
    return joined._replace(are_probs=config.inputs_are == "probabilities")


def _head(
    config: FuseConfig,
    joined: Joined,
    name: str,
    scratch_fn: ScratchFn,
    classes: Alignment | None,
) -> tuple[dict[str, ArrayOnDisk], NDArray[np.int64] | None]:
    """The last linear layer of a modality, of its input or a file of its own, and its classes."""
    p, path = joined.inputs[name], config.kernel.get(name)
    head, places = p.heads, p.places
    if path is not None:
        if head:
            raise InputError(f"--kernel={name}={path}: {p.path} holds its {', '.join(head)}")
        head = open_arrays(path, HEADS, bare="kernel", scratch_fn=scratch_fn)
        if not head:
            raise InputError(f"--kernel={name}={path} holds none of {', '.join(HEADS)}")
        own = None if config.classes == "position" else read_classes(path)
        if own is not None:
            if classes is None or set(own) != set(classes.own[str(p.path)]):
                raise InputError(
                    f"--kernel={name}={path} names classes that are not those of {p.path}; save "
                    "the same with both"
                )
            places = classes.places(own)
    if head and places is not None and places.min() < 0:
        if config.gamma != 1:
            raise InputError(
                f"--classes=unite: {p.path} lacks classes, so that its {', '.join(head)} does not "
                "tell the Jacobian; give --gamma=1, or --classes=intersect"
            )
        head = {}
    return head, places


def _class_remarks(classes: Alignment | None, *inputs: Joined) -> list[str]:
    """What was done to classes and labels, each once."""
    of_labels = (line for joined in inputs for p in joined.inputs.values() for line in p.remarks)
    return list(dict.fromkeys([*(classes.remarks if classes else []), *of_labels]))


def _class_prior(
    config: FuseConfig,
    classes: Alignment | None,
    reference: Joined,
    dtype: Any,
    scratch_fn: ScratchFn,
) -> NDArray[np.float64]:
    """The prior (K,) that the flag asks for."""
    source, num_classes = config.class_prior, reference.num_classes
    if source == "uniform":
        return np.full(num_classes, 1 / num_classes)
    if source == "labels":
        if reference.labels is None:
            raise InputError("--class_prior=labels needs `labels` in --validation or --input")
        known = reference.labels[reference.labels >= 0]
        counts = np.bincount(known, minlength=num_classes)
        if not counts.all():
            raise InputError(
                f"--class_prior=labels: no label is {counts.argmin()}; give uniform, or a file of "
                "the frequencies in training"
            )
    else:
        path = Path(source).expanduser()
        arrays = open_arrays(path, ["class_prior"], bare="class_prior", scratch_fn=scratch_fn)
        if "class_prior" not in arrays:
            raise InputError(f"--class_prior={path} holds no array `class_prior`")
        own = None if config.classes == "position" else read_classes(path)
        counts = align_prior(
            arrays["class_prior"].read(), own, classes, source=f"--class_prior={path}"
        )
        is_number = counts.dtype.kind in "iuf" and np.isfinite(counts).all()
        if counts.shape != (num_classes,) or not (is_number and np.all(counts > 0)):
            raise InputError(f"--class_prior={path} must hold {num_classes} positive numbers")
    prior = counts / counts.sum(dtype=np.float64)
    if prior.min() < np.finfo(dtype).tiny:
        raise InputError(
            f"--class_prior={source}: the share {prior.min():.3g} of class {prior.argmin()} is "
            f"zero in {dtype}; give it a larger one"
        )
    return prior


def _choose(
    fitted: FittedRule, chosen: Sequence[str], reference: Joined, source: str, dtype: Any
) -> FittedRule:
    """The rule with parameters chosen on labelled rows, or a sample of them."""
    if reference.labels is None:
        raise InputError(f"--{chosen[0]}=auto needs `labels` in --validation or --input")
    num_rows = len(reference.labels)
    sample = np.random.default_rng(0).permutation(num_rows)[:NUM_CHOICE_ROWS]
    logits = reference.read(sample, dtype)
    is_whole = np.all([has[sample] for has in reference.present.values()], axis=0)
    is_labelled = reference.labels[sample] >= 0
    is_silent = np.any([*_find_silent(logits).values()], axis=0)
    is_used = is_whole & is_labelled & ~is_silent
    if not is_used.any():
        raise InputError(
            f"--{chosen[0]}=auto: in each labelled row a modality is missing or says nothing, of "
            "+inf or nothing finite"
        )
    left_out = {
        f"not among {len(sample)} drawn at random": num_rows - len(sample),
        "in which a modality is missing": int((~is_whole).sum()),
        "without a label": int((is_whole & ~is_labelled).sum()),
        "in which a modality says nothing": int((is_whole & is_labelled & is_silent).sum()),
    }
    reasons = [f"{count} {reason}" for reason, count in left_out.items() if count]
    if reasons:
        print(
            f"--{chosen[0]}=auto leaves out, of {num_rows} rows of --{source}: "
            + ", ".join(reasons),
            file=sys.stderr,
        )
    return choose(
        fitted,
        {name: z[is_used] for name, z in logits.items()},
        reference.labels[sample[is_used]],
        names=chosen,
    )


def _find_silent(logits: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
    """Which rows (N,) of each modality say nothing, as fusion rules have it."""
    return {name: np.asarray(_says_nothing(z))[:, 0] for name, z in logits.items()}


_says_nothing = jax.jit(says_nothing)


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
            is_nan = np.isnan(log_probs.sum(axis=1))
            is_silent = {
                name: silent & every[name][rows] for name, silent in _find_silent(logits).items()
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
                np.asarray(fused.jacobian_norm)[:count],
                log_probs[:count],
            )
            progress.update(count)
