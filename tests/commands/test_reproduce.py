"""What a comparison refuses before its first run."""

import pytest
from hydra import initialize_config_dir

from conftest import ROOT
from lfvit.commands.reproduce import reproduce
from lfvit.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+runs.lf_vit.start=nobody", "runs.lf_vit.start='nobody' is no run; valid: lf_vit, vit"),
        ("+runs.other.evaluate=[]", "runs.other needs train, or start and evaluate"),
        ("+runs.vit.trian=[]", "runs.vit has no setting 'trian'"),
        ("+runs.vit.start=vit", "start from each other"),
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
