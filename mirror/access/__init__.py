"""Who may read: from what a client shows to a reader with a name, or a refusal.

    presented  what an Authorization header holds: pure
    reader     a reader, and what it may see: pure
    attempts   failed attempts by address: pure
    tokens     tokens of our own, in a file, as hashes
    oidc       tokens of OpenID Connect issuers
    id_tokens  how these are verified, by their issuer's keys
    forge      the forge's word on a client's own credentials
    doorkeeper all of it: may this client read that repository?

What is kept here is kept by what was shown, to the letter: nothing that one client has proven is
ever another's. Knows no HTTP request; `mirror.web.guard` brings what it holds.
"""
