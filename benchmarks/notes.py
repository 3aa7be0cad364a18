"""Why a row is short of its target: printed below the table while it is, and only then."""

NOTES: dict[int, str] = {
    1: (
        "At 1 KB the mirror is level with nginx or ahead. At 100 KB the copy into the socket was"
        " 29 % of the mirror's time and Python 16 % (perf, cpu-clock, 64 clients); since then such"
        " answers go from a memfd with sendfile, as nginx sends files: 0.81x to 0.86x of its"
        " requests/s became 0.95x. What is left is a system call for the head, which nginx saves"
        " by corking, and Python. Next: MSG_MORE for the head."
    ),
    3: (
        "A poll's p50 is the time of the client, the kernel and two switches between processes:"
        " nginx with a file takes as long (row 1). What is left to gain is not the server's."
    ),
    4: (
        "400 KB don't fit into the socket at once: the rest is written by uvloop, which copies, and"
        " so are the pieces of longer packs, where nginx goes on with sendfile. Next: sendfile from"
        " the pack's own file each time the socket has room."
    ),
    7: (
        "Of the first requests after a push one of each kind takes the way through the framework,"
        " and the others wait for it; that one, the copies of 64 answers at once and the client's"
        " own work, which shares the two processors, are the p99."
    ),
    8: (
        "The two processors of this machine are shared by the mirror, wrk, the upstream, the client"
        " and git. With two busy loops (`yes`) beside an idle mirror, the polls' p99 rises from 0.6"
        " to 3.6 ms, six times: that is the scheduler's share. With many refs it is also Python in"
        " threads, which hands over to the event loop every 0.5 ms (sys.setswitchinterval), and the"
        " upstream's own git. Next: publish large tables from a process of their own."
    ),
    10: (
        "A miss pays for HTTP, a way to a thread to plan, one to look and build, and one to keep."
        " Next: keep the pack after the answer is sent."
    ),
}
"""By row: what a profile showed, and what is tried next."""
