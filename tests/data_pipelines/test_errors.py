import pickle

import pytest

from data_pipelines.errors import DataError, MediaError, with_flag

OF_ARGUMENT = DataError("num_workers=0: choose at least 1", "num_workers")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OF_ARGUMENT, "--num_workers=0: choose at least 1"),
        (DataError("a.zip: not a zip archive"), "a.zip: not a zip archive"),
        (MediaError("a.mp4: truncated"), "a.mp4: truncated"),
        (OSError("no space left"), "no space left"),
    ],
)
def test_an_argument_becomes_a_flag_and_other_messages_stay(
    error: Exception, expected: str
) -> None:
    assert with_flag(error) == expected


def test_an_error_of_a_worker_process_still_has_its_argument() -> None:
    arrived = pickle.loads(pickle.dumps(OF_ARGUMENT))
    assert (str(arrived), arrived.argument) == (str(OF_ARGUMENT), "num_workers")
