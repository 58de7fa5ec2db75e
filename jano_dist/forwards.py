"""The forwards of a step: this rank's rows, in each of its branches, and what is guided, on every rank."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from jano_dist.attention.distributed import SequenceAttention, chunk_rows
from jano_dist.attention.kernels import Kernel
from jano_dist.cache import Cache
from jano_dist.config import CacheConfig
from jano_dist.mesh import Mesh
from jano_dist.models import Branch, DiffusionModel
from jano_dist.sampling.guidance import guide
from jano_dist.tokens.plan import Deal
from jano_dist.turns import Turns


class Forwards:
    """Runs a model's forwards over the ranks of a mesh.

    Args:
        kernel: of self-attention. keeping: how caches keep what skipped tokens leave behind.
    """

    def __init__(self, model: DiffusionModel, mesh: Mesh, kernel: Kernel, keeping: CacheConfig) -> None:
        self._model, self._mesh, self._kernel, self._keeping = model, mesh, kernel, keeping

    def rows(
        self,
        latent: Tensor,
        timestep: Tensor,
        branches: Sequence[tuple[Branch, Cache]],
        deal: Deal,
        every: Deal,
        guidance: float,
    ) -> Tensor:
        """Guided velocity rows [n, P] of the tokens in a deal, on every rank.

        Args:
            branches: this rank's. every: the deal of all tokens.
        """
        mesh = self._mesh
        own, own_text = deal.own(mesh.index("sequence")), deal.own_text(mesh.index("sequence"))
        turns = self._turns(len(branches), sum(deal.counts), sum(every.counts))
        # All of a rank's keys and values where they are made again from what the cache keeps.
        attend = self._attend(deal, every if branches[0][1].projects_all else deal, turns)
        forwards = [
            partial(self._model.forward, latent, timestep, branch, own, cache, attend, own_text)
            for branch, cache in branches
        ]
        outputs = turns.run(forwards) if turns else [forward() for forward in forwards]
        # Partners swap the rows they computed, and only what is guided is gathered: half the bytes.
        halves = [len(own)] * mesh.size("cfg")
        swapped = [part for rows in outputs for part in mesh.gather_rows(rows, halves, "cfg").split(halves)]
        return mesh.gather_rows(guide(swapped, guidance), deal.counts, "sequence")

    def _turns(self, branches: int, computed: int, tokens: int) -> Turns | None:
        """Whether the branches of a rank take turns: one computes while the other's rows travel.

        Not where layers take turns in the buffers of a cache; nor with most of the tokens: there exchanges
        are little beside computing, and two forwards at once would need more memory than a full step.
        """
        alone = self._keeping.dtype == "native" and self._keeping.device == "accelerator"
        shared = self._mesh.size("sequence") > 1 and branches > 1
        takes = self._model.overlaps and shared and alone and 2 * computed <= tokens
        return Turns(self._model.device) if takes else None

    def _attend(self, deal: Deal, kv_deal: Deal, turns: Turns | None) -> SequenceAttention:
        """Self-attention of a step; its keys and values are of the rows of `kv_deal`."""
        shard, second = self._mesh.index("kv"), None
        attention = partial(
            SequenceAttention,
            self._mesh,
            chunk_rows=chunk_rows(self._model.device.type),
            kernel=self._kernel,
            meanwhile=turns.pass_on if turns else None,
        )
        if self._model.geometry.second_layers:
            video = deal.without_text
            second = attention(video.counts, kv_deal.counts, video.moves[shard])
        counts, kv_counts = deal.sequence_counts, kv_deal.sequence_counts
        return attention(counts, kv_counts, deal.moves[shard], second=second)
