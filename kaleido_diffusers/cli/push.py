"""`kaleido push`: shares a pipeline or an adapter on the Hugging Face Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..pipelines.hub import explain_hub_error, push_folder


__all__ = ["Push"]


@dataclass
class Push:
    """Uploads a pipeline or an adapter to the Hugging Face Hub, as whoever `hf auth login` has logged in. A model card
    is made, or brought up to date around what was written by hand. After a broken connection, call again: what has
    arrived is not sent again."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a pipeline, or of an adapter as `kaleido lora` writes it."""
    repo_id: Annotated[str, tyro.conf.Positional]
    """`name/repository`; made if it is not there."""
    private: bool = False
    """Make the repository a private one. One that is there and public is refused."""
    revision: str | None = None
    """Branch to commit to, made if it is not there; `main` when not given."""
    message: str | None = None
    """First line of the commit's message."""
    license: str | None = None
    """Licence, by the Hub's name for it: `apache-2.0`, `cc-by-4.0`, ...; what the card says when not given."""
    base_model: str | None = None
    """Hub id of an adapter's base."""
    evaluation: Path | None = None
    """Folder of `kaleido evaluate`: its scores and its sheet go along and into the card."""
    replace_card: bool = False
    """Start from the folder's card although the Hub has one."""

    def run(self) -> None:
        try:
            commit = push_folder(
                self.folder,
                self.repo_id,
                evaluation=self.evaluation,
                license=self.license,
                base_model=self.base_model,
                private=self.private or None,
                revision=self.revision,
                commit_message=self.message,
                replace_card=self.replace_card,
            )
        except Exception as error:
            explanation = explain_hub_error(error, self.repo_id)
            if explanation is None:
                raise
            raise OSError(explanation) from error
        print(f"wrote {commit.commit_url}")
