"""Names of attacks and corruptions."""

APGD_ENSEMBLE = "apgd_ensemble"
"""APGD on the margin, then, of what is nearly lost, towards every wrong class; and the modalities'
own classifiers are driven towards every class."""
LINF_ATTACKS = (
    *("fgm", "pgd", "apgd", "apgd_ce", "apgd_dlr", "apgd_targeted", APGD_ENSEMBLE),
    *("square", "random_search", "hop_skip_jump"),
)
"""Attacks that share their budgets, so that the worst of them is one figure."""
L2_ATTACKS = ("pgd_l2", "apgd_l2")
L0_ATTACKS = ("adversarial_missing",)
ATTACKS = (*LINF_ATTACKS, *L2_ATTACKS, *L0_ATTACKS)
ANY_CORRUPTIONS = ("gaussian_noise", "missing", "bias", "missing_modality", "mismatched_pair")
IMAGE_CORRUPTIONS = (
    *("shot_noise", "impulse_noise", "gaussian_blur", "occlusion", "contrast", "brightness"),
)
# Not gain and clipping: entries of the spectrograms are levels, of which gain is a bias.
AUDIO_CORRUPTIONS = ("white_noise", "pink_noise", "time_mask", "frequency_mask")
SERIES_CORRUPTIONS = (*("rotation", "dead_axis", "stuck_value", "saturation", "drift", "dropouts"),)
CORRUPTIONS = (*ANY_CORRUPTIONS, *IMAGE_CORRUPTIONS, *AUDIO_CORRUPTIONS, *SERIES_CORRUPTIONS)
PERTURBATIONS = ("clean", *CORRUPTIONS, *ATTACKS)
