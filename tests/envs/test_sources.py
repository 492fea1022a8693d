"""Sources by name: the table, other packages' sources, and what is said of a name that doesn't exist."""

import pytest
import torch

from srgym.envs import sources
from srgym.envs.sources import Sample, Source


class Squares(Source):
    """Three grey squares, another package's source."""

    scale, size, provides = 2, (4, 4), frozenset({"lr", "prompt"})

    def __init__(self, level: float = 0.5) -> None:
        self.level = level

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if not 0 <= index < 3:
            raise IndexError(index)
        return Sample(f"square{index}/0", torch.full((3, 4, 4), self.level), prompt=f"square {index % 2}")


def test_every_built_in_row_is_true(source):
    made = sources.make(source)
    row = next(row for row in sources.BUILTIN if row.name == source["name"])
    assert made.name == row.name and row.doc
    captions = {"prompt"} if "captions" in source else set()
    assert made.provides == set(row.provides) | captions
    sample = made[len(made) - 1]
    assert {key for key in ("lr", "hr", "prompt", "degradation") if getattr(sample, key) is not None} == made.provides
    assert tuple(sample.lr.shape) == (3, *made.size) and sample.lr.dtype == torch.float32
    if sample.hr is not None:
        assert tuple(sample.hr.shape) == (3, *(side * made.scale for side in made.size))


def test_a_sample_is_the_same_at_every_visit(source):
    one, other = sources.make(source), sources.make(dict(source))
    for index in (0, len(one) - 1):
        assert torch.equal(one[index].lr, other[index].lr) and one[index].id == other[index].id
        assert torch.equal(one[index].lr, one[index].lr)


def test_the_table_has_every_row(source):
    (row,) = (row for row in sources.listing() if row["name"] == source["name"])
    assert row["name"] in sources.available() and row["doc"] and row["origin"] == "built-in"


def test_a_source_of_ones_own_by_path_or_object():
    made = Squares()
    assert sources.make(made) is made and made.name == "Squares"
    assert made.prompts() == ["square 0", "square 1"]
    with pytest.raises(ValueError, match="'Squares' is already made; it takes no options, got 'level'"):
        sources.make(made, level=1.0)
    with pytest.raises(ValueError, match="there is no module 'nowhere' to import"):
        sources.make("nowhere:Squares")
    with pytest.raises(ValueError, match=r"module 'srgym\.envs\.folders' has no 'Folder'"):
        sources.make("srgym.envs.folders:Folder")


@pytest.mark.parametrize(
    "call, error, sentence",
    [
        (("photograph",), ValueError, "unknown source 'photograph': did you mean 'photographs'?"),
        (("zzz",), ValueError, "unknown source 'zzz': expected one of hr_folder, lr_folder"),
        (({"split": "test"},), ValueError, "expected a source as {'name': ...}, got the keys 'split'"),
        ((3,), TypeError, "expected a source's name, or {'name': ...}, got 3"),
        (("hr_folder",), ValueError, "source 'hr_folder' needs 'path', got no options"),
    ],
)
def test_what_is_no_source_gets_a_sentence(call, error, sentence):
    with pytest.raises(error) as raised:
        sources.make(*call)
    assert sentence in str(raised.value)


def test_a_misspelt_option_gets_the_nearest():
    with pytest.raises(ValueError, match="source 'photographs' has no option 'splt': did you mean 'split'"):
        sources.make("photographs", splt="test")
