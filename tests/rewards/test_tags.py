"""Object tags: the rule that keeps them, their cache, and that the real model classes run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from srgym.rewards.tags import VOCABULARY, Tagger, Thing, _known, _Models


class Seen:
    """Stands in for the two models: boxes, names, scores and areas are written down."""

    def __init__(self, found: list[tuple[str, float, float]]) -> None:
        self.found, self.pictures = found, 0

    def detect(
        self, picture: Any, vocabulary: Any, box: float, text: float
    ) -> tuple[list[Any], list[str], list[float]]:
        self.pictures += 1
        kept = [row for row in self.found if row[1] >= box]
        return [[0.0] * 4 for _ in kept], [row[0] for row in kept], [row[1] for row in kept]

    def areas(self, picture: Any, boxes: list[Any]) -> list[float]:
        return [row[2] for row in self.found if row[1] >= 0.35]


def tagger(found: list[tuple[str, float, float]], **options: Any) -> Tagger:
    made = Tagger("gd", "sam", **options)
    made._models = Seen(found)  # type: ignore[assignment]
    return made


IMAGE = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))
FOUND = [("dog", 0.9, 0.2), ("dog", 0.5, 0.3), ("tree", 0.4, 0.5), ("leaf", 0.8, 0.005), ("cat", 0.3, 0.9)]


def test_the_largest_of_each_name_is_kept_if_it_is_large_enough() -> None:
    made = tagger(FOUND)
    assert made.things(IMAGE) == [Thing("tree", 0.4, 0.5), Thing("dog", 0.5, 0.3)]
    assert made(IMAGE[None]) == [["tree", "dog"]]


def test_at_most_eight_are_kept() -> None:
    many = [(name, 0.9, 0.02 + i / 100) for i, name in enumerate(VOCABULARY[:20])]
    assert tagger(many)(IMAGE[None]) == [list(reversed(VOCABULARY[12:20]))]


def test_what_was_found_is_kept_as_json_and_not_looked_for_again(tmp_path: Path) -> None:
    first = tagger(FOUND, cache=tmp_path)
    things = first.things(IMAGE)
    [file] = tmp_path.iterdir()
    assert file.suffix == ".json"
    assert json.loads(file.read_text())["things"][0] == {"name": "tree", "score": 0.4, "area": 0.5}
    # Another process: the models aren't even there, and aren't missed.
    assert Tagger("gd", "sam", cache=tmp_path).things(IMAGE) == things
    other = tagger([], cache=tmp_path, most=3)
    assert other.things(IMAGE) == []  # other settings have results of their own
    assert tagger([], cache=tmp_path).things(IMAGE.flip(1)) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_what_the_detector_reads_off_its_prompt_is_matched_to_one_name() -> None:
    names = ("traffic light", "light", "dog")
    assert _known("dog", names) == "dog"
    assert _known("Dog. [SEP]", names) == "dog"
    assert _known("traffic light", names) == "traffic light"
    assert _known("dog light", names) is None
    assert _known("traffic", names) is None


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the folder of a GroundingDINO model at"):
        Tagger(tmp_path, tmp_path)(IMAGE[None])
    with pytest.raises(ValueError, match="empty vocabulary"):
        Tagger("gd", "sam", vocabulary=[])
    with pytest.raises(ValueError, match=r"smallest in \[0, 1\]"):
        Tagger("gd", "sam", smallest=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a GroundingDINO and a SAM of the real classes, with few and random weights."""
    torch.manual_seed(0)
    detector, segmenter = tmp_path_factory.mktemp("detector"), tmp_path_factory.mktemp("segmenter")
    _detector(detector)
    _segmenter(segmenter)
    return detector, segmenter


def _detector(folder: Path) -> None:
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    # The model looks for BERT's own ids of these tokens.
    words = {f"[unused{i}]": i for i in range(1100)}
    for word, at in {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}.items():
        words = {(word if i == at else name): i for name, i in words.items()}
    for at, word in enumerate(("cat", "sky"), 200):
        words = {(word if i == at else name): i for name, i in words.items()}
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4,
        out_features=["stage2", "stage3"],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=256,
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=6,
        num_feature_levels=3, encoder_n_points=2, decoder_n_points=2, max_text_len=64,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    GroundingDinoProcessor(images, BertTokenizer(vocab=words)).save_pretrained(folder)


def _segmenter(folder: Path) -> None:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    vision = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "mlp_dim": 32, "global_attn_indexes": [1], "window_size": 4, "num_pos_feats": 8,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    mask = {
        "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
    }  # fmt: skip
    SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)).save_pretrained(
        folder
    )
    square, small = {"height": 64, "width": 64}, {"height": 16, "width": 16}
    images = SamImageProcessor(
        size={"longest_edge": 64}, pad_size=square, mask_size={"longest_edge": 16}, mask_pad_size=small
    )
    SamProcessor(images).save_pretrained(folder)


def test_the_real_model_classes_propose_and_measure(models: tuple[Path, Path], tmp_path: Path) -> None:
    from PIL import Image

    made = Tagger(
        *models, cache=tmp_path, vocabulary=["cat"], box_threshold=0.0, text_threshold=0.0, smallest=0.0, device="cpu"
    )
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(1))
    found = made.things(image)
    assert [thing.name for thing in found] == ["cat"]
    assert 0 <= found[0].score <= 1
    assert 0 <= found[0].area <= 1
    assert (
        Tagger(*models, cache=tmp_path, vocabulary=["cat"], box_threshold=0.0, text_threshold=0.0, smallest=0.0).things(
            image
        )
        == found
    )
    picture = Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy())
    loaded = _Models(*models, torch.device("cpu"))
    boxes, names, scores = loaded.detect(picture, ("cat",), 0.0, 0.0)
    assert len(boxes) == len(names) == len(scores) == 6
    areas = loaded.areas(picture, boxes)
    assert len(areas) == 6
    assert found[0].area == pytest.approx(max(areas))
    assert loaded.detect(picture, ("cat",), 1.0, 0.0) == ([], [], [])
    # A dozen names a prompt, so thirteen are two prompts; only the second's box names are single.
    assert set(loaded.detect(picture, (*"abcdefghijkl", "sky"), 0.0, 0.0)[1]) == {"sky"}
