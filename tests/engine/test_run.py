"""The main job end to end on a pico Wan: two routes to the same file, and the rules of the output."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.engine.events import LayerDone
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan, sample_for_kinship
from loraport.engine.recipe import Recipe
from loraport.engine.run import compute, run
from loraport.errors import FileError, LoraportError, MismatchError, NumericalError, UnmatchedKeysError
from loraport.methods import registry
from whole_commands import remembered


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    return pico.write(tmp_path / "pico")


@pytest.fixture
def options(tmp_path) -> RunOptions:
    return RunOptions(cache=str(tmp_path / "cache"), log="off", overwrite=True)


def _transfer(files, output, options, *, method="casa", **settings):
    """By the method that uses the most of the engine: decompositions, what is kept of them, an output rank."""
    target = settings.pop("target", files.target)
    source = settings.pop("source", files.source)
    lora = settings.pop("lora", files.lora)
    return loraport.transfer(
        lora, source=source, target=target, output=output, method=method, options=options, **settings
    )


def _updates(path) -> dict[str, torch.Tensor]:
    """What the file adds to each weight."""
    tensors = load_file(path)
    prefix, down, up = "diffusion_model.", ".lora_A.weight", ".lora_B.weight"
    names = [key.removesuffix(down) for key in tensors if key.endswith(down)]
    return {name.removeprefix(prefix): tensors[name + up] @ tensors[name + down] for name in names}


def _close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, matrix in first.items():
        error = float((matrix - second[name]).norm() / second[name].norm())
        assert error < tolerance, f"{name}: {error:.2e}"


def test_every_executor_and_every_state_of_the_cache_gives_the_same_bytes(files, tmp_path):
    def run(executor: str, cache: str, workers: int) -> tuple[tuple[bytes, Any], int]:
        options = RunOptions(executor=executor, workers=workers, cache=cache, overwrite=True)
        report = _transfer(files, tmp_path / "out.safetensors", options)
        made = (tmp_path / "out.safetensors").read_bytes(), [layer.maps for layer in report.layers]
        return made, report.summary.cached_layers

    warm = str(tmp_path / "cache")
    reference, cached = run("serial", "off", 1)
    assert cached == 0
    assert all(reference[1])
    assert run("thread", "off", 3) == (reference, 0)
    assert run("thread", warm, 2) == (reference, 0)
    assert run("process", warm, 1) == (reference, len(pico.LAYERS))
    assert run("process", str(tmp_path / "other cache"), 2) == (reference, 0)
    assert remembered(tmp_path / "other cache") == remembered(tmp_path / "cache") != {}


ODD = {f"layers.{number}.proj": shape for number, shape in enumerate([(7, 5), (5, 7), (50, 50), (33, 17), (133, 150)])}


def test_what_another_lora_left_in_the_cache_changes_no_byte(tmp_path):
    """Not even where decompositions come with their columns in order, and of no round size."""
    generator = torch.Generator().manual_seed(0)

    def write(name: str, tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return str(tmp_path / f"{name}.safetensors")

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    weights = {f"{layer}.weight": drawn(*shape) for layer, shape in ODD.items()}
    source = write("source", weights)
    target = write("target", {key: weight + 0.05 * drawn(*weight.shape) for key, weight in weights.items()})
    loras = []
    for number in range(2):
        pairs = {layer: (drawn(3, n), drawn(m, 3)) for layer, (m, n) in ODD.items()}
        factors = {f"{layer}.lora_A.weight": A for layer, (A, _) in pairs.items()}
        loras.append(
            write(f"lora {number}", factors | {f"{layer}.lora_B.weight": B for layer, (_, B) in pairs.items()})
        )

    def made(lora: str, cache: str) -> bytes:
        loraport.transfer(
            lora, source=source, target=target, output=tmp_path / "out.safetensors", architecture="any",
            options=RunOptions(cache=cache, executor="serial", log="off", overwrite=True),
        )  # fmt: skip
        return (tmp_path / "out.safetensors").read_bytes()

    alone = made(loras[1], "off")
    made(loras[0], str(tmp_path / "cache"))
    assert made(loras[1], str(tmp_path / "cache")) == alone


def test_the_largest_layers_go_first_and_none_of_them_waits_for_the_end(files, tmp_path):
    """After the few that were looked at beforehand; the report has the order of the model all the same."""
    plan = make_plan(Recipe.build({"lora": str(files.lora), "source": str(files.source), "target": str(files.target)}))
    done: list[str] = []

    def on_event(event: object) -> None:
        if isinstance(event, LayerDone):
            done.append(event.layer.name)

    report = run(plan, None, RunOptions(executor="serial", cache="off", log="off"), on_event)
    sample = [job.name for job in sample_for_kinship(plan)]
    assert done[: len(sample)] == sample
    sizes = [rows * columns for rows, columns in map(pico.LAYERS.get, done[len(sample) :])]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    assert [layer.name for layer in report.layers] == [job.name for job in plan.jobs] != done


def test_computing_in_memory_gives_what_is_written(files, tmp_path, options):
    _transfer(files, tmp_path / "out.safetensors", options)
    recipe = Recipe(lora=str(files.lora), source=str(files.source), target=str(files.target), method="casa")
    made = {name: update.dense() for name, update in compute(make_plan(recipe), options).items()}
    _close(made, _updates(tmp_path / "out.safetensors"), 1e-6)


def test_a_second_lora_for_the_same_pair_does_no_decomposition(files, tmp_path, options, monkeypatch):
    _transfer(files, tmp_path / "first.safetensors", options)
    second, output = files.folder / "second.safetensors", tmp_path / "second.safetensors"
    save_file(pico.lora(9), second)
    alone = _transfer(files, output, options.model_copy(update={"cache": "off"}), lora=second)
    monkeypatch.setattr("loraport.engine.layer.thin_svd", None)  # any call would fail
    report = _transfer(files, output, options, lora=second)
    assert report.summary.cached_layers == 0
    assert [layer.maps for layer in report.layers] == [layer.maps for layer in alone.layers]


def test_target_equal_to_source_gives_the_lora_back(files, tmp_path, options):
    report = _transfer(files, tmp_path / "out.safetensors", options, target=files.source)
    _close(_updates(tmp_path / "out.safetensors"), _updates(files.lora), 1e-5)
    assert any("nothing to transfer" in warning for warning in report.warnings)


def test_amount_zero_is_direct_reuse_and_half_lies_in_the_middle(files, tmp_path, options):
    made = {}
    for amount in (0.0, 0.5, 1.0):
        path = tmp_path / f"{amount}.safetensors"
        _transfer(files, path, options, amount=amount, rank="full" if amount else "same")
        made[amount] = _updates(path)
    direct = tmp_path / "direct.safetensors"
    _transfer(files, direct, options, method="direct")
    assert (tmp_path / "0.0.safetensors").read_bytes()[-10000:] == direct.read_bytes()[-10000:]  # past the header
    _close(made[0.0], _updates(files.lora), 1e-5)
    middle = {name: (made[0.0][name] + made[1.0][name]) / 2 for name in made[1.0]}
    _close(made[0.5], middle, 1e-4)
    report = _transfer(files, tmp_path / "cut.safetensors", options, amount=0.5, rank="4")
    cut = _updates(tmp_path / "cut.safetensors")
    for layer in report.layers:  # square, tall and wide ones; what is kept is the best share, and said rightly
        values = torch.linalg.svdvals(middle[layer.name].double()).square()
        kept = 1 - float((middle[layer.name] - cut[layer.name]).norm() / middle[layer.name].norm()) ** 2
        assert layer.energy_kept == pytest.approx(kept, abs=1e-4)
        assert kept == pytest.approx(float(values[:4].sum() / values.sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("rank", "expected"), [("auto", 32), ("same", 4), ("7", 7), ("full", 32), ("energy=0.9", None), ("900", 32)]
)
def test_the_output_has_one_rank_and_says_what_it_kept(files, tmp_path, options, rank, expected):
    report = _transfer(files, tmp_path / "out.safetensors", options, rank=rank)
    tensors = load_file(tmp_path / "out.safetensors")
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key}
    assert len(ranks) == 1
    assert expected is None or ranks == {expected}
    exact = tmp_path / "exact.safetensors"
    _transfer(files, exact, options, rank="full")
    cut, whole = _updates(tmp_path / "out.safetensors"), _updates(exact)
    for layer in report.layers:
        kept = 1 - float((whole[layer.name] - cut[layer.name]).norm() / whole[layer.name].norm()) ** 2
        assert layer.energy_kept == pytest.approx(kept, abs=1e-4)
        if rank == "energy=0.9":
            assert layer.energy_kept >= 0.9


@pytest.mark.parametrize("method", registry.names())
def test_the_plan_says_the_rank_that_is_written(files, tmp_path, options, method):
    """Exactly, where an update that reads the drift fills what it is given."""
    wide = files.folder / "wide.safetensors"
    save_file(pico.lora(9, rank=40), wide)  # than the layers are
    cases: list[dict[str, Any]] = [
        {}, {"rank": "4"}, {"rank": "full"}, {"amount": 0.5}, {"layers": "self_attn"}, {"lora": str(wide)},
    ]  # fmt: skip
    if "side" in registry.get(method).Params.model_fields:
        cases.append({"params": {"side": "inputs"}})
    if method == "prolora":
        cases.append({"params": {"mixed": True}})
    for number, settings in enumerate(cases):
        output = tmp_path / f"{number}.safetensors"
        _transfer(files, output, options, method=method, **settings)
        recipe = Recipe(lora=str(files.lora), source=str(files.source), target=str(files.target), method=method)
        planned = make_plan(recipe.model_copy(update=settings))
        written = next(tensor.shape[0] for key, tensor in load_file(output).items() if "lora_A" in key)
        assert planned.rank_out == written, settings
        assert planned.output_bytes <= output.stat().st_size


def test_layers_outside_the_pattern_keep_their_update_and_dropped_ones_go(files, tmp_path, options):
    report = _transfer(files, tmp_path / "out.safetensors", options, layers=r"self_attn", drop=r"ffn")
    assert {layer.name for layer in report.layers if layer.method == "casa"} == {n for n in pico.LAYERS if "self" in n}
    updates, given = _updates(tmp_path / "out.safetensors"), _updates(files.lora)
    assert not any("ffn" in name for name in updates)
    kept = {name: matrix for name, matrix in updates.items() if "cross" in name}
    _close(kept, {name: given[name] for name in kept}, 1e-5)
    assert len(report.dropped) == 2 * 2 * pico.BLOCKS


def test_direct_reuse_at_a_strength_leaves_other_layers_alone_and_has_an_amount(files, tmp_path, options):
    given, output = _updates(files.lora), tmp_path / "out.safetensors"
    asked = {"method": "direct", "params": {"strength": 0.5}, "dtype": "float32"}
    _transfer(files, output, options, layers=r"self_attn", **asked)
    _close(_updates(output), {name: (0.5 if "self_attn" in name else 1.0) * D for name, D in given.items()}, 1e-5)
    _transfer(files, output, options, amount=0.5, **asked)
    _close(_updates(output), {name: 0.75 * D for name, D in given.items()}, 1e-5)


def test_a_layer_that_one_checkpoint_lacks_is_refused_or_left_out(files, tmp_path, options):
    tensors = load_file(files.target)
    del tensors["blocks.1.ffn.0.weight"]
    save_file(tensors, files.target)
    with pytest.raises(UnmatchedKeysError, match="a layer that the target does not have"):
        _transfer(files, tmp_path / "out.safetensors", options)
    report = _transfer(files, tmp_path / "out.safetensors", options, allow_partial=True)
    assert {layer.name for layer in report.layers} == set(pico.LAYERS) - {"blocks.1.ffn.0"}
    assert sorted(key.rpartition("lora_")[0] for key in report.dropped) == ["diffusion_model.blocks.1.ffn.0."] * 2
    assert any("it was left out (--allow-partial)" in warning for warning in report.warnings)


def test_every_key_of_the_input_ends_in_one_place(files, tmp_path, options):
    tensors = load_file(files.lora)
    generator = torch.Generator().manual_seed(4)
    tensors["diffusion_model.blocks.0.norm3.diff"] = torch.randn(pico.WIDTH, generator=generator)
    tensors["diffusion_model.blocks.0.self_attn.q.diff_b"] = torch.randn(pico.WIDTH, generator=generator)
    save_file(tensors, files.lora)
    report = _transfer(files, tmp_path / "out.safetensors", options, drop=r"blocks\.1\.")
    assert set(report.passthrough) == {key for key in tensors if ".diff" in key}
    assert set(report.dropped) == {key for key in tensors if "blocks.1." in key}
    written = load_file(tmp_path / "out.safetensors")
    for key in report.passthrough:
        assert torch.equal(written[key], tensors[key])
    extra = written.keys() - tensors.keys()  # diffusers wants a bias for every layer or for none: zeros
    assert all(".diff_b" in key and not written[key].any() for key in extra)
    assert not set(report.dropped) & written.keys()


def test_stored_dtypes_may_differ_without_passing_for_drift(files, tmp_path, options):
    source = load_file(files.source)
    rounded = {name: tensor.bfloat16() for name, tensor in source.items()}
    save_file(rounded, files.folder / "rounded.safetensors")
    report = _transfer(files, tmp_path / "out.safetensors", options, target=files.folder / "rounded.safetensors")
    assert all(layer.stats["drift_rel"] == 0.0 for layer in report.layers)


def test_a_distillation_lora_as_target_equals_its_merged_checkpoint(files, tmp_path, options):
    distill = pico.lora(5, rank=6)
    save_file(distill, files.folder / "fast.safetensors")
    merged = load_file(files.source)
    for name, matrix in _updates(files.folder / "fast.safetensors").items():
        merged[f"{name}.weight"] += 0.5 * matrix
    save_file(merged, files.folder / "merged.safetensors")
    for arbitrate in (False, True):
        params = {"arbitrate": arbitrate}
        one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
        _transfer(files, one, options, target=files.folder / "merged.safetensors", rank="full", params=params)
        factored = f"{files.folder / 'fast.safetensors'}:0.5"
        _transfer(files, two, options, target=None, target_lora=factored, rank="full", params=params)
        _close(_updates(two), _updates(one), 1e-4)
    exact = _transfer(
        files, tmp_path / "exact.safetensors", options, target=None, target_lora=factored, rank="10",
        params={"arbitrate": False},
    )  # fmt: skip
    assert all(layer.energy_kept > 1 - 1e-6 for layer in exact.layers)


def test_an_unrelated_target_is_refused_unless_forced(files, tmp_path, options):
    save_file(pico.weights(77), files.folder / "stranger.safetensors")
    output = tmp_path / "out.safetensors"
    with pytest.raises(MismatchError, match="versions of one model"):
        _transfer(files, output, options, target=files.folder / "stranger.safetensors")
    assert not output.exists()
    _transfer(files, output, options, target=files.folder / "stranger.safetensors", force=True)
    assert output.exists()


@pytest.mark.parametrize("role", ["source", "target", "lora"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused_by_name(files, tmp_path, options, role, value):
    path = getattr(files, role)
    tensors = load_file(path)
    key = next(key for key in tensors if "blocks.1.ffn.0" in key and tensors[key].ndim == 2)
    tensors[key][3, 1] = value
    save_file(tensors, path)
    with pytest.raises(NumericalError, match=r"ffn\.0"):
        _transfer(files, tmp_path / "out.safetensors", options)
    assert not (tmp_path / "out.safetensors").exists()


def test_an_existing_output_is_kept_unless_told(files, tmp_path):
    output = tmp_path / "out.safetensors"
    output.write_text("precious")
    with pytest.raises(FileError, match="exists"):
        _transfer(files, output, RunOptions(cache="off"))
    assert output.read_text() == "precious"
    with pytest.raises(FileError, match="replace the input LoRA"):
        _transfer(files, files.lora, RunOptions(cache="off", overwrite=True))


def test_the_run_log_holds_every_layer_and_survives_a_failure(files, tmp_path):
    output = tmp_path / "out.safetensors"
    report = _transfer(files, output, RunOptions(cache="off"))
    lines = [json.loads(line) for line in (tmp_path / "out.run.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines if line["event"] == "layer"} == {layer.name for layer in report.layers}
    assert lines[-1]["event"] == "finished"
    tensors = load_file(files.lora)
    tensors["diffusion_model.blocks.1.ffn.2.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, files.lora)
    with pytest.raises(NumericalError):
        _transfer(files, tmp_path / "bad.safetensors", RunOptions(cache="off"))
    assert json.loads((tmp_path / "bad.run.jsonl").read_text().splitlines()[-1])["event"] == "failed"


@pytest.mark.parametrize("reason", ["stranger", "device", "exists"])
def test_a_run_refused_before_any_work_leaves_nothing(files, tmp_path, reason):
    """Neither a log, nor a folder, nor a cache; and the log of the run before stays as it was."""
    folder = tmp_path / "new"
    output = folder / "out.safetensors"
    options = RunOptions(cache=str(tmp_path / "cache"), device="cuda:99" if reason == "device" else "auto")
    if reason == "stranger":
        save_file(pico.weights(77), files.target)
    if reason == "exists":
        folder.mkdir()
        output.write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LoraportError):
        _transfer(files, output, options)
    assert sorted(tmp_path.rglob("*")) == before
    folder.mkdir(exist_ok=True)
    log = folder / "out.run.jsonl"
    log.write_text("the run before\n")
    with pytest.raises(LoraportError):
        _transfer(files, output, options)
    assert log.read_text() == "the run before\n"


def test_the_header_tells_where_the_file_comes_from(files, tmp_path, options):
    from safetensors import safe_open

    _transfer(files, tmp_path / "out.safetensors", options)
    with safe_open(str(tmp_path / "out.safetensors"), framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["loraport.recipe"])["method"] == "casa"
    assert set(json.loads(header["loraport.inputs"])) == {"source", "target", "lora"}
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "32"
    assert str(tmp_path) not in "".join(header.values())


def test_a_file_is_not_transferred_twice_unless_forced(files, tmp_path, options):
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    _transfer(files, once, options)
    with pytest.raises(MismatchError, match="already"):
        _transfer(files, twice, options, lora=once)
    assert not twice.exists()
    _transfer(files, twice, options, lora=once, force=True)
    assert twice.exists()


@pytest.mark.parametrize("role", ["source", "target", "lora"])
def test_no_input_is_ever_replaced(files, options, role):
    path = getattr(files, role)
    before = path.read_bytes()
    with pytest.raises(FileError, match="replace the"):
        _transfer(files, path, options)
    assert path.read_bytes() == before


def test_a_cache_too_small_for_the_pair_keeps_what_fits(files, tmp_path, monkeypatch):
    monkeypatch.setattr("loraport.store.store.DEFAULT_MAX_BYTES", 120_000)
    options = RunOptions(cache=str(tmp_path / "small"), log="off", overwrite=True)
    report = _transfer(files, tmp_path / "out.safetensors", options)
    assert any("layers are kept" in warning for warning in report.warnings)
    roomy = RunOptions(cache=str(tmp_path / "other"), log="off", overwrite=True)
    monkeypatch.undo()
    _transfer(files, tmp_path / "same.safetensors", roomy)
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()


def test_a_cache_folder_that_cannot_be_used_is_said_and_done_without(files, tmp_path):
    options = RunOptions(cache="~nobody-of-this-name/cache", log="off", overwrite=True)
    report = _transfer(files, tmp_path / "out.safetensors", options)
    (said,) = [text for text in report.warnings if "cache" in text]
    assert "nobody-of-this-name" in said
    _transfer(files, tmp_path / "plain.safetensors", RunOptions(cache="off", log="off"))
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


@pytest.mark.parametrize("method", sorted(loraport.list_methods()))
def test_every_method_runs_on_checkpoints_and_on_a_distillation_lora(files, tmp_path, method):
    options = RunOptions(cache="off", log="off")  # three pairs of models, each used once: nothing to keep
    _transfer(files, tmp_path / "one.safetensors", options, method=method)
    save_file(pico.lora(5, rank=6), files.folder / "fast.safetensors")
    merged = load_file(files.source)
    for name, matrix in _updates(files.folder / "fast.safetensors").items():
        merged[f"{name}.weight"] += matrix
    save_file(merged, files.folder / "merged.safetensors")
    one, two = tmp_path / "merged.safetensors", tmp_path / "factored.safetensors"
    _transfer(files, one, options, method=method, rank="full", target=files.folder / "merged.safetensors")
    factored = str(files.folder / "fast.safetensors")
    _transfer(files, two, options, method=method, rank="full", target=None, target_lora=factored)
    _close(_updates(two), _updates(one), 2e-3)
