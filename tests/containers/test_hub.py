"""Models by hub id, with a hub that is not there: huggingface_hub is replaced by a folder."""

import json
import sys
import types

import pytest
from safetensors.torch import save_file

import makers
from loraport.errors import FileError
from loraport.models.checkpoint import open_checkpoint


class TestHub:
    def _hub(self, monkeypatch, *, files: dict | None, reachable: bool = True):
        hub = types.ModuleType("huggingface_hub")
        asked = []

        class HfApi:
            def model_info(self, repo, timeout):
                if not reachable:
                    raise ConnectionError("no route to host")
                return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=name) for name in files])

        def hf_hub_download(repo, name, local_files_only=False):
            asked.append(name)
            if local_files_only and name not in (files or {}):
                raise FileNotFoundError(name)
            return str(files[name])

        hub.HfApi, hub.hf_hub_download = HfApi, hf_hub_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        return asked

    def test_the_transformer_of_a_repository(self, monkeypatch, tmp_path):
        save_file(makers.model(), tmp_path / "diffusion_pytorch_model.safetensors")
        name = "transformer/diffusion_pytorch_model.safetensors"
        asked = self._hub(monkeypatch, files={name: tmp_path / "diffusion_pytorch_model.safetensors", "x.bin": None})
        makers.check_model(open_checkpoint("someone/some-model"), makers.model())
        assert asked == [name]

    def test_shards_are_fetched_by_the_index(self, monkeypatch, tmp_path):
        state = makers.model()
        shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
        save_file(state, tmp_path / shard)
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(state, shard)}))
        asked = self._hub(monkeypatch, files={f"sub/{index.name}": index, f"sub/{shard}": tmp_path / shard})
        makers.check_model(open_checkpoint("hf:someone/some-model/sub"), state)
        assert asked == [f"sub/{index.name}", f"sub/{shard}"]

    def test_what_was_fetched_before_needs_no_network(self, monkeypatch, tmp_path):
        save_file(makers.model(), tmp_path / "model.safetensors")
        self._hub(monkeypatch, files={"model.safetensors": tmp_path / "model.safetensors"}, reachable=False)
        makers.check_model(open_checkpoint("someone/some-model"), makers.model())

    def test_no_network(self, monkeypatch):
        self._hub(monkeypatch, files={}, reachable=False)
        with pytest.raises(FileError, match=r"hub id(.|\n)*no route to host"):
            open_checkpoint("someone/some-model")

    def test_nothing_to_read_there(self, monkeypatch):
        self._hub(monkeypatch, files={"README.md": None})
        with pytest.raises(FileError, match="no model that can be read"):
            open_checkpoint("someone/some-model")

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(FileError, match=r"loraport\[hub\]"):
            open_checkpoint("someone/some-model")

    @pytest.mark.parametrize("spec", ["models/x.safetensors", "./a/b", "/a/b", "a/b/../c d"])
    def test_a_path_is_not_taken_for_an_id(self, spec, monkeypatch):
        asked = self._hub(monkeypatch, files={})
        with pytest.raises(FileError, match="no such file or folder"):
            open_checkpoint(spec)
        assert asked == []
