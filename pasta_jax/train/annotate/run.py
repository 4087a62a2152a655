"""A run of an annotator over a file: rows side by side, a journal, an account, and the output in order."""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pasta_jax.decode.journal import Journal, json_line, open_journal
from pasta_jax.lang.document import Sync
from pasta_jax.train.annotate.account import Account
from pasta_jax.train.annotate.annotator import Annotation, Annotator, Rejection, Usage, charged
from pasta_jax.train.annotate.chat import ChatClient, ChatOptions, EndpointError, RowFailed
from pasta_jax.train.annotate.llm import LlmAnnotator
from pasta_jax.train.annotate.rows import Keys, PairRow, read_pairs
from pasta_jax.train.annotate.rules import RuleOptions, RulesAnnotator

ANNOTATORS = ("rules", "llm")
_PROGRESS_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """What the flags of `train.annotate` say; see their help."""

  annotator: str
  input: str
  output: str
  keys: Keys = dataclasses.field(default_factory=Keys)
  rules: RuleOptions = dataclasses.field(default_factory=RuleOptions)
  chat: ChatOptions | None = None
  asks: int = 2
  max_reply_tokens: int = 0
  concurrency: int = 8
  max_failures: int = 10
  give_up: bool = False
  resume: bool = False
  rejected: str = ""
  report: str = ""
  prices: tuple[float, float] | None = None

  def __post_init__(self):
    if self.annotator not in ANNOTATORS:
      raise ValueError(f"--annotator must be one of {', '.join(ANNOTATORS)}, got {self.annotator!r}")
    if self.annotator == "llm" and self.chat is None:
      raise ValueError("--annotator=llm needs the options of an endpoint")
    for flag, path in (("--rejected", self.rejected), ("--report", self.report), ("--output", self.output)):
      if path and not pathlib.Path(path).absolute().parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no such folder")

  @property
  def depends_on(self) -> dict[str, Any]:
    """What the rows depend on: an interrupted run goes on with the same only."""
    found: dict[str, Any] = {"annotator": self.annotator, "keys": list(dataclasses.astuple(self.keys))}
    with open(self.input, "rb") as f:
      found["input"] = hashlib.file_digest(f, "sha256").hexdigest()
    if self.chat is None or self.annotator == "rules":
      return found | {"rules": dataclasses.asdict(self.rules)}
    chat = {name: getattr(self.chat, name) for name in ("model", "provider", "base_url", "temperature")}
    asked = {"asks": self.asks, "max_reply_tokens": self.max_reply_tokens}
    return found | chat | asked | {"extra": dict(self.chat.extra)}


def run(options: RunOptions) -> Account:
  """Does what the flags ask for; the account goes to stderr.

  Raises:
    ValueError, OSError: with one line for the user. Finished rows are kept in the journal.
  """
  rows = read_pairs(options.input, options.keys)
  journal = open_journal(options.output, options.depends_on, options.resume)
  account = Account(rows=len(rows), prices=options.prices)
  kept = f"finished rows are kept in {journal.partial}"
  try:
    _report_bad_rows(rows, journal)
    failed = asyncio.run(_annotate(options, rows, journal, account))
    if failed and options.give_up:
      for row, failure in failed:
        rejection = Rejection("unanswered", f"{failure.kind}: {failure}", _spent(journal, row))
        journal.add(row.line, _rejected(row, rejection))
      failed = []
      account.failures.clear()
  except KeyboardInterrupt as e:
    done = sum(_finished(journal, row) for row in rows)
    e.args = (f"{done} of {len(rows)} rows are kept in {journal.partial}; go on with --resume",)
    raise
  except EndpointError as e:
    raise EndpointError(f"{e}; {kept}, go on with --resume") from None
  except OSError as e:
    raise OSError(f"{e}; {kept}, go on with --resume") from e
  finally:
    journal.close()
    account.add(journal.rows.values())
    for line in account.lines():
      print(line, file=sys.stderr)
  if failed:
    kinds = collections.Counter(f.kind for _, f in failed)
    says = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    raise EndpointError(
      f"{len(failed)} of {len(rows)} rows have no verdict ({says}); {kept}: go on with --resume, or add"
      " --give_up to write the output without them"
    )
  _write(options, journal, account)
  return account


def _report_bad_rows(rows: list[PairRow], journal: Journal) -> None:
  for row in rows:
    if row.error:
      print(row.error, file=sys.stderr)
      if not _finished(journal, row):
        journal.add(row.line, _rejected(row, Rejection("bad_row", row.error)))


async def _annotate(
  options: RunOptions, rows: list[PairRow], journal: Journal, account: Account
) -> list[tuple[PairRow, RowFailed]]:
  left = [r for r in rows if not _finished(journal, r)]
  failed: dict[int, tuple[PairRow, RowFailed]] = {}
  async with _annotator(options, account) as annotator:
    await annotate_rows(annotator, left, journal, failed, options.concurrency, options.max_failures)
  account.failures.update(f.kind for _, f in failed.values())
  return list(failed.values())


@contextlib.asynccontextmanager
async def _annotator(options: RunOptions, account: Account) -> AsyncIterator[Annotator]:
  if options.annotator == "rules":
    yield RulesAnnotator(options.rules)
    return
  assert options.chat is not None
  async with ChatClient(options.chat) as client:
    client.retries = account.retries
    yield LlmAnnotator(client, options.asks, options.max_reply_tokens)


