"""What runs in a process of its own: one node of a contender, or a client with connections to all nodes of one.

Each obeys lines of JSON on its standard input, and answers each with one on its standard output::

    {"do": "role"}                                  -> {"leader": whether it leads; a client: whether somebody does}
    {"do": "load", "outstanding": N, "bytes": B}    -> {}  and keeps N proposals of B bytes on the way from now on
    {"do": "count"}                                 -> {"committed": of its own so far, "seconds": on its clock}
    {"do": "rest"}                                  -> {}  once nothing is on the way any more
    {"do": "latency", "count": N, "bytes": B}       -> {"seconds": [what each took, one after the other]}

It ends with its standard input.
"""
