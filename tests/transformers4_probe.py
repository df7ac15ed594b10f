"""Run by a Python with transformers 4: reads model folders as TGI does, and prints what it made of them as JSON.

    python transformers4_probe.py FOLDER …  < {"texts": […], "chat": [[{"role": …, "content": …}, …], …]}

No part of the package is imported: the environment need not have it. The same file run with transformers 5 says what
the original is.
"""

from __future__ import annotations

import json
import sys


def look(folder: str, texts: list[str], chats: list[list[dict[str, str]]]) -> dict[str, object]:
    """Configuration, token ids, rendered chats and last logits of a model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", truncation_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    with torch.inference_mode():
        logits = [model(torch.tensor([one])).logits[0, -1].tolist() for one in ids]
    return {
        "rope_theta": getattr(model.config, "rope_theta", None),
        "ids": ids,
        "plain_ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        "decoded": [tokenizer.decode(one) for one in ids],
        "chats": [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in chats],
        "special": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token],
        "logits": logits,
    }


def main() -> None:
    """Look at each folder."""
    import transformers

    asked = json.load(sys.stdin)
    found = {folder: look(folder, asked["texts"], asked["chats"]) for folder in sys.argv[1:]}
    json.dump({"version": transformers.__version__, "folders": found}, sys.stdout)


if __name__ == "__main__":
    main()
