"""An analysis as JSON and back."""

import dataclasses
import json

import pytest

from loraport.analysis.results import PairAnalysis
from loraport.errors import FileError


def test_json_and_back(sample_analysis, tmp_path):
    sample_analysis.write(tmp_path / "analysis.json")
    document = json.loads((tmp_path / "analysis.json").read_text(encoding="utf-8"))
    assert PairAnalysis.from_json(document) == sample_analysis


def test_what_is_no_analysis_is_refused(sample_analysis):
    with pytest.raises(FileError, match="this version"):
        PairAnalysis.from_json({"schema": 99})
    document = sample_analysis.to_json()
    del document["source_title"]
    with pytest.raises(FileError, match="source_title"):
        PairAnalysis.from_json(document)


def test_layers_by_kind(sample_analysis):
    moved = dataclasses.replace(sample_analysis.layers[0], name="blocks.1.self_attn.q", block=1)
    both = dataclasses.replace(sample_analysis, layers=(*sample_analysis.layers, moved))
    assert [layer.block for layer in both.by_kind()["self_attn.q"]] == [0, 1]
