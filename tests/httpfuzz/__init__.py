"""The whole HTTP surface of a running service, fuzzed: `make fuzz-http`, see docs/fuzzing.md.

Two halves. `described` has schemathesis make requests from docs/openapi.yaml and hold the answers
against it. `streams`, `sending` and `answers` make and judge what no HTTP client would send: broken
heads, framings, pipelines and packets. Each stream has a number and comes again with its seed.
"""
