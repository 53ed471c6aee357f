"""What is kept of an evaluation: its configuration, and one line for every sample done.

A sample's line is appended when it is done and flushed, so a run that is killed loses only what was
under way. It is written again when audits behind its answers are known. The same configuration goes
on where the log ends; another one is refused.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kvcomm.errors import KvcommError, UsageError
from kvcomm.reuse.policy import Anchors
from kvcomm.trace.record import LineFile

CONFIG = "config.json"
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"
TRACES = "traces"
STATE = "state"
Key = tuple[str, int, str]  # a task's id, which repeat of it, a mode
# What another command with the same `out` may have otherwise.
FACTS = {"agent_count", "baselines", "conditions", "now"}


class Conditions(BaseModel, frozen=True):
    """What times depend on, and outcomes do not."""

    device: str
    dtype: str
    concurrent: int
    python: str
    torch: str
    transformers: str


class Config(BaseModel, frozen=True, extra="forbid"):
    """Everything that the outcome of an evaluation depends on, and some facts about it.

    The digests are of templates, of tasks' texts in their order, and of the files of a user's own
    `policies`. `FACTS` refuse no command that goes on: how many agents there are, which modes the
    others are compared with, the day that chat templates write (`now`, that of the first run), and
    under what `conditions` work was done, one entry for each kind.
    """

    kvcomm: str
    suite: str
    graph: str
    graph_digest: str
    model: str
    fingerprint: str
    modes: tuple[str, ...]
    seed: int
    repeats: int
    retries: int
    tasks: int
    tasks_digest: str
    target_divergence: float
    audit_rate: float
    repair_budget: float | None = None
    now: datetime | None = None
    gamma: float = Anchors.gamma
    anchors: int = Anchors.capacity
    policies: dict[str, str] = {}
    warmup: int = 0
    warmup_digest: str = ""
    agent_count: int = 0
    baselines: tuple[str, ...] = ()
    conditions: tuple[Conditions, ...] = ()


class CallRow(BaseModel, frozen=True):
    """One call of a sample: its tokens, how many of them were not computed, and its time."""

    node: str
    prompt_tokens: int
    computed_tokens: int
    realigned_tokens: int
    output_tokens: int
    ttft_s: float


class Sample(BaseModel, frozen=True):
    """One task worked on once in one mode.

    `value` is what is averaged, `extracted` the answer that was read from the text, `chosen` the
    nodes heard by the last agent that gave the same answer. A sample whose run failed has `error`,
    and counts as wrong; so does one that could not be scored. One of the `warmup` counts nowhere.
    """

    task: str
    repeat: int
    mode: str
    warmup: bool = False
    value: float
    correct: bool
    answer: str = ""
    extracted: str = ""
    reason: str = ""
    error: str = ""
    metrics: dict[str, float] = {}
    chosen: list[str] = []
    calls: list[CallRow] = []
    audits: list[float] = []
    tries: int = 1
    wall_s: float = 0.0
    trace: str = ""

    @property
    def key(self) -> Key:
        """What makes a sample one: it is done once."""
        return (self.task, self.repeat, self.mode)


class Log:
    """The output folder of an evaluation; opening it reads what was done before.

    `config` is the one that it began with. Raises `UsageError` when the folder belongs to another
    configuration, or cannot be written.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            before = self._begun(config)
            self.done = {sample.key: sample for sample in read_samples(folder / SAMPLES, mend=True)}
            # The day is that of `before`; conditions are those of all that is done or left.
            everything = (config.tasks * config.repeats + config.warmup) * len(config.modes)
            new = config.conditions if len(self.done) < everything else ()
            conditions = tuple(dict.fromkeys((*before.conditions, *new)))
            update = {"conditions": conditions, "now": before.now}
            self.config = config.model_copy(update=update)
            if self.config != before:
                self._write(self.config)
            self._file = LineFile(folder / SAMPLES)
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}") from None

    def _begun(self, config: Config) -> Config:
        """The configuration that the folder holds, from now on `config` if it is new."""
        if not (self.folder / CONFIG).exists():
            if any(self.folder.iterdir()):
                raise UsageError(
                    f"{self.folder} is not empty and no evaluation: choose another --out"
                )
            self._write(config)
            return config
        before = read_config(self.folder)
        old, new = (one.model_dump(exclude=FACTS) for one in (before, config))
        differ = [name for name in old if old[name] != new[name]]
        changed = "; ".join(f"{name} was {old[name]!r}, is {new[name]!r}" for name in differ)
        if changed:
            raise UsageError(
                f"{self.folder} is of another evaluation ({changed}): use another --out"
            )
        return before

    def _write(self, config: Config) -> None:
        path = self.folder / CONFIG
        beside = path.with_suffix(".new")  # half a file would be damage
        beside.write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    @property
    def samples(self) -> list[Sample]:
        """All of `done`, the samples that need not be done again."""
        return list(self.done.values())

    def append(self, sample: Sample) -> None:
        """Keep a sample: one whole line, written through; of two of one key the later counts.

        Raises `KvcommError` when it cannot be written.
        """
        try:
            self._file.append(sample.model_dump_json())
        except OSError as error:
            raise KvcommError(
                f"cannot write to {self.folder}: {error.strerror or error}; {len(self.done)} "
                "samples are safe: make room and run the same command again with "
                f"--out {self.folder}, and it goes on"
            ) from None
        self.done[sample.key] = sample

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` anew. Raises `KvcommError` when it cannot."""
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    try:
        (folder / SUMMARY).write_text(text, encoding="utf-8")
    except OSError as error:
        raise KvcommError(
            f"cannot write {folder / SUMMARY}: {error.strerror or error}; the samples are "
            f"safe: kvcomm eval report {folder}"
        ) from None


def evaluations(folder: Path) -> list[Path]:
    """The folders of evaluations in `folder`: itself, or those one level below, in their order."""
    if (folder / CONFIG).exists():
        return [folder]
    below = [path.parent for path in folder.glob(f"*/{CONFIG}")]
    return sorted(below, key=lambda path: (len(path.name), path.name)) or [folder]


def read_config(folder: Path) -> Config:
    """The configuration of an output folder. Raises `UsageError` for a folder without one."""
    path = folder / CONFIG
    try:
        return Config.model_validate_json(path.read_text(encoding="utf-8-sig"))
    except OSError:
        raise UsageError(f"{folder} holds no evaluation: there is no {CONFIG}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is damaged: {_first(error)}") from None


def _first(error: ValidationError | UnicodeDecodeError) -> str:
    """What is wrong first, and in which field."""
    if isinstance(error, UnicodeDecodeError):
        return str(error)
    found = error.errors(include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, found["loc"])), found["msg"]]))


def read_samples(path: Path, *, mend: bool = False) -> list[Sample]:
    """The samples of a log. A last line that was cut off is left out, and with `mend` removed.

    Raises `UsageError` for any other line that is no sample.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if mend and len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    samples: dict[Key, Sample] = {}
    for number, line in enumerate(whole.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            sample = Sample.model_validate_json(line.removeprefix(BOM_UTF8))
        except ValidationError as error:
            raise UsageError(f"{path}, line {number} is no sample: {_first(error)}") from None
        samples[sample.key] = sample  # again, once its audits are known
    return list(samples.values())
