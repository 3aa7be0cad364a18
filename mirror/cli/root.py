"""The group of all commands. Each command's module adds its own to it."""

import click

from mirror import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="git-mirror")
def main() -> None:
    """A Git mirror and low-latency fetch cache for GitOps.

    Keeps bare mirrors of your forges' repositories near your clusters, serves them to Argo CD, Flux
    and every other Git client over smart HTTP, and learns of pushes by webhook: from GitHub,
    GitLab, Gitea, Forgejo and Bitbucket.

    Try it out with `git-mirror demo`. Then write a configuration, `git-mirror check` it, and run
    `git-mirror serve`.
    """
