"""Telling controllers of each change, once every reader can fetch it.

There is no log of events. What a receiver is still to be told is the difference between the refs
that are served and those it has acknowledged, which are kept on disk: so pushes coalesce by
themselves, the queue is bounded by the number of refs, and what was published but not yet told
before a crash is found again.

    backlog    what one receiver is still to be told of one repository (pure)
    outbox     whose turn it is at one receiver, and when to try again (pure)
    events     the requests that a receiver understands, signed (pure)
    files      which files a change of a ref touches
    ledger     on disk: what each receiver has acknowledged
    sender     sends what the outbox says to one receiver
    relays     all receivers; told what is served
"""
