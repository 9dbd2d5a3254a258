"""The loop: views → model → loss → step → log → checkpoint (Algorithm 1 of the paper).

A step is a function of (settings, store, step number, weights), so a run that is stopped anywhere and resumed ends
bit for bit where an undisturbed one does.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from myna.checkpoint import LEFTOVER, LOSS_FILE, checkpoints, load_weights, model_hash, open_checkpoint, save_model
from myna.device import cores, peak_flops, pick_device, pick_precision
from myna.disk import write_text
from myna.errors import CheckpointError, ConfigError, RunError
from myna.hub import open_model
from myna.lock import only_writer
from myna.mae import build_model
from myna.model import MynaModel
from myna.patch import Kind
from myna.plan import Plan, fitting_micro_batch, memory_estimate, pick_attention
from myna.rank import SOLO, World, restarts
from myna.reconstruction import learning
from myna.run import RUN_FILE, Metrics, Settings, continued, read_run, total_steps, write_run
from myna.store import Store
from myna.view import VIEWS, DeviceRows, Views, place_rows
from myna.vit import ATTENTION, parameter_count

LOCK_FILE = ".lock"
TRACE_FILE, STAGES_FILE = "trace.json", "stages.txt"
STAGES = ("wait for data", "forward+backward", "loss", "optimiser")  # the loss is a part of forward+backward


def optimizer_tensors(parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state with the parameters' names: `exp_avg.encoder.norm.weight` and so on."""
    return {
        f"{what}.{name}": value
        for name, parameter in parameters.items()
        for what, value in optimizer.state[parameter].items()
    }


