"""The folder a run leaves behind: video, pictures, record, and the latents when asked for."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save

from jano_dist.engine import Generation
from jano_dist.errors import UserError
from jano_dist.report import complexity_picture, timeline_picture
from jano_dist.video import write_video

FILES = ("video.mp4", "complexity.png", "timeline.png", "latents.safetensors", "run.json")


def check_target(out: Path) -> None:
    """Make sure, before anything is computed, that a run may be written to `out`.

    Raises:
        UserError: it exists and is no run folder, or its parent is not writable.
    """
    if out.exists() and not out.is_dir():
        raise UserError(
            f"--out {out} is a file: give a new folder, or the folder of an earlier run to replace it"
        )
    if out.is_dir() and any(out.iterdir()) and not (out / "run.json").is_file():
        raise UserError(
            f"--out {out} exists and is not a run folder (no run.json): give a new folder, "
            "or the folder of an earlier run to replace it"
        )
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {out}: {parent} is not writable: give a folder elsewhere")


def write_run(out: Path, generation: Generation, *, fps: int, save_latents: bool) -> None:
    """Write a run folder; everything is complete before the first file appears in `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        record = generation.record
        write_video(making / "video.mp4", generation.frames, fps)
        complexity_picture(making / "complexity.png", generation.frames, generation.levels, record["levels"])
        timeline_picture(making / "timeline.png", record["steps"])
        if save_latents:
            (making / "latents.safetensors").write_bytes(
                save({"latents": generation.latents.cpu().contiguous()})
            )
        (making / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        _move(making, out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _move(making: Path, out: Path) -> None:
    """Put the finished files in place, run.json last; other files a user keeps there stay."""
    out.mkdir(exist_ok=True)
    for name in FILES:
        if (making / name).exists():
            os.replace(making / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)  # of the run that is replaced
