"""What classifiers, and fusions trained on top of them, say."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class UnimodalOutput(NamedTuple):
    """Output of a unimodal classifier, z = W^T h + b.

    Attributes:
      logits: z, (B, K).
      features: h, (B, H), the input of the last linear layer.
    """

    logits: jax.Array
    features: jax.Array


class FusionHead(NamedTuple):
    """A trained fusion of the outputs of all modalities.

    Attributes:
      log_probs_fn: maps (parameters, {modality: UnimodalOutput}) to log-probabilities (B, K), of
        the modalities it was trained on, all of which must be there.
      parameters: pytree of its arrays.
    """

    log_probs_fn: Callable[[Any, Mapping[str, UnimodalOutput]], jax.Array]
    parameters: Any
