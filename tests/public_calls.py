"""A call of every public function, for tests of what holds for all of them."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from jacfuse_jax import (
    attacks,
    bounds,
    calibration,
    certificates,
    corruptions,
    detection,
    fusion,
    jacobians,
    linalg,
    metrics,
)
from jacfuse_jax.attacks import losses

_K, _H = 3, 4
_EPSILON = {"a": 0.1, "b": 0.2}
_VALID_RANGE = {"a": (-3.0, 3.0)}


def make_data(seed, batch_size=5):
    """Arrays of the same shapes for every seed, which compile nothing."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    kernels = {name: normal(_H, _K) for name in "ab"}
    data = types.SimpleNamespace(
        key=jax.random.key(seed),
        seed=seed,
        logits={name: normal(batch_size, _K) for name in "ab"},
        inputs={name: normal(batch_size, _H) for name in "ab"},
        labels=jnp.asarray(rng.permutation(np.arange(batch_size) % _K)),
        targets=jnp.asarray((np.arange(batch_size) + 1) % _K),
        prior=jnp.asarray(rng.dirichlet(np.full(_K, 9.0))),
        kernel=kernels["a"],
        grams={name: linalg.spectrum_from_kernel(kernel) for name, kernel in kernels.items()},
        matrices=[x @ x.mT for x in normal(3, batch_size, _K, _K)],
        jacobian=normal(batch_size, _K, _K),
        log_probs=jnp.asarray(np.log(rng.dirichlet(np.ones(_K), batch_size))),
        images=jnp.asarray(rng.uniform(size=(batch_size, 6, 5, 1))),
        audio=normal(batch_size, 12),
        share=float(rng.uniform(0.2, 0.8)),
        shares=rng.uniform(0.2, 0.8, size=(2, 3)),
        series=normal(batch_size, 7, 3),
    )
    data.detector = detector(data)
    return data


_KERNEL = jnp.asarray(np.random.default_rng(0).normal(size=(_H, _K)))


def log_prob_fn(inputs):
    return jax.nn.log_softmax(inputs["a"] @ _KERNEL + inputs["b"] @ _KERNEL)


def logits_fn(x):
    return jnp.tanh(x @ _KERNEL)


def linear_fn(x):
    return x @ _KERNEL


def attack(attack_fn, d, *arguments, **keywords):
    budget = {} if keywords.keys() & {"fraction", "epsilon"} else {"epsilon": _EPSILON}
    return attack_fn(log_prob_fn, d.inputs, d.labels, *arguments, **budget, **keywords)


def detector(d):
    return detection.fit_detector(d.logits, d.labels, d.prior)


