"""Measurements, each beside a peer or a ceiling in the same run: quote the ratios.

`rows/` has one module per row of the table; what they share stands here: `peers` (nginx,
http-backend), `service` (the mirror under test), `wrk`, `http_client` and `crowd` (load),
`repositories` (what is served), `protocol` and `checks` (right answers), `figures` and `report`.
The mirror is seen from outside only: HTTP, /metrics, /status.json, /proc, its command line.
"""
