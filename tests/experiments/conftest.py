import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def kept_figures(monkeypatch):
    """The figures that were written, still open."""
    figures, close = [], plt.close
    monkeypatch.setattr(plt, "close", figures.append)
    yield figures
    for figure in figures:
        close(figure)
