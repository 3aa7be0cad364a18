"""The docstring of each package is a map of it.

What is in `mirror` itself, the import contract in pyproject.toml holds to be named there.
"""

import ast
import re
from pathlib import Path

import pytest

import mirror

ROOT = Path(mirror.__file__).parent
PACKAGES = sorted(one.parent for one in ROOT.glob("*/**/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda one: str(one.relative_to(ROOT.parent)))
def test_a_package_says_where_everything_in_it_is(package: Path) -> None:
    words = set(re.findall(r"\w+", ast.get_docstring(ast.parse(_source(package))) or ""))
    modules = {one.stem for one in package.glob("*.py")} - {"__init__", "__main__"}
    packages = {one.parent.name for one in package.glob("*/__init__.py")}
    assert (modules | packages) - words == set()


def _source(package: Path) -> str:
    return (package / "__init__.py").read_text()
