"""How sites and TCP endpoints are written, in a site's file and among the members of a cluster alike.

What cannot be a member, a file cannot say either: nobody could name it, or be rid of it. Needs no other module.
"""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:\s\x00-\x1f\x7f]+)):([0-9]{1,5})")
"""An IPv6 address or another host, and the port, which has to be in `PORTS`."""
PORTS = range(1, 65536)
ADDRESS_RULE = "host:port, as in 10.0.0.1:7450, db1.example.net:7450 or [2001:db8::1]:7450"
