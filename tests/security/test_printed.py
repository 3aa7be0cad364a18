"""What others wrote, where people read it: logs, the command line, answers."""

import json
import logging
import sys

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage
from rich.console import Console

from mirror import logs
from mirror.cli.running import fail
from mirror.cli.status import _plain
from mirror.errors import UpstreamUnavailable

HOSTILE = "a\x1b[2J\r\nINFO forged\x9b31m\u202e\x00\x07[red]b[/nothing]"


@pytest.mark.parametrize("json_lines", [True, False], ids=["json", "for a person"])
def test_no_text_of_a_peer_forges_a_line_or_moves_the_cursor(
    capsys: pytest.CaptureFixture[str], *, json_lines: bool
) -> None:
    logs.configure(json=json_lines, level="info")
    logger = structlog.stdlib.get_logger()
    logger.info("refused", path=HOSTILE, error=HOSTILE, raw=HOSTILE.encode())
    try:
        raise UpstreamUnavailable(HOSTILE)  # noqa: TRY301 - a traceback is what this is about
    except UpstreamUnavailable:
        logger.exception("broke", path=HOSTILE)
    logging.getLogger("aiohttp.server").error("by a library: %s", HOSTILE)
    printed = capsys.readouterr().err
    assert "forged" in printed
    assert not [one for one in printed if one != "\n" and not one.isprintable()]
    lines = printed.splitlines()
    if json_lines:
        assert [json.loads(line)["level"] for line in lines] == ["info", "error", "error"]
        assert json.loads(lines[0])["path"] == HOSTILE
    else:
        assert all(line.startswith(("20", "  | ")) for line in lines), lines


def test_an_error_on_the_command_line_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail(HOSTILE.replace("\n", " "))
    printed = capsys.readouterr().err
    assert not [one for one in printed.rstrip("\n") if not one.isprintable()]


def test_the_status_shows_an_upstreams_words_as_they_are() -> None:
    console = Console(file=sys.stderr, width=200, color_system=None)
    with console.capture() as captured:
        console.print(_plain(HOSTILE))
    assert r"\x1b[2J\r\nINFO forged\x9b31m\u202e\x00\x07[red]b[/nothing]" in captured.get()
    assert "\x1b[2J" not in captured.get()


def test_what_a_client_did_is_no_error_of_ours_and_all_else_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(json=True, level="info")
    library = logging.getLogger("aiohttp.server")
    for error in (BadHttpMessage("Basic cGFzc3dvcmQ"), ConnectionResetError(), ValueError("x")):
        library.error("Error handling request from %s", "10.0.0.1", exc_info=error)
    printed = capsys.readouterr().err
    assert "cGFzc3dvcmQ" not in printed
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("malformed_http", "info"),
        ("client_gone", "info"),
        ("Error handling request from 10.0.0.1", "error"),
    ]
