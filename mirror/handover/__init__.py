"""An upgrade while readers come and go: the installed program takes over from the running one.

The old process starts the new one, which inherits the listening sockets and the lock of the data
directory. There is one of the two that refreshes, at any time, and one order of what they do:

    old                                  new
    starts the new one
                                         imports, reads its configuration: `prepared`
    takes no more webhooks, lets its
    refreshes end: `yours`, with how
    fresh each repository is
                                         opens the mirrors, listens: `serving`
    names it to the service manager:
    `main`, with what was announced
    too long ago; accepts nothing more, says
    `Connection: close`
                                         serves what the old one serves; refreshes nothing,
                                         acknowledges no webhook
    shows no refs any more: `silent`
                                         refreshes, takes webhooks; those that the old one
                                         still has come over: `announce`, `announced`
    passes on that it was asked to
    read the configuration: `reload`
    finishes clones; ends

Whatever goes wrong before `serving`, the old one ends the new one and goes on as if nothing had
been. A new one whose old one is gone goes on by itself.

`messages` is what both must agree on, though they are of different versions: fields may be added,
and messages between two that both serve, which the other ignores; anything else needs another
`PROTOCOL`, which the old one refuses.

    messages      what is said, as lines of JSON
    successor     the new process, as the old one sees it
    predecessor   the old process, as the new one sees it
    held          webhooks that wait until it is clear which of the two takes them
"""
