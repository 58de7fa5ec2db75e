"""Image-to-video, and Wan2.2 of one expert, against diffusers' own pipelines on small random weights."""

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jano_dist import Engine, UserError, load_config
from jano_dist.account.memory import picture_bytes, text_bytes
from jano_dist.cache import KVCache, NoCache
from jano_dist.geometry import quick_geometry
from jano_dist.models.sizes import read_sizes
from jano_dist.tokens.plan import TokenPlan
from jano_dist.tokens.schedule import StepKind
from tests.parity.test_flops import counted
from tests.parity.video_pipelines import TEXT_TOKENS, i2v_pipeline, picture, read_back, ti2v_pipeline

SMALL = {
    "model.max_sequence_length": TEXT_TOKENS,
    "model.vae_dtype": "float32",
    "video.frames": 5,
    "sampling.steps": 8,
    "sampling.guidance": 4.0,
    "policy.block": [1, 2, 2],
    "policy.warmup": 3,
    "policy.cooldown": 1,
}
CASES = [
    ("a red ball", 0, (32, 48), 4.0),
    ("a box", 1, (48, 32), 1.0),
    ("a blue box stays still", 2, (32, 32), 4.0),
]


# Block caches that find nothing to reuse.
NEVER = {
    "teacache": {"policy.threshold": 1e-9},
    "magcache": {"policy.threshold": 1e-9, "policy.ratios": [0.9] * 16},
    "fbcache": {"policy.threshold": 1e-9},
    "taylorseer": {"policy.interval": 1},
    "pab": {"policy.self_range": 1, "policy.cross_range": 1},
    "toca": {"policy.interval": 1, "policy.cross_interval": 1},
}


class Kind:
    def __init__(self, folder, pipeline):
        self.folder, self.theirs, self.model = folder, read_back(pipeline, folder), None

    def engine(self, image, policy="full", size=(32, 48), guidance=4.0, overrides=None):
        own = {"model.name": str(self.folder), "video.height": size[0], "video.width": size[1]}
        own |= {"sampling.image": image and str(image), "sampling.guidance": guidance}
        settings = {k: v for k, v in SMALL.items() if policy == "jano" or not k.startswith("policy.")}
        config = load_config("wan-tiny", policy=policy, overrides={**settings, **own, **(overrides or {})})
        made = Engine(config, model=self.model)
        self.model = made.model
        return made

    def reference(self, prompt, seed, size, guidance, output="latent", **image):
        return self.theirs(
            prompt=prompt,
            negative_prompt="",
            num_frames=5,
            height=size[0],
            width=size[1],
            num_inference_steps=8,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=TEXT_TOKENS,
            output_type=output,
            **image,
        ).frames[0]


KINDS = {"clip": {}, "no clip": {"clip": False}, "two experts": {"clip": False, "boundary": 0.8}}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def i2v(request, tmp_path_factory):
    return Kind(tmp_path_factory.mktemp("i2v") / "model", i2v_pipeline(**request.param))


@pytest.mark.parametrize(("prompt", "seed", "size", "guidance"), CASES)
def test_latents(i2v, tmp_path, prompt, seed, size, guidance):
    image = picture(tmp_path / "image.png", seed)
    ours = i2v.engine(image, size=size, guidance=guidance).generate(prompt, seed=seed).latents
    theirs = i2v.reference(prompt, seed, size, guidance, image=Image.open(image).convert("RGB"))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5


def test_pixels_and_the_picture_counts(i2v, tmp_path):
    images = [picture(tmp_path / f"{seed}.png", seed) for seed in (0, 1)]
    made = [i2v.engine(image).generate("a box", seed=1).frames for image in images]
    theirs = i2v.reference("a box", 1, (32, 48), 4.0, "np", image=Image.open(images[0]).convert("RGB"))
    assert np.abs(made[0] / 255 - theirs).max() <= 0.51 / 255
    assert not np.array_equal(*made)


@torch.inference_mode()
def test_a_partial_step_equals_the_rows_of_a_full_one(i2v, tmp_path):
    image = picture(tmp_path / "image.png", 0)
    check_partial_step(i2v.engine(image).model, image, (2, 4, 6), 12)


