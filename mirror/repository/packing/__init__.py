"""Making and indexing packs: one contract, two implementations (git, dulwich), and what is kept.

Engines:

    engine          the contract
    git_engine      lets git do the work
    dulwich_engine  needs no git
    auto_engine     the quicker of the two for each work
    spawner         the one place that starts child processes

Packs, made and taken in:

    selection       which objects a pack must hold
    pack_writer     a pack from objects that lie in packs already
    pack_sizes      what the objects of a pack would take in memory
    small_pack      a small pack, taken in within this process
    small_check     whether all is there that its tips reach

Packs, kept for readers:

    pack_cache      packs for readers: there, under way, still to be built
    pack_store      finished packs by their key, bounded in bytes
    spool           a pack while it is made: one writer, many readers
    window          the end of one that no disk takes
    framing         packs framed for side-band-64k
"""
