"""Tiny pipelines with random weights, built from the real diffusers and transformers classes. Nothing is downloaded."""

import copy
import itertools
import string
import warnings

import pytest
import torch

from srgym.policies import make

KINDS = ("qwen_image_edit", "flux_kontext", "flux_controlnet", "sd3", "flux2_klein")
QWEN_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PRINTED = string.digits + string.ascii_letters + string.punctuation


def byte_vocabulary(specials, ending=""):
    """Every byte as a token, and no merges: enough for any text."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*specials, *alphabet, *(letter + ending for letter in alphabet if ending)]
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def clip(projected):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    vocabulary = byte_vocabulary(("<|startoftext|>", "<|endoftext|>"), "</w>")
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, projection_dim=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(config), CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5():
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in PRINTED)]
    config = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return T5EncoderModel(config), T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)


def vision_language():
    """A Qwen2.5-VL with its processor: pictures become 2 x 2 tokens and more."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = Qwen2Tokenizer(
        vocab=byte_vocabulary(QWEN_TOKENS), merges=[], extra_special_tokens=list(QWEN_TOKENS[1:]), model_max_length=2048
    )
    number = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_TOKENS}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": 0,
        "eos_token_id": number["<|im_end|>"], "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision,
        image_token_id=number["<|image_pad|>"], video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"], vision_end_token_id=number["<|vision_end|>"],
    )  # fmt: skip
    size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template="{{ messages }}",
    )
    return Qwen2_5_VLForConditionalGeneration(config), tokenizer, processor


def vae():
    """A 4x VAE whose distribution is next to a point, so that a sample of it is its mode."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=1,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.12, scaling_factor=0.36,
    )  # fmt: skip
    with torch.no_grad():
        model.encoder.conv_out.weight[4:] = 0
        model.encoder.conv_out.bias[4:] = -30
    return model


def scheduler(dynamic=True, **extra):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=dynamic, shift=1.0 if dynamic else 3.0, base_shift=0.5, max_shift=1.15,
        base_image_seq_len=256, max_image_seq_len=4096, **extra,
    )  # fmt: skip


def qwen_image_edit():
    import diffusers

    encoder, tokenizer, processor = vision_language()
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[1.1, 0.9, 1.0, 1.2],
    )  # fmt: skip
    return diffusers.QwenImageEditPlusPipeline(
        scheduler=scheduler(shift_terminal=0.02), vae=autoencoder, text_encoder=encoder, tokenizer=tokenizer,
        processor=processor, transformer=transformer,
    )  # fmt: skip


def flux(kind):
    import diffusers

    (encoder, tokenizer), (encoder_2, tokenizer_2) = clip(False), t5()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    parts = {
        "scheduler": scheduler(), "vae": vae(), "text_encoder": encoder, "tokenizer": tokenizer,
        "text_encoder_2": encoder_2, "tokenizer_2": tokenizer_2, "transformer": transformer,
    }  # fmt: skip
    if kind == "flux_kontext":
        return diffusers.FluxKontextPipeline(**parts)
    controlnet = diffusers.FluxControlNetModel.from_transformer(
        transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        load_weights_from_transformer=False,
    )  # fmt: skip
    return diffusers.FluxControlNetPipeline(**parts, controlnet=controlnet)


def sd3():
    import diffusers

    (encoder, tokenizer), (encoder_2, tokenizer_2), (encoder_3, tokenizer_3) = clip(True), clip(True), t5()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        scheduler=scheduler(False), vae=vae(), text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2, text_encoder_3=encoder_3, tokenizer_3=tokenizer_3, transformer=transformer,
    )  # fmt: skip


def flux2_klein():
    import diffusers
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Qwen2Tokenizer(
        vocab=byte_vocabulary(QWEN_TOKENS), merges=[], extra_special_tokens=list(QWEN_TOKENS[1:]), model_max_length=64,
        chat_template="{{ messages[0]['content'] }}",
    )  # fmt: skip
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=1,
    )  # fmt: skip
    autoencoder.bn.running_mean.normal_(0, 0.2)
    autoencoder.bn.running_var.uniform_(0.5, 1.5)
    return diffusers.Flux2KleinPipeline(
        scheduler=scheduler(), vae=autoencoder, text_encoder=Qwen3ForCausalLM(config), tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def build(kind):
    """A pipeline with fixed random weights, none of them zero (a fresh ControlNet's are, and a modulation's gates)."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(KINDS.index(kind))
        own = {"qwen_image_edit": qwen_image_edit, "sd3": sd3, "flux2_klein": flux2_klein}
        pipe = own.get(kind, lambda: flux(kind))()
        for module in (pipe.transformer, getattr(pipe, "controlnet", None)):
            for parameter in module.parameters() if module is not None else ():
                parameter.data.add_(0.03 * torch.randn(parameter.shape))
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


