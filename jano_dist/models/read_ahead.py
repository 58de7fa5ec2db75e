"""Weight files on their way into the page cache before anyone asks for what is in them.

The libraries map files and touch them tensor by tensor, so the disk gets one small request at a time and
waits in between for what is copied, sent or moved to a device. Here the kernel is told what will be wanted:
it reads as many ranges at once as the disk takes, in this order, and what it has already not again.
"""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread

_RANGE = 2**21  # bytes; of more at once the kernel reads only the beginning


def read_ahead(files: Iterable[Path]) -> Thread:
    """Begin to read files, in this order, and come back at once; the thread ends when all is asked for.

    A file that cannot be read is left for whoever needs it to complain of.
    """
    thread = Thread(target=_read, args=(list(files),), daemon=True, name="read ahead")
    thread.start()
    return thread


def _read(files: list[Path]) -> None:
    if sys.platform != "linux":
        return
    for file in files:
        with suppress(OSError), file.open("rb") as stream:
            for place in range(0, file.stat().st_size, _RANGE):
                os.posix_fadvise(stream.fileno(), place, _RANGE, os.POSIX_FADV_WILLNEED)
