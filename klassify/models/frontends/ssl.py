"""Front ends for the audio models: 16 kHz samples in, one vector per 20 ms out.

All follow the frame rule of wav2vec 2.0: frame t covers the samples [320 t, 320 t + 400), and N
samples give floor((N - 400) / 320) + 1 frames. For example, 64,600 samples (4.04 s) give 201.

Axes: B clips, N samples, T frames, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klassify.errors import KlassifyError, first_line
from klassify.models.devices import by_rows, by_time, frames_at_once, rows_at_once
from klassify.models.frontends.torchaudio_import import import_transformers
from klassify.models.weights.checkpoint import locate_weights
from klassify.models.weights.load import ImportReport, import_weights

SAMPLE_RATE = 16_000


class FrontEnd(nn.Module):
    """What an audio model expects: forward(wave (B, N)) -> (B, T, dim), and the frame rule."""

    dim: int
    hop_samples = 320
    receptive_field_samples = 400
    # whether overlapping windows can share `local_features`; see klassify.scores.shared_windows
    shares_frames = False

    def n_frames(self, n_samples: int) -> int:
        """Frames of `n_samples` samples; 0 if they are shorter than the receptive field."""
        return max((n_samples - self.receptive_field_samples) // self.hop_samples + 1, 0)

    def load_pretrained(self) -> ImportReport | None:
        """Load pretrained weights, if any. Called once, before a training starts."""
        return None

    def layers(self) -> list[list[nn.Parameter]]:
        """All parameters by depth, the first layers first; see TrainSettings.layer_decay."""
        return [list(self.parameters())]


def normalise_waveform(wave: Tensor) -> Tensor:
    """Zero mean and unit variance for each row of (B, N); silence stays zero."""
    return F.layer_norm(wave, wave.shape[-1:], eps=1e-5)


LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
# hub ids: facebook/wav2vec2-large-xlsr-53, facebook/wav2vec2-xls-r-300m,
# facebook/wav2vec2-large-robust, microsoft/wavlm-large
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "xlsr53": {"family": "wav2vec2", **LARGE},
    "xlsr300m": {"family": "wav2vec2", **LARGE},
    "large-robust": {"family": "wav2vec2", **LARGE},
    "wavlm-large": {"family": "wavlm", **LARGE, "conv_bias": False},
}
# the original trainings ran without these, but the configs on the hub switch them on
SWITCHED_OFF = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "feat_quantizer_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
FAMILIES = {"wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}  # names of transformers' classes


def _build(architecture: str | dict[str, Any], library: str = "transformers") -> nn.Module:
    """A model with random weights; every library's has the names and methods of transformers'."""
    if isinstance(architecture, dict):
        settings = LARGE | architecture
    elif architecture in ARCHITECTURES:
        settings = dict(ARCHITECTURES[architecture])
    else:
        raise KlassifyError(
            f"Unknown speech model architecture {architecture!r}.",
            fix=f"choose one of {', '.join(ARCHITECTURES)}",
        )
    family = settings.pop("family", "wav2vec2")
    if family not in FAMILIES:
        raise KlassifyError(
            f"Unknown speech model family {family!r}.", fix=f"choose {' or '.join(FAMILIES)}"
        )
    transformers = import_transformers()
    try:
        return _built(transformers, FAMILIES[family], settings, library)
    except (ImportError, KlassifyError):
        raise
    except Exception as error:  # the libraries raise many kinds for impossible sizes
        if isinstance(architecture, str):
            raise
        reason = first_line(error)
        raise KlassifyError(
            f"No speech model has these settings: {reason}.", where=architecture
        ) from None


def _built(transformers: Any, name: str, settings: dict[str, Any], library: str) -> nn.Module:
    built_config = getattr(transformers, f"{name}Config")(**settings, **SWITCHED_OFF)
    if library == "torchaudio":
        from klassify.models.frontends.ssl_torchaudio import TorchaudioSpeechModel

        return TorchaudioSpeechModel(built_config)
    if library == "fairseq2":
        from klassify.models.frontends.ssl_fairseq2 import Fairseq2SpeechModel

        return Fairseq2SpeechModel(built_config)
    return getattr(transformers, f"{name}Model")(built_config)


class SSLFrontEnd(FrontEnd):
    """A pretrained speech model, fine-tuned together with the back end.

    The constructor only builds the architecture, so that an evaluation never needs the pretrained
    file; `load_pretrained` reads `source` when a training starts. Until pretrained or trained
    weights are loaded, a front end that names a source refuses to run.

    Args:
        normalize_input: whether each waveform gets zero mean and unit variance first. It must fit
            the back end: no for the published Wav2Vec-AASIST, yes for BAM and PartialSpoof; the
            wrong setting silently harms a loaded checkpoint.
        architecture: a name in ARCHITECTURES, or settings of transformers' config that override
            the large model's, with `family` wav2vec2 or wavlm.
        source: pretrained weights: an original fairseq or WavLM file, a folder or file with
            transformers' weights, or a hub id. None starts from random weights.
        download: whether a hub id may be fetched from the network.
        freeze: nothing, the convolutional `extractor`, or `all` of the model.
        gradient_checkpointing: compute the forward pass twice in training, to save memory.
        library: which library builds the encoder. The state dict is the same, so that a system
            trained with one library can be scored with another.
        layer: the output: the `last` layer after the final norm, hidden state number `layer` (0 is
            the input of the first layer), or a learned `mix` of all hidden states (softmax weights,
            equal at first).
    """

    def __init__(
        self,
        normalize_input: bool,
        architecture: str | dict[str, Any] = "xlsr53",
        source: str | None = None,
        download: bool = False,
        freeze: Literal["none", "extractor", "all"] = "none",
        gradient_checkpointing: bool = False,
        library: Literal["transformers", "torchaudio", "fairseq2"] = "transformers",
        layer: int | Literal["last", "mix"] = "last",
    ):
        super().__init__()
        self.model = _build(architecture, library)
        self.normalize_input, self.source, self.download = normalize_input, source, download
        config = self.model.config
        self.dim = config.hidden_size
        self.hop_samples, self.receptive_field_samples = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride):
            self.receptive_field_samples += (kernel - 1) * self.hop_samples
            self.hop_samples *= stride
        self.frame_local = config.feat_extract_norm == "layer"  # group norm is over all frames
        self.shares_frames = self.frame_local and not normalize_input
        if freeze != "none":
            self.model.feature_extractor.requires_grad_(False)
            # transformers would otherwise compute gradients for the samples
            self.model.feature_extractor._requires_grad = False
        if freeze == "all":
            self.model.requires_grad_(False)
        if gradient_checkpointing:
            # renamed between transformers 4.57 and 5
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        n_states = config.num_hidden_layers + 1
        if isinstance(layer, int) and not 0 <= layer < n_states:
            raise ValueError(f"layer must be 0 to {n_states - 1}, 'last' or 'mix', not {layer}")
        self.layer = layer
        self.layer_weight = nn.Parameter(torch.zeros(n_states)) if layer == "mix" else None
        self._has_weights = source is None
        self.register_load_state_dict_post_hook(
            lambda module, _: setattr(module, "_has_weights", True)
        )

    def layers(self) -> list[list[nn.Parameter]]:
        """What comes before the transformer, its layers, and what comes after them."""
        inner = [list(layer.parameters()) for layer in self.model.encoder.layers]
        last = list(self.model.encoder.layer_norm.parameters())
        if self.layer_weight is not None:
            last.append(self.layer_weight)
        known = {id(parameter) for layer in (*inner, last) for parameter in layer}
        first = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [first, *inner, last]

    def load_pretrained(self) -> ImportReport | None:
        """Load `source`, whatever klassify.models.weights.checkpoint.locate_weights finds."""
        if self.source is None:
            return None
        report = import_weights(self.model, locate_weights(self.source, self.download))
        self._has_weights = True
        return report

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, T, dim), the output that `layer` names."""
        return self.context(self.local_features(wave))

    def local_features(self, wave: Tensor) -> Tensor:
        """The convolutional part, (B, N) -> (B, T, 512); without gradients, in short pieces.

        If `shares_frames`, a frame depends only on its own 400 samples, so that windows of a clip
        are slices of the clip's frames.
        """
        if not self._has_weights:
            raise KlassifyError(
                "The speech model still has random weights, though its settings name pretrained"
                " ones.",
                where=self.source,
                fix="call load_pretrained() before a training, or load the trained weights",
            )
        if self.normalize_input:
            wave = normalise_waveform(wave)
        return by_rows(self._extract, wave, rows_at_once(wave.device, self.n_frames(wave.shape[1])))

    def _extract(self, wave: Tensor) -> Tensor:
        def extractor(part: Tensor) -> Tensor:
            return self.model.feature_extractor(part).transpose(1, 2)

        if not self.frame_local:
            return extractor(wave)
        at_once = frames_at_once(wave.device)
        return by_time(extractor, wave, at_once, self.hop_samples, self.receptive_field_samples)

    def context(self, local: Tensor) -> Tensor:
        """The transformer part, (B, T, 512) -> (B, T, dim), the output that `layer` names."""
        return by_rows(self._context, local, rows_at_once(local.device, local.shape[1]))

    def _context(self, local: Tensor) -> Tensor:
        if self.layer == "last":
            return self._last(local)
        states = self._states(local)
        if self.layer_weight is None:
            return states[self.layer]
        weight = self.layer_weight.softmax(dim=0)
        return sum(share * state for share, state in zip(weight, states))

    def hidden_states(self, wave: Tensor) -> list[Tensor]:
        """The inputs of all transformer layers and the final, normed output, (B, T, dim) each."""
        return self._states(self.local_features(wave))

    def _last(self, local: Tensor) -> Tensor:
        projected, _ = self.model.feature_projection(local)
        return self.model.encoder(projected).last_hidden_state

    def _states(self, local: Tensor) -> list[Tensor]:
        return states_of(self.model.encoder.layers, lambda: self._last(local))


def states_of(layers: nn.ModuleList, run: Callable[[], Tensor]) -> list[Tensor]:
    """The first inputs of all layers while `run` runs, and what it returns."""
    # hooks, since transformers' own `hidden_states` ends before or after the final norm, depending
    # on the version
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        for layer in layers
    ]
    try:
        final = run()
    finally:
        for hook in hooks:
            hook.remove()
    return [*inputs, final]
