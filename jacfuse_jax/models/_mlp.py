"""A multilayer perceptron for feature vectors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jacfuse_jax._checks import check_floating
from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.models._standardise import check_standardisation


class MLP(nnx.Module):
    """Dense hidden layers with ReLU, and a linear head.

    References:
      Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", 1986.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden_sizes: Sequence[int] = (128, 64),
        mean: float | Sequence[float] = 0.0,
        stddev: float | Sequence[float] = 1.0,
        rngs: nnx.Rngs,
    ):
        """Builds the layers.

        Args:
          in_features: D.
          num_classes: K.
          hidden_sizes: of the dense layers; the last is H, the number of features.
          mean: of the inputs, for all of the D or each; the network sees (x - mean) / stddev, so
            that what is attacked or corrupted remain inputs as they are.
          stddev: likewise, positive.
          rngs: source of the initial parameters.

        Raises:
          ValueError: a size is not positive, or mean or stddev is out of range or does not fit D.
        """
        sizes = (in_features, num_classes, *hidden_sizes)
        if min(sizes) < 1 or not hidden_sizes:
            raise ValueError(f"all sizes must be positive, got {sizes}")
        self.in_features = in_features
        self.mean, self.stddev = check_standardisation(mean, stddev, in_features, of="features")
        self.hidden = nnx.List([])
        for size in hidden_sizes:
            self.hidden.append(nnx.Linear(in_features, size, rngs=rngs))
            in_features = size
        self.head = nnx.Linear(in_features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> UnimodalOutput:
        """Classifies a batch.

        Args:
          x: (B, D), floating.

        Returns:
          `UnimodalOutput(logits (B, K), features (B, H))`.

        Raises:
          TypeError: x is neither float32 nor float64.
          ValueError: x has another shape.
        """
        x = jnp.asarray(x)
        check_floating("x", x)
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must have shape (B, {self.in_features}), got {x.shape}")
        mean, stddev = (jnp.asarray(values, x.dtype)[None] for values in (self.mean, self.stddev))
        x = (x - mean) / stddev
        with jax.numpy_dtype_promotion("standard"):  # flax promotes inputs and parameters
            for layer in self.hidden:
                x = nnx.relu(layer(x))
            return UnimodalOutput(logits=self.head(x), features=x)

    def lipschitz_bound(self, key: jax.Array) -> jax.Array:
        """An upper bound on the Lipschitz constant of the logits in the input, both in the 2-norm.

        The product of the layers' spectral norms, the first one's kernel divided by `stddev`.

        Args:
          key: not used; for classifiers that draw, see `LeNet.lipschitz_bound`.

        Returns:
          A scalar, float32.
        """
        del key
        first, *others = (*self.hidden, self.head)
        stddev = jnp.asarray(self.stddev, jnp.float32)[:, None]
        bound = jnp.linalg.norm(first.kernel[...] / stddev, ord=2)
        for layer in others:
            bound *= jnp.linalg.norm(layer.kernel[...], ord=2)
        return bound
