"""When to talk to the upstream, and how what it says becomes what we serve."""
