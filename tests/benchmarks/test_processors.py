"""A server and its only client on processors of their own."""

import os
import subprocess
import sys

import pytest

from benchmarks.processors import apart

needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
WHERE = "import os; print(sorted(os.sched_getaffinity(0)))"


@needs_two
def test_a_server_is_kept_off_the_clients_processor_for_the_time_of_the_block() -> None:
    all_of_them = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        with apart([server.pid]) as prefix:
            of_server = os.sched_getaffinity(server.pid)
            printed = subprocess.check_output([*prefix, sys.executable, "-c", WHERE], text=True)
        of_client = set(map(int, printed.strip("[]\n").split(",")))
        assert len(of_client) == 1
        assert of_server == all_of_them - of_client
        assert os.sched_getaffinity(server.pid) == all_of_them
        server.kill()
