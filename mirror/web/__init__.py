"""The HTTP side: smart HTTP for readers, webhooks for forges, status for operators.

Connections:

    listening         sockets that are bound, and sites that accept from them
    listeners         those that readers connect to, whoever bound them
    tls               certificates, and their renewal
    tls_site          accepts what is to speak TLS
    connections       how many there may be, and which of them are ended
    turns             how much is begun in one turn of the event loop
    lane_runner       what stands between the sockets and an application
    front             what faces readers in one process, and how it leaves

The fast lane:

    fast_lane         a request that equals an answered one gets that answer's bytes
    repeating         answers that may be given again
    companions        requests that wait for the answer to an equal one

The application:

    app               every route, and the boundary where errors become answers
    editions          what answers by one configuration, and its change for the next
    guard             whose request is it, and what is it let in to?
    forwarded         who a request is from, behind a proxy: pure
    finding           from a repository's settings to the repository
    first_clone       what the first reader gets while it is being mirrored
    protocol          HTTP facts of the smart protocol, and bodies of requests
    bodies            what all of these together may take of the memory
    content_encoding  how they are unpacked, a piece at a time
    broken_bodies     those whose end can't be found

What it answers:

    smart_http        `info/refs` and `git-upload-pack`
    plans             what was planned for the fetches seen last
    fetch             answers to a fetch
    file_sending      hands the pages of a large one to the socket
    push              pushes: refused, or passed on
    bundle_files      bundles, and the list of them
    lfs               objects/batch, and the objects
    lfs_sending       an object from its file, which may still be growing
    webhooks          of the forges
    monitoring        health, readiness, metrics, status
    control           the control socket
    canary            a request of our own
"""
