"""The local admin API: HTTP on loopback, read-only."""
