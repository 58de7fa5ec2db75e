"""A user's own program on several ranks, as the README shows it: `script.py CONFIG LATENTS`."""

import sys

from safetensors.torch import save_file

from jano_dist import Engine, join, load_config

config = load_config(sys.argv[1])
with join(config.runtime):
    video = Engine(config).generate("a red ball")
if len(video.frames):  # on rank 0
    save_file({"latents": video.latents}, sys.argv[2])
