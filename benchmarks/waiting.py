"""When has a table arrived everywhere?"""

from __future__ import annotations

from collections.abc import Callable

import pymysql
from pymysql.connections import Connection
from pymysql.constants import ER
from pymysql.cursors import Cursor


def table_missing(name: str, rows: int) -> Callable[[Connection[Cursor]], list[str]]:
    """For `Cluster.wait_everywhere`: what a site still lacks of so many rows of table `bench.name`."""

    def missing(connection: Connection[Cursor]) -> list[str]:
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT COUNT(*) FROM bench.{name}")
                row = cursor.fetchone()
        except pymysql.MySQLError as error:
            if error.args[0] not in (ER.BAD_DB_ERROR, ER.NO_SUCH_TABLE):
                raise
            return [f"no table bench.{name}"]
        found = int(row[0]) if row else 0
        return [] if found >= rows else [f"{found} of {rows} rows in bench.{name}"]

    return missing
