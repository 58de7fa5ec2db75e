"""What a run needs, before anything is allocated: memory, FLOPs and communication, from shapes alone."""

from jano_dist.account.caches import cache_bytes, working_bytes
from jano_dist.account.fit import Room, cheapest, check_fit, complaint
from jano_dist.account.memory import Memory, memory_of
from jano_dist.account.work import Sent, StepWork, branch_flops, sent_bytes, step_work, steps_of

__all__ = [
    "Memory",
    "Room",
    "Sent",
    "StepWork",
    "branch_flops",
    "cache_bytes",
    "cheapest",
    "check_fit",
    "complaint",
    "memory_of",
    "sent_bytes",
    "step_work",
    "steps_of",
    "working_bytes",
]
