"""Upload of a finished artifact to a repository of the Hugging Face hub, if the config asks so.

The token comes from `HF_TOKEN` in the environment and goes into the request's header, nowhere else.
What is sent shows no real slice, but the card quotes captions of real ones. All else stays: the
manifest and the records speak of this machine's files.
"""

import os
from pathlib import Path

from pydantic import SecretStr

from pipeline.errors import RemoteError
from pipeline.settings import FinetuneConfig
from stages.components.diffusion.adapters import ADAPTER_FILE
from stages.components.diffusion.placeholder import EMBEDS_FILE
from stages.finetune.adapters.kohya import KOHYA_FILE
from stages.finetune.card import CARD_FILE
from stages.finetune.checks import TOKEN_VARIABLE, push_problem
from stages.finetune.preview import FOLDER as SAMPLES


def push(config: FinetuneConfig, folder: Path) -> str:
    """Send an artifact; the repository is made, private, if it is not there.

    Returns:
        Where the commit is.

    Raises:
        RemoteError: The token is missing, or the hub refuses; the artifact stays as it is.
    """
    from huggingface_hub import HfApi

    obstacle = push_problem(config)
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
            allow_patterns=[CARD_FILE, ADAPTER_FILE, EMBEDS_FILE, KOHYA_FILE, f"{SAMPLES}/*"],
        )
    except Exception as error:  # whatever it is, it may quote the request
        reason = f"{type(error).__name__}: {error}".replace(token.get_secret_value(), "***")
        # Not `from error`: a server may repeat the header, and tracebacks print what it said.
        raise RemoteError(
            f"finetune.push_to_hub: {config.push_to_hub!r} could not be written ({reason}). The "
            f"artifact {folder} is whole; run the same command again to send it."
        ) from None
    return str(commit.commit_url)
