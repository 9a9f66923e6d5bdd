import pytest
from matplotlib.figure import Figure


@pytest.fixture
def kept_figures(monkeypatch):
    """The figures that are written."""
    figures, save = list[Figure](), Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
