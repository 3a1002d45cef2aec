"""Configs that cannot be trained are refused when they are read, before any data is."""

from __future__ import annotations

import pytest
from places import ROOT

from klassify.errors import KlassifyError
from klassify.models.frontends.filterbank import FilterbankFrontEnd
from klassify.models.w2v_aasist import AASIST
from klassify.systems.experiment import load_experiment

CONF = ROOT / "recipes/klassify/conf/demo"


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.epochs=[", "The value of train.epochs is not readable YAML"),
        ("train.lr=2001-13-45", "The value of train.lr is not readable YAML"),
        ("train.lr=2001-12-13", "train.lr"),
        ("train.epochs", "not written key=value"),
        ("=3", "not written key=value"),
        ("train.lr=-1", "lr is 0 or more, not -1"),
        ("train.lr=.nan", "lr is 0 or more, not nan"),
        ("train.lr=.inf", "lr is 0 or more, not inf"),
        ("train.step_epochs=0", "step_epochs is at least 1"),
        ("train.clip_norm=-1", "clip_norm is 0 or more"),
        ("data.init_args.window=0", "window is at least 1"),
        ("data.init_args.stride=0", "stride between 1 and window"),
        ("data.init_args.stride=1000", "stride between 1 and window, not 256 and 1000"),
        ("model.init_args.hidden=0", "hidden is at least 2, not 0"),
        ("model.init_args.hidden=-1", "hidden is at least 2, not -1"),
        ("model.init_args.dilations=[0]", "dilations is one or more of at least 1"),
        ("model.init_args.dilations=[]", "dilations is one or more of at least 1"),
        ("model.init_args.dropout=2", "dropout is between 0 and 1"),
        ("model.init_args.pos_weight=-1", "pos_weight is 0 or more"),
        (
            "model.init_args.in_channels=15",
            "16 channels, features and their differences, and the model in_channels=15",
        ),
        ("model.init_args.augment.init_args.swap=1.5", "swap is between 0 and 1"),
        ("model.init_args.augment.init_args.noise_std=-1", "noise_std is 0 or more"),
        (
            "model.init_args.augment.init_args.span_frames=[8,4]",
            "span_frames must be (shortest, longest)",
        ),
        ("data.init_args.groups=[1]", "and the model in_channels=16"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(override, message):
    with pytest.raises(KlassifyError) as caught:
        load_experiment(CONF / "tcn.yaml", [override])
    assert message in caught.value.what


@pytest.mark.parametrize(
    "config, override, message",
    [
        ("bam.yaml", "model.init_args.local_channels=0", "local_channels is at least 1"),
        ("bam.yaml", "model.init_args.resolution_s=-0.04", "resolution_s is 0 or more"),
        ("bam.yaml", "data.init_args.stride=128000", "stride between 1 and window"),
        ("tcn_tags.yaml", "model.init_args.tag_hidden=0", "tag_hidden is at least 1"),
        (
            "tcn_tags.yaml",
            "model.init_args.tag_weights=[1,1]",
            "tag_weights needs 4 weights, not 2",
        ),
    ],
)
def test_so_are_those_of_the_localisers(config, override, message):
    with pytest.raises(KlassifyError) as caught:
        load_experiment(CONF / config, [override])
    assert message in caught.value.what


@pytest.mark.parametrize(
    "override, message, fix",
    [
        ("train.epoch=3", "Group 'train' does not accept option 'epoch'", "did you mean epochs?"),
        (
            "model.init_args.hiden=16",
            "'klassify.models.tcn.TCN': Option 'hiden' is not accepted",
            "did you mean hidden?",
        ),
        (
            "model.init_args.hidden=many",
            "'klassify.models.tcn.TCN': Parser key \"hidden\": Expected a int. Got value: many",
            None,
        ),
        (
            "data.class_path=klassify.data.nope.X",
            "'klassify.data.nope.X': module 'klassify.data' has no attribute 'nope'",
            None,
        ),
    ],
)
def test_a_wrong_key_is_named_without_a_list_of_types(override, message, fix):
    with pytest.raises(KlassifyError) as caught:
        load_experiment(CONF / "tcn.yaml", [override])
    assert (caught.value.what, caught.value.fix) == (f"The config is not valid: {message}", fix)


def test_an_error_of_torch_about_a_size_has_no_traceback():
    with pytest.raises(KlassifyError, match="The config is not valid"):
        load_experiment(CONF / "tcn.yaml", [f"model.init_args.hidden={2**60}"])


@pytest.mark.parametrize("sizes", [{"kernels": (2,)}, {"bands": 1}, {"bands": 4096}, {"width": 0}])
def test_a_filterbank_that_cannot_be_is_refused(sizes):
    with pytest.raises(ValueError, match="kernels|bands|width"):
        FilterbankFrontEnd(**sizes)


def test_an_aasist_needs_nodes():
    with pytest.raises(ValueError, match="bands is at least 3"):
        AASIST(bands=2)
