"""Asks MongoDB itself what it has open."""

from __future__ import annotations

from store.database import Database, Document


async def change_streams(database: Database) -> list[int]:
    """Return the cursors of change streams on a database's operations."""
    command = "cursor.originatingCommand.pipeline.$changeStream"
    stages: list[Document] = [
        {"$currentOp": {"allUsers": True, "idleCursors": True}},
        {"$match": {"ns": f"{database.name}.operations", command: {"$exists": True}}},
    ]
    rows = await database._client.admin.aggregate(stages).to_list(None)
    return [row["cursor"]["cursorId"] for row in rows]


async def opened_change_streams(database: Database) -> int:
    """Return how many change streams the server has opened since its start."""
    status = await database._client.admin.command("serverStatus")
    return int(status["metrics"]["aggStageCounters"]["$changeStream"])
