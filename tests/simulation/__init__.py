"""A deterministic simulator of whole clusters: one thread, virtual time, one seed decides everything."""
