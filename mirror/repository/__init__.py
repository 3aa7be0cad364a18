"""One bare mirror on disk: its refs, its objects, its packs. And LFS objects, of all of them.

On disk:

    bare               the repository: opened, checked, mended
    refs               its files of refs, and HEAD
    refs_file          how such a file is written, with its checksum: no IO
    missed_refs        a note of the refs that the upstream does not list any more
    config_file        its configuration: for git, and of what it is a mirror
    objects            objects by their id, from any thread
    quarantine         where a pack is received before its objects count
    clearing           what a crash left, and packs that others stand for
    leftovers          what could not be removed, removed later
    swap               two directories that change places in one step
    threads            blocking steps in threads that nobody leaves behind

As readers see it:

    snapshot           the refs as readers see them at one moment, their answers ready
    fetching           from a fetch request to its answer, and what the pack is to hold
    graph              the commits, read as far as somebody walks them
    commit_graph_file  git's own index of them
    frontier           what two histories share, by as few commits as will do
    shallow            where a shallow history ends
    packing            making and indexing packs

Kept sound, small and quick:

    integrity          whether the files are still what was written
    maintenance        what it needs to stay small and quick: pure
    pruning            what nothing reaches, removed

Kept besides:

    bundles            its bundles on disk, and which of them are offered
    lfs_store          LFS objects, and which repository may hand out which
"""
