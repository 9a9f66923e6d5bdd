"""What every unimodal classifier returns."""

from typing import NamedTuple

import jax


class UnimodalOutput(NamedTuple):
    """Output of a unimodal classifier, z = W^T h + b.

    Attributes:
      logits: z, (B, K).
      features: h, (B, H), the input of the last linear layer.
    """

    logits: jax.Array
    features: jax.Array
