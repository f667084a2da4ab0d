"""What a folder holds that lacks a file of a checkpoint: other formats, by name, and the remedy."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..shown import listed

ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def kind(file: Path) -> str:
    """What a file of weights in another format is, and what to do; empty for other files."""
    if file.suffix == ".gguf":
        return (
            f"{file.name} is GGUF, a format of llama.cpp, which is not read; give the checkpoint "
            "that it was made from, in safetensors"
        )
    if file.suffix in PICKLES:
        return (
            f"{file.name} is a pickle, which can run code and is not read; convert it, in Python: "
            f"transformers.AutoModelForCausalLM.from_pretrained('{file.parent}')"
            f".save_pretrained('{file.parent}')"
        )
    return ""


def instead(folder: Path) -> str:
    """What a folder without a file of a checkpoint is, and what to do."""
    if (folder / ADAPTER).is_file():
        return (
            f"{folder} is an adapter without its base model; merge it, in Python: peft."
            f"AutoPeftModelForCausalLM.from_pretrained('{folder}').merge_and_unload()"
            ".save_pretrained('merged'), copy the files of the tokenizer there too, and give that "
            "folder"
        )
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    other = next(filter(None, map(kind, files)), None)
    return other or (
        f"wanted a checkpoint with config.json, tokenizer.json and safetensors files; {folder} "
        f"has {listed(file.name for file in files)}; download the rest"
    )


def require(file: Path) -> None:
    """Refuse a folder that lacks a file of a checkpoint.

    Raises:
      UserError: the file is missing; says what the folder holds instead.
    """
    if not file.is_file():
        raise UserError(f"{file}: missing; {instead(file.parent)}")
