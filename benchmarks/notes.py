"""Why a row is short of its target: printed below the table while it is, and only then."""

NOTES: dict[int, str] = {}
"""By row: what a profile showed, and what is tried next."""
