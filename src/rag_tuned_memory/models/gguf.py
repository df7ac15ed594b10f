"""Turns a GGUF into a folder that transformers, PEFT and every server can load: bf16 safetensors and a tokenizer.

It runs in a process of its own (``python -m rag_tuned_memory.models.gguf SOURCE TARGET``): the memory that it takes
goes back to the system, and transformers' output can be kept off the screen without touching the caller's settings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path

from rag_tuned_memory.errors import ModelError
from rag_tuned_memory.models.extras import require

# tqdm's "123/272 [00:01<", which transformers writes for each dequantised tensor.
_COUNT = re.compile(r"(\d+)/(\d+) \[")


def dequantise(source: Path, target: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Write the model and tokenizer of the GGUF ``source`` into the folder ``target``; takes half a minute or so.

    ``on_progress`` gets tensors done and in all.

    Raises:
        MissingExtra: transformers, torch or gguf is not installed.
        ModelError: the GGUF cannot be read.
    """
    for module in ("torch", "transformers", "gguf"):
        require(module)
    command = [sys.executable, "-m", __name__, str(source), str(target)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        try:
            assert process.stderr is not None
            last: deque[str] = deque(maxlen=20)
            # Universal newlines: tqdm's carriage returns end lines too.
            for line in process.stderr:
                found = _COUNT.search(line)
                if found is None:
                    last.append(line)
                elif on_progress:
                    on_progress(int(found[1]), int(found[2]))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        reason = "".join(last).strip() or f"exit status {process.returncode}"
        raise ModelError(f"the GGUF cannot be dequantised: {reason}", place=str(source))


def _convert(source: Path, target: Path) -> None:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers parses the file three times and makes the map of names for each tensor anew: half of the time
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(gguf.GGUFReader), cache(gguf.get_tensor_name_map)
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    # transformers refuses to save what it believes to be quantised, although the weights no longer are.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
