"""docs/wiring.md and the files it is about name one another."""

import re

from tests.wiring.pasted import CONFIG, files

GUIDE = (CONFIG.parent / "docs" / "wiring.md").read_text()


def test_the_guide_names_every_file_and_none_that_is_not_there() -> None:
    assert [file.name for file in files() if file.name not in GUIDE] == []
    named = set(re.findall(r"\bconfig/[a-z-]+/[a-z.-]+\.ya?ml|\bconfig/[a-z-]+\.yaml", GUIDE))
    assert len(named) > 5
    assert [name for name in named if not (CONFIG.parent / name).is_file()] == []
