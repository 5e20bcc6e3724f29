"""Models in several files: with an index, by their names alone, as parts of GGUF, as trainers leave them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import makers
import storage
from loraport.containers.locate import locate
from loraport.containers.references import identity
from loraport.containers.tensors import read_float
from loraport.errors import FileError, UnsupportedError
from loraport.models.checkpoint import open_checkpoint

MODEL = makers.model()


def split(count: int = 3) -> list[dict[str, torch.Tensor]]:
    keys = list(MODEL)
    return [{key: MODEL[key] for key in keys[n::count]} for n in range(count)]


def names(count: int = 3, stem: str = "wan", ending: str = "safetensors") -> list[str]:
    return [f"{stem}-{n:05}-of-{count:05}.{ending}" for n in range(1, count + 1)]


def write(folder: Path, stem: str = "wan", ending: str = "safetensors") -> list[Path]:
    paths = [folder / name for name in names(stem=stem, ending=ending)]
    for path, part in zip(paths, split(), strict=True):
        save_file(part, path) if ending == "safetensors" else torch.save(part, path)
    return paths


def parts_of_gguf(folder: Path, count: int = 3, said: int | None = None, tensors: int = len(MODEL)) -> list[Path]:
    """By gguf's own writer: each part says which it is, of how many."""
    paths = [folder / name for name in names(count, ending="gguf")]
    for number, (path, part) in enumerate(zip(paths, split(count), strict=True)):
        whole = {key: (tensor.numpy(), "F32") for key, tensor in part.items()}
        storage.write_gguf(path, whole, split=(number, count if said is None else said, tensors))
    return paths


def is_the_model(found) -> None:
    (group,) = found.groups.values()
    assert set(group) == set(MODEL)
    assert all(torch.equal(read_float(ref), MODEL[key].float()) for key, ref in group.items())


@pytest.mark.parametrize("given", ["the first", "the last", "the folder"])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "gguf"])
def test_shards_without_an_index_are_all_taken_by_their_names(kind, given, tmp_path):
    paths = parts_of_gguf(tmp_path) if kind == "gguf" else write(tmp_path, ending=kind)
    found = locate({"the first": paths[0], "the last": paths[-1], "the folder": tmp_path}[given])
    is_the_model(found)
    assert given == "the folder" or "one of 3 shards" in found.notes[-1]
    assert len(open_checkpoint(paths[1]).tensors) == len(MODEL)


@pytest.mark.parametrize("given", ["a shard", "the folder"])
@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_an_absent_shard_is_named(kind, absent, given, tmp_path):
    paths = parts_of_gguf(tmp_path) if kind == "gguf" else write(tmp_path)
    paths[absent].unlink()
    with pytest.raises(FileError) as caught:
        locate(tmp_path if given == "the folder" else paths[(absent + 1) % 3])
    assert paths[absent].name in caught.value.values
    assert "download" in caught.value.fix


def test_an_index_goes_before_the_names(tmp_path):
    paths = write(tmp_path, "diffusion_pytorch_model")
    weight_map = {key: path.name for path, part in zip(paths, split(), strict=True) for key in part}
    index = {"metadata": {"total_size": 12345}, "weight_map": weight_map}  # the total is wrong in many honest files
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for given in (tmp_path, paths[2]):
        is_the_model(locate(given))
    paths[1].unlink()
    for given in (tmp_path, paths[2]):
        with pytest.raises(FileError, match=rf"lists is missing(.|\n)*{paths[1].name}"):
            locate(given)


def test_a_key_in_two_shards(tmp_path):
    paths = write(tmp_path)
    first = next(iter(split()[0]))
    save_file(split()[1] | {first: MODEL[first]}, paths[1])
    with pytest.raises(FileError, match=rf"{first} is in two shards"):
        locate(paths[0])


@pytest.mark.parametrize("name", ["wan-00004-of-00003.safetensors", "wan-00000-of-00003.safetensors"])
def test_numbers_that_cannot_be(name, tmp_path):
    write(tmp_path)
    save_file(MODEL, tmp_path / name)
    with pytest.raises(FileError, match="one shard of 3"):
        locate(tmp_path / name)


def test_a_shard_of_very_many(tmp_path):
    save_file(MODEL, tmp_path / "wan-00001-of-99999.safetensors")
    with pytest.raises(FileError, match="and more"):
        locate(tmp_path)


def test_a_shard_of_one_is_the_model(tmp_path):
    save_file(MODEL, tmp_path / "wan-00001-of-00001.safetensors")
    is_the_model(locate(tmp_path))


def test_two_models_in_shards_in_one_folder(tmp_path):
    write(tmp_path, "high")
    write(tmp_path, "low")
    with pytest.raises(FileError, match=r"cannot tell which(.|\n)*high-00001-of-00003(.|\n)*low-00001-of-00003"):
        locate(tmp_path)
    is_the_model(locate(tmp_path / "low-00002-of-00003.safetensors"))


@pytest.mark.parametrize("renamed", [True, False])
def test_a_part_of_a_gguf_file_among_others(renamed, tmp_path):
    path = parts_of_gguf(tmp_path, said=7)[0]
    if renamed:
        path = path.rename(tmp_path / "wan.gguf")
    with pytest.raises(FileError, match="split into 7"):
        locate(path)


