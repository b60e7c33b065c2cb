"""The training of a grounding model, from top to bottom: data → model → epochs → best_model.pt."""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.training.run_folder import clear_folders, own_folders
from sat_vg.backbone_finetuning.training.tracking import FileTracker, Tracker
from sat_vg.backbone_finetuning.utils.errors import InterruptedRun, NonFiniteLossError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device, choose_precision, set_up_process
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest
from sat_vg.backbone_finetuning.utils.terminal import progress, say
from sat_vg.grounding.configs.grounding_config import GroundingConfig
from sat_vg.grounding.data.batches import Phrases
from sat_vg.grounding.data.loading import RunData, list_left_out, load_run_data
from sat_vg.grounding.data.words import Vocabulary
from sat_vg.grounding.evaluation.answers import answer
from sat_vg.grounding.evaluation.baselines import baselines_of
from sat_vg.grounding.evaluation.metrics import metrics_of
from sat_vg.grounding.models.grounding_model import GroundingModel
from sat_vg.grounding.models.losses import grounding_loss
from sat_vg.grounding.models.network import Sizes
from sat_vg.grounding.run_state import BEFORE_LAST, BEST_MODEL, GroundingRun, GroundingState


@dataclass(frozen=True)
class GroundingResult:
    """What a run gave.

    Attributes:
        best_model: path of best_model.pt.
        metrics: metrics of its weights on the validation phrases.
    """

    best_model: Path
    metrics: dict[str, float]


def train_grounding(config: GroundingConfig) -> GroundingResult:
    """Train as the configuration says, or continue the run in its checkpoint folder.

    Raises:
        UserError: a setting, the data or a file cannot be used, or the loss became NaN or infinite.
        InterruptedRun: Ctrl-C, SIGTERM or SIGUSR1; the state was saved, the same call continues.
    """
    device = choose_device(config.device)
    process = set_up_process(device, config.num_threads, None, tf32=True)
    precision = choose_precision(device, config.mixed_precision, config.autocast_dtype)
    say(f"device: {precision}, {process}")
    checkpoint_dir, log_dir = expand_home(str(config.checkpoint_dir)), expand_home(str(config.log_dir))
    source, is_random = load_backbone(config)
    with ExitStack() as stack:
        stack.enter_context(own_folders(checkpoint_dir, log_dir))
        data = load_run_data(config)
        model = build_model(config, source, data.splits["train"].vocabulary, is_random)
        precision.place_model(model)
        optimizer = build_optimizer(config, model, config.backbone_lr_scale or (1.0 if is_random else 0.1))
        run = GroundingRun(config, checkpoint_dir, data.fingerprint, model, optimizer, precision.scaler())
        is_resumed = run.resume()
        if run.state.finished:
            say(
                f"the run in {checkpoint_dir} has finished; another one: --checkpoint_dir DIR --log_dir DIR, or "
                "--resume never"
            )
            return summarise(checkpoint_dir, log_dir, data)
        clear_folders(checkpoint_dir, log_dir, begins_anew=not is_resumed)
        if not is_resumed:
            (checkpoint_dir / BEFORE_LAST).unlink(missing_ok=True)
        list_left_out(data.left_out, log_dir)
        tracker = stack.enter_context(FileTracker(log_dir, run.state, in_every_epoch="val_mean_iou"))
        interrupt = stack.enter_context(InterruptRequest())
        fit(run, data, precision, tracker, interrupt)
    return summarise(checkpoint_dir, log_dir, data)


