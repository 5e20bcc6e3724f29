"""Checkpoints: every layout and naming leads to the same canonical tensors; the rest is refused in a sentence."""

import json

import pytest
import torch
from safetensors.torch import save_file

import makers
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import read_tensor
from loraport.errors import FileError, MismatchError, UnsupportedError, UsageError
from loraport.models.architecture import detect, differing_shapes, require_same_size
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families

WAN = families()["wan"]


def _spelled(state: dict, naming: str, prefix: str = "") -> dict:
    found = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        is_param = WAN.template_of(name) is not None
        spelled = WAN.spell(name, naming) if is_param else f"{WAN.spell(module, naming)}.{kind}"
        found[prefix + spelled] = tensor
    return found


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("naming", WAN.namings)
@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model.", "diffusion_model.", "generator.model."])
def test_every_naming_and_prefix(naming, prefix, image, tmp_path):
    state = makers.model(image=image)
    save_file(_spelled(state, naming, prefix), tmp_path / "x.safetensors")
    found = open_checkpoint(tmp_path / "x.safetensors")
    makers.check_model(found, state)
    assert (found.naming, found.prefix) == (naming, prefix)
    assert found.architecture.title == "Wan (2 blocks, width 24)"
    assert found.architecture.layers["blocks.0.ffn.0"] == (48, 24)


def test_the_names_are_those_of_the_real_model(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=8, ffn_dim=48, num_layers=2, rope_max_seq_len=32, image_dim=20,
            added_kv_proj_dim=24, pos_embed_seq_len=6, cross_attn_norm=True,
        )  # fmt: skip
    model.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    found = open_checkpoint(tmp_path)
    assert found.naming == "diffusers"
    assert found.unknown == ()
    assert found.missing == ()
    assert len(found.tensors) == len(model.state_dict())
    own = read_tensor(found.tensors["blocks.1.norm3.weight"])
    assert torch.equal(own, model.state_dict()["blocks.1.norm2.weight"])
    assert found.tensors["blocks.0.cross_attn.k_img.weight"].key == "blocks.0.attn2.add_k_proj.weight"
    assert found.tensors["img_emb.emb_pos"].key == "condition_embedder.image_embedder.pos_embed"


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path):
        self.state = makers.model()
        names = list(self.state)
        weight_map = {}
        for part in range(3):
            file = f"diffusion_pytorch_model-{part + 1:05d}-of-00003.safetensors"
            save_file({name: self.state[name] for name in names[part::3]}, tmp_path / file)
            weight_map |= dict.fromkeys(names[part::3], file)
        self.index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        self.index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        save_file({"blocks.0.ffn.0.weight": torch.zeros(1, 1)}, tmp_path / "stray-00001-of-00001.safetensors")
        return tmp_path

    def test_the_index_is_followed_and_strays_are_not_read(self, folder):
        makers.check_model(open_checkpoint(folder), self.state)
        makers.check_model(open_checkpoint(self.index), self.state)

    def test_one_shard_leads_to_all(self, folder):
        found = open_checkpoint(folder / "diffusion_pytorch_model-00002-of-00003.safetensors")
        makers.check_model(found, self.state)
        assert "one of several shards" in found.notes[0]

    def test_shards_without_their_index(self, folder):
        self.index.unlink()
        shard = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
        makers.check_model(open_checkpoint(shard), self.state)
        makers.check_model(open_checkpoint(folder), self.state)
        (folder / "diffusion_pytorch_model-00001-of-00003.safetensors").unlink()
        for given in (shard, folder):
            with pytest.raises(FileError, match=r"shard(.|\n)*index(.|\n)*00001-of-00003"):
                open_checkpoint(given)

    def test_a_missing_shard(self, folder):
        (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
        with pytest.raises(FileError, match=r"shard(.|\n)*00002-of-00003"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "C:\\x.safetensors"])
    def test_an_index_that_points_elsewhere(self, name, folder):
        self.index.write_text(json.dumps({"weight_map": {"blocks.0.ffn.0.weight": name}}))
        with pytest.raises(FileError, match="outside its folder"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "[" * 9999])
    def test_an_index_that_is_none(self, text, folder):
        self.index.write_text(text)
        with pytest.raises(FileError):
            open_checkpoint(folder)

    def test_a_key_that_is_not_where_the_index_says(self, folder):
        content = json.loads(self.index.read_text())
        content["weight_map"]["blocks.7.ffn.0.weight"] = "diffusion_pytorch_model-00001-of-00003.safetensors"
        self.index.write_text(json.dumps(content))
        with pytest.raises(FileError, match=r"blocks\.7\.ffn\.0\.weight"):
            open_checkpoint(folder)


