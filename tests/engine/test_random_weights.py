"""Random weights, made a module at a time, whole or in slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from test_sharding import FAMILIES
from thread_ranks import ThreadRanks

from harness.engine.device.model_shape import ModelShape
from harness.engine.device.models import shape_of
from harness.engine.device.module_weights import empty_decoder
from harness.engine.device.parallel.sharding import Splitter
from harness.engine.device.random_weights import NoWeightsError, draw_weights

CPU = torch.device("cpu")


def _empty(family: str) -> Any:
    model_type, sizes = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    return empty_decoder(config, torch.float32)


def _whole(family: str) -> Any:
    model = _empty(family)
    draw_weights(model, 7, CPU, lambda name, module: None)
    return model.requires_grad_(False)


def _shape(model: Any) -> ModelShape:
    return shape_of(model, model.config, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_begin_as_transformers_own_do(family: str) -> None:
    """In all but the numbers drawn: the same tensors are drawn, with the same spread, and the
    others, buffers too, hold the same."""
    model_type, sizes = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    theirs.requires_grad_(False)
    ours = _whole(family)
    assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), rtol=0, atol=0)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(name)
        if expected.unique().numel() > 2:
            assert parameter.std() == pytest.approx(expected.std().item(), rel=0.2)
            assert parameter.mean().abs() < 0.2 * parameter.std()
        else:
            torch.testing.assert_close(parameter, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_are_of_the_same_weights_and_the_whole_is_never_there(family: str) -> None:
    whole = _whole(family)
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in whole.modules())
    for rank in (0, 1):
        ranks = ThreadRanks(rank, 2, meeting=None)
        drawn, cut = _empty(family), _whole(family)
        Splitter(cut, _shape(cut), ranks).split_all()
        splitter = Splitter(drawn, _shape(drawn), ranks)
        held = []

        def split(
            name: str, module: torch.nn.Module, model=drawn, split_one=splitter, held=held
        ) -> None:
            there = {id(p): p.numel() for p in model.parameters() if not p.is_meta}
            held.append(sum(there.values()))
            split_one(name, module)

        draw_weights(drawn, 7, CPU, split)
        for name, parameter in cut.named_parameters():
            assert torch.equal(drawn.get_parameter(name), parameter), name
        own = sum(p.numel() for p in drawn.parameters())
        assert max(held) <= own + largest < whole.num_parameters()


def test_a_weight_without_a_beginning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = transformers.PreTrainedModel._init_weights
    monkeypatch.setattr(
        transformers.PreTrainedModel,
        "_init_weights",
        lambda self, module: None if "RMSNorm" in type(module).__name__ else own(self, module),
    )
    with pytest.raises(NoWeightsError, match=r"layers\.0\.input_layernorm\.weight without a value"):
        _whole("llama")
