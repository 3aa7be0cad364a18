"""Crashes of the whole service, and what is there at the next start.

* `shim.c` is loaded into the service and its children by LD_PRELOAD. It puts all their calls that
  change something below data_dir in one order, counts and records them, and kills after the N-th.
  Nothing in the program knows of it. Writes to mapped memory and by stdio are not followed;
  `record` fails where there are any but to SQLite's -shm file, which SQLite makes anew.
* `zygote.py` has the program loaded and forks, so that a start takes 50 ms.
* `story.py`: a forge, LFS, a receiver of events, readers; what happens in a run, and what must be
  true after a start: refs as last shown to a reader or newer, with the upstream down; `git fsck`
  clean, every file explained (`checks.py`), nothing set aside; then all of it goes on.
* `replay.py`: the disk as a power cut leaves it, from the record of a run, by two models.
* `campaign.py`: power cuts; kills at random instants, and after chosen calls. A write that
  is the last call is cut in half at times; at times only the main process dies, and its children
  live on.

`make crash KILLS=300 POINTS=100 CUTS=100 SEED=n` tries many and prints a table;
POINTS=0 kills after each call that there is.
"""
