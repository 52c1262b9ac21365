"""What a stage begins with, on every process: whole in each, or read back in shares."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from moe_llava.checkpoint.folder import load_processor, read_config, save_model
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.projector import VocabularyProjector
from moe_llava.recipe import Distributed, Recipe
from moe_llava.train import folder as stage_folder
from moe_llava.train import processes
from moe_llava.train.build import build_stage
from moe_llava.train.layout import distributed_config, load_sharded
from moe_llava.train.tower import image_features
from moe_llava.train.vocabulary import captioned, start_words


@dataclass
class Start:
    """A stage's beginning.

    Attributes:
        model: the whole model; in a sharded layout the first process alone has it, until it is shared out.
        folder: where a sharded layout reads its shares.
    """

    config: MoeLlavaConfig
    processor: MoeLlavaProcessor
    model: MoeLlavaForConditionalGeneration | None
    distributed: Distributed
    folder: Path

    def shared_out(self) -> MoeLlavaForConditionalGeneration:
        """The model as this process trains it. The whole one is let go."""
        model, self.model = self.model, None
        sharding = distributed_config(self.distributed, self.config, processes.count())
        if sharding is None:
            assert model is not None
            return model
        del model
        return load_sharded(self.folder, sharding)


def build_start(recipe: Recipe, name: str, console: Console) -> Start:
    """Compose, load or upcycle as the stage says. For a sharded layout the first process does so and writes the model
    to the stage's folder, so that no other ever holds all of it.
    """
    folder = recipe.folder(name) / stage_folder.START
    if recipe.distributed.layout == "ddp" or processes.count() == 1:
        model, processor = build_stage(recipe, name, console)
        if _wants_words(recipe, name, model):
            # The first process fits them; the others take what it found.
            words = processes.from_first(lambda: _fit_words(recipe, name, model, processor, console))
            model.model.multi_modal_projector.load_state_dict(words)
        return Start(model.config, processor, model, recipe.distributed, folder)

    def write() -> MoeLlavaForConditionalGeneration:
        model, processor = build_stage(recipe, name, console)
        if _wants_words(recipe, name, model):
            _fit_words(recipe, name, model, processor, console)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder, model, processor)
        return model

    whole = write() if processes.is_first() else None
    processes.wait()
    # Read back by all, so that all work with the same: a tokenizer that was trained, a template that was resolved.
    return Start(read_config(folder), load_processor(folder), whole, recipe.distributed, folder)


def _wants_words(recipe: Recipe, name: str, model: MoeLlavaForConditionalGeneration) -> bool:
    """Whether the stage begins with a new projector that has a vocabulary."""
    new = recipe.starting_point(name) is None and model.config.vision_config is not None
    return new and isinstance(model.model.multi_modal_projector, VocabularyProjector)


def _fit_words(
    recipe: Recipe, name: str, model: MoeLlavaForConditionalGeneration, processor: MoeLlavaProcessor, console: Console
) -> dict[str, Tensor]:
    """The state of the projector after its words were fitted, in place, to the stage's captions."""
    captions = captioned(recipe.stages[name])
    images = sorted({one.images[0] for one in captions})
    store = image_features(model, processor, images, Path(recipe.output) / "features")
    right = start_words(model, processor.tokenizer, captions, store, recipe.seed)
    console.print(f"{name}: words fitted to {len(captions):,} captions, {100 * right:.1f} % scored highest")
    return model.model.multi_modal_projector.state_dict()
