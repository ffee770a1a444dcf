"""The Raft log's speed, beside other implementations': see __main__.py."""
