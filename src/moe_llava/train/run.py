"""A recipe, run: stage after stage, each ending in a complete checkpoint."""

import resource
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from moe_llava.data.collate import Collator
from moe_llava.data.conversation import scan
from moe_llava.data.dataset import ConversationDataset, LengthGroupedSampler, Mixture, Sample, mixture
from moe_llava.data.features import FeatureStore
from moe_llava.data.problems import DataError, Problem
from moe_llava.data.stream import BlockShuffle, StreamDataset, StreamMixture, open_rows
from moe_llava.data.stream.sources import streams
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.recipe import Recipe, Stage
from moe_llava.train import folder as stage_folder
from moe_llava.train import processes
from moe_llava.train.callbacks import MetricsFile, ProgressBar
from moe_llava.train.examination import Examination, Examine
from moe_llava.train.layout import check_stage, whole_model
from moe_llava.train.stages import TrainingGroup, prepare
from moe_llava.train.start import Start, build_start
from moe_llava.train.tower import image_features
from moe_llava.train.trainer import MoeTrainer, optimizer_steps


def train(
    recipe: Recipe,
    stages: Iterable[str] | None = None,
    *,
    resume: bool = False,
    console: Console,
    examine: Examine | None = None,
) -> None:
    """Run the stages of a recipe in order (or those named). Finished ones are skipped with `resume`.

    `examine` answers a stage's `evaluate` questions with the model so far and returns the share that is right.

    Raises:
        ValueError: a stage's folder is in use, its data or parts are wrong; each says what to do.
        OSError: the disk is full or the folder cannot be written.
    """
    names = list(stages) if stages is not None else list(recipe.stages)
    if unknown := [name for name in names if name not in recipe.stages]:
        raise ValueError(f"Unknown stages {unknown}: {recipe.name} has {', '.join(recipe.stages)}.")
    _check_trackers(recipe)
    for name in names:
        check_stage(name, recipe.stages[name], recipe.distributed)
    with processes.one_for_all(recipe.output):
        processes.join()
        if processes.is_first():
            for name in names:
                stage_folder.check_writable(recipe.folder(name), resume)
        else:
            console.quiet = True
        processes.wait()
        for name in names:
            if stage_folder.is_complete(recipe.folder(name)):
                console.print(f"{name}: finished before, in {recipe.folder(name)}")
            else:
                run_stage(recipe, name, console, examine)


