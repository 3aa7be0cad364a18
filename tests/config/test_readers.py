"""Who may read, as it is written: what applies, and what is refused."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from mirror.config import AccessKind, check_files
from tests.certificates import Authority
from tests.config.documents import ONE_REPOSITORY, SOURCE, loaded, refused, repository

OPEN = 'server: {listen: "0.0.0.0:8470"}\n'
OIDC = """\
readers:
  oidc:
    flux-oslo:
      issuer: https://kubernetes.default.svc
      audience: git-mirror
      claims: {sub: "system:serviceaccount:flux-system:*"}
      ca_file: ca.pem
"""


def test_on_this_machine_alone_everybody_may_read_without_a_word() -> None:
    found = loaded(ONE_REPOSITORY).repositories["acme/app"]
    assert found.access == {AccessKind.ANONYMOUS}


@pytest.mark.parametrize("listen", ["0.0.0.0:8470", "[::]:8470", "10.20.0.5:8470", "mirror:8470"])
def test_where_others_come_it_must_be_said_who_may_read(listen: str) -> None:
    server = f'server: {{listen: "{listen}"}}\n'
    (mistake,) = refused(server + ONE_REPOSITORY)
    assert mistake.startswith("2: repositories.acme/app: who may read is not said")
    assert "access: [anonymous]" in mistake
    for said in ("anonymous", "readers", "upstream", "readers, upstream"):
        found = loaded(server + f"defaults: {{access: [{said}]}}\n" + ONE_REPOSITORY)
        assert found.repositories["acme/app"].access == {
            AccessKind(one) for one in said.split(", ")
        }


def test_a_repository_has_its_own_word() -> None:
    assert repository("access: [readers]", defaults="access: [anonymous]").access == {
        AccessKind.READERS
    }


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:0"])
def test_loopback_is_this_machine_alone(listen: str) -> None:
    found = loaded(f'server: {{listen: "{listen}"}}\n' + ONE_REPOSITORY)
    assert found.repositories["acme/app"].access == {AccessKind.ANONYMOUS}


def test_readers_and_tls_are_resolved() -> None:
    found = loaded(
        "server:\n"
        "  tls: {certificate_file: tls/tls.crt, key_file: /run/tls.key, client_ca_file: ca.pem}\n"
        "  trusted_proxies: [10.0.0.0/8, '::1']\n"
        + OIDC
        + "  certificates: {argocd: {subject: 'CN=argocd-*', repositories: [acme/*]}}\n"
        "  upstream_valid: 1m\n" + ONE_REPOSITORY
    )
    (oidc,), (certificate,) = found.readers.oidc, found.readers.certificates
    assert (oidc.name, oidc.repositories, oidc.jwks_url) == ("flux-oslo", ("*",), None)
    assert oidc.ca_file == SOURCE.parent / "ca.pem"
    assert (certificate.name, certificate.repositories) == ("argocd", ("acme/*",))
    assert found.readers.upstream_valid_seconds == 60
    assert found.tls is not None
    assert found.tls.pairs == ((SOURCE.parent / "tls/tls.crt", Path("/run/tls.key")),)
    assert found.server.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("defaults: {access: [everybody]}", "defaults.access[0]", "is not one of"),
        ("defaults: {access: anonymous}", "defaults.access", "must be a list, like `[readers]`"),
        ("server: {trusted_proxies: [10.0.0.1/8]}", "server.trusted_proxies[0]", "is no network"),
        (
            OIDC.replace("https", "http"),
            "readers.oidc.flux-oslo.issuer",
            "must begin with `https://`",
        ),
        (
            OIDC.replace('{sub: "system:serviceaccount:flux-system:*"}', "{}"),
            "readers.oidc.flux-oslo.claims",
            "from 1 to 16 claims",
        ),
        (OIDC.replace("audience", "audiences"), "readers.oidc.flux-oslo.audiences", "did you mean"),
        (
            OIDC + "      repositories: [other/*]",
            "readers.oidc.flux-oslo.repositories",
            "names none of the `repositories`",
        ),
        (
            "readers: {certificates: {argocd: {subject: CN=x}}}",
            "readers.certificates",
            "set `server.tls.client_ca_file`",
        ),
        (
            "server: {tls: {certificate_file: a, key_file: b, other_key_file: c}}",
            "server.tls.other_key_file",
            "goes with `other_certificate_file`",
        ),
        ("server: {tls: {certificate_file: a}}", "server.tls.key_file", "the key is missing"),
    ],
)
def test_a_mistake_is_told_where_it_is(text: str, place: str, words: str) -> None:
    mistakes = refused(text + "\n" + ONE_REPOSITORY)
    assert any(one.split(": ", 2)[1] == place and words in one for one in mistakes), mistakes


def test_the_forges_word_is_not_asked_for_over_plain_http() -> None:
    (mistake,) = refused(
        "repositories: {a: {upstream: 'http://git.example/a', access: [upstream]}}"
    )
    assert "could read the credentials of readers" in mistake


def test_files_that_can_not_be_used_are_told(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    good = authority.issue(tmp_path)
    (tmp_path / "broken.pem").write_text("nothing")

    def tls(key: Path, ca: Path) -> str:
        files = f"certificate_file: {good}, key_file: {key}, client_ca_file: {ca}"
        return f"server: {{tls: {{{files}}}}}\n"

    data = f"data_dir: {tmp_path}\n"
    assert check_files(loaded(tls(good, authority.file) + data + ONE_REPOSITORY)) == []
    for text, words in (
        (tls(authority.issue(tmp_path), authority.file), "no certificate and its key"),
        (tls(tmp_path / "none", authority.file), "can't be read"),
        (tls(good, tmp_path / "broken.pem"), "no certificate that can be read"),
        (OIDC.replace("ca.pem", str(tmp_path / "none")), "can't be read"),
    ):
        (problem,) = check_files(loaded(text + data + ONE_REPOSITORY))
        assert words in problem
