"""The server's binlog: the dump connection, events, row images and row keys. Knows nothing of Raft."""
