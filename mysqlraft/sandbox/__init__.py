"""Private database servers and network links on one machine, for the demo, the tests and the benchmarks.

Nothing here is used by a daemon at a real site.
"""
