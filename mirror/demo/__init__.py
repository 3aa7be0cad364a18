"""`git-mirror demo`: a deployment on this machine, its upstream behind a slow line.

    scenario     the play: clone, push, webhook, fetch, and what each cost
    forge        a small forge, with the faults of real ones; the tests' too
    cgi          git's http-backend
    gitops_repo  a repository with the shape of a GitOps repository
    latency      the slow line

It needs git, and no network.
"""