def load_optimizer(parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; every parameter's state must be there."""
    for name, parameter in parameters.items():
        for what in ("step", "exp_avg", "exp_avg_sq"):
            if f"{what}.{name}" not in tensors:
                raise CheckpointError(f"The optimiser's state has no {what}.{name}: resume from another checkpoint.")
        state = {what: tensors[f"{what}.{name}"] for what in ("exp_avg", "exp_avg_sq")}
        state = {what: tensor.to(parameter) for what, tensor in state.items()}
        # fused Adam keeps its step counters on the parameter's device
        state["step"] = tensors[f"step.{name}"].to(parameter.device)
        optimizer.state[parameter] = state


class Interrupt:
    """Ctrl-C and SIGTERM ask for a stop after the current step, instead of tearing it apart."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "Interrupt":
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


class _Profile:
    """Profiles some steps: a Chrome trace, and how much of a step each stage takes."""

    def __init__(self, run: Path, steps: int, *, skip: int = 2) -> None:
        self.run, self.steps = run, steps
        self.inner: Any = None
        if steps:
            plan = torch.profiler.schedule(wait=skip, warmup=1, active=steps, repeat=1)
            self.inner = torch.profiler.profile(schedule=plan, on_trace_ready=self._write)

    def __enter__(self) -> "_Profile":
        if self.inner:
            self.inner.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.inner:
            self.inner.stop()

    def step(self) -> None:
        if self.inner:
            self.inner.step()

    def _write(self, found: Any) -> None:
        ranges = {event.key: event for event in found.key_averages() if event.key in STAGES}
        if "optimiser" not in ranges:
            return  # the run ended before a whole step was recorded
        found.export_chrome_trace(str(self.run / TRACE_FILE))
        steps = ranges["optimiser"].count  # a run may end before so many as were asked for
        times = {name: max(e.cpu_time_total, e.device_time_total) / steps / 1e3 for name, e in ranges.items()}
        lines = [f"{name:<18}{times[name]:10.2f} ms a step" for name in STAGES if name in times]
        write_text(self.run / STAGES_FILE, "\n".join(lines) + "\n")


class Trainer:
    """One run: its folder, model, optimiser and data; on each rank of a `world`, its share of them."""

    def __init__(
        self,
        store: Store,
        run: str | Path,
        settings: Settings,
        *,
        resume: bool = False,
        init_from: str | Path | None = None,
        device: torch.device | str | None = None,
        world: World = SOLO,
    ) -> None:
        self.run, self.store, self.world = Path(run), store, world
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        earlier = read_run(self.run) if (self.run / RUN_FILE).is_file() else None
        world.wait()  # nobody writes the run's file before everybody has looked for it
        again = bool(earlier and restarts())  # torchrun started the same command again
        resume = resume or again
        self._check_start(earlier, resume=resume, init_from=None if again else init_from)
        if again and checkpoints(self.run):
            init_from = None  # which they hold
        if store.front_end != settings.model.front_end:
            raise ConfigError(
                f"The store {store.path} was prepared with {store.front_end}, the model hears "
                f"{settings.model.front_end}: prepare the music anew with the model's front end."
            )
        settings = continued(settings, earlier, store) if earlier else settings
        # before anything is measured against free memory
        rows = place_rows(store, settings.train.store_on, self.device, threads=min(4, cores()))
        self.settings = self._resolved(settings)
        config = self.settings.train
        self.learning = learning(self.settings.model)
        self.loader = self.learning.loader(
            store,
            settings.view,
            settings.model.grids(),
            batch=config.batch,
            seed=config.seed,
            rows=rows,
            slice_=world.share(config.batch),
        )
        self.steps = total_steps(config, self.loader.steps_per_epoch)
        self.step = 0
        self.new_projector = False  # whether the initial weights had none
        self.init_from: dict[str, str] | None = (earlier or {}).get("init_from")  # whose weights the run began from
        self.model = self._initial_model(init_from).to(self.device)
        self.model.encoder.attend_by(config.attention)
        self.gradient = self.learning.objective(
            self.model,
            settings.loss,
            precision=config.precision,
            micro_batch=None if isinstance(config.micro_batch, str) else config.micro_batch,
            together=self.device.type == "cuda",
            clips=len(self.loader.clips),
            compile=config.compile,
            world=world,
        )
        self.optimizer = self._optimizer()
        if resume and init_from is None:
            self._load_newest()

    def _resolved(self, settings: Settings) -> Settings:
        """Decide what was left to `auto`, the same on every rank."""
        config = settings.train
        low = pick_precision(config.precision, self.device) == "bf16"
        precision = "bf16" if self.world.first(int(low), self.device) else "fp32"
        micro: int | str = config.micro_batch
        if micro == "auto":
            fitting = fitting_micro_batch(settings, precision=precision, device=self.device, world=self.world)
            micro = self.world.first(fitting, self.device) or "off"
        compiled = config.compile
        if compiled == "auto":
            compiled = "default" if self.device.type == "cuda" else "off"
        attention = config.attention
        if attention == "auto" and self.device.type == "cuda":
            forms = list(ATTENTION)
            picked = forms.index(pick_attention(settings, self.device, precision, compiled))
            attention = forms[self.world.first(picked, self.device)]
        elif attention == "auto":  # a rule, so that equal runs are equal: SDPA is the slow one in bf16 on CPUs
            attention = "products" if precision == "bf16" else "sdpa"
        update = {"precision": precision, "micro_batch": micro, "compile": compiled, "attention": attention}
        return settings.model_copy(update={"train": config.model_copy(update=update)})

    def _check_start(self, earlier: dict[str, Any] | None, *, resume: bool, init_from: str | Path | None) -> None:
        if earlier and not resume:
            raise RunError(
                f"{self.run} already holds a run: continue it with --resume, or start a new one in another folder "
                f"(from its weights, if you like, with --init-from {self.run})."
            )
        if resume and init_from:
            raise RunError("--resume goes on with a run and --init-from starts a new one: give one of them.")
        if resume and not earlier:
            raise RunError(f"There is no run in {self.run} to resume: start it without --resume.")
        if (
            not earlier
            and self.run.is_dir()
            and any(not LEFTOVER.fullmatch(p.name) and p.name != LOCK_FILE for p in self.run.iterdir())
        ):
            raise RunError(f"{self.run} holds other files and no run: name a new or an empty folder for the run.")

    def _initial_model(self, init_from: str | Path | None) -> MynaModel:
        if init_from is None:
            return build_model(self.settings.model, seed=self.settings.train.seed)
        found = open_model(init_from)
        theirs, ours = found.config.shaping(), self.settings.model.shaping()
        told = {**(found.about.get("init_from") or {}), **found.about}
        self.init_from = {"hash": found.hash, **{name: told[name] for name in ("origin", "file") if name in told}}
        self.new_projector = "projector_hidden" in ours and theirs.get("projector_dim") == 0
        drawn = {"projector_dim"} if self.new_projector else set()
        differing = sorted(name for name in (ours.keys() & theirs.keys()) - drawn if ours[name] != theirs[name])
        if differing:
            raise ConfigError(
                f"The model in {init_from} differs from this run's in {', '.join(differing)}: "
                "give the settings that it was trained with."
            )
        model = build_model(self.settings.model, seed=self.settings.train.seed)
        projector = {name: value for name, value in model.state_dict().items() if name.startswith("projector.")}
        load_weights(model, {**(projector if self.new_projector else {}), **found.weights()}, found.path)
        return model

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.settings.train
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]
        if learned := list(self.gradient.loss.parameters()):
            groups.append({"params": learned, "weight_decay": 0.0})  # which would draw the temperature to 1
        return torch.optim.Adam(
            groups,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )

    def _parameters(self) -> dict[str, Tensor]:
        """Return everything that the optimiser moves: the model's parameters, and the loss's if it has any."""
        of_loss = {f"loss.{name}": value for name, value in self.gradient.loss.named_parameters()}
        return {**dict(self.model.named_parameters()), **of_loss}

    def _load_newest(self) -> None:
        found = checkpoints(self.run)
        if not found and self.init_from:
            raise RunError(
                f"The run in {self.run} began from weights that its seed does not draw, and it holds no checkpoint of "
                "them: start it anew in another folder with --init-from."
            )
        if not found:
            return  # killed before its first checkpoint: step 0 is where it stands
        checkpoint = open_checkpoint(found[-1])
        self.model.load_state_dict(checkpoint.model().state_dict())
        load_weights(self.gradient.loss, checkpoint.loss(), checkpoint.path / LOSS_FILE)
        if checkpoint.step:  # Adam's state begins with its first step
            load_optimizer(self._parameters(), self.optimizer, checkpoint.optimizer())
        self.step = checkpoint.step

    def plan(self) -> Plan:
        """Measure a few small steps and say what the whole run will take."""
        parameters = parameter_count(self.model)
        precision = self.settings.train.precision
        return Plan(
            parameters=parameters,
            visible={kind: (count, self.loader.grids[kind].tokens) for kind, count in self.settings.visible().items()},
            clips=len(self.loader.clips),
            tracks=self.loader.clips.tracks,
            hours=self.store.hours,
            steps_per_epoch=self.loader.steps_per_epoch,
            steps=self.steps,
            device=str(self.device),
            precision=precision,
            memory_bytes=self._memory(parameters),
            store_on="device" if isinstance(self.loader.rows, DeviceRows) else "host",
            store_bytes=sum(file.nbytes for file in self.store.files),
            micro_batch=self.settings.train.micro_batch,
            passes=self.gradient.passes,
            compile=self.settings.train.compile,
            ranks=self.world.size,
            seconds_per_step=self._calibrate(),
        )

    def _memory(self, parameters: int) -> int:
        micro, local = self.settings.train.micro_batch, self.settings.train.batch // self.world.size
        return memory_estimate(
            self.settings,
            precision=self.settings.train.precision,
            parameters=parameters,
            clips=local if isinstance(micro, str) else min(micro, local),
            together=self.gradient.together,
            ranks=self.world.size,
        )

    def _calibrate(self, clips: int = 64) -> float:
        """Time forward and backward of a few clips, uncompiled and on this rank alone, and scale to the batch."""
        views = {kind: view[:clips] for kind, view in self.loader(0, self.device).items()}
        # a loss of its own: what the run's loss remembers stays as it is
        step = self.learning.objective(
            self.model, self.settings.loss, precision=self.settings.train.precision, clips=len(self.loader.clips)
        )
        seconds, local = math.inf, self.settings.train.batch // self.world.size
        for _ in range(2):
            begin = time.perf_counter()
            step(views)
            self.model.zero_grad()
            self._synchronize()
            seconds = min(seconds, time.perf_counter() - begin)
        # a backward pass costs two forward ones
        cost = 1.0 if isinstance(self.settings.train.micro_batch, str) else (step.passes + 2) / 3
        return seconds * cost * local / min(clips, local)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def train(self, *, on_log: Callable[[dict[str, float]], None] | None = None, profile: int = 0) -> int | None:
        """Run to the last step. Return None, or the number of the signal that stopped it earlier.

        A run that is there already, or beyond, is left as it is. With `profile`, so many steps after the first few are
        written as a trace and a table of stages.

        Raises RunError when the loss or a gradient is not finite (the last checkpoint stands), and when another
        process trains in the run's folder.
        """
        if self.step >= self.steps:
            return None
        if not self.world.is_main:
            return self._loop(on_log, profile=0)
        with only_writer("pretrain", self.run, lock=self.run / LOCK_FILE):
            write_run(self.run, self.settings, self.store, init_from=self.init_from)
            if self.init_from and not checkpoints(self.run):  # the seed does not bring them back
                self.save()
            return self._loop(on_log, profile)

    def _loop(self, on_log: Callable[[dict[str, float]], None] | None, profile: int) -> int | None:
        metrics = Metrics(self.run, step=self.step) if self.world.is_main else None
        config, saved = self.settings.train, time.monotonic()
        window: list[dict[str, Tensor]] = []
        begin, clips = time.monotonic(), 0
        try:
            with (
                Interrupt() as interrupt,
                contextlib.closing(self._batches()) as batches,
                _Profile(self.run, profile) as traced,
            ):
                for views in batches:
                    window.append(self._one_step(views))
                    traced.step()
                    self.step += 1
                    clips += config.batch
                    last = self.step == self.steps or self._stopped(interrupt)
                    due = time.monotonic() - saved > config.checkpoint_minutes * 60
                    if last or due or self.step % config.log_every == 0:
                        row = self._row(window, clips / (time.monotonic() - begin))
                        if metrics:
                            metrics.write(row)
                        if on_log and self.world.is_main:
                            on_log(row)
                        window, begin, clips = [], time.monotonic(), 0
                    if (last or due) and self.world.is_main:
                        self.save()
                    if last or due:
                        saved = time.monotonic()
                    if last:
                        self.world.wait()  # for the last checkpoint
                        return None if self.step == self.steps else interrupt.signal or signal.SIGTERM
        finally:
            if metrics:
                metrics.close()
        return None

    def _stopped(self, interrupt: Interrupt) -> bool:
        """Say whether a signal asks for a stop; ranks must agree, which costs a GPU's host a wait, so only at times."""
        if self.world.size == 1:
            return interrupt.signal is not None
        due = self.device.type == "cpu" or self.step % self.settings.train.log_every == 0
        return due and self.world.any(interrupt.signal is not None, self.device)

    def _one_step(self, views: dict[Kind, Views]) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("forward+backward"):
            numbers = self.gradient(views)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        numbers["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
        with record_function("optimiser"):
            self.optimizer.step()
        return numbers

    def _batches(self) -> Iterator[dict[Kind, Views]]:
        """Yield the views of every step that is left, drawn and read one step ahead by a thread.

        Another puts the next epoch in order, since no step is long enough to hide that.
        """
        epochs = -(-self.steps // self.loader.steps_per_epoch)
        with ThreadPoolExecutor(max_workers=1) as pool, ThreadPoolExecutor(max_workers=1) as ahead:
            coming = None
            for step in range(self.step, self.steps):
                epoch, place = divmod(step, self.loader.steps_per_epoch)
                if (place == 0 or step == self.step) and epoch + 1 < epochs:
                    ahead.submit(self.loader.order, epoch + 1)
                now = coming or pool.submit(self.loader, step, self.device)
                coming = pool.submit(self.loader, step + 1, self.device) if step + 1 < self.steps else None
                with record_function("wait for data"):
                    views = now.result()
                yield views

    def _row(self, window: list[dict[str, Tensor]], clips_per_s: float) -> dict[str, float]:
        """Mean of each number over the steps since the last row; the first look at the values themselves."""
        row = {name: torch.stack([step[name] for step in window]).mean().item() for name in window[0]}
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        if broken:
            kept = checkpoints(self.run)
            raise RunError(
                f"{' and '.join(broken)} became non-finite in the {len(window)} steps up to step {self.step}. "
                + (f"The last good checkpoint is {kept[-1]}. " if kept else "No checkpoint was written yet. ")
                + "Try a smaller --learning-rate, --precision fp32, or a higher --temperature."
            )
        epoch = self.step / self.loader.steps_per_epoch
        speed = {"clips_per_s": clips_per_s, "tokens_per_s": clips_per_s * self._tokens_per_clip()}
        speed["tflops"] = clips_per_s * self._flops_per_clip() / 1e12
        if peak := peak_flops(self.device, self.settings.train.precision):
            speed["share_of_peak"] = speed["tflops"] * 1e12 / peak / self.world.size
        return {"step": self.step, "epoch": round(epoch, 4), **row, **{k: round(v, 4) for k, v in speed.items()}}

    def _tokens_per_clip(self) -> int:
        return VIEWS * sum(self.settings.visible().values())

    def _flops_per_clip(self) -> int:
        """Count the operations of a clip that the method needs: forward, and twice that backward."""
        config = self.settings.model
        return 3 * VIEWS * sum(config.flops(kind, tokens=tokens) for kind, tokens in self.settings.visible().items())

    def save(self) -> Path:
        """Write a checkpoint of the current step and remove the oldest beyond `keep`."""
        path = self.run / "checkpoints" / f"step-{self.step:09d}"
        about = {
            "step": self.step,
            "examples": self.step * self.settings.train.batch,
            "store": self.store.hash,
            "settings": self.settings.model_dump(mode="json"),
            "init_from": self.init_from,
        }
        optimizer = optimizer_tensors(self._parameters(), self.optimizer)
        save_model(self.model, path, about=about, optimizer=optimizer, loss=self.gradient.loss.state_dict())
        for old in checkpoints(self.run)[: -self.settings.train.keep]:
            # the config first: a folder without it is no checkpoint, whatever else is still there
            (old / "config.json").unlink()
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        return path

    @property
    def hash(self) -> str:
        return model_hash(self.model)
