"""The Git wire protocol, sans-IO: bytes in, values out, and back.

What both ends share:

    names        object ids, ref names and refs: the words of every other module
    ref_table    all refs of a repository, immutable, cheap to change by a few
    pktline      the framing of everything that goes over the wire

As a server:

    advertise    what is said first, and answers to ls-refs
    requests     what a reader asks
    arguments    the lines of a request, as git's own server reads them
    object_ids   the ids that a request names: one, or a million
    numbers      numbers as git reads them
    filters      the object filters of partial clones
    negotiation  what to acknowledge, and whether the pack may be sent now
    answers      what a fetch is answered with, around the pack
    push         what passes by in a push
    bundles      the header of a bundle, and lists of bundles

As a client:

    client       what we ask an upstream, and how its answers are read
    listing      its answer to ls-refs, in short steps

    lfs          the batch API of Git LFS, from both ends
"""
