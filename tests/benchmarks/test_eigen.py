"""The table of eigenproblems is made, and its ways find the same numbers."""

import sys

import torch


def test_a_row_for_each_way(monkeypatch, capsys):
    import eigen

    monkeypatch.setattr(sys, "argv", ["eigen.py", "--sizes", "40", "--repeat", "1", "--threads", "1"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    eigen.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(rows) >= 7
    told = [row for row in rows if "alone," not in row]
    assert all(float(row[-2]) < 1e-5 and float(row[-1]) < 1e-4 for row in told)


def test_the_sign_cuts_the_spectrum():
    import eigen

    G = torch.diag(torch.tensor([3.0, 2.0, -1.0, -4.0], dtype=torch.float64))
    assert torch.allclose(eigen.sign_of(G), torch.diag(torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)))
    values, vectors = eigen.by_split(G, 0.0)
    assert torch.allclose(values, torch.tensor([-4.0, -1.0, 2.0, 3.0], dtype=torch.float64))
    assert torch.allclose(G @ vectors, vectors * values)
