"""Pictures at full size: images to PNG, and rows of them."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from srgym.files import to_png
from srgym.runners.measure.evaluation import faulty
from srgym.runners.report.document import Panel, Panels

__all__ = ["FAULTS", "make_panels", "panel", "strip"]


FAULTS = (
    "Faults: where the reward finds the image bad, from 0 (grey: nothing) to 1 (pale yellow), over the greyed image."
)


def panel(label: str, image: Any) -> Panel:
    """An image [3, H, W] in [0, 1] under a label."""
    height, width = image.shape[-2:]
    return Panel(label, to_png(image), int(width), int(height))


def _enlarged(image: Any, height: int) -> Any:
    """LR at the size of SR, each pixel a square."""
    pixels = np.asarray(image, dtype=np.float32)
    times = max(1, height // pixels.shape[-2])
    return pixels.repeat(times, 1).repeat(times, 2)


def make_panels(pictures: Sequence[Mapping[str, Any]], caption: str = "") -> Panels:
    """Rows of LR | methods | HR from what `evaluation.draw` returned; says what colours of faults mean."""
    rows, mapped = [], False
    for picture in pictures:
        images = {name: image for name, image in picture.items() if name != "id"}
        height = max(image.shape[-2] for image in images.values())
        shown = {name: _enlarged(image, height) if name == "LR" else image for name, image in images.items()}
        mapped = mapped or any(faulty(name) in images for name in images)
        rows.append((str(picture["id"]), [panel(name, image) for name, image in shown.items()]))
    return Panels(rows, f"{caption} {FAULTS}".strip() if mapped else caption)


def strip(panels: Sequence[Panel], gap: int = 6) -> bytes:
    """Panels beside each other in one PNG, on white."""
    images = [Image.open(io.BytesIO(panel.png)) for panel in panels]
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    whole = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + gap
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()