def fit(
    run: GroundingRun, data: RunData, precision: Precision, tracker: Tracker, interrupt: InterruptRequest
) -> None:
    """Train, validate and save, epoch by epoch, from where ``run.state`` stands."""
    config, model, state = run.config, run.model, run.state
    train, val = data.splits["train"], data.splits["val"]
    while state.epoch < config.total_epochs:
        rate = train_epoch(run, train, precision, tracker, interrupt)
        metrics = metrics_of(answer(model, val, config.batch_size, precision).overlaps)
        found = (metrics["pr@0.5"], metrics["mean_iou"])
        state.epoch += 1
        is_best = found > state.best
        say(
            f"epoch {state.epoch}/{config.total_epochs}: loss {state.loss_sum / state.phrases:.3f}, validation "
            f"Pr@0.5 {100 * found[0]:.1f} %, mean IoU {100 * found[1]:.1f} %{' (best so far)' if is_best else ''}"
        )
        if is_best:
            state.best, state.best_epoch = found, state.epoch
            model.metrics, model.config = metrics | {"epoch": state.epoch}, config.to_dict()
            model.save_checkpoint(run.folder / BEST_MODEL)
        of_validation = {f"val_{name}": value for name, value in metrics.items()}
        tracker.numbers(_numbers(state, rate, seconds=state.seconds, **of_validation), state.step, "epoch")
        state.step_in_epoch, state.loss_sum, state.phrases, state.seconds = 0, 0.0, 0, 0.0
        state.finished = state.epoch == config.total_epochs
        tracker.sync()
        run.save()


def train_epoch(
    run: GroundingRun, phrases: Phrases, precision: Precision, tracker: Tracker, interrupt: InterruptRequest
) -> float:
    """Train the rest of an epoch; returns the last step's learning rate.

    Raises:
        NonFiniteLossError: the loss or the gradient became NaN or infinite.
        InterruptedRun: a signal came; the state was saved.
    """
    config, model, optimizer, scaler, state = run.config, run.model, run.optimizer, run.scaler, run.state
    num_batches = phrases.num_batches(config.batch_size)
    rate = learning_rate(config, max(0, state.step - 1), num_batches)
    model.train()
    batches = phrases.shuffled(
        config.batch_size, config.seed, state.epoch, state.step_in_epoch, config.use_augmentation
    )
    clock = time.perf_counter()
    bar = progress(total=len(phrases), initial=state.phrases, desc=f"epoch {state.epoch + 1}", unit="phrase")
    for loaded in batches:
        batch = loaded.to(precision.device)
        seed_default_generator(derive_seed(config.seed, Purpose.STEP, state.step), precision.device)
        rate = learning_rate(config, state.step, num_batches)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]

        # Forward: each image goes through the backbone once, whatever the number of its phrases.
        with precision.autocast():
            scores, boxes = model(batch.images, batch.masks, batch.image_of, batch.words)
        loss = grounding_loss(scores, boxes, batch.boxes).mean()

        # Backward, clipping, step.
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip or math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # Record, save, stop.
        value, gradient_norm = float(loss.detach()), float(norm)
        state.step, state.step_in_epoch = state.step + 1, state.step_in_epoch + 1
        _require_finite(value, gradient_norm, state.step, may_skip=scaler.is_enabled())
        state.loss_sum, state.phrases = (
            state.loss_sum + value * len(batch.records),
            state.phrases + len(batch.records),
        )
        bar.update(len(batch.records))
        now = time.perf_counter()
        state.seconds, clock = state.seconds + now - clock, now
        if state.step % config.log_every == 0:
            gradient = {"gradient_norm": gradient_norm} if math.isfinite(gradient_norm) else {}
            tracker.numbers(_numbers(state, rate, **gradient), state.step, "step")
        if interrupt.requested or run.is_save_due:
            tracker.sync()
            run.save()
        if interrupt.requested:
            bar.close()
            raise InterruptedRun(
                f"stopped by {interrupt.name}; saved at step {state.step}, the same command continues",
                interrupt.number,
            )
    bar.close()
    return rate


def learning_rate(config: GroundingConfig, step: int, num_batches: int) -> float:
    """Linear warm-up over the first epoch (half of the run at most), then a cosine to zero."""
    total = config.total_epochs * num_batches
    warmup = min(num_batches, total / 2)
    if step < warmup:
        return config.learning_rate * (step + 0.5) / warmup
    return config.learning_rate * (1 + math.cos(math.pi * (step + 0.5 - warmup) / max(1, total - warmup))) / 2