def check_partial_step(model, image, shape, tokens):
    geometry, timestep, latent = model.geometry, torch.tensor(600.0), model.noise(shape, seed=4)
    branch = model.branch(model.encode(["a red ball"]) | model.look(str(image), shape))
    levels = torch.tensor([3, 1, 2] * 4, dtype=torch.uint8)
    plan = TokenPlan.from_levels(levels)
    cache = KVCache(geometry.layers, tokens, geometry.heads, geometry.head_dim, model.dtype, model.device)
    every = model.forward(latent, timestep, branch, torch.arange(tokens), NoCache(geometry.layers))
    model.forward(latent, timestep, branch, plan.rows(StepKind.REFRESH), cache)
    rows = plan.rows(StepKind.ACTIVE)
    part = model.forward(latent, timestep, branch, rows, cache)
    assert (part - every[rows]).abs().max() <= 1e-6 * float(every.abs().max()) + 1e-6


def test_everything_active_equals_full(i2v, tmp_path):
    check_everything_active(i2v, picture(tmp_path / "image.png", 0), (32, 48))


def check_everything_active(kind, image, size):
    full = kind.engine(image, size=size).generate("a red ball", seed=1).latents
    thresholds = {"policy.static_threshold": 0.0, "policy.moderate_threshold": 0.0}
    jano = kind.engine(image, "jano", size=size, overrides=thresholds).generate("a red ball", seed=1)
    assert jano.record["levels"]["active"] == 1.0
    assert (jano.latents - full).abs().max() <= 1e-6


@torch.inference_mode()
def test_flops_are_those_that_torch_counts(i2v, tmp_path):
    model, shape = i2v.engine(picture(tmp_path / "image.png", 0)).model, (2, 4, 6)
    geometry, latent, timestep = model.geometry, model.noise(shape, seed=4), torch.tensor(600.0)
    branch, counts = model.branch(model.encode(["a"]) | model.look(str(tmp_path / "image.png"), shape)), []
    for _ in range(2):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.forward(latent, timestep, branch, torch.arange(12), NoCache(geometry.layers))
        counts.append(counter.get_total_flops())
    assert counts[1] == geometry.forward_flops(12, 12, TEXT_TOKENS)
    assert counts[0] - counts[1] == geometry.text_flops(TEXT_TOKENS)


@torch.inference_mode()
def test_bytes_that_are_kept(i2v, tmp_path):
    """Of one branch, for text and picture."""
    image, shape = picture(tmp_path / "image.png", 0), (2, 4, 6)
    model = i2v.engine(image).model
    branch = model.branch(model.encode(["a"]) | model.look(str(image), shape))
    latent, timestep = model.noise(shape, seed=4), torch.tensor(600.0)
    model.forward(latent, timestep, branch, torch.arange(12), NoCache(model.geometry.layers))
    kept = [
        sum(each.nbytes for layer in layers for each in layer.kept)
        for layers in (branch.layers, branch.pictures)
    ]
    states = branch.conditions["image"].nbytes if branch.pictures else 0
    assert kept[0] + branch.text.nbytes == text_bytes(model.geometry, TEXT_TOKENS, 4)
    assert kept[1] + states == picture_bytes(model.geometry, 4)
    assert branch.conditions["latent"].nbytes == model.geometry.condition_channels * 2 * 4 * 6 * 4


@pytest.mark.parametrize("policy", ["pab", "toca"])
def test_work_inside_the_blocks_is_torchs_count(tmp_path, policy):
    """The parts that attend to the picture are reused, and their work is counted with it."""
    kind = Kind(tmp_path / "model", i2v_pipeline())
    engine = kind.engine(picture(tmp_path / "image.png", 0), policy, overrides={"sampling.steps": 10})
    record, total = counted(engine)
    assert record["flops"]["done"] == total < record["flops"]["full"]


