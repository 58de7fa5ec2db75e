"""The VAE on the first ranks of a gang together, by DistVAE; or on the coordinator alone."""

import copy
from typing import Any

from distvae.vae import parallelize_decoder, sharing, tiled_decode_for
from torch import Tensor

from jano_dist.mesh import Mesh


class VideoDecoder:
    """Latents -> pixels.

    Args:
        vae: a loaded `AutoencoderKLWan`; stays as diffusers made it.
        parallel: `auto`: over the mesh's `decoders`, whole tiles where the VAE tiles (`vae.enable_tiling()`)
            and bands of rows otherwise; `single`: on the coordinator alone.

    What DistVAE's collectives send is not counted by the mesh.
    """

    def __init__(self, vae: Any, *, parallel: str) -> None:
        self._alone, self._parallel = vae, parallel
        self._spread: Any = None  # made when a gang first decodes; a process group outlives prompts

    def decode(self, latent: Tensor, mesh: Mesh) -> Tensor | None:
        """[1, C, T, H, W], the same on every rank -> [1, 3, frames, height, width] in -1..1.

        None on ranks that have no part in it.
        """
        if mesh.decoders > 1 and self._parallel == "auto":
            if mesh.rank >= mesh.decoders:
                return None
            vae = self._spread = self._spread or self._over(mesh)
            # Too few rows to cut: the same answer on every rank, before anyone waits for the others.
            if vae.use_tiling or latent.shape[-2] // mesh.decoders >= max(1, vae.decoder.patchify.halo):
                return _decode(vae, latent)
        return _decode(self._alone, latent) if mesh.is_coordinator else None

    def _over(self, mesh: Mesh) -> Any:
        """A copy of the VAE that works together with the other ranks'; DistVAE replaces its modules."""
        vae = copy.deepcopy(self._alone)
        if vae.use_tiling:
            vae.tiled_decode = tiled_decode_for(vae, *sharing(mesh.decode_group))
        else:
            parallelize_decoder(vae, mesh.decode_group)
        return vae


def _decode(vae: Any, latent: Tensor) -> Tensor:
    video: Tensor = vae.decode(latent, return_dict=False)[0]
    return video
