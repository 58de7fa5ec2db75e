"""Many prompts: what a prompts file asks for, what of it is done, and who makes the next video. No torch.

    DIR/batch.json      what the batch is of; the ranks read their jobs from it
    DIR/ID/             a finished video's run folder
    DIR/failures.jsonl  a line for each attempt that failed
    DIR/results.jsonl   written when nothing is left to do
    DIR/logs/           what ranks said besides

A job is done when its run folder is there, which appears as a whole.
"""

from jano_dist.batch.desk import NOTHING_LEFT, NOTHING_NOW, answer, ask, asked, note, take_notes
from jano_dist.batch.folder import BatchFolder
from jano_dist.batch.plan import Job, Plan, read_plan
from jano_dist.batch.work import Work

__all__ = [
    "NOTHING_LEFT",
    "NOTHING_NOW",
    "BatchFolder",
    "Job",
    "Plan",
    "Work",
    "answer",
    "ask",
    "asked",
    "note",
    "read_plan",
    "take_notes",
]
