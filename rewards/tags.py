"""The main objects of pictures, found once and kept: GroundingDINO proposes, SAM measures, a JSON file remembers."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgym.errors import MissingFile, Refusal
from srgym.sealed import read_object

__all__ = ["VOCABULARY", "Tagger", "Thing"]

VOCABULARY = (
    "person", "face", "hand", "child", "crowd",
    "dog", "cat", "bird", "horse", "cow", "sheep", "elephant", "bear", "zebra", "giraffe", "fish", "butterfly",
    "insect", "tree", "flower", "grass", "leaf", "plant", "forest", "mountain", "rock", "sand", "snow", "water",
    "river", "sea", "sky", "cloud", "sun", "field", "path",
    "building", "house", "window", "door", "wall", "roof", "tower", "bridge", "fence", "street", "road", "sign",
    "traffic light", "lamp", "stairs", "statue", "temple", "church",
    "car", "bus", "truck", "train", "bicycle", "motorcycle", "boat", "ship", "airplane", "wheel",
    "table", "chair", "sofa", "bed", "shelf", "cup", "bottle", "plate", "bowl", "knife", "fork", "spoon", "book",
    "clock", "vase", "basket", "box", "bag", "umbrella", "ball", "kite", "toy", "computer", "keyboard", "phone",
    "television", "camera", "text", "painting", "mirror", "candle",
    "bread", "cake", "pizza", "fruit", "apple", "banana", "orange", "vegetable", "meat",
    "shirt", "dress", "hat", "shoe", "glasses", "fabric",
)  # fmt: skip
"""What is looked for unless the user names other things."""


# Names in one prompt: the model takes 256 tokens of text, and tells few names apart better than many.
_AT_ONCE = 12


@dataclass(frozen=True)
class Thing:
    """An object in a picture.

    Attributes:
        name: from the vocabulary.
        score: GroundingDINO's confidence in [0, 1].
        area: the share of the picture that SAM's mask covers, in [0, 1].
    """

    name: str
    score: float
    area: float


class Tagger:
    """Names the main objects of LR images, for RealSR-R1's understanding reward.

    A thing is kept if GroundingDINO is sure enough of its box and of its name, and SAM's mask of the box covers enough
    of the picture. Of each name the largest is kept, and of all the largest few.

    Args:
        detector: the folder of a GroundingDINO model and its processor. segmenter: of a SAM model and its processor.
        cache: a folder for results, one JSON file a picture; none are kept when None. Other settings, or models of
            other names, don't read each other's.
        vocabulary: what to look for.
        box_threshold, text_threshold: of GroundingDINO's confidence in a box, and in its name.
        smallest: the least share of the picture.
        most: how many things a picture has at most.
        device: the first accelerator, else the CPU, when None.

    Raises:
        FileNotFoundError: if a model isn't there. It is looked for when the first picture is that isn't in the cache.
        ValueError: for an empty vocabulary, or shares outside [0, 1].
    """

    def __init__(
        self,
        detector: str | Path,
        segmenter: str | Path,
        cache: str | Path | None = None,
        vocabulary: Sequence[str] = VOCABULARY,
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
        smallest: float = 0.01,
        most: int = 8,
        device: str | None = None,
    ) -> None:
        if not vocabulary:
            raise Refusal("tags: expected at least one thing to look for, got an empty vocabulary")
        if not all(0 <= share <= 1 for share in (box_threshold, text_threshold, smallest)) or most < 1:
            raise Refusal(
                "tags: expected thresholds and smallest in [0, 1] and most >= 1, got "
                f"{box_threshold}, {text_threshold}, {smallest} and {most}"
            )
        self.detector, self.segmenter = Path(detector), Path(segmenter)
        self.cache = Path(cache) if cache is not None else None
        self.vocabulary = tuple(dict.fromkeys(" ".join(name.lower().split()) for name in vocabulary))
        self.box_threshold, self.text_threshold = box_threshold, text_threshold
        self.smallest, self.most = smallest, most
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._models: _Models | None = None

    def __call__(self, images: Tensor) -> list[list[str]]:
        """The names of the main things in images [B, 3, H, W] in [0, 1], the largest first."""
        return [[thing.name for thing in self.things(image)] for image in images]

    def things(self, image: Tensor) -> list[Thing]:
        """The main things in an image [3, H, W] in [0, 1], the largest first; from the cache if they are there."""
        pixels = (image.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).contiguous()
        path = self.cache / f"{self._key(pixels)}.json" if self.cache is not None else None
        if path is not None and path.is_file():
            return [Thing(**thing) for thing in read_object(path, {"things": list})["things"]]
        detected = self._find(pixels)
        if path is not None:
            _write(path, {"things": [asdict(thing) for thing in detected], **self._settings()})
        return detected

    def _settings(self) -> dict[str, Any]:
        return {
            "detector": self.detector.name,
            "segmenter": self.segmenter.name,
            "vocabulary": list(self.vocabulary),
            "box_threshold": self.box_threshold,
            "text_threshold": self.text_threshold,
            "smallest": self.smallest,
            "most": self.most,
        }

    def _key(self, pixels: Tensor) -> str:
        digest = hashlib.blake2b(json.dumps(self._settings(), sort_keys=True).encode(), digest_size=16)
        digest.update(repr(tuple(pixels.shape)).encode())
        digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()

    def _find(self, pixels: Tensor) -> list[Thing]:
        from PIL import Image

        if self._models is None:
            self._models = _Models(self.detector, self.segmenter, self.device)
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        boxes, names, scores = self._models.detect(picture, self.vocabulary, self.box_threshold, self.text_threshold)
        areas = self._models.areas(picture, boxes) if boxes else []
        largest: dict[str, Thing] = {}
        for thing in map(Thing, names, scores, areas):
            if thing.area >= self.smallest and (thing.name not in largest or thing.area > largest[thing.name].area):
                largest[thing.name] = thing
        return sorted(largest.values(), key=lambda thing: (-thing.area, thing.name))[: self.most]


class _Models:
    """The two models, loaded."""

    def __init__(self, detector: Path, segmenter: Path, device: torch.device) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, SamModel, SamProcessor

        for folder, what, name in (
            (detector, "GroundingDINO", "IDEA-Research/grounding-dino-tiny"),
            (segmenter, "SAM", "facebook/sam-vit-base"),
        ):
            if not (folder / "config.json").is_file():
                raise MissingFile(
                    f"tags: expected the folder of a {what} model at '{folder}', found none; "
                    f"bring one with\n  hf download {name} --local-dir {folder}"
                )
        self.device = device
        self._reader = AutoProcessor.from_pretrained(detector, local_files_only=True)
        network = AutoModelForZeroShotObjectDetection.from_pretrained(detector, local_files_only=True)
        self._detector = network.to(device).eval()
        self._framer = SamProcessor.from_pretrained(segmenter, local_files_only=True)
        self._segmenter = SamModel.from_pretrained(segmenter, local_files_only=True).to(device).eval()

    def detect(
        self, picture: Any, vocabulary: Sequence[str], box_threshold: float, text_threshold: float
    ) -> tuple[list[list[float]], list[str], list[float]]:
        """Boxes (x0, y0, x1, y1 in pixels), their names and scores."""
        boxes: list[list[float]] = []
        names: list[str] = []
        scores: list[float] = []
        for start in range(0, len(vocabulary), _AT_ONCE):
            part = vocabulary[start : start + _AT_ONCE]
            text = " ".join(f"{name}." for name in part)
            inputs = self._reader(images=picture, text=text, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                outputs = self._detector(**inputs)
            [regions] = self._reader.post_process_grounded_object_detection(
                outputs, inputs["input_ids"], threshold=box_threshold, text_threshold=text_threshold,
                target_sizes=[(picture.height, picture.width)],
            )  # fmt: skip
            # Where nothing is found there's still one label, an empty one: so no strict zip.
            for box, label, score in zip(regions["boxes"], regions["text_labels"], regions["scores"]):
                name = _known(label, part)
                if name is not None:
                    boxes.append([float(side) for side in box])
                    names.append(name)
                    scores.append(float(score))
        return boxes, names, scores

    def areas(self, picture: Any, boxes: list[list[float]]) -> list[float]:
        """The share of the picture under the mask of each box."""
        inputs = self._framer(picture, input_boxes=[boxes], return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = self._segmenter(**inputs, multimask_output=False)
        [masks] = self._framer.post_process_masks(
            outputs.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )
        shares: list[float] = masks[:, 0].float().mean((1, 2)).tolist()
        return shares


def _known(words: str, names: Sequence[str]) -> str | None:
    """The vocabulary's name in what the model read off its prompt: a name, a part of one, or several run together."""
    # Its tokens, which may include the prompt's full stops and the tokenizer's own marks.
    words = " ".join(re.sub(r"\[[A-Z]+\]|\.", " ", words).lower().split())
    if words in names:
        return words
    inside = [name for name in names if f" {name} " in f" {words} "]
    return inside[0] if len(inside) == 1 else None


def _write(path: Path, held: dict[str, Any]) -> None:
    """Whole or not at all: other processes read the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(held))
    draft.replace(path)
