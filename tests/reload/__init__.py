"""The configuration read again while the service runs."""
