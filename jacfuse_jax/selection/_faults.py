"""What becomes of a modality that fails, as far as its predictions show it; no attack is run.

    silent      it is missing
    random      it says what it says of another row
    frozen      it says the same of all rows, what it says of one of them
    swapped     its rows are exchanged within their fold
    saturated   it is sure of a wrong class: 20 are added to its logit, of the class that hurts most

Random and swapped ones are drawn five times, frozen ones for twenty rows. Of more than fifty wrong
classes the fifty are tried that statistical fusion finds likeliest. Whether a row has a modality
goes with what the modality says.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FAULTS = ("silent", "random", "frozen", "swapped", "saturated")
_NUM_DRAWS = 5
_NUM_FROZEN = 20
_MOST_WRONG = 50  # classes
_NOTHING = -1  # no class is raised
RAISED_BY = 20.0


class Variants(NamedTuple):
    """D ways in which a modality fails in N rows, the first of which is none.

    Attributes:
      names: (D,), "clean", or of `FAULTS`.
      source: (D, N), int32, the row whose prediction stands in each row.
      is_there: (D,), whether there is any.
      raised: (D, N), int32, the class whose logit is raised, or -1 for none.
    """

    names: NDArray[np.str_]
    source: NDArray[np.int32]
    is_there: NDArray[np.bool_]
    raised: NDArray[np.int32]


def draw_variants(
    labels: NDArray[np.int32], ranked: NDArray[np.intp], folds: NDArray[np.intp], seed: int
) -> Variants:
    """Draws faults.

    Args:
      labels: (N,).
      ranked: (N, K), classes, the likeliest by statistical fusion first.
      folds: (N,), of the rows that are swapped.
      seed: not negative.
    """
    num_rows, num_classes = ranked.shape
    rng = np.random.default_rng(seed)
    rows = np.arange(num_rows)

    def exchange(members: NDArray[np.intp]) -> NDArray[np.intp]:
        """Another one for each of them, if there is one."""
        order = rng.permutation(members)
        source = rows.copy()
        source[order] = np.roll(order, 1)
        return source

    def swap() -> NDArray[np.intp]:
        source = rows.copy()
        for fold in np.unique(folds):
            members = np.flatnonzero(folds == fold)
            source[members] = exchange(members)[members]
        return source

    frozen = rng.permutation(num_rows)[:_NUM_FROZEN]
    is_wrong = ranked != labels[:, None]
    wrong = ranked[is_wrong].reshape(num_rows, num_classes - 1)[:, :_MOST_WRONG].T
    sources = {
        "clean": rows[None],
        "silent": rows[None],
        "random": np.stack([exchange(rows) for _ in range(_NUM_DRAWS)]),
        "frozen": np.broadcast_to(frozen[:, None], (len(frozen), num_rows)),
        "swapped": np.stack([swap() for _ in range(_NUM_DRAWS)]),
        "saturated": np.broadcast_to(rows, wrong.shape),
    }
    names = np.repeat([*sources], [len(source) for source in sources.values()])
    raised = np.full((len(names), num_rows), _NOTHING, np.int32)
    raised[names == "saturated"] = wrong
    source = np.concatenate([*sources.values()]).astype(np.int32)
    return Variants(names, source, names != "silent", raised)
