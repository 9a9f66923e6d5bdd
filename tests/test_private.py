"""Packages that re-export their public names have no public module beside them."""

import ast
import importlib
import pkgutil
import types
from pathlib import Path

import pytest

import jacfuse_jax
from tests import draw_imports

PACKAGES = (
    "attacks",
    "bounds",
    "certificates",
    "corruptions",
    "fusion",
    "linalg",
    "metrics",
    "models",
    "selection",
    "sklearn",
    "torch",
    "training",
)
# Packages whose modules are public, and imported by name.
OF_PUBLIC_MODULES = {"evaluation", "predictions", "programs"}
PUBLIC_MODULES = {"attacks": {"losses"}}


def import_package(name):
    return importlib.import_module(f"jacfuse_jax.{name}")


def test_every_package_is_of_one_kind_or_the_other():
    found = {module.name for module in pkgutil.iter_modules(jacfuse_jax.__path__) if module.ispkg}
    assert found - OF_PUBLIC_MODULES == {*PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_modules_are_private(name):
    modules = {module.name for module in pkgutil.iter_modules(import_package(name).__path__)}
    public = {module for module in modules if not module.startswith("_")}
    assert public == PUBLIC_MODULES.get(name, set())


@pytest.mark.parametrize("name", PACKAGES)
def test_a_public_name_is_that_of_a_module_only_where_it_is_meant(name):
    package = import_package(name)
    modules = {
        public
        for public in package.__all__
        if isinstance(getattr(package, public), types.ModuleType)
    }
    assert modules == PUBLIC_MODULES.get(name, set())


@pytest.mark.parametrize(
    "name", ["linalg.schur", "attacks.apgd", "attacks.square", "attacks.hop_skip_jump"]
)
def test_the_name_of_a_function_is_not_that_of_a_module_too(name):
    package, _, function = name.partition(".")
    assert callable(getattr(import_package(package), function))
    with pytest.raises(ModuleNotFoundError, match=name):
        import_package(name)


@pytest.mark.parametrize("name", ["experiments", "data_pipelines"])
def test_other_packages_import_nothing_private_of_the_library(name):
    sources = sorted((Path(__file__).parents[1] / name).rglob("*.py"))
    assert sources
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jacfuse_jax"):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                private = [p for p in parts if p.startswith("_") and p != "__main__"]
                assert not private, (source, private)


def test_the_picture_of_the_imports_is_that_of_the_code(capsys):
    draw_imports.main()
    drawn = (Path(__file__).parents[1] / "docs" / "imports.md").read_text()
    assert capsys.readouterr().out == drawn, "make imports"
