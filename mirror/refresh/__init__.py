"""When to talk to the upstream, and how what it says becomes what we serve.

One repository, and what readers are given of it:

    mirror         one repository as the running service knows it
    opening        what is on the disk of it at the start
    registry       which there are, by path and by the URLs that forges know them by
    freshness      whether what we have may be served now: pure
    gate           what a reader is given now, perhaps after a wait

When, and for whom:

    refresher      one task per repository, one refresh at a time
    places         how many of them run at once
    schedule       when to look next: pure
    announcements  what forges announce: each delivery taken once
    expected       what was announced and is not listed yet

One refresh:

    update         what the upstream lists becomes what we hold
    patterns       which of its refs are mirrored: pure
    news           what is new in a listing, and which tips to tell of
    changes        what a listing changes: pure
    doubt          deletions, left out until they are believed
    vanishing      whether they are: pure
    receiving      packs on their way into a quarantine
    staging        where a clone is made before it takes its place
    bounds         what refreshes may take of the disk

What is made and kept besides:

    foresight      packs that readers will ask for, made before they ask
    shapes         in which shapes a ref is asked for: pure
    bundling       the bundles of all repositories, on a schedule
    bundle_plan    which to make next: pure
    lfs            LFS objects: asked for once, for all who want the same
    maintenance    keeps every repository small and quick
    scrub          reads all that is kept, and looks whether it is as it was written
    healing        what becomes of a repository that is damaged
    disk_watch     makes what can be made again yield when the disk is short

    pull_through   repositories that are mirrored on their first request
    relay          telling controllers of each change
"""
