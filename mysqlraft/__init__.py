"""mysqlraft: replicates writable MySQL and MariaDB servers in several datacentres through one Raft log."""

__version__ = "0.1.0"
