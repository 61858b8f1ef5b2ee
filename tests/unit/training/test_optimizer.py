import torch

from flashslm.training.optimizer import build_optimizer, set_learning_rate
from tests.unit.training.tiny import config, model


def test_decay_shrinks_matrices_and_convolutions_alone() -> None:
    net = model("DFMFAF")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(net, config(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        decayed = parameter.ndim == 2 and name != "meta_tokens"
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decayed else 1.0), msg=name)


def test_the_first_step_moves_every_entry_by_the_learning_rate() -> None:
    net = model("MF")
    weight = net.get_parameter("layers.1.ffn.up_proj.weight")
    before = weight.detach().clone()
    optimizer = build_optimizer(net, config())
    set_learning_rate(optimizer, 0.25)
    weight.grad = torch.full_like(weight, -3.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before + 0.25)  # Adam's first update is the gradient's sign
