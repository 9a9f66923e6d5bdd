"""What is known of the data sets before they are read, without the libraries that read them."""

MODALITIES: dict[str, tuple[str, ...]] = {
    "digits": ("upper", "lower"),
    "av_mnist": ("image", "audio"),
    "ravdess": ("video", "audio"),
    "vggsound": ("video", "audio"),
}
"""Names of the modalities of every data set."""

NUM_FOLDS = 6
"""Of RAVDESS, see `ravdess.split_actors`."""
