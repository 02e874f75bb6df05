"""The inference server of bench/tiers.py: a Llama of random weights in bfloat16, by Hugging Face transformers; see serving.py.

Tokens are made greedily from a prompt made of the number asked for. It imports nothing of ours but its neighbour, so it runs under
the interpreter that has PyTorch.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from serving import main
from transformers import LlamaConfig, LlamaForCausalLM

DEVICE = os.environ.get("KYB_PROGRAM_DEVICE", "cuda")
"""`cpu` for the tests of the tests."""
PROMPT_TOKENS = 32
VOCABULARY = 32000


def config_of(size: int) -> LlamaConfig:
    """As Llama 3 8B, with as many layers as make up the size; a small one is narrow, too."""
    hidden, intermediate = (4096, 14336) if size >= 4 << 30 else (256, 1024)
    layer = 2 * (2 * hidden * hidden + 2 * hidden * hidden // 4 + 3 * hidden * intermediate)
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=max(1, -(-(size - 4 * VOCABULARY * hidden) // layer)),
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )


def make(directory: Path, size: int) -> int:
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config_of(size))
    model.save_pretrained(directory)
    return sum(parameter.nbytes for parameter in model.parameters())


class Model:
    def __init__(self, directory: Path) -> None:
        self._model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, device_map=DEVICE)
        self._model.eval()

    @torch.inference_mode()
    def answer(self, prompt: int, tokens: int) -> list[int]:
        ids = [[1 + (prompt * 7919 + k * 104729) % (VOCABULARY - 1) for k in range(PROMPT_TOKENS)]]
        asked = torch.tensor(ids, device=DEVICE)
        made = self._model.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return [int(token) for token in made[0, PROMPT_TOKENS:]]


if __name__ == "__main__":
    main(make, Model)