def test_a_wrong_total_of_a_split_gguf_file(tmp_path):
    with pytest.raises(FileError, match=rf"{len(MODEL)}, expected 99"):
        locate(parts_of_gguf(tmp_path, tensors=99)[0])


def test_settings_of_every_shard_are_heard(tmp_path):
    """A rotated weight that was taken for a plain one would be wrong without a word."""
    for number, name in enumerate("ab"):
        tensors, _ = storage.convrot(storage.matrix((32, 64)))
        del tensors["a.comfy_quant"]
        layers = {name: {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}}
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
        save_file(
            {key.replace("a.", f"{name}."): tensor for key, tensor in tensors.items()},
            tmp_path / names(2)[number],
            metadata,
        )
    (group,) = locate(tmp_path).groups.values()
    assert {ref.codec for ref in group.values()} == {"int8 convrot 16"}
    assert torch.equal(read_float(group["a.weight"]), read_float(group["b.weight"]))


@pytest.mark.parametrize("broken", [0, 1])
def test_settings_of_one_shard_that_are_none(broken, tmp_path):
    """Not to hear them might be to take a rotated weight for a plain one."""
    for number, path in enumerate(write(tmp_path)):
        text = "[" if number == broken else json.dumps({"layers": {}})
        save_file(split()[number], path, {"_quantization_metadata": text})
    with pytest.raises(FileError, match="_quantization_metadata cannot be understood"):
        locate(tmp_path)


@pytest.mark.filterwarnings("ignore")  # torch's own, about saving without a group
@pytest.mark.parametrize("given", ["the folder", "a piece", "the folder around"])
def test_pieces_of_torch_distributed_are_named(given, tmp_path):
    import torch.distributed.checkpoint as dcp

    dcp.save(makers.model(), checkpoint_id=tmp_path / "fsdp", no_dist=True)
    piece = next((tmp_path / "fsdp").glob("*.distcp"))
    with pytest.raises(UnsupportedError, match=r"torch\.distributed(.|\n)*dcp_to_torch(.|\n)*fsdp "):
        locate({"the folder": piece.parent, "a piece": piece, "the folder around": tmp_path}[given])


def test_the_folder_of_deepspeed(tmp_path):
    """Beside the weights: shapes, configuration and versions in the file, the optimizer's state in another."""
    states = {
        "module": MODEL,
        "optimizer": None,
        "param_shapes": [{key: tensor.shape for key, tensor in MODEL.items()}],
        "ds_config": {"train_batch_size": 4, "zero_optimization": {"stage": 2}},
        "ds_version": "0.17.0",
        "dp_world_size": 8,
    }
    torch.save(states, tmp_path / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {"x": torch.ones(3)}}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    found = open_checkpoint(tmp_path)
    assert (found.nested, len(found.tensors)) == ("module", len(MODEL))


def test_fp8_of_tencent_with_its_map_of_scales(tmp_path):
    """HunyuanVideo: the scales by the paths of the modules, in a file beside the weights."""
    weight, scale = torch.full((4, 4), 2.0).to(torch.float8_e4m3fn), torch.tensor(0.25)
    state = {"double_blocks.0.img_attn_qkv.weight": weight, "double_blocks.0.img_attn_qkv.bias": torch.ones(4)}
    state |= {"img_in.proj.weight": torch.ones(4, 4), "double_blocks.0.img_mlp.fc1.weight": weight}
    path = tmp_path / "mp_rank_00_model_states_fp8.pt"
    torch.save({"module": state}, path)
    with pytest.raises(FileError, match=r"scales of this fp8(.|\n)*states_fp8_map\.pt is missing"):
        locate(path)
    modules = ("double_blocks.0.img_attn_qkv", "double_blocks.0.img_mlp.fc1")
    torch.save(dict.fromkeys(modules, scale), tmp_path / "mp_rank_00_model_states_fp8_map.pt")
    for given in (path, tmp_path):
        group = locate(given).groups[("module",)]
        assert set(group) == set(state)
        for module in modules:
            ref = group[f"{module}.weight"]
            assert torch.equal(read_float(ref), torch.full((4, 4), 0.5))
            assert identity(ref)[0].count("\n") == 1  # both files are watched
        assert torch.equal(read_float(group["img_in.proj.weight"]), torch.ones(4, 4))


def test_names_without_numbers(tmp_path):
    """DeepSpeed at ZeRO stage 3: every rank keeps its share of the numbers with the optimizer's state."""
    empty = {key: torch.zeros(0, dtype=torch.bfloat16) for key in MODEL} | {"blocks.0.freqs": torch.ones(4)}
    torch.save({"module": empty, "ds_version": "0.17.0"}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(FileError, match=r"without their numbers(.|\n)*module/(.|\n)*zero_to_fp32"):
        locate(tmp_path)


def test_the_folder_of_accelerate(tmp_path):
    save_file(MODEL, tmp_path / "model.safetensors")
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    torch.save({"last_epoch": 3}, tmp_path / "scheduler.bin")
    (tmp_path / "random_states_0.pkl").write_bytes(b"x")
    is_the_model(locate(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save(MODEL, tmp_path / "pytorch_model_1.bin")
    is_the_model(locate(tmp_path))
