"""Mesh: the ranks of a gang arranged as cfg x kv x ulysses. Owns every collective and counts its bytes.

One process is a mesh of one rank, whose collectives move nothing.
"""

from dataclasses import asdict, dataclass

from torch import Tensor


@dataclass
class Mesh:
    """Degrees of the three parallel dimensions and the collectives over them."""

    cfg: int
    kv: int
    ulysses: int
    _bytes_sent: int = 0

    @classmethod
    def single(cls) -> "Mesh":
        """One process: every degree is 1."""
        return cls(cfg=1, kv=1, ulysses=1)

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.cfg * self.kv * self.ulysses

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The coordinator's tensor, on every rank."""
        return tensor

    def take_bytes(self) -> int:
        """Bytes this rank sent since the last call."""
        sent, self._bytes_sent = self._bytes_sent, 0
        return sent

    def record(self) -> dict[str, int]:
        """`{cfg, kv, ulysses, world}` for the run record."""
        degrees = {name: degree for name, degree in asdict(self).items() if name in ("cfg", "kv", "ulysses")}
        return {**degrees, "world": self.world}
