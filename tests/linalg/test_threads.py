"""Two threads that solve large batches at a time: jaxlib 0.10.x and 0.11.0 hang on this.

They can deadlock on CPU in programs with two independent LAPACK calls, such as the
eigendecompositions of coefficients of two shapes. The work is done in a process of its own, which
can be stopped when it hangs.
"""

import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jacfuse_jax.linalg import schur, solve_generalized, solve_sylvester

ROOT = Path(__file__).parents[2]
BATCH_SIZE = 2_000
NUM_ROUNDS = 25
TIMEOUT_S = 180  # ten times what it takes


@pytest.mark.slow
@pytest.mark.cpu_only("it is LAPACK's calls that can wait for each other")
def test_two_threads_finish():
    command = [sys.executable, "-m", "tests.linalg.test_threads"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=TIMEOUT_S)


def main():
    rng = np.random.default_rng(0)

    def positive(n):
        factors = rng.normal(size=(BATCH_SIZE, n, n)).astype(np.float32)
        return factors @ factors.swapaxes(-1, -2) + np.eye(n, dtype=np.float32)

    a, b, other = positive(10), positive(8), positive(10)
    c, square = (rng.normal(size=(BATCH_SIZE, 10, n)).astype(np.float32) for n in (8, 10))
    solves = [
        lambda: solve_sylvester(a, b, c, method="eigh"),
        lambda: solve_generalized(a, other, square, method="eigh"),
        lambda: solve_sylvester(a, b, c, method="bartels_stewart"),
        lambda: schur(square)[0],
    ]
    expected = [np.asarray(solve()) for solve in solves]
    outcomes = []

    def work(first):
        """All solves in turn, each thread from another one on."""
        for k in range(NUM_ROUNDS * len(solves)):
            which = (first + k) % len(solves)
            out = jax.block_until_ready(solves[which]())
            outcomes.append(np.array_equal(out, expected[which]))

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2 * NUM_ROUNDS * len(solves)
    assert all(outcomes)


if __name__ == "__main__":
    main()