@torch.inference_mode()
def test_what_the_picture_becomes(i2v, tmp_path):
    """The mask is 1 in the first latent frame alone; beside it the picture, encoded and scaled."""
    path, shape, vae = picture(tmp_path / "image.png", 0, width=48, height=32), (2, 4, 6), i2v.theirs.vae
    conditions = i2v.engine(path).model.look(str(path), shape)
    mask, latent = conditions["latent"][0].split([4, 4])
    assert torch.equal(mask, torch.tensor([1.0, 0.0])[:, None, None].expand(4, 2, 4, 6))
    pixels = torch.tensor(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 127.5 - 1
    video = torch.cat([pixels[:, None], torch.zeros(3, 4, 32, 48)], 1)
    mean, std = (
        torch.tensor(vae.config[name])[:, None, None, None] for name in ("latents_mean", "latents_std")
    )
    wanted = (vae.encode(video[None]).latent_dist.mode()[0] - mean) / std
    assert (latent - wanted).abs().max() <= 1e-4


def test_sizes(i2v):
    assert quick_geometry(str(i2v.folder)) == read_sizes(str(i2v.folder)).geometry
    transformer = read_sizes("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", local=True).transformer
    assert (transformer.plain + transformer.float32) / 1e9 == pytest.approx(16.4, abs=0.05)


class TestWan22OfOneExpert:
    """A timestep per token: of the first frame, where that is the picture, it is 0."""

    @pytest.fixture(scope="class")
    def ti2v(self, tmp_path_factory):
        return Kind(tmp_path_factory.mktemp("ti2v") / "model", ti2v_pipeline())

    @pytest.fixture(scope="class")
    def theirs(self, ti2v):
        """The same folder as one that makes videos of pictures."""
        kind = Kind.__new__(Kind)
        kind.theirs = WanImageToVideoPipeline.from_pretrained(ti2v.folder, image_encoder=None)
        kind.theirs.set_progress_bar_config(disable=True)
        assert kind.theirs.config.expand_timesteps
        return kind

    @pytest.mark.parametrize(
        ("prompt", "seed", "size"), [("a red ball", 0, (64, 96)), ("a box", 1, (96, 64))]
    )
    def test_latents_from_text(self, ti2v, prompt, seed, size):
        """The timesteps of all tokens are the same, so one says it."""
        ours = ti2v.engine(None, size=size).generate(prompt, seed=seed).latents
        assert ours.shape == (6, 2, size[0] // 16, size[1] // 16)
        assert (ours - ti2v.reference(prompt, seed, size, 4.0)).abs().max() <= 1e-5

    @pytest.mark.parametrize(
        ("prompt", "seed", "size", "guidance"),
        [
            ("a red ball", 0, (64, 96), 4.0),
            ("a box", 1, (96, 64), 1.0),
            ("a blue box stays still", 2, (64, 64), 4.0),
        ],
    )
    def test_latents_from_a_picture(self, ti2v, theirs, tmp_path, prompt, seed, size, guidance):
        image = picture(tmp_path / "image.png", seed)
        ours = ti2v.engine(image, size=size, guidance=guidance).generate(prompt, seed=seed).latents
        reference = theirs.reference(prompt, seed, size, guidance, image=Image.open(image).convert("RGB"))
        assert (ours - reference).abs().max() <= 1e-5

    def test_pixels(self, ti2v, theirs, tmp_path):
        image = picture(tmp_path / "image.png", 0)
        for ours, own in ((ti2v, {}), (theirs, {"image": Image.open(image).convert("RGB")})):
            given = image if own else None
            made = ti2v.engine(given, size=(64, 96)).generate("a box", seed=1).frames
            reference = ours.reference("a box", 1, (64, 96), 4.0, "np", **own)
            assert np.abs(made / 255 - reference).max() <= 0.51 / 255

    @torch.inference_mode()
    def test_a_partial_step_equals_the_rows_of_a_full_one(self, ti2v, tmp_path):
        image = picture(tmp_path / "image.png", 0)
        model, tokens = ti2v.engine(image, size=(64, 96)).model, 12
        check_partial_step(model, image, (2, 4, 6), tokens)

    def test_everything_active_equals_full(self, ti2v, tmp_path):
        check_everything_active(ti2v, picture(tmp_path / "image.png", 0), (64, 96))

    @pytest.mark.parametrize("policy", NEVER)
    def test_caches_inside_blocks(self, ti2v, tmp_path, policy):
        """A cache that never finds anything to reuse makes the full video, whatever it looks at."""
        image, size = picture(tmp_path / "image.png", 0), (64, 96)
        full = ti2v.engine(image, size=size).generate("a red ball", seed=1).latents
        made = ti2v.engine(image, policy, size=size, overrides=NEVER[policy]).generate("a red ball", seed=1)
        assert (made.latents - full).abs().max() <= 1e-6


class TestRefused:
    def test_without_a_picture(self, i2v):
        with pytest.raises(UserError, match="makes videos of an image: give one with --image FILE"):
            i2v.engine(None)

    def test_a_picture_for_a_text_model(self, tmp_path):
        image = picture(tmp_path / "image.png", 0)
        with pytest.raises(UserError, match=r"of text alone: leave --image .* out"):
            Engine(load_config("wan-tiny", overrides={"sampling.image": str(image)}))

    def test_a_picture_that_cannot_be_read(self, i2v, tmp_path):
        (tmp_path / "image.png").write_text("no image")
        with pytest.raises(UserError, match=r"image.png cannot be read as an image: give one"):
            i2v.engine(tmp_path / "image.png").generate("a")
        with pytest.raises(UserError, match=r"there is no image .*none.png: give a file"):
            i2v.engine(tmp_path / "none.png").generate("a")
