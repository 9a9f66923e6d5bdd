"""Prints the picture of the imports (`make imports`): an arrow from a package to what it uses."""

import grimp

HEAD = """# Who imports whom

Made by `make imports` from the code; `make lint` fails where an arrow would go up. Modules that
start with an underscore hold what the others share, and are left out.
"""


def draw(package: str) -> str:
    """A Mermaid flowchart of the modules right below a package.

    Args:
      package: that is drawn.
    """
    graph = grimp.build_graph(package)
    modules = sorted(
        name for name in graph.find_children(package) if not name.rpartition(".")[2].startswith("_")
    )
    arrows = [
        f"    {a.rpartition('.')[2]} --> {b.rpartition('.')[2]}"
        for a in modules
        for b in modules
        if a != b and graph.direct_import_exists(importer=a, imported=b, as_packages=True)
    ]
    return "\n".join([f"## {package}", "", "```mermaid", "flowchart TD", *arrows, "```"])


def main() -> None:
    """Prints all of it."""
    packages = ("jacfuse_jax", "experiments", "data_pipelines")
    print("\n\n".join([HEAD.rstrip(), *map(draw, packages)]))


if __name__ == "__main__":
    main()
