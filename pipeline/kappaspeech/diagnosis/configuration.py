"""A run's configuration against what is there: models, data, disk, ranks."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from kappaspeech.config.data_config import DatasetConfig
from kappaspeech.config.deepspeed_config import read_deepspeed_config
from kappaspeech.config.run_config import RunConfig
from kappaspeech.config.unheeded import find_unheeded
from kappaspeech.diagnosis.finding import Finding
from kappaspeech.errors import KappaSpeechError
from kappaspeech.evaluation.choice_items import Item, read_items
from kappaspeech.evaluation.forgetting import read_texts
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.outputs import explain
from kappaspeech.planning.known_models import hub_answers
from kappaspeech.planning.meta_model import build_meta_model
from kappaspeech.planning.planner import Planner
from kappaspeech.runs.contents import RECORD_FILE, STOP_FILE
from kappaspeech.runs.folder import RunFolder
from kappaspeech.runs.lease import look
from kappaspeech.speech.corpus import Corpus, make_datasets, make_read_options
from kappaspeech.speech.feature_cache import explain_small
from kappaspeech.speech.in_place import is_in_place
from kappaspeech.speech.overlap import find_overlap
from kappaspeech.speech.prompt import make_configured_prompt
from kappaspeech.speech.shards import expand, read_index
from kappaspeech.speech.source import ReadOptions, is_remote
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.table import MERGED_SUFFIX, read_merged
from kappaspeech.training.consolidating import read_consolidated
from kappaspeech.training.replay import read_replay

_PROBE_BYTES = 64 << 20
# Shards of a data set whose indices are read to compare training with test; each is a request if they are remote.
_MOST_SHARDS = 100
_MOST_REMOTE_SHARDS = 10
_RATES_MB = (1000, 500, 200, 100, 50)
# weights and two moments in float32
_CHECKPOINT_BYTES = 12
# where each scheme's credentials are looked for: (variables, files under the home folder)
_CREDENTIALS = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        (".aws/credentials", ".aws/config"),
    ),
    "gs": (("GOOGLE_APPLICATION_CREDENTIALS",), (".config/gcloud/application_default_credentials.json",)),
}


def check_configuration(config: RunConfig, *, world_size: int, environment: Mapping[str, str]) -> list[Finding]:
    """Check everything that `config` names. No weights are loaded; of shards the first is checked, and some transcripts are
    read.
    """
    findings = [check_ranks(config.batch.micro_batches_per_step, world_size), *check_hub(config.model.llm)]
    findings += _try("DeepSpeed JSON", lambda: _check_deepspeed(config))
    findings += [Finding(item.area, "warning", item.told, item.remedy) for item in find_unheeded(config)]
    findings += _try("tokenizer", lambda: _check_tokenizer(config))
    planners: list[Planner] = []
    findings += _try("models", lambda: _check_models(config, planners))
    read = make_read_options(config.data.read)
    for item in (*config.data.train, *config.data.test):
        findings += [*_check_credentials(item, environment), *_try("data", partial(_check_shards, item, read))]
    if config.data.test:
        findings += _try("data", lambda: _check_overlap(config, read))
    for path in config.data.text.values():
        findings += _try("data", partial(_check_text, Path(path)))
    for path in config.data.tasks.values():
        findings += _try("data", partial(_check_tasks, Path(path)))
    if planners and config.data.feature_cache_dir is not None:
        findings += _check_cache(config, planners[0])
    if config.replay is not None:
        findings += _try("data", lambda: _check_replay(config))
    if config.ewc is not None:
        findings += _try("data", lambda: _check_consolidated(config))
    needed_bytes = _needed_bytes(config, planners[0] if planners else None)
    findings += _try("disk", lambda: check_disk(Path(config.run_dir), needed_bytes=needed_bytes))
    return findings


def check_hub(llm: str) -> list[Finding]:
    """Check that the hub answers, for an LLM by its id. If not, its libraries stay offline: each would try for a minute."""
    if Path(llm).is_dir():
        return []
    if hub_answers():
        return [Finding("hub", "ok", f"it answers, and {llm} is looked for there")]
    constants.HF_HUB_OFFLINE = True
    remedy = "Copy the model to a folder and give it as model.llm, unless it is in the local cache."
    return [Finding("hub", "warning", f"it doesn't answer, so {llm} is looked for in the local cache alone", remedy)]


def _try(area: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Run a check; an error for users becomes its finding."""
    try:
        return check()
    except KappaSpeechError as error:
        # these messages end in their remedies
        return [Finding(area, "problem", str(error))]
    except OSError as error:
        return [Finding(area, "problem", explain(error)[0])]


