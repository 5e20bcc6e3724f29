"""OFT and BOFT in the spellings of kohya, LyCORIS, OneTrainer and ComfyUI's trainer, against formulas written out."""

import pytest
import torch
from safetensors.torch import save_file

from adapter_parts import LAYERS, WEIGHTS, cayley, close, gaussian, updates
from loraport.adapters.parse import open_adapter


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.01, 10.0])
def test_oft(alpha, rescaled, source, tmp_path):
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        rows = len(weight)
        blocks = gaussian(rows // 4, 4, 4, seed=3, size=0.3)
        made[layer] = {"oft_blocks": blocks}
        turns = cayley(blocks, (alpha or 0.0) * rows)
        new = torch.cat([turns[i].T @ weight[4 * i : 4 * i + 4].double() for i in range(rows // 4)])
        if alpha is not None:
            made[layer]["alpha"] = torch.tensor(alpha)
        if rescaled:
            made[layer]["rescale"] = 1 + gaussian(rows, 1, seed=4, size=0.2)
            new = new * made[layer]["rescale"]
        wanted[layer] = new - weight
    for layer, update in updates(made, source, tmp_path).items():
        close(update, wanted[layer])


@pytest.mark.parametrize("scaled", [False, True])
def test_oft_of_onetrainer(scaled, source, tmp_path):
    """Inputs turned block by block, by 1 + 2 Q + 2 Q^2 + 2 Q^3 + Q^4, whatever lies beside the file."""
    weight = WEIGHTS["blocks.0.ffn.0.weight"]
    vectors = gaussian(8, 6, seed=3, size=0.3)
    stem = "transformer.blocks.0.ffn.net.0.proj.oft_R"
    made = {f"{stem}.weight": vectors} | ({f"{stem}.scaled_oft": torch.tensor(1)} if scaled else {})
    save_file(made, tmp_path / "x.safetensors")
    columns = []
    for block in range(8):
        skew = torch.zeros(4, 4, dtype=torch.float64)
        entries = iter(vectors[block].double() / (6**0.5 if scaled else 1))
        for i in range(4):
            for j in range(i + 1, 4):
                skew[i, j] = next(entries)
                skew[j, i] = -skew[i, j]
        turn = torch.eye(4).double() + 2 * skew + 2 * skew @ skew + 2 * skew @ skew @ skew + skew @ skew @ skew @ skew
        columns.append(weight[:, 4 * block : 4 * block + 4].double() @ turn.T)
    layer = open_adapter(tmp_path / "x.safetensors", source).layers["blocks.0.ffn.0"]
    close(layer.load().dense(), torch.cat(columns, dim=1) - weight)
    assert set(layer.keys) == set(made)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 100.0])
def test_oft_of_comfyuis_trainer(alpha, source, tmp_path):
    """Dotted names: alpha itself is the bound, where kohya and LyCORIS mean alpha times the rows."""
    weight = WEIGHTS["blocks.0.ffn.0.weight"]
    blocks = gaussian(16, 4, 4, seed=3, size=0.3)
    stem = "diffusion_model.blocks.0.ffn.0"
    save_file({f"{stem}.oft_blocks": blocks, f"{stem}.alpha": torch.tensor(alpha)}, tmp_path / "x.safetensors")
    turns = cayley(blocks, alpha)
    wanted = torch.cat([turns[i].T @ weight[4 * i : 4 * i + 4].double() for i in range(16)]) - weight
    close(open_adapter(tmp_path / "x.safetensors", source).layers["blocks.0.ffn.0"].load().dense(), wanted)


@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("stages", [1, 3])
def test_boft(stages, alpha, source, tmp_path):
    """Stage i turns pairs of half blocks that lie 2^i half blocks apart; the order is written out row by row."""
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"].double()
        rows, half = len(weight), 2
        blocks = gaussian(stages, rows // 4, 4, 4, seed=3, size=0.3)
        turns = cayley(blocks, alpha * rows)
        new = weight
        for stage in range(stages):
            step = half * 2**stage
            order = [start + j + far for start in range(0, rows, 2 * step) for j in range(step) for far in (0, step)]
            turned = torch.empty_like(new)
            for block, own in enumerate(torch.tensor(order).split(4)):
                turned[own] = turns[stage, block] @ new[own]
            new = turned
        made[layer] = {"oft_blocks": blocks, "alpha": torch.tensor(alpha), "rescale": torch.full((rows, 1), 1.25)}
        wanted[layer] = 1.25 * new - weight
    for layer, update in updates(made, source, tmp_path).items():
        close(update, wanted[layer])
