"""The closed vocabulary: a word-level tokenizer and a two-layer UMT5 text encoder for it."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from training.wan_tiny.data import VOCABULARY

MAX_LENGTH = 32
TEXT_DIM = 128


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, </s> at the end and padding after it, as T5 does; other words become <unk>."""
    words = ["<pad>", "</s>", "<unk>", *VOCABULARY]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=MAX_LENGTH,
    )


def build_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=3 + len(VOCABULARY),
        d_model=TEXT_DIM,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config)


def embed(tokenizer, encoder, captions: list[str]) -> torch.Tensor:
    """Captions -> (batch, MAX_LENGTH, TEXT_DIM), zero after the text: what WanPipeline feeds the DiT."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    )
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask[..., None].to(hidden.dtype)