def check_ranks(micro_batches: int, world_size: int) -> Finding:
    """Check that ranks have equally much to compute."""
    rounds = math.ceil(micro_batches / world_size)
    idle = rounds * world_size - micro_batches
    found = f"{micro_batches} micro-batches a step on {world_size} rank(s): {rounds} a rank"
    if not idle:
        return Finding("ranks", "ok", found)
    better = rounds * world_size
    remedy = f"Set batch.micro_batches_per_step to {better}, or use a number of ranks that divides {micro_batches}."
    return Finding("ranks", "warning", f"{found}, and {idle} of {better} passes are empty", remedy)


def _check_deepspeed(config: RunConfig) -> list[Finding]:
    content = read_deepspeed_config(Path(config.deepspeed))
    zero = content["zero_optimization"]
    findings = [Finding("DeepSpeed JSON", "ok", f"{config.deepspeed}: ZeRO-3")]
    offload = zero.get("offload_optimizer", {}).get("device", "none")
    if offload == "none":
        return findings
    # the engine's optimizer is torch's own AdamW, for which nothing is compiled
    if content.get("zero_force_ds_cpu_optimizer", True):
        found = "DeepSpeed refuses torch's AdamW beside offload_optimizer"
        remedy = f'Set "zero_force_ds_cpu_optimizer": false in {config.deepspeed}.'
        return [*findings, Finding("DeepSpeed JSON", "problem", found, remedy)]
    return [*findings, Finding("DeepSpeed JSON", "ok", f"offload to {offload}")]


def _check_tokenizer(config: RunConfig) -> list[Finding]:
    tokenizer = load_tokenizer(config.model.llm)
    prompt = make_configured_prompt(tokenizer, config)
    count = prompt.most_tokens(config.data.train, hot=config.data.most_hot_tokens)
    if not config.model.chat_template:
        return [Finding("tokenizer", "ok", f"plain text, {count} tokens around the audio")]
    if getattr(tokenizer, "chat_template", None):
        return [Finding("tokenizer", "ok", f"chat template, {count} tokens around the audio")]
    remedy = "Right for a base model; for a chat model put its chat_template.jinja beside the tokenizer."
    return [Finding("tokenizer", "warning", f"no chat template: the prompt is plain text of {count} tokens", remedy)]


def _check_models(config: RunConfig, planners: list[Planner]) -> list[Finding]:
    planners.append(Planner(config, modules=build_meta_model(config)))
    sizes = planners[0].sizes
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    found = f"LLM of {sizes.llm.num_parameters / 1e6:,.0f} M parameters, encoder of {sizes.num_encoder_parameters / 1e6:,.0f} M; "
    return [Finding("models", "ok", f"{found}{trained / 1e6:,.1f} M train, and the selection fits the model")]


