"""A Qwen3-VL of the real classes with next to no weights, random ones: what a miniature trains in place of 8B."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from srgym.rewards.serving.prompts import COMPARE, FIDELITY, KINDS, QUALITY, REFREWARD, compass

__all__ = ["write_tiny"]

_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if 'text' in part %}{{ part['text'] }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_ANSWERS = (
    '{"fidelity":0.83,"q_lr":2.10,"q_sr":3.75,"description":"the second image is sharper"}',
    '{"consistency":3.21,"naturalness":4.56}',
)


def write_tiny(
    folder: Path,
    *,
    width: int = 128,
    layers: int = 3,
    tokens: int = 700,
    pixels: int = 128 * 128,
    spread: float = 0.04,
    seed: int = 0,
) -> Path:
    """Write the model, its tokenizer and its processor as a folder that transformers and vLLM read.

    Args:
        width, layers: of the language model. tokens: of its vocabulary, which is made of srgym's own questions, so that
            these are short; every digit is a token, as in Qwen's.
        pixels: the most of an image, which larger ones are made smaller to.
        spread: standard deviation of the weights. At the library's own, 0.02, images barely move the answer.
    """
    texts = (*map(compass, KINDS), REFREWARD, COMPARE, QUALITY, FIDELITY, *_ANSWERS)
    tokenizer = _tokenizer(texts, tokens)
    _model(tokenizer, width, layers, spread, seed).save_pretrained(folder)
    _processor(tokenizer, pixels).save_pretrained(folder)
    return folder


def _tokenizer(texts: Sequence[str], tokens: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    single = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([single, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(8 * list(texts), trainer)
    tokenizer.add_special_tokens(list(_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096,
        chat_template=_TEMPLATE,
    )  # fmt: skip


def _model(tokenizer: Any, width: int, layers: int, spread: float, seed: int) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    of = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = {
        "vocab_size": 64 * (len(tokenizer) // 64 + 1), "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32,  # vLLM's CPU attention takes no smaller one
        "max_position_embeddings": 4096, "rope_parameters": rope, "pad_token_id": of("<|endoftext|>"),
        "bos_token_id": of("<|endoftext|>"), "eos_token_id": of("<|im_end|>"), "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": width // 2, "intermediate_size": width, "num_heads": 2, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": width, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=of("<|image_pad|>"),
        video_token_id=of("<|video_pad|>"), vision_start_token_id=of("<|vision_start|>"),
        vision_end_token_id=of("<|vision_end|>"), tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, spread)
    model.generation_config.eos_token_id = of("<|im_end|>")
    model.generation_config.pad_token_id = of("<|endoftext|>")
    return model


def _processor(tokenizer: Any, pixels: int) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    of: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    of |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = Qwen2VLImageProcessor(**of, size={"shortest_edge": 32 * 32, "longest_edge": pixels})
    videos = Qwen3VLVideoProcessor(**of, size={"shortest_edge": 4 * 32 * 32, "longest_edge": 4 * pixels})
    return Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    )
