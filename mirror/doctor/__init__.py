"""What an operator would check by hand, with times: `git-mirror doctor`.

    finding     one thing that was looked at: its figure, the verdict, what to do
    host        this machine: disk, space, file limits
    line        the way to a host: DNS, TCP, TLS, clock
    git         polls and fetches, of an upstream and through the mirror
    data        the data directory: its version, leftovers, who may read it
    service     what the running service says of itself
    examine     all of it, for a configuration

Looks only. What it sends is what a reader sends, in a bounded number.
"""
