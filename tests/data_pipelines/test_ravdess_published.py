"""Real recordings of RAVDESS through its builder, in a folder that JACFUSE_TEST_DATA names."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from data_pipelines.media.audio import read_wav
from data_pipelines.ravdess import EMOTIONS, Ravdess, prepare
from data_pipelines.ravdess.clips import AUDIO_SHAPE
from tests.data_pipelines.media_files import (
    AUDIO_ZIP,
    VIDEO_ZIPS,
    grey_frames,
    mp4_bytes,
    tiny_ravdess_config,
    write_zips,
)
from tests.data_pipelines.real_arrays import (
    LOGITS,
    needs_real_arrays,
    read_npz,
    recordings,
    spectrogram,
)
from tests.data_pipelines.test_media_audio import mel_levels
from tests.real_data import real_data

pytestmark = needs_real_arrays
Columns = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def published() -> dict[str, bytes]:
    """{name: WAV file exactly as published}."""
    folder = real_data("ravdess/wav_sample")
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.wav"))}


@pytest.fixture(scope="module")
def raw(published: dict[str, bytes]) -> dict[str, bytes]:
    """{name: WAV file} of 48 recordings at 16 kHz, two an actor, and of the published ones."""
    names = [f"03-01-{a % 8 + 1:02}-01-0{s}-02-{a:02}" for a in range(1, 25) for s in (1, 2)]
    return dict(zip(names, recordings(names), strict=True)) | published


@pytest.fixture(scope="module")
def rows(raw: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Columns:
    """What the builder makes of them beside a video that is made up, the same for all."""
    video = mp4_bytes(frames=grey_frames([50] * 4, height=16, width=16))
    members: dict[str, dict[str, bytes]] = {name: {} for name in (AUDIO_ZIP, *VIDEO_ZIPS)}
    for name, wav in raw.items():
        members[AUDIO_ZIP][f"Actor_{name[-2:]}/{name}.wav"] = wav
        members[VIDEO_ZIPS[int(name[-2:]) - 1]][f"Actor_{name[-2:]}/01{name[2:]}.mp4"] = video
    data_dir = tmp_path_factory.mktemp("data")
    manual_dir = write_zips(tmp_path_factory.mktemp("raw"), members)
    prepare(data_dir, manual_dir, tiny_ravdess_config(), num_workers=1, progress=False)
    builder: Any = Ravdess(data_dir=data_dir, config=tiny_ravdess_config())
    source = builder.as_data_source("full")
    examples: list[dict[str, Any]] = [source[i] for i in range(len(source))]
    return {key: np.array([example[key] for example in examples]) for key in examples[0]}


def test_every_recording_is_a_row_that_its_name_describes(
    rows: Columns, raw: dict[str, bytes]
) -> None:
    names = [name.decode() for name in rows["name"]]
    assert names == sorted(raw)
    found = read_npz(LOGITS)  # by other people
    published = dict(zip(found["ids"].tolist(), found["labels"].tolist(), strict=True))
    assert rows["label"].tolist() == [published["01" + name[2:]] for name in names]
    assert set(rows["label"]) == set(range(len(EMOTIONS)))
    assert rows["actor"].tolist() == [int(name[-2:]) for name in names]
    assert set(rows["actor"]) == set(range(1, 25))


def test_spectrograms_are_those_of_the_samples_in_the_middle(
    rows: Columns, raw: dict[str, bytes]
) -> None:
    assert rows["audio"].shape[1:] == AUDIO_SHAPE
    assert (rows["audio"].max(axis=(1, 2, 3)) == 255).all()
    for name, picture in zip(rows["name"], rows["audio"], strict=True):
        sound, rate_hz = soundfile.read(io.BytesIO(raw[name.decode()]))
        if rate_hz != 16_000:  # resampled: see below
            continue
        # Of an odd number of samples none is the middle: it may be taken on either side.
        errors = [
            np.abs(picture[..., 0] - mel_levels(np.pad(sound, padding), 64, 400)).max()
            for padding in ((0, 0), (0, len(sound) % 2))
        ]
        assert min(errors) < 0.6, name  # half a step for rounding, and a little for float32


def test_published_files_are_read_whole_with_their_metadata_skipped(
    published: dict[str, bytes],
) -> None:
    formats: set[tuple[int, int]] = set()
    for name, wav in published.items():
        sound, rate_hz = soundfile.read(io.BytesIO(wav), always_2d=True)
        num_other = len(wav) - 2 * sound.size
        assert (rate_hz, num_other > 40_000) == (48_000, True), name
        formats.add((len(sound), sound.shape[1]))
        actual = read_wav(io.BytesIO(wav), name, sample_rate_hz=16_000)
        expected = resample_poly(sound.mean(axis=1), 1, 3)
        assert len(actual) == len(expected)
        # Filters of two libraries differ next to 8 kHz alone.
        spectra = [np.fft.rfft(x)[: len(x) * 7 // 16] for x in (actual, expected)]
        difference = np.linalg.norm(spectra[0] - spectra[1])
        assert difference < 2e-3 * np.linalg.norm(spectra[1]), name
    assert {channels for _, channels in formats} == {1, 2}
    assert min(formats)[0] < 3 * 48_000
    assert max(formats)[0] > 5 * 48_000


def test_published_files_agree_with_what_others_resampled(published: dict[str, bytes]) -> None:
    for (name, wav), other in zip(published.items(), recordings([*published]), strict=True):
        actual = read_wav(io.BytesIO(wav), name, sample_rate_hz=16_000)
        expected = soundfile.read(io.BytesIO(other))[0]
        assert 0 <= len(actual) - len(expected) <= 1
        # They have been rounded, or cut off, to 16 bits.
        np.testing.assert_allclose(actual[: len(expected)], expected, rtol=0, atol=2**-16 + 1e-8)


def test_the_builder_and_arrays_share_their_spectrograms(
    rows: Columns, raw: dict[str, bytes]
) -> None:
    for name, picture in list(zip(rows["name"], rows["audio"], strict=True))[::9]:
        np.testing.assert_allclose(spectrogram(raw[name.decode()]), picture / 255, rtol=1e-6)
