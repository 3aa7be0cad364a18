"""What we have wrk do, and how its figures are read."""

import pytest

from benchmarks.http_client import Request, WrongAnswer
from benchmarks.protocol import poll_v2
from benchmarks.wrk import MARK, Load, Result, script

PRINTED = f"""\
Running 1s test @ http://127.0.0.1:8470/gitops/info/refs?service=git-upload-pack
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     5.14ms    1.20ms  21.03ms   90.12%
    Req/Sec    12.29k   814.22    13.61k    81.82%
  13402 requests in 1.10s, 13.77MB read
Requests/sec:  12193.76
Transfer/sec:     12.53MB

{MARK}{{"requests":13402,"bytes":14438912,"microseconds":1099087,"p50":4823,"p99":8880,"errors":0}}
"""


def test_figures_come_from_the_line_of_our_own_script() -> None:
    result = Result.parse(PRINTED)
    assert (result.requests, result.bytes, result.errors) == (13402, 14438912, 0)
    assert (result.p50_ms, result.p99_ms) == (4.823, 8.88)
    assert result.side().rate == pytest.approx(13402 / 1.099087)


def test_a_run_that_broke_off_tells_what_wrk_said() -> None:
    with pytest.raises(WrongAnswer, match="Connection refused"):
        Result.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_body_reaches_lua_byte_by_byte() -> None:
    text = script(Request("/x", "POST", (("A", '"'),), b'\n\x00"9'), Load(1))
    assert r'wrk.body = "\010\000\034\057"' in text
    assert r'wrk.headers["\065"] = "\034"' in text


def test_only_a_load_of_new_connections_closes_them() -> None:
    def header(load: Load) -> bool:
        name = "".join(f"\\{byte:03d}" for byte in b"Connection")
        return name in script(poll_v2("/x"), load)

    assert header(Load(64, is_closing=True))
    assert not header(Load(64))


def test_clients_pause_when_they_are_told_to() -> None:
    assert "math.random(5, 15)" in script(poll_v2("/x"), Load(16, pause_ms=(5, 15)))
    assert "function delay" not in script(poll_v2("/x"), Load(16))
