"""What is known of the data sets before they are read, without the libraries that read them."""

KINDS: dict[str, dict[str, str]] = {
    "digits": {"upper": "image", "lower": "image"},
    "av_mnist": {"image": "image", "audio": "spectrogram"},
    "ravdess": {"video": "video", "audio": "spectrogram"},
    "vggsound": {"video": "video", "audio": "spectrogram"},
}
"""Of every data set {modality: what its rows are}, whatever the modality is called:

"image", (height, width, 1); "video", (frames, height, width, 3); "spectrogram", (frequencies from
low to high, times, 1); "series", (times, channels); or "vector", (features,).
"""

MODALITIES: dict[str, tuple[str, ...]] = {name: tuple(kinds) for name, kinds in KINDS.items()}
"""Names of the modalities of every data set."""

NUM_FOLDS = 6
"""Of RAVDESS, see `ravdess.split_actors`."""