_RANGE = (0.0, 1.0)
_WEIGHTS = (1.0, -0.5, 0.2, 0.0, 0.3, -0.1, 0.5)  # of a gate for three classes
CALLS = {
    attacks: {
        "adversarial_missing": lambda d: attack(
            attacks.adversarial_missing,
            d,
            d.key,
            fraction={"a": d.share},
            fill_value={"a": 0.0},
            num_steps=2,
        ),
        "apgd": lambda d: attack(
            attacks.apgd,
            d,
            d.key,
            epsilon={"a": d.log_probs[:, 0] ** 2, "b": 0.2},
            targets=d.targets,
            initial=d.inputs,
            num_steps=2,
        ),
        "fgm": lambda d: attack(attacks.fgm, d, valid_range=_VALID_RANGE),
        "hop_skip_jump": lambda d: attacks.hop_skip_jump(
            log_prob_fn,
            d.inputs,
            d.labels,
            d.key,
            epsilon={"a": 0.1},
            valid_range=_VALID_RANGE,
            num_iterations=1,
            num_draws=2,
            num_halvings=2,
            num_starts=2,
        ),
        "pgd": lambda d: attack(attacks.pgd, d, d.key, norm="l2", num_steps=2),
        "random_search": lambda d: attack(attacks.random_search, d, d.key, num_queries=2),
        "square": lambda d: attack(attacks.square, d, d.key, num_queries=3),
    },
    losses: {
        "cross_entropy": lambda d: losses.cross_entropy(d.log_probs, d.labels),
        "dlr": lambda d: losses.dlr(d.log_probs, d.labels),
        "margin": lambda d: losses.margin(d.log_probs, d.labels),
        "mask_label": lambda d: losses.mask_label(d.log_probs, d.labels),
        "targeted_dlr": lambda d: losses.targeted_dlr(
            jnp.tile(d.log_probs, (1, 2)), d.labels, d.targets
        ),
    },
    bounds: {
        "a_priori_bound": lambda d: bounds.a_priori_bound(d.share, _K),
        "bias_bound": lambda d: bounds.bias_bound(
            d.logits, d.grams, d.prior, perturbed="a", gamma=d.share
        ),
        "frozen_jacobian": lambda d: bounds.frozen_jacobian(
            d.logits, d.grams, d.prior, perturbed="a", gamma=d.share
        ),
        "jacobian_norms": lambda d: bounds.jacobian_norms({"a": d.jacobian}, d.grams),
        "spectral_norm": lambda d: bounds.spectral_norm(
            linear_fn, (_H,), d.key, num_iterations=50, dtype=jnp.float64
        ),
        "total_jacobian": lambda d: bounds.total_jacobian(
            d.logits, d.grams, d.prior, perturbed="a", gamma=d.share
        ),
    },
    calibration: {
        "choose_contamination": lambda d: calibration.choose_contamination(
            fusion.Cascade(d.share), d.logits, d.labels, d.prior, perturbed="a"
        ),
        "choose_gamma": lambda d: calibration.choose_gamma(
            fusion.ContaminatedRobust(d.share, 0.1),
            *(d.logits, d.labels, d.prior, d.key),
            perturbed="a",
            grams=d.grams,
        ),
        "fit_temperature": lambda d: calibration.fit_temperature(d.logits["a"], d.labels),
    },
    certificates: {
        "certified_accuracy": lambda d: certificates.certified_accuracy(
            fusion.Contaminated(d.shares[0]), d.logits, d.labels, d.prior, corrupted="a"
        ),
        "certified_radius": lambda d: [
            certificates.certified_radius(
                rule, d.logits, d.prior, corrupted="a", perturbed="a", grams=d.grams
            )
            for rule in (fusion.Contaminated(d.share), fusion.Robust(d.share))
        ],
        "certify_modality": lambda d: certificates.certify_modality(
            fusion.Cascade(0.9, contamination=d.share),
            *(d.logits, d.prior),
            corrupted="a",
            perturbed="a",
        ),
    },
    corruptions: {
        "bias": lambda d: corruptions.bias(d.key, d.images, offset=d.share),
        "brightness": lambda d: corruptions.brightness(
            d.images, offset=d.share, valid_range=_RANGE
        ),
        "clipping": lambda d: corruptions.clipping(d.audio, fraction=d.share),
        "contrast": lambda d: corruptions.contrast(d.images, factor=d.share),
        "dead_axis": lambda d: corruptions.dead_axis(d.key, d.series, fraction=d.share),
        "drift": lambda d: corruptions.drift(
            d.key, d.series, offset=d.share, stddev=d.shares[0], valid_range=_RANGE
        ),
        "dropouts": lambda d: corruptions.dropouts(d.key, d.series, fraction=d.share),
        "frequency_mask": lambda d: corruptions.frequency_mask(d.key, d.images, fraction=d.share),
        "gain": lambda d: corruptions.gain(d.audio, gain_db=d.share),
        "gaussian_blur": lambda d: corruptions.gaussian_blur(d.images, stddev=d.share, radius=2),
        "gaussian_noise": lambda d: corruptions.gaussian_noise(d.key, d.audio, stddev=d.share),
        "impulse_noise": lambda d: corruptions.impulse_noise(
            d.key, d.images, fraction=d.share, valid_range=_RANGE
        ),
        "mismatched_pair": lambda d: corruptions.mismatched_pair(d.key, d.images, fraction=d.share),
        "missing": lambda d: corruptions.missing(d.key, d.images, fraction=d.share),
        "missing_modality": lambda d: corruptions.missing_modality(
            d.key, d.images, fraction=d.share
        ),
        "occlusion": lambda d: corruptions.occlusion(d.key, d.images, fraction=d.share),
        "pink_noise": lambda d: corruptions.pink_noise(d.key, d.audio, snr_db=d.share),
        "rotation": lambda d: corruptions.rotation(d.key, d.series, angle_degrees=99 * d.share),
        "saturation": lambda d: corruptions.saturation(
            d.series, limit=d.share, mean=d.shares[0], stddev=d.shares[1]
        ),
        "shot_noise": lambda d: corruptions.shot_noise(
            d.key, d.images, photons=9 * d.share, valid_range=_RANGE
        ),
        "stuck_value": lambda d: corruptions.stuck_value(d.key, d.series, fraction=d.share),
        "time_mask": lambda d: corruptions.time_mask(d.key, d.audio, fraction=d.share),
        "white_noise": lambda d: corruptions.white_noise(d.key, d.audio, snr_db=d.share),
    },
    detection: {
        "detect": lambda d: detection.detect(d.logits, d.detector, d.prior, prevalence=d.share),
        "detected_fusion": lambda d: detection.detected_fusion(
            fusion.Robust(d.share), d.logits, d.detector, d.prior, grams=d.grams
        ),
        "fit_detector": detector,
    },
    fusion: {
        "cascade_fusion": lambda d: fusion.cascade_fusion(
            d.logits, d.prior, perturbed="a", confidence=d.share, contamination=0.1
        ),
        "contaminate_modalities": lambda d: fusion.contaminate_modalities(
            d.logits, d.prior, contamination=d.share, perturbed="a"
        ),
        "contaminated_fusion": lambda d: fusion.contaminated_fusion(
            d.logits, d.prior, contamination=d.share
        ),
        "contaminated_log_probs": lambda d: fusion.contaminated_log_probs(
            d.logits["a"], d.prior, contamination=d.share
        ),
        "fuse": lambda d: fusion.fuse(
            fusion.Robust(d.share), d.logits, d.prior, perturbed="a", grams=d.grams
        ),
        "learned_cascade_fusion": lambda d: fusion.learned_cascade_fusion(
            d.logits, d.prior, perturbed="a", share=d.share, gate=fusion.Gate(_WEIGHTS, _WEIGHTS)
        ),
        "max_fusion": lambda d: fusion.max_fusion(d.logits),
        "mean_fusion": lambda d: fusion.mean_fusion(d.logits),
        "product_fusion": lambda d: fusion.product_fusion(d.logits),
        "robust_fusion": lambda d: fusion.robust_fusion(
            d.logits, d.grams, d.prior, perturbed="a", gamma=d.share
        ),
        "scaled_fusion": lambda d: fusion.scaled_fusion(
            d.logits, d.prior, perturbed="a", scale=d.share
        ),
        "statistical_fusion": lambda d: fusion.statistical_fusion(d.logits, d.prior),
    },
    jacobians: {
        "fused_jacobian": lambda d: jacobians.fused_jacobian(
            jnp.exp(d.log_probs), d.jacobian, d.kernel
        ),
        "gram_from_head": lambda d: jacobians.gram_from_head(d.kernel),
        "gram_from_jacobian": lambda d: jacobians.gram_from_jacobian(d.jacobian),
        "per_sample_jacobian": lambda d: jacobians.per_sample_jacobian(logits_fn, d.inputs["a"]),
        "softmax_jacobian": lambda d: jacobians.softmax_jacobian(jnp.exp(d.log_probs)),
    },
    linalg: {
        "gram_spectrum": lambda d: linalg.gram_spectrum(d.matrices[0]),
        "recalibrate": lambda d: linalg.recalibrate(
            d.logits["a"], jnp.exp(d.log_probs), d.grams["a"], d.share, batch_size=2
        ),
        "recalibration_matrix": lambda d: linalg.recalibration_matrix(
            jnp.exp(d.log_probs), d.grams["a"], d.share, batch_size=2
        ),
        "schur": lambda d: linalg.schur(d.jacobian),
        "solve_generalized": lambda d: linalg.solve_generalized(*d.matrices, method="eigh"),
        "solve_sylvester": lambda d: linalg.solve_sylvester(*d.matrices),
        "spectrum_from_kernel": lambda d: linalg.spectrum_from_kernel(d.kernel),
    },
    metrics: {
        "bootstrap_interval": lambda d: metrics.bootstrap_interval(d.shares[0], d.seed),
        "classification_sums": lambda d: metrics.classification_sums(d.log_probs, d.labels),
        "effective_curve_area": lambda d: metrics.effective_curve_area(np.arange(3), *d.shares),
        "effective_robustness": lambda d: metrics.effective_robustness(
            d.shares[0], d.shares[1], metrics.make_baseline_fn(*d.shares)
        ),
        "expected_calibration_error": lambda d: metrics.expected_calibration_error(*d.shares),
        "finalise": lambda d: metrics.finalise(metrics.classification_sums(d.log_probs, d.labels)),
        "hypervolume": lambda d: metrics.hypervolume(*d.shares),
        "make_baseline_fn": lambda d: metrics.make_baseline_fn(*d.shares)(d.shares),
        "mean_corruption_error": lambda d: metrics.mean_corruption_error(d.shares, d.shares),
        "paired_bootstrap_interval": lambda d: metrics.paired_bootstrap_interval(
            d.shares[0], d.shares[1], d.seed
        ),
        "pareto_front": lambda d: metrics.pareto_front(*d.shares),
        "relative_mean_corruption_error": lambda d: metrics.relative_mean_corruption_error(
            d.shares, d.shares, 0.1, 0.1
        ),
        "relative_robustness": lambda d: metrics.relative_robustness(*d.shares),
        "robustness_curve_area": lambda d: metrics.robustness_curve_area(np.arange(3), d.shares[0]),
        "wilson_interval": lambda d: metrics.wilson_interval(d.share, 1.0),
    },
}
