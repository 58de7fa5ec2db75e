"""The optimiser and the two-process plumbing that the VAE and the DiT training share.

The models compute in bfloat16 (several times faster than float32 on a CPU with AVX512-BF16), which is too
coarse to add small updates to, so the optimiser keeps float32 "master" copies and, beside them, their
exponential moving average (EMA): the weights that are saved in the end.
"""

import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Push all singular values of a matrix towards 1 (five quintic Newton-Schulz steps, as in Muon)."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).float()


class HybridOptimizer:
    """Muon for the weight matrices (conv kernels flattened to 2-D), Adam for everything else.

    Adam alone left this VAE at 14 dB; the orthogonalised updates are what makes half an hour enough.
    """

    def __init__(self, named_parameters, muon_lr: float, adam_lr: float, ema: float, adam_names=()):
        self.muon_lr, self.adam_lr, self.ema_decay, self.steps = muon_lr, adam_lr, ema, 0
        self.names, self.live = [], []
        self.use_muon = []
        for name, p in named_parameters:
            if p.requires_grad:
                self.names.append(name)
                self.live.append(p)
                matrix = p.dim() >= 2 and min(p.shape[0], p[0].numel()) >= 8
                self.use_muon.append(matrix and not any(part in name for part in adam_names))
        self.master = [p.detach().float().clone() for p in self.live]
        self.ema = [m.clone() for m in self.master]
        self.momentum = [torch.zeros_like(m) for m in self.master]
        self.second = [
            None if muon else torch.zeros_like(m) for m, muon in zip(self.master, self.use_muon, strict=True)
        ]

    def flat_gradient(self) -> torch.Tensor:
        """All gradients in one vector (and let go of them)."""
        parts = [
            torch.zeros_like(m) if p.grad is None else p.grad.float()
            for p, m in zip(self.live, self.master, strict=True)
        ]
        for p in self.live:
            p.grad = None
        return torch.cat([part.reshape(-1) for part in parts])

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, lr_scale: float, clip: float = 1.0) -> float:
        """One update from flat_gradient(); lr_scale multiplies both learning rates. Returns the norm."""
        self.steps += 1
        norm = float(gradient.norm())
        gradient = gradient * min(1.0, clip / (norm + 1e-6))
        pieces = gradient.split([m.numel() for m in self.master])
        for i, (master, piece) in enumerate(zip(self.master, pieces, strict=True)):
            piece = piece.view_as(master)
            if self.use_muon[i]:
                self._muon(i, piece, lr_scale * self.muon_lr)
            else:
                self._adam(i, piece, lr_scale * self.adam_lr)
            self.live[i].copy_(master)
        # A young average is short, so that the random start is forgotten at once.
        decay = min(self.ema_decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.ema, self.master, 1 - decay)
        return norm

    def _muon(self, i: int, gradient: torch.Tensor, lr: float):
        self.momentum[i].lerp_(gradient, 0.05)
        update = orthogonalise(gradient.lerp(self.momentum[i], 0.95).flatten(1))
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        self.master[i].mul_(1 - 0.1 * lr).add_(update.view_as(gradient), alpha=-lr * scale)

    def _adam(self, i: int, gradient: torch.Tensor, lr: float):
        self.momentum[i].lerp_(gradient, 0.1)
        self.second[i].lerp_(gradient * gradient, 0.05)
        first = self.momentum[i] / (1 - 0.9**self.steps)
        second = self.second[i] / (1 - 0.95**self.steps)
        self.master[i].addcdiv_(first, second.sqrt() + 1e-8, value=-lr)

    def ema_state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in zip(self.names, self.ema, strict=True)}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]):
        """Start from saved weights (masters, average and the live model)."""
        for name, live, master, ema in zip(self.names, self.live, self.master, self.ema, strict=True):
            for target in (live, master, ema):
                target.copy_(state[name])


class Clock:
    """Training is planned by wall clock: fraction() runs from 0 at the start to 1 at the end."""

    def __init__(self, seconds: float):
        self.start, self.seconds = time.time(), seconds

    def fraction(self) -> float:
        return (time.time() - self.start) / self.seconds


def average(gradient: torch.Tensor, fraction: float) -> tuple[torch.Tensor, float]:
    """Average over the processes. The clock rides along, so that all of them stop at the same step."""
    if not dist.is_initialized():
        return gradient, fraction
    packed = torch.cat([gradient, torch.tensor([fraction])])
    dist.all_reduce(packed)
    packed /= dist.get_world_size()
    return packed[:-1], float(packed[-1])


def _process(rank: int, workers: int, port: int, function, arguments):
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    function(rank, **arguments)


def launch(function, workers: int, port: int = 29571, **arguments):
    """Run function(rank, **arguments) in that many single-threaded processes (faster than threads here)."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if workers == 1:
        _process(0, 1, port, function, arguments)
    else:
        mp.spawn(_process, args=(workers, port, function, arguments), nprocs=workers)


def save_atomically(state, path):
    """Write beside, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
