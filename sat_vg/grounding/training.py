"""The training of a grounding model, from top to bottom: data → model → epochs → best_model.pt."""

import copy
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.configs.validation import refuse_problems
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL
from sat_vg.backbone_finetuning.training.checkpoint import LAST, RunState, RunTensors, restore_run, save_run
from sat_vg.backbone_finetuning.training.depthwise import with_fast_depthwise
from sat_vg.backbone_finetuning.training.optim import Schedule, set_learning_rate
from sat_vg.backbone_finetuning.training.record import SaveSchedule
from sat_vg.backbone_finetuning.training.run_folder import adopt_best_model, clear_folders, find_run, own_folders
from sat_vg.backbone_finetuning.training.run_identity import RunIdentity
from sat_vg.backbone_finetuning.training.step_results import PendingSteps, StepResult
from sat_vg.backbone_finetuning.training.tracking import FileTracker, Tracker
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, InterruptedRun
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device, choose_precision, set_up_process
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest
from sat_vg.backbone_finetuning.utils.terminal import progress, say
from sat_vg.grounding.batches import Phrases
from sat_vg.grounding.config import FREE_ON_RESUME, SPLITS, GroundingConfig
from sat_vg.grounding.data import load_data
from sat_vg.grounding.evaluation import answer, tell_cut_phrases
from sat_vg.grounding.metrics import baseline_metrics, fit_baselines, metrics_of
from sat_vg.grounding.model import GroundingModel
from sat_vg.grounding.network import Sizes, grounding_loss
from sat_vg.grounding.readers import require_data
from sat_vg.grounding.text import PretrainedText
from sat_vg.grounding.words import Vocabulary

_TEXT_SCALE = 0.1  # on the learning rate of a pre-trained text encoder, as TransVG has it (Deng et al., 2021)


@dataclass(frozen=True)
class GroundingResult:
    """What a run gave: the path of best_model.pt, and metrics of its weights on the validation phrases."""

    best_model: Path
    metrics: dict[str, float]


@dataclass
class Run:
    """What a training works with; the folder is that of last.pt and best_model.pt."""

    config: GroundingConfig
    folder: Path
    identity: RunIdentity
    train: Phrases
    val: Phrases
    model: GroundingModel
    precision: Precision
    tensors: RunTensors
    state: RunState
    tracker: Tracker
    saves: SaveSchedule

    def save(self) -> None:
        """Write last.pt, after all that was logged; the state before it stays."""
        self.tracker.sync()
        save_run(self.folder, self.state, self.tensors, self.identity, keep=2)
        self.saves.note_save()

    def log(self, group: str, **numbers: float | None) -> None:
        """Write a line to metrics.jsonl, and its numbers to TensorBoard."""
        state = self.state
        rate = max(one["lr"] / one["lr_scale"] for one in self.tensors.optimizer.param_groups)
        place = {"phase": "grounding", "epoch": state.epoch + 1, "step": state.step, "learning_rate": rate}
        speed = {"phrases_per_second": state.train_images / max(state.train_seconds, 1e-9)}
        self.tracker.numbers({**place, **numbers, **speed}, state.step, group)


