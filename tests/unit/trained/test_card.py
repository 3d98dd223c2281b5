"""The model card of an export: what the run records, what nobody knows, and nothing that breaks the page."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from kappaspeech.artefacts import write_json
from kappaspeech.redaction import redact
from kappaspeech.runs.best import mark_best
from kappaspeech.runs.folder import RunFolder
from kappaspeech.trained.card import make_card
from tests.made_runs import NUM_STEPS, TENSORS, make_run

SELECTED = list(TENSORS)[:3]


def make(folder, *, arm="smallest κ", step=NUM_STEPS, **options):
    run = make_run(folder, arm, seed=1, error_rate=0.2, forgetting=0.5, selected=SELECTED, **options)
    state = {"schema_version": 1, "step": step, "train_seconds": 1.0}
    (run / f"checkpoints/step-{step:06d}").mkdir(parents=True)
    write_json(run / f"checkpoints/step-{step:06d}/state.json", state)
    return run


def change_config(run, **model):
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["model"] |= model
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("cards") / "kappa")


def test_the_hub_reads_its_data(run):
    card = ModelCard(make_card(run, name="kappa"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "automatic-speech-recognition")
    assert card.data.language == ["de", "en"]
    evaluation = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    reports = evaluation["wer"]["languages"]
    found = {result.dataset_config: result.metric_value for result in card.data.eval_results}
    assert found == {language: round(100 * reports[language]["wer"], 3) for language in ("de", "en")}
    # the licence is for a person to choose
    assert card.data.license is None


def test_a_language_that_an_old_index_names_by_a_longer_code_is_named_once(tmp_path):
    run = make(tmp_path / "old")
    records = run / "evaluations.jsonl"
    records.write_text(records.read_text().replace('"de":', '"deu":'))
    assert ModelCard(make_card(run, name="old")).data.language == ["de", "en"]


def test_it_says_what_the_run_recorded(run):
    text = make_card(run, name="kappa")
    assert all(f"- `{name}`, κ " in text for name in SELECTED)
    assert '"3 tensors" 3 tensors of the LLM' in text
    report = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["wer"]["languages"]["en"]
    low, high = report["interval"]
    assert f"| `en` | {report['wer']:.2%} | {low:.2%} to {high:.2%} |" in text
    assert "| `de` | 90.00 | 135.00 | 0.405 | 100 |" in text
    assert "Seed 1;" in text
    assert "train/*.tar" in text
    assert "  llm: models/a-small-llm" in text
    assert "was the run's best" not in text


def test_it_says_what_is_not_known(run, tmp_path):
    text = make_card(run, name="kappa")
    assert "| speech encoder | `models/whisper-base.pt` | not known |" in text
    assert "No licence has been chosen" in text
    early = make(tmp_path / "early", step=5)
    assert "the run has no evaluation at step 5" in make_card(early, name="early", step=5)
    # a difference has no record of its run
    other = make_card(tmp_path, name="other")
    assert "holds no record of its run" in other
    assert ModelCard(other).data.eval_results is None


def test_a_checkpoint_that_was_chosen_by_its_wer_says_so(tmp_path):
    run = make(tmp_path / "run")
    mark_best(RunFolder(run).checkpoints, step=NUM_STEPS, mean_wer=0.1)
    assert "was the run's best by its WER on this very test set" in make_card(run, name="run", step="best")


def test_licences_are_those_that_the_bases_name(tmp_path):
    run = make(tmp_path / "run")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    change_config(run, encoder="base")
    text = make_card(run, name="run", base=str(tmp_path / "base"))
    assert "| LLM | `…/base` | `apache-2.0` |" in text
    assert "| speech encoder | `base` | MIT |" in text
    assert str(tmp_path) not in text


def test_a_name_of_the_hub_is_the_base_model(tmp_path):
    run = make(tmp_path / "run")
    change_config(run, llm="someone/an-llm")
    assert ModelCard(make_card(run, name="run")).data.base_model == "someone/an-llm"
    assert ModelCard(make_card(run, name="run", base=str(tmp_path))).data.base_model is None


def test_no_secret_of_a_url_is_in_it(tmp_path):
    run = make(tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    urls = {f"data.{kind}.0.shards": f"https://me:word@host.example/{kind}.tar?signature=abc" for kind in ("train", "test")}
    for kind in ("train", "test"):
        content["data"][kind][0]["shards"] = redact(urls[f"data.{kind}.0.shards"])
    (run / "config.json").write_text(json.dumps(content))
    (run / "secrets.json").write_text(json.dumps(urls))
    assert RunFolder(run).read_config().data.test[0].shards.endswith("signature=abc")
    text = make_card(run, name="run")
    assert "host.example/test.tar" in ModelCard(text).data.eval_results[0].dataset_name
    assert "me:word" not in text
    assert "signature=abc" not in text


def test_names_can_not_break_the_page(tmp_path):
    run = make(tmp_path / "run", arm="smallest")
    change_config(run, instruction="{audio}\n```\n<script>alert(1)</script>\n", llm="a`|b\n# heading")
    text = make_card(run, name="x](http://evil)<b>")
    assert "\n# heading" not in text
    assert "# x\\]\\(http://evil\\)\\<b\\>" in text
    fence = next(line for line in text.splitlines() if line.endswith("`yaml"))
    assert fence == "````yaml"
    assert ModelCard(text).data.model_name == "x](http://evil)<b>"


def test_each_test_set_has_its_rates(tmp_path):
    run = make(tmp_path / "kappa")
    path = run / "evaluations.jsonl"
    *before, last = [json.loads(line) for line in path.read_text().splitlines()]
    english = last["wer"]["languages"]["en"]
    sets = {
        name: {"mean_wer": rate, "languages": {"en": {**english, "wer": rate}}}
        for name, rate in (("near|by", 0.125), ("far", None))
    }
    last["wer"]["sets"] = sets
    path.write_text("".join(json.dumps(record) + "\n" for record in (*before, last)))
    rows = [line for line in make_card(run, name="kappa").splitlines() if line.startswith("| `en") and "%" in line]
    assert [row.split("` | ")[1].split(" |")[0] for row in rows] == [f"{english['wer']:.2%}", "12.50%"]
    assert "near" in rows[1]


def test_it_says_that_the_weights_are_a_moving_average(run, tmp_path):
    assert "moving average" not in make_card(run, name="kappa")
    averaged = make(tmp_path / "averaged")
    content = json.loads((averaged / "config.json").read_text())
    content["training"]["ema_decay"] = 0.995
    (averaged / "config.json").write_text(json.dumps(content))
    # the configuration alone doesn't say which weights the checkpoint gives
    assert "moving average over the steps" not in make_card(averaged, name="averaged")
    (averaged / f"checkpoints/step-{NUM_STEPS:06d}/average.safetensors").touch()
    assert "The trained weights are an exponential moving average over the steps, of decay 0.995" in make_card(
        averaged, name="averaged"
    )
