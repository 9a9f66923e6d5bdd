"""Limits of the device that `.ci/accelerator` ran on, and what share of them was reached."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Card(NamedTuple):
    """Limits of a device, floating-point operations and bytes a second.

    Attributes:
      float32: without tensor cores.
      float64: without tensor cores; None where it is not known.
      bandwidth: of its memory.
      source: of these figures.
    """

    float32: float
    float64: float | None
    bandwidth: float
    source: str


# Data sheets of the vendor, without tensor cores, by the name that JAX gives.
_CARDS = {
    "NVIDIA H100 80GB HBM3": Card(66.9e12, 33.5e12, 3.35e12, "data sheet"),
    "NVIDIA H100 PCIe": Card(51.2e12, 25.6e12, 2.0e12, "data sheet"),
    "NVIDIA H200": Card(66.9e12, 33.5e12, 4.8e12, "data sheet"),
    "NVIDIA A100-SXM4-80GB": Card(19.5e12, 9.7e12, 2.039e12, "data sheet"),
    "NVIDIA A100-SXM4-40GB": Card(19.5e12, 9.7e12, 1.555e12, "data sheet"),
}


def card_of(rows: Sequence[Mapping[str, Any]]) -> Card | None:
    """Limits of the device of the rows: of its data sheet, or as measured here.

    Args:
      rows: of all steps, with the rates of the yardsticks; see `accelerator.collect`.
    """
    if not rows:
        return None
    flop_per_s, bytes_per_s = _measured_ceilings(rows)
    measured = Card(flop_per_s, None, bytes_per_s, "measured here: matrix product and copy")
    return _CARDS.get(rows[0]["device"], measured)


def describe_ceilings(rows: Sequence[Mapping[str, Any]], card: Card | None) -> dict[str, Any]:
    """Limits in units for reading; empty where no benchmark got as far as its yardsticks.

    Args:
      rows: see `card_of`.
      card: of their device.
    """
    if card is None:
        return {}
    flop_per_s, bytes_per_s = _measured_ceilings(rows)
    return {
        "measured_tflop_per_s": flop_per_s / 1e12,
        "measured_gb_per_s": bytes_per_s / 1e9,
        "float32_tflop_per_s": card.float32 / 1e12,
        "float64_tflop_per_s": None if card.float64 is None else card.float64 / 1e12,
        "gb_per_s": card.bandwidth / 1e9,
        "shares_are_of": card.source,
    }


def with_shares(row: dict[str, Any], card: Card | None) -> dict[str, Any]:
    """The row with its operations a sample and its shares of the limits.

    Args:
      row: measured or not, then it stays as it is.
      card: of its device.
    """
    if row["median_s"] is None or card is None:
        return row
    peak = {"float32": card.float32, "float64": card.float64}[row["dtype"]]
    shares: dict[str, Any] = {"share_of_bandwidth": row["gb_per_s"] * 1e9 / card.bandwidth}
    for flops, rate, share in (
        ("nominal_flops", row["gflop_per_s"], "share_of_peak"),
        ("executed_flops", row["executed_gflop_per_s"], "executed_share_of_peak"),
    ):
        known = rate is not None
        shares[flops] = round(rate * 1e9 * row["median_s"] / row["batch_size"]) if known else None
        shares[share] = rate * 1e9 / peak if known and peak is not None else None
    return {**row, **shares}


def _measured_ceilings(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The best rates of any step, since each measures them again."""
    return (
        max(row["yardstick_gflop_per_s"] for row in rows) * 1e9,
        max(row["yardstick_gb_per_s"] for row in rows) * 1e9,
    )