def train_grounding(config: GroundingConfig) -> GroundingResult:
    """Train as the configuration says, or continue the run in its checkpoint folder.

    Raises:
        UserError: a setting, the data or a file cannot be used, or the loss became NaN or infinite.
        InterruptedRun: Ctrl-C, SIGTERM or SIGUSR1; the state was saved, the same call continues.
    """
    refuse_problems(config.without_effect())
    device = choose_device(config.device)
    process = set_up_process(device, config.num_threads, None, tf32=True)
    precision = choose_precision(device, config.mixed_precision, config.autocast_dtype)
    say(f"device: {precision}, {process}")
    folder, log_dir = expand_home(str(config.checkpoint_dir)), expand_home(str(config.log_dir))
    if config.data is not None:
        require_data(expand_home(config.data))  # before a backbone is downloaded
    source, is_random = load_backbone(config)
    with ExitStack() as stack:
        stack.enter_context(own_folders(folder, log_dir))
        text = load_text(config)
        data = load_data(config, source.preprocessing, ("train", "val"), also=SPLITS)
        vocabulary = Vocabulary.of(record.phrase for record in data.splits["train"])
        model = build_model(config, source, vocabulary, is_random, text)
        train, val = (Phrases(data.splits[split], data.store, model.encode) for split in ("train", "val"))
        for split, phrases, are_turned in (("train", train, config.use_augmentation), ("val", val, False)):
            texts = [record.phrase for record in phrases.records]
            tell_cut_phrases(model, split, texts, are_turned, can_read_more=True)
        require_enough_images(config, model, train)
        precision.place_model(model)
        optimizer = build_optimizer(config, model, config.backbone_lr_scale or (1.0 if is_random else 0.1))
        tensors = RunTensors(model.network, optimizer, precision.scaler())
        identity = RunIdentity(config.to_dict(), data.fingerprint(), model.preprocessing.to_dict())
        earlier = resume(config, folder, identity, tensors, train)
        state = earlier or RunState()
        if state.finished:
            another = "another one: --checkpoint_dir DIR --log_dir DIR, or --resume never"
            say(f"the run in {folder} has finished; {another}")
            return summarise(folder, log_dir, val)
        clear_folders(folder, log_dir, begins_anew=earlier is None)
        data.list_left_out(log_dir)
        tracker = stack.enter_context(FileTracker(log_dir, state, in_every_epoch="val_mean_iou"))
        saves = SaveSchedule(0, 60 * config.save_every_minutes)
        run = Run(config, folder, identity, train, val, model, precision, tensors, state, tracker, saves)
        fit(run, stack.enter_context(InterruptRequest()))
    return summarise(folder, log_dir, val)


def fit(run: Run, interrupt: InterruptRequest) -> None:
    """Train, validate and save, epoch by epoch, from where ``run.state`` stands."""
    config, model, state, train = run.config, run.model, run.state, run.train
    texts, targets, sizes = train.arrays()
    baselines = fit_baselines(texts, targets / sizes, model.vocabulary)
    model.baselines = {name: torch.from_numpy(weights) for name, weights in baselines.items()}
    while state.epoch < config.total_epochs:
        train_epoch(run, interrupt)
        metrics = metrics_of(answer(model, run.val, config.batch_size, run.precision).overlaps)
        # Of two equal values of Pr@0.5 the higher mean IoU is the better one.
        is_best = state.note_validation(metrics["pr@0.5"], 1 - metrics["mean_iou"], True, min_delta=0.0)
        mean_loss = state.train_loss_sum / state.train_images
        say(
            f"epoch {state.epoch + 1}/{config.total_epochs}: loss {mean_loss:.3f}, "
            f"validation {_told(metrics)}{' (best so far)' if is_best else ''}"
        )
        if is_best:
            model.metrics, model.config = metrics | {"epoch": state.epoch + 1}, config.to_dict()
            model.save_checkpoint(run.folder / BEST_MODEL)
        of_validation = {f"val_{name}": value for name, value in metrics.items()}
        run.log("epoch", train_loss=mean_loss, seconds=state.train_seconds, **of_validation)
        state.end_epoch()
        state.finished = state.epoch == config.total_epochs
        run.save()


