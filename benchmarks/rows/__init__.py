"""The rows of the table, one module each: `NUMBER`, `NEEDS` (programs) and `measure(run)`."""

from benchmarks.rows import (
    row01_polls,
    row02_new_connections,
    row03_http_backend,
    row04_ready_packs,
    row05_git_commands,
    row06_push_to_fetch,
    row07_stampede,
    row08_heavy_work,
    row09_growth,
    row10_misses,
    row11_bundles,
    row12_lfs,
    row13_many_pushes,
)

ROWS = (
    row01_polls,
    row02_new_connections,
    row03_http_backend,
    row04_ready_packs,
    row05_git_commands,
    row06_push_to_fetch,
    row07_stampede,
    row08_heavy_work,
    row09_growth,
    row10_misses,
    row12_lfs,
    row11_bundles,
    row13_many_pushes,
)
