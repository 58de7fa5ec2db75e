"""Other engines on the same work: diffusers' own context parallelism, and xDiT. For comparisons only.

Both run diffusers' `WanPipeline` with its transformer spread over all ranks by Ulysses; they get the same
weights, noise, text embeddings and scheduler as ours.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from diffusers import ContextParallelConfig, WanPipeline, WanTransformer3DModel
from torch import Tensor

from jano_dist.geometry import Geometry, WanGeometry
from jano_dist.models.base import DiffusionModel
from jano_dist.models.folder import model_folder
from jano_dist.models.quiet import quiet
from jano_dist.tokens.grid import Shape3


class Peer:
    """A pipeline that another engine has spread over the ranks.

    Args:
        pipeline: without text encoder; its transformer where it computes.
        model: ours, for text and noise.
    """

    def __init__(self, pipeline: Any, model: DiffusionModel) -> None:
        self._pipeline, self._model = pipeline, model
        self._began = 0.0
        pipeline.transformer.register_forward_pre_hook(self._begin)
        pipeline.set_progress_bar_config(disable=True)

    def run(
        self,
        prompts: list[str],
        latent: Shape3,
        *,
        steps: int,
        guidance: float,
        shift: float | None,
        seed: int,
    ) -> tuple[list[float], Tensor]:
        """Denoise once.

        Args:
            prompts: the prompt, and the negative prompt where guidance is on.
            latent: (T, H, W) positions.

        Returns:
            Seconds of each step on this rank, and the latent [C, T, H, W].
        """
        model, pipeline, ends = self._model, self._pipeline, list[float]()
        texts = model.encode(prompts)["text"].split(1)
        scheduler = model.scheduler(steps, shift, latent)
        pipeline.scheduler = type(pipeline.scheduler).from_config(scheduler.config)
        stride_t, stride_h, stride_w = model.geometry.vae_stride
        t, h, w = latent

        def mark(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            ends.append(time.perf_counter())
            return tensors

        self._began = 0.0
        with quiet():
            made = pipeline(
                prompt_embeds=texts[0],
                negative_prompt_embeds=texts[1] if len(texts) > 1 else None,
                num_frames=(t - 1) * stride_t + 1,
                height=h * stride_h,
                width=w * stride_w,
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=model.noise(latent, seed)[None],
                output_type="latent",
                callback_on_step_end=mark,
            ).frames[0]
        begins = [self._began, *ends]
        return [after - before for before, after in zip(begins, ends, strict=False)], made

    def _begin(self, *_: Any) -> None:
        self._began = self._began or time.perf_counter()


def why_not(
    peer: str, geometry: Geometry, tokens: int, *, world: int, weights: str, device: torch.device
) -> str | None:
    """Why a peer cannot do this work, the same on every rank; None if nothing is known against it."""
    if type(geometry) is not WanGeometry:
        return "only Wan's text-to-video pipelines are compared"
    if weights != "replicated":
        return f"only whole weights on every rank are compared, and model.weights is {weights}"
    if geometry.heads % world:
        return f"its Ulysses needs ranks that divide the {geometry.heads} heads"
    if tokens % world:
        return f"{tokens} tokens do not divide over {world} ranks"
    return _no_xdit(device) if peer == "xdit" else None


def _no_xdit(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "xDiT needs a GPU build of torch and a CUDA device"
    try:
        import_module("xfuser")
    except Exception as problem:  # it looks for GPUs and kernels at import
        return f"xfuser cannot be imported ({_first_line(problem)})"
    return None


def load_peer(peer: str, name: str, model: DiffusionModel, *, world: int, rank: int) -> Peer:
    """Load its pipeline; raises what the peer raises."""
    builders: dict[str, Callable[..., Any]] = {"diffusers": _spread_by_diffusers, "xdit": _spread_by_xdit}
    with quiet():
        return Peer(builders[peer](name, model, world=world, rank=rank), model)


def _spread_by_diffusers(name: str, model: DiffusionModel, *, world: int, rank: int) -> Any:
    pipeline = _pipeline(name, model, WanTransformer3DModel)
    if world > 1:
        with _an_accelerator(model.device):
            pipeline.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=world))
    return pipeline


def _spread_by_xdit(name: str, model: DiffusionModel, *, world: int, rank: int) -> Any:
    """As xDiT's own runner of Wan does it (xfuser/model_executor/models/runner_models/wan.py)."""
    arguments = import_module("xfuser").xFuserArgs(model=str(model_folder(name)), ulysses_degree=world)
    engine, _ = arguments.create_config()
    engine.runtime_config.dtype = model.dtype
    wrapper = import_module("xfuser.model_executor.models.transformers.transformer_wan")
    pipeline = _pipeline(name, model, wrapper.xFuserWanTransformer3DWrapper)
    import_module("xfuser.core.distributed").initialize_runtime_state(pipeline, engine)
    return pipeline


def _pipeline(name: str, model: DiffusionModel, transformer: Any) -> Any:
    folder = model_folder(name)
    loaded = transformer.from_pretrained(folder, subfolder="transformer", torch_dtype=model.dtype)
    loaded = loaded.to(model.device).eval()
    for parameter in loaded.parameters():  # out of the mapped file, where weights are not aligned
        parameter.data = parameter.data.clone()
    return WanPipeline.from_pretrained(folder, transformer=loaded, text_encoder=None, tokenizer=None).to(
        model.device
    )


@contextmanager
def _an_accelerator(device: torch.device) -> Iterator[None]:
    """diffusers counts accelerators before it spreads anything, and a CPU has none."""
    before = torch.accelerator.device_count
    if device.type == "cpu":
        torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = before


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
