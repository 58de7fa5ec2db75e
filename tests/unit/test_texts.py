"""Texts are encoded as diffusers encodes them, each once, and in few loads of the text encoder."""

import pytest
import torch
from diffusers import WanPipeline

from jano_dist import Engine, UserError, load_config
from jano_dist.models.text import TextEncoder
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
