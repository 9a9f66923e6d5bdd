import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.av_mnist.energy import fit_subspace, project
from data_pipelines.av_mnist.spectrogram import log_spectrogram, pixel_values
from tests.data_pipelines.raw_files import images_of, labels_of, tone


def _rows(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), 784) / 255


@pytest.mark.parametrize("num_images", [60, 900])
def test_projection_is_that_of_the_fewest_components_with_a_quarter_of_the_energy(
    num_images: int,
) -> None:
    images = images_of(labels_of(num_images))
    train, other = images[:-20], images[-20:]

    subspace = fit_subspace(train)

    mean = _rows(train).mean(0)
    _, singular_values, components = np.linalg.svd(_rows(train) - mean, full_matrices=False)
    energy = np.cumsum(singular_values**2) / np.sum(singular_values**2)
    rank = np.argmax(energy >= 0.25) + 1
    assert subspace.n_components_ == rank > 1
    projector = components[:rank].T @ components[:rank]
    for part in (train, other):
        expected = mean + (_rows(part) - mean) @ projector
        actual = project(subspace, part)
        assert actual.dtype == np.float32
        assert actual.shape == (len(part), 28, 28, 1)
        np.testing.assert_allclose(actual.reshape(-1, 784), expected, atol=1e-6)
    np.testing.assert_allclose(project(subspace, train).mean(0).ravel(), mean, atol=1e-6)


@pytest.mark.parametrize("frequency_bin", [3, 20, 55, 108])
def test_a_pure_tone_peaks_in_its_own_bin(frequency_bin: int) -> None:
    picture = log_spectrogram(tone(frequency_bin * 8000 / 222, num_samples=8103))

    assert picture.shape == (112, 112)
    assert picture.dtype == np.uint8
    assert (picture.argmax(axis=0) == frequency_bin).all()
    assert (picture[frequency_bin] == 255).all()


@pytest.mark.parametrize("num_samples", [1, 222, 3500, 8103, 18262])
def test_spectrogram_agrees_with_its_definition_on_the_centred_recording(num_samples: int) -> None:
    waveform = np.random.default_rng(0).normal(size=num_samples) * tone(900, num_samples) + 0.1
    before = max((8103 - num_samples) // 2, 0)
    after = max(8103 - num_samples - before, 0)
    skipped = max((num_samples - 8103) // 2, 0)
    centred = np.pad(waveform, (before, after))[skipped : skipped + 8103]
    window = np.hanning(223)[:-1]
    dft = np.exp(-2j * np.pi / 222 * np.outer(np.arange(112), np.arange(222)))
    frames = np.stack(
        [np.abs(dft @ (window * centred[s : s + 222])) for s in range(0, 7882, 71)], axis=1
    )
    level_db = 20 * np.log10(np.maximum(frames / frames.max(), 1e-30))
    expected = 255 * (1 + np.clip(level_db, -80, None) / 80)

    actual = log_spectrogram(waveform)

    np.testing.assert_allclose(actual, expected, atol=0.5 + 1e-6)
    assert actual.max() == 255


def test_silence_is_black_and_loudness_does_not_matter() -> None:
    assert not log_spectrogram(np.zeros(500)).any()
    np.testing.assert_array_equal(log_spectrogram(tone(700)), log_spectrogram(tone(700) / 64))


def test_pixels_are_read_as_shares_of_255() -> None:
    pictures = np.arange(256, dtype=np.uint8).reshape(2, 128)

    values = pixel_values(pictures)

    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, (pictures / 255).astype(np.float32))
