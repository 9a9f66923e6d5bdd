"""What is known of the data sets before they are read, without the libraries that read them."""

from data_pipelines.errors import DataError

KINDS: dict[str, dict[str, str]] = {
    "digits": {"upper": "image", "lower": "image"},
    "av_mnist": {"image": "image", "audio": "spectrogram"},
    "ravdess": {"video": "video", "audio": "spectrogram"},
    "vggsound": {"video": "video", "audio": "spectrogram"},
}
"""Of every data set but `ARRAYS` {modality: what its rows are}, whatever the modality is called:

"image", (height, width, 1); "video", (frames, height, width, 3); "spectrogram", (frequencies from
low to high, times, 1); "series", (times, channels); or "vector", (features,).
"""

MODALITIES: dict[str, tuple[str, ...]] = {name: tuple(kinds) for name, kinds in KINDS.items()}
"""Names of the modalities of these data sets."""

CONFIGS: dict[str, tuple[str, ...]] = {"av_mnist": ("noisy", "balanced", "clean")}
"""Of data sets that there are several of {data set: names of its configs, the default first}."""

ARRAYS = "arrays"
"""Arrays of one's own: their modalities and kinds are those of `arrays.peek`."""

NAMES: tuple[str, ...] = (
    *(
        full_name
        for name in KINDS
        for full_name in (name, *(f"{name}/{config}" for config in CONFIGS.get(name, ())))
    ),
    ARRAYS,
)
"""All that `datasets.load` takes: "av_mnist", "av_mnist/balanced", ..."""

NUM_FOLDS = 6
"""Of RAVDESS, see `ravdess.split_actors`."""


def base_name(name: str) -> str:
    """Returns a key of `KINDS`, or `ARRAYS`, that a name has: "av_mnist" of "av_mnist/clean".

    Args:
      name: one of `NAMES`.
    """
    return name.partition("/")[0]


def full_name(name: str) -> str:
    """Returns a name with the config that it chooses: "av_mnist/noisy" of "av_mnist".

    Args:
      name: one of `NAMES`.
    """
    config = config_name(name)
    return base_name(name) if config is None else f"{base_name(name)}/{config}"


def config_name(name: str) -> str | None:
    """Returns the config that a name chooses: "clean" of "av_mnist/clean", else the default.

    Args:
      name: one of `NAMES`.

    Returns:
      One of `CONFIGS`, or None where there are none.

    Raises:
      DataError: no such data set or config.
    """
    base, slash, config = name.partition("/")
    if base not in NAMES:
        known = ", ".join((*KINDS, ARRAYS))
        raise DataError(f"name={name!r}: unknown; choose from {known}")
    configs = CONFIGS.get(base)
    if configs is None:
        if slash:
            raise DataError(f"name={name!r}: {base} has no configs; choose {base!r}")
        return None
    if slash and config not in configs:
        choices = ", ".join(f"{base}/{choice}" for choice in configs)
        raise DataError(f"name={name!r}: no such config; choose from {choices}")
    return config or configs[0]
