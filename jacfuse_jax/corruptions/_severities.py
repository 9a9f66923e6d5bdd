"""The parameter of every corruption at severities 1 to 5."""

from collections.abc import Mapping
from typing import NamedTuple


class Grading(NamedTuple):
    """How a corruption is graded.

    Attributes:
      parameter: name of the keyword that carries the severity.
      unit: of the parameter.
      values: at severities 1 to 5, each strictly harsher than the one before: larger, or smaller
        where the parameter says what is left of the signal (photons, contrast, SNR, gain, peak,
        limit).
    """

    parameter: str
    unit: str
    values: tuple[float, float, float, float, float]


_INPUT = "units of the input"  # the values are meant for inputs whose range is about one
_SAMPLES = "share of samples"
_ENTRIES = "share of entries"
_STEPS = "share of time steps"
_STDDEVS = "training standard deviations"

SEVERITIES: Mapping[str, Grading] = {
    # Any input.
    "gaussian_noise": Grading("stddev", _INPUT, (0.1, 0.2, 0.4, 0.6, 0.8)),
    "missing": Grading("fraction", _ENTRIES, (0.1, 0.3, 0.5, 0.7, 0.9)),
    "bias": Grading("offset", _INPUT, (0.05, 0.1, 0.2, 0.3, 0.5)),
    "missing_modality": Grading("fraction", _SAMPLES, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "mismatched_pair": Grading("fraction", _SAMPLES, (0.2, 0.4, 0.6, 0.8, 1.0)),
    # Images. Shot and impulse noise, contrast and brightness as graded by Hendrycks and Dietterich,
    # "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019.
    "shot_noise": Grading("photons", "photons at full range", (60.0, 25.0, 12.0, 5.0, 3.0)),
    "impulse_noise": Grading("fraction", _ENTRIES, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": Grading("stddev", "pixels", (0.5, 1.0, 1.5, 2.0, 3.0)),
    "occlusion": Grading("fraction", "share of the area", (0.05, 0.1, 0.2, 0.35, 0.5)),
    "contrast": Grading("factor", "share of the contrast kept", (0.4, 0.3, 0.2, 0.1, 0.05)),
    "brightness": Grading("offset", _INPUT, (0.1, 0.2, 0.3, 0.4, 0.5)),
    # Audio.
    "white_noise": Grading("snr_db", "dB", (20.0, 10.0, 5.0, 0.0, -5.0)),
    "pink_noise": Grading("snr_db", "dB", (20.0, 10.0, 5.0, 0.0, -5.0)),
    "time_mask": Grading("fraction", _STEPS, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "frequency_mask": Grading("fraction", "share of frequencies", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "gain": Grading("gain_db", "dB", (-3.0, -6.0, -12.0, -18.0, -24.0)),
    "clipping": Grading("fraction", "share of the peak", (0.5, 0.3, 0.2, 0.1, 0.05)),
    # Series.
    "rotation": Grading("angle_degrees", "degrees", (15.0, 30.0, 60.0, 90.0, 180.0)),
    "dead_axis": Grading("fraction", "share of channels", (0.1, 0.3, 0.5, 0.7, 0.9)),
    "stuck_value": Grading("fraction", _STEPS, (0.1, 0.3, 0.5, 0.7, 0.9)),
    "saturation": Grading("limit", _STDDEVS, (2.0, 1.5, 1.0, 0.5, 0.25)),
    "drift": Grading("offset", _STDDEVS, (0.25, 0.5, 1.0, 2.0, 3.0)),
    "dropouts": Grading("fraction", _STEPS, (0.1, 0.3, 0.5, 0.7, 0.9)),
}

GAUSSIAN_NOISE_STDDEV = SEVERITIES["gaussian_noise"].values
MISSING_FRACTION = SEVERITIES["missing"].values
