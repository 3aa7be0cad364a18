"""`python -m benchmarks.far_line PORT RTT_SECONDS`: a slow line to a port of this machine.

Prints the port of its near end and carries until SIGTERM.
"""

import asyncio
import signal
import sys

import uvloop

from mirror.demo.latency import LatencyProxy


async def main(far: int, rtt_seconds: float) -> None:
    """Carry what comes to `far`, `rtt_seconds` away."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with LatencyProxy("127.0.0.1", far, rtt_seconds) as line:
        print(line.port, flush=True)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
