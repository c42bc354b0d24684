"""Undoing iterations: each change writes down, in its own transaction, what the group was like before.

Only the first change of a group in an iteration is written down, since rollbacks go to the end of an iteration. An
evicted group keeps its row, without a slot, until no rollback can bring it back.
"""

import sqlite3

from rlsf.replay.tables import COLUMNS, listed

ADDED_SINCE = "SELECT seq FROM journal WHERE iteration > ? AND NOT existed"

MUTABLE = ("slot", "priority", "draws", "cluster", "class")
"""Columns of a group that change."""

OLDEST_SINCE = (
    # SQLite takes bare columns from the row that has the minimum (https://sqlite.org/lang_select.html#bareagg).
    f"SELECT seq, min(iteration), {listed(MUTABLE)} FROM journal WHERE iteration > ? GROUP BY seq"
)


def record_added(connection: sqlite3.Connection, seq: int, iteration: int) -> None:
    """Call it when a group is inserted."""
    connection.execute("INSERT INTO journal (iteration, seq, existed) VALUES (?, ?, 0)", (iteration, seq))


def record_change(connection: sqlite3.Connection, seq: int, iteration: int) -> None:
    """Call it before a group is changed or evicted."""
    connection.execute(
        f"INSERT OR IGNORE INTO journal (iteration, seq, existed, {listed(MUTABLE)}) "
        f"SELECT ?, seq, 1, {listed(MUTABLE)} FROM groups WHERE seq = ?",
        (iteration, seq),
    )


def evict(connection: sqlite3.Connection, seq: int, iteration: int) -> None:
    """Take a group out of the store. One that the same iteration added is wanted by no rollback: it is deleted."""
    if connection.execute(
        "DELETE FROM journal WHERE iteration = ? AND seq = ? AND NOT existed", (iteration, seq)
    ).rowcount:
        connection.execute("DELETE FROM groups WHERE seq = ?", (seq,))
        return
    record_change(connection, seq, iteration)
    connection.execute("UPDATE groups SET slot = NULL WHERE seq = ?", (seq,))


def damaged_since(connection: sqlite3.Connection, iteration: int) -> int:
    """Rows that `undo` would read and that fail their check."""
    return connection.execute(
        "SELECT count(*) FROM journal "
        f"WHERE iteration > ? AND checksum IS NOT row_checksum({listed(COLUMNS['journal'])})",
        (iteration,),
    ).fetchone()[0]


def undo(connection: sqlite3.Connection, iteration: int) -> None:
    """Restore everything to what it was at the end of `iteration`."""
    connection.execute(f"DELETE FROM groups WHERE seq IN ({ADDED_SINCE})", (iteration,))
    restored = ", ".join(f"{name} = old.{name}" for name in MUTABLE)
    connection.execute(
        f"UPDATE groups SET {restored} FROM ({OLDEST_SINCE}) AS old WHERE groups.seq = old.seq", (iteration,)
    )
    connection.execute("DELETE FROM journal WHERE iteration > ?", (iteration,))
    connection.execute("DELETE FROM progress WHERE iteration > ?", (iteration,))


def prune(connection: sqlite3.Connection, iteration: int) -> None:
    """Forget how to go back to before the end of `iteration`, and delete the groups that were kept for that alone."""
    connection.execute(
        "DELETE FROM groups WHERE slot IS NULL AND seq IN (SELECT seq FROM journal WHERE iteration <= ?1) "
        "AND NOT EXISTS (SELECT 1 FROM journal AS j WHERE j.seq = groups.seq AND j.iteration > ?1)",
        (iteration,),
    )
    connection.execute("DELETE FROM journal WHERE iteration <= ?", (iteration,))
    connection.execute(
        "DELETE FROM progress WHERE iteration < (SELECT max(iteration) FROM progress WHERE iteration <= ?)",
        (iteration,),
    )
    connection.execute("UPDATE settings SET pruned = max(pruned, ?)", (iteration,))
