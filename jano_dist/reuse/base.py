"""What all caches inside the transformer's blocks share.

A block cache stands between the transformer and its parts: every block and, in it, `attn1` (self-attention),
`attn2` (cross-attention) and `ffn` is handed to it with what would compute it, and it answers with an output.
Shapes: n rows of this rank, W hidden size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from jano_dist.cache import LayerKV, NoCache
from jano_dist.mesh import Mesh

Compute = Callable[[Tensor], Tensor]

# The parts of a block, by their names in diffusers' WanTransformerBlock.
PARTS = ("attn1", "attn2", "ffn")


@dataclass(frozen=True)
class Setting:
    """Where block caches are made: one generation on one rank.

    Attributes:
        mesh: of the ranks. layers: blocks of the transformer. branches: that this rank runs.
        timesteps: of all steps, as the scheduler gives them, 1000..0.
        first: the step that comes first, above 0 after a snapshot.
    """

    mesh: Mesh
    layers: int
    branches: int
    timesteps: Sequence[float]
    first: int = 0


class Agreement:
    """One whole number per step, the coordinator's, for all its branches and on every rank."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._step, self._value = mesh, -1, 0

    def ask(self, step: int, value: Callable[[], int]) -> int:
        """The number of this step. `value` is called once per step on every rank, in its first branch; what
        it says elsewhere than on the coordinator is ignored."""
        if step != self._step:
            (self._value,) = self._mesh.decide(value())
            self._step = step
        return self._value


class BlockCache:
    """One branch's cache inside the blocks. This one keeps nothing and computes everything.

    Attention inside a block sees just what the step computed, as with `NoCache`.

    Attributes:
        step: the one that runs. listens: whether it wants to hear of cross-attention's queries and keys.
        work: rows computed in this step, over all layers, by part; `scores`: rows that `attended` scored.
    """

    projects_all = False
    listens = False

    def __init__(self, setting: Setting) -> None:
        self.layers: Sequence[LayerKV] = NoCache(setting.layers).layers
        self.last, self.step = setting.layers - 1, setting.first - 1
        self.work = dict.fromkeys((*PARTS, "scores"), 0)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(tensor.nbytes for tensor in self.kept())

    def kept(self) -> Iterable[Tensor]:
        """What outlives a step."""
        return ()

    def begin(self, time: Tensor, projected: Tensor) -> None:
        """A forward begins: the next step.

        Args:
            time: timestep embedding [1, W]. projected: what the blocks are modulated by, [1, 6 W].
        """
        self.step += 1
        self.work = dict.fromkeys(self.work, 0)

    def block(self, layer: int, x: Tensor, compute: Compute) -> Tensor:
        """A block's output for the hidden states x [1, n, W]."""
        return compute(x)

    def part(self, layer: int, name: str, x: Tensor, compute: Compute) -> Tensor:
        """The output [1, n, W] of a part of a block for its input x [1, n, W]."""
        self.work[name] += x.shape[1]
        return compute(x)

    def attended(self, layer: int, q_nhd: Tensor, k_nhd: Tensor) -> None:
        """Queries [n, H, D] and text keys [L, H, D] of a cross-attention that is being computed."""

    def work_of(self, tokens: int, own: int) -> dict[str, int]:
        """`work` of the whole branch, of whose `tokens` this rank has `own`."""
        return {name: rows * tokens // max(own, 1) for name, rows in self.work.items()}
