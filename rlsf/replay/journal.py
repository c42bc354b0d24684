"""Undoing iterations: each change writes down, in its own transaction, what the group was like before.

Only the first change of a group in an iteration is written down, since rollbacks go to the end of an iteration. An
evicted group keeps its row, without a slot, until no rollback can bring it back.
"""

import sqlite3

ADDED_SINCE = "SELECT seq FROM journal WHERE iteration > ? AND NOT existed"

OLDEST_SINCE = (
    # SQLite takes bare columns from the row that has the minimum (https://sqlite.org/lang_select.html#bareagg).
    "SELECT seq, min(iteration), slot, priority, draws FROM journal WHERE iteration > ? GROUP BY seq"
)


def record_added(connection: sqlite3.Connection, seq: int, iteration: int) -> None:
    """Call it when a group is inserted."""
    connection.execute("INSERT INTO journal (iteration, seq, existed) VALUES (?, ?, 0)", (iteration, seq))


def record_change(connection: sqlite3.Connection, slot: int, iteration: int) -> None:
    """Call it before the group in `slot` is changed or evicted."""
    connection.execute(
        "INSERT OR IGNORE INTO journal (iteration, seq, existed, slot, priority, draws) "
        "SELECT ?, seq, 1, slot, priority, draws FROM groups WHERE slot = ?",
        (iteration, slot),
    )


def undo(connection: sqlite3.Connection, iteration: int) -> None:
    """Restore everything to what it was at the end of `iteration`."""
    connection.execute(f"DELETE FROM groups WHERE seq IN ({ADDED_SINCE})", (iteration,))
    connection.execute(
        "UPDATE groups SET slot = old.slot, priority = old.priority, draws = old.draws "
        f"FROM ({OLDEST_SINCE}) AS old WHERE groups.seq = old.seq",
        (iteration,),
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
    connection.execute("UPDATE settings SET pruned = max(pruned, ?)", (iteration,))
