"""What the nodes of ComfyUI do, without ComfyUI; test_in_comfyui.py has the rest."""

import ast
import importlib.util
from pathlib import Path

import pytest

import loraport
import pico

PACK = Path(__file__).parents[2] / "comfyui"


@pytest.fixture(scope="module")
def actions():
    spec = importlib.util.spec_from_file_location("loraport_nodes_actions", PACK / "actions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAPORT_CACHE", str(tmp_path / "cache"))
    return pico.write(tmp_path / "models")


def _settings(files):
    return {"lora": files.lora, "source": files.source, "target": files.target, "method": "casa"}


def _transfer(actions, files, output, *, overwrite=False, on_progress=lambda share: None, **changes):
    settings = _settings(files) | changes
    return actions.transfer(settings, output, device="cpu", overwrite=overwrite, on_progress=on_progress)


@pytest.mark.parametrize(
    ("lora", "target", "wanted", "name"),
    [
        ("style.safetensors", "fast.safetensors", "", "style_for_fast.safetensors"),
        ("a\\style.safetensors", "b/fast.v2.gguf", " ", "a/style_for_fast.v2.safetensors"),
        ("style.safetensors", "fast.safetensors", "mine\\new.v1", "mine/new.v1.safetensors"),
        ("style.safetensors", "fast.safetensors", "new.safetensors", "new.safetensors"),
    ],
)
def test_a_name_for_the_output(actions, lora, target, wanted, name):
    assert actions.output_name(lora, target, wanted) == name


@pytest.mark.parametrize("wanted", ["../new", "a/../../new", "/tmp/new", "C:\\new", ".safetensors", "a/.safetensors"])
def test_names_that_lead_out_of_the_folder_are_refused(actions, wanted):
    with pytest.raises(loraport.LoraportError, match="leads out"):
        actions.output_name("style.safetensors", "fast.safetensors", wanted)


def test_a_transfer_tells_its_progress_and_writes_what_the_function_does(actions, files):
    told, output = [], files.folder / "new" / "style.safetensors"
    report = _transfer(actions, files, output, on_progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, pytest.approx(1.0))
    assert len(set(told)) > 10
    assert report.startswith("style.safetensors: 20 layers by casa, rank 4 -> 32")
    again = files.folder / "again.safetensors"
    loraport.transfer(**_settings(files), output=again, options=loraport.RunOptions(log="off"))
    assert output.read_bytes() == again.read_bytes()
    assert [path.name for path in output.parent.iterdir()] == ["style.safetensors"]


def test_earlier_results_are_replaced_and_other_files_are_not(actions, files):
    output, other = files.folder / "new.safetensors", files.folder / "other.safetensors"
    _transfer(actions, files, output, method="direct")
    first = output.read_bytes()
    _transfer(actions, files, output, method="direct", strength=0.5)
    assert output.read_bytes() != first
    for content in (files.lora.read_bytes(), b"notes"):
        other.write_bytes(content)
        with pytest.raises(loraport.LoraportError, match="already exists"):
            _transfer(actions, files, other, method="direct")
        assert other.read_bytes() == content
    _transfer(actions, files, other, method="direct", strength=0.5, overwrite=True)
    assert other.read_bytes() == output.read_bytes()


def test_messages_name_inputs_where_the_node_has_them(actions):
    said = "add --overwrite, --output, (--target-lora), --force or --allow-partial"
    assert actions.in_words_of_the_node(said) == (
        "add overwrite, save_as, (distillation_lora), --force or --allow-partial"
    )


def test_a_cancel_leaves_nothing(actions, files):
    class Cancelled(Exception):
        pass

    def cancel(share):
        if share > 0.3:
            raise Cancelled

    before = sorted(files.folder.iterdir())
    with pytest.raises(Cancelled):
        _transfer(actions, files, files.folder / "new.safetensors", on_progress=cancel)
    assert sorted(files.folder.iterdir()) == before


def test_a_verdict_is_words_whatever_the_file_is(actions, files, tmp_path):
    good = actions.verdict(files.lora, files.target)
    assert good.startswith("IN ORDER\nstyle.safetensors: Wan (2 blocks, width 32)")
    assert "20 layers, rank 4, scale 1" in good
    assert "ok: fits the model" in good
    assert actions.verdict(files.source).startswith("NOT A LORA. source.safetensors: Wan")
    nonsense = tmp_path / "nonsense.safetensors"
    nonsense.write_text("no tensors in here", encoding="utf-8")
    assert actions.verdict(nonsense).startswith("CANNOT BE USED. this is not a safetensors file")
    assert actions.verdict(tmp_path / "gone.safetensors").startswith("CANNOT BE USED. ")


def test_the_pack_is_made_of_public_names():
    for path in PACK.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).startswith("loraport"):
                assert node.module == "loraport.engine.events", path  # where `loraport.transfer` says that they are
            if isinstance(node, ast.Import):
                assert all(alias.name == "loraport" for alias in node.names if alias.name.startswith("loraport")), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "loraport":
                assert node.attr in loraport.__all__, path
