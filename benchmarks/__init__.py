"""What mysqlraft costs beside what it replaces: one module a benchmark, each `python -m benchmarks.NAME [--json]`."""
