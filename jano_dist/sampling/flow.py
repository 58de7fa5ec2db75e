"""What a model predicts (noise, data, or a mixture) as a flow velocity: scores see one kind of thing.

Time runs as in flow matching: 1 is noise and 0 is data; a velocity dx/dt points from data to noise.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jano_dist.errors import UserError

_MIXTURES = ("epsilon", "sample", "v_prediction")
_FLOW = "flow_prediction"


@dataclass(frozen=True)
class Path:
    """The path of a sampler: at each of its S steps the latent is x = alpha x0 + sigma eps.

    Attributes:
        alphas, sigmas: float64 [S + 1]; the last entry is the data, 1 and 0.
        times: float64 [S + 1], falling to 0.
        predicts: `epsilon`, `sample` (x0), `v_prediction` (alpha eps - sigma x0) or `flow_prediction`
            (eps - x0).
    """

    alphas: Tensor
    sigmas: Tensor
    times: Tensor
    predicts: str

    @classmethod
    def of(cls, scheduler: Any) -> "Path":
        """The path of a diffusers scheduler whose timesteps are set.

        Raises:
            UserError: its latents lie on no such path, or it predicts something else.
        """
        config = scheduler.config
        straight = not hasattr(scheduler, "alphas_cumprod") or config.get("use_flow_sigmas", False)
        predicts = config.get("prediction_type", _FLOW if straight else None)
        scaled = float(scheduler.init_noise_sigma) != 1 if hasattr(scheduler, "init_noise_sigma") else False
        if scaled or predicts not in (*_MIXTURES, _FLOW):
            raise UserError(
                f"the scheduler {type(scheduler).__name__} of prediction_type {predicts!r} is not supported: "
                "put a DDIMScheduler, DPMSolverMultistepScheduler or flow-matching one into its folder"
            )
        return _straight(scheduler, predicts) if straight else _variance_preserving(scheduler, predicts)

    def ends(self, prediction: Tensor, latent: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The data x0 and the noise eps, of any shape, between which a prediction places the latent."""
        alpha, sigma = float(self.alphas[step]), float(self.sigmas[step])
        if self.predicts == "epsilon":
            return (latent - sigma * prediction) / alpha, prediction
        if self.predicts == "sample":
            return prediction, (latent - alpha * prediction) / sigma
        if self.predicts == "v_prediction":
            return alpha * latent - sigma * prediction, sigma * latent + alpha * prediction
        data = (latent - sigma * prediction) / (alpha + sigma)
        return data, data + prediction

    def velocity(self, prediction: Tensor, latent: Tensor, step: int) -> Tensor:
        """The velocity along this path, in its own time, by differences to the next step.

        (a'/a) x + (s' - (a'/a) s) eps, which is a' x0 + s' eps (arXiv 2603.00519, supplement, eq. 1). The
        derivatives are (alpha[step] - alpha[step + 1]) / (times[step] - times[step + 1]), and sigma's alike;
        the last step's are taken to the data.
        """
        alpha, sigma, time = (
            float(table[step] - table[step + 1]) for table in (self.alphas, self.sigmas, self.times)
        )
        data, noise = self.ends(prediction, latent, step)
        return (alpha * data + sigma * noise) / time

    def straight_velocity(self, prediction: Tensor, latent: Tensor, step: int) -> Tensor:
        """What a flow model would have predicted here: eps - x0.

        x / (alpha + sigma) = (1 - t) x0 + t eps with t = sigma / (alpha + sigma): in this scale and time
        every path is straight, equation 1 has constant derivatives, and where the data are known nothing
        changes.
        """
        if self.predicts == _FLOW:
            return prediction
        data, noise = self.ends(prediction, latent, step)
        return noise - data


def _straight(scheduler: Any, predicts: str) -> Path:
    """x = (1 - t) x0 + t eps; the scheduler's sigmas are the times."""
    times = scheduler.sigmas.double().cpu()
    return Path(1 - times, times, times, predicts)


def _variance_preserving(scheduler: Any, predicts: str) -> Path:
    """alpha = sqrt(abar), sigma = sqrt(1 - abar) of each timestep; the time of index k of T is (k + 1) / T.

    So the data, before index 0, have time 0.
    """
    table = scheduler.alphas_cumprod.double().cpu()
    index = scheduler.timesteps.long().cpu()
    kept = torch.cat([table[index], torch.ones(1, dtype=torch.float64)])
    times = torch.cat([(index + 1) / len(table), torch.zeros(1)]).double()
    return Path(kept.sqrt(), (1 - kept).sqrt(), times, predicts)
