"""`git-mirror webhook install`: the webhook a repository needs at its forge, told or made."""

from pathlib import Path

import click

from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, count, fail, load, run
from mirror.config import RepositorySettings, Settings, is_in_the_clear
from mirror.upstream.connect import open_session
from mirror.upstream.credentials import Secret, SecretFile
from mirror.upstream.forges import RECEIVERS, HookPlan, delivery_url
from mirror.upstream.forges.hook_api import HOOK_APIS
from mirror.upstream.hooks import HookInstaller, Installed
from mirror.upstream.line import Line
from mirror.upstream.route import Route
from mirror.upstream.webhook_secrets import WebhookSecrets


@main.group()
def webhook() -> None:
    """The webhooks with which forges tell of pushes."""


@webhook.command()
@CONFIG_OPTION
@click.argument("repository")
@click.option(
    "--url",
    "public_url",
    metavar="URL",
    help="Where the forge reaches this mirror, like https://mirror.example.com. Default:"
    " server.public_url.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Make the webhook, with the token in FILE. GitHub and GitLab.",
)
@click.option(
    "--api",
    metavar="URL",
    help="The forge's programming interface. Default: derived from the upstream.",
)
@click.option("--dry-run", is_flag=True, help="With --token-file: only say what would be done.")
def install(
    config_path: Path | None,
    repository: str,
    public_url: str | None,
    token_file: Path | None,
    api: str | None,
    *,
    dry_run: bool,
) -> None:
    """Show the webhook that REPOSITORY needs, or make it.

    Without a token this prints what to enter on which page of the forge. With --token-file it makes
    the webhook at GitHub or GitLab; where one delivers to the same URL already, that is brought up
    to date, its secret included: run it again after you have rotated the secret.
    """
    settings = load(config_path)
    one, forge, secret_file = _with_webhooks(settings, repository)
    public_url = public_url or settings.server.public_url
    if public_url is None:
        fail("where does the forge reach this mirror? Name --url, or set server.public_url")
    try:
        url = delivery_url(public_url, forge)
    except ValueError as error:
        fail(f"--url {error}")
    if is_in_the_clear(url):
        click.echo(
            "git-mirror: over plain http everybody on the way from the forge can read what it"
            f" delivers{', the secret token too' if forge == 'gitlab' else ''}",
            err=True,
        )
    if token_file is None:
        if dry_run or api:
            fail("--dry-run and --api need --token-file")
        _show(one, RECEIVERS[forge].plan_hook(one.upstream, url=url), secret_file)
        return
    if forge not in HOOK_APIS:
        fail(f"webhooks at {forge} can't be made from here; leave out --token-file to see which")
    hook_api = HOOK_APIS[forge].of(one.upstream, api.rstrip("/") if api else None)
    token, secret = _token(token_file), _current_secret(one, secret_file)

    async def make() -> Installed:
        async with open_session() as session:
            line = Line(session, Route(one.route))
            installer = HookInstaller(line, hook_api, token)
            return await installer.install(url=url, secret=secret, is_dry_run=dry_run)

    _tell(one, url, run(make()), is_dry_run=dry_run)


def _with_webhooks(settings: Settings, repository: str) -> tuple[RepositorySettings, str, Path]:
    name = repository.strip("/").removesuffix(".git")
    one = settings.find(name)
    if one is None:
        known = ", ".join(list(settings.repositories)[:10])
        fail(f"no repository {name!r} in {settings.source}; it has {known}")
    if one.webhook_secret_file is None or one.forge is None:
        fail(
            f"{name} takes no webhooks: make a secret, with `openssl rand -hex 32`, in a file of"
            " mode 0600, and name that as `webhook_secret_file`"
        )
    return one, one.forge.value, one.webhook_secret_file


def _show(one: RepositorySettings, plan: HookPlan, secret_file: Path) -> None:
    width = max(len(label) for label in (plan.signing_label, *(label for label, _ in plan.fields)))
    click.echo(f"For {one.name}, make a webhook at {plan.settings_url}\n")
    for label, value in plan.fields:
        click.echo(f"  {label:{width}}  {value}")
    click.echo(f"  {plan.signing_label:{width}}  the first line of {secret_file}")


def _tell(one: RepositorySettings, url: str, installed: Installed, *, is_dry_run: bool) -> None:
    done = "made" if installed.is_new else "brought up to date"
    number = "" if installed.hook_id is None else f" {installed.hook_id}"
    verb = "would be" if is_dry_run else "was"
    click.echo(f"{one.name}: the webhook{number} to {url} {verb} {done}")
    if installed.others:
        click.echo(
            f"git-mirror: {count(installed.others, 'more webhook')} of the repository to the same"
            " URL: every push is delivered more than once; remove what is too much at the forge",
            err=True,
        )


def _token(file: Path) -> Secret:
    try:
        return SecretFile(file).read()
    except (OSError, ValueError) as error:
        fail(f"the token file can't be used: {error}")


def _current_secret(one: RepositorySettings, file: Path) -> Secret:
    try:
        return WebhookSecrets(file).read()[0]
    except (OSError, ValueError) as error:
        fail(f"{one.name}: the webhook_secret_file can't be used: {error}")
