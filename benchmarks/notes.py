"""Why a row is short of its target: printed below the table while it is, and only then."""

NOTES: dict[int, str] = {
    1: (
        "At 1 KB the mirror is level with nginx or ahead. At 100 KB nginx has sendfile, which hands"
        " pages of the file to the socket, where the mirror's bytes are copied into it. With 64"
        " clients at 100 KB (perf, cpu-clock) 79 % of the mirror's time is the kernel's: writev"
        " 70 %, the copy alone 29 %; Python is 16 %. Next: keep such answers in a memfd and send"
        " them with sendfile where the connection's buffer is empty."
    ),
    3: (
        "A poll's p50 is the time of the client, the kernel and two switches between processes:"
        " nginx with a file takes as long (row 1). What is left to gain is not the server's."
    ),
    4: (
        "As in row 1: what is sent is copied, and nginx sends pages. Next: sendfile"
        " from the pack's own file."
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
