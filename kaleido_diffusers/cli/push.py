"""`kaleido push`: shares a pipeline or an adapter on the Hugging Face Hub."""

from ..pipelines.hub import explain_hub_error, push_folder
from .settings import PushSettings


__all__ = ["Push"]


class Push(PushSettings):
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
