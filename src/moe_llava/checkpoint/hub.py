"""Names -> folders: what is on the disk already, or is fetched from the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

PATTERNS = ("*.json", "*.safetensors", "*.bin", "*.model", "*.tiktoken", "*.txt")
CONFIGURATION = ("*.json",)


def fetch(name: str, *, what: str = "the model", remedy: str = "", patterns: tuple[str, ...] = PATTERNS) -> Path:
    """A folder of that name, or the hub's snapshot of that id. Only data is fetched, no code.

    `patterns` are the files to fetch: `CONFIGURATION` alone where the weights are not needed.

    Raises:
        ValueError: neither exists or can be reached; the sentence says what to fetch.
    """
    if Path(name).is_dir():
        return Path(name)
    command = f"hf download {name}"
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError:
        raise ValueError(f"{name} is neither a folder nor a hub id. {remedy}".strip()) from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"Cannot find {what} {name}: no such folder, and the hub cannot be reached (or HF_HUB_OFFLINE is set). "
            f"Where there is a network: `{command}`. {remedy}".strip()
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"Cannot fetch {what} {name}: {str(error).splitlines()[0]} {remedy}".strip()) from error
