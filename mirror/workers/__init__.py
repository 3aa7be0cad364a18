"""Several processes on one port: the main one mirrors, the workers serve.

The main process holds the data directory, the refreshers, the control socket and the port, and
serves nobody. Each worker listens on the port too (SO_REUSEPORT), with copies of the mirrors'
state. A channel to each, a socket pair that it inherits, carries `messages`.

What keeps the freshness contract across processes:

* Only the main process numbers announcements. A webhook's worker hands it over, and answers 202
  only when every worker has acknowledged the number: no reader is served refs from before as fresh.
* A refresh ends only when every worker has acknowledged what it published.
* A worker that does not acknowledge in time, or whose channel breaks, is killed before anybody goes
  on. A new one has the whole state before it listens.
* A worker without its main process ends at once: it could not know what is stale.

    frames      bytes to messages and back: pure
    messages    what is said
    link        one end of a channel: questions, answers, and its end
    state       the state of a mirror, taken there and put here
    replica     a worker's copies
    proxies     what a worker asks the main process for
    lfs         LFS objects, asked for there and read from the disk here
    worker      a worker's process
    served      its copies, and what serves them
    process     starting and ending it, from the main process
    managed     one of them, as the main process sees it
    supervisor  all of them
    figures     the metrics of all processes, added up
"""
