"""Hours of mixed load, and what must hold all the while: `make soak MINUTES=20 SEED=n`.

conducting   lives of the service, storms and calms in them: decides what comes when
estate       all parts: forge, line, repositories, receivers, the service
events       what befalls the service, a registry; more of them in `breaking` (disk and damage),
             `operating` (reloads, upgrades, maintenance) and `flooding`
hastened     the service, in whose background hours go by in seconds
pushing      who changes the upstream, and the forge's webhooks
clients      who reads, a registry; `asking` is how those in process ask
log_lines    the service's log, and what explains its errors
judges       pure: what is right
resources    memory, descriptors, children, disk
ledger       what happened: counts, times, violations; and the report of it
"""