def run_stage(recipe: Recipe, name: str, console: Console, examine: Examine | None = None) -> None:
    """Train one stage to its end, from its last checkpoint if there is one."""
    started = time.perf_counter()
    stage, folder = recipe.stages[name], recipe.folder(name)
    start = build_start(recipe, name, console)
    dataset, skipped = build_dataset(recipe, stage, start, console)
    model, processor = start.shared_out(), start.processor
    groups, adapters = prepare(model, stage.train)
    _describe(recipe, name, groups, model, console)
    trainer = build_trainer(recipe, name, model, groups, dataset, processor.tokenizer.pad_token_id)
    if stage.evaluate:
        assert examine is not None, "whoever runs stages that evaluate says how"
        trainer.add_callback(Examination(trainer, processor, stage.evaluate, examine, folder / stage_folder.METRICS))
    checkpoint = stage_folder.last_checkpoint(folder)
    if checkpoint:
        console.print(f"{name}: continues from {checkpoint}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    processes.wait()
    if adapters:
        adapters.merge()
    vars(model.config).pop("use_cache", None)  # the Trainer turns it off, and would have it off for those who generate
    finished = whole_model(model)
    if finished is not None and processes.is_first():
        summary = {
            "stage": name,
            "steps": trainer.state.global_step,
            "samples": len(dataset),
            "seconds": round(time.perf_counter() - started, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "skipped_samples": [str(problem) for problem in skipped],
            "skipped_rows": trainer.skipped,
        }
        # Weights train in fp32 under autocast; their last bits are not worth twice the disk.
        dtype = torch.bfloat16 if stage.precision == "bf16" else torch.float32
        stage_folder.complete(folder, finished.eval().to(dtype), processor, summary)
    processes.wait()


def build_dataset(
    recipe: Recipe, stage: Stage, start: Start, console: Console
) -> tuple[Mixture | StreamMixture, list[Problem]]:
    """Read, check and mix a stage's data; features of a frozen tower come from the store.

    Also returns the problems of the samples that were left out.
    """
    if any(data.stream or streams(data.path) for data in stage.data):
        return stream_dataset(recipe, stage, start), []
    parts, skipped = [], []
    for data in stage.data:
        # A sample may be skipped only if its images are known to open, before the tower meets them.
        conversations, problems = scan(data.path, data.images, check_images=stage.on_error == "skip")
        if problems and stage.on_error == "raise":
            raise DataError(problems)
        parts.append((conversations, data.weight))
        skipped += problems
    store = None
    if start.config.vision_config is not None and "vision_tower" not in stage.train:
        images = sorted({path for conversations, _ in parts for one in conversations for path in one.images})
        if images:
            # The first process computes them; the others read what it wrote.
            store = FeatureStore(processes.from_first(lambda: _stored_features(recipe, start, images)))
    datasets = [
        (ConversationDataset(conversations, start.processor, store, on_error=stage.on_error), weight)
        for conversations, weight in parts
    ]
    skipped += [problem for dataset, _ in datasets for problem in dataset.skipped]
    for problem in skipped:
        console.print(f"skipped {problem}", style="yellow", markup=False)
    return mixture(datasets, seed=recipe.seed), skipped


def stream_dataset(recipe: Recipe, stage: Stage, start: Start) -> StreamMixture:
    """A stage's data, none of it in memory. The first process finds the rows; features are not kept for so many."""
    folder = Path(recipe.output) / "index"
    for data in stage.data:
        processes.from_first(lambda path=data.path: len(open_rows(path, folder)))  # type: ignore[misc]
    parts = []
    for data in stage.data:
        images = data.images or Path(data.path).parent
        rows = open_rows(data.path, folder)
        parts.append((StreamDataset(rows, start.processor, images, on_error=stage.on_error), data.weight))
    return StreamMixture(parts, recipe.seed)


def _stored_features(recipe: Recipe, start: Start, images: list[Path]) -> Path:
    assert start.model is not None, "the first process has it"
    return image_features(start.model, start.processor, images, Path(recipe.output) / "features").directory


def build_trainer(
    recipe: Recipe,
    name: str,
    model: MoeLlavaForConditionalGeneration,
    groups: list[TrainingGroup],
    dataset: Dataset[Sample],
    pad_token_id: int,
) -> MoeTrainer:
    """A trainer for one stage; the same samples make a step however many devices share it."""
    stage, folder = recipe.stages[name], recipe.folder(name)
    arguments = training_arguments(recipe, stage, folder, len(dataset))  # type: ignore[arg-type]
    sampler: Sampler[int] | None = None
    if isinstance(dataset, StreamMixture):
        sampler = BlockShuffle(dataset.blocks, len(dataset), seed=recipe.seed)
    elif stage.group_by_length and isinstance(dataset, Mixture):
        sampler = LengthGroupedSampler(dataset.lengths, stage.batch_size, recipe.seed)
    trainer = MoeTrainer(
        groups=groups,
        sampler=sampler,
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(pad_token_id),
        callbacks=[
            MetricsFile(folder / stage_folder.METRICS),
            ProgressBar(f"{recipe.name} {name}"),
            *_tensorboard(recipe, folder),
        ],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def training_arguments(recipe: Recipe, stage: Stage, folder: Path, num_samples: int) -> TrainingArguments:
    """Trainer arguments of a stage.

    Raises:
        ValueError: the batch cannot be shared evenly by the devices.
    """
    steps = stage.steps or optimizer_steps(num_samples, stage.batch_size, stage.epochs or 1.0)
    arguments = TrainingArguments(
        output_dir=str(folder / stage_folder.CHECKPOINTS),
        max_steps=steps,
        learning_rate=max(item.lr for item in stage.train.values()),
        lr_scheduler_type=stage.schedule,
        warmup_steps=int(-(-steps * stage.warmup_ratio // 1)),
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        use_cpu=not torch.accelerator.is_available(),
        bf16=stage.precision == "bf16",
        activation_checkpointing=stage.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=stage.log_every,
        logging_nan_inf_filter=False,
        save_steps=stage.save_every,
        save_only_model=True,  # the trainer writes optimizer and schedule itself
        report_to=[tracker for tracker in recipe.trackers if tracker != "tensorboard"] or "none",
        project=recipe.name,
        run_name=f"{recipe.name}-{folder.name}",
        remove_unused_columns=False,
        dataloader_num_workers=stage.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )
    world = arguments.world_size
    micro = stage.micro_batch_size or -(-stage.batch_size // world)
    if stage.batch_size % (micro * world):
        raise ValueError(
            f"batch_size = {stage.batch_size} cannot be cut into micro-batches of {micro} on {world} devices: "
            "choose a micro_batch_size that divides it."
        )
    arguments.per_device_train_batch_size = micro
    arguments.gradient_accumulation_steps = stage.batch_size // (micro * world)
    return arguments


def _tensorboard(recipe: Recipe, folder: Path) -> list[TrainerCallback]:
    """TensorBoard's events go beside `metrics.jsonl`: where the Trainer puts them, they end with its checkpoints."""
    if "tensorboard" not in recipe.trackers or not processes.is_first():
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))]


def _check_trackers(recipe: Recipe) -> None:
    for tracker in recipe.trackers:
        if find_spec(tracker) is None:
            raise ValueError(f"trackers: {tracker} is not installed: pip install 'moe-llava[trackers]'.")


def _describe(
    recipe: Recipe, name: str, groups: list[TrainingGroup], model: MoeLlavaForConditionalGeneration, console: Console
) -> None:
    """Print what trains and save it, with the recipe and the environment, before the first step."""
    folder = recipe.folder(name)
    if not processes.is_first():
        return
    total = sum(parameter.numel() for parameter in model.parameters())
    console.print(trainable_table(name, groups, total))
    rows: list[dict[str, Any]] = [
        {"group": group.name, "parameters": group.count, "lr": group.lr, "lora_rank": group.lora_rank}
        for group in groups
    ]
    stage_folder.write_json(folder / "trainables.json", {"total_parameters": total, "groups": rows})
    stage_folder.write_json(folder / "environment.json", stage_folder.environment())
    (folder / "recipe.toml").write_text(recipe.to_toml())


def trainable_table(name: str, groups: list[TrainingGroup], total: int) -> Table:
    """What trains in a stage, how many parameters, at which rate."""
    table = Table(title=f"{name}: what trains", title_justify="left")
    for column in ("group", "parameters", "learning rate", "adapters"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group in groups:
        adapters = f"LoRA rank {group.lora_rank}" if group.lora_rank else ""
        table.add_row(group.name, f"{group.count:,}", f"{group.lr:g}", adapters)
    frozen = total - sum(group.count for group in groups)
    table.add_row("frozen", f"{frozen:,}", "", "", style="dim")
    return table