async def annotate_rows(
  annotator: Annotator,
  rows: list[PairRow],
  journal: Journal,
  failed: dict[int, tuple[PairRow, RowFailed]],
  concurrency: int,
  max_failures: int,
) -> None:
  """Annotates rows, `concurrency` at a time; each goes into the journal when it is done.

  Args:
    failed: by line; gets the rows that have no verdict.
    max_failures: rows in a row without a usable reply that end the run.

  Raises:
    EndpointError: no row will succeed.
  """
  queue: Iterator[PairRow] = iter(rows)
  in_a_row = 0
  done = 0
  told = time.monotonic()

  async def work() -> None:
    nonlocal in_a_row, done, told
    for row in queue:
      last = ""
      try:
        result = await annotator.annotate(row.prompt, row.answer)
      except BaseException as e:
        if spent := charged(e):
          journal.add(row.line, {"usage": dataclasses.astuple(_spent(journal, row) + spent)})
        if not isinstance(e, RowFailed):
          raise
        failed[row.line] = (row, e)
        last = f"{e.kind}: {e}"
      else:
        result = dataclasses.replace(result, usage=_spent(journal, row) + result.usage)
        journal.add(row.line, _entry(row, result, annotator.name))
        if isinstance(result, Rejection) and result.reason == "bad_request":
          last = f"{result.reason}: {result.detail}"
      in_a_row = in_a_row + 1 if last else 0
      if in_a_row >= max_failures:
        raise EndpointError(f"{in_a_row} rows in a row got no usable reply, the last one {last}")
      done += 1
      if time.monotonic() - told > _PROGRESS_SECONDS:
        told = time.monotonic()
        print(f"[{done} of {len(rows)} rows, {len(failed)} without a verdict]", file=sys.stderr)

  asyncio.get_running_loop().set_exception_handler(_unless_stopped)
  try:
    async with asyncio.TaskGroup() as group:
      for _ in range(min(concurrency, len(rows))):
        group.create_task(work())
  except BaseExceptionGroup as e:
    raise e.exceptions[0] from None


def _unless_stopped(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
  """Reports what went wrong in a task, but for the signal that stopped the run: it is told in one line."""
  if not isinstance(context.get("exception"), KeyboardInterrupt):
    loop.default_exception_handler(context)


def _finished(journal: Journal, row: PairRow) -> bool:
  """Whether the journal has the row's verdict; without one it may have what the row took so far."""
  return "output" in journal.rows.get(row.line, {})


def _spent(journal: Journal, row: PairRow) -> Usage:
  """What earlier tries of a row took, also of an interrupted run."""
  return Usage(*journal.rows.get(row.line, {"usage": ()})["usage"])


def _entry(row: PairRow, result: Annotation | Rejection, name: str) -> dict[str, Any]:
  """A journal row."""
  if isinstance(result, Rejection):
    return _rejected(row, result)
  document = result.document
  output = {**row.carried, "document": document.annotated, "annotator": name}
  if result.repairs:
    output["repairs"] = list(result.repairs)
  return {
    "output": output,
    "chunks": len(document.chunks),
    "rounds": len(document.rounds),
    "syncs": sum(isinstance(p, Sync) for p in document.parts),
    "repairs": list(result.repairs),
    "usage": dataclasses.astuple(result.usage),
  }


def _rejected(row: PairRow, rejection: Rejection) -> dict[str, Any]:
  output = {**row.carried, "line": row.line, "reason": rejection.reason, "detail": rejection.detail}
  if row.answer:
    output["answer"] = row.answer
  return {"output": output, "reason": rejection.reason, "usage": dataclasses.astuple(rejection.usage)}


def _write(options: RunOptions, journal: Journal, account: Account) -> None:
  entries = dict(journal.rows)
  rejected = [entries[n]["output"] for n in sorted(entries) if "reason" in entries[n]]
  if options.rejected:
    _replace(options.rejected, "".join(map(json_line, rejected)))
  if options.report:
    _replace(options.report, json.dumps(account.as_dict(), indent=2) + "\n")
  journal.rows.clear()
  journal.rows.update({n: e["output"] for n, e in entries.items() if "reason" not in e})
  journal.finish()


def _replace(path: str, text: str) -> None:
  """Writes a file beside its place, then renames it."""
  beside = pathlib.Path(path + ".writing")
  try:
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
  finally:
    beside.unlink(missing_ok=True)


def parse_prices(values: list[str] | None) -> tuple[float, float] | None:
  """`--prices`."""
  if values is None:
    return None
  try:
    given, produced = (float(v) for v in values)
  except ValueError:
    raise ValueError("--prices takes two numbers, e.g. 0.15,0.60") from None
  return given, produced


def parse_extra(text: str) -> dict[str, Any]:
  """`--extra`."""
  try:
    value = json.loads(text)
  except ValueError as e:
    raise ValueError(f"--extra is not JSON: {e}") from None
  if not isinstance(value, dict):
    raise ValueError('--extra takes a JSON object, e.g. {"seed": 1}')
  return value
