import pytest

from mirror.upstream.forges import RECEIVERS, delivery_url

URL = "https://mirror.example.com/webhooks/x"


@pytest.mark.parametrize("forge", list(RECEIVERS))
def test_every_forge_s_plan_says_where_to_deliver_and_what_the_secret_is_called(forge: str) -> None:
    plan = RECEIVERS[forge].plan_hook("https://git.acme.no/acme/gitops.git", url=URL)
    assert plan.settings_url.startswith("https://git.acme.no/acme/gitops/")
    assert URL in dict(plan.fields).values()
    assert plan.signing_label.startswith("Secret")
    assert "push" in repr(plan.fields).lower()


@pytest.mark.parametrize(
    ("forge", "upstream", "page"),
    [
        (
            "github",
            "https://github.com/acme/a.git",
            "https://github.com/acme/a/settings/hooks/new",
        ),
        ("gitlab", "https://gitlab.com/a/b/c", "https://gitlab.com/a/b/c/-/hooks"),
        (
            "gitea",
            "https://codeberg.org/acme/a",
            "https://codeberg.org/acme/a/settings/hooks/gitea/new",
        ),
        (
            "bitbucket",
            "https://bitbucket.org/acme/a.git",
            "https://bitbucket.org/acme/a/admin/webhooks",
        ),
        (
            "bitbucket",
            "https://acme.no:7990/bitbucket/scm/ops/a.git",
            "https://acme.no:7990/bitbucket/plugins/servlet/webhooks/projects/ops/repos/a",
        ),
    ],
)
def test_the_page_on_which_a_webhook_is_made_follows_from_the_upstream(
    forge: str, upstream: str, page: str
) -> None:
    assert RECEIVERS[forge].plan_hook(upstream, url=URL).settings_url == page


@pytest.mark.parametrize(
    ("public_url", "url"),
    [
        ("https://mirror.acme.no", "https://mirror.acme.no/webhooks/github"),
        ("https://mirror.acme.no/", "https://mirror.acme.no/webhooks/github"),
        ("http://[::1]:8470", "http://[::1]:8470/webhooks/github"),
        ("https://acme.no/mirror/", "https://acme.no/mirror/webhooks/github"),
        ("https://mirror.acme.no/webhooks/github", "https://mirror.acme.no/webhooks/github"),
    ],
)
def test_deliveries_go_below_the_mirror_s_public_url(public_url: str, url: str) -> None:
    assert delivery_url(public_url, "github") == url


@pytest.mark.parametrize(
    ("public_url", "complaint"),
    [
        ("", "must be a URL"),
        ("mirror.acme.no", "must be a URL"),
        ("ftp://mirror.acme.no", "must be a URL"),
        ("https://mirror acme.no", "must be a URL"),
        ("https://mirror.acme.no/\n", "must be a URL"),
        ("https://", "must be a URL"),
        ("https:///path", "must have a host"),
        ("https://me:hunter2@mirror.acme.no", "neither user name nor password"),
        ("https://me:hunter2@mirror.acme.no:port", "look at its host and port"),
        ("https://mirror.acme.no/?a=b", "no .query"),
        ("https://mirror.acme.no/#a", "no .query"),
    ],
)
def test_a_public_url_that_nothing_could_be_delivered_to_is_refused(
    public_url: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        delivery_url(public_url, "github")
    assert "hunter2" not in str(refused.value)
