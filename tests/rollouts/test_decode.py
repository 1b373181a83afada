"""Decoding with shared prompts against the plain forward pass."""

import pytest
import torch
from transformers import PreTrainedModel

from families import SERVED, make_family
from grpo_ext.rollouts.decode import Decoder, prefill
from grpo_ext.scoring.attention import use_tree_attention

# The second goes on from the first, the third and fourth share a beginning
PROMPTS = [[5, 6, 7], [5, 6, 7, 8, 9, 10], [20, 21, 22, 23], [20, 21, 30], [40]]
ROWS = [0, 0, 1, 2, 2, 2, 3, 4]


def plain(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    return torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])


def tensors(rows: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


@pytest.mark.parametrize("family", SERVED)
@torch.no_grad()
def test_logits_equal_the_plain_forward(family: str) -> None:
    model = make_family(family)
    texts = [list(PROMPTS[row]) for row in ROWS]
    wanted = [plain(model, texts)]
    # Rows end, and one goes on twice, between the steps
    steps = [([3, 4, 5, 6, 7, 8, 9, 10], None), ([11, 12, 13, 14], [1, 3, 3, 6]), ([15, 16], [0, 3]), ([17, 18], None)]
    for tokens, parents in steps:
        kept = texts if parents is None else [texts[parent] for parent in parents]
        texts = [[*text, token] for text, token in zip(kept, tokens, strict=True)]
        wanted.append(plain(model, texts))

    use_tree_attention(model)
    decoder = Decoder(prefill(model, tensors(PROMPTS)), torch.tensor(ROWS))
    found = [decoder.start()]
    for tokens, parents in steps:
        found.append(decoder.step(torch.tensor(tokens), None if parents is None else torch.tensor(parents)))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_more_tokens_than_there_is_room_for_at_first() -> None:
    model = make_family("llama")
    texts = [[5, 6], [5, 6], [7]]
    use_tree_attention(model)
    decoder = Decoder(prefill(model, tensors([[5, 6], [7]])), torch.tensor([0, 0, 1]))
    random = torch.Generator().manual_seed(0)
    logits = decoder.start()
    for length in range(90):
        tokens = torch.randint(3, 50, (3,), generator=random)
        # Room is made at the 65th token, also right after rows were picked
        parents = torch.tensor([1, 0, 2]) if length in (63, 64) else None
        texts = texts if parents is None else [texts[parent] for parent in parents]
        logits = decoder.step(tokens, parents)
        texts = [[*text, int(token)] for text, token in zip(texts, tokens, strict=True)]
    torch.testing.assert_close(logits, plain(model, texts), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_prompt_is_forwarded_and_held_once() -> None:
    model = make_family("llama")
    use_tree_attention(model)
    tokens: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, out: tokens.append(inputs[0].numel()))
    prompts = prefill(model, tensors(PROMPTS))
    decoder = Decoder(prompts, torch.tensor(ROWS))
    decoder.step(torch.tensor([3] * 8))
    decoder.step(torch.tensor([3, 3]), torch.tensor([0, 5]))
    # 17 tokens, of which 3 and 2 are shared beginnings
    assert tokens == [12, 8, 2]
    assert [key.size(2) for key, _ in prompts.keys_values[0]] == [3, 6, 4, 3, 1]
    assert all(own.stored is not None and len(own.stored) == 2 for kept in decoder.own for own in kept)
