"""How parts of a layer are compiled, whichever thread trains."""

from threading import Thread
from typing import Any

import pytest
import torch
from torch._inductor import compile_fx, config

from flashslm.ops.fused.inductor import compiled


class Seen(Exception):
    """What is looked for is known: nothing has to be compiled."""


def test_what_has_wrong_gradients_is_off_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[bool] = []

    def look(*args: Any, **options: Any) -> None:
        settings.append(config.triton.mix_order_reduction)
        raise Seen

    monkeypatch.setattr(compile_fx, "_compile_fx_inner", look)
    double = compiled(lambda x: 2 * x)

    def train() -> None:
        with pytest.raises(Exception, match="Seen"):
            double(torch.randn(3, requires_grad=True))

    other = Thread(target=train)
    other.start()
    other.join()
    train()
    assert settings == [False, False]
