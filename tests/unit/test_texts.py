"""Texts are encoded as diffusers encodes them, each once, and in few loads of the text encoder."""

import shutil

import pytest
import torch
from diffusers import WanPipeline

from jano_dist import Engine, UserError, load_config
from jano_dist.models import load_model
from jano_dist.models.text import TextEncoder, lent
from jano_dist.texts import Texts
from tests.conftest import WAN_TINY

PROMPTS = ["a red ball moves left", "", "a blue box moves up over a gray plain background"]


class Encoder:
    """Notes what it is asked for; the embedding of a text is its length."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        return {"text": torch.tensor([[[float(len(text))]] for text in texts])}


class TestTexts:
    def test_prepared_in_one_go_and_never_again(self):
        encoder = Encoder()
        texts = Texts(encoder)
        texts.prepare(["aaa", "b", "aaa", ""])
        texts.prepare(["b"])
        assert texts.embed("aaa", "")["text"].flatten().tolist() == [3, 0]
        assert texts.embed("b")["text"].shape == (1, 1, 1)
        assert encoder.calls == [["aaa", "b", ""]]

    def test_the_negative_prompt_stays(self):
        encoder = Encoder()
        texts = Texts(encoder)
        for prompt in ("aa", "bbb"):
            assert texts.embed(prompt, "n")["text"].flatten().tolist() == [len(prompt), 1]
        texts.embed("cc", "other")
        texts.embed("aa", "n")  # neither is kept: memory must not grow with every video
        assert encoder.calls == [["aa", "n"], ["bbb"], ["cc", "other"], ["aa", "n"]]

    def test_a_prompt_that_is_its_own_negative(self):
        encoder = Encoder()
        assert Texts(encoder).embed("a", "a")["text"].flatten().tolist() == [1, 1]
        assert encoder.calls == [["a"]]


@pytest.fixture
def loads(monkeypatch):
    """The texts of every load of the text encoder."""
    calls, encode = [], TextEncoder.encode

    def noting(self, prompts, device):
        calls.append(list(prompts))
        return encode(self, prompts, device)

    monkeypatch.setattr(TextEncoder, "encode", noting)
    return calls


@pytest.fixture
def engine(small):
    return Engine(load_config(small))


def test_every_text_as_diffusers_encodes_it(engine, monkeypatch):
    """And one by one: larger encoders round otherwise in a batch, which wan-tiny's does not."""
    pipeline = WanPipeline.from_pretrained(WAN_TINY, transformer=None, vae=None, scheduler=None)
    calls, encode = [], WanPipeline.encode_prompt
    with monkeypatch.context() as patch:
        patch.setattr(
            WanPipeline, "encode_prompt", lambda self, *a, **k: calls.append(a) or encode(self, *a, **k)
        )
        ours = engine.model.encode(PROMPTS)
    assert calls == [(prompt,) for prompt in PROMPTS]
    for prompt, embedding in zip(PROMPTS, ours["text"], strict=True):
        for theirs in pipeline.encode_prompt(prompt, negative_prompt=prompt, max_sequence_length=32):
            assert torch.equal(embedding, theirs[0])


class TestEngine:
    def test_a_second_video_encodes_only_its_prompt(self, engine, loads):
        first = engine.generate("a red ball", seed=3)
        engine.generate("a blue box")
        again = engine.generate("a red ball", seed=3)
        assert loads == [["a red ball", ""], ["a blue box"], ["a red ball"]]
        assert torch.equal(first.latents, again.latents)

    def test_prepared_texts_are_one_load(self, engine, small, loads):
        texts = ["a red ball", "a box", "", "a blue box"]
        engine.prepare(texts)
        ours = [engine.generate("a blue box", negative_prompt="a box"), engine.generate("a red ball", seed=1)]
        assert loads == [texts]
        alone = Engine(load_config(small, overrides={"sampling.negative_prompt": "a box"}))
        assert torch.equal(ours[0].latents, alone.generate("a blue box").latents)
        assert torch.equal(ours[1].latents, Engine(load_config(small)).generate("a red ball", seed=1).latents)

    def test_shared_weights_and_texts(self, engine, small, loads):
        overrides = {"policy.name": "full", "sampling.steps": 4, "sampling.guidance": 1.0}
        config = load_config(small, overrides=overrides)
        engine.prepare(["a red ball"])
        other = engine.share(config)
        assert other.model is engine.model
        ours = other.generate("a red ball")
        assert len(loads) == 1
        assert torch.equal(ours.latents, Engine(config).generate("a red ball").latents)
        assert torch.equal(  # the first one is as it was
            engine.generate("a red ball").latents, Engine(load_config(small)).generate("a red ball").latents
        )

    def test_not_of_another_model(self, engine, small):
        with pytest.raises(UserError, match="section model"):
            engine.share(load_config(small, overrides={"model.vae_tiling": True}))


