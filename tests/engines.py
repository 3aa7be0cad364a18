"""The engines that a test is run with.

`auto` hands each pack to one of the other two, so their tests speak for it, too; what is about the
choice itself, and whole services, have it always. `make test ARGS=--all-engines` runs all.
"""

from typing import Final

import pytest

AUTO: Final = pytest.param("auto", marks=pytest.mark.repetition)
PARAMS: Final = ("git", "dulwich", AUTO)
