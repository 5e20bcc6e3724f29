"""Models by hub id, with a hub that is not there: huggingface_hub is replaced by a folder."""

import json
import sys
import types
from fnmatch import fnmatch

import pytest
from safetensors.torch import save_file

import makers
from loraport.errors import FileError
from loraport.models.checkpoint import open_checkpoint


class TestHub:
    def _hub(self, monkeypatch, folder, *, reachable: bool = True):
        """A hub whose repository is a folder, and whose cache is that folder too."""
        hub = types.ModuleType("huggingface_hub")
        asked = []
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

        class HfApi:
            def model_info(self, repo, timeout):
                if not reachable:
                    raise ConnectionError("no route to host")
                return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=name) for name in names])

        def snapshot_download(repo, allow_patterns, local_files_only, etag_timeout):
            found = {name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns)}
            if local_files_only and not found:
                raise FileNotFoundError(repo)
            asked.append((found, local_files_only))
            return str(folder)

        hub.HfApi, hub.snapshot_download = HfApi, snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        return asked

    def test_the_transformer_of_a_repository(self, monkeypatch, tmp_path):
        for name in ("transformer", "vae"):
            (tmp_path / name).mkdir()
            save_file(makers.model(), tmp_path / name / "diffusion_pytorch_model.safetensors")
        (tmp_path / "x.bin").touch()
        asked = self._hub(monkeypatch, tmp_path)
        makers.check_model(open_checkpoint("Someone-AI/Wan2.1-T2V-1.3B-Diffusers"), makers.model())
        assert asked == [({"transformer/diffusion_pytorch_model.safetensors"}, False)]

    @pytest.mark.parametrize("parts", [("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")])
    def test_the_expert_of_a_repository(self, monkeypatch, tmp_path, parts):
        for seed, name in enumerate(parts):
            (tmp_path / name).mkdir()
            save_file(makers.model(seed), tmp_path / name / "diffusion_pytorch_model.safetensors")
        self._hub(monkeypatch, tmp_path)
        for seed, expert in enumerate(("high", "low")):
            makers.check_model(open_checkpoint("someone/wan22", expert=expert), makers.model(seed))

    def test_where_the_hub_is_silent_the_other_expert_is_not_taken(self, monkeypatch, tmp_path):
        (tmp_path / "transformer").mkdir()
        save_file(makers.model(), tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
        self._hub(monkeypatch, tmp_path, reachable=False)
        assert open_checkpoint("someone/wan22", expert="high")
        with pytest.raises(FileError, match="no route to host"):
            open_checkpoint("someone/wan22", expert="low")
        self._hub(monkeypatch, tmp_path)  # the hub says that there is one model only
        assert open_checkpoint("someone/wan22", expert="low")

    def test_shards_are_fetched_with_the_index(self, monkeypatch, tmp_path):
        state = makers.model()
        shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
        for name in ("sub", "other"):
            (tmp_path / name).mkdir()
            save_file(state, tmp_path / name / shard)
        index = "diffusion_pytorch_model.safetensors.index.json"
        (tmp_path / "sub" / index).write_text(json.dumps({"weight_map": dict.fromkeys(state, shard)}))
        asked = self._hub(monkeypatch, tmp_path)
        makers.check_model(open_checkpoint("hf:someone/some-model/sub"), state)
        assert asked == [({f"sub/{index}", f"sub/{shard}"}, False)]

    def test_what_was_fetched_before_needs_no_network(self, monkeypatch, tmp_path):
        save_file(makers.model(), tmp_path / "model.safetensors")
        asked = self._hub(monkeypatch, tmp_path, reachable=False)
        makers.check_model(open_checkpoint("someone/some-model"), makers.model())
        assert asked == [({"model.safetensors"}, True)]

    def test_what_was_fetched_before_is_found_by_the_real_package(self, monkeypatch, tmp_path):
        """The cache as huggingface_hub lays it out, and a hub that cannot be reached."""
        hub = pytest.importorskip("huggingface_hub")
        kept = tmp_path / "models--someone--some-model"
        snapshot = kept / "snapshots" / ("0" * 40) / "transformer"
        snapshot.mkdir(parents=True)
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("0" * 40)
        save_file(makers.model(), snapshot / "diffusion_pytorch_model.safetensors")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

        def unreachable(self, repo, timeout):
            raise ConnectionError("no route to host")

        monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
        makers.check_model(open_checkpoint("someone/some-model"), makers.model())
        with pytest.raises(FileError, match=r"hub id(.|\n)*no route to host"):
            open_checkpoint("someone/another-model")

    def test_no_network(self, monkeypatch, tmp_path):
        self._hub(monkeypatch, tmp_path, reachable=False)
        with pytest.raises(FileError, match=r"hub id(.|\n)*no route to host"):
            open_checkpoint("someone/some-model")

    def test_nothing_to_read_there(self, monkeypatch, tmp_path):
        (tmp_path / "README.md").touch()
        self._hub(monkeypatch, tmp_path)
        with pytest.raises(FileError, match="no model that can be read"):
            open_checkpoint("someone/some-model")

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(FileError, match=r"loraport\[hub\]"):
            open_checkpoint("someone/some-model")

    @pytest.mark.parametrize("spec", ["models/x.safetensors", "./a/b", "/a/b", "a/b/../c d"])
    def test_a_path_is_not_taken_for_an_id(self, spec, monkeypatch, tmp_path):
        asked = self._hub(monkeypatch, tmp_path)
        with pytest.raises(FileError, match="no such file or folder"):
            open_checkpoint(spec)
        assert asked == []