def model_of(text_encoder, folder="wan-tiny"):
    settings = {"dtype": "auto", "vae_dtype": "float32", "max_sequence_length": 32}
    return load_model(str(folder), device=torch.device("cpu"), text_encoder=text_encoder, **settings)


@pytest.fixture
def reads(monkeypatch):
    """For each time that text encoders were read from their files, whether it was in inference mode."""
    calls, read = [], WanPipeline.from_pretrained.__func__

    def noting(cls, *args, **rest):
        calls.append(torch.is_inference_mode_enabled())
        return read(cls, *args, **rest)

    monkeypatch.setattr(WanPipeline, "from_pretrained", classmethod(noting))
    return calls


class TestKept:
    """Between prompts, in host memory."""

    def test_bit_for_bit_as_read_anew(self, reads):
        ours = {}
        for how, times in (("keep", 1), ("reload", 3)):
            model = model_of(how)
            reads.clear()
            ours[how] = []
            with torch.inference_mode():  # as in a generation
                ours[how] += [model.encode(PROMPTS[:2])["text"], model.encode(PROMPTS[2:])["text"]]
            ours[how].append(model.encode(PROMPTS[:1])["text"])
            assert reads == [False] * times
        for kept, anew in zip(ours["keep"], ours["reload"], strict=True):
            assert torch.equal(kept, anew)

    def test_by_default_where_it_fits(self, small, reads, monkeypatch):
        for how, fits, times in (("auto", True, 1), ("auto", False, 2), ("reload", True, 2)):
            config = load_config(small, overrides={"model.text_encoder": how, "policy.name": "full"})
            with monkeypatch.context() as patch:
                if not fits:
                    patch.setattr("jano_dist.engine.check_fit", lambda *_, **__: "reload")
                engine = Engine(config)
            reads.clear()
            for prompt in ("a red ball", "a blue box"):
                engine.generate(prompt)
            assert len(reads) == times

    @pytest.mark.parametrize("how", ["keep", "reload"])
    def test_a_broken_one_is_said_in_the_same_sentence(self, tmp_path, how):
        folder = tmp_path / "model"
        shutil.copytree(WAN_TINY, folder)
        model = model_of(how, folder)
        (folder / "text_encoder" / "config.json").write_text("{")
        with pytest.raises(UserError, match=f"{folder} does not load as a diffusers pipeline .*: fetch the"):
            model.encode(PROMPTS)


class Tied(torch.nn.Module):
    """Two names of one weight, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("places", torch.arange(3), persistent=False)


class Copied(Tied):
    """What PyTorch does for a GPU, on the CPU: parameters get other data, buffers are others."""

    def to(self, device):
        return self._apply(lambda tensor: tensor.to(device, copy=True))


class TestLent:
    """No copy comes back, so what lay in host memory lies there again."""

    def test_moved_as_to_a_gpu(self):
        module = Copied()
        tensors = [module.first.weight, module.first.bias, module.second.bias, module.places]
        places, values = [each.data_ptr() for each in tensors], [each.clone() for each in tensors]
        with torch.inference_mode(), lent([module], torch.device("cpu")):
            now = [module.first.weight, module.first.bias, module.second.bias, module.places]
            assert not {each.data_ptr() for each in now} & set(places)
            assert all(torch.equal(*pair) for pair in zip(now, values, strict=True))
        now = [module.first.weight, module.first.bias, module.second.bias, module.places]
        assert [each.data_ptr() for each in now] == places

    @pytest.mark.parametrize("fails", [False, True])
    def test_home_again(self, fails):
        """Where parameters become others, too."""
        module = Tied()
        tensors = [module.first.weight, module.first.bias, module.second.bias, module.places]
        places, values = [each.data_ptr() for each in tensors], [each.clone() for each in tensors]
        with torch.inference_mode():
            try:
                with lent([module], torch.device("meta")):
                    assert module.first.weight.is_meta
                    assert module.places.is_meta
                    assert fails is False or 1 / 0
            except ZeroDivisionError:
                assert fails
        assert module.second.weight is module.first.weight
        now = [module.first.weight, module.first.bias, module.second.bias, module.places]
        assert [each.data_ptr() for each in now] == places
        assert all(torch.equal(*pair) for pair in zip(now, values, strict=True))
        module.first(torch.ones(3)).sum().backward()  # they are ordinary tensors still