def _check_shards(item: DatasetConfig, read: ReadOptions) -> list[Finding]:
    if item.shards.endswith(MERGED_SUFFIX) and not is_remote(item.shards):
        shards = [where for where, _ in read_merged(Path(item.shards).expanduser()).shards]
        open_source(shards[0], read).num_bytes()
        return [Finding("data", "ok", f"{item.shards}: {len(shards)} shard(s); the first is there")]
    if is_in_place(item.shards):
        (dataset,) = make_datasets([item])
        corpus = Corpus(dataset, read)
        hours, num_tars = float(corpus.lengths().seconds.sum()) / 3600, len(corpus.table.shards)
        return [Finding("data", "ok", f"{item.shards}: {corpus.num_samples} clips in {num_tars} tar(s), {hours:.2f} h")]
    shards = expand(item.shards, read)
    index = read_index(shards[0], read)
    hours = sum(sample.seconds for sample in index.samples) / 3600
    found = f"{item.shards}: {len(shards)} shard(s); the first has {len(index.samples)} clips, {hours:.2f} h, as it was indexed"
    return [Finding("data", "ok", found)]


def _check_overlap(config: RunConfig, read: ReadOptions) -> list[Finding]:
    """Check that no test data is in training."""

    def open_some(items: Sequence[DatasetConfig]) -> list[Corpus]:
        most = {item.shards: _MOST_REMOTE_SHARDS if is_remote(item.shards) else _MOST_SHARDS for item in items}
        return [Corpus(dataset, read, most_shards=most[dataset.shards]) for dataset in make_datasets(items)]

    train, test = open_some(config.data.train), open_some(config.data.test)
    overlap = find_overlap(train, test, read)
    if not overlap.found:
        looked = f"{overlap.num_looked_at} test sentences and {overlap.num_train_looked_at} of training were looked at"
        return [Finding("data", "ok", f"no recording or sentence is in both train and test; {looked}")]
    remedy = "Keep to the corpus's own splits (pack --split train, --split test), or take them out of data.train."
    return [Finding("data", "warning", overlap.found, remedy)]


def _check_text(path: Path) -> list[Finding]:
    """Check the text that an evaluation would read: a file of one text a line, or a folder of them."""
    return [Finding("data", "ok", f"data.text: {path} has {len(read_texts(path)):,} texts")]


def _check_tasks(path: Path) -> list[Finding]:
    """Check the questions that an evaluation would ask, and its instructions."""
    tasks = read_items(path)
    num_questions = sum(isinstance(task, Item) for task in tasks)
    counts = {"questions": num_questions, "instructions": len(tasks) - num_questions}
    found = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return [Finding("data", "ok", f"data.tasks: {path} has {found}")]


def _check_cache(config: RunConfig, planner: Planner) -> list[Finding]:
    """Check that the encoder states of the data find room, if the clips' lengths are known."""
    if planner.state_bytes is None:
        return []
    told = explain_small(int(config.data.feature_cache_gb * 2**30), planner.state_bytes)
    if told is None:
        return [Finding("data", "ok", f"the encoder states of data.train take {_say_size(planner.state_bytes)} of the cache")]
    remedy = f"Raise data.feature_cache_gb, if {config.data.feature_cache_dir} has room."
    return [Finding("data", "warning", told, remedy)]


def _check_replay(config: RunConfig) -> list[Finding]:
    """Check the text that steps would repeat beside their speech; an error if an evaluation measures it."""
    replay = read_replay(config, load_tokenizer(config.model.llm))
    assert replay is not None
    return [Finding("data", "ok", f"replay.texts: {len(replay.pieces):,} pieces of text, {replay.texts_per_step} in each step")]


def _check_consolidated(config: RunConfig) -> list[Finding]:
    """The text by which weights would be held; an error if an evaluation measures it."""
    pieces = read_consolidated(config, load_tokenizer(config.model.llm))
    return [Finding("data", "ok", f"ewc.texts: the Fisher is measured on {len(pieces):,} pieces of text")]


def _check_credentials(item: DatasetConfig, environment: Mapping[str, str]) -> list[Finding]:
    """Check that there are any, for shards in a bucket; never say which."""
    scheme = item.shards.partition("://")[0]
    if scheme not in _CREDENTIALS:
        return []
    variables, files = _CREDENTIALS[scheme]
    home = Path(environment.get("HOME", "/"))
    places = [name for name in variables if environment.get(name)] + [f"~/{name}" for name in files if (home / name).exists()]
    if places:
        return [Finding("credentials", "ok", f"for {scheme}://: {places[0]} is there")]
    remedy = f"Set {variables[0]}, or run where an instance role gives them; a public bucket needs none."
    return [Finding("credentials", "warning", f"none for {scheme}:// in the usual places", remedy)]


