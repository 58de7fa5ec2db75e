"""The folder a run leaves behind: video or image, pictures, record; latents and trace when asked for."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from jano_dist.engine import Generation
from jano_dist.errors import RunError
from jano_dist.target import LATENTS, making, replace, result_name
from jano_dist.trace import Track, trace_text
from jano_dist.video import write_frames


def write_run(
    out: Path, generation: Generation, *, fps: int, save_latents: bool, tracks: Sequence[Track] = ()
) -> None:
    """Write a run folder; it is complete before it takes the place of `out`, all of it at once.

    Args:
        tracks: what ranks noted for trace.json; empty: there is to be none.

    Raises:
        RunError: the files cannot be written, for example because the disk is full.
    """
    try:
        with making(out) as folder:
            _write_files(folder, generation, fps, save_latents, tracks)
            replace(out)
    except OSError as error:
        raise RunError(
            f"the run could not be written to {out} ({error.strerror or error}): "
            "make room, or give another --out"
        ) from error


def _write_files(
    folder: Path, generation: Generation, fps: int, save_latents: bool, tracks: Sequence[Track]
) -> None:
    # Matplotlib is for the one rank that writes, and the others' start need not wait for it.
    from jano_dist.report import complexity_picture, timeline_picture

    record = generation.record
    write_frames(folder / result_name(len(generation.frames)), generation.frames, fps)
    complexity_picture(folder / "complexity.png", generation.frames, generation.levels, record["levels"])
    timeline_picture(folder / "timeline.png", record["steps"])
    if save_latents:
        latents = generation.latents.cpu().contiguous()
        (folder / LATENTS).write_bytes(save({"latents": latents}))
    if tracks:
        (folder / "trace.json").write_text(trace_text(tracks, record), encoding="utf-8")
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    (folder / "run.json").write_text(text, encoding="utf-8")