class TestFolders:
    def test_pipeline_root_and_transformer(self, tmp_path):
        state = makers.model()
        (tmp_path / "transformer").mkdir()
        (tmp_path / "vae").mkdir()
        save_file(_spelled(state, "diffusers"), tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
        save_file({"x": torch.zeros(1)}, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
        makers.check_model(open_checkpoint(tmp_path), state)
        makers.check_model(open_checkpoint(str(tmp_path / "transformer")), state)

    def test_two_experts(self, tmp_path):
        for seed, name in enumerate(["transformer", "transformer_2"]):
            (tmp_path / name).mkdir()
            save_file(makers.model(seed), tmp_path / name / "diffusion_pytorch_model.safetensors")
        found = open_checkpoint(tmp_path)
        assert "two experts" in found.notes[0]
        assert found.path.name == "transformer"
        assert open_checkpoint(tmp_path, nested="transformer_2").path.name == "transformer_2"

    def test_two_experts_of_the_original_layout(self, tmp_path):
        for name in ("high_noise_model", "low_noise_model"):
            (tmp_path / name).mkdir()
            save_file(makers.model(), tmp_path / name / "diffusion_pytorch_model.safetensors")
        with pytest.raises(UsageError, match="high_noise_model, low_noise_model"):
            open_checkpoint(tmp_path)
        assert open_checkpoint(tmp_path / "low_noise_model").notes == ()

    @pytest.mark.parametrize(
        ("index", "shard"),
        [
            ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model-0000{}-of-00002.bin"),
            ("pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
            (
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
            ),
            ("model.fp16.safetensors.index.json", "model-0000{}-of-00002.fp16.safetensors"),
        ],
    )
    def test_shards_of_another_ending_or_a_variant(self, index, shard, tmp_path):
        state = makers.model()
        names = list(state)
        (tmp_path / "transformer").mkdir()
        for part in (0, 1):
            path = tmp_path / "transformer" / shard.format(part + 1)
            content = {name: state[name] for name in names[part::2]}
            torch.save(content, path) if shard.endswith(".bin") else save_file(content, path)
        weight_map = {name: shard.format(1 + number % 2) for number, name in enumerate(names)}
        (tmp_path / "transformer" / index).write_text(json.dumps({"weight_map": weight_map}))
        makers.check_model(open_checkpoint(tmp_path), state)
        makers.check_model(open_checkpoint(tmp_path / "transformer" / shard.format(2)), state)

    @pytest.mark.parametrize("name", ["self_forcing.pt", "model.bin", "x.fp16.safetensors", "wan.pth", "a.ckpt"])
    def test_the_only_model_of_a_folder(self, name, tmp_path):
        (save_file if name.endswith(".safetensors") else torch.save)(makers.model(), tmp_path / name)
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "optimizer.txt").write_text("no model")
        makers.check_model(open_checkpoint(tmp_path), makers.model())

    def test_the_plain_safetensors_file_before_all_others(self, tmp_path):
        save_file(makers.model(), tmp_path / "diffusion_pytorch_model.safetensors")
        save_file(makers.model(1), tmp_path / "diffusion_pytorch_model.fp16.safetensors")
        torch.save(makers.model(2), tmp_path / "diffusion_pytorch_model.bin")
        makers.check_model(open_checkpoint(tmp_path), makers.model())

    def test_an_empty_folder_and_a_full_one(self, tmp_path):
        with pytest.raises(FileError, match="holds no model"):
            open_checkpoint(tmp_path)
        for name in ("a", "b"):
            save_file(makers.model(), tmp_path / f"{name}.safetensors")
        with pytest.raises(FileError, match=r"a\.safetensors, b\.safetensors"):
            open_checkpoint(tmp_path)


class TestContent:
    def test_a_choice_where_there_is_none_is_said_to_be_idle(self, pico_path):
        assert "'generator' selects nothing" in open_checkpoint(pico_path, nested="generator").notes[0]

    def test_more_and_less_than_expected(self, tmp_path):
        state = makers.model()
        state["blocks.0.to_gate_compress.weight"] = torch.zeros(24, 24)
        state["first_stage_model.decoder.weight"] = torch.zeros(3)
        del state["blocks.1.ffn.0.weight"], state["blocks.1.ffn.0.bias"]
        save_file(state, tmp_path / "x.safetensors")
        found = open_checkpoint(tmp_path / "x.safetensors")
        assert set(found.unknown) == {"blocks.0.to_gate_compress.weight", "first_stage_model.decoder.weight"}
        assert found.missing == ("blocks.1.ffn.0",)

    def test_additions_of_a_variant_are_named_and_left_alone(self, tmp_path):
        state = makers.model()
        state |= {f"motion_encoder.enc.fc.{n}.weight": torch.zeros(24, 24) for n in range(3)}
        save_file(state, tmp_path / "x.safetensors")
        save_file({f"model.diffusion_model.{key}": t for key, t in state.items()}, tmp_path / "y.safetensors")
        found, other = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in "xy")
        assert found.notes == ("the model has a motion encoder (Animate) (3 tensors), which are left alone",)
        assert found.missing == ()
        assert found.extra.keys() == other.extra.keys()

    def test_the_same_weight_twice(self, tmp_path):
        state = makers.model()
        both = state | {name: tensor.clone() for name, tensor in _spelled(state, "diffusers").items()}
        save_file(both, tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match="twice"):
            open_checkpoint(tmp_path / "x.safetensors")

    def test_a_layer_of_an_odd_shape_matters_only_where_a_lora_changes_it(self, tmp_path):
        save_file(makers.model() | {"blocks.0.ffn.2.weight": torch.zeros(25, 48)}, tmp_path / "x.safetensors")
        model = open_checkpoint(tmp_path / "x.safetensors")
        assert "blocks.0.ffn.2 (shape [25, 48], but width is 24 by" in model.notes[0]
        lora = makers.LoraFile(makers.universal()).write(tmp_path)
        with pytest.raises(MismatchError, match="is 24 x 48 in the LoRA and 25 x 48 in the source"):
            open_adapter(lora, model)
        assert len(open_adapter(lora, model, drop=r"blocks\.0\.ffn\.2").layers) == 19

    @pytest.mark.parametrize("prefix", ["", "net.", "model.diffusion_model."])
    def test_a_patch_embedding_that_is_a_linear_layer(self, prefix, tmp_path):
        """rCM and TurboDiffusion keep it as a matrix and add layers of their own; no LoRA on blocks needs either."""
        state = makers.model()
        state["patch_embedding.weight"] = state["patch_embedding.weight"].reshape(makers.WIDTH, -1)
        extra = {f"blocks.{n}.self_attn.attn_op.local_attn.proj_l.weight": torch.zeros(8, 8) for n in range(2)}
        torch.save({f"{prefix}{name}": tensor for name, tensor in (state | extra).items()}, tmp_path / "x.pth")
        model = open_checkpoint(tmp_path / "x.pth")
        assert model.architecture.title == "Wan (2 blocks, width 24)"
        assert "patch_embedding (shape [24, 16], expected 5 dimensions" in model.notes[0]
        assert model.extra.keys() == extra.keys()
        lora = makers.LoraFile(makers.universal()).write(tmp_path)
        assert len(open_adapter(lora, model).layers) == 20
        require_same_size(model.architecture, model.architecture)

    def test_dimensions_are_those_of_most_modules(self, tmp_path):
        """The first module of a file may be the odd one."""
        state = {"blocks.0.self_attn.q.weight": torch.zeros(7, 9), **makers.model()}
        state["blocks.0.self_attn.q.weight"] = torch.zeros(7, 9)
        save_file(state, tmp_path / "x.safetensors")
        found = open_checkpoint(tmp_path / "x.safetensors").architecture
        assert found.dimensions["width"] == 24
        assert list(found.misfits) == ["blocks.0.self_attn.q"]

    def test_a_lora_given_as_a_checkpoint(self, tmp_path):
        made = makers.spell(makers.factors(), "diffusion_model.", makers.same, ".lora_A.weight", ".lora_B.weight")
        save_file(made, tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match="this file is a LoRA"):
            open_checkpoint(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        ("key", "word"),
        [
            ("double_blocks.0.img_attn.qkv.weight", "HunyuanVideo"),
            ("model.layers.3.self_attn.q_proj.weight", "language model"),
            ("x", "not a model of a known family"),
        ],
    )
    def test_another_family(self, key, word, tmp_path):
        save_file({key: torch.zeros(8, 8)}, tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match=word):
            open_checkpoint(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        ("extra", "word"),
        [
            ({"blocks.0.ffn.0.comfy_quant": torch.zeros(9, dtype=torch.uint8)}, "ComfyUI"),
            ({"blocks.0.ffn.0.weight_scale_2": torch.ones(1)}, "nvfp4"),
            ({"blocks.0.ffn.0.qweight": torch.zeros(4, 4, dtype=torch.int32)}, "GPTQ"),
            ({"blocks.0.ffn.0.weight.absmax": torch.ones(3)}, "bitsandbytes"),
            ({"blocks.0.ffn.0.weight": torch.zeros(48, 24, dtype=torch.uint8)}, "packed"),
            ({"blocks.0.ffn.0.weight": torch.zeros(48, 24, dtype=torch.int8)}, "int8"),
            ({"blocks.0.ffn.0.weight": torch.zeros(48, 24, dtype=torch.int64)}, "integers"),
            ({"blocks.0.ffn.0.bias": torch.zeros(48, dtype=torch.bool)}, "integers"),
        ],
    )
    def test_quantised_storage_is_refused_by_name(self, extra, word, tmp_path):
        save_file(makers.model() | extra, tmp_path / "x.safetensors")
        with pytest.raises(UnsupportedError, match=word):
            open_checkpoint(tmp_path / "x.safetensors")

    def test_gguf_of_an_unknown_version_is_refused_by_name(self, tmp_path):
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
        with pytest.raises(UnsupportedError, match="GGUF"):
            open_checkpoint(tmp_path / "x.gguf")


def _shapes(width: int, ffn: int, blocks: int, channels: int, *, image: bool = False) -> dict:
    found = {"patch_embedding": (width, channels, 1, 2, 2)}
    for n in range(blocks):
        found |= {f"blocks.{n}.self_attn.q": (width, width), f"blocks.{n}.ffn.0": (ffn, width)}
        if image:
            found[f"blocks.{n}.cross_attn.k_img"] = (width, width)
    return found


@pytest.mark.parametrize(
    ("shapes", "title"),
    [
        (_shapes(1536, 8960, 30, 16), "Wan2.1 T2V 1.3B (30 blocks, width 1536)"),
        (_shapes(5120, 13824, 40, 16), "Wan2.1/2.2 T2V 14B (40 blocks, width 5120)"),
        (_shapes(5120, 13824, 40, 36, image=True), "Wan2.1 I2V 14B (40 blocks, width 5120)"),
        (_shapes(5120, 13824, 40, 36), "Wan2.2 I2V 14B (40 blocks, width 5120)"),
        (_shapes(3072, 14336, 30, 48), "Wan2.2 TI2V 5B (30 blocks, width 3072)"),
        (_shapes(1536, 8960, 30, 48), "Wan2.1 Fun Control 1.3B (30 blocks, width 1536)"),
        (_shapes(1536, 8960, 30, 20), "Wan 1.3B (30 blocks, width 1536)"),
        (
            _shapes(5120, 13824, 40, 16) | {f"vace_blocks.{n}.ffn.0": (13824, 5120) for n in range(8)},
            "Wan2.1/2.2 VACE 14B (40 blocks, width 5120)",
        ),
        (
            _shapes(5120, 13824, 40, 36) | {f"face_adapter.fuser_blocks.{n}.linear2": (5120, 5120) for n in range(8)},
            "Wan2.2 Animate 14B (40 blocks, width 5120)",
        ),
        (_shapes(5120, 13824, 40, 16) | {"trainable_cond_mask": (3, 5120)}, "Wan2.2 S2V 14B (40 blocks, width 5120)"),
        (_shapes(128, 512, 4, 3), "Wan (4 blocks, width 128)"),
        (_shapes(1536, 8960, 40, 16), "Wan (40 blocks, width 1536)"),
    ],
)
def test_human_names(shapes, title):
    assert detect(shapes, WAN).title == title


def test_a_pair_of_different_size_is_refused_in_one_sentence():
    small, large = detect(_shapes(1536, 8960, 30, 16), WAN), detect(_shapes(5120, 13824, 40, 16), WAN)
    with pytest.raises(MismatchError) as caught:
        require_same_size(small, large)
    assert caught.value.what == (
        "The source is Wan2.1 T2V 1.3B (30 blocks, width 1536), "
        "the target is Wan2.1/2.2 T2V 14B (40 blocks, width 5120)."
    )


def test_two_models_that_are_called_the_same(tmp_path):
    """A size that no name shows: what differs is said, not twice the same name."""
    small, large = detect(_shapes(1, 8, 2, 4), WAN), detect(_shapes(1, 9, 2, 4), WAN)
    assert small.title == large.title
    with pytest.raises(MismatchError) as caught:
        require_same_size(small, large)
    assert caught.value.what == "The source and the target differ in size."
    assert caught.value.values == "blocks.0.ffn.0 is 8 x 1 in the source and 9 x 1 in the target"
    made = {"blocks.0.ffn.0": (torch.ones(9, 2), torch.ones(2, 1))}
    lora = makers.LoraFile(makers.spell(made, "diffusion_model.", makers.same, *makers.PEFT)).write(tmp_path)
    with pytest.raises(MismatchError, match=r"ffn\.0 is 9 x 1 in the LoRA and 8 x 1 in the source"):
        open_adapter(lora, small)
    assert len(open_adapter(lora, large).layers) == 1


def test_an_image_model_may_be_the_target_of_a_text_model():
    text, image = detect(_shapes(5120, 13824, 2, 16), WAN), detect(_shapes(5120, 13824, 2, 36, image=True), WAN)
    require_same_size(text, image)
    assert differing_shapes(text, image) == {"patch_embedding": ((5120, 16, 1, 2, 2), (5120, 36, 1, 2, 2))}
