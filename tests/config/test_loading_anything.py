from hypothesis import given
from hypothesis import strategies as st

from mirror.config import Settings, parse
from mirror.errors import ConfigError
from tests.config.documents import SOURCE


def _loads_or_is_refused(content: bytes) -> None:
    try:
        settings = parse(content, source=SOURCE)
    except ConfigError as error:
        lines = str(error).split("\n")
        assert all(line.startswith(f"{SOURCE}:") for line in lines)
    else:
        assert isinstance(settings, Settings)


@given(st.binary(max_size=200))
def test_any_bytes_are_loaded_or_refused(content: bytes) -> None:
    _loads_or_is_refused(content)


YAML_PIECES = [
    *("repositories:", "defaults:", "server:", "limits:", "acme/app:", "upstream:", "refs:"),
    *("credentials:", "hold:", "<<:", "https://github.com/a", "30s", "never", "none", "null"),
    *("[", "]", "{", "}", ",", ": ", "- ", "? ", "\n", "\n  ", "\n    ", "\t", "#", "|\n", ">-\n"),
    *("&a ", "*a", "&b ", "*b", "!!binary ", "!x ", "'", '"', "\\ud800", "\\x00", "---\n", "...\n"),
    *("%YAML 1.1\n", "\u2028", "\x85", "\ufeff", "é", "~", "=", "@", "`"),
]


@given(st.lists(st.sampled_from(YAML_PIECES), max_size=30).map("".join))
def test_anything_like_yaml_is_loaded_or_refused(text: str) -> None:
    _loads_or_is_refused(text.encode())


_KEYS = [
    *("repositories", "defaults", "server", "limits", "log", "engine", "data_dir", "listen"),
    *("acme/app", "a.git", "upstream", "refs", "credentials", "username", "password_file"),
    *("hold", "poll_interval", "forge", "webhook_secret_file", "token", "[key]", ""),
]
_LEAVES = ["", "null", "30s", "0", "never", "none", "http://git.example/a", "git", "refs/heads/*"]


def _flow(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"'{key}': {_flow(entry)}" for key, entry in value.items()) + "}"
        case list():
            return "[" + ", ".join(_flow(entry) for entry in value) + "]"
        case _:
            return str(value) if value == "null" else f"'{value}'"


_TREES = st.recursive(
    st.sampled_from(_LEAVES),
    lambda inner: (
        st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5) | st.lists(inner, max_size=3)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(_KEYS), _TREES, max_size=6).map(_flow))
def test_any_shape_of_document_is_loaded_or_refused(text: str) -> None:
    _loads_or_is_refused(text.encode())
