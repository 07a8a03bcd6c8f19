"""Upload of a finished artifact to a repository of the Hugging Face hub, if the config asks so.

The token comes from `HF_TOKEN` in the environment and goes into the request's header, nowhere else.
Left behind: checkpoints and TensorBoard files. What is sent shows no real slice, but the card and
the records quote captions of real ones.
"""

import os
from pathlib import Path

from pydantic import SecretStr

from pipeline.errors import RemoteError
from pipeline.settings import FinetuneConfig

TOKEN_VARIABLE = "HF_TOKEN"
LEFT_BEHIND = ("checkpoints/*", "tensorboard/*")


def problem(config: FinetuneConfig) -> str | None:
    """Say what keeps the artifact from being sent; None if nothing does, or nothing is asked."""
    if config.push_to_hub is None:
        return None
    request = f"finetune.push_to_hub is {config.push_to_hub!r}, but"
    if not os.environ.get(TOKEN_VARIABLE):
        return (
            f"{request} the environment variable {TOKEN_VARIABLE!r} is not set or empty; export a "
            "token that may write to it, or leave push_to_hub out"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return f"{request} HF_HUB_OFFLINE is set; unset it, or leave push_to_hub out"
    return None


def push(config: FinetuneConfig, folder: Path) -> str:
    """Send an artifact; the repository is made, private, if it is not there.

    Returns:
        Where the commit is.

    Raises:
        RemoteError: The token is missing, or the hub refuses; the artifact stays as it is.
    """
    from huggingface_hub import HfApi

    obstacle = problem(config)
    if obstacle is not None:
        raise RemoteError(obstacle)
    assert config.push_to_hub is not None
    token = SecretStr(os.environ[TOKEN_VARIABLE])
    api = HfApi(token=token.get_secret_value())
    try:
        api.create_repo(config.push_to_hub, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=config.push_to_hub,
            folder_path=folder,
            commit_message=f"mrisynth finetune {folder.name}",
            ignore_patterns=list(LEFT_BEHIND),  # the client adds its own to it
        )
    except Exception as error:  # whatever it is, it may quote the request
        reason = f"{type(error).__name__}: {error}".replace(token.get_secret_value(), "***")
        # Not `from error`: a server may repeat the header, and tracebacks print what it said.
        raise RemoteError(
            f"finetune.push_to_hub: {config.push_to_hub!r} could not be written ({reason}). The "
            f"artifact {folder} is whole; run the same command again to send it."
        ) from None
    return str(commit.commit_url)
