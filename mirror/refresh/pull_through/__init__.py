"""Repositories that are mirrored on their first request: when one may come, and which has to go.

    pace       how often first clones may begin: pure
    refusals   what lately could not be mirrored, so that the upstream is not asked again: pure
    eviction   which of them go, and why: pure
    disk       which there are on disk, and when they were read
    figures    what Prometheus is told of them

Who opens and keeps them is `mirror.pulling`, who removes them `mirror.tidying`.
"""
