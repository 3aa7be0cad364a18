"""`git-mirror demo`: a deployment on this machine, its upstream behind a slow line."""
