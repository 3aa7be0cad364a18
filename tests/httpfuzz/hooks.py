"""What schemathesis is told beside docs/openapi.yaml: how to sign, and what else has to hold.

It runs in an environment of its own (requirements/fuzz-http.lock), so nothing of this project can
be imported here. `FUZZED` in the environment has the rest, as JSON.
"""

import atexit
import hashlib
import hmac
import json
import os
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Final

import requests
import schemathesis

_FUZZED: Final = json.loads(os.environ["FUZZED"])
_SECRET: Final = _FUZZED["secret"].encode()
_SECRETS: Final = [one.encode() for one in _FUZZED["secrets"]]
_HIDDEN: Final = _FUZZED["hidden"].encode()
_TIMEOUT_SECONDS: Final = 30
_SPECIAL: Final = {b"0000\n": b"0000", b"0001\n": b"0001"}
_NOT_OF_THE_CASE: Final = {"X-Schemathesis-TestCaseId", "User-Agent"}
_TALLY: Counter[tuple[str, str]] = Counter()
"""How often each operation was asked, by what came of it."""

_OUTCOMES_AGAIN: Final = {
    # What a genuine delivery may be when it comes a second time.
    "accepted": {"repeated", "accepted"},
    "repeated": {"repeated", "accepted"},
}


class Signed:
    """Signs what is about to be sent: most rightly, some wrongly, some not at all.

    Which is which depends on the request alone, so that it is the same each time.
    """

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body = _bytes_of(request)
        path = requests.utils.urlparse(request.url).path
        asked = sorted(one for one in request.headers.items() if one[0] not in _NOT_OF_THE_CASE)
        lot = zlib.crc32(repr((request.url, asked, body)).encode()) % 10
        if path.startswith("/webhooks/"):
            if lot < 9:
                secret = _SECRET if lot < 8 else b"another secret"
                _sign(request, path.removeprefix("/webhooks/"), body, secret)
        elif "/private/" in path and lot < 7:
            request.headers["Authorization"] = f"Bearer {_FUZZED['token']}"
        return request


def _bytes_of(request: requests.PreparedRequest) -> bytes:
    body = request.body or b""
    return body.encode() if isinstance(body, str) else bytes(body)


def _sign(request: requests.PreparedRequest, forge: str, body: bytes, secret: bytes) -> None:
    digest = hmac.new(secret, body, hashlib.sha256).hexdigest()
    headers = {
        "github": ("X-Hub-Signature-256", f"sha256={digest}"),
        "gitlab": ("X-Gitlab-Token", secret.decode()),
        "gitea": ("X-Gitea-Signature", digest),
        "bitbucket": ("X-Hub-Signature", f"sha256={digest}"),
    }
    name, value = headers[forge]
    request.headers[name] = value


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Have the request signed."""
    del context, case
    kwargs["auth"] = Signed()


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count the request: an answer's status, or what became of a delivery that was taken."""
    del context
    came = str(response.status_code)
    if case.path.startswith("/webhooks/") and response.status_code in (200, 202):
        came = json.loads(response.content)["outcome"]
    _TALLY[f"{case.method} {case.path}", came] += 1


@atexit.register
def _keep_tally() -> None:
    told = [[asked, came, count] for (asked, came), count in sorted(_TALLY.items())]
    Path(_FUZZED["tally"]).write_text(json.dumps(told))


@schemathesis.serializer(
    "application/x-git-upload-pack-request", "application/x-git-receive-pack-request"
)
def packets(context: Any, value: Any) -> Any:
    """Return any text as a body, in pkt-lines where it is of lines.

    The lines `0000` and `0001` are those packets; without any, one flush-pkt is the end.
    """
    del context
    if isinstance(value, bytes):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    lines = text.encode("utf-8", "surrogatepass").splitlines(keepends=True)
    packets = [_SPECIAL.get(line, b"%04x%b" % (len(line) + 4, line)) for line in lines]
    return b"".join(packets if _SPECIAL.keys() & set(lines) else [*packets, b"0000"])


@schemathesis.check
def gives_nothing_away(context: Any, response: Any, case: Any) -> None:
    """No secret is in an answer, nor what is for readers in one for somebody else."""
    del context
    for secret in _SECRETS:
        assert secret not in response.content, "a secret in the answer"
    if _FUZZED["token"] not in str(response.request.headers):
        assert _HIDDEN not in response.content, f"for readers alone: {case.path}"


@schemathesis.check
def may_be_played_again(context: Any, response: Any, case: Any) -> None:
    """A delivery that was taken may come again: it is taken, and no more comes of it."""
    del context
    if not case.path.startswith("/webhooks/") or response.status_code not in (200, 202):
        return
    with requests.Session() as session:
        again = session.send(response.request, timeout=_TIMEOUT_SECONDS)
    assert again.status_code == response.status_code, f"again it is {again.status_code}"
    first, second = json.loads(response.content)["outcome"], again.json()["outcome"]
    assert second in _OUTCOMES_AGAIN.get(first, {first}), f"{first}, and then {second}"
