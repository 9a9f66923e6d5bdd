"""Modules of PyTorch as functions of JAX, with derivatives by torch.autograd."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jacfuse_jax._checks import check_floating
from jacfuse_jax.torch._fusion_module import FusionModule
from jacfuse_jax.torch._host import HostFn


def as_logits_fn(module: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a module of PyTorch a function of JAX that attacks can differentiate.

    `logits_fn(image)` calls `module(image)`, `logits_fn(image=x, audio=y)` calls
    `module(image=x, audio=y)`, and `logits_fn({"image": x})` calls `module({"image": x})`, with
    arrays as tensors on the device of the module's first parameter. A classifier of one modality,
    whose logits `fusion` fuses, and a whole multimodal network are made the same way:

        logits_fns = {"image": as_logits_fn(image_net), "audio": as_logits_fn(audio_net)}

        def log_prob_fn(inputs):
            logits = {name: logits_fn(inputs[name]) for name, logits_fn in logits_fns.items()}
            return fusion.fuse(rule, logits, class_prior, perturbed="image")

        attacks.apgd(log_prob_fn, inputs, labels, key, epsilon={"image": 0.1, "audio": 0.02})

    and, where a module returns logits and features, `evaluation.worst_case` takes

        evaluation.Classifier(lambda _, x: evaluation.UnimodalOutput(*logits_fn(x)), (), kernel)

    Derivatives are of first order and in reverse mode: `jax.grad`, `jax.vjp` and `jax.jacrev`.
    `jax.jvp`, `jax.jacfwd` and second derivatives raise. A gradient calls the module twice, for the
    logits and, since torch's graph cannot be kept, again with autograd; parameters get none.

    It works under `jax.jit`, `jax.lax.map` and `jax.vmap`, which calls the module once, on one long
    batch. Each trace calls the module on zeros, for the shapes and dtypes of what it returns. Data
    pass through the host's memory. A module may be trained further: compiled programs call it as it
    then is. Where a batch is sharded over devices, each of them calls the module on all of it;
    under `jax.shard_map` on its own part alone. Devices call it at the same time, from threads.

    Args:
      module: an `nn.Module` in evaluation mode, or any callable; of tensors (B, ...), in any
        nesting, it makes floating tensors (B, ...), in any nesting, such as logits (B, K) or
        {modality: (B, K)}. Sample b of them may depend on sample b of its inputs alone. It must not
        call JAX, which may wait for what has called it.

    Returns:
      A function of arrays (B, ...), in float32 or float64 as the module's parameters, or integer or
      bool, that returns arrays as the module does tensors. It raises

      TypeError: inputs are floating in another dtype, or the module returns something else.
      ValueError: the module or a part of it is in training mode or a `FusionModule`, or inputs or
        what it returns do not share one batch axis.
      RuntimeError: gradients are asked for, and nothing that the module returns has any in any
        input. Where it has in some, they are zero in the others, which it may have detached.

      What is found or raised while a compiled program runs is in the text of JAX's own error.
    """
    forward = HostFn(functools.partial(_forward, module))
    backward = HostFn(functools.partial(_backward, module))

    @jax.custom_vjp
    def logits_fn(inputs: Any) -> Any:
        return forward(_results_of(module, inputs), inputs)

    def run(inputs: Any) -> tuple[Any, Any]:
        return logits_fn(inputs), inputs

    def pull_back(inputs: Any, cotangents: Any) -> tuple[Any]:
        floating = jax.tree.map(
            lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, inputs
        )
        return (backward(floating, inputs, cotangents),)  # None: it has no derivative

    logits_fn.defvjp(run, pull_back)
    return lambda *args, **kwargs: logits_fn(jax.tree.map(jnp.asarray, (args, kwargs)))


