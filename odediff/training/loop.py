"""`train`: the loop around Algorithm 1, with its log, checkpoints, previews and interruptions."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from .. import schedule as schedules
from ..model import Model
from ..nn import unet_config
from .batches import Batches, data_fingerprint
from .checkpoint import NAME, read_meta
from .config import TrainConfig
from .data import Labels, Pixels, load_images, load_labels
from .log import Log
from .losses import DenoisingLoss
from .state import TrainState
from .stopwatch import Stopwatch

Preview = Callable[[Model, int, Path], object]
OnLog = Callable[[dict[str, Any]], object]


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    preview: Preview | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
    on_log: OnLog | None = None,
) -> Model:
    """Train a U-Net by Algorithm 1 of Ho et al. 2020 and return it with averaged weights; class-conditional with
    `config.labels`, by Algorithm 1 of Ho & Salimans 2022.

    `resume` continues the checkpoint in `config.out`: on a CPU bit for bit as if it had never stopped.
    `preview(model, step, folder)` is called every `preview_every` steps and at the end with the averaged model; it may
    draw random numbers freely. `on_log` gets every record of the log: step, loss (mean since the last record), lr,
    images/s, seconds. `device`: CUDA if there is any, else the CPU.

    Writes `config.json`, `log.jsonl`, `checkpoint.safetensors` and, at the end, `model/` into `config.out`. torch's
    global random state is left as it was found.

    Raises `FileExistsError` if `out` has a checkpoint and `resume` is false, `FileNotFoundError` if it has none and
    `resume` is true, `ValueError` for another recipe or other data than the checkpoint's, `FloatingPointError` when the
    loss is no longer finite (the last checkpoint is kept), `KeyboardInterrupt` on Ctrl-C, after saving a checkpoint.
    """
    where = _device(device)
    if config.amp == "fp16" and where.type != "cuda":
        raise ValueError(f'amp = "fp16" needs a CUDA device, not {where}; use amp = "bf16" or "off"')
    out = Path(config.out)
    _check_out(config, out, resume)
    images = load_images(config.data, key=config.key, tile=config.tile, pad=config.pad)
    labels = None if config.labels is None else load_labels(config.data, config.labels, len(images))
    with _own_randomness(where, config.seed):
        run = _Run(config, out, images, labels, where, preview, on_log)
        return run.run(resume=resume, progress=progress)


def _device(device: str | torch.device | None) -> torch.device:
    found = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device = "{found}", and torch sees no CUDA device here; use device = "cpu"')
    return torch.device("cuda", torch.cuda.current_device()) if found == torch.device("cuda") else found


def _check_out(config: TrainConfig, out: Path, resume: bool) -> None:
    checkpoint = out / NAME
    if resume:
        config.check_resumes(read_meta(checkpoint)["config"], checkpoint)
    elif checkpoint.exists():
        step = read_meta(checkpoint)["step"]
        raise FileExistsError(
            f"{out} holds a run at step {step}: continue it with resume=True (--resume), or train into another folder"
        )


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators for the run; give the caller's back afterwards."""
    devices = [device] if device.type == "cuda" else []
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only raises a flag, which the yielded function reads; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        images: Pixels,
        labels: Labels | None,
        device: torch.device,
        preview: Preview | None,
        on_log: OnLog | None,
    ) -> None:
        self.config, self.out, self.preview, self.on_log = config, out, preview, on_log
        self.shape = images.shape[1:]
        self.num_classes = None if labels is None else int(labels.max()) + 1
        self.fingerprint = data_fingerprint(images, labels)
        self.schedule = schedules.from_identity(config.schedule)
        channels, *sides = self.shape
        table = {} if self.num_classes is None else {"num_class_embeds": self.num_classes + 1}  # the last: no label
        network = unet_config(config.size, in_channels=channels, sample_size=sides, **{**table, **config.network})
        loss = DenoisingLoss(self.schedule, prediction=config.prediction, weighting=config.weighting, device=device)
        self.state = TrainState(config, network, loss)
        self.batches = Batches(
            images,
            config.batch_size,
            seed=config.seed,
            flip=config.flip,
            device=device,
            labels=labels,
            num_classes=self.num_classes,
            label_dropout=config.label_dropout,
        )
        self._wrapped({})  # a network that does not fit its labels: say so before any work
        self.checkpoint = out / NAME

    def run(self, *, resume: bool, progress: bool) -> Model:
        """Everything after set-up."""
        seconds = self._restore() if resume else 0.0
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        self.log = Log(self.out / "log.jsonl", self.state.step)
        self.watch = Stopwatch(self.state.device, seconds, self.state.step)
        self.bar = tqdm(
            total=self.config.steps, initial=self.state.step, disable=not progress, unit="step", dynamic_ncols=True
        )
        try:
            with self.bar, _interrupts() as interrupted:
                self._steps(interrupted)
        except FloatingPointError as error:
            kept = f"{self.checkpoint} is kept" if self.checkpoint.exists() else "there is no earlier checkpoint"
            raise FloatingPointError(f"{error}; {kept}") from None
        finally:
            self.log.close()
        model = self._model()
        model.save(self.out / "model")
        self._show()  # after the model is safe: whatever a callback does must not cost it
        return model

    def _restore(self) -> float:
        saved = read_meta(self.checkpoint)["data"]
        if saved != self.fingerprint:
            raise ValueError(
                f"cannot resume {self.checkpoint}: its data was {saved}, and {self.config.data} is {self.fingerprint}"
            )
        return float(self.state.restore(self.checkpoint)["seconds"])

    def _steps(self, interrupted: Callable[[], bool]) -> None:
        config, state = self.config, self.state
        while state.step < config.steps:
            state.advance(self.batches(state.step), self.batches.labels(state.step))
            self.bar.update()
            last, stop = state.step == config.steps, interrupted()
            if state.step % config.log_every == 0:
                self._record()
            if last or stop or _due(state.step, config.checkpoint_every):
                with self.watch.paused():
                    self._save()
            if stop and not last:
                raise KeyboardInterrupt(
                    f"stopped at step {state.step} of {config.steps}; {self.checkpoint} is written: go on with "
                    "resume=True (--resume)"
                )
            if not last and _due(state.step, config.preview_every):
                with self.watch.paused():
                    self._show()

    def _show(self) -> None:
        """Call the preview, if there is one, with random numbers of its own."""
        if self.preview is not None:
            folder = self.out / "previews"
            folder.mkdir(exist_ok=True)
            with _own_randomness(self.state.device, self.config.seed):
                self.preview(self._model(), self.state.step, folder)

    def _record(self) -> None:
        config, state = self.config, self.state
        loss = state.take_loss()
        rate = self.watch.lap(state.step) * config.batch_size
        record = {
            "step": state.step,
            "loss": loss,
            "lr": config.learning_rate(state.step - 1),
            "images/s": round(rate, 1),
            "seconds": round(self.watch.seconds, 3),
        }
        self.log.write(record)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} images/s")
        if self.on_log is not None:
            self.on_log(record)

    def _save(self) -> None:
        meta = {"config": self.config.to_dict(), "data": self.fingerprint, "seconds": self.watch.seconds}
        self.state.save(self.checkpoint, meta)

    def _model(self) -> Model:
        """The averaged network as a model that knows how it was made."""
        info = {
            "training": self.config.to_dict(),
            "data": self.fingerprint,
            "step": self.state.step,
            "seconds": round(self.watch.seconds, 1),
            "torch": torch.__version__,
        }
        return self._wrapped(info)

    def _wrapped(self, info: dict[str, Any]) -> Model:
        return Model(
            self.state.ema.net,
            schedule=self.schedule,
            prediction=self.config.prediction,
            shape=self.shape,
            num_classes=self.num_classes,
            info=info,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
