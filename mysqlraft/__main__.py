"""``python -m mysqlraft`` is the ``mysqlraft`` command."""

import sys

from mysqlraft.cli import main

sys.exit(main())
