"""Talking to a forge: refs, packs, pushes and LFS objects, with credentials; and its webhooks.

Clients of one repository:

    connect          from the configuration of a repository to its client
    remote           the smart-HTTP client for one repository
    push             the way of a push, with the client's own credentials
    lfs              the LFS side of one repository
    storage          where LFS objects are downloaded from
    line             the one place that sends HTTP requests, within their time limits
    pace             how slowly an upstream may send: pure
    failures         what its refusals mean

How they get there, and as whom:

    route            whose certificates are trusted, and through which proxy
    addresses        which addresses its host's name may lead to
    keyring          routes and credentials, shared where they can be
    credentials      read from their file, never shown
    github_app       tokens of a GitHub App
    github_api       what that asks of GitHub
    expiry           when tokens end

Webhooks:

    forges           webhooks: is this one genuine, and what does it say?
    hooks            makes a repository's webhook, or brings it up to date
    webhook_secrets  the secrets of one, while a new one replaces an old one
"""