def _needed_bytes(config: RunConfig, planner: Planner | None) -> int | None:
    """The size of checkpoints: those that are kept, and the one being written; None for models that couldn't be read."""
    if planner is None:
        return None
    trained = planner.sizes.llm.num_trained + planner.sizes.num_adaptor_parameters
    return _CHECKPOINT_BYTES * trained * (config.training.keep_checkpoints + config.training.keep_best + 1)


def check_disk(run_dir: Path, *, needed_bytes: int | None) -> list[Finding]:
    """Check the free space of the run's folder, and how fast it is written; the nearest folder that is there is tried."""
    folder = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    space = _check_space(folder, free, needed_bytes)
    # hosts that share the folder may have processes of one number
    probe = folder / f".kappaspeech-doctor-{secrets.token_hex(8)}"
    try:
        began = time.monotonic()
        with probe.open("wb") as file:
            file.write(bytes(min(_PROBE_BYTES, free // 2)))
            file.flush()
            os.fsync(file.fileno())
        rate = min(_PROBE_BYTES, free // 2) / (time.monotonic() - began)
    except OSError as error:
        remedy = "Give a run_dir that you may write to."
        return [space, Finding("disk", "problem", f"{folder} can't be written: {error.strerror}", remedy)]
    finally:
        # on a read-only file system even a file that isn't there can't be removed
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    # a round number, so that hosts which are alike say the same
    known = next((step for step in _RATES_MB if rate >= step * 1e6), 0)
    if known:
        return [space, Finding("disk", "ok", f"{folder} is written at more than {known} MB/s")]
    speed = f"{folder} is written at {rate / 1e6:,.0f} MB/s"
    return [space, Finding("disk", "warning", speed, "Checkpoints will take long: save less often, or put run_dir elsewhere.")]


def _check_space(folder: Path, free: int, needed_bytes: int | None) -> Finding:
    found = f"{_say_size(free)} free in {folder}"
    if needed_bytes is None:
        remedy = "Mend what is said of the models, and ask again."
        return Finding("disk", "warning", f"{found}; how large checkpoints are isn't known without the models", remedy)
    found += f", checkpoints take {_say_size(needed_bytes)}"
    remedy = "Make room, lower training.keep_checkpoints, or put run_dir elsewhere."
    return Finding("disk", "ok", found) if free > needed_bytes else Finding("disk", "problem", found, remedy)


def _say_size(num_bytes: int) -> str:
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if num_bytes >= size / 10), ("kB", 1e3))
    return f"{num_bytes / size:.{0 if num_bytes >= 10 * size else 1}f} {unit}"


def resumes(config: RunConfig) -> list[Finding]:
    """Check for a run in the run's folder, which training would continue."""
    folder = RunFolder(Path(config.run_dir))
    if not (folder.path / RECORD_FILE).exists():
        return []
    return _try("run folder", lambda: [_describe_run(folder)])


def _describe_run(folder: RunFolder) -> Finding:
    record = folder.read_record()
    holder = look(folder.path)
    state = "gone" if holder is None else holder.state
    if holder is not None and state in ("running", "stopped"):
        remedy = f"Wait for that one, end it (touch {folder.path / STOP_FILE}), or give another run_dir."
        return Finding("run folder", "warning", f"{folder.path} has been trained in for {holder.age} by {holder}", remedy)
    if holder is not None and state == "unknown":
        found = f"{folder.path} is or was trained in by {holder}; whether it lives can't be seen from here"
        remedy = "Training waits for a sign of its life, and continues the run if there is none."
        return Finding("run folder", "warning", found, remedy)
    return Finding("run folder", "ok", f"{folder.path} holds a run that is {record['status']}: training continues it")
