"""The keys of the Azure ML job file, each with its knob in our spec.

Its hyperparameters come in three dialects, so several keys are the same knob.
"""

TASK_TYPES = {
    "nli": "nli",
    "conversation": "conversation",
    "nlu_qa": "qa",
    "math": "math",
    "summarization": "summarization",
}
# section of theirs -> its keys -> ours
SETTINGS = {
    "teacher_model_settings.inference_parameters": {
        "temperature": "generate.temperature",
        "max_tokens": "generate.max_tokens",
        "max_new_tokens": "generate.max_tokens",
        "top_p": "generate.top_p",
        "frequency_penalty": "generate.frequency_penalty",
        "presence_penalty": "generate.presence_penalty",
        "stop": "generate.stop",
    },
    "teacher_model_settings.endpoint_request_settings": {
        "request_batch_size": "generate.runtime.max_concurrency",
        "min_endpoint_success_ratio": "generate.min_success_ratio",
    },
    "prompt_settings": {
        "enable_chain_of_thought": "generate.reasoning",
        "enable_chain_of_density": "generate.reasoning",
        "max_len_summary": "prepare.max_summary_words",
        "custom_prompt": "generate.instruction",
    },
    "hyperparameters": {
        "learning_rate": "train.learning_rate",
        "learning_rate_multiplier": "train.learning_rate",
        "batch_size": "train.batch_size",
        "per_device_train_batch_size": "train.batch_size",
        "num_epochs": "train.num_epochs",
        "n_epochs": "train.num_epochs",
        "num_train_epochs": "train.num_epochs",
    },
}
CONNECTION_KEYS = ("type", "name", "endpoint", "api_key", "description", "tags")
READ = (
    "type",
    "name",
    "data_generation_type",
    "data_generation_task_type",
    "training_data",
    "validation_data",
    "teacher_model_endpoint_connection",
    "student_model",
    "teacher_model_settings",
    "prompt_settings",
    "hyperparameters",
    "outputs",
)
IGNORED = (
    "$schema",
    "description",
    "display_name",
    "experiment_name",
    "tags",
    "properties",
    "compute",
    "resources",
    "identity",
    "services",
)
