"""What a comparison refuses before its first run."""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir

from conftest import NEEDLE_FAST, ROOT
from lfvit.commands.reproduce import reproduce
from lfvit.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+runs.lf_vit.start=nobody",
            "runs.lf_vit.start='nobody' trains no weights; valid: lf_vit, vit",
        ),
        ("+runs.other.evaluate=[]", "runs.other needs train, or start and evaluate"),
        ("+runs.vit.trian=[]", "runs.vit has no setting 'trian'"),
        ("+runs.vit.start=vit", "start from each other"),
        ("+runs={a:{start:vit},b:{start:a,train:[]}}", "start='a' trains no weights; valid: lf_v"),
        ('+runs.a={start:vit,evaluate:["reducer.keep_rate=7"]}', "there is no reducer; name one"),
        ('+runs.a={start:vit,evaluate:["reducer=evit","reducer.keep_rate=7"]}', "keep_rate=7 is"),
        ('overrides=["method.alpha=2"]', "alpha=2 is out of range"),
    ],
)
def test_reproduce_checks_every_run_before_the_first(composed, tmp_path, override, message):
    cfg = composed("reproduce", override, f"output_dir={tmp_path / 'out'}")
    with (
        pytest.raises(ConfigError, match=message),
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
    ):
        reproduce(cfg)
    assert not (tmp_path / "out").exists()


def test_what_started_from_a_repeated_run_is_repeated(tmp_path, capsys):
    fast = [o for o in NEEDLE_FAST if not o.startswith("trainer")]
    arguments = [
        "~runs.lf_vit",
        '+runs.tome={start:vit,evaluate:["reducer=tome"]}',
        '+runs.finer={start:vit,train:["method=vit","reducer=evit","schedule=finetune"]}',
        f"overrides={json.dumps([*fast, 'schedule.epochs=1', 'trainer.accelerator=cpu'])}",
        "speed_images=0",
        f"output_dir={tmp_path}",
    ]

    def again(*more):
        capsys.readouterr()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            reproduce(compose("reproduce", [*arguments, *more]))
        return capsys.readouterr().out

    assert again().count("trained in") == 2
    assert again().count("already done") == 3
    shutil.rmtree(tmp_path / "vit")
    assert again().count("already done") == 2  # it ended with the same weights
    shutil.rmtree(tmp_path / "vit")
    other = 'runs.vit.train=["method=vit","seed=1"]'
    repeated = again(other)
    assert repeated.count("trained in") == 2
    assert "tome is repeated" in repeated
    assert "finer is repeated" in repeated
    assert again(other).count("already done") == 3