OPTIONS = {
    "qwen_image_edit": {"text_image": 64},
    "flux_kontext": {"max_length": 16},
    "flux_controlnet": {"max_length": 16},
    "sd3": {"max_length": 16},
    "flux2_klein": {"max_length": 16, "text_layers": [1, 2]},
}


@pytest.fixture(scope="session")
def quiet():
    import diffusers
    import transformers
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    Flux2ImageProcessor.check_image_input = staticmethod(lambda image: image)  # it asks for 64 pixels a side
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(quiet):
    """tiny(kind): a pipeline of one's own; only the text encoders, which nothing changes, are shared between calls."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = build(kind)
        pipe = made[kind]
        own = {"transformer", "vae", "controlnet"}
        parts = {name: copy.deepcopy(part) if name in own else part for name, part in pipe.components.items()}
        copied = type(pipe)(**parts)
        copied.set_progress_bar_config(disable=True)
        return copied

    return get


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """saved(kind): the folder of that pipeline, as diffusers writes it."""
    folders = {}

    def get(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("pipelines") / kind
            tiny(kind).save_pretrained(folders[kind])
        return folders[kind]

    return get


@pytest.fixture(scope="session")
def make_tiny(tiny, saved):
    """make_tiny(kind, on_disk=False, **options): a policy in float32 at scale 1 over a tiny pipeline."""

    def get(kind, on_disk=False, **options):
        base = {"path": str(saved(kind)), "dtype": "float32"} if on_disk else {"pipe": tiny(kind)}
        return make(kind, **{"scale": 1, "prompt": "sharp", **OPTIONS[kind], **base, **options})

    return get


@pytest.fixture(scope="session")
def shake():
    """shake(policy, adapter): move an adapter's tensors away from zero, reproducibly."""
    from srgym.policies import adapters

    def move(policy, adapter="default", seed=5, size=0.1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in adapters.parameters(policy.core, adapter):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))

    return move


@pytest.fixture(scope="session")
def picture():
    """LR [1, 3, 32, 32] on the levels of 8 bits, and the same as a PIL image."""
    from PIL import Image

    levels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return levels.permute(2, 0, 1)[None].float() / 255, Image.fromarray(levels.numpy())


@pytest.fixture(scope="session")
def integrate():
    """integrate(policy, cond, start, steps, guidance): our Euler from `start` [N, C, h, w] to latents."""

    @torch.no_grad()
    def run(policy, cond, start, steps=3, guidance=1.0):
        times, x = policy.sigmas(steps, cond), start
        for now, after in itertools.pairwise(times):
            t = now.expand(len(x))
            v = policy.velocity(x, t, cond) if guidance == 1 else policy.guided_velocity(x, t, cond, guidance)
            x = x + (after - now) * v
        return x

    return run


@pytest.fixture(scope="session")
def start():
    """start(policy, cond, seed=1): noise to start from."""

    def draw(policy, cond, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(cond), *policy.latent_shape(cond), generator=generator)

    return draw


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param
