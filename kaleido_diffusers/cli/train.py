"""`kaleido train`."""

import os

import torch

from ..training.hardware import CARDS, card_at_hand
from ..training.loop import Trainer
from ..training.plan import make_plan
from .checks import check_folder
from .loading import finished, say_next
from .settings import TrainSettings


__all__ = ["Train"]


class Train(TrainSettings):
    def run(self) -> None:
        if self.plan:
            self._print_plan()
            return
        check_folder(self.output)
        trainer = Trainer(self)
        is_finished = trainer.has_made()
        folder = trainer.result_folder if is_finished else trainer.train()
        if trainer.is_main:
            print(finished(self.output) if is_finished else f"wrote {folder}, {self.output / 'log.jsonl'}")
            say_next("evaluate", checkpoint=folder)

    def _print_plan(self) -> None:
        degrees = self.data_parallel_replicate_degree * self.data_parallel_shard_degree
        cards = self.cards or (degrees if degrees > 0 else int(os.environ.get("WORLD_SIZE", "1")))
        card = card_at_hand(torch.bfloat16) if self.card == "at-hand" else CARDS[self.card]
        print(make_plan(self, card, cards, self.mfu).text)
