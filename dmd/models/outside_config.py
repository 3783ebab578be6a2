"""Which keys of configurations of diffusers, transformers and peft are used here, and which values are refused.

A key that this package passed over might change what the numbers of a model mean. So each key is used, or is known to
change nothing, or has to hold the library's default. All readers of such configurations call `check`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmd import torchvision_operators

ZERO_SNR = "rescale_betas_zero_snr"  # field of a scheduler: no signal at the last timestep


@dataclass(frozen=True)
class Fields:
    """The keys of one kind of configuration. A key that is neither used nor harmless has to hold a default.

    Attributes:
        used: the library or this package computes with it.
        harmless: it changes no number that is computed here.
        allowed: values by key that mean the same as the library's default.
        libraries: where the defaults are: classes of diffusers, transformers or peft; those of the last one count.
    """

    used: frozenset[str]
    harmless: frozenset[str] = frozenset()
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()


def _words(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in text.split())


_EMA = _words("decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup")  # of EMAModel
_BLOCKS = "sample_size in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block"
_UNET = f"""{_BLOCKS} center_input_sample flip_sin_to_cos freq_shift mid_block_type downsample_padding
    mid_block_scale_factor dropout act_fn attention_head_dim norm_num_groups norm_eps resnet_time_scale_shift
    time_embedding_dim"""
_GENERATION = _words(  # written into every configuration by older transformers; of models that generate text
    """max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sep_token_id
    decoder_start_token_id tokenizer_class prefix use_cache"""
)
_TRANSFORMERS = _GENERATION | _words(
    "transformers_version architectures output_hidden_states output_attentions return_dict torchscript",  # forms
    "dtype torch_dtype use_bfloat16 tf_legacy_loss attn_implementation",  # precision: all is float32 here
    "id2label label2id num_labels problem_type finetuning_task task_specific_params",  # of classifiers
    "initializer_range initializer_factor logit_scale_init_value",  # the weights come from a file
    "dropout attention_dropout gradient_checkpointing tie_word_embeddings tie_encoder_decoder",  # of training
    "auto_map",  # code, which is never run
)
_NO_DECODER: dict[str, tuple[Any, ...]] = {
    **{key: (False,) for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder", "use_attention_mask")},
    "pruned_heads": ({},),
}
_TOWER = """hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps projection_dim
    model_type"""
_SCHEDULERS = (
    *("LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DEISMultistepScheduler", "LCMScheduler"),
    *("UniPCMultistepScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
    *("PNDMScheduler", "DDPMScheduler", "DDIMScheduler"),
)

KINDS: dict[str, Fields] = {
    "UNet2DModel": Fields(
        _words(
            _UNET,
            "downsample_type upsample_type attn_norm_num_groups add_attention num_class_embeds num_train_timesteps",
        ),
        _EMA,
        libraries=("UNet2DModel",),
    ),
    "UNet2DConditionModel": Fields(
        _words(
            _UNET,
            """only_cross_attention cross_attention_dim transformer_layers_per_block num_attention_heads
            reverse_transformer_layers_per_block use_linear_projection upcast_attention resnet_skip_time_act
            resnet_out_scale_factor time_embedding_act_fn timestep_post_act conv_in_kernel conv_out_kernel
            mid_block_only_cross_attention cross_attention_norm""",
        ),
        _EMA,
        libraries=("UNet2DConditionModel",),
    ),
    "SD3Transformer2DModel": Fields(
        _words(
            """sample_size patch_size in_channels num_layers attention_head_dim num_attention_heads
            joint_attention_dim caption_projection_dim pooled_projection_dim out_channels pos_embed_max_size
            dual_attention_layers qk_norm"""
        ),
        _EMA,
        libraries=("SD3Transformer2DModel",),
    ),
    "AutoencoderKL": Fields(
        _words(
            _BLOCKS,
            """act_fn latent_channels norm_num_groups scaling_factor use_quant_conv use_post_quant_conv
            mid_block_add_attention""",
        ),
        _EMA | _words("force_upcast"),  # of half precision
        {"shift_factor": (0,)},  # pipelines of Stable Diffusion would ignore another
        libraries=("AutoencoderKL",),
    ),
    "AutoencoderTiny": Fields(
        _words(
            """in_channels out_channels encoder_block_out_channels decoder_block_out_channels act_fn upsample_fn
            latent_channels num_encoder_blocks num_decoder_blocks scaling_factor"""
        ),
        # a copy of decoder_block_out_channels; of half precision; of latents saved as pictures
        _EMA | _words("block_out_channels force_upcast latent_magnitude latent_shift"),
        {"shift_factor": (0,)},
        libraries=("AutoencoderTiny",),
    ),
    "Scheduler": Fields(
        _words(  # noise levels, and what diffusers' schedulers read when they draw
            """num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type
            clip_sample clip_sample_range thresholding dynamic_thresholding_ratio sample_max_value timestep_spacing
            steps_offset set_alpha_to_one skip_prk_steps variance_type solver_order solver_type lower_order_final
            euler_at_final use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas final_sigmas_type
            lambda_min_clipped predict_x0 disable_corrector interpolation_type sigma_min sigma_max
            original_inference_steps timestep_scaling rescale_betas_zero_snr"""
        ),
        _words("algorithm_type", "tensor_format"),  # the solver's name decides; of releases before diffusers 0.3
        {"predict_epsilon": (True,)},  # an older name of prediction_type
        libraries=_SCHEDULERS,
    ),
    "FlowMatchEulerDiscreteScheduler": Fields(
        _words("shift shift_terminal stochastic_sampling"),
        # read only with use_dynamic_shifting
        _words("base_shift max_shift base_image_seq_len max_image_seq_len time_shift_type"),
        libraries=("FlowMatchEulerDiscreteScheduler",),
    ),
    "StableDiffusionPipeline": Fields(
        _words("unet vae text_encoder tokenizer scheduler"),
        # the checker replaces finished images; the others are for prompts that are images
        _words("safety_checker requires_safety_checker feature_extractor image_encoder"),
    ),
    "CLIPTextConfig": Fields(
        _words(_TOWER, "vocab_size max_position_embeddings pad_token_id bos_token_id eos_token_id"),
        _TRANSFORMERS,
        _NO_DECODER,
        libraries=("CLIPTextConfig",),
    ),
    "CLIPVisionConfig": Fields(
        _words(_TOWER, "image_size patch_size"),
        _TRANSFORMERS | _words("pad_token_id bos_token_id eos_token_id"),
        _NO_DECODER,
        libraries=("CLIPVisionConfig",),
    ),
    "CLIPConfig": Fields(
        _words("text_config vision_config text_config_dict vision_config_dict projection_dim model_type"),
        _TRANSFORMERS,
        _NO_DECODER,
        libraries=("CLIPConfig",),
    ),
    "CLIPImageProcessor": Fields(
        _words("size crop_size resample image_mean image_std"),
        # images are RGB, and square, so that nothing is left to crop
        _words(
            "do_convert_rgb do_center_crop default_to_square processor_class auto_map",
            "data_format input_data_format return_tensors device disable_grouping",
        ),
        {
            "image_processor_type": ("CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"),
            "feature_extractor_type": ("CLIPFeatureExtractor", "CLIPImageProcessor"),
            **{key: (False,) for key in ("do_pad", "use_square_size", "crop_to_bounding_box")},
        },
        libraries=("CLIPImageProcessor",),
    ),
    "CLIPTokenizer": Fields(  # transformers' CLIPTokenizer reads these from the files
        _words(
            """bos_token eos_token unk_token pad_token sep_token cls_token mask_token added_tokens_decoder
            additional_special_tokens extra_special_tokens model_max_length do_lower_case add_prefix_space"""
        ),
        _words(
            "name_or_path special_tokens_map_file tokenizer_file processor_class auto_map chat_template backend",
            "errors clean_up_tokenization_spaces is_local local_files_only",  # of decoding; of the last reader
            "max_length stride truncation_strategy pad_to_multiple_of pad_token_type_id model_input_names",  # of a call
        ),
        {
            "tokenizer_class": ("CLIPTokenizer", "CLIPTokenizerFast"),
            **{key: ("right",) for key in ("padding_side", "truncation_side")},
            "split_special_tokens": (False,),
            "init_inputs": ([],),
        },
    ),
    "LoraConfig": Fields(
        _words(
            """r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules layers_to_transform
            layers_pattern"""
        ),
        _words(
            "lora_dropout inference_mode task_type auto_mapping",  # of training
            "base_model_name_or_path revision peft_version megatron_core megatron_config qalora_group_size",
        ),
        {"peft_type": ("LORA",), "init_lora_weights": (False, "gaussian", "orthogonal")},  # the others change the base
        libraries=("LoraConfig",),
    ),
}


def check(where: Path | str, config: Mapping[str, Any], kind: str) -> None:
    """Checks each key of a configuration of another library.

    A null means that nothing is set; keys that begin with an underscore are notes of the library.

    Args:
        where: the file, for messages.
        kind: one of `KINDS`.

    Raises:
        ValueError: a key that is not used here has another value than the library's default.
    """
    fields = KINDS[kind]
    if config.get("_use_default_values"):
        raise ValueError(
            f"{where}: _use_default_values {_cut(config['_use_default_values'])} is not supported: remove it"
        )
    for key, value in config.items():
        if value is None or key[:1] == "_" or key in fields.used | fields.harmless:
            continue
        allowed = [*_defaults(fields).get(key, ()), *fields.allowed.get(key, ())]
        if not any(_plain(value) == _plain(each) for each in allowed):
            only = f"only {' or '.join(map(_cut, allowed))} is" if allowed else "the key is unknown"
            raise ValueError(
                f"{where}: {key[:80]} {_cut(value)} is not supported: {only}. It may change what the model computes; "
                "remove it only if it does not"
            )


def arguments(where: Path | str, config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The checked keys of a configuration that diffusers' class `kind` takes.

    Raises:
        ValueError: as `check`.
    """
    check(where, config, kind)
    return {key: value for key, value in config.items() if key in _defaults(KINDS[kind])}


def _defaults(fields: Fields) -> dict[str, tuple[Any, ...]]:
    """Keys of the library's classes, each with a tuple of its default, empty for an argument without one."""
    found: dict[str, tuple[Any, ...]] = {}
    for name in fields.libraries:
        found |= library_defaults(name)
    return found


@functools.cache
def library_defaults(name: str) -> dict[str, tuple[Any, ...]]:
    """The keys of the configuration of a class of diffusers, transformers or peft, each with a tuple of its default."""
    torchvision_operators.ensure()
    if name == "LoraConfig":
        import peft

        return {key: (value,) for key, value in peft.LoraConfig().to_dict().items()}
    if name.startswith("CLIP"):
        import transformers

        return {key: (value,) for key, value in getattr(transformers, name)().to_dict().items()}
    import diffusers

    parameters = list(inspect.signature(getattr(diffusers, name).__init__).parameters.values())[1:]
    return {each.name: () if each.default is each.empty else (each.default,) for each in parameters}


def _plain(value: Any) -> Any:
    """A value as JSON would give it back."""
    if isinstance(value, (list, tuple, set)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return getattr(value, "value", value)  # of an enum


def _cut(value: Any) -> str:
    text = repr(_plain(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
