"""The engine's rivals compute what they should: the plain loop against transformers, sampling by a sort."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.paged import PagedKV, Sequences
from benchmarks.gpu.plain_torch import Decoder, PlainGPT
from benchmarks.gpu.random_model import random_weights
from benchmarks.gpu.sampling import TOP_K, TOP_P, torch_simple, torch_sort
from server.model.checkpoint import GPTWeights
from server.model.config import GPTConfig

CONFIG = GPTConfig(vocab_size=101, n_positions=64, n_embd=64, n_layer=2, n_head=4, n_inner=256)
CPU = torch.device("cpu")


def _louder(weights: GPTWeights) -> GPTWeights:
    """Weights of 0.02 leave every layer nearly the identity: nothing would show."""
    for layer in weights.layers:
        for part in (layer.c_attn, layer.attn_c_proj, layer.c_fc, layer.mlp_c_proj):
            part.weight.mul_(10)
    weights.wte.mul_(10)
    return weights


def _theirs(weights: GPTWeights) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=CONFIG.vocab_size, n_positions=64, n_embd=64, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    parts = {"transformer.wte.weight": weights.wte, "transformer.wpe.weight": weights.wpe}
    for index, layer in enumerate(weights.layers):
        at = f"transformer.h.{index}."
        for name, norm in (("ln_1", layer.ln_1), ("ln_2", layer.ln_2)):
            parts |= {f"{at}{name}.weight": norm.weight, f"{at}{name}.bias": norm.bias}
        for name, linear in (
            ("attn.c_attn", layer.c_attn),
            ("attn.c_proj", layer.attn_c_proj),
            ("mlp.c_fc", layer.c_fc),
            ("mlp.c_proj", layer.mlp_c_proj),
        ):
            parts |= {f"{at}{name}.weight": linear.weight.t(), f"{at}{name}.bias": linear.bias}
    parts |= {
        "transformer.ln_f.weight": weights.ln_f.weight,
        "transformer.ln_f.bias": weights.ln_f.bias,
    }
    parts["lm_head.weight"] = weights.wte
    model.load_state_dict({name: tensor.float() for name, tensor in parts.items()})
    return model


@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_plain_loop_is_gpt2(is_compiled: bool) -> None:
    weights = _louder(random_weights(CONFIG, CPU))
    prompts = torch.randint(
        0, CONFIG.vocab_size, (3, 5), generator=torch.Generator().manual_seed(1)
    )
    model = PlainGPT(CONFIG, weights, 3, 16, torch.float32)
    decoder = Decoder(model, 0, is_greedy=True)
    for index in range(4):
        model(prompts[:, index], torch.tensor([index]))
    decoder.token_ids.copy_(prompts[:, 4])
    decoder.position.fill_(4)
    step = decoder.step(is_compiled=is_compiled, backend="eager")  # the first one
    drawn = [decoder.token_ids.clone()]
    for _ in range(5):
        step()
        drawn.append(decoder.token_ids.clone())
    expected = _theirs(weights).generate(  # type: ignore[operator]
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=6, min_new_tokens=6,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(torch.stack(drawn, dim=1), expected[:, 5:])
    assert int(decoder.position) == 10


def test_the_plain_loop_has_gpt2s_logits() -> None:
    weights = _louder(random_weights(CONFIG, CPU))
    model = PlainGPT(CONFIG, weights, 1, 16, torch.float32)
    ids = torch.tensor([[7, 3, 99, 0, 50]])
    logits = [model(ids[:, index], torch.tensor([index])) for index in range(5)]
    with torch.no_grad():
        expected = _theirs(weights)(ids).logits[0]
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=1e-4)
    assert float(expected.std()) > 0.5


def _kept(logits: Tensor) -> set[int]:
    """What top-k and top-p leave of one row, the slow way."""
    weights = torch.softmax(logits.double() / 0.8, dim=0)
    order = torch.argsort(weights, descending=True).tolist()[:TOP_K]
    total, before, kept = float(weights[order].sum()), 0.0, set()
    for token in order:
        if before < TOP_P * total:
            kept.add(token)
        before += float(weights[token])
    return kept


def test_sampling_by_a_sort_keeps_the_nucleus() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(1, 97) * 3).expand(2000, -1).contiguous()
    drawn = set(torch_sort(logits).tolist())
    kept = _kept(logits[0])
    assert drawn <= kept and len(drawn) > len(kept) / 2


def test_simple_sampling_follows_the_weights() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 0.8, -40.0]]).expand(4000, -1)
    counts = Counter(torch_simple(logits).tolist())
    assert counts[1] / counts[0] == pytest.approx(2.718, rel=0.15)
    assert counts[2] == 0


def test_rivals_get_the_same_keys_and_values() -> None:
    kv = PagedKV.random(Sequences("x", (5, 33, 16), 2, 2, 16), CPU)
    k, v = kv.padded()
    assert k.shape == v.shape == (3, 2, 33, 16)
    for row, length in enumerate((5, 33, 16)):
        for position in range(length):
            block = int(kv.tables[row, position // 16])
            assert torch.equal(k[row, :, position], kv.k[block, :, position % 16])
            assert torch.equal(v[row, :, position], kv.v[block, :, position % 16])
