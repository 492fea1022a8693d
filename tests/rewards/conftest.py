"""Who answers questions in tests: an engine with a script, and a small model of the real classes."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from srgym.rewards.serving.question import BadAnswer, Question, Reply

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


Handler = Callable[[Mapping[str, Any], Mapping[str, str]], tuple[int, str] | str]


class Scripted:
    """An engine whose answers are written down; keeps what it was asked."""

    def __init__(self, answer: Callable[[Question], Reply]) -> None:
        self.answer, self.asked = answer, list[Question]()

    def ask(self, questions: Sequence[Question], read: Callable[[Reply], Any]) -> list[Any]:
        self.asked += questions
        values: list[Any] = []
        for question in questions:
            try:
                values.append(read(self.answer(question)))
            except BadAnswer:
                values.append(None)
        return values


@pytest.fixture
def scripted() -> type[Scripted]:
    """Makes engines that answer as a function of the question says."""
    return Scripted


class Served:
    """An HTTP server on this machine; its handler returns (status, body), or "hang" or "reset".

    `models` are the names that it lists; None: it has no list.
    """

    models: tuple[str, ...] | None = None

    def __init__(self, handler: Handler) -> None:
        self.handler, self.requests = handler, 0
        self.most = self.now = 0
        self.url = ""
        started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self.thread.start()
        started.wait(10)

    async def _serve(self, started: threading.Event) -> None:
        self.loop, self.closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await self.closed.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.now -= 1
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        if head[0].startswith("GET "):
            listed = json.dumps({"data": [{"id": name} for name in self.models or ()]})
            await self._write(writer, *((404, "") if self.models is None else (200, listed)))
            return True
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests += 1
        result = self.handler(body, headers)
        if result == "hang":
            await reader.read()  # until the client gives up
            return False
        if result == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        await self._write(writer, *result)
        return True

    async def _write(self, writer: asyncio.StreamWriter, status: int, content: str) -> None:
        data = content.encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.closed.set)
        self.thread.join(10)


@pytest.fixture
def start_server() -> Iterator[Callable[[Handler], Served]]:
    """Starts HTTP servers that answer as a handler says, and stops them when the test is over."""
    running: list[Served] = []

    def start(handler: Handler) -> Served:
        running.append(Served(handler))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def tiny_qwen3vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Qwen3-VL with 0.2 M random weights, its tokenizer and its processor."""
    folder = tmp_path_factory.mktemp("qwen3vl")
    tokenizer = _tokenizer()
    _model(tokenizer).save_pretrained(folder)
    _processor(tokenizer).save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Every digit on its own, as in Qwen's tokenizers: the digits of a score are tokens.
    single = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([single, letters])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    corpus = ['{"fidelity":0.83,"q_lr":2.10,"q_sr":3.75,"description":"the second image is sharper"}'] * 8
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(list(_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        chat_template=_TEMPLATE,
    )


def _model(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    of = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = {
        "vocab_size": 64 * (len(tokenizer) // 64 + 1),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,  # vLLM's CPU attention takes no smaller one
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
        "pad_token_id": of("<|endoftext|>"),
        "bos_token_id": of("<|endoftext|>"),
        "eos_token_id": of("<|im_end|>"),
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=of("<|image_pad|>"),
        video_token_id=of("<|video_pad|>"),
        vision_start_token_id=of("<|vision_start|>"),
        vision_end_token_id=of("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config).eval()
        with torch.no_grad():
            # At the library's initial scale (0.02) the image barely moves the answer; this makes it count.
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.08)
    model.generation_config.eos_token_id = of("<|im_end|>")
    model.generation_config.pad_token_id = of("<|endoftext|>")
    return model


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    patches = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = Qwen2VLImageProcessor(**patches, **mean, size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128})
    videos = Qwen3VLVideoProcessor(
        **patches, **mean, size={"shortest_edge": 4 * 32 * 32, "longest_edge": 4 * 128 * 128}
    )
    return Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=_TEMPLATE
    )
