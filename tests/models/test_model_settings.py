"""Settings that are refused, each by its name, with what would be valid."""

import pytest

import lfvit
from conftest import TINY, run_python
from lfvit.errors import ConfigError
from lfvit.models.reducer_settings import REDUCER_SETTINGS
from lfvit.models.reducers import REDUCERS
from lfvit.models.selectors import SELECTORS
from lfvit.models.settings import LFViTSettings, check_model
from lfvit.models.two_pass import REUSE

LV = {**TINY, "family": "lv_vit"}
REFUSED = [
    ({"method": "lf-vit"}, r"method='lf-vit' is unknown; valid: 'vit', 'lf_vit', 'cf_vit' or 'dvt"),
    ({"method": "vit", "alpha": 0.5}, r"method\.alpha is no setting"),
    ({"alhpa": 0.5}, r"method\.alhpa is no setting; did you mean alpha\?"),
    ({"region_size": 9}, r"region_size=9 does not fit the 7 x 7 grid of image_size=112"),
    ({"region_size": 2.5}, r"method\.region_size=2.5 .* valid integer"),
    ({"alpha": 0}, r"method\.alpha=0 .* greater than 0"),
    ({"beta": 1.0}, r"method\.beta=1.0 .* less than 1"),
    ({"gca_start": 5}, r"gca_start=5 leaves no block to count; .* valid: 0 to 4"),
    ({"selector": "gnca"}, r"selector='gnca' is unknown; did you mean gca\?"),
    ({"background": "yes"}, r"background='yes' .* valid boolean"),
    ({"method": "vit", "image_size": 115}, r"image_size=115 does not divide .* such as 112 or 120"),
    ({"image_size": 120}, r"image_size=120 .*half resolution.* 112 or 128"),
    ({"backbone": "deit_small_patch16_224", "image_size": 225}, r"image_size=225 does not divide"),
    ({"num_classes": 0}, r"num_classes=0"),
    ({"method": "dvt", "grids": 7}, r"method.grids=7 .* a list, such as method.grids=\[7\]"),
    ({"backbone": 3}, r"backbone=3 must be a name, or a mapping with embed_dim"),
    ({"backbone": {"embed_dim": 24, "depth": 2}}, r"backbone\.num_heads is missing"),
    ({"backbone": {**TINY, "embed_dim": 25}}, r"num_heads=2 .* it must divide embed_dim=25"),
    ({"backbone": {**TINY, "dept": 2}}, r"backbone\.dept is no setting; did you mean depth\?"),
    ({"backbone": {"family": "cnn"}}, r"backbone\.family='cnn' is unknown; valid: vit, lv_vit"),
    ({"backbone": {**LV, "patch_size": 9}}, r"backbone\.patch_size=9 .* multiple of 2"),
    ({"reducer": 3}, r"reducer=3 must be a name, or a mapping"),
    ({"reducer": "evti"}, r"reducer\.name='evti' is unknown; did you mean evit\?"),
    ({"reducer": {"keep_rate": 0.5}}, r"there is no reducer; name one as well: a_vit, ats"),
    ({"reducer": {"name": "none", "r": 5}}, r"reducer\.r is set, but there is no reducer"),
    ({"reducer": {"name": "none", "passes": "second"}}, "reducer.passes is set, but there is no"),
    ({"reducer": {"name": "evit", "passes": "third"}}, r"reducer\.passes='third' is unknown"),
    ({"reducer": {"name": "evit", "r": 5}}, r"reducer\.r is no setting; valid: blocks, fuse_token"),
]
REFUSED_REDUCERS = [
    ("evit", "keep_rate", [0, 1.01, "0.7", None, True, float("nan")]),
    ("evit", "blocks", [4, [], [2, 2], [3, 2], [0], [1.5], [True]]),
    ("dynamic_vit", "ratio_weight", [-1]),
    ("frequency", "removed", [1, [0.1, 0.2, 2], "a"]),
    ("frequency", "windows", [0, [2, 3, 1], [1, 2, 1], None]),
    ("frequency", "w2_init", [float("inf")]),
    ("tome", "r", [-1, True, 2.5, None, "13", [1, -1]]),
    ("tome", "proportional", ["no"]),
]
TOO_DEEP = [
    ("evit", {"blocks": [1, 6]}, r"reducer\.blocks=\[1, 6\]: the backbone has 5 blocks"),
    ("tome", {"r": [1, 2]}, r"reducer\.r=.* needs one value per reducing block: 5"),
    ("frequency", {"removed": [0.1, 0.2]}, r"reducer\.removed=.* one value per reducing block: 3"),
    ("tofu", {"prune_blocks": 6}, r"prune_blocks=6: the backbone has 5 blocks; valid: 0 to 5"),
    ("a_vit", {"target_depth": 6}, r"target_depth=6: the backbone has 5 blocks; valid: 1 to 5"),
    ("frequency", {"blocks": [1]}, r"reducer\.windows=.* needs one value per reducing block: 1"),
]


def check(method="lf_vit", backbone=TINY, image_size=112, reducer=None, **given):
    common = {key: given.pop(key) for key in ("num_classes", "drop_path_rate") if key in given}
    common |= {"backbone": backbone, "image_size": image_size, "reducer": reducer}
    return check_model(method, options=given, **common)


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_wrong_settings_are_refused_by_name(given, message):
    with pytest.raises(ConfigError, match=message):
        check(**given)
    with pytest.raises(ConfigError, match=message):
        lfvit.create_model(**{"method": "lf_vit", "backbone": TINY, "image_size": 112, **given})


@pytest.mark.parametrize(("name", "setting", "values"), REFUSED_REDUCERS)
def test_wrong_settings_of_reducers_are_refused_by_name(name, setting, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"reducer\.{setting}(\.\d)?=.* is not valid"):
            check(reducer={"name": name, setting: value})


@pytest.mark.parametrize(("name", "options", "message"), TOO_DEEP)
def test_settings_of_reducers_that_do_not_fit_the_backbone(name, options, message):
    with pytest.raises(ConfigError, match=message):
        lfvit.create_model("vit", backbone=TINY, image_size=112, reducer={"name": name, **options})


@pytest.mark.parametrize("method", ["vit", "lf_vit"])
@pytest.mark.parametrize("nothing", [None, "none", {"name": "none"}])
def test_no_reducer_is_a_setting(method, nothing):
    check(method, reducer=nothing)


def test_names_are_those_of_the_registries():
    assert set(REUSE) == set(LFViTSettings.model_fields["reuse"].annotation.__args__)
    assert {
        name: cls.settings_type for name, cls in REDUCERS.items() if name in REDUCER_SETTINGS
    } == REDUCER_SETTINGS


def test_settings_are_checked_without_pytorch():
    code = (
        "import sys; from lfvit.models.registry import REDUCERS, SELECTORS; "
        "from lfvit.models.settings import check_model; "
        f"check_model('lf_vit', backbone={TINY}, image_size=112, reducer='evit', options={{}}); "
        "print(*SELECTORS, *REDUCERS); "
        "sys.exit('torch' in sys.modules)"
    )
    done = run_python("-c", code)
    assert done.stdout.split() == [*SELECTORS, *REDUCERS]