def _require_finite(loss: float, gradient_norm: float, step: int, may_skip: bool) -> None:
    """Stop on NaN and infinity; loss scaling skips steps whose gradient alone is not finite."""
    if not math.isfinite(loss) or not (math.isfinite(gradient_norm) or may_skip):
        what = f"gradient's norm is {gradient_norm}" if math.isfinite(loss) else f"loss is {loss}"
        raise NonFiniteLossError(
            f"the {what} in step {step}; the checkpoints from before are untouched. Lower learning_rate"
        )


def _numbers(state: GroundingState, rate: float, **more: float) -> dict[str, Any]:
    speed = {"phrases_per_second": state.phrases / state.seconds} if state.seconds else {}
    mean_loss = state.loss_sum / state.phrases
    place = {"phase": "grounding", "epoch": state.epoch, "step": state.step}
    return {**place, "learning_rate": rate, "train_loss": mean_loss, **speed, **more}


def load_backbone(config: GroundingConfig) -> tuple[FineTuneModel, bool]:
    """The model whose backbone is used, and whether its weights are random."""
    name = str(config.backbone)
    if name.endswith(".pt") or expand_home(name).is_file():
        source = FineTuneModel.load_checkpoint(expand_home(name))
        say(f"backbone: {source.backbone} of {name}")
        return source, False
    source = FineTuneModel(name, 2, weights=config.weights, image_size=config.image_size, seed=config.seed)
    say(f"backbone: {source.backbone}; {source.weights_report}")
    return source, config.weights == "none"


def build_model(
    config: GroundingConfig, source: FineTuneModel, vocabulary: Vocabulary, is_random: bool
) -> GroundingModel:
    """The model with its starting weights, on the CPU. Batch norms of trained weights stay as they are."""
    torch.manual_seed(derive_seed(config.seed, Purpose.INITIALISATION))
    sizes = Sizes(
        config.canvas_size, config.max_words, config.width, config.text_layers, config.fusion_layers,
        config.num_heads, config.dropout,
    )  # fmt: skip
    model = GroundingModel(source, vocabulary, sizes, config.freeze_backbone, freeze_norm=not is_random)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False)]
    stride = model.network.stride
    side = math.ceil(config.canvas_size / stride)
    say(
        f"model: {counts[0] / 1e6:.2f} M parameters, {counts[1] / 1e6:.2f} M trained; "
        f"{counted(len(vocabulary.words), 'word')}; grid of {side} x {side} places at stride {stride}"
    )
    return model


def build_optimizer(config: GroundingConfig, model: GroundingModel, backbone_scale: float) -> torch.optim.Optimizer:
    """AdamW with groups for backbone and rest, with and without weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and not name.endswith(("positions", "kinds"))
            scale = backbone_scale if name.startswith("backbone.") else 1.0
            groups.setdefault((scale, config.weight_decay if is_matrix else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": few, "weight_decay": decay, "scale": scale} for (scale, decay), few in groups.items()],
        lr=config.learning_rate,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )


def summarise(checkpoint_dir: Path, log_dir: Path, data: RunData) -> GroundingResult:
    """Print what the run gave: the best model beside what can be had without looking at the image."""
    best = checkpoint_dir / BEST_MODEL
    metrics = GroundingModel.load_checkpoint(best).metrics
    train, val = data.splits["train"], data.splits["val"]
    say(
        f"done: validation Pr@0.5 {100 * metrics['pr@0.5']:.1f} %, mean IoU {100 * metrics['mean_iou']:.1f} % "
        f"(epoch {metrics['epoch']:.0f})"
    )
    for name, value in baselines_of(train.records, val.records, val.store).items():
        say(f"  {name:<16}Pr@0.5 {100 * value['pr@0.5']:.1f} %, mean IoU {100 * value['mean_iou']:.1f} %")
    say(f"  best model      {best}")
    say(f"  TensorBoard     tensorboard --logdir {log_dir}")
    return GroundingResult(best, metrics)
