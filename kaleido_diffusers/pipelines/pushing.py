"""How both forms of the pipeline are pushed: what `save_pretrained` and `push_to_hub` have in common."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from diffusers.utils.hub_utils import PushToHubMixin
from huggingface_hub import CommitInfo

from .hub import push_folder


__all__ = ["KaleidoPushMixin", "PushOptions"]


@dataclass(frozen=True)
class PushOptions:
    """
    What `save_pretrained(folder, push_to_hub=True)` takes along with it, as in diffusers.

    Attributes:
        repo_id (`str`, *optional*): `name/repository`; the name of the folder when not given.
        commit_message (`str`, *optional*): first line of the commit's message.
        private (`bool`, *optional*): whether a new repository is private; what the owner has set when not given.
        create_pr (`bool`, defaults to `False`): open a pull request instead.
        token (`str`, *optional*): of the Hub; the one of `hf auth login` or `HF_TOKEN` when not given.
    """

    repo_id: str | None = None
    commit_message: str | None = None
    private: bool | None = None
    create_pr: bool = False
    token: str | None = None

    def push(self, folder: str | os.PathLike) -> CommitInfo:
        """Uploads what was saved, see [`push_folder`].

        Args:
            folder (`str` or `os.PathLike`): of a pipeline.
        """
        return push_folder(
            folder,
            self.repo_id or Path(folder).name,
            commit_message=self.commit_message,
            private=self.private,
            create_pr=self.create_pr,
            token=self.token,
        )


class _Saved(Protocol):
    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> None: ...


class KaleidoPushMixin(PushToHubMixin):
    """`push_to_hub` of a pipeline, as diffusers has it, with a model card that tells something."""

    def push_to_hub(
        self: _Saved,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> str:
        """As in diffusers, with a model card that tells something, see [`push_folder`]; `max_shard_size` is that of
        `save_pretrained`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(
                folder, safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
            )
            return push_folder(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                private=private,
                token=token,
                create_pr=create_pr,
                subfolder=subfolder,
            )
