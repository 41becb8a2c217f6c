"""`kaleido train`."""

from dataclasses import dataclass

from ..training.config import TrainConfig


__all__ = ["Train"]


@dataclass
class Train(TrainConfig):
    def run(self) -> None:
        from ..training.loop import Trainer

        trainer = Trainer(self)
        pipeline = trainer.train()
        if trainer.is_main:
            print(f"wrote {pipeline}, {self.output / 'log.jsonl'}")


Train.__doc__ = TrainConfig.__doc__