def train_epoch(run: Run, interrupt: InterruptRequest) -> None:
    """Train the rest of an epoch; raises NonFiniteLossError, and behind a signal InterruptedRun."""
    config, model, state, phrases = run.config, run.model, run.state, run.train
    optimizer, scaler, device = run.tensors.optimizer, run.tensors.scaler, run.precision.device
    num_batches = phrases.num_batches(config.batch_size)
    model.train()
    forward = with_fast_depthwise(model, model, run.precision)
    pending = PendingSteps(lambda place: phrases.records[place].source, scaler.is_enabled(), SingleProcess())
    batches = phrases.shuffled(
        config.batch_size, config.seed, state.epoch, state.step_in_epoch, config.use_augmentation
    )
    bar = progress(total=len(phrases), initial=state.train_images, desc=f"epoch {state.epoch + 1}", unit="phrase")
    clock = time.perf_counter()
    with bar:
        for batch in (loaded.to(device) for loaded in batches):
            seed_default_generator(derive_seed(config.seed, Purpose.STEP, state.step), device)
            rate = learning_rate(config, state.step, num_batches)
            set_learning_rate(optimizer, rate)

            # Forward: each image goes through the backbone once, whatever the number of its phrases.
            with run.precision.autocast():
                scores, boxes = forward(batch.images, batch.masks, batch.image_of, batch.words)
            losses = grounding_loss(scores, boxes, batch.boxes)

            # Backward, clipping, step.
            scaler.scale(losses.mean()).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip or math.inf)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            # Record, log, save, stop: only where one of these is due do losses leave the device.
            pending.add(state.step, rate, StepResult(losses.detach().sum(), norm), batch.places)
            state.step, state.step_in_epoch = state.step + 1, state.step_in_epoch + 1
            state.train_images += len(batch.places)
            bar.update(len(batch.places))
            must_log, must_stop = state.step % config.log_every == 0, interrupt.requested
            must_save = must_stop or run.saves.is_due(state.step)
            if must_log or must_save or state.step_in_epoch == num_batches:
                pending.flush(state)
                now = time.perf_counter()
                state.train_seconds, clock = state.train_seconds + now - clock, now
            if must_log:
                mean_loss = state.window_loss_sum / state.window_images
                run.log("step", train_loss=mean_loss, gradient_norm=pending.gradient_norm)
                state.window_loss_sum, state.window_images = 0.0, 0
            if must_save:
                run.save()
            if must_stop:
                told = f"stopped by {interrupt.name}; saved at step {state.step}, the same command continues"
                raise InterruptedRun(told, interrupt.number)


def learning_rate(config: GroundingConfig, step: int, num_batches: int) -> float:
    """Linear warm-up over the first epoch (half of the run at most), then a cosine to zero."""
    schedule = Schedule("cosine", config.learning_rate, warmup_epochs=1, step_size=1, gamma=1.0, min_lr=0.0)
    return schedule.at((step + 0.5) / num_batches, config.total_epochs)


def resume(
    config: GroundingConfig, folder: Path, identity: RunIdentity, tensors: RunTensors, train: Phrases
) -> RunState | None:
    """Restore the run in ``folder``; None where there is none, or it is not to be resumed.

    CheckpointError: no state can be read, or the newest one is of other settings or other data, or altered.
    """
    earlier = find_run(folder, config.resume)
    if earlier is None:
        return None
    path, content = earlier.path, earlier.content
    # A setting that came with a later version had the meaning of its default.
    then = {one.name: one.default for one in fields(GroundingConfig)} | content["config"]
    now = {name: value for name, value in identity.config.items() if name not in FREE_ON_RESUME}
    changed = [f"{name} was {then[name]!r} and is {value!r}" for name, value in now.items() if then[name] != value]
    if changed:
        raise CheckpointError(
            f"the run in {str(folder)!r} has other settings: {', '.join(changed)}. Use its own, or --resume never"
        )
    if content["data_fingerprint"] != identity.data_fingerprint:
        raise CheckpointError(
            f"the data have changed since the run in {str(folder)!r} was stopped; restore them, or --resume never"
        )
    try:
        state = restore_run(content, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error}, or --resume never") from error
    num_batches = train.num_batches(config.batch_size)
    is_possible = (
        state.step == state.epoch * num_batches + state.step_in_epoch
        and state.step_in_epoch <= num_batches
        and state.train_images == min(state.step_in_epoch * config.batch_size, len(train))
        and state.epoch <= config.total_epochs
        and state.finished == (state.epoch == config.total_epochs)
    )
    if not is_possible:
        raise CheckpointError(
            f"{str(path)!r} cannot be gone on with: it is in epoch {state.epoch} and step {state.step}, which is not "
            "planned, so it was altered; use an earlier checkpoint, or --resume never"
        )
    adopt_best_model(earlier, folder, state)
    say(f"continuing {folder / LAST}: {counted(state.epoch, 'epoch')} done, step {state.step}")
    return state


def load_backbone(config: GroundingConfig) -> tuple[FineTuneModel, bool]:
    """The model whose backbone is used, and whether its weights are random."""
    name = str(config.backbone)
    if name.endswith(".pt") or expand_home(name).is_file():
        source = FineTuneModel.load_checkpoint(expand_home(name))
        is_default = config.weights == ("none" if config.data is None else None)
        unused = "" if is_default else f"; weights = {config.weights} is not used"
        say(f"backbone: {source.backbone} of {name}{unused}")
        return source, False
    source = FineTuneModel(name, 2, weights=config.weights, image_size=config.image_size, seed=config.seed)
    say(f"backbone: {source.backbone}; {source.weights_report}")
    return source, config.weights == "none"


