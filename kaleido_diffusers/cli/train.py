"""`kaleido train`."""

from ..training.config import TrainConfig
from ..training.loop import Trainer


__all__ = ["Train"]


class Train(TrainConfig):
    def run(self) -> None:
        trainer = Trainer(self)
        pipeline = trainer.train()
        if trainer.is_main:
            print(f"wrote {pipeline}, {self.output / 'log.jsonl'}")
