"""git-mirror: a Git mirror and low-latency fetch cache for GitOps.

What is above knows what is below it, and never the other way round (pyproject.toml has the order):

    cli           the commands
    demo, doctor  a deployment on this machine; what an operator would check by hand
    progress      long work, shown to people
    service       the composition root; `once` is what commands do without a service
    upgrading     a hand-over, as the service goes through it; `handover` is what the two say
    reloading     reloads that somebody asks for, in a start and a hand-over, too
    work          what changes what is served or on disk, but for the refreshes
    doors         who answers readers: this process, or several `workers`
    making_room   what yields when the disk is short
    reload        another configuration while the service runs
    pulling       mirrors made on their first request; `tidying` removes them again
    mirroring     the upstream side: every repository with its refresher
    large_files   LFS objects from the upstreams
    serving       the serving side: the application that readers talk to
    stores        what makes and keeps what readers get, by the configuration
    web           HTTP: readers, webhooks, status
    access        who may read
    refresh       when to talk to the upstream, and what comes of it
    upstream      talking to a forge
    repository    one bare mirror on disk
    wire          the Git wire protocol

And below all of these: `config`, `metrics` and `logs`; `places`, `layout`, `space`, `durable` and
`orphans` (the data directory, its version, its room, what a crash leaves); `watchdog`, `notify` and
`health` (the service manager, and what it asks); `errors`.
"""

__version__ = "0.1.0"
