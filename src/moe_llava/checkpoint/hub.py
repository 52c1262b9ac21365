"""Names -> folders: what is on the disk already, or is fetched from the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

PATTERNS = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt")
BIN = "*.bin"
CONFIGURATION = ("*.json",)


def fetch(name: str, *, what: str = "the model", remedy: str = "", weights: bool = True) -> Path:
    """A folder of that name, or the hub's snapshot of that id.

    Only data is fetched, no code; and no `.bin` where there is safetensors, which often is the same once more. Without
    `weights` only what is JSON.

    Raises:
        ValueError: neither exists or can be reached; the sentence says what to fetch.
    """
    if Path(name).is_dir():
        return Path(name)
    command = f"hf download {name}"
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(PATTERNS if weights else CONFIGURATION)))
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*PATTERNS, BIN]))
        return folder
    except HFValidationError:
        raise ValueError(f"{name} is neither a folder nor a hub id. {remedy}".strip()) from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"Cannot find {what} {name}: no such folder, and the hub cannot be reached (or HF_HUB_OFFLINE is set). "
            f"Where there is a network: `{command}`. {remedy}".strip()
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"Cannot fetch {what} {name}: {' '.join(str(error).split())} {remedy}".strip()) from error