def load_text(config: GroundingConfig) -> PretrainedText | None:
    """The pre-trained encoder of phrases, if one is named."""
    if config.text_encoder is None:
        return None
    torch.manual_seed(derive_seed(config.seed, Purpose.INITIALISATION))  # of its projection
    text = PretrainedText.from_folder(expand_home(config.text_encoder), config.width)
    say(f"text encoder: {type(text.encoder).__name__} of {config.text_encoder}")
    return text


def build_model(
    config: GroundingConfig,
    source: FineTuneModel,
    vocabulary: Vocabulary,
    is_random: bool,
    text: PretrainedText | None,
) -> GroundingModel:
    """The model with its starting weights, on the CPU. Batch norms of trained weights stay as they are."""
    torch.manual_seed(derive_seed(config.seed, Purpose.INITIALISATION))
    sizes = Sizes(**{one.name: getattr(config, one.name) for one in fields(Sizes)})
    model = GroundingModel(source, vocabulary, sizes, config.freeze_backbone, freeze_norm=not is_random, text=text)
    parameters = list(model.parameters())
    count, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    side = math.ceil(config.canvas_size / model.network.stride)
    say(
        f"model: {count / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained; "
        f"{counted(len(vocabulary.words), 'word')}; grid of {side} x {side} places at stride {model.network.stride}"
    )
    return model


def require_enough_images(config: GroundingConfig, model: GroundingModel, phrases: Phrases) -> None:
    """Refuse images so small that a batch norm which is trained gets one value a channel, if a batch may hold one."""
    smallest = len(phrases) % config.batch_size or config.batch_size
    if smallest > max(map(len, phrases.by_image.values())):
        return  # phrases of two images at least
    image = torch.zeros(1, 3, config.canvas_size, config.canvas_size)
    try:
        with torch.no_grad():
            copy.deepcopy(model.network.backbone).train()(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # torch's words, of a batch norm
            raise
        raise ConfigError(
            f"image_size = {config.image_size}: a batch may hold one image, and of one of that size a batch norm of "
            f"{model.backbone} gets a single value a channel, from which nothing can be trained; use image_size = "
            f"{2 * config.canvas_size} or more, trained weights, or --freeze_backbone true"
        ) from error


def build_optimizer(config: GroundingConfig, model: GroundingModel, backbone_scale: float) -> torch.optim.Optimizer:
    """AdamW with groups for backbone, text encoder and rest, with and without weight decay."""
    scales = {"backbone.": backbone_scale, "text.encoder.": _TEXT_SCALE}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and not name.endswith(("positions", "kinds"))
            scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((scale, config.weight_decay if is_matrix else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": few, "weight_decay": decay, "lr_scale": scale} for (scale, decay), few in groups.items()],
        lr=config.learning_rate,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )


def summarise(folder: Path, log_dir: Path, val: Phrases) -> GroundingResult:
    """Print what the run gave: the best model beside what can be had without looking at the image."""
    model = GroundingModel.load_checkpoint(folder / BEST_MODEL)
    metrics = model.metrics
    if not {"pr@0.5", "mean_iou", "epoch"} <= set(metrics):
        raise CheckpointError(f"{str(folder / BEST_MODEL)!r} has no metrics: it is altered; train anew")
    say(f"done: validation {_told(metrics)} (epoch {metrics['epoch']:.0f})")
    for name, value in baseline_metrics(model.baselines, *val.arrays(), model.vocabulary).items():
        say(f"  {name:<16}{_told(value)}")
    say(f"  best model      {folder / BEST_MODEL}")
    say(f"  TensorBoard     tensorboard --logdir {log_dir}")
    return GroundingResult(folder / BEST_MODEL, metrics)


def _told(metrics: dict[str, float]) -> str:
    return f"Pr@0.5 {100 * metrics['pr@0.5']:.1f} %, mean IoU {100 * metrics['mean_iou']:.1f} %"
