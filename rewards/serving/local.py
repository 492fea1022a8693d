"""Models in this process: through transformers (any machine, one question at a time) or through vLLM (fast)."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.rewards.serving.engines import ask_locally
from srgym.rewards.serving.guide import PatternGuide
from srgym.rewards.serving.question import Question, Reply
from srgym.rewards.serving.server import model_folder

__all__ = ["TransformersEngine", "VLLMEngine"]

T = TypeVar("T")


class _LocalEngine(ABC):
    retries: int

    @abstractmethod
    def answer(self, questions: list[Question]) -> list[Reply]:
        """The replies to questions."""

    def ask(self, questions: Sequence[Question], read: Callable[[Reply], T]) -> list[T | None]:
        """Each question's answer, as `read` makes it of a reply; None where there's no good one."""
        return ask_locally(self.answer, questions, read, self.retries)

    def stream(
        self, questions: Sequence[Question], read: Callable[[Reply], T], groups: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[T | None]]]:
        """(group, the answers to its questions in order), one group after another."""
        labels = list(groups) if groups is not None else [0] * len(questions)
        if len(labels) != len(questions):
            raise Refusal(f"expected a group for each of {len(questions)} questions, got {len(labels)}")
        for label in dict.fromkeys(labels):
            yield label, self.ask([q for q, of in zip(questions, labels) if of == label], read)


class TransformersEngine(_LocalEngine):
    """A vision-language model in this process, one question at a time, so that no answer depends on its neighbours.

    Args:
        path: the folder of the model and its processor.
        device: of the model; the first accelerator, else the CPU, when None.
        dtype: of its weights: "float32", "bfloat16", or "auto" for the one on disk.
        retries: how often a bad answer is asked for again.

    Raises:
        FileNotFoundError: if `path` holds no model.
    """

    def __init__(self, path: str | Path, device: str | None = None, dtype: str = "auto", retries: int = 2) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = model_folder(path)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True)
        self.model = loaded.to(self.device).eval()
        self.retries = retries
        self._guides: dict[str, PatternGuide] = {}

    def answer(self, questions: list[Question]) -> list[Reply]:
        """The replies to questions."""
        with torch.inference_mode():
            return [self._choose(q) if q.choices else self._write(q) for q in questions]

    def _inputs(self, question: Question) -> Any:
        from PIL import Image

        content = [{"type": "image"} for _ in question.images] + [{"type": "text", "text": question.text}]
        messages = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        images = [Image.open(io.BytesIO(image)).convert("RGB") for image in question.images] or None
        return self.processor(text=[prompt], images=images, return_tensors="pt").to(self.device)

    def _choose(self, question: Question) -> Reply:
        """The choices' log-probabilities among themselves, at the first token."""
        ids = [self._single(choice) for choice in question.choices]
        logits: Tensor = self.model(**self._inputs(question), logits_to_keep=1).logits[0, -1].float()
        logprobs = logits[ids].log_softmax(0).tolist()
        best = max(range(len(ids)), key=logprobs.__getitem__)
        return Reply(question.choices[best], logprobs=dict(zip(question.choices, logprobs)))

    def _single(self, choice: str) -> int:
        ids = self.processor.tokenizer.encode(choice, add_special_tokens=False)
        if len(ids) != 1:
            raise Refusal(f"expected '{choice}' to be one token of this model, got {len(ids)}")
        return int(ids[0])

    def _write(self, question: Question) -> Reply:
        inputs = self._inputs(question)
        start = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"max_new_tokens": question.max_tokens, "do_sample": question.temperature > 0}
        options["repetition_penalty"] = 1.0  # many models' folders ask for another, which would bend digits
        if question.temperature > 0:
            options |= {"temperature": question.temperature, "top_p": 1.0, "top_k": 0}
        if question.stop:
            options |= {"stop_strings": list(question.stop), "tokenizer": self.processor.tokenizer}
        if question.pattern:
            guide = self._guide(question.pattern)
            options["prefix_allowed_tokens_fn"] = lambda _, ids: guide.allowed(ids[start:].tolist())
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(question.seed)
            written = self.model.generate(**inputs, **options)[0, start:]
        text = self.processor.tokenizer.decode(written, skip_special_tokens=True)
        ends = [at for stop in question.stop if (at := text.find(stop)) >= 0]
        return Reply(text[: min(ends)] if ends else text, stopped=bool(ends))

    def _guide(self, pattern: str) -> PatternGuide:
        if pattern not in self._guides:
            self._guides[pattern] = PatternGuide(self.processor.tokenizer, pattern)
        return self._guides[pattern]


class VLLMEngine(_LocalEngine):
    """A vision-language model in this process through `vllm.LLM`, all questions at once.

    Args:
        path: the folder of the model and its processor.
        retries: how often a bad answer is asked for again.
        images: the most images in one question.
        options: further arguments of `vllm.LLM`.

    Raises:
        FileNotFoundError: if `path` holds no model.
        ValueError: if vLLM isn't installed, or for an option that would run code from the model's folder.
    """

    def __init__(self, path: str | Path, retries: int = 2, images: int = 2, **options: Any) -> None:
        folder = model_folder(path)
        if options.get("trust_remote_code"):
            raise Refusal("trust_remote_code would run code out of the model's folder; it stays off")
        try:
            from vllm import LLM
        except ModuleNotFoundError as error:
            raise Refusal("the engine 'vllm' needs vLLM: pip install 'srgym[vllm]'") from error
        limits = {"image": images, "video": 0}
        constrained = {"backend": "xgrammar", "disable_any_whitespace": True}
        settings = {"limit_mm_per_prompt": limits, "structured_outputs_config": constrained, **options}
        self.model = LLM(model=str(folder), trust_remote_code=False, **settings)
        self.retries = retries

    def answer(self, questions: list[Question]) -> list[Reply]:
        """The replies to questions."""
        chats = [question.messages() for question in questions]
        outputs = self.model.chat(chats, [_sampling(question) for question in questions], use_tqdm=False)
        return [_reply(question, output.outputs[0]) for question, output in zip(questions, outputs, strict=True)]


def _sampling(question: Question) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    constrained = None
    if question.choices:
        constrained = StructuredOutputsParams(choice=list(question.choices))
    elif question.pattern:
        constrained = StructuredOutputsParams(regex=question.pattern)
    return SamplingParams(
        temperature=question.temperature,
        seed=question.seed,
        max_tokens=1 if question.choices else question.max_tokens,
        stop=list(question.stop) or None,
        logprobs=20 if question.choices else None,
        structured_outputs=constrained,
    )


def _reply(question: Question, output: Any) -> Reply:
    logprobs = {}
    if question.choices and output.logprobs:
        logprobs = {str(entry.decoded_token): float(entry.logprob) for entry in output.logprobs[0].values()}
    stopped = output.finish_reason == "stop" and output.stop_reason in question.stop
    return Reply(output.text, stopped=stopped, logprobs=logprobs)