def _results_of(module: Callable[..., Any], inputs: Any) -> Any:
    """Shapes and dtypes of what the module returns; raises unless all is batched alike."""
    leaves = jax.tree.leaves(inputs)
    batch_sizes = {x.shape[:1] for x in leaves}
    if len(batch_sizes) != 1 or batch_sizes == {()}:
        shapes = [x.shape for x in leaves]
        raise ValueError(f"inputs of a module must be arrays (B, ...) of one B, got {shapes}")
    for x in leaves:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            check_floating("inputs of a module", x)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), inputs)
    results = _forward(module, zeros)
    for x in jax.tree.leaves(results):
        if x.shape[:1] not in batch_sizes:
            raise ValueError(
                f"a module must return tensors (B, ...), got {x.shape} for a batch of "
                f"{leaves[0].shape[0]}"
            )
        if x.dtype == np.float64 and jnp.result_type(float) != np.float64:  # x64 is off
            raise TypeError(
                "a module returned float64 tensors, which JAX has not: call "
                'jax.config.update("jax_enable_x64", True) first'
            )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), results)


def _forward(module: Callable[..., Any], inputs: Any) -> Any:
    """What the module returns, as NumPy arrays."""
    with torch.no_grad():
        outputs = _call(module, _as_tensors(inputs, _device_of(module)))
    return jax.tree.map(lambda x: x.cpu().numpy(), outputs)


def _backward(module: Callable[..., Any], inputs: Any, cotangents: Any) -> list[Any]:
    """The gradients in all floating inputs."""
    device = _device_of(module)
    with torch.inference_mode(mode=False), torch.enable_grad():
        tensors = _as_tensors(inputs, device)
        floating = [x for x in jax.tree.leaves(tensors) if x.is_floating_point()]
        for x in floating:
            x.requires_grad_()
        outputs = jax.tree.leaves(_call(module, tensors))
    moving = [i for i, output in enumerate(outputs) if output.requires_grad]
    vectors = jax.tree.leaves(cotangents)
    gradients = [None]
    if moving:
        gradients = torch.autograd.grad(
            [outputs[i] for i in moving],
            floating,
            [torch.tensor(vectors[i], device=outputs[i].device) for i in moving],
            allow_unused=True,
        )
    if all(gradient is None for gradient in gradients):
        raise RuntimeError(
            "nothing that the module returns has a gradient in its inputs: does it call "
            "torch.no_grad(), detach() or NumPy?"
        )
    return [
        np.zeros_like(x.numpy(force=True)) if gradient is None else gradient.cpu().numpy()
        for x, gradient in zip(floating, gradients, strict=True)
    ]


def _call(module: Callable[..., Any], tensors: Any) -> Any:
    """The module of what it is to be called with; raises where it is no function of that."""
    if isinstance(module, torch.nn.Module):
        _check_module(module, {x.dtype for x in jax.tree.leaves(tensors) if x.is_floating_point()})
    args, kwargs = tensors
    outputs = module(*args, **kwargs)
    for x in jax.tree.leaves(outputs):
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        if kind not in (torch.float32, torch.float64):
            raise TypeError(
                "a module must return tensors, float32 or float64, in dicts, lists or tuples, got "
                f"{kind}"
            )
    return outputs


def _check_module(module: torch.nn.Module, dtypes: set[torch.dtype]) -> None:
    """Raises unless it is a function of inputs in these floating dtypes."""
    for name, part in module.named_modules():
        where = f"part {name!r} of the module" if name else "the module"
        if part.training:
            raise ValueError(
                f"{where} is in training mode, in which dropout and batch normalisation make it no "
                "function of a sample: call module.eval()"
            )
        if isinstance(part, FusionModule):
            raise ValueError(
                f"{where} is a FusionModule, and JAX cannot be called by what it calls: fuse what "
                "as_logits_fn makes of the classifiers by fusion.fuse"
            )
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not dtypes <= {parameter.dtype}:
            raise TypeError(
                f"{name} of the module is {parameter.dtype}, its inputs are "
                f"{', '.join(map(str, dtypes))}: call module.float() for float32 or "
                "module.double() for float64, or cast the inputs"
            )


def _device_of(module: Callable[..., Any]) -> torch.device:
    """Where the first parameter or buffer is; the host where there is none."""
    if not isinstance(module, torch.nn.Module):
        return torch.device("cpu")
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _as_tensors(arrays: Any, device: torch.device) -> Any:
    """Copies, since a module may write to its inputs."""
    return jax.tree.map(lambda x: torch.tensor(x, device=device), arrays)
