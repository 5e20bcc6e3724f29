"""`zoo:NAME` means what ships with the package, wherever a model or a LoRA is named."""

from pathlib import Path

import pytest

from loraport import zoo
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.containers.locate import locate
from loraport.containers.names import named_path
from loraport.errors import UsageError
from loraport.models.checkpoint import open_checkpoint


def test_models_and_loras_by_name():
    for name in (*zoo.models(), *zoo.loras(), *zoo.distillations()):
        assert named_path(f"zoo:{name}") == zoo.path(name)
    assert named_path("some/file") == named_path(Path("some/file")) == Path("some/file")
    assert open_checkpoint("zoo:step").path == open_checkpoint(zoo.path("step")).path
    assert (
        open_adapter(Path("zoo:outline")).path
        == open_adapter("zoo:distill-lora").path.parents[1] / "loras/outline.safetensors"
    )
    assert [describe(f"zoo:{name}").kind for name in ("source", "outline", "distill-lora")] == [
        "checkpoint",
        "lora",
        "lora",
    ]


@pytest.mark.parametrize(
    "name", ["zoo:outlin", "zoo:", "zoo:../../etc/passwd", "zoo:a/b", "zoo:" + "x" * 300, "zoo:a\0b"]
)
@pytest.mark.parametrize("opener", [locate, open_checkpoint, open_adapter, describe])
def test_a_name_that_is_not_there_lists_those_that_are(name, opener):
    with pytest.raises(UsageError, match="outline") as caught:
        opener(name)
    assert "distill-lora" in caught.value.message
