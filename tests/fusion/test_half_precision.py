from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks, bounds, calibration, certificates, fusion, metrics
from tests.fusion import rules
from tests.fusion.three_samples import GRAMS, LABELS, LOGITS, PRIOR


class TestHalfPrecision:
    @pytest.mark.parametrize("name", ["bfloat16", "float16"])
    def test_is_computed_in_float32(self, name):
        half = {m: jnp.asarray(z, name) for m, z in LOGITS.items()}
        single = {m: z.astype(jnp.float32) for m, z in half.items()}
        options: Any = {"perturbed": "image"}
        for rule in (
            rules.mean_fusion,
            jax.jit(fusion.max_fusion),
            jax.jit(fusion.product_fusion),
            lambda z: rules.statistical_fusion(z, PRIOR),
            lambda z: rules.scaled_fusion(z, PRIOR, scale=0.3, **options),
            lambda z: rules.contaminated_fusion(z, PRIOR, contamination=0.3, **options),
            lambda z: rules.contaminated_log_probs(z["image"], PRIOR, contamination=0.3),
            lambda z: rules.cascade_fusion(z, PRIOR, confidence=0.5, **options),
            lambda z: rules.robust_fusion(z, GRAMS, PRIOR, gamma=0.1, **options).log_probs,
        ):
            fused = rule(half)
            assert fused.dtype == name
            # To the last bit but one: programs of either dtype round the sums in float32 alike.
            np.testing.assert_allclose(
                fused.astype(jnp.float32),
                rule(single).astype(name).astype(jnp.float32),
                rtol=float(jnp.finfo(name).eps),
            )

    def test_norms_bounds_and_radii_are_float32(self):
        half = {m: jnp.asarray(z, jnp.bfloat16) for m, z in LOGITS.items()}
        options: Any = {"perturbed": "image", "gamma": 0.1}
        for array in (
            rules.robust_fusion(half, GRAMS, PRIOR, **options).jacobian_norm,
            bounds.bias_bound(half, GRAMS, PRIOR, **options),
            *(
                certificates.certified_radius(
                    rule, half, PRIOR, corrupted="image", perturbed="image", grams=GRAMS
                )
                for rule in (fusion.Robust(0.1), fusion.Contaminated(0.5))
            ),
            certificates.certify_modality(
                fusion.Contaminated(0.5), half, PRIOR, corrupted="image"
            ).margin,
            calibration.fit_temperature(half["image"], LABELS),
            metrics.classification_sums(half["image"], LABELS).nll,
            attacks.losses.margin(half["image"], LABELS),
        ):
            assert array.dtype == jnp.float32
